/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Framings of text: newline, and syslog over streams (RFC 6587), which mixes lines with counted messages.
 *
 * Payload bytes are never changed: a terminator inside an octet count is payload, a CR is payload unless strip_cr
 * says otherwise, and NUL is an ordinary byte.
 */
#include <string.h>

#include "base/align.h"
#include "daemon/framing_internal.h"

static inline enum npi_frame_result bad(enum npi_frame_error *error, enum npi_frame_error why) {
  *error = why;
  return NPI_FRAME_BAD;
}

/* CR LF holds nothing where CR is not payload, and never is a syslog message. */
static inline int crlf_is_blank(const struct npi_framing *framing) {
  return framing->strip_cr || framing->kind == NPI_FRAMING_SYSLOG;
}

/* Counts the empty lines at the front into *frame and returns where they end. */
static inline uint64_t skip_blank_lines(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                        struct npi_frame *frame) {
  uint64_t at = 0;

  while (at < n) {
    if (bytes[at] == '\n') {
      at++;
    } else if (bytes[at] == '\r' && n - at > 1 && bytes[at + 1] == '\n' && crlf_is_blank(framing)) {
      at += 2;
    } else {
      break;
    }
    frame->blank_lines++;
  }
  frame->consumed = at;
  return at;
}

/* The payload of a line of length bytes before its LF. */
static inline uint64_t line_payload(const struct npi_framing *framing, const uint8_t *line, uint64_t length) {
  return length - (framing->strip_cr && length > 0 && line[length - 1] == '\r');
}

/* A line that begins at bytes + frame->consumed and is not empty. */
static enum npi_frame_result next_line(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                       uint64_t *scan_from, struct npi_frame *frame, enum npi_frame_error *error) {
  const uint8_t *line = bytes + frame->consumed;
  uint64_t held = n - frame->consumed;
  /* CR and LF behind the longest payload; what lies beyond cannot make the line shorter. */
  uint64_t window = held < framing->max_frame + 2 ? held : framing->max_frame + 2;
  const uint8_t *end = *scan_from < window ? memchr(line + *scan_from, '\n', window - *scan_from) : NULL;
  uint64_t length = end ? (uint64_t)(end - line) : held;
  uint64_t payload_bytes = line_payload(framing, line, length);

  *scan_from = 0;
  if (NPI_UNLIKELY(payload_bytes > framing->max_frame)) return bad(error, NPI_FRAME_ERROR_TOO_LARGE);
  if (!end) {
    *scan_from = held;
    return NPI_FRAME_NEED_MORE;
  }
  frame->payload = line;
  frame->payload_bytes = payload_bytes;
  frame->consumed += length + 1;
  return NPI_FRAME_READY;
}

enum npi_frame_result npi_framing_next_newline(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                               uint64_t *scan_from, struct npi_frame *frame,
                                               enum npi_frame_error *error) {
  if (skip_blank_lines(framing, bytes, n, frame) == n) {
    *scan_from = 0;
    return NPI_FRAME_NEED_MORE;
  }
  return next_line(framing, bytes, n, scan_from, frame, error);
}

static inline int is_digit(uint8_t byte) {
  return byte >= '0' && byte <= '9';
}

/* "LENGTH SP payload" at bytes + frame->consumed, of which the first byte is a digit. */
static enum npi_frame_result next_counted(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                          struct npi_frame *frame, uint64_t *needed, enum npi_frame_error *error) {
  const uint8_t *text = bytes + frame->consumed;
  uint64_t held = n - frame->consumed;
  uint64_t length = 0;
  uint64_t digits = 0;

  if (text[0] == '0') return bad(error, NPI_FRAME_ERROR_BAD_COUNT);
  while (digits < held && is_digit(text[digits])) {
    length = length * 10 + (uint64_t)(text[digits++] - '0');
    /* Here, not after the last digit: the sum stays far from wrapping however many digits come. */
    if (length > framing->max_frame) return bad(error, NPI_FRAME_ERROR_TOO_LARGE);
  }
  if (digits < held && text[digits] != ' ') return bad(error, NPI_FRAME_ERROR_BAD_COUNT);
  if (held < digits + 1 + length) {
    *needed = digits + 1 + length; /* more digits could only make it more */
    return NPI_FRAME_NEED_MORE;
  }
  frame->payload = text + digits + 1;
  frame->payload_bytes = length;
  frame->consumed += digits + 1 + length;
  return NPI_FRAME_READY;
}

/*
 * Messages begin with '<' (RFC 3164, RFC 5424), so a digit can only begin a count. Senders that count often put
 * an LF behind the message all the same: it shows up here as an empty line before the next one.
 */
enum npi_frame_result npi_framing_next_syslog(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                              uint64_t *scan_from, struct npi_frame *frame, uint64_t *needed,
                                              enum npi_frame_error *error) {
  uint64_t at = skip_blank_lines(framing, bytes, n, frame);

  if (at < n && !is_digit(bytes[at])) return next_line(framing, bytes, n, scan_from, frame, error);
  *scan_from = 0;
  if (at == n) return NPI_FRAME_NEED_MORE;
  return next_counted(framing, bytes, n, frame, needed, error);
}

enum npi_frame_result npi_framing_finish_text(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                              uint64_t *scan_from, struct npi_frame *frame,
                                              enum npi_frame_error *error) {
  const uint8_t *line = bytes + frame->consumed;
  uint64_t length = n - frame->consumed;

  *scan_from = 0;
  if (framing->kind == NPI_FRAMING_SYSLOG && is_digit(line[0])) return bad(error, NPI_FRAME_ERROR_TRUNCATED);
  frame->consumed = n;
  if (length == 1 && line[0] == '\r' && crlf_is_blank(framing)) {
    frame->blank_lines++; /* half of an empty line's CR LF */
    return NPI_FRAME_NEED_MORE;
  }
  frame->payload = line;
  frame->payload_bytes = line_payload(framing, line, length);
  return NPI_FRAME_READY;
}
