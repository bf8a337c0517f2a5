/* SPDX-License-Identifier: Apache-2.0 */
/* Clients: what each owns in shared memory (page, ledger, doorbells), its record, and whom it shares memory with. */
#ifndef NPI_DAEMON_CLIENTS_H
#define NPI_DAEMON_CLIENTS_H

#include "daemon/objects.h"

struct npi_broker;

/* Makes page, ledger, doorbells and record of a session's client. NP_ERR_LIMIT: limits.clients. */
int npi_client_new(struct npi_broker *broker, struct npi_session *session, uint32_t kind, uint32_t node, uint64_t token,
                   const char *name, struct npi_client **client);

/*
 * A predecessor's client, from its record. memory: page, ledger, events, credits, which it takes over; NULL: they are
 * lost, and it gets empty ones, with which it can only be reaped.
 */
int npi_client_adopt(struct npi_broker *broker, uint32_t index, const struct npi_client_record *record,
                     const int memory[4], struct npi_client **client);

/* Nobody is connected to it any more. Its segments are destroyed by the caller. */
void npi_client_free(struct npi_broker *broker, struct npi_client *client);

/* NPI_CLIENT_* in its record. */
void npi_client_set_flag(struct npi_client *client, uint32_t flag, int on);

/* The client of that process with that token; NULL: none, or token is 0. */
struct npi_client *npi_client_of_token(struct npi_broker *broker, pid_t pid, uint64_t token);

/* A row of endpoint counters in its page, zeroed. NP_ERR_LIMIT: all are in use. */
int npi_client_take_row(struct npi_client *client, uint32_t *row);
void npi_client_claim_row(struct npi_client *client, uint32_t row); /* a predecessor had given it */
void npi_client_give_row(struct npi_client *client, uint32_t row);
struct npi_endpoint_counters *npi_client_row(const struct npi_client *client, uint32_t row);

/* A block of rings in its page, at an offset that the broker gave out. What it says is the client's word. */
const struct npi_ring_block *npi_client_block(const struct npi_client *client, uint64_t offset);

/* What client knows of peer; NULL: nothing. */
struct npi_link *npi_client_link(const struct npi_client *client, const struct npi_client *peer);

/*
 * One more connection between the two. prepare makes room for what they will know of each other, and can fail;
 * introduce tells them, where they do not know each other yet (PEER), and shows the publisher's segments to the
 * subscriber (SEGMENT); part undoes prepare, and after the last connection both forget each other (PEER_GONE).
 */
int npi_clients_prepare(struct npi_client *publisher, struct npi_client *subscriber);
void npi_clients_introduce(struct npi_client *publisher, struct npi_client *subscriber);
void npi_clients_part(struct npi_client *publisher, struct npi_client *subscriber);

#endif
