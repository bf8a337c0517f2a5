/* SPDX-License-Identifier: Apache-2.0 */
/* Datagrams through the ingest engine: every one is accounted for, here or in the kernel's own count. */
#include <linux/sock_diag.h>

#include "tests/support/ingest_rig.h"

TestSuite(ingest_datagram, .timeout = 100);

static struct rig_variant variants[] = {RIG_VARIANTS};

#define DATAGRAM_TEST(name)                                                                         \
  ParameterizedTestParameters(ingest_datagram, name) {                                              \
    return cr_make_param_array(struct rig_variant, variants, sizeof(variants) / sizeof(*variants)); \
  }                                                                                                 \
  ParameterizedTest(struct rig_variant *variant, ingest_datagram, name)

static void send_number(struct rig *rig, int fd, uint64_t number, size_t n) {
  static uint8_t bytes[65536];

  memcpy(bytes, &number, sizeof(number));
  rig_send(rig, fd, bytes, n);
}

static void in_order(enum npi_config_proto proto, const struct rig_variant *variant) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, proto, NPI_FRAMING_DATAGRAM);
  const uint8_t *at;
  int fd;

  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  for (uint64_t i = 0; i < 2000; i++) {
    send_number(rig, fd, i, 8 + i % 1500);
    if (i % 16 == 0) RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_DATAGRAMS) == i + 1);
  }
  RIG_UNTIL(rig, rig->n_published == 2000);
  at = rig->account[0].text;
  for (uint64_t i = 0; i < 2000; i++) {
    uint64_t payload_bytes, number;
    memcpy(&payload_bytes, at + 5, sizeof(payload_bytes));
    memcpy(&number, at + 13, sizeof(number));
    cr_assert_eq(payload_bytes, 8 + i % 1500);
    cr_assert_eq(number, i);
    at += 13 + payload_bytes;
  }
  cr_assert_eq(rig->last.connection, 0);
  cr_assert_eq(rig->last.family, proto == NPI_CONFIG_UDP ? 4 : 1);
  close(fd);
  rig_free(rig);
}

DATAGRAM_TEST(udp_arrives_in_order_with_its_sender) {
  in_order(NPI_CONFIG_UDP, variant);
}

DATAGRAM_TEST(unix_datagrams_arrive_in_order) {
  in_order(NPI_CONFIG_UNIX_DATAGRAM, variant);
}

DATAGRAM_TEST(an_empty_datagram_is_counted_and_is_not_an_end) {
  for (int kind = 0; kind < 2; kind++) {
    struct rig *rig = rig_new();
    uint32_t listener = rig_listen(rig, kind ? NPI_CONFIG_UNIX_DATAGRAM : NPI_CONFIG_UDP, NPI_FRAMING_DATAGRAM);
    int fd;

    rig_start(rig, variant);
    fd = rig_connect(rig, listener);
    for (int i = 0; i < 20; i++) {
      cr_assert_eq(send(fd, "", 0, 0), 0);
      cr_assert_eq(send(fd, "full", 4, 0), 4);
      if (i % 3 == 0) rig_turn(rig);
      if (i % 5 == 4) RIG_UNTIL(rig, rig->n_published == (uint64_t)i + 1);
    }
    RIG_UNTIL(rig, rig->n_published == 20 && rig_count(rig, listener, NPI_LISTENER_EMPTY) == 20);
    cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_DATAGRAMS), 40);
    close(fd);
    rig_free(rig);
  }
}

DATAGRAM_TEST(a_datagram_over_max_frame_is_counted_not_cut) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_DATAGRAM);
  uint32_t smaller = rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_DATAGRAM);
  int fd, other;

  rig->config[listener].framing.max_frame = rig->config[listener].max_frame = 2000;
  rig->config[smaller].framing.max_frame = rig->config[smaller].max_frame = 100;
  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  other = rig_connect(rig, smaller);
  send_number(rig, fd, 1, 2000);
  send_number(rig, fd, 2, 2001);
  send_number(rig, fd, 3, 60000);
  send_number(rig, fd, 4, 8);
  send_number(rig, other, 1, 101); /* fits into the buffer, which the other listener made larger */
  send_number(rig, other, 2, 100);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_DATAGRAMS) == 4 &&
                     rig_count(rig, smaller, NPI_LISTENER_DATAGRAMS) == 2);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_PUBLISHED), 2);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_TRUNCATED), 2);
  cr_assert_eq(rig_count(rig, smaller, NPI_LISTENER_PUBLISHED), 1);
  cr_assert_eq(rig_count(rig, smaller, NPI_LISTENER_TRUNCATED), 1);
  close(fd);
  close(other);
  rig_free(rig);
}

DATAGRAM_TEST(the_largest_datagram_there_is_arrives) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_DATAGRAM);
  int fd;

  rig->config[listener].framing.max_frame = rig->config[listener].max_frame = 65536;
  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  send_number(rig, fd, 7, 65507);
  RIG_UNTIL(rig, rig->n_published == 1);
  cr_assert_eq(rig->last.payload_bytes, 65507);
  close(fd);
  rig_free(rig);
}

DATAGRAM_TEST(a_datagram_may_carry_whole_frames_and_its_rest_is_dropped) {
  struct rig *rig = rig_new();
  uint32_t lines = rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_NEWLINE);
  uint32_t counted = rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_LENGTH_PREFIX);
  int fd, other;

  rig_start(rig, variant);
  fd = rig_connect(rig, lines);
  other = rig_connect(rig, counted);
  rig_send(rig, fd, "one\ntwo\nthree", 13); /* the last line needs no end */
  rig_send(rig, other, "\0\0\0\1a\0\0\0\2bb\0\0\0\3c", 16);
  rig_send(rig, other, "\xff\xff\xff\xff....", 8);
  rig_send(rig, other, "\0\0\0\1d", 5);
  RIG_UNTIL(rig,
            rig_count(rig, lines, NPI_LISTENER_DATAGRAMS) == 1 && rig_count(rig, counted, NPI_LISTENER_DATAGRAMS) == 3);
  cr_assert_eq(rig_count(rig, lines, NPI_LISTENER_PUBLISHED), 3);
  cr_assert_eq(rig_count(rig, counted, NPI_LISTENER_PUBLISHED), 3);
  cr_assert_eq(rig_count(rig, counted, NPI_LISTENER_PARTIAL_AT_END), 1);
  cr_assert_eq(rig_count(rig, counted, NPI_LISTENER_BAD_LENGTH), 1);
  close(fd);
  close(other);
  rig_free(rig);
}

DATAGRAM_TEST(what_was_received_when_the_sink_refuses_is_held_not_lost) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UNIX_DATAGRAM, NPI_FRAMING_NEWLINE);
  uint64_t sent = 0;
  int fd;

  rig->config[listener].on_full = NPI_CONFIG_LISTENER_PAUSE;
  rig->refuse_one_in = 30;
  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  for (int i = 0; i < 1500; i++) {
    char text[64];
    int n = snprintf(text, sizeof(text), "%d a\n%d b\n%d c\n", i, i, i);
    rig_send(rig, fd, text, (size_t)n);
    sent += 3;
    if (i % 10 == 0) rig_turn(rig);
  }
  RIG_UNTIL(rig, rig->n_published == sent);
  for (uint64_t i = 0, at = 0; i < sent; i++) { /* and in order */
    uint64_t payload_bytes;
    memcpy(&payload_bytes, rig->account[0].text + at + 5, sizeof(payload_bytes));
    cr_assert_eq((uint64_t)atoi((char *)rig->account[0].text + at + 13), i / 3);
    cr_assert_eq(rig->account[0].text[at + 13 + payload_bytes - 1], "abc"[i % 3]);
    at += 13 + payload_bytes;
  }
  cr_assert_gt(rig_count(rig, listener, NPI_LISTENER_PAUSES), 10);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_HELD), 0);
  cr_assert_eq(npi_ingest_carry_bytes(rig->ingest), 0);
  close(fd);
  rig_free(rig);
}

/* Full speed into a small socket buffer and a sink that stops now and then: sent = published + dropped, exactly. */
static void overload(const struct rig_variant *variant, enum npi_config_listener_full on_full) {
  enum { SENT = 30000 };
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_DATAGRAM);
  int small = 32768, fd;
  uint64_t n;

  setsockopt(rig->fd[listener], SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
  rig->config[listener].on_full = on_full;
  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  for (uint64_t i = 0; i < SENT; i++) {
    rig->refuse_always = i / 1000 % 3 == 1 ? NP_EMPTY : 0;
    send_number(rig, fd, i, 64);
    if (i % 50 == 0) rig_turn(rig);
  }
  rig->refuse_always = 0;
  rig_settle(rig);
  cr_assert_eq(npi_ingest_drain(rig->ingest, npi_clock_monotonic() + UINT64_C(5000000000)), 0);
  rig_check_balance(rig);
  n = rig->n_published + rig_count(rig, listener, NPI_LISTENER_DROPPED_POOL) +
      rig_count(rig, listener, NPI_LISTENER_DROPPED_KERNEL);
  cr_assert_eq(n, SENT, "published %lu, dropped by us %lu, by the kernel %lu", (unsigned long)rig->n_published,
               (unsigned long)rig_count(rig, listener, NPI_LISTENER_DROPPED_POOL),
               (unsigned long)rig_count(rig, listener, NPI_LISTENER_DROPPED_KERNEL));
  if (on_full == NPI_CONFIG_LISTENER_DROP_NEWEST) {
    cr_assert_gt(rig_count(rig, listener, NPI_LISTENER_DROPPED_POOL), 0);
    cr_assert_eq(rig->n_skipped, rig_count(rig, listener, NPI_LISTENER_DROPPED_POOL));
  } else {
    cr_assert_gt(rig_count(rig, listener, NPI_LISTENER_DROPPED_KERNEL), 0);
    cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_DROPPED_POOL), 0, "the kernel is to drop, not we");
  }
  close(fd);
  rig_free(rig);
}

DATAGRAM_TEST(overload_with_kernel_drop_is_accounted_for_exactly) {
  overload(variant, NPI_CONFIG_LISTENER_KERNEL_DROP);
}

DATAGRAM_TEST(overload_with_drop_newest_is_accounted_for_exactly) {
  overload(variant, NPI_CONFIG_LISTENER_DROP_NEWEST);
}

static int descriptors_open(void) {
  int n = 0;

  for (int fd = 0; fd < 1000; fd++) n += fcntl(fd, F_GETFD) >= 0;
  return n;
}

DATAGRAM_TEST(descriptors_that_a_sender_attaches_are_not_received) {
  enum npi_config_proto protos[] = {NPI_CONFIG_UNIX_DATAGRAM, NPI_CONFIG_UNIX};

  for (int p = 0; p < 2; p++) {
    struct rig *rig = rig_new();
    uint32_t listener = rig_listen(rig, protos[p], NPI_FRAMING_NEWLINE);
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {.iov_base = "text\n", .iov_len = 5};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    int fd, before;

    rig->config[listener].timestamps = 1; /* means nothing to a Unix socket */
    rig_start(rig, variant);
    fd = rig_connect(rig, listener);
    rig_settle(rig);
    before = descriptors_open();
    for (int i = 0; i < 20; i++) {
      struct cmsghdr *header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int));
      memcpy(CMSG_DATA(header), &fd, sizeof(fd));
      cr_assert_eq(sendmsg(fd, &message, 0), 5);
      RIG_UNTIL(rig, rig->n_published == (uint64_t)i + 1);
    }
    cr_assert_eq(descriptors_open(), before, "descriptors of a stranger were taken in");
    close(fd);
    rig_free(rig);
  }
}

DATAGRAM_TEST(the_kernels_time_stamp_is_used_where_it_was_asked_for) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_DATAGRAM);
  uint64_t before, after;
  int fd;

  rig->config[listener].timestamps = 1;
  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  /* The kernel begins to stamp what arrives a moment after it was asked. */
  do {
    uint64_t n = rig->n_published;
    cr_assert_lt(n, 100, "never stamped at arrival");
    before = npi_clock_realtime();
    rig_send(rig, fd, "now", 3);
    after = npi_clock_realtime();
    usleep(30000); /* received much later than it arrived */
    RIG_UNTIL(rig, rig->n_published == n + 1);
    cr_assert_geq(rig->last.time_ns, before);
  } while (rig->last.time_ns > after + 10000000);
  close(fd);
  rig_free(rig);
}

DATAGRAM_TEST(kernel_drops_of_before_are_not_counted_again) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_DATAGRAM);
  struct npi_ingest_listener_options options;
  struct npi_ingest_options engine = {.backend = variant->backend,
                                      .staging_buffers = variant->staging_buffers,
                                      .staging_bytes = variant->staging_bytes,
                                      .listeners = &options,
                                      .n_listeners = 1};
  uint32_t values[SK_MEMINFO_VARS];
  socklen_t bytes = sizeof(values);
  int small = 4096, fd = rig_connect(rig, listener);

  setsockopt(rig->fd[listener], SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
  for (int i = 0; i < 200; i++) send(fd, "before any worker", 17, 0);
  cr_assert_eq(getsockopt(rig->fd[listener], SOL_SOCKET, SO_MEMINFO, values, &bytes), 0);
  cr_assert_gt(values[SK_MEMINFO_DROPS], 100);
  engine.sink = (struct npi_ingest_sink){.context = rig, .publish = rig_publish, .skip = rig_skip, .flush = rig_flush};
  options = (struct npi_ingest_listener_options){.config = &rig->config[listener],
                                                 .counters = &rig->counters[listener],
                                                 .fd = rig->fd[listener],
                                                 .kernel_drops_before = values[SK_MEMINFO_DROPS]};
  cr_assert_eq(npi_ingest_new(&rig->ingest, &engine), 0);
  cr_assert_eq(npi_ingest_drain(rig->ingest, npi_clock_monotonic() + UINT64_C(5000000000)), 0);
  cr_assert_eq(rig->n_published + values[SK_MEMINFO_DROPS], 200);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_DROPPED_KERNEL), 0);
  close(fd);
  rig_free(rig);
}
