/* SPDX-License-Identifier: Apache-2.0 */
/* fsck: the registry's records, one by one and against each other. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/align.h"
#include "fsck.h"

static int is_name(const char *name, size_t bytes) {
  return name[0] != '\0' && memchr(name, '\0', bytes) != NULL;
}

static int client_is_used(const struct npi_view *view, uint32_t client) {
  return client < view->n_clients && npi_view_state(&view->clients[client].state) != NPI_RECORD_FREE;
}

static int channel_is_used(const struct npi_view *view, uint32_t channel) {
  return channel < view->n_channels && npi_view_state(&view->channels[channel].state) != NPI_RECORD_FREE;
}

static void check_clients(struct npi_fsck *fsck, const struct npi_view *view) {
  int broker = npi_view_broker(view);
  for (uint32_t i = 0; i < view->n_clients; i++) {
    const struct npi_client_record *record = &view->clients[i];
    uint32_t state = npi_view_state(&record->state);
    if (state > NPI_RECORD_CLOSING) npi_fsck_find(fsck, "client %u: state %u does not exist", i, state);
    if (state == NPI_RECORD_FREE) continue;
    if (record->node >= view->n_nodes || record->kind > NPI_CLIENT_TOOL || record->pid == 0 ||
        !is_name(record->name, sizeof record->name)) {
      npi_fsck_find(fsck, "client %u: node %u of %u, kind %u, pid %u, name of %zu bytes", i, record->node,
                    view->n_nodes, record->kind, record->pid, strnlen(record->name, sizeof record->name));
    }
    if (state == NPI_RECORD_ACTIVE && npi_view_client_process(view, i) == NPI_PROCESS_DEAD) {
      npi_fsck_find(fsck, "client %u (%.31s, pid %u) is dead, and what it had was not cleared up%s", i, record->name,
                    record->pid, broker == NPI_PROCESS_RUNNING ? "" : ": the broker does not run");
    }
  }
}

static void check_channels(struct npi_fsck *fsck, const struct npi_view *view) {
  for (uint32_t i = 0; i < view->n_channels; i++) {
    const struct npi_channel_record *record = &view->channels[i];
    uint32_t state = npi_view_state(&record->state);
    uint32_t n_publishers = 0, n_subscribers = 0;
    if (state > NPI_RECORD_CLOSING) npi_fsck_find(fsck, "channel %u: state %u does not exist", i, state);
    if (state == NPI_RECORD_FREE) continue;
    if (record->kind > NPI_CHANNEL_GROUP || record->on_full > NPI_ON_FULL_DROP_NEWEST || record->credits == 0 ||
        record->credits > NPI_CREDITS_MAX || !is_name(record->name, sizeof record->name)) {
      npi_fsck_find(fsck, "channel %u: kind %u, on_full %u, %u credits, name of %zu bytes", i, record->kind,
                    record->on_full, record->credits, strnlen(record->name, sizeof record->name));
    }
    for (uint32_t j = 0; j < i; j++) {
      if (npi_view_state(&view->channels[j].state) == NPI_RECORD_FREE) continue;
      if (strncmp(view->channels[j].name, record->name, sizeof record->name) != 0) continue;
      npi_fsck_find(fsck, "channels %u and %u have the same name, %.63s", j, i, record->name);
      break; /* one of them says it: a registry full of one name is not a finding for each pair */
    }
    for (uint32_t j = 0; j < view->n_publishers; j++) {
      n_publishers += npi_view_state(&view->publishers[j].state) != NPI_RECORD_FREE && view->publishers[j].channel == i;
    }
    for (uint32_t j = 0; j < view->n_subscribers; j++) {
      n_subscribers +=
          npi_view_state(&view->subscribers[j].state) != NPI_RECORD_FREE && view->subscribers[j].channel == i;
    }
    if (n_publishers != npi_load_relaxed_u32(&record->n_publishers) ||
        n_subscribers != npi_load_relaxed_u32(&record->n_subscribers)) {
      npi_fsck_find(fsck, "channel %u (%.63s): it counts %u publishers and %u subscribers, there are %u and %u", i,
                    record->name, npi_load_relaxed_u32(&record->n_publishers),
                    npi_load_relaxed_u32(&record->n_subscribers), n_publishers, n_subscribers);
    }
  }
}

/* A publisher or subscriber: where it refers to. rows: one bit for each row of counters of each client. */
static void check_endpoint(struct npi_fsck *fsck, const struct npi_view *view, const char *what, uint32_t i,
                           uint32_t state, uint32_t client, uint32_t channel, uint32_t row, uint8_t *rows) {
  if (state > NPI_RECORD_CLOSING) npi_fsck_find(fsck, "%s %u: state %u does not exist", what, i, state);
  if (!client_is_used(view, client) || !channel_is_used(view, channel)) {
    npi_fsck_find(fsck, "%s %u: it is of client %u on channel %u, and not both are there", what, i, client, channel);
    return;
  }
  uint32_t n_rows = view->header->endpoints_per_client;
  if (row >= n_rows) {
    npi_fsck_find(fsck, "%s %u: its counters are in row %u of %u", what, i, row, n_rows);
    return;
  }
  size_t bit = (size_t)client * n_rows + row;
  if ((rows[bit / 8] >> bit % 8 & 1) != 0) {
    npi_fsck_find(fsck, "%s %u: another one counts in row %u of client %u, too", what, i, row, client);
  }
  rows[bit / 8] |= (uint8_t)(1U << bit % 8);
}

static void check_endpoints(struct npi_fsck *fsck, const struct npi_view *view) {
  uint8_t *rows = calloc((size_t)view->n_clients * view->header->endpoints_per_client / 8 + 1, 1);
  if (rows == NULL) {
    npi_fsck_note(fsck, "publishers and subscribers were not checked: out of memory");
    return;
  }
  for (uint32_t i = 0; i < view->n_publishers; i++) {
    const struct npi_publisher_record *record = &view->publishers[i];
    uint32_t state = npi_view_state(&record->state);
    if (state == NPI_RECORD_FREE) continue;
    check_endpoint(fsck, view, "publisher", i, state, record->client, record->channel, record->counters, rows);
  }
  for (uint32_t i = 0; i < view->n_subscribers; i++) {
    const struct npi_subscriber_record *record = &view->subscribers[i];
    uint32_t state = npi_view_state(&record->state);
    if (state == NPI_RECORD_FREE) continue;
    check_endpoint(fsck, view, "subscriber", i, state, record->client, record->channel, record->counters, rows);
    if (record->credits == 0 || record->credits > NPI_CREDITS_MAX || record->on_full > NPI_ON_FULL_DROP_NEWEST) {
      npi_fsck_find(fsck, "subscriber %u: %u credits, on_full %u", i, record->credits, record->on_full);
    }
  }
  free(rows);
}

/* ---- connections and the places of their rings ------------------------------------------------------- */

struct place {
  uint32_t client, connection;
  uint64_t begin, end;
};

static int by_place(const void *a, const void *b) {
  const struct place *x = a;
  const struct place *y = b;
  if (x->client != y->client) return x->client < y->client ? -1 : 1;
  return (x->begin > y->begin) - (x->begin < y->begin);
}

static int is_inside(const struct npi_view *view, const struct place *place) {
  return place->begin % 8 == 0 && place->begin >= view->header->page_rings_offset &&
         place->begin <= view->header->page_bytes && place->end <= view->header->page_bytes;
}

/* 1 when the rest of it may be relied on. */
static int check_connection(struct npi_fsck *fsck, const struct npi_view *view, uint32_t i) {
  const struct npi_connection_record *record = &view->connections[i];
  uint32_t state = npi_view_state(&record->state);
  if (state > NPI_CONNECTION_DEAD) npi_fsck_find(fsck, "connection %u: state %u does not exist", i, state);
  if (!npi_is_power_of_two(record->capacity) || record->capacity < NPI_RING_CAPACITY_MIN ||
      record->capacity > NPI_CREDITS_MAX || record->limit == 0 || record->limit > record->capacity) {
    npi_fsck_find(fsck, "connection %u: %u credits in rings of %u", i, record->limit, record->capacity);
    return 0;
  }
  if (record->publisher >= view->n_publishers || record->subscriber >= view->n_subscribers ||
      record->publisher_client >= view->n_clients || record->subscriber_client >= view->n_clients) {
    npi_fsck_find(fsck, "connection %u: from publisher %u of client %u to subscriber %u of client %u", i,
                  record->publisher, record->publisher_client, record->subscriber, record->subscriber_client);
    return 0;
  }
  if (state == NPI_CONNECTION_ACTIVE) {
    const struct npi_publisher_record *publisher = &view->publishers[record->publisher];
    const struct npi_subscriber_record *subscriber = &view->subscribers[record->subscriber];
    if (npi_view_state(&publisher->state) == NPI_RECORD_FREE || npi_view_state(&subscriber->state) == NPI_RECORD_FREE ||
        publisher->client != record->publisher_client || subscriber->client != record->subscriber_client ||
        publisher->channel != record->channel || subscriber->channel != record->channel) {
      npi_fsck_find(fsck, "connection %u: publisher %u and subscriber %u are not both there on channel %u", i,
                    record->publisher, record->subscriber, record->channel);
    }
  }
  return 1;
}

static void check_connections(struct npi_fsck *fsck, const struct npi_view *view) {
  struct place *places = calloc((size_t)view->n_connections * 2 + 1, sizeof *places);
  size_t n = 0;
  if (places == NULL) {
    npi_fsck_note(fsck, "connections were not checked: out of memory");
    return;
  }
  for (uint32_t i = 0; i < view->n_connections; i++) {
    const struct npi_connection_record *record = &view->connections[i];
    if (npi_view_state(&record->state) == NPI_CONNECTION_FREE || !check_connection(fsck, view, i)) continue;
    uint64_t bytes = npi_ring_block_bytes(record->capacity);
    struct place out = {record->publisher_client, i, record->submissions_offset, record->submissions_offset + bytes};
    struct place back = {record->subscriber_client, i, record->returns_offset, record->returns_offset + bytes};
    if (!is_inside(view, &out) || !is_inside(view, &back)) {
      npi_fsck_find(fsck, "connection %u: rings at %" PRIu64 " and %" PRIu64 " are not inside their pages", i,
                    out.begin, back.begin);
      continue;
    }
    places[n++] = out;
    places[n++] = back;
  }
  qsort(places, n, sizeof *places, by_place);
  for (size_t i = 1; i < n; i++) {
    if (places[i].client != places[i - 1].client || places[i].begin >= places[i - 1].end) continue;
    npi_fsck_find(fsck, "connections %u and %u: their rings overlap at %" PRIu64 " of the page of client %u",
                  places[i - 1].connection, places[i].connection, places[i].begin, places[i].client);
  }
  free(places);
}

static void check_listeners(struct npi_fsck *fsck, const struct npi_view *view) {
  for (uint32_t i = 0; i < view->n_listeners; i++) {
    const struct npi_listener_record *record = &view->listeners[i];
    uint32_t state = npi_view_state(&record->state);
    if (state == NPI_LISTENER_FREE) continue;
    if (state > NPI_LISTENER_DOWN || !channel_is_used(view, record->channel) ||
        !is_name(record->name, sizeof record->name)) {
      npi_fsck_find(fsck, "listener %u: state %u, channel %u, name of %zu bytes", i, state, record->channel,
                    strnlen(record->name, sizeof record->name));
    }
  }
}

void npi_fsck_registry(struct npi_fsck *fsck, const struct npi_view *view) {
  const struct npi_registry_header *header = view->header;
  uint32_t state = npi_view_state(&header->state);
  if (state < NPI_BROKER_STARTING || state > NPI_BROKER_STOPPED || header->total_bytes > view->n_bytes ||
      strncmp(header->instance, view->instance, sizeof header->instance) != 0 || header->uid != view->uid) {
    npi_fsck_find(fsck, "registry: state %u, %" PRIu64 " of %" PRIu64 " bytes, instance \"%.39s\" of user %u", state,
                  header->total_bytes, view->n_bytes, header->instance, header->uid);
  }
  check_clients(fsck, view);
  check_channels(fsck, view);
  check_endpoints(fsck, view);
  check_connections(fsck, view);
  check_listeners(fsck, view);
}
