/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the ingest engine wants of the kernel, without saying how: two implementations (io_uring, epoll), one set of
 * tests for both.
 *
 * A source is a descriptor that the engine reads from. It is embedded in the engine's own object and must stay in
 * place until the backend says gone(). start() and stop() may be called at any time, also from inside a callback:
 *
 *   stop()    a pause. What was already on its way is still delivered, within the next turns; the caller keeps it.
 *             Nothing that is still in the socket is lost.
 *   close()   the end. No callback but gone() follows; the backend closes the descriptor before it.
 *
 * Bytes in a callback belong to the backend again when the callback returns.
 */
#ifndef NPI_DAEMON_INGEST_BACKEND_H
#define NPI_DAEMON_INGEST_BACKEND_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/atomics.h"
#include "daemon/config.h"

enum npi_ingest_source_kind {
  NPI_SOURCE_WATCH,   /* readable or not, nothing is read: listening sockets, eventfds, the control connection */
  NPI_SOURCE_STREAM,  /* bytes, then an end */
  NPI_SOURCE_DATAGRAM /* messages; a message of no bytes is not an end */
};

struct npi_ingest_source {
  int fd;
  enum npi_ingest_source_kind kind;
  struct npi_atomic_u64 *counters; /* of its listener, rows NPI_LISTENER_*; NULL: not counted */
  uint8_t has_timestamps; /* datagrams: read control data; else there is no room for any, not for descriptors either */
  /* the backend's */
  struct npi_ingest_source *next;
  uint64_t not_before_ns; /* armed again no sooner, after an error */
  uint32_t n_errors;      /* in a row */
  uint8_t wanted;         /* the engine wants to read */
  uint8_t armed;          /* the kernel knows of it and will say more */
  uint8_t cancelling;
  uint8_t kicked;
  uint8_t closing;
  uint8_t queued; /* in the list of what is to be armed, cancelled or ended */
  uint8_t rearm;  /* was armed before */
};

struct npi_ingest_datagram {
  const uint8_t *bytes;
  uint64_t size; /* bytes that are here */
  int truncated; /* there were more */
  const struct sockaddr_storage *sender;
  socklen_t sender_bytes;
  uint64_t time_ns; /* the kernel's, 0 where it was not asked */
};

struct npi_ingest_handler {
  void *context;
  void (*woke)(void *context); /* the wait of a turn is over; before all other callbacks of it */
  void (*ready)(void *context, struct npi_ingest_source *source);
  void (*bytes)(void *context, struct npi_ingest_source *source, const uint8_t *bytes, size_t n);
  void (*datagram)(void *context, struct npi_ingest_source *source, const struct npi_ingest_datagram *datagram);
  /* a stream is over: error_number 0 for an end in good order. The source is stopped; the engine closes it */
  void (*end)(void *context, struct npi_ingest_source *source, int error_number);
  void (*gone)(void *context, struct npi_ingest_source *source);
};

struct npi_ingest_backend_options {
  uint32_t staging_buffers; /* a power of two */
  uint64_t staging_bytes;   /* of one, for streams */
  uint64_t datagram_bytes;  /* longest datagram that must fit; 0: there will be no datagram source */
  uint32_t max_sources;     /* guess of how many are open at once */
  uint32_t cq_entries;      /* io_uring: 0 derives what cannot overflow; tests choose too little */
  uint32_t features;        /* io_uring: mask of NPI_URING_*; NPI_URING_ALL */
  struct npi_ingest_handler handler;
};

struct npi_ingest_backend;

struct npi_ingest_backend_operations {
  const char *name;
  uint32_t number; /* as the counter LISTENER_BACKEND shows it: 1 io_uring, 2 epoll */
  int (*create)(struct npi_ingest_backend **backend, const struct npi_ingest_backend_options *options);
  /* Sources that are not gone yet are forgotten, their descriptors stay open. NULL is fine; returns NULL. */
  struct npi_ingest_backend *(*free)(struct npi_ingest_backend *backend);
  uint32_t (*features)(const struct npi_ingest_backend *backend);
  void (*start)(struct npi_ingest_backend *backend, struct npi_ingest_source *source);
  void (*stop)(struct npi_ingest_backend *backend, struct npi_ingest_source *source);
  void (*close)(struct npi_ingest_backend *backend, struct npi_ingest_source *source);
  /* poll() says that there is something to read but nothing came: begin anew. NULL where that cannot happen. */
  void (*kick)(struct npi_ingest_backend *backend, struct npi_ingest_source *source);
  /* Waits at most timeout_ns (0: not at all) and calls back. < 0: nothing will come any more. */
  int (*turn)(struct npi_ingest_backend *backend, uint64_t timeout_ns);
};

struct npi_ingest_backend {
  const struct npi_ingest_backend_operations *operations;
};

extern const struct npi_ingest_backend_operations npi_ingest_uring;
extern const struct npi_ingest_backend_operations npi_ingest_epoll;

/*
 * Makes the backend that was asked for. AUTO: io_uring where this kernel has what it takes and allows it, else epoll,
 * with the reason in the log. IO_URING: the reason is the error (NP_ERR_SYSTEM).
 */
int npi_ingest_backend_create(struct npi_ingest_backend **backend, enum npi_config_ingest choice,
                              const struct npi_ingest_backend_options *options);

#endif
