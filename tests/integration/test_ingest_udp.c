/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Datagrams and the framings that a stream of frames is not: UDP of both families, multicast, Unix sockets, lines,
 * fixed sizes, eventstream. The arithmetic of drops is exact.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/support/backends.h"
#include "tests/support/child.h"
#include "tests/support/feed.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/peers.h"

TestSuite(ingest_udp, .timeout = 180);

static void start(struct instance *instance, int backend, const char *rest) {
  char yaml[4096];
  snprintf(yaml, sizeof yaml, "memory: { per_node: 128MiB, ready: 8MiB }\ningest: { backend: %s }\n%s",
           ingest_backend_text(backend), rest);
  instance_start(instance, yaml, NULL);
}

struct listening { /* a client of this process with one subscription */
  struct np_client *client;
  struct np_subscriber *subscriber;
};

static struct listening listen_on(const char *channel) {
  struct listening listening = {0};
  cr_assert_eq(np_connect(&listening.client, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_subscriber_open(listening.client, channel, NULL, &listening.subscriber), NP_OK, "%s",
               np_error_detail());
  return listening;
}

/* The next event is these bytes. */
static struct np_source expect_bytes(struct listening *listening, const void *bytes, size_t n) {
  struct np_event event;
  struct np_source source = {.size = sizeof source};
  cr_assert_eq(np_wait(listening->subscriber, 20000), NP_OK, "no event within 20 s");
  cr_assert_eq(np_take(listening->subscriber, &event), NP_OK);
  cr_assert_eq(event.size, n, "%zu bytes, not %zu", event.size, n);
  cr_assert_eq(memcmp(event.data, bytes, n), 0, "other bytes: %.*s", (int)event.size, (const char *)event.data);
  cr_assert_eq(np_event_source(listening->subscriber, &event, &source), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_release(listening->subscriber, &event), NP_OK);
  return source;
}

static void expect_nothing(struct listening *listening) {
  struct np_event event;
  cr_assert_eq(np_take(listening->subscriber, &event), NP_EMPTY);
}

/* ---- exact arithmetic -------------------------------------------------------------------------------- */

struct blast {
  uint16_t port;
  uint64_t count;
  uint32_t size;
  _Atomic uint64_t sent;
};

static int blast_body(void *argument) {
  struct blast *blast = argument;
  uint8_t message[2048];
  int fd = feed_connect("127.0.0.1", blast->port, SOCK_DGRAM);
  CHILD_EXPECT(fd >= 0);
  for (uint64_t i = 0; i < blast->count;) {
    message_fill(message, blast->size, i);
    ssize_t n = send(fd, message, blast->size, 0);
    if (n < 0 && (errno == ENOBUFS || errno == EINTR)) continue; /* not sent, so it does not count */
    CHILD_EXPECT(n == (ssize_t)blast->size);
    blast->sent = ++i;
  }
  close(fd);
  return 0;
}

/* One counter after the other moves, so a sum is true only when it stands still: looks until it fits. */
static uint64_t accounted(const struct instance *instance, const char *listener) {
  return instance_listener_counter(instance, listener, NPI_LISTENER_RECEIVED) +
         instance_listener_counter(instance, listener, NPI_LISTENER_DROPPED_KERNEL) +
         instance_listener_counter(instance, listener, NPI_LISTENER_TRUNCATED) +
         instance_listener_counter(instance, listener, NPI_LISTENER_EMPTY);
}

static void blast_at(int backend, const char *listener_options, const char *channel_options, int slow) {
  enum { DATAGRAMS = 200000, SIZE = 100 };
  struct instance instance;
  char yaml[1024];
  snprintf(yaml, sizeof yaml,
           "channels:\n  - { name: packets, kind: broadcast, %s }\n"
           "listeners:\n  - { name: udp, proto: udp, address: \"127.0.0.1:0\", channel: packets%s }\n",
           channel_options, listener_options);
  start(&instance, backend, yaml);
  struct receiver *receiver = receiver_for("packets");
  receiver->no_order = 1; /* numbers have gaps where datagrams were dropped; the sequence says which */
  pid_t pid = spawn(receiver_body, receiver);
  EVENTUALLY(20, receiver->ready);
  struct blast *blast = shared_memory(sizeof *blast);
  blast->port = instance_port(&instance, "udp");
  blast->count = DATAGRAMS;
  blast->size = SIZE;
  pid_t sender = spawn(blast_body, blast);
  for (int i = 0; slow && i < 40; i++) { /* the subscriber stops now and then, so that drops must happen */
    kill(pid, SIGSTOP);
    usleep(10000);
    kill(pid, SIGCONT);
    usleep(3000);
  }
  cr_assert_eq(reap(sender, 60), 0);
  EVENTUALLY(60, accounted(&instance, "udp") == DATAGRAMS);
  uint64_t published = 0, kernel = 0, pool = 0, credit = 0;
  EVENTUALLY(20, (published = instance_listener_counter(&instance, "udp", NPI_LISTENER_PUBLISHED)) +
                         (kernel = instance_listener_counter(&instance, "udp", NPI_LISTENER_DROPPED_KERNEL)) +
                         (pool = instance_listener_counter(&instance, "udp", NPI_LISTENER_DROPPED_POOL)) +
                         (credit = instance_listener_counter(&instance, "udp", NPI_LISTENER_DROPPED_CREDIT)) ==
                     DATAGRAMS);
  receiver->stop = 1;
  cr_assert_eq(reap(pid, 20), 0);
  say("ingest_udp: %s%s: %d sent, %llu received, dropped: kernel %llu, pool %llu, credit %llu, subscriber %llu\n",
      ingest_backend_text(backend), listener_options, DATAGRAMS, (unsigned long long)receiver->received,
      (unsigned long long)kernel, (unsigned long long)pool, (unsigned long long)credit,
      (unsigned long long)receiver->missed);
  cr_assert_eq(receiver->bad, 0);
  cr_assert_eq(receiver->out_of_order, 0);
  cr_assert_eq(receiver->received + receiver->missed + kernel + pool + credit, DATAGRAMS);
  cr_assert_eq(receiver->received + receiver->missed, published);
  instance_stop(&instance);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_udp, at_full_speed_received_and_dropped_are_what_was_sent) {
  /* Proves: 200,000 datagrams: those received and the counted drops of the kernel and of ours are exactly all. */
  blast_at(*backend, "", "credits: 4096, on_full: block", 0);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_udp, a_small_kernel_buffer_and_a_slow_subscriber_still_add_up) {
  /* Proves: the same where the kernel must drop: 64 KiB receive buffer, a subscriber that stops. */
  blast_at(*backend, ", rcvbuf: 64KiB", "credits: 256, on_full: block", 1);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_udp, a_listener_that_drops_itself_adds_up) {
  /* Proves: with on_full drop_newest the worker reads on and counts for want of credit. */
  blast_at(*backend, ", on_full: drop_newest", "credits: 64, on_full: block", 1);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_udp, a_subscriber_that_drops_adds_up) {
  /* Proves: on a drop_newest channel the misses are the subscriber's, seen as its gaps. */
  blast_at(*backend, "", "credits: 256, on_full: drop_newest", 1);
}

/* ---- kinds of sockets -------------------------------------------------------------------------------- */

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_udp, datagrams_of_every_kind_arrive_whole_with_their_sender) {
  /* Proves: IPv4, IPv6 and Unix datagrams; the source names family, address, port and listener; an empty datagram and
   * one longer than max_frame are counted and disturb nobody. */
  struct instance instance;
  start(&instance, *backend,
        "channels:\n  - { name: packets, kind: broadcast, credits: 1024, on_full: block }\n"
        "listeners:\n"
        "  - { name: four, proto: udp, address: \"127.0.0.1:0\", channel: packets, max_frame: 1KiB }\n"
        "  - { name: six, proto: udp, address: \"[::1]:0\", channel: packets }\n"
        "  - { name: path, proto: unix_datagram, path: \"${runtime}/events.sock\", channel: packets }\n");
  struct listening listening = listen_on("packets");
  char path[256];
  char large[2000];
  memset(large, 'l', sizeof large);
  snprintf(path, sizeof path, "%s/events.sock", instance.runtime);
  int four = feed_connect("127.0.0.1", instance_port(&instance, "four"), SOCK_DGRAM);
  int six = feed_connect("::1", instance_port(&instance, "six"), SOCK_DGRAM);
  int local = feed_connect_unix(path, SOCK_DGRAM);
  cr_assert(four >= 0 && six >= 0 && local >= 0);
  struct sockaddr_in name;
  socklen_t length = sizeof name;
  cr_assert_eq(getsockname(four, (struct sockaddr *)&name, &length), 0);
  for (int i = 0; i < 50; i++) {
    cr_assert_eq(send(four, "by four", 7, 0), 7);
    struct np_source source = expect_bytes(&listening, "by four", 7);
    cr_assert_eq(source.family, 4);
    cr_assert_eq(source.port, ntohs(name.sin_port));
    cr_assert_eq(memcmp(source.address, (const uint8_t[]){127, 0, 0, 1}, 4), 0);
    cr_assert_eq(source.connection, 0);
    cr_assert_str_eq(source.listener_name, "four");
    cr_assert_eq(send(six, "by six", 6, 0), 6);
    source = expect_bytes(&listening, "by six", 6);
    cr_assert_eq(source.family, 6);
    cr_assert_eq(memcmp(source.address, &in6addr_loopback, 16), 0);
    cr_assert_str_eq(source.listener_name, "six");
    cr_assert_eq(send(local, "by path", 7, 0), 7);
    source = expect_bytes(&listening, "by path", 7);
    cr_assert_eq(source.family, 1);
    cr_assert_str_eq(source.listener_name, "path");
  }
  cr_assert_eq(send(four, large, sizeof large, 0), (ssize_t)sizeof large);
  cr_assert_eq(send(four, "", 0, 0), 0);
  cr_assert_eq(send(four, large, 1024, 0), 1024);
  expect_bytes(&listening, large, 1024);
  expect_nothing(&listening);
  cr_assert_eq(instance_listener_counter(&instance, "four", NPI_LISTENER_TRUNCATED), 1);
  cr_assert_eq(instance_listener_counter(&instance, "four", NPI_LISTENER_EMPTY), 1);
  EVENTUALLY(20, instance_listener_counter(&instance, "four", NPI_LISTENER_PUBLISHED) == 51); /* then it is counted */
  close(four);
  close(six);
  close(local);
  np_disconnect(listening.client);
  instance_stop(&instance);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_udp, a_multicast_group_on_the_loopback_interface_is_received) {
  /* Proves: join by group and interface; another group on the same port is not received. */
  struct instance instance;
  start(&instance, *backend,
        "channels:\n  - { name: packets, kind: broadcast, credits: 1024, on_full: block }\n"
        "listeners:\n"
        "  - { name: market, proto: udp, address: \"0.0.0.0:23411\", channel: packets,\n"
        "      multicast: { group: 239.23.4.11, interface: lo } }\n");
  struct listening listening = listen_on("packets");
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  struct in_addr loopback = {.s_addr = htonl(INADDR_LOOPBACK)};
  struct sockaddr_in group = {.sin_family = AF_INET, .sin_port = htons(23411)};
  cr_assert_eq(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &loopback, sizeof loopback), 0);
  for (int i = 0; i < 20; i++) {
    inet_pton(AF_INET, "239.23.4.12", &group.sin_addr);
    cr_assert_eq(sendto(fd, "other", 5, 0, (const struct sockaddr *)&group, sizeof group), 5);
    inet_pton(AF_INET, "239.23.4.11", &group.sin_addr);
    cr_assert_eq(sendto(fd, "tick", 4, 0, (const struct sockaddr *)&group, sizeof group), 4, "%s", strerror(errno));
    expect_bytes(&listening, "tick", 4);
  }
  expect_nothing(&listening);
  close(fd);
  np_disconnect(listening.client);
  instance_stop(&instance);
}

/* ---- framings ---------------------------------------------------------------------------------------- */

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_udp, lines_fixed_records_and_prefixes_of_all_kinds_arrive) {
  /* Proves: newline over a Unix stream, fixed, length prefixes of 1, 2 and 8 bytes, little endian, prefix included; in
   * one write and byte by byte; frames of a framing inside one datagram. */
  struct instance instance;
  start(&instance, *backend,
        "channels:\n  - { name: all, kind: broadcast, credits: 1024, on_full: block }\n"
        "listeners:\n"
        "  - { name: lines, proto: unix, path: \"${runtime}/lines.sock\", framing: newline, channel: all }\n"
        "  - { name: fixed, proto: tcp, address: \"127.0.0.1:0\", framing: { fixed: 6 }, channel: all }\n"
        "  - { name: one, proto: tcp, address: \"[::1]:0\", framing: { length_prefix: 1 }, channel: all }\n"
        "  - { name: two, proto: tcp, address: \"127.0.0.1:0\", channel: all,\n"
        "      framing: { length_prefix: 2, endian: little, includes_prefix: true } }\n"
        "  - { name: eight, proto: tcp, address: \"127.0.0.1:0\", framing: { length_prefix: 8 }, channel: all }\n"
        "  - { name: many, proto: udp, address: \"127.0.0.1:0\", framing: newline, channel: all }\n");
  struct listening listening = listen_on("all");
  char path[256];
  snprintf(path, sizeof path, "%s/lines.sock", instance.runtime);
  static const struct {
    const char *listener;
    const char *bytes;
    size_t n;
  } streams[] = {
      {"lines", "alpha1\nbravo2\ncharli\n", 21},
      {"fixed", "alpha1bravo2charli", 18},
      {"one", "\6alpha1\6bravo2\6charli", 21},
      {"two", "\10\0alpha1\10\0bravo2\10\0charli", 24},
      {"eight", "\0\0\0\0\0\0\0\6alpha1\0\0\0\0\0\0\0\6bravo2\0\0\0\0\0\0\0\6charli", 42},
  };
  for (unsigned i = 0; i < sizeof streams / sizeof streams[0]; i++) {
    int fd =
        i == 0 ? feed_connect_unix(path, SOCK_STREAM)
               : feed_connect(i == 2 ? "::1" : "127.0.0.1", instance_port(&instance, streams[i].listener), SOCK_STREAM);
    cr_assert_geq(fd, 0, "%s: %s", streams[i].listener, strerror(errno));
    for (int way = 0; way < 2; way++) {
      if (way == 0) {
        cr_assert_eq(feed_write(fd, streams[i].bytes, streams[i].n), 0);
      } else {
        for (size_t at = 0; at < streams[i].n; at++) {
          cr_assert_eq(feed_write(fd, streams[i].bytes + at, 1), 0);
          usleep(500);
        }
      }
      expect_bytes(&listening, "alpha1", 6);
      expect_bytes(&listening, "bravo2", 6);
      struct np_source source = expect_bytes(&listening, "charli", 6);
      cr_assert_str_eq(source.listener_name, streams[i].listener);
      cr_assert_neq(source.connection, 0);
    }
    close(fd);
  }
  int fd = feed_connect("127.0.0.1", instance_port(&instance, "many"), SOCK_DGRAM);
  cr_assert_eq(send(fd, "alpha1\nbravo2\ncharli", 20, 0), 20);
  expect_bytes(&listening, "alpha1", 6);
  expect_bytes(&listening, "bravo2", 6);
  expect_bytes(&listening, "charli", 6);
  close(fd);
  expect_nothing(&listening);
  np_disconnect(listening.client);
  instance_stop(&instance);
}

TEST_WITH_BOTH_INGEST_BACKENDS(ingest_udp, eventstream_brings_topic_and_priority) {
  /* Proves: each priority, no topic and topics up to 1000 bytes, empty payloads; the parts arrive apart. */
  struct instance instance;
  start(&instance, *backend,
        "channels:\n  - { name: all, kind: broadcast, credits: 1024, on_full: block }\n"
        "listeners:\n  - { name: es, proto: tcp, address: \"127.0.0.1:0\", framing: eventstream, channel: all }\n");
  struct listening listening = listen_on("all");
  int fd = feed_connect("127.0.0.1", instance_port(&instance, "es"), SOCK_STREAM);
  cr_assert_geq(fd, 0);
  static const size_t topics[] = {0, 1, 5, 255, 256, 1000};
  static const size_t payloads[] = {0, 1, 300, 20000};
  for (uint8_t priority = 0; priority <= 4; priority++) {
    for (unsigned t = 0; t < 6; t++) {
      for (unsigned p = 0; p < 4; p++) {
        static uint8_t frame[32768];
        uint32_t rest = htonl((uint32_t)(3 + topics[t] + payloads[p]));
        uint16_t topic_size = htons((uint16_t)topics[t]);
        memcpy(frame, &rest, 4);
        frame[4] = priority;
        memcpy(frame + 5, &topic_size, 2);
        memset(frame + 7, 't', topics[t]);
        memset(frame + 7 + topics[t], 'p', payloads[p]);
        cr_assert_eq(feed_write(fd, frame, 7 + topics[t] + payloads[p]), 0);
        struct np_event event;
        cr_assert_eq(np_wait(listening.subscriber, 20000), NP_OK, "topic %zu, payload %zu", topics[t], payloads[p]);
        cr_assert_eq(np_take(listening.subscriber, &event), NP_OK);
        cr_assert_eq(event.priority, priority);
        cr_assert_eq(event.topic_size, topics[t]);
        cr_assert_eq(event.size, payloads[p]);
        for (size_t i = 0; i < topics[t]; i++) cr_assert_eq(event.topic[i], 't');
        for (size_t i = 0; i < payloads[p]; i++) {
          if (((const char *)event.data)[i] != 'p') cr_assert(0, "byte %zu", i);
        }
        cr_assert_eq(np_release(listening.subscriber, &event), NP_OK);
      }
    }
  }
  close(fd);
  np_disconnect(listening.client);
  instance_stop(&instance);
}
