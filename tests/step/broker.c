/* SPDX-License-Identifier: Apache-2.0 */
/* The broker's books of connections, step for step as daemon/connections.c keeps them. */
#include <string.h>

#include "step/accounts.h"
#include "step/stepper.h"
#include "step/truth.h"
#include "wire/channel.h"

static void send_frame(uint32_t to, const struct step_frame *frame) {
  struct step_actor *actor = step_actor(to);
  if (actor->is_dead) return;
  if (actor->queue_tail - actor->queue_head == STEP_QUEUE) {
    step_violation("client %u does not read what the broker sends", to);
    return;
  }
  actor->queue[actor->queue_tail++ % STEP_QUEUE] = *frame;
  npi_store_release_u32(&step_client_record(to)->events_sent, ++actor->events_sent);
}

/* ---- made ---- */

static int take_ring(uint32_t actor, uint32_t *ring) {
  struct step_actor *owner = step_actor(actor);
  for (*ring = 0; *ring < STEP_RINGS; (*ring)++) {
    if ((owner->rings_used >> *ring & 1) != 0) continue;
    owner->rings_used |= 1U << *ring;
    npi_ring_format(step_ring(actor, *ring), STEP_CAPACITY);
    return 1;
  }
  return 0;
}

static void tell_connect(uint32_t number, uint32_t role) {
  const struct step_connection *connection = &world->connections[number];
  uint32_t to = role == NPI_ROLE_PUBLISHER ? connection->publisher : connection->subscriber;
  send_frame(to, &(struct step_frame){NPI_CONTROL_CONNECT, number, connection->version, role, 0});
}

static void connect_pair(uint32_t publisher, uint32_t subscriber) {
  uint32_t number = 0;
  while (number < STEP_CONNECTIONS && world->connections[number].used) number++;
  if (number == STEP_CONNECTIONS) {
    step_violation("the broker's table of connections is full");
    return;
  }
  struct step_connection *connection = &world->connections[number];
  const struct step_actor *to = step_actor(subscriber);
  *connection = (struct step_connection){.used = 1,
                                         .version = connection->version + 1,
                                         .publisher = publisher,
                                         .subscriber = subscriber,
                                         .publisher_holds = 1,
                                         .subscriber_holds = 1,
                                         .on_full = to->on_full,
                                         .flags = to->flags,
                                         .limit = to->limit,
                                         .life = world->truth[publisher].life};
  /* Position 0, or one of the same lap whose low half is about to wrap, or the whole of it. */
  if (world->options.near_wrap == 1) connection->start = (UINT64_C(1) << 32) - 16 * STEP_CAPACITY;
  if (world->options.near_wrap == 2) connection->start = UINT64_MAX - 16 * STEP_CAPACITY + 1;
  if (!take_ring(publisher, &connection->publisher_ring) || !take_ring(subscriber, &connection->subscriber_ring)) {
    step_violation("no room for another ring");
    return;
  }
  if (world->n_connections <= number) world->n_connections = number + 1;
  step_connection_record(number)->publisher = publisher;
  tell_connect(number, NPI_ROLE_SUBSCRIBER);
  tell_connect(number, NPI_ROLE_PUBLISHER);
}

static void connect_all(uint32_t actor) {
  for (uint32_t i = 0; i < world->n_actors; i++) {
    if (!step_actor(i)->is_open || step_is_publisher(i) == step_is_publisher(actor)) continue;
    if (step_is_publisher(actor)) {
      connect_pair(actor, i);
    } else {
      connect_pair(i, actor);
    }
  }
}

int broker_next_frame(uint32_t to, struct npi_control_frame *out) {
  struct step_actor *actor = step_actor(to);
  if (actor->queue_head == actor->queue_tail) return 0;
  const struct step_frame *frame = &actor->queue[actor->queue_head++ % STEP_QUEUE];
  const struct step_connection *connection = &world->connections[frame->connection];
  npi_control_init(out, frame->type, 0, 0);
  if (frame->type == NPI_CONTROL_DISCONNECT) {
    out->body.disconnect.connection = frame->connection;
    out->body.disconnect.version = frame->version;
    out->body.disconnect.reason = frame->reason;
    return 1;
  }
  int to_publisher = frame->role == NPI_ROLE_PUBLISHER;
  uint32_t peer = to_publisher ? connection->subscriber : connection->publisher;
  out->body.connect.connection = frame->connection;
  out->body.connect.version = frame->version;
  out->body.connect.role = frame->role;
  out->body.connect.endpoint = actor->endpoint;
  out->body.connect.peer = peer;
  out->body.connect.peer_version = 1;
  out->body.connect.capacity = STEP_CAPACITY;
  out->body.connect.limit = connection->limit;
  out->body.connect.on_full = connection->on_full;
  out->body.connect.kind = world->options.kind == STEP_GROUP ? NPI_CHANNEL_GROUP : NPI_CHANNEL_BROADCAST;
  out->body.connect.flags = connection->flags;
  out->body.connect.submissions_offset = step_ring_offset(connection->publisher_ring);
  out->body.connect.returns_offset = step_ring_offset(connection->subscriber_ring);
  if (!connection->used || connection->version != frame->version) {
    out->body.connect.endpoint = NPI_NONE; /* both ends are gone from it already: for no endpoint that there is */
  }
  return 1;
}

void broker_note_made(uint32_t index) {
  const struct np_client *client = &step_actor(index)->client;
  for (uint32_t i = 0; i < client->n_links; i++) {
    struct npi_link *link = client->links[i];
    if (link == NULL) continue;
    struct step_connection *connection = &world->connections[link->connection];
    uint64_t start = connection->start;
    if (link->role == NPI_ROLE_PUBLISHER && !connection->publisher_made) {
      link->outlet.entry->submitted = link->outlet.entry->returned = start;
      npi_store_relaxed_u64(&link->outlet.block->counter[NPI_SUBMISSION_PUBLISHED], start);
      npi_store_relaxed_u64(&link->outlet.block->counter[NPI_SUBMISSION_RETURNED], start);
      connection->publisher_made = 1;
      connection->first = connection->next = world->truth[index].accepted;
    } else if (link->role == NPI_ROLE_SUBSCRIBER && !connection->subscriber_made) {
      link->inlet.taken = link->inlet.returned = start;
      npi_store_relaxed_u64(&link->inlet.block->counter[NPI_RETURN_TAKEN], start);
      npi_store_relaxed_u64(&link->inlet.block->counter[NPI_RETURN_RETURNED], start);
      connection->subscriber_made = 1;
    }
  }
}

/* ---- ended ---- */

static void settle(struct step_connection *connection) {
  if (connection->publisher_holds || connection->subscriber_holds) return;
  accounts_connection_ends(connection);
  step_actor(connection->publisher)->rings_used &= ~(1U << connection->publisher_ring);
  step_actor(connection->subscriber)->rings_used &= ~(1U << connection->subscriber_ring);
  connection->used = 0;
}

static void tell(uint32_t number, uint32_t role, uint32_t reason) {
  struct step_connection *connection = &world->connections[number];
  uint32_t *told = role == NPI_ROLE_PUBLISHER ? &connection->publisher_told : &connection->subscriber_told;
  uint32_t holds = role == NPI_ROLE_PUBLISHER ? connection->publisher_holds : connection->subscriber_holds;
  uint32_t to = role == NPI_ROLE_PUBLISHER ? connection->publisher : connection->subscriber;
  if (!holds || *told) return;
  *told = 1;
  send_frame(to, &(struct step_frame){NPI_CONTROL_DISCONNECT, number, connection->version, role, reason});
}

static void endpoint_ends(uint32_t actor, uint32_t is_death) {
  step_actor(actor)->is_open = 0;
  for (uint32_t i = 0; i < world->n_connections; i++) {
    struct step_connection *connection = &world->connections[i];
    if (!connection->used) continue;
    if (connection->publisher == actor && (is_death || !connection->subscriber_told)) {
      if (is_death) connection->publisher_holds = 0;
      tell(i, NPI_ROLE_SUBSCRIBER, is_death ? NPI_REASON_PUBLISHER_DEAD : NPI_REASON_PUBLISHER_CLOSED);
      settle(connection);
    } else if (connection->subscriber == actor) {
      connection->subscriber_holds = 0;
      tell(i, NPI_ROLE_PUBLISHER, is_death ? NPI_REASON_SUBSCRIBER_DEAD : NPI_REASON_SUBSCRIBER_CLOSED);
      settle(connection);
    }
  }
}

void broker_actor_gone(uint32_t actor) {
  endpoint_ends(actor, 1);
}

void broker_answers(uint32_t index, const struct npi_control_frame *frame, struct npi_control_frame *reply) {
  struct step_actor *actor = step_actor(index);
  npi_control_init(reply, frame->head.type, 0, 0);
  switch (frame->head.type) {
    case NPI_CONTROL_OPEN_PUBLISHER:
      actor->endpoint++;
      accounts_publisher_opens(index);
      truth_publisher_opens(index);
      actor->is_open = 1;
      reply->body.open_publisher_reply.publisher = actor->endpoint;
      reply->body.open_publisher_reply.publisher_version = actor->endpoint;
      reply->body.open_publisher_reply.kind =
          world->options.kind == STEP_GROUP ? NPI_CHANNEL_GROUP : NPI_CHANNEL_BROADCAST;
      reply->body.open_publisher_reply.on_full = world->options.group_on_full;
      connect_all(index);
      break;
    case NPI_CONTROL_OPEN_SUBSCRIBER:
      actor->endpoint++;
      actor->is_open = 1;
      reply->body.open_subscriber_reply.subscriber = actor->endpoint;
      reply->body.open_subscriber_reply.subscriber_version = actor->endpoint;
      connect_all(index);
      break;
    case NPI_CONTROL_CLOSE_PUBLISHER:
    case NPI_CONTROL_CLOSE_SUBSCRIBER:
      if (frame->head.type == NPI_CONTROL_CLOSE_SUBSCRIBER) world->n_redelivery_rounds++;
      endpoint_ends(index, 0);
      break;
    default: reply->head.status = NP_ERR_LIMIT; /* a lease: the broker has no more memory */
  }
}

void broker_hears(uint32_t from, const struct npi_control_frame *frame) {
  uint32_t number = frame->body.acknowledge.connection;
  struct step_connection *connection = &world->connections[number];
  if (frame->head.type == NPI_CONTROL_REPORT_LIE) {
    step_violation("client %u says that its peer on connection %u lied", from, number);
    return;
  }
  if (frame->head.type == NPI_CONTROL_REFUSE) {
    step_violation("client %u refuses connection %u", from, number);
    return;
  }
  if (frame->head.type != NPI_CONTROL_ACKNOWLEDGE) return;
  if (number >= STEP_CONNECTIONS || !connection->used || connection->version != frame->body.acknowledge.version) return;
  if (connection->subscriber == from && connection->subscriber_told && connection->subscriber_holds) {
    truth_subscriber_let_go(number);
    connection->subscriber_holds = 0;
    tell(number, NPI_ROLE_PUBLISHER, NPI_REASON_DRAINED);
  } else if (connection->publisher == from && connection->publisher_told && connection->publisher_holds) {
    connection->publisher_holds = 0;
  } else {
    step_violation("client %u acknowledges connection %u, of which it was not told to let go", from, number);
  }
  settle(connection);
}
