/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which sums must be equal. Claims of a client (its rows) stand against what rings and the broker's records show; of
 * a client that is dead or stopped, which may be anywhere within a call, rings and records are taken for its claims.
 */
#include <stdlib.h>
#include <string.h>

#include "audit.h"
#include "core/counters.h"
#include "core/flow.h"
#include "core/ledger.h"
#include "core/ring.h"

/* What both rings of the connections of one end hold, and what they held when they were over. */
struct sums {
  uint64_t delivered, taken, released, dropped;
  uint64_t tapped, tap_dropped;
  uint64_t left; /* by members whose connections are ending: not given back */
  int known;     /* all of it could be read */
};

struct gather {
  struct npi_audit *audit;
  struct npi_view *view;
  struct sums *publishers, *subscribers;
  uint8_t *unread; /* by client */
};

static uint64_t get(const struct npi_atomic_u64 *value) {
  return npi_load_relaxed_u64(value);
}

/* Its claims may be behind its stores: it does not run, and will not catch up before the second look. */
static int is_at_rest(const struct gather *gather, uint32_t client) {
  return npi_view_client_process(gather->view, client) != NPI_PROCESS_RUNNING;
}

static void unread(struct gather *gather, uint32_t client) {
  if (client >= gather->view->n_clients || gather->unread[client]) return;
  gather->unread[client] = 1;
  gather->audit->n_unread++;
}

/* ---- connections ------------------------------------------------------------------------------------ */

/* Counters of a ring block, and how many elements it really holds. 0 where it can be read. */
static int read_ring(struct npi_view *view, uint32_t client, uint64_t offset, uint32_t capacity, unsigned count_row,
                     uint64_t counter[8], uint64_t *stored) {
  if (!npi_is_power_of_two(capacity) || capacity > NPI_CREDITS_MAX) return -1;
  uint64_t bytes = npi_ring_block_bytes(capacity);
  struct npi_ring_block *block = malloc(bytes);
  int status = block == NULL ? -1 : npi_view_page(view, client, offset, block, bytes);
  if (status == 0) {
    for (int i = 0; i < 8; i++) counter[i] = get(&block->counter[i]);
    *stored = npi_ring_stored(block, capacity, counter[count_row]);
  }
  free(block);
  return status;
}

static void add_connection(struct gather *gather, uint32_t index) {
  struct npi_view *view = gather->view;
  const struct npi_connection_record *record = &view->connections[index];
  uint64_t submitted[8], returned[8], stored, released;
  if (record->publisher >= view->n_publishers || record->subscriber >= view->n_subscribers) return;
  struct sums *from = &gather->publishers[record->publisher], *to = &gather->subscribers[record->subscriber];
  int is_tap = (record->flags & NPI_SUBSCRIBER_TAP) != 0;
  /* Returns first: what is given back was delivered before. */
  int knows_to = read_ring(view, record->subscriber_client, record->returns_offset, record->capacity,
                           NPI_RETURN_RETURNED, returned, &released) == 0;
  int knows_from = read_ring(view, record->publisher_client, record->submissions_offset, record->capacity,
                             NPI_SUBMISSION_PUBLISHED, submitted, &stored) == 0;
  if (!knows_from) unread(gather, record->publisher_client);
  if (!knows_to) unread(gather, record->subscriber_client);
  if (!knows_from || !knows_to) {
    from->known = to->known = 0;
    return;
  }
  uint64_t dropped = submitted[NPI_SUBMISSION_DROPPED], taken = returned[NPI_RETURN_TAKEN];
  from->delivered += stored;
  from->dropped += dropped;
  from->tapped += is_tap ? stored : 0;
  from->tap_dropped += is_tap ? dropped : 0;
  if (!is_tap && npi_view_state(&record->state) != NPI_CONNECTION_ACTIVE && stored > released) {
    from->left += stored - released;
  }
  to->delivered += stored;
  to->dropped += dropped;
  to->taken += taken;
  to->released += released;
  if (stored > released && record->channel < view->n_channels) {
    gather->audit->channels[record->channel].in_flight += stored - released;
  }
}

static void add_connections(struct gather *gather) {
  struct npi_view *view = gather->view;
  for (uint32_t i = 0; i < view->n_publishers; i++) gather->publishers[i] = (struct sums){.known = 1};
  for (uint32_t i = 0; i < view->n_subscribers; i++) gather->subscribers[i] = (struct sums){.known = 1};
  for (uint32_t i = 0; i < view->n_connections; i++) {
    if (npi_view_state(&view->connections[i].state) != NPI_CONNECTION_FREE) add_connection(gather, i);
  }
}

/* ---- publishers --------------------------------------------------------------------------------------- */

/* Slots that wait to be offered again, of all its publishers and dead letters. 0: *n is known. */
static int count_waiting(struct gather *gather, uint32_t client, uint64_t *n) {
  struct npi_ledger_copy copy;
  struct npi_ledger ledger;
  *n = 0;
  if (npi_view_ledger(gather->view, client, &copy) != 0) return -1;
  int status = npi_ledger_attach(&ledger, copy.memory, copy.n_bytes);
  for (uint32_t i = 0; status == 0 && i < npi_ledger_record_count(&ledger); i++) {
    *n += ledger.records[i].state == NPI_SLOT_WAITING;
  }
  npi_view_ledger_free(&copy);
  return status;
}

static void check_publisher(struct gather *gather, uint32_t index, const struct sums *sums,
                            const uint64_t row[NPI_PUBLISHER_COUNTER_COUNT]) {
  struct npi_audit *audit = gather->audit;
  const struct npi_publisher_record *record = &gather->view->publishers[index];
  struct npi_audit_equation *e = npi_audit_equation(audit, NPI_AUDIT_PUBLISHER, index);
  npi_audit_add(audit, e, 0, "delivered", row[NPI_PUBLISHER_DELIVERED]);
  npi_audit_add(audit, e, 0, "redelivered", row[NPI_PUBLISHER_REDELIVERED]);
  npi_audit_add(audit, e, 1, "in its rings", sums->delivered);
  npi_audit_add(audit, e, 1, "in rings that are over", get(&record->ended_delivered));
  int is_group = gather->view->channels[record->channel].kind == NPI_CHANNEL_GROUP;
  if (!is_group) {
    e = npi_audit_equation(audit, NPI_AUDIT_PUBLISHER, index);
    npi_audit_add(audit, e, 0, "dropped_no_credit", row[NPI_PUBLISHER_DROPPED_NO_CREDIT]);
    npi_audit_add(audit, e, 1, "missed by subscribers", sums->dropped);
    npi_audit_add(audit, e, 1, "missed by former ones", get(&record->ended_dropped));
    return;
  }
  uint64_t tapped = sums->tapped + get(&record->ended_tapped);
  uint64_t tap_dropped = sums->tap_dropped + get(&record->ended_tap_dropped);
  e = npi_audit_equation(audit, NPI_AUDIT_PUBLISHER, index);
  npi_audit_add(audit, e, 0, "published", row[NPI_PUBLISHER_PUBLISHED]);
  npi_audit_add(audit, e, 0, "seen by taps", tapped);
  npi_audit_add(audit, e, 0, "missed by taps", tap_dropped);
  npi_audit_add(audit, e, 1, "delivered", row[NPI_PUBLISHER_DELIVERED]);
  npi_audit_add(audit, e, 1, "dropped_no_member", row[NPI_PUBLISHER_DROPPED_NO_MEMBER]);
  npi_audit_add(audit, e, 1, "dropped_no_credit", row[NPI_PUBLISHER_DROPPED_NO_CREDIT]);
  /* An event that a member left is offered to another one before the broker hears that the member's end is over. */
  uint64_t again = row[NPI_PUBLISHER_REDELIVERED] + row[NPI_PUBLISHER_DEAD_LETTERED];
  e = npi_audit_equation(audit, NPI_AUDIT_PUBLISHER, index);
  if (e != NULL) e->at_most = 1;
  npi_audit_add(audit, e, 0, "offered again or given up", again);
  npi_audit_add(audit, e, 0, "lost_with_member", row[NPI_PUBLISHER_LOST_WITH_MEMBER]);
  npi_audit_add(audit, e, 1, "left by members", get(&record->ended_left));
  npi_audit_add(audit, e, 1, "held by members that end", sums->left);
  uint64_t waiting;
  if (count_waiting(gather, record->client, &waiting) != 0) return;
  e = npi_audit_equation(audit, NPI_AUDIT_PUBLISHER, index);
  if (e != NULL) e->at_most = 1;
  npi_audit_add(audit, e, 0, "left by members", get(&record->ended_left));
  npi_audit_add(audit, e, 1, "offered again or given up", again);
  npi_audit_add(audit, e, 1, "lost_with_member", row[NPI_PUBLISHER_LOST_WITH_MEMBER]);
  npi_audit_add(audit, e, 1, "waiting for a member", waiting);
}

/* Claims, put right where nobody will do it any more; added to the channel's sums. */
static void add_publisher(struct gather *gather, uint32_t index, uint64_t channel_sum[NPI_PUBLISHER_COUNTER_COUNT],
                          struct sums *channel_rings) {
  struct npi_view *view = gather->view;
  const struct npi_publisher_record *record = &view->publishers[index];
  const struct sums *sums = &gather->publishers[index];
  uint64_t value[32];
  uint64_t elements = sums->delivered + get(&record->ended_delivered);
  if (npi_view_endpoint(view, record->client, record->counters, value) != 0 || !sums->known) {
    unread(gather, record->client);
    channel_rings->known = 0;
    return;
  }
  if (is_at_rest(gather, record->client)) {
    if (value[NPI_PUBLISHER_DELIVERED] + value[NPI_PUBLISHER_REDELIVERED] > elements) {
      value[NPI_PUBLISHER_REDELIVERED] =
          elements > value[NPI_PUBLISHER_DELIVERED] ? elements - value[NPI_PUBLISHER_DELIVERED] : 0;
    }
    value[NPI_PUBLISHER_DELIVERED] = elements - value[NPI_PUBLISHER_REDELIVERED];
    value[NPI_PUBLISHER_PUBLISHED] =
        npi_flow_published(value[NPI_PUBLISHER_BEGUN], value[NPI_PUBLISHER_PUBLISHED], elements);
  } else {
    check_publisher(gather, index, sums, value);
  }
  for (int c = 0; c < NPI_PUBLISHER_COUNTER_COUNT; c++) channel_sum[c] += value[c];
}

/* ---- channels ----------------------------------------------------------------------------------------- */

static void check_channel(struct gather *gather, uint32_t index) {
  struct npi_view *view = gather->view;
  struct npi_audit *audit = gather->audit;
  const struct npi_channel_record *record = &view->channels[index];
  struct npi_audit_row *row = &audit->channels[index];
  uint64_t now[NPI_PUBLISHER_COUNTER_COUNT] = {0}, past[NPI_PUBLISHER_COUNTER_COUNT];
  struct sums rings = {.known = 1};
  uint64_t over = get(&record->past_subscribers.value[NPI_SUBSCRIBER_DELIVERED]);
  for (int c = 0; c < NPI_PUBLISHER_COUNTER_COUNT; c++) past[c] = get(&record->past_publishers.value[c]);
  /* Rings before claims for one side, claims before rings for the other: any order is right, as both are seen twice. */
  for (uint32_t i = 0; i < view->n_publishers; i++) {
    if (npi_view_state(&view->publishers[i].state) == NPI_RECORD_FREE || view->publishers[i].channel != index) continue;
    add_publisher(gather, i, now, &rings);
  }
  for (uint32_t i = 0; i < view->n_subscribers; i++) {
    if (npi_view_state(&view->subscribers[i].state) == NPI_RECORD_FREE || view->subscribers[i].channel != index) {
      continue;
    }
    rings.delivered += gather->subscribers[i].delivered;
    rings.known &= gather->subscribers[i].known;
    over += get(&view->subscribers[i].ended_delivered);
  }
  row->published = now[NPI_PUBLISHER_PUBLISHED] + past[NPI_PUBLISHER_PUBLISHED];
  row->delivered = now[NPI_PUBLISHER_DELIVERED] + past[NPI_PUBLISHER_DELIVERED];
  row->redelivered = now[NPI_PUBLISHER_REDELIVERED] + past[NPI_PUBLISHER_REDELIVERED];
  row->lost = now[NPI_PUBLISHER_LOST_WITH_MEMBER] + past[NPI_PUBLISHER_LOST_WITH_MEMBER];
  row->dead_lettered = now[NPI_PUBLISHER_DEAD_LETTERED] + past[NPI_PUBLISHER_DEAD_LETTERED];
  static const int drops[] = {NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER, NPI_PUBLISHER_DROPPED_NO_MEMBER,
                              NPI_PUBLISHER_DROPPED_NO_CREDIT};
  for (size_t i = 0; i < NPI_ARRAY_COUNT(drops); i++) row->dropped += now[drops[i]] + past[drops[i]];
  if (!rings.known) return;
  struct npi_audit_equation *e = npi_audit_equation(audit, NPI_AUDIT_CHANNEL, index);
  npi_audit_add(audit, e, 0, "delivered", now[NPI_PUBLISHER_DELIVERED]);
  npi_audit_add(audit, e, 0, "redelivered", now[NPI_PUBLISHER_REDELIVERED]);
  npi_audit_add(audit, e, 0, "by former publishers", past[NPI_PUBLISHER_DELIVERED] + past[NPI_PUBLISHER_REDELIVERED]);
  npi_audit_add(audit, e, 1, "in subscribers' rings", rings.delivered);
  npi_audit_add(audit, e, 1, "in rings that are over", over);
}

/* ---- subscribers -------------------------------------------------------------------------------------- */

static void check_subscriber(struct gather *gather, uint32_t index) {
  struct npi_view *view = gather->view;
  struct npi_audit *audit = gather->audit;
  const struct npi_subscriber_record *record = &view->subscribers[index];
  const struct sums *sums = &gather->subscribers[index];
  struct npi_audit_row *row = &audit->subscribers[index];
  uint64_t value[32];
  uint64_t taken = get(&record->ended_taken), released = get(&record->ended_released);
  if (!sums->known || npi_view_endpoint(view, record->client, record->counters, value) != 0) {
    unread(gather, record->client);
    return;
  }
  row->delivered = sums->delivered + get(&record->ended_delivered);
  row->taken = sums->taken + taken;
  row->released = sums->released + released;
  row->missed = sums->dropped + get(&record->ended_dropped);
  row->left = get(&record->ended_delivered) - released;
  row->in_flight = sums->delivered > sums->taken ? sums->delivered - sums->taken : 0;
  row->held = sums->taken > sums->released ? sums->taken - sums->released : 0;
  struct npi_audit_equation *e = npi_audit_equation(audit, NPI_AUDIT_SUBSCRIBER, index);
  if (e != NULL) e->at_most = 1;
  npi_audit_add(audit, e, 0, "taken", sums->taken);
  npi_audit_add(audit, e, 1, "delivered", sums->delivered);
  if (is_at_rest(gather, record->client)) return;
  e = npi_audit_equation(audit, NPI_AUDIT_SUBSCRIBER, index);
  npi_audit_add(audit, e, 0, "taken", value[NPI_SUBSCRIBER_TAKEN]);
  npi_audit_add(audit, e, 1, "from its rings", sums->taken);
  npi_audit_add(audit, e, 1, "from rings that are over", taken);
  e = npi_audit_equation(audit, NPI_AUDIT_SUBSCRIBER, index);
  npi_audit_add(audit, e, 0, "released", value[NPI_SUBSCRIBER_RELEASED]);
  npi_audit_add(audit, e, 1, "in its return rings", sums->released);
  npi_audit_add(audit, e, 1, "in rings that are over", released);
}

/* ---- listeners ---------------------------------------------------------------------------------------- */

static void add_worker(struct gather *gather, uint32_t client, uint32_t listener, uint64_t sum[64], int *known) {
  const struct npi_client_record *record = &gather->view->clients[client];
  uint64_t value[64];
  /* What the broker has put into the past already is not counted again. */
  if (npi_load_relaxed_u32(&record->folded) > listener) return;
  if (npi_view_listener(gather->view, client, listener, value) != 0) {
    unread(gather, client);
    *known = 0;
    return;
  }
  if (npi_view_client_process(gather->view, client) == NPI_PROCESS_DEAD) {
    value[NPI_LISTENER_HELD] = 0; /* what it had in hand when it died is lost with it, as the broker will count */
    uint64_t done =
        value[NPI_LISTENER_PUBLISHED] + value[NPI_LISTENER_DROPPED_POOL] + value[NPI_LISTENER_DROPPED_CREDIT];
    value[NPI_LISTENER_LOST_WITH_WORKER] =
        value[NPI_LISTENER_RECEIVED] > done ? value[NPI_LISTENER_RECEIVED] - done : 0;
  }
  for (int c = 0; c < NPI_LISTENER_COUNTER_COUNT; c++) sum[c] += value[c];
}

static void check_listener(struct gather *gather, uint32_t index, int *known, uint64_t *published) {
  struct npi_view *view = gather->view;
  struct npi_audit *audit = gather->audit;
  struct npi_audit_row *row = &audit->listeners[index];
  uint64_t sum[64] = {0};
  *known = 1;
  for (int c = 0; c < NPI_LISTENER_COUNTER_COUNT; c++) sum[c] = get(&view->listeners[index].past.value[c]);
  for (uint32_t i = 0; i < view->n_clients; i++) {
    if (npi_view_state(&view->clients[i].state) == NPI_RECORD_FREE || view->clients[i].kind != NPI_CLIENT_WORKER) {
      continue;
    }
    add_worker(gather, i, index, sum, known);
  }
  row->received = sum[NPI_LISTENER_RECEIVED];
  row->published = *published = sum[NPI_LISTENER_PUBLISHED];
  row->dropped = sum[NPI_LISTENER_DROPPED_POOL] + sum[NPI_LISTENER_DROPPED_CREDIT];
  row->lost = sum[NPI_LISTENER_LOST_WITH_WORKER];
  row->held = sum[NPI_LISTENER_HELD];
  if (!*known) return;
  struct npi_audit_equation *e = npi_audit_equation(audit, NPI_AUDIT_LISTENER, index);
  npi_audit_add(audit, e, 0, "received", row->received);
  npi_audit_add(audit, e, 1, "published", row->published);
  npi_audit_add(audit, e, 1, "dropped_pool", sum[NPI_LISTENER_DROPPED_POOL]);
  npi_audit_add(audit, e, 1, "dropped_credit", sum[NPI_LISTENER_DROPPED_CREDIT]);
  npi_audit_add(audit, e, 1, "lost_with_worker", row->lost);
  npi_audit_add(audit, e, 1, "held", row->held);
}

/* What listeners say they published on a channel against what the workers' publishers say. */
static void check_listeners_of(struct gather *gather, uint32_t channel, const uint64_t *published,
                               const uint8_t *known) {
  struct npi_view *view = gather->view;
  struct npi_audit *audit = gather->audit;
  uint64_t by_listeners = 0, by_workers = 0, value[32];
  int n = 0;
  for (uint32_t i = 0; i < view->n_listeners; i++) {
    if (npi_view_state(&view->listeners[i].state) == NPI_LISTENER_FREE || view->listeners[i].channel != channel)
      continue;
    if (!known[i]) return;
    by_listeners += published[i];
    n++;
  }
  if (n == 0) return;
  for (uint32_t i = 0; i < view->n_publishers; i++) {
    const struct npi_publisher_record *record = &view->publishers[i];
    if (npi_view_state(&record->state) == NPI_RECORD_FREE || record->channel != channel ||
        record->client >= view->n_clients || view->clients[record->client].kind != NPI_CLIENT_WORKER) {
      continue;
    }
    /* Until the broker has cleared up behind it, nobody knows what a dead worker published and did not count. */
    if (npi_view_client_process(view, record->client) != NPI_PROCESS_RUNNING) return;
    if (npi_view_endpoint(view, record->client, record->counters, value) != 0) return;
    by_workers += value[NPI_PUBLISHER_PUBLISHED];
  }
  for (uint32_t i = 0; i < view->n_clients; i++) { /* one whose publishers are over already, and its listeners not */
    if (npi_view_state(&view->clients[i].state) != NPI_RECORD_FREE && view->clients[i].kind == NPI_CLIENT_WORKER &&
        npi_view_client_process(view, i) != NPI_PROCESS_RUNNING) {
      return;
    }
  }
  struct npi_audit_equation *e = npi_audit_equation(audit, NPI_AUDIT_CHANNEL, channel);
  npi_audit_add(audit, e, 0, "published by listeners", by_listeners);
  npi_audit_add(audit, e, 1, "by publishers of workers", by_workers);
  npi_audit_add(audit, e, 1, "of former workers",
                get(&view->channels[channel].past_publishers.value[NPI_PUBLISHER_FROM_LISTENERS]));
}

/* ---- all of it ---------------------------------------------------------------------------------------- */

static void gather_all(struct gather *gather, uint64_t *published, uint8_t *known) {
  struct npi_view *view = gather->view;
  add_connections(gather);
  for (uint32_t i = 0; i < view->n_listeners; i++) {
    int is_known = 0;
    if (npi_view_state(&view->listeners[i].state) == NPI_LISTENER_FREE) continue;
    check_listener(gather, i, &is_known, &published[i]);
    known[i] = (uint8_t)is_known;
  }
  for (uint32_t i = 0; i < view->n_channels; i++) {
    if (npi_view_state(&view->channels[i].state) == NPI_RECORD_FREE) continue;
    check_channel(gather, i);
    check_listeners_of(gather, i, published, known);
  }
  for (uint32_t i = 0; i < view->n_subscribers; i++) {
    const struct npi_subscriber_record *record = &view->subscribers[i];
    if (npi_view_state(&record->state) != NPI_RECORD_FREE && record->channel < view->n_channels) {
      check_subscriber(gather, i);
    }
  }
}

int npi_audit_gather(struct npi_audit *audit, struct npi_view *view) {
  struct gather gather = {.audit = audit, .view = view};
  uint64_t *published = calloc(view->n_listeners + 1, sizeof *published);
  uint8_t *known = calloc(view->n_listeners + 1, sizeof *known);
  size_t n_equations = audit->n_equations;
  gather.publishers = calloc(view->n_publishers + 1, sizeof *gather.publishers);
  gather.subscribers = calloc(view->n_subscribers + 1, sizeof *gather.subscribers);
  gather.unread = calloc(view->n_clients + 1, 1);
  int status = 0;
  if (published == NULL || known == NULL || gather.publishers == NULL || gather.subscribers == NULL ||
      gather.unread == NULL) {
    status = -1;
  } else {
    gather_all(&gather, published, known);
    /* A process stopped, died or went on between the looks: other equations, which cannot be compared. */
    if (audit->look > 0 && audit->at != n_equations) status = 1;
  }
  free(published);
  free(known);
  free(gather.publishers);
  free(gather.subscribers);
  free(gather.unread);
  return status;
}
