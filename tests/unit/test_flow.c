/* SPDX-License-Identifier: Apache-2.0 */
/* Publishing to outlets: credits, broadcast and group, full and empty, lies. */
#include <criterion/criterion.h>
#include <string.h>

#include "tests/support/numbered_flow.h"

TestSuite(flow, .timeout = 60);

/* ---- credits ------------------------------------------------------------------------------------------ */

Test(flow, no_more_than_the_limit_is_ever_out) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end = core_connect(&pair, &(struct core_end_options){.capacity = 64, .limit = 10});
  for (int i = 0; i < 10; i++) cr_expect_eq(publish_number(i), NP_OK);
  cr_expect_eq(publish_number(10), NP_FULL);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_FULL), 1);
  take_and_release(end);
  cr_expect_eq(publish_number(10), NP_OK, "the return is found when credit is wanted");
  cr_expect_eq(publish_number(11), NP_FULL);
  cr_expect_eq(end->outlet.entry->outstanding, 10);
  finish();
}

Test(flow, a_limit_of_the_whole_capacity_uses_each_word_of_the_ring) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end = connect_blocking(16);
  int next = 0, expected = 0;
  for (int round = 0; round < 100; round++) {
    while (publish_number(next) == NP_OK) next++;
    cr_assert_eq(end->outlet.entry->outstanding, 16);
    cr_assert_eq(core_check(&pair), 0);
    for (int i = 0; i < round % 16 + 1; i++) {
      struct event event;
      cr_assert_eq(take(end, &event), NP_OK);
      cr_assert_eq(event.number, expected++);
      cr_assert_eq(npi_inlet_release(&end->inlet, event.element), 0);
    }
  }
  finish();
}

Test(flow, the_limit_may_change_at_any_time_also_below_what_is_out) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end = connect_blocking(64);
  struct npi_ledger_connection *entry = end->outlet.entry;
  uint64_t seed = 5;
  int next = 0, expected = 0;
  for (int step = 0; step < 20000; step++) {
    switch (core_random(&seed) % 4) {
      case 0: entry->limit = (uint32_t)(core_random(&seed) % 65); break;
      case 1: {
        struct event event;
        if (take(end, &event) != NP_OK) break;
        cr_assert_eq(event.number, expected++);
        cr_assert_eq(npi_inlet_release(&end->inlet, event.element), 0);
        break;
      }
      default: {
        uint32_t before = entry->outstanding;
        if (publish_number(next) != NP_OK) break;
        next++;
        cr_assert(entry->outstanding <= entry->limit || entry->outstanding <= before);
        break;
      }
    }
    if (step % 64 == 0) cr_assert_eq(core_check(&pair), 0, "step %d", step);
  }
  cr_expect_gt(expected, 1000);
  finish();
}

Test(flow, a_share_of_memory_limits_bytes_and_the_first_event_always_passes) {
  static char payload[4096];
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end = core_connect(&pair, &(struct core_end_options){.bytes_limit = 3 * npi_class_stride(0)});
  cr_expect_eq(core_publish(&pair, payload, 4096), NP_OK, "larger than the share, but alone");
  cr_expect_eq(core_publish(&pair, payload, 1), NP_FULL);
  take_and_release(end);
  for (int i = 0; i < 3; i++) cr_expect_eq(core_publish(&pair, payload, 256), NP_OK);
  cr_expect_eq(end->outlet.entry->bytes_out, 3 * npi_class_stride(0));
  cr_expect_eq(core_publish(&pair, payload, 1), NP_FULL);
  take_and_release(end);
  cr_expect_eq(core_publish(&pair, payload, 4096), NP_FULL);
  cr_expect_eq(core_publish(&pair, payload, 1), NP_OK);
  finish();
}

Test(flow, may_publish_foretells_what_publish_does) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  cr_expect_eq(npi_flow_may_publish(&pair.flow, 0), 1, "nobody is there to wait for");
  struct core_end *end = connect_blocking(16);
  connect_dropping(16);
  for (int i = 0; i < 16; i++) {
    cr_expect_eq(npi_flow_may_publish(&pair.flow, 0), 1);
    cr_expect_eq(publish_number(i), NP_OK);
  }
  cr_expect_eq(npi_flow_may_publish(&pair.flow, 0), 0);
  take_and_release(end);
  cr_expect_eq(npi_flow_may_publish(&pair.flow, 0), 1, "it looks at the returns");
  finish();
}

/* ---- broadcast ---------------------------------------------------------------------------------------- */

Test(flow, a_broadcast_without_subscribers_is_dropped_counted_and_numbered) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  for (int i = 0; i < 5; i++) cr_expect_eq(publish_number(i), NP_OK);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER), 5);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_PUBLISHED), 5);
  cr_expect_eq(core_slots(&pair).n_out + core_slots(&pair).n_loaned, 0, "each slot is free again");
  struct core_end *end = connect_blocking(16);
  struct event event;
  publish_number(5);
  cr_assert_eq(take(end, &event), NP_OK);
  cr_expect_eq(event.sequence, 5, "the sequence went on");
  finish();
}

Test(flow, a_broadcast_reaches_every_subscriber_and_its_slot_is_free_after_the_last_return) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end[4];
  struct event event[4];
  for (int i = 0; i < 4; i++) end[i] = connect_blocking(16);
  cr_expect_eq(publish_number(77), NP_OK);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DELIVERED), 4);
  for (int i = 0; i < 4; i++) {
    cr_assert_eq(take(end[i], &event[i]), NP_OK);
    cr_expect_eq(event[i].number, 77);
  }
  for (int i = 0; i < 4; i++) {
    cr_expect_eq(core_slots(&pair).n_out, 1, "%d have returned it", i);
    cr_expect_eq(npi_inlet_release(&end[i]->inlet, event[i].element), 0);
    cr_expect_eq(npi_flow_reap(&pair.flow), 1);
    cr_expect_eq(core_check(&pair), 0);
  }
  cr_expect_eq(core_slots(&pair).n_out, 0);
  finish();
}

Test(flow, blocking_subscribers_get_it_all_or_nobody_does) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *fast = connect_blocking(64);
  struct core_end *dropping = connect_dropping(64);
  struct core_end *slow = connect_blocking(16);
  for (int i = 0; i < 16; i++) cr_assert_eq(publish_number(i), NP_OK);
  uint64_t sequence = pair.flow.sequence;
  uint32_t slot = core_fill(&pair, "x", 1);
  struct npi_slot_header *header = npi_pool_slot(&pair.pool, npi_pool_record(&pair.pool, slot)->handle);
  cr_expect_eq(npi_flow_publish(&pair.flow, slot, header), NP_FULL);
  cr_expect_eq(pair.flow.sequence, sequence, "no number was used");
  cr_expect_eq(fast->outlet.entry->outstanding, 16);
  cr_expect_eq(dropping->outlet.entry->outstanding, 16);
  cr_expect_eq(block_count(dropping, NPI_SUBMISSION_DROPPED), 0);
  cr_expect_eq(npi_pool_record(&pair.pool, slot)->state, NPI_SLOT_LOANED, "it is still the caller's");
  take_and_release(slow);
  cr_expect_eq(npi_flow_publish(&pair.flow, slot, header), NP_OK, "and is published later");
  cr_expect_eq(header->sequence, sequence);
  cr_expect_eq(fast->outlet.entry->outstanding, 17);
  finish();
}

Test(flow, a_dropping_subscriber_misses_what_it_has_no_credit_for_and_sees_the_gap) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *dropping = connect_dropping(16);
  struct core_end *blocking = connect_blocking(64);
  struct event event;
  for (int i = 0; i < 20; i++) cr_assert_eq(publish_number(i), NP_OK);
  cr_expect_eq(block_count(dropping, NPI_SUBMISSION_DROPPED), 4);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DROPPED_NO_CREDIT), 4);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DELIVERED), 36);
  for (int i = 0; i < 16; i++) take_and_release(dropping);
  cr_assert_eq(publish_number(20), NP_OK);
  cr_assert_eq(take(dropping, &event), NP_OK);
  cr_expect_eq(event.number, 20);
  cr_expect_eq(event.sequence, 20, "after 15: four are missing, as counted");
  for (int i = 0; i < 21; i++) {
    cr_assert_eq(take(blocking, &event), NP_OK);
    cr_expect_eq(event.sequence, (uint64_t)i, "the other one missed nothing");
  }
  finish();
}

Test(flow, an_event_that_every_subscriber_misses_is_free_again) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_DROP_NEWEST);
  struct core_end *end = connect_dropping(16);
  for (int i = 0; i < 20; i++) cr_assert_eq(publish_number(i), NP_OK);
  cr_expect_eq(core_slots(&pair).n_out, 16);
  cr_expect_eq(core_slots(&pair).n_loaned, 0);
  cr_expect_eq(block_count(end, NPI_SUBMISSION_PUBLISHED), 16);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_PUBLISHED), 20);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER), 0);
  finish();
}

Test(flow, a_dead_subscriber_of_a_broadcast_gives_everything_back) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *dying = connect_blocking(16);
  struct core_end *living = connect_blocking(64);
  for (int i = 0; i < 10; i++) publish_number(i);
  take_and_release(dying);
  take_number(dying);
  cr_expect_eq(core_disconnect(&pair, dying), 9, "one return was there");
  cr_expect_eq(core_check(&pair), 0);
  cr_expect_eq(core_slots(&pair).n_out, 10, "the living one holds them still");
  for (int i = 0; i < 10; i++) take_and_release(living);
  cr_expect_eq(npi_flow_reap(&pair.flow), 10);
  cr_expect_eq(core_slots(&pair).n_out, 0);
  cr_expect_eq(pair.flow.n_waiting, 0, "nothing is offered again in a broadcast");
  finish();
}

Test(flow, an_outlet_that_was_removed_gets_nothing_more) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end[3];
  for (int i = 0; i < 3; i++) end[i] = connect_blocking(16);
  publish_number(1);
  npi_flow_remove(&pair.flow, &end[1]->outlet);
  npi_flow_remove(&pair.flow, &end[1]->outlet);
  cr_expect_eq(pair.flow.n_outlets, 2);
  cr_expect_eq(pair.flow.n_blocking, 2);
  publish_number(2);
  cr_expect_eq(end[0]->outlet.entry->outstanding, 2);
  cr_expect_eq(end[1]->outlet.entry->outstanding, 1);
  cr_expect_eq(end[2]->outlet.entry->outstanding, 2);
  finish();
}

Test(flow, who_is_shut_out_gets_nothing_more_and_is_waited_for_no_more) {
  struct event event;
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *out = connect_blocking(16), *other = connect_blocking(64);
  for (int i = 0; i < 16; i++) cr_assert_eq(publish_number(i), NP_OK);
  cr_assert_eq(publish_number(16), NP_FULL);
  cr_assert_eq(take(out, &event), NP_OK);
  npi_flow_withhold(&pair.flow, &out->outlet);
  for (int i = 16; i < 32; i++) cr_assert_eq(publish_number(i), NP_OK);
  cr_expect_eq(core_check(&pair), 0);
  for (int i = 0; i < 32; i++) cr_assert_eq(take_number(other), i);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DROPPED_NO_CREDIT), 16);
  /* What it has stays its own, and comes back as ever: without another credit for it. */
  cr_assert_eq(npi_inlet_release(&out->inlet, event.element), 0);
  cr_assert_eq(publish_number(32), NP_OK);
  npi_flow_reap(&pair.flow);
  cr_expect_eq(out->outlet.entry->outstanding, 15);
  for (int i = 1; i < 16; i++) take_and_release(out);
  cr_assert_eq(take(out, &event), NP_EMPTY);
  cr_expect_eq(core_disconnect(&pair, out), 0);
  finish();
}

Test(flow, a_group_goes_on_without_a_member_that_is_shut_out) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *out = connect_blocking(16), *other = connect_blocking(64);
  for (int i = 0; i < 4; i++) cr_assert_eq(publish_number(i), NP_OK);
  cr_expect_eq(out->outlet.entry->outstanding, 2);
  npi_flow_withhold(&pair.flow, &out->outlet);
  for (int i = 4; i < 44; i++) cr_assert_eq(publish_number(i), NP_OK);
  cr_expect_eq(out->outlet.entry->outstanding, 2);
  cr_expect_eq(other->outlet.entry->outstanding, 42);
  cr_expect_eq(core_disconnect(&pair, out), 2);
  cr_expect_eq(npi_flow_offer_waiting(&pair.flow), 2, "as from one that died");
  finish();
}

Test(flow, the_short_way_to_an_only_subscriber_does_what_the_long_one_does) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end = connect_blocking(16);
  struct event event;
  for (int i = 0; i < 16; i++) {
    uint32_t slot = core_fill(&pair, &i, sizeof i);
    struct npi_slot_record *record = npi_pool_record(&pair.pool, slot);
    struct npi_slot_header *header = npi_pool_slot(&pair.pool, record->handle);
    cr_assert_eq(npi_flow_publish_only(&pair.flow, slot, record, header, sizeof i), &end->outlet);
    cr_assert_eq(core_check(&pair), 0);
  }
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_PUBLISHED), 16);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DELIVERED), 16);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_BYTES), 16 * sizeof(int));
  uint32_t slot = core_fill(&pair, "x", 1);
  struct npi_slot_record *record = npi_pool_record(&pair.pool, slot);
  struct npi_slot_header *header = npi_pool_slot(&pair.pool, record->handle);
  cr_expect_null(npi_flow_publish_only(&pair.flow, slot, record, header, 1), "no credit: that is for the long way");
  for (int i = 0; i < 16; i++) {
    cr_assert_eq(take(end, &event), NP_OK);
    cr_expect_eq(event.number, i);
    cr_expect_eq(event.sequence, (uint64_t)i);
    npi_inlet_release(&end->inlet, event.element);
  }
  npi_flow_reap(&pair.flow);
  connect_dropping(16);
  cr_expect_null(npi_flow_publish_only(&pair.flow, slot, record, header, 1), "two subscribers");
  cr_expect_eq(record->state, NPI_SLOT_LOANED, "and nothing happened");
  cr_expect_eq(pair.flow.sequence, 16);
  finish();
}

/* ---- group -------------------------------------------------------------------------------------------- */

Test(flow, a_group_gives_each_event_to_the_member_with_the_least_outstanding) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *end[3];
  for (int i = 0; i < 3; i++) end[i] = connect_blocking(16);
  for (int i = 0; i < 9; i++) cr_assert_eq(publish_number(i), NP_OK);
  for (int i = 0; i < 3; i++) cr_expect_eq(end[i]->outlet.entry->outstanding, 3, "idle members share alike");
  take_and_release(end[2]);
  take_and_release(end[2]);
  for (int i = 0; i < 2; i++) cr_assert_eq(publish_number(i), NP_OK);
  cr_expect_eq(end[2]->outlet.entry->outstanding, 3, "who returns gets the next ones");
  cr_expect_eq(end[0]->outlet.entry->outstanding + end[1]->outlet.entry->outstanding, 6);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DELIVERED), 11);
  finish();
}

Test(flow, a_group_gives_each_event_to_one_member_only) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  static int seen[1000];
  struct core_end *end[3];
  uint64_t seed = 17;
  for (int i = 0; i < 3; i++) end[i] = connect_blocking(16);
  for (int i = 0; i < 1000;) {
    if (publish_number(i) == NP_OK) i++;
    struct event event;
    struct core_end *who = end[core_random(&seed) % 3];
    if (core_random(&seed) % 2 == 0 || take(who, &event) != NP_OK) continue;
    seen[event.number]++;
    npi_inlet_release(&who->inlet, event.element);
  }
  for (int i = 0; i < 3; i++) {
    for (int number = take_number(end[i]); number >= 0; number = take_number(end[i])) seen[number]++;
  }
  for (int i = 0; i < 1000; i++) cr_assert_eq(seen[i], 1, "event %d was seen %d times", i, seen[i]);
  finish();
}

Test(flow, a_full_group_that_blocks_refuses_and_keeps_the_event) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *end = connect_blocking(16);
  connect_blocking(16);
  for (int i = 0; i < 32; i++) cr_assert_eq(publish_number(i), NP_OK);
  uint64_t sequence = pair.flow.sequence;
  cr_expect_eq(npi_flow_may_publish(&pair.flow, 0), 0);
  cr_expect_eq(publish_number(32), NP_FULL);
  cr_expect_eq(pair.flow.sequence, sequence);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_FULL), 1);
  take_and_release(end);
  cr_expect_eq(npi_flow_may_publish(&pair.flow, 0), 1);
  cr_expect_eq(publish_number(32), NP_OK);
  cr_expect_eq(end->outlet.entry->outstanding, 16);
  finish();
}

Test(flow, a_full_group_that_drops_counts_and_numbers_what_it_drops) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_DROP_NEWEST);
  struct core_end *end = connect_dropping(16);
  struct event event;
  for (int i = 0; i < 20; i++) cr_assert_eq(publish_number(i), NP_OK);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DROPPED_NO_CREDIT), 4);
  cr_expect_eq(npi_flow_may_publish(&pair.flow, 0), 1, "it never has to wait");
  for (int i = 0; i < 16; i++) take_and_release(end);
  publish_number(20);
  cr_assert_eq(take(end, &event), NP_OK);
  cr_expect_eq(event.sequence, 20);
  finish();
}

Test(flow, a_group_without_members_blocks_or_drops_as_the_channel_says) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *tap = connect_tap(16);
  cr_expect_eq(publish_number(1), NP_FULL, "a tap is no member");
  cr_expect_eq(npi_flow_may_publish(&pair.flow, 0), 0);
  cr_expect_eq(take_number(tap), -1);
  finish();
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_DROP_NEWEST);
  cr_expect_eq(publish_number(1), NP_OK);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DROPPED_NO_MEMBER), 1);
  cr_expect_eq(core_slots(&pair).n_out, 0);
  finish();
}

Test(flow, a_tap_sees_what_members_get_and_never_slows_them) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *tap = connect_tap(16);
  struct core_end *member[2] = {connect_blocking(32), connect_blocking(32)};
  for (int i = 0; i < 40; i++) cr_assert_eq(publish_number(i), NP_OK, "event %d", i);
  cr_expect_eq(tap->outlet.entry->outstanding, 16);
  cr_expect_eq(block_count(tap, NPI_SUBMISSION_DROPPED), 24);
  cr_expect_eq(member[0]->outlet.entry->outstanding + member[1]->outlet.entry->outstanding, 40);
  for (int i = 0; i < 16; i++) cr_expect_eq(take_number(tap), i);
  cr_expect_eq(take_number(tap), -1);
  finish();
}

Test(flow, a_tap_of_a_broadcast_never_blocks_it) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *tap = connect_tap(16);
  for (int i = 0; i < 100; i++) cr_assert_eq(publish_number(i), NP_OK);
  cr_expect_eq(block_count(tap, NPI_SUBMISSION_DROPPED), 84);
  finish();
}

/* ---- lies --------------------------------------------------------------------------------------------- */

/* Three are out; the subscriber returns `body` first. Only the outlet's end may have changed. */
static void expect_lie(const char *what, uint64_t (*body)(uint64_t good)) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end = connect_blocking(16);
  struct core_end *other = connect_blocking(16);
  for (int i = 0; i < 3; i++) publish_number(i);
  uint64_t good = npi_load_relaxed_u64(&end->submissions->element[1]) & NPI_ELEMENT_BODY_MASK;
  npi_ring_store(&end->inlet.returns, 0, body(good));
  uint8_t *before = malloc(pair.ledger_bytes);
  memcpy(before, pair.ledger_memory, pair.ledger_bytes);
  cr_expect_eq(npi_outlet_reap(&end->outlet, &pair.pool, 16), NPI_OUTLET_LIE, "%s", what);
  cr_expect_eq(end->outlet.broken, 1, "%s", what);
  cr_expect_eq(end->outlet.entry->limit, 0, "%s: no more credit", what);
  end->outlet.entry->limit = 16;
  cr_expect_eq(memcmp(before, pair.ledger_memory, pair.ledger_bytes), 0, "%s: nothing else changed", what);
  end->outlet.entry->limit = 0;
  cr_expect_eq(npi_outlet_reap(&end->outlet, &pair.pool, 16), NPI_OUTLET_LIE, "%s: and it stays so", what);
  for (int i = 0; i < 3; i++) take_and_release(other);
  cr_expect_eq(npi_flow_reap(&pair.flow), 3, "%s: the honest one is not disturbed", what);
  cr_expect_eq(npi_outlet_take_back(&end->outlet, &pair.pool, NULL, NULL), 3, "%s", what);
  end->outlet.entry->state = NPI_OUTLET_FREE; /* over: submitted - returned says nothing any more */
  cr_expect_eq(core_slots(&pair).n_out, 0, "%s", what);
  cr_expect_eq(npi_check_pool(&pair.pool, NULL, NULL), 0, "%s", what);
  free(before);
  core_pair_close(&pair);
}

static uint64_t with_credit(uint64_t element, uint32_t credit) {
  return npi_element(npi_element_handle(element), credit, npi_element_generation(element));
}
static uint64_t wrong_credit(uint64_t good) {
  return with_credit(good, npi_element_credit(good) + 1);
}
static uint64_t free_credit(uint64_t good) {
  return with_credit(good, 9);
}
static uint64_t no_such_credit(uint64_t good) {
  return with_credit(good, 16);
}
static uint64_t largest_credit(uint64_t good) {
  return with_credit(good, NPI_CREDIT_MASK);
}
static uint64_t wrong_handle(uint64_t good) {
  return npi_element(npi_element_handle(good) + 5, npi_element_credit(good), npi_element_generation(good));
}
static uint64_t wild_handle(uint64_t good) {
  return npi_element(UINT32_MAX, npi_element_credit(good), npi_element_generation(good));
}
static uint64_t wrong_generation(uint64_t good) {
  return npi_element(npi_element_handle(good), npi_element_credit(good), npi_element_generation(good) + 1);
}

Test(flow, a_return_that_fits_no_credit_that_is_out_is_a_lie) {
  expect_lie("the credit of another event", wrong_credit);
  expect_lie("a credit that is free", free_credit);
  expect_lie("a credit that does not exist", no_such_credit);
  expect_lie("the largest credit that can be written", largest_credit);
  expect_lie("another slot", wrong_handle);
  expect_lie("a slot that does not exist", wild_handle);
  expect_lie("another generation", wrong_generation);
}

Test(flow, a_return_given_twice_is_a_lie_after_the_first) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end = connect_blocking(16);
  for (int i = 0; i < 3; i++) publish_number(i);
  uint64_t good = npi_load_relaxed_u64(&end->submissions->element[1]) & NPI_ELEMENT_BODY_MASK;
  npi_ring_store(&end->inlet.returns, 0, good);
  npi_ring_store(&end->inlet.returns, 1, good);
  cr_expect_eq(npi_flow_reap(&pair.flow), 1, "the first one counts");
  cr_expect_eq(pair.flow.broken, 1, "the flow remembers it for its caller");
  cr_expect_eq(block_count(end, NPI_SUBMISSION_RETURNED), 1, "also where the broker looks");
  cr_expect_eq(end->outlet.entry->outstanding, 2);
  cr_expect_eq(publish_number(3), NP_OK, "nobody waits for a liar");
  cr_expect_eq(end->outlet.entry->outstanding, 2, "who gets no credit either");
  npi_flow_reap(&pair.flow);
  cr_expect_eq(pair.flow.broken, 1, "one lie is one");
  cr_expect_eq(npi_check_pool(&pair.pool, NULL, NULL), 0);
  core_pair_close(&pair);
}

Test(flow, no_call_reads_more_returns_than_it_was_told_to) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  struct core_end *end = connect_blocking(16);
  for (int i = 0; i < 16; i++) publish_number(i);
  for (int i = 0; i < 16; i++) take_and_release(end);
  cr_expect_eq(npi_outlet_reap(&end->outlet, &pair.pool, 0), 0);
  cr_expect_eq(npi_outlet_reap(&end->outlet, &pair.pool, 5), 5);
  cr_expect_eq(npi_outlet_reap(&end->outlet, &pair.pool, 5), 5);
  cr_expect_eq(npi_outlet_reap(&end->outlet, &pair.pool, 16), 6);
  cr_expect_eq(npi_outlet_reap(&end->outlet, &pair.pool, 16), 0);
  finish();
}

Test(flow, a_ring_full_of_lies_ends_after_the_first) {
  begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_DROP_NEWEST);
  struct core_end *liar = connect_dropping(64);
  struct core_end *honest = connect_dropping(64);
  uint64_t seed = 8;
  publish_number(0);
  for (uint64_t i = 0; i < 64; i++) npi_ring_store(&liar->inlet.returns, i, core_random(&seed) & NPI_ELEMENT_BODY_MASK);
  cr_expect_eq(npi_flow_reap(&pair.flow), 0);
  cr_expect_eq(pair.flow.broken, 1);
  for (int i = 1; i < 10; i++) cr_expect_eq(publish_number(i), NP_OK);
  cr_expect_eq(liar->outlet.entry->outstanding, 1, "it gets nothing more");
  for (int i = 0; i < 10; i++) cr_expect_eq(take_number(honest), i);
  core_pair_close(&pair);
}
