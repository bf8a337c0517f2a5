/* SPDX-License-Identifier: Apache-2.0 */
/* Carving, loaning and giving back slots; segments that come, lie idle and go. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "tests/support/core_pair.h"

TestSuite(pool, .timeout = 60);

static struct core_pair pair;

static void begin(uint32_t n_segments, uint32_t segment_chunks) {
  core_pair_open(&pair, &(struct core_options){.n_segments = n_segments, .segment_chunks = segment_chunks});
}

static void end(void) {
  cr_expect_eq(core_check(&pair), 0);
  core_pair_close(&pair);
}

/* Loans until the class is empty and no chunk is left; returns how many. */
static uint32_t loan_all(uint32_t slot_class, uint32_t *slots, uint32_t size) {
  uint32_t n = 0;
  for (;;) {
    uint32_t slot = npi_pool_loan(&pair.pool, slot_class);
    if (slot == NPI_NONE) {
      if (npi_pool_carve(&pair.pool, slot_class) != 0) return n;
      continue;
    }
    cr_assert_lt(n, size);
    slots[n++] = slot;
  }
}

static uint8_t *address_of(uint32_t slot) {
  return (uint8_t *)npi_pool_slot(&pair.pool, npi_pool_record(&pair.pool, slot)->handle);
}

Test(pool, an_empty_pool_is_dry) {
  begin(0, 4);
  cr_expect_eq(npi_pool_loan(&pair.pool, 0), NPI_NONE);
  cr_expect_eq(npi_pool_carve(&pair.pool, 0), NPI_POOL_DRY);
  cr_expect_eq(npi_pool_larger_class(&pair.pool, 0), NPI_NONE);
  end();
}

Test(pool, slots_of_every_class_lie_apart_inside_their_segment) {
  static uint32_t slots[16384];
  for (uint32_t slot_class = 0; slot_class < NPI_CLASS_COUNT; slot_class++) {
    begin(2, 7);
    uint32_t n = loan_all(slot_class, slots, NPI_ARRAY_COUNT(slots));
    cr_assert_eq(n, 2 * (7 / npi_class_run(slot_class)) * npi_class_slots(slot_class), "class %u: %u", slot_class, n);
    /* Each slot is written whole with its own number; whatever overlaps shows in the second walk. */
    for (uint32_t i = 0; i < n; i++) {
      uint8_t *base = pair.pool_segments[npi_handle_segment(npi_pool_record(&pair.pool, slots[i])->handle)].base;
      cr_assert_geq(address_of(slots[i]), base);
      cr_assert_leq(address_of(slots[i]) + npi_class_stride(slot_class), base + 7 * NPI_CHUNK_BYTES);
      for (uint64_t k = 0; k < npi_class_stride(slot_class) / 4; k++) ((uint32_t *)(void *)address_of(slots[i]))[k] = i;
    }
    for (uint32_t i = 0; i < n; i++) {
      uint32_t *words = (uint32_t *)(void *)address_of(slots[i]);
      cr_assert_eq(words[0], i);
      cr_assert_eq(words[npi_class_stride(slot_class) / 4 - 1], i);
    }
    cr_expect_eq(core_slots(&pair).n_loaned, n);
    cr_expect_eq(core_check(&pair), 0);
    for (uint32_t i = 0; i < n; i++) npi_pool_free(&pair.pool, slots[i]);
    cr_expect_eq(core_slots(&pair).n_free, n);
    end();
  }
}

Test(pool, a_slot_given_back_is_the_next_one_loaned_with_a_new_generation) {
  begin(1, 1);
  npi_pool_carve(&pair.pool, 2);
  uint32_t slot = npi_pool_loan(&pair.pool, 2);
  uint32_t generation = npi_pool_record(&pair.pool, slot)->generation;
  npi_pool_free(&pair.pool, slot);
  cr_expect_eq(npi_pool_loan(&pair.pool, 2), slot, "the one that is still in the cache");
  cr_expect_eq(npi_pool_record(&pair.pool, slot)->generation, generation + 1);
  npi_pool_free(&pair.pool, slot);
  end();
}

Test(pool, new_slots_are_handed_out_in_the_order_of_their_addresses) {
  begin(1, 2);
  uint8_t *last = NULL;
  npi_pool_carve(&pair.pool, 5);
  for (uint32_t i = 0; i < npi_class_slots(5); i++) {
    uint8_t *address = address_of(npi_pool_loan(&pair.pool, 5));
    cr_expect(last == NULL || address == last + npi_class_stride(5));
    last = address;
  }
  end();
}

Test(pool, generations_wrap_without_harm) {
  begin(1, 1);
  npi_pool_carve(&pair.pool, 0);
  uint32_t slot = npi_pool_loan(&pair.pool, 0);
  npi_pool_record(&pair.pool, slot)->generation = UINT32_MAX;
  npi_pool_free(&pair.pool, slot);
  cr_expect_eq(npi_pool_loan(&pair.pool, 0), slot);
  cr_expect_eq(npi_pool_record(&pair.pool, slot)->generation, 0);
  end();
}

Test(pool, a_run_needs_chunks_in_a_row) {
  begin(1, 6);
  for (uint32_t i = 0; i < 6; i++) cr_assert_eq(npi_pool_carve(&pair.pool, 0), 0);
  cr_expect_eq(npi_pool_carve(&pair.pool, 0), NPI_POOL_DRY);
  /* One slot of chunks 0, 2 and 4 stays out, so that only 1, 3 and 5 can be made free again. */
  static uint32_t slots[6 * NPI_SLOTS_PER_CHUNK_MAX];
  uint32_t n = loan_all(0, slots, NPI_ARRAY_COUNT(slots));
  for (uint32_t i = 0; i < n; i++) {
    uint32_t chunk = slots[i] / NPI_SLOTS_PER_CHUNK_MAX;
    if (slots[i] % NPI_SLOTS_PER_CHUNK_MAX != 5 || chunk % 2 == 1) npi_pool_free(&pair.pool, slots[i]);
  }
  cr_expect_eq(npi_pool_uncarve(&pair.pool), 3);
  cr_expect_eq(core_check(&pair), 0);
  cr_expect_eq(npi_pool_carve(&pair.pool, 8), NPI_POOL_DRY, "three free chunks, but no two of them in a row");
  cr_expect_eq(npi_pool_carve(&pair.pool, 7), 0, "one is enough for class 7");
  end();
}

Test(pool, uncarving_takes_only_chunks_that_are_wholly_free) {
  begin(2, 10);
  npi_pool_carve(&pair.pool, 12);
  npi_pool_carve(&pair.pool, 12);
  npi_pool_carve(&pair.pool, 3);
  uint32_t large = npi_pool_loan(&pair.pool, 12);
  cr_expect_eq(npi_pool_uncarve(&pair.pool), 6, "five of the other large slot, one of class 3");
  cr_expect_eq(pair.pool.ledger.header->free[3].head, NPI_NONE);
  cr_expect_eq(core_check(&pair), 0);
  npi_pool_free(&pair.pool, large);
  cr_expect_eq(npi_pool_uncarve(&pair.pool), 5);
  cr_expect_eq(npi_pool_uncarve(&pair.pool), 0);
  cr_expect_eq(core_slots(&pair).n_free, 0);
  end();
}

Test(pool, the_smallest_larger_class_with_a_free_slot_steps_in) {
  begin(2, 8);
  npi_pool_carve(&pair.pool, 9);
  npi_pool_carve(&pair.pool, 6);
  npi_pool_carve(&pair.pool, 1);
  cr_expect_eq(npi_pool_larger_class(&pair.pool, 0), 1);
  cr_expect_eq(npi_pool_larger_class(&pair.pool, 1), 6);
  cr_expect_eq(npi_pool_larger_class(&pair.pool, 6), 9);
  cr_expect_eq(npi_pool_larger_class(&pair.pool, 9), NPI_NONE);
  cr_expect_eq(npi_pool_larger_class(&pair.pool, NPI_CLASS_COUNT - 1), NPI_NONE);
  end();
}

Test(pool, a_segment_that_does_not_fit_the_ledger_is_refused_in_words) {
  static uint8_t memory[NPI_CHUNK_BYTES];
  begin(1, 2);
  struct core_pair before = pair;
  cr_expect_eq(npi_pool_add_segment(&pair.pool, CORE_SEGMENTS_MAX, memory, NPI_CHUNK_BYTES, 0), NP_ERR_PROTOCOL);
  cr_expect_eq(npi_pool_add_segment(&pair.pool, 1, memory, NPI_CHUNK_BYTES - 64, 0), NP_ERR_PROTOCOL);
  cr_expect_eq(npi_pool_add_segment(&pair.pool, 1, memory, 0, 0), NP_ERR_PROTOCOL);
  cr_expect_eq(npi_pool_add_segment(&pair.pool, 1, memory, 3 * NPI_CHUNK_BYTES, 0), NP_ERR_PROTOCOL);
  cr_expect(strstr(npi_detail(), "segment 1") != NULL, "%s", npi_detail());
  cr_expect_eq(npi_pool_add_segment(&pair.pool, 0, memory, NPI_CHUNK_BYTES, 0), NP_ERR_PROTOCOL, "leased twice");
  cr_expect_eq(memcmp(&before.pool, &pair.pool, sizeof pair.pool), 0, "and nothing changed");
  cr_expect_eq(npi_pool_add_segment(&pair.pool, 1, memory, NPI_CHUNK_BYTES, 3), 0, "a shorter one is fine");
  cr_expect_eq(pair.pool.leased_bytes, 3 * NPI_CHUNK_BYTES);
  cr_expect_eq(pair.pool.ledger.segments[1].node, 3);
  cr_expect_eq(npi_pool_remove_segment(&pair.pool, 1), 0);
  end();
}

Test(pool, a_segment_goes_when_nothing_of_it_is_in_use_and_comes_again) {
  begin(2, 2);
  static uint32_t slots[4 * NPI_SLOTS_PER_CHUNK_MAX];
  for (int round = 0; round < 3; round++) {
    uint32_t slot_class = (uint32_t)round * 3;
    uint32_t n = loan_all(slot_class, slots, NPI_ARRAY_COUNT(slots));
    cr_expect_eq(npi_pool_remove_segment(&pair.pool, 0), NPI_POOL_BUSY);
    uint32_t last_of_0 = NPI_NONE;
    for (uint32_t i = 0; i < n; i++) {
      if (npi_handle_segment(npi_pool_record(&pair.pool, slots[i])->handle) != 0) continue;
      if (last_of_0 != NPI_NONE) npi_pool_free(&pair.pool, last_of_0);
      last_of_0 = slots[i];
    }
    cr_expect_eq(npi_pool_remove_segment(&pair.pool, 0), NPI_POOL_BUSY, "one slot is still loaned");
    npi_pool_free(&pair.pool, last_of_0);
    cr_expect_eq(core_remove_segment(&pair, 0), 0);
    cr_expect_eq(pair.pool.n_segments, 1);
    cr_expect_eq(core_check(&pair), 0);
    cr_expect_eq(npi_pool_loan(&pair.pool, slot_class), NPI_NONE, "no slot of a segment that is gone");
    cr_expect_eq(core_remove_segment(&pair, 0), NP_ERR_ARGUMENT);
    for (uint32_t i = 0; i < n; i++) {
      if (npi_handle_segment(npi_pool_record(&pair.pool, slots[i])->handle) == 1 &&
          npi_pool_record(&pair.pool, slots[i])->state == NPI_SLOT_LOANED) {
        npi_pool_free(&pair.pool, slots[i]);
      }
    }
    npi_pool_uncarve(&pair.pool);
    cr_expect_eq(core_add_segment(&pair, 0), 0);
  }
  end();
}

Test(pool, a_segment_is_idle_after_nothing_of_it_was_in_use_for_the_time) {
  begin(2, 2);
  npi_pool_carve(&pair.pool, 12 - 4);
  uint32_t slot = npi_pool_loan(&pair.pool, 12 - 4);
  uint32_t used = npi_handle_segment(npi_pool_record(&pair.pool, slot)->handle);
  cr_expect_eq(npi_pool_idle_segment(&pair.pool, 1000, 500, 0), NPI_NONE, "the first look only notes the time");
  cr_expect_eq(npi_pool_idle_segment(&pair.pool, 1499, 500, 0), NPI_NONE);
  cr_expect_eq(npi_pool_idle_segment(&pair.pool, 1500, 500, 0), 1 - used, "the other one");
  cr_expect_eq(npi_pool_idle_segment(&pair.pool, 1500, 500, 1), 1 - used, "one may go when one stays");
  cr_expect_eq(npi_pool_idle_segment(&pair.pool, 1500, 500, 2), NPI_NONE, "two have to stay");
  npi_pool_free(&pair.pool, slot);
  cr_expect_eq(npi_pool_idle_segment(&pair.pool, 1600, 500, 0), 1 - used, "the time of the first begins now");
  cr_expect_eq(core_remove_segment(&pair, 1 - used), 0);
  cr_expect_eq(npi_pool_idle_segment(&pair.pool, 2099, 500, 0), NPI_NONE);
  cr_expect_eq(npi_pool_idle_segment(&pair.pool, 2100, 500, 0), used);
  slot = npi_pool_loan(&pair.pool, 12 - 4);
  cr_expect_eq(npi_pool_idle_segment(&pair.pool, 3000, 500, 0), NPI_NONE, "in use again");
  npi_pool_free(&pair.pool, slot);
  cr_expect_eq(npi_pool_idle_segment(&pair.pool, 3001, 500, 0), NPI_NONE, "and the time begins anew");
  end();
}

Test(pool, slots_are_counted_by_state) {
  begin(1, 2);
  struct core_end *subscriber = core_connect(&pair, &(struct core_end_options){0});
  npi_pool_carve(&pair.pool, 0);
  uint32_t loaned = npi_pool_loan(&pair.pool, 0);
  cr_expect_eq(core_publish_text(&pair, "one"), NP_OK);
  cr_expect_eq(core_publish_text(&pair, "two"), NP_OK);
  struct core_slots slots = core_slots(&pair);
  cr_expect_eq(slots.n_loaned, 1);
  cr_expect_eq(slots.n_out, 2);
  cr_expect_eq(slots.n_free, NPI_SLOTS_PER_CHUNK_MAX - 3);
  cr_expect_eq(npi_pool_remove_segment(&pair.pool, 0), NPI_POOL_BUSY, "subscribers may read them");
  npi_pool_free(&pair.pool, loaned);
  core_disconnect(&pair, subscriber);
  cr_expect_eq(core_slots(&pair).n_free, NPI_SLOTS_PER_CHUNK_MAX);
  end();
}
