/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as the ledger and the rings of a dead or hostile client, looked at as numapoolctl and the checker do: a
 * ledger with events out, changed as the input says, then attached and checked. It comes back, reads nothing outside,
 * and changes nothing.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/core_pair.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern const uint64_t fuzz_runs;
const uint64_t fuzz_runs = 200000;

enum { CAPACITY = 16, SEGMENT_CHUNKS = 2 };

static uint8_t *honest, *copy;
static uint64_t bytes, ring_bytes, connections_at;
static struct npi_ring_block *submissions, *returns, *honest_submissions, *honest_returns;
static uint64_t n_images, n_attached, n_clean, n_findings;

static void say_figures(void) {
  printf("%llu images: %llu attached, %llu of them clean, %llu findings\n", (unsigned long long)n_images,
         (unsigned long long)n_attached, (unsigned long long)n_clean, (unsigned long long)n_findings);
}

static void *block(const void *of, uint64_t n) {
  void *memory = aligned_alloc(64, (n + 63) / 64 * 64);
  if (memory == NULL) abort();
  memcpy(memory, of, n);
  return memory;
}

static void begin(void) {
  struct core_options options = {.n_segments = 1, .segment_chunks = SEGMENT_CHUNKS, .room_for_segments = 2};
  static struct core_pair pair;
  core_pair_open(&pair, &options);
  struct core_end *end = core_connect(&pair, &(struct core_end_options){.capacity = CAPACITY});
  struct npi_taken taken;
  uint64_t element;
  for (int i = 0; i < 9; i++) core_publish_text(&pair, "an event");
  for (int i = 0; i < 4; i++) core_take(end, &element, &taken);
  bytes = pair.ledger_bytes;
  ring_bytes = npi_ring_block_bytes(CAPACITY);
  connections_at = (uint64_t)((uint8_t *)pair.pool.ledger.connections - (uint8_t *)pair.ledger_memory);
  honest = block(pair.ledger_memory, bytes);
  copy = block(honest, bytes);
  honest_submissions = block(end->submissions, ring_bytes);
  honest_returns = block(end->returns, ring_bytes);
  submissions = block(honest_submissions, ring_bytes);
  returns = block(honest_returns, ring_bytes);
  core_pair_close(&pair);
  atexit(say_figures);
}

static uint64_t number(const uint8_t *at) {
  return (uint64_t)at[0] | (uint64_t)at[1] << 8 | (uint64_t)at[2] << 16;
}

/* Six bytes of input are one change: where (the areas that are in use first), and to what. */
static uint64_t place(const uint8_t *at) {
  uint64_t n = number(at + 1);
  switch (at[0] & 7) {
    case 0: return n % 512;            /* header, free lists */
    case 1: return NPI_PAGE + n % 128; /* segments */
    case 2:
    case 3: return connections_at + n % (2 * sizeof(struct npi_ledger_connection)); /* the connection and the next */
    case 4: return ((const struct npi_ledger_header *)(const void *)honest)->records_offset + n % 512;
    case 5: return ((const struct npi_ledger_header *)(const void *)honest)->credits_offset + n % 256;
    default: return n % bytes;
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct npi_ledger ledger;
  uint64_t where[64];
  unsigned n = 0;
  if (honest == NULL) begin();
  for (; size >= 6 && n < 64; data += 6, size -= 6) {
    uint64_t at = place(data) / 4 * 4, value;
    if ((data[0] & 0xf8) == 0x88) {
      struct npi_ring_block *ring = data[1] & 1 ? submissions : returns;
      ring->element[data[2] % CAPACITY] = (struct npi_atomic_u64){(uint64_t)data[3] << (data[4] & 63) ^ data[5]};
      continue;
    }
    if (at + 8 > bytes) continue;
    memcpy(&value, copy + at, 4);
    value = data[4] & 1   ? value + (uint64_t)(int8_t)data[5]
            : data[4] & 2 ? UINT32_MAX - data[5]
                          : (uint64_t)data[5] << (data[4] & 31);
    memcpy(copy + at, &value, 4);
    where[n++] = at;
  }
  n_images++;
  uint64_t claimed = size > 0 && data[0] == 7 ? bytes / 2 : bytes;
  if (npi_ledger_attach(&ledger, copy, claimed) == 0) {
    n_attached++;
    unsigned findings = npi_check_ledger(&ledger, NULL, NULL);
    if (ledger.geometry.connections > 0) {
      findings +=
          npi_check_connection(&ledger, &ledger.connections[0], submissions, returns, CAPACITY, NULL, NULL, NULL);
    }
    n_clean += findings == 0;
    n_findings += findings;
    if (npi_check_ledger(&ledger, NULL, NULL) > findings) abort(); /* it changes nothing */
  }
  while (n > 0) {
    n--;
    memcpy(copy + where[n], honest + where[n], 4);
  }
  memcpy(submissions, honest_submissions, ring_bytes);
  memcpy(returns, honest_returns, ring_bytes);
  return 0;
}
