/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of a client: leased when it is needed or reserved, refused with the holders' names when there is none, given
 * back when it is idle.
 */
#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "client/worker.h"
#include "os/os_clock.h"
#include "tests/support/backends.h"
#include "tests/support/exchange.h"
#include "tests/support/instance.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"

TestSuite(client_memory, .timeout = 180);

TEST_WITH_BOTH_BACKENDS(client_memory, a_dry_pool_says_who_holds_its_memory) {
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

TEST_WITH_BOTH_BACKENDS(client_memory, memory_is_reserved_when_asked_for) {
  /* Proves: reserve_bytes of client and publisher lease at once and stay leased however idle; more than the budget is
   * refused, all or nothing. */
  struct instance instance;
  exchange_start(&instance, *backend);
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

TEST_WITH_BOTH_BACKENDS(client_memory, idle_memory_is_given_back_within_seconds) {
  /* Proves: after a burst a client that goes on slowly, or sleeps, keeps little: segments return to the broker and
   * leave subscribers' address space; the burst can come again. */
  struct pair pair;
  pair_open(&pair, *backend, "news");
  struct np_client_stats stats = {.size = sizeof stats};
  struct np_event event;
  for (int burst = 0; burst < 2; burst++) {
    struct np_event loans[7]; /* of each 2 MiB segment one slot of 1 MiB */
    for (int i = 0; i < 7; i++) OK(np_loan(pair.publisher, 1 << 20, &loans[i]));
    OK(np_client_stats(pair.a, &stats));
    cr_assert_geq(stats.leased_bytes, 14 << 20);
    int segments = instance_segments_leased(&pair.instance, getpid());
    cr_assert_geq(segments, 7);
    for (int i = 0; i < 7; i++) OK(np_discard(pair.publisher, &loans[i]));
    uint64_t before = npi_clock_monotonic();
    EVENTUALLY(30, publish_message(pair.publisher, 1, 64) == NP_OK && np_wait(pair.subscriber, 20000) == NP_OK &&
                       np_take(pair.subscriber, &event) == NP_OK && np_release(pair.subscriber, &event) == NP_OK &&
                       instance_segments_leased(&pair.instance, getpid()) <= 2);
    say("client_memory: 6 idle segments of 2 MiB were back after %.1f s\n",
        (double)(npi_clock_monotonic() - before) / 1e9);
    OK(np_client_stats(pair.a, &stats));
    cr_assert_leq(stats.leased_bytes, 4 << 20);
  }
  cr_assert(all_returned(pair.a, 10));
  pair_close(&pair);
}
