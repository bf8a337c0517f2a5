/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/step.h"

#if defined(__x86_64__)
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* Where the second mark is: parent and child are the same program at the same addresses. */
static void mark(void) __attribute__((noinline));
static void mark(void) {
  __asm__ volatile("nop" ::: "memory");
}

static int is_prefix(uint8_t byte) {
  static const uint8_t prefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0xf0};
  return memchr(prefixes, byte, sizeof prefixes) != NULL;
}

static void classify(const uint8_t *code, struct step_counts *counts) {
  unsigned i = 0;
  int locked = 0;
  while (i < 8 && is_prefix(code[i])) locked |= code[i++] == 0xf0;
  if ((code[i] & 0xf0) == 0x40) i++; /* REX */
  counts->locked += (uint64_t)locked;
  if ((code[i] == 0x86 || code[i] == 0x87) && code[i + 1] < 0xc0 && !locked) counts->exchanges++;
  if (code[i] == 0x0f && code[i + 1] == 0xae && (code[i + 2] & 0xf8) == 0xf0 && i == 0) counts->fences++;
  if (code[i] == 0x0f && code[i + 1] == 0x05) counts->system_calls++;
}

static _Noreturn void run_child(void (*prepare)(void *context), void (*work)(void *context), void *context) {
  prepare(context);
  if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(3);
  raise(SIGSTOP); /* the first mark: steps begin in the rest of raise(), which the caller subtracts */
  mark();
  work(context);
  mark();
  _exit(0);
}

static int step_once(pid_t child, struct user_regs_struct *registers) {
  int status;
  if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) != 0 || waitpid(child, &status, 0) != child) return -1;
  if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP) return -1;
  return ptrace(PTRACE_GETREGS, child, NULL, registers) == 0 ? 0 : -1;
}

/* Steps to the next arrival at the mark. */
static int step_to_mark(pid_t child, FILE *trace, struct step_counts *counts) {
  struct user_regs_struct registers;
  uint64_t last = 0;
  if (ptrace(PTRACE_GETREGS, child, NULL, &registers) != 0) return -1;
  for (;;) {
    uint8_t code[16] = {0};
    struct iovec to = {code, sizeof code};
    struct iovec from = {(void *)(uintptr_t)registers.rip, sizeof code};
    if (process_vm_readv(child, &to, 1, &from, 1, 0) <= 0) return -1;
    if (registers.rip != last) { /* a repeated string instruction steps once for each turn */
      counts->instructions++;
      classify(code, counts);
      if (trace != NULL) fprintf(trace, "%llx\n", registers.rip);
    }
    last = registers.rip;
    if (step_once(child, &registers) != 0) return -1;
    if (registers.rip == (uint64_t)(uintptr_t)mark) return 0;
  }
}

int bench_step(void (*prepare)(void *context), void (*work)(void *context), void *context, const char *trace,
               struct step_counts *counts) {
  struct step_counts before = {0};
  int status;
  int result = -1;
  memset(counts, 0, sizeof *counts);
  fflush(NULL);
  pid_t child = fork();
  if (child < 0) return -1;
  if (child == 0) run_child(prepare, work, context);
  FILE *file = trace == NULL ? NULL : fopen(trace, "we");
  if (waitpid(child, &status, 0) == child && WIFSTOPPED(status) && step_to_mark(child, NULL, &before) == 0 &&
      step_to_mark(child, file, counts) == 0) {
    result = 0;
  }
  if (file != NULL) fclose(file);
  if (!WIFEXITED(status)) {
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
  }
  return result;
}

#else
int bench_step(void (*prepare)(void *context), void (*work)(void *context), void *context, const char *trace,
               struct step_counts *counts) {
  (void)prepare, (void)work, (void)context, (void)trace, (void)counts;
  return -1; /* the decoder knows x86-64 */
}
#endif
