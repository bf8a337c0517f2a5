/* SPDX-License-Identifier: Apache-2.0 */
/* What a process does at this moment. */
#ifndef NUMAPOOL_TESTS_PROCESS_H
#define NUMAPOOL_TESTS_PROCESS_H

#include <sys/types.h>

/* The letter that /proc shows: 'S' asleep, 'T' stopped; 0: there is no such process. */
int process_state(pid_t pid);

/* SIGSTOP; returns when it stands still, which takes as long as it takes to get a processor. 1; 0: it does not. */
int process_stop(pid_t pid);

#endif
