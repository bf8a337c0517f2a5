/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/bare.h"

#include <stdlib.h>
#include <string.h>

#include "bench/measure.h"
#include "bench/payload.h"

enum { REAP_AT = 32, REAP_MOST = 64 }; /* the same policy as the library's */

void bare_init(struct bare *bare, uint32_t capacity) {
  size_t block = (size_t)npi_ring_block_bytes(capacity);
  uint8_t *rings = bench_shared_memory(2 * block);
  bare->slots = bench_shared_memory((size_t)capacity * BARE_STRIDE);
  bare->stack = calloc(capacity, sizeof *bare->stack);
  if (bare->stack == NULL) bench_die("no memory");
  npi_ring_format((void *)rings, capacity);
  npi_ring_format((void *)(rings + block), capacity);
  npi_ring_attach(&bare->submissions, (void *)rings, capacity);
  npi_ring_attach(&bare->returns, (void *)(rings + block), capacity);
  bare->capacity = bare->n_free = capacity;
  for (uint32_t i = 0; i < capacity; i++) bare->stack[i] = capacity - 1 - i;
  bare->submitted = bare->reaped = bare->taken = 0;
}

static inline uint8_t *payload(const struct bare *bare, uint64_t slot) {
  return bare->slots + slot * BARE_STRIDE + NPI_SLOT_HEADER_BYTES;
}

static inline void reap(struct bare *bare) {
  uint64_t element;
  for (unsigned i = 0; i < REAP_MOST && npi_ring_load(&bare->returns, bare->reaped, &element); i++) {
    bare->reaped++;
    bare->stack[bare->n_free++] = (uint32_t)element;
  }
}

static inline void publish(struct bare *bare, uint64_t number) {
  uint32_t slot = bare->stack[--bare->n_free];
  bench_payload_write(payload(bare, slot), number);
  npi_ring_store(&bare->submissions, bare->submitted++, slot);
  if (bare->submitted - bare->reaped > REAP_AT) reap(bare);
}

/* 0: nothing there. */
static inline int take(struct bare *bare, uint64_t *sum) {
  uint64_t element;
  if (!npi_ring_load(&bare->submissions, bare->taken, &element)) return 0;
  *sum += bench_payload_read(payload(bare, (uint32_t)element));
  npi_ring_store(&bare->returns, bare->taken++, element & NPI_ELEMENT_BODY_MASK);
  return 1;
}

uint64_t bare_cycle(struct bare *bare, uint64_t n) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < n; i++) {
    publish(bare, i);
    take(bare, &sum);
  }
  return sum;
}

void bare_publish(struct bare *bare, uint64_t n) {
  for (uint64_t i = 0; i < n; i++) {
    while (bare->n_free == 0) reap(bare);
    publish(bare, i);
  }
}

uint64_t bare_subscribe(struct bare *bare, uint64_t n) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < n;) i += (uint64_t)take(bare, &sum);
  return sum;
}

void bare_ping(struct bare *there, struct bare *back, uint64_t *took, uint64_t n) {
  for (uint64_t i = 0; i < n; i++) {
    uint64_t sum = 0;
    uint64_t from = bench_stamp();
    publish(there, i);
    while (!take(back, &sum)) {
    }
    took[i] = bench_stamp() - from;
    if (sum != bench_payload_sum(i, 1)) bench_die("bare round trip: what was read is not what was written");
  }
}

void bare_pong(struct bare *there, struct bare *back, uint64_t n) {
  for (uint64_t i = 0; i < n; i++) {
    uint64_t sum = 0;
    while (!take(there, &sum)) {
    }
    publish(back, i);
    if (sum != bench_payload_sum(i, 1)) bench_die("bare round trip: what was read is not what was written");
  }
}

void bare_pass(struct bare *bare, struct bare_row *row) {
  for (unsigned i = 0; i < row->n; i++) npi_ring_store(&bare->submissions, bare->submitted++, row->slot[i]);
  row->n = 0;
  if (bare->submitted - bare->reaped > REAP_AT) reap(bare);
}

void bare_fill(struct bare *bare, struct bare_row *row, const void *bytes, size_t n) {
  while (bare->n_free == 0) reap(bare);
  uint64_t slot = bare->stack[--bare->n_free];
  uint64_t *header = (uint64_t *)(void *)(payload(bare, slot) - NPI_SLOT_HEADER_BYTES);
  header[0] = bare->submitted + row->n;
  header[1] = n;
  memcpy(header + NPI_SLOT_HEADER_BYTES / sizeof *header, bytes, n);
  row->slot[row->n++] = slot;
  if (row->n == sizeof row->slot / sizeof row->slot[0]) bare_pass(bare, row);
}

uint64_t bare_take(struct bare *bare, uint64_t *sum) {
  uint64_t element;
  uint64_t n = 0;
  for (; npi_ring_load(&bare->submissions, bare->taken, &element); n++) {
    const uint8_t *bytes = payload(bare, (uint32_t)element);
    uint64_t size;
    memcpy(&size, bytes - NPI_SLOT_HEADER_BYTES + sizeof size, sizeof size);
    if (size != BENCH_PAYLOAD_BYTES) bench_die("an event of %llu bytes", (unsigned long long)size);
    *sum += bench_payload_read(bytes);
    npi_ring_store(&bare->returns, bare->taken++, element & NPI_ELEMENT_BODY_MASK);
  }
  return n;
}
