/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frame decoders, one framing after the other; then what holds for all of them: where the network cuts a
 * stream makes no difference, and nothing is read beyond the bytes given (framing_feed.h).
 */
#include <criterion/criterion.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/framing.h"
#include "numapool/status.h"
#include "tests/support/framing_feed.h"

TestSuite(framing, .timeout = 60);

/* A stream under construction. */
struct stream {
  uint8_t bytes[8192];
  uint64_t n;
};

static void put(struct stream *stream, const void *bytes, size_t n) {
  cr_assert_leq(stream->n + n, sizeof(stream->bytes));
  memcpy(stream->bytes + stream->n, bytes, n);
  stream->n += n;
}

static void put_text(struct stream *stream, const char *text) {
  put(stream, text, strlen(text));
}

static void put_number(struct stream *stream, uint64_t number, uint32_t width, uint32_t big_endian) {
  uint8_t bytes[8];

  for (uint32_t i = 0; i < width; i++) bytes[big_endian ? width - 1 - i : i] = (uint8_t)(number >> 8 * i);
  put(stream, bytes, width);
}

static void put_event(struct stream *stream, uint8_t priority, const char *topic, const char *payload) {
  put_number(stream, 3 + strlen(topic) + strlen(payload), 4, 1);
  put_number(stream, priority, 1, 1);
  put_number(stream, strlen(topic), 2, 1);
  put_text(stream, topic);
  put_text(stream, payload);
}

/* What a stream of these texts, without topic and priority, leaves behind. */
static struct feed_account expect(const char *const *payloads, size_t n, uint64_t blank_lines,
                                  enum npi_frame_error error) {
  struct feed_account account = {0};

  for (size_t i = 0; i < n; i++) {
    uint8_t priority = 0;
    uint32_t topic_bytes = 0;
    uint64_t payload_bytes = strlen(payloads[i]);
    feed_append(&account, &priority, sizeof(priority));
    feed_append(&account, &topic_bytes, sizeof(topic_bytes));
    feed_append(&account, &payload_bytes, sizeof(payload_bytes));
    feed_append(&account, payloads[i], payload_bytes);
  }
  account.n_frames = n;
  account.blank_lines = blank_lines;
  account.error = error;
  return account;
}

/* Whole, in two pieces cut at every place, and one byte at a time: always the expected account, which is freed. */
static void assert_account(const struct npi_framing *framing, const struct stream *stream,
                           struct feed_account expected) {
  uint64_t cuts[sizeof(stream->bytes)];
  char why[160] = "";

  cr_assert_eq(npi_framing_check(framing, why, sizeof(why)), 0, "%s", why);
  for (uint64_t cut = 0; cut <= stream->n; cut++) {
    struct feed_account account = {0};
    feed_stream(framing, stream->bytes, stream->n, &cut, 1, &account);
    cr_assert(feed_same(&account, &expected),
              "cut at %zu of %zu: %zu frames, %zu blank lines, error \"%s\"; expected %zu, %zu, \"%s\"", (size_t)cut,
              (size_t)stream->n, (size_t)account.n_frames, (size_t)account.blank_lines,
              npi_frame_error_text(account.error), (size_t)expected.n_frames, (size_t)expected.blank_lines,
              npi_frame_error_text(expected.error));
    feed_account_free(&account);
  }
  for (uint64_t i = 0; i < stream->n; i++) cuts[i] = i;
  struct feed_account account = {0};
  feed_stream(framing, stream->bytes, stream->n, cuts, stream->n, &account);
  cr_assert(feed_same(&account, &expected), "one byte at a time: %zu frames, error \"%s\"", (size_t)account.n_frames,
            npi_frame_error_text(account.error));
  feed_account_free(&account);
  feed_account_free(&expected);
}

#define ASSERT_FRAMES(framing, stream, blank_lines, error, ...)                                                  \
  do {                                                                                                           \
    const char *const payloads[] = {__VA_ARGS__};                                                                \
    assert_account(framing, stream, expect(payloads, sizeof(payloads) / sizeof(*payloads), blank_lines, error)); \
  } while (0)
#define ASSERT_NO_FRAMES(framing, stream, blank_lines, error) \
  assert_account(framing, stream, expect(NULL, 0, blank_lines, error))

static enum npi_frame_result next(const struct npi_framing *framing, const struct stream *stream,
                                  struct npi_frame *frame, uint64_t *needed, enum npi_frame_error *error) {
  uint64_t scan_from = 0;

  return npi_framing_next(framing, stream->bytes, stream->n, &scan_from, frame, needed, error);
}

/* ---- datagram ---- */

Test(framing, whole_datagram_is_one_frame) {
  /* Proves: terminators and lengths mean nothing here, the payload is every byte of the datagram. */
  struct npi_framing framing = {.kind = NPI_FRAMING_DATAGRAM, .max_frame = 16};
  struct stream stream = {0};
  struct npi_frame frame;
  uint64_t needed, scan_from = 0;
  enum npi_frame_error error;

  put(&stream, "a\n\0\r\n4 b", 8);
  cr_assert_eq(npi_framing_finish(&framing, stream.bytes, stream.n, &scan_from, &frame, &needed, &error),
               NPI_FRAME_READY);
  cr_assert_eq(frame.payload, stream.bytes);
  cr_assert_eq(frame.payload_bytes, 8);
  cr_assert_eq(frame.consumed, 8);
  cr_assert_eq(npi_framing_finish(&framing, stream.bytes + 8, 0, &scan_from, &frame, &needed, &error),
               NPI_FRAME_NEED_MORE);
}

Test(framing, datagram_over_max_frame_is_too_large) {
  /* Proves: max_frame itself passes, one byte more does not. */
  struct npi_framing framing = {.kind = NPI_FRAMING_DATAGRAM, .max_frame = 4};
  struct stream stream = {0};
  struct npi_frame frame;
  uint64_t needed;
  enum npi_frame_error error;

  put_text(&stream, "abcd");
  cr_assert_eq(next(&framing, &stream, &frame, &needed, &error), NPI_FRAME_READY);
  put_text(&stream, "e");
  cr_assert_eq(next(&framing, &stream, &frame, &needed, &error), NPI_FRAME_BAD);
  cr_assert_eq(error, NPI_FRAME_ERROR_TOO_LARGE);
}

/* ---- newline ---- */

Test(framing, newline_ends_frames_and_empty_lines_are_counted) {
  /* Proves: LF is not payload, empty lines are no frames but are counted, CR is payload unless stripped. */
  struct npi_framing framing = {.kind = NPI_FRAMING_NEWLINE, .max_frame = 64};
  struct stream stream = {0};

  put_text(&stream, "\none\n\n\ntwo\r\n\r\nthree and more\n\n");
  ASSERT_FRAMES(&framing, &stream, 4, NPI_FRAME_ERROR_NONE, "one", "two\r", "\r", "three and more");
}

Test(framing, newline_strips_one_carriage_return_when_told_to) {
  /* Proves: exactly one CR before the LF goes, others stay, and CR LF alone is an empty line. */
  struct npi_framing framing = {.kind = NPI_FRAMING_NEWLINE, .max_frame = 64, .strip_cr = 1};
  struct stream stream = {0};

  put_text(&stream, "\r\none\r\ntwo\n\r\r\nthr\ree\r\r\n\r\n");
  ASSERT_FRAMES(&framing, &stream, 2, NPI_FRAME_ERROR_NONE, "one", "two", "\r", "thr\ree\r");
}

Test(framing, newline_accepts_max_frame_and_refuses_one_more) {
  /* Proves: the limit counts payload only, with and without CR, and an endless line ends as soon as it exceeds it. */
  struct npi_framing framing = {.kind = NPI_FRAMING_NEWLINE, .max_frame = 4};
  struct stream at_limit = {0}, at_limit_cr = {0}, over = {0}, over_cr = {0}, endless = {0};
  struct npi_frame frame;
  uint64_t needed;
  enum npi_frame_error error;

  put_text(&at_limit, "abcd\nefgh\n");
  ASSERT_FRAMES(&framing, &at_limit, 0, NPI_FRAME_ERROR_NONE, "abcd", "efgh");
  put_text(&over, "abcd\nefghi\n");
  ASSERT_FRAMES(&framing, &over, 0, NPI_FRAME_ERROR_TOO_LARGE, "abcd");
  put_text(&endless, "abcde");
  cr_assert_eq(next(&framing, &endless, &frame, &needed, &error), NPI_FRAME_BAD);
  cr_assert_eq(error, NPI_FRAME_ERROR_TOO_LARGE);

  put_text(&at_limit_cr, "abcd\r\nefgh\r\n");
  ASSERT_NO_FRAMES(&framing, &at_limit_cr, 0, NPI_FRAME_ERROR_TOO_LARGE);
  framing.strip_cr = 1;
  ASSERT_FRAMES(&framing, &at_limit_cr, 0, NPI_FRAME_ERROR_NONE, "abcd", "efgh");
  put_text(&over_cr, "abcd\r\nefgh\r\r\n");
  ASSERT_FRAMES(&framing, &over_cr, 0, NPI_FRAME_ERROR_TOO_LARGE, "abcd");
}

Test(framing, last_line_counts_without_terminator_at_end_of_stream) {
  /* Proves: a sender that closes without LF loses nothing; half a CR LF is not payload when CR is stripped. */
  struct npi_framing framing = {.kind = NPI_FRAMING_NEWLINE, .max_frame = 64};
  struct stream stream = {0}, half = {0}, half_blank = {0};

  put_text(&stream, "one\ntwo");
  ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_NONE, "one", "two");
  put_text(&half, "one\ntwo\r");
  ASSERT_FRAMES(&framing, &half, 0, NPI_FRAME_ERROR_NONE, "one", "two\r");
  framing.strip_cr = 1;
  ASSERT_FRAMES(&framing, &half, 0, NPI_FRAME_ERROR_NONE, "one", "two");
  put_text(&half_blank, "one\n\r");
  ASSERT_FRAMES(&framing, &half_blank, 1, NPI_FRAME_ERROR_NONE, "one");
}

Test(framing, scan_from_spares_bytes_already_searched) {
  /* Proves: the search begins at scan_from (an LF planted before it stays unseen), NEED_MORE sets it to all bytes
   * behind the empty lines, and a frame resets it. */
  struct npi_framing framing = {.kind = NPI_FRAMING_NEWLINE, .max_frame = 64};
  struct npi_frame frame;
  uint64_t needed, scan_from = 0;
  enum npi_frame_error error;

  cr_assert_eq(npi_framing_next(&framing, (const uint8_t *)"\n\nabc", 5, &scan_from, &frame, &needed, &error),
               NPI_FRAME_NEED_MORE);
  cr_assert_eq(frame.consumed, 2);
  cr_assert_eq(frame.blank_lines, 2);
  cr_assert_eq(scan_from, 3);
  cr_assert_eq(needed, 0);
  cr_assert_eq(npi_framing_next(&framing, (const uint8_t *)"a\ncde\nf", 7, &scan_from, &frame, &needed, &error),
               NPI_FRAME_READY);
  cr_assert_eq(frame.payload_bytes, 5, "the search began before scan_from");
  cr_assert_eq(frame.consumed, 6);
  cr_assert_eq(scan_from, 0);
}

Test(framing, scan_from_beyond_the_bytes_is_harmless) {
  /* Proves: a wrong scan_from costs frames, never a read outside of the bytes. */
  struct npi_framing framing = {.kind = NPI_FRAMING_NEWLINE, .max_frame = 64};
  struct npi_frame frame;
  uint64_t needed, scan_from = UINT64_MAX;
  enum npi_frame_error error;

  cr_assert_eq(npi_framing_next(&framing, (const uint8_t *)"abc", 3, &scan_from, &frame, &needed, &error),
               NPI_FRAME_NEED_MORE);
  cr_assert_eq(scan_from, 3);
}

/* ---- length_prefix ---- */

Test(framing, length_prefix_reads_every_width_and_byte_order) {
  /* Proves: 1, 2, 4 and 8 bytes, both orders, counting themselves or not, and both reading paths (near the end of
   * the bytes the number is read byte by byte). */
  static const uint32_t widths[] = {1, 2, 4, 8};
  char long_payload[201];

  memset(long_payload, 'x', 200);
  long_payload[200] = '\0';
  for (size_t i = 0; i < 16; i++) {
    struct npi_framing framing = {.kind = NPI_FRAMING_LENGTH_PREFIX,
                                  .prefix_bytes = widths[i & 3],
                                  .big_endian = i >> 2 & 1,
                                  .includes_prefix = i >> 3 & 1,
                                  .max_frame = 200};
    uint32_t own = framing.includes_prefix ? framing.prefix_bytes : 0;
    struct stream stream = {0};

    put_number(&stream, 1 + own, framing.prefix_bytes, framing.big_endian);
    put_text(&stream, "a");
    put_number(&stream, 200 + own, framing.prefix_bytes, framing.big_endian);
    put_text(&stream, long_payload);
    put_number(&stream, 2 + own, framing.prefix_bytes, framing.big_endian);
    put_text(&stream, "bc");
    ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_NONE, "a", long_payload, "bc");
  }
}

Test(framing, length_prefix_uses_all_bytes_of_the_number) {
  /* Proves: a length that needs more than one byte has the right value in each order. */
  for (uint32_t big_endian = 0; big_endian < 2; big_endian++) {
    for (uint32_t width = 2; width <= 8; width *= 2) {
      struct npi_framing framing = {
          .kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = width, .big_endian = big_endian, .max_frame = 0x1234};
      struct stream stream = {0};
      struct npi_frame frame;
      uint64_t needed;
      enum npi_frame_error error;

      put_number(&stream, 0x1234, width, big_endian);
      cr_assert_eq(next(&framing, &stream, &frame, &needed, &error), NPI_FRAME_NEED_MORE);
      cr_assert_eq(needed, width + 0x1234);
      stream.n = 0;
      put_number(&stream, 0x1235, width, big_endian);
      cr_assert_eq(next(&framing, &stream, &frame, &needed, &error), NPI_FRAME_BAD);
      cr_assert_eq(error, NPI_FRAME_ERROR_TOO_LARGE);
    }
  }
}

Test(framing, length_prefix_refuses_zero_and_less_than_itself) {
  /* Proves: an empty payload, and a length that counts itself but is shorter than itself, end the stream. */
  static const uint32_t widths[] = {1, 2, 4, 8};

  for (size_t i = 0; i < 4; i++) {
    struct npi_framing framing = {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = widths[i], .max_frame = 100};
    struct stream zero = {0};
    put_number(&zero, 0, widths[i], 0);
    put_text(&zero, "abcdefgh");
    ASSERT_NO_FRAMES(&framing, &zero, 0, NPI_FRAME_ERROR_BAD_LENGTH);

    framing.includes_prefix = 1;
    for (uint32_t length = 0; length <= widths[i]; length++) {
      struct stream stream = {0};
      put_number(&stream, length, widths[i], 0);
      put_text(&stream, "abcdefgh");
      ASSERT_NO_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_BAD_LENGTH);
    }
  }
}

Test(framing, length_prefix_calls_negative_looking_lengths_by_their_name) {
  /* Proves: -1 and the smallest number of 4 and 8 bytes are bad lengths, and no sum with them wraps round to
   * something small; in 1 and 2 bytes a top bit is an ordinary length. */
  for (uint32_t includes = 0; includes < 2; includes++) {
    for (uint32_t width = 4; width <= 8; width += 4) {
      struct npi_framing framing = {.kind = NPI_FRAMING_LENGTH_PREFIX,
                                    .prefix_bytes = width,
                                    .includes_prefix = includes,
                                    .big_endian = 1,
                                    .max_frame = NPI_FRAMING_MAX_FRAME};
      for (uint64_t below_zero = 1; below_zero <= 16; below_zero++) {
        struct stream minus = {0};
        put_number(&minus, 0 - below_zero, width, 1);
        put_text(&minus, "abcdefghijklmnopq");
        ASSERT_NO_FRAMES(&framing, &minus, 0, NPI_FRAME_ERROR_BAD_LENGTH);
      }
      struct stream smallest = {0}, largest = {0};
      put_number(&smallest, UINT64_C(1) << (8 * width - 1), width, 1);
      ASSERT_NO_FRAMES(&framing, &smallest, 0, NPI_FRAME_ERROR_BAD_LENGTH);
      put_number(&largest, (UINT64_C(1) << (8 * width - 1)) - 1, width, 1);
      ASSERT_NO_FRAMES(&framing, &largest, 0, NPI_FRAME_ERROR_TOO_LARGE);
    }
  }
  for (uint32_t width = 1; width <= 2; width++) {
    struct npi_framing framing = {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = width, .max_frame = 100};
    struct stream top_bit = {0};
    put_number(&top_bit, UINT64_C(1) << (8 * width - 1), width, 0);
    ASSERT_NO_FRAMES(&framing, &top_bit, 0, NPI_FRAME_ERROR_TOO_LARGE);
  }
  struct npi_framing framing = {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 1, .max_frame = 255};
  struct stream stream = {0};
  char payload[256];
  memset(payload, 'y', 255);
  payload[255] = '\0';
  put_number(&stream, 255, 1, 0);
  put_text(&stream, payload);
  ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_NONE, payload);
}

Test(framing, length_prefix_limit_does_not_count_the_prefix) {
  /* Proves: max_frame bounds the payload, also where the length counts its own bytes. */
  for (uint32_t includes = 0; includes < 2; includes++) {
    struct npi_framing framing = {
        .kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 4, .includes_prefix = includes, .max_frame = 5};
    struct stream stream = {0};
    put_number(&stream, 5 + 4 * includes, 4, 0);
    put_text(&stream, "abcde");
    put_number(&stream, 6 + 4 * includes, 4, 0);
    put_text(&stream, "abcdef");
    ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_TOO_LARGE, "abcde");
  }
}

Test(framing, part_of_a_prefixed_frame_at_end_of_stream_is_truncated) {
  /* Proves: every proper part of a frame is named truncated; nothing at all is a clean end. */
  struct npi_framing framing = {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 4, .max_frame = 64};
  struct stream stream = {0};

  put_number(&stream, 3, 4, 0);
  put_text(&stream, "abc");
  for (stream.n = 1; stream.n < 7; stream.n++) ASSERT_NO_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_TRUNCATED);
  ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_NONE, "abc");
  stream.n = 0;
  ASSERT_NO_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_NONE);
}

/* ---- fixed ---- */

Test(framing, fixed_frames_follow_each_other_without_framing) {
  /* Proves: every frame has the size, and a shorter rest is truncated. */
  struct npi_framing framing = {.kind = NPI_FRAMING_FIXED, .fixed_bytes = 3, .max_frame = 3};
  struct stream stream = {0};

  put_text(&stream, "abc\n\n\nxyz");
  ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_NONE, "abc", "\n\n\n", "xyz");
  put_text(&stream, "12");
  ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_TRUNCATED, "abc", "\n\n\n", "xyz");
}

/* ---- syslog ---- */

Test(framing, syslog_decides_message_by_message) {
  /* Proves: counted and terminated messages mix on one connection; what the count covers is payload, LF included. */
  struct npi_framing framing = {.kind = NPI_FRAMING_SYSLOG, .max_frame = 64};
  struct stream stream = {0};

  put_text(&stream, "<13>one\n7 <13>two<13>three 5 x\n8 <13>four<14>5\n11 <13>a\n<13>b6 <13>\n\n4 <13>");
  ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_NONE, "<13>one", "<13>two", "<13>three 5 x", "<13>four", "<14>5",
                "<13>a\n<13>b", "<13>\n\n", "<13>");
}

Test(framing, syslog_skips_newlines_between_messages) {
  /* Proves: an LF, or CR LF, behind a counted message that the count does not cover is no message. */
  struct npi_framing framing = {.kind = NPI_FRAMING_SYSLOG, .max_frame = 64};
  struct stream stream = {0};

  put_text(&stream, "7 <13>one\n8 <13>two\n\n7 <13>six\r\n<13>last\n");
  ASSERT_FRAMES(&framing, &stream, 3, NPI_FRAME_ERROR_NONE, "<13>one", "<13>two\n", "<13>six", "<13>last");
}

Test(framing, syslog_keeps_carriage_returns_unless_told_otherwise) {
  /* Proves: strip_cr reaches the lines of syslog and leaves counted messages alone. */
  struct npi_framing framing = {.kind = NPI_FRAMING_SYSLOG, .max_frame = 64};
  struct stream stream = {0};

  put_text(&stream, "<13>a\r\n7 <13>b\r\n<13>c\n");
  ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_NONE, "<13>a\r", "<13>b\r\n", "<13>c");
  framing.strip_cr = 1;
  ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_NONE, "<13>a", "<13>b\r\n", "<13>c");
}

Test(framing, syslog_refuses_malformed_counts) {
  /* Proves: leading zero, count without SP, and a count beyond max_frame (however many digits) end the stream. */
  struct npi_framing framing = {.kind = NPI_FRAMING_SYSLOG, .max_frame = 64};
  static const struct {
    const char *text;
    enum npi_frame_error error;
  } cases[] = {
      {"0 <13>", NPI_FRAME_ERROR_BAD_COUNT},
      {"07 <13>abc", NPI_FRAME_ERROR_BAD_COUNT},
      {"7<13>abc", NPI_FRAME_ERROR_BAD_COUNT},
      {"7\t<13>abc", NPI_FRAME_ERROR_BAD_COUNT},
      {"7\n<13>abc", NPI_FRAME_ERROR_BAD_COUNT},
      {"1-7 <13>abc", NPI_FRAME_ERROR_BAD_COUNT},
      {"65 <13>abc", NPI_FRAME_ERROR_TOO_LARGE},
      {"18446744073709551617 <13>abc", NPI_FRAME_ERROR_TOO_LARGE},
      {"99999999999999999999999999999999", NPI_FRAME_ERROR_TOO_LARGE},
  };

  for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
    struct stream stream = {0};
    put_text(&stream, "<13>good\n");
    put_text(&stream, cases[i].text);
    ASSERT_FRAMES(&framing, &stream, 0, cases[i].error, "<13>good");
  }
}

Test(framing, syslog_accepts_max_frame_and_refuses_one_more) {
  /* Proves: the same limit for both forms. */
  struct npi_framing framing = {.kind = NPI_FRAMING_SYSLOG, .max_frame = 10};
  struct stream stream = {0}, line = {0}, counted = {0};

  put_text(&stream, "<13>abcdef\n10 <13>abcdef");
  ASSERT_FRAMES(&framing, &stream, 0, NPI_FRAME_ERROR_NONE, "<13>abcdef", "<13>abcdef");
  put_text(&line, "<13>abcdefg\n");
  ASSERT_NO_FRAMES(&framing, &line, 0, NPI_FRAME_ERROR_TOO_LARGE);
  put_text(&counted, "11 <13>abcdefg");
  ASSERT_NO_FRAMES(&framing, &counted, 0, NPI_FRAME_ERROR_TOO_LARGE);
}

Test(framing, syslog_at_end_of_stream_keeps_a_line_but_not_part_of_a_count) {
  /* Proves: an unterminated line is a message; a count without all of its bytes is truncated. */
  struct npi_framing framing = {.kind = NPI_FRAMING_SYSLOG, .max_frame = 64};
  struct stream line = {0}, counted = {0};

  put_text(&line, "7 <13>one\n<13>two");
  ASSERT_FRAMES(&framing, &line, 1, NPI_FRAME_ERROR_NONE, "<13>one", "<13>two");
  put_text(&counted, "12 <13>abcdefgh");
  for (counted.n = 1; counted.n < 15; counted.n++) ASSERT_NO_FRAMES(&framing, &counted, 0, NPI_FRAME_ERROR_TRUNCATED);
  ASSERT_FRAMES(&framing, &counted, 0, NPI_FRAME_ERROR_NONE, "<13>abcdefgh");
}

/* ---- eventstream ---- */

static void append_event(struct feed_account *account, uint8_t priority, const char *topic, const char *payload) {
  uint32_t topic_bytes = (uint32_t)strlen(topic);
  uint64_t payload_bytes = strlen(payload);

  feed_append(account, &priority, sizeof(priority));
  feed_append(account, &topic_bytes, sizeof(topic_bytes));
  feed_append(account, topic, topic_bytes);
  feed_append(account, &payload_bytes, sizeof(payload_bytes));
  feed_append(account, payload, payload_bytes);
  account->n_frames++;
}

Test(framing, eventstream_carries_priority_topic_and_payload) {
  /* Proves: all priorities, with and without topic, and a topic alone. */
  static const struct {
    uint8_t priority;
    const char *topic, *payload;
  } events[] = {
      {0, "batch", "zero"}, {1, "", "no topic"}, {2, "a topic alone", ""}, {3, "t", "p"}, {4, "critical", "fire"},
  };
  struct npi_framing framing = {.kind = NPI_FRAMING_EVENTSTREAM, .max_frame = 8};
  struct feed_account expected = {0};
  struct stream stream = {0};

  for (size_t i = 0; i < sizeof(events) / sizeof(*events); i++) {
    put_event(&stream, events[i].priority, events[i].topic, events[i].payload);
    append_event(&expected, events[i].priority, events[i].topic, events[i].payload);
  }
  assert_account(&framing, &stream, expected);
}

Test(framing, eventstream_refuses_impossible_headers) {
  /* Proves: each field of the header has its own error, the first wrong one counts. */
  static const struct {
    uint32_t rest;
    uint8_t priority;
    uint16_t topic_bytes;
    enum npi_frame_error error;
  } cases[] = {
      {0, 0, 0, NPI_FRAME_ERROR_BAD_LENGTH},
      {2, 0, 0, NPI_FRAME_ERROR_BAD_LENGTH},
      {0xffffffff, 0, 0, NPI_FRAME_ERROR_BAD_LENGTH},
      {0x80000000, 0, 0, NPI_FRAME_ERROR_BAD_LENGTH},
      {0x7fffffff, 0, 0, NPI_FRAME_ERROR_TOO_LARGE},
      {3 + 16 + 32 + 1, 9, 0, NPI_FRAME_ERROR_TOO_LARGE},
      {3 + 16 + 32, 5, 16, NPI_FRAME_ERROR_BAD_PRIORITY},
      {10, 255, 1, NPI_FRAME_ERROR_BAD_PRIORITY},
      {10, 4, 8, NPI_FRAME_ERROR_BAD_TOPIC},
      {10, 4, 0xffff, NPI_FRAME_ERROR_BAD_TOPIC},
      {3 + 17, 4, 17, NPI_FRAME_ERROR_BAD_TOPIC},
      {3 + 16 + 33, 4, 16, NPI_FRAME_ERROR_TOO_LARGE},
      {3 + 1 + 33, 4, 1, NPI_FRAME_ERROR_TOO_LARGE},
  };
  struct npi_framing framing = {.kind = NPI_FRAMING_EVENTSTREAM, .max_frame = 32, .max_topic = 16};

  for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
    struct feed_account expected = {.error = cases[i].error};
    struct stream stream = {0};
    append_event(&expected, 1, "topic", "good");
    put_event(&stream, 1, "topic", "good");
    put_number(&stream, cases[i].rest, 4, 1);
    put_number(&stream, cases[i].priority, 1, 1);
    put_number(&stream, cases[i].topic_bytes, 2, 1);
    put_text(&stream, "abcdefghijklmnopqrstuvwxyz");
    assert_account(&framing, &stream, expected);
  }
}

Test(framing, eventstream_limits_payload_and_topic_apart) {
  /* Proves: the longest topic and the longest payload together pass; a cut frame is truncated. */
  struct npi_framing framing = {.kind = NPI_FRAMING_EVENTSTREAM, .max_frame = 6, .max_topic = 4};
  struct stream stream = {0};
  struct feed_account expected = {0}, truncated = {.error = NPI_FRAME_ERROR_TRUNCATED};

  put_event(&stream, 2, "abcd", "123456");
  append_event(&expected, 2, "abcd", "123456");
  assert_account(&framing, &stream, expected);
  stream.n--;
  assert_account(&framing, &stream, truncated);
}

/* ---- all of them ---- */

Test(framing, datagram_may_carry_whole_frames_but_no_part) {
  /* Proves: npi_framing_finish() walks all frames of one datagram and names a part of a frame. */
  struct npi_framing framing = {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 2, .big_endian = 1, .max_frame = 64};
  uint64_t scan_from = 0, promised = 0, n_left;
  struct feed_account account = {0}, cut = {0};
  struct stream stream = {0};

  put_number(&stream, 3, 2, 1);
  put_text(&stream, "abc");
  put_number(&stream, 2, 2, 1);
  put_text(&stream, "de");
  feed_block(&framing, stream.bytes, stream.n, 1, &scan_from, &promised, &n_left, &account);
  cr_assert_eq(account.n_frames, 2);
  cr_assert_eq(account.error, NPI_FRAME_ERROR_NONE);
  feed_block(&framing, stream.bytes, stream.n - 1, 1, &scan_from, &promised, &n_left, &cut);
  cr_assert_eq(cut.n_frames, 1);
  cr_assert_eq(cut.error, NPI_FRAME_ERROR_TRUNCATED);
  feed_account_free(&account);
  feed_account_free(&cut);
}

Test(framing, random_streams_do_not_depend_on_where_they_are_cut) {
  /* Proves: for streams of random frames and some garbage, cut in random places, under every framing. */
  const char *seed_text = getenv("NUMAPOOL_SEED");
  unsigned seed = seed_text ? (unsigned)strtoul(seed_text, NULL, 0) : 20240607u;

  printf("NUMAPOOL_SEED=%u\n", seed);
  for (int round = 0; round < 6000; round++) {
    struct npi_framing framing = {.kind = 1 + (uint32_t)round % (NPI_FRAMING_KIND_COUNT - 1),
                                  .prefix_bytes = 1u << rand_r(&seed) % 4,
                                  .big_endian = (uint32_t)rand_r(&seed) % 2,
                                  .includes_prefix = (uint32_t)rand_r(&seed) % 2,
                                  .strip_cr = (uint32_t)rand_r(&seed) % 2,
                                  .fixed_bytes = 1 + (uint32_t)rand_r(&seed) % 9,
                                  .max_topic = 7,
                                  .max_frame = 40};
    struct feed_account whole = {0}, cut = {0};
    struct stream stream = {0};
    uint64_t cuts[64], at = 0;
    size_t n_cuts = 0;
    char text[48];

    for (int frames = rand_r(&seed) % 12; frames > 0; frames--) {
      size_t n = 1 + (size_t)rand_r(&seed) % 41; /* one too many now and then */
      for (size_t i = 0; i < n; i++) text[i] = "abcdefghij 0123456789<>\r"[(size_t)rand_r(&seed) % 24];
      text[n] = '\0';
      switch (framing.kind) {
        case NPI_FRAMING_NEWLINE:
          put_text(&stream, text);
          put_text(&stream, rand_r(&seed) % 2 ? "\n" : "\r\n");
          break;
        case NPI_FRAMING_LENGTH_PREFIX:
          put_number(&stream, n + (framing.includes_prefix ? framing.prefix_bytes : 0), framing.prefix_bytes,
                     framing.big_endian);
          put_text(&stream, text);
          break;
        case NPI_FRAMING_SYSLOG:
          if (rand_r(&seed) % 2) {
            char count[16];
            snprintf(count, sizeof(count), "%zu ", n);
            put_text(&stream, count);
            put_text(&stream, text);
            if (rand_r(&seed) % 2) put_text(&stream, "\n");
          } else {
            text[0] = '<';
            put_text(&stream, text);
            put_text(&stream, "\n");
          }
          break;
        case NPI_FRAMING_EVENTSTREAM: put_event(&stream, (uint8_t)(rand_r(&seed) % 5), "topic", text); break;
        default: put_text(&stream, text); break;
      }
    }
    if (rand_r(&seed) % 4 == 0) put_text(&stream, "\001\002garbage");
    while (n_cuts < 64 && at < stream.n) {
      cuts[n_cuts++] = at;
      at += 1 + (uint64_t)rand_r(&seed) % 17;
    }
    feed_stream(&framing, stream.bytes, stream.n, NULL, 0, &whole);
    feed_stream(&framing, stream.bytes, stream.n, cuts, n_cuts, &cut);
    cr_assert(feed_same(&whole, &cut), "round %d, kind %u", round, framing.kind);
    feed_account_free(&whole);
    feed_account_free(&cut);
  }
}

Test(framing, check_accepts_what_is_possible_and_names_what_is_not) {
  /* Proves: each impossible setting is refused with its value in the words, and its neighbours pass. */
  static const struct npi_framing good[] = {
      {.kind = NPI_FRAMING_DATAGRAM, .max_frame = 1},
      {.kind = NPI_FRAMING_NEWLINE, .max_frame = NPI_FRAMING_MAX_FRAME, .strip_cr = 1},
      {.kind = NPI_FRAMING_LENGTH_PREFIX, .max_frame = 100, .prefix_bytes = 8, .big_endian = 1, .includes_prefix = 1},
      {.kind = NPI_FRAMING_FIXED, .max_frame = 100, .fixed_bytes = 100},
      {.kind = NPI_FRAMING_SYSLOG, .max_frame = 100},
      {.kind = NPI_FRAMING_EVENTSTREAM, .max_frame = 100, .max_topic = NPI_FRAMING_MAX_TOPIC},
  };
  static const struct {
    struct npi_framing framing;
    const char *word;
  } bad[] = {
      {{.kind = NPI_FRAMING_KIND_COUNT, .max_frame = 1}, "kind 6"},
      {{.kind = NPI_FRAMING_NEWLINE, .max_frame = 0}, "max_frame 0"},
      {{.kind = NPI_FRAMING_NEWLINE, .max_frame = NPI_FRAMING_MAX_FRAME + 1}, "max_frame 1048577"},
      {{.kind = NPI_FRAMING_NEWLINE, .max_frame = UINT64_MAX}, "max_frame 18446744073709551615"},
      {{.kind = NPI_FRAMING_NEWLINE, .max_frame = 1, .strip_cr = 2}, "neither"},
      {{.kind = NPI_FRAMING_LENGTH_PREFIX, .max_frame = 1, .prefix_bytes = 0}, "of 0 bytes"},
      {{.kind = NPI_FRAMING_LENGTH_PREFIX, .max_frame = 1, .prefix_bytes = 3}, "of 3 bytes"},
      {{.kind = NPI_FRAMING_LENGTH_PREFIX, .max_frame = 1, .prefix_bytes = 16}, "of 16 bytes"},
      {{.kind = NPI_FRAMING_FIXED, .max_frame = 10, .fixed_bytes = 0}, "of 0 bytes"},
      {{.kind = NPI_FRAMING_FIXED, .max_frame = 10, .fixed_bytes = 11}, "of 11 bytes"},
      {{.kind = NPI_FRAMING_EVENTSTREAM, .max_frame = 10, .max_topic = 65536}, "max_topic 65536"},
  };
  char why[160];

  for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
    cr_assert_eq(npi_framing_check(&good[i], why, sizeof(why)), 0, "setting %zu: %s", i, why);
  for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
    cr_assert_eq(npi_framing_check(&bad[i].framing, why, sizeof(why)), NP_ERR_CONFIG, "setting %zu", i);
    cr_assert(strstr(why, bad[i].word) != NULL, "\"%s\" does not say \"%s\"", why, bad[i].word);
  }
}

Test(framing, overhead_bounds_what_a_frame_takes_beyond_its_payload) {
  /* Proves: the figures, which size the worker's carry buffers; the bound itself is a promise of every stream here. */
  struct npi_framing framing = {.kind = NPI_FRAMING_DATAGRAM, .max_frame = 1000, .prefix_bytes = 8};

  cr_assert_eq(npi_framing_overhead_max(&framing), 0);
  framing.kind = NPI_FRAMING_NEWLINE;
  cr_assert_eq(npi_framing_overhead_max(&framing), 1);
  framing.strip_cr = 1;
  cr_assert_eq(npi_framing_overhead_max(&framing), 2);
  framing.kind = NPI_FRAMING_LENGTH_PREFIX;
  cr_assert_eq(npi_framing_overhead_max(&framing), 8);
  framing.kind = NPI_FRAMING_SYSLOG;
  cr_assert_eq(npi_framing_overhead_max(&framing), 5);
  framing.max_frame = 9;
  cr_assert_eq(npi_framing_overhead_max(&framing), 2);
  framing.kind = NPI_FRAMING_EVENTSTREAM;
  cr_assert_eq(npi_framing_overhead_max(&framing), 7 + 65535);
  framing.max_topic = 256;
  cr_assert_eq(npi_framing_overhead_max(&framing), 7 + 256);
}

Test(framing, every_error_has_its_own_text) {
  /* Proves: texts differ, and a number that is no error is no crash. */
  for (int a = 0; a < NPI_FRAME_ERROR_COUNT; a++)
    for (int b = 0; b < a; b++)
      cr_assert_str_neq(npi_frame_error_text((enum npi_frame_error)a), npi_frame_error_text((enum npi_frame_error)b));
  cr_assert_str_eq(npi_frame_error_text(NPI_FRAME_ERROR_COUNT), "unknown frame error");
}
