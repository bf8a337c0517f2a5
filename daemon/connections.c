/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/connections.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/align.h"
#include "base/log.h"
#include "base/status.h"
#include "daemon/accounts.h"
#include "daemon/broker.h"
#include "daemon/channels.h"
#include "daemon/clients.h"
#include "daemon/journal.h"
#include "daemon/reaper.h"
#include "daemon/session.h"
#include "os/os_memory.h"
#include "wire/channel.h"

/* ---- rings ---- */

/*
 * Pages under the block are made, and every element gets the lap before the first one. The writer of the ring does
 * not know of it yet, so nobody else writes here.
 */
static int place_ring(struct npi_client *client, uint32_t capacity, uint64_t *offset) {
  uint64_t bytes = npi_ring_block_bytes(capacity);
  int status = npi_ring_space_take(&client->rings, bytes, offset);
  if (status != 0) return npi_trail(status, "client %u (%s)", client->index, client->name);
  uint64_t first = *offset & ~(uint64_t)(NPI_PAGE - 1);
  status = npi_memory_reserve(client->page_fd, first, npi_round_up(*offset + bytes, NPI_PAGE) - first);
  if (status != 0) {
    npi_ring_space_give(&client->rings, *offset, bytes);
    return status;
  }
  struct npi_ring_block *block = (struct npi_ring_block *)(void *)(client->page + *offset);
  for (size_t i = 0; i < NPI_ARRAY_COUNT(block->counter); i++) npi_store_relaxed_u64(&block->counter[i], 0);
  for (uint32_t i = 0; i < capacity; i++) npi_store_relaxed_u64(&block->element[i], UINT64_C(0xf) << 60);
  return 0;
}

/* ---- making ---- */

static int check_peers(const struct npi_client *publisher, const struct npi_client *subscriber) {
  uint32_t most = publisher->broker->registry.connections_per_client;
  const struct npi_client *full = publisher->n_connections >= most    ? publisher
                                  : subscriber->n_connections >= most ? subscriber
                                                                      : NULL;
  if (full != NULL) {
    return npi_fail(NP_ERR_LIMIT, "client %u (%s) has %u connections already; raise limits.connections_per_client",
                    full->index, full->name, most);
  }
  const struct npi_leased *segment;
  uint32_t n_segments = 0;
  DL_COUNT(publisher->segments, segment, n_segments);
  int status = npi_session_check_room(publisher, 2);
  return status != 0 ? status : npi_session_check_room(subscriber, 2 + n_segments);
}

static void join(struct npi_connection *connection) {
  struct npi_publisher *publisher = connection->publisher;
  struct npi_subscriber *subscriber = connection->subscriber;
  struct npi_client *from = publisher->client, *to = subscriber->client;
  from->n_connections++;
  if (to != from) to->n_connections++;
  DL_APPEND2(publisher->connections, connection, publisher_prev, publisher_next);
  DL_APPEND2(subscriber->connections, connection, subscriber_prev, subscriber_next);
  from->broker->connections[connection->index] = connection;
}

int npi_connection_prepare(struct npi_publisher *publisher, struct npi_subscriber *subscriber,
                           struct npi_connection **out) {
  struct npi_client *from = publisher->client, *to = subscriber->client;
  struct npi_broker *broker = from->broker;
  uint64_t bytes = npi_ring_block_bytes(subscriber->capacity);
  struct npi_connection *connection = NULL;
  uint32_t version = 0;
  int placed = 0;
  *out = NULL;
  int status = check_peers(from, to);
  if (status != 0) return status;
  uint32_t index = npi_index_take(&broker->connection_pool, &version);
  if (index == NPI_NONE) {
    return npi_fail(NP_ERR_LIMIT, "%u connections exist already; raise limits.connections",
                    broker->connection_pool.count);
  }
  connection = calloc(1, sizeof *connection);
  if (connection == NULL) {
    status = npi_fail(NP_ERR_NO_MEMORY, "no memory for a connection");
    goto fail;
  }
  connection->index = index;
  connection->version = version;
  connection->publisher = publisher;
  connection->subscriber = subscriber;
  status = place_ring(from, subscriber->capacity, &connection->submissions_offset);
  if (status != 0) goto fail;
  placed = 1;
  status = place_ring(to, subscriber->capacity, &connection->returns_offset);
  if (status != 0) goto fail;
  placed = 2;
  status = npi_clients_prepare(from, to);
  if (status != 0) goto fail;
  join(connection);
  *out = connection;
  return 0;

fail:
  if (placed >= 1) npi_ring_space_give(&from->rings, connection->submissions_offset, bytes);
  if (placed >= 2) npi_ring_space_give(&to->rings, connection->returns_offset, bytes);
  free(connection);
  npi_index_give(&broker->connection_pool, index);
  return status;
}

/* Takes it out of everything; the endpoints stay. */
static void dissolve(struct npi_connection *connection) {
  struct npi_publisher *publisher = connection->publisher;
  struct npi_subscriber *subscriber = connection->subscriber;
  struct npi_client *from = publisher->client, *to = subscriber->client;
  struct npi_broker *broker = from->broker;
  uint64_t bytes = npi_ring_block_bytes(subscriber->capacity);
  npi_ring_space_give(&from->rings, connection->submissions_offset, bytes);
  npi_ring_space_give(&to->rings, connection->returns_offset, bytes);
  DL_DELETE2(publisher->connections, connection, publisher_prev, publisher_next);
  DL_DELETE2(subscriber->connections, connection, subscriber_prev, subscriber_next);
  from->n_connections--;
  if (to != from) to->n_connections--;
  broker->connections[connection->index] = NULL;
  npi_index_give(&broker->connection_pool, connection->index);
  free(connection);
  npi_clients_part(from, to);
}

int npi_connection_adopt(struct npi_broker *broker, uint32_t index, const struct npi_connection_record *record) {
  struct npi_publisher *publisher = broker->publishers[record->publisher];
  struct npi_subscriber *subscriber = broker->subscribers[record->subscriber];
  uint64_t bytes = npi_ring_block_bytes(record->capacity);
  uint32_t holds = npi_load_relaxed_u32(&record->holds);
  struct npi_connection *connection = calloc(1, sizeof *connection);
  if (connection == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a connection");
  connection->index = index;
  connection->version = npi_load_relaxed_u32(&record->version);
  connection->state = npi_load_relaxed_u32(&record->state);
  connection->publisher_holds = (holds & NPI_CONNECTION_PUBLISHER_HOLDS) != 0;
  connection->subscriber_holds = (holds & NPI_CONNECTION_SUBSCRIBER_HOLDS) != 0;
  connection->publisher_told = (holds & NPI_CONNECTION_PUBLISHER_TOLD) != 0;
  connection->subscriber_told = (holds & NPI_CONNECTION_SUBSCRIBER_TOLD) != 0;
  connection->lied = (holds & NPI_CONNECTION_LIED) != 0;
  connection->publisher = publisher;
  connection->subscriber = subscriber;
  connection->submissions_offset = record->submissions_offset;
  connection->returns_offset = record->returns_offset;
  int status = npi_ring_space_claim(&publisher->client->rings, connection->submissions_offset, bytes);
  if (status == 0) status = npi_ring_space_claim(&subscriber->client->rings, connection->returns_offset, bytes);
  if (status == 0) status = npi_clients_prepare(publisher->client, subscriber->client);
  if (status != 0) {
    free(connection);
    return status;
  }
  /* They were told of each other; who is away is told of each change, so that it asks. */
  struct npi_link *there = npi_client_link(subscriber->client, publisher->client);
  there->introduced = there->knows_segments = 1;
  npi_client_link(publisher->client, subscriber->client)->introduced = 1;
  join(connection);
  return 0;
}

void npi_connection_discard(struct npi_connection *connection) {
  dissolve(connection);
}

static void set_state(struct npi_connection *connection, enum npi_connection_state state) {
  struct npi_broker *broker = connection->publisher->client->broker;
  connection->state = (uint32_t)state;
  npi_store_release_u32(&broker->registry.connections[connection->index].state, state);
}

static void fill_record(const struct npi_connection *connection) {
  const struct npi_publisher *publisher = connection->publisher;
  const struct npi_subscriber *subscriber = connection->subscriber;
  struct npi_connection_record *record = &publisher->client->broker->registry.connections[connection->index];
  npi_store_relaxed_u32(&record->version, connection->version);
  record->publisher = publisher->index;
  record->subscriber = subscriber->index;
  record->publisher_client = publisher->client->index;
  record->subscriber_client = subscriber->client->index;
  record->channel = publisher->channel->index;
  record->capacity = subscriber->capacity;
  record->limit = subscriber->credits;
  record->on_full = subscriber->on_full;
  record->flags = subscriber->flags;
  record->submissions_offset = connection->submissions_offset;
  record->returns_offset = connection->returns_offset;
}

static void tell_connect(const struct npi_connection *connection, uint32_t role) {
  const struct npi_publisher *publisher = connection->publisher;
  const struct npi_subscriber *subscriber = connection->subscriber;
  struct npi_client *to = role == NPI_ROLE_PUBLISHER ? publisher->client : subscriber->client;
  const struct npi_client *peer = role == NPI_ROLE_PUBLISHER ? subscriber->client : publisher->client;
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_CONNECT, 0, 0);
  frame.body.connect.connection = connection->index;
  frame.body.connect.version = connection->version;
  frame.body.connect.role = role;
  frame.body.connect.endpoint = role == NPI_ROLE_PUBLISHER ? publisher->index : subscriber->index;
  frame.body.connect.peer = peer->index;
  frame.body.connect.peer_version = peer->version;
  frame.body.connect.capacity = subscriber->capacity;
  frame.body.connect.limit = subscriber->credits;
  frame.body.connect.on_full = subscriber->on_full;
  frame.body.connect.kind = publisher->channel->kind;
  frame.body.connect.flags = subscriber->flags;
  frame.body.connect.channel = publisher->channel->index;
  frame.body.connect.submissions_offset = connection->submissions_offset;
  frame.body.connect.returns_offset = connection->returns_offset;
  const char *name = role == NPI_ROLE_PUBLISHER && subscriber->name[0] != '\0' ? subscriber->name : peer->name;
  memcpy(frame.body.connect.peer_name, name, sizeof frame.body.connect.peer_name);
  npi_session_event(to, &frame, NULL, 0);
}

/* A successor must know who was told and who still holds: said in the record before the frame leaves. */
static void show_holds(const struct npi_connection *connection) {
  struct npi_registry *registry = &connection->publisher->client->broker->registry;
  uint32_t holds = 0;
  if (connection->publisher_holds) holds |= NPI_CONNECTION_PUBLISHER_HOLDS;
  if (connection->subscriber_holds) holds |= NPI_CONNECTION_SUBSCRIBER_HOLDS;
  if (connection->publisher_told) holds |= NPI_CONNECTION_PUBLISHER_TOLD;
  if (connection->subscriber_told) holds |= NPI_CONNECTION_SUBSCRIBER_TOLD;
  if (connection->lied) holds |= NPI_CONNECTION_LIED;
  npi_store_release_u32(&registry->connections[connection->index].holds, holds);
}

void npi_connection_announce(struct npi_connection *connection) {
  connection->publisher_holds = connection->subscriber_holds = 1;
  fill_record(connection);
  show_holds(connection);
  set_state(connection, NPI_CONNECTION_ACTIVE);
  npi_clients_introduce(connection->publisher->client, connection->subscriber->client);
  tell_connect(connection, NPI_ROLE_SUBSCRIBER);
  tell_connect(connection, NPI_ROLE_PUBLISHER);
  npi_registry_count(&connection->publisher->client->broker->registry, NPI_BROKER_CONNECTIONS_MADE, 1);
}

/* ---- ending ---- */

static void tell_disconnect(const struct npi_connection *connection, struct npi_client *client,
                            enum npi_disconnect_reason reason) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_DISCONNECT, 0, 0);
  frame.body.disconnect.connection = connection->index;
  frame.body.disconnect.version = connection->version;
  frame.body.disconnect.reason = (uint32_t)reason;
  npi_session_event(client, &frame, NULL, 0);
}

static void tell_publisher(struct npi_connection *connection, enum npi_disconnect_reason reason) {
  if (!connection->publisher_holds || connection->publisher_told) return;
  connection->publisher_told = 1;
  show_holds(connection);
  tell_disconnect(connection, connection->publisher->client, reason);
}

static void tell_subscriber(struct npi_connection *connection, enum npi_disconnect_reason reason) {
  if (!connection->subscriber_holds || connection->subscriber_told) return;
  connection->subscriber_told = 1;
  show_holds(connection);
  tell_disconnect(connection, connection->subscriber->client, reason);
}

void npi_connection_withhold(const struct npi_connection *connection) {
  struct npi_control_frame frame;
  if (!connection->publisher_holds || connection->publisher_told) return;
  npi_control_init(&frame, NPI_CONTROL_WITHHOLD, 0, 0);
  frame.body.acknowledge.connection = connection->index;
  frame.body.acknowledge.version = connection->version;
  npi_session_event(connection->publisher->client, &frame, NULL, 0);
}

/* ---- once more, for a client that was away ---- */

static enum npi_disconnect_reason reason_for(const struct npi_connection *connection, uint32_t role) {
  if (connection->lied) return NPI_REASON_LIE;
  if (role == NPI_ROLE_SUBSCRIBER) {
    return connection->publisher->client->gone ? NPI_REASON_PUBLISHER_DEAD : NPI_REASON_PUBLISHER_CLOSED;
  }
  if (connection->subscriber->client->gone) return NPI_REASON_SUBSCRIBER_DEAD;
  return connection->subscriber->closing ? NPI_REASON_SUBSCRIBER_CLOSED : NPI_REASON_DRAINED;
}

/* Whether the subscriber took nothing: then it may not have heard of the connection before its end. */
static int is_untouched(const struct npi_connection *connection) {
  const struct npi_client *client = connection->subscriber->client;
  const struct npi_ring_block *block = npi_client_block(client, connection->returns_offset);
  return npi_load_relaxed_u64(&block->counter[NPI_RETURN_TAKEN]) == 0;
}

void npi_connection_tell_again(struct npi_connection *connection, const struct npi_client *client) {
  struct npi_publisher *publisher = connection->publisher;
  struct npi_subscriber *subscriber = connection->subscriber;
  npi_clients_introduce(publisher->client, subscriber->client);
  if (subscriber->client == client && connection->subscriber_holds) {
    int told = connection->subscriber_told;
    /* What was published on a connection that it never heard of is still to be read. */
    if (!subscriber->closing && (!told || is_untouched(connection))) tell_connect(connection, NPI_ROLE_SUBSCRIBER);
    if (told) tell_disconnect(connection, subscriber->client, reason_for(connection, NPI_ROLE_SUBSCRIBER));
  }
  if (publisher->client == client && connection->publisher_holds) {
    int told = connection->publisher_told;
    if (!publisher->closing && !told) tell_connect(connection, NPI_ROLE_PUBLISHER);
    /* Also where the subscriber refused to go on: it still has to let go. */
    int refused = connection->state == NPI_CONNECTION_CLOSING && connection->subscriber_told && !publisher->closing;
    if (subscriber->client->quarantined || refused) npi_connection_withhold(connection);
    if (told) tell_disconnect(connection, publisher->client, reason_for(connection, NPI_ROLE_PUBLISHER));
  }
}

/* Frees it once both sides have let go, and then endpoints and clients that only waited for that. */
static void settle(struct npi_connection *connection) {
  show_holds(connection);
  if (connection->publisher_holds || connection->subscriber_holds) return;
  struct npi_publisher *publisher = connection->publisher;
  struct npi_subscriber *subscriber = connection->subscriber;
  struct npi_client *from = publisher->client, *to = subscriber->client;
  struct npi_broker *broker = from->broker;
  struct npi_connection_record *record = &broker->registry.connections[connection->index];
  npi_account_connection(connection);
  npi_store_release_u32(&record->state, NPI_CONNECTION_FREE);
  npi_store_release_u32(&record->version, connection->version + 1);
  npi_journal_done(&broker->registry);
  npi_registry_count(&broker->registry, NPI_BROKER_CONNECTIONS_ENDED, 1);
  dissolve(connection);
  npi_publisher_settle(publisher);
  npi_subscriber_settle(subscriber);
  if (from->gone) npi_reap_finish(broker, from);
  if (to != from && to->gone) npi_reap_finish(broker, to);
}

void npi_connection_settle(struct npi_connection *connection) {
  settle(connection);
}

void npi_connection_subscriber_closed(struct npi_connection *connection) {
  connection->subscriber_holds = 0;
  if (connection->state == NPI_CONNECTION_ACTIVE) set_state(connection, NPI_CONNECTION_CLOSING);
  tell_publisher(connection, NPI_REASON_SUBSCRIBER_CLOSED);
  settle(connection);
}

void npi_connection_publisher_closed(struct npi_connection *connection) {
  if (connection->state == NPI_CONNECTION_ACTIVE) set_state(connection, NPI_CONNECTION_CLOSING);
  tell_subscriber(connection, NPI_REASON_PUBLISHER_CLOSED);
  settle(connection);
}

void npi_connection_subscriber_gone(struct npi_connection *connection) {
  connection->subscriber_holds = 0;
  set_state(connection, NPI_CONNECTION_DEAD);
  tell_publisher(connection, NPI_REASON_SUBSCRIBER_DEAD);
  settle(connection);
}

void npi_connection_publisher_gone(struct npi_connection *connection) {
  connection->publisher_holds = 0;
  set_state(connection, NPI_CONNECTION_DEAD);
  tell_subscriber(connection, NPI_REASON_PUBLISHER_DEAD);
  settle(connection);
}

void npi_connection_lie(struct npi_connection *connection, const struct npi_client *reporter) {
  const struct npi_client *from = connection->publisher->client, *to = connection->subscriber->client;
  if (connection->state == NPI_CONNECTION_DEAD) return; /* it ends already */
  const struct npi_client *liar = reporter == from ? to : from;
  npi_log(NPI_LOG_WARNING, "connection.lie", "connection=%u channel=%s reporter=%s reporter_pid=%d liar=%s liar_pid=%d",
          connection->index, connection->publisher->channel->name, reporter->name, (int)reporter->pid, liar->name,
          (int)liar->pid);
  npi_registry_count(&from->broker->registry, NPI_BROKER_LIES, 1);
  connection->lied = 1;
  set_state(connection, NPI_CONNECTION_DEAD);
  tell_subscriber(connection, NPI_REASON_LIE);
  tell_publisher(connection, NPI_REASON_LIE);
}

void npi_connection_refused(struct npi_connection *connection, const struct npi_client *reporter, uint32_t role,
                            int made) {
  const struct npi_client *from = connection->publisher->client, *to = connection->subscriber->client;
  int by_publisher = role == NPI_ROLE_PUBLISHER;
  /* It ends already: the word that it does is on its way, and is answered. */
  if (reporter != (by_publisher ? from : to) || connection->state != NPI_CONNECTION_ACTIVE) return;
  npi_log(NPI_LOG_WARNING, "connection.refused", "connection=%u channel=%s by=%s by_pid=%d peer=%s peer_pid=%d made=%d",
          connection->index, connection->publisher->channel->name, reporter->name, (int)reporter->pid,
          (by_publisher ? to : from)->name, (int)(by_publisher ? to : from)->pid, made != 0);
  npi_registry_count(&from->broker->registry, NPI_BROKER_REFUSED, 1);
  if (by_publisher) {
    connection->publisher_holds = 0;
    npi_connection_publisher_closed(connection);
  } else if (made) {
    npi_connection_withhold(connection);
    npi_connection_publisher_closed(connection);
  } else {
    npi_connection_subscriber_closed(connection);
  }
}

void npi_connection_acknowledge(struct npi_connection *connection, const struct npi_client *client) {
  if (client == connection->subscriber->client && connection->subscriber_told && connection->subscriber_holds) {
    connection->subscriber_holds = 0;
    tell_publisher(connection, NPI_REASON_DRAINED);
  } else if (client == connection->publisher->client && connection->publisher_told && connection->publisher_holds) {
    connection->publisher_holds = 0;
  }
  settle(connection);
}
