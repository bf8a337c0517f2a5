/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may connect, publish and subscribe, by user and group. Root and the broker's own user always may. Who may
 * subscribe to a channel may read every segment that an event of it lies in: so a client publishes only on channels
 * that the same people may read, which is what the access number of a channel says.
 */
#ifndef NPI_DAEMON_ACCESS_H
#define NPI_DAEMON_ACCESS_H

#include "daemon/config.h"

struct npi_session;
struct npi_client;

/* May others than root and the broker's user connect at all? */
int npi_access_is_open(const struct npi_config *config);

/* The lists in force; a channel that is not declared has the instance's, a channel for dead letters its group's. */
const struct npi_access_list *npi_access_publishers(const struct npi_config *config, const char *channel);
const struct npi_access_list *npi_access_subscribers(const struct npi_config *config, const char *channel);

/* Never 0. Channels with equal lists of subscribers have equal numbers. */
uint32_t npi_access_number(const struct npi_config *config, const char *channel);
int npi_access_lists_equal(const struct npi_access_list *a, const struct npi_access_list *b);

/* 0, or NP_ERR_DENIED with words. */
int npi_access_check_connect(const struct npi_session *session);
int npi_access_check_publish(struct npi_client *client, const char *channel, uint32_t number);
int npi_access_check_subscribe(const struct npi_client *client, const char *channel);

#endif
