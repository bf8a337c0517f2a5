/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the ingest engine share. Outside, ingest.h is all there is. */
#ifndef NPI_DAEMON_INGEST_INTERNAL_H
#define NPI_DAEMON_INGEST_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/align.h"
#include "core/counters.h"
#include "daemon/ingest.h"
#include "daemon/ingest_backend.h"

/* ---- lists ------------------------------------------------------------------------------------------
 * Rings of links inside the objects. A link that is in no list points to itself. */
struct npi_ingest_link {
  struct npi_ingest_link *before;
  struct npi_ingest_link *after;
};

static inline void npi_link_init(struct npi_ingest_link *link) {
  link->before = link->after = link;
}
static inline int npi_link_alone(const struct npi_ingest_link *link) {
  return link->after == link;
}
static inline void npi_link_take_out(struct npi_ingest_link *link) {
  link->before->after = link->after;
  link->after->before = link->before;
  npi_link_init(link);
}
static inline void npi_link_put_last(struct npi_ingest_link *list, struct npi_ingest_link *link) {
  npi_link_take_out(link);
  link->before = list->before;
  link->after = list;
  list->before->after = link;
  list->before = link;
}
#define NPI_LINK_OBJECT(link, type, field) ((type *)((char *)(link)-offsetof(type, field)))

/* ---- carry: private memory for bytes that have to wait ------------------------------------------------ */
enum { NPI_CARRY_SHIFT_MIN = 12, NPI_CARRY_CLASSES = 16, NPI_CARRY_KEPT = 32 };

/* Blocks of 4 KiB and up, powers of two; a few of each size are kept for the next frame that is cut in two. */
struct npi_carry_pool {
  uint64_t used_bytes;
  uint64_t limit_bytes;
  void *kept[NPI_CARRY_CLASSES][NPI_CARRY_KEPT];
  uint32_t n_kept[NPI_CARRY_CLASSES];
};

/* A queue of bytes: [begin, end) wait. bytes NULL: empty. */
struct npi_carry {
  uint8_t *bytes;
  size_t capacity;
  size_t begin;
  size_t end;
};

void npi_carry_pool_deinit(struct npi_carry_pool *pool);
/* NP_ERR_NO_MEMORY: the system has none. The pool's limit is the caller's to look at: some bytes must not be lost. */
int npi_carry_reserve(struct npi_carry_pool *pool, struct npi_carry *carry, size_t n); /* the next n bytes fit */
int npi_carry_append(struct npi_carry_pool *pool, struct npi_carry *carry, const void *bytes, size_t n);
void npi_carry_take(struct npi_carry_pool *pool, struct npi_carry *carry, size_t n);
void npi_carry_drop(struct npi_carry_pool *pool, struct npi_carry *carry);
static inline size_t npi_carry_size(const struct npi_carry *carry) {
  return carry->end - carry->begin;
}
static inline int npi_carry_is_over(const struct npi_carry_pool *pool) {
  return pool->used_bytes > pool->limit_bytes;
}

/* ---- objects ----------------------------------------------------------------------------------------- */

struct npi_ingest_listener {
  struct npi_ingest_source source; /* datagrams, or the watch of a listening socket; first, callbacks cast */
  struct npi_ingest *ingest;
  struct npi_listener_config config;
  struct npi_atomic_u64 *counters;
  uint32_t index;
  uint32_t is_datagram;
  int spare_fd; /* given up for a moment to refuse a connection when descriptors run out */
  uint64_t accept_again_ns;

  /* on_full: one pause for all of the listener's sources, because they share a publisher */
  uint32_t is_paused;
  uint32_t is_discarding; /* draining, and its time is up: what finds no slot is dropped whatever on_full says */
  uint8_t holds_frame;    /* the front of held is decoded and counted as held */
  uint64_t retry_ns;
  uint64_t retry_step_ns;
  struct npi_carry held;          /* datagrams that came while paused: struct npi_held_datagram, bytes */
  struct npi_ingest_link waiting; /* connections that were stopped by the pause */

  /* connections, in the order of their deadlines: each list has one timeout, so its first is the earliest */
  struct npi_ingest_link all;
  struct npi_ingest_link idle;
  struct npi_ingest_link unfinished;
  uint32_t n_connections;

  uint32_t drops_seen; /* the kernel's count of dropped datagrams as last read; it wraps */
  uint64_t bad_logged_ns;
  uint64_t n_bad_unlogged;
};

struct npi_held_datagram {
  uint32_t bytes; /* of the datagram, behind this */
  uint32_t taken; /* decoded and delivered already */
  uint64_t time_ns;
  uint8_t address[16];
  uint16_t port;
  uint8_t family;
  uint8_t reserved[5];
};

enum npi_connection_end { NPI_CONNECTION_OPEN, NPI_CONNECTION_FINISHED, NPI_CONNECTION_BROKEN };

struct npi_ingest_connection {
  struct npi_ingest_source source; /* first: callbacks cast */
  struct npi_ingest_listener *listener;
  uint64_t number;
  struct npi_carry carry;
  uint64_t scan_from;
  uint64_t needed; /* bytes that the front of carry takes at least; 0 unknown */
  struct npi_ingest_link in_all, in_idle, in_unfinished, in_waiting;
  uint64_t active_ns;
  uint64_t begun_ns; /* of the unfinished frame */
  uint8_t address[16];
  uint16_t port;
  uint8_t family;
  uint8_t end;         /* enum npi_connection_end */
  uint8_t holds_frame; /* its front is a whole frame, counted as held */
  uint8_t is_waiting;
};

struct npi_ingest_watch_source {
  struct npi_ingest_source source; /* first */
  void (*ready)(void *context);
  void *context;
};

enum { NPI_INGEST_WATCHES = 8 };

struct npi_ingest {
  struct npi_ingest_backend *backend;
  struct npi_ingest_sink sink;
  struct npi_carry_pool pool;
  struct npi_ingest_listener *listeners;
  uint32_t n_listeners;
  uint32_t n_watches;
  struct npi_ingest_watch_source watches[NPI_INGEST_WATCHES];
  struct npi_ingest_watch_source credit; /* fd -1: none */
  uint64_t worker;
  uint64_t next_connection;
  uint64_t now_ns;  /* monotonic, of this turn */
  uint64_t time_ns; /* CLOCK_REALTIME, of this turn */
  uint64_t tick_ns; /* when the next tick is due */
  uint32_t n_connections;
  uint32_t n_open; /* sources that are not gone */
  uint32_t n_paused;
  uint32_t n_idle_credits; /* the credit descriptor was readable but nothing went on, in a row */
  struct npi_ingest_listener *at_work;
  uint32_t at_work_held;
  uint32_t has_published;
  uint32_t has_worked;           /* a callback brought something in this turn */
  struct npi_ingest_link *sweep; /* where the search for missed ends goes on */
  uint32_t sweep_listener;
};

static inline void npi_listener_count(struct npi_ingest_listener *listener, enum npi_counter row, uint64_t n) {
  npi_count_add(&listener->counters[row], n);
}
static inline void npi_listener_set(struct npi_ingest_listener *listener, enum npi_counter row, uint64_t value) {
  npi_store_relaxed_u64(&listener->counters[row], value);
}

/*
 * What is published is counted a row later, and the worker may be killed in between. Whose frames they were, the broker
 * sees here: events of this worker's publisher that no listener has counted are those of the listener at work.
 */
static inline void npi_ingest_at_work(struct npi_ingest_listener *listener, uint32_t is_held) {
  struct npi_ingest *ingest = listener->ingest;
  if (NPI_LIKELY(ingest->at_work == listener && ingest->at_work_held == is_held)) return;
  if (ingest->at_work && ingest->at_work != listener) npi_listener_set(ingest->at_work, NPI_LISTENER_AT_WORK, 0);
  ingest->at_work = listener;
  ingest->at_work_held = is_held;
  npi_listener_set(listener, NPI_LISTENER_AT_WORK, 1 + is_held);
}

/* ---- ingest_deliver.c: on_full ------------------------------------------------------------------------ */
enum { NPI_DELIVERED = 0, NPI_HELD = 1 };
/* Offers a frame. *holds: it was counted as held before; or is from now on, with NPI_HELD: the listener is paused, the
 * caller keeps the frame and offers it again. A frame that is published is added to *n_published; the caller passes the
 * sum on to npi_ingest_count_published() before it returns: counters are memory that others look at. */
int npi_ingest_deliver(struct npi_ingest_listener *listener, const struct npi_ingest_event *event, uint8_t *holds,
                       uint64_t *n_published);
/* The same for many frames without a topic, all else as in `like`, none of them held before. Returns how many of the
 * front were delivered: published, or dropped and counted. Less than n: the next one is held. */
uint32_t npi_ingest_deliver_batch(struct npi_ingest_listener *listener, struct npi_ingest_event *like,
                                  const struct npi_payload *payloads, uint32_t n, uint8_t *holds);
static inline void npi_ingest_count_published(struct npi_ingest_listener *listener, uint64_t n) {
  if (n == 0) return;
  npi_listener_count(listener, NPI_LISTENER_RECEIVED, n);
  npi_listener_count(listener, NPI_LISTENER_PUBLISHED, n);
  listener->ingest->has_published = 1;
}
/* Goes on where a pause began; the listener is running afterwards, or paused until later. */
void npi_ingest_retry(struct npi_ingest_listener *listener);
void npi_ingest_pause(struct npi_ingest_listener *listener);

/* ---- ingest_stream.c, ingest_datagram.c --------------------------------------------------------------- */
void npi_ingest_stream_bytes(struct npi_ingest_connection *connection, const uint8_t *bytes, size_t n);
void npi_ingest_stream_end(struct npi_ingest_connection *connection, int error_number);
/* Delivers what waits in the carry. NPI_HELD: paused again. NPI_DELIVERED: it may be read again, or is closed. */
int npi_ingest_stream_resume(struct npi_ingest_connection *connection);
void npi_ingest_bad_frame(struct npi_ingest_listener *listener, const struct npi_ingest_connection *connection,
                          enum npi_frame_error error);

void npi_ingest_datagram(struct npi_ingest_listener *listener, const struct npi_ingest_datagram *datagram);
int npi_ingest_datagram_resume(struct npi_ingest_listener *listener);
void npi_ingest_kernel_drops(struct npi_ingest_listener *listener);

/* ---- ingest_listener.c, ingest_connection.c ------------------------------------------------------------ */
void npi_ingest_accept(struct npi_ingest_listener *listener);

void npi_ingest_address(const struct sockaddr_storage *from, socklen_t from_bytes, uint8_t address[16], uint16_t *port,
                        uint8_t *family);
enum npi_close_reason { NPI_CLOSE_END, NPI_CLOSE_BAD, NPI_CLOSE_IDLE, NPI_CLOSE_SLOW };
/* 0, or NP_ERR_NO_MEMORY; fd becomes the connection's only on success. */
int npi_connection_open(struct npi_ingest_listener *listener, int fd, const struct sockaddr_storage *from,
                        socklen_t from_bytes);
void npi_connection_close(struct npi_ingest_connection *connection, enum npi_close_reason reason);
/* Stops reading from it until the listener goes on. */
void npi_connection_wait(struct npi_ingest_connection *connection);
void npi_connection_active(struct npi_ingest_connection *connection);
/* A frame is unfinished (1), and it is another one than before where is_new; or none is (0). */
void npi_connection_unfinished(struct npi_ingest_connection *connection, int is_unfinished, int is_new);
/* Closes whose time is up. Returns when the next deadline is due, UINT64_MAX for none. */
uint64_t npi_connections_expire(struct npi_ingest_listener *listener);
/* Looks for streams with something to read that the backend said nothing about. Some at each call. */
void npi_connections_sweep(struct npi_ingest *ingest);
/* Makes room in the carry pool: closes the connections whose frames have been unfinished the longest. */
void npi_connections_shrink(struct npi_ingest *ingest);

#endif
