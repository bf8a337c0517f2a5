/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker looks for those who sleep at a ring with something in it (reliability.lost_wakes). Here: it wakes nobody in
 * vain, also where something lies in a ring that nobody waits for.
 */
#include <criterion/criterion.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "numapool/numapool.h"
#include "os/os_clock.h"
#include "support/instance.h"
#include "support/ok.h"
#include "support/peers.h"
#include "support/process.h"

TestSuite(sleepers, .timeout = 60);

enum { CREDITS = 16, LOOKS_MS = 2000, WAKES_MAX = 2 };

static struct instance instance;

/* How often the descriptor was readable; each time the program does what it waits for, in vain. */
static int wakes_of(int fd, void (*try)(void *), void *argument) {
  int n = 0;
  uint64_t until = npi_clock_monotonic() + LOOKS_MS * UINT64_C(1000000);
  while (npi_clock_monotonic() < until) {
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    n += poll(&wait, 1, 100) > 0;
    if (wait.revents != 0) try(argument);
  }
  return n;
}

struct full {
  struct np_publisher *publisher;
  struct np_event event;
};

static void publish_in_vain(void *argument) {
  struct full *full = argument;
  cr_assert_eq(np_publish(full->publisher, &full->event), NP_FULL);
}

Test(sleepers, a_full_publisher_is_not_woken_for_credit_of_others) {
  struct np_client *from, *to;
  struct np_subscriber *busy, *lazy;
  struct np_event event;
  struct full full;
  int status = NP_OK;
  instance_start(&instance, "channels: [ { name: news, kind: broadcast, on_full: block, credits: 16 } ]\n", NULL);
  OK(np_connect(&from, NULL));
  OK(np_connect(&to, NULL));
  OK(np_subscriber_open(to, "news", NULL, &busy));
  OK(np_subscriber_open(to, "news", NULL, &lazy));
  OK(np_publisher_open(from, "news", NULL, &full.publisher));
  int fd = np_publisher_fd(full.publisher);
  cr_assert_geq(fd, 0);
  while (status == NP_OK) {
    OK(np_loan(full.publisher, 8, &full.event));
    status = np_publish(full.publisher, &full.event);
    if (np_take(busy, &event) == NP_OK) OK(np_release(busy, &event));
  }
  cr_assert_eq(status, NP_FULL);
  int wakes = wakes_of(fd, publish_in_vain, &full);
  say("sleepers: a full publisher was woken %d times in %d ms\n", wakes, LOOKS_MS);
  cr_assert_leq(wakes, WAKES_MAX);
  while (np_take(lazy, &event) == NP_OK) OK(np_release(lazy, &event));
  OK(np_publish(full.publisher, &full.event));
  np_disconnect(from);
  np_disconnect(to);
  instance_stop(&instance);
}

static int publisher_body(void *argument) {
  _Atomic int *published = argument;
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_event event;
  if (np_connect(&client, NULL) != NP_OK || np_publisher_open(client, "news", NULL, &publisher) != NP_OK) return 1;
  for (int i = 0; i < CREDITS / 2; i++) {
    if (np_loan(publisher, 8, &event) != NP_OK || np_publish(publisher, &event) != NP_OK) return 2;
  }
  *published = 1;
  for (;;) pause();
}

static void take_in_vain(void *argument) {
  struct np_event event;
  cr_assert_eq(np_take(argument, &event), NP_EMPTY);
}

Test(sleepers, a_subscriber_is_not_woken_for_what_another_left_behind) {
  struct np_client *client;
  struct np_subscriber *news, *quiet;
  _Atomic int *published = shared_memory(sizeof *published);
  instance_start(&instance, "channels: [ { name: news, kind: broadcast, on_full: block, credits: 16 } ]\n", NULL);
  OK(np_connect(&client, NULL));
  OK(np_subscriber_open(client, "news", NULL, &news));
  OK(np_subscriber_open(client, "quiet", NULL, &quiet));
  pid_t pid = spawn(publisher_body, (void *)published);
  EVENTUALLY(20, *published);
  cr_assert(process_stop(pid)); /* so it does not let go of what it gave to the one that closes now */
  OK(np_subscriber_close(news));
  int fd = np_fd(quiet);
  cr_assert_geq(fd, 0);
  take_in_vain(quiet);
  int wakes = wakes_of(fd, take_in_vain, quiet);
  say("sleepers: an idle subscriber was woken %d times in %d ms\n", wakes, LOOKS_MS);
  cr_assert_leq(wakes, WAKES_MAX);
  kill(pid, SIGCONT);
  kill(pid, SIGKILL);
  reap(pid, 10);
  np_disconnect(client);
  instance_stop(&instance);
}
