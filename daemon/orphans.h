/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients of a life that is over. Where the keeper died with its broker, nothing could be adopted, and ingest workers of
 * the old life may still hold the ports that this one needs: they leave when they are told, which must not wait for the
 * ports.
 */
#ifndef NPI_DAEMON_ORPHANS_H
#define NPI_DAEMON_ORPHANS_H

struct npi_broker;

/* Lets in who waits at the door while the broker's loop does not run yet; who wants to come back is refused at once. */
void npi_orphans_refuse(struct npi_broker *broker);

#endif
