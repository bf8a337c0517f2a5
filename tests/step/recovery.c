/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process is dead, in the middle of whatever it did: the broker does what it does, the others go on as they
 * always do, until nothing moves any more. Then everything is counted, and everybody publishes once more.
 */
#include "step/accounts.h"
#include "step/operations.h"
#include "step/truth.h"
#include "step/world.h"

enum { ROUNDS_MAX = 200 };

static int is_quiet(uint32_t index) {
  const struct step_actor *actor = step_actor(index);
  return actor->queue_head == actor->queue_tail;
}

static int subscriber_goes_on(uint32_t index, uint64_t *random) {
  struct step_actor *actor = step_actor(index);
  int moved = !is_quiet(index);
  uint32_t most = 1 + step_below(random, 2 * STEP_CAPACITY); /* now and then it takes all before it gives one back */
  program_news(index);
  if (actor->subscriber == NULL) return moved;
  for (uint32_t i = 0; i < most && actor->n_held < STEP_HELD; i++) {
    if (program_take(index) != NP_OK) break;
    moved = 1;
  }
  int in_order = step_below(random, 2) == 0;
  while (actor->n_held > 0) {
    program_release(index, in_order ? 0 : step_below(random, actor->n_held));
    moved = 1;
  }
  return moved;
}

static int publisher_goes_on(uint32_t index) {
  uint32_t out = program_outstanding(index);
  const struct step_actor *actor = step_actor(index);
  uint32_t waiting = actor->publisher == NULL ? 0 : actor->publisher->flow.n_waiting;
  int moved = !is_quiet(index);
  program_tick(index);
  return moved || out != program_outstanding(index) ||
         waiting != (actor->publisher == NULL ? 0 : actor->publisher->flow.n_waiting);
}

/* Everybody who lives does what there is to do, in an order drawn each time, until nothing moves. */
static void settle(uint64_t *random) {
  int moved = 1;
  for (int round = 0; moved && shared->n_violations == 0; round++) {
    uint32_t first = step_below(random, world->n_actors);
    moved = 0;
    for (uint32_t i = 0; i < world->n_actors; i++) {
      uint32_t index = (first + i) % world->n_actors;
      if (step_actor(index)->is_dead) continue;
      moved |= step_is_publisher(index) ? publisher_goes_on(index) : subscriber_goes_on(index, random);
    }
    if (round == ROUNDS_MAX) {
      step_violation("the living do not come to rest in %d rounds", ROUNDS_MAX);
      return;
    }
  }
}

static void check_all(void) {
  for (uint32_t i = 0; i < world->options.n_publishers && shared->n_violations == 0; i++) {
    const struct step_actor *actor = step_actor(i);
    uint64_t n_free, n_loaned, n_out;
    if (actor->is_dead) continue;
    program_check(i);
    npi_pool_count(&actor->client.pool, &n_free, &n_loaned, &n_out);
    uint32_t waiting = actor->publisher == NULL ? 0 : actor->publisher->flow.n_waiting;
    if (n_out != waiting || program_outstanding(i) != 0) {
      step_violation("publisher %u: %llu slots are still out, %u of them wait, though all was given back: lost", i,
                     (unsigned long long)n_out, waiting);
    }
  }
  if (shared->n_violations == 0) truth_check_complete();
}

/* Who lives can still publish and take. */
static void publish_once_more(void) {
  for (uint32_t i = 0; i < world->options.n_publishers; i++) {
    struct step_actor *actor = step_actor(i);
    if (actor->is_dead || actor->publisher == NULL || world->truth[i].accepted + 1 >= STEP_NUMBERS) continue;
    if (actor->n_loans == STEP_LOANS) program_discard(i, 0);
    if (program_loan(i) != NP_OK) {
      if (actor->publisher->flow.n_waiting > 0) continue; /* its slots wait for a member */
      step_violation("publisher %u has no slot for another event, and nothing is out", i);
      return;
    }
    int status = program_publish(i, actor->n_loans - 1, 1);
    int may_be_full = world->options.kind == STEP_GROUP && actor->publisher->flow.n_members == 0;
    if (status != NP_OK && !may_be_full) {
      step_violation("publisher %u cannot publish, and nothing is out", i);
      return;
    }
  }
}

static void dies(uint32_t actor, int was_now) {
  truth_actor_died(actor, was_now);
  accounts_actor_gone(actor);
  step_actor(actor)->is_dead = 1;
  broker_actor_gone(actor);
}

void dies_idle(uint32_t actor) {
  world->died = (struct step_now){.actor = actor};
  dies(actor, 0);
}

/* What was left by a publisher that died in a publish: elements stored for how many of its connections? */
static void classify_publish(struct step_outcomes *outcomes, const uint32_t *next_before) {
  uint32_t n = 0, n_seen = 0;
  for (uint32_t i = 0; i < world->n_connections; i++) {
    const struct step_connection *connection = &world->connections[i];
    if (next_before[i] == UINT32_MAX || step_actor(connection->subscriber)->is_dead) continue;
    n++;
    n_seen += connection->next > world->died.number;
  }
  if (n_seen == 0) {
    outcomes->publisher_before++;
  } else if (n_seen == n) {
    outcomes->publisher_after++;
  } else {
    outcomes->publisher_between++;
  }
}

void wind_up(uint64_t seed) {
  uint64_t random = seed | 1;
  settle(&random);
  if (shared->n_violations == 0) check_all();
  if (shared->n_violations == 0) publish_once_more();
  if (shared->n_violations == 0) settle(&random);
  if (shared->n_violations == 0) check_all();
}

static uint64_t came_again(void) {
  uint64_t n = 0;
  for (uint32_t i = 0; i < world->options.n_publishers; i++) {
    const struct np_client *client = &step_actor(i)->client;
    const struct npi_endpoint_counters *counters = (const void *)(client->page + client->endpoints_offset);
    n += npi_load_relaxed_u64(&counters->value[NPI_PUBLISHER_REDELIVERED]);
  }
  return n;
}

void recover(uint64_t seed, struct step_outcomes *outcomes) {
  uint64_t random = seed | 1;
  struct step_now now = world->now;
  uint32_t next_before[STEP_CONNECTIONS];
  uint32_t dead = now.actor;
  int is_publisher = step_is_publisher(dead);
  uint64_t again = came_again();
  for (uint32_t i = 0; i < world->n_connections; i++) {
    const struct step_connection *connection = &world->connections[i];
    next_before[i] = UINT32_MAX;
    if (connection->used && connection->publisher == dead && connection->publisher_made)
      next_before[i] = connection->next;
  }
  for (uint32_t i = 0; i < world->n_actors; i++) step_actor(i)->last_again = 0;
  uint32_t asleep = 0;
  for (uint32_t i = world->options.n_publishers; i < world->n_actors && is_publisher; i++) {
    asleep += step_actor(i)->client.events_bell.state == NPI_BELL_ASLEEP;
  }
  world->died = now;
  dies(dead, 1);
  if (world->n_actors > 2 && step_below(&random, 16) == 0) {
    uint32_t second = step_below(&random, world->n_actors);
    if (!step_actor(second)->is_dead) {
      uint32_t first = step_below(&random, world->n_actors);
      if (!step_actor(first)->is_dead && first != second && !step_is_publisher(first)) {
        subscriber_goes_on(first, &random);
      }
      dies(second, 0);
      outcomes->two_deaths++;
    }
  }
  settle(&random);
  if (shared->n_violations == 0) check_all();
  if (shared->n_violations == 0) {
    if (now.operation == OPERATION_PUBLISH) classify_publish(outcomes, next_before);
    if (now.operation == OPERATION_RELEASE && world->options.kind == STEP_GROUP) {
      if (world->died_before) {
        outcomes->release_before++; /* it is given back once more, by another */
      } else {
        outcomes->release_after++;
      }
    }
    outcomes->slept_across += asleep > 0;
    outcomes->came_again += came_again() - again;
  }
  if (shared->n_violations == 0) publish_once_more();
  if (shared->n_violations == 0) settle(&random);
  if (shared->n_violations == 0) check_all();
}
