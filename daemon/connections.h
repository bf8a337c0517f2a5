/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections: one publisher and one subscriber, two rings in their clients' pages.
 *
 *   prepare   places and formats both rings; nobody knows of it, and it can be discarded
 *   announce  record active, then the subscriber is told, then the publisher
 *   end       one side closed, is gone, or lied; each side that is still there is told once and answers when it
 *             has let go; after the last one the places of the rings are free again
 *
 *   who ends it           subscriber is told       publisher is told
 *   subscriber closes     (it holds nothing)       SUBSCRIBER_CLOSED
 *   publisher closes      PUBLISHER_CLOSED         DRAINED, when the subscriber has let go
 *   subscriber gone       -                        SUBSCRIBER_DEAD
 *   publisher gone        PUBLISHER_DEAD           -
 *   somebody lied         LIE                      LIE
 *   publisher refuses     PUBLISHER_CLOSED         -
 *   subscriber refuses    (it has not made it)     SUBSCRIBER_CLOSED
 *     one that it made    PUBLISHER_CLOSED         WITHHOLD; DRAINED, when the subscriber has let go
 */
#ifndef NPI_DAEMON_CONNECTIONS_H
#define NPI_DAEMON_CONNECTIONS_H

#include "daemon/objects.h"

struct npi_broker;

int npi_connection_prepare(struct npi_publisher *publisher, struct npi_subscriber *subscriber,
                           struct npi_connection **connection);
void npi_connection_discard(struct npi_connection *connection);
void npi_connection_announce(struct npi_connection *connection);

/* A predecessor's connection, from its record; its endpoints are there. */
int npi_connection_adopt(struct npi_broker *broker, uint32_t index, const struct npi_connection_record *record);
/* Frees it where nobody holds it any more. */
void npi_connection_settle(struct npi_connection *connection);

/* Its subscriber's client is shut out: the publisher gives it nothing new. */
void npi_connection_withhold(const struct npi_connection *connection);

/* One of its clients has come back: says again what it may have missed. Known things are ignored there. */
void npi_connection_tell_again(struct npi_connection *connection, const struct npi_client *client);

/* Any of these may free the connection. */
void npi_connection_subscriber_closed(struct npi_connection *connection);
void npi_connection_publisher_closed(struct npi_connection *connection);
void npi_connection_subscriber_gone(struct npi_connection *connection);
void npi_connection_publisher_gone(struct npi_connection *connection);
void npi_connection_lie(struct npi_connection *connection, const struct npi_client *reporter);

/* One end could not make it, or (made) cannot go on with it: it ends, and nobody is to blame. */
void npi_connection_refused(struct npi_connection *connection, const struct npi_client *reporter, uint32_t role,
                            int made);

/*
 * A client has let go. A late answer (the connection has ended meanwhile) is fine and changes nothing; so does one
 * that nobody asked for.
 */
void npi_connection_acknowledge(struct npi_connection *connection, const struct npi_client *client);

#endif
