/* SPDX-License-Identifier: Apache-2.0 */
#include "core/flow.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

void npi_flow_init(struct npi_flow *flow, struct npi_pool *pool, uint32_t kind, uint32_t channel_on_full,
                   struct npi_endpoint_counters *counters) {
  memset(flow, 0, sizeof *flow);
  flow->pool = pool;
  flow->kind = kind;
  flow->channel_on_full = channel_on_full;
  flow->counters = counters;
  flow->waiting_head = flow->waiting_tail = NPI_NONE;
}

void npi_flow_deinit(struct npi_flow *flow) {
  free(flow->outlets);
  flow->outlets = NULL;
  flow->only = NULL;
  flow->n_outlets = flow->capacity = 0;
}

static void count_kinds(struct npi_flow *flow) {
  flow->n_blocking = flow->n_members = 0;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    flow->n_blocking += flow->outlets[i]->blocking;
    flow->n_members += !flow->outlets[i]->tap;
  }
  flow->only = flow->n_outlets == 1 && flow->kind != NPI_CHANNEL_GROUP ? flow->outlets[0] : NULL;
}

int npi_flow_add(struct npi_flow *flow, struct npi_outlet *outlet) {
  if (flow->n_outlets == flow->capacity) {
    uint32_t capacity = flow->capacity == 0 ? 8 : flow->capacity * 2;
    struct npi_outlet **outlets = realloc(flow->outlets, capacity * sizeof *outlets);
    if (outlets == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for %u connections of a publisher", capacity);
    flow->outlets = outlets;
    flow->capacity = capacity;
  }
  flow->outlets[flow->n_outlets++] = outlet;
  count_kinds(flow);
  return 0;
}

void npi_flow_remove(struct npi_flow *flow, struct npi_outlet *outlet) {
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    if (flow->outlets[i] != outlet) continue;
    memmove(&flow->outlets[i], &flow->outlets[i + 1], (flow->n_outlets - i - 1) * sizeof *flow->outlets);
    flow->n_outlets--;
    count_kinds(flow);
    return;
  }
}

/* Returns of one outlet, up to a full ring; a lie is remembered for the caller of the data path. */
static void reap(struct npi_flow *flow, struct npi_outlet *outlet, uint32_t max) {
  if (outlet->broken) return;
  if (npi_outlet_reap(outlet, flow->pool, max) == NPI_OUTLET_LIE) flow->broken++;
}

void npi_flow_reap_due(struct npi_flow *flow, struct npi_outlet *outlet) {
  reap(flow, outlet, 64);
}

static int has_credit(struct npi_flow *flow, struct npi_outlet *outlet, uint64_t stride) {
  if (NPI_LIKELY(npi_outlet_has_credit(outlet, stride))) return 1;
  reap(flow, outlet, outlet->entry->capacity);
  return npi_outlet_has_credit(outlet, stride);
}

static void count_drop(struct npi_flow *flow, struct npi_outlet *outlet) {
  npi_count_add(&outlet->block->counter[NPI_SUBMISSION_DROPPED], 1);
  npi_flow_count(flow, NPI_PUBLISHER_DROPPED_NO_CREDIT, 1);
}

/* All receivers are noted: store the elements, then look for returns where many are out. */
static void store_all(struct npi_flow *flow) {
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    if (flow->outlets[i]->pending != 0) npi_outlet_store(flow->outlets[i]); /* [ring.submit] */
  }
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    if (npi_flow_reap_is_due(flow->outlets[i])) npi_flow_reap_due(flow, flow->outlets[i]);
  }
}

/* Taps never slow anybody: without credit they miss the event. Returns how many get it. */
static uint32_t note_taps(struct npi_flow *flow, const struct npi_slot_record *record, uint32_t slot, uint64_t stride) {
  uint32_t n = 0;
  if (flow->n_members == flow->n_outlets) return 0;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    struct npi_outlet *outlet = flow->outlets[i];
    if (!outlet->tap) continue;
    if (has_credit(flow, outlet, stride)) {
      npi_outlet_note(outlet, record, slot, stride);
      n++;
    } else {
      count_drop(flow, outlet);
    }
  }
  return n;
}

static int publish_broadcast(struct npi_flow *flow, uint32_t slot, struct npi_slot_header *header,
                             struct npi_slot_record *record, uint64_t stride) {
  uint32_t holders = 0;
  if (flow->n_blocking > 0) {
    for (uint32_t i = 0; i < flow->n_outlets; i++) {
      if (flow->outlets[i]->blocking && !has_credit(flow, flow->outlets[i], stride)) {
        npi_flow_count(flow, NPI_PUBLISHER_FULL, 1);
        return NP_FULL;
      }
    }
  }
  header->sequence = flow->sequence++;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    struct npi_outlet *outlet = flow->outlets[i];
    if (NPI_LIKELY(has_credit(flow, outlet, stride))) {
      npi_outlet_note(outlet, record, slot, stride);
      holders++;
    } else {
      count_drop(flow, outlet);
    }
  }
  if (NPI_UNLIKELY(holders == 0)) {
    if (flow->n_outlets == 0) npi_flow_count(flow, NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER, 1);
    npi_pool_free(flow->pool, slot);
    return NP_OK;
  }
  record->holders = (uint16_t)holders;
  record->state = NPI_SLOT_OUTSTANDING;
  store_all(flow);
  npi_flow_count(flow, NPI_PUBLISHER_DELIVERED, holders);
  return NP_OK;
}

/* The member with the least outstanding that has credit; NULL: none. */
static struct npi_outlet *choose_member(struct npi_flow *flow, uint64_t stride) {
  struct npi_outlet *best = NULL;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    struct npi_outlet *outlet = flow->outlets[i];
    if (outlet->tap) continue;
    if (outlet->entry->outstanding > 0) reap(flow, outlet, 64); /* or the choice would rest on old news */
    if (!has_credit(flow, outlet, stride)) continue;
    if (best == NULL || outlet->entry->outstanding < best->entry->outstanding) best = outlet;
  }
  return best;
}

static int publish_group(struct npi_flow *flow, uint32_t slot, struct npi_slot_header *header,
                         struct npi_slot_record *record, uint64_t stride) {
  if (flow->n_waiting > 0) npi_flow_offer_waiting(flow);
  struct npi_outlet *member = flow->n_waiting > 0 ? NULL : choose_member(flow, stride);
  if (member == NULL) {
    if (flow->channel_on_full == NPI_ON_FULL_BLOCK) {
      npi_flow_count(flow, NPI_PUBLISHER_FULL, 1);
      return NP_FULL;
    }
    header->sequence = flow->sequence++;
    npi_flow_count(flow, flow->n_members == 0 ? NPI_PUBLISHER_DROPPED_NO_MEMBER : NPI_PUBLISHER_DROPPED_NO_CREDIT, 1);
    npi_pool_free(flow->pool, slot);
    return NP_OK;
  }
  header->sequence = flow->sequence++;
  npi_outlet_note(member, record, slot, stride);
  uint32_t holders = 1 + note_taps(flow, record, slot, stride);
  record->holders = (uint16_t)holders;
  record->state = NPI_SLOT_OUTSTANDING;
  store_all(flow);
  npi_flow_count(flow, NPI_PUBLISHER_DELIVERED, holders);
  return NP_OK;
}

int npi_flow_publish(struct npi_flow *flow, uint32_t slot, struct npi_slot_header *header) {
  struct npi_slot_record *record = npi_pool_record(flow->pool, slot);
  uint64_t stride = npi_class_stride(record->slot_class);
  uint64_t bytes = header->payload_bytes;
  int status = flow->kind == NPI_CHANNEL_GROUP ? publish_group(flow, slot, header, record, stride)
                                               : publish_broadcast(flow, slot, header, record, stride);
  if (NPI_LIKELY(status == NP_OK)) {
    npi_flow_count(flow, NPI_PUBLISHER_PUBLISHED, 1);
    npi_flow_count(flow, NPI_PUBLISHER_BYTES, bytes);
  }
  return status;
}

void npi_flow_keep(void *context, uint32_t slot) {
  struct npi_flow *flow = context;
  npi_pool_record(flow->pool, slot)->next = NPI_NONE;
  if (flow->waiting_tail == NPI_NONE) {
    flow->waiting_head = slot;
  } else {
    npi_pool_record(flow->pool, flow->waiting_tail)->next = slot;
  }
  flow->waiting_tail = slot;
  flow->n_waiting++;
}

static uint32_t pop_waiting(struct npi_flow *flow) {
  uint32_t slot = flow->waiting_head;
  flow->waiting_head = npi_pool_record(flow->pool, slot)->next;
  if (flow->waiting_head == NPI_NONE) flow->waiting_tail = NPI_NONE;
  flow->n_waiting--;
  return slot;
}

uint32_t npi_flow_offer_waiting(struct npi_flow *flow) {
  uint32_t n = 0;
  while (flow->n_waiting > 0) {
    struct npi_slot_record *record = npi_pool_record(flow->pool, flow->waiting_head);
    uint64_t stride = npi_class_stride(record->slot_class);
    struct npi_outlet *member = choose_member(flow, stride);
    if (member == NULL) break;
    uint32_t slot = pop_waiting(flow);
    struct npi_slot_header *header = npi_pool_slot(flow->pool, record->handle);
    header->flags |= NPI_EVENT_REDELIVERED;
    if (header->deliveries < UINT8_MAX) header->deliveries++;
    npi_outlet_note(member, record, slot, stride);
    record->holders++; /* a tap may still hold it */
    record->state = NPI_SLOT_OUTSTANDING;
    npi_outlet_store(member);
    npi_count_add(&member->block->counter[NPI_SUBMISSION_REDELIVERED], 1);
    npi_flow_count(flow, NPI_PUBLISHER_REDELIVERED, 1);
    n++;
  }
  return n;
}

void npi_flow_abandon_waiting(struct npi_flow *flow) {
  while (flow->n_waiting > 0) {
    uint32_t slot = pop_waiting(flow);
    struct npi_slot_record *record = npi_pool_record(flow->pool, slot);
    npi_flow_count(flow, NPI_PUBLISHER_LOST_WITH_MEMBER, 1);
    if (record->holders == 0) {
      npi_pool_free(flow->pool, slot);
    } else {
      record->state = NPI_SLOT_OUTSTANDING;
    }
  }
}

uint32_t npi_flow_reap(struct npi_flow *flow) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    uint32_t before = flow->outlets[i]->entry->outstanding;
    if (before == 0) continue;
    reap(flow, flow->outlets[i], flow->outlets[i]->entry->capacity);
    n += before - flow->outlets[i]->entry->outstanding;
  }
  return n;
}

int npi_flow_may_publish(struct npi_flow *flow, uint32_t slot_class) {
  uint64_t stride = npi_class_stride(slot_class);
  if (flow->kind == NPI_CHANNEL_GROUP) {
    if (flow->n_waiting > 0) npi_flow_offer_waiting(flow);
    return flow->channel_on_full != NPI_ON_FULL_BLOCK || (flow->n_waiting == 0 && choose_member(flow, stride) != NULL);
  }
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    if (flow->outlets[i]->blocking && !has_credit(flow, flow->outlets[i], stride)) return 0;
  }
  return 1;
}
