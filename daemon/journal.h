/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adds what an endpoint that is gone had counted to the past of its channel, once, also when the broker dies
 * between two of the stores (shm/layout.h, "the broker's journal").
 *
 *   npi_journal_fold()   the sums are in the journal, the journal counts, the sums are in their place
 *   (the caller takes the record down)
 *   npi_journal_done()   the journal is empty
 */
#ifndef NPI_DAEMON_JOURNAL_H
#define NPI_DAEMON_JOURNAL_H

#include "daemon/registry.h"

/* past[i] += add[i] for i < n. add may be a client's own memory: each value is loaded once. */
void npi_journal_fold(struct npi_registry *registry, enum npi_journal_kind kind, uint32_t index, uint32_t target,
                      struct npi_atomic_u64 *past, const struct npi_atomic_u64 *add, size_t n);
/* The record of a connection that is over: adds what is in its rings to its endpoints' sums (in that order). */
enum {
  NPI_ENDED_FROM_DELIVERED,
  NPI_ENDED_FROM_TAPPED,
  NPI_ENDED_FROM_LEFT,
  NPI_ENDED_FROM_DROPPED,
  NPI_ENDED_FROM_TAP_DROPPED,
  NPI_ENDED_TO_DELIVERED,
  NPI_ENDED_TO_TAKEN,
  NPI_ENDED_TO_RELEASED,
  NPI_ENDED_TO_DROPPED,
  NPI_ENDED_SUMS
};
void npi_journal_fold_connection(struct npi_registry *registry, uint32_t connection,
                                 const uint64_t add[NPI_ENDED_SUMS]);
void npi_journal_done(struct npi_registry *registry);

/* A successor's first step: finishes what its predecessor had begun. Nothing begun: nothing happens. */
void npi_journal_replay(struct npi_registry *registry);

#endif
