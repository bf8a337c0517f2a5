/* SPDX-License-Identifier: Apache-2.0 */
/* The checker finds each thing that can be wrong, says it in words, and survives any bytes. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "tests/support/core_pair.h"

TestSuite(check, .timeout = 100);

static struct core_pair pair;
static struct core_end *end, *other;

/*
 * A bit of everything: two members and a tap of a group, events taken, held, returned and not yet processed,
 * loaned, waiting, and a class of each kind of run.
 */
static void begin(void) {
  uint64_t element;
  struct npi_taken taken;
  static const char large[70000];
  core_pair_open(&pair, &(struct core_options){
                            .kind = NPI_CHANNEL_GROUP, .n_segments = 2, .segment_chunks = 6, .room_for_segments = 4});
  core_connect(&pair, &(struct core_end_options){.flags = NPI_SUBSCRIBER_TAP});
  struct core_end *dying = core_connect(&pair, &(struct core_end_options){0});
  for (int i = 0; i < 5; i++) core_publish_text(&pair, "to be offered again");
  core_disconnect(&pair, dying);
  end = core_connect(&pair, &(struct core_end_options){.capacity = 32, .limit = 3});
  npi_flow_offer_waiting(&pair.flow);
  cr_assert_eq(pair.flow.n_waiting, 2);
  end->outlet.entry->limit = 0;
  npi_flow_remove(&pair.flow, &end->outlet);
  other = core_connect(&pair, &(struct core_end_options){.capacity = 16});
  uint32_t waiting = pair.flow.n_waiting;
  pair.flow.n_waiting = 0; /* they stay where they are while new events go out */
  for (int i = 0; i < 6; i++) cr_assert_eq(core_publish_text(&pair, "new"), NP_OK);
  cr_assert_eq(core_publish(&pair, large, sizeof large), NP_OK);
  pair.flow.n_waiting = waiting;
  for (int i = 0; i < 4; i++) {
    cr_assert_eq(core_take(other, &element, &taken), NP_OK);
    if (i != 1) npi_inlet_release(&other->inlet, element);
  }
  core_fill(&pair, "loaned", 6);
  core_fill(&pair, large, 3000);
  cr_assert_eq(core_check(&pair), 0);
}

static void finish(void) {
  npi_flow_abandon_waiting(&pair.flow);
  core_pair_close(&pair);
}

struct lines {
  unsigned n;
  char text[NPI_CHECK_LINES_MAX][256];
};
static struct lines lines;

static void keep_line(void *context, const char *finding) {
  struct lines *all = context;
  cr_assert_lt(all->n, NPI_CHECK_LINES_MAX);
  snprintf(all->text[all->n++], sizeof all->text[0], "%s", finding);
}

static int is_said(const char *words) {
  for (unsigned i = 0; i < lines.n; i++) {
    if (strstr(lines.text[i], words) != NULL) return 1;
  }
  return 0;
}

/* With `value` at `place` the pool has a finding with these words; then the old value comes back. */
#define EXPECT_FOUND(place, value, words)                                                          \
  do {                                                                                             \
    __typeof__(place) was_ = (place);                                                              \
    (place) = (__typeof__(place))(value);                                                          \
    lines.n = 0;                                                                                   \
    unsigned n_ = npi_check_pool(&pair.pool, keep_line, &lines);                                   \
    cr_expect_geq(n_, 1, #place " = " #value " was not found");                                    \
    cr_expect(is_said(words), #place " = " #value ": not said: " words ", but %s", lines.text[0]); \
    (place) = was_;                                                                                \
    cr_assert_eq(npi_check_pool(&pair.pool, NULL, NULL), 0);                                       \
  } while (0)

/* The first slot in a state. */
static uint32_t slot_in_state(uint32_t state) {
  for (uint32_t slot = 0; slot < npi_ledger_record_count(&pair.pool.ledger); slot++) {
    if (pair.pool.ledger.records[slot].state == state) return slot;
  }
  cr_assert_fail("no slot in state %u", state);
  return 0;
}

Test(check, a_busy_pool_without_fault_has_no_findings) {
  begin();
  cr_expect_eq(npi_check_ledger(&pair.pool.ledger, keep_line, &lines), 0);
  cr_expect_eq(npi_check_pool(&pair.pool, keep_line, &lines), 0);
  finish();
}

Test(check, free_lists) {
  begin();
  struct npi_ledger *ledger = &pair.pool.ledger;
  struct npi_free_list *list = &ledger->header->free[0];
  uint32_t second = ledger->records[list->head].next;
  EXPECT_FOUND(list->count, list->count + 1, "counts");
  EXPECT_FOUND(list->head, NPI_NONE, "not on a free list");
  EXPECT_FOUND(list->head, second, "not on a free list");
  EXPECT_FOUND(list->head, UINT32_MAX - 1, "not a carved slot");
  EXPECT_FOUND(ledger->records[second].next, list->head, "already");
  EXPECT_FOUND(ledger->records[second].next, second, "already");
  EXPECT_FOUND(ledger->records[second].next, 4000000000U, "not a carved slot");
  EXPECT_FOUND(ledger->header->free[5].head, list->head, "already");
  EXPECT_FOUND(list->head, slot_in_state(NPI_SLOT_LOANED), "loaned and on a free list");
  finish();
}

Test(check, records) {
  begin();
  struct npi_slot_record *records = pair.pool.ledger.records;
  struct npi_slot_record *free_one = &records[slot_in_state(NPI_SLOT_FREE)];
  struct npi_slot_record *loaned = &records[slot_in_state(NPI_SLOT_LOANED)];
  struct npi_slot_record *out = &records[slot_in_state(NPI_SLOT_OUTSTANDING)];
  struct npi_slot_record *waiting = &records[slot_in_state(NPI_SLOT_WAITING)];
  EXPECT_FOUND(free_one->state, NPI_SLOT_LOANED, "loaned and on a free list");
  EXPECT_FOUND(free_one->state, NPI_SLOT_NONE, "state 0");
  EXPECT_FOUND(loaned->state, NPI_SLOT_FREE, "not on a free list");
  EXPECT_FOUND(loaned->state, NPI_SLOT_OUTSTANDING, "nobody holds it");
  EXPECT_FOUND(out->state, NPI_SLOT_LOANED, "hold it");
  EXPECT_FOUND(out->state, 77, "state 77");
  EXPECT_FOUND(out->holders, out->holders + 1, "holders");
  EXPECT_FOUND(out->holders, 0, "holders");
  EXPECT_FOUND(waiting->holders, 9, "holders");
  EXPECT_FOUND(out->handle, out->handle + 1, "handle");
  EXPECT_FOUND(out->slot_class, 4, "class 4");
  EXPECT_FOUND(records[5 * NPI_SLOTS_PER_CHUNK_MAX + 3].state, NPI_SLOT_FREE, "it is no slot");
  finish();
}

Test(check, waiting_lists) {
  begin();
  struct npi_slot_record *records = pair.pool.ledger.records;
  uint32_t first = pair.flow.waiting_head, last = pair.flow.waiting_tail;
  cr_assert_neq(first, last);
  EXPECT_FOUND(records[first].next, 4000000000U, "not a carved slot");
  EXPECT_FOUND(records[first].next, slot_in_state(NPI_SLOT_OUTSTANDING), "is outstanding");
  EXPECT_FOUND(records[last].next, last, "follows another already");
  EXPECT_FOUND(records[last].next, first, "none is the last");
  finish();
}

Test(check, chunks_and_segments) {
  begin();
  struct npi_ledger *ledger = &pair.pool.ledger;
  uint32_t run = NPI_NONE;
  for (uint32_t i = 0; i < 12 && run == NPI_NONE; i++) {
    if (ledger->chunks[i].slot_class == 9) run = i;
  }
  cr_assert_neq(run, NPI_NONE);
  EXPECT_FOUND(ledger->chunks[0].slot_class, NPI_CHUNK_FREE, "not a carved slot");
  EXPECT_FOUND(ledger->chunks[0].slot_class, 1, "is of class 1");
  EXPECT_FOUND(ledger->chunks[0].slot_class, 100, "does not exist");
  EXPECT_FOUND(ledger->chunks[0].slot_class, NPI_CHUNK_CONTINUED, "continues a run");
  EXPECT_FOUND(ledger->chunks[run + 1].slot_class, NPI_CHUNK_FREE, "has 1 chunks instead of 2");
  EXPECT_FOUND(ledger->chunks[5].slot_class, 12, "leaves the segment");
  EXPECT_FOUND(ledger->chunks[3 * 6 + 2].slot_class, 2, "but the segment has 0");
  EXPECT_FOUND(ledger->segments[0].chunks_free, 6, "free chunks");
  EXPECT_FOUND(ledger->segments[0].chunks, 7, "7 chunks of at most 6");
  EXPECT_FOUND(ledger->segments[0].chunks, UINT32_MAX, "chunks of at most 6");
  EXPECT_FOUND(ledger->segments[0].bytes, 5, "5 bytes");
  EXPECT_FOUND(ledger->segments[0].leased, 2, "leased 2");
  EXPECT_FOUND(ledger->segments[0].leased, 0, "leased 0");
  EXPECT_FOUND(ledger->segments[3].leased, 1, "the pool has 0 bytes");
  EXPECT_FOUND(pair.pool.leased_bytes, 1, "the pool counts");
  EXPECT_FOUND(pair.pool.n_segments, 1, "the pool counts 1");
  finish();
}

Test(check, connections) {
  begin();
  struct npi_ledger_connection *entry = other->outlet.entry;
  uint32_t out = NPI_NONE;
  for (uint32_t i = 0; i < 16 && out == NPI_NONE; i++) {
    if (other->outlet.credit_slot[i] != NPI_NONE) out = i;
  }
  uint32_t unused = other->outlet.credit_stack[0];
  EXPECT_FOUND(entry->state, 3, "state 3");
  EXPECT_FOUND(entry->state, NPI_OUTLET_FREE, "holders");
  EXPECT_FOUND(entry->capacity, 24, "capacity 24");
  EXPECT_FOUND(entry->capacity, 8, "capacity 8");
  EXPECT_FOUND(entry->capacity, 32768, "capacity 32768");
  EXPECT_FOUND(entry->capacity, 0, "capacity 0");
  EXPECT_FOUND(entry->limit, 17, "limit 17");
  EXPECT_FOUND(entry->outstanding, entry->outstanding + 1, "credits are out");
  EXPECT_FOUND(entry->submitted, entry->submitted + 1, "submitted");
  EXPECT_FOUND(entry->returned, entry->returned + 1, "returned");
  EXPECT_FOUND(entry->credits_free, entry->credits_free - 1, "free credits");
  EXPECT_FOUND(entry->credits_free, UINT32_MAX, "free credits");
  EXPECT_FOUND(entry->bytes_out, entry->bytes_out + 320, "bytes out");
  EXPECT_FOUND(entry->credits_offset, UINT64_MAX - 3, "does not fit");
  EXPECT_FOUND(entry->credits_offset, entry->credits_offset + 2, "does not fit");
  EXPECT_FOUND(entry->credits_offset, pair.geometry.credits_bytes - 156, "does not fit");
  EXPECT_FOUND(entry->credits_offset, end->outlet.entry->credits_offset + 40, "overlap");
  EXPECT_FOUND(other->outlet.credit_stack[0], 16, "is number 16");
  EXPECT_FOUND(other->outlet.credit_stack[0], other->outlet.credit_stack[1], "twice");
  EXPECT_FOUND(other->outlet.credit_stack[0], out, "and out for");
  EXPECT_FOUND(other->outlet.credit_slot[unused], slot_in_state(NPI_SLOT_FREE), "hold it");
  EXPECT_FOUND(other->outlet.credit_slot[unused], other->outlet.credit_slot[out], "two credits");
  EXPECT_FOUND(other->outlet.credit_slot[out], NPI_NONE, "credits are out");
  EXPECT_FOUND(other->outlet.credit_slot[out], 4000000000U, "not a carved slot");
  finish();
}

/* The same for one connection's rings. */
static unsigned check_other(int with_subscriber) {
  struct npi_check_subscriber subscriber = {other->inlet.taken, other->inlet.returned};
  lines.n = 0;
  return npi_check_connection(&pair.pool.ledger, other->outlet.entry, other->submissions, other->returns, 16,
                              with_subscriber ? &subscriber : NULL, keep_line, &lines);
}

#define EXPECT_FOUND_IN_RINGS(place, value, words)                                                 \
  do {                                                                                             \
    __typeof__(place) was_ = (place);                                                              \
    (place) = (__typeof__(place))(value);                                                          \
    unsigned n_ = check_other(1);                                                                  \
    cr_expect_geq(n_, 1, #place " = " #value " was not found");                                    \
    cr_expect(is_said(words), #place " = " #value ": not said: " words ", but %s", lines.text[0]); \
    (place) = was_;                                                                                \
    cr_assert_eq(check_other(1), 0);                                                               \
  } while (0)

Test(check, rings) {
  begin();
  struct npi_ledger_connection *entry = other->outlet.entry;
  _Atomic uint64_t *untaken = &other->submissions->element[5].value; /* of seven; four were taken */
  _Atomic uint64_t *returned = &other->returns->element[1].value;    /* of three */
  uint64_t lap = UINT64_C(1) << NPI_ELEMENT_LAP_SHIFT, credit = 1 << NPI_ELEMENT_CREDIT_SHIFT;
  cr_assert_eq(check_other(0), 0);
  cr_assert_eq(check_other(1), 0);
#define EXPECT_WORD_FOUND(word, change, words)                                               \
  do {                                                                                       \
    uint64_t was_ = *(word);                                                                 \
    *(word) = was_ change;                                                                   \
    cr_expect_geq(check_other(1), 1, #word #change " was not found");                        \
    cr_expect(is_said(words), #word #change ": not said: " words ", but %s", lines.text[0]); \
    *(word) = was_;                                                                          \
    cr_assert_eq(check_other(1), 0);                                                         \
  } while (0)
  EXPECT_WORD_FOUND(untaken, +lap, "of lap 1 instead of 0");
  EXPECT_WORD_FOUND(untaken, +credit, "went out as submission 5");
  EXPECT_WORD_FOUND(untaken, ^1, "went out as submission 5");
  EXPECT_WORD_FOUND(&other->submissions->element[12].value, +lap, "submission");
  EXPECT_WORD_FOUND(returned, ^1, "return 1 is");
  EXPECT_WORD_FOUND(returned, +9 * credit, "is not out");
  EXPECT_WORD_FOUND(returned, | 16383 * credit, "is not out");
  EXPECT_WORD_FOUND(returned, -lap, "return");
  EXPECT_WORD_FOUND(returned, *0 + returned[-1], "second time");
  EXPECT_WORD_FOUND(returned, *0 + (untaken[0] & NPI_ELEMENT_BODY_MASK), "not yet taken");
  EXPECT_WORD_FOUND(&other->returns->element[3].value, *0 + (untaken[0] & NPI_ELEMENT_BODY_MASK), "return");
#undef EXPECT_WORD_FOUND
  EXPECT_FOUND_IN_RINGS(other->outlet.credit_order[npi_element_credit(*untaken)], 100, "not yet taken");
  EXPECT_FOUND_IN_RINGS(other->outlet.credit_order[npi_element_credit(*untaken)], 7, "not yet stored");
  EXPECT_FOUND_IN_RINGS(entry->submitted, entry->submitted + 1, "counters say");
  EXPECT_FOUND_IN_RINGS(entry->capacity, 32, "rings hold 16");
  EXPECT_FOUND_IN_RINGS(other->inlet.taken, other->inlet.taken + 4, "not taken");
  EXPECT_FOUND_IN_RINGS(other->inlet.taken, other->inlet.taken - 1, "not yet taken");
  EXPECT_FOUND_IN_RINGS(other->inlet.returned, other->inlet.returned - 1, "the subscriber gave 2");
  finish();
}

Test(check, a_copy_is_checked_as_the_ledger_itself) {
  struct npi_ledger ledger;
  begin();
  uint8_t *copy = malloc(pair.ledger_bytes);
  memcpy(copy, pair.ledger_memory, pair.ledger_bytes);
  cr_assert_eq(npi_ledger_attach(&ledger, copy, pair.ledger_bytes), 0);
  cr_expect_eq(npi_check_ledger(&ledger, keep_line, &lines), 0);
  for (uint32_t i = 0; i < 2; i++) {
    const struct core_end *one = i == 0 ? end : other;
    const struct npi_ledger_connection *entry = &ledger.connections[one->outlet.entry - pair.pool.ledger.connections];
    cr_expect_eq(npi_check_connection(&ledger, entry, one->submissions, one->returns, one->inlet.capacity, NULL,
                                      keep_line, &lines),
                 0);
  }
  free(copy);
  finish();
}

Test(check, lines_are_bounded_and_findings_counted) {
  begin();
  lines.n = 0;
  for (uint32_t i = 0; i < 600; i++) pair.pool.ledger.records[i].handle ^= 1;
  cr_expect_eq(npi_check_ledger(&pair.pool.ledger, keep_line, &lines), 600);
  cr_expect_eq(lines.n, NPI_CHECK_LINES_MAX);
  for (uint32_t i = 0; i < 600; i++) pair.pool.ledger.records[i].handle ^= 1;
  finish();
}

static void ignore_line(void *context, const char *finding) {
  (void)context;
  cr_assert_lt(strlen(finding), 256);
}

/* A ledger with an end that the address sanitizer watches, some of its bytes replaced. */
static unsigned check_garbled(uint64_t *seed, uint32_t n_changes, int whole_areas) {
  struct npi_ledger ledger;
  uint8_t *copy = malloc(pair.ledger_bytes);
  memcpy(copy, pair.ledger_memory, pair.ledger_bytes);
  cr_assert_eq(npi_ledger_attach(&ledger, copy, pair.ledger_bytes), 0);
  for (uint32_t i = 0; i < n_changes; i++) {
    static const uint64_t interesting[] = {0, 1, 16, 0x7fffffff, UINT32_MAX, UINT64_MAX, UINT64_MAX - 3, 16384};
    uint64_t value = core_random(seed) % 2 ? core_random(seed) : interesting[core_random(seed) % 8];
    uint64_t width = UINT64_C(1) << core_random(seed) % 4;
    struct {
      void *begin;
      uint64_t bytes;
    } area[] = {
        {ledger.header->free, sizeof ledger.header->free},
        {ledger.segments, ledger.geometry.segments * sizeof *ledger.segments},
        {ledger.chunks, ledger.geometry.segments * ledger.geometry.chunks_per_segment},
        {ledger.records, NPI_SLOTS_PER_CHUNK_MAX * sizeof *ledger.records},
        {ledger.connections, 4 * sizeof *ledger.connections},
        {ledger.credits, ledger.geometry.credits_bytes / 2},
    };
    unsigned which = (unsigned)(core_random(seed) % NPI_ARRAY_COUNT(area));
    uint8_t *begin_of = area[which].begin;
    if (whole_areas) {
      for (uint64_t k = 0; k + 8 <= area[which].bytes; k += 8) {
        value = core_random(seed) % 4 == 0 ? interesting[core_random(seed) % 8] : core_random(seed);
        memcpy(begin_of + k, &value, 8);
      }
    } else {
      memcpy(begin_of + core_random(seed) % (area[which].bytes / width) * width, &value, width);
    }
  }
  unsigned n = npi_check_ledger(&ledger, ignore_line, NULL);
  for (uint32_t i = 0; i < 4; i++) {
    n += npi_check_connection(&ledger, &ledger.connections[i], other->submissions, other->returns, 16, NULL,
                              ignore_line, NULL);
  }
  free(copy);
  return n;
}

Test(check, garbage_is_survived_and_found) {
  uint64_t seed = 20260101;
  unsigned n_found = 0;
  begin();
  for (int i = 0; i < 400; i++) n_found += check_garbled(&seed, 1 + (uint32_t)(i % 8), 0) > 0;
  for (int i = 0; i < 100; i++) cr_expect_gt(check_garbled(&seed, 1 + (uint32_t)(i % 6), 1), 0);
  cr_expect_gt(n_found, 100, "found in %u of 400", n_found);
  finish();
}
