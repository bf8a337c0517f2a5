/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A publisher of numbers and its subscribers, in one process (support/core_pair.h): what the tests of publishing have in
 * common. One test, one pair; the including file has the tests.
 */
#ifndef NUMAPOOL_TESTS_NUMBERED_FLOW_H
#define NUMAPOOL_TESTS_NUMBERED_FLOW_H

#include <criterion/criterion.h>
#include <string.h>

#include "tests/support/core_pair.h"

static struct core_pair pair;

static inline void begin(uint32_t kind, uint32_t on_full) {
  core_pair_open(&pair, &(struct core_options){.kind = kind, .on_full = on_full, .n_segments = 2, .segment_chunks = 5});
}

static inline void finish(void) {
  cr_expect_eq(core_check(&pair), 0);
  core_pair_close(&pair);
}

static inline struct core_end *connect_blocking(uint32_t capacity) {
  return core_connect(&pair, &(struct core_end_options){.capacity = capacity, .on_full = NPI_ON_FULL_BLOCK});
}

static inline struct core_end *connect_dropping(uint32_t capacity) {
  return core_connect(&pair, &(struct core_end_options){.capacity = capacity, .on_full = NPI_ON_FULL_DROP_NEWEST});
}

static inline struct core_end *connect_tap(uint32_t capacity) {
  return core_connect(&pair, &(struct core_end_options){
                                 .capacity = capacity, .on_full = NPI_ON_FULL_BLOCK, .flags = NPI_SUBSCRIBER_TAP});
}

static inline int publish_number(int number) {
  return core_publish(&pair, &number, sizeof number);
}

/* A taken event of one of these tests. */
struct event {
  uint64_t element;
  int number;
  uint64_t sequence;
  int redelivered;
  int deliveries;
};

static inline int take(struct core_end *end, struct event *event) {
  struct npi_taken taken;
  int status = core_take(end, &event->element, &taken);
  if (status != NP_OK) return status;
  memcpy(&event->number, taken.payload, sizeof event->number);
  event->sequence = taken.header->sequence;
  event->redelivered = (taken.header->flags & NPI_EVENT_REDELIVERED) != 0;
  event->deliveries = taken.header->deliveries;
  return NP_OK;
}

static inline int take_number(struct core_end *end) {
  struct event event;
  return take(end, &event) == NP_OK ? event.number : -1;
}

static inline void take_and_release(struct core_end *end) {
  struct event event;
  cr_assert_eq(take(end, &event), NP_OK);
  cr_assert_eq(npi_inlet_release(&end->inlet, event.element), 0);
}

static inline uint64_t block_count(const struct core_end *end, unsigned row) {
  return npi_load_relaxed_u64(&end->submissions->counter[row]);
}

#endif
