/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One publisher, two subscribers of a broadcast: the first blocks the publisher where it has no credit, the second
 * misses events then. Any one of the three may be killed; a living publisher takes back what a dead subscriber had
 * while it goes on publishing to the other.
 */
#include "side.h"

enum { PUBLISHER, BLOCKING, DROPPING, EVENTS = 4 };

static const char *const mutants[] = {"noted and stored by turns",
                                      "one return frees the slot for all",
                                      "a dead reader's slots are freed for all",
                                      "submission stored relaxed",
                                      "return stored relaxed",
                                      "return loaded relaxed",
                                      NULL};
const char *const model_paths[] = {
    "publisher killed",           "a subscriber killed",         "no credit for the blocking one",
    "missed by the dropping one", "taken back beside the other", NULL};

static struct hands hands[2];
static unsigned published, attempts, last_seen[2];
static int let_go[2];

static void set_up(void) {
  side_set_up(2);
}

static void begin(void) {
  side_begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  for (unsigned i = 0; i < 2; i++) {
    side_format(i);
    side_make_outlet(i, i == 0 ? NPI_ON_FULL_BLOCK : NPI_ON_FULL_DROP_NEWEST, SIDE_CAPACITY, 0);
    side_make_inlet(i, 0);
    hands[i] = (struct hands){0};
    last_seen[i] = 0;
    let_go[i] = 0;
  }
  published = attempts = 0;
  unsigned victim = model_random(4);
  if (victim < 3) model_kill(victim, 20);
  model_weak.stores = (model_mutant == 4) << MODEL_SUBMISSIONS | (model_mutant == 5) << MODEL_RETURNS;
  model_weak.loads = (model_mutant == 6) << MODEL_RETURNS;
}

static void let_go_of(unsigned i) {
  struct npi_outlet *outlet = &side.end[i].outlet;
  let_go[i] = 1;
  model_path[4] += !let_go[1 - i];
  if (model_mutant == 3) {
    for (uint32_t credit = 0; credit < outlet->entry->capacity; credit++) {
      if (outlet->credit_slot[credit] != NPI_NONE)
        npi_pool_record(&side.pool, outlet->credit_slot[credit])->holders = 1;
    }
  }
  side_take_back(i, 0);
}

/* Store first, note afterwards: the order that core/flow.h warns of. */
static int publish_by_turns(unsigned value) {
  uint32_t slot = npi_pool_loan(&side.pool, SIDE_CLASS);
  if (slot == NPI_NONE) return NP_EMPTY;
  struct npi_slot_record *record = npi_pool_record(&side.pool, slot);
  struct npi_slot_header *header = npi_pool_slot(&side.pool, record->handle);
  uint64_t stride = npi_class_stride(SIDE_CLASS);
  for (uint32_t i = 0; i < side.flow.n_outlets; i++) {
    struct npi_outlet *outlet = side.flow.outlets[i];
    npi_outlet_reap(outlet, &side.pool, 2);
    if (outlet->blocking && !npi_outlet_has_credit(outlet, stride)) {
      npi_pool_free(&side.pool, slot);
      return NP_FULL;
    }
  }
  model_write(side_payload_of(record->handle), value);
  npi_slot_sizes_store(header, npi_slot_sizes(8, 0, 0, 0));
  record->state = NPI_SLOT_OUTSTANDING;
  int n = 0;
  for (uint32_t i = 0; i < side.flow.n_outlets; i++) {
    struct npi_outlet *outlet = side.flow.outlets[i];
    if (!npi_outlet_has_credit(outlet, stride)) continue;
    npi_outlet_note(outlet, record, slot, stride);
    record->holders++;
    npi_outlet_store(outlet);
    model_yield();
    for (uint32_t k = 0; k <= i; k++) npi_outlet_reap(side.flow.outlets[k], &side.pool, 2);
    n++;
  }
  if (n == 0) npi_pool_free(&side.pool, slot);
  return NP_OK;
}

static void publisher(void) {
  for (unsigned turn = 0; turn < 9 && published < EVENTS; turn++) {
    for (unsigned i = 0; i < 2; i++) {
      if (!let_go[i] && model_is_dead(BLOCKING + i)) let_go_of(i);
    }
    uint64_t dropped = npi_load_relaxed_u64(&side.counters.value[NPI_PUBLISHER_DROPPED_NO_CREDIT]);
    attempts = published + 1; /* before a death in mid call, which may have stored it for some */
    int status = model_mutant == 1 ? publish_by_turns(published + 1) : side_publish(published + 1);
    if (model_mutant == 2) {
      for (uint32_t slot = side.first_slot; slot < side.first_slot + SIDE_SLOTS; slot++) {
        if (npi_pool_record(&side.pool, slot)->holders > 1) npi_pool_record(&side.pool, slot)->holders = 1;
      }
    }
    model_path[3] += npi_load_relaxed_u64(&side.counters.value[NPI_PUBLISHER_DROPPED_NO_CREDIT]) > dropped;
    if (status == NP_OK) {
      published++;
    } else {
      model_path[2] += status == NP_FULL;
      model_yield();
    }
  }
}

static int take(unsigned i) {
  struct npi_taken taken;
  if (!side_take(&side.end[i], &hands[i], &taken)) return 0;
  unsigned value = hands[i].value[hands[i].n - 1];
  MODEL_ASSERT(value > last_seen[i]);                  /* in order, none twice */
  if (i == 0) MODEL_ASSERT(value == last_seen[i] + 1); /* and for the blocking one, none missing */
  last_seen[i] = value;
  return 1;
}

static void subscriber(unsigned i) {
  for (unsigned turn = 0; turn < 8; turn++) {
    if (hands[i].n < SIDE_CAPACITY && take(i)) continue;
    if (hands[i].n > 0 && model_random(3) != 0) {
      side_release(&side.end[i], &hands[i], model_random(hands[i].n));
    } else {
      model_yield();
    }
  }
}

static void thread(unsigned number) {
  if (number == PUBLISHER) {
    publisher();
  } else {
    subscriber(number - BLOCKING);
  }
}

static void end(void) {
  int publisher_died = model_is_dead(PUBLISHER);
  model_path[0] += publisher_died;
  for (unsigned i = 0; i < 2; i++) {
    int died = model_is_dead(BLOCKING + i);
    model_path[1] += died;
    if (!died) {
      while (hands[i].n > 0) side_release(&side.end[i], &hands[i], 0);
      while (take(i)) side_release(&side.end[i], &hands[i], 0);
      MODEL_ASSERT(last_seen[i] <= attempts);
      if (i == 0) MODEL_ASSERT(last_seen[0] >= published || publisher_died);
    }
  }
  if (publisher_died) return;
  for (unsigned i = 0; i < 2; i++) {
    if (let_go[i]) continue;
    uint32_t out = side_take_back(i, 0);
    MODEL_ASSERT(!side.end[i].outlet.broken);
    if (!model_is_dead(BLOCKING + i)) MODEL_ASSERT(out == 0);
  }
  side_must_be_whole();
}

const struct model model = {"broadcast", mutants, 3, set_up, begin, thread, end};
