/* SPDX-License-Identifier: Apache-2.0 */
/* What the ingest worker, a client of a special kind, may do beyond the public header. */
#ifndef NPI_CLIENT_WORKER_H
#define NPI_CLIENT_WORKER_H

#include "core/flow_batch.h"
#include "numapool/numapool.h"
#include "shm/layout.h"

enum { NPI_CLIENT_DRAIN = 1, NPI_CLIENT_AWAY = 2, NPI_CLIENT_COMING = 3 };

/* np_connect with a client kind (enum npi_client_kind). */
int npi_client_connect(struct np_client **client, const struct np_options *options, uint32_t kind);

/*
 * Readable when the broker has sent something: then call npi_client_poll. Stays the client's, and is another one after
 * the client was away.
 */
int npi_client_control_fd(const struct np_client *client);

/* Another number: control_fd is another one. */
uint32_t npi_client_socket_number(const struct np_client *client);

/*
 * Processes what the broker sent. 0; NPI_CLIENT_DRAIN: it asked for the end; NPI_CLIENT_AWAY: it is gone, and this call
 * looks now and then whether it is there again; NPI_CLIENT_COMING: there is a new control_fd, the answer to come;
 * NP_ERR_NO_BROKER: gone for good, the instance began anew.
 */
int npi_client_poll(struct np_client *client);

/* As np_publisher_fd, for a loop that watches control_fd itself: the doorbell alone. */
int npi_client_credits_fd(struct np_client *client);

/* Tells the broker that all listeners are served. backend: 1 io_uring, 2 epoll. */
int npi_client_worker_ready(struct np_client *client, uint32_t backend, uint32_t features);

/* Counters of a listener (index in the registry) in this worker's page; NULL: no such listener. */
struct npi_listener_counters *npi_client_listener_counters(struct np_client *client, uint32_t listener);

/* Header of a loaned event, cleared, to fill in listener, connection, address, port, family and flags; NULL: not loaned. */
struct npi_slot_header *npi_event_header(struct np_publisher *publisher, const struct np_event *event);

/* np_publish of an event whose header was asked for, without waking anybody; npi_publisher_flush wakes whoever sleeps, once for the batch. */
int npi_publish_quiet(struct np_publisher *publisher, struct np_event *event);
void npi_publisher_flush(struct np_publisher *publisher);

/*
 * The same for up to NPI_BATCH_MAX payloads without a topic, whose header differs in nothing else; of `like` count time,
 * priority, flags and what npi_event_header may fill in. Returns how many of the front are published. Where that is not
 * all, the next one has to go the usual way, from np_loan on, which does what it takes or says what is missing.
 */
uint32_t npi_publish_batch(struct np_publisher *publisher, const struct npi_slot_header *like,
                           const struct npi_payload *payloads, uint32_t n);

/* n events were dropped before they had a slot: subscribers see a gap in the sequence. */
void npi_publisher_skip(struct np_publisher *publisher, uint64_t n);

/* Now and then while idle: processes returns, offers waiting group events, gives idle memory back. */
void npi_client_tick(struct np_client *client);

#endif
