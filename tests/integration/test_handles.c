/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients, publishers, subscribers and events, used wrongly, closed and gone: misuse is refused and harms nobody, an end
 * takes nothing from those who go on, and leaves nothing behind.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "client/worker.h"
#include "tests/support/backends.h"
#include "tests/support/child.h"
#include "tests/support/exchange.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"

TestSuite(handles, .timeout = 180);

TEST_WITH_BOTH_BACKENDS(handles, using_an_event_after_it_was_given_away_is_refused) {
  /* Proves: double publish, discard after publish, double release, release after another lap: NP_ERR_MISUSE, and the
   * connection lives on. */
  struct pair pair;
  pair_open(&pair, *backend, "news");
  struct np_subscriber *other = subscriber_of(pair.b, "news");
  struct np_event event;
  struct np_event copy;
  OK(np_loan(pair.publisher, 100, &event));
  copy = event;
  OK(np_publish(pair.publisher, &event));
  cr_assert_eq(np_publish(pair.publisher, &event), NP_ERR_MISUSE);
  cr_assert_eq(np_publish(pair.publisher, &copy), NP_ERR_MISUSE);
  cr_assert_eq(np_discard(pair.publisher, &copy), NP_ERR_MISUSE);
  cr_assert_eq(np_set_topic(pair.publisher, &copy, "x", 1), NP_ERR_MISUSE);
  OK(np_loan(pair.publisher, 100, &event));
  copy = event;
  OK(np_discard(pair.publisher, &event));
  cr_assert_eq(np_discard(pair.publisher, &copy), NP_ERR_MISUSE);
  cr_assert_eq(np_publish(pair.publisher, &copy), NP_ERR_MISUSE);
  OK(np_take(pair.subscriber, &event));
  copy = event;
  cr_assert_eq(np_release(other, &event), NP_ERR_MISUSE);
  OK(np_release(pair.subscriber, &event));
  cr_assert_eq(np_release(pair.subscriber, &event), NP_ERR_MISUSE);
  cr_assert_eq(np_release(pair.subscriber, &copy), NP_ERR_MISUSE);
  expect_nothing(pair.subscriber);
  struct np_event made_up = {0};
  cr_assert_eq(np_release(pair.subscriber, &made_up), NP_ERR_MISUSE);
  for (int i = 0; i < 300; i++) { /* the same credit and slot again and again */
    OK(np_take(other, &event));
    OK(np_release(other, &event));
    send_number(pair.publisher, (uint64_t)i);
    OK(np_take(pair.subscriber, &event));
    cr_assert_eq(np_release(pair.subscriber, &copy), NP_ERR_MISUSE, "lap %d", i);
    copy = event;
    OK(np_release(pair.subscriber, &event));
  }
  OK(np_take(other, &event));
  OK(np_release(other, &event));
  cr_assert(all_returned(pair.a, 10));
  pair_close(&pair);
}

TEST_WITH_BOTH_BACKENDS(handles, a_child_cannot_use_its_parents_handles_and_the_parent_notices_nothing) {
  /* Proves: every function answers NP_ERR_FORKED in a forked child, np_disconnect there is harmless, and the child
   * may connect anew. */
  struct instance instance;
  exchange_start(&instance, *backend);
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

/* Until the publisher is connected to so many subscribers. */
static void until_subscribers(struct np_client *client, struct np_publisher *publisher, uint32_t n) {
  struct np_publisher_stats stats = {.size = sizeof stats};
  EVENTUALLY(20, (npi_client_tick(client), np_publisher_stats(publisher, &stats)) == NP_OK && stats.subscribers == n);
}

TEST_WITH_BOTH_BACKENDS(handles, a_subscriber_that_holds_events_cannot_be_closed) {
  /* Proves: NP_ERR_STATE with the number held; after the release it closes, and the publisher goes on. */
  struct pair pair;
  pair_open(&pair, *backend, "news");
  struct np_event events[3];
  for (uint64_t i = 0; i < 5; i++) send_number(pair.publisher, i);
  cr_assert_eq(np_take_many(pair.subscriber, events, 3), 3);
  cr_assert_eq(np_subscriber_close(pair.subscriber), NP_ERR_STATE);
  cr_assert(strstr(np_error_detail(), "3 events") != NULL, "%s", np_error_detail());
  OK(np_release_many(pair.subscriber, events, 3));
  OK(np_subscriber_close(pair.subscriber));
  until_subscribers(pair.a, pair.publisher, 0);
  cr_assert(all_returned(pair.a, 10));
  send_number(pair.publisher, 9);
  EVENTUALLY(10, (npi_client_tick(pair.a), instance_connections(&pair.instance, 0) == 0));
  pair_close(&pair);
}

TEST_WITH_BOTH_BACKENDS(handles, what_a_closed_publisher_published_is_still_taken) {
  /* Proves: np_publisher_close takes nothing from anybody, loaned events go back, and a new publisher follows. */
  struct instance instance;
  exchange_start(&instance, *backend);
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

TEST_WITH_BOTH_BACKENDS(handles, what_a_process_published_outlives_it) {
  /* Proves: the publishing process disconnects and ends before the subscriber takes the first event: all of them
   * come, and afterwards its memory is given back. */
  struct instance instance;
  exchange_start(&instance, *backend);
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

TEST_WITH_BOTH_BACKENDS(handles, a_held_event_stays_readable_after_its_publisher_is_gone) {
  /* Proves: the last holder keeps the segment alive; after the release nothing of the publisher is left. */
  struct instance instance;
  exchange_start(&instance, *backend);
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

TEST_WITH_BOTH_BACKENDS(handles, two_hundred_connects_and_disconnects_leave_nothing) {
  /* Proves: descriptors and mappings of this process, the broker's descriptors, records and /dev/shm are as before,
   * however the client went: with or without closing, with events taken or not. */
  struct instance instance;
  exchange_start(&instance, *backend);
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
