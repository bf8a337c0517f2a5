/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What endpoints that are gone had really done, so that sums stay exact across deaths.
 *
 * A client counts behind its stores and may be killed between the two. Rings cannot err: an element is stored or it is
 * not. So when a connection is over, what its two rings hold is added to the records of its ends, and when an end is
 * over, its counters are put right from those sums before they go into the past of its channel.
 *
 *   elements        per connection, from the ring
 *   published       from `begun` and the elements (core/flow.h)
 *   delivered       elements less those offered again
 *   lost_with_member   group events that came back from members and went to no other
 *   taken           as the subscriber counts: whether its program saw the event that it was about to count, nobody knows
 *   released        from the ring
 *
 * A lying client can make its own figures wrong in this way and in no other: nothing is decided by them.
 */
#ifndef NPI_DAEMON_ACCOUNTS_H
#define NPI_DAEMON_ACCOUNTS_H

#include "daemon/objects.h"

struct npi_broker;

/* A record that begins. */
void npi_account_open_publisher(struct npi_publisher_record *record);
void npi_account_open_subscriber(struct npi_subscriber_record *record);

/* Both ends have let go. The caller takes the record down and ends the journal's entry. */
void npi_account_connection(const struct npi_connection *connection);

/* Counters of an end without connections, put right. */
void npi_account_publisher(const struct npi_publisher *publisher, struct npi_endpoint_counters *counted);
void npi_account_subscriber(const struct npi_subscriber *subscriber, struct npi_endpoint_counters *counted);

/* Adds what a worker that is gone counted to the past of its listeners. Its publishers are gone already. */
void npi_account_worker(struct npi_broker *broker, const struct npi_client *client);

#endif
