/* SPDX-License-Identifier: Apache-2.0 */
#include "step/truth.h"

#include <string.h>

#include "step/accounts.h"
#include "step/operations.h"

struct payload {
  uint64_t life;
  uint32_t publisher, number;
  uint64_t check[2];
};
_Static_assert(sizeof(struct payload) == STEP_PAYLOAD_BYTES, "a payload is what it says");

static uint64_t mix(uint64_t x) {
  x ^= x >> 31;
  x *= UINT64_C(0xd6e8feb86659fd93);
  return x ^ x >> 32;
}

void truth_fill(uint32_t publisher, uint32_t number, uint8_t *place) {
  struct payload payload = {.life = world->truth[publisher].life, .publisher = publisher, .number = number};
  payload.check[0] = mix(payload.life * 1000003 + publisher) + number;
  payload.check[1] = mix(payload.check[0]);
  memcpy(place, &payload, sizeof payload);
}

/* 1: whole; its words in *out. */
static int read_payload(const struct np_event *event, struct payload *out) {
  if (event->size < sizeof *out) return 0;
  memcpy(out, event->data, sizeof *out);
  return out->check[0] == mix(out->life * 1000003 + out->publisher) + out->number &&
         out->check[1] == mix(out->check[0]);
}

static int is_member(const struct step_connection *connection) {
  return world->options.kind == STEP_GROUP && (connection->flags & NPI_SUBSCRIBER_TAP) == 0;
}

/* Events that the publisher of a connection was about to publish when it died: each may exist or not. */
static uint32_t in_doubt(const struct step_connection *connection) {
  const struct step_actor *publisher = step_actor(connection->publisher);
  const struct step_now *now = &world->died, *beside = &world->beside;
  if (beside->operation == OPERATION_PUBLISH && beside->actor == connection->publisher &&
      beside->life == connection->life) {
    return beside->many;
  }
  if (!publisher->is_dead || now->actor != connection->publisher || now->life != connection->life) return 0;
  return now->many;
}

/* ---- publishers ---- */

/* Group events that no member has given back, but for those in doubt. */
static uint32_t unfinished(const struct step_truth *truth) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < truth->accepted; i++) {
    n += truth->fate[i] == FATE_PENDING || truth->fate[i] == FATE_AGAIN || truth->fate[i] == FATE_HELD;
  }
  return n;
}

/* The counter goes on through the lives of a publisher: its value at the beginning is kept until it closes. */
static uint32_t counted_as_lost(uint32_t actor) {
  const struct np_client *client = &step_actor(actor)->client;
  const struct npi_endpoint_counters *counters = (const void *)(client->page + client->endpoints_offset);
  return (uint32_t)npi_load_relaxed_u64(&counters->value[NPI_PUBLISHER_LOST_WITH_MEMBER]);
}

void truth_publisher_opens(uint32_t actor) {
  struct step_truth *truth = &world->truth[actor];
  uint64_t life = truth->life;
  *truth = (struct step_truth){.life = life + 1, .n_lost = counted_as_lost(actor)};
}

void truth_publisher_closed(uint32_t actor) {
  world->truth[actor].n_lost = counted_as_lost(actor) - world->truth[actor].n_lost;
}

void truth_published(uint32_t publisher, uint32_t n, uint32_t n_dropped) {
  struct step_truth *truth = &world->truth[publisher];
  for (uint32_t i = 0; i < n; i++) {
    if (n_dropped > 0 && truth->fate[truth->accepted] == FATE_PENDING && n_dropped == n - i) {
      truth->fate[truth->accepted] = FATE_DROPPED;
      n_dropped--;
    }
    truth->accepted++;
  }
}

/* ---- subscribers ---- */

static void taken_in_order(struct step_connection *connection, uint32_t number, uint32_t actor) {
  if (number < connection->next) {
    step_violation("subscriber %u sees event %u of publisher %u after event %u: repeated", actor, number,
                   connection->publisher, connection->next - 1);
    return;
  }
  connection->n_missed += number - connection->next;
  connection->next = number + 1;
  connection->n_taken++;
}

static void taken_by_member(struct step_connection *connection, uint32_t number, uint32_t actor, int again) {
  uint8_t *fate = &world->truth[connection->publisher].fate[number];
  struct step_actor *subscriber = step_actor(actor);
  switch (*fate) {
    case FATE_PENDING:
      if (again && world->n_redelivery_rounds == 0) {
        step_violation("event %u of publisher %u comes to member %u marked as redelivered, and nobody died", number,
                       connection->publisher, actor);
      }
      break;
    case FATE_AGAIN:
      if (!again) {
        step_violation("event %u of publisher %u comes again to member %u without a mark", number,
                       connection->publisher, actor);
      }
      break;
    default:
      step_violation("event %u of publisher %u comes to member %u, but was %s", number, connection->publisher, actor,
                     *fate == FATE_HELD   ? "held by a living member"
                     : *fate == FATE_DONE ? "given back before"
                                          : "dropped");
  }
  if (again && world->n_redelivery_rounds == 1 && world->options.n_publishers == 1) {
    if (number < subscriber->last_again) {
      step_violation("event %u comes again to member %u after event %u: not in its old order", number, actor,
                     subscriber->last_again - 1);
    }
    subscriber->last_again = number + 1;
  }
  if (!again && number < connection->next) {
    step_violation("member %u sees event %u after event %u", actor, number, connection->next - 1);
  }
  if (!again) connection->next = number + 1;
  *fate = FATE_HELD;
}

void truth_taken(uint32_t actor, const struct np_event *event) {
  struct step_actor *subscriber = step_actor(actor);
  const struct np_client *client = &subscriber->client;
  uint32_t slot = (uint32_t)event->token[1];
  struct payload payload;
  if (slot >= client->n_links || client->links[slot] == NULL) {
    step_violation("subscriber %u took an event of no connection", actor);
    return;
  }
  struct step_connection *connection = &world->connections[client->links[slot]->connection];
  if (!connection->used || connection->version != client->links[slot]->version || connection->subscriber != actor) {
    step_violation("subscriber %u took an event of a connection that is over", actor);
    return;
  }
  if (!read_payload(event, &payload)) {
    step_violation("subscriber %u took a damaged event of publisher %u, %zu bytes", actor, connection->publisher,
                   event->size);
    return;
  }
  const struct step_truth *truth = &world->truth[connection->publisher];
  uint32_t most = truth->accepted + in_doubt(connection);
  if (payload.publisher != connection->publisher || payload.life != connection->life ||
      (payload.life == truth->life && payload.number >= most) || payload.number >= STEP_NUMBERS) {
    step_violation("subscriber %u took event %u of publisher %u, life %llu, which was not published (next is %u)",
                   actor, payload.number, payload.publisher, (unsigned long long)payload.life, truth->accepted);
    return;
  }
  if (event->sequence != payload.number) {
    step_violation("event %u of publisher %u has sequence %llu", payload.number, payload.publisher,
                   (unsigned long long)event->sequence);
  }
  int again = (event->flags & NP_EVENT_REDELIVERED) != 0;
  if (payload.life != truth->life) {
    /* of a publisher that closed and opened again: its truth is not kept */
  } else if (is_member(connection)) {
    taken_by_member(connection, payload.number, actor, again);
  } else {
    taken_in_order(connection, payload.number, actor);
  }
  if (subscriber->n_held == STEP_HELD) {
    step_violation("subscriber %u holds more than it has credits for", actor);
    return;
  }
  connection->n_got++;
  subscriber->held[subscriber->n_held++] = (struct step_held){.event = *event,
                                                              .publisher = connection->publisher,
                                                              .number = payload.number,
                                                              .life = payload.life,
                                                              .connection = client->links[slot]->connection,
                                                              .version = connection->version};
}

void truth_look_again(uint32_t actor, uint32_t row) {
  const struct step_held *held = &step_actor(actor)->held[row];
  struct payload payload;
  if (read_payload(&held->event, &payload) && payload.publisher == held->publisher && payload.number == held->number &&
      payload.life == held->life) {
    return;
  }
  step_violation("event %u of publisher %u changed while subscriber %u held it", held->number, held->publisher, actor);
}

void truth_released(uint32_t actor, uint32_t row) {
  struct step_actor *subscriber = step_actor(actor);
  struct step_held *held = &subscriber->held[row];
  struct step_truth *truth = &world->truth[held->publisher];
  if (world->options.kind == STEP_GROUP && (subscriber->flags & NPI_SUBSCRIBER_TAP) == 0 && held->life == truth->life) {
    truth->fate[held->number] = FATE_DONE;
  }
  struct step_connection *connection = &world->connections[held->connection];
  if (connection->version == held->version) connection->n_released++;
  memmove(held, held + 1, (--subscriber->n_held - row) * sizeof *held);
}

/* What a subscriber that saw all of a connection must have seen. */
static void check_seen(const struct step_connection *connection) {
  const struct step_truth *truth = &world->truth[connection->publisher];
  if (is_member(connection) || !connection->publisher_made || truth->life != connection->life) return;
  const struct npi_ring_block *block = step_ring(connection->publisher, connection->publisher_ring);
  uint64_t dropped = npi_load_relaxed_u64(&block->counter[NPI_SUBMISSION_DROPPED]);
  /* What a group dropped as a whole went to no tap either, and is counted as that. */
  for (uint32_t i = connection->first; i < truth->accepted; i++) dropped += truth->fate[i] == FATE_DROPPED;
  for (uint32_t i = 0; i <= in_doubt(connection); i++) {
    uint32_t end = truth->accepted + i;
    if (connection->next <= end && connection->n_missed + (end - connection->next) == dropped) {
      if (dropped > 0 && connection->on_full == NPI_ON_FULL_BLOCK && (connection->flags & NPI_SUBSCRIBER_TAP) == 0) {
        break;
      }
      return;
    }
  }
  step_violation(
      "subscriber %u saw %u events of publisher %u from number %u on and missed %u before number %u; %u were "
      "published, "
      "%llu counted as dropped: lost",
      connection->subscriber, connection->n_taken, connection->publisher, connection->first, connection->n_missed,
      connection->next, truth->accepted, (unsigned long long)dropped);
}

void truth_subscriber_let_go(uint32_t number) {
  const struct step_connection *connection = &world->connections[number];
  const struct step_actor *subscriber = step_actor(connection->subscriber);
  const struct step_now *now = &world->now;
  for (uint32_t i = 0; i < subscriber->n_held; i++) {
    const struct step_held *held = &subscriber->held[i];
    if (held->publisher != connection->publisher || held->life != connection->life) continue;
    if (now->operation == OPERATION_RELEASE && now->number == held->number) continue; /* which it gives back just now */
    step_violation("subscriber %u let go of publisher %u and holds event %u of it", connection->subscriber,
                   connection->publisher, held->number);
  }
  /* One that closes by itself reads no more; it owes nothing. */
  if (world->now.actor == connection->subscriber && world->now.operation == OPERATION_CLOSE) return;
  if (!subscriber->is_dead) check_seen(connection);
}

/* ---- death ---- */

void truth_actor_died(uint32_t actor, int was_now) {
  struct step_actor *dead = step_actor(actor);
  const struct step_now *now = &world->died;
  if (step_is_publisher(actor)) {
    /* Events without a member at that moment are lost with it: there may be some only if a member has gone. */
    if (world->n_redelivery_rounds > 0) world->truth[actor].is_lossy = 1;
    return;
  }
  if ((dead->flags & NPI_SUBSCRIBER_TAP) != 0) return;
  world->n_redelivery_rounds++;
  for (uint32_t i = 0; i < world->options.n_publishers; i++) {
    if (step_actor(i)->is_dead || step_actor(i)->publisher == NULL) world->truth[i].is_lossy = 1;
  }
  if (world->options.kind != STEP_GROUP) return;
  for (uint32_t i = 0; i < dead->n_held; i++) {
    struct step_truth *truth = &world->truth[dead->held[i].publisher];
    if (dead->held[i].life != truth->life) continue;
    int maybe = was_now && now->operation == OPERATION_RELEASE && now->publisher == dead->held[i].publisher &&
                now->number == dead->held[i].number;
    /* Whether it gave the event back says its ring, and so what becomes of the event. */
    const struct step_connection *connection = &world->connections[dead->held[i].connection];
    int is_back = maybe && (!connection->used || connection->version != dead->held[i].version ||
                            accounts_released(connection) > connection->n_released);
    truth->fate[dead->held[i].number] = is_back ? FATE_DONE : FATE_AGAIN;
    if (maybe) world->died_before = !is_back;
  }
}

/* ---- the end ---- */

static void check_group(uint32_t index) {
  const struct step_truth *truth = &world->truth[index];
  const struct step_actor *publisher = step_actor(index);
  uint32_t left = unfinished(truth);
  if (truth->is_lossy || left == 0) return;
  if (!publisher->is_dead && publisher->publisher == NULL && left == truth->n_lost) return;
  if (!publisher->is_dead && publisher->publisher != NULL && publisher->publisher->flow.n_members == 0 &&
      left <= publisher->publisher->flow.n_waiting) {
    return;
  }
  for (uint32_t i = 0; i < truth->accepted; i++) {
    if (truth->fate[i] == FATE_DONE || truth->fate[i] == FATE_DROPPED) continue;
    step_violation("event %u of publisher %u (%u were published) %s, and no member processed it: lost", i, index,
                   truth->accepted,
                   truth->fate[i] == FATE_AGAIN  ? "was held by a member that died"
                   : truth->fate[i] == FATE_HELD ? "is held"
                                                 : "was never taken");
    return;
  }
}

void truth_check_complete(void) {
  for (uint32_t i = 0; i < world->n_connections; i++) {
    const struct step_connection *connection = &world->connections[i];
    if (!connection->used) continue;
    if (step_actor(connection->publisher)->is_dead || step_actor(connection->subscriber)->is_dead) {
      step_violation("connection %u, publisher %u to subscriber %u, is not over: publisher %s, subscriber %s", i,
                     connection->publisher, connection->subscriber, connection->publisher_holds ? "holds" : "let go",
                     connection->subscriber_holds ? "holds" : "let go");
      continue;
    }
    check_seen(connection);
  }
  for (uint32_t i = 0; i < world->options.n_publishers && world->options.kind == STEP_GROUP; i++) check_group(i);
  if (shared->n_violations == 0) accounts_check_complete();
}
