/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs of the world do: a call of the public library, and what must be true after it. */
#include <string.h>

#include "base/status.h"
#include "client/worker.h"
#include "step/operations.h"
#include "step/stepper.h"
#include "step/truth.h"

int step_is_paired;

/* 1: some subscriber has given something back that the publisher has not seen. */
static uint32_t has_returns(uint32_t index) {
  const struct np_client *client = &step_actor(index)->client;
  for (uint32_t i = 0; i < client->n_links; i++) {
    const struct npi_link *link = client->links[i];
    uint64_t element;
    if (link == NULL || link->role != NPI_ROLE_PUBLISHER) continue;
    if (npi_ring_load(&link->outlet.returns, link->outlet.entry->returned, &element)) return 1;
  }
  return 0;
}

/* 1: the connection whose end is the next news has events out. */
static uint32_t ends_with_events_out(uint32_t index) {
  const struct step_actor *actor = step_actor(index);
  const struct step_frame *frame = &actor->queue[actor->queue_head % STEP_QUEUE];
  for (uint32_t i = 0; i < actor->client.n_links; i++) {
    const struct npi_link *link = actor->client.links[i];
    if (link != NULL && link->connection == frame->connection && link->version == frame->version) {
      return link->outlet.entry->outstanding > 0;
    }
  }
  return 0;
}

static uint32_t detail_of_publish(const struct npi_flow *flow) {
  int is_group = world->options.kind == STEP_GROUP;
  if (flow->n_outlets == 0) return 1;
  if (flow->n_outlets == STEP_SUBSCRIBERS) return 2;
  if (flow->n_waiting > 0) return 3;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    const struct npi_outlet *outlet = flow->outlets[i];
    if (outlet->entry->outstanding >= outlet->entry->limit)
      return is_group ? 4 + world->options.group_on_full : 6u - outlet->blocking;
    if ((uint32_t)npi_load_relaxed_u64(&outlet->bell->shm->word) == NPI_BELL_ASLEEP) return 7;
  }
  if (is_group) return flow->n_members == 0 ? 8 : flow->n_members < flow->n_outlets ? 9 : 10;
  return flow->n_outlets == 1 ? 0 : flow->n_outlets == 2 ? 11 : 12;
}

/* What makes the same call another: the classes that share the points. */
static uint32_t detail_of(uint32_t index, uint32_t operation) {
  const struct step_actor *actor = step_actor(index);
  const struct npi_ledger *ledger = &actor->client.pool.ledger;
  int is_publisher = step_is_publisher(index);
  int is_group = world->options.kind == STEP_GROUP;
  switch (operation) {
    case OPERATION_NEWS:
      if (actor->queue_head == actor->queue_tail) return 0;
      if (actor->queue[actor->queue_head % STEP_QUEUE].type == NPI_CONTROL_CONNECT) return 1;
      return 2 + (uint32_t)is_group * 2 + (is_publisher && ends_with_events_out(index));
    case OPERATION_LOAN:
      if (ledger->header->free[STEP_CLASS].head != NPI_NONE) return 0;
      return ledger->segments[0].chunks_free > 0 ? 1 : 2;
    case OPERATION_TICK:
      return (uint32_t)(actor->publisher != NULL && actor->publisher->flow.n_waiting > 0) * 2 + has_returns(index);
    case OPERATION_PUBLISH: return detail_of_publish(&actor->publisher->flow);
    case OPERATION_TAKE: return actor->subscriber->n_draining > 0 ? 1 : actor->subscriber->n_inlets > 1 ? 2 : 0;
    case OPERATION_RELEASE: return actor->subscriber->n_draining > 0 ? 1 : world->options.sleepers ? 2 : 0;
    default: return 0;
  }
}

/* The call between these two is the library's, and stepped if the operation is. */
static void enter(uint32_t actor, uint32_t operation) {
  int has_news = step_actor(actor)->queue_head != step_actor(actor)->queue_tail;
  int is_data = operation == OPERATION_PUBLISH || operation == OPERATION_TAKE || operation == OPERATION_RELEASE;
  int offers = step_actor(actor)->publisher != NULL && step_actor(actor)->publisher->flow.n_waiting > 0;
  world->now.actor = actor;
  world->now.operation = operation;
  step_running = (int)actor;
  step_begin_operation(
      operation * 64 + (step_is_publisher(actor) ? 32u : 0u) + (has_news ? 16u : 0u) + detail_of(actor, operation),
      offers    ? 8
      : is_data ? 3
                : 1);
}

static void leave(void) {
  step_off();
  step_running = -1;
  world->now = (struct step_now){.operation = OPERATION_NONE};
}

int program_open(uint32_t index) {
  struct step_actor *actor = step_actor(index);
  int status;
  enter(index, OPERATION_OPEN);
  if (step_is_publisher(index)) {
    struct np_publisher *publisher = NULL;
    status = np_publisher_open(&actor->client, "channel", NULL, &publisher);
    leave();
    actor->publisher = publisher;
  } else {
    struct np_subscriber_options options;
    struct np_subscriber *subscriber = NULL;
    np_subscriber_options_init(&options);
    options.name = "subscriber";
    options.on_full = (int)actor->on_full;
    options.tap = (actor->flags & NPI_SUBSCRIBER_TAP) != 0;
    status = np_subscriber_open(&actor->client, "channel", &options, &subscriber);
    leave();
    actor->subscriber = subscriber;
  }
  if (status != NP_OK) step_violation("client %u cannot open: %s", index, np_error_detail());
  return status;
}

void program_close(uint32_t index) {
  struct step_actor *actor = step_actor(index);
  int status = NP_OK;
  if (step_is_publisher(index)) {
    enter(index, OPERATION_CLOSE);
    np_publisher_close(actor->publisher);
    leave();
    actor->publisher = NULL;
    actor->n_loans = 0;
    truth_publisher_closed(index);
    return;
  }
  for (uint32_t i = 0; i < world->options.n_publishers; i++) {
    /* Who takes back for a publisher that is gone cannot offer again. */
    if (step_actor(i)->is_dead || step_actor(i)->publisher == NULL) world->truth[i].is_lossy = 1;
  }
  enter(index, OPERATION_CLOSE);
  status = np_subscriber_close(actor->subscriber);
  leave();
  actor->subscriber = NULL;
  if (status != NP_OK) step_violation("subscriber %u cannot close: %s", index, np_error_detail());
}

int program_loan(uint32_t index) {
  struct step_actor *actor = step_actor(index);
  enter(index, OPERATION_LOAN);
  int status = np_loan(actor->publisher, npi_class_bytes(STEP_CLASS), &actor->loans[actor->n_loans]);
  leave();
  if (status == NP_OK) {
    if (actor->stale.size != 0 && actor->loans[actor->n_loans].token[0] == actor->stale.token[0]) {
      step_violation("publisher %u: a loan has the token of an event that was published before", index);
    }
    actor->n_loans++;
  } else if (status != NP_EMPTY) {
    step_violation("publisher %u cannot loan: %d, %s", index, status, np_error_detail());
  }
  return status;
}

/* Sleeps, and has not been rung for this episode: whoever publishes to it now must ring. */
static int must_be_rung(const struct npi_link *link) {
  if (link->role != NPI_ROLE_PUBLISHER) return 0;
  const struct npi_bell_peer *bell = link->outlet.bell;
  uint64_t word = npi_load_relaxed_u64(&bell->shm->word);
  return (uint32_t)word == NPI_BELL_ASLEEP && (uint32_t)(word >> 32) != bell->rung_episode;
}

struct before {
  uint64_t submitted[64];
  uint32_t rung[64], connection[64], version[64];
  uint64_t delivered, sequence;
};

static uint64_t delivered(const struct np_publisher *publisher) {
  return npi_load_relaxed_u64(&publisher->flow.counters->value[NPI_PUBLISHER_DELIVERED]);
}

static void look_before(const struct np_client *client, struct before *before) {
  for (uint32_t i = 0; i < client->n_links && i < 64; i++) {
    const struct npi_link *link = client->links[i];
    before->submitted[i] = link != NULL && link->role == NPI_ROLE_PUBLISHER ? link->outlet.entry->submitted : 0;
    before->rung[i] = link != NULL && must_be_rung(link) ? step_actor(link->peer->client)->n_rung + 1 : 0;
    before->connection[i] = link != NULL ? link->connection : NPI_NONE;
    before->version[i] = link != NULL ? link->version : NPI_NONE;
  }
}

static void look_after(const struct np_client *client, const struct before *before) {
  if (step_is_paired) return; /* it may have come to by itself meanwhile: judged when both have ended */
  for (uint32_t i = 0; i < client->n_links && i < 64; i++) {
    const struct npi_link *link = client->links[i];
    if (link == NULL || before->rung[i] == 0 || link->outlet.entry->submitted == before->submitted[i]) continue;
    if (link->connection != before->connection[i] || link->version != before->version[i]) continue; /* made just now */
    if (step_actor(link->peer->client)->n_rung >= before->rung[i]) continue;
    step_violation("publisher %u published to client %u, which sleeps, and did not wake it", client->index,
                   link->peer->client);
  }
}

int program_publish(uint32_t index, uint32_t row, uint32_t many) {
  struct step_actor *actor = step_actor(index);
  struct step_truth *truth = &world->truth[index];
  const struct np_publisher *publisher = actor->publisher;
  struct before before;
  struct np_event copy = actor->loans[row];
  int64_t n;
  for (uint32_t i = 0; i < many; i++) {
    struct np_event *event = &actor->loans[row + i];
    truth_fill(index, truth->accepted + i, event->data);
    event->size = STEP_PAYLOAD_BYTES;
  }
  look_before(&actor->client, &before);
  before.sequence = publisher->flow.sequence;
  before.delivered = delivered(publisher);
  world->now.number = truth->accepted;
  world->now.many = many;
  world->now.life = truth->life;
  if (many == 1) {
    enter(index, OPERATION_PUBLISH);
    int status = np_publish(actor->publisher, &actor->loans[row]);
    leave();
    n = status == NP_OK ? 1 : status == NP_FULL ? 0 : status;
  } else {
    enter(index, OPERATION_PUBLISH);
    n = np_publish_many(actor->publisher, &actor->loans[row], many);
    leave();
  }
  if (n < 0 || n > many || publisher->flow.sequence - before.sequence != (uint64_t)n) {
    step_violation("publisher %u: publish returns %lld of %u, the sequence moved by %llu: %s", index, (long long)n,
                   many, (unsigned long long)(publisher->flow.sequence - before.sequence), np_error_detail());
    return NP_FULL;
  }
  int is_dropped = world->options.kind == STEP_GROUP && n == 1 && delivered(publisher) == before.delivered;
  truth_published(index, (uint32_t)n, (uint32_t)is_dropped);
  look_after(&actor->client, &before);
  if (n > 0) {
    actor->stale = copy;
    memmove(&actor->loans[row], &actor->loans[row + n], (actor->n_loans - row - (uint32_t)n) * sizeof *actor->loans);
    actor->n_loans -= (uint32_t)n;
  }
  return n == many ? NP_OK : NP_FULL;
}

void program_discard(uint32_t index, uint32_t row) {
  struct step_actor *actor = step_actor(index);
  enter(index, OPERATION_DISCARD);
  int status = np_discard(actor->publisher, &actor->loans[row]);
  leave();
  if (status != NP_OK) step_violation("publisher %u cannot discard: %s", index, np_error_detail());
  memmove(&actor->loans[row], &actor->loans[row + 1], (--actor->n_loans - row) * sizeof *actor->loans);
}

int program_take(uint32_t index) {
  struct step_actor *actor = step_actor(index);
  struct np_event event;
  enter(index, OPERATION_TAKE);
  int status = np_take(actor->subscriber, &event);
  leave();
  if (status == NP_OK) {
    truth_taken(index, &event);
  } else if (status != NP_EMPTY) {
    step_violation("subscriber %u cannot take: %d, %s", index, status, np_error_detail());
  }
  return status;
}

void program_release(uint32_t index, uint32_t row) {
  struct step_actor *actor = step_actor(index);
  struct step_held *held = &actor->held[row];
  struct np_event event = held->event;
  truth_look_again(index, row);
  world->now.publisher = held->publisher;
  world->now.number = held->number;
  world->now.life = held->life;
  enter(index, OPERATION_RELEASE);
  int status = np_release(actor->subscriber, &event);
  leave();
  if (status != NP_OK) {
    step_violation("subscriber %u cannot release event %u of publisher %u: %s", index, held->number, held->publisher,
                   np_error_detail());
  }
  actor->stale = held->event;
  truth_released(index, row);
}

void program_news(uint32_t index) {
  struct step_actor *actor = step_actor(index);
  enter(index, OPERATION_NEWS);
  if (npi_client_has_news(&actor->client)) npi_client_news(&actor->client);
  leave();
}

void program_tick(uint32_t index) {
  enter(index, OPERATION_TICK);
  npi_client_tick(&step_actor(index)->client);
  leave();
}

void program_sleep(uint32_t index) {
  struct step_actor *actor = step_actor(index);
  uint32_t rung = actor->n_rung;
  enter(index, OPERATION_SLEEP);
  if (step_is_publisher(index)) {
    np_publisher_fd(actor->publisher);
  } else {
    np_fd(actor->subscriber);
  }
  leave();
  if (!step_is_paired && !step_is_publisher(index) && actor->n_rung == rung && npi_subscriber_has(actor->subscriber)) {
    step_violation("subscriber %u sleeps, an event is there, and nobody will wake it", index);
  }
}

uint32_t program_publish_batch(uint32_t index, uint32_t n) {
  static uint8_t bytes[4][4200]; /* of the class in use */
  struct step_actor *actor = step_actor(index);
  struct step_truth *truth = &world->truth[index];
  struct npi_slot_header like = {.listener = NPI_NONE};
  struct npi_payload payloads[4];
  struct before before;
  for (uint32_t i = 0; i < n; i++) {
    truth_fill(index, truth->accepted + i, bytes[i]);
    payloads[i] = (struct npi_payload){bytes[i], sizeof bytes[i]};
  }
  look_before(&actor->client, &before);
  world->now.number = truth->accepted;
  world->now.many = n;
  world->now.life = truth->life;
  enter(index, OPERATION_PUBLISH);
  uint32_t done = npi_publish_batch(actor->publisher, &like, payloads, n);
  npi_publisher_flush(actor->publisher);
  leave();
  if (done > n) step_violation("publisher %u published %u of %u", index, done, n);
  truth_published(index, done, 0);
  look_after(&actor->client, &before);
  return done;
}

/* ---- misuse ---------------------------------------------------------------------------------------------- */

static void expect_refused(uint32_t index, int status, int expected, const char *what) {
  if (status == expected) return;
  step_violation("client %u: %s is answered with %d instead of %d", index, what, status, expected);
}

/* One of the tokens that belong to this program's own events. */
static int is_own_loan(const struct step_actor *actor, const struct np_event *event) {
  for (uint32_t i = 0; i < actor->n_loans; i++) {
    if (actor->loans[i].token[0] == event->token[0]) return 1;
  }
  for (uint32_t i = 0; i < actor->n_hoarded; i++) {
    if (actor->hoarded[i] == event->token[0]) return 1;
  }
  return 0;
}

static int is_own_held(const struct step_actor *actor, const struct np_event *event) {
  for (uint32_t i = 0; i < actor->n_held; i++) {
    const struct np_event *held = &actor->held[i].event;
    if (held->token[0] == event->token[0] && held->token[1] == event->token[1]) return 1;
  }
  return 0;
}

static uint32_t misuse_loan(uint32_t index, uint64_t *random) {
  struct step_actor *actor = step_actor(index);
  struct np_event event = actor->stale;
  uint8_t nowhere[STEP_PAYLOAD_BYTES];
  const char *what = "an event that was published before";
  if (actor->publisher == NULL) return 0;
  if (step_below(random, 2) == 0 || event.size == 0) {
    what = "a forged loan";
    if (actor->n_loans > 0) event = actor->loans[step_below(random, actor->n_loans)];
    event.token[0] ^= UINT64_C(1) << step_below(random, 64);
    if (step_below(random, 4) == 0) event.token[0] = step_random(random);
  }
  event.data = nowhere;
  event.size = sizeof nowhere;
  if (is_own_loan(actor, &event)) return 0;
  int discards = step_below(random, 2) == 0;
  enter(index, OPERATION_MISUSE);
  int status = discards ? np_discard(actor->publisher, &event) : np_publish(actor->publisher, &event);
  leave();
  expect_refused(index, status, NP_ERR_MISUSE, what);
  return 1;
}

static uint32_t misuse_held(uint32_t index, uint64_t *random) {
  struct step_actor *actor = step_actor(index);
  struct np_event event = actor->stale;
  const char *what = "an event that was released before";
  int status;
  if (actor->subscriber == NULL) return 0;
  if (actor->n_held > 0 && step_below(random, 8) == 0) {
    enter(index, OPERATION_MISUSE);
    status = np_subscriber_close(actor->subscriber);
    leave();
    int may = 0; /* what it holds may be of a publisher whose lie or end closed the connection; not in this world */
    if (status == NP_OK) may = 1;
    expect_refused(index, status, NP_ERR_STATE, "closing while events are held");
    if (may) actor->subscriber = NULL;
    return 1;
  }
  switch (step_below(random, 3)) {
    case 0: break;
    case 1: {
      uint32_t other = world->options.n_publishers + step_below(random, world->options.n_subscribers);
      const struct step_actor *neighbour = step_actor(other);
      what = "an event of another subscriber";
      if (neighbour->n_held > 0) event = neighbour->held[step_below(random, neighbour->n_held)].event;
      break;
    }
    default:
      what = "a forged event";
      if (actor->n_held > 0) event = actor->held[step_below(random, actor->n_held)].event;
      event.token[step_below(random, 2)] ^= UINT64_C(1) << step_below(random, 64);
      if (step_below(random, 4) == 0) event.token[step_below(random, 2)] = step_random(random);
  }
  if (is_own_held(actor, &event)) return 0;
  event.data = &event;
  enter(index, OPERATION_MISUSE);
  status = np_release(actor->subscriber, &event);
  leave();
  expect_refused(index, status, NP_ERR_MISUSE, what);
  return 1;
}

uint32_t program_misuse(uint32_t index, uint64_t *random) {
  return step_is_publisher(index) ? misuse_loan(index, random) : misuse_held(index, random);
}

uint32_t program_outstanding(uint32_t index) {
  const struct np_client *client = &step_actor(index)->client;
  uint32_t n = 0;
  for (uint32_t i = 0; i < client->n_links; i++) {
    const struct npi_link *link = client->links[i];
    if (link != NULL && link->role == NPI_ROLE_PUBLISHER) n += link->outlet.entry->outstanding;
  }
  return n;
}

/* ---- the checker ------------------------------------------------------------------------------------- */

static void report(void *context, const char *finding) {
  step_violation("checker, publisher %u: %s", *(const uint32_t *)context, finding);
}

static const struct npi_link *link_of(uint32_t actor, uint32_t connection) {
  const struct np_client *client = &step_actor(actor)->client;
  for (uint32_t i = 0; i < client->n_links; i++) {
    const struct npi_link *link = client->links[i];
    if (link != NULL && link->connection == connection && link->version == world->connections[connection].version) {
      return link;
    }
  }
  return NULL;
}

void program_check(uint32_t index) {
  const struct step_actor *actor = step_actor(index);
  uint64_t n_free, n_loaned, n_out;
  npi_check_pool(&actor->client.pool, report, &index);
  for (uint32_t i = 0; i < world->n_connections; i++) {
    const struct step_connection *connection = &world->connections[i];
    const struct npi_link *ours = connection->used && connection->publisher == index ? link_of(index, i) : NULL;
    if (ours == NULL) continue;
    const struct npi_link *theirs =
        step_actor(connection->subscriber)->is_dead ? NULL : link_of(connection->subscriber, i);
    struct npi_check_subscriber subscriber = {connection->start, connection->start};
    if (theirs != NULL) subscriber = (struct npi_check_subscriber){theirs->inlet.taken, theirs->inlet.returned};
    /* A subscriber that closed has no positions any more; one that did not yet make its end has those of the start. */
    int has_closed = theirs == NULL && (connection->subscriber_made || !connection->subscriber_holds);
    npi_check_connection(&actor->client.pool.ledger, ours->outlet.entry, ours->outlet.block,
                         step_ring(connection->subscriber, connection->subscriber_ring), STEP_CAPACITY,
                         has_closed ? NULL : &subscriber, report, &index);
    if (ours->outlet.entry->outstanding > connection->limit) {
      step_violation("publisher %u: %u are out on connection %u, and its limit is %u", index,
                     ours->outlet.entry->outstanding, i, connection->limit);
    }
  }
  npi_pool_count(&actor->client.pool, &n_free, &n_loaned, &n_out);
  if (n_loaned != actor->n_loans + actor->n_hoarded) {
    step_violation("publisher %u: %llu slots are on loan, and its program has %u", index, (unsigned long long)n_loaned,
                   actor->n_loans);
  }
}
