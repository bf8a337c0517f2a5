/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a member of a group held when it died is offered to the others, in order and marked; what kills each of them goes to
 * the dead letters.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "tests/support/numbered_flow.h"

TestSuite(flow_redelivery, .timeout = 60);

/* ---- a member dies ------------------------------------------------------------------------------------ */

Test(flow_redelivery, what_a_dead_member_held_is_offered_again_in_order_and_marked) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *dying = connect_blocking(64);
  struct event event;
  for (int i = 0; i < 20; i++) cr_assert_eq(publish_number(i), NP_OK);
  /* It has returned 2 and 5, holds 0 to 7 but for these, and has not taken the rest. */
  for (int i = 0; i < 8; i++) {
    cr_assert_eq(take(dying, &event), NP_OK);
    if (i == 2 || i == 5) npi_inlet_release(&dying->inlet, event.element);
  }
  struct core_end *heir = connect_blocking(64);
  cr_expect_eq(core_disconnect(&pair, dying), 18);
  cr_expect_eq(pair.flow.n_waiting, 18);
  cr_expect_eq(core_check(&pair), 0);
  cr_expect_eq(npi_flow_offer_waiting(&pair.flow), 18);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_REDELIVERED), 18);
  cr_expect_eq(block_count(heir, NPI_SUBMISSION_REDELIVERED), 18);
  cr_expect_eq(publish_number(20), NP_OK);
  for (int i = 0; i < 20; i++) {
    if (i == 2 || i == 5) continue;
    cr_assert_eq(take(heir, &event), NP_OK);
    cr_expect_eq(event.number, i);
    cr_expect_eq(event.sequence, (uint64_t)i, "its number stays");
    cr_expect_eq(event.redelivered, 1);
    cr_expect_eq(event.deliveries, i < 8, "what only lay in the ring of the dead counts no delivery");
  }
  cr_assert_eq(take(heir, &event), NP_OK);
  cr_expect_eq(event.number, 20);
  cr_expect_eq(event.redelivered, 0, "a new event is not marked");
  finish();
}

Test(flow_redelivery, order_is_kept_when_credits_come_and_go_out_of_order_before_the_death) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *dying = core_connect(
      &pair, &(struct core_end_options){.capacity = 64, .start = (UINT64_C(1) << 32) - 16 * 64}); /* order wraps */
  uint64_t seed = 3;
  struct event held[64];
  int n_held = 0;
  for (int i = 0; i < 3000; i++) {
    cr_assert_eq(publish_number(i), NP_OK);
    cr_assert_eq(take(dying, &held[n_held++]), NP_OK);
    while (n_held > 40 || (n_held > 0 && core_random(&seed) % 2 == 0)) {
      int k = (int)(core_random(&seed) % (uint64_t)n_held);
      npi_inlet_release(&dying->inlet, held[k].element);
      memmove(&held[k], &held[k + 1], (size_t)(n_held - k - 1) * sizeof *held);
      n_held--;
    }
    if (i == 1030) cr_expect_gt(dying->outlet.entry->submitted, UINT64_C(1) << 32);
    if (i == 1030 && n_held > 2) break;
  }
  struct core_end *heir = connect_blocking(64);
  core_disconnect(&pair, dying);
  npi_flow_offer_waiting(&pair.flow);
  for (int i = 0; i < n_held; i++) cr_expect_eq(take_number(heir), held[i].number, "event %d of %d", i, n_held);
  cr_expect_eq(take_number(heir), -1);
  finish();
}

Test(flow_redelivery, deliveries_count_up_with_each_death_and_stop_at_255) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *end = connect_blocking(16);
  struct event event;
  publish_number(1);
  for (int i = 1; i <= 300; i++) {
    cr_assert_eq(take(end, &event), NP_OK);
    core_disconnect(&pair, end);
    end = connect_blocking(16);
    cr_assert_eq(npi_flow_offer_waiting(&pair.flow), 1);
  }
  cr_assert_eq(take(end, &event), NP_OK);
  cr_expect_eq(event.deliveries, 255);
  cr_expect_eq(event.redelivered, 1);
  finish();
}

/* ---- what kills its members ----------------------------------------------------------------------------- */

static struct npi_flow dead_flow;
static struct npi_endpoint_counters dead_counters;

static void begin_with_dead_letters(uint32_t max_deliveries) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  memset(&dead_counters, 0, sizeof dead_counters);
  npi_flow_init(&dead_flow, &pair.pool, NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK, &dead_counters);
  dead_flow.takes_dead_letters = 1;
  pair.flow.max_deliveries = max_deliveries;
  pair.flow.dead_letter = &dead_flow;
}

/* A subscriber of the dead letters. */
static struct core_end *connect_dead(uint32_t limit) {
  struct core_end *end =
      core_connect(&pair, &(struct core_end_options){.capacity = 16, .limit = limit, .on_full = NPI_ON_FULL_BLOCK});
  npi_flow_remove(&pair.flow, &end->outlet);
  npi_flow_add(&dead_flow, &end->outlet);
  return end;
}

static uint64_t dead_count(unsigned row) {
  return npi_load_relaxed_u64(&dead_counters.value[row]);
}

/* A member takes all that is there, and releases until it comes to the guilty one, of which it dies. */
static int live_and_die(int guilty) {
  struct core_end *end = connect_blocking(16);
  struct event event[16];
  int n = 0, released = 0;
  npi_flow_offer_waiting(&pair.flow);
  while (n < 16 && take(end, &event[n]) == NP_OK) n++;
  for (int i = 0; i < n && event[i].number != guilty; i++) {
    cr_assert_eq(npi_inlet_release(&end->inlet, event[i].element), 0);
    released++;
  }
  core_disconnect(&pair, end);
  return released;
}

Test(flow_redelivery, what_kills_each_member_goes_to_the_dead_letters_and_takes_no_other_with_it) {
  /* Proves: members that take all at once and die of one event are given the others again until these are done; the
   * one is given up after max_deliveries, unchanged, in the slot that it always had. */
  for (uint32_t max = 1; max <= 16; max++) {
    begin_with_dead_letters(max);
    struct core_end *dead = connect_dead(16);
    struct core_end *first = connect_blocking(16);
    for (int i = 0; i < 12; i++) cr_assert_eq(publish_number(i), NP_OK);
    struct event event;
    cr_assert_eq(take(first, &event), NP_OK);
    uint32_t handle = npi_element_handle(event.element);
    core_disconnect(&pair, first); /* of event 0, the guilty one; the others lay in its ring */
    uint32_t deaths = 1;
    int done = 0;
    while (core_count(&pair, NPI_PUBLISHER_DEAD_LETTERED) == 0 && deaths < 100) {
      done += live_and_die(0);
      deaths++;
      if (deaths > max) npi_flow_offer_waiting(&pair.flow); /* nobody is there: only what is given up moves */
    }
    cr_expect_eq(deaths, max + 1, "%u deaths with max_deliveries %u", deaths, max);
    for (int i = 0; pair.flow.n_waiting > 0 && i < 100; i++) done += live_and_die(-1);
    cr_expect_eq(done, 11, "%d of 11 others were done, max_deliveries %u", done, max);
    struct npi_taken taken;
    cr_assert_eq(core_take(dead, &event.element, &taken), NP_OK);
    cr_expect_eq(npi_element_handle(event.element), handle, "the same slot");
    cr_expect_eq(*(const int *)(const void *)taken.payload, 0);
    cr_expect_eq(taken.header->sequence, 0);
    cr_expect_eq(taken.header->deliveries, max + 1);
    cr_expect_eq(taken.header->flags,
                 NPI_EVENT_REDELIVERED | NPI_EVENT_DEAD_LETTER | NPI_DEAD_LETTER_DELIVERIES << NPI_EVENT_REASON_SHIFT);
    cr_assert_eq(npi_inlet_release(&dead->inlet, event.element), 0);
    cr_expect_eq(take_number(dead), -1);
    cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DEAD_LETTERED), 1);
    cr_expect_eq(dead_count(NPI_PUBLISHER_PUBLISHED), 1);
    cr_expect_eq(dead_count(NPI_PUBLISHER_DELIVERED), 1);
    npi_flow_reap(&dead_flow);
    cr_expect_eq(core_slots(&pair).n_out, 0);
    npi_flow_deinit(&dead_flow);
    finish();
  }
}

Test(flow_redelivery, new_events_pass_a_suspect_that_waits_for_a_member_of_its_own) {
  begin_with_dead_letters(2);
  struct core_end *end = connect_blocking(16);
  struct event event;
  for (int i = 0; i < 2; i++) publish_number(i);
  for (int death = 0; death < 2; death++) { /* both were taken twice: two suspects */
    cr_assert_eq(take(end, &event), NP_OK);
    cr_assert_eq(take(end, &event), NP_OK);
    core_disconnect(&pair, end);
    end = connect_blocking(16);
    npi_flow_offer_waiting(&pair.flow);
  }
  cr_expect_eq(pair.flow.n_waiting, 1, "one suspect for one member");
  cr_expect_eq(publish_number(7), NP_OK);
  cr_expect_eq(take(end, &event), NP_OK);
  cr_expect_eq(event.number, 0);
  cr_expect_eq(take_number(end), 7);
  cr_assert_eq(npi_inlet_release(&end->inlet, event.element), 0);
  npi_flow_reap(&pair.flow);
  cr_expect_eq(npi_flow_offer_waiting(&pair.flow), 1, "the first is innocent: now the second");
  cr_expect_eq(take_number(end), 1);
  npi_flow_deinit(&dead_flow);
  finish();
}

/* One event that kills each of its members, to the end. */
static void publish_and_die(int number, uint32_t deaths) {
  struct event event;
  for (uint32_t i = 0; i < deaths; i++) {
    struct core_end *end = connect_blocking(16);
    if (i == 0) cr_assert_eq(publish_number(number), NP_OK);
    npi_flow_offer_waiting(&pair.flow);
    cr_assert_eq(take(end, &event), NP_OK);
    core_disconnect(&pair, end);
  }
  npi_flow_offer_waiting(&pair.flow);
}

Test(flow_redelivery, dead_letters_are_counted_where_nobody_wants_them_and_wait_for_who_blocks) {
  begin_with_dead_letters(1);
  publish_and_die(1, 2);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DEAD_LETTERED), 1);
  cr_expect_eq(dead_count(NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER), 1);
  cr_expect_eq(core_slots(&pair).n_out, 0, "its slot is free");

  struct core_end *dead = connect_dead(1);
  publish_and_die(2, 2);
  publish_and_die(3, 2);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DEAD_LETTERED), 3);
  cr_expect_eq(dead_flow.n_waiting, 1, "one credit: the second waits");
  cr_expect_eq(core_check(&pair), 0);
  struct core_end *member = connect_blocking(16);
  cr_expect_eq(publish_number(4), NP_OK, "nobody waits for the dead letters");
  cr_expect_eq(take_number(member), 4);
  take_and_release(dead);
  cr_expect_eq(publish_number(5), NP_OK);
  cr_expect_eq(dead_flow.n_waiting, 0, "sent on the way");
  cr_expect_eq(take_number(dead), 3);
  npi_flow_deinit(&dead_flow);
  finish();
}

Test(flow_redelivery, a_tap_keeps_what_is_given_up_meanwhile) {
  begin_with_dead_letters(1);
  struct core_end *tap = connect_tap(16);
  struct event seen;
  publish_and_die(9, 2);
  cr_expect_eq(dead_count(NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER), 1);
  cr_expect_eq(core_slots(&pair).n_out, 1, "the tap reads it");
  cr_expect_eq(core_check(&pair), 0);
  cr_assert_eq(take(tap, &seen), NP_OK);
  cr_expect_eq(seen.number, 9);
  cr_assert_eq(npi_inlet_release(&tap->inlet, seen.element), 0);
  npi_flow_reap(&pair.flow);
  cr_expect_eq(core_slots(&pair).n_out, 0);
  npi_flow_deinit(&dead_flow);
  finish();
}

Test(flow_redelivery, waiting_events_go_before_any_new_one_and_wait_for_credit) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *dying = connect_blocking(32);
  for (int i = 0; i < 20; i++) publish_number(i);
  core_disconnect(&pair, dying);
  cr_expect_eq(npi_flow_offer_waiting(&pair.flow), 0, "nobody is there");
  cr_expect_eq(publish_number(99), NP_FULL);
  struct core_end *heir = connect_blocking(16);
  cr_expect_eq(publish_number(99), NP_FULL, "sixteen were offered, four still wait");
  cr_expect_eq(pair.flow.n_waiting, 4);
  cr_expect_eq(npi_flow_may_publish(&pair.flow, 0), 0);
  cr_expect_eq(core_check(&pair), 0);
  for (int i = 0; i < 16; i++) take_and_release(heir);
  cr_expect_eq(publish_number(20), NP_OK);
  cr_expect_eq(pair.flow.n_waiting, 0);
  for (int i = 16; i < 21; i++) cr_expect_eq(take_number(heir), i);
  finish();
}

Test(flow_redelivery, a_group_that_drops_does_not_overtake_waiting_events) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_DROP_NEWEST);
  struct core_end *dying = connect_dropping(32);
  for (int i = 0; i < 20; i++) publish_number(i);
  core_disconnect(&pair, dying);
  struct core_end *heir = connect_dropping(16);
  cr_expect_eq(publish_number(99), NP_OK);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_DROPPED_NO_CREDIT), 1, "the new one was dropped");
  for (int i = 0; i < 16; i++) take_and_release(heir);
  cr_expect_eq(npi_flow_offer_waiting(&pair.flow), 4);
  for (int i = 16; i < 20; i++) cr_expect_eq(take_number(heir), i);
  finish();
}

Test(flow_redelivery, a_tap_keeps_its_event_while_that_is_offered_again) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *tap = connect_tap(16);
  struct core_end *dying = connect_blocking(16);
  struct event at_tap, at_heir;
  publish_number(5);
  cr_assert_eq(take(tap, &at_tap), NP_OK);
  core_disconnect(&pair, dying);
  cr_expect_eq(core_check(&pair), 0, "waiting with one holder");
  struct core_end *heir = connect_blocking(16);
  cr_expect_eq(npi_flow_offer_waiting(&pair.flow), 1);
  cr_expect_eq(take_number(tap), -1, "a tap gets it once");
  cr_assert_eq(take(heir, &at_heir), NP_OK);
  cr_expect_eq(at_heir.number, 5);
  npi_inlet_release(&heir->inlet, at_heir.element);
  npi_flow_reap(&pair.flow);
  cr_expect_eq(core_slots(&pair).n_out, 1, "the tap still reads it");
  npi_inlet_release(&tap->inlet, at_tap.element);
  npi_flow_reap(&pair.flow);
  cr_expect_eq(core_slots(&pair).n_out, 0);
  finish();
}

Test(flow_redelivery, a_tap_that_returns_or_dies_does_not_free_a_waiting_event) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *returning = connect_tap(16), *dying_tap = connect_tap(16);
  struct core_end *dying = connect_blocking(16);
  publish_number(5);
  core_disconnect(&pair, dying);
  take_and_release(returning);
  cr_expect_eq(npi_flow_reap(&pair.flow), 1);
  cr_expect_eq(core_disconnect(&pair, dying_tap), 1);
  cr_expect_eq(core_check(&pair), 0);
  cr_expect_eq(pair.flow.n_waiting, 1);
  struct core_end *heir = connect_blocking(16);
  cr_expect_eq(npi_flow_offer_waiting(&pair.flow), 1);
  cr_expect_eq(take_number(heir), 5);
  finish();
}

Test(flow_redelivery, waiting_events_are_counted_as_lost_when_the_publisher_closes) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *tap = connect_tap(16);
  struct core_end *dying = connect_blocking(32);
  for (int i = 0; i < 20; i++) publish_number(i);
  core_disconnect(&pair, dying);
  npi_flow_abandon_waiting(&pair.flow);
  cr_expect_eq(core_count(&pair, NPI_PUBLISHER_LOST_WITH_MEMBER), 20);
  cr_expect_eq(pair.flow.n_waiting, 0);
  cr_expect_eq(core_slots(&pair).n_out, 16, "the tap has these");
  cr_expect_eq(core_check(&pair), 0);
  for (int i = 0; i < 16; i++) take_and_release(tap);
  npi_flow_reap(&pair.flow);
  cr_expect_eq(core_slots(&pair).n_out, 0);
  finish();
}

Test(flow_redelivery, returns_of_a_dead_member_are_processed_before_its_credits_are_taken_back) {
  begin(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK);
  struct core_end *dying = connect_blocking(16);
  for (int i = 0; i < 16; i++) publish_number(i);
  for (int i = 0; i < 16; i++) take_and_release(dying);
  cr_expect_eq(core_disconnect(&pair, dying), 0);
  cr_expect_eq(pair.flow.n_waiting, 0, "what was returned is not offered again");
  cr_expect_eq(core_slots(&pair).n_out, 0);
  finish();
}
