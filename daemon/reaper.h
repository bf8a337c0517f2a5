/* SPDX-License-Identifier: Apache-2.0 */
/*
 * After a client is gone: its connections are marked and their other ends told and woken; its memory stays
 * until the last of them has let go, then nothing of it is left.
 */
#ifndef NPI_DAEMON_REAPER_H
#define NPI_DAEMON_REAPER_H

struct npi_broker;
struct npi_client;

enum npi_gone_reason {
  NPI_GONE_DIED = 1,
  NPI_GONE_GOODBYE,
  NPI_GONE_EVICTED, /* it broke the protocol (whatever it still does with its memory harms only itself), or was killed */
};

/* The client has no session any more. */
void npi_reap(struct npi_broker *broker, struct npi_client *client, enum npi_gone_reason reason);

/* A predecessor had begun to reap it. */
void npi_reap_again(struct npi_broker *broker, struct npi_client *client);

/* Ends a client that is gone once nobody is connected to it any more. */
void npi_reap_finish(struct npi_broker *broker, struct npi_client *client);

#endif
