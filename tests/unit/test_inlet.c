/* SPDX-License-Identifier: Apache-2.0 */
/* The subscriber's half: what it takes from an honest publisher, and what it refuses from a lying one. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/core_pair.h"

TestSuite(inlet, .timeout = 60);

static struct core_pair pair;
static struct core_end *end;

static void begin(uint32_t capacity, uint64_t start) {
  core_pair_open(&pair, &(struct core_options){.n_segments = 1, .segment_chunks = 4});
  end = core_connect(&pair, &(struct core_end_options){.capacity = capacity, .start = start});
}

static void finish(void) {
  core_pair_close(&pair);
}

/* Puts any word where the next element of an honest publisher would be; it shows what was taken of it. */
static int offer(uint64_t body) {
  uint64_t element;
  struct npi_taken taken;
  struct npi_inlet before = end->inlet;
  npi_ring_store(&end->outlet.submissions, end->inlet.taken, body);
  int status = core_take(end, &element, &taken);
  if (status != NP_OK) {
    cr_expect_eq(memcmp(&before, &end->inlet, sizeof before), 0, "a refused element changes nothing");
  }
  return status;
}

Test(inlet, events_are_taken_in_the_order_of_publishing_with_their_bytes) {
  char text[64];
  begin(16, 0);
  cr_expect_eq(core_take_text(end, text, sizeof text), NP_EMPTY);
  core_publish_text(&pair, "first");
  core_publish_text(&pair, "");
  core_publish_text(&pair, "third");
  cr_expect_eq(core_take_text(end, text, sizeof text), NP_OK);
  cr_expect_str_eq(text, "first");
  cr_expect_eq(core_take_text(end, text, sizeof text), NP_OK);
  cr_expect_str_eq(text, "");
  cr_expect_eq(core_take_text(end, text, sizeof text), NP_OK);
  cr_expect_str_eq(text, "third");
  cr_expect_eq(core_take_text(end, text, sizeof text), NP_EMPTY);
  cr_expect_eq(core_check(&pair), 0);
  finish();
}

Test(inlet, the_topic_lies_behind_the_payload_and_its_size_is_told) {
  uint64_t element;
  struct npi_taken taken;
  begin(16, 0);
  uint32_t slot = core_fill(&pair, "bodytopic", 9);
  struct npi_slot_header *header = npi_pool_slot(&pair.pool, npi_pool_record(&pair.pool, slot)->handle);
  header->payload_bytes = 4;
  header->topic_bytes = 5;
  cr_assert_eq(npi_flow_publish(&pair.flow, slot, header), NP_OK);
  cr_assert_eq(core_take(end, &element, &taken), NP_OK);
  cr_expect_eq(taken.payload_bytes, 4);
  cr_expect_eq(taken.topic_bytes, 5);
  cr_expect_eq(memcmp(taken.payload, "bodytopic", 9), 0);
  cr_expect_eq(npi_inlet_held(&end->inlet), 1);
  cr_expect_eq(npi_inlet_release(&end->inlet, element), 0);
  cr_expect_eq(npi_inlet_held(&end->inlet), 0);
  finish();
}

Test(inlet, events_are_returned_in_any_order) {
  uint64_t element[16];
  struct npi_taken taken;
  uint64_t seed = 4711;
  begin(16, 0);
  for (int round = 0; round < 500; round++) {
    for (int i = 0; i < 16; i++) cr_assert_eq(core_publish(&pair, &i, sizeof i), NP_OK);
    for (int i = 0; i < 16; i++) {
      cr_assert_eq(core_take(end, &element[i], &taken), NP_OK);
      cr_assert_eq(memcmp(taken.payload, &i, sizeof i), 0);
    }
    for (uint32_t n = 16; n > 0; n--) {
      uint32_t i = (uint32_t)(core_random(&seed) % n);
      cr_assert_eq(npi_inlet_release(&end->inlet, element[i]), 0);
      element[i] = element[n - 1];
    }
    npi_flow_reap(&pair.flow);
    cr_assert_eq(core_check(&pair), 0, "round %d", round);
    cr_assert_eq(end->outlet.entry->outstanding, 0);
  }
  finish();
}

Test(inlet, one_event_is_kept_while_thousands_pass) {
  char text[64];
  uint64_t kept;
  struct npi_taken taken;
  begin(16, 0);
  core_publish_text(&pair, "keep me");
  cr_assert_eq(core_take(end, &kept, &taken), NP_OK);
  for (int i = 0; i < 5000; i++) {
    cr_assert_eq(core_publish_text(&pair, "passing"), NP_OK);
    cr_assert_eq(core_take_text(end, text, sizeof text), NP_OK);
  }
  cr_expect_eq(memcmp(taken.payload, "keep me", 7), 0);
  cr_expect_eq(core_check(&pair), 0);
  cr_expect_eq(npi_inlet_release(&end->inlet, kept), 0);
  npi_flow_reap(&pair.flow);
  cr_expect_eq(core_slots(&pair).n_out, 0);
  finish();
}

Test(inlet, positions_pass_two_to_the_64) {
  char text[64], expected[64];
  begin(16, UINT64_MAX - 16 * 16 + 1);
  for (int i = 0; i < 16 * 40; i++) {
    snprintf(expected, sizeof expected, "event %d", i);
    cr_assert_eq(core_publish_text(&pair, expected), NP_OK);
    cr_assert_eq(core_take_text(end, text, sizeof text), NP_OK);
    cr_assert_str_eq(text, expected);
    if (i % 16 == 3) cr_assert_eq(core_check(&pair), 0, "event %d", i);
  }
  cr_expect_lt(end->inlet.taken, 16 * 40, "it did pass");
  finish();
}

Test(inlet, every_bit_of_an_element_counts) {
  uint64_t element, word;
  struct npi_taken taken;
  begin(16, 0);
  core_publish_text(&pair, "x");
  cr_assert_eq(npi_inlet_look(&end->inlet, &word), 1);
  for (int flag = 56; flag < 60; flag++) {
    cr_expect_eq(npi_inlet_open(&end->inlet, word | UINT64_C(1) << flag, &taken), NP_ERR_CORRUPT, "flag %d", flag);
  }
  cr_assert_eq(core_take(end, &element, &taken), NP_OK);
  for (int bit = 0; bit < 64; bit++) {
    cr_expect_eq(npi_inlet_release(&end->inlet, element ^ UINT64_C(1) << bit), NP_ERR_MISUSE, "bit %d", bit);
  }
  cr_expect_eq(npi_inlet_held(&end->inlet), 1);
  cr_expect_eq(npi_inlet_release(&end->inlet, element), 0);
  finish();
}

Test(inlet, a_second_release_is_misuse_and_changes_nothing) {
  uint64_t element;
  struct npi_taken taken;
  begin(16, 0);
  core_publish_text(&pair, "x");
  cr_assert_eq(core_take(end, &element, &taken), NP_OK);
  cr_expect_eq(npi_inlet_release(&end->inlet, element), 0);
  struct npi_inlet before = end->inlet;
  cr_expect_eq(npi_inlet_release(&end->inlet, element), NP_ERR_MISUSE);
  cr_expect_eq(npi_inlet_release(&end->inlet, element + 1), NP_ERR_MISUSE, "never taken");
  cr_expect_eq(npi_inlet_release(&end->inlet, UINT64_MAX), NP_ERR_MISUSE, "no such credit");
  cr_expect_eq(memcmp(&before, &end->inlet, sizeof before), 0);
  cr_expect_eq(npi_flow_reap(&pair.flow), 1);
  cr_expect_eq(pair.flow.broken, 0);
  cr_expect_eq(core_check(&pair), 0);
  finish();
}

Test(inlet, a_second_release_is_found_when_its_credit_came_again_with_a_slot_of_the_same_generation) {
  uint64_t first, second;
  struct npi_taken taken;
  begin(16, 0);
  uint32_t other = core_fill(&pair, "other", 5); /* generation 1, like the next one */
  core_publish_text(&pair, "first");
  cr_assert_eq(core_take(end, &first, &taken), NP_OK);
  cr_assert_eq(npi_inlet_release(&end->inlet, first), 0);
  cr_assert_eq(npi_flow_reap(&pair.flow), 1);
  npi_flow_publish(&pair.flow, other, npi_pool_slot(&pair.pool, npi_pool_record(&pair.pool, other)->handle));
  cr_assert_eq(core_take(end, &second, &taken), NP_OK);
  cr_assert_eq(npi_element_credit(first), npi_element_credit(second), "this is what the test is about");
  cr_assert_eq(npi_element_generation(first), npi_element_generation(second));
  cr_expect_eq(npi_inlet_release(&end->inlet, first), NP_ERR_MISUSE);
  cr_expect_eq(npi_inlet_release(&end->inlet, second), 0);
  cr_expect_eq(npi_flow_reap(&pair.flow), 1);
  cr_expect_eq(pair.flow.broken, 0, "the program's mistake is no lie to the publisher");
  finish();
}

Test(inlet, an_element_that_points_outside_is_refused) {
  begin(16, 0);
  uint64_t segment_lines = pair.segment_bytes / NPI_CACHE_LINE;
  cr_expect_eq(offer(npi_element(npi_handle(1, 0), 0, 1)), NP_ERR_CORRUPT, "a segment that was never announced");
  cr_expect_eq(offer(npi_element(npi_handle(CORE_SEGMENTS_MAX, 0), 0, 1)), NP_ERR_CORRUPT, "no such number");
  cr_expect_eq(offer(npi_element(UINT32_MAX, 0, 1)), NP_ERR_CORRUPT);
  cr_expect_eq(offer(npi_element((uint32_t)segment_lines, 0, 1)), NP_ERR_CORRUPT, "one line behind the end");
  cr_expect_eq(offer(npi_element(NPI_LINE_MASK, 0, 1)), NP_ERR_CORRUPT);
  cr_expect_eq(offer(npi_element(0, 16, 1)), NP_ERR_CORRUPT, "a credit that does not exist");
  cr_expect_eq(offer(npi_element(0, NPI_CREDIT_MASK, 1)), NP_ERR_CORRUPT);
  cr_expect_eq(offer(npi_element((uint32_t)segment_lines - 1, 15, 1)), NP_OK, "the last line is inside, and empty");
  finish();
}

Test(inlet, sizes_that_leave_the_segment_are_refused) {
  begin(16, 0);
  uint8_t *base = pair.segment_memory[0];
  uint64_t offset = pair.segment_bytes - 1024;
  struct npi_slot_header *header = (void *)(base + offset);
  uint64_t element = npi_element(npi_handle(0, offset), 3, 1);
  header->payload_bytes = 1024 - 64 + 1;
  cr_expect_eq(offer(element), NP_ERR_CORRUPT);
  header->payload_bytes = UINT32_MAX;
  header->topic_bytes = UINT16_MAX;
  cr_expect_eq(offer(element), NP_ERR_CORRUPT, "no sum wraps");
  header->payload_bytes = 1024 - 64;
  header->topic_bytes = 1;
  cr_expect_eq(offer(element), NP_ERR_CORRUPT);
  header->topic_bytes = 0;
  cr_expect_eq(offer(element), NP_OK, "exactly up to the end");
  finish();
}

Test(inlet, a_credit_that_is_held_cannot_come_again) {
  begin(16, 0);
  cr_expect_eq(offer(npi_element(0, 4, 1)), NP_OK);
  cr_expect_eq(offer(npi_element(0, 4, 2)), NP_ERR_CORRUPT);
  for (uint32_t credit = 0; credit < 16; credit++) {
    if (credit != 4) cr_expect_eq(offer(npi_element(0, credit, 1)), NP_OK);
  }
  /* So a lying publisher makes nobody hold more than the connection's capacity. */
  for (uint32_t credit = 0; credit < 16; credit++) cr_expect_eq(offer(npi_element(0, credit, 9)), NP_ERR_CORRUPT);
  cr_expect_eq(npi_inlet_held(&end->inlet), 16);
  finish();
}

Test(inlet, a_segment_that_was_withdrawn_is_refused) {
  uint64_t element;
  struct npi_taken taken;
  begin(16, 0);
  core_publish_text(&pair, "x");
  struct npi_segment_view view = pair.views[0];
  pair.views[0] = (struct npi_segment_view){NULL, 0};
  cr_expect_eq(core_take(end, &element, &taken), NP_ERR_CORRUPT);
  pair.views[0] = view;
  cr_expect_eq(core_take(end, &element, &taken), NP_OK);
  finish();
}

Test(inlet, random_words_are_taken_or_refused_and_what_is_taken_lies_inside) {
  uint64_t seed = 99, n_taken = 0;
  begin(64, 0);
  for (int i = 0; i < 200000; i++) {
    uint64_t element, body = core_random(&seed) & NPI_ELEMENT_BODY_MASK;
    struct npi_taken taken;
    if (i % 2 == 0) body &= ~(UINT64_C(0x3ffff) << 38 | UINT64_C(0xff) << 16); /* likely inside */
    npi_ring_store(&end->outlet.submissions, end->inlet.taken, body);
    cr_assert_eq(npi_inlet_look(&end->inlet, &element), 1);
    if (npi_inlet_open(&end->inlet, element, &taken) != 0) continue;
    n_taken++;
    const uint8_t *base = pair.segment_memory[0];
    cr_assert(taken.payload >= base + 64);
    cr_assert(taken.payload + taken.payload_bytes + taken.topic_bytes <= base + pair.segment_bytes);
    cr_assert_eq(npi_inlet_release(&end->inlet, element), 0);
  }
  cr_expect_gt(n_taken, 1000, "%d were taken", (int)n_taken);
  finish();
}
