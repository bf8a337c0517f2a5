/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random operations of one publisher and up to four subscribers against a model that knows nothing of slots,
 * credits and rings. It foretells each result: who gets an event, who misses it, when a publish is refused, in
 * which order a dead member's events go to whom. The checker looks after every few steps. NUMAPOOL_SEED
 * repeats a run; counters of the paths taken have minimums, because a run that misses one proves less.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/support/core_pair.h"

TestSuite(core_random, .timeout = 110);

enum { SUBSCRIBERS = 4, STEPS = 70000, CHECK_EVERY = 32, LIST_MAX = 512 };

struct taken_event {
  uint64_t element;
  uint64_t number;
  struct npi_taken taken;
};

/* What the model knows of a subscriber. */
struct model {
  struct core_end *end;
  uint64_t age;                /* ties go to who connected first */
  uint64_t expected[LIST_MAX]; /* numbers on their way to it, in order */
  struct taken_event held[LIST_MAX];
  uint32_t n_expected, n_held;
};

struct run {
  struct core_pair pair;
  uint64_t seed, state;
  struct model model[SUBSCRIBERS];
  uint64_t next_number, next_age, sequence;
  uint64_t waiting[LIST_MAX]; /* to be offered again, in order */
  uint32_t loaned[32];
  uint32_t n_waiting, n_loaned;
  uint64_t n_published, n_full, n_dropped, n_empty, n_redelivered, n_deaths, n_removed, n_uncarved, n_taken, n_only;
};
static struct run run;

#define EXPECT(condition) \
  cr_assert(condition, "seed %llu, event %llu", (unsigned long long)run.seed, (unsigned long long)run.next_number)

static uint64_t pick(uint64_t n) {
  return (core_random(&run.state) >> 16) % n;
}

/* ---- events: their bytes follow from their number ----------------------------------------------------- */

static uint32_t bytes_of(uint64_t number) {
  static const uint32_t size[] = {8, 9, 12, 200, 256, 257, 1000, 5000, 40000, 140000};
  uint64_t state = number + 1;
  return size[(core_random(&state) >> 16) % NPI_ARRAY_COUNT(size)];
}

static uint64_t stride_of(uint64_t number) {
  return npi_class_stride(npi_class_of(bytes_of(number)));
}

static uint8_t byte_of(uint64_t number, uint32_t i) {
  return (uint8_t)(number * 31 + i);
}

static void fill(uint8_t *payload, uint64_t number) {
  uint32_t n = bytes_of(number);
  memcpy(payload, &number, 8);
  for (uint32_t i = 8; i < n; i += 61) payload[i] = byte_of(number, i);
  if (n > 8) payload[n - 1] = byte_of(number, n - 1);
}

static void expect_intact(const struct taken_event *event) {
  uint32_t n = bytes_of(event->number);
  EXPECT(event->taken.payload_bytes == n);
  EXPECT(memcmp(event->taken.payload, &event->number, 8) == 0);
  for (uint32_t i = 8; i < n; i += 61) EXPECT(event->taken.payload[i] == byte_of(event->number, i));
  if (n > 8) EXPECT(event->taken.payload[n - 1] == byte_of(event->number, n - 1));
}

/* ---- the model ----------------------------------------------------------------------------------------- */

static int is_tap(const struct model *model) {
  return (model->end->outlet.entry->flags & NPI_SUBSCRIBER_TAP) != 0;
}

static int is_blocking(const struct model *model) {
  return model->end->outlet.entry->on_full == NPI_ON_FULL_BLOCK && !is_tap(model);
}

static uint32_t n_out(const struct model *model) {
  return model->n_expected + model->n_held;
}

static int has_room(const struct model *model, uint64_t stride) {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < model->n_expected; i++) bytes += stride_of(model->expected[i]);
  for (uint32_t i = 0; i < model->n_held; i++) bytes += stride_of(model->held[i].number);
  const struct npi_ledger_connection *entry = model->end->outlet.entry;
  return n_out(model) < entry->limit && (n_out(model) == 0 || bytes + stride <= entry->bytes_limit);
}

static void send(struct model *model, uint64_t number) {
  EXPECT(model->n_expected < LIST_MAX);
  model->expected[model->n_expected++] = number;
}

static struct model *choose(uint64_t stride) {
  struct model *best = NULL;
  for (uint32_t i = 0; i < SUBSCRIBERS; i++) {
    struct model *model = &run.model[i];
    if (model->end == NULL || is_tap(model) || !has_room(model, stride)) continue;
    if (best == NULL || n_out(model) < n_out(best) || (n_out(model) == n_out(best) && model->age < best->age)) {
      best = model;
    }
  }
  return best;
}

static uint32_t offer_waiting(void) {
  uint32_t n = 0;
  for (; n < run.n_waiting; n++) {
    struct model *member = choose(stride_of(run.waiting[n]));
    if (member == NULL) break;
    send(member, run.waiting[n]);
  }
  memmove(run.waiting, run.waiting + n, (run.n_waiting - n) * sizeof run.waiting[0]);
  run.n_waiting -= n;
  run.n_redelivered += n;
  return n;
}

/* Who gets it is noted; returns what publish has to say. */
static int foretell_broadcast(uint64_t number) {
  uint64_t stride = stride_of(number);
  for (uint32_t i = 0; i < SUBSCRIBERS; i++) {
    const struct model *model = &run.model[i];
    if (model->end != NULL && is_blocking(model) && !has_room(model, stride)) return NP_FULL;
  }
  for (uint32_t i = 0; i < SUBSCRIBERS; i++) {
    struct model *model = &run.model[i];
    if (model->end == NULL) continue;
    if (has_room(model, stride)) {
      send(model, number);
    } else {
      run.n_dropped++;
    }
  }
  return NP_OK;
}

static int foretell_group(uint64_t number) {
  offer_waiting();
  struct model *member = run.n_waiting > 0 ? NULL : choose(stride_of(number));
  if (member == NULL) {
    if (run.pair.flow.channel_on_full == NPI_ON_FULL_BLOCK) return NP_FULL;
    run.n_dropped++;
    return NP_OK;
  }
  send(member, number);
  for (uint32_t i = 0; i < SUBSCRIBERS; i++) {
    struct model *model = &run.model[i];
    if (model->end == NULL || !is_tap(model)) continue;
    if (has_room(model, stride_of(number))) {
      send(model, number);
    } else {
      run.n_dropped++;
    }
  }
  return NP_OK;
}

/* ---- operations ---------------------------------------------------------------------------------------- */

static void publish_one(void) {
  static uint8_t payload[140000];
  uint64_t number = run.next_number;
  fill(payload, number);
  uint32_t slot = core_fill(&run.pair, payload, bytes_of(number));
  if (slot == NPI_NONE) {
    run.n_empty++;
    run.next_number++; /* or the same large one is tried for ever */
    return;
  }
  struct npi_slot_header *header = npi_pool_slot(&run.pair.pool, npi_pool_record(&run.pair.pool, slot)->handle);
  int foretold = run.pair.flow.kind == NPI_CHANNEL_GROUP ? foretell_group(number) : foretell_broadcast(number);
  struct npi_slot_record *record = npi_pool_record(&run.pair.pool, slot);
  struct npi_outlet *only =
      pick(2) ? npi_flow_publish_only(&run.pair.flow, slot, record, header, header->payload_bytes) : NULL;
  int status = only != NULL ? NP_OK : npi_flow_publish(&run.pair.flow, slot, header);
  run.n_only += only != NULL;
  if (only != NULL && npi_flow_reap_is_due(only)) npi_flow_reap_due(&run.pair.flow, only);
  EXPECT(status == foretold);
  run.next_number++;
  if (status == NP_FULL) {
    run.n_full++;
    EXPECT(npi_pool_record(&run.pair.pool, slot)->state == NPI_SLOT_LOANED);
    npi_pool_free(&run.pair.pool, slot);
  } else {
    run.n_published++;
    EXPECT(header->sequence == run.sequence++);
  }
}

static void take_one(struct model *model) {
  struct taken_event event;
  int status = core_take(model->end, &event.element, &event.taken);
  if (model->n_expected == 0) {
    EXPECT(status == NP_EMPTY);
    return;
  }
  EXPECT(status == NP_OK);
  memcpy(&event.number, event.taken.payload, 8);
  EXPECT(event.number == model->expected[0]);
  expect_intact(&event);
  memmove(model->expected, model->expected + 1, --model->n_expected * sizeof model->expected[0]);
  model->held[model->n_held++] = event;
  run.n_taken++;
}

static void release_one(struct model *model) {
  if (model->n_held == 0) return;
  uint32_t i = (uint32_t)pick(model->n_held);
  expect_intact(&model->held[i]); /* also after many others passed */
  uint64_t element = model->held[i].element;
  EXPECT(npi_inlet_release(&model->end->inlet, element) == 0);
  if (pick(8) == 0) EXPECT(npi_inlet_release(&model->end->inlet, element) == NP_ERR_MISUSE);
  memmove(&model->held[i], &model->held[i + 1], (--model->n_held - i) * sizeof model->held[0]);
}

static void connect_one(struct model *model) {
  uint32_t capacity = 16U << pick(3);
  memset(model, 0, sizeof *model);
  model->age = run.next_age++;
  model->end = core_connect(&run.pair, &(struct core_end_options){
                                           .capacity = capacity,
                                           .limit = (uint32_t)(1 + pick(capacity)),
                                           .on_full = pick(2) ? NPI_ON_FULL_BLOCK : NPI_ON_FULL_DROP_NEWEST,
                                           .flags = pick(4) == 0 ? NPI_SUBSCRIBER_TAP : 0,
                                           .bytes_limit = pick(4) == 0 ? 100000 : 0,
                                           .start = pick(2) ? 0 : UINT64_MAX - 16 * capacity + 1,
                                       });
}

static int in_order(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static void kill_one(struct model *model) {
  int again = run.pair.flow.kind == NPI_CHANNEL_GROUP && !is_tap(model);
  EXPECT(run.n_waiting + n_out(model) <= LIST_MAX);
  for (uint32_t i = 0; again && i < model->n_held; i++) run.waiting[run.n_waiting++] = model->held[i].number;
  for (uint32_t i = 0; again && i < model->n_expected; i++) run.waiting[run.n_waiting++] = model->expected[i];
  qsort(run.waiting, run.n_waiting, sizeof run.waiting[0], in_order); /* also between the dead */
  EXPECT(core_disconnect(&run.pair, model->end) == n_out(model));
  memset(model, 0, sizeof *model);
  run.n_deaths++;
}

static void loan_or_free(void) {
  if (run.n_loaned == NPI_ARRAY_COUNT(run.loaned) || (run.n_loaned > 0 && pick(2) == 0)) {
    uint32_t i = (uint32_t)pick(run.n_loaned);
    npi_pool_free(&run.pair.pool, run.loaned[i]);
    run.loaned[i] = run.loaned[--run.n_loaned];
    return;
  }
  uint32_t slot = core_fill(&run.pair, NULL, 0);
  if (slot != NPI_NONE) run.loaned[run.n_loaned++] = slot;
}

static void change_memory(void) {
  uint32_t number = (uint32_t)pick(run.pair.geometry.segments);
  switch (pick(4)) {
    case 0: core_add_segment(&run.pair, number); break;
    case 1: run.n_removed += core_remove_segment(&run.pair, number) == 0; break;
    case 2: run.n_uncarved += npi_pool_uncarve(&run.pair.pool); break;
    default: npi_pool_idle_segment(&run.pair.pool, run.next_number, 100, 1);
  }
}

static void step(void) {
  struct model *model = &run.model[pick(SUBSCRIBERS)];
  uint64_t which = pick(1000);
  if (which < 400) {
    publish_one();
  } else if (which < 940) {
    if (model->end == NULL) return;
    /* A phase of taking and one of releasing, so that rings run full as well as empty. */
    if (pick(100) < 50 + 8 * (run.next_number / 512 % 2)) {
      take_one(model);
    } else {
      release_one(model);
    }
  } else if (which < 960) {
    loan_or_free();
  } else if (which < 970) {
    npi_flow_reap(&run.pair.flow);
    for (uint32_t i = 0; i < SUBSCRIBERS; i++) {
      if (run.model[i].end != NULL) EXPECT(run.model[i].end->outlet.entry->outstanding == n_out(&run.model[i]));
    }
  } else if (which < 975) {
    uint32_t slot_class = (uint32_t)pick(NPI_CLASS_COUNT);
    uint64_t stride = npi_class_stride(slot_class);
    int may = npi_flow_may_publish(&run.pair.flow, slot_class), foretold = 1;
    if (run.pair.flow.kind == NPI_CHANNEL_GROUP) {
      offer_waiting();
      foretold = run.pair.flow.channel_on_full != NPI_ON_FULL_BLOCK || (run.n_waiting == 0 && choose(stride) != NULL);
    } else {
      for (uint32_t i = 0; i < SUBSCRIBERS; i++) {
        const struct model *one = &run.model[i];
        if (one->end != NULL && is_blocking(one) && !has_room(one, stride)) foretold = 0;
      }
    }
    EXPECT(may == foretold);
  } else if (which < 980) {
    if (model->end != NULL) model->end->outlet.entry->limit = (uint32_t)pick(model->end->inlet.capacity + 1);
  } else if (which < 985) {
    change_memory();
  } else if (which < 990 && run.pair.flow.kind == NPI_CHANNEL_GROUP) {
    uint32_t n = npi_flow_offer_waiting(&run.pair.flow);
    EXPECT(offer_waiting() == n);
  } else if (model->end == NULL) {
    connect_one(model);
  } else if (pick(3) == 0) {
    kill_one(model);
  }
}

static void run_steps(uint32_t kind, uint32_t on_full, uint64_t salt) {
  const char *text = getenv("NUMAPOOL_SEED");
  memset(&run, 0, sizeof run);
  run.seed = text != NULL ? strtoull(text, NULL, 0) : (uint64_t)time(NULL);
  run.state = (run.seed + salt) * 2 + 1;
  fprintf(stderr, "NUMAPOOL_SEED=%llu\n", (unsigned long long)run.seed);
  core_pair_open(&run.pair,
                 &(struct core_options){
                     .kind = kind, .on_full = on_full, .n_segments = 2, .segment_chunks = 8, .room_for_segments = 4});
  for (uint32_t i = 0; i < STEPS; i++) {
    step();
    if (i % CHECK_EVERY == 0) EXPECT(core_check(&run.pair) == 0);
  }
  uint64_t counted = 0;
  for (uint32_t i = 0; i < SUBSCRIBERS; i++) {
    struct model *model = &run.model[i];
    while (model->end != NULL && model->n_expected > 0) take_one(model);
    while (model->end != NULL && model->n_held > 0) release_one(model);
  }
  npi_flow_reap(&run.pair.flow);
  npi_flow_abandon_waiting(&run.pair.flow);
  EXPECT(core_check(&run.pair) == 0);
  EXPECT(core_slots(&run.pair).n_out == 0);
  EXPECT(core_slots(&run.pair).n_loaned == run.n_loaned);
  EXPECT(core_count(&run.pair, NPI_PUBLISHER_PUBLISHED) == run.n_published);
  EXPECT(core_count(&run.pair, NPI_PUBLISHER_FULL) == run.n_full);
  EXPECT(core_count(&run.pair, NPI_PUBLISHER_REDELIVERED) == run.n_redelivered);
  EXPECT(core_count(&run.pair, NPI_PUBLISHER_LOST_WITH_MEMBER) == run.n_waiting);
  counted += core_count(&run.pair, NPI_PUBLISHER_DROPPED_NO_CREDIT);
  counted += core_count(&run.pair, NPI_PUBLISHER_DROPPED_NO_MEMBER);
  EXPECT(counted == run.n_dropped);
  fprintf(stderr,
          "%llu published, %llu taken, %llu full, %llu dropped, %llu without slot, %llu deaths, %llu offered again, "
          "%llu segments removed, %llu chunks uncarved\n",
          (unsigned long long)run.n_published, (unsigned long long)run.n_taken, (unsigned long long)run.n_full,
          (unsigned long long)run.n_dropped, (unsigned long long)run.n_empty, (unsigned long long)run.n_deaths,
          (unsigned long long)run.n_redelivered, (unsigned long long)run.n_removed, (unsigned long long)run.n_uncarved);
  cr_expect_gt(run.n_published, STEPS / 20);
  cr_expect_gt(run.n_taken, STEPS / 20);
  cr_expect_gt(run.n_deaths, 10);
  cr_expect_gt(run.n_removed, 1);
  cr_expect_gt(run.n_uncarved, 10);
  core_pair_close(&run.pair);
}

Test(core_random, broadcast) {
  run_steps(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK, 1);
  cr_expect_gt(run.n_only, 10);
  cr_expect_gt(run.n_full, 100);
  cr_expect_gt(run.n_dropped, 100);
}

Test(core_random, a_group_that_blocks) {
  run_steps(NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK, 2);
  cr_expect_gt(run.n_full, 100);
  cr_expect_gt(run.n_redelivered, 20);
}

Test(core_random, a_group_that_drops) {
  run_steps(NPI_CHANNEL_GROUP, NPI_ON_FULL_DROP_NEWEST, 3);
  cr_expect_eq(run.n_full, 0);
  cr_expect_gt(run.n_dropped, 100);
  cr_expect_gt(run.n_redelivered, 20);
}
