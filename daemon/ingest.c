/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's life and its loop: what the backend reports goes to the part that knows it; deadlines in between. */
#include "daemon/ingest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/ingest_internal.h"
#include "daemon/ingest_probe.h"
#include "os/os_clock.h"

enum {
  DATAGRAM_BYTES_MAX = 65536,
  IDLE_CREDITS_MAX = 16,
  DRAIN_ACCEPTS = 64 /* batches of 64: what a queue held when the end began, and an end also where more keep coming */
};

#define TICK_NS          UINT64_C(1000000000)
#define CARRY_BYTES      (UINT64_C(64) << 20)
#define SHUTDOWN_TURN_NS UINT64_C(1000000)

/* ---- callbacks of the backend ------------------------------------------------------------------------ */

static void on_woke(void *context) {
  struct npi_ingest *ingest = context;

  ingest->now_ns = npi_clock_monotonic();
  ingest->time_ns = npi_clock_realtime();
}

static void on_credit(struct npi_ingest *ingest) {
  uint32_t n_paused = ingest->n_paused;

  for (uint32_t i = 0; i < ingest->n_listeners; i++) npi_ingest_retry(&ingest->listeners[i]);
  /* Readable and yet nothing goes on, again and again: then the timed retries have to do. */
  ingest->n_idle_credits = ingest->n_paused < n_paused || ingest->has_published ? 0 : ingest->n_idle_credits + 1;
  if (ingest->n_idle_credits > IDLE_CREDITS_MAX)
    ingest->backend->operations->stop(ingest->backend, &ingest->credit.source);
}

static void on_ready(void *context, struct npi_ingest_source *source) {
  struct npi_ingest *ingest = context;

  if (source == &ingest->credit.source) {
    ingest->has_worked = 1;
    on_credit(ingest);
  } else if (source >= &ingest->watches[0].source && source <= &ingest->watches[NPI_INGEST_WATCHES - 1].source) {
    struct npi_ingest_watch_source *watch = (struct npi_ingest_watch_source *)source;
    watch->ready(watch->context);
  } else {
    ingest->has_worked = 1;
    npi_ingest_accept((struct npi_ingest_listener *)source);
  }
}

static void on_bytes(void *context, struct npi_ingest_source *source, const uint8_t *bytes, size_t n) {
  ((struct npi_ingest *)context)->has_worked = 1;
  npi_ingest_stream_bytes((struct npi_ingest_connection *)source, bytes, n);
}

static void on_datagram(void *context, struct npi_ingest_source *source, const struct npi_ingest_datagram *datagram) {
  ((struct npi_ingest *)context)->has_worked = 1;
  npi_ingest_datagram((struct npi_ingest_listener *)source, datagram);
}

static void on_end(void *context, struct npi_ingest_source *source, int error_number) {
  ((struct npi_ingest *)context)->has_worked = 1;
  npi_ingest_stream_end((struct npi_ingest_connection *)source, error_number);
}

static void on_gone(void *context, struct npi_ingest_source *source) {
  struct npi_ingest *ingest = context;

  ingest->n_open--;
  if (source->kind == NPI_SOURCE_STREAM) free(source); /* first in its connection */
}

/* ---- life ------------------------------------------------------------------------------------------- */

static void init_listener(struct npi_ingest *ingest, uint32_t index,
                          const struct npi_ingest_listener_options *options) {
  struct npi_ingest_listener *listener = &ingest->listeners[index];

  listener->ingest = ingest;
  listener->config = *options->config;
  listener->counters = options->counters->value;
  listener->index = index;
  listener->is_datagram = (uint32_t)npi_config_proto_is_datagram(options->config->proto);
  listener->source.fd = options->fd;
  listener->source.kind = listener->is_datagram ? NPI_SOURCE_DATAGRAM : NPI_SOURCE_WATCH;
  listener->source.counters = listener->counters;
  listener->spare_fd = -1;
  listener->accept_again_ns = UINT64_MAX;
  listener->drops_seen = options->kernel_drops_before;
  npi_link_init(&listener->all);
  npi_link_init(&listener->idle);
  npi_link_init(&listener->unfinished);
  npi_link_init(&listener->waiting);
}

static int prepare_socket(struct npi_ingest_listener *listener) {
  int flags = fcntl(listener->source.fd, F_GETFL);
  int on = 1;

  if (flags < 0 || fcntl(listener->source.fd, F_SETFL, flags | O_NONBLOCK) < 0)
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "listener %s: descriptor %d", listener->config.name,
                          listener->source.fd);
  listener->source.has_timestamps = listener->config.proto == NPI_CONFIG_UDP && listener->config.timestamps;
  if (listener->source.has_timestamps &&
      setsockopt(listener->source.fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)) < 0)
    npi_log(NPI_LOG_WARNING, "ingest.no_timestamps", "listener=%s reason=\"%s\"", listener->config.name,
            strerror(errno));
  if (!listener->is_datagram) listener->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  return 0;
}

static struct npi_ingest_backend_options backend_options(struct npi_ingest *ingest,
                                                         const struct npi_ingest_options *options) {
  struct npi_ingest_backend_options backend = {
      .staging_buffers = options->staging_buffers,
      .staging_bytes = options->staging_bytes,
      .max_sources = options->n_listeners + NPI_INGEST_WATCHES,
      .cq_entries = options->cq_entries,
      .features = NPI_URING_ALL,
      .handler = {.context = ingest,
                  .woke = on_woke,
                  .ready = on_ready,
                  .bytes = on_bytes,
                  .datagram = on_datagram,
                  .end = on_end,
                  .gone = on_gone},
  };

  for (uint32_t i = 0; i < options->n_listeners; i++) {
    const struct npi_listener_config *config = options->listeners[i].config;
    uint64_t bytes = config->framing.kind == NPI_FRAMING_DATAGRAM ? config->framing.max_frame : DATAGRAM_BYTES_MAX;

    if (!npi_config_proto_is_datagram(config->proto)) {
      backend.max_sources += config->max_connections;
      continue;
    }
    /* A datagram of whole frames may hold several of the longest; UDP itself ends below 64 KiB. */
    if (config->framing.kind != NPI_FRAMING_DATAGRAM && config->framing.max_frame > bytes)
      bytes = config->framing.max_frame + npi_framing_overhead_max(&config->framing);
    if (bytes > backend.datagram_bytes) backend.datagram_bytes = bytes;
  }
  return backend;
}

int npi_ingest_new(struct npi_ingest **result_ingest, const struct npi_ingest_options *options) {
  struct npi_ingest *ingest = calloc(1, sizeof(*ingest));
  struct npi_ingest_backend_options backend;
  int result = 0;

  *result_ingest = NULL;
  if (!ingest) return npi_fail(NP_ERR_NO_MEMORY, "no memory for the ingest engine");
  ingest->sink = options->sink;
  ingest->worker = options->worker;
  ingest->pool.limit_bytes = options->carry_bytes ? options->carry_bytes : CARRY_BYTES;
  ingest->credit.source.fd = -1;
  ingest->listeners = calloc(options->n_listeners ? options->n_listeners : 1, sizeof(*ingest->listeners));
  if (!ingest->listeners) {
    result = npi_fail(NP_ERR_NO_MEMORY, "no memory for %u listeners", options->n_listeners);
    goto fail;
  }
  for (uint32_t i = 0; i < options->n_listeners; i++) init_listener(ingest, i, &options->listeners[i]);
  ingest->n_listeners = options->n_listeners;
  for (uint32_t i = 0; i < options->n_listeners && result == 0; i++) result = prepare_socket(&ingest->listeners[i]);
  if (result < 0) goto fail;
  backend = backend_options(ingest, options);
  result = npi_ingest_backend_create(&ingest->backend, options->backend, &backend);
  if (result < 0) goto fail;
  on_woke(ingest);
  ingest->tick_ns = ingest->now_ns + TICK_NS;
  for (uint32_t i = 0; i < ingest->n_listeners; i++) {
    struct npi_ingest_listener *listener = &ingest->listeners[i];
    npi_listener_set(listener, NPI_LISTENER_BACKEND, ingest->backend->operations->number);
    ingest->backend->operations->start(ingest->backend, &listener->source);
    ingest->n_open++;
  }
  *result_ingest = ingest;
  return 0;

fail:
  for (uint32_t i = 0; i < ingest->n_listeners; i++)
    if (ingest->listeners[i].spare_fd >= 0) close(ingest->listeners[i].spare_fd);
  free(ingest->listeners);
  free(ingest);
  return result;
}

static int add_watch(struct npi_ingest *ingest, struct npi_ingest_watch_source *watch, int fd) {
  /* The backend closes what it is given. */
  watch->source.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (watch->source.fd < 0) return npi_fail_errno(NP_ERR_SYSTEM, errno, "a copy of descriptor %d to watch", fd);
  watch->source.kind = NPI_SOURCE_WATCH;
  ingest->n_open++;
  return 0;
}

int npi_ingest_watch(struct npi_ingest *ingest, int fd, void (*ready)(void *context), void *context) {
  struct npi_ingest_watch_source *watch = &ingest->watches[ingest->n_watches];
  int result;

  if (ingest->n_watches == NPI_INGEST_WATCHES)
    return npi_fail(NP_ERR_LIMIT, "%d descriptors are watched", NPI_INGEST_WATCHES);
  watch->ready = ready;
  watch->context = context;
  result = add_watch(ingest, watch, fd);
  if (result < 0) return result;
  ingest->n_watches++;
  ingest->backend->operations->start(ingest->backend, &watch->source);
  return 0;
}

int npi_ingest_watch_instead(struct npi_ingest *ingest, int fd) {
  struct npi_ingest_source *source = &ingest->watches[0].source;

  /* The number stays: a backend that still waits for the old file comes back to this number when that wait is over. */
  ingest->backend->operations->stop(ingest->backend, source);
  if (dup3(fd, source->fd, O_CLOEXEC) < 0) return npi_fail_errno(NP_ERR_SYSTEM, errno, "a copy of descriptor %d", fd);
  ingest->backend->operations->start(ingest->backend, source);
  return 0;
}

void npi_ingest_stop_watching(struct npi_ingest *ingest) {
  for (uint32_t i = 0; i < ingest->n_watches; i++)
    ingest->backend->operations->stop(ingest->backend, &ingest->watches[i].source);
}

int npi_ingest_watch_credit(struct npi_ingest *ingest, int fd) {
  if (ingest->credit.source.fd >= 0) return npi_fail(NP_ERR_STATE, "a descriptor for credits is watched already");
  return add_watch(ingest, &ingest->credit, fd);
}

/* Closes every source and waits until the backend has let go of them. */
static void close_sources(struct npi_ingest *ingest) {
  const struct npi_ingest_backend_operations *operations = ingest->backend->operations;
  uint64_t until = npi_clock_monotonic() + TICK_NS;

  for (uint32_t i = 0; i < ingest->n_listeners; i++) {
    struct npi_ingest_listener *listener = &ingest->listeners[i];
    while (!npi_link_alone(&listener->all))
      npi_connection_close(NPI_LINK_OBJECT(listener->all.after, struct npi_ingest_connection, in_all), NPI_CLOSE_END);
    if (listener->source.fd >= 0 && !listener->source.closing) operations->close(ingest->backend, &listener->source);
  }
  for (uint32_t i = 0; i < ingest->n_watches; i++)
    if (!ingest->watches[i].source.closing) operations->close(ingest->backend, &ingest->watches[i].source);
  if (ingest->credit.source.fd >= 0 && !ingest->credit.source.closing)
    operations->close(ingest->backend, &ingest->credit.source);
  while (ingest->n_open > 0 && npi_clock_monotonic() < until)
    if (operations->turn(ingest->backend, SHUTDOWN_TURN_NS) < 0) break;
}

struct npi_ingest *npi_ingest_free(struct npi_ingest *ingest) {
  if (!ingest) return NULL;
  close_sources(ingest);
  ingest->backend->operations->free(ingest->backend);
  for (uint32_t i = 0; i < ingest->n_listeners; i++) {
    npi_carry_drop(&ingest->pool, &ingest->listeners[i].held);
    if (ingest->listeners[i].spare_fd >= 0) close(ingest->listeners[i].spare_fd);
  }
  npi_carry_pool_deinit(&ingest->pool);
  free(ingest->listeners);
  free(ingest);
  return NULL;
}

/* ---- the loop --------------------------------------------------------------------------------------- */

static void tick(struct npi_ingest *ingest) {
  ingest->tick_ns = ingest->now_ns + TICK_NS;
  for (uint32_t i = 0; i < ingest->n_listeners; i++) npi_ingest_kernel_drops(&ingest->listeners[i]);
  npi_connections_sweep(ingest);
  if (ingest->n_idle_credits > IDLE_CREDITS_MAX && ingest->n_paused > 0) {
    ingest->n_idle_credits = 0;
    ingest->backend->operations->start(ingest->backend, &ingest->credit.source);
  }
}

/* Does what is due and returns when the next thing will be. */
static uint64_t run_deadlines(struct npi_ingest *ingest) {
  uint64_t next;

  if (ingest->now_ns >= ingest->tick_ns) tick(ingest);
  next = ingest->tick_ns;
  for (uint32_t i = 0; i < ingest->n_listeners; i++) {
    struct npi_ingest_listener *listener = &ingest->listeners[i];
    uint64_t expires = npi_connections_expire(listener);

    if (expires < next) next = expires;
    if (listener->is_paused && listener->retry_ns <= ingest->now_ns) npi_ingest_retry(listener);
    if (listener->is_paused && listener->retry_ns < next) next = listener->retry_ns;
    if (listener->accept_again_ns <= ingest->now_ns) {
      listener->accept_again_ns = UINT64_MAX;
      if (!listener->source.closing) ingest->backend->operations->start(ingest->backend, &listener->source);
    }
    if (listener->accept_again_ns < next) next = listener->accept_again_ns;
  }
  return next;
}

static void flush(struct npi_ingest *ingest) {
  if (!ingest->has_published) return;
  ingest->has_published = 0;
  ingest->sink.flush(ingest->sink.context);
}

int npi_ingest_turn(struct npi_ingest *ingest, uint64_t max_wait_ns) {
  uint64_t next = run_deadlines(ingest);
  uint64_t wait = next > ingest->now_ns ? next - ingest->now_ns : 0;
  int result;

  flush(ingest); /* retries publish too */
  ingest->has_worked = 0;
  result = ingest->backend->operations->turn(ingest->backend, wait < max_wait_ns ? wait : max_wait_ns);
  flush(ingest);
  return result;
}

/* ---- the end ---------------------------------------------------------------------------------------- */

/* Whether something that arrived has not been read: of connections still in the queue too, where they are let in. */
static int has_unread(const struct npi_ingest *ingest, int lets_in) {
  for (uint32_t i = 0; i < ingest->n_listeners; i++) {
    const struct npi_ingest_listener *listener = &ingest->listeners[i];
    struct pollfd polled = {.fd = listener->source.fd, .events = POLLIN};

    if (listener->is_paused) return 1;
    if ((listener->is_datagram || lets_in) && poll(&polled, 1, 0) > 0) return 1;
    for (const struct npi_ingest_link *link = listener->all.after; link != &listener->all; link = link->after) {
      polled.fd = NPI_LINK_OBJECT(link, struct npi_ingest_connection, in_all)->source.fd;
      if (poll(&polled, 1, 0) > 0) return 1;
    }
  }
  return 0;
}

/* The time is up: what finds no slot now is dropped and counted. */
static void discard_held(struct npi_ingest *ingest) {
  for (uint32_t i = 0; i < ingest->n_listeners; i++) {
    struct npi_ingest_listener *listener = &ingest->listeners[i];

    listener->is_discarding = 1;
    npi_ingest_retry(listener);
    if (listener->is_datagram) ingest->backend->operations->stop(ingest->backend, &listener->source);
    for (struct npi_ingest_link *link = listener->all.after; link != &listener->all; link = link->after)
      ingest->backend->operations->stop(ingest->backend,
                                        &NPI_LINK_OBJECT(link, struct npi_ingest_connection, in_all)->source);
  }
}

static void count_unfinished(struct npi_ingest_listener *listener) {
  for (struct npi_ingest_link *link = listener->all.after; link != &listener->all; link = link->after)
    if (NPI_LINK_OBJECT(link, struct npi_ingest_connection, in_all)->carry.bytes)
      npi_listener_count(listener, NPI_LISTENER_PARTIAL_AT_END, 1);
}

/* Who is in a queue has sent already, perhaps, and left: to that sender all went well. */
static void empty_queues(struct npi_ingest *ingest) {
  for (uint32_t i = 0; i < ingest->n_listeners; i++) {
    struct npi_ingest_listener *listener = &ingest->listeners[i];
    if (listener->is_datagram) continue;
    npi_ingest_accept(listener);
    listener->accept_again_ns = UINT64_MAX;
    ingest->backend->operations->stop(ingest->backend, &listener->source);
  }
}

int npi_ingest_drain(struct npi_ingest *ingest, uint64_t deadline_ns) {
  int result = 0, n_quiet = 0, n_accepts = DRAIN_ACCEPTS;

  /* Two quiet turns: the first may have brought only what was cancelled or armed again. */
  while (result == 0 && n_quiet < 2 && npi_clock_monotonic() < deadline_ns) {
    if (n_accepts > 0) {
      n_accepts--;
      empty_queues(ingest);
    }
    result = npi_ingest_turn(ingest, SHUTDOWN_TURN_NS);
    n_quiet = ingest->has_worked || has_unread(ingest, n_accepts > 0) ? 0 : n_quiet + 1;
  }
  discard_held(ingest);
  /* What was on its way when reading stopped. */
  for (int i = 0; i < 4 && result == 0; i++) {
    result = ingest->backend->operations->turn(ingest->backend, SHUTDOWN_TURN_NS);
    for (uint32_t j = 0; j < ingest->n_listeners; j++) npi_ingest_retry(&ingest->listeners[j]);
  }
  ingest->has_published = 1;
  flush(ingest);
  for (uint32_t i = 0; i < ingest->n_listeners; i++) {
    count_unfinished(&ingest->listeners[i]);
    npi_ingest_kernel_drops(&ingest->listeners[i]);
  }
  close_sources(ingest);
  return result;
}

uint32_t npi_ingest_backend_number(const struct npi_ingest *ingest) {
  return ingest->backend->operations->number;
}
uint32_t npi_ingest_features(const struct npi_ingest *ingest) {
  return ingest->backend->operations->features(ingest->backend);
}
uint32_t npi_ingest_connections(const struct npi_ingest *ingest) {
  return ingest->n_connections;
}
uint64_t npi_ingest_carry_bytes(const struct npi_ingest *ingest) {
  return ingest->pool.used_bytes;
}
