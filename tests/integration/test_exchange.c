/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two clients, or one with itself, exchange events through a real broker: from when on, of which sizes, with which header
 * fields, and apart from other channels.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "client/client_internal.h"
#include "client/worker.h"
#include "tests/support/backends.h"
#include "tests/support/exchange.h"
#include "tests/support/instance.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"

TestSuite(exchange, .timeout = 180);

TEST_WITH_BOTH_BACKENDS(exchange, what_was_published_before_subscribing_is_not_seen_and_what_comes_after_is) {
  /* Proves: a subscription begins when np_subscriber_open returns; events before it are counted as dropped. */
  struct instance instance;
  exchange_start(&instance, *backend);
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
  exchange_start(&instance, *backend);
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
  struct pair pair;
  pair_open(&pair, *backend, "news");
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
    OK(np_loan(pair.publisher, sizes[i], &event));
    cr_assert_eq(event.size, sizes[i]);
    memset(event.data, (int)(i + 1), sizes[i]);
    OK(np_publish(pair.publisher, &event));
    cr_assert_null(event.data);
    OK(np_wait(pair.subscriber, 20000));
    OK(np_take(pair.subscriber, &event));
    cr_assert_eq(event.size, sizes[i]);
    cr_assert_null(event.topic);
    for (size_t at = 0; at < sizes[i]; at++) {
      if (((const uint8_t *)event.data)[at] != (uint8_t)(i + 1)) cr_assert(0, "byte %zu of %zu", at, sizes[i]);
    }
    OK(np_release(pair.subscriber, &event));
  }
  cr_assert_eq(np_loan(pair.publisher, ((size_t)1 << 20) + 1, &event), NP_ERR_TOO_LARGE);
  cr_assert(strstr(np_error_detail(), "1048577") != NULL, "%s", np_error_detail());
  cr_assert(all_returned(pair.a, 10));
  pair_close(&pair);
}

TEST_WITH_BOTH_BACKENDS(exchange, topic_priority_and_time_travel_with_the_event) {
  /* Proves: header fields arrive as set, a topic fills the slot to its last byte, and one byte more is refused. */
  struct pair pair;
  pair_open(&pair, *backend, "news");
  struct np_event event;
  for (unsigned priority = NP_PRIORITY_BATCH; priority <= NP_PRIORITY_CRITICAL; priority++) {
    OK(np_loan(pair.publisher, 256, &event));
    cr_assert_eq(event.priority, NP_PRIORITY_NORMAL);
    event.size = 200;
    memset(event.data, 'x', event.size);
    char topic[57];
    memset(topic, 't', sizeof topic);
    cr_assert_eq(np_set_topic(pair.publisher, &event, topic, 57), NP_ERR_TOO_LARGE);
    OK(np_set_topic(pair.publisher, &event, topic, 56));
    event.priority = (uint8_t)priority;
    event.time_ns = 1000 + priority;
    OK(np_publish(pair.publisher, &event));
    OK(np_wait(pair.subscriber, 20000));
    OK(np_take(pair.subscriber, &event));
    cr_assert_eq(event.priority, priority);
    cr_assert_eq(event.time_ns, 1000 + priority);
    cr_assert_eq(event.topic_size, 56);
    cr_assert_eq(memcmp(event.topic, topic, 56), 0);
    struct np_source source = {.size = sizeof source};
    cr_assert_eq(np_event_source(pair.subscriber, &event, &source), NP_ERR_NOT_FOUND);
    OK(np_release(pair.subscriber, &event));
  }
  cr_assert(all_returned(pair.a, 10));
  pair_close(&pair);
}

TEST_WITH_BOTH_BACKENDS(exchange, many_channels_of_one_pair_do_not_mix) {
  /* Proves: 40 channels made on demand between two clients each carry only their own events. */
  enum { CHANNELS_COUNT = 40, ROUNDS = 30 };
  struct instance instance;
  exchange_start(&instance, *backend);
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
  exchange_start(&instance, *backend);
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
