/* SPDX-License-Identifier: Apache-2.0 */
/* Publishing many at once: the same events, ledger and rings as one by one, and an end where one by one would refuse. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/flow_batch.h"
#include "tests/support/core_pair.h"

TestSuite(flow_batch, .timeout = 60);

enum { SIZE_MAX_TRIED = 700, ROUNDS = 3000 };

static struct core_pair pair;
static uint8_t bytes[NPI_BATCH_MAX][SIZE_MAX_TRIED];
static struct npi_payload payloads[NPI_BATCH_MAX];
static const struct npi_slot_header like = {.time_ns = 4711,
                                            .priority = 3,
                                            .listener = 5,
                                            .connection = UINT64_C(0x0003000000000007),
                                            .address = {10, 0, 0, 9},
                                            .port = 514,
                                            .family = 4,
                                            .channel = 12};

static void begin(uint32_t kind, uint32_t on_full) {
  core_pair_open(&pair, &(struct core_options){.kind = kind, .on_full = on_full, .n_segments = 2, .segment_chunks = 5});
  npi_pool_carve(&pair.pool, 0);
}

static void finish(void) {
  cr_expect_eq(core_check(&pair), 0);
  core_pair_close(&pair);
}

/* n payloads whose content follows from `first` and their place, of sizes that are never the same in a row. */
static void prepare(uint32_t first, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    uint32_t number = first + i;
    uint32_t size = 4 + number * 37 % 160;
    memset(bytes[i], (int)(number % 251), size);
    memcpy(bytes[i], &number, sizeof number);
    payloads[i] = (struct npi_payload){bytes[i], size};
  }
}

static uint32_t publish(uint32_t first, uint32_t n) {
  prepare(first, n);
  return npi_flow_publish_batch(&pair.flow, &like, payloads, n);
}

/* Takes and releases the next event, and looks at every byte of it. Returns its number, or -1. */
static int64_t take(struct core_end *end, uint64_t sequence) {
  struct npi_taken taken;
  uint64_t element;
  uint32_t number;
  if (core_take(end, &element, &taken) != NP_OK) return -1;
  memcpy(&number, taken.payload, sizeof number);
  cr_assert_eq(taken.payload_bytes, 4 + number * 37 % 160);
  for (uint32_t i = 4; i < taken.payload_bytes; i++) {
    cr_assert_eq(((const uint8_t *)taken.payload)[i], number % 251);
  }
  cr_assert_eq(taken.header->sequence, sequence);
  cr_assert_eq(taken.header->time_ns, like.time_ns);
  cr_assert_eq(taken.header->priority, like.priority);
  cr_assert_eq(taken.header->topic_bytes, 0);
  cr_assert_eq(taken.header->flags, 0);
  cr_assert_eq(taken.header->deliveries, 0);
  cr_assert_eq(taken.header->listener, like.listener);
  cr_assert_eq(taken.header->connection, like.connection);
  cr_assert_eq(memcmp(taken.header->address, like.address, sizeof like.address), 0);
  cr_assert_eq(taken.header->port, like.port);
  cr_assert_eq(taken.header->family, like.family);
  cr_assert_eq(taken.header->channel, like.channel);
  cr_assert_eq(npi_inlet_release(&end->inlet, element), 0);
  return number;
}

static struct core_end *connect_with(uint32_t capacity, uint32_t limit, uint32_t on_full, uint32_t flags) {
  return core_connect(
      &pair, &(struct core_end_options){.capacity = capacity, .limit = limit, .on_full = on_full, .flags = flags});
}

Test(flow_batch, every_subscriber_of_a_broadcast_gets_all_in_order) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *ends[3];
  for (int i = 0; i < 3; i++) ends[i] = connect_with(128, 0, NPI_ON_FULL_BLOCK, i == 2 ? NPI_SUBSCRIBER_TAP : 0);
  cr_expect_eq(publish(100, NPI_BATCH_MAX), NPI_BATCH_MAX);
  cr_expect_eq(core_check(&pair), 0);
  for (int i = 0; i < 3; i++) {
    cr_expect_eq(ends[i]->outlet.unwoken, 1);
    for (int64_t j = 0; j < NPI_BATCH_MAX; j++) cr_assert_eq(take(ends[i], (uint64_t)j), 100 + j);
  }
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_PUBLISHED), NPI_BATCH_MAX);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DELIVERED), 3 * NPI_BATCH_MAX);
  npi_flow_reap(&pair.flow);
  cr_expect_eq(core_slots(&pair).n_out, 0);
  finish();
}

Test(flow_batch, a_batch_ends_where_one_subscriber_has_no_more_credit) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *wide = connect_with(128, 0, NPI_ON_FULL_BLOCK, 0);
  struct core_end *narrow = connect_with(64, 10, NPI_ON_FULL_DROP_NEWEST, 0);
  cr_expect_eq(publish(0, 30), 10);
  cr_expect_eq(publish(10, 30), 0, "who is to block or to drop is for the other way to say");
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_FULL), 0);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DROPPED_NO_CREDIT), 0);
  for (int i = 0; i < 4; i++) cr_assert_eq(take(narrow, (uint64_t)i), i);
  cr_expect_eq(publish(10, 30), 4, "returns are looked for before a batch is cut short");
  for (int i = 0; i < 14; i++) cr_assert_eq(take(wide, (uint64_t)i), i);
  cr_expect_eq(take(wide, 14), -1);
  finish();
}

Test(flow_batch, a_batch_ends_where_bytes_or_slots_do) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  uint64_t stride = npi_class_stride(0);
  core_connect(&pair, &(struct core_end_options){.capacity = 128, .bytes_limit = 5 * stride + 1});
  cr_expect_eq(publish(0, 20), 5);
  cr_expect_eq(publish(5, 20), 0);
  finish();

  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  connect_with(4096, 0, NPI_ON_FULL_BLOCK, 0);
  uint64_t n_slots = core_slots(&pair).n_free, n = 0;
  for (uint32_t done; (done = publish((uint32_t)n, NPI_BATCH_MAX)) > 0;) n += done;
  cr_expect_eq(n, n_slots);
  payloads[0].size = SIZE_MAX_TRIED;
  cr_expect_eq(npi_flow_publish_batch(&pair.flow, &like, payloads, 1), 0, "a class that nothing is carved for");
  payloads[0].size = UINT32_MAX;
  cr_expect_eq(npi_flow_publish_batch(&pair.flow, &like, payloads, 1), 0, "no class is that large");
  finish();
}

Test(flow_batch, nobody_there_is_not_its_business) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  cr_expect_eq(publish(0, 5), 0);
  cr_expect_eq(pair.flow.sequence, 0);
  finish();
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  cr_expect_eq(publish(0, 5), 0);
  connect_with(64, 0, NPI_ON_FULL_BLOCK, 0);
  struct core_end *tap = connect_with(64, 0, NPI_ON_FULL_BLOCK, NPI_SUBSCRIBER_TAP);
  cr_expect_eq(publish(0, 5), 0, "a tap beside a member");
  core_disconnect(&pair, tap);
  cr_expect_eq(publish(0, 5), 5);
  finish();
}

Test(flow_batch, members_of_a_group_share_evenly_and_each_gets_its_own_in_order) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *ends[3];
  int seen[60] = {0};
  for (int i = 0; i < 3; i++) ends[i] = connect_with(64, 0, NPI_ON_FULL_BLOCK, 0);
  cr_expect_eq(publish(0, 60), 60);
  cr_expect_eq(core_check(&pair), 0);
  for (int i = 0; i < 3; i++) {
    cr_expect_eq(ends[i]->outlet.entry->outstanding, 20);
    int64_t last = -1;
    for (int j = 0; j < 20; j++) {
      struct npi_taken taken;
      uint64_t element;
      uint32_t number;
      cr_assert_eq(core_take(ends[i], &element, &taken), NP_OK);
      memcpy(&number, taken.payload, sizeof number);
      cr_assert_eq(taken.header->sequence, number);
      cr_assert_gt((int64_t)number, last);
      last = number;
      seen[number]++;
      cr_assert_eq(npi_inlet_release(&ends[i]->inlet, element), 0);
    }
  }
  for (int i = 0; i < 60; i++) cr_expect_eq(seen[i], 1);
  finish();
}

Test(flow_batch, what_a_dead_member_held_is_offered_before_anything_new) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *a = connect_with(16, 0, NPI_ON_FULL_BLOCK, 0);
  cr_expect_eq(publish(0, 16), 16);
  cr_expect_eq(core_disconnect(&pair, a), 16);
  struct core_end *b = connect_with(64, 0, NPI_ON_FULL_BLOCK, 0);
  cr_expect_eq(publish(16, 4), 0);
  npi_flow_offer_waiting(&pair.flow);
  cr_expect_eq(publish(16, 4), 4);
  for (int i = 0; i < 20; i++) {
    struct npi_taken taken;
    uint64_t element;
    cr_assert_eq(core_take(b, &element, &taken), NP_OK);
    cr_assert_eq(taken.header->sequence, (uint64_t)i);
    cr_assert_eq((taken.header->flags & NPI_EVENT_REDELIVERED) != 0, i < 16);
    npi_inlet_release(&b->inlet, element);
  }
  finish();
}

Test(flow_batch, a_lie_ends_the_liar_and_the_batch) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end = connect_with(64, 0, NPI_ON_FULL_BLOCK, 0);
  cr_expect_eq(publish(0, 60), 60);
  npi_ring_store(&end->outlet.returns, 0, npi_element(1, 2, 3));
  cr_expect_eq(publish(60, 60), 0);
  cr_expect_eq(end->outlet.broken, 1);
  cr_expect_gt(pair.flow.broken, 0);
  core_pair_close(&pair);
}

/* Any mixture of batches, single events, takes and returns in another order; the checker looks at everything. */
static void mixture(uint32_t kind, int n_ends) {
  uint64_t random = 99 + kind;
  struct core_end *ends[3];
  uint64_t held[3][8];
  uint32_t n_held[3] = {0};
  uint64_t n_published = 0, n_taken = 0;
  begin(kind, NPI_ON_FULL_BLOCK);
  for (int i = 0; i < n_ends; i++) ends[i] = connect_with(128, 100, NPI_ON_FULL_BLOCK, 0);
  for (int round = 0; round < ROUNDS; round++) {
    struct core_end *end;
    struct npi_taken taken;
    uint32_t number = (uint32_t)n_published, i = (uint32_t)(core_random(&random) % (uint64_t)n_ends);
    end = ends[i];
    switch (core_random(&random) % 4) {
      case 0: n_published += publish(number, (uint32_t)(core_random(&random) % NPI_BATCH_MAX)); break;
      case 1: n_published += core_publish(&pair, &number, sizeof number) == NP_OK; break;
      default:
        for (uint64_t n = core_random(&random) % 80; n > 0 && n_held[i] < 8; n--) {
          if (core_take(end, &held[i][n_held[i]], &taken) != NP_OK) break;
          n_held[i]++;
          n_taken++;
          uint32_t j = (uint32_t)(core_random(&random) % n_held[i]);
          cr_assert_eq(npi_inlet_release(&end->inlet, held[i][j]), 0);
          held[i][j] = held[i][--n_held[i]];
        }
    }
    if (round % 16 == 0) cr_assert_eq(core_check(&pair), 0, "round %d", round);
  }
  cr_expect_gt(n_published, ROUNDS);
  for (int i = 0; i < n_ends; i++) {
    uint64_t element;
    struct npi_taken taken;
    while (core_take(ends[i], &element, &taken) == NP_OK) {
      n_taken++;
      npi_inlet_release(&ends[i]->inlet, element);
    }
    while (n_held[i] > 0) npi_inlet_release(&ends[i]->inlet, held[i][--n_held[i]]);
  }
  cr_expect_eq(n_taken, kind == NPI_CHANNEL_GROUP ? n_published : n_published * (uint64_t)n_ends);
  npi_flow_reap(&pair.flow);
  cr_expect_eq(core_slots(&pair).n_out, 0);
  finish();
}

Test(flow_batch, mixed_with_single_events_to_one) {
  mixture(NPI_CHANNEL_BROADCAST, 1);
}
Test(flow_batch, mixed_with_single_events_to_three) {
  mixture(NPI_CHANNEL_BROADCAST, 3);
}
Test(flow_batch, mixed_with_single_events_to_a_group) {
  mixture(NPI_CHANNEL_GROUP, 3);
}
