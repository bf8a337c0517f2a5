/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a slot is named: size classes, handles, and the 64-bit element that travels through a ring.
 *
 *   handle   segment number (12) | cache line of the slot in its segment (20)
 *   element  lap (4) | flags (4) | handle (32) | credit (14) | generation (10)
 *
 * A slot is addressed by its first cache line, so that neither side needs a table or a division to find
 * it, and a reader can check it against the segment's size alone. Generations wrap within seconds on a
 * busy slot: they find misuse, and no safety argument rests on them.
 */
#ifndef NPI_CORE_SLOT_H
#define NPI_CORE_SLOT_H

#include "shm/layout.h"

enum {
  NPI_ELEMENT_GENERATION_BITS = 10,
  NPI_ELEMENT_CREDIT_SHIFT = 10,
  NPI_ELEMENT_HANDLE_SHIFT = 24,
  NPI_ELEMENT_FLAGS_SHIFT = 56,
  NPI_ELEMENT_LAP_SHIFT = 60,
  NPI_HANDLE_LINE_BITS = 20,
};
#define NPI_GENERATION_MASK   UINT32_C(0x3ff)
#define NPI_CREDIT_MASK       UINT32_C(0x3fff)
#define NPI_LINE_MASK         UINT32_C(0xfffff)
#define NPI_ELEMENT_BODY_MASK (UINT64_MAX >> 4)

/* An element without its lap, which only the ring knows. */
static inline uint64_t npi_element(uint32_t handle, uint32_t credit, uint32_t generation) {
  return (uint64_t)handle << NPI_ELEMENT_HANDLE_SHIFT | (uint64_t)credit << NPI_ELEMENT_CREDIT_SHIFT |
         (generation & NPI_GENERATION_MASK);
}
static inline uint32_t npi_element_handle(uint64_t element) {
  return (uint32_t)(element >> NPI_ELEMENT_HANDLE_SHIFT);
}
static inline uint32_t npi_element_credit(uint64_t element) {
  return (uint32_t)(element >> NPI_ELEMENT_CREDIT_SHIFT) & NPI_CREDIT_MASK;
}
static inline uint32_t npi_element_generation(uint64_t element) {
  return (uint32_t)element & NPI_GENERATION_MASK;
}

static inline uint32_t npi_handle(uint32_t segment, uint64_t offset) {
  return segment << NPI_HANDLE_LINE_BITS | (uint32_t)(offset / NPI_CACHE_LINE);
}
static inline uint32_t npi_handle_segment(uint32_t handle) {
  return handle >> NPI_HANDLE_LINE_BITS;
}
static inline uint64_t npi_handle_offset(uint32_t handle) {
  return (uint64_t)(handle & NPI_LINE_MASK) * NPI_CACHE_LINE;
}

/* Payload that a slot of a class holds. */
static inline uint64_t npi_class_bytes(uint32_t slot_class) {
  return UINT64_C(1) << (NPI_CLASS_SHIFT + slot_class);
}
/* Distance of two slots: header and payload, an odd number of cache lines for every class. */
static inline uint64_t npi_class_stride(uint32_t slot_class) {
  return NPI_SLOT_HEADER_BYTES + npi_class_bytes(slot_class);
}
/* The smallest class for so many bytes; NPI_CLASS_COUNT or more: none. */
static inline uint32_t npi_class_of(uint64_t bytes) {
  return bytes <= 256 ? 0 : (uint32_t)(64 - __builtin_clzll(bytes - 1)) - NPI_CLASS_SHIFT;
}

/*
 * Chunks that a class takes at a time. Where a chunk would hold few slots with much waste, a longer run
 * wastes less: 64 KiB slots fit 3 to a chunk but 7 to two.
 */
static inline uint32_t npi_class_run(uint32_t slot_class) {
  static const uint8_t run[NPI_CLASS_COUNT] = {1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 5};
  return run[slot_class];
}
static inline uint32_t npi_class_slots(uint32_t slot_class) {
  return (uint32_t)(npi_class_run(slot_class) * (uint64_t)NPI_CHUNK_BYTES / npi_class_stride(slot_class));
}

#endif
