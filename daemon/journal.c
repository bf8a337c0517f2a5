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

static void ended_sums(struct npi_registry *registry, uint32_t connection, struct npi_atomic_u64 *sum[NPI_ENDED_SUMS]) {
  const struct npi_connection_record *record = &registry->connections[connection];
  struct npi_publisher_record *from = &registry->publishers[record->publisher];
  struct npi_subscriber_record *to = &registry->subscribers[record->subscriber];
  sum[NPI_ENDED_FROM_DELIVERED] = &from->ended_delivered;
  sum[NPI_ENDED_FROM_TAPPED] = &from->ended_tapped;
  sum[NPI_ENDED_FROM_LEFT] = &from->ended_left;
  sum[NPI_ENDED_FROM_DROPPED] = &from->ended_dropped;
  sum[NPI_ENDED_FROM_TAP_DROPPED] = &from->ended_tap_dropped;
  sum[NPI_ENDED_TO_DELIVERED] = &to->ended_delivered;
  sum[NPI_ENDED_TO_TAKEN] = &to->ended_taken;
  sum[NPI_ENDED_TO_RELEASED] = &to->ended_released;
  sum[NPI_ENDED_TO_DROPPED] = &to->ended_dropped;
}

static void copy_ended(struct npi_atomic_u64 *const sum[NPI_ENDED_SUMS], const struct npi_journal *journal) {
  for (size_t i = 0; i < NPI_ENDED_SUMS; i++) npi_store_relaxed_u64(sum[i], npi_load_relaxed_u64(&journal->sum[i]));
}

void npi_journal_fold_connection(struct npi_registry *registry, uint32_t connection,
                                 const uint64_t add[NPI_ENDED_SUMS]) {
  struct npi_journal *journal = registry->journal;
  struct npi_atomic_u64 *sum[NPI_ENDED_SUMS];
  ended_sums(registry, connection, sum);
  for (size_t i = 0; i < NPI_ENDED_SUMS; i++) {
    npi_store_relaxed_u64(&journal->sum[i], npi_load_relaxed_u64(sum[i]) + add[i]);
  }
  journal->index = connection;
  journal->target = 0;
  npi_store_release_u32(&journal->kind, NPI_JOURNAL_CONNECTION); /* [journal.kind] */
  copy_ended(sum, journal);
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
  } else if (kind == NPI_JOURNAL_CONNECTION && index < registry->n_connections &&
             registry->connections[index].publisher < registry->n_publishers &&
             registry->connections[index].subscriber < registry->n_subscribers) {
    struct npi_atomic_u64 *sum[NPI_ENDED_SUMS];
    struct npi_connection_record *record = &registry->connections[index];
    ended_sums(registry, index, sum);
    copy_ended(sum, journal);
    npi_store_release_u32(&record->state, NPI_CONNECTION_FREE);
    npi_store_release_u32(&record->version, npi_load_relaxed_u32(&record->version) + 1);
  }
  npi_journal_done(registry);
}
