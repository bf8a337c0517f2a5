/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings for those who sleep on although there is something for them: who stored it was stopped before it could ring, and
 * a program that sleeps in its own epoll has no bound of ours on its sleep.
 *
 * From time to time the broker looks at the doorbell of each client, and where one sleeps, at the first element of each
 * ring that it has not counted as seen. It rings once for each episode of sleep, as peers do; nobody who has nothing to
 * take is woken. One client is looked at in one go: some tenths of a millisecond for a thousand connections.
 */
#ifndef NPI_DAEMON_SLEEPERS_H
#define NPI_DAEMON_SLEEPERS_H

#include <stdint.h>

#include "daemon/loop.h"

struct npi_broker;

/* So long a lost wake-up may last, at most, where the sleep has no bound of its own. */
#define NPI_SLEEPERS_LOOK_NS UINT64_C(250000000)

struct npi_sleepers {
  struct npi_timer look;
  uint32_t next; /* client of this round; 0: a round begins */
};

void npi_sleepers_init(struct npi_broker *broker);
void npi_sleepers_begin(struct npi_broker *broker);
void npi_sleepers_end(struct npi_broker *broker);

#endif
