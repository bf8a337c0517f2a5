/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the operator allows a client that is stopped: clients.evict_after and clients.evict.
 *
 * A stopped process is not a dead one, so nothing is ever taken from it on the broker's own account. But it may hold up
 * publishers that wait for it, and hold memory, for ever: where the operator says after how long that is enough, its
 * process is killed (and is then a dead one like any other), or it is quarantined:
 *
 *   its record says so     it learns of it when it goes on, also from a broker that came after this one
 *   WITHHOLD               its publishers give it nothing new, and wait for it no more
 *   its socket ends        nothing is sent to it or waits for it
 *
 * What it holds, and what lies in its rings, stays its own: it may be in the middle of reading it. A quarantine is for
 * good; the process may connect anew.
 */
#ifndef NPI_DAEMON_EVICT_H
#define NPI_DAEMON_EVICT_H

#include <stdint.h>

#include "daemon/loop.h"

struct npi_broker;

struct npi_evict {
  struct npi_timer look; /* runs only where clients.evict_after is set */
  uint32_t next;         /* client of this round; 0: a round begins */
  uint64_t looked_ns;    /* when the last round began */
  uint64_t turn_ns;      /* when the last turn of it ended */
  uint64_t away_ns;      /* that the broker itself did not look */
};

void npi_evict_init(struct npi_broker *broker);
/* Looks from time to time, where the configuration says so. */
void npi_evict_begin(struct npi_broker *broker);

#endif
