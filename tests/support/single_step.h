/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child that is stopped before a chosen call, goes on instruction by instruction, and ends or stops where the test
 * wants it to. What it has mapped can be looked at in between.
 */
#ifndef NUMAPOOL_TESTS_SINGLE_STEP_H
#define NUMAPOOL_TESTS_SINGLE_STEP_H

#include <stdint.h>
#include <sys/types.h>

/* In the child: from here on its parent steps it. Returns in the child when it is stepped, or let go. */
void step_me(void);

/* In the parent: waits until the child has called step_me. 1: so it is; 0: it ended instead. */
int step_wait(pid_t pid);

/* One instruction of the child, system calls as a whole. 1; 0: it ended. */
int step_once(pid_t pid);

/* To the beginning or the end of its next system call, at full speed. 1; 0: it ended. */
int step_to_call(pid_t pid);

/* The number of the system call that its next instruction is; -1: it is none, -2: this machine's code is not known. */
long step_next_call(pid_t pid);

/* A word of the child's memory. */
uint64_t step_peek(pid_t pid, const volatile void *address);

/* SIGKILL where it is; waited for. */
void step_kill(pid_t pid);

/* SIGSTOP where it is, and it is the tracer's no more. SIGCONT lets it go on. */
void step_stop(pid_t pid);

/* It goes on, and is the tracer's no more. */
void step_let_go(pid_t pid);

#endif
