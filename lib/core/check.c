/* SPDX-License-Identifier: Apache-2.0 */
#include "core/check.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct check {
  const struct npi_ledger *ledger;
  npi_check_report report;
  void *context;
  unsigned n;
  uint16_t *holders; /* by record: connections that name it */
  uint8_t *marks;    /* by record */
};

enum {
  MARK_LISTED = 1,  /* on a free list */
  MARK_FOLLOWS = 2, /* behind another in a waiting list */
  MARK_OUT = 4,     /* named by the connection that is being looked at */
};

static void found(struct check *check, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void found(struct check *check, const char *format, ...) {
  char line[256];
  va_list arguments;
  if (check->n < UINT32_MAX) check->n++;
  if (check->report == NULL || check->n > NPI_CHECK_LINES_MAX) return;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  check->report(check->context, line);
}

/* ---- slots ------------------------------------------------------------------------------------------- */

static const char *state_name(uint32_t state) {
  static const char *const name[] = {"not carved", "free", "loaned", "outstanding", "waiting"};
  return state < NPI_ARRAY_COUNT(name) ? name[state] : "in no known state";
}

/* The class of a record that belongs to a carved run, NPI_NONE: it belongs to none. */
static uint32_t class_of_record(const struct npi_ledger *ledger, uint32_t slot) {
  if (slot >= npi_ledger_record_count(ledger)) return NPI_NONE;
  uint32_t index = slot / NPI_SLOTS_PER_CHUNK_MAX;
  uint32_t chunk = index % ledger->geometry.chunks_per_segment;
  const struct npi_ledger_segment *segment = &ledger->segments[index / ledger->geometry.chunks_per_segment];
  uint32_t slot_class = ledger->chunks[index].slot_class;
  if (segment->leased != 1 || segment->chunks > ledger->geometry.chunks_per_segment || chunk >= segment->chunks ||
      slot_class >= NPI_CLASS_COUNT || npi_class_run(slot_class) > segment->chunks - chunk ||
      slot % NPI_SLOTS_PER_CHUNK_MAX >= npi_class_slots(slot_class)) {
    return NPI_NONE;
  }
  return slot_class;
}

static void check_free_list(struct check *check, uint32_t slot_class) {
  const struct npi_ledger *ledger = check->ledger;
  const struct npi_free_list *list = &ledger->header->free[slot_class];
  uint32_t n = 0;
  /* The mark ends the loop: no record is passed twice. */
  for (uint32_t slot = list->head; slot != NPI_NONE; slot = ledger->records[slot].next) {
    uint32_t carved = class_of_record(ledger, slot);
    if (carved == NPI_NONE) {
      found(check, "free list of class %u: item %u is record %u, which is not a carved slot", slot_class, n, slot);
      return;
    }
    if ((check->marks[slot] & MARK_LISTED) != 0) {
      found(check, "free list of class %u: item %u is slot %u, which is on a free list already", slot_class, n, slot);
      return;
    }
    check->marks[slot] |= MARK_LISTED;
    if (carved != slot_class) {
      found(check, "free list of class %u: slot %u is of class %u", slot_class, slot, carved);
    }
    n++;
  }
  if (n != list->count) {
    found(check, "free list of class %u: it counts %u slots and holds %u", slot_class, list->count, n);
  }
}

static void check_record(struct check *check, uint32_t slot, uint32_t slot_class, uint32_t handle) {
  const struct npi_slot_record *record = &check->ledger->records[slot];
  int listed = (check->marks[slot] & MARK_LISTED) != 0;
  uint32_t holders = check->holders[slot];
  if (record->slot_class != slot_class) {
    found(check, "slot %u: its record says class %u, its chunk %u", slot, record->slot_class, slot_class);
  }
  if (record->handle != handle) {
    found(check, "slot %u: its handle is 0x%08x, its place gives 0x%08x", slot, record->handle, handle);
  }
  if (record->holders != holders) {
    found(check, "slot %u (%s): it counts %u holders, and %u connections have a credit out for it", slot,
          state_name(record->state), record->holders, holders);
  }
  if (listed != (record->state == NPI_SLOT_FREE)) {
    found(check, "slot %u: it is %s and %s a free list", slot, state_name(record->state), listed ? "on" : "not on");
  }
  switch (record->state) {
    case NPI_SLOT_FREE:
    case NPI_SLOT_LOANED:
      if (holders > 0) found(check, "slot %u: it is %s, but %u hold it", slot, state_name(record->state), holders);
      break;
    case NPI_SLOT_OUTSTANDING:
      if (holders == 0) found(check, "slot %u: it is outstanding, but nobody holds it", slot);
      break;
    case NPI_SLOT_WAITING: break;
    default: found(check, "slot %u: state %u in a carved chunk", slot, record->state);
  }
}

/* A waiting slot names the next one of its list: inside, waiting too, and of one list only. */
static void check_waiting(struct check *check, uint32_t slot, uint32_t *n_waiting, uint32_t *n_last) {
  const struct npi_slot_record *record = &check->ledger->records[slot];
  uint32_t next = record->next;
  (*n_waiting)++;
  if (next == NPI_NONE) {
    (*n_last)++;
  } else if (class_of_record(check->ledger, next) == NPI_NONE) {
    found(check, "waiting slot %u: the next is record %u, which is not a carved slot", slot, next);
  } else if (check->ledger->records[next].state != NPI_SLOT_WAITING) {
    found(check, "waiting slot %u: the next is slot %u, which is %s", slot, next,
          state_name(check->ledger->records[next].state));
  } else if ((check->marks[next] & MARK_FOLLOWS) != 0) {
    found(check, "waiting slot %u: the next is slot %u, which follows another already", slot, next);
  } else {
    check->marks[next] |= MARK_FOLLOWS;
  }
}

/* One segment's chunks, and the records of those that are carved. */
static void check_chunks(struct check *check, uint32_t number, uint32_t *n_waiting, uint32_t *n_last) {
  const struct npi_ledger *ledger = check->ledger;
  const struct npi_ledger_segment *segment = &ledger->segments[number];
  const struct npi_ledger_chunk *chunks = &ledger->chunks[npi_ledger_chunk_index(ledger, number, 0)];
  uint32_t n_free = 0;
  for (uint32_t chunk = 0; chunk < segment->chunks;) {
    uint32_t slot_class = chunks[chunk].slot_class;
    uint32_t first = npi_ledger_first_record(ledger, number, chunk);
    uint32_t run = 1, n_slots = 0;
    if (slot_class == NPI_CHUNK_FREE) {
      n_free++;
    } else if (slot_class == NPI_CHUNK_CONTINUED) {
      found(check, "segment %u: chunk %u continues a run that does not reach it", number, chunk);
    } else if (slot_class >= NPI_CLASS_COUNT) {
      found(check, "segment %u: chunk %u is of class %u, which does not exist", number, chunk, slot_class);
    } else if (npi_class_run(slot_class) > segment->chunks - chunk) {
      found(check, "segment %u: chunk %u begins a run of %u, which leaves the segment of %u", number, chunk,
            npi_class_run(slot_class), segment->chunks);
    } else {
      n_slots = npi_class_slots(slot_class);
      while (run < npi_class_run(slot_class) && chunks[chunk + run].slot_class == NPI_CHUNK_CONTINUED) run++;
      if (run < npi_class_run(slot_class)) {
        found(check, "segment %u: the run of class %u at chunk %u has %u chunks instead of %u", number, slot_class,
              chunk, run, npi_class_run(slot_class));
      }
    }
    for (uint32_t i = 0; i < n_slots; i++) {
      uint64_t offset = (uint64_t)chunk * NPI_CHUNK_BYTES + i * npi_class_stride(slot_class);
      check_record(check, first + i, slot_class, npi_handle(number, offset));
      if (ledger->records[first + i].state == NPI_SLOT_WAITING) check_waiting(check, first + i, n_waiting, n_last);
    }
    for (uint32_t i = n_slots; i < NPI_SLOTS_PER_CHUNK_MAX * run; i++) {
      uint32_t state = ledger->records[first + i].state;
      if (state != NPI_SLOT_NONE) found(check, "record %u: it is no slot, but %s", first + i, state_name(state));
    }
    chunk += run;
  }
  if (n_free != segment->chunks_free) {
    found(check, "segment %u: it counts %u free chunks and has %u", number, segment->chunks_free, n_free);
  }
}

static void check_segments(struct check *check) {
  const struct npi_ledger *ledger = check->ledger;
  const struct npi_ledger_geometry *geometry = &ledger->geometry;
  uint32_t n_waiting = 0, n_last = 0;
  for (uint32_t number = 0; number < geometry->segments; number++) {
    const struct npi_ledger_segment *segment = &ledger->segments[number];
    if (segment->leased > 1 || (segment->leased == 0 && (segment->chunks != 0 || segment->chunks_free != 0)) ||
        segment->chunks > geometry->chunks_per_segment ||
        segment->bytes != (uint64_t)segment->chunks * NPI_CHUNK_BYTES) {
      found(check, "segment %u: leased %u, %" PRIu64 " bytes, %u chunks of at most %u, %u of them free", number,
            segment->leased, segment->bytes, segment->chunks, geometry->chunks_per_segment, segment->chunks_free);
      continue;
    }
    if (segment->leased) check_chunks(check, number, &n_waiting, &n_last);
    const struct npi_ledger_chunk *chunks = &ledger->chunks[npi_ledger_chunk_index(ledger, number, 0)];
    for (uint32_t chunk = segment->chunks; chunk < geometry->chunks_per_segment; chunk++) {
      if (chunks[chunk].slot_class == NPI_CHUNK_FREE) continue;
      found(check, "segment %u: chunk %u is carved, but the segment has %u", number, chunk, segment->chunks);
    }
  }
  if (n_waiting > 0 && n_last == 0) found(check, "%u slots are waiting, and none is the last of a list", n_waiting);
}

/* ---- connections ------------------------------------------------------------------------------------- */

/* Are the arrays inside the credits area? Only then may they be looked at. */
static int arrays_are_inside(const struct npi_ledger *ledger, const struct npi_ledger_connection *entry) {
  uint64_t area = ledger->geometry.credits_bytes;
  return npi_is_power_of_two(entry->capacity) && entry->capacity >= NPI_RING_CAPACITY_MIN &&
         entry->capacity <= NPI_CREDITS_MAX && entry->credits_offset % 4 == 0 && entry->credits_offset <= area &&
         npi_credit_arrays_bytes(entry->capacity) <= area - entry->credits_offset;
}

static void check_stack(struct check *check, uint32_t number, const struct npi_ledger_connection *entry) {
  const uint32_t *slot = npi_credit_slots(check->ledger, entry);
  const uint16_t *stack = npi_credit_stack(check->ledger, entry);
  uint8_t seen[NPI_CREDITS_MAX / 8] = {0};
  for (uint32_t i = 0; i < entry->credits_free; i++) {
    uint32_t credit = stack[i];
    if (credit >= entry->capacity) {
      found(check, "connection %u: free credit %u of %u is number %u", number, i, entry->capacity, credit);
    } else if ((seen[credit / 8] >> credit % 8 & 1) != 0) {
      found(check, "connection %u: credit %u is on the stack of free credits twice", number, credit);
    } else if (slot[credit] != NPI_NONE) {
      found(check, "connection %u: credit %u is on the stack of free credits and out for slot %u", number, credit,
            slot[credit]);
    } else {
      seen[credit / 8] |= (uint8_t)(1U << credit % 8);
    }
  }
}

static void check_credits(struct check *check, uint32_t number, const struct npi_ledger_connection *entry) {
  const struct npi_ledger *ledger = check->ledger;
  const uint32_t *slot = npi_credit_slots(ledger, entry);
  uint32_t n_out = 0;
  uint64_t bytes = 0;
  for (uint32_t credit = 0; credit < entry->capacity; credit++) {
    if (slot[credit] == NPI_NONE) continue;
    n_out++;
    uint32_t slot_class = class_of_record(ledger, slot[credit]);
    if (slot_class == NPI_NONE) {
      found(check, "connection %u: credit %u is out for record %u, which is not a carved slot", number, credit,
            slot[credit]);
      continue;
    }
    bytes += npi_class_stride(slot_class);
    if ((check->marks[slot[credit]] & MARK_OUT) != 0) {
      found(check, "connection %u: two credits are out for slot %u, one is %u", number, slot[credit], credit);
    }
    check->marks[slot[credit]] |= MARK_OUT;
    if (check->holders[slot[credit]] < UINT16_MAX) check->holders[slot[credit]]++;
  }
  for (uint32_t credit = 0; credit < entry->capacity; credit++) {
    if (class_of_record(ledger, slot[credit]) != NPI_NONE) check->marks[slot[credit]] &= (uint8_t)~MARK_OUT;
  }
  if (n_out != entry->outstanding) {
    found(check, "connection %u: it counts %u outstanding, and %u credits are out", number, entry->outstanding, n_out);
  }
  if (bytes != entry->bytes_out) {
    found(check, "connection %u: it counts %" PRIu64 " bytes out, its slots take %" PRIu64, number, entry->bytes_out,
          bytes);
  }
}

static void check_entry(struct check *check, uint32_t number) {
  const struct npi_ledger_connection *entry = &check->ledger->connections[number];
  if (entry->state > NPI_OUTLET_CLOSING) {
    found(check, "connection %u: state %u does not exist", number, entry->state);
    return;
  }
  if (!arrays_are_inside(check->ledger, entry)) {
    found(check, "connection %u: capacity %u with credits at %" PRIu64 " does not fit an area of %" PRIu64, number,
          entry->capacity, entry->credits_offset, check->ledger->geometry.credits_bytes);
    return;
  }
  if (entry->limit > entry->capacity) {
    found(check, "connection %u: limit %u is above the capacity %u", number, entry->limit, entry->capacity);
  }
  if (entry->outstanding > entry->capacity || entry->outstanding != entry->submitted - entry->returned) {
    found(check, "connection %u: %u outstanding of %u, but %" PRIu64 " submitted and %" PRIu64 " returned", number,
          entry->outstanding, entry->capacity, entry->submitted, entry->returned);
  }
  if (entry->credits_free > entry->capacity || entry->capacity - entry->credits_free != entry->outstanding) {
    found(check, "connection %u: %u free credits and %u outstanding of %u", number, entry->credits_free,
          entry->outstanding, entry->capacity);
  }
  if (entry->credits_free <= entry->capacity) check_stack(check, number, entry);
  check_credits(check, number, entry);
}

struct extent {
  uint64_t begin, end;
  uint32_t number;
};

static int by_begin(const void *a, const void *b) {
  const struct extent *x = a;
  const struct extent *y = b;
  return (x->begin > y->begin) - (x->begin < y->begin);
}

static void check_connections(struct check *check, struct extent *extents) {
  const struct npi_ledger *ledger = check->ledger;
  uint32_t n = 0;
  for (uint32_t i = 0; i < ledger->geometry.connections; i++) {
    const struct npi_ledger_connection *entry = &ledger->connections[i];
    if (entry->state == NPI_OUTLET_FREE) continue;
    check_entry(check, i);
    if (!arrays_are_inside(ledger, entry)) continue;
    extents[n++] =
        (struct extent){entry->credits_offset, entry->credits_offset + npi_credit_arrays_bytes(entry->capacity), i};
  }
  qsort(extents, n, sizeof *extents, by_begin);
  for (uint32_t i = 1; i < n; i++) {
    if (extents[i].begin >= extents[i - 1].end) continue;
    found(check, "connections %u and %u: their credits overlap at %" PRIu64, extents[i - 1].number, extents[i].number,
          extents[i].begin);
  }
}

unsigned npi_check_ledger(const struct npi_ledger *ledger, npi_check_report report, void *context) {
  struct check check = {.ledger = ledger, .report = report, .context = context};
  size_t n_records = npi_ledger_record_count(ledger);
  struct extent *extents = calloc((size_t)ledger->geometry.connections + 1, sizeof *extents);
  check.holders = calloc(n_records + 1, sizeof *check.holders);
  check.marks = calloc(n_records + 1, sizeof *check.marks);
  if (extents == NULL || check.holders == NULL || check.marks == NULL) {
    found(&check, "not checked: no memory for a ledger of %zu records and %u connections", n_records,
          ledger->geometry.connections);
  } else {
    for (uint32_t i = 0; i < NPI_CLASS_COUNT; i++) check_free_list(&check, i);
    check_connections(&check, extents);
    check_segments(&check);
  }
  free(check.marks);
  free(check.holders);
  free(extents);
  return check.n;
}

/* ---- rings ------------------------------------------------------------------------------------------- */

/* Every word of the ring was written for one of the last `capacity` positions before `end`, or formatted so. */
static void check_laps(struct check *check, uint32_t number, const char *which, const struct npi_ring *ring,
                       uint64_t end) {
  for (uint64_t position = end - ring->mask - 1; position != end; position++) {
    uint64_t element = npi_load_relaxed_u64(&ring->element[position & ring->mask]);
    if ((element ^ npi_ring_lap(ring, position)) >> NPI_ELEMENT_LAP_SHIFT == 0) continue;
    found(check, "connection %u: %s %" PRIu64 " is 0x%016" PRIx64 ", of lap %u instead of %u", number, which, position,
          element, (unsigned)(element >> NPI_ELEMENT_LAP_SHIFT),
          (unsigned)(npi_ring_lap(ring, position) >> NPI_ELEMENT_LAP_SHIFT));
  }
}

/* The element that a credit went out with, but for its lap. Returns 0 where the credit stands for no slot. */
static int expected_element(const struct npi_ledger *ledger, const struct npi_ledger_connection *entry, uint32_t credit,
                            uint64_t *element) {
  uint32_t slot = npi_credit_slots(ledger, entry)[credit];
  if (class_of_record(ledger, slot) == NPI_NONE) return 0;
  *element = npi_element(ledger->records[slot].handle, credit, ledger->records[slot].generation);
  return 1;
}

static void check_submissions(struct check *check, uint32_t number, const struct npi_ledger_connection *entry,
                              const struct npi_ring *ring, const struct npi_check_subscriber *subscriber) {
  const uint32_t *order = npi_credit_orders(check->ledger, entry);
  uint64_t n_untaken = subscriber == NULL ? 0 : entry->submitted - subscriber->taken;
  uint64_t n_found = 0, expected, element;
  for (uint32_t credit = 0; credit < entry->capacity; credit++) {
    if (!expected_element(check->ledger, entry, credit, &expected)) continue;
    uint32_t age = (uint32_t)entry->submitted - order[credit];
    if (age == 0) found(check, "connection %u: credit %u is out for an element not yet stored", number, credit);
    if (age == 0 || age > entry->capacity) continue; /* long taken, and its word used again */
    n_found += age <= n_untaken;
    element = npi_load_acquire_u64(&ring->element[(entry->submitted - age) & ring->mask]);
    if ((element & NPI_ELEMENT_BODY_MASK) != expected) {
      found(check,
            "connection %u: credit %u went out as submission %" PRIu64 ", which is 0x%016" PRIx64
            " instead of 0x%016" PRIx64,
            number, credit, entry->submitted - age, element, expected);
    }
  }
  if (n_found != n_untaken) {
    found(check, "connection %u: %" PRIu64 " elements are not yet taken, and %" PRIu64 " of them stand for a credit",
          number, n_untaken, n_found);
  }
}

/* Returns that the publisher has not processed: how many. */
static uint32_t check_returns(struct check *check, uint32_t number, const struct npi_ledger_connection *entry,
                              const struct npi_ring *ring, const struct npi_check_subscriber *subscriber) {
  const uint32_t *order = npi_credit_orders(check->ledger, entry);
  uint8_t seen[NPI_CREDITS_MAX / 8] = {0};
  uint64_t element, expected;
  uint32_t n = 0;
  for (; n < entry->capacity && npi_ring_load(ring, entry->returned + n, &element); n++) {
    uint64_t position = entry->returned + n;
    uint32_t credit = npi_element_credit(element);
    if (credit >= entry->capacity || !expected_element(check->ledger, entry, credit, &expected)) {
      found(check, "connection %u: return %" PRIu64 " is 0x%016" PRIx64 ", and credit %u is not out", number, position,
            element, credit);
      continue;
    }
    if ((element & NPI_ELEMENT_BODY_MASK) != expected) {
      found(check, "connection %u: return %" PRIu64 " is 0x%016" PRIx64 ", and credit %u is out for 0x%016" PRIx64,
            number, position, element, credit, expected);
    }
    if ((seen[credit / 8] >> credit % 8 & 1) != 0) {
      found(check, "connection %u: return %" PRIu64 " gives credit %u back for the second time", number, position,
            credit);
    }
    seen[credit / 8] |= (uint8_t)(1U << credit % 8);
    if (subscriber != NULL && (uint32_t)entry->submitted - order[credit] <= entry->submitted - subscriber->taken) {
      found(check, "connection %u: return %" PRIu64 " gives credit %u back, which was not yet taken", number, position,
            credit);
    }
  }
  return n;
}

unsigned npi_check_connection(const struct npi_ledger *ledger, const struct npi_ledger_connection *entry,
                              const struct npi_ring_block *submissions, const struct npi_ring_block *returns,
                              uint32_t capacity, const struct npi_check_subscriber *subscriber, npi_check_report report,
                              void *context) {
  struct check check = {.ledger = ledger, .report = report, .context = context};
  uint32_t number = entry->connection;
  uint64_t published = npi_load_relaxed_u64(&submissions->counter[NPI_SUBMISSION_PUBLISHED]);
  uint64_t processed = npi_load_relaxed_u64(&submissions->counter[NPI_SUBMISSION_RETURNED]);
  struct npi_ring out, back;
  if (entry->capacity != capacity || !arrays_are_inside(ledger, entry)) {
    found(&check, "connection %u: capacity %u with credits at %" PRIu64 ", and its rings hold %u", number,
          entry->capacity, entry->credits_offset, capacity);
    return check.n;
  }
  /* Only read from; the view has no const. */
  npi_ring_attach(&out, (struct npi_ring_block *)(uintptr_t)submissions, capacity);
  npi_ring_attach(&back, (struct npi_ring_block *)(uintptr_t)returns, capacity);
  if (published != entry->submitted || processed != entry->returned) {
    found(&check,
          "connection %u: its counters say %" PRIu64 " published and %" PRIu64 " returned, its ledger %" PRIu64
          " and %" PRIu64,
          number, published, processed, entry->submitted, entry->returned);
  }
  if (subscriber != NULL) {
    uint64_t untaken = entry->submitted - subscriber->taken, held = subscriber->taken - subscriber->returned;
    uint64_t unprocessed = subscriber->returned - entry->returned;
    if (untaken > capacity || held > capacity || unprocessed > capacity ||
        untaken + held + unprocessed != entry->outstanding) {
      found(&check,
            "connection %u: %" PRIu64 " not taken, %" PRIu64 " held and %" PRIu64
            " returns not processed, but %u outstanding of %u",
            number, untaken, held, unprocessed, entry->outstanding, capacity);
      subscriber = NULL; /* its positions are no help with the rest */
    }
  }
  check_laps(&check, number, "submission", &out, entry->submitted);
  check_submissions(&check, number, entry, &out, subscriber);
  uint32_t n = check_returns(&check, number, entry, &back, subscriber);
  check_laps(&check, number, "return", &back, entry->returned + n);
  if (n > entry->outstanding || (subscriber != NULL && subscriber->returned - entry->returned != n)) {
    found(&check, "connection %u: %u returns wait for the publisher, but the subscriber gave %" PRIu64, number, n,
          subscriber == NULL ? (uint64_t)entry->outstanding : subscriber->returned - entry->returned);
  }
  return check.n;
}

/* ---- a live pool -------------------------------------------------------------------------------------- */

unsigned npi_check_pool(const struct npi_pool *pool, npi_check_report report, void *context) {
  struct check check = {.ledger = &pool->ledger, .report = report, .context = context};
  uint64_t bytes = 0;
  uint32_t n = 0;
  check.n = npi_check_ledger(&pool->ledger, report, context);
  for (uint32_t number = 0; number < pool->ledger.geometry.segments; number++) {
    const struct npi_pool_segment *segment = &pool->segments[number];
    const struct npi_ledger_segment *entry = &pool->ledger.segments[number];
    if ((segment->base != NULL) != (entry->leased == 1) || segment->bytes != entry->bytes) {
      found(&check, "segment %u: the pool has %" PRIu64 " bytes of it mapped at %p, the ledger leased %u, %" PRIu64,
            number, segment->bytes, (const void *)segment->base, entry->leased, entry->bytes);
    }
    if (segment->base == NULL) continue;
    bytes += segment->bytes;
    n++;
  }
  if (bytes != pool->leased_bytes || n != pool->n_segments) {
    found(&check, "the pool counts %u segments of %" PRIu64 " bytes and has %u of %" PRIu64, pool->n_segments,
          pool->leased_bytes, n, bytes);
  }
  return check.n;
}
