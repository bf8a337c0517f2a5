/* SPDX-License-Identifier: Apache-2.0 */
/* Version, status texts, and snapshots of a client's own counters. */
#include <string.h>

#include "base/status.h"
#include "client/client_internal.h"

uint32_t np_version(void) {
  return NP_VERSION;
}

const char *np_status_text(int status) {
  return npi_status_text(status);
}

const char *np_error_detail(void) {
  return npi_detail();
}

/* Copies as much as the caller's struct has room for; its size field stays the caller's. */
static int hand_out(void *stats, const void *values, uint32_t bytes) {
  uint32_t size = stats == NULL ? 0 : *(const uint32_t *)stats;
  if (size < sizeof(uint32_t)) {
    return npi_fail(NP_ERR_ARGUMENT, "stats->size must be set to the size of the struct before the call");
  }
  memcpy((uint8_t *)stats + sizeof size, (const uint8_t *)values + sizeof size,
         (size < bytes ? size : bytes) - sizeof size);
  return NP_OK;
}

int np_client_stats(const struct np_client *client, struct np_client_stats *stats) {
  struct np_client_stats values = {0};
  if (!npi_client_usable(client)) return npi_client_forked();
  values.broker_connected = client->attach == NPI_ATTACHED;
  values.leased_bytes = client->pool.leased_bytes;
  values.budget_bytes = client->pool.budget_bytes;
  values.control_calls = client->control_calls;
  npi_pool_count(&client->pool, &values.free_slots, &values.loaned_slots, &values.outstanding_slots);
  return hand_out(stats, &values, sizeof values);
}

static uint64_t row(const struct npi_endpoint_counters *counters, unsigned index) {
  return npi_load_relaxed_u64(&counters->value[index]);
}

int np_publisher_stats(const struct np_publisher *publisher, struct np_publisher_stats *stats) {
  struct np_publisher_stats values = {0};
  if (!npi_client_usable(publisher->client)) return npi_client_forked();
  const struct npi_endpoint_counters *counters = publisher->flow.counters;
  values.subscribers = publisher->flow.n_outlets;
  values.published = row(counters, NPI_PUBLISHER_PUBLISHED);
  values.published_bytes = row(counters, NPI_PUBLISHER_BYTES);
  values.delivered = row(counters, NPI_PUBLISHER_DELIVERED);
  values.dropped_no_subscriber = row(counters, NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER);
  values.dropped_no_member = row(counters, NPI_PUBLISHER_DROPPED_NO_MEMBER);
  values.dropped_no_credit = row(counters, NPI_PUBLISHER_DROPPED_NO_CREDIT);
  values.full = row(counters, NPI_PUBLISHER_FULL);
  values.empty = row(counters, NPI_PUBLISHER_EMPTY);
  values.redelivered = row(counters, NPI_PUBLISHER_REDELIVERED);
  values.wakes = row(counters, NPI_PUBLISHER_WAKES);
  values.dead_lettered = row(counters, NPI_PUBLISHER_DEAD_LETTERED);
  return hand_out(stats, &values, sizeof values);
}

int np_subscriber_stats(const struct np_subscriber *subscriber, struct np_subscriber_stats *stats) {
  struct np_subscriber_stats values = {0};
  if (!npi_client_usable(subscriber->client)) return npi_client_forked();
  values.publishers = subscriber->n_inlets;
  values.taken = row(subscriber->counters, NPI_SUBSCRIBER_TAKEN);
  values.taken_bytes = row(subscriber->counters, NPI_SUBSCRIBER_BYTES);
  values.released = row(subscriber->counters, NPI_SUBSCRIBER_RELEASED);
  values.sleeps = row(subscriber->counters, NPI_SUBSCRIBER_SLEEPS);
  values.lies = row(subscriber->counters, NPI_SUBSCRIBER_LIES);
  values.missed = row(subscriber->counters, NPI_SUBSCRIBER_MISSED_PAST);
  for (uint32_t i = 0; i < subscriber->n_inlets; i++) {
    const struct npi_inlet *inlet = &subscriber->inlets[i]->inlet;
    values.held += npi_inlet_held(inlet);
    values.missed += npi_load_relaxed_u64(&inlet->peer_block->counter[NPI_SUBMISSION_DROPPED]);
  }
  return hand_out(stats, &values, sizeof values);
}
