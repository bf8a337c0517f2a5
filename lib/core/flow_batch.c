/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A publisher that is killed in the middle leaves a ledger in which up to a batch of slots are loaned, or noted and
 * not stored; never an element without its note. The ledger's `submitted` is stored with each element, so that it is
 * wrong by one at most; an element says itself whether it was stored.
 */
#include "core/flow_batch.h"

#include <string.h>

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

static void fill(const struct batch *batch, const struct npi_slot_header *like, uint64_t sequence,
                 const struct npi_slot_record *records, const struct npi_payload *payloads) {
  for (uint32_t i = 0; i < batch->n; i++) {
    struct npi_slot_header *header = batch->header[i];
    header->sequence = sequence + i;
    header->time_ns = like->time_ns;
    npi_slot_sizes_store(header, npi_slot_sizes(payloads[i].size, 0, like->priority, like->flags));
    header->listener = like->listener;
    header->generation = records[batch->slot[i]].generation;
    memcpy((uint8_t *)header + offsetof(struct npi_slot_header, connection),
           (const uint8_t *)like + offsetof(struct npi_slot_header, connection),
           NPI_SLOT_HEADER_BYTES - offsetof(struct npi_slot_header, connection));
    copy((uint8_t *)(header + 1), payloads[i].bytes, payloads[i].size);
  }
}

/* ---- slots ------------------------------------------------------------------------------------------------ */

/* Takes a free slot into the batch. 0: there is none. */
static inline int add_slot(struct batch *batch, struct npi_pool *pool, uint32_t slot_class, uint32_t size) {
  uint32_t slot = npi_pool_loan(pool, slot_class);
  if (NPI_UNLIKELY(slot == NPI_NONE)) return 0;
  const struct npi_slot_record *record = npi_pool_record(pool, slot);
  struct npi_slot_header *header = npi_pool_slot(pool, record->handle);
  npi_prefetch_for_write(header);
  npi_prefetch_for_write(header + 1);
  batch->header[batch->n] = header;
  batch->slot[batch->n] = slot;
  batch->element[batch->n] = npi_element(record->handle, 0, record->generation);
  batch->strides += npi_class_stride(slot_class);
  batch->bytes += size;
  batch->n++;
  return 1;
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

static void loan(struct npi_flow *flow, struct batch *batch, const struct npi_payload *payloads, uint32_t n,
                 uint64_t bytes) {
  while (batch->n < n) {
    uint32_t size = payloads[batch->n].size;
    uint32_t slot_class = npi_class_of(size);
    if (NPI_UNLIKELY(slot_class >= NPI_CLASS_COUNT) || batch->strides + npi_class_stride(slot_class) > bytes) return;
    if (!add_slot(batch, flow->pool, slot_class, size)) return;
  }
}

static void note(const struct batch *batch, struct npi_outlet *outlet) {
  struct npi_ledger_connection *entry = outlet->entry;
  const uint16_t *stack = outlet->credit_stack + entry->credits_free;
  uint32_t position = (uint32_t)entry->submitted;
  for (uint32_t i = 0; i < batch->n; i++) {
    uint32_t credit = *--stack;
    outlet->credit_slot[credit] = batch->slot[i];
    outlet->credit_order[credit] = position + i;
  }
  entry->credits_free -= batch->n;
  entry->outstanding += batch->n;
  entry->bytes_out += batch->strides;
}

/* The credits that note() took are still where they lay: above the stack's end. */
static void store(const struct batch *batch, struct npi_outlet *outlet) {
  struct npi_ledger_connection *entry = outlet->entry;
  const uint16_t *stack = outlet->credit_stack + entry->credits_free + batch->n;
  uint64_t position = entry->submitted;
  for (uint32_t i = 0; i < batch->n; i++) {
    npi_ring_store(&outlet->submissions, position, with_credit(batch->element[i], *--stack)); /* [ring.submit] */
    entry->submitted = ++position;
    npi_store_relaxed_u64(&outlet->block->counter[NPI_SUBMISSION_PUBLISHED], position);
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
  for (uint32_t i = 0; i < flow->n_outlets; i++) reap(flow, flow->outlets[i], 2 * NPI_BATCH_MAX);
  while (batch->n < n) {
    uint32_t at = batch->n;
    uint32_t slot_class = npi_class_of(payloads[at].size);
    if (NPI_UNLIKELY(slot_class >= NPI_CLASS_COUNT)) return;
    struct npi_outlet *member = choose_member(flow, npi_class_stride(slot_class));
    if (member == NULL || !add_slot(batch, flow->pool, slot_class, payloads[at].size)) return;
    struct npi_ledger_connection *entry = member->entry;
    uint32_t credit = member->credit_stack[--entry->credits_free];
    member->credit_slot[credit] = batch->slot[at];
    member->credit_order[credit] = (uint32_t)entry->returned + entry->outstanding; /* where it will be stored */
    entry->outstanding++;
    entry->bytes_out += npi_class_stride(slot_class);
    batch->element[at] = with_credit(batch->element[at], credit);
    batch->member[at] = member;
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
  struct batch batch;
  batch.n = 0;
  batch.strides = batch.bytes = 0;
  if (n > NPI_BATCH_MAX) n = NPI_BATCH_MAX;
  if (flow->n_outlets == 0) return 0;
  if (is_group) {
    if (flow->n_waiting > 0 || flow->n_members != flow->n_outlets) return 0;
    loan_to_members(flow, &batch, payloads, n);
  } else {
    uint64_t bytes;
    n = common_credit(flow, n, &bytes);
    loan(flow, &batch, payloads, n, bytes);
  }
  if (batch.n == 0) return 0;
  fill(&batch, like, flow->sequence, records, payloads);
  flow->sequence += batch.n;
  for (uint32_t i = 0; !is_group && i < flow->n_outlets; i++) note(&batch, flow->outlets[i]);
  uint16_t holders = is_group ? 1 : (uint16_t)flow->n_outlets;
  for (uint32_t i = 0; i < batch.n; i++) {
    records[batch.slot[i]].holders = holders;
    records[batch.slot[i]].state = NPI_SLOT_OUTSTANDING;
  }
  if (is_group) store_to_members(&batch);
  for (uint32_t i = 0; !is_group && i < flow->n_outlets; i++) store(&batch, flow->outlets[i]);
  npi_flow_count(flow, NPI_PUBLISHER_DELIVERED, (uint64_t)batch.n * holders);
  npi_flow_count(flow, NPI_PUBLISHER_PUBLISHED, batch.n);
  npi_flow_count(flow, NPI_PUBLISHER_BYTES, batch.bytes);
  for (uint32_t i = 0; !is_group && i < flow->n_outlets; i++) {
    if (npi_flow_reap_is_due(flow->outlets[i])) reap(flow, flow->outlets[i], 2 * NPI_BATCH_MAX);
  }
  return batch.n;
}
