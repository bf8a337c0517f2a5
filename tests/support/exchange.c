/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/exchange.h"

#include <criterion/criterion.h>

#include "tests/support/backends.h"
#include "tests/support/message.h"
#include "tests/support/ok.h"

void exchange_start(struct instance *instance, int backend) {
  instance_start_with(instance, backend, "per_node: 64MiB, ready: 4MiB",
                      "channels:\n"
                      "  - { name: news,  kind: broadcast, credits: 64, on_full: block }\n"
                      "  - { name: drops, kind: broadcast, credits: 16, on_full: drop_newest }\n"
                      "  - { name: work,  kind: group, credits: 16, on_full: block }\n");
}

struct np_client *connected(void) {
  struct np_client *client = NULL;
  OK(np_connect(&client, NULL));
  return client;
}

struct np_publisher *publisher_of(struct np_client *client, const char *channel) {
  struct np_publisher *publisher = NULL;
  OK(np_publisher_open(client, channel, NULL, &publisher));
  return publisher;
}

struct np_subscriber *subscriber_of(struct np_client *client, const char *channel) {
  struct np_subscriber *subscriber = NULL;
  OK(np_subscriber_open(client, channel, NULL, &subscriber));
  return subscriber;
}

void pair_open(struct pair *pair, int backend, const char *channel) {
  exchange_start(&pair->instance, backend);
  pair->a = connected();
  pair->b = connected();
  pair->publisher = publisher_of(pair->a, channel);
  pair->subscriber = subscriber_of(pair->b, channel);
}

void pair_close(struct pair *pair) {
  np_disconnect(pair->a);
  np_disconnect(pair->b);
  instance_stop(&pair->instance);
}

void send_number(struct np_publisher *publisher, uint64_t number) {
  OK(publish_message(publisher, number, message_size(number)));
}

void expect_number(struct np_subscriber *subscriber, uint64_t number) {
  struct np_event event;
  uint64_t got = 0;
  OK(np_wait(subscriber, 20000));
  OK(np_take(subscriber, &event));
  cr_assert(message_ok(event.data, event.size, &got), "message %llu is damaged", (unsigned long long)number);
  cr_assert_eq(got, number, "got %llu, not %llu", (unsigned long long)got, (unsigned long long)number);
  OK(np_release(subscriber, &event));
}

void expect_nothing(struct np_subscriber *subscriber) {
  struct np_event event;
  cr_assert_eq(np_take(subscriber, &event), NP_EMPTY);
}

void expect_flawless(const struct receiver *receiver, uint64_t received) {
  cr_assert_eq(receiver->received, received, "received %llu of %llu", (unsigned long long)receiver->received,
               (unsigned long long)received);
  cr_assert_eq(receiver->bad, 0, "%llu damaged", (unsigned long long)receiver->bad);
  cr_assert_eq(receiver->gaps, 0, "%llu missing", (unsigned long long)receiver->gaps);
  cr_assert_eq(receiver->out_of_order, 0);
  cr_assert_eq(receiver->number_breaks, 0);
  cr_assert_eq(receiver->corrupt, 0);
  cr_assert_eq(receiver->missed, 0);
}
