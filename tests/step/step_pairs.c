/* SPDX-License-Identifier: Apache-2.0 */
/*
 * two_processes_in_every_order: a publisher and a subscriber of one connection, each inside a call of the library, are
 * made to take turns at any access to memory that both see. The library is compiled so that each of its accesses comes
 * by here first (the hooks of ThreadSanitizer, without it); two coroutines are the two processes.
 *
 *   pairs     for each state, each pair of operations: every order with at most two changes between the two; where
 *             there are more than ORDERS_MOST, as many of them, drawn
 *   random    up to three operations each, changes drawn at every access
 *
 * After each order, nothing is left to be woken; then the world is run to its end and counted as in step_points: slots
 * lost, slots twice, events lost or repeated: none. No operation takes more than STEPS_MOST accesses, whatever the other
 * one is stopped in: nobody waits for anybody.
 *
 * step_pairs [RANDOM_ORDERS [SEED]]     default 100000
 *
 * ctest-timeout: 300
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "step/operations.h"
#include "step/pairs_hooks.h"
#include "step/stepper.h"
#include "step/world.h"

enum {
  STACK_BYTES = 256 * 1024,
  ORDERS_MOST = 100,
  ORDERS_LEAST = 4,
  STATES = 80,
  OPERATIONS_BEFORE = 60,
  STEPS_MOST = 20000
};
enum { PUBLISHER, SUBSCRIBER, LANES };

enum operation {
  PUBLISH,
  PUBLISH_MANY,
  BATCH,
  TICK,
  NEWS,
  CLOSE,
  SLEEP,
  PUBLISHER_OPERATIONS,
  TAKE = PUBLISHER_OPERATIONS,
  RELEASE,
  RELEASE_ANY,
  SUBSCRIBER_NEWS,
  SUBSCRIBER_CLOSE,
  SUBSCRIBER_SLEEP,
  OPERATIONS,
};
static const char *const names[OPERATIONS] = {"publish",
                                              "publish many",
                                              "publish a batch",
                                              "returns, offers",
                                              "news",
                                              "close",
                                              "sleep for credit",
                                              "take",
                                              "release",
                                              "release, any",
                                              "news",
                                              "close",
                                              "sleep"};

struct lane {
  ucontext_t context;
  uint8_t *stack;
  uint32_t actor;
  int operation; /* -1: drawn, up to `most` of them */
  uint32_t most;
  uint64_t random;
  int is_over;
  int last;            /* operation that it began last */
  int running;         /* step_running of it */
  struct step_now now; /* world->now of it */
  uint32_t n_turns;    /* accesses to shared memory so far */
  uint64_t steps;      /* accesses to any memory, of this operation */
};

static struct lane lanes[LANES];
static ucontext_t judge;
static int at_work = -1; /* lane */
static uint64_t most_steps[OPERATIONS], runs[OPERATIONS], pair_orders[PUBLISHER_OPERATIONS][OPERATIONS];

/* The order: who begins, when it gives way, and when the other one does. Or drawn. */
static struct {
  int first;
  uint32_t at[LANES];
  int is_drawn;
  uint64_t random;
} order;
static int n_changes;

/* ---- turns ---- */

static void change_to(int lane) {
  struct lane *from = &lanes[at_work], *to = &lanes[lane];
  from->running = step_running;
  from->now = world->now;
  at_work = lane;
  step_running = to->running;
  world->beside = from->is_over ? (struct step_now){0} : from->now;
  world->now = to->now;
  n_changes++;
  swapcontext(&from->context, &to->context);
}

static int is_time_to_change(const struct lane *lane) {
  if (order.is_drawn) return step_below(&order.random, 4) == 0;
  if (n_changes == 0) return at_work == order.first && lane->n_turns == order.at[at_work];
  if (n_changes == 1) return at_work != order.first && lane->n_turns == order.at[at_work];
  return 0;
}

static void before_access(const void *address, int is_store) {
  (void)is_store;
  if (at_work < 0 || step_running < 0) return; /* not inside a call */
  struct lane *lane = &lanes[at_work];
  if (++lane->steps > STEPS_MOST) {
    step_violation("a call has not come to its end after %d accesses to memory", STEPS_MOST);
    lane->is_over = 1;
    setcontext(&judge);
  }
  if (!step_is_shared(address)) return;
  if (!lanes[1 - at_work].is_over && is_time_to_change(lane)) change_to(1 - at_work);
  lanes[at_work].n_turns++;
}

/* ---- operations ---- */

static int is_possible(const struct step_actor *actor, int operation) {
  const struct np_publisher *publisher = actor->publisher;
  int has_news = actor->queue_head != actor->queue_tail;
  switch (operation) {
    case PUBLISH: return publisher != NULL && actor->n_loans > 0;
    case PUBLISH_MANY:
      return publisher != NULL && actor->n_loans > 1 &&
             (world->options.kind != STEP_GROUP || world->options.group_on_full == NPI_ON_FULL_BLOCK);
    case BATCH:
    case CLOSE:
    case SLEEP: return publisher != NULL;
    case TICK: return 1;
    case NEWS:
    case SUBSCRIBER_NEWS: return has_news;
    case TAKE: return actor->subscriber != NULL && actor->n_held < STEP_HELD;
    case RELEASE: return actor->subscriber != NULL && actor->n_held > 0;
    case RELEASE_ANY: return actor->subscriber != NULL && actor->n_held > 1;
    case SUBSCRIBER_CLOSE: return actor->subscriber != NULL && actor->n_held == 0;
    case SUBSCRIBER_SLEEP: return actor->subscriber != NULL;
    default: return 0;
  }
}

static void perform(uint32_t index, int operation, uint64_t *random) {
  struct step_actor *actor = step_actor(index);
  switch (operation) {
    case PUBLISH: program_publish(index, 0, 1); break;
    case PUBLISH_MANY: program_publish(index, 0, 2); break;
    case BATCH: program_publish_batch(index, 1 + step_below(random, 4)); break;
    case TICK: program_tick(index); break;
    case NEWS:
    case SUBSCRIBER_NEWS: program_news(index); break;
    case CLOSE:
    case SUBSCRIBER_CLOSE: program_close(index); break;
    case SLEEP:
    case SUBSCRIBER_SLEEP: program_sleep(index); break;
    case TAKE: program_take(index); break;
    case RELEASE: program_release(index, 0); break;
    default: program_release(index, 1 + step_below(random, actor->n_held - 1));
  }
}

static void run_one(struct lane *lane, int operation) {
  lane->steps = 0;
  lane->last = operation;
  perform(lane->actor, operation, &lane->random);
  if (most_steps[operation] < lane->steps) most_steps[operation] = lane->steps;
  runs[operation]++;
}

static void lane_main(int number) {
  struct lane *lane = &lanes[number];
  if (lane->operation >= 0) run_one(lane, lane->operation);
  for (uint32_t i = 0; lane->operation < 0 && i < lane->most && shared->n_violations == 0; i++) {
    int from = number == PUBLISHER ? 0 : PUBLISHER_OPERATIONS;
    int n = number == PUBLISHER ? PUBLISHER_OPERATIONS : OPERATIONS - PUBLISHER_OPERATIONS;
    int operation = from + (int)step_below(&lane->random, (uint32_t)n);
    int is_close = operation == CLOSE || operation == SUBSCRIBER_CLOSE;
    if (is_close && step_below(&lane->random, 4) > 0) continue; /* most of what follows would be of no use */
    if (is_possible(step_actor(lane->actor), operation)) run_one(lane, operation);
  }
  lane->is_over = 1;
  if (!lanes[1 - number].is_over) change_to(1 - number);
  setcontext(&judge);
}

/* ---- one order ---- */

static void make_lane(int number) {
  struct lane *lane = &lanes[number];
  lane->is_over = 0;
  lane->last = -1;
  lane->running = -1;
  lane->now = (struct step_now){0};
  lane->n_turns = 0;
  lane->steps = 0;
  getcontext(&lane->context);
  lane->context.uc_stack.ss_sp = lane->stack;
  lane->context.uc_stack.ss_size = STACK_BYTES;
  lane->context.uc_link = NULL;
  makecontext(&lane->context, (void (*)(void))lane_main, 1, number);
}

/* Whoever sleeps in its own epoll has been rung if there is something for it. */
static void check_sleepers(void) {
  const struct step_actor *publisher = step_actor(lanes[PUBLISHER].actor),
                          *subscriber = step_actor(lanes[SUBSCRIBER].actor);
  if (subscriber->subscriber != NULL && subscriber->client.events_bell.state == NPI_BELL_ASLEEP &&
      npi_subscriber_has(subscriber->subscriber) && subscriber->n_rung == subscriber->cleared) {
    step_violation("the subscriber sleeps, an event is there, and nobody wakes it");
  }
  /* What it does after it went to sleep may find the credit without a bell. */
  if (lanes[PUBLISHER].last == SLEEP && publisher->client.credits_bell.state == NPI_BELL_ASLEEP &&
      publisher->publisher->wants_credit && publisher->n_rung_credits == publisher->cleared_credits &&
      npi_flow_may_publish(&publisher->publisher->flow, publisher->publisher->wanted_class)) {
    step_violation("the publisher sleeps for credit, there is credit, and nobody wakes it");
  }
}

static void run_order(uint64_t seed) {
  static volatile int is_back;
  uint32_t publisher = lanes[PUBLISHER].actor;
  step_is_paired = 1;
  make_lane(PUBLISHER);
  make_lane(SUBSCRIBER);
  n_changes = 0;
  is_back = 0;
  getcontext(&judge);
  if (!is_back) {
    is_back = 1;
    at_work = order.first;
    step_running = -1;
    world->beside = world->now = (struct step_now){0};
    setcontext(&lanes[order.first].context);
  }
  at_work = -1;
  step_running = -1;
  world->beside = world->now = (struct step_now){0};
  step_is_paired = 0;
  if (shared->n_violations > 0) return;
  check_sleepers();
  if (shared->n_violations == 0 && step_actor(publisher)->publisher != NULL) program_check(publisher);
  if (shared->n_violations == 0) wind_up(seed);
}

/* ---- states ---- */

/* One publisher, one or two subscribers, somewhere in their lives; 0: none of use. */
static int make_state(uint64_t seed) {
  struct step_options options;
  uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
  shared->world_seed = seed;
  step_random_options(&options, seed);
  options.n_publishers = 1;
  options.n_subscribers = 1 + step_below(&random, 2);
  step_world_begin(&options);
  int is_new = step_below(&random, 4) == 0;
  if (is_new) { /* the first subscriber has yet to hear of the publisher, and that of the second one */
    program_open(1);
    program_open(0);
    if (options.n_subscribers > 1) program_open(2);
  } else {
    step_open_all(&random);
  }
  uint32_t n = is_new ? 0 : step_below(&random, OPERATIONS_BEFORE) + (options.near_wrap ? 320 : 0);
  for (uint32_t i = 0; i < n && shared->n_violations == 0; i++) step_random_operation(&random);
  lanes[PUBLISHER].actor = 0;
  lanes[SUBSCRIBER].actor = 1;
  if (shared->n_violations > 0) return 0;
  for (uint32_t i = 0; i < 2; i++) {
    if (step_actor(i)->is_dead) return 0;
  }
  struct step_actor *publisher = step_actor(0), *subscriber = step_actor(1);
  if (publisher->publisher == NULL || subscriber->subscriber == NULL || world->truth[0].accepted + 32 > STEP_NUMBERS) {
    return 0;
  }
  while (publisher->n_loans < 2 && program_loan(0) == NP_OK) {
  }
  if (step_below(&random, 2) == 0 && subscriber->subscriber != NULL && subscriber->n_held < 4) {
    for (int i = 0; i < 3; i++) program_take(1);
  }
  /* News for the publisher. */
  if (world->n_actors > 2 && !step_actor(2)->is_dead && step_below(&random, 2) == 0) dies_idle(2);
  return shared->n_violations == 0 && step_keep();
}

static uint64_t n_orders[2];

static int again(uint64_t seed) {
  n_orders[order.is_drawn]++;
  run_order(seed);
  if (shared->n_violations > 0) return 0;
  step_put_back();
  return 1;
}

/* A publisher that closes does not hear any more of what a member gives up that closes meanwhile. */
static void note_loss(int publisher, int subscriber) {
  if (publisher == CLOSE && subscriber == SUBSCRIBER_CLOSE) world->truth[0].is_lossy = 1;
}

static void try_pair(int publisher, int subscriber, uint64_t seed, uint64_t *random) {
  uint32_t turns[LANES];
  lanes[PUBLISHER].operation = publisher;
  lanes[SUBSCRIBER].operation = subscriber;
  order.is_drawn = 0;
  order.first = PUBLISHER;
  order.at[PUBLISHER] = order.at[SUBSCRIBER] = UINT32_MAX; /* one after the other: how many turns has each? */
  lanes[PUBLISHER].random = lanes[SUBSCRIBER].random = seed | 1;
  note_loss(publisher, subscriber);
  if (!again(seed)) return;
  for (int i = 0; i < LANES; i++) turns[i] = lanes[i].n_turns + 1;
  uint64_t all = (uint64_t)turns[0] * turns[1] * 2;
  uint64_t n = all < ORDERS_MOST ? all : ORDERS_MOST;
  for (uint64_t i = 0; i < n; i++) {
    uint64_t which = n == all ? i : step_random(random) % all;
    order.first = (int)(which % 2);
    order.at[0] = (uint32_t)(which / 2 % turns[0]);
    order.at[1] = (uint32_t)(which / 2 / turns[0]);
    lanes[PUBLISHER].random = lanes[SUBSCRIBER].random = seed | 1;
    note_loss(publisher, subscriber);
    if (!again(seed)) return;
    pair_orders[publisher][subscriber]++;
  }
}

static int failed(uint64_t n, uint64_t seed) {
  int publisher = lanes[PUBLISHER].operation, subscriber = lanes[SUBSCRIBER].operation;
  printf("failed: %s\n  world %" PRIu64 ", %s beside %s, %s first, changes at %u and %u; again: step_pairs %" PRIu64
         " %" PRIu64 "\n",
         shared->violation, shared->world_seed, publisher < 0 ? "drawn" : names[publisher],
         subscriber < 0 ? "drawn" : names[subscriber], order.first == PUBLISHER ? "publisher" : "subscriber",
         order.at[0], order.at[1], n, seed);
  return 1;
}

int main(int argc, char **argv) {
  uint64_t random_orders = argc > 1 ? strtoull(argv[1], NULL, 0) : 100000;
  uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() % 1000;
  uint64_t random = seed * 2 + 1, world_number = seed * 1000;
  uint32_t thin = 0;
  printf("seed %" PRIu64 "\n", seed);
  if (step_arena_open() != 0) {
    perror("step_arena_open");
    return 2;
  }
  pairs_hook(before_access);
  for (int i = 0; i < LANES; i++) {
    lanes[i].stack = malloc(STACK_BYTES);
    if (lanes[i].stack == NULL) return 2;
  }
  for (uint32_t states = 0; states < STATES; states += 1) {
    while (!make_state(++world_number) && shared->n_violations == 0) {
    }
    for (int p = 0; p < PUBLISHER_OPERATIONS; p++) {
      for (int s = PUBLISHER_OPERATIONS; s < OPERATIONS; s++) {
        if (shared->n_violations > 0) return failed(random_orders, seed);
        if (is_possible(step_actor(0), p) && is_possible(step_actor(1), s)) try_pair(p, s, world_number, &random);
      }
    }
  }
  if (shared->n_violations > 0) return failed(random_orders, seed);
  order.is_drawn = 1;
  while (n_orders[1] < random_orders) {
    while (!make_state(++world_number) && shared->n_violations == 0) {
    }
    for (uint32_t i = 0; i < 100 && shared->n_violations == 0; i++) {
      order.first = (int)step_below(&random, 2);
      order.random = step_random(&random) | 1;
      for (int k = 0; k < LANES; k++) {
        lanes[k].operation = -1;
        lanes[k].most = 1 + step_below(&random, 3);
        lanes[k].random = step_random(&random) | 1;
      }
      world->truth[0].is_lossy = 1; /* both may close */
      again(order.random);
    }
    if (shared->n_violations > 0) return failed(random_orders, seed);
  }
  for (int i = 0; i < OPERATIONS; i++) {
    printf("%-10s %-18s %9" PRIu64 " times, at most %" PRIu64 " accesses to memory\n",
           i < PUBLISHER_OPERATIONS ? "publisher" : "subscriber", names[i], runs[i], most_steps[i]);
  }
  for (int p = 0; p < PUBLISHER_OPERATIONS; p++) {
    for (int s = PUBLISHER_OPERATIONS; s < OPERATIONS; s++) {
      if (pair_orders[p][s] >= ORDERS_LEAST) continue;
      printf("%s beside %s: %" PRIu64 " orders  TOO FEW\n", names[p], names[s], pair_orders[p][s]);
      thin++;
    }
  }
  printf("%" PRIu64 " orders of pairs with at most two changes, %" PRIu64
         " drawn ones: slots lost 0, slots twice 0, events lost or repeated 0, wake-ups lost 0\n",
         n_orders[0], n_orders[1]);
  return thin > 0;
}
