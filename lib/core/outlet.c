/* SPDX-License-Identifier: Apache-2.0 */
#include "core/outlet.h"

#include <stdlib.h>
#include <string.h>

enum { REAP_AT_MOST = 32 };

void npi_outlet_init(struct npi_outlet *outlet, const struct npi_ledger *ledger, struct npi_ledger_connection *entry,
                     struct npi_ring_block *submissions, struct npi_ring_block *returns, struct npi_bell_peer *bell) {
  memset(outlet, 0, sizeof *outlet);
  outlet->entry = entry;
  outlet->credit_slot = npi_credit_slots(ledger, entry);
  outlet->credit_order = npi_credit_orders(ledger, entry);
  outlet->credit_stack = npi_credit_stack(ledger, entry);
  outlet->block = submissions;
  outlet->returns_block = returns;
  outlet->suspect_slot = NPI_NONE;
  outlet->bell = bell;
  outlet->tap = (entry->flags & NPI_SUBSCRIBER_TAP) != 0;
  outlet->blocking = entry->on_full == NPI_ON_FULL_BLOCK && !outlet->tap;
  outlet->reap_at = entry->limit / 2 < REAP_AT_MOST ? entry->limit / 2 : REAP_AT_MOST;
  npi_ring_attach(&outlet->submissions, submissions, entry->capacity);
  npi_ring_attach(&outlet->returns, returns, entry->capacity);
  for (uint32_t i = 0; i < entry->capacity; i++) {
    outlet->credit_slot[i] = NPI_NONE;
    outlet->credit_stack[i] = (uint16_t)(entry->capacity - 1 - i); /* low numbers first: they stay in cache */
  }
  entry->credits_free = entry->capacity;
  entry->outstanding = 0;
  entry->submitted = 0;
  entry->returned = 0;
  entry->bytes_out = 0;
  entry->state = NPI_OUTLET_ACTIVE;
}

static int lie(struct npi_outlet *outlet) __attribute__((cold, noinline));
static int lie(struct npi_outlet *outlet) {
  outlet->broken = 1;
  outlet->entry->limit = 0; /* nothing more for it; the broker ends the connection */
  outlet->blocking = 0;     /* until then, and where the broker is away, nobody waits for a liar */
  npi_store_relaxed_u64(&outlet->block->counter[NPI_SUBMISSION_RETURNED], outlet->entry->returned);
  return NPI_OUTLET_LIE;
}

/* The credit is back: one holder less, and the last one frees the slot. */
static void give_back(struct npi_outlet *outlet, struct npi_pool *pool, uint32_t credit) {
  struct npi_ledger_connection *entry = outlet->entry;
  uint32_t slot = outlet->credit_slot[credit];
  struct npi_slot_record *record = npi_pool_record(pool, slot);
  outlet->credit_slot[credit] = NPI_NONE;
  outlet->credit_stack[entry->credits_free++] = (uint16_t)credit;
  entry->outstanding--;
  entry->bytes_out -= npi_class_stride(record->slot_class);
  if (--record->holders == 0 && record->state == NPI_SLOT_OUTSTANDING) npi_pool_free(pool, slot);
}

/*
 * As give_back, for a row of returns: what the ledger says of the connection as a whole is kept in registers
 * and written once, after the row. Between two calls the ledger is the same as if each had been written.
 */
int npi_outlet_reap(struct npi_outlet *outlet, struct npi_pool *pool, uint32_t max) {
  struct npi_ledger_connection *entry = outlet->entry;
  uint32_t *credit_slot = outlet->credit_slot;
  uint16_t *credit_stack = outlet->credit_stack + entry->credits_free;
  struct npi_slot_record *const records = pool->ledger.records;
  struct npi_free_list *const lists = pool->ledger.header->free;
  const uint32_t capacity = entry->capacity;
  const uint64_t from = entry->returned;
  uint64_t bytes_out = entry->bytes_out;
  uint64_t element;
  uint32_t n = 0;
  int is_lie = 0;
  if (outlet->broken) return NPI_OUTLET_LIE;
  for (; n < max && npi_ring_load(&outlet->returns, from + n, &element); n++) { /* [ring.reap] */
    uint32_t credit = npi_element_credit(element);
    uint32_t slot = credit < capacity ? credit_slot[credit] : NPI_NONE;
    is_lie = slot == NPI_NONE;
    if (NPI_UNLIKELY(is_lie)) break;
    struct npi_slot_record *record = &records[slot];
    is_lie = record->handle != npi_element_handle(element) ||
             (record->generation & NPI_GENERATION_MASK) != npi_element_generation(element);
    if (NPI_UNLIKELY(is_lie)) break;
    credit_slot[credit] = NPI_NONE;
    credit_stack[n] = (uint16_t)credit;
    bytes_out -= npi_class_stride(record->slot_class);
    if (--record->holders == 0 && record->state == NPI_SLOT_OUTSTANDING) {
      npi_free_list_push(lists, records, slot);
      struct npi_slot_header *header = npi_pool_slot(pool, record->handle);
      npi_prefetch_for_write(header);
      npi_prefetch_for_write(header + 1);
    }
  }
  if (n > 0) {
    entry->returned = from + n;
    entry->credits_free += n;
    entry->outstanding -= n;
    entry->bytes_out = bytes_out;
    npi_store_relaxed_u64(&outlet->block->counter[NPI_SUBMISSION_RETURNED], from + n);
  }
  return NPI_UNLIKELY(is_lie) ? lie(outlet) : (int)n;
}

/* The slot goes back to the group: marked, and counted where the member had taken it. */
static void mark(const struct npi_outlet *outlet, struct npi_pool *pool, uint32_t credit, uint32_t taken,
                 uint32_t submitted) {
  struct npi_slot_record *record = npi_pool_record(pool, outlet->credit_slot[credit]);
  struct npi_slot_header *header = npi_pool_slot(pool, record->handle);
  uint32_t ago = submitted - outlet->credit_order[credit];
  npi_slot_sizes_store(header, npi_slot_sizes_load(header) | npi_slot_sizes(0, 0, 0, NPI_EVENT_REDELIVERED));
  if (ago > submitted - taken && header->deliveries < UINT8_MAX) header->deliveries++;
  record->state = NPI_SLOT_WAITING; /* so that giving back does not free it */
}

struct held {
  uint32_t credit;
  uint32_t age; /* how many elements ago it was submitted */
};

static int older_first(const void *a, const void *b) {
  const struct held *x = a;
  const struct held *y = b;
  return (x->age < y->age) - (x->age > y->age);
}

uint32_t npi_outlet_take_back(struct npi_outlet *outlet, struct npi_pool *pool,
                              void (*keep)(void *context, uint32_t slot), void *context) {
  struct npi_ledger_connection *entry = outlet->entry;
  uint32_t n = 0;
  npi_outlet_reap(outlet, pool, entry->capacity); /* more than were out cannot be there */
  if (entry->outstanding == 0) return 0;
  /* Its word for it, as far as it can be: who lies here is believed to have taken all or nothing of what was out. */
  uint32_t submitted = (uint32_t)entry->submitted;
  uint64_t taken = npi_load_relaxed_u64(&outlet->returns_block->counter[NPI_RETURN_TAKEN]);
  if (taken > entry->submitted) taken = entry->submitted;
  if (taken + entry->capacity < entry->submitted) taken = entry->submitted - entry->capacity;
  struct held *held = keep == NULL ? NULL : malloc(entry->outstanding * sizeof *held);
  for (uint32_t credit = 0; credit < entry->capacity; credit++) {
    if (outlet->credit_slot[credit] == NPI_NONE) continue;
    if (held != NULL) {
      held[n] = (struct held){credit, submitted - outlet->credit_order[credit]};
    } else if (keep != NULL) { /* no memory to sort in: their order is lost, not they */
      mark(outlet, pool, credit, (uint32_t)taken, submitted);
      keep(context, outlet->credit_slot[credit]);
      give_back(outlet, pool, credit);
    } else {
      give_back(outlet, pool, credit);
    }
    n++;
  }
  if (held != NULL) {
    qsort(held, n, sizeof *held, older_first);
    for (uint32_t i = 0; i < n; i++) {
      uint32_t slot = outlet->credit_slot[held[i].credit];
      mark(outlet, pool, held[i].credit, (uint32_t)taken, submitted);
      keep(context, slot);
      give_back(outlet, pool, held[i].credit);
    }
    free(held);
  }
  return n;
}
