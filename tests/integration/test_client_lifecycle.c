/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seams of a client's life: a broker that is stopped, a peer that lies, words that cross each other, and waits
 * of two kinds in one program. Most of it needs a state that honest programs reach rarely; it is made here.
 *
 * ctest-timeout: 300
 */
#include <criterion/criterion.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "client/worker.h"
#include "os/os_clock.h"
#include "tests/support/child.h"
#include "tests/support/exchange.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"
#include "tests/support/process.h"
#include "wire/channel.h"

TestSuite(client_lifecycle, .timeout = 120);

static void start(struct instance *instance) {
  instance_start(instance,
                 "memory: { per_node: 64MiB, ready: 4MiB }\n"
                 "channels:\n"
                 "  - { name: news,  kind: broadcast, credits: 16, on_full: block }\n"
                 "  - { name: drops, kind: broadcast, credits: 16, on_full: drop_newest }\n"
                 "  - { name: work,  kind: group, credits: 16, on_full: block }\n",
                 NULL);
}

static int publish(struct np_publisher *publisher, uint64_t number) {
  struct np_event event;
  OK(np_loan(publisher, 64, &event));
  message_fill(event.data, 64, number);
  int status = np_publish(publisher, &event);
  if (status != NP_OK) OK(np_discard(publisher, &event));
  return status;
}

/* Continues the broker after a while, whatever this test hangs in. */
static pid_t continue_later(const struct instance *instance, int ms) {
  pid_t pid = fork();
  if (pid == 0) {
    usleep((useconds_t)ms * 1000);
    kill(instance->pid, SIGCONT);
    _exit(0);
  }
  return pid;
}

/* While it waits for requests: those that come are then served in their order. */
static void stop_broker(const struct instance *instance) {
  EVENTUALLY(20, process_state(instance->pid) == 'S');
  cr_assert(process_stop(instance->pid));
}

/* More events for the subscribers of a channel than their sockets hold: publishers come and go. */
enum { VISITS = 240, TAKES_MS_MAX = 2000 };
static void visit_often(struct np_client *client, const char *channel) {
  static struct np_publisher *publishers[VISITS];
  for (int i = 0; i < VISITS; i++) publishers[i] = publisher_of(client, channel);
  for (int i = 0; i < VISITS; i++) np_publisher_close(publishers[i]);
}

Test(client_lifecycle, a_take_answers_while_a_stopped_broker_has_announced_what_it_has_not_sent) {
  struct instance instance;
  struct np_event event;
  start(&instance);
  struct np_client *reader = connected(), *visitor = connected();
  struct np_subscriber *subscriber = subscriber_of(reader, "drops");
  struct np_publisher *publisher = publisher_of(visitor, "drops");
  cr_assert_eq(np_take(subscriber, &event), NP_EMPTY); /* it knows the publisher */
  cr_assert_eq(publish(publisher, 7), NP_OK);
  visit_often(visitor, "drops");
  stop_broker(&instance);
  pid_t helper = continue_later(&instance, 30000);
  uint64_t best_ms = UINT64_MAX;
  for (int round = 0; round < 3 && best_ms >= TAKES_MS_MAX; round++) {
    uint64_t begin = npi_clock_monotonic();
    if (round == 0) {
      OK(np_take(subscriber, &event)); /* what is there is there */
      OK(np_release(subscriber, &event));
    }
    cr_assert(npi_client_has_news(reader), "the socket had room for all: the broker was never behind");
    for (int i = 0; i < 1000; i++) cr_assert_eq(np_take(subscriber, &event), NP_EMPTY);
    uint64_t took_ms = (npi_clock_monotonic() - begin) / 1000000;
    say("client_lifecycle: 1000 takes beside a stopped broker in %llu ms\n", (unsigned long long)took_ms);
    if (took_ms < best_ms) best_ms = took_ms;
  }
  kill(instance.pid, SIGCONT);
  kill(helper, SIGKILL);
  waitpid(helper, NULL, 0);
  cr_assert_lt(best_ms, TAKES_MS_MAX);
  EVENTUALLY(20, np_take(subscriber, &event) == NP_EMPTY && !npi_client_has_news(reader));
  np_disconnect(reader);
  np_disconnect(visitor);
  instance_stop(&instance);
}

Test(client_lifecycle, a_goodbye_counts_though_much_was_waiting_to_be_read) {
  struct instance instance;
  start(&instance);
  struct np_client *reader = connected(), *visitor = connected();
  subscriber_of(reader, "news");
  visit_often(visitor, "news");
  np_disconnect(reader); /* this process lives on: nothing but the word says that the client is gone */
  EVENTUALLY(10, (npi_client_tick(visitor), instance_clients(&instance, getpid()) == 1));
  cr_assert(!instance_log_has(&instance, "client.unreachable"));
  np_disconnect(visitor);
  instance_stop(&instance);
}

Test(client_lifecycle, a_thousand_ends_at_once_are_all_acknowledged) {
  struct instance instance;
  start(&instance);
  struct np_client *reader = connected(), *visitors[4];
  struct np_subscriber *subscriber = subscriber_of(reader, "drops");
  struct np_event event;
  for (int i = 0; i < 4; i++) {
    visitors[i] = connected();
    visit_often(visitors[i], "drops");
  }
  uint64_t begin = npi_clock_monotonic();
  while (np_take(subscriber, &event) == NP_EMPTY && npi_client_has_news(reader)) continue;
  uint64_t took_ms = (npi_clock_monotonic() - begin) / 1000000;
  cr_assert_lt(took_ms, 10000, "took %llu ms: somebody waited for somebody", (unsigned long long)took_ms);
  for (int i = 0; i < 4; i++) {
    EVENTUALLY(20, (npi_client_tick(visitors[i]), visitors[i]->peers == NULL));
    np_disconnect(visitors[i]);
  }
  cr_assert_eq(instance_connections(&instance, 0), 0);
  np_disconnect(reader);
  instance_stop(&instance);
}

/* The only connection of a client that has this role. */
static struct npi_link *link_of_role(struct np_client *client, uint32_t role) {
  struct npi_link *found = NULL;
  for (uint32_t i = 0; i < client->n_links; i++) {
    if (client->links[i] == NULL || client->links[i]->role != role) continue;
    cr_assert_null(found);
    found = client->links[i];
  }
  cr_assert_not_null(found);
  return found;
}

static void lie_about_returns(struct np_client *client) {
  struct npi_inlet *inlet = &link_of_role(client, NPI_ROLE_SUBSCRIBER)->inlet;
  npi_ring_store(&inlet->returns, inlet->returned, npi_element(0x12345, inlet->capacity, 0));
}

Test(client_lifecycle, a_publisher_that_waits_for_a_liars_credit_goes_on) {
  struct instance instance;
  start(&instance);
  struct np_client *home = connected(), *liar = connected();
  struct np_publisher *publisher = publisher_of(home, "news");
  subscriber_of(liar, "news");
  uint64_t n = 0;
  while (publish(publisher, n) == NP_OK) n++;
  cr_assert_eq(n, 16);
  lie_about_returns(liar);
  cr_assert_eq(np_wait_credit(publisher, 20000), NP_OK);
  cr_assert_eq(publish(publisher, n), NP_OK);
  EVENTUALLY(10, instance_broker_counter(&instance, NPI_BROKER_LIES) == 1);
  EVENTUALLY(10, (npi_client_tick(home), npi_client_tick(liar), instance_connections(&instance, 0) == 0));
  np_disconnect(liar);
  np_disconnect(home);
  instance_stop(&instance);
}

Test(client_lifecycle, a_publisher_that_waits_for_a_liars_credit_goes_on_without_a_broker) {
  struct instance instance;
  start(&instance);
  struct np_client *home = connected(), *liar = connected();
  struct np_publisher *publisher = publisher_of(home, "news");
  subscriber_of(liar, "news");
  uint64_t n = 0;
  while (publish(publisher, n) == NP_OK) n++;
  stop_broker(&instance);
  pid_t helper = continue_later(&instance, 30000);
  lie_about_returns(liar);
  cr_assert_eq(np_wait_credit(publisher, 20000), NP_OK);
  cr_assert_eq(publish(publisher, n), NP_OK);
  kill(instance.pid, SIGCONT);
  kill(helper, SIGKILL);
  waitpid(helper, NULL, 0);
  np_disconnect(liar);
  np_disconnect(home);
  instance_stop(&instance);
}

Test(client_lifecycle, a_liars_group_events_reach_a_member_that_sleeps_in_its_own_poll) {
  struct instance instance;
  struct np_event event;
  start(&instance);
  struct np_client *home = connected(), *liar = connected(), *member = connected();
  struct np_publisher *publisher = publisher_of(home, "work");
  subscriber_of(liar, "work");
  uint64_t n = 0;
  while (publish(publisher, n) == NP_OK) n++;
  cr_assert_eq(n, 16);
  lie_about_returns(liar);
  /* First only the wait can find the lie; then nobody is there to take what comes back. */
  for (int i = 0; i < 100 && instance_broker_counter(&instance, NPI_BROKER_LIES) == 0; i++) {
    cr_assert_eq(np_wait_credit(publisher, 50), NP_TIMEOUT);
  }
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_LIES), 1);
  struct np_subscriber *subscriber = subscriber_of(member, "work");
  struct pollfd door = {.fd = np_fd(subscriber), .events = POLLIN};
  cr_assert_eq(np_take(subscriber, &event), NP_EMPTY);
  np_wait_credit(publisher, 20); /* offers them; nothing is published after it */
  for (uint64_t i = 0; i < n; i++) {
    uint64_t number = 0;
    while (np_take(subscriber, &event) == NP_EMPTY) cr_assert_eq(poll(&door, 1, 10000), 1, "event %d", (int)i);
    cr_assert(message_ok(event.data, event.size, &number));
    cr_assert_eq(number, i);
    cr_assert_neq(event.flags & NP_EVENT_REDELIVERED, 0);
    OK(np_release(subscriber, &event));
  }
  np_disconnect(liar);
  np_disconnect(member);
  np_disconnect(home);
  instance_stop(&instance);
}

Test(client_lifecycle, memory_that_a_publisher_takes_back_under_its_reader_stays_readable) {
  struct instance instance;
  struct np_event event;
  struct npi_control_frame frame;
  start(&instance);
  struct np_client *home = connected(), *reader = connected();
  struct np_publisher *publisher = publisher_of(home, "news");
  struct np_subscriber *subscriber = subscriber_of(reader, "news");
  cr_assert_eq(publish(publisher, 1), NP_OK);
  OK(np_take(subscriber, &event));
  const volatile uint8_t *data = event.data;
  npi_control_init(&frame, NPI_CONTROL_RETURN_SEGMENT, ++home->request, 0);
  frame.body.return_segment.number = 0;
  OK(npi_client_tell(home, &frame));
  EVENTUALLY(10, npi_client_has_news(reader));
  npi_client_news(reader);
  cr_assert_null(reader->peers->segments[0].base, "the reader was not told");
  for (size_t i = 0; i < event.size; i++) (void)data[i]; /* a fault here would end the process */
  OK(np_release(subscriber, &event));
  np_disconnect(reader);
  np_disconnect(home);
  instance_stop(&instance);
}

Test(client_lifecycle, a_client_that_lies_to_itself_ends_both_ends_of_the_connection) {
  struct instance instance;
  struct np_event event;
  start(&instance);
  struct np_client *client = connected();
  struct np_subscriber *subscriber = subscriber_of(client, "news");
  struct np_publisher *publisher = publisher_of(client, "news");
  cr_assert_eq(publish(publisher, 1), NP_OK);
  OK(np_take(subscriber, &event)); /* held: its end cannot let go yet, the other one can */
  npi_link_report_lie(client, link_of_role(client, NPI_ROLE_PUBLISHER));
  struct np_publisher_stats stats = {.size = sizeof stats};
  EVENTUALLY(10, (npi_client_tick(client), np_publisher_stats(publisher, &stats)) == NP_OK && stats.subscribers == 0);
  OK(np_release(subscriber, &event));
  EVENTUALLY(10, (npi_client_tick(client), instance_connections(&instance, 0) == 0));
  np_disconnect(client);
  instance_stop(&instance);
}

struct opener {
  _Atomic int go, done;
  _Atomic int opens; /* from here on it sleeps only for an answer */
};

static int open_when_told(void *argument) {
  struct opener *opener = argument;
  struct np_client *client;
  struct np_publisher *publisher;
  if (np_connect(&client, NULL) != NP_OK) return 1;
  opener->done = 1;
  while (!opener->go) usleep(1000);
  opener->opens = 1;
  if (np_publisher_open(client, "news", NULL, &publisher) != NP_OK) return 2;
  opener->done = 2;
  while (opener->go != 2) usleep(1000);
  np_disconnect(client);
  return 0;
}

Test(client_lifecycle, a_publisher_that_comes_while_a_subscriber_goes_is_not_called_a_liar) {
  struct instance instance;
  start(&instance);
  struct opener *opener = shared_memory(sizeof *opener);
  pid_t child = spawn(open_when_told, opener);
  struct np_client *reader = connected();
  struct np_subscriber *subscriber = subscriber_of(reader, "news");
  EVENTUALLY(10, opener->done == 1);
  stop_broker(&instance);
  opener->go = 1;
  EVENTUALLY(20, opener->opens && process_state(child) == 'S'); /* its request is in the broker's socket */
  pid_t helper = continue_later(&instance, 300);
  OK(np_subscriber_close(subscriber));
  waitpid(helper, NULL, 0);
  EVENTUALLY(10, opener->done == 2);
  opener->go = 2;
  cr_assert_eq(reap(child, 20), 0);
  EVENTUALLY(10, instance_connections(&instance, 0) == 0);
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_CONNECTIONS_MADE), 1, "they did not cross");
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_LIES), 0);
  np_disconnect(reader);
  instance_stop(&instance);
}

static int connect_in_vain(void *argument) {
  struct opener *opener = argument;
  struct np_client *client;
  while (!opener->go) usleep(1000);
  if (np_connect(&client, NULL) != NP_ERR_NO_BROKER) return 1;
  opener->done = 1;
  while (opener->go != 2) usleep(1000); /* a process that lives on */
  return 0;
}

static int active_subscribers(const struct instance *instance) {
  const struct npi_registry_header *header = instance_header(instance);
  const struct npi_subscriber_record *record = (const void *)(instance->registry + header->subscribers.offset);
  int n = 0;
  for (uint32_t i = 0; i < header->subscribers.count; i++) {
    n += npi_load_acquire_u32(&record[i].state) != NPI_RECORD_FREE;
  }
  return n;
}

Test(client_lifecycle, what_was_asked_of_a_stopped_broker_and_given_up_leaves_nothing_when_it_goes_on) {
  struct instance instance;
  struct np_subscriber *subscriber = NULL;
  start(&instance);
  struct opener *opener = shared_memory(sizeof *opener);
  pid_t child = spawn(connect_in_vain, opener);
  struct np_client *home = connected(), *reader = connected();
  struct np_publisher *publisher = publisher_of(home, "news");
  stop_broker(&instance);
  opener->go = 1;
  pid_t helper = continue_later(&instance, 20000);
  cr_assert_eq(np_subscriber_open(reader, "news", NULL, &subscriber), NP_ERR_NO_BROKER);
  cr_assert_null(subscriber);
  EVENTUALLY(15, opener->done == 1);
  kill(instance.pid, SIGCONT);
  kill(helper, SIGKILL);
  waitpid(helper, NULL, 0);
  EVENTUALLY(10, instance_broker_counter(&instance, NPI_BROKER_CONNECTIONS_MADE) == 1);
  EVENTUALLY(10, (npi_client_tick(home), npi_client_tick(reader), active_subscribers(&instance) == 0));
  EVENTUALLY(10, instance_clients(&instance, child) == 0);
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_LIES), 0);
  for (uint64_t i = 0; i < 100; i++) cr_assert_eq(publish(publisher, i), NP_OK); /* nobody holds it up */
  opener->go = 2;
  cr_assert_eq(reap(child, 20), 0);
  np_disconnect(reader);
  np_disconnect(home);
  instance_stop(&instance);
}

Test(client_lifecycle, a_wait_for_one_subscriber_does_not_put_out_anothers_descriptor) {
  struct instance instance;
  struct np_event event;
  start(&instance);
  struct np_client *home = connected(), *reader = connected();
  struct np_publisher *publisher = publisher_of(home, "drops");
  struct np_subscriber *polled = subscriber_of(reader, "drops"), *waited = subscriber_of(reader, "work");
  struct pollfd door = {.fd = np_fd(polled), .events = POLLIN};
  cr_assert_eq(publish(publisher, 0), NP_OK); /* the first one leases memory, which the broker would wake us for */
  OK(np_take(polled, &event));
  OK(np_release(polled, &event));
  cr_assert_eq(np_take(polled, &event), NP_EMPTY);
  cr_assert_eq(np_wait(waited, 1), NP_TIMEOUT);
  cr_assert_eq(poll(&door, 1, 0), 0);
  cr_assert_eq(publish(publisher, 1), NP_OK);
  cr_assert_eq(poll(&door, 1, 5000), 1, "the descriptor slept through an event");
  OK(np_take(polled, &event));
  OK(np_release(polled, &event));
  np_disconnect(reader);
  np_disconnect(home);
  instance_stop(&instance);
}

Test(client_lifecycle, a_time_longer_than_the_clock_is_for_ever) {
  struct instance instance;
  start(&instance);
  struct np_client *home = connected();
  struct np_publisher *publisher = publisher_of(home, "news");
  struct np_subscriber *subscriber = subscriber_of(home, "news");
  pid_t child = fork();
  if (child == 0) { /* publishes a little later, through a client of its own */
    struct np_client *client;
    struct np_publisher *late;
    struct np_event event;
    usleep(300000);
    _exit(np_connect(&client, NULL) == 0 && np_publisher_open(client, "news", NULL, &late) == 0 &&
                  np_loan(late, 1, &event) == 0 && np_publish(late, &event) == 0
              ? 0
              : 1);
  }
  OK(np_wait(subscriber, INT64_MAX));
  cr_assert_eq(reap(child, 20), 0);
  (void)publisher;
  np_disconnect(home);
  instance_stop(&instance);
}

Test(client_lifecycle, a_child_lets_go_of_the_descriptors_that_it_inherited) {
  struct instance instance;
  start(&instance);
  struct np_client *home = connected(), *reader = connected();
  struct np_publisher *publisher = publisher_of(home, "news");
  struct np_subscriber *subscriber = subscriber_of(reader, "news");
  cr_assert_eq(publish(publisher, 1), NP_OK);
  (void)subscriber;
  pid_t child = fork();
  if (child == 0) {
    np_disconnect(home);
    np_disconnect(reader);
    char target[256], path[32];
    for (int fd = 3; fd < 256; fd++) {
      snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
      ssize_t n = readlink(path, target, sizeof target - 1);
      if (n <= 0) continue;
      target[n] = '\0';
      if (strstr(target, "numapool.") != NULL) _exit(1);
    }
    _exit(0);
  }
  cr_assert_eq(reap(child, 20), 0);
  np_disconnect(reader);
  np_disconnect(home);
  instance_stop(&instance);
}

Test(client_lifecycle, the_smallest_segments_in_the_largest_number_still_connect) {
  struct instance instance;
  instance_start(&instance, "memory: { per_node: 8GiB, per_client: 8GiB, segment: 2MiB, ready: 4MiB }\n", NULL);
  struct np_client *home = connected();
  publisher_of(home, "any");
  subscriber_of(home, "any");
  np_disconnect(home);
  instance_stop(&instance);
}

Test(client_lifecycle, a_loan_that_finds_nothing_says_in_the_brokers_words_why) {
  /* Proves: the node's memory is leased by another client: that is what a dry loan says, each time. */
  struct instance instance;
  struct np_event event;
  instance_start(&instance, "memory: { per_node: 8MiB, per_client: 8MiB, segment: 2MiB, ready: 0 }\n", NULL);
  struct np_client *first = connected(), *second = connected();
  struct np_publisher *taker = publisher_of(first, "one"), *other = publisher_of(second, "two");
  while (np_loan(taker, 1 << 20, &event) == NP_OK) continue;
  for (int i = 0; i < 3; i++) {
    cr_assert_eq(np_loan(other, 100, &event), NP_EMPTY);
    cr_assert_not_null(strstr(np_error_detail(), "the memory budget of node"), "%s", np_error_detail());
    cr_assert_not_null(strstr(np_error_detail(), "raise memory.per_node"), "%s", np_error_detail());
  }
  np_disconnect(first);
  EVENTUALLY(20, np_loan(other, 100, &event) == NP_OK);
  np_disconnect(second);
  instance_stop(&instance);
}
