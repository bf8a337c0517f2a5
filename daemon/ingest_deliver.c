/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What happens to a whole frame: it is published, dropped and counted, or held back while reading is paused.
 *
 * A pause belongs to the listener, not to a connection, because all of its connections feed one publisher. It is lazy:
 * a connection is stopped when it brings bytes during the pause, which are kept, so that a pause costs nothing for a
 * thousand connections that are silent. What is kept is bounded by what the backend had on its way for each.
 */
#include "base/align.h"
#include "daemon/ingest_internal.h"
#include "numapool/status.h"

enum { RETRY_NS_MIN = 1000000, RETRY_NS_MAX = 10000000 };

void npi_ingest_pause(struct npi_ingest_listener *listener) {
  struct npi_ingest *ingest = listener->ingest;

  listener->retry_ns = ingest->now_ns + listener->retry_step_ns;
  if (listener->is_paused) return;
  listener->is_paused = 1;
  listener->retry_step_ns = RETRY_NS_MIN;
  listener->retry_ns = ingest->now_ns + RETRY_NS_MIN;
  npi_listener_count(listener, NPI_LISTENER_PAUSES, 1);
  npi_listener_set(listener, NPI_LISTENER_PAUSED_NOW, 1);
  if (listener->is_datagram) ingest->backend->operations->stop(ingest->backend, &listener->source);
  if (ingest->n_paused++ == 0 && ingest->credit.source.fd >= 0) {
    ingest->n_idle_credits = 0;
    ingest->backend->operations->start(ingest->backend, &ingest->credit.source);
  }
}

static void go_on(struct npi_ingest_listener *listener) {
  struct npi_ingest *ingest = listener->ingest;

  listener->is_paused = 0;
  npi_listener_count(listener, NPI_LISTENER_RESUMES, 1);
  npi_listener_set(listener, NPI_LISTENER_PAUSED_NOW, 0);
  if (listener->is_datagram) ingest->backend->operations->start(ingest->backend, &listener->source);
  if (--ingest->n_paused == 0 && ingest->credit.source.fd >= 0)
    ingest->backend->operations->stop(ingest->backend, &ingest->credit.source);
}

void npi_ingest_retry(struct npi_ingest_listener *listener) {
  uint64_t published = npi_load_relaxed_u64(&listener->counters[NPI_LISTENER_PUBLISHED]);
  int result = NPI_DELIVERED;

  if (!listener->is_paused) return;
  if (listener->is_datagram) {
    result = npi_ingest_datagram_resume(listener);
  } else {
    while (result == NPI_DELIVERED && !npi_link_alone(&listener->waiting))
      result =
          npi_ingest_stream_resume(NPI_LINK_OBJECT(listener->waiting.after, struct npi_ingest_connection, in_waiting));
  }
  if (result == NPI_DELIVERED) {
    go_on(listener);
    return;
  }
  /* The longer nothing moves, the rarer it is asked; the credit descriptor makes it sooner. */
  if (npi_load_relaxed_u64(&listener->counters[NPI_LISTENER_PUBLISHED]) != published)
    listener->retry_step_ns = RETRY_NS_MIN;
  else if (listener->retry_step_ns < RETRY_NS_MAX)
    listener->retry_step_ns *= 2;
  if (listener->retry_step_ns > RETRY_NS_MAX) listener->retry_step_ns = RETRY_NS_MAX;
  listener->retry_ns = listener->ingest->now_ns + listener->retry_step_ns;
}

/* A frame that was held is done with: what it counts as now is the caller's to add. */
static void settle_hold(struct npi_ingest_listener *listener, uint8_t *holds) {
  if (!*holds) {
    npi_listener_count(listener, NPI_LISTENER_RECEIVED, 1);
    return;
  }
  *holds = 0;
  npi_listener_set(listener, NPI_LISTENER_HELD, npi_load_relaxed_u64(&listener->counters[NPI_LISTENER_HELD]) - 1);
}

static int drop(struct npi_ingest_listener *listener, enum npi_counter reason, uint8_t *holds) {
  settle_hold(listener, holds);
  npi_listener_count(listener, reason, 1);
  listener->ingest->sink.skip(listener->ingest->sink.context, listener->index, 1);
  return NPI_DELIVERED;
}

/* The frame finds no slot or no credit, or has waited for one. */
static int deliver_slowly(struct npi_ingest_listener *listener, int result, uint8_t *holds) __attribute__((noinline));
static int deliver_slowly(struct npi_ingest_listener *listener, int result, uint8_t *holds) {
  if (result == 0) {
    settle_hold(listener, holds);
    npi_listener_count(listener, NPI_LISTENER_PUBLISHED, 1);
    listener->ingest->has_published = 1;
    return NPI_DELIVERED;
  }
  if (result == NP_ERR_TOO_LARGE) {
    npi_listener_count(listener, NPI_LISTENER_TOO_LARGE, 1);
    return drop(listener, NPI_LISTENER_DROPPED_POOL, holds);
  }
  if (listener->config.on_full == NPI_CONFIG_LISTENER_DROP_NEWEST || listener->is_discarding)
    return drop(listener, result == NP_FULL ? NPI_LISTENER_DROPPED_CREDIT : NPI_LISTENER_DROPPED_POOL, holds);
  if (!*holds) {
    *holds = 1;
    npi_listener_count(listener, NPI_LISTENER_RECEIVED, 1);
    npi_listener_count(listener, NPI_LISTENER_HELD, 1);
  }
  npi_ingest_pause(listener);
  return NPI_HELD;
}

int npi_ingest_deliver(struct npi_ingest_listener *listener, const struct npi_ingest_event *event, uint8_t *holds,
                       uint64_t *n_published) {
  const struct npi_ingest_sink *sink = &listener->ingest->sink;
  int result;

  npi_ingest_at_work(listener, *holds);
  result = sink->publish(sink->context, listener->index, event);

  if (NPI_UNLIKELY(result != 0 || *holds)) return deliver_slowly(listener, result, holds);
  ++*n_published;
  return NPI_DELIVERED;
}

uint32_t npi_ingest_deliver_batch(struct npi_ingest_listener *listener, struct npi_ingest_event *like,
                                  const struct npi_payload *payloads, uint32_t n, uint8_t *holds) {
  const struct npi_ingest_sink *sink = &listener->ingest->sink;
  uint64_t n_single = 0;
  uint32_t done = 0;

  while (done < n) {
    if (NPI_LIKELY(sink->publish_batch && !*holds)) {
      npi_ingest_at_work(listener, 0);
      uint32_t n_published = sink->publish_batch(sink->context, listener->index, like, &payloads[done], n - done);
      npi_ingest_count_published(listener, n_published);
      done += n_published;
      if (NPI_LIKELY(done == n)) break;
    }
    /* What the next one lacks may be no more than a step that the quick way does not take. */
    like->payload = payloads[done].bytes;
    like->payload_bytes = payloads[done].size;
    if (npi_ingest_deliver(listener, like, holds, &n_single) == NPI_HELD) break;
    done++;
  }
  npi_ingest_count_published(listener, n_single);
  return done;
}
