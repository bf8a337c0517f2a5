/* SPDX-License-Identifier: Apache-2.0 */
#include "step/operations.h"

#include <string.h>

#include "step/stepper.h"

const char *const step_path_names[PATH_COUNT] = {[PATH_NONE] = "",
#define ROW(name, text) [PATH_##name] = (text),
                                                 STEP_PATHS(ROW)
#undef ROW
};

void step_random_options(struct step_options *options, uint64_t seed) {
  static const uint32_t limits[] = {1, 2, 3, 5, STEP_CAPACITY, STEP_CAPACITY, STEP_CAPACITY, STEP_CAPACITY};
  uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
  for (int i = 0; i < 4; i++) step_random(&random);
  memset(options, 0, sizeof *options);
  options->seed = seed;
  options->kind = step_below(&random, 5) < 3 ? STEP_BROADCAST : STEP_GROUP;
  options->group_on_full = step_below(&random, 4) == 0 ? NPI_ON_FULL_DROP_NEWEST : NPI_ON_FULL_BLOCK;
  options->n_publishers = step_below(&random, 4) == 0 ? 2 : 1;
  options->n_subscribers = 1 + step_below(&random, 3) + (options->kind == STEP_GROUP);
  if (step_below(&random, 6) == 0) {
    options->n_publishers = 1;
    options->n_subscribers = STEP_SUBSCRIBERS;
  }
  options->chunks = step_below(&random, 4) == 0 ? 2 : 1;
  options->near_wrap = step_below(&random, 8) == 0 ? 1 + step_below(&random, 2) : 0;
  options->limit = limits[step_below(&random, NPI_ARRAY_COUNT(limits))];
  if (options->kind == STEP_GROUP && step_below(&random, 2)) options->limit = 1 + step_below(&random, 3);
  options->sleepers = step_below(&random, 4) == 0;
  options->hoarded = step_below(&random, 5) == 0 ? 26 : 0;
  if (options->hoarded > 0) options->chunks = 1;
  options->publishers_share = step_below(&random, 2) == 0 ? 50 : 75;
  uint32_t drops = step_below(&random, 2) == 0, taps = step_below(&random, 2);
  for (uint32_t i = 0; i < options->n_subscribers; i++) {
    options->on_full[i] = drops && step_below(&random, 2) ? NPI_ON_FULL_DROP_NEWEST : NPI_ON_FULL_BLOCK;
    if (options->kind == STEP_GROUP && taps && i > 0 && step_below(&random, 2)) options->flags[i] = NPI_SUBSCRIBER_TAP;
  }
}

void step_open_all(uint64_t *random) {
  uint32_t first = step_below(random, world->n_actors);
  /* In some worlds subscribers come later, one by one. */
  int late = step_below(random, 6) == 0;
  for (uint32_t i = 0; i < world->n_actors; i++) {
    uint32_t index = (first + i) % world->n_actors;
    if (step_is_publisher(index) || !late) program_open(index);
  }
}

/* ---- paths --------------------------------------------------------------------------------------------- */

static enum step_path path_of_publish(const struct np_publisher *publisher, int status, uint64_t reaped, uint32_t rung,
                                      uint64_t dropped) {
  const struct npi_flow *flow = &publisher->flow;
  if (status == NP_FULL) return PATH_PUBLISH_FULL;
  if (rung > 0) return PATH_PUBLISH_WAKE;
  if (reaped > 0) return PATH_PUBLISH_REAP;
  if (flow->n_outlets == 0) return PATH_PUBLISH_NOBODY;
  if (flow->kind == NPI_CHANNEL_GROUP) {
    if (flow->n_members == 0 || dropped > 0) return PATH_PUBLISH_GROUP_NONE;
    return flow->n_members < flow->n_outlets ? PATH_PUBLISH_GROUP_TAP : PATH_PUBLISH_GROUP;
  }
  if (dropped > 0) return PATH_PUBLISH_DROP;
  return flow->n_outlets == 1   ? PATH_PUBLISH_UNICAST
         : flow->n_outlets == 2 ? PATH_PUBLISH_BROADCAST_2
         : flow->n_outlets < 8  ? PATH_PUBLISH_BROADCAST_3
                                : PATH_PUBLISH_BROADCAST_8;
}

static uint64_t returned(const struct np_client *client) {
  uint64_t n = 0;
  for (uint32_t i = 0; i < client->n_links; i++) {
    const struct npi_link *link = client->links[i];
    if (link != NULL && link->role == NPI_ROLE_PUBLISHER) n += link->outlet.entry->returned;
  }
  return n;
}

static uint32_t rung_by(uint32_t publisher) {
  uint32_t n = 0;
  (void)publisher;
  for (uint32_t i = world->options.n_publishers; i < world->n_actors; i++) n += step_actor(i)->n_rung;
  return n;
}

static uint32_t credits_rung(void) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < world->options.n_publishers; i++) n += step_actor(i)->n_rung_credits;
  return n;
}

static uint32_t links(const struct np_client *client) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < client->n_links; i++) n += client->links[i] != NULL;
  return n;
}

/* ---- operations ---------------------------------------------------------------------------------------- */

static void publish(uint32_t index, uint64_t *random) {
  struct step_actor *actor = step_actor(index);
  const struct np_publisher *publisher = actor->publisher;
  uint64_t before = returned(&actor->client);
  uint64_t dropped = npi_load_relaxed_u64(&publisher->flow.counters->value[NPI_PUBLISHER_DROPPED_NO_CREDIT]);
  uint32_t rung = rung_by(index);
  uint32_t many = actor->n_loans > 1 && step_below(random, 4) == 0 ? 2 : 1;
  /* Which of two a group dropped, nobody can tell afterwards. */
  if (world->options.kind == STEP_GROUP && world->options.group_on_full != NPI_ON_FULL_BLOCK) many = 1;
  uint32_t row = step_below(random, actor->n_loans - many + 1);
  int status = program_publish(index, row, many);
  if (many > 1) {
    shared->path = PATH_PUBLISH_MANY;
    return;
  }
  shared->path = path_of_publish(
      publisher, status, returned(&actor->client) - before, rung_by(index) - rung,
      npi_load_relaxed_u64(&publisher->flow.counters->value[NPI_PUBLISHER_DROPPED_NO_CREDIT]) - dropped);
}

static void batch(uint32_t index, uint64_t *random) {
  uint32_t n = 1 + step_below(random, 4);
  program_publish_batch(index, n);
  shared->path = world->options.kind == STEP_GROUP ? PATH_PUBLISH_BATCH_GROUP : PATH_PUBLISH_BATCH;
}

static void loan(uint32_t index) {
  struct step_actor *actor = step_actor(index);
  uint32_t before = actor->client.pool.ledger.segments[0].chunks_free;
  int status = program_loan(index);
  shared->path = status == NP_EMPTY                                            ? PATH_LOAN_DRY
                 : actor->client.pool.ledger.segments[0].chunks_free != before ? PATH_LOAN_CARVE
                                                                               : PATH_LOAN;
}

static void news(uint32_t index) {
  const struct step_actor *actor = step_actor(index);
  uint32_t n_links = links(&actor->client), out = step_is_publisher(index) ? program_outstanding(index) : 0;
  uint32_t waiting = actor->publisher == NULL ? 0 : actor->publisher->flow.n_waiting;
  uint64_t redelivered = 0, redelivered_before = 0;
  int has_news = actor->queue_head != actor->queue_tail;
  const struct npi_endpoint_counters *counters = (const void *)(actor->client.page + actor->client.endpoints_offset);
  redelivered_before = npi_load_relaxed_u64(&counters->value[NPI_PUBLISHER_REDELIVERED]);
  program_news(index);
  redelivered = npi_load_relaxed_u64(&counters->value[NPI_PUBLISHER_REDELIVERED]);
  uint32_t now = links(&actor->client);
  if (!has_news) {
    shared->path = PATH_IDLE;
  } else if (!step_is_publisher(index)) {
    shared->path = now > n_links ? PATH_ATTACH_INLET : now < n_links ? PATH_DETACH_INLET : PATH_DETACH_INLET_LATER;
  } else if (now > n_links) {
    shared->path = PATH_ATTACH_OUTLET;
  } else if (redelivered != redelivered_before ||
             (actor->publisher != NULL && actor->publisher->flow.n_waiting != waiting)) {
    shared->path = PATH_DETACH_OUTLET_AGAIN;
  } else {
    shared->path = program_outstanding(index) != out ? PATH_DETACH_OUTLET_BACK : PATH_DETACH_OUTLET;
  }
}

static void tick(uint32_t index) {
  const struct step_actor *actor = step_actor(index);
  uint32_t waiting = actor->publisher == NULL ? 0 : actor->publisher->flow.n_waiting;
  uint64_t before = returned(&actor->client);
  program_tick(index);
  shared->path = actor->publisher != NULL && actor->publisher->flow.n_waiting < waiting ? PATH_REDELIVERY
                 : returned(&actor->client) != before                                   ? PATH_RETURNS
                                                                                        : PATH_IDLE;
}

static void publisher_does(uint32_t index, uint64_t *random) {
  struct step_actor *actor = step_actor(index);
  const struct step_truth *truth = &world->truth[index];
  int has_news = actor->queue_head != actor->queue_tail;
  uint32_t what = step_below(random, 100);
  if (actor->publisher == NULL) {
    /* It opens again when its former life is over, so that payloads of one life are on the way only. */
    if (links(&actor->client) == 0 && !has_news) {
      program_open(index);
      shared->path = PATH_OPEN_PUBLISHER;
    } else if (has_news) {
      news(index);
    } else {
      tick(index);
    }
    return;
  }
  if (truth->accepted + 8 >= STEP_NUMBERS || what == 0) {
    program_close(index);
    shared->path = PATH_CLOSE_PUBLISHER;
  } else if (has_news && what < 50) {
    news(index);
  } else if (what < 36 && actor->n_loans > 0) {
    program_discard(index, step_below(random, actor->n_loans));
    shared->path = PATH_DISCARD;
  } else if (what < (actor->publisher->flow.n_waiting > 0 ? 70 : 44)) {
    tick(index);
  } else if (what < 48) {
    program_misuse(index, random);
    shared->path = PATH_MISUSE;
  } else if (what < 53) {
    batch(index, random);
  } else if (what < 56 && world->options.sleepers) {
    program_sleep(index);
    shared->path = PATH_SLEEP;
  } else if (actor->n_loans == 0 || (actor->n_loans < STEP_LOANS && what < 68)) {
    loan(index);
  } else {
    publish(index, random);
  }
}

static void release(uint32_t index, uint64_t *random) {
  const struct step_actor *actor = step_actor(index);
  uint32_t row = step_below(random, 2) == 0 ? 0 : step_below(random, actor->n_held);
  uint32_t n_links = links(&actor->client), rung = credits_rung();
  program_release(index, row);
  shared->path = links(&actor->client) < n_links ? PATH_RELEASE_LAST
                 : credits_rung() != rung        ? PATH_RELEASE_WAKE
                 : row == 0                      ? PATH_RELEASE
                                                 : PATH_RELEASE_ANY;
}

static void subscriber_does(uint32_t index, uint64_t *random) {
  struct step_actor *actor = step_actor(index);
  int has_news = actor->queue_head != actor->queue_tail;
  uint32_t what = step_below(random, 100);
  if (actor->subscriber == NULL) {
    if (has_news && what < 50) {
      news(index);
    } else if (what % 4 == 0) {
      program_open(index);
      shared->path = PATH_OPEN_SUBSCRIBER;
    }
    return;
  }
  if (what < 5 && actor->n_held == 0) {
    program_close(index);
    shared->path = PATH_CLOSE_SUBSCRIBER;
  } else if (has_news && what < 50) {
    news(index);
  } else if (what < 8) {
    program_misuse(index, random);
    shared->path = PATH_MISUSE;
  } else if (what < 36 && world->options.sleepers) {
    program_sleep(index);
    shared->path = PATH_SLEEP;
  } else if (actor->n_held > 0 && what < 66) {
    release(index, random);
  } else if (actor->n_held < STEP_HELD) {
    uint32_t n_links = links(&actor->client);
    int status = program_take(index);
    shared->path = status == NP_OK ? (actor->client.n_links > 0 && n_links > 1 ? PATH_TAKE_TURN : PATH_TAKE)
                   : links(&actor->client) < n_links ? PATH_TAKE_LAST
                                                     : PATH_TAKE_EMPTY;
  } else {
    release(index, random);
  }
}

int step_make_scarce(uint64_t *random) {
  uint32_t first = world->options.n_publishers, n = world->options.n_subscribers;
  if (world->options.kind != STEP_GROUP || n < 2) return 0;
  for (uint32_t i = 0; i < world->n_actors; i++) program_news(i);
  for (uint32_t i = 0; i < 4 * STEP_CAPACITY; i++) {
    struct step_actor *publisher = step_actor(0);
    if (publisher->publisher == NULL || publisher->is_dead) return 0;
    if (publisher->n_loans == 0 && program_loan(0) != NP_OK) break;
    if (program_publish(0, 0, 1) != NP_OK) break;
  }
  for (uint32_t i = first; i < world->n_actors; i++) {
    const struct step_actor *actor = step_actor(i);
    for (uint32_t k = step_below(random, 4); k > 0 && actor->subscriber != NULL && !actor->is_dead; k--)
      program_take(i);
  }
  uint32_t victim = first + step_below(random, n);
  if (!step_actor(victim)->is_dead) dies_idle(victim);
  if (step_below(random, 2) == 0) return 0;
  /* Its events wait already, and there is credit for one or the other. */
  program_news(0);
  for (uint32_t i = first; i < world->n_actors; i++) {
    const struct step_actor *actor = step_actor(i);
    if (!actor->is_dead && actor->n_held > 0 && step_below(random, 4) > 0) program_release(i, 0);
  }
  return step_actor(0)->publisher->flow.n_waiting > 0;
}

void step_offer(uint64_t *random) {
  (void)random;
  tick(0);
}

void step_random_operation(uint64_t *random) {
  /* Publishers come up as often as all their subscribers together, or more: credits shall be short in some worlds. */
  uint32_t n_publishers = world->options.n_publishers;
  uint32_t index = step_below(random, 100) < world->options.publishers_share
                       ? step_below(random, n_publishers)
                       : n_publishers + step_below(random, world->options.n_subscribers);
  shared->path = PATH_NONE;
  if (step_actor(index)->is_dead) return;
  if (step_below(random, world->options.near_wrap ? 400 : 100) == 0 && world->n_actors > 2) {
    dies_idle(index);
    return;
  }
  if (step_is_publisher(index)) {
    publisher_does(index, random);
  } else {
    subscriber_does(index, random);
  }
  shared->operations++;
  if (shared->n_violations == 0) {
    for (uint32_t i = 0; i < n_publishers; i++) {
      if (!step_actor(i)->is_dead) program_check(i);
    }
  }
}
