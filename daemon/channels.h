/* SPDX-License-Identifier: Apache-2.0 */
/* Channels and their endpoints: publishers and subscribers, opened and closed by clients. */
#ifndef NPI_DAEMON_CHANNELS_H
#define NPI_DAEMON_CHANNELS_H

#include "daemon/objects.h"

struct npi_broker;

/* The channels that the configuration names: made, or brought up to date where a predecessor had them. */
int npi_channels_init(struct npi_broker *broker);
void npi_channels_deinit(struct npi_broker *broker);

/*
 * Finds a channel, or makes it where the configuration allows that: broadcast with defaults. Where the table is
 * full, a channel made so that nobody uses any more gives its place. NP_ERR_ARGUMENT, NP_ERR_NOT_FOUND, NP_ERR_LIMIT.
 */
int npi_channel_find(struct npi_broker *broker, const char *name, struct npi_channel **channel);

/* Endpoint and its connections to all that is open on the other side; all or nothing. */
/* flags: NPI_PUBLISHER_* of wire/protocol.h. */
int npi_publisher_open(struct npi_client *client, const char *channel, uint32_t flags,
                       struct npi_publisher **publisher);
int npi_subscriber_open(struct npi_client *client, const char *channel, const char *name, int32_t on_full,
                        uint32_t credits, uint32_t flags, struct npi_subscriber **subscriber);

/* A client has come back: makes the connections that could not be made while it was away. */
void npi_channels_connect_missing(struct npi_client *client);

/* A predecessor's, from their records. */
int npi_channel_adopt(struct npi_broker *broker, uint32_t index, const struct npi_channel_record *record);
int npi_publisher_adopt(struct npi_broker *broker, uint32_t index, const struct npi_publisher_record *record);
int npi_subscriber_adopt(struct npi_broker *broker, uint32_t index, const struct npi_subscriber_record *record);

/* In good order: peers are told, and the endpoint is freed when the last of them has let go. */
void npi_publisher_close(struct npi_publisher *publisher);
void npi_subscriber_close(struct npi_subscriber *subscriber);

/* Its client is gone. */
void npi_publisher_gone(struct npi_publisher *publisher);
void npi_subscriber_gone(struct npi_subscriber *subscriber);

/* A connection of a closing endpoint has ended: frees the endpoint after the last one. */
void npi_publisher_settle(struct npi_publisher *publisher);
void npi_subscriber_settle(struct npi_subscriber *subscriber);

#endif
