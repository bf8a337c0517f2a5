/* SPDX-License-Identifier: Apache-2.0 */
#include "support/single_step.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

void step_me(void) {
  if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) abort();
  raise(SIGSTOP);
}

static int wait_stopped(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return 0;
  }
  return WIFSTOPPED(status);
}

int step_wait(pid_t pid) {
  if (!wait_stopped(pid)) return 0;
  ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)(uintptr_t)PTRACE_O_EXITKILL);
  return 1;
}

int step_once(pid_t pid) {
  return ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0 && wait_stopped(pid);
}

int step_to_call(pid_t pid) {
  return ptrace(PTRACE_SYSCALL, pid, NULL, NULL) == 0 && wait_stopped(pid);
}

long step_next_call(pid_t pid) {
  struct user_regs_struct registers;
  struct iovec place = {&registers, sizeof registers};
  if (ptrace(PTRACE_GETREGSET, pid, (void *)(uintptr_t)NT_PRSTATUS, &place) != 0) return -1;
#if defined(__x86_64__)
  uint64_t code = step_peek(pid, (const void *)(uintptr_t)registers.rip);
  return (code & 0xffff) == 0x050f ? (long)registers.rax : -1; /* syscall */
#elif defined(__aarch64__)
  uint64_t code = step_peek(pid, (const void *)(uintptr_t)registers.pc);
  return (uint32_t)code == 0xd4000001 ? (long)registers.regs[8] : -1; /* svc #0 */
#else
  return -2;
#endif
}

uint64_t step_peek(pid_t pid, const volatile void *address) {
  return (uint64_t)ptrace(PTRACE_PEEKDATA, pid, (void *)(uintptr_t)address, NULL);
}

void step_kill(pid_t pid) {
  kill(pid, SIGKILL);
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
  }
}

void step_stop(pid_t pid) {
  ptrace(PTRACE_DETACH, pid, NULL, (void *)(uintptr_t)SIGSTOP);
}

void step_let_go(pid_t pid) {
  ptrace(PTRACE_DETACH, pid, NULL, NULL);
}
