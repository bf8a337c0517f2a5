/* SPDX-License-Identifier: Apache-2.0 */
/* What this kernel's io_uring can do, found out by trying it. */
#ifndef NPI_DAEMON_INGEST_PROBE_H
#define NPI_DAEMON_INGEST_PROBE_H

#include <stdint.h>

#include "daemon/ingest_uring_compat.h"

/* What a ring has, reported to the broker; a mask of these in NUMAPOOL_URING_MASK (a number) switches the rest off. */
enum npi_uring_feature {
  NPI_URING_DEFER_TASKRUN = 1,
  NPI_URING_SINGLE_ISSUER = 2,
  NPI_URING_COOP_TASKRUN = 4,
  NPI_URING_SUBMIT_ALL = 8,
  NPI_URING_REGISTERED_RING = 16,
  NPI_URING_MULTISHOT = 32, /* with provided buffers; without it there is no io_uring for us */
  NPI_URING_ALL = 63
};

/* The mask from the environment; NPI_URING_ALL without one. */
uint32_t npi_uring_mask(void);

/*
 * Makes a ring with the best flags that kernel and mask allow, best first: deferred task work, then a single issuer,
 * then cooperative task work, then none. *features: what it got. NP_ERR_SYSTEM with the reason. The calling thread is
 * the only one that may use it.
 */
int npi_uring_open(struct io_uring *ring, uint32_t entries, uint32_t cq_entries, uint32_t mask, uint32_t *features);

/*
 * Receives from two socket pairs the way the backend does, on a ring of its own: no capability bit tells whether
 * multishot receives work. 0, or NP_ERR_SYSTEM with what did not work.
 */
int npi_uring_selftest(uint32_t mask);

#endif
