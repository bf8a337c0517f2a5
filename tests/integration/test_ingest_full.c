/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's own publisher: sleepers are woken within a long turn; a pool that is dry drops exactly what it counts. */
#include <criterion/criterion.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/worker.h"
#include "daemon/ingest_publish.h"
#include "tests/support/backends.h"
#include "tests/support/feed.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/peers.h"
#include "tests/support/process.h"

TestSuite(ingest_full, .timeout = 180);

/* ---- wakes ------------------------------------------------------------------------------------------- */

static int is_readable(int fd) {
  struct pollfd polled = {.fd = fd, .events = POLLIN};
  return poll(&polled, 1, 0) > 0;
}

static const struct npi_ingest_event line = {.payload = (const uint8_t *)"line", .payload_bytes = 4, .time_ns = 1};

struct sleeper {
  struct instance instance;
  struct np_client *client, *worker;
  struct np_subscriber *subscriber;
  struct npi_ingest_publishers publishers;
  struct npi_ingest_sink sink;
  int fd;
};

/* Nothing is there, also no news of the broker: from here on whoever publishes has to ring. */
static void put_to_sleep(struct sleeper *sleeper) {
  struct np_event event;
  sleeper->fd = np_fd(sleeper->subscriber);
  cr_assert_geq(sleeper->fd, 0);
  do {
    while (np_take(sleeper->subscriber, &event) == NP_OK) np_release(sleeper->subscriber, &event);
    usleep(20000);
  } while (is_readable(sleeper->fd));
}

static void open_sleeper(struct sleeper *sleeper) {
  instance_start(&sleeper->instance, "channels:\n  - { name: lines, kind: broadcast, credits: 1024, on_full: block }\n",
                 NULL);
  cr_assert_eq(np_connect(&sleeper->client, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_connect(&sleeper->worker, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(npi_ingest_publishers_init(&sleeper->publishers, 1), 0);
  cr_assert_eq(npi_ingest_publishers_add(&sleeper->publishers, sleeper->worker, "lines", 0), 0);
  cr_assert_eq(np_subscriber_open(sleeper->client, "lines", NULL, &sleeper->subscriber), NP_OK);
  sleeper->sink = npi_ingest_publishers_sink(&sleeper->publishers);
  /* The first event leases memory, and the broker tells the subscriber of it. */
  cr_assert_eq(sleeper->sink.publish(sleeper->sink.context, 0, &line), NP_OK);
  sleeper->sink.flush(sleeper->sink.context);
}

static void close_sleeper(struct sleeper *sleeper) {
  np_disconnect(sleeper->client);
  npi_ingest_publishers_deinit(&sleeper->publishers);
  np_disconnect(sleeper->worker);
  instance_stop(&sleeper->instance);
}

Test(ingest_full, who_sleeps_is_woken_within_a_long_turn) {
  /* Proves: a turn has no flush until its end, however many events it brings; a sleeper is woken after 64 of them,
   * whether they come one by one or in rows, and not for each. */
  static struct sleeper sleeper;
  struct npi_payload row[NPI_BATCH_MAX];
  open_sleeper(&sleeper);
  put_to_sleep(&sleeper);
  for (int i = 1; i < 64; i++) {
    cr_assert_eq(sleeper.sink.publish(sleeper.sink.context, 0, &line), NP_OK);
    cr_assert_not(is_readable(sleeper.fd), "rung after %d events", i);
  }
  cr_assert_eq(sleeper.sink.publish(sleeper.sink.context, 0, &line), NP_OK);
  cr_assert(is_readable(sleeper.fd), "not rung after 64 events");

  for (int i = 0; i < NPI_BATCH_MAX; i++) row[i] = (struct npi_payload){(const uint8_t *)"line", 4};
  put_to_sleep(&sleeper);
  cr_assert_eq(sleeper.sink.publish_batch(sleeper.sink.context, 0, &line, row, 40), 40);
  cr_assert_not(is_readable(sleeper.fd));
  cr_assert_eq(sleeper.sink.publish_batch(sleeper.sink.context, 0, &line, row, 24), 24);
  cr_assert(is_readable(sleeper.fd), "not rung after rows of 64 events in all");

  put_to_sleep(&sleeper);
  cr_assert_eq(sleeper.sink.publish_batch(sleeper.sink.context, 0, &line, row, 1), 1);
  cr_assert_not(is_readable(sleeper.fd));
  sleeper.sink.flush(sleeper.sink.context);
  cr_assert(is_readable(sleeper.fd), "not rung at the end of a turn");
  close_sleeper(&sleeper);
}

/* ---- a dry pool -------------------------------------------------------------------------------------- */

static uint64_t counter(const struct instance *instance, unsigned row) {
  return instance_listener_counter(instance, "frames", row);
}

/* A frame is counted as received first, and then as what has become of it. */
static uint64_t settled(const struct instance *instance) {
  return counter(instance, NPI_LISTENER_PUBLISHED) + counter(instance, NPI_LISTENER_DROPPED_POOL) +
         counter(instance, NPI_LISTENER_DROPPED_CREDIT);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_full, a_dry_pool_drops_exactly_what_it_counts) {
  /* Proves: with on_full drop_newest a frame that finds no slot is dropped_pool, once; what was sent is what was
   * published and dropped; the subscriber gets all that was published and sees all that was dropped as gaps. */
  enum { SMALL = 3000, LARGE = 40, LARGE_BYTES = 300000 };
  struct instance instance;
  char yaml[1024];
  snprintf(yaml, sizeof yaml,
           "memory: { per_node: 16MiB, per_client: 2MiB, ready: 0 }\ningest: { backend: %s }\n"
           "channels:\n  - { name: work, kind: broadcast, credits: 8192, on_full: block }\n"
           "listeners:\n  - { name: frames, proto: tcp, address: \"127.0.0.1:0\", channel: work, max_frame: 512KiB,\n"
           "      framing: { length_prefix: 4, endian: big, includes_prefix: false }, on_full: drop_newest }\n",
           ingest_backend_text(*backend));
  instance_start(&instance, yaml, NULL);
  struct receiver *receiver = receiver_for("work");
  receiver->no_order = 1;
  pid_t pid = spawn(receiver_body, receiver);
  EVENTUALLY(20, receiver->ready);
  uint8_t *frame = malloc(LARGE_BYTES + 4);
  cr_assert_not_null(frame);
  int fd = feed_connect("127.0.0.1", instance_port(&instance, "frames"), SOCK_STREAM);
  cr_assert_geq(fd, 0);
  uint64_t number = 0;
  cr_assert(process_stop(pid)); /* all that is published stays out */
  for (; number < SMALL; number++) cr_assert_eq(feed_write(fd, frame, feed_frame(frame, number, 100)), 0);
  EVENTUALLY(20, settled(&instance) == SMALL);
  for (; number < SMALL + LARGE; number++)
    cr_assert_eq(feed_write(fd, frame, feed_frame(frame, number, LARGE_BYTES)), 0);
  EVENTUALLY(60, settled(&instance) == SMALL + LARGE);
  kill(pid, SIGCONT);
  EVENTUALLY(20, receiver->received == counter(&instance, NPI_LISTENER_PUBLISHED));
  cr_assert_eq(feed_write(fd, frame, feed_frame(frame, number++, 100)), 0); /* the gap before it is seen */
  EVENTUALLY(20, settled(&instance) == number);
  EVENTUALLY(20, receiver->received == counter(&instance, NPI_LISTENER_PUBLISHED));
  uint64_t published = counter(&instance, NPI_LISTENER_PUBLISHED), held = counter(&instance, NPI_LISTENER_HELD);
  uint64_t pool = counter(&instance, NPI_LISTENER_DROPPED_POOL),
           credit = counter(&instance, NPI_LISTENER_DROPPED_CREDIT);
  say("ingest_full: %s: %llu sent, %llu published, dropped: pool %llu, credit %llu\n", ingest_backend_text(*backend),
      (unsigned long long)number, (unsigned long long)published, (unsigned long long)pool, (unsigned long long)credit);
  cr_assert_gt(pool, 0);
  cr_assert_eq(held, 0);
  cr_assert_eq(counter(&instance, NPI_LISTENER_RECEIVED), number);
  cr_assert_eq(published + pool + credit, number);
  close(fd);
  receiver->stop = 1;
  cr_assert_eq(reap(pid, 20), 0);
  cr_assert_eq(receiver->bad, 0);
  cr_assert_eq(receiver->out_of_order, 0);
  cr_assert_eq(receiver->received, published);
  cr_assert_eq(receiver->gaps, pool + credit);
  free(frame);
  instance_stop(&instance);
}
