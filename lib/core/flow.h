/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The flow: what one publisher does with an event. Which connections get it, what happens where a
 * connection has no credit, and in which order the ledger and the rings learn of it.
 *
 *   broadcast   every subscriber gets it. Blocking subscribers: all of them, or (yet) nobody. Others miss
 *               what they have no credit for, which is counted and shows as a gap in the sequence.
 *   group       one member gets it, the one with the least outstanding; taps see it beside that.
 *
 * First all receivers are noted in the ledger (credits, holders; own memory), then one element is stored
 * for each connection. The other way round, the first receiver's return could free a slot that the second
 * one is about to get.
 *
 * Returns are looked for after the stores, not before: that costs the middle nothing and wins a third at
 * the tail; and only where many are out, so that the return ring's lines do not bounce for each event.
 *
 * What a publisher counts it counts behind its stores, and it may be killed in between. The elements themselves say
 * what went out; how many events they are says one word, the row `begun`, stored before the first element of a
 * publish: X events were published when T elements had been stored in all rings of this publisher, and now n follow.
 * With E elements in the rings, X + min(E - T, n) events are published: nothing has to be counted at the same moment.
 *
 *   63..40 low bits of T | 39..16 low bits of X | 15..0 n
 */
#ifndef NPI_CORE_FLOW_H
#define NPI_CORE_FLOW_H

#include "core/counters.h"
#include "core/outlet.h"

struct npi_flow {
  struct npi_pool *pool;
  struct npi_outlet **outlets; /* active connections; array owned by the flow */
  struct npi_outlet
      *only; /* the one outlet of a broadcast that has no other; NULL: more or less than one, or a group */
  uint32_t n_outlets;
  uint32_t capacity;
  uint32_t n_blocking;
  uint32_t n_members;       /* outlets that are no taps */
  uint32_t kind;            /* enum npi_channel_kind */
  uint32_t channel_on_full; /* what a group without members or credit does */
  uint32_t broken;          /* outlets that were found broken and not reported yet */
  uint64_t sequence;
  uint64_t published; /* events */
  uint64_t elements;  /* stored, in all rings since the beginning */
  struct npi_endpoint_counters *counters;
  /* group events whose member died, by sequence, linked by their records; offered before any new event */
  uint32_t waiting_head, waiting_tail, n_waiting;
  uint32_t waiting_last; /* where the last one was put; NPI_NONE: it is not there any more */
  /*
   * What is offered again more than max_deliveries times goes to the flow of the dead-letter channel, which shares the
   * pool: the slot itself changes hands. There it waits until every blocking subscriber has credit.
   */
  uint32_t max_deliveries;      /* 0: no limit */
  struct npi_flow *dead_letter; /* NULL: none, given up events are lost and counted */
  uint8_t takes_dead_letters;   /* this is such a flow: what waits goes to everybody, not to one member */
  uint8_t stored;               /* dead letters were stored since its subscribers were last looked at */
  uint8_t isolates; /* the oldest waiting event may not share a member with another suspect; new ones may pass it */
};

void npi_flow_init(struct npi_flow *flow, struct npi_pool *pool, uint32_t kind, uint32_t channel_on_full,
                   struct npi_endpoint_counters *counters);
void npi_flow_deinit(struct npi_flow *flow);

/* NP_ERR_NO_MEMORY. */
int npi_flow_add(struct npi_flow *flow, struct npi_outlet *outlet);

/* No longer publishes there; does not touch the outlet. Unknown outlets are fine. */
void npi_flow_remove(struct npi_flow *flow, struct npi_outlet *outlet);

/* Its subscriber is shut out: gets no new event and is waited for no more; what it has it keeps until it is gone. */
void npi_flow_withhold(struct npi_flow *flow, struct npi_outlet *outlet);

/* Puts in its place a slot in state NPI_SLOT_WAITING; the keep() of npi_outlet_take_back, context is the flow. */
void npi_flow_keep(void *flow, uint32_t slot);

/*
 * Publishes a loaned slot whose header is filled but for sequence. NP_OK: it is out, or it was dropped and
 * counted, and the slot is free again. NP_FULL: nothing happened. Does not ring.
 */
int npi_flow_publish(struct npi_flow *flow, uint32_t slot, struct npi_slot_header *header);

/* Is it time to look for returns? See NPI_REAP_AT. */
static inline int npi_flow_reap_is_due(const struct npi_outlet *outlet) {
  return outlet->entry->submitted >= outlet->look_at;
}

/* The next elements are those of n events; with n 0: nothing is under way, `published` holds. */
static inline void npi_flow_begin(struct npi_flow *flow, uint32_t n) {
  npi_store_relaxed_u64(&flow->counters->value[NPI_PUBLISHER_BEGUN],
                        flow->elements << 40 | (flow->published & 0xffffff) << 16 | n);
}

/* How many events a publisher has published that counted so many, and whose rings hold so many elements. */
static inline uint64_t npi_flow_published(uint64_t begun, uint64_t counted, uint64_t elements) {
  uint32_t n = begun & 0xffff;
  uint32_t stored = (uint32_t)(elements - (begun >> 40)) & 0xffffff;
  uint32_t published = (uint32_t)(begun >> 16) + (stored < n ? stored : n);
  return counted + (uint64_t)((int32_t)((published - (uint32_t)counted) << 8) >> 8); /* both are near */
}

/*
 * The usual case, in the caller's code: a broadcast to one subscriber, which has credit, and no look for returns
 * is due. Returns its outlet, or NULL, where nothing happened: npi_flow_publish knows all cases. record is the
 * slot's, on loan; stride is its class's. Afterwards the caller looks at the doorbell. Same steps, same order as there.
 */
NPI_INLINE struct npi_outlet *npi_flow_publish_short(struct npi_flow *flow, uint32_t slot,
                                                     struct npi_slot_record *record, struct npi_slot_header *header,
                                                     uint64_t stride, uint64_t bytes) {
  struct npi_outlet *outlet = flow->only;
  if (NPI_UNLIKELY(outlet == NULL || npi_flow_reap_is_due(outlet))) return NULL;
  if (NPI_UNLIKELY(!npi_outlet_has_credit(outlet, stride))) return NULL;
  header->sequence = flow->sequence++;
  uint64_t element = npi_outlet_note_only(outlet, record, slot, stride);
  record->use += NPI_USE_LOANED_TO_OUT;
  npi_flow_begin(flow, 1);
  npi_outlet_store_only(outlet, element); /* [ring.submit] */
  flow->published++;
  flow->elements++;
  struct npi_endpoint_counters *counters = flow->counters;
  npi_count_add(&counters->value[NPI_PUBLISHER_DELIVERED], 1);
  npi_count_add(&counters->value[NPI_PUBLISHER_PUBLISHED], 1);
  npi_count_add(&counters->value[NPI_PUBLISHER_BYTES], bytes);
  return outlet;
}

/* The same for who has no stride at hand. */
static inline struct npi_outlet *npi_flow_publish_only(struct npi_flow *flow, uint32_t slot,
                                                       struct npi_slot_record *record, struct npi_slot_header *header,
                                                       uint64_t bytes) {
  return npi_flow_publish_short(flow, slot, record, header, npi_class_stride(record->slot_class), bytes);
}

void npi_flow_reap_due(struct npi_flow *flow, struct npi_outlet *outlet);

/* Offers waiting events to members with credit; returns how many went. Also of the dead-letter flow. */
uint32_t npi_flow_offer_waiting(struct npi_flow *flow);

/* Is there anything that a call of npi_flow_offer_waiting may move? */
static inline int npi_flow_has_waiting(const struct npi_flow *flow) {
  return flow->n_waiting > 0 || (flow->dead_letter != NULL && flow->dead_letter->n_waiting > 0);
}

/* Drops the waiting events (the publisher closes); they are counted as lost. */
void npi_flow_abandon_waiting(struct npi_flow *flow);

/* Processes returns of all outlets; returns how many credits came back. */
uint32_t npi_flow_reap(struct npi_flow *flow);

/* Would a publish of this class find credit now? Looks at returns as far as needed. */
int npi_flow_may_publish(struct npi_flow *flow, uint32_t slot_class);

static inline void npi_flow_count(struct npi_flow *flow, unsigned row, uint64_t n) {
  npi_count_add(&flow->counters->value[row], n);
}

#endif
