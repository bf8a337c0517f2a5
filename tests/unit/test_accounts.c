/* SPDX-License-Identifier: Apache-2.0 */
/* How many events a publisher has published that was killed at some instruction; what its rings really hold. */
#include <criterion/criterion.h>
#include <string.h>

#include "core/flow.h"
#include "core/ring.h"

enum { OUTLETS = 3 };

/* The word that npi_flow_begin stores, and what is in the rings and counted when the publisher dies. */
static uint64_t begun(struct npi_flow *flow, uint64_t published, uint64_t elements, uint32_t n) {
  flow->published = published;
  flow->elements = elements;
  npi_flow_begin(flow, n);
  return npi_load_relaxed_u64(&flow->counters->value[NPI_PUBLISHER_BEGUN]);
}

Test(accounts, published_is_exact_wherever_the_publisher_dies) {
  static const uint64_t starts[] = {0, 1, 77, 0xffffff, 0x1000000, 0xfffffe, UINT64_C(0x123456789a)};
  struct npi_endpoint_counters counters;
  struct npi_flow flow;
  memset(&counters, 0, sizeof counters);
  memset(&flow, 0, sizeof flow);
  flow.counters = &counters;
  for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
    uint64_t x = starts[i], t = starts[i] * OUTLETS + 5;
    /* One event to three: before the first element it is none, from then on one, counted or not. */
    uint64_t word = begun(&flow, x, t, 1);
    cr_expect_eq(npi_flow_published(word, x, t), x);
    for (uint64_t stored = 1; stored <= OUTLETS; stored++) {
      cr_expect_eq(npi_flow_published(word, x, t + stored), x + 1);
      cr_expect_eq(npi_flow_published(word, x + 1, t + stored), x + 1);
    }
    /* A row of 64, one outlet after the other. */
    word = begun(&flow, x, t, 64);
    for (uint64_t stored = 0; stored <= 64 * OUTLETS; stored++) {
      uint64_t out = stored < 64 ? stored : 64;
      cr_expect_eq(npi_flow_published(word, x, t + stored), x + out, "%llu stored", (unsigned long long)stored);
      cr_expect_eq(npi_flow_published(word, x + 64, t + 64 * OUTLETS), x + 64);
    }
    /* Nobody gets it: the word itself says that it is published. And elements of no new event do not count. */
    word = begun(&flow, x + 1, t, 0);
    cr_expect_eq(npi_flow_published(word, x, t), x + 1);
    cr_expect_eq(npi_flow_published(word, x + 1, t + 1), x + 1);
  }
}

Test(accounts, a_ring_says_itself_what_it_holds) {
  enum { CAPACITY = 16 };
  static _Alignas(64) unsigned char memory[sizeof(struct npi_ring_block) + CAPACITY * 8];
  struct npi_ring_block *block = (struct npi_ring_block *)(void *)memory;
  struct npi_ring ring;
  npi_ring_format(block, CAPACITY);
  npi_ring_attach(&ring, block, CAPACITY);
  cr_assert_eq(npi_ring_stored(block, CAPACITY, 0), 0);
  for (uint64_t position = 0; position < 20 * CAPACITY; position++) {
    npi_ring_store(&ring, position, 12345);
    /* Killed before it counted one, or a row of five. */
    cr_assert_eq(npi_ring_stored(block, CAPACITY, position + 1), position + 1);
    cr_assert_eq(npi_ring_stored(block, CAPACITY, position), position + 1);
    if (position >= 4) cr_assert_eq(npi_ring_stored(block, CAPACITY, position - 4), position + 1);
  }
}
