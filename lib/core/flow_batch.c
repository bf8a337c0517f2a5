/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A publisher that is killed in the middle leaves a ledger in which up to a batch of slots are loaned, or noted and
 * not stored; never an element without its note. The ledger's `submitted` is stored with each element, so that it is
 * wrong by one at most; an element says itself whether it was stored.
 */
#include "core/flow_batch.h"

#include <string.h>

enum {
  REAP_MOST = 2 * NPI_BATCH_MAX, /* of an outlet after a batch */
  ELEMENTS_A_LINE = NPI_CACHE_LINE / sizeof(struct npi_atomic_u64)
};

struct batch {
  struct npi_slot_header *header[NPI_BATCH_MAX];
  uint32_t slot[NPI_BATCH_MAX];
  uint64_t element[NPI_BATCH_MAX];          /* without credit until one is noted */
  struct npi_outlet *member[NPI_BATCH_MAX]; /* of a group */
  uint64_t strides;
  uint64_t bytes;
  uint32_t n;
};

/* ---- contents --------------------------------------------------------------------------------------------- */

/* Most payloads are small, and a call costs as much as the copy. Never reads or writes beyond n bytes. */
static inline void copy(uint8_t *to, const uint8_t *from, size_t n) {
  if (n > 128) {
    memcpy(to, from, n);
  } else if (n > 64) {
    memcpy(to, from, 64);
    memcpy(to + n - 64, from + n - 64, 64);
  } else if (n >= 32) {
    memcpy(to, from, 32);
    memcpy(to + n - 32, from + n - 32, 32);
  } else if (n >= 16) {
    memcpy(to, from, 16);
    memcpy(to + n - 16, from + n - 16, 16);
  } else if (n >= 8) {
    memcpy(to, from, 8);
    memcpy(to + n - 8, from + n - 8, 8);
  } else {
    for (size_t i = 0; i < n; i++) to[i] = from[i];
  }
}

/* The half of a header that is the same in all. */
struct half {
  uint64_t word[4];
};
_Static_assert(offsetof(struct npi_slot_header, connection) + sizeof(struct half) == NPI_SLOT_HEADER_BYTES, "half");

/* What subscribers will see; from here on the slots are theirs, though nobody knows of them yet. */
static void fill(const struct batch *batch, const struct npi_slot_header *like, uint64_t sequence, uint16_t holders,
                 struct npi_slot_record *records, const struct npi_payload *payloads) {
  const uint64_t time_ns = like->time_ns;
  const uint64_t sizes = npi_slot_sizes(0, 0, like->priority, like->flags);
  const uint32_t listener = like->listener;
  const uint32_t n = batch->n;
  struct half half;
  memcpy(&half, &like->connection, sizeof half);
  for (uint32_t i = 0; i < n; i++) {
    struct npi_slot_header *header = batch->header[i];
    struct npi_slot_record *record = &records[batch->slot[i]];
    header->sequence = sequence + i;
    header->time_ns = time_ns;
    npi_slot_sizes_store(header, sizes | payloads[i].size);
    header->listener = listener;
    header->generation = record->generation;
    memcpy(&header->connection, &half, sizeof half);
    copy((uint8_t *)(header + 1), payloads[i].bytes, payloads[i].size);
    record->holders = holders;
    record->state = NPI_SLOT_OUTSTANDING;
  }
}

/* ---- slots ------------------------------------------------------------------------------------------------ */

/* A slot on loan comes into the batch. */
NPI_INLINE void add_slot(struct batch *batch, const struct npi_pool_segment *segments,
                         const struct npi_slot_record *record, uint32_t slot, uint32_t at) {
  const uint32_t handle = record->handle;
  struct npi_slot_header *header =
      (struct npi_slot_header *)(void *)(segments[npi_handle_segment(handle)].base + npi_handle_offset(handle));
  batch->header[at] = header;
  batch->slot[at] = slot;
  batch->element[at] = npi_element(handle, 0, record->generation);
}

static inline uint64_t with_credit(uint64_t element, uint32_t credit) {
  return element | (uint64_t)credit << NPI_ELEMENT_CREDIT_SHIFT;
}

static void reap(struct npi_flow *flow, struct npi_outlet *outlet, uint32_t max) {
  if (outlet->broken) return;
  if (npi_outlet_reap(outlet, flow->pool, max) == NPI_OUTLET_LIE) flow->broken++;
}

/* ---- broadcast: every outlet gets every event, or the batch ends there --------------------------------------- */

/* How many events, and of how many bytes in all, have credit everywhere. */
static uint32_t common_credit(struct npi_flow *flow, uint32_t n, uint64_t *bytes) {
  *bytes = UINT64_MAX;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    struct npi_outlet *outlet = flow->outlets[i];
    const struct npi_ledger_connection *entry = outlet->entry;
    if (NPI_UNLIKELY(entry->outstanding + n > entry->limit)) reap(flow, outlet, entry->capacity);
    uint32_t credits = entry->limit > entry->outstanding ? entry->limit - entry->outstanding : 0;
    uint64_t left = entry->bytes_limit > entry->bytes_out ? entry->bytes_limit - entry->bytes_out : 0;
    if (credits < n) n = credits;
    if (left < *bytes) *bytes = left;
  }
  return n;
}

static inline void take_from_list(struct npi_free_list *list, uint32_t head, uint32_t n) {
  list->head = head;
  list->count -= n;
}

/* The list of a class is read and written once for a row of payloads of that class. */
static void loan(struct npi_flow *flow, struct batch *batch, const struct npi_payload *payloads, uint32_t n,
                 uint64_t most) {
  const struct npi_pool_segment *const segments = flow->pool->segments;
  struct npi_slot_record *const records = flow->pool->ledger.records;
  struct npi_free_list *const lists = flow->pool->ledger.header->free;
  uint64_t strides = 0, bytes = 0, stride = 0;
  uint32_t slot_class = NPI_CLASS_COUNT, head = NPI_NONE, n_taken = 0, at = 0;
  for (; at < n; at++) {
    uint32_t size = payloads[at].size;
    if (NPI_UNLIKELY(npi_class_of(size) != slot_class)) {
      if (n_taken > 0) take_from_list(&lists[slot_class], head, n_taken);
      n_taken = 0;
      slot_class = npi_class_of(size);
      if (slot_class >= NPI_CLASS_COUNT) break;
      stride = npi_class_stride(slot_class);
      head = lists[slot_class].head;
    }
    if (NPI_UNLIKELY(head == NPI_NONE || strides + stride > most)) break;
    struct npi_slot_record *record = &records[head];
    record->generation++;
    record->state = NPI_SLOT_LOANED;
    add_slot(batch, segments, record, head, at);
    head = record->next;
    n_taken++;
    strides += stride;
    bytes += size;
  }
  if (n_taken > 0) take_from_list(&lists[slot_class], head, n_taken);
  batch->n = at;
  batch->strides = strides;
  batch->bytes = bytes;
}

static void note(const struct batch *batch, struct npi_outlet *outlet) {
  struct npi_ledger_connection *entry = outlet->entry;
  const uint16_t *stack = outlet->credit_stack + entry->credits_free;
  uint32_t *const credit_slot = outlet->credit_slot;
  uint32_t *const credit_order = outlet->credit_order;
  const uint32_t position = (uint32_t)entry->submitted;
  const uint32_t n = batch->n;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t credit = *--stack;
    credit_slot[credit] = batch->slot[i];
    credit_order[credit] = position + i;
  }
  entry->credits_free -= n;
  entry->outstanding += n;
  entry->bytes_out += batch->strides;
}

/*
 * Lines that are with the subscriber now: those of the elements to be stored, which it is waiting at, and those of the
 * returns to be looked at after that. They come while slots are loaned.
 */
static void ask_for_rings(const struct npi_outlet *outlet, uint32_t n) {
  const struct npi_ledger_connection *entry = outlet->entry;
  for (uint32_t i = 0; i < n; i += ELEMENTS_A_LINE) {
    npi_prefetch_for_write(&outlet->submissions.element[(entry->submitted + i) & outlet->submissions.mask]);
  }
  if (!npi_flow_reap_is_due(outlet)) return;
  for (uint32_t i = 0; i < REAP_MOST; i += ELEMENTS_A_LINE) {
    npi_prefetch(&outlet->returns.element[(entry->returned + i) & outlet->returns.mask]);
  }
}

/* The credits that note() took are still where they lay: above the stack's end. */
static void store(const struct batch *batch, struct npi_outlet *outlet) {
  struct npi_ledger_connection *const entry = outlet->entry;
  const uint16_t *stack = outlet->credit_stack + entry->credits_free + batch->n;
  const struct npi_ring ring = outlet->submissions;
  struct npi_atomic_u64 *const counter = &outlet->block->counter[NPI_SUBMISSION_PUBLISHED];
  const uint32_t n = batch->n;
  uint64_t position = entry->submitted;
  for (uint32_t i = 0; i < n; i++) {
    npi_ring_store(&ring, position, with_credit(batch->element[i], *--stack)); /* [ring.submit] */
    entry->submitted = ++position;
    npi_store_relaxed_u64(counter, position);
  }
  outlet->unwoken = 1;
}

/* ---- group: each event to the member with the least outstanding ----------------------------------------------- */

static struct npi_outlet *choose_member(const struct npi_flow *flow, uint64_t stride) {
  struct npi_outlet *best = NULL;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    struct npi_outlet *outlet = flow->outlets[i];
    if (!npi_outlet_has_credit(outlet, stride)) continue;
    if (best == NULL || outlet->entry->outstanding < best->entry->outstanding) best = outlet;
  }
  return best;
}

static void loan_to_members(struct npi_flow *flow, struct batch *batch, const struct npi_payload *payloads,
                            uint32_t n) {
  for (uint32_t i = 0; i < flow->n_outlets; i++) reap(flow, flow->outlets[i], REAP_MOST);
  while (batch->n < n) {
    uint32_t at = batch->n;
    uint32_t slot_class = npi_class_of(payloads[at].size);
    if (NPI_UNLIKELY(slot_class >= NPI_CLASS_COUNT)) return;
    struct npi_outlet *member = choose_member(flow, npi_class_stride(slot_class));
    if (member == NULL) return;
    uint32_t slot = npi_pool_loan(flow->pool, slot_class);
    if (slot == NPI_NONE) return;
    add_slot(batch, flow->pool->segments, npi_pool_record(flow->pool, slot), slot, at);
    struct npi_ledger_connection *entry = member->entry;
    uint32_t credit = member->credit_stack[--entry->credits_free];
    member->credit_slot[credit] = batch->slot[at];
    member->credit_order[credit] = (uint32_t)entry->returned + entry->outstanding; /* where it will be stored */
    entry->outstanding++;
    entry->bytes_out += npi_class_stride(slot_class);
    batch->element[at] = with_credit(batch->element[at], credit);
    batch->member[at] = member;
    batch->bytes += payloads[at].size;
    batch->n++;
  }
}

static void store_to_members(const struct batch *batch) {
  for (uint32_t i = 0; i < batch->n; i++) {
    npi_outlet_store_only(batch->member[i], batch->element[i]); /* [ring.submit] */
    batch->member[i]->unwoken = 1;
  }
}

/* ---- the batch --------------------------------------------------------------------------------------------- */

uint32_t npi_flow_publish_batch(struct npi_flow *flow, const struct npi_slot_header *like,
                                const struct npi_payload *payloads, uint32_t n) {
  struct npi_slot_record *records = flow->pool->ledger.records;
  int is_group = flow->kind == NPI_CHANNEL_GROUP;
  uint16_t holders = is_group ? 1 : (uint16_t)flow->n_outlets;
  struct batch batch;
  batch.n = 0;
  batch.strides = batch.bytes = 0;
  if (n > NPI_BATCH_MAX) n = NPI_BATCH_MAX;
  if (flow->n_outlets == 0) return 0;
  if (is_group) {
    if (npi_flow_has_waiting(flow) || flow->n_members != flow->n_outlets) return 0;
    loan_to_members(flow, &batch, payloads, n);
  } else {
    uint64_t bytes;
    n = common_credit(flow, n, &bytes);
    for (uint32_t i = 0; i < flow->n_outlets; i++) ask_for_rings(flow->outlets[i], n);
    loan(flow, &batch, payloads, n, bytes);
  }
  if (batch.n == 0) return 0;
  for (uint32_t i = 0; !is_group && i < flow->n_outlets; i++) note(&batch, flow->outlets[i]);
  fill(&batch, like, flow->sequence, holders, records, payloads);
  flow->sequence += batch.n;
  npi_flow_begin(flow, batch.n); /* elements of one outlet after the other: the first one's say how many events */
  if (is_group) store_to_members(&batch);
  for (uint32_t i = 0; !is_group && i < flow->n_outlets; i++) store(&batch, flow->outlets[i]);
  flow->published += batch.n;
  flow->elements += (uint64_t)batch.n * holders;
  npi_flow_count(flow, NPI_PUBLISHER_DELIVERED, (uint64_t)batch.n * holders);
  npi_flow_count(flow, NPI_PUBLISHER_PUBLISHED, batch.n);
  npi_flow_count(flow, NPI_PUBLISHER_BYTES, batch.bytes);
  for (uint32_t i = 0; !is_group && i < flow->n_outlets; i++) {
    if (npi_flow_reap_is_due(flow->outlets[i])) reap(flow, flow->outlets[i], REAP_MOST);
  }
  return batch.n;
}
