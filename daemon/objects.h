/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the broker knows. These are its private objects: the registry in shared memory only shows them to
 * others and is never read back. Each object has the index of its registry record, and refers to others by
 * pointer; lists are utlist's (head->prev is the tail).
 *
 *   channel --- publishers, subscribers
 *   client ---- publishers, subscribers, segments, links to the clients it shares memory with
 *   connection  one publisher and one subscriber
 */
#ifndef NPI_DAEMON_OBJECTS_H
#define NPI_DAEMON_OBJECTS_H

#include <stdint.h>
#include <sys/types.h>
#include <uthash.h>
#include <utlist.h>

#include "daemon/loop.h"
#include "daemon/ring_space.h"
#include "shm/layout.h"
#include "shm/segment.h"

struct npi_session;

struct npi_channel {
  UT_hash_handle hh; /* by name */
  uint32_t index, version;
  uint32_t kind; /* enum npi_channel_kind */
  uint32_t on_full;
  uint32_t credits;
  uint32_t on_demand;
  uint32_t n_publishers, n_subscribers; /* also those that are closing */
  struct npi_publisher *publishers;
  struct npi_subscriber *subscribers;
  char name[NPI_NAME_BYTES];
};

struct npi_publisher {
  uint32_t index, version;
  uint32_t counters; /* row in its client's page */
  int closing;       /* takes no new connection; freed with its last one */
  int named;         /* its client, which comes back, has it */
  struct npi_client *client;
  struct npi_channel *channel;
  struct npi_connection *connections;
  struct npi_publisher *prev, *next;               /* of the channel */
  struct npi_publisher *client_prev, *client_next; /* of the client */
};

struct npi_subscriber {
  uint32_t index, version;
  uint32_t counters;
  int closing;
  int named;
  uint32_t on_full, credits, capacity, flags;
  struct npi_client *client;
  struct npi_channel *channel;
  struct npi_connection *connections;
  struct npi_subscriber *prev, *next;
  struct npi_subscriber *client_prev, *client_next;
  char name[NPI_CLIENT_NAME_BYTES];
};

struct npi_connection {
  uint32_t index, version;
  uint32_t state; /* enum npi_connection_state */
  /* Each end holds the connection until it says that it has let go, or is gone. */
  int publisher_holds, subscriber_holds;
  /* It was told to let go, and only then an acknowledgement means something. */
  int publisher_told, subscriber_told;
  int lied;
  struct npi_publisher *publisher;
  struct npi_subscriber *subscriber;
  uint64_t submissions_offset, returns_offset;
  struct npi_connection *publisher_prev, *publisher_next;
  struct npi_connection *subscriber_prev, *subscriber_next;
};

/* One client's knowledge of another: there is one in each direction, and one for a client that feeds itself. */
struct npi_link {
  struct npi_client *peer;
  uint32_t n_connections; /* in either direction */
  int introduced;         /* the owner of the link was sent the peer's page and doorbells */
  int knows_segments;     /* the owner of the link was sent the peer's segments, and is told of changes */
  struct npi_link *prev, *next;
};

struct npi_leased {
  uint32_t index, version;
  uint32_t state; /* enum npi_segment_state */
  uint32_t node;  /* index */
  uint32_t number;
  int named; /* its client, which comes back, has it */
  uint64_t object;
  struct npi_client *client; /* NULL: being made, ready, or being given back */
  struct npi_segment memory;
  struct npi_leased *prev, *next; /* of its client, of the node's ready ones, or of those being given back */
};

/* A lease that is granted as soon as every subscriber has been sent the new segments. */
struct npi_grant {
  uint32_t request; /* of the frame to answer */
  struct npi_leased **segments;
  uint32_t n_segments, wanted; /* fewer than wanted: it waits for the stock */
  struct npi_grant_wait {
    uint32_t client, version;
    uint64_t session; /* its serial; another one, which came later, was told all before it was ready */
    uint64_t target;  /* sent when that many frames of its session have left the queue */
  } * waits;
  uint32_t n_waits;
  struct npi_timer timer; /* all are there: patience is over */
  int waits_for_stock;    /* is in the broker's list */
  uint64_t turn;          /* grows with each segment that it got: who got one later comes later */
  uint64_t failed_nodes;  /* bits by index: no segment could be made there meanwhile */
  struct npi_client *client;
  struct npi_grant *prev, *next;
};

struct npi_client {
  uint32_t index, version;
  uint32_t kind;   /* enum npi_client_kind */
  uint32_t worker; /* its number, where it is one */
  uint32_t node;   /* index */
  uint32_t events_sent;
  int gone;                              /* its objects are only waiting for peers to let go */
  int quarantined;                       /* shut out (evict.c): nothing is sent to it or begun with it any more */
  int killed;                            /* by the operator's policy */
  uint64_t stopped_ns, stopped_switches; /* as in its record */
  pid_t pid;
  uid_t uid;
  uint64_t token; /* of its hello */
  struct npi_broker *broker;
  struct npi_session *session; /* NULL once it is gone */
  int page_fd, page_readonly_fd, ledger_fd, events_fd, credits_fd;
  uint32_t events_rung, credits_rung; /* sleepers.c: the episodes of sleep for which the broker has rung */
  unsigned char *page; /* written before an end is told of a place in it, read for counters of ended endpoints */
  struct npi_ring_space rings;
  uint64_t *rows_used;         /* one bit for each row of endpoint counters */
  struct npi_leased **numbers; /* segment by number */
  struct npi_leased *segments;
  uint64_t leased_bytes;
  struct npi_publisher *publishers;
  struct npi_subscriber *subscribers;
  struct npi_link *links;
  uint32_t n_connections;
  struct npi_grant *grant;
  char name[NPI_CLIENT_NAME_BYTES];
};

struct npi_node {
  int id;              /* of the operating system */
  uint32_t n_segments; /* that exist: being made, ready, leased, draining, being given back */
  uint32_t n_ready;
  uint32_t n_retired; /* free, and still to be given back */
  uint64_t made_bytes, leased_bytes;
  uint64_t pages_home, pages_away, pages_unknown;
  struct npi_leased *ready;
  int failure; /* why the last one that failed could not be made */
  char failure_text[512];
};

#endif
