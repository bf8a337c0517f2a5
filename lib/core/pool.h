/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool: a client's home for slots. It carves the segments that the broker leased to the client into
 * slots, keeps the free ones on a list for each size class, and counts who holds the others.
 *
 * Nobody else ever touches a slot record: a slot that comes back does so by an element in a return ring,
 * which core/outlet.h processes. Loan is a pop, a free is a push, both on memory that only this thread
 * writes: no locked instruction, no system call, no allocation.
 *
 * One pool serves all publishers of a client, which belong to one thread.
 */
#ifndef NPI_CORE_POOL_H
#define NPI_CORE_POOL_H

#include "core/ledger.h"

struct npi_pool_segment {
  uint8_t *base; /* NULL: no segment of this number */
  uint64_t bytes;
  uint64_t idle_since_ns; /* when a check first found nothing of it in use; 0: in use */
};

struct npi_pool {
  struct npi_ledger ledger;
  struct npi_pool_segment *segments; /* by number; the caller's array of geometry.segments */
  uint64_t leased_bytes;
  uint64_t budget_bytes;
  uint32_t n_segments;
  uint32_t carve_hint; /* segment where the last carving found room */
};

enum { NPI_POOL_DRY = 1, NPI_POOL_BUSY = 2 };

/* memory: zeroed, npi_ledger_footprint() bytes; segments: zeroed array. Both stay the caller's. */
void npi_pool_init(struct npi_pool *pool, void *memory, const struct npi_ledger_geometry *geometry, uint32_t client,
                   uint32_t client_version, struct npi_pool_segment *segments, uint64_t budget_bytes);

/* Takes a leased segment into use. NP_ERR_PROTOCOL: number or size make no sense, or the number is taken. */
int npi_pool_add_segment(struct npi_pool *pool, uint32_t number, void *base, uint64_t bytes, uint32_t node);

/* Takes a segment out of use. NPI_POOL_BUSY: a slot of it is loaned, outstanding or waiting. */
int npi_pool_remove_segment(struct npi_pool *pool, uint32_t number);

/* A segment of which nothing has been in use since `idle_ns` before now, when at least keep others stay; NPI_NONE: none. */
uint32_t npi_pool_idle_segment(struct npi_pool *pool, uint64_t now_ns, uint64_t idle_ns, uint32_t keep);

/* Carves chunks into slots of a class. NPI_POOL_DRY: no segment has room. */
int npi_pool_carve(struct npi_pool *pool, uint32_t slot_class);

/* Makes chunks of other classes that are wholly free available again; returns how many. Slow: walks all records. */
uint32_t npi_pool_uncarve(struct npi_pool *pool);

/* Free slots are rarely of no class but the wanted one: the smallest larger class that has one. NPI_NONE: none. */
uint32_t npi_pool_larger_class(const struct npi_pool *pool, uint32_t slot_class);

/* Frees the slots on loan whose record's `next` says `mark`; returns how many. Walks all records. */
uint32_t npi_pool_free_loans(struct npi_pool *pool, uint32_t mark);

/* Slots by state, for statistics; walks all records. */
void npi_pool_count(const struct npi_pool *pool, uint64_t *n_free, uint64_t *n_loaned, uint64_t *n_outstanding);

static inline struct npi_slot_record *npi_pool_record(const struct npi_pool *pool, uint32_t slot) {
  return &pool->ledger.records[slot];
}

static inline struct npi_slot_header *npi_pool_slot(const struct npi_pool *pool, uint32_t handle) {
  return (struct npi_slot_header *)(void *)(pool->segments[npi_handle_segment(handle)].base +
                                            npi_handle_offset(handle));
}

/* Pops a free slot; NPI_NONE: the list of this class is empty. */
NPI_INLINE uint32_t npi_pool_loan(struct npi_pool *pool, uint32_t slot_class) {
  struct npi_free_list *list = &pool->ledger.header->free[slot_class];
  uint32_t slot = list->head;
  if (NPI_UNLIKELY(slot == NPI_NONE)) return NPI_NONE;
  struct npi_slot_record *record = npi_pool_record(pool, slot);
  list->head = record->next;
  list->count--;
  record->generation++;
  record->use = npi_use(slot_class, NPI_SLOT_LOANED, 0);
  return slot;
}

/* Pushes a slot that nobody holds (holders is 0) on the list of its class. */
static inline void npi_free_list_push(struct npi_free_list *lists, struct npi_slot_record *records, uint32_t slot) {
  struct npi_slot_record *record = &records[slot];
  uint32_t slot_class = record->slot_class;
  struct npi_free_list *list = &lists[slot_class];
  record->use = npi_use(slot_class, NPI_SLOT_FREE, 0);
  record->next = list->head;
  list->head = slot;
  list->count++;
}

static inline void npi_pool_free(struct npi_pool *pool, uint32_t slot) {
  npi_free_list_push(pool->ledger.header->free, pool->ledger.records, slot);
}

#endif
