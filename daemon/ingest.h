/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ingest engine: sockets on one side, whole frames on the other. One thread, one loop; the worker process wraps it.
 *
 * Bytes are received into a small private staging area, decoded there and copied once, by the sink, into a slot of
 * the fitting class: a client that can map the slots never sees bytes that are still being parsed, and small slots
 * are dense. What an event passes: backend (staging) -> stream or datagram (decoded) -> deliver (on_full) -> sink.
 *
 * Each frame is counted once: received = published + dropped_pool + dropped_credit + held.
 */
#ifndef NPI_DAEMON_INGEST_H
#define NPI_DAEMON_INGEST_H

#include <stddef.h>
#include <stdint.h>

#include "core/flow_batch.h"
#include "daemon/config.h"
#include "shm/layout.h"

/* A whole frame and where it came from. The bytes live only during the call. */
struct npi_ingest_event {
  const uint8_t *payload;
  uint64_t payload_bytes;
  const uint8_t *topic; /* NULL without one */
  uint32_t topic_bytes;
  uint8_t priority;
  uint8_t family; /* as struct npi_slot_header */
  uint16_t port;
  uint64_t time_ns;
  uint64_t connection; /* 0: a datagram */
  uint8_t address[16];
};

/* Where events go. The worker's sink publishes them; tests look at them. listener is an index of the engine. */
struct npi_ingest_sink {
  void *context;
  /* 0; NP_FULL: no credit, NP_EMPTY: no slot: the same event is offered again later, or dropped, as on_full says.
   * NP_ERR_TOO_LARGE: never fits. Other failures count as NP_EMPTY. */
  int (*publish)(void *context, uint32_t listener, const struct npi_ingest_event *event);
  /* The quick way for up to NPI_BATCH_MAX events without a topic, all else as in `like`. Returns how many of the
   * front are published; what is missing for the next one, publish() says. NULL: there is none */
  uint32_t (*publish_batch)(void *context, uint32_t listener, const struct npi_ingest_event *like,
                            const struct npi_payload *payloads, uint32_t n);
  /* n events of the listener were dropped: subscribers are to see a gap */
  void (*skip)(void *context, uint32_t listener, uint64_t n);
  /* the end of a turn in which something was published: wake whoever sleeps */
  void (*flush)(void *context);
};

struct npi_ingest_listener_options {
  const struct npi_listener_config *config; /* copied */
  struct npi_listener_counters *counters;   /* written by the engine alone */
  int fd;                                   /* bound, listening; becomes the engine's */
  uint32_t kernel_drops_before;             /* what the socket had counted that is accounted for already */
};

struct npi_ingest_options {
  enum npi_config_ingest backend;
  uint32_t staging_buffers;
  uint64_t staging_bytes;
  uint32_t worker;      /* number of the worker, part of connection numbers */
  uint32_t cq_entries;  /* 0; tests choose too little */
  uint64_t carry_bytes; /* most memory for unfinished frames of all connections; 0: 64 MiB */
  struct npi_ingest_sink sink;
  const struct npi_ingest_listener_options *listeners;
  uint32_t n_listeners;
};

struct npi_ingest;

/* On failure nothing is left behind and the descriptors of the listeners are still the caller's. */
int npi_ingest_new(struct npi_ingest **ingest, const struct npi_ingest_options *options);

/* Closes all that is open, without looking for what may still be in sockets (npi_ingest_drain does). Returns NULL. */
struct npi_ingest *npi_ingest_free(struct npi_ingest *ingest);

/*
 * One turn: sleeps until something happens, or a deadline of its own, or at most max_wait_ns; then works on what came.
 * < 0: the backend failed for good.
 */
int npi_ingest_turn(struct npi_ingest *ingest, uint64_t max_wait_ns);

/* ready(context) is called in a turn while fd is readable. The descriptor stays the caller's. */
int npi_ingest_watch(struct npi_ingest *ingest, int fd, void (*ready)(void *context), void *context);

/* The first descriptor that is watched is replaced by another; whether it was stopped or not, this one is watched. */
int npi_ingest_watch_instead(struct npi_ingest *ingest, int fd);

/* For descriptors that ended, which are readable for ever: no callback of npi_ingest_watch comes any more. */
void npi_ingest_stop_watching(struct npi_ingest *ingest);

/* fd is readable when a sink that said NP_FULL or NP_EMPTY may go on; watched only while something is paused. */
int npi_ingest_watch_credit(struct npi_ingest *ingest, int fd);

/*
 * The end: takes no new connections, reads what has arrived, publishes what is held, waiting for slots and credits
 * until deadline_ns (monotonic), then counts the rest as dropped; closes all. Turns are over after it.
 */
int npi_ingest_drain(struct npi_ingest *ingest, uint64_t deadline_ns);

uint32_t npi_ingest_backend_number(const struct npi_ingest *ingest); /* 1 io_uring, 2 epoll */
uint32_t npi_ingest_features(const struct npi_ingest *ingest);
uint32_t npi_ingest_connections(const struct npi_ingest *ingest);
uint64_t npi_ingest_carry_bytes(const struct npi_ingest *ingest); /* in use for unfinished frames and held bytes */

#endif
