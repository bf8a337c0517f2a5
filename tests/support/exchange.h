/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients of the test's own process that exchange numbered messages (support/message.h). What fails ends the running
 * Criterion test. Clients in other processes: support/peers.h.
 */
#ifndef NUMAPOOL_TESTS_EXCHANGE_H
#define NUMAPOOL_TESTS_EXCHANGE_H

#include <stdint.h>

#include "numapool/numapool.h"
#include "tests/support/instance.h"
#include "tests/support/peers.h"

/*
 * A broker with 64 MiB in the given memory backend (support/backends.h), and three channels: news (broadcast, block, 64
 * credits), drops (broadcast, drop_newest, 16 credits), work (group, block, 16 credits).
 */
void exchange_start(struct instance *instance, int backend);

struct np_client *connected(void);
struct np_publisher *publisher_of(struct np_client *client, const char *channel);
struct np_subscriber *subscriber_of(struct np_client *client, const char *channel);

/* A message of a size that follows from its number; waits for credit and memory. */
void send_number(struct np_publisher *publisher, uint64_t number);
/* Takes the next event, checks that it is this number, and lets it go. */
void expect_number(struct np_subscriber *subscriber, uint64_t number);
void expect_nothing(struct np_subscriber *subscriber);

/* A publisher and a subscriber of one channel, each with a client of its own. */
struct pair {
  struct instance instance;
  struct np_client *a, *b;
  struct np_publisher *publisher;   /* of a, opened first */
  struct np_subscriber *subscriber; /* of b */
};
/* exchange_start, then the four of them. */
void pair_open(struct pair *pair, int backend, const char *channel);
/* Disconnects a, then b; instance_stop. */
void pair_close(struct pair *pair);

/* A receiver in another process saw so many events: none damaged, none missing, in order. */
void expect_flawless(const struct receiver *receiver, uint64_t received);

#endif
