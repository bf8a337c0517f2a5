/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker was killed, has ended, or is not there yet: what goes on between those who are connected, and what a program
 * is told.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <string.h>

#include "numapool/numapool.h"
#include "tests/support/backends.h"
#include "tests/support/broker_fixture.h"
#include "tests/support/exchange.h"
#include "tests/support/instance.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"

TestSuite(broker_away, .timeout = 180);

static struct np_client *connect_to(const struct npi_test_broker *broker) {
  struct np_client *client = NULL;
  struct np_options options;
  np_options_init(&options);
  options.socket_path = broker->socket_path;
  OK(np_connect(&client, &options));
  return client;
}

static void exchange_one(struct np_publisher *publisher, struct np_subscriber *subscriber, char letter) {
  struct np_event event;
  OK(np_loan(publisher, 1, &event));
  *(char *)event.data = letter;
  OK(np_publish(publisher, &event));
  OK(np_wait(subscriber, 5000));
  OK(np_take(subscriber, &event));
  cr_assert_eq(*(const char *)event.data, letter);
  OK(np_release(subscriber, &event));
}

/* Proves that the data path never needed the broker, and that what does need it fails with words, at once. */
Test(broker_away, connected_clients_go_on_and_the_rest_says_why_not) {
  struct npi_test_broker broker = {0};
  struct np_publisher *publisher, *another;
  struct np_subscriber *subscriber;
  npi_test_broker_start(&broker, NULL);
  struct np_client *sender = connect_to(&broker);
  struct np_client *receiver = connect_to(&broker);
  OK(np_publisher_open(sender, "news", NULL, &publisher));
  OK(np_subscriber_open(receiver, "news", NULL, &subscriber));
  exchange_one(publisher, subscriber, 'a');
  npi_test_broker_kill(&broker);
  for (int i = 0; i < 10000; i++) exchange_one(publisher, subscriber, (char)('a' + i % 26));
  cr_assert_eq(np_publisher_open(sender, "other", NULL, &another), NP_ERR_NO_BROKER);
  cr_assert(strstr(np_error_detail(), "broker") != NULL, "%s", np_error_detail());
  np_disconnect(sender);
  np_disconnect(receiver);
  npi_test_broker_clean(&broker);
}

/* Proves that a program which only sleeps in np_wait learns that the broker is gone. */
Test(broker_away, a_sleeping_subscriber_notices_it) {
  struct npi_test_broker broker = {0};
  struct np_subscriber *subscriber;
  struct np_client_stats stats = {.size = sizeof stats};
  npi_test_broker_start(&broker, NULL);
  struct np_client *receiver = connect_to(&broker);
  OK(np_subscriber_open(receiver, "news", NULL, &subscriber));
  OK(np_client_stats(receiver, &stats));
  cr_assert_eq(stats.broker_connected, 1);
  npi_test_broker_kill(&broker);
  cr_assert_eq(np_wait(subscriber, 300), NP_TIMEOUT);
  OK(np_client_stats(receiver, &stats));
  cr_assert_eq(stats.broker_connected, 0);
  np_disconnect(receiver);
  npi_test_broker_clean(&broker);
}

TEST_WITH_BOTH_BACKENDS(broker_away, a_broker_that_ends_does_not_disturb_an_exchange) {
  /* Proves: after SIGTERM to the broker, two connected clients go on exchanging; opening something new fails with
   * NP_ERR_NO_BROKER and words. */
  struct instance instance;
  exchange_start(&instance, *backend);
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

Test(broker_away, a_client_may_start_before_its_broker) {
  /* Proves: np_connect with a timeout waits for the broker to come. */
  struct instance instance;
  exchange_start(&instance, POSIX); /* for its names and folder */
  instance_stop(&instance);
  struct np_options options;
  struct np_client *a = NULL;
  np_options_init(&options);
  cr_assert_eq(np_connect(&a, &options), NP_ERR_NO_BROKER);
  cr_assert(strstr(np_error_detail(), instance.name) != NULL, "%s", np_error_detail());
  options.timeout_ms = 100;
  cr_assert_eq(np_connect(&a, &options), NP_ERR_NO_BROKER);
}
