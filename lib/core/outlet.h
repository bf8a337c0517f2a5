/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The publisher's half of a connection: numbered credits, submissions going out, returns coming back.
 *
 * A connection with capacity N has N credits, numbered. Publishing takes a free credit and notes which slot
 * it stands for; the element carries the number, the subscriber's return repeats it. So each return can be
 * checked exactly (is this credit out, and for this slot?), and when a subscriber dies a walk over at most N
 * credits finds all that it held. The number is not the position: a subscriber may keep one event for an
 * hour while thousands pass.
 *
 * What comes from the return ring is written by another process: loaded once, checked, then used. The first
 * lie ends the connection (NPI_OUTLET_LIE), and no call ever reads more than N returns.
 */
#ifndef NPI_CORE_OUTLET_H
#define NPI_CORE_OUTLET_H

#include "core/doorbell.h"
#include "core/pool.h"
#include "core/ring.h"

enum { NPI_OUTLET_LIE = -1 };

struct npi_outlet {
  struct npi_ledger_connection *entry; /* in the ledger: credits, positions */
  uint64_t look_at;                    /* look for returns once so many were submitted */
  uint16_t *credit_stack;
  uint32_t *credit_slot;
  uint32_t *credit_order;
  struct npi_ring submissions;
  const struct npi_atomic_u64 *bell_word;     /* npi_bell_word() of the bell */
  struct npi_ring_block *block;               /* own submissions block: counters */
  const struct npi_ring_block *returns_block; /* the subscriber's: how many it took, asked when it is gone */
  struct npi_bell_peer *bell;                 /* of the subscriber's client; shared by all outlets to it */
  struct npi_ring returns;
  uint64_t pending; /* element noted in the ledger, to be stored next; 0: none */
  uint8_t unwoken;  /* stored since the last look at the doorbell */
  uint8_t broken;   /* the subscriber lied: no more credit */
  uint8_t tap;
  uint8_t blocking;
  /* The last event given to it that may be what its former members died of (flow.c): credit, slot and generation. */
  uint32_t suspect_credit, suspect_slot, suspect_generation;
};

#define NPI_PENDING (UINT64_C(1) << 63)

/*
 * Fills the ledger's entry and the view. entry->credits_offset, capacity, limit, flags, on_full and the
 * registry's indices are set by the caller; everything else here.
 */
void npi_outlet_init(struct npi_outlet *outlet, const struct npi_ledger *ledger, struct npi_ledger_connection *entry,
                     struct npi_ring_block *submissions, struct npi_ring_block *returns, struct npi_bell_peer *bell);

/*
 * When to look for returns: where few are out, once NPI_REAP_AT are. Else after every NPI_REAP_EVERY events, so
 * that the line of the return ring, which the subscriber writes, comes over once for all elements of it, and the
 * slots that come free are fetched side by side.
 */
enum { NPI_REAP_AT = 32, NPI_REAP_EVERY = 32 };

/* Processes up to max returns. Returns how many, or NPI_OUTLET_LIE (then the outlet is broken). */
int npi_outlet_reap(struct npi_outlet *outlet, struct npi_pool *pool, uint32_t max);

/*
 * The subscriber is gone: after its last returns were processed, takes back every credit. Slots that nobody
 * else holds are freed; where keep is not NULL (a group) they are handed to keep() instead, oldest first,
 * in state NPI_SLOT_WAITING, marked as redelivered; those that it had taken count one delivery more, as what
 * only lay in its ring cannot be what it died of. Returns how many events the subscriber had not returned.
 */
uint32_t npi_outlet_take_back(struct npi_outlet *outlet, struct npi_pool *pool,
                              void (*keep)(void *context, uint32_t slot), void *context);

static inline int npi_outlet_has_credit(const struct npi_outlet *outlet, uint64_t stride) {
  const struct npi_ledger_connection *entry = outlet->entry;
  /* The first event passes whatever its size, or a small share of memory could never carry a large one. */
  return entry->outstanding < entry->limit &&
         (entry->bytes_out + stride <= entry->bytes_limit || entry->outstanding == 0);
}

/* Notes the slot under a free credit: the ledger knows of the receiver before any element is stored. */
NPI_INLINE uint64_t npi_outlet_note_only(struct npi_outlet *outlet, const struct npi_slot_record *record, uint32_t slot,
                                         uint64_t stride) {
  struct npi_ledger_connection *entry = outlet->entry;
  uint32_t credit = outlet->credit_stack[--entry->credits_free];
  outlet->credit_slot[credit] = slot;
  outlet->credit_order[credit] = (uint32_t)entry->submitted;
  entry->outstanding++;
  entry->bytes_out += stride;
  return npi_element(record->handle, credit, record->generation);
}

/* The element that npi_outlet_note_only returned; the caller looks at the doorbell. */
NPI_INLINE void npi_outlet_store_only(struct npi_outlet *outlet, uint64_t element) {
  uint64_t position = outlet->entry->submitted;
  npi_ring_store(&outlet->submissions, position, element);
  outlet->entry->submitted = position + 1;
  npi_store_relaxed_u64(&outlet->block->counter[NPI_SUBMISSION_PUBLISHED], position + 1);
}

/* The same in two steps, where several outlets get the event. */
static inline void npi_outlet_note(struct npi_outlet *outlet, const struct npi_slot_record *record, uint32_t slot,
                                   uint64_t stride) {
  outlet->pending = npi_outlet_note_only(outlet, record, slot, stride) | NPI_PENDING;
}

static inline void npi_outlet_store(struct npi_outlet *outlet) {
  npi_outlet_store_only(outlet, outlet->pending & NPI_ELEMENT_BODY_MASK);
  outlet->pending = 0;
  outlet->unwoken = 1;
}

#endif
