/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments: made ahead of demand, leased within budgets, destroyed when given back or when the last reader
 * of a dead client has let go; never handed on from one client to another.
 *
 * A segment may be named in an element only when every receiver can map it without the broker. So a lease
 * is granted in two steps: the subscribers are sent the segment, and when that has left the queues the
 * publisher gets it. Who does not read its socket for a second makes the lease fail, and is named.
 */
#ifndef NPI_DAEMON_LEASES_H
#define NPI_DAEMON_LEASES_H

#include "daemon/objects.h"
#include "daemon/registry.h"

struct npi_broker;

struct npi_leases {
  struct npi_node *nodes; /* NULL: not initialized */
  uint32_t n_nodes;
  uint32_t ready_wanted; /* segments of each node */
  uint64_t next_object;
  struct npi_index_pool pool;
  struct npi_timer stock_timer;
  struct npi_leased *retired; /* free for everybody else; their pages are given back one after the other */
  struct npi_timer retired_timer;
  uint64_t stocked_ns; /* when it was last replenished */
  int stock_failed;    /* the last try to replenish failed, and that was reported */
  uint32_t n_grants;   /* that wait */
  uint64_t made_turn;  /* the loop's last turn in which memory was made: that is enough for one turn */
};

/* Makes the stock of ready segments; takes about half a second a GiB. */
int npi_leases_init(struct npi_broker *broker);
/*
 * A predecessor's: first npi_leases_init_adopted(), then each segment that is not free, with the client that leases it
 * (NULL: it is ready) and its descriptor, which is taken over; a stock that is short is filled later.
 */
int npi_leases_init_adopted(struct npi_broker *broker, uint64_t next_object);
int npi_leases_adopt(struct npi_broker *broker, uint32_t index, const struct npi_segment_record *record,
                     struct npi_client *client, int fd);
void npi_leases_plan_stock(struct npi_broker *broker);

/* Unlinks and closes. The pages stay with those who have them mapped, and go with the last of them. */
void npi_leases_deinit(struct npi_broker *broker);

/*
 * Leases at least bytes, or what the client's budget leaves, and answers request when that is done: at once,
 * or after its subscribers were told. Failure is the caller's to answer.
 */
int npi_leases_lease(struct npi_client *client, uint64_t bytes, uint32_t request);
/* Some queue got shorter, or somebody is gone: grants what can be granted. */
void npi_leases_progress(struct npi_broker *broker);
/* The client is gone or cannot be reached: its waiting lease is taken back, unanswered. */
void npi_leases_cancel(struct npi_client *client);

/* NP_ERR_NOT_FOUND: the client has no segment of that number. */
int npi_leases_give_back(struct npi_client *client, uint32_t number);
/* All segments of a client that is gone: shown as draining, and destroyed. */
void npi_leases_drain(struct npi_client *client);
void npi_leases_destroy_all(struct npi_client *client);

/* A client has come back: what it did not name never reached it, and is destroyed. */
void npi_leases_take_back_unnamed(struct npi_client *client);
/* It named one that it does not lease any more. */
void npi_leases_tell_gone(struct npi_client *client, uint32_t number);

/* Sends a client the segment of another. */
void npi_leases_show(const struct npi_leased *segment, struct npi_client *to);

#endif
