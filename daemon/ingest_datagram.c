/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Datagrams become events: one each, or the whole frames that one carries. What came while the listener was paused
 * waits in a queue, behind what was there before it.
 */
#include <linux/sock_diag.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/ingest_internal.h"

/* Decodes from *taken on. NPI_HELD: *taken is where the frame begins that has to wait. */
static int decode(struct npi_ingest_listener *listener, const uint8_t *bytes, uint32_t n,
                  const struct npi_held_datagram *from, uint32_t *taken) {
  const struct npi_framing *framing = &listener->config.framing;
  uint64_t scan_from = 0, n_published = 0;

  while (*taken < n) {
    struct npi_ingest_event event = {.family = from->family, .port = from->port, .time_ns = from->time_ns};
    struct npi_frame frame;
    uint64_t needed;
    enum npi_frame_error error;
    enum npi_frame_result result =
        npi_framing_finish(framing, bytes + *taken, n - *taken, &scan_from, &frame, &needed, &error);

    if (result == NPI_FRAME_BAD) {
      /* A datagram as a whole that is too long is a truncated one: what would be published is not what was sent. */
      if (framing->kind == NPI_FRAMING_DATAGRAM)
        npi_listener_count(listener, NPI_LISTENER_TRUNCATED, 1);
      else
        npi_ingest_bad_frame(listener, NULL, error);
      break;
    }
    if (result == NPI_FRAME_NEED_MORE) break;
    event.payload = frame.payload;
    event.payload_bytes = frame.payload_bytes;
    event.topic = frame.topic;
    event.topic_bytes = frame.topic_bytes;
    event.priority = (uint8_t)(framing->kind == NPI_FRAMING_EVENTSTREAM ? frame.priority : listener->config.priority);
    memcpy(event.address, from->address, sizeof(event.address));
    if (npi_ingest_deliver(listener, &event, &listener->holds_frame, &n_published) == NPI_HELD) {
      npi_ingest_count_published(listener, n_published);
      return NPI_HELD;
    }
    *taken += (uint32_t)frame.consumed;
  }
  npi_ingest_count_published(listener, n_published);
  *taken = n;
  return NPI_DELIVERED;
}

/* Puts a datagram, from where it was not taken yet, into the queue. */
static void hold(struct npi_ingest_listener *listener, const struct npi_held_datagram *from, const uint8_t *bytes) {
  struct npi_carry_pool *pool = &listener->ingest->pool;

  if (npi_carry_reserve(pool, &listener->held, sizeof(*from) + from->bytes) == 0) {
    npi_carry_append(pool, &listener->held, from, sizeof(*from));
    npi_carry_append(pool, &listener->held, bytes, from->bytes);
    return;
  }
  npi_log(NPI_LOG_ERROR, "ingest.no_memory", "listener=%s reason=\"%s\"", listener->config.name, npi_detail());
  npi_listener_count(listener, NPI_LISTENER_DROPPED_POOL, 1);
  listener->ingest->sink.skip(listener->ingest->sink.context, listener->index, 1);
  if (listener->holds_frame && !listener->held.bytes) { /* the frame that began the pause, counted already */
    listener->holds_frame = 0;
    npi_listener_set(listener, NPI_LISTENER_HELD, 0);
  } else {
    npi_listener_count(listener, NPI_LISTENER_RECEIVED, 1);
  }
}

void npi_ingest_datagram(struct npi_ingest_listener *listener, const struct npi_ingest_datagram *datagram) {
  struct npi_held_datagram from = {.bytes = (uint32_t)datagram->size};

  npi_listener_count(listener, NPI_LISTENER_DATAGRAMS, 1);
  npi_listener_count(listener, NPI_LISTENER_RECEIVED_BYTES, datagram->size);
  if (datagram->truncated) {
    npi_listener_count(listener, NPI_LISTENER_TRUNCATED, 1);
    return;
  }
  if (datagram->size == 0) {
    npi_listener_count(listener, NPI_LISTENER_EMPTY, 1);
    return;
  }
  from.time_ns = datagram->time_ns ? datagram->time_ns : listener->ingest->time_ns;
  npi_ingest_address(datagram->sender, datagram->sender_bytes, from.address, &from.port, &from.family);
  if (listener->is_paused || decode(listener, datagram->bytes, from.bytes, &from, &from.taken) == NPI_HELD)
    hold(listener, &from, datagram->bytes);
}

int npi_ingest_datagram_resume(struct npi_ingest_listener *listener) {
  while (listener->held.bytes) {
    const uint8_t *record = listener->held.bytes + listener->held.begin;
    struct npi_held_datagram from;
    int result;

    memcpy(&from, record, sizeof(from));
    result = decode(listener, record + sizeof(from), from.bytes, &from, &from.taken);
    if (result == NPI_HELD) {
      memcpy(listener->held.bytes + listener->held.begin, &from, sizeof(from));
      return NPI_HELD;
    }
    npi_carry_take(&listener->ingest->pool, &listener->held, sizeof(from) + from.bytes);
  }
  return NPI_DELIVERED;
}

void npi_ingest_kernel_drops(struct npi_ingest_listener *listener) {
  uint32_t values[SK_MEMINFO_VARS] = {0};
  socklen_t bytes = sizeof(values);

  if (listener->config.proto != NPI_CONFIG_UDP || listener->source.fd < 0) return;
  if (getsockopt(listener->source.fd, SOL_SOCKET, SO_MEMINFO, values, &bytes) < 0 ||
      bytes < (SK_MEMINFO_DROPS + 1) * sizeof(values[0]))
    return;
  /* The kernel's count has 32 bits; the difference is right across its wrapping. */
  npi_listener_count(listener, NPI_LISTENER_DROPPED_KERNEL,
                     (uint32_t)(values[SK_MEMINFO_DROPS] - listener->drops_seen));
  listener->drops_seen = values[SK_MEMINFO_DROPS];
}
