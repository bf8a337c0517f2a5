/* SPDX-License-Identifier: Apache-2.0 */
/* Events of a member that left go on to another, also where their publisher has nothing new to publish. */
#include <criterion/criterion.h>
#include <poll.h>
#include <unistd.h>

#include "numapool/numapool.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"

TestSuite(redelivery, .timeout = 60);

enum { CREDITS = 16 };

static struct instance instance;
static struct np_client *sender, *first, *second;
static struct np_publisher *publisher;
static struct np_subscriber *stays, *leaves;
static struct np_event held[CREDITS];

/* Both members have all they may have; then one leaves, and what it had waits for credit of the other. */
static void let_events_wait(void) {
  instance_start(&instance, "channels: [ { name: work, kind: group, credits: 16, on_full: block } ]\n", NULL);
  OK(np_connect(&sender, NULL));
  OK(np_connect(&first, NULL));
  OK(np_connect(&second, NULL));
  OK(np_publisher_open(sender, "work", NULL, &publisher));
  OK(np_subscriber_open(first, "work", NULL, &stays));
  OK(np_subscriber_open(second, "work", NULL, &leaves));
  for (uint64_t i = 0; i < 2 * CREDITS; i++) OK(publish_message(publisher, i, message_size(i)));
  for (int i = 0; i < CREDITS; i++) OK(np_take(stays, &held[i]));
  OK(np_subscriber_close(leaves));
  EVENTUALLY(10, (np_wait_credit(publisher, 0), instance_connections(&instance, 0) == 1));
}

static int take_the_rest(void) {
  struct np_event event;
  int n = 0;
  while (np_take(stays, &event) == NP_OK) {
    cr_assert(event.flags & NP_EVENT_REDELIVERED);
    OK(np_release(stays, &event));
    n++;
  }
  return n;
}

static void end(void) {
  np_disconnect(sender);
  np_disconnect(first);
  np_disconnect(second);
  instance_stop(&instance);
}

Test(redelivery, waiting_for_credit_is_enough) {
  int n = 0;
  let_events_wait();
  cr_assert_eq(take_the_rest(), 0);
  for (int i = 0; i < CREDITS; i++) OK(np_release(stays, &held[i]));
  EVENTUALLY(10, (np_wait_credit(publisher, 0), (n += take_the_rest()) == CREDITS));
  end();
}

Test(redelivery, the_publishers_descriptor_says_that_it_is_time) {
  int n = 0;
  let_events_wait();
  int fd = np_publisher_fd(publisher);
  cr_assert_geq(fd, 0);
  np_wait_credit(publisher, 0);
  struct pollfd wait = {.fd = fd, .events = POLLIN};
  cr_assert_eq(poll(&wait, 1, 100), 0, "readable though there is no credit");
  for (int i = 0; i < CREDITS; i++) OK(np_release(stays, &held[i]));
  while (n < CREDITS) {
    cr_assert_eq(poll(&wait, 1, 10000), 1, "not readable though there is credit: %d of %d came", n, CREDITS);
    np_wait_credit(publisher, 0);
    n += take_the_rest();
  }
  cr_assert_eq(n, CREDITS);
  end();
}
