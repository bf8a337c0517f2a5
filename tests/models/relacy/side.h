/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A publisher's process in a model: pool with three slots, ledger, and connections of two credits each. The words of
 * rings are watched; what only the publisher writes is plain memory.
 */
#ifndef NUMAPOOL_TESTS_MODEL_SIDE_H
#define NUMAPOOL_TESTS_MODEL_SIDE_H

#include "core/check.h"
#include "core/flow.h"
#include "core/inlet.h"
#include "model.h"

enum {
  SIDE_CAPACITY = 2,
  SIDE_CLASS = 9, /* 128 KiB: three slots to a run of chunks */
  SIDE_SLOTS = 3,
  SIDE_ENDS = 2,
};

struct end {
  struct npi_ring_block *submissions;
  struct npi_ring_block *returns;
  struct npi_outlet outlet;
  struct npi_inlet inlet;
};

struct side {
  struct npi_pool pool;
  struct npi_pool_segment segments[1];
  struct npi_segment_view views[1];
  struct npi_endpoint_counters counters;
  struct npi_flow flow;
  struct end end[SIDE_ENDS];
  uint32_t first_slot;
  struct npi_bell_peer nobody; /* a doorbell whose owner is awake */
};
extern struct side side;

void side_set_up(unsigned n_ends);
void side_begin(uint32_t kind, uint32_t channel_on_full);
void side_format(unsigned end);
/* Both halves, beginning at a position that fits the format. The inlet belongs to the subscriber's thread. */
void side_make_outlet(unsigned end, uint32_t on_full, uint32_t limit, uint64_t position);
void side_make_inlet(unsigned end, uint64_t position);

/* The publisher lets go of a connection, as lib/client/link.c does. Returns what the subscriber had not returned. */
uint32_t side_take_back(unsigned end, int keeps);

/* A publish with payload value; NP_OK, NP_FULL, or NP_EMPTY where no slot is free. */
int side_publish(unsigned value);
/* Which payload a slot holds. */
static inline unsigned side_payload_of(uint32_t handle) {
  return (unsigned)(npi_handle_offset(handle) / npi_class_stride(SIDE_CLASS));
}

/* The subscriber's hands. */
struct hands {
  uint64_t element[SIDE_CAPACITY + 2];
  unsigned value[SIDE_CAPACITY + 2];
  unsigned n;
  unsigned taken;
};
/* Takes and reads the payload; 1: got one. */
int side_take(struct end *end, struct hands *hands, struct npi_taken *taken);
/* Reads once more, then gives back number i of what is held. */
void side_release(struct end *end, struct hands *hands, unsigned i);

/* Free the memory of the flow, and of the inlets. */
void side_end(void);
/* Nothing is out: every slot is free, and the checker is content. */
void side_must_be_whole(void);

#endif
