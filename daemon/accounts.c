/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/accounts.h"

#include <string.h>

#include "core/flow.h"
#include "core/ring.h"
#include "daemon/broker.h"
#include "daemon/clients.h"
#include "daemon/journal.h"

void npi_account_open_publisher(struct npi_publisher_record *record) {
  npi_store_relaxed_u64(&record->ended_delivered, 0);
  npi_store_relaxed_u64(&record->ended_tapped, 0);
  npi_store_relaxed_u64(&record->ended_left, 0);
  npi_store_relaxed_u64(&record->ended_dropped, 0);
  npi_store_relaxed_u64(&record->ended_tap_dropped, 0);
}

void npi_account_open_subscriber(struct npi_subscriber_record *record) {
  npi_store_relaxed_u64(&record->ended_delivered, 0);
  npi_store_relaxed_u64(&record->ended_taken, 0);
  npi_store_relaxed_u64(&record->ended_released, 0);
  npi_store_relaxed_u64(&record->ended_dropped, 0);
}

/* ---- connections ------------------------------------------------------------------------------------ */

/* 0: a page that was made anew, because nobody had that of the client any more; its rings were never formatted. */
static int is_attached(const struct npi_client *client) {
  return ((const struct npi_page_shm *)(const void *)client->page)->magic == NPI_MAGIC_PAGE;
}

void npi_account_connection(const struct npi_connection *connection) {
  const struct npi_publisher *publisher = connection->publisher;
  const struct npi_subscriber *subscriber = connection->subscriber;
  const struct npi_ring_block *submissions = npi_client_block(publisher->client, connection->submissions_offset);
  const struct npi_ring_block *returns = npi_client_block(subscriber->client, connection->returns_offset);
  uint64_t add[NPI_ENDED_SUMS] = {0};
  uint64_t stored = npi_load_relaxed_u64(&submissions->counter[NPI_SUBMISSION_PUBLISHED]);
  uint64_t released = npi_load_relaxed_u64(&returns->counter[NPI_RETURN_RETURNED]);
  uint64_t taken = npi_load_relaxed_u64(&returns->counter[NPI_RETURN_TAKEN]);
  uint64_t dropped = npi_load_relaxed_u64(&submissions->counter[NPI_SUBMISSION_DROPPED]);
  int is_tap = (subscriber->flags & NPI_SUBSCRIBER_TAP) != 0;
  if (is_attached(publisher->client)) stored = npi_ring_stored(submissions, subscriber->capacity, stored);
  if (is_attached(subscriber->client)) released = npi_ring_stored(returns, subscriber->capacity, released);
  /* One of the two lied, or what was given back was counted as taken an instant too late. */
  if (released > stored) released = stored;
  if (taken > stored) taken = stored;
  if (taken < released) taken = released;
  add[NPI_ENDED_FROM_DELIVERED] = add[NPI_ENDED_TO_DELIVERED] = stored;
  add[NPI_ENDED_FROM_DROPPED] = add[NPI_ENDED_TO_DROPPED] = dropped;
  add[NPI_ENDED_FROM_TAPPED] = is_tap ? stored : 0;
  add[NPI_ENDED_FROM_TAP_DROPPED] = is_tap ? dropped : 0;
  add[NPI_ENDED_TO_TAKEN] = taken;
  add[NPI_ENDED_TO_RELEASED] = released;
  if (connection->lied) { /* from a lie on the publisher takes no returns, and has taken back the rest itself */
    uint64_t processed = npi_load_relaxed_u64(&submissions->counter[NPI_SUBMISSION_RETURNED]);
    if (processed < released) released = processed;
  }
  add[NPI_ENDED_FROM_LEFT] = is_tap ? 0 : stored - released;
  npi_journal_fold_connection(&publisher->client->broker->registry, connection->index, add);
}

/* ---- ends ------------------------------------------------------------------------------------------- */

static uint64_t get(const struct npi_endpoint_counters *counters, unsigned row) {
  return npi_load_relaxed_u64(&counters->value[row]);
}

static void set(struct npi_endpoint_counters *counters, unsigned row, uint64_t value) {
  npi_store_relaxed_u64(&counters->value[row], value);
}

static uint64_t less(uint64_t from, uint64_t what) {
  return from > what ? from - what : 0;
}

/*
 * What of a worker's events no listener has counted yet: noted with the listener at work. 0: no listener feeds the
 * channel, as where a worker publishes dead letters.
 */
static int note_uncounted(const struct npi_publisher *publisher, uint64_t published) {
  struct npi_client *client = publisher->client;
  const struct npi_registry *registry = &client->broker->registry;
  struct npi_listener_counters *rows =
      (struct npi_listener_counters *)(void *)(client->page + registry->page_listeners_offset);
  struct npi_listener_counters *at_work = NULL;
  uint64_t counted = 0;
  for (uint32_t i = 0; i < client->broker->workers.n_listeners; i++) {
    if (registry->listeners[i].channel != publisher->channel->index) continue;
    counted += npi_load_relaxed_u64(&rows[i].value[NPI_LISTENER_PUBLISHED]);
    if (at_work == NULL || npi_load_relaxed_u64(&rows[i].value[NPI_LISTENER_AT_WORK]) != 0) at_work = &rows[i];
  }
  /* Stored, not added: a successor that does it again stores the same. */
  if (at_work == NULL) return 0;
  npi_store_relaxed_u64(&at_work->value[NPI_LISTENER_UNCOUNTED], less(published, counted));
  return 1;
}

void npi_account_publisher(const struct npi_publisher *publisher, struct npi_endpoint_counters *counted) {
  const struct npi_client *client = publisher->client;
  const struct npi_publisher_record *record = &client->broker->registry.publishers[publisher->index];
  const struct npi_endpoint_counters *claims = npi_client_row(client, publisher->counters);
  uint64_t elements = npi_load_relaxed_u64(&record->ended_delivered);
  for (unsigned i = 0; i < NPI_PUBLISHER_COUNTER_COUNT; i++) set(counted, i, get(claims, i));
  uint64_t delivered = get(counted, NPI_PUBLISHER_DELIVERED), redelivered = get(counted, NPI_PUBLISHER_REDELIVERED);
  /* Offering again is counted before the element, delivering behind it: which of the two is off, the sum says. */
  if (delivered + redelivered > elements) redelivered = less(elements, delivered);
  delivered = less(elements, redelivered);
  uint64_t published =
      npi_flow_published(get(counted, NPI_PUBLISHER_BEGUN), get(counted, NPI_PUBLISHER_PUBLISHED), elements);
  set(counted, NPI_PUBLISHER_PUBLISHED, published);
  set(counted, NPI_PUBLISHER_DELIVERED, delivered);
  set(counted, NPI_PUBLISHER_REDELIVERED, redelivered);
  set(counted, NPI_PUBLISHER_BEGUN, 0);
  set(counted, NPI_PUBLISHER_FROM_LISTENERS, 0);
  uint64_t dropped = npi_load_relaxed_u64(&record->ended_dropped);
  if (publisher->channel->kind == NPI_CHANNEL_GROUP) {
    uint64_t to_members = less(delivered, npi_load_relaxed_u64(&record->ended_tapped));
    uint64_t nobody = get(counted, NPI_PUBLISHER_DROPPED_NO_MEMBER);
    uint64_t no_credit = less(published, to_members + nobody) + npi_load_relaxed_u64(&record->ended_tap_dropped);
    set(counted, NPI_PUBLISHER_DROPPED_NO_CREDIT, no_credit);
    uint64_t left = npi_load_relaxed_u64(&record->ended_left);
    set(counted, NPI_PUBLISHER_LOST_WITH_MEMBER, less(left, redelivered + get(counted, NPI_PUBLISHER_DEAD_LETTERED)));
  } else {
    set(counted, NPI_PUBLISHER_DROPPED_NO_CREDIT, dropped);
  }
  if (client->kind == NPI_CLIENT_WORKER && note_uncounted(publisher, published)) {
    set(counted, NPI_PUBLISHER_FROM_LISTENERS, published);
  }
}

void npi_account_subscriber(const struct npi_subscriber *subscriber, struct npi_endpoint_counters *counted) {
  const struct npi_client *client = subscriber->client;
  const struct npi_subscriber_record *record = &client->broker->registry.subscribers[subscriber->index];
  const struct npi_endpoint_counters *claims = npi_client_row(client, subscriber->counters);
  for (unsigned i = 0; i < NPI_SUBSCRIBER_COUNTER_COUNT; i++) set(counted, i, get(claims, i));
  set(counted, NPI_SUBSCRIBER_TAKEN, npi_load_relaxed_u64(&record->ended_taken));
  set(counted, NPI_SUBSCRIBER_RELEASED, npi_load_relaxed_u64(&record->ended_released));
  set(counted, NPI_SUBSCRIBER_MISSED_PAST, npi_load_relaxed_u64(&record->ended_dropped));
  set(counted, NPI_SUBSCRIBER_DELIVERED, npi_load_relaxed_u64(&record->ended_delivered));
}

/* ---- workers ---------------------------------------------------------------------------------------- */

/* States, not counts. */
static const unsigned gauges[] = {NPI_LISTENER_HELD, NPI_LISTENER_PAUSED_NOW, NPI_LISTENER_BACKEND,
                                  NPI_LISTENER_AT_WORK, NPI_LISTENER_UNCOUNTED};

static void count_listener(const struct npi_listener_counters *row, struct npi_listener_counters *counted) {
  uint64_t value[NPI_LISTENER_COUNTER_COUNT];
  for (unsigned i = 0; i < NPI_LISTENER_COUNTER_COUNT; i++) value[i] = npi_load_relaxed_u64(&row->value[i]);
  value[NPI_LISTENER_PUBLISHED] += value[NPI_LISTENER_UNCOUNTED];
  /* A frame that was held is received already; others are counted as received and published at once. */
  if (value[NPI_LISTENER_AT_WORK] != 2) value[NPI_LISTENER_RECEIVED] += value[NPI_LISTENER_UNCOUNTED];
  value[NPI_LISTENER_LOST_WITH_WORKER] =
      less(value[NPI_LISTENER_RECEIVED],
           value[NPI_LISTENER_PUBLISHED] + value[NPI_LISTENER_DROPPED_POOL] + value[NPI_LISTENER_DROPPED_CREDIT]);
  for (size_t i = 0; i < sizeof gauges / sizeof gauges[0]; i++) value[gauges[i]] = 0;
  for (unsigned i = 0; i < NPI_LISTENER_COUNTER_COUNT; i++) npi_store_relaxed_u64(&counted->value[i], value[i]);
}

void npi_account_worker(struct npi_broker *broker, const struct npi_client *client) {
  struct npi_registry *registry = &broker->registry;
  struct npi_client_record *record = &registry->clients[client->index];
  const struct npi_listener_counters *rows =
      (const struct npi_listener_counters *)(const void *)(client->page + registry->page_listeners_offset);
  for (uint32_t i = npi_load_relaxed_u32(&record->folded); i < broker->workers.n_listeners; i++) {
    struct npi_listener_counters counted;
    count_listener(&rows[i], &counted);
    npi_journal_fold(registry, NPI_JOURNAL_LISTENER, client->index, i, registry->listeners[i].past.value, counted.value,
                     NPI_LISTENER_COUNTER_COUNT);
    npi_store_release_u32(&record->folded, i + 1);
    npi_journal_done(registry);
  }
}
