/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child process for what a test must not do to itself: lose system calls, mounts or its life.
 * The body returns 0 when all is well, or a number that says which step was not: CHILD_EXPECT gives the line.
 */
#ifndef NUMAPOOL_TESTS_CHILD_H
#define NUMAPOOL_TESTS_CHILD_H

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/status.h"

#ifdef NPI_HAVE_SECCOMP
#include <seccomp.h>
#endif

/* The child's result for "this machine cannot show it"; the reason is printed by the child. */
enum { CHILD_SKIP = 77, CHILD_KILLED = 1000 };

#define CHILD_EXPECT(condition)                                               \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      fprintf(stderr, "  last failure in words: %s\n", npi_detail());         \
      return 1;                                                               \
    }                                                                         \
  } while (0)

/* The body's result, or CHILD_KILLED + signal. */
static inline int in_child(int (*body)(const void *argument), const void *argument) {
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    int result = body(argument);
    fflush(stderr);
    _exit(result);
  }
  int status = 0;
  while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (pid < 0) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : CHILD_KILLED + WTERMSIG(status);
}

/* Descriptors that this process has open, those of the count itself not counted. */
static inline int count_descriptors(void) {
  int n = 0;
  DIR *folder = opendir("/proc/self/fd");
  if (folder == NULL) return -1;
  while (readdir(folder) != NULL) n++;
  closedir(folder);
  return n - 3; /* ".", ".." and the folder's own */
}

/* From now on the system call fails with the given errno in this process. -1 where the machine cannot do that. */
static inline int forbid_system_call(const char *name, int error) {
#ifdef NPI_HAVE_SECCOMP
  int number = seccomp_syscall_resolve_name(name);
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
  if (filter == NULL) return -1;
  int result = number == __NR_SCMP_ERROR ? -1 : seccomp_rule_add(filter, SCMP_ACT_ERRNO((unsigned)error), number, 0);
  if (result == 0) result = seccomp_load(filter);
  seccomp_release(filter);
  return result == 0 ? 0 : -1;
#else
  (void)name;
  (void)error;
  return -1;
#endif
}

/*
 * From now on the kernel looks like one before 6.5, which does not know SO_PEERPIDFD (77). Fits as before_exec of
 * support/instance.h. -1 where the machine cannot do that.
 */
static inline int forget_peer_pidfd(void) {
#ifdef NPI_HAVE_SECCOMP
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
  if (filter == NULL) return -1;
  int result =
      seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOPROTOOPT), SCMP_SYS(getsockopt), 1, SCMP_CMP64(2, SCMP_CMP_EQ, 77, 0));
  if (result == 0) result = seccomp_load(filter);
  seccomp_release(filter);
  return result == 0 ? 0 : -1;
#else
  return -1;
#endif
}

#endif
