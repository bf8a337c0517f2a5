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
 * the descriptor has cleared O_NONBLOCK, and after npi_event_guard() not even then.
 */
int npi_event_ring(int fd);

/* From now on this process trusts nobody who holds its events: a ring costs some microseconds more, and never blocks. */
void npi_event_guard(void);

/* Takes all rings; 1: there were some. Does not block (before Linux 5.12: as long as O_NONBLOCK is set). A timer's descriptor will do as well. */
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
