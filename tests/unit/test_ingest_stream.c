/* SPDX-License-Identifier: Apache-2.0 */
/* Streams through the ingest engine: both backends, every rung of io_uring and sizes that hurt behave the same. */
#include <poll.h>

#include "daemon/ingest_internal.h"
#include "tests/support/ingest_rig.h"

TestSuite(ingest_stream, .timeout = 100);

static struct rig_variant variants[] = {RIG_VARIANTS};

#define STREAM_TEST(name)                                                                           \
  ParameterizedTestParameters(ingest_stream, name) {                                                \
    return cr_make_param_array(struct rig_variant, variants, sizeof(variants) / sizeof(*variants)); \
  }                                                                                                 \
  ParameterizedTest(struct rig_variant *variant, ingest_stream, name)

/* ---- streams that are made up ------------------------------------------------------------------------ */

struct text {
  uint8_t *bytes;
  size_t n;
  size_t capacity;
};

static void put(struct text *text, const void *bytes, size_t n) {
  if (text->n + n > text->capacity) {
    text->capacity = 2 * text->capacity + n;
    text->bytes = realloc(text->bytes, text->capacity);
    cr_assert_not_null(text->bytes);
  }
  if (n > 0) memcpy(text->bytes + text->n, bytes, n);
  text->n += n;
}

static void put_number(struct text *text, const struct npi_framing *framing, uint64_t number, uint32_t width) {
  uint8_t bytes[8];

  for (uint32_t i = 0; i < width; i++) bytes[framing->big_endian ? width - 1 - i : i] = (uint8_t)(number >> 8 * i);
  put(text, bytes, width);
}

/* One frame of a random size, small ones more often. */
static void put_frame(struct rig *rig, struct text *text, const struct npi_framing *framing) {
  static uint8_t payload[20000];
  size_t n = 1 + rig_random(rig) % (1u << (rig_random(rig) % 15));
  size_t n_topic = rig_random(rig) % 20;
  uint8_t priority = (uint8_t)(rig_random(rig) % 5);
  char count[24];

  if (n > framing->max_frame) n = framing->max_frame;
  for (size_t i = 0; i < n; i++) payload[i] = (uint8_t)('a' + rig_random(rig) % 26);
  switch (framing->kind) {
    case NPI_FRAMING_NEWLINE:
      put(text, payload, n);
      put(text, "\n", 1);
      break;
    case NPI_FRAMING_LENGTH_PREFIX:
      if (framing->prefix_bytes == 1 && n > 200) n = 200;
      put_number(text, framing, n + (framing->includes_prefix ? framing->prefix_bytes : 0), framing->prefix_bytes);
      put(text, payload, n);
      break;
    case NPI_FRAMING_FIXED: put(text, payload, framing->fixed_bytes); break;
    case NPI_FRAMING_SYSLOG:
      if (rig_random(rig) % 2) {
        snprintf(count, sizeof(count), "%zu ", n + 4);
        put(text, count, strlen(count));
        put(text, "<13>", 4);
        put(text, payload, n);
      } else {
        put(text, "<13>", 4);
        put(text, payload, n);
        put(text, "\n", 1);
      }
      break;
    default:
      put_number(text, framing, 3 + n_topic + n, 4);
      put(text, &priority, 1);
      put_number(text, framing, n_topic, 2);
      put(text, "topic.topic.topic.topic", n_topic);
      put(text, payload, n);
      break;
  }
}

static struct text make_stream(struct rig *rig, const struct npi_framing *framing, size_t n_frames) {
  struct text text = {0};

  for (size_t i = 0; i < n_frames; i++) put_frame(rig, &text, framing);
  return text;
}

/* Sends a stream in pieces of random sizes, with turns between them. */
static void send_in_pieces(struct rig *rig, int fd, const struct text *text) {
  size_t at = 0;

  while (at < text->n) {
    size_t n = 1 + rig_random(rig) % (1u << (rig_random(rig) % 17));
    if (n > text->n - at) n = text->n - at;
    rig_send(rig, fd, text->bytes + at, n);
    at += n;
    if (rig_random(rig) % 4 == 0) rig_turn(rig);
  }
}

/* A stream sent through a listener must give the frames that the decoder gives for it in one piece. */
static void expect_identical(struct rig *rig, uint32_t listener, uint64_t connection, const struct text *text) {
  const struct npi_framing *framing = &rig->config[listener].framing;
  struct feed_account expected = {0};

  feed_stream(framing, text->bytes, text->n, NULL, 0, &expected);
  cr_assert_eq(expected.error, NPI_FRAME_ERROR_NONE);
  expected.blank_lines = 0;
  cr_assert_eq(rig->account[connection].n_frames, expected.n_frames, "%lu frames of %lu",
               (unsigned long)rig->account[connection].n_frames, (unsigned long)expected.n_frames);
  cr_assert(feed_same(&rig->account[connection], &expected), "other frames than were sent");
  feed_account_free(&expected);
}

static void run_framing(const struct rig_variant *variant, enum npi_config_proto proto, struct npi_framing framing,
                        uint32_t refuse_one_in) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, proto, framing.kind);
  struct text text;
  int fd;

  framing.max_frame = rig->config[listener].max_frame;
  rig->config[listener].framing = framing;
  rig->refuse_one_in = refuse_one_in;
  rig_start(rig, variant);
  text = make_stream(rig, &framing, 300);
  fd = rig_connect(rig, listener);
  send_in_pieces(rig, fd, &text);
  close(fd);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == 1);
  expect_identical(rig, listener, 1, &text);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_RECEIVED_BYTES), text.n);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_PARTIAL_AT_END), 0);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_HELD), 0);
  cr_assert_eq(npi_ingest_carry_bytes(rig->ingest), 0, "memory for waiting bytes was not given back");
  if (refuse_one_in) {
    cr_assert_gt(rig_count(rig, listener, NPI_LISTENER_PAUSES), 0);
    cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_PAUSES), rig_count(rig, listener, NPI_LISTENER_RESUMES));
  }
  free(text.bytes);
  rig_free(rig);
}

static const struct npi_framing framings[] = {
    {.kind = NPI_FRAMING_NEWLINE, .strip_cr = 1},
    {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 1},
    {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 2, .includes_prefix = 1},
    {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 4, .big_endian = 1},
    {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 8, .big_endian = 1, .includes_prefix = 1},
    {.kind = NPI_FRAMING_FIXED, .fixed_bytes = 97},
    {.kind = NPI_FRAMING_SYSLOG},
    {.kind = NPI_FRAMING_EVENTSTREAM, .big_endian = 1},
};

STREAM_TEST(streams_of_all_framings_cut_anywhere_arrive_identical) {
  for (size_t i = 0; i < sizeof(framings) / sizeof(*framings); i++) {
    run_framing(variant, NPI_CONFIG_TCP, framings[i], 0);
    run_framing(variant, NPI_CONFIG_UNIX, framings[i], 0);
  }
}

STREAM_TEST(a_sink_that_refuses_at_random_loses_nothing) {
  for (size_t i = 0; i < sizeof(framings) / sizeof(*framings); i++)
    run_framing(variant, NPI_CONFIG_UNIX, framings[i], 40);
}

STREAM_TEST(one_byte_at_a_time_arrives_identical) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_EVENTSTREAM);
  struct text text;
  int fd;

  rig_start(rig, variant);
  text = make_stream(rig, &rig->config[listener].framing, 3);
  if (text.n > 3000) text.n = 3000;
  fd = rig_connect(rig, listener);
  for (size_t i = 0; i < text.n; i++) {
    rig_send(rig, fd, text.bytes + i, 1);
    cr_assert_eq(npi_ingest_turn(rig->ingest, 0), 0);
  }
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_RECEIVED_BYTES) == text.n);
  cr_assert_gt(rig->n_published, 0);
  close(fd);
  free(text.bytes);
  rig_free(rig);
}

STREAM_TEST(fifty_connections_at_once_keep_their_own_order) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_LENGTH_PREFIX);
  struct text text[50];
  size_t at[50] = {0}, n_open = 50;
  int fd[50];

  rig->refuse_one_in = 500;
  rig_start(rig, variant);
  for (int i = 0; i < 50; i++) {
    text[i] = make_stream(rig, &rig->config[listener].framing, 100);
    fd[i] = rig_connect(rig, listener);
    /* numbers are given in the order of accepting */
    RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_ACCEPTED) == (uint64_t)i + 1);
  }
  while (n_open > 0) {
    size_t i = rig_random(rig) % 50, n = 1 + rig_random(rig) % 30000;
    ssize_t sent;
    if (fd[i] < 0) continue;
    if (n > text[i].n - at[i]) n = text[i].n - at[i];
    sent = send(fd[i], text[i].bytes + at[i], n, MSG_NOSIGNAL);
    if (sent > 0) at[i] += (size_t)sent;
    if (at[i] == text[i].n) {
      close(fd[i]);
      fd[i] = -1;
      n_open--;
    }
    if (rig_random(rig) % 8 == 0 || sent < 0) rig_turn(rig);
  }
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == 50);
  for (int i = 0; i < 50; i++) {
    expect_identical(rig, listener, (uint64_t)i + 1, &text[i]);
    free(text[i].bytes);
  }
  rig_free(rig);
}

STREAM_TEST(a_pause_holds_everything_until_the_sink_goes_on) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_LENGTH_PREFIX);
  struct text text[3];
  int fd[3];

  rig_start(rig, variant);
  for (int i = 0; i < 3; i++) {
    text[i] = make_stream(rig, &rig->config[listener].framing, 50);
    fd[i] = rig_connect(rig, listener);
    RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_ACCEPTED) == (uint64_t)i + 1);
  }
  rig->refuse_always = NP_FULL;
  for (int i = 0; i < 3; i++) {
    ssize_t n = send(fd[i], text[i].bytes, text[i].n, MSG_NOSIGNAL);
    cr_assert_eq(n, (ssize_t)text[i].n, "the test needs streams that fit into the socket");
    shutdown(fd[i], SHUT_WR);
  }
  rig_settle(rig);
  cr_assert_eq(rig->n_published, 0);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_PAUSED_NOW), 1);
  cr_assert_geq(rig_count(rig, listener, NPI_LISTENER_HELD), 1);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_PAUSES), 1);
  rig->refuse_always = 0;
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == 3);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_PAUSED_NOW), 0);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_HELD), 0);
  for (int i = 0; i < 3; i++) {
    expect_identical(rig, listener, (uint64_t)i + 1, &text[i]);
    free(text[i].bytes);
    close(fd[i]);
  }
  rig_free(rig);
}

STREAM_TEST(a_pause_outlasts_the_idle_timeout) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_LENGTH_PREFIX);
  struct text text;
  uint64_t begin;
  int fd;

  rig->config[listener].idle_timeout_ms = 100;
  rig_start(rig, variant);
  text = make_stream(rig, &rig->config[listener].framing, 100);
  fd = rig_connect(rig, listener);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_ACCEPTED) == 1);
  rig->refuse_always = NP_FULL;
  rig_send(rig, fd, text.bytes, text.n); /* several receives: some come after the one that begins the pause */
  begin = npi_clock_monotonic();
  RIG_UNTIL(rig, npi_clock_monotonic() - begin > UINT64_C(300000000));
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_CLOSED), 0, "it is not the sender that is silent");
  rig->refuse_always = 0;
  shutdown(fd, SHUT_WR);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == 1);
  expect_identical(rig, listener, 1, &text);
  free(text.bytes);
  close(fd);
  rig_free(rig);
}

STREAM_TEST(what_a_paused_listener_holds_costs_no_other_its_connections) {
  struct rig *rig = rig_new();
  uint32_t paused = rig_listen(rig, NPI_CONFIG_UNIX, NPI_FRAMING_FIXED);
  uint32_t other = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_LENGTH_PREFIX);
  static uint8_t frames[2000], half[1000] = {0, 0, 0x4e, 0x20};
  int fd[40], innocent;

  rig->carry_bytes = 2 * 32768;
  rig_start(rig, variant);
  rig->refuse_always = NP_FULL;
  for (int i = 0; i < 40; i++) {
    fd[i] = rig_connect(rig, paused);
    rig_send(rig, fd[i], frames, sizeof(frames));
  }
  RIG_UNTIL(rig, npi_ingest_carry_bytes(rig->ingest) > rig->carry_bytes);
  innocent = rig_connect(rig, other);
  rig_send(rig, innocent, half, sizeof(half));
  RIG_UNTIL(rig, rig_count(rig, other, NPI_LISTENER_RECEIVED_BYTES) == sizeof(half));
  rig_settle(rig);
  cr_assert_eq(rig_count(rig, other, NPI_LISTENER_CLOSED), 0);
  rig->refuse_always = 0;
  RIG_UNTIL(rig, rig_count(rig, paused, NPI_LISTENER_PAUSED_NOW) == 0);
  for (int i = 0; i < 40; i++) close(fd[i]);
  close(innocent);
  rig_free(rig);
}

STREAM_TEST(drop_newest_goes_on_reading_and_counts_by_reason) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  int fd;

  rig->config[listener].on_full = NPI_CONFIG_LISTENER_DROP_NEWEST;
  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  rig->refuse_always = NP_FULL;
  for (int i = 0; i < 1000; i++) rig_send(rig, fd, "no credit\n", 10);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_RECEIVED) == 1000);
  rig->refuse_always = NP_EMPTY;
  for (int i = 0; i < 500; i++) rig_send(rig, fd, "no slot\n", 8);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_RECEIVED) == 1500);
  rig->refuse_always = 0;
  for (int i = 0; i < 10; i++) rig_send(rig, fd, "all well\n", 9);
  RIG_UNTIL(rig, rig->n_published == 10);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_DROPPED_CREDIT), 1000);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_DROPPED_POOL), 500);
  cr_assert_eq(rig->n_skipped, 1500, "subscribers must see a gap for each");
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_PAUSES), 0);
  close(fd);
  rig_free(rig);
}

STREAM_TEST(a_bad_frame_ends_its_connection_and_no_other) {
  static const struct {
    uint8_t bytes[8];
    enum npi_counter row;
  } bad[] = {
      {{0x7f, 0xff, 0xff, 0xff}, NPI_LISTENER_TOO_LARGE},
      {{0xff, 0xff, 0xff, 0xff}, NPI_LISTENER_BAD_LENGTH}, /* -1 to a reader with sign */
      {{0, 0, 0x4e, 0x21}, NPI_LISTENER_TOO_LARGE},        /* max_frame + 1 */
      {{0, 0, 0, 0}, NPI_LISTENER_BAD_LENGTH},
  };
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_LENGTH_PREFIX);
  int good;

  rig_start(rig, variant);
  good = rig_connect(rig, listener);
  for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
    uint64_t before = rig_count(rig, listener, bad[i].row);
    int fd = rig_connect(rig, listener);
    ssize_t got;
    char byte;

    rig_send(rig, fd, "\0\0\0\4good", 8);
    rig_send(rig, fd, bad[i].bytes, 8);
    rig_send(rig, good, "\0\0\0\4good", 8);
    RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED_BAD) == i + 1);
    cr_assert_eq(rig_count(rig, listener, bad[i].row), before + 1);
    rig_settle(rig);
    got = recv(fd, &byte, 1, 0);
    cr_assert(got == 0 || (got < 0 && errno == ECONNRESET), "the sender must see its end");
    close(fd);
    RIG_UNTIL(rig, rig->n_published == 2 * (i + 1));
  }
  cr_assert_eq(npi_ingest_connections(rig->ingest), 1);
  close(good);
  rig_free(rig);
}

STREAM_TEST(a_reset_inside_a_frame_is_counted_and_leaves_nothing) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_LENGTH_PREFIX);
  struct linger hard = {.l_onoff = 1};

  rig_start(rig, variant);
  for (uint32_t i = 0; i < 50; i++) {
    int fd = rig_connect(rig, listener);
    rig_send(rig, fd, "\0\0\0\4good\0\0\0\4ha", 14);
    RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_RECEIVED_BYTES) == 14 * (i + 1));
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    close(fd);
  }
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == 50);
  cr_assert_eq(rig->n_published, 50);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_PARTIAL_AT_END), 50);
  cr_assert_eq(npi_ingest_carry_bytes(rig->ingest), 0);
  cr_assert_eq(npi_ingest_connections(rig->ingest), 0);
  rig_free(rig);
}

STREAM_TEST(a_last_line_without_its_end_counts_after_fin_and_not_after_reset) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  struct linger hard = {.l_onoff = 1};
  int fd;

  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  rig_send(rig, fd, "one\ntwo", 7);
  close(fd);
  RIG_UNTIL(rig, rig->n_published == 2);
  fd = rig_connect(rig, listener);
  rig_send(rig, fd, "three\nfour", 10);
  RIG_UNTIL(rig, rig->n_published == 3);
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
  close(fd);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == 2);
  cr_assert_eq(rig->n_published, 3);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_PARTIAL_AT_END), 1);
  rig_free(rig);
}

STREAM_TEST(data_and_shutdown_at_once_are_both_seen) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UNIX, NPI_FRAMING_NEWLINE);

  rig_start(rig, variant);
  for (uint32_t i = 0; i < 500; i++) {
    int fd = rig_connect(rig, listener);
    if (i % 3 == 0) rig_turn(rig); /* armed before the data, or not */
    rig_send(rig, fd, "data\n", 5);
    shutdown(fd, SHUT_WR);
    if (i % 2 == 0) rig_turn(rig);
    close(fd);
  }
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == 500);
  cr_assert_eq(rig->n_published, 500);
  rig_free(rig);
}

STREAM_TEST(a_connection_that_is_kicked_goes_on_where_it_was) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  int fd;

  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  rig_send(rig, fd, "front", 5);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_RECEIVED_BYTES) == 5);
  for (int i = 0; i < 20; i++) {
    struct npi_ingest_link *first = rig->ingest->listeners[listener].all.after;
    if (rig->ingest->backend->operations->kick)
      rig->ingest->backend->operations->kick(rig->ingest->backend,
                                             &NPI_LINK_OBJECT(first, struct npi_ingest_connection, in_all)->source);
    rig_send(rig, fd, "-", 1);
    rig_turn(rig);
  }
  rig_send(rig, fd, "\n", 1);
  RIG_UNTIL(rig, rig->n_published == 1);
  cr_assert_eq(rig->last.payload_bytes, 25);
  close(fd);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == 1);
  rig_free(rig);
}

STREAM_TEST(connections_over_the_limit_are_refused_at_once) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  int fd[10];
  char byte;

  rig->config[listener].max_connections = 4;
  rig_start(rig, variant);
  for (int i = 0; i < 10; i++) fd[i] = rig_connect(rig, listener);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_REJECTED) == 6);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_ACCEPTED), 4);
  cr_assert_eq(recv(fd[9], &byte, 1, 0), 0);
  close(fd[0]);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == 1);
  fd[0] = rig_connect(rig, listener);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_ACCEPTED) == 5);
  for (int i = 0; i < 10; i++) close(fd[i]);
  rig_free(rig);
}

STREAM_TEST(connections_of_one_address_are_limited_on_their_own) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  struct sockaddr_in other = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1)};
  int fd[4], last;

  rig->config[listener].max_connections_per_address = 2;
  rig_start(rig, variant);
  for (int i = 0; i < 4; i++) fd[i] = rig_connect(rig, listener);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_REJECTED) == 2);
  last = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  cr_assert_eq(bind(last, (struct sockaddr *)&other, sizeof(other)), 0);
  cr_assert_eq(connect(last, (struct sockaddr *)&rig->place[listener], rig->place_bytes[listener]), 0);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_ACCEPTED) == 3);
  for (int i = 0; i < 4; i++) close(fd[i]);
  close(last);
  rig_free(rig);
}

STREAM_TEST(silent_and_trickling_connections_are_closed_in_time) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  int silent, busy, trickle;
  uint64_t begin, slow_ns = 0;

  /* Long, so that a busy machine, on which this process does not run for a while, does not make the others silent. */
  rig->config[listener].idle_timeout_ms = 2500;
  rig->config[listener].frame_timeout_ms = 500;
  rig_start(rig, variant);
  silent = rig_connect(rig, listener);
  busy = rig_connect(rig, listener);
  trickle = rig_connect(rig, listener);
  begin = npi_clock_monotonic();
  while (rig_count(rig, listener, NPI_LISTENER_CLOSED) < 2) {
    cr_assert_lt(npi_clock_monotonic() - begin, UINT64_C(20000000000));
    send(busy, "line\n", 5, MSG_NOSIGNAL);
    send(trickle, "x", 1, MSG_NOSIGNAL); /* never idle, never done */
    for (int i = 0; i < 5; i++) rig_turn(rig);
    if (slow_ns == 0 && rig_count(rig, listener, NPI_LISTENER_CLOSED_SLOW) > 0) slow_ns = npi_clock_monotonic() - begin;
  }
  cr_assert_geq(slow_ns, UINT64_C(490000000));
  cr_assert_geq(npi_clock_monotonic() - begin, UINT64_C(2490000000));
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_CLOSED_IDLE), 1);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_CLOSED_SLOW), 1);
  cr_assert_eq(npi_ingest_connections(rig->ingest), 1, "the busy one stays");
  close(silent);
  close(busy);
  close(trickle);
  rig_free(rig);
}

STREAM_TEST(a_thousand_connections_deliver_all_their_frames) {
  enum { N = 1000, FRAMES = 10 };
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UNIX, NPI_FRAMING_NEWLINE);
  static int fd[N];

  rig_start(rig, variant);
  for (int i = 0; i < N; i++) {
    fd[i] = rig_connect(rig, listener);
    if (i % 50 == 0) rig_turn(rig);
  }
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_ACCEPTED) == N);
  for (int f = 0; f < FRAMES; f++)
    for (int i = 0; i < N; i++) rig_send(rig, fd[i], "one of many\n", 12);
  RIG_UNTIL(rig, rig->n_published == (uint64_t)N * FRAMES);
  for (int i = 0; i < N; i++) close(fd[i]);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == N);
  for (uint64_t i = 1; i <= N; i++) cr_assert_eq(rig->account[i].n_frames, FRAMES);
  rig_free(rig);
}

STREAM_TEST(half_frames_cannot_use_up_memory) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_LENGTH_PREFIX);
  static uint8_t half[10000] = {0, 0, 0x4e, 0x20};
  int fd[20];

  rig->carry_bytes = 8 * 16384;
  rig_start(rig, variant);
  for (int i = 0; i < 20; i++) {
    fd[i] = rig_connect(rig, listener);
    send(fd[i], half, sizeof(half), MSG_NOSIGNAL);
    rig_settle(rig);
    cr_assert_leq(npi_ingest_carry_bytes(rig->ingest), rig->carry_bytes);
  }
  cr_assert_geq(rig_count(rig, listener, NPI_LISTENER_CLOSED_SLOW), 12);
  cr_assert_geq(npi_ingest_connections(rig->ingest), 4, "the younger ones stay");
  for (int i = 0; i < 20; i++) close(fd[i]);
  rig_free(rig);
}

STREAM_TEST(an_event_knows_where_it_came_from) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_EVENTSTREAM);
  struct sockaddr_in self;
  socklen_t self_bytes = sizeof(self);
  uint64_t before = npi_clock_realtime();
  int fd;

  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  getsockname(fd, (struct sockaddr *)&self, &self_bytes);
  rig_send(rig, fd, "\0\0\0\11\3\0\2ab1234", 13);
  RIG_UNTIL(rig, rig->n_published == 1);
  cr_assert_eq(rig->last.family, 4);
  cr_assert_eq(rig->last.port, ntohs(self.sin_port));
  cr_assert_arr_eq(rig->last.address, &self.sin_addr, 4);
  cr_assert_eq(rig->last.priority, 3);
  cr_assert_eq(rig->last.topic_bytes, 2);
  cr_assert_eq(rig->last.connection >> 48, 3, "the worker's number");
  cr_assert_geq(rig->last.time_ns, before);
  cr_assert_leq(rig->last.time_ns, npi_clock_realtime());
  close(fd);
  rig_free(rig);
}

STREAM_TEST(a_drain_reads_what_has_arrived_and_counts_the_rest) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  int first, second;

  rig_start(rig, variant);
  first = rig_connect(rig, listener);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_ACCEPTED) == 1);
  for (int i = 0; i < 1000; i++) cr_assert_eq(send(first, "line\n", 5, MSG_NOSIGNAL), 5);
  send(first, "half", 4, MSG_NOSIGNAL);
  second = rig_connect(rig, listener); /* in the accept queue */
  send(second, "queued\n", 7, MSG_NOSIGNAL);
  cr_assert_eq(npi_ingest_drain(rig->ingest, npi_clock_monotonic() + UINT64_C(5000000000)), 0);
  rig_check_balance(rig);
  cr_assert_eq(rig->n_published, 1001);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_PARTIAL_AT_END), 1);
  cr_assert_eq(npi_ingest_connections(rig->ingest), 0);
  close(first);
  close(second);
  rig_free(rig);
}

STREAM_TEST(a_drain_takes_all_who_wait_to_be_accepted) {
  enum { N = 300 };
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UNIX, NPI_FRAMING_NEWLINE);

  rig_start(rig, variant);
  for (int i = 0; i < N; i++) {
    int fd = rig_connect(rig, listener);
    cr_assert_eq(send(fd, "line\n", 5, MSG_NOSIGNAL), 5);
    close(fd);
  }
  cr_assert_eq(npi_ingest_drain(rig->ingest, npi_clock_monotonic() + UINT64_C(5000000000)), 0);
  rig_check_balance(rig);
  cr_assert_eq(rig->n_published, N);
  cr_assert_eq(npi_ingest_connections(rig->ingest), 0);
  rig_free(rig);
}

STREAM_TEST(a_drain_that_finds_no_credit_ends_and_counts_drops) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  int fd;
  uint64_t begin;

  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  rig->refuse_always = NP_FULL;
  for (int i = 0; i < 100; i++) cr_assert_eq(send(fd, "line\n", 5, MSG_NOSIGNAL), 5);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_HELD) == 1);
  begin = npi_clock_monotonic();
  cr_assert_eq(npi_ingest_drain(rig->ingest, begin + UINT64_C(300000000)), 0);
  cr_assert_lt(npi_clock_monotonic() - begin, UINT64_C(3000000000));
  rig_check_balance(rig);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_HELD), 0);
  cr_assert_geq(rig_count(rig, listener, NPI_LISTENER_DROPPED_CREDIT), 1);
  cr_assert_eq(rig->n_skipped, rig_count(rig, listener, NPI_LISTENER_DROPPED_CREDIT));
  close(fd);
  rig_free(rig);
}

STREAM_TEST(wakes_are_sent_once_a_turn_not_once_an_event) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  static char lines[4000];
  int fd;

  memset(lines, '\n', sizeof(lines));
  for (size_t i = 0; i < sizeof(lines); i += 4) memcpy(lines + i, "abc", 3);
  rig_start(rig, variant);
  fd = rig_connect(rig, listener);
  rig_send(rig, fd, lines, sizeof(lines));
  RIG_UNTIL(rig, rig->n_published == 1000);
  cr_assert_leq(rig->n_flushes, 40);
  cr_assert_geq(rig->n_flushes, 1);
  close(fd);
  rig_free(rig);
}

STREAM_TEST(the_largest_frames_arrive_through_the_smallest_buffers) {
  enum { MEGABYTE = 1 << 20 };
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UNIX, NPI_FRAMING_LENGTH_PREFIX);
  struct text text = {0};
  uint8_t *payload = malloc(MEGABYTE);
  int fd;

  rig->config[listener].framing.max_frame = rig->config[listener].max_frame = MEGABYTE;
  rig->refuse_one_in = 3;
  rig_start(rig, variant);
  cr_assert_not_null(payload);
  for (int i = 0; i < 4; i++) {
    memset(payload, 'a' + i, MEGABYTE);
    put_number(&text, &rig->config[listener].framing, MEGABYTE - (uint64_t)i, 4);
    put(&text, payload, MEGABYTE - (size_t)i);
  }
  fd = rig_connect(rig, listener);
  rig_send(rig, fd, text.bytes, text.n);
  close(fd);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_CLOSED) == 1);
  expect_identical(rig, listener, 1, &text);
  cr_assert_eq(npi_ingest_carry_bytes(rig->ingest), 0);
  free(payload);
  free(text.bytes);
  rig_free(rig);
}
