/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who comes and goes all day leaves nothing: clients that connect and disconnect, publishers and subscribers that open
 * and close beside one that stays, each with an event in between. Proves: descriptors, memory of the broker and of the
 * client, the registry and /dev/shm are after 20,000 cycles what they were after the first ones.
 *
 * CYCLES=n: how many in all.
 *
 * ctest-timeout: 300
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "numapool/numapool.h"
#include "os/os_clock.h"
#include "support/instance.h"
#include "support/ok.h"
#include "support/peers.h"

TestSuite(cycles, .timeout = 280);

enum { GROWTH_KIB = 1024 }; /* an allocator's own wear; 20,000 times anything forgotten is more */

static struct instance instance;

struct size {
  int broker_descriptors, own_descriptors, objects;
  long broker_kib, own_kib;
};

static struct size size_now(void) {
  return (struct size){.broker_descriptors = instance_descriptors(instance.pid),
                       .own_descriptors = instance_descriptors(getpid()),
                       .objects = instance_shm_count(&instance),
                       .broker_kib = instance_own_kib(instance.pid),
                       .own_kib = instance_own_kib(getpid())};
}

/* While somebody is served the stock waits, and is filled up in the end: looks until that has come to rest. */
static struct size size_at_rest(void) {
  struct size size = size_now();
  for (int left = 100, objects = -1; left > 0 && size.objects != objects; left--) {
    objects = size.objects;
    usleep(200000);
    size = size_now();
  }
  return size;
}

static void exchange(struct np_publisher *publisher, struct np_subscriber *subscriber, uint64_t number) {
  struct np_event event;
  int status;
  while ((status = np_loan(publisher, sizeof number, &event)) == NP_EMPTY) OK(np_wait_credit(publisher, 1000));
  OK(status);
  memcpy(event.data, &number, sizeof number);
  OK(np_publish(publisher, &event));
  OK(np_wait(subscriber, 5000));
  OK(np_take(subscriber, &event));
  cr_assert_eq(memcmp(event.data, &number, sizeof number), 0);
  OK(np_release(subscriber, &event));
}

/* A whole life: connect, both ends, an event, and the end; every other one closes nothing by itself. */
static void visit(uint64_t number) {
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
  OK(np_connect(&client, NULL));
  OK(np_publisher_open(client, "visits", NULL, &publisher));
  OK(np_subscriber_open(client, "visits", NULL, &subscriber));
  exchange(publisher, subscriber, number);
  if (number % 2 == 0) {
    OK(np_subscriber_close(subscriber));
    np_publisher_close(publisher);
  }
  np_disconnect(client);
}

/* One end opens and closes beside one that stays. */
static void subscribe(struct np_client *client, struct np_publisher *publisher, uint64_t number) {
  struct np_subscriber *subscriber;
  OK(np_subscriber_open(client, "stay", NULL, &subscriber));
  exchange(publisher, subscriber, number);
  OK(np_subscriber_close(subscriber));
}
static void publish(struct np_client *client, struct np_subscriber *subscriber, uint64_t number) {
  struct np_publisher *publisher;
  OK(np_publisher_open(client, "stay.too", NULL, &publisher));
  exchange(publisher, subscriber, number);
  np_publisher_close(publisher);
}

Test(cycles, twenty_thousand_visits_leave_nothing) {
  const char *wanted = getenv("CYCLES");
  uint64_t n = wanted != NULL ? strtoull(wanted, NULL, 10) : 20000;
  struct np_client *stays, *comes;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
  struct size first = {0}, last;
  instance_start(&instance, "memory: { per_node: 64MiB, per_client: 16MiB, ready: 4MiB }\n", NULL);
  OK(np_connect(&stays, NULL));
  OK(np_connect(&comes, NULL));
  OK(np_publisher_open(stays, "stay", NULL, &publisher));
  OK(np_subscriber_open(stays, "stay.too", NULL, &subscriber));
  uint64_t begin = npi_clock_monotonic();
  for (uint64_t i = 0; i < n; i++) {
    if (i % 4 == 0) visit(i);
    if (i % 4 == 1 || i % 4 == 2) subscribe(comes, publisher, i);
    if (i % 4 == 3) publish(comes, subscriber, i);
    if (i == n / 10) first = size_at_rest();
  }
  double seconds = (double)(npi_clock_monotonic() - begin) / 1e9;
  last = size_at_rest();
  say("%llu cycles (connect 1/4, subscribe 1/2, publish 1/4) in %.1f s: broker %d -> %d descriptors, %ld -> %ld KiB; "
      "client %d -> %d descriptors, %ld -> %ld KiB; objects %d -> %d\n",
      (unsigned long long)n, seconds, first.broker_descriptors, last.broker_descriptors, first.broker_kib,
      last.broker_kib, first.own_descriptors, last.own_descriptors, first.own_kib, last.own_kib, first.objects,
      last.objects);
  cr_assert_leq(last.broker_kib, first.broker_kib + GROWTH_KIB, "the broker grows");
  cr_assert_leq(last.own_kib, first.own_kib + GROWTH_KIB, "the client grows");
  cr_assert_leq(last.objects, first.objects + 2, "objects are left");
  np_disconnect(stays);
  np_disconnect(comes);
  cr_assert_leq(instance_descriptors(getpid()), first.own_descriptors, "the client's descriptors grow");
  instance_expect_quiet(&instance); /* the broker's descriptors as in the beginning, the registry empty */
  instance_stop(&instance);
}
