/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floor: the same loops over a pair of bare rings (core/ring.h) and an array as stack of free slots.
 * No ledger, no credits, no header, no check, no counter, no doorbell: what is left is what the hardware
 * and the ring format cost.
 */
#ifndef NUMAPOOL_BENCH_BARE_H
#define NUMAPOOL_BENCH_BARE_H

#include <stddef.h>

#include "core/ring.h"

enum { BARE_CAPACITY_MAX = 16384, BARE_STRIDE = 320 /* as a slot of the smallest class */ };

struct bare {
  struct npi_ring submissions, returns;
  uint8_t *slots;
  uint32_t capacity;
  uint32_t *stack; /* private to the publisher */
  uint32_t n_free;
  uint64_t submitted, reaped; /* the publisher's */
  uint64_t taken;             /* the subscriber's: it returns at once, so one position serves both rings */
};

/* In memory that a later fork shares. */
void bare_init(struct bare *bare, uint32_t capacity);

/* All in one thread: pop, write, store, load, read, return, load, push. Returns the sum of what was read. */
uint64_t bare_cycle(struct bare *bare, uint64_t n);

/* The two halves of a stream. */
void bare_publish(struct bare *bare, uint64_t n);
uint64_t bare_subscribe(struct bare *bare, uint64_t n);

/*
 * For the floor of ingest: a slot is filled with a line of header (sequence, size) and a payload that is copied; elements
 * follow in rows. bare_pass() stores what is left of a row. bare_take() takes, reads and returns all that is there.
 */
struct bare_row {
  uint64_t slot[64];
  unsigned n;
};
void bare_fill(struct bare *bare, struct bare_row *row, const void *payload, size_t n);
void bare_pass(struct bare *bare, struct bare_row *row);
uint64_t bare_take(struct bare *bare, uint64_t *sum);

/* One event each way, over two pairs of rings; took[i] in stamps, as hop_ping. */
void bare_ping(struct bare *there, struct bare *back, uint64_t *took, uint64_t n);
void bare_pong(struct bare *there, struct bare *back, uint64_t n);

#endif
