/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entry to all framings: picks the decoder, ends a stream, and judges settings before any byte is read.
 * The step before is a completed receive in the ingest worker, the step after a slot that fits the payload.
 */
#include "daemon/framing.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/align.h"
#include "daemon/framing_internal.h"
#include "numapool/status.h"

static enum npi_frame_result next_datagram(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                           struct npi_frame *frame, enum npi_frame_error *error) {
  if (n == 0) return NPI_FRAME_NEED_MORE;
  if (n > framing->max_frame) {
    *error = NPI_FRAME_ERROR_TOO_LARGE;
    return NPI_FRAME_BAD;
  }
  frame->payload = bytes;
  frame->payload_bytes = n;
  frame->consumed = n;
  return NPI_FRAME_READY;
}

enum npi_frame_result npi_framing_next(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                       uint64_t *scan_from, struct npi_frame *frame, uint64_t *needed,
                                       enum npi_frame_error *error) {
  *frame = (struct npi_frame){0};
  *needed = 0;
  *error = NPI_FRAME_ERROR_NONE;
  switch (framing->kind) {
    case NPI_FRAMING_DATAGRAM: return next_datagram(framing, bytes, n, frame, error);
    case NPI_FRAMING_NEWLINE: return npi_framing_next_newline(framing, bytes, n, scan_from, frame, error);
    case NPI_FRAMING_LENGTH_PREFIX: return npi_framing_next_length_prefix(framing, bytes, n, frame, needed, error);
    case NPI_FRAMING_FIXED: return npi_framing_next_fixed(framing, bytes, n, frame, needed);
    case NPI_FRAMING_SYSLOG: return npi_framing_next_syslog(framing, bytes, n, scan_from, frame, needed, error);
    case NPI_FRAMING_EVENTSTREAM: return npi_framing_next_eventstream(framing, bytes, n, frame, needed, error);
    default: break;
  }
  /* npi_framing_check() refuses other kinds; a caller that did not ask it still gets no frame out of garbage. */
  *error = NPI_FRAME_ERROR_BAD_LENGTH;
  return NPI_FRAME_BAD;
}

enum npi_frame_result npi_framing_finish(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                         uint64_t *scan_from, struct npi_frame *frame, uint64_t *needed,
                                         enum npi_frame_error *error) {
  enum npi_frame_result result = npi_framing_next(framing, bytes, n, scan_from, frame, needed, error);

  if (result != NPI_FRAME_NEED_MORE || frame->consumed == n) return result;
  *needed = 0;
  if (framing->kind == NPI_FRAMING_NEWLINE || framing->kind == NPI_FRAMING_SYSLOG)
    return npi_framing_finish_text(framing, bytes, n, scan_from, frame, error);
  *error = NPI_FRAME_ERROR_TRUNCATED;
  return NPI_FRAME_BAD;
}

const char *npi_frame_error_text(enum npi_frame_error error) {
  static const char *const texts[] = {
#define NPI_FRAME_ERROR_ROW(name, text) text,
      NPI_FRAME_ERROR_LIST(NPI_FRAME_ERROR_ROW)
#undef NPI_FRAME_ERROR_ROW
  };
  return (unsigned)error < NPI_ARRAY_COUNT(texts) ? texts[error] : "unknown frame error";
}

static int impossible(char *why, size_t why_bytes, const char *format, ...) __attribute__((format(printf, 3, 4), cold));
static int impossible(char *why, size_t why_bytes, const char *format, ...) {
  va_list arguments;

  va_start(arguments, format);
  vsnprintf(why, why_bytes, format, arguments);
  va_end(arguments);
  return NP_ERR_CONFIG;
}

int npi_framing_check(const struct npi_framing *framing, char *why, size_t why_bytes) {
  uint32_t prefix = framing->prefix_bytes;

  if (framing->kind >= NPI_FRAMING_KIND_COUNT)
    return impossible(why, why_bytes, "framing kind %" PRIu32 " does not exist", framing->kind);
  if (framing->max_frame == 0 || framing->max_frame > NPI_FRAMING_MAX_FRAME)
    return impossible(why, why_bytes, "max_frame %" PRIu64 " is out of range; 1 to %" PRIu64 " bytes are possible",
                      framing->max_frame, NPI_FRAMING_MAX_FRAME);
  if (framing->big_endian > 1 || framing->includes_prefix > 1 || framing->strip_cr > 1 || framing->reserved != 0)
    return impossible(why, why_bytes, "a yes-or-no setting of the framing is neither 0 nor 1");
  switch (framing->kind) {
    case NPI_FRAMING_LENGTH_PREFIX:
      if (prefix != 1 && prefix != 2 && prefix != 4 && prefix != 8)
        return impossible(why, why_bytes, "a length_prefix of %" PRIu32 " bytes is not possible; use 1, 2, 4 or 8",
                          prefix);
      break;
    case NPI_FRAMING_FIXED:
      if (framing->fixed_bytes == 0 || framing->fixed_bytes > framing->max_frame)
        return impossible(why, why_bytes,
                          "fixed frames of %" PRIu32 " bytes are not possible; use 1 to max_frame, %" PRIu64,
                          framing->fixed_bytes, framing->max_frame);
      break;
    case NPI_FRAMING_EVENTSTREAM:
      if (framing->max_topic > NPI_FRAMING_MAX_TOPIC)
        return impossible(why, why_bytes, "max_topic %" PRIu32 " is out of range; at most %u bytes are possible",
                          framing->max_topic, NPI_FRAMING_MAX_TOPIC);
      break;
    default: break;
  }
  return 0;
}

uint64_t npi_framing_overhead_max(const struct npi_framing *framing) {
  uint64_t digits = 1;

  switch (framing->kind) {
    case NPI_FRAMING_NEWLINE: return 1 + (uint64_t)framing->strip_cr;
    case NPI_FRAMING_LENGTH_PREFIX: return framing->prefix_bytes;
    case NPI_FRAMING_SYSLOG:
      for (uint64_t rest = framing->max_frame; rest >= 10; rest /= 10) digits++;
      return digits + 1; /* the digits and SP; at least as much as CR LF */
    case NPI_FRAMING_EVENTSTREAM:
      return NPI_FRAMING_EVENTSTREAM_HEADER + (framing->max_topic ? framing->max_topic : NPI_FRAMING_MAX_TOPIC);
    default: return 0;
  }
}
