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
  flow->waiting_head = flow->waiting_tail = flow->waiting_last = NPI_NONE;
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

void npi_flow_withhold(struct npi_flow *flow, struct npi_outlet *outlet) {
  outlet->entry->limit = 0;
  outlet->blocking = 0;
  count_kinds(flow);
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

/* An event that nobody gets: it is published when this word says so. */
static void publish_to_nobody(struct npi_flow *flow) {
  flow->published++;
  npi_flow_begin(flow, 0);
}

/* All receivers of an event are noted: store the elements, then look for returns where many are out. */
static void store_all(struct npi_flow *flow, uint32_t holders) {
  npi_flow_begin(flow, 1);
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    if (flow->outlets[i]->pending != 0) npi_outlet_store(flow->outlets[i]); /* [ring.submit] */
  }
  flow->published++;
  flow->elements += holders;
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
    publish_to_nobody(flow);
    if (flow->n_outlets == 0) npi_flow_count(flow, NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER, 1);
    npi_pool_free(flow->pool, slot);
    return NP_OK;
  }
  record->use = npi_use(record->slot_class, NPI_SLOT_OUTSTANDING, holders);
  store_all(flow, holders);
  npi_flow_count(flow, NPI_PUBLISHER_DELIVERED, holders);
  return NP_OK;
}

static int holds_suspect(const struct npi_flow *flow, const struct npi_outlet *outlet);

/* The member with the least outstanding that has credit, and no suspect where it shall get one; NULL: none. */
static struct npi_outlet *choose_member(struct npi_flow *flow, uint64_t stride, int suspect) {
  struct npi_outlet *best = NULL;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    struct npi_outlet *outlet = flow->outlets[i];
    if (outlet->tap) continue;
    if (outlet->entry->outstanding > 0) reap(flow, outlet, 64); /* or the choice would rest on old news */
    if (!has_credit(flow, outlet, stride) || (suspect && holds_suspect(flow, outlet))) continue;
    if (best == NULL || outlet->entry->outstanding < best->entry->outstanding) best = outlet;
  }
  return best;
}

/* New events come after those that wait. */
static int must_wait(const struct npi_flow *flow) {
  return flow->n_waiting > 0 && !flow->isolates;
}

static int publish_group(struct npi_flow *flow, uint32_t slot, struct npi_slot_header *header,
                         struct npi_slot_record *record, uint64_t stride) {
  if (npi_flow_has_waiting(flow)) npi_flow_offer_waiting(flow);
  struct npi_outlet *member = must_wait(flow) ? NULL : choose_member(flow, stride, 0);
  if (member == NULL) {
    if (flow->channel_on_full == NPI_ON_FULL_BLOCK) {
      npi_flow_count(flow, NPI_PUBLISHER_FULL, 1);
      return NP_FULL;
    }
    header->sequence = flow->sequence++;
    publish_to_nobody(flow); /* before the reason is counted: which of them it was is worth less than that it was */
    npi_flow_count(flow, flow->n_members == 0 ? NPI_PUBLISHER_DROPPED_NO_MEMBER : NPI_PUBLISHER_DROPPED_NO_CREDIT, 1);
    npi_pool_free(flow->pool, slot);
    return NP_OK;
  }
  header->sequence = flow->sequence++;
  npi_outlet_note(member, record, slot, stride);
  uint32_t holders = 1 + note_taps(flow, record, slot, stride);
  record->use = npi_use(record->slot_class, NPI_SLOT_OUTSTANDING, holders);
  store_all(flow, holders);
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

static uint64_t sequence_of(const struct npi_flow *flow, uint32_t slot) {
  const struct npi_slot_header *header = npi_pool_slot(flow->pool, npi_pool_record(flow->pool, slot)->handle);
  return header->sequence;
}

/* In order of their sequence, also where several members died one after the other. */
void npi_flow_keep(void *context, uint32_t slot) {
  struct npi_flow *flow = context;
  uint64_t sequence = sequence_of(flow, slot);
  uint32_t before = NPI_NONE;
  if (flow->waiting_tail != NPI_NONE && sequence_of(flow, flow->waiting_tail) <= sequence) {
    before = flow->waiting_tail;
  } else {
    /* They come oldest first: the place is behind that of the last one. */
    if (flow->waiting_last != NPI_NONE && sequence_of(flow, flow->waiting_last) <= sequence)
      before = flow->waiting_last;
    for (;;) {
      uint32_t next = before == NPI_NONE ? flow->waiting_head : npi_pool_record(flow->pool, before)->next;
      if (next == NPI_NONE || sequence_of(flow, next) > sequence) break;
      before = next;
    }
  }
  uint32_t *link = before == NPI_NONE ? &flow->waiting_head : &npi_pool_record(flow->pool, before)->next;
  npi_pool_record(flow->pool, slot)->next = *link;
  *link = slot;
  if (before == flow->waiting_tail) flow->waiting_tail = slot;
  flow->waiting_last = slot;
  flow->n_waiting++;
}

static uint32_t pop_waiting(struct npi_flow *flow) {
  uint32_t slot = flow->waiting_head;
  flow->waiting_head = npi_pool_record(flow->pool, slot)->next;
  if (flow->waiting_head == NPI_NONE) flow->waiting_tail = NPI_NONE;
  if (flow->waiting_last == slot) flow->waiting_last = NPI_NONE;
  flow->n_waiting--;
  return slot;
}

/* ---- what kills its workers ---------------------------------------------------------------------------
 *
 * A worker dies of one event but has often taken many: all of them count a delivery, so that the innocent
 * would be given up with the guilty. Therefore an event that has used half of its deliveries is a suspect,
 * and a member holds one suspect at a time: the next death accuses only one of them.
 */
static int is_suspect(const struct npi_flow *flow, const struct npi_slot_header *header) {
  return flow->max_deliveries > 0 && header->deliveries * 2u > flow->max_deliveries;
}

static int holds_suspect(const struct npi_flow *flow, const struct npi_outlet *outlet) {
  return outlet->suspect_slot != NPI_NONE && outlet->credit_slot[outlet->suspect_credit] == outlet->suspect_slot &&
         npi_pool_record(flow->pool, outlet->suspect_slot)->generation == outlet->suspect_generation;
}

static void note_suspect(struct npi_outlet *outlet, const struct npi_slot_record *record, uint32_t slot) {
  outlet->suspect_credit = npi_element_credit(outlet->pending);
  outlet->suspect_slot = slot;
  outlet->suspect_generation = record->generation;
}

/* Nobody will get it: free, unless a tap still reads it. */
static void let_go(struct npi_flow *flow, uint32_t slot) {
  struct npi_slot_record *record = npi_pool_record(flow->pool, slot);
  if (record->holders == 0) {
    npi_pool_free(flow->pool, slot);
  } else {
    record->state = NPI_SLOT_OUTSTANDING;
  }
}

static void give_up(struct npi_flow *flow, uint32_t slot, struct npi_slot_header *header) {
  uint8_t why = NPI_EVENT_DEAD_LETTER | NPI_DEAD_LETTER_DELIVERIES << NPI_EVENT_REASON_SHIFT;
  npi_slot_sizes_store(header, npi_slot_sizes_load(header) | npi_slot_sizes(0, 0, 0, why));
  npi_flow_count(flow, NPI_PUBLISHER_DEAD_LETTERED, 1);
  if (flow->dead_letter != NULL) {
    npi_flow_keep(flow->dead_letter, slot);
  } else {
    let_go(flow, slot);
  }
}

/* 1: it went, or nobody was there and that is counted; 0: it waits for a blocking subscriber. */
static int send_dead_letter(struct npi_flow *flow) {
  struct npi_slot_record *record = npi_pool_record(flow->pool, flow->waiting_head);
  const struct npi_slot_header *header = npi_pool_slot(flow->pool, record->handle);
  uint64_t stride = npi_class_stride(record->slot_class);
  uint32_t holders = 0;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    if (flow->outlets[i]->blocking && !has_credit(flow, flow->outlets[i], stride)) return 0;
  }
  uint32_t slot = pop_waiting(flow);
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    struct npi_outlet *outlet = flow->outlets[i];
    if (has_credit(flow, outlet, stride)) {
      npi_outlet_note(outlet, record, slot, stride);
      holders++;
    } else {
      count_drop(flow, outlet);
    }
  }
  uint64_t bytes = header->payload_bytes;
  if (holders == 0) {
    publish_to_nobody(flow);
    if (flow->n_outlets == 0) npi_flow_count(flow, NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER, 1);
    let_go(flow, slot);
  } else {
    record->holders = (uint16_t)(record->holders + holders); /* a tap of its own channel may still hold it */
    record->state = NPI_SLOT_OUTSTANDING;
    store_all(flow, holders);
    flow->stored = 1;
    npi_flow_count(flow, NPI_PUBLISHER_DELIVERED, holders);
  }
  npi_flow_count(flow, NPI_PUBLISHER_PUBLISHED, 1);
  npi_flow_count(flow, NPI_PUBLISHER_BYTES, bytes);
  return 1;
}

uint32_t npi_flow_offer_waiting(struct npi_flow *flow) {
  uint32_t n = 0;
  flow->isolates = 0;
  while (flow->n_waiting > 0) {
    if (flow->takes_dead_letters) {
      if (!send_dead_letter(flow)) break;
      n++;
      continue;
    }
    struct npi_slot_record *record = npi_pool_record(flow->pool, flow->waiting_head);
    struct npi_slot_header *header = npi_pool_slot(flow->pool, record->handle);
    uint64_t stride = npi_class_stride(record->slot_class);
    if (flow->max_deliveries > 0 && header->deliveries > flow->max_deliveries) {
      give_up(flow, pop_waiting(flow), header);
      continue;
    }
    int suspect = is_suspect(flow, header);
    struct npi_outlet *member = choose_member(flow, stride, suspect);
    if (member == NULL) {
      flow->isolates = suspect && choose_member(flow, stride, 0) != NULL;
      break;
    }
    uint32_t slot = pop_waiting(flow);
    npi_outlet_note(member, record, slot, stride);
    if (suspect) note_suspect(member, record, slot);
    record->holders++; /* a tap may still hold it */
    record->state = NPI_SLOT_OUTSTANDING;
    npi_flow_begin(flow, 0); /* an element, but of no new event */
    /* Counted first: delivered is counted behind the elements, so that the sum tells which of the two is not right. */
    npi_flow_count(flow, NPI_PUBLISHER_REDELIVERED, 1);
    npi_outlet_store(member);
    flow->elements++;
    npi_count_add(&member->block->counter[NPI_SUBMISSION_REDELIVERED], 1);
    n++;
  }
  if (flow->dead_letter != NULL && flow->dead_letter->n_waiting > 0) n += npi_flow_offer_waiting(flow->dead_letter);
  return n;
}

void npi_flow_abandon_waiting(struct npi_flow *flow) {
  while (flow->n_waiting > 0) {
    npi_flow_count(flow, NPI_PUBLISHER_LOST_WITH_MEMBER, 1);
    let_go(flow, pop_waiting(flow));
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
    if (npi_flow_has_waiting(flow)) npi_flow_offer_waiting(flow);
    return flow->channel_on_full != NPI_ON_FULL_BLOCK || (!must_wait(flow) && choose_member(flow, stride, 0) != NULL);
  }
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    if (flow->outlets[i]->blocking && !has_credit(flow, flow->outlets[i], stride)) return 0;
  }
  return 1;
}
