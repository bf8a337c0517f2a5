/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring: one writer, one reader, elements that validate themselves.
 *
 * A connection has two rings of the same capacity N, a power of two:
 *
 *   submissions   written by the publisher, read by the subscriber
 *   returns       written by the subscriber, read by the publisher
 *
 * Each element carries the lap (position / N, modulo 16) at which it was written. A reader at position p
 * looks at word p mod N: the word is the p-th element if its lap is the lap of p, and otherwise that
 * element has not been written yet. So there is no head and no tail in shared memory: writing is one
 * release store, reading one acquire load, and neither side ever reads a position of the other. A ring is
 * formatted with the lap before the first, not with zeros, before anybody else can see it.
 *
 * Why nobody overruns. The publisher lets at most `limit` <= N events be out on a connection: published,
 * and their return not yet processed. Three things are needed: limit <= N, the subscriber takes in order,
 * and each taken event is returned once. Not needed: any order of returns, any speed, a constant limit.
 *
 *   Submissions. The publisher stores event p (from 0) after it has processed r returns, with p - r < N.
 *   Before the r-th return, the subscriber had taken r events, in order: so it had taken event p - N,
 *   whose word event p overwrites. Order: its load of that word came before its return store [ring.return],
 *   which the publisher's load [ring.reap] read; the overwriting store [ring.submit] comes after that.
 *
 *   Returns. The subscriber stores return w after it took more than w events, so it took event w, which
 *   the publisher stored with r > w - N: return w - N had been processed, and its word may be overwritten.
 *   Order: the publisher's load of that word [ring.reap] came before its store of event w [ring.submit],
 *   which the subscriber's load [ring.take] read; the overwriting store [ring.return] comes after that.
 *
 * A lap of one bit would do for this; four leave room to notice a ring that is not what it should be.
 * A writer that is killed leaves the element either whole or not written at all.
 */
#ifndef NPI_CORE_RING_H
#define NPI_CORE_RING_H

#include "base/atomics.h"
#include "core/slot.h"

/* A process's checked view of a ring: capacity comes from the broker, never from the ring's memory. */
struct npi_ring {
  struct npi_atomic_u64 *element;
  uint64_t mask;  /* capacity - 1 */
  uint32_t shift; /* log2 of the capacity */
  uint32_t up;    /* 60 less that: brings the lap of a position to the top */
};

static inline void npi_ring_attach(struct npi_ring *ring, struct npi_ring_block *block, uint32_t capacity) {
  ring->element = block->element;
  ring->mask = capacity - 1;
  ring->shift = (uint32_t)__builtin_ctz(capacity);
  ring->up = (uint32_t)NPI_ELEMENT_LAP_SHIFT - ring->shift;
}

/* Every word one lap behind position 0, counters zero. Only before anybody else knows of the block. */
static inline void npi_ring_format(struct npi_ring_block *block, uint32_t capacity) {
  for (unsigned i = 0; i < NPI_ARRAY_COUNT(block->counter); i++) npi_store_relaxed_u64(&block->counter[i], 0);
  for (uint32_t i = 0; i < capacity; i++) {
    npi_store_relaxed_u64(&block->element[i], UINT64_C(15) << NPI_ELEMENT_LAP_SHIFT);
  }
}

static inline uint64_t npi_ring_lap(const struct npi_ring *ring, uint64_t position) {
  return position >> ring->shift << NPI_ELEMENT_LAP_SHIFT; /* the shift keeps the low four bits */
}

/*
 * [ring.submit] and [ring.return] release: everything written before (slot header and payload; the reader's
 * last look at a payload) before the element. Pair with [ring.take] and [ring.reap] in npi_ring_load.
 */
static inline void npi_ring_store(const struct npi_ring *ring, uint64_t position, uint64_t body) {
  npi_store_release_u64(&ring->element[position & ring->mask], npi_ring_lap(ring, position) | body);
}

/*
 * [ring.take] and [ring.reap] acquire: after the element, everything that was written before it. Pair with
 * [ring.submit] and [ring.return] in npi_ring_store. Returns 1 when the element at position is there.
 */
static inline int npi_ring_load(const struct npi_ring *ring, uint64_t position, uint64_t *element) {
  *element = npi_load_acquire_u64(&ring->element[position & ring->mask]);
  return (*element ^ position << ring->up) >> NPI_ELEMENT_LAP_SHIFT == 0;
}

/*
 * How many elements a writer has stored, where claimed is its own count: it counts behind its stores, so one that was
 * killed may have stored more. Exact for an honest writer that is dead, or at rest; bounded for any.
 */
static inline uint64_t npi_ring_stored(const struct npi_ring_block *block, uint32_t capacity, uint64_t claimed) {
  struct npi_ring ring;
  uint64_t element, end = claimed;
  npi_ring_attach(&ring, (struct npi_ring_block *)(uintptr_t)block, capacity); /* only loads follow */
  while (end - claimed < capacity && npi_ring_load(&ring, end, &element)) end++;
  return end;
}

#endif
