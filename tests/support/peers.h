/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other processes of a scenario: a child that receives (or publishes) numbered messages and writes what it
 * sees into memory that it shares with the test.
 */
#ifndef NUMAPOOL_TESTS_PEERS_H
#define NUMAPOOL_TESTS_PEERS_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#include "numapool/numapool.h"

enum { PEERS_PUBLISHERS_MAX = 64 };

/* Zeroed memory that stays the same for children. */
void *shared_memory(size_t bytes);

/* A child that runs body(argument) and ends with its result. */
pid_t spawn(int (*body)(void *argument), void *argument);
/* Its exit status, or 1000 + signal; ends a child that does not end by itself in `seconds`: -1. */
int reap(pid_t pid, int seconds);

struct receiver {
  /* what it shall do */
  char channel[64];
  int on_full; /* enum np_on_full */
  uint32_t credits;
  uint32_t tap;
  uint32_t hold;         /* keeps so many events before it releases the oldest */
  uint32_t no_order;     /* a group: only what one publisher sent to this member is in order, with gaps */
  _Atomic uint8_t *seen; /* NULL, or a counter for each number: all receivers of a group share it */
  uint64_t n_seen;
  /* steps */
  _Atomic int ready;
  _Atomic int stop; /* take what is there, then end */
  _Atomic int refused_status;
  /* what it saw */
  _Atomic uint64_t received;
  _Atomic uint64_t bytes;
  _Atomic uint64_t gaps;          /* sequence numbers that did not come */
  _Atomic uint64_t out_of_order;  /* sequence not greater than the last of its publisher */
  _Atomic uint64_t bad;           /* wrong check word */
  _Atomic uint64_t number_breaks; /* number in the payload is not the one after the last of its publisher */
  _Atomic uint64_t redelivered;
  _Atomic uint64_t twice;   /* seen before and not marked as redelivered */
  _Atomic uint64_t missed;  /* np_subscriber_stats, at the end */
  _Atomic uint64_t corrupt; /* np_take said so */
  _Atomic uint64_t first_ns, last_ns;
};

/* In shared memory, for a channel whose own on_full holds; the rest is the test's to set. */
struct receiver *receiver_for(const char *channel);
/* Body for spawn: argument is a struct receiver in shared memory. 0 when nothing failed but what it counts. */
int receiver_body(void *receiver);

struct sender {
  char channel[64];
  uint64_t count;      /* 0: until stop */
  uint64_t first;      /* number of the first message */
  uint32_t fixed_size; /* 0: 16 B to 64 KiB */
  uint32_t wait_for;   /* subscribers before the first message */
  _Atomic int ready;
  _Atomic int stop;
  _Atomic int done; /* publishes nothing more; waits until all came back */
  _Atomic uint64_t sent;
  _Atomic uint64_t fulls, empties;
};
/* In shared memory: publishes so many (0: until stop) when so many subscribers are there. */
struct sender *sender_for(const char *channel, uint64_t count, uint32_t wait_for);
/* Body for spawn. Waits for credit where a subscriber blocks. Waits at the end until all came back. */
int sender_body(void *sender);

/* Publishes message `number`, waiting for credit and memory as long as it takes. 0, or a status. */
int publish_message(struct np_publisher *publisher, uint64_t number, size_t size);

/* Processes returns until none of the client's slots is with a subscriber; at most `seconds`. 1: so it is. */
int all_returned(struct np_client *client, int seconds);

#endif
