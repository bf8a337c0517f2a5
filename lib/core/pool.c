/* SPDX-License-Identifier: Apache-2.0 */
#include "core/pool.h"

#include <string.h>

#include "base/status.h"

void npi_pool_init(struct npi_pool *pool, void *memory, const struct npi_ledger_geometry *geometry, uint32_t client,
                   uint32_t client_version, struct npi_pool_segment *segments, uint64_t budget_bytes) {
  memset(pool, 0, sizeof *pool);
  npi_ledger_format(&pool->ledger, memory, geometry, client, client_version);
  pool->segments = segments;
  pool->budget_bytes = budget_bytes;
}

int npi_pool_add_segment(struct npi_pool *pool, uint32_t number, void *base, uint64_t bytes, uint32_t node) {
  const struct npi_ledger_geometry *geometry = &pool->ledger.geometry;
  if (number >= geometry->segments || bytes == 0 || bytes % NPI_CHUNK_BYTES != 0 ||
      bytes / NPI_CHUNK_BYTES > geometry->chunks_per_segment || bytes > NPI_SEGMENT_BYTES_MAX) {
    return npi_fail(NP_ERR_PROTOCOL,
                    "leased segment %u of %llu bytes does not fit a ledger of %u segments of %u chunks", number,
                    (unsigned long long)bytes, geometry->segments, geometry->chunks_per_segment);
  }
  if (pool->segments[number].base != NULL) {
    return npi_fail(NP_ERR_PROTOCOL, "segment number %u was leased twice", number);
  }
  pool->segments[number] = (struct npi_pool_segment){.base = base, .bytes = bytes};
  uint32_t chunks = (uint32_t)(bytes / NPI_CHUNK_BYTES);
  memset(&pool->ledger.chunks[npi_ledger_chunk_index(&pool->ledger, number, 0)], NPI_CHUNK_FREE, chunks);
  pool->ledger.segments[number] =
      (struct npi_ledger_segment){.leased = 1, .node = node, .bytes = bytes, .chunks = chunks, .chunks_free = chunks};
  pool->leased_bytes += bytes;
  pool->n_segments++;
  return 0;
}

/* First chunk of a row of `run` free chunks; NPI_NONE: none. */
static uint32_t find_run(const struct npi_pool *pool, uint32_t number, uint32_t run) {
  const struct npi_ledger_segment *segment = &pool->ledger.segments[number];
  const struct npi_ledger_chunk *chunk = &pool->ledger.chunks[npi_ledger_chunk_index(&pool->ledger, number, 0)];
  uint32_t row = 0;
  for (uint32_t i = 0; i < segment->chunks; i++) {
    row = chunk[i].slot_class == NPI_CHUNK_FREE ? row + 1 : 0;
    if (row == run) return i + 1 - run;
  }
  return NPI_NONE;
}

static void carve_run(struct npi_pool *pool, uint32_t number, uint32_t first_chunk, uint32_t slot_class) {
  struct npi_ledger *ledger = &pool->ledger;
  uint32_t run = npi_class_run(slot_class);
  struct npi_ledger_chunk *chunk = &ledger->chunks[npi_ledger_chunk_index(ledger, number, first_chunk)];
  uint32_t first = npi_ledger_first_record(ledger, number, first_chunk);
  uint64_t offset = (uint64_t)first_chunk * NPI_CHUNK_BYTES;
  chunk[0].slot_class = (uint8_t)slot_class;
  for (uint32_t i = 1; i < run; i++) chunk[i].slot_class = NPI_CHUNK_CONTINUED;
  ledger->segments[number].chunks_free -= run;
  /* Last first, so that the list hands them out in the order of their addresses. */
  for (uint32_t i = npi_class_slots(slot_class); i-- > 0;) {
    struct npi_slot_record *record = npi_pool_record(pool, first + i);
    record->handle = npi_handle(number, offset + i * npi_class_stride(slot_class));
    record->holders = 0;
    record->slot_class = (uint8_t)slot_class;
    npi_pool_free(pool, first + i);
  }
}

int npi_pool_carve(struct npi_pool *pool, uint32_t slot_class) {
  uint32_t run = npi_class_run(slot_class);
  uint32_t n = pool->ledger.geometry.segments;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t number = (pool->carve_hint + i) % n;
    if (pool->segments[number].base == NULL || pool->ledger.segments[number].chunks_free < run) continue;
    uint32_t chunk = find_run(pool, number, run);
    if (chunk == NPI_NONE) continue;
    carve_run(pool, number, chunk, slot_class);
    pool->carve_hint = number;
    return 0;
  }
  return NPI_POOL_DRY;
}

/* A carved run of a segment as a loop sees it. Returns the next run's first chunk, or NPI_NONE at the end. */
static uint32_t next_run(const struct npi_pool *pool, uint32_t number, uint32_t chunk) {
  const struct npi_ledger *ledger = &pool->ledger;
  for (; chunk < ledger->segments[number].chunks; chunk++) {
    if (ledger->chunks[npi_ledger_chunk_index(ledger, number, chunk)].slot_class < NPI_CLASS_COUNT) return chunk;
  }
  return NPI_NONE;
}

static int run_is_free(const struct npi_pool *pool, uint32_t number, uint32_t chunk) {
  const struct npi_ledger *ledger = &pool->ledger;
  uint32_t slot_class = ledger->chunks[npi_ledger_chunk_index(ledger, number, chunk)].slot_class;
  uint32_t first = npi_ledger_first_record(ledger, number, chunk);
  for (uint32_t i = 0; i < npi_class_slots(slot_class); i++) {
    if (npi_pool_record(pool, first + i)->state != NPI_SLOT_FREE) return 0;
  }
  return 1;
}

/* Every record that was marked NPI_SLOT_NONE leaves the free list that it is on. */
static void sweep_free_lists(struct npi_pool *pool) {
  for (uint32_t slot_class = 0; slot_class < NPI_CLASS_COUNT; slot_class++) {
    struct npi_free_list *list = &pool->ledger.header->free[slot_class];
    uint32_t *link = &list->head;
    while (*link != NPI_NONE) {
      struct npi_slot_record *record = npi_pool_record(pool, *link);
      if (record->state == NPI_SLOT_NONE) {
        *link = record->next;
        list->count--;
      } else {
        link = &record->next;
      }
    }
  }
}

/* Marks the slots of a wholly free run as not carved; sweep_free_lists() must follow. */
static void uncarve_run(struct npi_pool *pool, uint32_t number, uint32_t chunk) {
  struct npi_ledger *ledger = &pool->ledger;
  struct npi_ledger_chunk *chunks = &ledger->chunks[npi_ledger_chunk_index(ledger, number, chunk)];
  uint32_t slot_class = chunks[0].slot_class;
  uint32_t first = npi_ledger_first_record(ledger, number, chunk);
  for (uint32_t i = 0; i < npi_class_slots(slot_class); i++) npi_pool_record(pool, first + i)->state = NPI_SLOT_NONE;
  for (uint32_t i = 0; i < npi_class_run(slot_class); i++) chunks[i].slot_class = NPI_CHUNK_FREE;
  ledger->segments[number].chunks_free += npi_class_run(slot_class);
}

uint32_t npi_pool_uncarve(struct npi_pool *pool) {
  uint32_t n_chunks = 0;
  for (uint32_t number = 0; number < pool->ledger.geometry.segments; number++) {
    if (pool->segments[number].base == NULL) continue;
    for (uint32_t chunk = next_run(pool, number, 0); chunk != NPI_NONE; chunk = next_run(pool, number, chunk + 1)) {
      if (!run_is_free(pool, number, chunk)) continue;
      n_chunks += npi_class_run(pool->ledger.chunks[npi_ledger_chunk_index(&pool->ledger, number, chunk)].slot_class);
      uncarve_run(pool, number, chunk);
    }
  }
  if (n_chunks > 0) sweep_free_lists(pool);
  return n_chunks;
}

static int segment_is_free(const struct npi_pool *pool, uint32_t number) {
  for (uint32_t chunk = next_run(pool, number, 0); chunk != NPI_NONE; chunk = next_run(pool, number, chunk + 1)) {
    if (!run_is_free(pool, number, chunk)) return 0;
  }
  return 1;
}

int npi_pool_remove_segment(struct npi_pool *pool, uint32_t number) {
  if (number >= pool->ledger.geometry.segments || pool->segments[number].base == NULL) {
    return npi_fail(NP_ERR_ARGUMENT, "there is no segment number %u in this pool", number);
  }
  if (!segment_is_free(pool, number)) return NPI_POOL_BUSY;
  for (uint32_t chunk = next_run(pool, number, 0); chunk != NPI_NONE; chunk = next_run(pool, number, chunk + 1)) {
    uncarve_run(pool, number, chunk);
  }
  sweep_free_lists(pool);
  pool->leased_bytes -= pool->segments[number].bytes;
  pool->n_segments--;
  pool->segments[number] = (struct npi_pool_segment){0};
  pool->ledger.segments[number] = (struct npi_ledger_segment){0};
  return 0;
}

uint32_t npi_pool_idle_segment(struct npi_pool *pool, uint64_t now_ns, uint64_t idle_ns, uint32_t keep) {
  uint32_t found = NPI_NONE;
  if (pool->n_segments <= keep) return NPI_NONE;
  for (uint32_t number = 0; number < pool->ledger.geometry.segments; number++) {
    struct npi_pool_segment *segment = &pool->segments[number];
    if (segment->base == NULL) continue;
    if (!segment_is_free(pool, number)) {
      segment->idle_since_ns = 0;
    } else if (segment->idle_since_ns == 0) {
      segment->idle_since_ns = now_ns;
    } else if (now_ns - segment->idle_since_ns >= idle_ns) {
      found = number;
    }
  }
  return found;
}

uint32_t npi_pool_larger_class(const struct npi_pool *pool, uint32_t slot_class) {
  for (uint32_t i = slot_class + 1; i < NPI_CLASS_COUNT; i++) {
    if (pool->ledger.header->free[i].head != NPI_NONE) return i;
  }
  return NPI_NONE;
}

uint32_t npi_pool_free_loans(struct npi_pool *pool, uint32_t mark) {
  uint32_t n = 0;
  for (uint32_t number = 0; number < pool->ledger.geometry.segments; number++) {
    if (pool->segments[number].base == NULL) continue;
    for (uint32_t chunk = next_run(pool, number, 0); chunk != NPI_NONE; chunk = next_run(pool, number, chunk + 1)) {
      uint32_t slot_class = pool->ledger.chunks[npi_ledger_chunk_index(&pool->ledger, number, chunk)].slot_class;
      uint32_t first = npi_ledger_first_record(&pool->ledger, number, chunk);
      for (uint32_t i = 0; i < npi_class_slots(slot_class); i++) {
        const struct npi_slot_record *record = npi_pool_record(pool, first + i);
        if (record->state != NPI_SLOT_LOANED || record->next != mark) continue;
        npi_pool_free(pool, first + i);
        n++;
      }
    }
  }
  return n;
}

void npi_pool_count(const struct npi_pool *pool, uint64_t *n_free, uint64_t *n_loaned, uint64_t *n_outstanding) {
  uint64_t by_state[5] = {0};
  for (uint32_t number = 0; number < pool->ledger.geometry.segments; number++) {
    if (pool->segments[number].base == NULL) continue;
    for (uint32_t chunk = next_run(pool, number, 0); chunk != NPI_NONE; chunk = next_run(pool, number, chunk + 1)) {
      uint32_t slot_class = pool->ledger.chunks[npi_ledger_chunk_index(&pool->ledger, number, chunk)].slot_class;
      uint32_t first = npi_ledger_first_record(&pool->ledger, number, chunk);
      for (uint32_t i = 0; i < npi_class_slots(slot_class); i++) by_state[npi_pool_record(pool, first + i)->state]++;
    }
  }
  *n_free = by_state[NPI_SLOT_FREE];
  *n_loaned = by_state[NPI_SLOT_LOANED];
  *n_outstanding = by_state[NPI_SLOT_OUTSTANDING] + by_state[NPI_SLOT_WAITING];
}
