/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An instance as its shared memory shows it: needs no broker that answers, only one that once was there.
 *
 * The registry is opened by name and copied; what is shown and checked is the copy, whose bounds were looked
 * at once. Pages and ledgers have no names: they are found among the descriptors of the broker, or of the
 * client where the broker is dead. Everything is opened for reading only.
 */
#ifndef NUMAPOOLCTL_VIEW_H
#define NUMAPOOLCTL_VIEW_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "shm/layout.h"

enum npi_process {
  NPI_PROCESS_RUNNING,
  NPI_PROCESS_STOPPED, /* by a signal or a debugger: alive, and doing nothing */
  NPI_PROCESS_DEAD,    /* or the number belongs to another process by now */
};

struct npi_view {
  char name[96]; /* of the registry's object */
  char instance[NPI_INSTANCE_BYTES];
  uid_t uid;
  int fd;
  uint64_t n_bytes;
  uint8_t *bytes; /* the copy; all pointers below lead into it */
  const struct npi_registry_header *header;
  const struct npi_node_record *nodes;
  const struct npi_client_record *clients;
  const struct npi_channel_record *channels;
  const struct npi_publisher_record *publishers;
  const struct npi_subscriber_record *subscribers;
  const struct npi_connection_record *connections;
  const struct npi_segment_record *segments;
  const struct npi_listener_record *listeners;
  uint32_t n_nodes, n_clients, n_channels, n_publishers, n_subscribers, n_connections, n_segments, n_listeners;
  int *page_fds, *ledger_fds; /* by client; -1 not there, -2 not looked for */
  uint32_t n_fds;
  int broker_listed; /* the broker's descriptors were looked through */
  int denied;        /* something was there and may not be read */
};

/*
 * Opens the instance of this user, or for root that of any user. NP_ERR_NOT_FOUND: no such instance (detail
 * lists those that there are); NP_ERR_DENIED: another user's (detail says whose); NP_ERR_VERSION, NP_ERR_CORRUPT.
 */
int npi_view_open(struct npi_view *view, const char *instance);
void npi_view_close(struct npi_view *view);

/* Copies the registry anew. Descriptors of pages and ledgers stay open where they still belong to the same client. */
int npi_view_refresh(struct npi_view *view);

enum npi_process npi_view_process(uint32_t pid, uint64_t start_time);
enum npi_process npi_view_broker(const struct npi_view *view);
enum npi_process npi_view_client_process(const struct npi_view *view, uint32_t client);
const char *npi_process_word(enum npi_process process);

/* Counters in a client's page: 0, or NP_ERR_NOT_FOUND (no page, not that client's), NP_ERR_DENIED. */
int npi_view_endpoint(struct npi_view *view, uint32_t client, uint32_t row, uint64_t value[32]);
int npi_view_listener(struct npi_view *view, uint32_t client, uint32_t listener, uint64_t value[64]);
/* Any bytes of the page, as for the counters of a ring block; NP_ERR_CORRUPT: outside of it. */
int npi_view_page(struct npi_view *view, uint32_t client, uint64_t offset, void *to, uint64_t n);

/* A connection in figures, from the counters of its two ring blocks. */
struct npi_connection_figures {
  uint64_t published, dropped, processed, redelivered; /* as the publisher counts */
  uint64_t taken, returned;                            /* as the subscriber counts */
  int publisher_known, subscriber_known;
};
void npi_view_connection(struct npi_view *view, const struct npi_connection_record *connection,
                         struct npi_connection_figures *figures);

/* A copy of a ledger; only the parts that hold something are read. */
struct npi_ledger_copy {
  void *memory; /* mapped */
  uint64_t n_bytes;
  int fd;
};
int npi_view_ledger(struct npi_view *view, uint32_t client, struct npi_ledger_copy *copy);
/* 1: the ledger still reads as the copy does. */
int npi_view_ledger_unchanged(const struct npi_ledger_copy *copy);
void npi_view_ledger_free(struct npi_ledger_copy *copy);

/* Calls found for each object of the instance in /dev/shm that the registry does not know; returns how many, or < 0. */
int npi_view_orphans(const struct npi_view *view, void (*found)(void *context, const char *name, uint64_t bytes),
                     void *context);
/* 1 when the named object is in /dev/shm. */
int npi_view_has_object(const char *name);

/* 1 when the living broker has the named object open: it is at work on it. */
int npi_view_broker_has_open(const struct npi_view *view, const char *name);

/* One line for each instance in /dev/shm; returns how many. */
unsigned npi_view_list_instances(char *text, size_t bytes);

static inline uint32_t npi_view_state(const struct npi_atomic_u32 *state) {
  return npi_load_relaxed_u32(state);
}

#endif
