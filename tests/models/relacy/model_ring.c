/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection: a publisher, a subscriber that holds some events and returns them in any order; either may be
 * killed. Two credits, three slots, positions beginning where the lap wraps.
 */
#include "side.h"

enum { PUBLISHER, SUBSCRIBER, EVENTS = 5 };

static const char *const mutants[] = {
    "submission stored relaxed",  "return stored relaxed",       "submission loaded relaxed",
    "return loaded relaxed",      "limit above the capacity",    "rings formatted with zeros, from their start",
    "payload read after release", "two events under one credit", NULL};
const char *const model_paths[] = {"publisher killed",      "subscriber killed",     "no credit",
                                   "returned out of order", "drained after a death", NULL};
static const uint64_t begin_at = 16 * SIDE_CAPACITY * UINT64_C(1000) - 2;

static struct hands hands;
static unsigned published, victim;
static uint64_t first;

static void set_up(void) {
  side_set_up(1);
}

static void begin(void) {
  side_begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  first = begin_at;
  side_format(0);
  if (model_mutant == 6) {
    first = 0;
    for (unsigned i = 0; i < SIDE_CAPACITY; i++) {
      npi_store_relaxed_u64(&side.end[0].submissions->element[i], 0);
      npi_store_relaxed_u64(&side.end[0].returns->element[i], 0);
    }
  } else {
    /* At a position two before the wrap of the lap the words have the lap before it. */
    for (unsigned i = 0; i < SIDE_CAPACITY; i++) {
      npi_store_relaxed_u64(&side.end[0].submissions->element[i], UINT64_C(14) << NPI_ELEMENT_LAP_SHIFT);
      npi_store_relaxed_u64(&side.end[0].returns->element[i], UINT64_C(14) << NPI_ELEMENT_LAP_SHIFT);
    }
  }
  side_make_outlet(0, NPI_ON_FULL_BLOCK, model_mutant == 5 ? SIDE_CAPACITY + 1 : SIDE_CAPACITY, first);
  side_make_inlet(0, first);
  hands = (struct hands){0};
  published = 0;
  victim = model_random(4);
  if (victim < 2) model_kill(victim, 24);
  model_weak.stores = (model_mutant == 1) << MODEL_SUBMISSIONS | (model_mutant == 2) << MODEL_RETURNS;
  model_weak.loads = (model_mutant == 3) << MODEL_SUBMISSIONS | (model_mutant == 4) << MODEL_RETURNS;
}

static void publisher(void) {
  for (unsigned turn = 0; turn < 10 && published < EVENTS; turn++) {
    int status = side_publish(published + 1);
    if (status == NP_OK) {
      published++;
    } else {
      model_path[2]++;
      model_yield();
    }
  }
}

static int take(void) {
  struct npi_taken taken;
  if (!side_take(&side.end[0], &hands, &taken)) return 0;
  MODEL_ASSERT(hands.value[hands.n - 1] == hands.taken); /* contiguous, none twice */
  return 1;
}

static void give(unsigned i) {
  if (model_mutant == 7) { /* gives back what it still reads */
    uint64_t element = hands.element[i];
    npi_inlet_release(&side.end[0].inlet, element);
    (void)model_read(side_payload_of(npi_element_handle(element)));
    hands.element[i] = hands.element[--hands.n];
    return;
  }
  if (model_mutant == 8) { /* the number of the credit is not what was taken */
    side.end[0].inlet.held[npi_element_credit(hands.element[i])] = hands.element[i] | NPI_ELEMENT_HELD;
    npi_ring_store(&side.end[0].inlet.returns, side.end[0].inlet.returned, hands.element[i] & NPI_ELEMENT_BODY_MASK);
    if (model_random(8) == 0) side.end[0].inlet.returned++;
  }
  side_release(&side.end[0], &hands, i);
}

static void subscriber(void) {
  for (unsigned turn = 0; turn < 10 && hands.taken < EVENTS; turn++) {
    if (hands.n < SIDE_CAPACITY && take()) continue;
    if (hands.n > 0 && model_random(4) != 0) {
      unsigned i = model_random(hands.n);
      model_path[3] += i > 0;
      give(i);
    } else {
      model_yield();
    }
  }
}

static void thread(unsigned number) {
  if (number == PUBLISHER) publisher();
  if (number == SUBSCRIBER) subscriber();
}

static void end(void) {
  int publisher_died = model_is_dead(PUBLISHER), subscriber_died = model_is_dead(SUBSCRIBER);
  model_path[0] += publisher_died;
  model_path[1] += subscriber_died;
  if (!subscriber_died) {
    unsigned before = hands.taken;
    while (hands.n > 0) give(0);
    while (take()) give(0);
    model_path[4] += publisher_died && hands.taken > before;
    /* What was stored is there, and nothing else; a publisher that was killed may have stored one more than it counted. */
    MODEL_ASSERT(hands.taken == published || (publisher_died && hands.taken == published + 1));
  }
  if (!publisher_died) {
    uint32_t out = side_take_back(0, 0);
    MODEL_ASSERT(!side.end[0].outlet.broken);
    if (!subscriber_died) MODEL_ASSERT(out == 0);
    side_must_be_whole();
  }
}

const struct model model = {"ring", mutants, 2, set_up, begin, thread, end};
