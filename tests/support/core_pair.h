/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A publisher and its subscribers without broker and without shared memory: pool, ledger, rings and segments
 * in plain heap memory of one process. For tests of core/ alone, and for threads that play processes.
 *
 * Functions end the program (exit status 2, with the line) where the machine has no memory: no test is about that.
 */
#ifndef NUMAPOOL_TESTS_CORE_PAIR_H
#define NUMAPOOL_TESTS_CORE_PAIR_H

#include "core/check.h"
#include "core/flow.h"
#include "core/inlet.h"

enum {
  CORE_SEGMENTS_MAX = 8,
  CORE_ENDS_MAX = 8,
  CORE_CAPACITY_MAX = 4096, /* sum of an end's; each end has that much room for its credits */
};

/* One connection: both halves. */
struct core_end {
  int open;
  struct npi_ring_block *submissions;
  struct npi_ring_block *returns;
  struct npi_outlet outlet;
  struct npi_inlet inlet;
  struct npi_doorbell_shm *doorbell;
  struct npi_bell_peer bell_peer;
};

struct core_options {
  uint32_t kind;              /* enum npi_channel_kind */
  uint32_t on_full;           /* of the channel */
  uint32_t n_segments;        /* leased at the start */
  uint32_t segment_chunks;    /* chunks of each */
  uint32_t room_for_segments; /* that the ledger has; 0: CORE_SEGMENTS_MAX */
};

struct core_end_options {
  uint32_t capacity;    /* 0: 16 */
  uint32_t limit;       /* 0: the capacity */
  uint32_t on_full;     /* enum npi_on_full */
  uint32_t flags;       /* NPI_SUBSCRIBER_TAP */
  uint64_t bytes_limit; /* 0: none */
  uint64_t start;       /* position at which both rings begin; a multiple of 16 * capacity */
};

struct core_pair {
  struct npi_ledger_geometry geometry;
  void *ledger_memory;
  uint64_t ledger_bytes;
  struct npi_pool pool;
  struct npi_pool_segment pool_segments[CORE_SEGMENTS_MAX];
  struct npi_segment_view views[CORE_SEGMENTS_MAX];
  void *segment_memory[CORE_SEGMENTS_MAX];
  struct npi_endpoint_counters counters;
  struct npi_flow flow;
  struct core_end ends[CORE_ENDS_MAX];
  uint64_t segment_bytes;
  int is_quiet; /* findings of the checker are not printed */
};

void core_pair_open(struct core_pair *pair, const struct core_options *options);
void core_pair_close(struct core_pair *pair);

/* Leases and returns one segment: heap memory in place of the broker's. Results of npi_pool_*_segment. */
int core_add_segment(struct core_pair *pair, uint32_t number);
int core_remove_segment(struct core_pair *pair, uint32_t number);

/* A connection at a free place; the publisher's flow learns of it. */
struct core_end *core_connect(struct core_pair *pair, const struct core_end_options *options);

/*
 * The subscriber is gone: out of the flow, its credits taken back (offered again in a group), the ring memory
 * freed. Returns how many events it had not returned.
 */
uint32_t core_disconnect(struct core_pair *pair, struct core_end *end);

/* A loaned slot that holds these bytes; carves as needed. NPI_NONE: none is left. */
uint32_t core_fill(struct core_pair *pair, const void *payload, uint32_t n);

/* Fills and publishes. NP_OK, NP_FULL (the slot was freed again), NP_EMPTY (no slot). */
int core_publish(struct core_pair *pair, const void *payload, uint32_t n);
int core_publish_text(struct core_pair *pair, const char *text);

/* Takes the next event. NP_OK, NP_EMPTY, NP_ERR_CORRUPT. */
int core_take(struct core_end *end, uint64_t *element, struct npi_taken *taken);

/* Takes and releases at once. */
int core_take_text(struct core_end *end, char *text, uint32_t size);

/* Everything that the checker can look at; findings go to stderr. Returns how many. */
unsigned core_check(struct core_pair *pair);

/* Slots by state. */
struct core_slots {
  uint64_t n_free, n_loaned, n_out;
};
struct core_slots core_slots(const struct core_pair *pair);

static inline uint64_t core_count(const struct core_pair *pair, unsigned row) {
  return npi_load_relaxed_u64(&pair->counters.value[row]);
}

/* A small random generator (xorshift64*): the same on every machine for the same seed. */
static inline uint64_t core_random(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C(2685821657736338717);
}

#endif
