/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who waits sleeps and is woken: a subscriber for events, a publisher for credit, in np_wait or in an event loop of its
 * own, with and without membarrier.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "tests/support/backends.h"
#include "tests/support/child.h"
#include "tests/support/exchange.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"
#include "tests/support/process.h"

TestSuite(waiting, .timeout = 180);

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
  exchange_start(&instance, POSIX);
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
  say("waiting: %d events, subscriber slept %llu times, publisher rang %llu times\n", EVENTS,
      (unsigned long long)receiver->gaps, (unsigned long long)stats.wakes);
  cr_assert_gt(stats.wakes, EVENTS / 2,
               "the subscriber was asleep nearly always: most wake-ups must be the publisher's");
  cr_assert(all_returned(a, 10));
  np_disconnect(a);
  instance_stop(&instance);
}

Test(waiting, a_sleeping_subscriber_in_another_process_is_woken) {
  /* Proves: the doorbell rings across processes, after short and long sleeps. */
  wake_sleepers(0);
}

Test(waiting, a_sleeping_subscriber_without_membarrier_is_woken) {
  /* Proves: the fenced fallback of the sleeper. */
  wake_sleepers(1);
}

Test(waiting, a_publisher_without_membarrier_wakes_a_sleeping_subscriber) {
  /* Proves: the fenced fallback of the peer. */
  wake_sleepers(2);
}

TEST_WITH_BOTH_BACKENDS(waiting, a_publisher_waits_for_a_blocking_subscriber_in_another_process) {
  /* Proves: without credit publish says NP_FULL and keeps the event the caller's; np_wait_credit sleeps until the
   * other process releases; nothing is lost. */
  enum { EVENTS = 3000 };
  struct instance instance;
  exchange_start(&instance, *backend);
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

TEST_WITH_BOTH_BACKENDS(waiting, a_wait_ends_with_its_time_and_not_before) {
  /* Proves: np_wait(0) looks once; np_wait(n) lasts at least n ms and answers NP_TIMEOUT; both ends. */
  struct pair pair;
  pair_open(&pair, *backend, "news");
  cr_assert_eq(np_wait(pair.subscriber, 0), NP_TIMEOUT);
  static const int64_t times[] = {1, 20, 130};
  for (unsigned i = 0; i < 3; i++) {
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    cr_assert_eq(np_wait(pair.subscriber, times[i]), NP_TIMEOUT);
    clock_gettime(CLOCK_MONOTONIC, &after);
    int64_t took = (after.tv_sec - before.tv_sec) * INT64_C(1000000000) + after.tv_nsec - before.tv_nsec;
    cr_assert_geq(took, times[i] * 1000000);
  }
  OK(np_wait_credit(pair.publisher, 0));
  send_number(pair.publisher, 1);
  OK(np_wait(pair.subscriber, 0));
  OK(np_wait(pair.subscriber, -1));
  expect_number(pair.subscriber, 1);
  pair_close(&pair);
}

TEST_WITH_BOTH_BACKENDS(waiting, two_subscribers_of_a_client_share_a_descriptor_for_epoll) {
  /* Proves: np_fd is readable when either has something; taking until NP_EMPTY and going back to epoll loses no
   * event and no wake-up, through 400 rounds with another process. */
  enum { EVENTS = 400 };
  struct instance instance;
  exchange_start(&instance, *backend);
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

TEST_WITH_BOTH_BACKENDS(waiting, a_publisher_that_met_full_waits_in_its_own_epoll) {
  /* Proves: np_publisher_fd is silent while there is no credit and readable after the subscriber released. */
  struct pair pair;
  pair_open(&pair, *backend, "news");
  struct pollfd look = {.fd = np_publisher_fd(pair.publisher), .events = POLLIN};
  struct np_event event;
  struct np_event taken;
  cr_assert_geq(look.fd, 0);
  for (int round = 0; round < 20; round++) {
    for (;;) {
      OK(np_loan(pair.publisher, 64, &event));
      int status = np_publish(pair.publisher, &event);
      if (status == NP_FULL) break;
      OK(status);
    }
    cr_assert_eq(poll(&look, 1, 0), 0, "round %d: readable without credit", round);
    OK(np_take(pair.subscriber, &taken));
    cr_assert_eq(poll(&look, 1, 0), 0, "round %d: readable though nothing was released", round);
    OK(np_release(pair.subscriber, &taken));
    cr_assert_eq(poll(&look, 1, 20000), 1, "round %d: not readable after a release", round);
    OK(np_publish(pair.publisher, &event));
    while (np_take(pair.subscriber, &taken) == NP_OK) OK(np_release(pair.subscriber, &taken));
  }
  cr_assert(all_returned(pair.a, 10));
  pair_close(&pair);
}
