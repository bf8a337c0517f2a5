/* SPDX-License-Identifier: Apache-2.0 */
/* Sleeping and waking: eventfds, poll with a bound, and the barrier that spares publishers a fence. */
#ifndef NPI_OS_WAIT_H
#define NPI_OS_WAIT_H

#include <stdint.h>

enum { NPI_MEMBARRIER_MISSING = 1, NPI_WAIT_FDS_MAX = 64 };

/* A non-blocking eventfd at 0; the caller closes it. */
int npi_event_create(int *fd);

/*
 * Makes fd readable; fine where it is already, also where its count is full. Does not block as long as nobody who holds
 * the descriptor has cleared O_NONBLOCK: give one event to one pair of processes, so that only they can harm each other.
 */
int npi_event_ring(int fd);

/* Takes all rings; 1: there were some. Does not block, with the same condition. A timer's descriptor will do as well. */
int npi_event_clear(int fd);

/*
 * Sleeps until one of n descriptors (at most NPI_WAIT_FDS_MAX) is readable or hung up. timeout_ns < 0: no bound.
 * 1 readable; 0 the time is up, or a signal came: the caller looks at its clock; < 0 failure.
 */
int npi_wait_readable(const int *fds, int n, int64_t timeout_ns);

/* From now on other processes' npi_membarrier_all() covers this one. NPI_MEMBARRIER_MISSING: refused, use fences. */
int npi_membarrier_register(void);

/*
 * A full fence on every CPU that runs a registered process, some microseconds. NPI_MEMBARRIER_MISSING: refused.
 * Never the unexpedited kind, which takes tens of milliseconds.
 */
int npi_membarrier_all(void);

#endif
