/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Framings whose length stands before the payload, or in the settings: length_prefix, fixed, eventstream.
 *
 * Fields are judged in the order of their bytes, so that an error is the same one however the stream was cut.
 */
#include <endian.h>
#include <string.h>

#include "base/align.h"
#include "daemon/framing_internal.h"

static inline enum npi_frame_result more(uint64_t *needed, uint64_t bytes) {
  *needed = bytes;
  return NPI_FRAME_NEED_MORE;
}

static inline enum npi_frame_result bad(enum npi_frame_error *error, enum npi_frame_error why) {
  *error = why;
  return NPI_FRAME_BAD;
}

/* An unsigned number of width bytes (1 to 8) at the front of n bytes, n >= width. */
static inline uint64_t read_number(const uint8_t *bytes, uint64_t n, uint32_t width, uint32_t big_endian) {
  uint64_t word = 0;
  unsigned unused_bits = 64 - 8 * width;

  if (NPI_LIKELY(n >= sizeof(word))) {
    /* One load and one shift for every width: what follows the number is shifted out. */
    memcpy(&word, bytes, sizeof(word));
    return big_endian ? be64toh(word) >> unused_bits : le64toh(word) << unused_bits >> unused_bits;
  }
  for (uint32_t i = 0; i < width; i++) word = word << 8 | bytes[big_endian ? i : width - 1 - i];
  return word;
}

enum npi_frame_result npi_framing_next_length_prefix(const struct npi_framing *framing, const uint8_t *bytes,
                                                     uint64_t n, struct npi_frame *frame, uint64_t *needed,
                                                     enum npi_frame_error *error) {
  uint32_t width = framing->prefix_bytes;
  uint64_t own = framing->includes_prefix ? width : 0;
  uint64_t length;

  if (n < width) return more(needed, width);
  length = read_number(bytes, n, width, framing->big_endian);
  if (NPI_UNLIKELY(length <= own)) return bad(error, NPI_FRAME_ERROR_BAD_LENGTH);
  length -= own;
  if (NPI_UNLIKELY(length > framing->max_frame)) {
    /* A number that wide with its top bit set was negative where it came from, or written in the other order. */
    int negative = width >= 4 && (length + own) >> (8 * width - 1);
    return bad(error, negative ? NPI_FRAME_ERROR_BAD_LENGTH : NPI_FRAME_ERROR_TOO_LARGE);
  }
  if (n - width < length) return more(needed, width + length);
  frame->payload = bytes + width;
  frame->payload_bytes = length;
  frame->consumed = width + length;
  return NPI_FRAME_READY;
}

enum npi_frame_result npi_framing_next_fixed(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                             struct npi_frame *frame, uint64_t *needed) {
  if (n < framing->fixed_bytes) return more(needed, framing->fixed_bytes);
  frame->payload = bytes;
  frame->payload_bytes = framing->fixed_bytes;
  frame->consumed = framing->fixed_bytes;
  return NPI_FRAME_READY;
}

enum npi_frame_result npi_framing_next_eventstream(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                                   struct npi_frame *frame, uint64_t *needed,
                                                   enum npi_frame_error *error) {
  enum { LENGTH_BYTES = 4, FIXED_REST = NPI_FRAMING_EVENTSTREAM_HEADER - LENGTH_BYTES };
  uint32_t max_topic = framing->max_topic ? framing->max_topic : NPI_FRAMING_MAX_TOPIC;
  uint64_t rest, topic_bytes, payload_bytes;

  if (n < LENGTH_BYTES) return more(needed, NPI_FRAMING_EVENTSTREAM_HEADER);
  rest = read_number(bytes, n, LENGTH_BYTES, 1);
  if (rest < FIXED_REST || rest > INT32_MAX) return bad(error, NPI_FRAME_ERROR_BAD_LENGTH);
  if (rest > framing->max_frame + max_topic + FIXED_REST) return bad(error, NPI_FRAME_ERROR_TOO_LARGE);

  if (n < LENGTH_BYTES + 1) return more(needed, LENGTH_BYTES + rest);
  if (bytes[LENGTH_BYTES] > NPI_FRAMING_MAX_PRIORITY) return bad(error, NPI_FRAME_ERROR_BAD_PRIORITY);

  if (n < NPI_FRAMING_EVENTSTREAM_HEADER) return more(needed, LENGTH_BYTES + rest);
  topic_bytes = (uint64_t)bytes[5] << 8 | bytes[6];
  if (topic_bytes > rest - FIXED_REST || topic_bytes > max_topic) return bad(error, NPI_FRAME_ERROR_BAD_TOPIC);
  payload_bytes = rest - FIXED_REST - topic_bytes;
  if (payload_bytes > framing->max_frame) return bad(error, NPI_FRAME_ERROR_TOO_LARGE);

  if (n < LENGTH_BYTES + rest) return more(needed, LENGTH_BYTES + rest);
  frame->priority = bytes[LENGTH_BYTES];
  frame->topic = topic_bytes ? bytes + NPI_FRAMING_EVENTSTREAM_HEADER : NULL;
  frame->topic_bytes = (uint32_t)topic_bytes;
  frame->payload = bytes + NPI_FRAMING_EVENTSTREAM_HEADER + topic_bytes;
  frame->payload_bytes = payload_bytes;
  frame->consumed = LENGTH_BYTES + rest;
  return NPI_FRAME_READY;
}
