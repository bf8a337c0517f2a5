/* SPDX-License-Identifier: Apache-2.0 */
/* Elements at their extremes, and a ring's laps over wraps of every kind. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/ring.h"

TestSuite(ring, .timeout = 60);

static struct npi_ring_block *make_ring(struct npi_ring *ring, uint32_t capacity) {
  struct npi_ring_block *block = aligned_alloc(NPI_CACHE_LINE, npi_ring_block_bytes(capacity));
  cr_assert_not_null(block);
  memset(block, 0, npi_ring_block_bytes(capacity));
  npi_ring_attach(ring, block, capacity);
  return block;
}

Test(ring, an_element_keeps_each_field_apart_at_both_ends_of_its_range) {
  static const uint32_t handles[] = {0, 1, 0x80000000, UINT32_MAX};
  static const uint32_t credits[] = {0, 1, NPI_CREDITS_MAX - 1};
  static const uint32_t generations[] = {0, 1, 1023, 1024, UINT32_MAX};
  for (unsigned h = 0; h < NPI_ARRAY_COUNT(handles); h++) {
    for (unsigned c = 0; c < NPI_ARRAY_COUNT(credits); c++) {
      for (unsigned g = 0; g < NPI_ARRAY_COUNT(generations); g++) {
        uint64_t element = npi_element(handles[h], credits[c], generations[g]);
        cr_expect_eq(npi_element_handle(element), handles[h]);
        cr_expect_eq(npi_element_credit(element), credits[c]);
        cr_expect_eq(npi_element_generation(element), generations[g] % 1024, "only the low ten bits travel");
        cr_expect_eq(element >> NPI_ELEMENT_FLAGS_SHIFT, 0, "flags and lap stay clear");
      }
    }
  }
}

Test(ring, a_handle_names_the_first_and_the_last_line_of_the_largest_segment) {
  uint64_t last = NPI_SEGMENT_BYTES_MAX - NPI_CACHE_LINE;
  cr_expect_eq(npi_handle_segment(npi_handle(0, 0)), 0);
  cr_expect_eq(npi_handle_offset(npi_handle(0, 0)), 0);
  uint32_t handle = npi_handle(NPI_SEGMENTS_PER_CLIENT_MAX - 1, last);
  cr_expect_eq(npi_handle_segment(handle), NPI_SEGMENTS_PER_CLIENT_MAX - 1);
  cr_expect_eq(npi_handle_offset(handle), last);
}

Test(ring, a_class_is_the_smallest_that_holds_the_bytes) {
  cr_expect_eq(npi_class_of(0), 0);
  for (uint32_t i = 0; i < NPI_CLASS_COUNT; i++) {
    cr_expect_eq(npi_class_of(npi_class_bytes(i)), i);
    cr_expect_eq(npi_class_of(npi_class_bytes(i) + 1), i + 1);
    cr_expect_eq(npi_class_stride(i) / NPI_CACHE_LINE % 2, 1, "class %u: neighbours share cache sets", i);
    cr_expect_eq(npi_class_stride(i) % NPI_CACHE_LINE, 0);
    cr_expect_geq(npi_class_slots(i), 1);
    cr_expect_leq(npi_class_slots(i), NPI_SLOTS_PER_CHUNK_MAX);
    cr_expect_leq(npi_class_slots(i) * npi_class_stride(i), (uint64_t)npi_class_run(i) * NPI_CHUNK_BYTES);
  }
  cr_expect_eq(npi_class_bytes(NPI_CLASS_COUNT - 1), NPI_EVENT_BYTES_MAX);
  cr_expect_geq(npi_class_of(UINT64_MAX), NPI_CLASS_COUNT);
}

Test(ring, a_formatted_ring_is_empty_and_a_zeroed_one_is_not) {
  struct npi_ring ring;
  struct npi_ring_block *block = make_ring(&ring, 16);
  uint64_t element;
  cr_expect_eq(npi_ring_load(&ring, 0, &element), 1, "zeros are elements of lap 0: that is why it is formatted");
  block->counter[3].value = 7;
  npi_ring_format(block, 16);
  for (uint64_t i = 0; i < 16; i++) cr_expect_eq(npi_ring_load(&ring, i, &element), 0, "position %d", (int)i);
  cr_expect_eq(npi_load_relaxed_u64(&block->counter[3]), 0, "counters begin at zero");
  free(block);
}

/* A ring that is written and read in turn, `ahead` elements apart, from `start` on for `n` elements. */
static void run_laps(uint32_t capacity, uint64_t start, uint64_t n, uint32_t ahead) {
  struct npi_ring ring;
  struct npi_ring_block *block = make_ring(&ring, capacity);
  uint64_t element, read = start;
  npi_ring_format(block, capacity);
  for (uint64_t i = 0; i < n; i++) {
    uint64_t position = start + i;
    if (position - read == ahead) {
      cr_assert_eq(npi_ring_load(&ring, read, &element), 1, "element %d of those from %llx", (int)(read - start),
                   (unsigned long long)start);
      cr_assert_eq(element & NPI_ELEMENT_BODY_MASK, read * 3 & NPI_ELEMENT_BODY_MASK);
      read++;
    }
    cr_assert_eq(npi_ring_load(&ring, position, &element), 0, "element %d was there before it was stored", (int)i);
    npi_ring_store(&ring, position, position * 3 & NPI_ELEMENT_BODY_MASK);
  }
  free(block);
}

Test(ring, an_element_is_there_once_stored_and_not_before_over_many_laps) {
  static const uint32_t capacities[] = {16, 64, 1024, 16384};
  for (unsigned i = 0; i < NPI_ARRAY_COUNT(capacities); i++) {
    run_laps(capacities[i], 0, capacities[i] * UINT64_C(40), capacities[i]);
    run_laps(capacities[i], 0, capacities[i] * UINT64_C(40), 1);
  }
}

Test(ring, positions_pass_two_to_the_64_as_any_other_wrap_of_the_laps) {
  /* 16 laps are 2^64's divisor, so lap 0 follows lap 15 there as everywhere. */
  run_laps(16, UINT64_MAX - 16 * 16 * 3 + 1, 16 * 16 * 6, 16);
  run_laps(1024, UINT64_MAX - 16 * 1024 + 1, 16 * 1024 * 2, 700);
  run_laps(16, (UINT64_C(1) << 32) - 16 * 16, 16 * 16 * 2, 16);
}

Test(ring, each_of_the_sixteen_laps_is_told_from_the_one_before_it) {
  struct npi_ring ring;
  struct npi_ring_block *block = make_ring(&ring, 16);
  uint64_t element;
  npi_ring_format(block, 16);
  for (uint64_t lap = 0; lap < 33; lap++) {
    npi_ring_store(&ring, lap * 16 + 5, NPI_ELEMENT_BODY_MASK);
    cr_expect_eq(npi_ring_load(&ring, lap * 16 + 5, &element), 1);
    cr_expect_eq(npi_ring_load(&ring, (lap + 1) * 16 + 5, &element), 0, "the next lap's is not there");
    cr_expect_eq(npi_ring_load(&ring, (lap + 15) * 16 + 5, &element), 0, "nor one fifteen laps on");
    if (lap % 16 != 15)
      cr_expect_eq(npi_ring_load(&ring, lap * 16 + 6, &element), 0, "nor its neighbour, never stored");
  }
  free(block);
}

Test(ring, a_block_is_an_odd_number_of_cache_lines) {
  for (uint32_t capacity = NPI_RING_CAPACITY_MIN; capacity <= NPI_CREDITS_MAX; capacity *= 2) {
    cr_expect_eq(npi_ring_block_bytes(capacity) / NPI_CACHE_LINE % 2, 1);
  }
}
