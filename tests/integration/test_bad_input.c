/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What senders may do wrong, and what a machine may refuse: a counter and words for each, another connection that
 * notices nothing, and nothing left behind. (Control frames: test_broker_survives.c. Settings, ports in use, a small
 * /dev/shm: test_broker_life.c.)
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/support/backends.h"
#include "tests/support/child.h"
#include "tests/support/feed.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/peers.h"

TestSuite(bad_input, .timeout = 180);

/* A broker with one listener of each framing, a subscriber, and a well-behaved connection beside the others. */
struct scene {
  struct instance instance;
  struct np_client *client;
  struct np_subscriber *subscriber;
  int good; /* connection to listener "frames" */
  uint64_t next_good;
  int descriptors; /* of the worker */
};

static int descriptors_of(pid_t pid) {
  char command[96];
  int n = -1;
  snprintf(command, sizeof command, "ls /proc/%d/fd | wc -l", (int)pid);
  FILE *pipe = popen(command, "re");
  if (pipe != NULL && fscanf(pipe, "%d", &n) != 1) n = -1;
  if (pipe != NULL) pclose(pipe);
  return n;
}

/* Takes the next event; it is this text. */
static void expect_text(struct scene *scene, const char *text) {
  struct np_event event;
  cr_assert_eq(np_wait(scene->subscriber, 20000), NP_OK, "\"%s\" did not come", text);
  cr_assert_eq(np_take(scene->subscriber, &event), NP_OK);
  cr_assert_eq(event.size, strlen(text), "%zu bytes: %.*s", event.size, (int)event.size, (const char *)event.data);
  cr_assert_eq(memcmp(event.data, text, event.size), 0);
  cr_assert_eq(np_release(scene->subscriber, &event), NP_OK);
}

static void expect_nothing(struct scene *scene) {
  struct np_event event;
  cr_assert_eq(np_take(scene->subscriber, &event), NP_EMPTY);
}

/* The well-behaved connection still works. */
static void expect_undisturbed(struct scene *scene) {
  uint8_t frame[256];
  struct np_event event;
  uint64_t number = 0;
  size_t n = feed_frame(frame, scene->next_good, 100);
  cr_assert_eq(feed_write(scene->good, frame, n), 0);
  cr_assert_eq(np_wait(scene->subscriber, 20000), NP_OK, "the well-behaved connection is disturbed");
  cr_assert_eq(np_take(scene->subscriber, &event), NP_OK);
  cr_assert(message_ok(event.data, event.size, &number));
  cr_assert_eq(number, scene->next_good);
  cr_assert_eq(np_release(scene->subscriber, &event), NP_OK);
  scene->next_good++;
}

static void begin(struct scene *scene, int backend) {
  char yaml[2048];
  memset(scene, 0, sizeof *scene);
  snprintf(
      yaml, sizeof yaml,
      "memory: { per_node: 64MiB, ready: 4MiB }\ningest: { backend: %s }\n"
      "channels:\n  - { name: all, kind: broadcast, credits: 1024, on_full: block }\n"
      "listeners:\n"
      "  - { name: frames, proto: tcp, address: \"127.0.0.1:0\", framing: { length_prefix: 4 }, channel: all,\n"
      "      max_frame: 1KiB }\n"
      "  - { name: eight, proto: tcp, address: \"127.0.0.1:0\", framing: { length_prefix: 8, endian: little },\n"
      "      channel: all, max_frame: 1KiB }\n"
      "  - { name: within, proto: tcp, address: \"127.0.0.1:0\", channel: all, max_frame: 1KiB,\n"
      "      framing: { length_prefix: 2, includes_prefix: true } }\n"
      "  - { name: lines, proto: tcp, address: \"127.0.0.1:0\", framing: newline, channel: all, max_frame: 1KiB }\n"
      "  - { name: syslog, proto: tcp, address: \"127.0.0.1:0\", framing: syslog, channel: all, max_frame: 1KiB }\n"
      "  - { name: es, proto: tcp, address: \"127.0.0.1:0\", framing: eventstream, channel: all, max_frame: 1KiB }\n"
      "  - { name: slow, proto: tcp, address: \"127.0.0.1:0\", framing: newline, channel: all,\n"
      "      idle_timeout: 1s, frame_timeout: 1s }\n"
      "  - { name: few, proto: tcp, address: \"127.0.0.1:0\", framing: newline, channel: all, max_connections: 3 }\n"
      "  - { name: packets, proto: udp, address: \"127.0.0.1:0\", framing: { length_prefix: 4 }, channel: all }\n",
      ingest_backend_text(backend));
  instance_start(&scene->instance, yaml, NULL);
  cr_assert_eq(np_connect(&scene->client, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_subscriber_open(scene->client, "all", NULL, &scene->subscriber), NP_OK);
  scene->good = feed_connect("127.0.0.1", instance_port(&scene->instance, "frames"), SOCK_STREAM);
  cr_assert_geq(scene->good, 0);
  expect_undisturbed(scene);
  scene->descriptors = descriptors_of(instance_worker(&scene->instance));
}

static void end(struct scene *scene) {
  expect_undisturbed(scene);
  expect_nothing(scene);
  EVENTUALLY(20, descriptors_of(instance_worker(&scene->instance)) == scene->descriptors);
  close(scene->good);
  np_disconnect(scene->client);
  instance_stop(&scene->instance);
}

static uint64_t count(const struct scene *scene, const char *listener, unsigned row) {
  return instance_listener_counter(&scene->instance, listener, row);
}

static int connect_to(const struct scene *scene, const char *listener) {
  int fd = feed_connect("127.0.0.1", instance_port(&scene->instance, listener), SOCK_STREAM);
  cr_assert_geq(fd, 0, "%s: %s", listener, strerror(errno));
  return fd;
}

struct wrong {
  const char *listener;
  const char *what;
  const char *bytes;
  size_t n;
  unsigned row; /* counter that goes up by one */
};

/* Each: the connection is closed, one counter counts it, closed_bad too, and the others go on. */
static void expect_closed_and_counted(struct scene *scene, const struct wrong *wrong) {
  uint64_t before = count(scene, wrong->listener, wrong->row);
  uint64_t closed = count(scene, wrong->listener, NPI_LISTENER_CLOSED_BAD);
  int fd = connect_to(scene, wrong->listener);
  feed_write(fd, wrong->bytes, wrong->n);
  cr_assert(feed_peer_closed(fd, 20), "%s: %s: not closed", wrong->listener, wrong->what);
  close(fd);
  EVENTUALLY(20, count(scene, wrong->listener, NPI_LISTENER_CLOSED_BAD) == closed + 1);
  cr_assert_eq(count(scene, wrong->listener, wrong->row), before + 1, "%s: %s", wrong->listener, wrong->what);
  expect_undisturbed(scene);
}

#define BYTES(text) text, sizeof(text) - 1

TEST_WITH_BOTH_INGEST_BACKENDS(bad_input, impossible_lengths_close_their_connection_only) {
  /* Proves: longer than max_frame, zero where that cannot be, smaller than the prefix that it includes, negative-looking
   * in 4 and 8 bytes, bad counts and priorities: counted under their reason, closed, nobody else disturbed. */
  static const struct wrong wrongs[] = {
      {"frames", "one more than max_frame", BYTES("\0\0\4\1"), NPI_LISTENER_TOO_LARGE},
      {"frames", "negative-looking", BYTES("\377\377\377\377"), NPI_LISTENER_BAD_LENGTH},
      {"frames", "most negative", BYTES("\200\0\0\0"), NPI_LISTENER_BAD_LENGTH},
      {"frames", "zero", BYTES("\0\0\0\0"), NPI_LISTENER_BAD_LENGTH},
      {"frames", "largest that is not negative", BYTES("\177\377\377\377"), NPI_LISTENER_TOO_LARGE},
      {"eight", "negative-looking", BYTES("\377\377\377\377\377\377\377\377"), NPI_LISTENER_BAD_LENGTH},
      {"eight", "only its upper half set", BYTES("\0\0\0\0\1\0\0\0"), NPI_LISTENER_TOO_LARGE},
      {"within", "shorter than its prefix", BYTES("\0\1"), NPI_LISTENER_BAD_LENGTH},
      {"within", "zero", BYTES("\0\0"), NPI_LISTENER_BAD_LENGTH},
      {"es", "shorter than its header", BYTES("\0\0\0\2\1\0"), NPI_LISTENER_BAD_LENGTH},
      {"es", "zero", BYTES("\0\0\0\0"), NPI_LISTENER_BAD_LENGTH},
      {"es", "priority 5", BYTES("\0\0\0\4\5\0\0x"), NPI_LISTENER_BAD_FRAME},
      {"es", "topic longer than the frame", BYTES("\0\0\0\4\1\0\2x"), NPI_LISTENER_BAD_FRAME},
      {"es", "too large", BYTES("\177\377\377\377\1\0\0"), NPI_LISTENER_TOO_LARGE},
      {"syslog", "a count over max_frame", BYTES("1025 x"), NPI_LISTENER_TOO_LARGE},
      {"syslog", "an endless count", BYTES("99999999999999999999 x"), NPI_LISTENER_TOO_LARGE},
  };
  struct scene scene;
  begin(&scene, *backend);
  for (unsigned i = 0; i < sizeof wrongs / sizeof wrongs[0]; i++) expect_closed_and_counted(&scene, &wrongs[i]);
  char line[2000];
  memset(line, 'x', sizeof line);
  const struct wrong endless = {"lines", "a line without end", line, sizeof line, NPI_LISTENER_TOO_LARGE};
  expect_closed_and_counted(&scene, &endless);
  end(&scene);
}

TEST_WITH_BOTH_INGEST_BACKENDS(bad_input, what_came_before_the_bad_frame_is_delivered) {
  /* Proves: good frames in the same segment as a bad one arrive, what follows it does not. */
  struct scene scene;
  begin(&scene, *backend);
  int fd = connect_to(&scene, "frames");
  cr_assert_eq(feed_write(fd, "\0\0\0\3one\0\0\0\3two\377\0\0\0\0\0\0\3not", 25), 0);
  expect_text(&scene, "one");
  expect_text(&scene, "two");
  cr_assert(feed_peer_closed(fd, 20));
  close(fd);
  expect_undisturbed(&scene);
  end(&scene);
}

TEST_WITH_BOTH_INGEST_BACKENDS(bad_input, a_frame_that_is_cut_off_at_the_end_is_counted_and_not_delivered) {
  /* Proves: disconnect in the prefix, after it, and inside the payload, in good order and by reset; an unfinished line;
   * a connection that never says anything counts as nothing. */
  static const struct wrong cuts[] = {
      {"frames", "in the prefix", BYTES("\0\0"), 0},
      {"frames", "behind the prefix", BYTES("\0\0\0\5"), 0},
      {"frames", "in the payload", BYTES("\0\0\0\5abc"), 0},
      {"eight", "in the prefix", BYTES("\1\0\0\0\0\0\0"), 0},
      {"es", "in the topic", BYTES("\0\0\0\11\2\0\6abc"), 0},
      {"syslog", "in a counted frame", BYTES("20 <13>begin"), 0},
  };
  struct scene scene;
  begin(&scene, *backend);
  for (unsigned i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
    for (int reset = 0; reset < 2; reset++) {
      uint64_t before = count(&scene, cuts[i].listener, NPI_LISTENER_PARTIAL_AT_END);
      uint64_t received = count(&scene, cuts[i].listener, NPI_LISTENER_RECEIVED_BYTES);
      int fd = connect_to(&scene, cuts[i].listener);
      cr_assert_eq(feed_write(fd, cuts[i].bytes, cuts[i].n), 0);
      EVENTUALLY(20, count(&scene, cuts[i].listener, NPI_LISTENER_RECEIVED_BYTES) == received + cuts[i].n);
      struct linger at_once = {.l_onoff = reset, .l_linger = 0};
      cr_assert_eq(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
      close(fd);
      EVENTUALLY(20, count(&scene, cuts[i].listener, NPI_LISTENER_PARTIAL_AT_END) == before + 1);
      expect_undisturbed(&scene);
    }
  }
  uint64_t before = count(&scene, "frames", NPI_LISTENER_PARTIAL_AT_END);
  uint64_t closed = count(&scene, "frames", NPI_LISTENER_CLOSED);
  close(connect_to(&scene, "frames"));
  EVENTUALLY(20, count(&scene, "frames", NPI_LISTENER_CLOSED) == closed + 1);
  cr_assert_eq(count(&scene, "frames", NPI_LISTENER_PARTIAL_AT_END), before);
  end(&scene);
}

TEST_WITH_BOTH_INGEST_BACKENDS(bad_input, one_byte_at_a_time_is_slow_and_right) {
  /* Proves: every framing gets the same events when each byte is a segment of its own. */
  static const struct wrong streams[] = {
      {"frames", "alpha", BYTES("\0\0\0\5alpha"), 0},     {"eight", "bravo", BYTES("\5\0\0\0\0\0\0\0bravo"), 0},
      {"within", "charlie", BYTES("\0\11charlie"), 0},    {"lines", "delta", BYTES("delta\n"), 0},
      {"syslog", "<13>echo", BYTES("8 <13>echo"), 0},     {"syslog", "<13>foxtrot", BYTES("<13>foxtrot\n"), 0},
      {"es", "golf", BYTES("\0\0\0\12\3\0\3topgolf"), 0},
  };
  struct scene scene;
  begin(&scene, *backend);
  for (unsigned i = 0; i < sizeof streams / sizeof streams[0]; i++) {
    int fd = connect_to(&scene, streams[i].listener);
    for (int times = 0; times < 2; times++) {
      for (size_t at = 0; at < streams[i].n; at++) {
        cr_assert_eq(feed_write(fd, streams[i].bytes + at, 1), 0);
        usleep(1000);
      }
      expect_text(&scene, streams[i].what);
      expect_nothing(&scene);
    }
    close(fd);
  }
  end(&scene);
}

TEST_WITH_BOTH_INGEST_BACKENDS(bad_input, garbage_on_every_port_disturbs_nobody) {
  /* Proves: 300 connections with random bytes: the worker lives, the well-behaved connection gets its events in order
   * between them, each garbage connection ends, descriptors are as before. */
  static const char *const listeners[] = {"frames", "eight", "within", "lines", "syslog", "es"};
  struct scene scene;
  begin(&scene, *backend);
  pid_t worker = instance_worker(&scene.instance);
  srandom(20240607);
  for (int i = 0; i < 300; i++) {
    uint8_t garbage[3000];
    size_t n = 1 + (size_t)random() % sizeof garbage;
    for (size_t at = 0; at < n; at++) garbage[at] = (uint8_t)(random() >> 7);
    int fd = connect_to(&scene, listeners[i % 6]);
    feed_write(fd, garbage, n); /* may be cut off */
    shutdown(fd, SHUT_WR);
    cr_assert(feed_peer_closed(fd, 20));
    close(fd);
    struct np_event event; /* what looked like frames by chance */
    int status;
    while ((status = np_take(scene.subscriber, &event)) == NP_OK) np_release(scene.subscriber, &event);
    cr_assert_eq(status, NP_EMPTY);
    if (i % 20 != 19) continue;
    usleep(20000);
    while (np_take(scene.subscriber, &event) == NP_OK) np_release(scene.subscriber, &event);
    expect_undisturbed(&scene);
  }
  cr_assert_eq(instance_worker(&scene.instance), worker, "the worker was replaced");
  cr_assert_eq(instance_broker_counter(&scene.instance, NPI_BROKER_WORKER_RESTARTS), 0);
  end(&scene);
}

TEST_WITH_BOTH_INGEST_BACKENDS(bad_input, datagrams_with_bad_frames_are_counted_and_the_next_one_is_fine) {
  /* Proves: garbage, a frame cut off by the datagram's end and trailing bytes count; the socket stays. */
  struct scene scene;
  begin(&scene, *backend);
  int fd = feed_connect("127.0.0.1", instance_port(&scene.instance, "packets"), SOCK_DGRAM);
  static const struct wrong packets[] = {
      {"packets", "length over the end", BYTES("\0\0\0\11short"), 0},
      {"packets", "negative-looking", BYTES("\377\377\377\377x"), 0},
      {"packets", "half a prefix", BYTES("\0\0"), 0},
  };
  for (unsigned i = 0; i < 3; i++) {
    uint64_t before =
        count(&scene, "packets", NPI_LISTENER_BAD_LENGTH) + count(&scene, "packets", NPI_LISTENER_BAD_FRAME) +
        count(&scene, "packets", NPI_LISTENER_TOO_LARGE) + count(&scene, "packets", NPI_LISTENER_PARTIAL_AT_END);
    cr_assert_eq(send(fd, packets[i].bytes, packets[i].n, 0), (ssize_t)packets[i].n);
    EVENTUALLY(20, count(&scene, "packets", NPI_LISTENER_BAD_LENGTH) +
                           count(&scene, "packets", NPI_LISTENER_BAD_FRAME) +
                           count(&scene, "packets", NPI_LISTENER_TOO_LARGE) +
                           count(&scene, "packets", NPI_LISTENER_PARTIAL_AT_END) ==
                       before + 1);
    cr_assert_eq(send(fd, "\0\0\0\3yes\0\0\0\2ok", 13, 0), 13);
    expect_text(&scene, "yes");
    expect_text(&scene, "ok");
  }
  close(fd);
  end(&scene);
}

TEST_WITH_BOTH_INGEST_BACKENDS(bad_input, senders_that_say_nothing_or_too_little_are_closed) {
  /* Proves: idle_timeout and frame_timeout close and count; the fourth of three allowed connections is refused and
   * counted, and when one ends the next is served. */
  struct scene scene;
  begin(&scene, *backend);
  int silent = connect_to(&scene, "slow");
  int begun = connect_to(&scene, "slow");
  cr_assert_eq(feed_write(begun, "never fini", 10), 0);
  cr_assert(feed_peer_closed(silent, 20));
  cr_assert(feed_peer_closed(begun, 20));
  EVENTUALLY(20,
             count(&scene, "slow", NPI_LISTENER_CLOSED_IDLE) + count(&scene, "slow", NPI_LISTENER_CLOSED_SLOW) == 2);
  cr_assert_eq(count(&scene, "slow", NPI_LISTENER_CLOSED_IDLE), 1);
  close(silent);
  close(begun);
  int three[3];
  for (int i = 0; i < 3; i++) {
    three[i] = connect_to(&scene, "few");
    cr_assert_eq(feed_write(three[i], "in\n", 3), 0);
    expect_text(&scene, "in");
  }
  int fourth = connect_to(&scene, "few");
  cr_assert(feed_peer_closed(fourth, 20));
  close(fourth);
  EVENTUALLY(20, count(&scene, "few", NPI_LISTENER_REJECTED) == 1);
  close(three[0]);
  EVENTUALLY(20, count(&scene, "few", NPI_LISTENER_CLOSED) == 1);
  three[0] = connect_to(&scene, "few");
  for (int i = 0; i < 3; i++) {
    cr_assert_eq(feed_write(three[i], "again\n", 6), 0);
    expect_text(&scene, "again");
  }
  for (int i = 0; i < 3; i++) close(three[i]);
  end(&scene);
}

/* ---- what the machine refuses ------------------------------------------------------------------------ */

static int forbid_io_uring(void) {
  return forbid_system_call("io_uring_setup", EPERM);
}

static int forbid_mbind(void) {
  return forbid_system_call("mbind", EPERM);
}

static int filters_work(void *unused) {
  (void)unused;
  return forbid_system_call("mbind", EPERM) == 0 ? 0 : 1;
}

#define NEEDS_SECCOMP()                                                                    \
  do {                                                                                     \
    if (reap(spawn(filters_work, NULL), 20) != 0) cr_skip_test("no seccomp filters here"); \
  } while (0)

#define ONE_LISTENER                                                               \
  "channels:\n  - { name: all, kind: broadcast, credits: 1024, on_full: block }\n" \
  "listeners:\n  - { name: lines, proto: tcp, address: \"127.0.0.1:0\", framing: newline, channel: all }\n"

/* One line goes through. */
static void expect_service(struct instance *instance) {
  struct np_client *client = NULL;
  struct np_subscriber *subscriber = NULL;
  struct np_event event;
  cr_assert_eq(np_connect(&client, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_subscriber_open(client, "all", NULL, &subscriber), NP_OK);
  int fd = feed_connect("127.0.0.1", instance_port(instance, "lines"), SOCK_STREAM);
  cr_assert_eq(feed_write(fd, "hello\n", 6), 0);
  cr_assert_eq(np_wait(subscriber, 20000), NP_OK);
  cr_assert_eq(np_take(subscriber, &event), NP_OK);
  cr_assert_eq(event.size, 5);
  cr_assert_eq(np_release(subscriber, &event), NP_OK);
  close(fd);
  np_disconnect(client);
}

Test(bad_input, without_io_uring_auto_uses_epoll_and_says_so) {
  /* Proves: a seccomp filter on io_uring_setup: the worker serves by epoll, the log names the reason. */
  NEEDS_SECCOMP();
  struct instance instance;
  instance_start(&instance, "memory: { per_node: 32MiB, ready: 0 }\ningest: { backend: auto }\n" ONE_LISTENER,
                 forbid_io_uring);
  cr_assert_eq(instance_listener_counter(&instance, "lines", NPI_LISTENER_BACKEND), EPOLL);
  cr_assert(instance_log_has(&instance, "io_uring"));
  expect_service(&instance);
  instance_stop(&instance);
}

Test(bad_input, without_io_uring_a_broker_that_insists_refuses_to_start) {
  /* Proves: backend io_uring on a machine that forbids it is an error in words, not a silent other choice. */
  NEEDS_SECCOMP();
  struct instance instance;
  int status = instance_start_refused(
      &instance, "memory: { per_node: 32MiB, ready: 0 }\ningest: { backend: io_uring }\n" ONE_LISTENER,
      forbid_io_uring);
  cr_assert_neq(status, 0);
  cr_assert(instance_log_has(&instance, "io_uring_setup"), "the log does not name the reason");
  instance_forget(&instance);
}

Test(bad_input, without_mbind_prefer_goes_on_and_reports_it) {
  /* Proves: numa prefer with mbind forbidden: events flow, the registry says that binding was refused, a warning is
   * logged. */
  NEEDS_SECCOMP();
  struct instance instance;
  instance_start(&instance, "memory: { per_node: 32MiB, ready: 4MiB }\nnuma: { mode: prefer }\n" ONE_LISTENER,
                 forbid_mbind);
  const struct npi_registry_header *header = instance_header(&instance);
  const struct npi_node_record *node = (const void *)(instance.registry + header->nodes.offset);
  cr_assert_eq(npi_load_relaxed_u32(&node->bind_refused), 1);
  cr_assert(instance_log_has(&instance, "numa.bind_refused"));
  expect_service(&instance);
  instance_stop(&instance);
}

Test(bad_input, without_mbind_strict_refuses_to_start) {
  /* Proves: numa strict with mbind forbidden ends with an error that names mbind, and leaves nothing. */
  NEEDS_SECCOMP();
  struct instance instance;
  int status = instance_start_refused(
      &instance, "memory: { per_node: 32MiB, ready: 4MiB }\nnuma: { mode: strict }\n" ONE_LISTENER, forbid_mbind);
  cr_assert_neq(status, 0);
  cr_assert(instance_log_has(&instance, "mbind"), "the log does not name the reason");
  instance_forget(&instance);
}
