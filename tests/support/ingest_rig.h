/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An ingest engine with real sockets and a sink that only remembers: what the ingest tests have in common. The engine,
 * the sink and the senders run in one thread, so that a test is a story without races of its own.
 */
#ifndef NUMAPOOL_TESTS_INGEST_RIG_H
#define NUMAPOOL_TESTS_INGEST_RIG_H

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/status.h"
#include "core/counters.h"
#include "daemon/ingest.h"
#include "daemon/ingest_probe.h"
#include "numapool/status.h"
#include "os/os_clock.h"
#include "tests/support/framing_feed.h"

enum { RIG_LISTENERS = 4, RIG_CONNECTIONS = 4096 };

/* One way to run the engine. All of them must behave the same. */
struct rig_variant {
  char name[32];
  enum npi_config_ingest backend;
  uint32_t staging_buffers;
  uint32_t staging_bytes;
  uint32_t cq_entries;
  uint32_t mask; /* NUMAPOOL_URING_MASK */
};

#define RIG_VARIANTS                                                                                \
  {"io_uring", NPI_CONFIG_INGEST_IO_URING, 64, 16384, 0, NPI_URING_ALL},                            \
      {"io_uring, 4 small buffers", NPI_CONFIG_INGEST_IO_URING, 4, 512, 32, NPI_URING_ALL},         \
      {"io_uring, no deferred work", NPI_CONFIG_INGEST_IO_URING, 64, 16384, 0, NPI_URING_ALL - 1},  \
      {"io_uring, many issuers", NPI_CONFIG_INGEST_IO_URING, 64, 16384, 0, NPI_URING_ALL - 3},      \
      {"io_uring, no flags, 4 small", NPI_CONFIG_INGEST_IO_URING, 4, 512, 32, NPI_URING_MULTISHOT}, \
      {"epoll", NPI_CONFIG_INGEST_EPOLL, 64, 16384, 0, 0}, {                                        \
    "epoll, small reads", NPI_CONFIG_INGEST_EPOLL, 4, 128, 0, 0                                     \
  }

struct rig {
  struct npi_ingest *ingest;
  struct npi_listener_config config[RIG_LISTENERS];
  struct npi_listener_counters counters[RIG_LISTENERS];
  int fd[RIG_LISTENERS];
  struct sockaddr_storage place[RIG_LISTENERS]; /* where the listener is reached */
  socklen_t place_bytes[RIG_LISTENERS];
  uint32_t n_listeners;
  uint64_t carry_bytes;
  /* the sink's memory */
  struct feed_account account[RIG_CONNECTIONS]; /* by connection; 0: datagrams */
  struct npi_ingest_event last;
  uint64_t n_published;
  uint64_t n_skipped;
  uint64_t n_flushes;
  uint64_t n_refused;
  /* its will */
  uint32_t refuse_one_in; /* 0: never */
  int refuse_always;      /* a status */
  int refuse_next;        /* 1: the next event */
  uint64_t seed;
};

static inline uint64_t rig_random(struct rig *rig) {
  rig->seed = rig->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return rig->seed >> 33;
}

static inline int rig_publish(void *context, uint32_t listener, const struct npi_ingest_event *event) {
  struct rig *rig = context;
  uint64_t connection = event->connection & UINT64_C(0xffffffffffff);
  struct feed_account *account;

  (void)listener;
  if (rig->refuse_always || rig->refuse_next || (rig->refuse_one_in && rig_random(rig) % rig->refuse_one_in == 0)) {
    rig->n_refused++;
    rig->refuse_next = 0;
    return rig->refuse_always ? rig->refuse_always : rig_random(rig) % 2 ? NP_FULL : NP_EMPTY;
  }
  cr_assert_lt(connection, RIG_CONNECTIONS);
  account = &rig->account[connection];
  feed_append(account, &event->priority, sizeof(event->priority));
  feed_append(account, &event->topic_bytes, sizeof(event->topic_bytes));
  feed_append(account, event->topic, event->topic_bytes);
  feed_append(account, &event->payload_bytes, sizeof(event->payload_bytes));
  feed_append(account, event->payload, event->payload_bytes);
  account->n_frames++;
  rig->last = *event;
  rig->n_published++;
  return 0;
}

/* As a worker's: it stops before one that it would refuse, or that only the other way can publish. */
static inline uint32_t rig_publish_batch(void *context, uint32_t listener, const struct npi_ingest_event *like,
                                         const struct npi_payload *payloads, uint32_t n) {
  struct rig *rig = context;
  struct npi_ingest_event event = *like;
  uint32_t i = 0;

  cr_assert_leq(n, NPI_BATCH_MAX);
  for (; i < n; i++) {
    event.payload = payloads[i].bytes;
    event.payload_bytes = payloads[i].size;
    event.topic = NULL;
    event.topic_bytes = 0;
    if (rig_publish(context, listener, &event) == 0) continue;
    rig->refuse_next = rig_random(rig) % 4 > 0;
    break;
  }
  return i;
}

static inline void rig_skip(void *context, uint32_t listener, uint64_t n) {
  (void)listener;
  ((struct rig *)context)->n_skipped += n;
}

static inline void rig_flush(void *context) {
  ((struct rig *)context)->n_flushes++;
}

static inline struct rig *rig_new(void) {
  struct rig *rig = calloc(1, sizeof(*rig));

  cr_assert_not_null(rig);
  rig->seed = 4711;
  return rig;
}

/* Adds a listener of a kind that tests may change before rig_start(). Returns its index. */
static inline uint32_t rig_listen(struct rig *rig, enum npi_config_proto proto, enum npi_framing_kind framing) {
  uint32_t i = rig->n_listeners++;
  struct npi_listener_config *config = &rig->config[i];
  int type = npi_config_proto_is_datagram(proto) ? SOCK_DGRAM : SOCK_STREAM;
  struct sockaddr_in internet = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct sockaddr_un local = {.sun_family = AF_UNIX};

  memset(config, 0, sizeof(*config));
  snprintf(config->name, sizeof(config->name), "l%u", i);
  snprintf(config->channel, sizeof(config->channel), "c%u", i);
  config->proto = proto;
  config->on_full = type == SOCK_DGRAM ? NPI_CONFIG_LISTENER_KERNEL_DROP : NPI_CONFIG_LISTENER_PAUSE;
  config->max_frame = 20000;
  config->max_connections = 3000;
  config->framing = (struct npi_framing){.kind = framing, .prefix_bytes = 4, .big_endian = 1, .fixed_bytes = 97};
  config->framing.max_frame = config->max_frame;
  if (npi_config_proto_is_unix(proto)) {
    rig->fd[i] = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    /* The kernel chooses a free name in the abstract namespace. */
    cr_assert_eq(bind(rig->fd[i], (struct sockaddr *)&local, sizeof(local.sun_family)), 0);
  } else {
    rig->fd[i] = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(rig->fd[i], (struct sockaddr *)&internet, sizeof(internet)), 0);
  }
  if (type == SOCK_STREAM) cr_assert_eq(listen(rig->fd[i], 4096), 0);
  rig->place_bytes[i] = sizeof(rig->place[i]);
  cr_assert_eq(getsockname(rig->fd[i], (struct sockaddr *)&rig->place[i], &rig->place_bytes[i]), 0);
  return i;
}

static inline int rig_try_start(struct rig *rig, const struct rig_variant *variant) {
  struct npi_ingest_listener_options listeners[RIG_LISTENERS];
  struct npi_ingest_options options = {
      .backend = variant->backend,
      .staging_buffers = variant->staging_buffers,
      .staging_bytes = variant->staging_bytes,
      .cq_entries = variant->cq_entries,
      .carry_bytes = rig->carry_bytes,
      .worker = 3,
      .sink = {.context = rig,
               .publish = rig_publish,
               .publish_batch = rig_publish_batch,
               .skip = rig_skip,
               .flush = rig_flush},
      .listeners = listeners,
      .n_listeners = rig->n_listeners,
  };
  char mask[16];

  snprintf(mask, sizeof(mask), "%u", variant->mask);
  setenv("NUMAPOOL_URING_MASK", mask, 1);
  for (uint32_t i = 0; i < rig->n_listeners; i++)
    listeners[i] = (struct npi_ingest_listener_options){
        .config = &rig->config[i], .counters = &rig->counters[i], .fd = rig->fd[i]};
  return npi_ingest_new(&rig->ingest, &options);
}

static inline void rig_start(struct rig *rig, const struct rig_variant *variant) {
  int result = rig_try_start(rig, variant);

  cr_assert_eq(result, 0, "%s: %s", variant->name, npi_detail());
  if (variant->backend == NPI_CONFIG_INGEST_IO_URING)
    cr_assert_eq(npi_ingest_features(rig->ingest) & ~variant->mask, 0, "a ring has features that were masked");
}

static inline void rig_free(struct rig *rig) {
  rig->ingest = npi_ingest_free(rig->ingest);
  for (size_t i = 0; i < RIG_CONNECTIONS; i++) feed_account_free(&rig->account[i]);
  free(rig);
}

static inline uint64_t rig_count(const struct rig *rig, uint32_t listener, enum npi_counter row) {
  return npi_load_relaxed_u64(&rig->counters[listener].value[row]);
}

/* received = published + dropped + held, always. */
static inline void rig_check_balance(const struct rig *rig) {
  for (uint32_t i = 0; i < rig->n_listeners; i++) {
    uint64_t sum = rig_count(rig, i, NPI_LISTENER_PUBLISHED) + rig_count(rig, i, NPI_LISTENER_DROPPED_POOL) +
                   rig_count(rig, i, NPI_LISTENER_DROPPED_CREDIT) + rig_count(rig, i, NPI_LISTENER_HELD);
    cr_assert_eq(rig_count(rig, i, NPI_LISTENER_RECEIVED), sum, "listener %u: received %lu, accounted for %lu", i,
                 (unsigned long)rig_count(rig, i, NPI_LISTENER_RECEIVED), (unsigned long)sum);
  }
}

static inline void rig_turn(struct rig *rig) {
  cr_assert_eq(npi_ingest_turn(rig->ingest, 1000000), 0, "%s", npi_detail());
  rig_check_balance(rig);
}

/* Turns until the condition holds, for at most 20 seconds. */
#define RIG_UNTIL(rig, condition)                                                        \
  do {                                                                                   \
    uint64_t rig_deadline = npi_clock_monotonic() + UINT64_C(20000000000);               \
    while (!(condition)) {                                                               \
      cr_assert_lt(npi_clock_monotonic(), rig_deadline, "never came true: " #condition); \
      rig_turn(rig);                                                                     \
    }                                                                                    \
  } while (0)

/* Some turns in which nothing more is expected. */
static inline void rig_settle(struct rig *rig) {
  for (int i = 0; i < 20; i++) rig_turn(rig);
}

/* A sender's socket, connected and non-blocking. */
static inline int rig_connect(struct rig *rig, uint32_t listener) {
  int type = npi_config_proto_is_datagram(rig->config[listener].proto) ? SOCK_DGRAM : SOCK_STREAM;
  int fd = socket(rig->place[listener].ss_family, type | SOCK_CLOEXEC, 0);

  cr_assert_geq(fd, 0, "socket: %s", strerror(errno));
  cr_assert_eq(connect(fd, (struct sockaddr *)&rig->place[listener], rig->place_bytes[listener]), 0, "connect: %s",
               strerror(errno));
  cr_assert_eq(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
  return fd;
}

/* Sends all; lets the engine run while the socket is full. */
static inline void rig_send(struct rig *rig, int fd, const void *bytes, size_t n) {
  const uint8_t *at = bytes;

  while (n > 0) {
    ssize_t sent = send(fd, at, n, MSG_NOSIGNAL);
    if (sent < 0) {
      cr_assert(errno == EAGAIN || errno == ENOBUFS, "send: %s", strerror(errno));
      rig_turn(rig);
      continue;
    }
    at += sent;
    n -= (size_t)sent;
  }
}

#endif
