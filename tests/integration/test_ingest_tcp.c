/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a TCP sender through the ingest worker to subscriber processes: every event, in order, unchanged.
 *
 * The count is 1,000,000; NUMAPOOL_TEST_EVENTS sets another one, and with sanitizers it is 50,000.
 *
 * ctest-timeout: 900
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "os/os_clock.h"
#include "tests/support/backends.h"
#include "tests/support/child.h"
#include "tests/support/feed.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/peers.h"
#include "tests/support/process.h"

TestSuite(ingest_tcp, .timeout = 400);

static uint64_t event_count(void) {
  const char *given = getenv("NUMAPOOL_TEST_EVENTS");
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  uint64_t count = 50000;
#else
  uint64_t count = 1000000;
#endif
  return given != NULL && given[0] != '\0' ? strtoull(given, NULL, 10) : count;
}

static void start(struct instance *instance, int backend, const char *rest) {
  char yaml[2048];
  snprintf(yaml, sizeof yaml, "memory: { per_node: 256MiB, ready: 16MiB }\ningest: { backend: %s }\n%s",
           ingest_backend_text(backend), rest);
  instance_start(instance, yaml, NULL);
  const char *listener = "frames";
  cr_assert_eq(instance_listener_counter(instance, listener, NPI_LISTENER_BACKEND), (uint64_t)backend);
}

#define LISTENER(channel_line)                                                                            \
  "channels:\n  - " channel_line                                                                          \
  "\n"                                                                                                    \
  "listeners:\n  - { name: frames, proto: tcp, address: \"127.0.0.1:0\", framing: { length_prefix: 4 }, " \
  "channel: stream, max_frame: 64KiB }\n"

static void expect_listener_balanced(const struct instance *instance, uint64_t sent) {
  cr_assert_eq(instance_listener_counter(instance, "frames", NPI_LISTENER_RECEIVED), sent);
  cr_assert_eq(instance_listener_counter(instance, "frames", NPI_LISTENER_PUBLISHED), sent);
  cr_assert_eq(instance_listener_counter(instance, "frames", NPI_LISTENER_HELD), 0);
  cr_assert_eq(instance_listener_counter(instance, "frames", NPI_LISTENER_DROPPED_POOL), 0);
  cr_assert_eq(instance_listener_counter(instance, "frames", NPI_LISTENER_DROPPED_CREDIT), 0);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_tcp, a_million_events_of_all_sizes_reach_two_subscribers_in_order) {
  /* Proves: 16 B to 64 KiB, log-uniform, from one sender to two broadcast subscriber processes: none missing, none
   * twice, in order, every byte right; the slower one makes the sender wait. */
  uint64_t count = event_count();
  struct instance instance;
  start(&instance, *backend, LISTENER("{ name: stream, kind: broadcast, credits: 1024, on_full: block }"));
  struct receiver *receivers[2];
  pid_t pids[2];
  for (int i = 0; i < 2; i++) {
    receivers[i] = receiver_for("stream");
    pids[i] = spawn(receiver_body, receivers[i]);
    EVENTUALLY(20, receivers[i]->ready);
  }
  struct feed *feed = shared_memory(sizeof *feed);
  feed->port = instance_port(&instance, "frames");
  feed->count = count;
  uint64_t before = npi_clock_monotonic();
  pid_t sender = spawn(feed_body, feed);
  EVENTUALLY(360, receivers[0]->received == count && receivers[1]->received == count);
  double seconds = (double)(npi_clock_monotonic() - before) / 1e9;
  say("ingest_tcp: %s: %llu events, %.2f GB, to two subscribers in %.1f s (%.0f events/s)\n",
      ingest_backend_text(*backend), (unsigned long long)count, (double)feed->bytes / 1e9, seconds,
      (double)count / seconds);
  cr_assert_eq(reap(sender, 130), 0);
  for (int i = 0; i < 2; i++) {
    receivers[i]->stop = 1;
    cr_assert_eq(reap(pids[i], 20), 0);
    cr_assert_eq(receivers[i]->received, count);
    cr_assert_eq(receivers[i]->bad + receivers[i]->gaps + receivers[i]->out_of_order + receivers[i]->number_breaks +
                     receivers[i]->corrupt + receivers[i]->missed,
                 0);
  }
  expect_listener_balanced(&instance, count);
  instance_stop(&instance);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_tcp, a_million_events_reach_a_group_of_three_each_exactly_once) {
  /* Proves: each number is seen by one member and no more than once, whatever the size. */
  enum { MEMBERS = 3 };
  uint64_t count = event_count();
  struct instance instance;
  start(&instance, *backend, LISTENER("{ name: stream, kind: group, credits: 256, on_full: block }"));
  struct receiver *receivers[MEMBERS];
  pid_t pids[MEMBERS];
  _Atomic uint8_t *seen = shared_memory(count);
  for (int i = 0; i < MEMBERS; i++) {
    receivers[i] = receiver_for("stream");
    receivers[i]->seen = seen;
    receivers[i]->n_seen = count;
    receivers[i]->no_order = 1;
    pids[i] = spawn(receiver_body, receivers[i]);
    EVENTUALLY(20, receivers[i]->ready);
  }
  struct feed *feed = shared_memory(sizeof *feed);
  feed->port = instance_port(&instance, "frames");
  feed->count = count;
  uint64_t before = npi_clock_monotonic();
  pid_t sender = spawn(feed_body, feed);
  EVENTUALLY(360, receivers[0]->received + receivers[1]->received + receivers[2]->received >= count);
  double seconds = (double)(npi_clock_monotonic() - before) / 1e9;
  say("ingest_tcp: %s: %llu events, %.2f GB, to a group of three in %.1f s (%llu, %llu, %llu)\n",
      ingest_backend_text(*backend), (unsigned long long)count, (double)feed->bytes / 1e9, seconds,
      (unsigned long long)receivers[0]->received, (unsigned long long)receivers[1]->received,
      (unsigned long long)receivers[2]->received);
  cr_assert_eq(reap(sender, 130), 0);
  uint64_t received = 0;
  for (int i = 0; i < MEMBERS; i++) {
    receivers[i]->stop = 1;
    cr_assert_eq(reap(pids[i], 20), 0);
    cr_assert_eq(receivers[i]->bad + receivers[i]->twice + receivers[i]->redelivered + receivers[i]->out_of_order, 0);
    cr_assert_gt(receivers[i]->received, 0);
    received += receivers[i]->received;
  }
  cr_assert_eq(received, count);
  for (uint64_t i = 0; i < count; i++) {
    if (seen[i] != 1) cr_assert(0, "event %llu came %d times", (unsigned long long)i, seen[i]);
  }
  expect_listener_balanced(&instance, count);
  instance_stop(&instance);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_tcp, fifty_connections_at_a_time_are_kept_apart) {
  /* Proves: frames of many senders interleave between frames only; each connection's events are in order. */
  enum { SENDERS = 50, EACH = 200 };
  struct instance instance;
  start(&instance, *backend, LISTENER("{ name: stream, kind: broadcast, credits: 1024, on_full: block }"));
  struct np_client *client = NULL;
  struct np_subscriber *subscriber = NULL;
  struct feed *feeds[SENDERS];
  pid_t pids[SENDERS];
  uint64_t next[SENDERS] = {0};
  uint64_t connection_of[SENDERS] = {0};
  cr_assert_eq(np_connect(&client, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_subscriber_open(client, "stream", NULL, &subscriber), NP_OK);
  for (uint64_t i = 0; i < SENDERS; i++) {
    feeds[i] = shared_memory(sizeof *feeds[i]);
    feeds[i]->port = instance_port(&instance, "frames");
    feeds[i]->first = i * 1000000;
    feeds[i]->count = EACH;
    pids[i] = spawn(feed_body, feeds[i]);
  }
  for (int received = 0; received < SENDERS * EACH; received++) {
    struct np_event event;
    struct np_source source = {.size = sizeof source};
    uint64_t number = 0;
    cr_assert_eq(np_wait(subscriber, 60000), NP_OK, "after %d events", received);
    cr_assert_eq(np_take(subscriber, &event), NP_OK);
    cr_assert(message_ok(event.data, event.size, &number));
    cr_assert_eq(np_event_source(subscriber, &event, &source), NP_OK, "%s", np_error_detail());
    uint64_t from = number / 1000000;
    cr_assert_lt(from, SENDERS);
    cr_assert_eq(number % 1000000, next[from]);
    next[from]++;
    if (connection_of[from] == 0) connection_of[from] = source.connection;
    cr_assert_eq(source.connection, connection_of[from]);
    cr_assert_eq(source.family, 4);
    cr_assert_eq(memcmp(source.address, (const uint8_t[]){127, 0, 0, 1}, 4), 0);
    cr_assert_str_eq(source.listener_name, "frames");
    cr_assert_neq(source.port, 0);
    cr_assert_neq(event.time_ns, 0);
    cr_assert_eq(np_release(subscriber, &event), NP_OK);
  }
  for (int i = 0; i < SENDERS; i++) cr_assert_eq(reap(pids[i], 30), 0);
  np_disconnect(client);
  EVENTUALLY(20, instance_listener_counter(&instance, "frames", NPI_LISTENER_CLOSED) == SENDERS);
  cr_assert_eq(instance_listener_counter(&instance, "frames", NPI_LISTENER_ACCEPTED), SENDERS);
  cr_assert_eq(instance_listener_counter(&instance, "frames", NPI_LISTENER_PARTIAL_AT_END), 0);
  instance_stop(&instance);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_tcp, a_stopped_subscriber_makes_the_sender_wait_and_nothing_is_lost) {
  /* Proves: without credit the listener stops reading (pause), the sender's socket fills, and after SIGCONT all of it
   * arrives in order. */
  enum { EVENTS = 20000 };
  struct instance instance;
  start(&instance, *backend, LISTENER("{ name: stream, kind: broadcast, credits: 256, on_full: block }"));
  struct receiver *receiver = receiver_for("stream");
  pid_t pid = spawn(receiver_body, receiver);
  EVENTUALLY(20, receiver->ready);
  cr_assert(process_stop(pid));
  struct feed *feed = shared_memory(sizeof *feed);
  feed->port = instance_port(&instance, "frames");
  feed->count = EVENTS;
  pid_t sender = spawn(feed_body, feed);
  EVENTUALLY(60, instance_listener_counter(&instance, "frames", NPI_LISTENER_PAUSED_NOW) == 1);
  uint64_t sent = 0;
  do { /* until the sockets between them are full */
    sent = feed->sent;
    usleep(300000);
  } while (sent != feed->sent);
  cr_assert_lt(feed->sent, EVENTS, "all was sent while nobody took anything");
  kill(pid, SIGCONT);
  EVENTUALLY(120, receiver->received == EVENTS);
  cr_assert_eq(reap(sender, 130), 0);
  receiver->stop = 1;
  cr_assert_eq(reap(pid, 20), 0);
  cr_assert_eq(receiver->bad + receiver->gaps + receiver->out_of_order + receiver->number_breaks, 0);
  /* The pause is over when all that waited is out, and its sender's connection is ended before that. */
  EVENTUALLY(20, instance_listener_counter(&instance, "frames", NPI_LISTENER_RESUMES) >= 1 &&
                     instance_listener_counter(&instance, "frames", NPI_LISTENER_PAUSED_NOW) == 0);
  expect_listener_balanced(&instance, EVENTS);
  instance_stop(&instance);
}
