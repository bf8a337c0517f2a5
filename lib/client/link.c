/* SPDX-License-Identifier: Apache-2.0 */
/* Connections as a client sees them: made and ended by the broker's events, either end. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/status.h"
#include "client/client_internal.h"
#include "client/worker.h"
#include "wire/channel.h"

/* ---- credit arrays in the ledger --------------------------------------------------------------------- */

/* Offset of arrays for so many credits; UINT64_MAX: the area is used up. */
static uint64_t credit_arrays_take(struct np_client *client, uint32_t capacity) {
  unsigned size = (unsigned)__builtin_ctz(capacity);
  struct npi_credit_block *block = client->credit_blocks[size];
  if (block != NULL) {
    uint64_t offset = block->offset;
    client->credit_blocks[size] = block->next;
    free(block);
    return offset;
  }
  uint64_t bytes = npi_round_up(npi_credit_arrays_bytes(capacity), NPI_CACHE_LINE) + NPI_CACHE_LINE;
  if (client->credits_used + bytes > client->pool.ledger.geometry.credits_bytes) return UINT64_MAX;
  uint64_t offset = client->credits_used;
  client->credits_used += bytes;
  return offset;
}

static void credit_arrays_give(struct np_client *client, uint64_t offset, uint32_t capacity) {
  struct npi_credit_block *block = malloc(sizeof *block);
  if (block == NULL) return; /* that piece of the sparse area is not used again */
  unsigned size = (unsigned)__builtin_ctz(capacity);
  *block = (struct npi_credit_block){offset, client->credit_blocks[size]};
  client->credit_blocks[size] = block;
}

/* ---- table of links ---------------------------------------------------------------------------------- */

static struct npi_link *link_new(struct np_client *client) {
  struct npi_link *link = calloc(1, sizeof *link);
  if (link == NULL) return NULL;
  for (link->slot = 0; link->slot < client->n_links; link->slot++) {
    if (client->links[link->slot] != NULL) continue;
    client->links[link->slot] = link;
    return link;
  }
  struct npi_link **links = realloc(client->links, (client->n_links + 16) * sizeof(struct npi_link *));
  if (links == NULL) {
    free(link);
    return NULL;
  }
  memset(&links[client->n_links], 0, 16 * sizeof(struct npi_link *));
  links[link->slot] = link;
  client->links = links;
  client->n_links += 16;
  return link;
}

static struct npi_link *link_find(struct np_client *client, uint32_t connection, uint32_t version, uint32_t role) {
  for (uint32_t i = 0; i < client->n_links; i++) {
    struct npi_link *link = client->links[i];
    if (link != NULL && link->connection == connection && link->version == version &&
        (role == 0 || link->role == role)) {
      return link;
    }
  }
  return NULL;
}

static void subscriber_remove(struct np_subscriber *subscriber, const struct npi_link *link) {
  for (uint32_t i = 0; i < subscriber->n_inlets; i++) {
    if (subscriber->inlets[i] != link) continue;
    subscriber->inlets[i] = subscriber->inlets[--subscriber->n_inlets];
    subscriber->n_draining -= link->draining;
    subscriber->turn = 0;
    subscriber->current = NULL;
    return;
  }
}

static int subscriber_add(struct np_subscriber *subscriber, struct npi_link *link) {
  if (subscriber->n_inlets == subscriber->capacity) {
    uint32_t capacity = subscriber->capacity == 0 ? 8 : subscriber->capacity * 2;
    struct npi_link **inlets = realloc(subscriber->inlets, capacity * sizeof(struct npi_link *));
    if (inlets == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for %u publishers of a channel", capacity);
    subscriber->inlets = inlets;
    subscriber->capacity = capacity;
  }
  subscriber->inlets[subscriber->n_inlets++] = link;
  subscriber->current = NULL; /* they take turns from now on */
  return 0;
}

void npi_link_free(struct np_client *client, struct npi_link *link) {
  if (link->role == NPI_ROLE_PUBLISHER) {
    struct npi_ledger_connection *entry = link->outlet.entry;
    if (link->np_publisher != NULL) npi_flow_remove(&link->np_publisher->flow, &link->outlet);
    if (entry != NULL) {
      credit_arrays_give(client, entry->credits_offset, entry->capacity);
      memset(entry, 0, sizeof *entry);
    }
  } else {
    if (link->np_subscriber != NULL) {
      uint64_t missed = npi_load_relaxed_u64(&link->inlet.peer_block->counter[NPI_SUBMISSION_DROPPED]);
      npi_count_add(&link->np_subscriber->counters->value[NPI_SUBSCRIBER_MISSED_PAST], missed);
      subscriber_remove(link->np_subscriber, link);
    }
    npi_inlet_deinit(&link->inlet);
  }
  client->links[link->slot] = NULL;
  npi_peer_release(client, link->peer);
  free(link);
}

/* Each connection's share of this client's memory, so that one stopped subscriber cannot hold all of it. */
void npi_links_share_bytes(struct np_client *client) {
  uint64_t n = 0;
  for (uint32_t i = 0; i < client->n_links; i++) {
    n += client->links[i] != NULL && client->links[i]->role == NPI_ROLE_PUBLISHER;
  }
  if (n == 0) return;
  uint64_t share = (client->pool.budget_bytes - client->pool.budget_bytes / 4) / n;
  for (uint32_t i = 0; i < client->n_links; i++) {
    if (client->links[i] != NULL && client->links[i]->role == NPI_ROLE_PUBLISHER) {
      client->links[i]->outlet.entry->bytes_limit = share;
    }
  }
}

/* ---- made -------------------------------------------------------------------------------------------- */

static struct npi_ring_block *own_block(struct np_client *client, uint64_t offset, uint32_t capacity) {
  uint64_t bytes = npi_ring_block_bytes(capacity);
  if (offset % NPI_CACHE_LINE != 0 || offset < client->rings_offset || bytes > client->page_bytes ||
      offset > client->page_bytes - bytes) {
    return NULL;
  }
  return (void *)(client->page + offset);
}

/*
 * A client that is its own peer reads its page where it writes it: two addresses of one line get into each
 * other's way in a first-level cache that is looked up by address.
 */
static struct npi_ring_block *peer_block(struct np_client *client, const struct npi_peer *peer, uint64_t offset,
                                         uint32_t capacity) {
  uint64_t bytes = npi_ring_block_bytes(capacity);
  if (peer->client == client->index && peer->version == client->version) return own_block(client, offset, capacity);
  if (offset % NPI_CACHE_LINE != 0 || bytes > peer->page_bytes || offset > peer->page_bytes - bytes) return NULL;
  return (void *)(peer->page + offset);
}

static int make_outlet(struct np_client *client, struct npi_link *link, const struct npi_control_frame *frame) {
  struct np_publisher *publisher = client->publishers;
  while (publisher != NULL && publisher->index != frame->body.connect.endpoint) publisher = publisher->next;
  if (publisher == NULL) return npi_fail(NP_ERR_NOT_FOUND, "no publisher %u", frame->body.connect.endpoint);
  uint32_t capacity = frame->body.connect.capacity;
  struct npi_ring_block *submissions = own_block(client, frame->body.connect.submissions_offset, capacity);
  struct npi_ring_block *returns = peer_block(client, link->peer, frame->body.connect.returns_offset, capacity);
  if (submissions == NULL || returns == NULL) return npi_fail(NP_ERR_PROTOCOL, "ring blocks lie outside their pages");
  struct npi_ledger_connection *entry = NULL;
  for (uint32_t i = 0; i < client->pool.ledger.geometry.connections && entry == NULL; i++) {
    if (client->pool.ledger.connections[i].state == NPI_OUTLET_FREE) entry = &client->pool.ledger.connections[i];
  }
  uint64_t offset = entry == NULL ? UINT64_MAX : credit_arrays_take(client, capacity);
  if (offset == UINT64_MAX) return npi_fail(NP_ERR_LIMIT, "the ledger has no room for another connection");
  *entry = (struct npi_ledger_connection){.connection = link->connection,
                                          .version = link->version,
                                          .publisher = publisher->index,
                                          .capacity = capacity,
                                          .limit = frame->body.connect.limit,
                                          .credits_offset = offset,
                                          .flags = frame->body.connect.flags,
                                          .on_full = frame->body.connect.on_full,
                                          .channel = frame->body.connect.channel,
                                          .peer = link->peer->client};
  npi_outlet_init(&link->outlet, &client->pool.ledger, entry, submissions, returns, &link->peer->events_bell);
  link->np_publisher = publisher;
  return npi_flow_add(&publisher->flow, &link->outlet);
}

static int make_inlet(struct np_client *client, struct npi_link *link, const struct npi_control_frame *frame) {
  struct np_subscriber *subscriber = client->subscribers;
  while (subscriber != NULL && subscriber->index != frame->body.connect.endpoint) subscriber = subscriber->next;
  if (subscriber == NULL) return npi_fail(NP_ERR_NOT_FOUND, "no subscriber %u", frame->body.connect.endpoint);
  uint32_t capacity = frame->body.connect.capacity;
  const struct npi_ring_block *submissions =
      peer_block(client, link->peer, frame->body.connect.submissions_offset, capacity);
  struct npi_ring_block *returns = own_block(client, frame->body.connect.returns_offset, capacity);
  if (submissions == NULL || returns == NULL) return npi_fail(NP_ERR_PROTOCOL, "ring blocks lie outside their pages");
  int status =
      npi_inlet_init(&link->inlet, returns, submissions, capacity, link->peer->segments, link->peer->n_segments);
  if (status != 0) return status;
  link->mark = link->slot | (uint64_t)link->version << 32;
  link->bell_word = npi_bell_word(&link->peer->credits_bell);
  link->np_subscriber = subscriber;
  return subscriber_add(subscriber, link);
}

static void acknowledge(struct np_client *client, uint32_t connection, uint32_t version) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_ACKNOWLEDGE, 0, 0);
  frame.body.acknowledge.connection = connection;
  frame.body.acknowledge.version = version;
  npi_client_tell(client, &frame); /* a broker that is gone needs none */
}

/* Which publisher is at the other end: the registry's record of the connection says it. */
static uint32_t publisher_of(const struct np_client *client, uint32_t connection) {
  const struct npi_table *table = &client->connections_table;
  if (connection >= table->count) return NPI_NONE;
  const struct npi_connection_record *record =
      (const void *)(client->registry + table->offset + (uint64_t)connection * table->bytes);
  return record->publisher;
}

static void tell_refused(struct np_client *client, uint32_t connection, uint32_t version, uint32_t role,
                         uint32_t made) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_REFUSE, 0, 0);
  frame.body.refuse.connection = connection;
  frame.body.refuse.version = version;
  frame.body.refuse.role = role;
  frame.body.refuse.made = made;
  npi_client_tell(client, &frame);
}

/* A connection that cannot be made at this end, which is nobody's fault: what is in the frame is the broker's word, and
 * what is missing is memory or descriptors of this process. The broker ends it. */
static void refuse(struct np_client *client, const struct npi_control_frame *frame, const char *why) {
  npi_log(NPI_LOG_ERROR, "connection.refused", "connection=%u peer=%u reason=\"%s\"", frame->body.connect.connection,
          frame->body.connect.peer, why);
  npi_client_notify(client, NP_NOTICE_REFUSED, 0, "no connection to %.*s: %s",
                    (int)sizeof frame->body.connect.peer_name, frame->body.connect.peer_name, why);
  tell_refused(client, frame->body.connect.connection, frame->body.connect.version, frame->body.connect.role, 0);
}

void npi_link_refuse(struct np_client *client, struct npi_link *link) {
  link->cut = 1;
  if (!link->refused) {
    npi_log(NPI_LOG_ERROR, "connection.refused", "connection=%u peer=%u reason=\"%s\"", link->connection,
            link->peer->client, client->unmapped_words);
    npi_client_notify(client, NP_NOTICE_REFUSED, link->peer->pid, "the connection to %s (process %u) ends: %s",
                      link->peer->name, link->peer->pid, client->unmapped_words);
  }
  link->refused = 1;
  tell_refused(client, link->connection, link->version, link->role, 1);
}

/* The place that says what this end let go of last. NULL: cannot be remembered. */
static uint32_t *let_go_of(struct np_client *client, uint32_t connection, uint32_t role) {
  uint32_t n = client->connections_table.count;
  if (connection >= n) return NULL;
  if (client->let_go == NULL) client->let_go = calloc((size_t)n * 2, sizeof *client->let_go);
  return client->let_go == NULL ? NULL : &client->let_go[connection * 2 + (role == NPI_ROLE_SUBSCRIBER)];
}

/* Made already, or made and let go of while the word for it was lost: the broker tells all again after a while without. */
static int is_told_again(struct np_client *client, const struct npi_control_frame *frame) {
  uint32_t connection = frame->body.connect.connection;
  uint32_t version = frame->body.connect.version;
  if (link_find(client, connection, version, frame->body.connect.role) != NULL) return 1;
  const uint32_t *let_go = client->let_go == NULL ? NULL : let_go_of(client, connection, frame->body.connect.role);
  return let_go != NULL && *let_go == version + 1;
}

static int endpoint_is_known(const struct np_client *client, const struct npi_control_frame *frame) {
  uint32_t endpoint = frame->body.connect.endpoint;
  if (frame->body.connect.role == NPI_ROLE_PUBLISHER) {
    for (const struct np_publisher *p = client->publishers; p != NULL; p = p->next) {
      if (p->index == endpoint) return 1;
    }
  } else {
    for (const struct np_subscriber *s = client->subscribers; s != NULL; s = s->next) {
      if (s->index == endpoint) return 1;
    }
  }
  return 0;
}

static void defer(struct np_client *client, const struct npi_control_frame *frame) {
  struct npi_control_frame *deferred = realloc(client->deferred, (client->n_deferred + 1) * sizeof *deferred);
  if (deferred == NULL) {
    refuse(client, frame, "no memory to keep it in mind");
    return;
  }
  deferred[client->n_deferred++] = *frame;
  client->deferred = deferred;
}

/* The connection ended before it was made. */
static void undefer(struct np_client *client, uint32_t connection, uint32_t version) {
  for (uint32_t i = 0; i < client->n_deferred; i++) {
    if (client->deferred[i].body.connect.connection != connection ||
        client->deferred[i].body.connect.version != version) {
      continue;
    }
    client->deferred[i] = client->deferred[--client->n_deferred];
    return;
  }
}

int npi_link_open_endpoint(struct np_client *client, struct npi_control_frame *frame, struct npi_control_frame *reply,
                           int64_t timeout_ms) {
  client->opening = 1;
  client->unmapped = 0;
  int status = npi_client_request(client, frame, reply, timeout_ms);
  client->opening = 0;
  if (status != 0) client->unmapped = 0; /* there is no endpoint that it is to be closed for */
  return status;
}

void npi_link_adopt_deferred(struct np_client *client) {
  struct npi_control_frame *deferred = client->deferred;
  uint32_t n = client->n_deferred;
  client->deferred = NULL;
  client->n_deferred = 0;
  for (uint32_t i = 0; i < n; i++) npi_link_make(client, &deferred[i]);
  free(deferred);
}

void npi_link_drop_deferred(struct np_client *client) {
  free(client->deferred);
  client->deferred = NULL;
  client->n_deferred = 0;
}

void npi_link_make(struct np_client *client, const struct npi_control_frame *frame) {
  struct npi_peer *peer = npi_peer_find(client, frame->body.connect.peer);
  uint32_t capacity = frame->body.connect.capacity;
  struct npi_link *link = NULL;
  int status = NP_ERR_PROTOCOL;
  if (is_told_again(client, frame)) return;
  if (!endpoint_is_known(client, frame)) {
    /* What comes before a client that was away is told to be back is about endpoints that it has, or had. */
    if (client->opening && client->attach == NPI_ATTACHED) defer(client, frame);
    /* Else it crossed the word that this endpoint is closed, which ends it as well: nobody is to blame. */
    return;
  }
  if (peer != NULL && npi_is_power_of_two(capacity) && capacity >= NPI_RING_CAPACITY_MIN &&
      capacity <= NPI_CREDITS_MAX && frame->body.connect.limit <= capacity) {
    link = link_new(client);
  }
  if (link != NULL) {
    link->connection = frame->body.connect.connection;
    link->version = frame->body.connect.version;
    link->role = frame->body.connect.role;
    link->peer = peer;
    peer->n_connections++;
    status = link->role == NPI_ROLE_PUBLISHER ? make_outlet(client, link, frame) : make_inlet(client, link, frame);
    link->publisher = publisher_of(client, link->connection);
  }
  if (status != 0) {
    int had_link = link != NULL;
    if (had_link) npi_link_free(client, link);
    /*
     * The endpoint that has just been opened will be closed, and with it what was deferred for it. One that was open
     * before stays, and so does whoever waits at the other end, if nobody says that there will be nothing.
     */
    if (peer != NULL || client->unmapped == 0 || client->opening) {
      refuse(client, frame, peer == NULL ? client->unmapped_words : had_link ? npi_detail() : "no memory for it");
    }
  }
  npi_links_share_bytes(client);
}

/* ---- shut out ---------------------------------------------------------------------------------------- */

static void withhold(struct npi_link *link) {
  if (link->np_publisher != NULL) npi_flow_withhold(&link->np_publisher->flow, &link->outlet);
}

void npi_link_withhold(struct np_client *client, const struct npi_control_frame *frame) {
  struct npi_link *link =
      link_find(client, frame->body.acknowledge.connection, frame->body.acknowledge.version, NPI_ROLE_PUBLISHER);
  if (link != NULL) withhold(link);
}

void npi_links_withhold_own(struct np_client *client) {
  for (uint32_t i = 0; i < client->n_links; i++) {
    struct npi_link *link = client->links[i];
    if (link == NULL || link->role != NPI_ROLE_PUBLISHER) continue;
    if (link->peer->client == client->index && link->peer->version == client->version) withhold(link);
  }
}

/* ---- ended ------------------------------------------------------------------------------------------- */

void npi_link_let_go(struct np_client *client, struct npi_link *link) {
  uint32_t connection = link->connection;
  uint32_t version = link->version;
  uint32_t *let_go = let_go_of(client, connection, link->role);
  if (let_go != NULL) *let_go = version + 1;
  npi_link_free(client, link);
  acknowledge(client, connection, version);
}

void npi_link_report_lie(struct np_client *client, struct npi_link *link) {
  struct npi_control_frame frame;
  if (link->lie_reported) return;
  link->lie_reported = 1;
  npi_log(NPI_LOG_ERROR, "peer.lied", "connection=%u peer=%u pid=%u name=%s", link->connection, link->peer->client,
          link->peer->pid, link->peer->name);
  npi_client_notify(client, NP_NOTICE_PEER_LIED, link->peer->pid, "%s (process %u) broke the rules of shared memory",
                    link->peer->name, link->peer->pid);
  npi_control_init(&frame, NPI_CONTROL_REPORT_LIE, 0, 0);
  frame.body.acknowledge.connection = link->connection;
  frame.body.acknowledge.version = link->version;
  npi_client_tell(client, &frame);
}

static void end_outlet(struct np_client *client, struct npi_link *link) {
  struct np_publisher *publisher = link->np_publisher;
  int keeps = publisher != NULL && publisher->flow.kind == NPI_CHANNEL_GROUP && !link->outlet.tap;
  if (publisher != NULL) npi_flow_remove(&publisher->flow, &link->outlet);
  npi_outlet_take_back(&link->outlet, &client->pool, keeps ? npi_flow_keep : NULL, keeps ? &publisher->flow : NULL);
  npi_link_let_go(client, link);
  npi_links_share_bytes(client);
  npi_client_verify(client);
  if (keeps && publisher->flow.n_waiting > 0) {
    npi_flow_offer_waiting(&publisher->flow);
    npi_publisher_flush(publisher);
  }
}

/* What the program may want to know about the other end. */
static void notify_end(struct np_client *client, const struct npi_link *link, uint32_t reason) {
  const struct npi_peer *peer = link->peer;
  if (reason == NPI_REASON_PUBLISHER_DEAD || reason == NPI_REASON_SUBSCRIBER_DEAD) {
    npi_client_notify(client, NP_NOTICE_PEER_DIED, peer->pid, "%s (process %u), %s, ended without closing", peer->name,
                      peer->pid, reason == NPI_REASON_PUBLISHER_DEAD ? "a publisher" : "a subscriber");
  } else if (reason == NPI_REASON_LIE && !link->lie_reported) {
    npi_client_notify(client, NP_NOTICE_PEER_LIED, peer->pid,
                      "the connection to %s (process %u) is closed: one end broke the rules of shared memory",
                      peer->name, peer->pid);
  }
}

void npi_link_end(struct np_client *client, const struct npi_control_frame *frame) {
  uint32_t reason = frame->body.disconnect.reason;
  uint32_t role = reason == NPI_REASON_PUBLISHER_CLOSED || reason == NPI_REASON_PUBLISHER_DEAD ? NPI_ROLE_SUBSCRIBER
                  : reason == NPI_REASON_LIE                                                   ? 0
                                                                                               : NPI_ROLE_PUBLISHER;
  struct npi_link *link = link_find(client, frame->body.disconnect.connection, frame->body.disconnect.version, role);
  if (link != NULL && role == 0) {
    /* A client that feeds itself is told twice, once for each end: the publishing one goes first, since it always can. */
    struct npi_link *outlet = link_find(client, link->connection, link->version, NPI_ROLE_PUBLISHER);
    if (outlet != NULL) link = outlet;
  }
  if (link == NULL) {
    undefer(client, frame->body.disconnect.connection, frame->body.disconnect.version);
    /* Refused or let go already: the broker still waits for the word. */
    acknowledge(client, frame->body.disconnect.connection, frame->body.disconnect.version);
    return;
  }
  if (!link->draining) notify_end(client, link, reason);
  if (link->role == NPI_ROLE_PUBLISHER) {
    end_outlet(client, link);
    return;
  }
  if (!link->draining && link->np_subscriber != NULL) link->np_subscriber->n_draining++;
  link->draining = 1;
  link->bell_word = &npi_bell_never_awake.word; /* the last release lets go */
  if (link->np_subscriber != NULL) link->np_subscriber->current = NULL;
  link->cut |= reason == NPI_REASON_LIE;
  uint64_t element;
  if (npi_inlet_held(&link->inlet) == 0 && (link->cut || !npi_inlet_look(&link->inlet, &element))) {
    npi_link_let_go(client, link);
  }
}
