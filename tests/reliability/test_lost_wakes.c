/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A wake-up lost with its sender: a publisher is stepped into np_publish until its element is in the ring of a
 * subscriber that sleeps, then a few instructions further, at most to the system call that would wake it. There it is
 * killed: the subscriber has the event soon all the same, as the broker rings for the dead. Or it is stopped: who sleeps
 * in np_wait looks after at most 50 ms; for who sleeps in an epoll of its own (np_fd) the broker looks, four times a
 * second. The other way round, a subscriber is stopped between giving a credit back and waking its publisher.
 *
 * LOST_WAKES and LOST_WAKES_SEED in the environment choose another length and another order.
 *
 * ctest-labels: alone
 * ctest-timeout: 200
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "os/os_clock.h"
#include "support/instance.h"
#include "support/peers.h"
#include "support/single_step.h"
#include "support/times.h"

enum { ROUNDS = 1000, RUNS = 3, STOPPED_OF = 8, STEPS_MAX = 160, FORMS = 2 };
enum { NP_WAIT, NP_FD };
enum { KILLED_MS_MAX = 20, LOST_AFTER_S = 10, CREDIT_ROUNDS = 8 };

static const char *const form_names[FORMS] = {"np_wait", "np_fd"};
static const uint64_t stopped_ms_max[FORMS] = {60, 300};

struct sleeper {
  int form;
  _Atomic int ready, failed;
  _Atomic uint64_t number, taken_ns; /* of the last event */
};

struct caller {
  int form;
  uint64_t number;
  _Atomic int ready, published;
  const volatile void *element, *bell; /* in its memory */
};

static uint64_t random_state;
static uint32_t draw(uint32_t n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)((random_state >> 20) % n);
}

/* ---- the two processes ---- */

static int sleeper_body(void *argument) {
  struct sleeper *sleeper = argument;
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_event event;
  int set = epoll_create1(EPOLL_CLOEXEC);
  if (np_connect(&client, NULL) != NP_OK ||
      np_subscriber_open(client, form_names[sleeper->form], NULL, &subscriber) != NP_OK) {
    return 1;
  }
  struct epoll_event any = {.events = EPOLLIN};
  if (sleeper->form == NP_FD && epoll_ctl(set, EPOLL_CTL_ADD, np_fd(subscriber), &any) != 0) return 2;
  sleeper->ready = 1;
  for (;;) {
    int status;
    while ((status = np_take(subscriber, &event)) == NP_OK) {
      uint64_t number = 0;
      memcpy(&number, event.data, sizeof number);
      sleeper->taken_ns = npi_clock_monotonic();
      sleeper->number = number;
      np_release(subscriber, &event);
    }
    if (status != NP_EMPTY) sleeper->failed = status;
    if (sleeper->form == NP_WAIT) {
      np_wait(subscriber, -1);
    } else {
      epoll_wait(set, &any, 1, -1);
    }
  }
}

static int caller_body(void *argument) {
  struct caller *caller = argument;
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_event event;
  if (np_connect(&client, NULL) != NP_OK ||
      np_publisher_open(client, form_names[caller->form], NULL, &publisher) != NP_OK ||
      publisher->flow.n_outlets != 1 || np_loan(publisher, sizeof caller->number, &event) != NP_OK) {
    return 1;
  }
  memcpy(event.data, &caller->number, sizeof caller->number);
  const struct npi_outlet *outlet = publisher->flow.outlets[0];
  caller->element = &outlet->submissions.element[outlet->entry->submitted & outlet->submissions.mask];
  caller->bell = &outlet->bell->shm->word;
  while ((uint32_t)npi_load_acquire_u64(&outlet->bell->shm->word) != NPI_BELL_ASLEEP) usleep(20);
  caller->ready = 1;
  step_me();
  if (np_publish(publisher, &event) != NP_OK) return 2;
  caller->published = 1;
  for (;;) pause();
}

/* ---- rounds ---- */

struct times {
  uint64_t ns[ROUNDS];
  uint32_t n;
};

/* p99 in ns; prints. */
static uint64_t judge(struct times *times, int run, const char *what, const char *form) {
  if (times->n == 0) return 0;
  times_sort(times->ns, times->n);
  uint64_t p99 = times->ns[(uint64_t)times->n * 99 / 100];
  say("lost wakes, run %d: %s, %s: awake after p50 %.2f ms, p99 %.2f ms, longest %.2f ms, of "
      "%u\n",
      run, what, form, (double)times->ns[times->n / 2] / 1e6, (double)p99 / 1e6, (double)times->ns[times->n - 1] / 1e6,
      times->n);
  return p99;
}

/* 1: its element is in the ring, the other sleeps and is not woken. 0: it woke by itself in between, or was woken. */
static int step_into(pid_t pid, const struct caller *caller) {
  uint64_t before = step_peek(pid, caller->element);
  while (step_peek(pid, caller->element) == before) cr_assert(step_once(pid), "the publisher ended");
  for (uint32_t i = draw(STEPS_MAX); i > 0 && step_next_call(pid) != SYS_write; i--) {
    cr_assert(step_once(pid), "the publisher ended");
  }
  return !caller->published && (uint32_t)step_peek(pid, caller->bell) == NPI_BELL_ASLEEP;
}

Test(lost_wakes, a_wake_up_lost_with_its_sender, .timeout = 190) {
  const char *rounds_text = getenv("LOST_WAKES"), *seed_text = getenv("LOST_WAKES_SEED");
  uint32_t rounds = rounds_text != NULL ? (uint32_t)atoi(rounds_text) : ROUNDS;
  random_state = seed_text != NULL ? strtoull(seed_text, NULL, 0) : (uint64_t)time(NULL) * 2 + 1;
  if (rounds > ROUNDS) rounds = ROUNDS;
  say("lost wakes: seed %llu\n", (unsigned long long)random_state);
  static struct instance instance;
  static struct times times[2][FORMS]; /* killed, stopped */
  struct sleeper *sleepers = shared_memory(FORMS * sizeof *sleepers);
  struct caller *caller = shared_memory(sizeof *caller);
  uint64_t best[2][FORMS], begin = npi_clock_monotonic(), number = 0;
  pid_t pids[FORMS];
  uint32_t n_lost = 0, n_again = 0;
  memset(best, 0xff, sizeof best);
  instance_start(&instance, "channels: [ { name: np_wait, kind: broadcast }, { name: np_fd, kind: broadcast } ]\n",
                 NULL);
  {
    for (int form = 0; form < FORMS; form++) {
      sleepers[form].form = form;
      pids[form] = spawn(sleeper_body, &sleepers[form]);
      EVENTUALLY(20, sleepers[form].ready);
    }
  }
  for (int run = 0; run < RUNS; run++) {
    memset(times, 0, sizeof times);
    for (uint32_t i = 0; i < rounds / RUNS; i++) {
      int form = (int)(i % FORMS), is_stopped = i / FORMS % STOPPED_OF == 0;
      struct sleeper *sleeper = &sleepers[form];
      *caller = (struct caller){.form = form, .number = ++number};
      pid_t pid = spawn(caller_body, caller);
      cr_assert(step_wait(pid), "the publisher of round %u ended", i);
      int is_lost = step_into(pid, caller);
      uint64_t from = npi_clock_monotonic();
      if (is_stopped) {
        step_stop(pid);
      } else {
        step_kill(pid);
      }
      while (sleeper->number != number && npi_clock_monotonic() - from < LOST_AFTER_S * UINT64_C(1000000000)) {
        usleep(50);
      }
      cr_assert_eq(sleeper->number, number, "round %u, publisher %s: the event did not come to who sleeps in %s", i,
                   is_stopped ? "stopped" : "killed", form_names[form]);
      cr_assert_eq(sleeper->failed, 0);
      if (is_stopped) step_kill(pid);
      uint64_t taken = sleeper->taken_ns;
      n_lost += (uint32_t)is_lost;
      n_again += !is_lost;
      if (!is_lost) continue;
      struct times *row = &times[is_stopped][form];
      row->ns[row->n++] = taken > from ? taken - from : 0;
    }
    for (int how = 0; how < 2; how++) {
      for (int form = 0; form < FORMS; form++) {
        uint64_t p99 =
            judge(&times[how][form], run, how == 0 ? "publisher killed" : "publisher stopped", form_names[form]);
        if (p99 < best[how][form]) best[how][form] = p99;
      }
    }
  }
  say("lost wakes: %u wake-ups lost with their sender, %u subscribers awake by themselves at that moment, in %.1f s: "
      "each "
      "event was taken\n",
      n_lost, n_again, (double)(npi_clock_monotonic() - begin) / 1e9);
  cr_assert(n_lost >= rounds * 8 / 10, "only %u wake-ups were lost", n_lost);
  for (int form = 0; form < FORMS; form++) {
    cr_expect(best[0][form] <= KILLED_MS_MAX * UINT64_C(1000000), "%s: %.2f ms after death", form_names[form],
              (double)best[0][form] / 1e6);
    cr_expect(best[1][form] <= stopped_ms_max[form] * UINT64_C(1000000), "%s: %.2f ms after the stop", form_names[form],
              (double)best[1][form] / 1e6);
    step_kill(pids[form]);
  }
  instance_stop(&instance);
}

/* ---- the other way round ---- */

/* Publishes for as long as somebody gives credit; else sleeps in its own epoll. */
static int full_body(void *argument) {
  struct sleeper *sleeper = argument;
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_event event = {0};
  int set = epoll_create1(EPOLL_CLOEXEC);
  if (np_connect(&client, NULL) != NP_OK || np_publisher_open(client, "credit", NULL, &publisher) != NP_OK) return 1;
  struct epoll_event any = {.events = EPOLLIN};
  if (epoll_ctl(set, EPOLL_CTL_ADD, np_publisher_fd(publisher), &any) != 0) return 2;
  sleeper->ready = 1;
  for (;;) {
    int status = event.data == NULL ? np_loan(publisher, 8, &event) : NP_OK;
    if (status == NP_OK) status = np_publish(publisher, &event);
    if (status == NP_OK) {
      sleeper->taken_ns = npi_clock_monotonic();
      sleeper->number++;
      if (publisher->flow.n_outlets == 0) usleep(1000); /* nobody's credit is needed */
      continue;
    }
    if (status != NP_FULL) sleeper->failed = status;
    epoll_wait(set, &any, 1, -1);
  }
}

static int giver_body(void *argument) {
  struct caller *caller = argument;
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_event event;
  if (np_connect(&client, NULL) != NP_OK || np_subscriber_open(client, "credit", NULL, &subscriber) != NP_OK) return 1;
  while (np_take(subscriber, &event) != NP_OK) np_wait(subscriber, 1000);
  const struct npi_inlet *inlet = &subscriber->inlets[0]->inlet;
  const struct npi_bell_peer *bell = &client->peers->credits_bell;
  caller->element = &inlet->block->element[inlet->returned & inlet->returns.mask];
  caller->bell = &bell->shm->word;
  while ((uint32_t)npi_load_acquire_u64(&bell->shm->word) != NPI_BELL_ASLEEP) usleep(20);
  caller->ready = 1;
  step_me();
  if (np_release(subscriber, &event) != NP_OK) return 2;
  caller->published = 1;
  for (;;) pause();
}

Test(lost_wakes, a_credit_whose_giver_was_stopped_before_it_woke_the_publisher, .timeout = 60) {
  static struct instance instance;
  static struct times times;
  struct sleeper *sleeper = shared_memory(sizeof *sleeper);
  struct caller *caller = shared_memory(sizeof *caller);
  uint64_t best = UINT64_MAX;
  random_state = (uint64_t)time(NULL) * 2 + 1;
  instance_start(&instance, "channels: [ { name: credit, kind: broadcast, on_full: block, credits: 16 } ]\n", NULL);
  pid_t publisher = spawn(full_body, sleeper);
  EVENTUALLY(20, sleeper->ready);
  for (int run = 0; run < RUNS; run++) {
    times.n = 0;
    for (uint32_t i = 0; i < CREDIT_ROUNDS; i++) {
      *caller = (struct caller){0};
      pid_t pid = spawn(giver_body, caller);
      cr_assert(step_wait(pid), "the subscriber of round %u ended", i);
      uint64_t before = sleeper->number;
      int is_lost = step_into(pid, caller);
      uint64_t from = npi_clock_monotonic();
      step_stop(pid);
      EVENTUALLY(LOST_AFTER_S, sleeper->number > before);
      if (is_lost && sleeper->taken_ns > from) times.ns[times.n++] = sleeper->taken_ns - from;
      step_kill(pid);
      EVENTUALLY(LOST_AFTER_S, sleeper->number > before + 1); /* nobody's credit is needed any more */
    }
    cr_assert_gt(times.n, CREDIT_ROUNDS / 2, "only %u wake-ups were lost", times.n);
    uint64_t longest = judge(&times, run, "full, subscriber stopped", "np_publisher_fd");
    if (longest < best) best = longest;
  }
  cr_expect_leq(best, stopped_ms_max[NP_FD] * UINT64_C(1000000), "%.2f ms after the stop", (double)best / 1e6);
  cr_assert_eq(sleeper->failed, 0);
  step_kill(publisher);
  instance_stop(&instance);
}
