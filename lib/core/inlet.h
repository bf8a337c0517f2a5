/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The subscriber's half of a connection: elements are taken in order, checked, and returned in any order.
 *
 * Everything that comes from the publisher is another process's word: the element is loaded once; segment,
 * slot and the sizes in the slot's header (each loaded once) must lie inside the segment as the broker
 * announced it; a credit that is already held cannot come again. The first lie ends the connection.
 */
#ifndef NPI_CORE_INLET_H
#define NPI_CORE_INLET_H

#include "core/ring.h"
#include "numapool/status.h"

/* The segments of one peer that this process has mapped, read-only, by number. */
struct npi_segment_view {
  const uint8_t *base; /* NULL: none, and then bytes is 0 */
  uint64_t bytes;
};

struct npi_inlet {
  struct npi_ring submissions;
  uint64_t taken;                          /* position of the next element to take */
  const struct npi_segment_view *segments; /* of the publisher's client; owned by the peer object */
  uint32_t n_segments;
  uint32_t capacity;
  struct npi_ring_block *block; /* own return block: counters */
  struct npi_ring returns;
  uint64_t returned;                       /* position of the next return to store */
  const struct npi_ring_block *peer_block; /* the publisher's: what it dropped */
  /*
   * By credit: 0 not held, else the element itself, marked. The whole of it, because a credit comes again with
   * another slot of the same generation: a release of the old event would then be sent, and be a lie.
   */
  uint64_t *held; /* owned by the inlet */
};
#define NPI_ELEMENT_HELD (UINT64_C(1) << NPI_ELEMENT_FLAGS_SHIFT)

struct npi_taken {
  const struct npi_slot_header *header;
  const uint8_t *payload;
  uint32_t payload_bytes; /* checked copies */
  uint32_t topic_bytes;
  uint64_t sizes; /* the word they come from: priority and flags as well (npi_slot_sizes_*) */
};

/* NP_ERR_NO_MEMORY. */
int npi_inlet_init(struct npi_inlet *inlet, struct npi_ring_block *returns, const struct npi_ring_block *submissions,
                   uint32_t capacity, const struct npi_segment_view *segments, uint32_t n_segments);
void npi_inlet_deinit(struct npi_inlet *inlet);

/* Is there an element? Loaded once, for npi_inlet_open. */
static inline int npi_inlet_look(const struct npi_inlet *inlet, uint64_t *element) {
  return npi_ring_load(&inlet->submissions, inlet->taken, element); /* [ring.take] */
}

/*
 * Checks the element that npi_inlet_look found and takes it. NP_ERR_CORRUPT: it is a lie; nothing was taken.
 * The caller has seen to it that all segments announced before the element was stored are in the table.
 */
static inline int npi_inlet_open(struct npi_inlet *inlet, uint64_t element, struct npi_taken *taken) {
  uint32_t handle = npi_element_handle(element);
  uint32_t credit = npi_element_credit(element);
  uint32_t number = (uint32_t)(element << 4 >> 48); /* with the flags before it: a word that has any names no segment */
  uint64_t offset = npi_handle_offset(handle);
  if (NPI_UNLIKELY(number >= inlet->n_segments || credit >= inlet->capacity || inlet->held[credit] != 0)) {
    return NP_ERR_CORRUPT;
  }
  const struct npi_segment_view *segment = &inlet->segments[number];
  uint64_t bytes = segment->bytes;
  if (NPI_UNLIKELY(offset + NPI_SLOT_HEADER_BYTES > bytes)) return NP_ERR_CORRUPT;
  const struct npi_slot_header *header = (const void *)(segment->base + offset);
  inlet->held[credit] = element | NPI_ELEMENT_HELD;
  taken->sizes = npi_slot_sizes_load(header);
  taken->payload_bytes = npi_slot_sizes_payload(taken->sizes);
  taken->topic_bytes = npi_slot_sizes_topic(taken->sizes);
  if (NPI_UNLIKELY(offset + NPI_SLOT_HEADER_BYTES + taken->payload_bytes + taken->topic_bytes > bytes)) {
    inlet->held[credit] = 0;
    return NP_ERR_CORRUPT;
  }
  taken->header = header;
  taken->payload = (const uint8_t *)header + NPI_SLOT_HEADER_BYTES;
  inlet->taken++;
  return 0;
}

/* Gives an event back. 0, or NP_ERR_MISUSE: not held (given back already, or never taken); nothing happened. */
static inline int npi_inlet_release(struct npi_inlet *inlet, uint64_t element) {
  uint32_t credit = npi_element_credit(element);
  if (NPI_UNLIKELY(credit >= inlet->capacity || inlet->held[credit] != (element | NPI_ELEMENT_HELD) ||
                   (element & NPI_ELEMENT_HELD) != 0)) { /* the mark in a token is not ours */
    return NP_ERR_MISUSE;
  }
  inlet->held[credit] = 0;
  npi_ring_store(&inlet->returns, inlet->returned++, element & NPI_ELEMENT_BODY_MASK); /* [ring.return] */
  return 0;
}

static inline uint64_t npi_inlet_held(const struct npi_inlet *inlet) {
  return inlet->taken - inlet->returned;
}

#endif
