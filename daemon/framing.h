/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where one event ends and the next begins in bytes that came from a socket.
 *
 * The decoders are pure: no input or output, no allocation, no state but the caller's scan_from. A stream keeps
 * its unfinished bytes in the caller's carry buffer and shows them again together with what came next; the same
 * bytes give the same frames wherever the network cut them. Everything here was written by strangers: each length
 * is compared with max_frame before it is used in any sum.
 *
 *   datagram       the whole datagram is one frame; not for streams
 *   newline        payload LF, with strip_cr also payload CR LF; empty lines are counted and skipped
 *   length_prefix  length (1, 2, 4 or 8 bytes, either byte order, may count itself), payload
 *   fixed          fixed_bytes of payload, nothing else
 *   syslog         RFC 6587, chosen message by message: a digit begins "LENGTH SP payload", all else runs to LF
 *   eventstream    length of the rest (4), priority 0..4 (1), length of topic (2), topic, payload; big-endian
 *
 * A payload is never empty, except in eventstream, where a topic alone can be the message.
 */
#ifndef NPI_DAEMON_FRAMING_H
#define NPI_DAEMON_FRAMING_H

#include <stddef.h>
#include <stdint.h>

enum npi_framing_kind {
  NPI_FRAMING_DATAGRAM,
  NPI_FRAMING_NEWLINE,
  NPI_FRAMING_LENGTH_PREFIX,
  NPI_FRAMING_FIXED,
  NPI_FRAMING_SYSLOG,
  NPI_FRAMING_EVENTSTREAM,
  NPI_FRAMING_KIND_COUNT
};

#define NPI_FRAMING_MAX_FRAME    (UINT64_C(1) << 20) /* upper limit of max_frame */
#define NPI_FRAMING_MAX_TOPIC    65535u              /* what the length field of a topic can say */
#define NPI_FRAMING_MAX_PRIORITY 4

/* Plain data without pointers: the broker hands it to its workers in shared memory. */
struct npi_framing {
  uint32_t kind;            /* enum npi_framing_kind */
  uint32_t prefix_bytes;    /* length_prefix: 1, 2, 4 or 8 */
  uint32_t big_endian;      /* length_prefix: 0 or 1 */
  uint32_t includes_prefix; /* length_prefix: 1 if the length counts its own bytes too */
  uint32_t fixed_bytes;     /* fixed: size of every frame */
  uint32_t strip_cr;        /* newline, and lines of syslog: 1 if one CR before the LF is not payload */
  uint32_t max_topic;       /* eventstream: longest topic in bytes; 0 means NPI_FRAMING_MAX_TOPIC */
  uint32_t reserved;        /* 0 */
  uint64_t max_frame;       /* longest payload in bytes */
};

/* Why a stream cannot be read on. One row an error: name, text for log lines and counters. */
#define NPI_FRAME_ERROR_LIST(X)                               \
  X(NPI_FRAME_ERROR_NONE, "none")                             \
  X(NPI_FRAME_ERROR_TOO_LARGE, "frame exceeds max_frame")     \
  X(NPI_FRAME_ERROR_BAD_LENGTH, "impossible length")          \
  X(NPI_FRAME_ERROR_BAD_COUNT, "malformed octet count")       \
  X(NPI_FRAME_ERROR_BAD_PRIORITY, "priority out of range")    \
  X(NPI_FRAME_ERROR_BAD_TOPIC, "topic longer than permitted") \
  X(NPI_FRAME_ERROR_TRUNCATED, "input ends inside a frame")

enum npi_frame_error {
#define NPI_FRAME_ERROR_ROW(name, text) name,
  NPI_FRAME_ERROR_LIST(NPI_FRAME_ERROR_ROW)
#undef NPI_FRAME_ERROR_ROW
      NPI_FRAME_ERROR_COUNT
};

/* payload and topic point into the bytes that were decoded and live as long as they do. */
struct npi_frame {
  const uint8_t *payload;
  uint64_t payload_bytes;
  const uint8_t *topic; /* NULL without one */
  uint32_t topic_bytes;
  uint32_t priority;
  uint64_t consumed;    /* bytes of input that are done with: framing, payload, and empty lines before it */
  uint64_t blank_lines; /* empty lines among them */
};

enum npi_frame_result {
  NPI_FRAME_READY,     /* frame is filled: take it, advance by consumed, ask again */
  NPI_FRAME_NEED_MORE, /* advance by consumed (empty lines), read more, ask again */
  NPI_FRAME_BAD        /* *error says why; where the next frame begins can no longer be known */
};

/*
 * npi_framing_next: looks for the first frame in bytes[0..n). Settings must have passed npi_framing_check().
 *
 * NEED_MORE sets *needed to how many bytes from the front, after consumed is dropped, the frame will take at
 * least: always more than are there; 0 where only a terminator can tell.
 * *scan_from spares a second search for a line's end: 0 at the start of a stream, then only handed back. It
 * belongs to the front of the unconsumed bytes, so that it stays right when they move and new ones follow.
 */
enum npi_frame_result npi_framing_next(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                       uint64_t *scan_from, struct npi_frame *frame, uint64_t *needed,
                                       enum npi_frame_error *error);

/*
 * npi_framing_finish: the same when nothing will follow: at the end of a stream, and for a datagram that carries
 * whole frames. A last line counts without its terminator, as real senders close without one; any other part of
 * a frame is TRUNCATED. Call until it says NEED_MORE, which here means that nothing is left.
 */
enum npi_frame_result npi_framing_finish(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                         uint64_t *scan_from, struct npi_frame *frame, uint64_t *needed,
                                         enum npi_frame_error *error);

/* Constant text; "unknown frame error" for numbers that are none. */
const char *npi_frame_error_text(enum npi_frame_error error);

/* 0, or NP_ERR_CONFIG with words in why: what is impossible, which value, what is possible. */
int npi_framing_check(const struct npi_framing *framing, char *why, size_t why_bytes);

/* Most bytes that a frame can take beyond max_frame; max_frame plus this bounds what a carry buffer must hold. */
uint64_t npi_framing_overhead_max(const struct npi_framing *framing);

#endif
