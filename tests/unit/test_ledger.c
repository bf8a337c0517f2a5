/* SPDX-License-Identifier: Apache-2.0 */
/* Where the areas of a ledger lie, and what a reader of somebody else's copy refuses. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "core/ledger.h"

TestSuite(ledger, .timeout = 30);

static const struct npi_ledger_geometry small = {
    .segments = 3, .chunks_per_segment = 4, .connections = 5, .credits_bytes = 8192};

static void *format(struct npi_ledger *ledger, uint64_t *bytes) {
  *bytes = npi_ledger_footprint(&small);
  void *memory = calloc(1, *bytes);
  cr_assert_not_null(memory);
  npi_ledger_format(ledger, memory, &small, 7, 9);
  return memory;
}

Test(ledger, areas_follow_each_other_inside_the_footprint) {
  struct npi_ledger ledger;
  uint64_t bytes;
  uint8_t *memory = format(&ledger, &bytes);
  cr_expect_eq(bytes % NPI_PAGE, 0);
  cr_expect_eq(ledger.header->total_bytes, bytes);
  cr_expect_geq((uint8_t *)ledger.segments, memory + NPI_PAGE);
  cr_expect_geq((uint8_t *)ledger.chunks, (uint8_t *)(ledger.segments + small.segments));
  cr_expect_geq((uint8_t *)ledger.records, (uint8_t *)(ledger.chunks + 3 * 4));
  cr_expect_eq(npi_ledger_record_count(&ledger), 3 * 4 * NPI_SLOTS_PER_CHUNK_MAX);
  cr_expect_geq((uint8_t *)ledger.connections, (uint8_t *)(ledger.records + npi_ledger_record_count(&ledger)));
  cr_expect_geq(ledger.credits, (uint8_t *)(ledger.connections + small.connections));
  cr_expect_leq(ledger.credits + small.credits_bytes, memory + bytes);
  free(memory);
}

Test(ledger, a_formatted_ledger_has_no_slot_and_every_chunk_free) {
  struct npi_ledger ledger;
  uint64_t bytes;
  void *memory = format(&ledger, &bytes);
  for (unsigned i = 0; i < NPI_CLASS_COUNT; i++) {
    cr_expect_eq(ledger.header->free[i].head, NPI_NONE);
    cr_expect_eq(ledger.header->free[i].count, 0);
  }
  for (unsigned i = 0; i < 12; i++) cr_expect_eq(ledger.chunks[i].slot_class, NPI_CHUNK_FREE);
  cr_expect_eq(ledger.header->client, 7);
  cr_expect_eq(ledger.header->client_version, 9);
  free(memory);
}

Test(ledger, a_copy_is_attached_with_the_same_places) {
  struct npi_ledger ledger, other;
  uint64_t bytes;
  uint8_t *memory = format(&ledger, &bytes), *copy = malloc(bytes);
  memcpy(copy, memory, bytes);
  cr_assert_eq(npi_ledger_attach(&other, copy, bytes), 0);
  cr_expect_eq((uint8_t *)other.records - copy, (uint8_t *)ledger.records - memory);
  cr_expect_eq(other.credits - copy, ledger.credits - memory);
  cr_expect_eq(other.geometry.segments, small.segments);
  cr_expect_eq(other.geometry.chunks_per_segment, small.chunks_per_segment);
  cr_expect_eq(other.geometry.connections, small.connections);
  cr_expect_eq(other.geometry.credits_bytes, small.credits_bytes);
  free(copy);
  free(memory);
}

Test(ledger, a_copy_that_is_no_ledger_or_too_short_or_of_another_version_is_refused) {
  struct npi_ledger ledger, other;
  uint64_t bytes;
  void *memory = format(&ledger, &bytes);
  struct npi_ledger_header *header = memory, good = *header;
  cr_expect_eq(npi_ledger_attach(&other, memory, bytes - 1), NP_ERR_CORRUPT);
  cr_expect_eq(npi_ledger_attach(&other, memory, NPI_PAGE - 1), NP_ERR_CORRUPT);
  cr_expect_eq(npi_ledger_attach(&other, memory, 0), NP_ERR_CORRUPT);
  header->magic++;
  cr_expect_eq(npi_ledger_attach(&other, memory, bytes), NP_ERR_CORRUPT);
  *header = good;
  header->layout_version++;
  cr_expect_eq(npi_ledger_attach(&other, memory, bytes), NP_ERR_VERSION);
  cr_expect(strstr(npi_detail(), "version") != NULL, "%s", npi_detail());
  free(memory);
}

Test(ledger, impossible_sizes_in_a_copy_are_refused_before_anything_is_computed_from_them) {
  struct npi_ledger ledger, other;
  uint64_t bytes;
  void *memory = format(&ledger, &bytes);
  struct npi_ledger_header *header = memory, good = *header;
  header->segments = UINT32_MAX;
  cr_expect_eq(npi_ledger_attach(&other, memory, bytes), NP_ERR_CORRUPT);
  *header = good;
  header->chunks_per_segment = UINT32_MAX;
  cr_expect_eq(npi_ledger_attach(&other, memory, bytes), NP_ERR_CORRUPT);
  *header = good;
  header->connections = UINT32_MAX;
  cr_expect_eq(npi_ledger_attach(&other, memory, bytes), NP_ERR_CORRUPT);
  *header = good;
  header->credits_bytes = UINT64_MAX;
  cr_expect_eq(npi_ledger_attach(&other, memory, bytes), NP_ERR_CORRUPT);
  *header = good;
  header->segments_offset = header->records_offset = header->credits_offset = UINT64_MAX;
  cr_expect_eq(npi_ledger_attach(&other, memory, bytes), 0, "offsets are computed, not believed");
  cr_expect_eq((void *)other.segments, (void *)ledger.segments);
  free(memory);
}

Test(ledger, the_geometry_holds_the_budget_and_the_credits_of_every_ring_that_fits) {
  struct npi_ledger_geometry geometry;
  npi_ledger_geometry(&geometry, (UINT64_C(1) << 30) + 1, UINT64_C(8) << 20, 100, 1 << 20);
  cr_expect_eq(geometry.segments, 129, "rounded up");
  cr_expect_eq(geometry.chunks_per_segment, 32);
  cr_expect_eq(geometry.connections, 100);
  for (uint32_t capacity = NPI_RING_CAPACITY_MIN; capacity <= NPI_CREDITS_MAX; capacity *= 2) {
    uint64_t blocks = (1 << 20) / npi_ring_block_bytes(capacity);
    cr_expect_leq(blocks * npi_credit_arrays_bytes(capacity), geometry.credits_bytes);
  }
  npi_ledger_geometry(&geometry, 1, UINT64_C(8) << 20, 1, 4096);
  cr_expect_eq(geometry.segments, 1);
  npi_ledger_geometry(&geometry, UINT64_MAX / 2, UINT64_C(1) << 20, 1, 4096);
  cr_expect_eq(geometry.segments, NPI_SEGMENTS_PER_CLIENT_MAX, "no more than an element can name");
}

Test(ledger, arrays_of_a_connection_do_not_overlap) {
  struct npi_ledger ledger;
  uint64_t bytes;
  void *memory = format(&ledger, &bytes);
  struct npi_ledger_connection entry = {.capacity = 64, .credits_offset = 128};
  cr_expect_eq((uint8_t *)npi_credit_slots(&ledger, &entry), ledger.credits + 128);
  cr_expect_eq(npi_credit_orders(&ledger, &entry), npi_credit_slots(&ledger, &entry) + 64);
  cr_expect_eq((void *)npi_credit_stack(&ledger, &entry), (void *)(npi_credit_orders(&ledger, &entry) + 64));
  cr_expect_eq((uint8_t *)(npi_credit_stack(&ledger, &entry) + 64), ledger.credits + 128 + npi_credit_arrays_bytes(64));
  free(memory);
}
