/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The epoll backend: for kernels, containers and hosts without io_uring. Level-triggered; datagrams in batches of
 * recvmmsg, streams with recv into one large buffer that all share.
 *
 * A paused source is taken out of the set, not masked: epoll reports a hang-up whatever the mask, and a paused
 * connection whose peer left would keep the loop spinning.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/align.h"
#include "base/status.h"
#include "core/counters.h"
#include "daemon/ingest_backend.h"
#include "os/os_clock.h"

enum {
  EVENTS = 256,
  BATCH = 64,             /* datagrams in one recvmmsg */
  BATCHES = 4,            /* of one source in a turn: 256 datagrams, then the others */
  RECEIVES = 4,           /* of one stream in a turn */
  STREAM_BYTES = 1 << 16, /* at least; a large read costs less for each byte */
  CONTROL_BYTES = 32,     /* one SO_TIMESTAMPNS */
  ERROR_DELAY_MS = 10
};

struct epoll {
  struct npi_ingest_backend base;
  struct npi_ingest_handler handler;
  struct npi_ingest_source *closing; /* to be ended at the end of the turn */
  struct npi_ingest_source *delayed; /* to be started again after an error */
  uint8_t *stream_memory;
  uint8_t *datagram_memory;
  size_t stream_bytes;
  size_t datagram_bytes; /* of one datagram */
  size_t datagram_stride;
  int fd;
  struct epoll_event events[EVENTS];
  struct mmsghdr messages[BATCH];
  struct iovec parts[BATCH];
  struct sockaddr_storage names[BATCH];
  _Alignas(struct cmsghdr) uint8_t controls[BATCH][CONTROL_BYTES];
};

static void add(struct epoll *epoll, struct npi_ingest_source *source) {
  struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = source}};

  if (source->armed || epoll_ctl(epoll->fd, EPOLL_CTL_ADD, source->fd, &event) < 0) return;
  source->armed = 1;
  if (source->rearm && source->counters && source->kind != NPI_SOURCE_WATCH)
    npi_count_add(&source->counters[NPI_LISTENER_REARMS], 1);
  source->rearm = 1;
}

static void take_out(struct epoll *epoll, struct npi_ingest_source *source) {
  if (!source->armed) return;
  epoll_ctl(epoll->fd, EPOLL_CTL_DEL, source->fd, NULL);
  source->armed = 0;
}

static void epoll_start(struct npi_ingest_backend *backend, struct npi_ingest_source *source) {
  source->wanted = 1;
  add((struct epoll *)backend, source);
}

static void epoll_stop(struct npi_ingest_backend *backend, struct npi_ingest_source *source) {
  source->wanted = 0;
  take_out((struct epoll *)backend, source);
}

static void forget_delayed(struct epoll *epoll, struct npi_ingest_source *source) {
  struct npi_ingest_source **place = &epoll->delayed;

  if (!source->queued) return;
  while (*place && *place != source) place = &(*place)->next;
  if (*place) *place = source->next;
  source->queued = 0;
}

static void epoll_close(struct npi_ingest_backend *backend, struct npi_ingest_source *source) {
  struct epoll *epoll = (struct epoll *)backend;

  if (source->closing) return;
  epoll_stop(backend, source);
  forget_delayed(epoll, source);
  source->closing = 1;
  source->next = epoll->closing;
  epoll->closing = source;
}

/* Out of the set for a moment: a socket that only fails would otherwise keep the loop spinning. */
static void delay(struct epoll *epoll, struct npi_ingest_source *source) {
  take_out(epoll, source);
  if (source->queued) return;
  source->queued = 1;
  source->not_before_ns = npi_clock_monotonic() + UINT64_C(1000000) * ERROR_DELAY_MS;
  source->next = epoll->delayed;
  epoll->delayed = source;
}

static void start_delayed(struct epoll *epoll, uint64_t *timeout_ns) {
  struct npi_ingest_source **place = &epoll->delayed;
  uint64_t now = epoll->delayed ? npi_clock_monotonic() : 0;

  while (*place) {
    struct npi_ingest_source *source = *place;
    if (source->not_before_ns > now) {
      if (source->not_before_ns - now < *timeout_ns) *timeout_ns = source->not_before_ns - now;
      place = &source->next;
      continue;
    }
    *place = source->next;
    source->queued = 0;
    if (source->wanted) add(epoll, source);
  }
}

static void end_closing(struct epoll *epoll) {
  while (epoll->closing) {
    struct npi_ingest_source *source = epoll->closing;
    epoll->closing = source->next;
    close(source->fd);
    source->fd = -1;
    epoll->handler.gone(epoll->handler.context, source);
  }
}

static void read_stream(struct epoll *epoll, struct npi_ingest_source *source) {
  for (int i = 0; i < RECEIVES && source->wanted; i++) {
    ssize_t n = recv(source->fd, epoll->stream_memory, epoll->stream_bytes, MSG_DONTWAIT);

    if (n > 0) {
      epoll->handler.bytes(epoll->handler.context, source, epoll->stream_memory, (size_t)n);
      /* Less than asked for: nothing more was there; what came since is reported again. */
      if ((size_t)n < epoll->stream_bytes) return;
      continue;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    int error_number = n < 0 ? errno : 0;
    epoll_stop(&epoll->base, source);
    epoll->handler.end(epoll->handler.context, source, error_number);
    return;
  }
}

static uint64_t timestamp_of(struct msghdr *message) {
  for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control))
    if (control->cmsg_level == SOL_SOCKET && control->cmsg_type == SO_TIMESTAMPNS) {
      struct timespec time;
      memcpy(&time, CMSG_DATA(control), sizeof(time));
      return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
    }
  return 0;
}

static void give_datagram(struct epoll *epoll, struct npi_ingest_source *source, int i) {
  struct msghdr *message = &epoll->messages[i].msg_hdr;
  uint64_t true_size = epoll->messages[i].msg_len;
  struct npi_ingest_datagram datagram = {
      .bytes = epoll->parts[i].iov_base,
      .size = true_size < epoll->datagram_bytes ? true_size : epoll->datagram_bytes,
      .truncated = (message->msg_flags & MSG_TRUNC) != 0,
      .sender = &epoll->names[i],
      .sender_bytes = message->msg_namelen < sizeof(epoll->names[i]) ? message->msg_namelen : sizeof(epoll->names[i]),
      .time_ns = source->has_timestamps ? timestamp_of(message) : 0,
  };

  epoll->handler.datagram(epoll->handler.context, source, &datagram);
}

static void read_datagrams(struct epoll *epoll, struct npi_ingest_source *source) {
  for (int batch = 0; batch < BATCHES && source->wanted; batch++) {
    int n;

    for (int i = 0; i < BATCH; i++) {
      epoll->messages[i].msg_hdr.msg_namelen = sizeof(epoll->names[i]);
      epoll->messages[i].msg_hdr.msg_controllen = source->has_timestamps ? CONTROL_BYTES : 0;
    }
    n = recvmmsg(source->fd, epoll->messages, BATCH, MSG_DONTWAIT | MSG_TRUNC, NULL);
    if (n < 0) {
      if (errno != EAGAIN && errno != EINTR) delay(epoll, source);
      return;
    }
    for (int i = 0; i < n && !source->closing; i++) give_datagram(epoll, source, i);
    if (n < BATCH) return;
  }
}

static int epoll_turn(struct npi_ingest_backend *backend, uint64_t timeout_ns) {
  struct epoll *epoll = (struct epoll *)backend;
  int n;

  if (epoll->closing) timeout_ns = 0;
  start_delayed(epoll, &timeout_ns);
  if (timeout_ns > UINT64_C(1000000) * 1000 * 3600) timeout_ns = UINT64_C(1000000) * 1000 * 3600;
  n = epoll_wait(epoll->fd, epoll->events, EVENTS, (int)((timeout_ns + 999999) / 1000000));
  epoll->handler.woke(epoll->handler.context);
  if (n < 0 && errno != EINTR) return npi_fail_errno(NP_ERR_SYSTEM, errno, "epoll_wait");
  for (int i = 0; i < n; i++) {
    struct npi_ingest_source *source = epoll->events[i].data.ptr;

    if (!source->wanted || source->closing) continue; /* an earlier callback of this turn stopped it */
    switch (source->kind) {
      case NPI_SOURCE_WATCH: epoll->handler.ready(epoll->handler.context, source); break;
      case NPI_SOURCE_STREAM: read_stream(epoll, source); break;
      case NPI_SOURCE_DATAGRAM: read_datagrams(epoll, source); break;
    }
  }
  end_closing(epoll);
  return 0;
}

static uint32_t epoll_features(const struct npi_ingest_backend *backend) {
  (void)backend;
  return 0;
}

static struct npi_ingest_backend *epoll_free(struct npi_ingest_backend *backend) {
  struct epoll *epoll = (struct epoll *)backend;

  if (!epoll) return NULL;
  if (epoll->fd >= 0) close(epoll->fd);
  if (epoll->stream_memory) munmap(epoll->stream_memory, epoll->stream_bytes);
  if (epoll->datagram_memory) munmap(epoll->datagram_memory, epoll->datagram_stride * BATCH);
  free(epoll);
  return NULL;
}

static int map_private(size_t bytes, uint8_t **memory) {
  void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  if (address == MAP_FAILED) return npi_fail_errno(NP_ERR_NO_MEMORY, errno, "%zu bytes for receive buffers", bytes);
  madvise(address, bytes, MADV_DONTFORK);
  *memory = address;
  return 0;
}

static int map_datagrams(struct epoll *epoll, uint64_t bytes) {
  int result;

  epoll->datagram_bytes = bytes;
  epoll->datagram_stride = npi_round_up(bytes, NPI_CACHE_LINE);
  /* An odd number of cache lines: fronts of buffers do not compete for the same cache sets. */
  if ((epoll->datagram_stride / NPI_CACHE_LINE) % 2 == 0) epoll->datagram_stride += NPI_CACHE_LINE;
  result = map_private(epoll->datagram_stride * BATCH, &epoll->datagram_memory);
  if (result < 0) return result;
  for (int i = 0; i < BATCH; i++) {
    struct msghdr *message = &epoll->messages[i].msg_hdr;
    epoll->parts[i].iov_base = epoll->datagram_memory + (size_t)i * epoll->datagram_stride;
    epoll->parts[i].iov_len = bytes;
    message->msg_iov = &epoll->parts[i];
    message->msg_iovlen = 1;
    message->msg_name = &epoll->names[i];
    message->msg_control = epoll->controls[i];
  }
  return 0;
}

static int epoll_create_backend(struct npi_ingest_backend **backend, const struct npi_ingest_backend_options *options) {
  struct epoll *epoll = calloc(1, sizeof(*epoll));
  int result;

  *backend = NULL;
  if (!epoll) return npi_fail(NP_ERR_NO_MEMORY, "no memory for the epoll backend");
  epoll->base.operations = &npi_ingest_epoll;
  epoll->handler = options->handler;
  epoll->fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll->fd < 0) {
    result = npi_fail_errno(NP_ERR_SYSTEM, errno, "epoll_create1");
    goto fail;
  }
  /* Tests ask for a few small buffers, and get small reads. */
  epoll->stream_bytes = options->staging_buffers * options->staging_bytes;
  if (epoll->stream_bytes > STREAM_BYTES)
    epoll->stream_bytes = options->staging_bytes > STREAM_BYTES ? options->staging_bytes : STREAM_BYTES;
  result = map_private(epoll->stream_bytes, &epoll->stream_memory);
  if (result < 0) goto fail;
  if (options->datagram_bytes > 0) result = map_datagrams(epoll, options->datagram_bytes);
  if (result < 0) goto fail;
  *backend = &epoll->base;
  return 0;

fail:
  epoll_free(&epoll->base);
  return result;
}

const struct npi_ingest_backend_operations npi_ingest_epoll = {
    .name = "epoll",
    .number = 2,
    .create = epoll_create_backend,
    .free = epoll_free,
    .features = epoll_features,
    .start = epoll_start,
    .stop = epoll_stop,
    .close = epoll_close,
    .kick = NULL,
    .turn = epoll_turn,
};
