/* SPDX-License-Identifier: Apache-2.0 */
#include "core/outlet.h"

#include <stdlib.h>
#include <string.h>

/* The next look: NPI_REAP_AT has the rule, and where credits are about to run out it comes earlier. */
static void plan_look(struct npi_outlet *outlet) {
  const struct npi_ledger_connection *entry = outlet->entry;
  uint64_t few = entry->limit / 2 < NPI_REAP_AT ? entry->limit / 2 : NPI_REAP_AT;
  uint64_t many = entry->limit - entry->outstanding;
  if (entry->outstanding >= entry->limit) many = 0;
  if (many > NPI_REAP_EVERY) many = NPI_REAP_EVERY;
  uint64_t look_at = entry->submitted + many;
  outlet->look_at = look_at > entry->returned + few ? look_at : entry->returned + few;
}

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
  outlet->bell_word = npi_bell_word(bell);
  outlet->tap = (entry->flags & NPI_SUBSCRIBER_TAP) != 0;
  outlet->blocking = entry->on_full == NPI_ON_FULL_BLOCK && !outlet->tap;
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
  plan_look(outlet);
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

/* Slots of one class that came free one after another, linked in that order. */
struct row {
  uint32_t slot_class;
  uint32_t n;
  uint32_t first;
  struct npi_slot_record *last;
};

/* Puts them before the others, the first one first: it was asked for first, so it is the first to be back in cache. */
static void row_push(const struct row *row, struct npi_free_list *lists) {
  if (row->n == 0) return;
  row->last->next = lists[row->slot_class].head;
  lists[row->slot_class].head = row->first;
  lists[row->slot_class].count += row->n;
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
  const struct npi_ring returns = outlet->returns;
  uint64_t bytes_out = entry->bytes_out;
  struct row row = {.slot_class = NPI_CLASS_COUNT};
  uint64_t element;
  uint32_t n = 0;
  int is_lie = 0;
  if (outlet->broken) return NPI_OUTLET_LIE;
  for (; n < max && npi_ring_load(&returns, from + n, &element); n++) { /* [ring.reap] */
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
    uint32_t use = record->use;
    uint32_t slot_class = use >> NPI_USE_CLASS_SHIFT & 0xff;
    bytes_out -= npi_class_stride(slot_class);
    if (NPI_UNLIKELY(use != npi_use(slot_class, NPI_SLOT_OUTSTANDING, 1))) {
      record->use = use - 1; /* others hold it, or it waits for another member */
      continue;
    }
    record->use = npi_use(slot_class, NPI_SLOT_FREE, 0);
    if (slot_class != row.slot_class) {
      row_push(&row, lists);
      row = (struct row){.slot_class = slot_class, .first = slot, .last = record};
    }
    /* The first slot's class is not NPI_CLASS_COUNT, so there is a last one here. */
    row.last->next = slot;  // NOLINT(clang-analyzer-core.NullDereference)
    row.last = record;
    row.n++;
    struct npi_slot_header *header = npi_pool_slot(pool, record->handle);
    npi_prefetch_for_write(header);
    npi_prefetch_for_write(header + 1);
  }
  row_push(&row, lists);
  if (n > 0) {
    entry->returned = from + n;
    entry->credits_free += n;
    entry->outstanding -= n;
    entry->bytes_out = bytes_out;
    npi_store_relaxed_u64(&outlet->block->counter[NPI_SUBMISSION_RETURNED], from + n);
  }
  plan_look(outlet);
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
