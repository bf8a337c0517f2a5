/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who gets what: each subscriber of a broadcast channel every event, a group each event once, a tap what it can take; and
 * what a slow subscriber misses is counted.
 */
#include <criterion/criterion.h>

#include "tests/support/backends.h"
#include "tests/support/exchange.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"

TestSuite(delivery, .timeout = 180);

TEST_WITH_BOTH_BACKENDS(delivery, two_subscriber_processes_each_get_every_event_in_order) {
  /* Proves: broadcast with on_full block loses nothing between processes; every byte is right. */
  enum { EVENTS = 20000 };
  struct instance instance;
  exchange_start(&instance, *backend);
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

TEST_WITH_BOTH_BACKENDS(delivery, a_group_of_three_processes_gets_each_event_exactly_once) {
  /* Proves: every number is seen by one member, none twice, and each member did a part of the work. */
  enum { EVENTS = 20000, MEMBERS = 3 };
  struct instance instance;
  exchange_start(&instance, *backend);
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

TEST_WITH_BOTH_BACKENDS(delivery, a_tap_sees_a_group_and_takes_nothing_from_it) {
  /* Proves: beside a tap that never releases, a member still gets each event; the tap's misses are counted. */
  enum { EVENTS = 2000 };
  struct instance instance;
  exchange_start(&instance, *backend);
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

TEST_WITH_BOTH_BACKENDS(delivery, what_a_slow_subscriber_misses_is_counted_and_is_the_gap_it_sees) {
  /* Proves: with drop_newest the publisher never waits; the missed counter is the sum of the sequence gaps, and
   * received + missed is what was published. */
  struct pair pair;
  pair_open(&pair, *backend, "drops");
  struct np_event event;
  uint64_t received = 0;
  uint64_t gaps = 0;
  uint64_t next = 0;
  uint64_t published = 0;
  for (int round = 0; round < 50; round++) {
    for (int i = 0; i < 10 + round; i++) send_number(pair.publisher, published++);
    for (int i = 0; i < 8 + round / 2 && np_take(pair.subscriber, &event) == NP_OK; i++) {
      gaps += event.sequence - next;
      next = event.sequence + 1;
      received++;
      OK(np_release(pair.subscriber, &event));
    }
  }
  while (np_take(pair.subscriber, &event) == NP_OK) {
    gaps += event.sequence - next;
    next = event.sequence + 1;
    received++;
    OK(np_release(pair.subscriber, &event));
  }
  gaps += published - next; /* those after the last one that came */
  struct np_subscriber_stats stats = {.size = sizeof stats};
  struct np_publisher_stats publisher_stats = {.size = sizeof publisher_stats};
  OK(np_subscriber_stats(pair.subscriber, &stats));
  OK(np_publisher_stats(pair.publisher, &publisher_stats));
  cr_assert_gt(gaps, 0);
  cr_assert_eq(stats.missed, gaps);
  cr_assert_eq(publisher_stats.dropped_no_credit, gaps);
  cr_assert_eq(received + gaps, published);
  cr_assert_eq(stats.taken, received);
  cr_assert(all_returned(pair.a, 10));
  pair_close(&pair);
}

TEST_WITH_BOTH_BACKENDS(delivery, twenty_publishers_and_twenty_subscribers_exchange_everything) {
  /* Proves: 400 connections, each in order and without a gap. Ten processes a side with two ends each. */
  enum { CLIENTS = 20, EVENTS = 50 };
  struct instance instance;
  exchange_start(&instance, *backend);
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
