/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes of a stream become frames. Frames that are whole inside a staging buffer are delivered from there: one copy.
 * Only a frame that is cut in two passes the connection's carry, and only its own bytes do: when it is complete, the
 * rest of the staging buffer is decoded in place again.
 */
#include <endian.h>
#include <inttypes.h>
#include <string.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/ingest_internal.h"

enum { BAD_LOG_NS = 1000000000, LINE_STEP = 1024 };

void npi_ingest_bad_frame(struct npi_ingest_listener *listener, const struct npi_ingest_connection *connection,
                          enum npi_frame_error error) {
  enum npi_counter row = error == NPI_FRAME_ERROR_TOO_LARGE    ? NPI_LISTENER_TOO_LARGE
                         : error == NPI_FRAME_ERROR_BAD_LENGTH ? NPI_LISTENER_BAD_LENGTH
                         : error == NPI_FRAME_ERROR_TRUNCATED  ? NPI_LISTENER_PARTIAL_AT_END
                                                               : NPI_LISTENER_BAD_FRAME;
  uint64_t now = listener->ingest->now_ns;

  npi_listener_count(listener, row, 1);
  listener->n_bad_unlogged++;
  if (listener->bad_logged_ns != 0 && now - listener->bad_logged_ns < BAD_LOG_NS) return;
  listener->bad_logged_ns = now;
  npi_log(NPI_LOG_WARNING, "ingest.bad_frame", "listener=%s connection=%" PRIu64 " reason=\"%s\" count=%" PRIu64,
          listener->config.name, connection ? connection->number & UINT64_C(0xffffffffffff) : 0,
          npi_frame_error_text(error), listener->n_bad_unlogged);
  listener->n_bad_unlogged = 0;
}

enum decoded { DECODED_ALL, DECODED_HELD, DECODED_BAD };

/* A row of whole frames that differ in nothing but their payload, and where each ends in the bytes. */
struct row {
  struct npi_payload payload[NPI_BATCH_MAX];
  size_t end[NPI_BATCH_MAX];
  uint32_t n;
};

static inline void add(struct row *row, const uint8_t *payload, uint32_t size, size_t end) {
  row->payload[row->n] = (struct npi_payload){.bytes = payload, .size = size};
  row->end[row->n++] = end;
}

/*
 * Frames with a length prefix of four bytes that are there whole and right: most of all work on streams, so without a
 * call for each. All else, and every error, is left to the decoder. Returns where the last one ends.
 */
static inline size_t gather_prefixed(const struct npi_framing *framing, const uint8_t *bytes, size_t n, size_t at,
                                     struct row *row) {
  const uint64_t max_frame = framing->max_frame;
  const int big_endian = framing->big_endian != 0;

  while (row->n < NPI_BATCH_MAX && n - at >= sizeof(uint32_t)) {
    uint32_t length;

    memcpy(&length, bytes + at, sizeof(length));
    length = big_endian ? be32toh(length) : le32toh(length);
    if (length == 0 || length > max_frame || n - at - sizeof(length) < length) break;
    at += sizeof(length);
    add(row, bytes + at, length, at + length);
    at += length;
  }
  return at;
}

static void describe(const struct npi_ingest_connection *connection, struct npi_ingest_event *event) {
  const struct npi_ingest_listener *listener = connection->listener;

  event->priority = (uint8_t)listener->config.priority;
  event->family = connection->family;
  event->port = connection->port;
  event->time_ns = listener->ingest->time_ns;
  event->connection = connection->number;
  memcpy(event->address, connection->address, sizeof(event->address));
}

/* Frames of an eventstream differ in priority and topic: each is delivered by itself. */
static int deliver_single(struct npi_ingest_connection *connection, struct npi_ingest_event *event,
                          const struct npi_frame *frame) {
  uint64_t n_published = 0;
  int result;

  event->priority = (uint8_t)frame->priority;
  event->payload = frame->payload;
  event->payload_bytes = frame->payload_bytes;
  event->topic = frame->topic;
  event->topic_bytes = frame->topic_bytes;
  result = npi_ingest_deliver(connection->listener, event, &connection->holds_frame, &n_published);
  npi_ingest_count_published(connection->listener, n_published);
  return result;
}

/*
 * Delivers the whole frames at the front of bytes. *used: bytes that are done with. is_last: nothing will follow.
 * DECODED_HELD: the frame behind them waits, to be decoded again from where it begins.
 */
static enum decoded decode(struct npi_ingest_connection *connection, const uint8_t *bytes, size_t n, int is_last,
                           size_t *used) {
  struct npi_ingest_listener *listener = connection->listener;
  const struct npi_framing *framing = &listener->config.framing;
  const int is_prefixed =
      framing->kind == NPI_FRAMING_LENGTH_PREFIX && framing->prefix_bytes == 4 && !framing->includes_prefix;
  struct npi_ingest_event event = {0};
  enum npi_frame_result result = NPI_FRAME_READY;
  enum npi_frame_error error = NPI_FRAME_ERROR_NONE;
  struct npi_frame frame = {0};
  struct row row;
  uint64_t scan_from = 0;
  size_t at = 0;

  describe(connection, &event);
  while (result == NPI_FRAME_READY) {
    size_t ahead = at; /* decoded, not delivered */
    uint32_t n_delivered;

    row.n = 0;
    scan_from = connection->scan_from;
    if (is_prefixed) ahead = gather_prefixed(framing, bytes, n, at, &row);
    while (row.n < NPI_BATCH_MAX) {
      if (row.n > 0) scan_from = 0;
      result = (is_last ? npi_framing_finish : npi_framing_next)(framing, bytes + ahead, n - ahead, &scan_from, &frame,
                                                                 &connection->needed, &error);
      if (result != NPI_FRAME_READY || framing->kind == NPI_FRAMING_EVENTSTREAM) break;
      ahead += frame.consumed;
      add(&row, frame.payload, (uint32_t)frame.payload_bytes, ahead);
    }
    n_delivered = npi_ingest_deliver_batch(listener, &event, row.payload, row.n, &connection->holds_frame);
    if (n_delivered > 0) {
      at = row.end[n_delivered - 1];
      connection->scan_from = 0;
    }
    if (n_delivered < row.n) {
      *used = at;
      return DECODED_HELD;
    }
    if (result == NPI_FRAME_READY && framing->kind == NPI_FRAMING_EVENTSTREAM) {
      if (deliver_single(connection, &event, &frame) == NPI_HELD) {
        *used = at;
        return DECODED_HELD;
      }
      at += frame.consumed;
    }
  }
  *used = n;
  if (result == NPI_FRAME_BAD) {
    npi_ingest_bad_frame(listener, connection, error);
    return DECODED_BAD;
  }
  connection->scan_from = scan_from;
  *used = at + frame.consumed; /* empty lines */
  return DECODED_ALL;
}

/* Keeps bytes for later. Where there is no memory for them the stream is broken, and that is said. */
static int keep(struct npi_ingest_connection *connection, const uint8_t *bytes, size_t n) {
  int result = npi_carry_append(&connection->listener->ingest->pool, &connection->carry, bytes, n);

  if (result == 0) return 0;
  npi_log(NPI_LOG_ERROR, "ingest.no_memory", "listener=%s reason=\"%s\"", connection->listener->config.name,
          npi_detail());
  npi_connection_close(connection, NPI_CLOSE_SLOW);
  return result;
}

/* How many of n new bytes the frame in the carry can use: up to its end where that can be told. */
static size_t share_of_carry(const struct npi_ingest_connection *connection, const uint8_t *bytes, size_t n) {
  size_t have = npi_carry_size(&connection->carry);
  const uint8_t *end;

  if (connection->needed > have) return connection->needed - have < n ? connection->needed - have : n;
  end = memchr(bytes, '\n', n);
  return end ? (size_t)(end - bytes) + 1 : n;
}

static void hold(struct npi_ingest_connection *connection, const uint8_t *rest, size_t n) {
  if (n > 0 && keep(connection, rest, n) < 0) return;
  npi_connection_wait(connection);
}

void npi_ingest_stream_bytes(struct npi_ingest_connection *connection, const uint8_t *bytes, size_t n) {
  struct npi_ingest_listener *listener = connection->listener;
  struct npi_carry_pool *pool = &listener->ingest->pool;
  int is_new = 0;

  npi_listener_count(listener, NPI_LISTENER_RECEIVED_BYTES, n);
  npi_connection_active(connection);
  if (listener->is_paused) { /* was on its way when the pause began, or comes first since: order before all */
    hold(connection, bytes, n);
    return;
  }
  while (n > 0) {
    enum decoded decoded;
    size_t used = 0;

    if (connection->carry.bytes) {
      size_t share = share_of_carry(connection, bytes, n);
      if (keep(connection, bytes, share) < 0) return;
      bytes += share;
      n -= share;
      decoded = decode(connection, connection->carry.bytes + connection->carry.begin,
                       npi_carry_size(&connection->carry), 0, &used);
      npi_carry_take(pool, &connection->carry, used);
    } else {
      decoded = decode(connection, bytes, n, 0, &used);
      bytes += used;
      n -= used;
      /* What is left is the front of a frame that has not come whole. Room for all of it is made at once, where its
       * length is known: a large frame is not moved again each time the room has doubled. */
      if (decoded == DECODED_ALL && n > 0) {
        if (connection->needed > n) npi_carry_reserve(pool, &connection->carry, connection->needed);
        if (keep(connection, bytes, n) < 0) return;
        is_new = 1;
        n = 0;
      }
    }
    if (used > 0) is_new = 1;
    if (decoded == DECODED_HELD) {
      hold(connection, bytes, n);
      return;
    }
    if (decoded == DECODED_BAD) {
      npi_connection_close(connection, NPI_CLOSE_BAD);
      return;
    }
  }
  npi_connection_unfinished(connection, connection->carry.bytes != NULL, is_new);
}

/* Everything that came is in the carry, and nothing will follow. */
static int finish(struct npi_ingest_connection *connection) {
  struct npi_ingest_listener *listener = connection->listener;
  int is_orderly = connection->end == NPI_CONNECTION_FINISHED;
  size_t used = 0;
  enum decoded decoded = DECODED_ALL;

  /* After a reset a line without its end is not a line: nobody said that it is whole. */
  if (connection->carry.bytes)
    decoded = decode(connection, connection->carry.bytes + connection->carry.begin, npi_carry_size(&connection->carry),
                     is_orderly, &used);
  if (decoded == DECODED_HELD) {
    npi_carry_take(&listener->ingest->pool, &connection->carry, used);
    npi_connection_wait(connection);
    return NPI_HELD;
  }
  if (decoded == DECODED_ALL && used < npi_carry_size(&connection->carry))
    npi_ingest_bad_frame(listener, connection, NPI_FRAME_ERROR_TRUNCATED);
  npi_connection_close(connection, NPI_CLOSE_END);
  return NPI_DELIVERED;
}

void npi_ingest_stream_end(struct npi_ingest_connection *connection, int error_number) {
  connection->end = error_number == 0 ? NPI_CONNECTION_FINISHED : NPI_CONNECTION_BROKEN;
  if (connection->listener->is_paused && connection->carry.bytes) {
    npi_connection_wait(connection);
    return;
  }
  finish(connection);
}

int npi_ingest_stream_resume(struct npi_ingest_connection *connection) {
  struct npi_ingest *ingest = connection->listener->ingest;
  enum decoded decoded = DECODED_ALL;
  size_t used = 0;

  if (connection->end != NPI_CONNECTION_OPEN) return finish(connection);
  if (connection->carry.bytes) {
    decoded = decode(connection, connection->carry.bytes + connection->carry.begin, npi_carry_size(&connection->carry),
                     0, &used);
    npi_carry_take(&ingest->pool, &connection->carry, used);
  }
  if (decoded == DECODED_HELD) return NPI_HELD;
  if (decoded == DECODED_BAD) {
    npi_connection_close(connection, NPI_CLOSE_BAD);
    return NPI_DELIVERED;
  }
  npi_link_take_out(&connection->in_waiting);
  connection->is_waiting = 0;
  npi_connection_active(connection);
  npi_connection_unfinished(connection, connection->carry.bytes != NULL, 1);
  if (connection->source.closing) return NPI_DELIVERED; /* its front was the oldest of too many */
  ingest->backend->operations->start(ingest->backend, &connection->source);
  return NPI_DELIVERED;
}
