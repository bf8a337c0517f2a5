/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/journal.h"

static void copy_sums(struct npi_atomic_u64 *past, const struct npi_journal *journal, size_t n) {
  for (size_t i = 0; i < n; i++) npi_store_relaxed_u64(&past[i], npi_load_relaxed_u64(&journal->sum[i]));
}

void npi_journal_fold(struct npi_registry *registry, enum npi_journal_kind kind, uint32_t index, uint32_t target,
                      struct npi_atomic_u64 *past, const struct npi_atomic_u64 *add, size_t n) {
  struct npi_journal *journal = registry->journal;
  for (size_t i = 0; i < n; i++) {
    npi_store_relaxed_u64(&journal->sum[i], npi_load_relaxed_u64(&past[i]) + npi_load_relaxed_u64(&add[i]));
  }
  journal->index = index;
  journal->target = target;
  /* [journal.kind] release: a dead broker leaves a prefix of its stores, and this one says that all before it count. */
  npi_store_release_u32(&journal->kind, kind);
  copy_sums(past, journal, n);
}

void npi_journal_done(struct npi_registry *registry) {
  npi_store_release_u32(&registry->journal->kind, NPI_JOURNAL_NONE);
}

void npi_journal_replay(struct npi_registry *registry) {
  const struct npi_journal *journal = registry->journal;
  /* [journal.replay] acquire. Pairs with [journal.kind]. */
  uint32_t kind = npi_load_acquire_u32(&journal->kind);
  uint32_t index = journal->index, target = journal->target;
  if (kind == NPI_JOURNAL_PUBLISHER && index < registry->n_publishers && target < registry->n_channels) {
    copy_sums(registry->channels[target].past_publishers.value, journal, NPI_PUBLISHER_COUNTER_COUNT);
    npi_store_release_u32(&registry->publishers[index].state, NPI_RECORD_FREE);
  } else if (kind == NPI_JOURNAL_SUBSCRIBER && index < registry->n_subscribers && target < registry->n_channels) {
    copy_sums(registry->channels[target].past_subscribers.value, journal, NPI_SUBSCRIBER_COUNTER_COUNT);
    npi_store_release_u32(&registry->subscribers[index].state, NPI_RECORD_FREE);
  } else if (kind == NPI_JOURNAL_LISTENER && index < registry->n_clients && target < registry->n_listeners) {
    copy_sums(registry->listeners[target].past.value, journal, NPI_LISTENER_COUNTER_COUNT);
    npi_store_release_u32(&registry->clients[index].folded, target + 1);
  }
  npi_journal_done(registry);
}
