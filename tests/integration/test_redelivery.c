/* SPDX-License-Identifier: Apache-2.0 */
/*
 * At-least-once with real processes: workers that die while they hold events, events that kill whoever takes them,
 * and the channel where such events end.
 *
 * ctest-timeout: 300
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "tests/support/child.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/peers.h"
#include "wire/channel.h"

TestSuite(redelivery, .timeout = 120);

enum { WORKERS = 3, EVENTS = 20000, BATCH = 16, POISONS_MAX = 2 };

#define OK(call)                                                                        \
  do {                                                                                  \
    int npi_result = (call);                                                            \
    cr_assert_eq(npi_result, NP_OK, "%s: %d %s", #call, npi_result, np_error_detail()); \
  } while (0)

struct job {
  uint32_t crash_every;         /* dies of each so manieth event that it sees for the first time */
  uint64_t poison[POISONS_MAX]; /* numbers that kill whoever takes them; 0: none */
  _Atomic int stop;
  _Atomic uint32_t ready;
  _Atomic uint64_t redelivered, unmarked_repeats, deaths, disorder, dead_letters;
  _Atomic uint64_t done_last[WORKERS];
  _Atomic uint8_t taken[EVENTS + 1]; /* handed to a worker */
  _Atomic uint8_t done[EVENTS + 1];  /* worked on and released */
};

static int is_poison(const struct job *job, uint64_t number) {
  for (int i = 0; i < POISONS_MAX; i++) {
    if (job->poison[i] != 0 && job->poison[i] == number) return 1;
  }
  return 0;
}

/* Takes many at once and works on one after the other, as a worker does that wants to be quick. */
static int worker_body(void *argument) {
  struct job *job = argument;
  struct np_client *client = NULL;
  struct np_subscriber *subscriber = NULL;
  struct np_event event[BATCH];
  uint64_t last_again = 0;
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_subscriber_open(client, "work", NULL, &subscriber) == NP_OK);
  job->ready++;
  while (!job->stop) {
    if (np_wait(subscriber, 20) != NP_OK) continue;
    int64_t n = np_take_many(subscriber, event, BATCH);
    CHILD_EXPECT(n >= 0);
    for (int64_t i = 0; i < n; i++) {
      uint64_t number = 0;
      struct np_source source = {.size = sizeof source};
      CHILD_EXPECT(message_ok(event[i].data, event[i].size, &number) && number >= 1 && number <= EVENTS);
      int again = (event[i].flags & NP_EVENT_REDELIVERED) != 0;
      CHILD_EXPECT((event[i].flags & NP_EVENT_DEAD_LETTER) == 0);
      CHILD_EXPECT(np_event_source(subscriber, &event[i], &source) == NP_ERR_NOT_FOUND);
      CHILD_EXPECT(strcmp(source.channel_name, "work") == 0 && source.dead_letter_reason == 0);
      if (job->taken[number] != source.deliveries && job->done[number] == 0) job->unmarked_repeats++;
      if (job->done[number] > 0 && !again) job->unmarked_repeats++;
      if (again) {
        job->redelivered++;
        if (event[i].sequence < last_again) job->disorder++;
        last_again = event[i].sequence;
      }
    }
    for (int64_t i = 0; i < n; i++) { /* what a taken event died with is counted by its number, so first all of them */
      uint64_t number = 0;
      message_ok(event[i].data, event[i].size, &number);
      job->taken[number]++;
    }
    for (int64_t i = 0; i < n; i++) {
      uint64_t number = 0;
      message_ok(event[i].data, event[i].size, &number);
      int first = job->done[number] == 0 && (event[i].flags & NP_EVENT_REDELIVERED) == 0;
      if (is_poison(job, number) || (first && job->crash_every != 0 && number % job->crash_every == 0)) {
        kill(getpid(), SIGKILL);
      }
      job->done[number]++;
      CHILD_EXPECT(np_release(subscriber, &event[i]) == NP_OK);
    }
  }
  while (np_take(subscriber, &event[0]) == NP_OK) np_release(subscriber, &event[0]);
  np_disconnect(client);
  return 0;
}

static int all_done(struct job *job, uint64_t n) {
  for (uint64_t i = 1; i <= n; i++) {
    if (job->done[i] == 0 && !is_poison(job, i)) return 0;
  }
  return 1;
}

/* Starts a worker again where one died of its event. */
static void keep_alive(struct job *job, pid_t *workers, int n) {
  for (int i = 0; i < n; i++) {
    int status = 0;
    if (waitpid(workers[i], &status, WNOHANG) != workers[i]) continue;
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a worker ended with 0x%x", (unsigned)status);
    job->deaths++;
    workers[i] = spawn(worker_body, job);
  }
}

/* Publishes the events 1 to n while workers die, until all are done but the poison, and `given_up` of them. */
static void run(struct np_publisher *publisher, struct job *job, int n_workers, uint64_t n, uint64_t given_up) {
  pid_t workers[WORKERS];
  struct np_publisher_stats stats = {.size = sizeof stats};
  for (int i = 0; i < n_workers; i++) workers[i] = spawn(worker_body, job);
  EVENTUALLY(20, (int)job->ready == n_workers);
  for (uint64_t number = 1; number <= n;) {
    struct np_event event;
    int status = np_loan(publisher, 64, &event);
    if (status == NP_OK) {
      message_fill(event.data, 64, number);
      status = np_publish(publisher, &event);
      if (status == NP_FULL) np_discard(publisher, &event);
    }
    cr_assert_geq(status, 0, "%s", np_error_detail());
    if (status == NP_OK) {
      number++;
    } else {
      np_wait_credit(publisher, 2);
    }
    keep_alive(job, workers, n_workers);
  }
  for (int i = 0; i < 60000; i++) { /* nothing is published any more: what waits goes with these looks */
    usleep(1000);
    np_wait_credit(publisher, 0);
    keep_alive(job, workers, n_workers);
    npi_flow_offer_waiting(&publisher->flow);
    np_publisher_stats(publisher, &stats);
    if (all_done(job, n) && stats.dead_lettered >= given_up) break;
  }
  cr_assert(all_done(job, n), "an event was lost");
  np_publisher_stats(publisher, &stats);
  cr_assert_eq(stats.dead_lettered, given_up);
  job->stop = 1;
  for (int i = 0; i < n_workers; i++) cr_assert_eq(reap(workers[i], 20), 0);
}

static struct np_publisher *publisher_of_work(struct np_client **client) {
  struct np_publisher *publisher = NULL;
  OK(np_connect(client, NULL));
  OK(np_publisher_open(*client, "work", NULL, &publisher));
  return publisher;
}

Test(redelivery, workers_that_crash_on_each_thousandth_event_lose_none) {
  struct instance instance;
  struct np_client *client;
  instance_start(&instance, "channels:\n  - { name: work, kind: group, credits: 16 }\n", NULL);
  struct job *job = shared_memory(sizeof *job);
  job->crash_every = 1000;
  struct np_publisher *publisher = publisher_of_work(&client);
  run(publisher, job, WORKERS, EVENTS, 0);
  say("redelivery: %d events, %llu workers died, %llu deliveries again, %llu not marked, %llu out of order\n", EVENTS,
      (unsigned long long)job->deaths, (unsigned long long)job->redelivered, (unsigned long long)job->unmarked_repeats,
      (unsigned long long)job->disorder);
  cr_assert_eq(job->deaths, EVENTS / 1000);
  cr_assert_geq(job->redelivered, job->deaths);
  cr_assert_eq(job->unmarked_repeats, 0);
  cr_assert(all_returned(client, 20));
  np_disconnect(client);
  instance_stop(&instance);
}

Test(redelivery, events_that_kill_each_worker_end_as_dead_letters_and_no_other_does) {
  struct instance instance;
  struct np_client *client, *reader = NULL;
  struct np_subscriber *dead = NULL;
  struct np_event event;
  instance_start(&instance, "channels:\n  - { name: work, kind: group, credits: 16, max_deliveries: 4 }\n", NULL);
  struct job *job = shared_memory(sizeof *job);
  job->poison[0] = 50;
  job->poison[1] = 53; /* in the same batch */
  struct np_publisher *publisher = publisher_of_work(&client);
  OK(np_connect(&reader, NULL));
  OK(np_subscriber_open(reader, "work.dead", NULL, &dead));
  run(publisher, job, 1, 2000, 2);
  say("redelivery: 2 events that kill, %llu workers died, %llu deliveries again\n", (unsigned long long)job->deaths,
      (unsigned long long)job->redelivered);
  cr_assert_leq(job->deaths, 10); /* five deaths for each at most: the first delivery and four more */
  cr_assert_eq(job->unmarked_repeats, 0);
  for (int i = 0; i < 2; i++) {
    struct np_source source = {.size = sizeof source};
    uint64_t number = 0;
    OK(np_wait(dead, 10000));
    OK(np_take(dead, &event));
    cr_assert(message_ok(event.data, event.size, &number));
    cr_expect_eq(number, job->poison[i], "dead letter %d is event %llu", i, (unsigned long long)number);
    cr_expect_eq(event.sequence, number - 1, "the number that it had in its own channel");
    cr_expect_neq(event.flags & NP_EVENT_DEAD_LETTER, 0);
    cr_expect_neq(event.flags & NP_EVENT_REDELIVERED, 0);
    cr_expect_eq(np_event_source(dead, &event, &source), NP_ERR_NOT_FOUND);
    cr_expect_eq(source.deliveries, 5);
    cr_expect_eq(source.dead_letter_reason, NP_DEAD_LETTER_DELIVERIES);
    cr_expect_str_eq(source.channel_name, "work");
    OK(np_release(dead, &event));
  }
  cr_expect_eq(np_take(dead, &event), NP_EMPTY);
  cr_assert(all_returned(client, 20));
  np_disconnect(reader);
  np_disconnect(client);
  instance_stop(&instance);
}

Test(redelivery, dead_letters_that_nobody_reads_are_counted_with_their_reason) {
  struct instance instance;
  struct np_client *client;
  instance_start(&instance,
                 "channels_on_demand: false\n"
                 "channels:\n"
                 "  - { name: work, kind: group, credits: 16, max_deliveries: 1, dead_letter: given/up }\n",
                 NULL);
  struct job *job = shared_memory(sizeof *job);
  job->poison[0] = 7;
  struct np_publisher *publisher = publisher_of_work(&client);
  run(publisher, job, 2, 100, 1);
  const struct npi_endpoint_counters *counters = publisher->dead_letter->flow.counters;
  cr_expect_str_eq(publisher->dead_letter->channel_name, "given/up");
  cr_expect_eq(npi_load_relaxed_u64(&counters->value[NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER]), 1);
  cr_expect_eq(npi_load_relaxed_u64(&counters->value[NPI_PUBLISHER_PUBLISHED]), 1);
  cr_expect_eq(job->deaths, 2);
  cr_assert(all_returned(client, 20));
  np_disconnect(client);
  instance_stop(&instance);
}

Test(redelivery, only_who_publishes_on_a_group_may_publish_its_dead_letters) {
  struct instance instance;
  struct np_client *client = NULL;
  struct np_publisher *publisher = NULL, *second = NULL;
  struct npi_control_frame frame, reply;
  instance_start(&instance,
                 "channels:\n"
                 "  - { name: work, kind: group }\n"
                 "  - { name: more, kind: group, dead_letter: work.dead }\n"
                 "  - { name: easy, kind: group, max_deliveries: off }\n",
                 NULL);
  OK(np_connect(&client, NULL));
  npi_control_init(&frame, NPI_CONTROL_OPEN_PUBLISHER, 0, 0);
  snprintf(frame.body.open_publisher.channel, sizeof frame.body.open_publisher.channel, "work.dead");
  frame.body.open_publisher.flags = NPI_PUBLISHER_DEAD_LETTERS;
  cr_assert_eq(npi_client_request(client, &frame, &reply, 5000), NP_ERR_DENIED);
  OK(np_publisher_open(client, "easy", NULL, &publisher));
  cr_expect_null(publisher->dead_letter);
  np_publisher_close(publisher);
  OK(np_publisher_open(client, "work", NULL, &publisher));
  OK(np_publisher_open(client, "more", NULL, &second));
  cr_assert_not_null(publisher->dead_letter);
  cr_expect_eq(publisher->dead_letter, second->dead_letter, "one for both");
  np_publisher_close(publisher);
  cr_expect_eq(second->dead_letter->n_users, 1);
  np_publisher_close(second);
  cr_expect_null(client->publishers, "nothing stays");
  np_disconnect(client);
  instance_stop(&instance);
}
