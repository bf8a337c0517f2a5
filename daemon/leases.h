/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases: segments that a client has, within its budget; taken from the stock, given back to it, shown to those who read
 * them; never handed on from one client to another.
 *
 * A segment may be named in an element only when every receiver can map it without the broker. So a lease
 * is granted in two steps: the subscribers are sent the segment, and when that has left the queues the
 * publisher gets it. Who does not read its socket for a second makes the lease fail, and is named.
 */
#ifndef NPI_DAEMON_LEASES_H
#define NPI_DAEMON_LEASES_H

#include "daemon/objects.h"

struct npi_broker;

/*
 * Leases at least bytes, or what the client's budget leaves, and answers request when that is done: at once,
 * or after its subscribers were told. Failure is the caller's to answer.
 */
int npi_leases_lease(struct npi_client *client, uint64_t bytes, uint32_t request);
/* The stock has changed, as npi_stock's on_change says: those that wait for segments are served. */
void npi_leases_go_on(struct npi_broker *broker, uint64_t failed_nodes);
/* Some queue got shorter, or somebody is gone: grants what can be granted. */
void npi_leases_progress(struct npi_broker *broker);
/* The client is gone or cannot be reached: its waiting lease is taken back, unanswered. */
void npi_leases_cancel(struct npi_client *client);

/* A predecessor's: the client has this segment of the stock under this number, which is free. */
void npi_leases_adopt(struct npi_client *client, struct npi_leased *segment, uint32_t number);

/* NP_ERR_NOT_FOUND: the client has no segment of that number. */
int npi_leases_give_back(struct npi_client *client, uint32_t number);
/* All segments of a client that is gone: shown as draining, and destroyed. */
void npi_leases_drain(struct npi_client *client);
void npi_leases_destroy_all(struct npi_client *client);

/* A client has come back: what it did not name never reached it, and is destroyed. */
void npi_leases_take_back_unnamed(struct npi_client *client);
/* It named one that it does not lease any more. */
void npi_leases_tell_gone(struct npi_client *client, uint32_t number);

/* At the broker's end: the pages stay with those who have them mapped, and go with the last of them. */
void npi_leases_deinit(struct npi_broker *broker);

/* Sends a client the segment of another. */
void npi_leases_show(const struct npi_leased *segment, struct npi_client *to);

#endif
