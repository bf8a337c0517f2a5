/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients exchange events through a real broker: every promise of the public header that needs two of them.
 *
 * ctest-timeout: 600
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "client/worker.h"
#include "os/os_clock.h"
#include "tests/support/backends.h"
#include "tests/support/child.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"
#include "tests/support/process.h"

TestSuite(exchange, .timeout = 180);

#define CHANNELS                                                              \
  "channels:\n"                                                               \
  "  - { name: news,  kind: broadcast, credits: 64, on_full: block }\n"       \
  "  - { name: drops, kind: broadcast, credits: 16, on_full: drop_newest }\n" \
  "  - { name: work,  kind: group, credits: 16, on_full: block }\n"

static void start(struct instance *instance, int backend) {
  instance_start_with(instance, backend, "per_node: 64MiB, ready: 4MiB", CHANNELS);
}

static struct np_client *connected(void) {
  struct np_client *client = NULL;
  OK(np_connect(&client, NULL));
  return client;
}

static struct np_publisher *publisher_of(struct np_client *client, const char *channel) {
  struct np_publisher *publisher = NULL;
  OK(np_publisher_open(client, channel, NULL, &publisher));
  return publisher;
}

static struct np_subscriber *subscriber_of(struct np_client *client, const char *channel) {
  struct np_subscriber *subscriber = NULL;
  OK(np_subscriber_open(client, channel, NULL, &subscriber));
  return subscriber;
}

static void send_number(struct np_publisher *publisher, uint64_t number) {
  OK(publish_message(publisher, number, message_size(number)));
}

/* Takes the next event, checks that it is this number, and lets it go. */
static void expect_number(struct np_subscriber *subscriber, uint64_t number) {
  struct np_event event;
  uint64_t got = 0;
  OK(np_wait(subscriber, 20000));
  OK(np_take(subscriber, &event));
  cr_assert(message_ok(event.data, event.size, &got), "message %llu is damaged", (unsigned long long)number);
  cr_assert_eq(got, number, "got %llu, not %llu", (unsigned long long)got, (unsigned long long)number);
  OK(np_release(subscriber, &event));
}

static void expect_nothing(struct np_subscriber *subscriber) {
  struct np_event event;
  cr_assert_eq(np_take(subscriber, &event), NP_EMPTY);
}

/* Until the publisher is connected to so many subscribers. */
static void until_subscribers(struct np_client *client, struct np_publisher *publisher, uint32_t n) {
  struct np_publisher_stats stats = {.size = sizeof stats};
  EVENTUALLY(20, (npi_client_tick(client), np_publisher_stats(publisher, &stats)) == NP_OK && stats.subscribers == n);
}

static void expect_flawless(const struct receiver *receiver, uint64_t received) {
  cr_assert_eq(receiver->received, received, "received %llu of %llu", (unsigned long long)receiver->received,
               (unsigned long long)received);
  cr_assert_eq(receiver->bad, 0, "%llu damaged", (unsigned long long)receiver->bad);
  cr_assert_eq(receiver->gaps, 0, "%llu missing", (unsigned long long)receiver->gaps);
  cr_assert_eq(receiver->out_of_order, 0);
  cr_assert_eq(receiver->number_breaks, 0);
  cr_assert_eq(receiver->corrupt, 0);
  cr_assert_eq(receiver->missed, 0);
}

/* ---- one publisher, one subscriber ------------------------------------------------------------------- */

TEST_WITH_BOTH_BACKENDS(exchange, what_was_published_before_subscribing_is_not_seen_and_what_comes_after_is) {
  /* Proves: a subscription begins when np_subscriber_open returns; events before it are counted as dropped. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  send_number(publisher, 1);
  send_number(publisher, 2);
  struct np_publisher_stats stats = {.size = sizeof stats};
  OK(np_publisher_stats(publisher, &stats));
  cr_assert_eq(stats.published, 2);
  cr_assert_eq(stats.dropped_no_subscriber, 2);
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  expect_nothing(subscriber);
  for (uint64_t i = 3; i < 200; i++) {
    send_number(publisher, i);
    expect_number(subscriber, i);
  }
  OK(np_publisher_stats(publisher, &stats));
  cr_assert_eq(stats.delivered, 197);
  cr_assert_eq(stats.dropped_no_subscriber, 2);
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, a_subscriber_that_came_first_sees_the_first_event_of_a_later_publisher) {
  /* Proves: the order of opening does not matter, and sequence numbers begin at 0. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_event event;
  send_number(publisher, 77);
  OK(np_wait(subscriber, 20000));
  OK(np_take(subscriber, &event));
  cr_assert_eq(event.sequence, 0);
  OK(np_release(subscriber, &event));
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, events_of_every_size_arrive_whole_and_a_larger_one_is_refused) {
  /* Proves: payloads of 0 B to 1 MiB around every boundary of a size class; one byte more is NP_ERR_TOO_LARGE. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_event event;
  size_t sizes[64];
  size_t n = 0;
  sizes[n++] = 0;
  sizes[n++] = 1;
  sizes[n++] = 15;
  for (size_t boundary = 256; boundary <= (size_t)1 << 20; boundary *= 2) {
    sizes[n++] = boundary - 1;
    sizes[n++] = boundary;
    if (boundary < (size_t)1 << 20) sizes[n++] = boundary + 1;
  }
  for (size_t i = 0; i < n; i++) {
    OK(np_loan(publisher, sizes[i], &event));
    cr_assert_eq(event.size, sizes[i]);
    memset(event.data, (int)(i + 1), sizes[i]);
    OK(np_publish(publisher, &event));
    cr_assert_null(event.data);
    OK(np_wait(subscriber, 20000));
    OK(np_take(subscriber, &event));
    cr_assert_eq(event.size, sizes[i]);
    cr_assert_null(event.topic);
    for (size_t at = 0; at < sizes[i]; at++) {
      if (((const uint8_t *)event.data)[at] != (uint8_t)(i + 1)) cr_assert(0, "byte %zu of %zu", at, sizes[i]);
    }
    OK(np_release(subscriber, &event));
  }
  cr_assert_eq(np_loan(publisher, ((size_t)1 << 20) + 1, &event), NP_ERR_TOO_LARGE);
  cr_assert(strstr(np_error_detail(), "1048577") != NULL, "%s", np_error_detail());
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, topic_priority_and_time_travel_with_the_event) {
  /* Proves: header fields arrive as set, a topic fills the slot to its last byte, and one byte more is refused. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_event event;
  for (unsigned priority = NP_PRIORITY_BATCH; priority <= NP_PRIORITY_CRITICAL; priority++) {
    OK(np_loan(publisher, 256, &event));
    cr_assert_eq(event.priority, NP_PRIORITY_NORMAL);
    event.size = 200;
    memset(event.data, 'x', event.size);
    char topic[57];
    memset(topic, 't', sizeof topic);
    cr_assert_eq(np_set_topic(publisher, &event, topic, 57), NP_ERR_TOO_LARGE);
    OK(np_set_topic(publisher, &event, topic, 56));
    event.priority = (uint8_t)priority;
    event.time_ns = 1000 + priority;
    OK(np_publish(publisher, &event));
    OK(np_wait(subscriber, 20000));
    OK(np_take(subscriber, &event));
    cr_assert_eq(event.priority, priority);
    cr_assert_eq(event.time_ns, 1000 + priority);
    cr_assert_eq(event.topic_size, 56);
    cr_assert_eq(memcmp(event.topic, topic, 56), 0);
    struct np_source source = {.size = sizeof source};
    cr_assert_eq(np_event_source(subscriber, &event, &source), NP_ERR_NOT_FOUND);
    OK(np_release(subscriber, &event));
  }
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, many_channels_of_one_pair_do_not_mix) {
  /* Proves: 40 channels made on demand between two clients each carry only their own events. */
  enum { CHANNELS_COUNT = 40, ROUNDS = 30 };
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publishers[CHANNELS_COUNT];
  struct np_subscriber *subscribers[CHANNELS_COUNT];
  for (int i = 0; i < CHANNELS_COUNT; i++) {
    char name[32];
    snprintf(name, sizeof name, "topic/%d", i);
    if (i % 2) {
      publishers[i] = publisher_of(a, name);
      subscribers[i] = subscriber_of(b, name);
    } else {
      subscribers[i] = subscriber_of(b, name);
      publishers[i] = publisher_of(a, name);
    }
  }
  for (uint64_t round = 0; round < ROUNDS; round++) {
    for (uint64_t i = 0; i < CHANNELS_COUNT; i++) send_number(publishers[i], round * CHANNELS_COUNT + i);
    for (uint64_t i = 0; i < CHANNELS_COUNT; i++) expect_number(subscribers[i], round * CHANNELS_COUNT + i);
  }
  for (int i = 0; i < CHANNELS_COUNT; i++) expect_nothing(subscribers[i]);
  cr_assert(all_returned(a, 10));
  for (int i = 0; i < CHANNELS_COUNT; i += 2) {
    np_publisher_close(publishers[i]);
    OK(np_subscriber_close(subscribers[i]));
  }
  for (uint64_t i = 1; i < CHANNELS_COUNT; i += 2) {
    send_number(publishers[i], i);
    expect_number(subscribers[i], i);
  }
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, one_client_publishes_and_subscribes_to_one_channel) {
  /* Proves: both ends of a connection may belong to one client, and closing either end works. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(a, "news");
  for (uint64_t i = 0; i < 500; i++) {
    send_number(publisher, i);
    expect_number(subscriber, i);
  }
  send_number(publisher, 500);
  send_number(publisher, 501);
  cr_assert_null(np_publisher_close(publisher));
  expect_number(subscriber, 500);
  expect_number(subscriber, 501);
  expect_nothing(subscriber);
  cr_assert(all_returned(a, 10));
  EVENTUALLY(10, (npi_client_tick(a), expect_nothing(subscriber), instance_connections(&instance, 0) == 0));
  publisher = publisher_of(a, "news");
  send_number(publisher, 600);
  OK(np_subscriber_close(subscriber));
  EVENTUALLY(10, (npi_client_tick(a), instance_connections(&instance, 0) == 0));
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  instance_stop(&instance);
}

/* ---- several processes ------------------------------------------------------------------------------- */

TEST_WITH_BOTH_BACKENDS(exchange, two_subscriber_processes_each_get_every_event_in_order) {
  /* Proves: broadcast with on_full block loses nothing between processes; every byte is right. */
  enum { EVENTS = 20000 };
  struct instance instance;
  start(&instance, *backend);
  struct receiver *receivers[2];
  pid_t pids[2];
  for (int i = 0; i < 2; i++) {
    receivers[i] = receiver_for("news");
    pids[i] = spawn(receiver_body, receivers[i]);
    EVENTUALLY(20, receivers[i]->ready);
  }
  struct sender *sender = sender_for("news", EVENTS, 2);
  pid_t sender_pid = spawn(sender_body, sender);
  EVENTUALLY(100, receivers[0]->received == EVENTS && receivers[1]->received == EVENTS);
  cr_assert_eq(reap(sender_pid, 60), 0);
  for (int i = 0; i < 2; i++) {
    receivers[i]->stop = 1;
    cr_assert_eq(reap(pids[i], 20), 0);
    expect_flawless(receivers[i], EVENTS);
  }
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, a_group_of_three_processes_gets_each_event_exactly_once) {
  /* Proves: every number is seen by one member, none twice, and each member did a part of the work. */
  enum { EVENTS = 20000, MEMBERS = 3 };
  struct instance instance;
  start(&instance, *backend);
  struct receiver *receivers[MEMBERS];
  pid_t pids[MEMBERS];
  _Atomic uint8_t *seen = shared_memory(EVENTS);
  for (int i = 0; i < MEMBERS; i++) {
    receivers[i] = receiver_for("work");
    receivers[i]->seen = seen;
    receivers[i]->n_seen = EVENTS;
    receivers[i]->no_order = 1;
    pids[i] = spawn(receiver_body, receivers[i]);
    EVENTUALLY(20, receivers[i]->ready);
  }
  struct sender *sender = sender_for("work", EVENTS, MEMBERS);
  pid_t sender_pid = spawn(sender_body, sender);
  EVENTUALLY(100, receivers[0]->received + receivers[1]->received + receivers[2]->received == EVENTS);
  cr_assert_eq(reap(sender_pid, 60), 0);
  for (int i = 0; i < MEMBERS; i++) {
    receivers[i]->stop = 1;
    cr_assert_eq(reap(pids[i], 20), 0);
    cr_assert_eq(receivers[i]->bad + receivers[i]->twice + receivers[i]->redelivered + receivers[i]->out_of_order, 0);
    cr_assert_gt(receivers[i]->received, 0, "member %d got nothing", i);
  }
  for (int i = 0; i < EVENTS; i++) cr_assert_eq(seen[i], 1, "event %d came %d times", i, seen[i]);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, a_publisher_waits_for_a_blocking_subscriber_in_another_process) {
  /* Proves: without credit publish says NP_FULL and keeps the event the caller's; np_wait_credit sleeps until the
   * other process releases; nothing is lost. */
  enum { EVENTS = 3000 };
  struct instance instance;
  start(&instance, *backend);
  struct receiver *receiver = receiver_for("news");
  receiver->hold = 40;
  pid_t pid = spawn(receiver_body, receiver);
  EVENTUALLY(20, receiver->ready);
  cr_assert(process_stop(pid));
  struct np_client *a = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_event event;
  uint64_t n = 0;
  int status = NP_OK;
  for (; status == NP_OK && n < 1000; n++) {
    OK(np_loan(publisher, 64, &event));
    message_fill(event.data, 64, n);
    status = np_publish(publisher, &event);
  }
  cr_assert_eq(status, NP_FULL);
  cr_assert_eq(n, 65, "the channel has 64 credits, %llu went", (unsigned long long)n - 1);
  cr_assert_not_null(event.data);
  cr_assert_eq(np_wait_credit(publisher, 0), NP_TIMEOUT);
  cr_assert_eq(np_wait_credit(publisher, 100), NP_TIMEOUT);
  cr_assert_eq(np_publish(publisher, &event), NP_FULL);
  kill(pid, SIGCONT);
  OK(np_wait_credit(publisher, 20000));
  OK(np_publish(publisher, &event));
  for (; n < EVENTS; n++) OK(publish_message(publisher, n, 64));
  EVENTUALLY(60, receiver->received == EVENTS);
  receiver->stop = 1;
  cr_assert_eq(reap(pid, 20), 0);
  expect_flawless(receiver, EVENTS);
  struct np_publisher_stats stats = {.size = sizeof stats};
  OK(np_publisher_stats(publisher, &stats));
  cr_assert_geq(stats.full, 2);
  cr_assert_eq(stats.published, EVENTS);
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, what_a_slow_subscriber_misses_is_counted_and_is_the_gap_it_sees) {
  /* Proves: with drop_newest the publisher never waits; the missed counter is the sum of the sequence gaps, and
   * received + missed is what was published. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "drops");
  struct np_subscriber *subscriber = subscriber_of(b, "drops");
  struct np_event event;
  uint64_t received = 0;
  uint64_t gaps = 0;
  uint64_t next = 0;
  uint64_t published = 0;
  for (int round = 0; round < 50; round++) {
    for (int i = 0; i < 10 + round; i++) send_number(publisher, published++);
    for (int i = 0; i < 8 + round / 2 && np_take(subscriber, &event) == NP_OK; i++) {
      gaps += event.sequence - next;
      next = event.sequence + 1;
      received++;
      OK(np_release(subscriber, &event));
    }
  }
  while (np_take(subscriber, &event) == NP_OK) {
    gaps += event.sequence - next;
    next = event.sequence + 1;
    received++;
    OK(np_release(subscriber, &event));
  }
  gaps += published - next; /* those after the last one that came */
  struct np_subscriber_stats stats = {.size = sizeof stats};
  struct np_publisher_stats publisher_stats = {.size = sizeof publisher_stats};
  OK(np_subscriber_stats(subscriber, &stats));
  OK(np_publisher_stats(publisher, &publisher_stats));
  cr_assert_gt(gaps, 0);
  cr_assert_eq(stats.missed, gaps);
  cr_assert_eq(publisher_stats.dropped_no_credit, gaps);
  cr_assert_eq(received + gaps, published);
  cr_assert_eq(stats.taken, received);
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, a_tap_sees_a_group_and_takes_nothing_from_it) {
  /* Proves: beside a tap that never releases, a member still gets each event; the tap's misses are counted. */
  enum { EVENTS = 2000 };
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "work");
  struct np_subscriber *member = subscriber_of(b, "work");
  struct np_subscriber_options options;
  struct np_subscriber *tap = NULL;
  struct np_event event;
  np_subscriber_options_init(&options);
  options.tap = 1;
  options.credits = 100;
  OK(np_subscriber_open(b, "work", &options, &tap));
  for (uint64_t i = 0; i < EVENTS; i++) {
    send_number(publisher, i);
    expect_number(member, i);
  }
  uint64_t tapped = 0;
  while (np_take(tap, &event) == NP_OK) {
    uint64_t number = 0;
    cr_assert(message_ok(event.data, event.size, &number));
    cr_assert_eq(number, tapped);
    tapped++;
    OK(np_release(tap, &event));
  }
  struct np_subscriber_stats stats = {.size = sizeof stats};
  OK(np_subscriber_stats(tap, &stats));
  cr_assert_gt(tapped, 0);
  cr_assert_leq(tapped, 100);
  cr_assert_eq(tapped + stats.missed, EVENTS);
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, twenty_publishers_and_twenty_subscribers_exchange_everything) {
  /* Proves: 400 connections, each in order and without a gap. Ten processes a side with two ends each. */
  enum { CLIENTS = 20, EVENTS = 50 };
  struct instance instance;
  start(&instance, *backend);
  struct receiver *receivers[CLIENTS];
  struct sender *senders[CLIENTS];
  pid_t receiver_pids[CLIENTS];
  pid_t sender_pids[CLIENTS];
  for (int i = 0; i < CLIENTS; i++) {
    receivers[i] = receiver_for("news");
    receiver_pids[i] = spawn(receiver_body, receivers[i]);
  }
  for (int i = 0; i < CLIENTS; i++) EVENTUALLY(60, receivers[i]->ready);
  for (int i = 0; i < CLIENTS; i++) {
    senders[i] = sender_for("news", EVENTS, CLIENTS);
    sender_pids[i] = spawn(sender_body, senders[i]);
  }
  for (int i = 0; i < CLIENTS; i++) EVENTUALLY(100, receivers[i]->received == CLIENTS * EVENTS);
  for (int i = 0; i < CLIENTS; i++) cr_assert_eq(reap(sender_pids[i], 60), 0);
  for (int i = 0; i < CLIENTS; i++) {
    receivers[i]->stop = 1;
    cr_assert_eq(reap(receiver_pids[i], 20), 0);
    expect_flawless(receivers[i], CLIENTS * EVENTS);
  }
  instance_stop(&instance);
}

/* ---- waiting ----------------------------------------------------------------------------------------- */

static int sleeper(void *argument) {
  struct receiver *receiver = argument;
  struct np_client *client = NULL;
  struct np_subscriber *subscriber = NULL;
  struct np_event event;
  CHILD_EXPECT(receiver->tap == 0 || forbid_system_call("membarrier", EPERM) == 0);
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(client->membarrier_works == (receiver->tap == 0));
  CHILD_EXPECT(np_subscriber_open(client, receiver->channel, NULL, &subscriber) == NP_OK);
  receiver->ready = 1;
  for (uint64_t i = 0; i < receiver->n_seen; i++) {
    CHILD_EXPECT(np_wait(subscriber, -1) == NP_OK);
    CHILD_EXPECT(np_take(subscriber, &event) == NP_OK);
    CHILD_EXPECT(np_release(subscriber, &event) == NP_OK);
    receiver->received++;
  }
  struct np_subscriber_stats stats = {.size = sizeof stats};
  CHILD_EXPECT(np_subscriber_stats(subscriber, &stats) == NP_OK);
  receiver->gaps = stats.sleeps;
  CHILD_EXPECT(np_subscriber_close(subscriber) == NP_OK);
  np_disconnect(client);
  return 0;
}

/* refused: 1 the subscriber's process has no membarrier, 2 the publisher's */
static void wake_sleepers(int refused) {
  enum { EVENTS = 60 };
  struct instance instance;
  start(&instance, POSIX);
  struct receiver *receiver = receiver_for("news");
  receiver->n_seen = EVENTS;
  receiver->tap = refused == 1;
  pid_t pid = spawn(sleeper, receiver);
  EVENTUALLY(20, receiver->ready);
  if (refused == 2) cr_assert_eq(forbid_system_call("membarrier", EPERM), 0);
  struct np_client *a = connected();
  cr_assert_eq(a->membarrier_works, refused != 2);
  struct np_publisher *publisher = publisher_of(a, "news");
  for (uint64_t i = 0; i < EVENTS; i++) {
    EVENTUALLY(20, receiver->received == i);
    EVENTUALLY(20, process_state(pid) == 'S');
    usleep(3000 + (useconds_t)(i % 5) * 4000); /* short and long after its last sleep */
    send_number(publisher, i);
  }
  cr_assert_eq(reap(pid, 30), 0);
  struct np_publisher_stats stats = {.size = sizeof stats};
  OK(np_publisher_stats(publisher, &stats));
  say("exchange: %d events, subscriber slept %llu times, publisher rang %llu times\n", EVENTS,
      (unsigned long long)receiver->gaps, (unsigned long long)stats.wakes);
  cr_assert_gt(stats.wakes, EVENTS / 2,
               "the subscriber was asleep nearly always: most wake-ups must be the publisher's");
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  instance_stop(&instance);
}

Test(exchange, a_sleeping_subscriber_in_another_process_is_woken) {
  /* Proves: the doorbell rings across processes, after short and long sleeps. */
  wake_sleepers(0);
}

Test(exchange, a_sleeping_subscriber_without_membarrier_is_woken) {
  /* Proves: the fenced fallback of the sleeper. */
  wake_sleepers(1);
}

Test(exchange, a_publisher_without_membarrier_wakes_a_sleeping_subscriber) {
  /* Proves: the fenced fallback of the peer. */
  wake_sleepers(2);
}

TEST_WITH_BOTH_BACKENDS(exchange, a_wait_ends_with_its_time_and_not_before) {
  /* Proves: np_wait(0) looks once; np_wait(n) lasts at least n ms and answers NP_TIMEOUT; both ends. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  cr_assert_eq(np_wait(subscriber, 0), NP_TIMEOUT);
  static const int64_t times[] = {1, 20, 130};
  for (unsigned i = 0; i < 3; i++) {
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    cr_assert_eq(np_wait(subscriber, times[i]), NP_TIMEOUT);
    clock_gettime(CLOCK_MONOTONIC, &after);
    int64_t took = (after.tv_sec - before.tv_sec) * INT64_C(1000000000) + after.tv_nsec - before.tv_nsec;
    cr_assert_geq(took, times[i] * 1000000);
  }
  OK(np_wait_credit(publisher, 0));
  send_number(publisher, 1);
  OK(np_wait(subscriber, 0));
  OK(np_wait(subscriber, -1));
  expect_number(subscriber, 1);
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, two_subscribers_of_a_client_share_a_descriptor_for_epoll) {
  /* Proves: np_fd is readable when either has something; taking until NP_EMPTY and going back to epoll loses no
   * event and no wake-up, through 400 rounds with another process. */
  enum { EVENTS = 400 };
  struct instance instance;
  start(&instance, *backend);
  struct np_client *b = connected();
  struct np_subscriber *first = subscriber_of(b, "news");
  struct np_subscriber *second = subscriber_of(b, "drops");
  struct sender *senders[2] = {sender_for("news", EVENTS, 1), sender_for("drops", EVENTS, 1)};
  pid_t pids[2];
  int fd = np_fd(first);
  cr_assert_geq(fd, 0);
  cr_assert_eq(np_fd(second), fd);
  struct pollfd look = {.fd = fd, .events = POLLIN};
  struct np_event event;
  int poller = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event wanted = {.events = EPOLLIN};
  cr_assert_eq(epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted), 0);
  for (int i = 0; i < 2; i++) pids[i] = spawn(sender_body, senders[i]);
  uint64_t received = 0;
  uint64_t missed = 0;
  for (int idle = 0; received + missed < 2 * EVENTS && idle < 20;) {
    struct epoll_event ready;
    int n = epoll_wait(poller, &ready, 1, 5000);
    idle += n == 0;
    while (np_take(first, &event) == NP_OK) {
      received++;
      OK(np_release(first, &event));
    }
    while (np_take(second, &event) == NP_OK) {
      received++;
      OK(np_release(second, &event));
    }
    /* As documented: until NP_EMPTY, for each of them; the second's takes may have left something for the first. */
    struct np_subscriber_stats stats = {.size = sizeof stats};
    OK(np_subscriber_stats(second, &stats));
    missed = stats.missed;
    cr_assert_lt(idle, 20, "no wake-up for 100 s: %llu received", (unsigned long long)received);
  }
  cr_assert_eq(received + missed, 2 * EVENTS);
  for (int i = 0; i < 2; i++) cr_assert_eq(reap(pids[i], 30), 0);
  while (np_take(first, &event) == NP_OK || np_take(second, &event) == NP_OK) cr_assert(0, "an event too much");
  (void)look;
  close(poller);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, a_publisher_that_met_full_waits_in_its_own_epoll) {
  /* Proves: np_publisher_fd is silent while there is no credit and readable after the subscriber released. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct pollfd look = {.fd = np_publisher_fd(publisher), .events = POLLIN};
  struct np_event event;
  struct np_event taken;
  cr_assert_geq(look.fd, 0);
  for (int round = 0; round < 20; round++) {
    for (;;) {
      OK(np_loan(publisher, 64, &event));
      int status = np_publish(publisher, &event);
      if (status == NP_FULL) break;
      OK(status);
    }
    cr_assert_eq(poll(&look, 1, 0), 0, "round %d: readable without credit", round);
    OK(np_take(subscriber, &taken));
    cr_assert_eq(poll(&look, 1, 0), 0, "round %d: readable though nothing was released", round);
    OK(np_release(subscriber, &taken));
    cr_assert_eq(poll(&look, 1, 20000), 1, "round %d: not readable after a release", round);
    OK(np_publish(publisher, &event));
    while (np_take(subscriber, &taken) == NP_OK) OK(np_release(subscriber, &taken));
  }
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

/* ---- misuse and ends --------------------------------------------------------------------------------- */

TEST_WITH_BOTH_BACKENDS(exchange, using_an_event_after_it_was_given_away_is_refused) {
  /* Proves: double publish, discard after publish, double release, release after another lap: NP_ERR_MISUSE, and the
   * connection lives on. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_subscriber *other = subscriber_of(b, "news");
  struct np_event event;
  struct np_event copy;
  OK(np_loan(publisher, 100, &event));
  copy = event;
  OK(np_publish(publisher, &event));
  cr_assert_eq(np_publish(publisher, &event), NP_ERR_MISUSE);
  cr_assert_eq(np_publish(publisher, &copy), NP_ERR_MISUSE);
  cr_assert_eq(np_discard(publisher, &copy), NP_ERR_MISUSE);
  cr_assert_eq(np_set_topic(publisher, &copy, "x", 1), NP_ERR_MISUSE);
  OK(np_loan(publisher, 100, &event));
  copy = event;
  OK(np_discard(publisher, &event));
  cr_assert_eq(np_discard(publisher, &copy), NP_ERR_MISUSE);
  cr_assert_eq(np_publish(publisher, &copy), NP_ERR_MISUSE);
  OK(np_take(subscriber, &event));
  copy = event;
  cr_assert_eq(np_release(other, &event), NP_ERR_MISUSE);
  OK(np_release(subscriber, &event));
  cr_assert_eq(np_release(subscriber, &event), NP_ERR_MISUSE);
  cr_assert_eq(np_release(subscriber, &copy), NP_ERR_MISUSE);
  expect_nothing(subscriber);
  struct np_event made_up = {0};
  cr_assert_eq(np_release(subscriber, &made_up), NP_ERR_MISUSE);
  for (int i = 0; i < 300; i++) { /* the same credit and slot again and again */
    OK(np_take(other, &event));
    OK(np_release(other, &event));
    send_number(publisher, (uint64_t)i);
    OK(np_take(subscriber, &event));
    cr_assert_eq(np_release(subscriber, &copy), NP_ERR_MISUSE, "lap %d", i);
    copy = event;
    OK(np_release(subscriber, &event));
  }
  OK(np_take(other, &event));
  OK(np_release(other, &event));
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, a_subscriber_that_holds_events_cannot_be_closed) {
  /* Proves: NP_ERR_STATE with the number held; after the release it closes, and the publisher goes on. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_event events[3];
  for (uint64_t i = 0; i < 5; i++) send_number(publisher, i);
  cr_assert_eq(np_take_many(subscriber, events, 3), 3);
  cr_assert_eq(np_subscriber_close(subscriber), NP_ERR_STATE);
  cr_assert(strstr(np_error_detail(), "3 events") != NULL, "%s", np_error_detail());
  OK(np_release_many(subscriber, events, 3));
  OK(np_subscriber_close(subscriber));
  until_subscribers(a, publisher, 0);
  cr_assert(all_returned(a, 10));
  send_number(publisher, 9);
  EVENTUALLY(10, (npi_client_tick(a), instance_connections(&instance, 0) == 0));
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, what_a_closed_publisher_published_is_still_taken) {
  /* Proves: np_publisher_close takes nothing from anybody, loaned events go back, and a new publisher follows. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_publisher *other = publisher_of(a, "drops");
  struct np_event event;
  struct np_event kept;
  for (uint64_t i = 0; i < 40; i++) send_number(publisher, i);
  OK(np_loan(publisher, 5000, &event));
  OK(np_loan(other, 5000, &kept));
  cr_assert_null(np_publisher_close(publisher));
  struct np_client_stats stats = {.size = sizeof stats};
  OK(np_client_stats(a, &stats));
  cr_assert_eq(stats.loaned_slots, 1, "%llu slots are on loan: only the other publisher's should be",
               (unsigned long long)stats.loaned_slots);
  for (uint64_t i = 0; i < 40; i++) expect_number(subscriber, i);
  expect_nothing(subscriber);
  OK(np_discard(other, &kept));
  cr_assert(all_returned(a, 10));
  publisher = publisher_of(a, "news");
  send_number(publisher, 50);
  expect_number(subscriber, 50);
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

static int publish_and_leave(void *argument) {
  struct sender *sender = argument;
  struct np_client *client = NULL;
  struct np_publisher *publisher = NULL;
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_publisher_open(client, sender->channel, NULL, &publisher) == NP_OK);
  for (uint64_t i = 0; i < sender->count; i++) CHILD_EXPECT(publish_message(publisher, i, message_size(i)) == NP_OK);
  np_disconnect(client); /* publisher still open, events not taken */
  return 0;
}

TEST_WITH_BOTH_BACKENDS(exchange, what_a_process_published_outlives_it) {
  /* Proves: the publishing process disconnects and ends before the subscriber takes the first event: all of them
   * come, and afterwards its memory is given back. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *b = connected();
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_event event;
  for (int round = 0; round < 5; round++) {
    struct sender *sender = sender_for("news", 60, 0);
    pid_t pid = spawn(publish_and_leave, sender);
    cr_assert_eq(reap(pid, 30), 0);
    for (uint64_t i = 0; i < 60; i++) expect_number(subscriber, i);
    expect_nothing(subscriber);
    EVENTUALLY(20, (np_take(subscriber, &event) == NP_EMPTY && instance_clients(&instance, pid) == 0));
    cr_assert_eq(instance_segments_leased(&instance, 0), 0);
  }
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, a_held_event_stays_readable_after_its_publisher_is_gone) {
  /* Proves: the last holder keeps the segment alive; after the release nothing of the publisher is left. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *b = connected();
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct sender *sender = sender_for("news", 2, 0);
  pid_t pid = spawn(publish_and_leave, sender);
  struct np_event events[2];
  uint64_t number = 0;
  cr_assert_eq(reap(pid, 30), 0);
  OK(np_wait(subscriber, 20000));
  cr_assert_eq(np_take_many(subscriber, events, 2), 2);
  usleep(200000);
  expect_nothing(subscriber);
  cr_assert_gt(instance_segments_leased(&instance, 0), 0, "its segment went while an event of it is held");
  for (uint64_t i = 0; i < 2; i++) {
    cr_assert(message_ok(events[i].data, events[i].size, &number));
    cr_assert_eq(number, i);
    OK(np_release(subscriber, &events[i]));
  }
  EVENTUALLY(20, (np_take(subscriber, &events[0]) == NP_EMPTY && instance_segments_leased(&instance, 0) == 0));
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, a_child_cannot_use_its_parents_handles_and_the_parent_notices_nothing) {
  /* Proves: every function answers NP_ERR_FORKED in a forked child, np_disconnect there is harmless, and the child
   * may connect anew. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(a, "news");
  struct np_event event;
  send_number(publisher, 1);
  OK(np_take(subscriber, &event));
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    struct np_event loan;
    struct np_client *own = NULL;
    struct np_publisher *own_publisher = NULL;
    struct np_client_stats stats = {.size = sizeof stats};
    int wrong = 0;
    wrong += np_loan(publisher, 10, &loan) != NP_ERR_FORKED;
    wrong += np_publish(publisher, &event) != NP_ERR_FORKED;
    wrong += np_take(subscriber, &loan) != NP_ERR_FORKED;
    wrong += np_release(subscriber, &event) != NP_ERR_FORKED;
    wrong += np_wait(subscriber, 0) != NP_ERR_FORKED;
    wrong += np_wait_credit(publisher, 0) != NP_ERR_FORKED;
    wrong += np_fd(subscriber) != NP_ERR_FORKED;
    wrong += np_publisher_fd(publisher) != NP_ERR_FORKED;
    wrong += np_client_stats(a, &stats) != NP_ERR_FORKED;
    wrong += np_subscriber_close(subscriber) != NP_ERR_FORKED;
    wrong += np_publisher_open(a, "x", NULL, &own_publisher) != NP_ERR_FORKED;
    wrong += np_publisher_close(publisher) != NULL;
    wrong += np_disconnect(a) != NULL;
    wrong += np_connect(&own, NULL) != NP_OK;
    wrong += wrong == 0 && np_publisher_open(own, "drops", NULL, &own_publisher) != NP_OK;
    np_disconnect(own);
    _exit(wrong);
  }
  cr_assert_eq(reap(pid, 20), 0);
  OK(np_release(subscriber, &event));
  for (uint64_t i = 0; i < 200; i++) {
    send_number(publisher, i);
    expect_number(subscriber, i);
  }
  np_disconnect(a);
  instance_stop(&instance);
}

/* ---- memory ------------------------------------------------------------------------------------------ */

TEST_WITH_BOTH_BACKENDS(exchange, a_dry_pool_says_who_holds_its_memory) {
  /* Proves: at the budget's end a loan answers NP_EMPTY with the holders' names, np_wait_credit waits for a release,
   * and everything goes on after it. */
  struct instance instance;
  instance_start_with(&instance, *backend, "per_node: 16MiB, per_client: 4MiB, ready: 0",
                      "channels:\n  - { name: news, credits: 1024, on_full: drop_newest }\n");
  struct np_client *a = connected();
  struct np_options named;
  np_options_init(&named);
  named.name = "the-hoarder";
  struct np_client *b = NULL;
  OK(np_connect(&b, &named));
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_event event;
  struct np_event loans[64];
  int n = 0;
  int published = 0;
  /* A connection may hold three quarters of the budget; the rest goes on loan here. */
  for (; published < 30; published++) {
    OK(np_loan(publisher, 100000, &event));
    OK(np_publish(publisher, &event));
    struct np_publisher_stats stats = {.size = sizeof stats};
    OK(np_publisher_stats(publisher, &stats));
    if (stats.dropped_no_credit > 0) break;
  }
  int status = NP_OK;
  while (n < 64 && (status = np_loan(publisher, 100000, &loans[n])) == NP_OK) n++;
  cr_assert_eq(status, NP_EMPTY);
  cr_assert(strstr(np_error_detail(), "the-hoarder") != NULL, "%s", np_error_detail());
  cr_assert_eq(np_wait_credit(publisher, 50), NP_TIMEOUT);
  OK(np_take(subscriber, &event));
  OK(np_release(subscriber, &event));
  OK(np_wait_credit(publisher, 20000));
  OK(np_loan(publisher, 100000, &loans[n]));
  n++;
  while (n > 0) OK(np_discard(publisher, &loans[--n]));
  while (np_take(subscriber, &event) == NP_OK) OK(np_release(subscriber, &event));
  cr_assert(all_returned(a, 10));
  /* The same memory again, in other sizes. */
  for (uint64_t i = 0; i < 300; i++) {
    while ((status = np_loan(publisher, 64 << i % 14, &event)) == NP_EMPTY) OK(np_wait_credit(publisher, 20000));
    OK(status);
    OK(np_publish(publisher, &event));
    OK(np_wait(subscriber, 20000));
    OK(np_take(subscriber, &event));
    OK(np_release(subscriber, &event));
  }
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, memory_is_reserved_when_asked_for) {
  /* Proves: reserve_bytes of client and publisher lease at once and stay leased however idle; more than the budget is
   * refused, all or nothing. */
  struct instance instance;
  start(&instance, *backend);
  struct np_options options;
  struct np_publisher_options publisher_options;
  struct np_client *a = NULL;
  struct np_publisher *publisher = NULL;
  struct np_client_stats stats = {.size = sizeof stats};
  np_options_init(&options);
  options.reserve_bytes = 5 << 20;
  OK(np_connect(&a, &options));
  OK(np_client_stats(a, &stats));
  cr_assert_geq(stats.leased_bytes, 5 << 20);
  cr_assert_geq(stats.budget_bytes, stats.leased_bytes);
  np_publisher_options_init(&publisher_options);
  publisher_options.reserve_bytes = 9 << 20;
  OK(np_publisher_open(a, "news", &publisher_options, &publisher));
  OK(np_client_stats(a, &stats));
  cr_assert_geq(stats.leased_bytes, 9 << 20);
  for (int i = 0; i < 25; i++) { /* longer than idle memory is kept */
    npi_client_tick(a);
    usleep(100000);
  }
  OK(np_client_stats(a, &stats));
  cr_assert_geq(stats.leased_bytes, 9 << 20, "reserved memory was given back for being idle");
  publisher_options.reserve_bytes = stats.budget_bytes + 1;
  struct np_publisher *none = NULL;
  int status = np_publisher_open(a, "news", &publisher_options, &none);
  cr_assert_lt(status, 0);
  cr_assert_null(none);
  cr_assert_neq(np_error_detail()[0], '\0');
  options.reserve_bytes = (uint64_t)1 << 40;
  struct np_client *b = NULL;
  cr_assert_lt(np_connect(&b, &options), 0);
  cr_assert_null(b);
  np_disconnect(a);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, idle_memory_is_given_back_within_seconds) {
  /* Proves: after a burst a client that goes on slowly, or sleeps, keeps little: segments return to the broker and
   * leave subscribers' address space; the burst can come again. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_client_stats stats = {.size = sizeof stats};
  struct np_event event;
  for (int burst = 0; burst < 2; burst++) {
    struct np_event loans[7]; /* of each 2 MiB segment one slot of 1 MiB */
    for (int i = 0; i < 7; i++) OK(np_loan(publisher, 1 << 20, &loans[i]));
    OK(np_client_stats(a, &stats));
    cr_assert_geq(stats.leased_bytes, 14 << 20);
    int segments = instance_segments_leased(&instance, getpid());
    cr_assert_geq(segments, 7);
    for (int i = 0; i < 7; i++) OK(np_discard(publisher, &loans[i]));
    uint64_t before = npi_clock_monotonic();
    EVENTUALLY(30, publish_message(publisher, 1, 64) == NP_OK && np_wait(subscriber, 20000) == NP_OK &&
                       np_take(subscriber, &event) == NP_OK && np_release(subscriber, &event) == NP_OK &&
                       instance_segments_leased(&instance, getpid()) <= 2);
    say("exchange: 6 idle segments of 2 MiB were back after %.1f s\n", (double)(npi_clock_monotonic() - before) / 1e9);
    OK(np_client_stats(a, &stats));
    cr_assert_leq(stats.leased_bytes, 4 << 20);
  }
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  np_disconnect(b);
  instance_stop(&instance);
}

/* ---- comings and goings ------------------------------------------------------------------------------ */

TEST_WITH_BOTH_BACKENDS(exchange, two_hundred_connects_and_disconnects_leave_nothing) {
  /* Proves: descriptors and mappings of this process, the broker's descriptors, records and /dev/shm are as before,
   * however the client went: with or without closing, with events taken or not. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *b = connected();
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_event event;
  int descriptors = 0;
  for (int i = 0; i < 200; i++) {
    struct np_client *a = connected();
    struct np_publisher *publisher = publisher_of(a, "news");
    struct np_subscriber *own = i % 3 == 0 ? subscriber_of(a, "news") : NULL;
    for (uint64_t n = 0; n < 5; n++) send_number(publisher, n);
    if (i % 2 == 0) {
      for (uint64_t n = 0; n < 5; n++) expect_number(subscriber, n);
    }
    if (own != NULL && i % 2 == 0) {
      for (uint64_t n = 0; n < 5; n++) expect_number(own, n);
      OK(np_subscriber_close(own));
    }
    if (i % 5 == 0) np_publisher_close(publisher);
    np_disconnect(a);
    if (i % 2 == 1) {
      for (uint64_t n = 0; n < 5; n++) expect_number(subscriber, n);
    }
    expect_nothing(subscriber);
    EVENTUALLY(20, (np_take(subscriber, &event) == NP_EMPTY && instance_clients(&instance, 0) == 1));
    EVENTUALLY(20, (np_take(subscriber, &event) == NP_EMPTY && instance_connections(&instance, 0) == 0));
    if (i == 20) descriptors = count_descriptors();
  }
  EVENTUALLY(20, (np_take(subscriber, &event) == NP_EMPTY && count_descriptors() == descriptors));
  np_disconnect(b);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(exchange, a_broker_that_ends_does_not_disturb_an_exchange) {
  /* Proves: after SIGTERM to the broker, two connected clients go on exchanging; opening something new fails with
   * NP_ERR_NO_BROKER and words. */
  struct instance instance;
  start(&instance, *backend);
  struct np_client *a = connected();
  struct np_client *b = connected();
  struct np_publisher *publisher = publisher_of(a, "news");
  struct np_subscriber *subscriber = subscriber_of(b, "news");
  struct np_publisher *more = NULL;
  send_number(publisher, 0);
  expect_number(subscriber, 0);
  kill(instance.pid, SIGTERM);
  cr_assert_eq(reap(instance.pid, 60), 0);
  cr_assert_eq(instance_shm_count(&instance), 0, "left behind:%s", instance.leftovers);
  for (uint64_t i = 0; i < 500; i++) {
    OK(publish_message(publisher, i, 64));
    expect_number(subscriber, i);
  }
  cr_assert_eq(np_publisher_open(a, "more", NULL, &more), NP_ERR_NO_BROKER);
  cr_assert_neq(np_error_detail()[0], '\0');
  struct np_client_stats stats = {.size = sizeof stats};
  OK(np_client_stats(a, &stats));
  cr_assert_eq(stats.broker_connected, 0);
  np_disconnect(a);
  np_disconnect(b);
  struct np_client *none = NULL;
  cr_assert_eq(np_connect(&none, NULL), NP_ERR_NO_BROKER);
  instance_forget(&instance);
}

Test(exchange, a_client_may_start_before_its_broker) {
  /* Proves: np_connect with a timeout waits for the broker to come. */
  struct instance instance;
  start(&instance, POSIX); /* for its names and folder */
  instance_stop(&instance);
  struct np_options options;
  struct np_client *a = NULL;
  np_options_init(&options);
  cr_assert_eq(np_connect(&a, &options), NP_ERR_NO_BROKER);
  cr_assert(strstr(np_error_detail(), instance.name) != NULL, "%s", np_error_detail());
  options.timeout_ms = 100;
  cr_assert_eq(np_connect(&a, &options), NP_ERR_NO_BROKER);
}
