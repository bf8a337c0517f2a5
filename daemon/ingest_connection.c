/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stream connections: their life, and the deadlines they must keep.
 *
 * A listener has one idle timeout and one frame timeout, so its connections sorted by when they were last active, or
 * by when their unfinished frame began, are sorted by deadline: two lists, each change at an end, no wheel to turn.
 */
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/ingest_internal.h"

enum { SWEEP_BATCH = 256 };

#define NS_PER_MS UINT64_C(1000000)

void npi_ingest_address(const struct sockaddr_storage *from, socklen_t from_bytes, uint8_t address[16], uint16_t *port,
                        uint8_t *family) {
  const struct sockaddr_in *v4 = (const struct sockaddr_in *)from;
  const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)from;

  memset(address, 0, 16);
  *port = 0;
  *family = 1; /* an unnamed Unix sender has no address at all */
  if (from_bytes >= sizeof(*v4) && from->ss_family == AF_INET) {
    memcpy(address, &v4->sin_addr, 4);
    *port = ntohs(v4->sin_port);
    *family = 4;
  } else if (from_bytes >= sizeof(*v6) && from->ss_family == AF_INET6) {
    *port = ntohs(v6->sin6_port);
    *family = IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) ? 4 : 6;
    if (*family == 4)
      memcpy(address, (const uint8_t *)&v6->sin6_addr + 12, 4);
    else
      memcpy(address, &v6->sin6_addr, 16);
  }
}

int npi_connection_open(struct npi_ingest_listener *listener, int fd, const struct sockaddr_storage *from,
                        socklen_t from_bytes) {
  struct npi_ingest *ingest = listener->ingest;
  struct npi_ingest_connection *connection = calloc(1, sizeof(*connection));

  if (!connection)
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a connection of listener %s", listener->config.name);
  connection->source.fd = fd;
  connection->source.kind = NPI_SOURCE_STREAM;
  connection->source.counters = listener->counters;
  connection->listener = listener;
  connection->number = ingest->worker << 48 | ++ingest->next_connection;
  npi_ingest_address(from, from_bytes, connection->address, &connection->port, &connection->family);
  npi_link_init(&connection->in_all);
  npi_link_init(&connection->in_idle);
  npi_link_init(&connection->in_unfinished);
  npi_link_init(&connection->in_waiting);
  npi_link_put_last(&listener->all, &connection->in_all);
  listener->n_connections++;
  ingest->n_connections++;
  ingest->n_open++;
  npi_connection_active(connection);
  ingest->backend->operations->start(ingest->backend, &connection->source);
  return 0;
}

void npi_connection_active(struct npi_ingest_connection *connection) {
  connection->active_ns = connection->listener->ingest->now_ns;
  if (connection->is_waiting) return; /* bytes that were on their way when it was stopped: it must not idle out */
  npi_link_put_last(&connection->listener->idle, &connection->in_idle);
}

void npi_connection_unfinished(struct npi_ingest_connection *connection, int is_unfinished, int is_new) {
  struct npi_ingest *ingest = connection->listener->ingest;

  if (!is_unfinished) {
    npi_link_take_out(&connection->in_unfinished);
    return;
  }
  if (is_new || npi_link_alone(&connection->in_unfinished)) {
    connection->begun_ns = ingest->now_ns;
    npi_link_put_last(&connection->listener->unfinished, &connection->in_unfinished);
  }
  if (npi_carry_is_over(&ingest->pool)) npi_connections_shrink(ingest);
}

void npi_connection_wait(struct npi_ingest_connection *connection) {
  struct npi_ingest *ingest = connection->listener->ingest;

  if (connection->is_waiting) return;
  connection->is_waiting = 1;
  npi_link_put_last(&connection->listener->waiting, &connection->in_waiting);
  /* It is we who keep it waiting now. */
  npi_link_take_out(&connection->in_idle);
  npi_link_take_out(&connection->in_unfinished);
  ingest->backend->operations->stop(ingest->backend, &connection->source);
}

static void count_close(struct npi_ingest_listener *listener, enum npi_close_reason reason) {
  npi_listener_count(listener, NPI_LISTENER_CLOSED, 1);
  switch (reason) {
    case NPI_CLOSE_END: break;
    case NPI_CLOSE_BAD: npi_listener_count(listener, NPI_LISTENER_CLOSED_BAD, 1); break;
    case NPI_CLOSE_IDLE: npi_listener_count(listener, NPI_LISTENER_CLOSED_IDLE, 1); break;
    case NPI_CLOSE_SLOW: npi_listener_count(listener, NPI_LISTENER_CLOSED_SLOW, 1); break;
  }
}

void npi_connection_close(struct npi_ingest_connection *connection, enum npi_close_reason reason) {
  struct npi_ingest_listener *listener = connection->listener;
  struct npi_ingest *ingest = listener->ingest;

  if (connection->source.closing) return;
  count_close(listener, reason);
  if (connection->holds_frame) { /* it goes with its connection */
    connection->holds_frame = 0;
    npi_listener_set(listener, NPI_LISTENER_HELD, npi_load_relaxed_u64(&listener->counters[NPI_LISTENER_HELD]) - 1);
    npi_listener_count(listener, NPI_LISTENER_DROPPED_POOL, 1);
    ingest->sink.skip(ingest->sink.context, listener->index, 1);
  }
  if (ingest->sweep == &connection->in_all) ingest->sweep = connection->in_all.after;
  npi_link_take_out(&connection->in_all);
  npi_link_take_out(&connection->in_idle);
  npi_link_take_out(&connection->in_unfinished);
  npi_link_take_out(&connection->in_waiting);
  npi_carry_drop(&ingest->pool, &connection->carry);
  listener->n_connections--;
  ingest->n_connections--;
  ingest->backend->operations->close(ingest->backend, &connection->source);
}

static void log_close(const struct npi_ingest_connection *connection, const char *why) {
  npi_log(NPI_LOG_DEBUG, "ingest.closed", "listener=%s connection=%" PRIu64 " reason=%s",
          connection->listener->config.name, connection->number & UINT64_C(0xffffffffffff), why);
}

uint64_t npi_connections_expire(struct npi_ingest_listener *listener) {
  uint64_t now = listener->ingest->now_ns;
  uint64_t idle_ns = listener->config.idle_timeout_ms * NS_PER_MS;
  uint64_t frame_ns = listener->config.frame_timeout_ms * NS_PER_MS;
  uint64_t next = UINT64_MAX;

  while (frame_ns > 0 && !npi_link_alone(&listener->unfinished)) {
    struct npi_ingest_connection *connection =
        NPI_LINK_OBJECT(listener->unfinished.after, struct npi_ingest_connection, in_unfinished);
    if (connection->begun_ns + frame_ns > now) {
      next = connection->begun_ns + frame_ns;
      break;
    }
    log_close(connection, "frame_timeout");
    npi_listener_count(listener, NPI_LISTENER_PARTIAL_AT_END, 1);
    npi_connection_close(connection, NPI_CLOSE_SLOW);
  }
  while (idle_ns > 0 && !npi_link_alone(&listener->idle)) {
    struct npi_ingest_connection *connection =
        NPI_LINK_OBJECT(listener->idle.after, struct npi_ingest_connection, in_idle);
    if (connection->active_ns + idle_ns > now) {
      if (connection->active_ns + idle_ns < next) next = connection->active_ns + idle_ns;
      break;
    }
    log_close(connection, "idle_timeout");
    if (connection->carry.bytes) npi_listener_count(listener, NPI_LISTENER_PARTIAL_AT_END, 1);
    npi_connection_close(connection, NPI_CLOSE_IDLE);
  }
  return next;
}

/* What is held for paused listeners counts in the pool, but is not theirs. */
static uint64_t unfinished_bytes(const struct npi_ingest *ingest) {
  uint64_t bytes = 0;

  for (uint32_t i = 0; i < ingest->n_listeners; i++) {
    const struct npi_ingest_link *list = &ingest->listeners[i].unfinished;
    for (const struct npi_ingest_link *link = list->after; link != list; link = link->after)
      bytes += NPI_LINK_OBJECT(link, struct npi_ingest_connection, in_unfinished)->carry.capacity;
  }
  return bytes;
}

void npi_connections_shrink(struct npi_ingest *ingest) {
  uint64_t bytes = unfinished_bytes(ingest);

  while (bytes > ingest->pool.limit_bytes) {
    struct npi_ingest_connection *oldest = NULL;

    for (uint32_t i = 0; i < ingest->n_listeners; i++) {
      struct npi_ingest_listener *listener = &ingest->listeners[i];
      struct npi_ingest_connection *first;

      if (npi_link_alone(&listener->unfinished)) continue;
      first = NPI_LINK_OBJECT(listener->unfinished.after, struct npi_ingest_connection, in_unfinished);
      if (!oldest || first->begun_ns < oldest->begun_ns) oldest = first;
    }
    if (!oldest) return;
    npi_log(NPI_LOG_WARNING, "ingest.carry_limit",
            "listener=%s connection=%" PRIu64 " used=%" PRIu64 " limit=%" PRIu64
            " reason=\"unfinished frames use up their memory; the oldest is closed\"",
            oldest->listener->config.name, oldest->number & UINT64_C(0xffffffffffff), bytes, ingest->pool.limit_bytes);
    bytes -= oldest->carry.capacity;
    npi_listener_count(oldest->listener, NPI_LISTENER_PARTIAL_AT_END, 1);
    npi_connection_close(oldest, NPI_CLOSE_SLOW);
  }
}

/* The next connection in the round of all listeners; NULL: the round is over. */
static struct npi_ingest_connection *sweep_next(struct npi_ingest *ingest) {
  while (ingest->sweep_listener < ingest->n_listeners) {
    struct npi_ingest_listener *listener = &ingest->listeners[ingest->sweep_listener];

    if (!ingest->sweep) ingest->sweep = listener->all.after;
    if (ingest->sweep != &listener->all) {
      struct npi_ingest_connection *connection = NPI_LINK_OBJECT(ingest->sweep, struct npi_ingest_connection, in_all);
      ingest->sweep = ingest->sweep->after;
      return connection;
    }
    ingest->sweep = NULL;
    ingest->sweep_listener++;
  }
  ingest->sweep_listener = 0;
  return NULL;
}

/*
 * Some kernels lose the end of a stream in a multishot receive when data and shutdown come at the same moment, and the
 * connection would stay for ever. poll() sees the end.
 */
void npi_connections_sweep(struct npi_ingest *ingest) {
  struct pollfd polled[SWEEP_BATCH];
  struct npi_ingest_connection *connections[SWEEP_BATCH];
  uint32_t n = 0;

  if (!ingest->backend->operations->kick || ingest->n_connections == 0) return;
  while (n < SWEEP_BATCH) {
    struct npi_ingest_connection *connection = sweep_next(ingest);

    if (!connection) break;
    if (connection->is_waiting || connection->active_ns + 1000 * NS_PER_MS > ingest->now_ns) continue;
    connections[n] = connection;
    polled[n++] = (struct pollfd){.fd = connection->source.fd, .events = POLLIN | POLLRDHUP};
  }
  if (n == 0 || poll(polled, n, 0) <= 0) return;
  for (uint32_t i = 0; i < n; i++)
    if (polled[i].revents) ingest->backend->operations->kick(ingest->backend, &connections[i]->source);
}
