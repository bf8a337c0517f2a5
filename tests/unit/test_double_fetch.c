/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values in memory that another process writes flip between valid and invalid while the code of this side reads them:
 * what was checked must be what is used. One thread flips as fast as it can; the other runs the real readers, and
 * touches every byte that they vouch for. Under the address sanitizer a second fetch shows as a read outside.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/check.h"
#include "core/doorbell.h"
#include "support/core_pair.h"

enum { FLIPS = 10000000, CAPACITY = 16, SEGMENT_BYTES = 4096 };

struct flipper {
  struct npi_atomic_u64 *word;
  uint64_t value[4]; /* the first is the honest one */
  uint64_t flips;
  atomic_int run, runs;
};

static void *flip(void *argument) {
  struct flipper *flipper = argument;
  uint64_t n = 0;
  atomic_store(&flipper->runs, 1);
  for (; n < flipper->flips || atomic_load_explicit(&flipper->run, memory_order_relaxed); n++) {
    npi_store_relaxed_u64(flipper->word, flipper->value[n % 5 % 4]);
  }
  flipper->flips = n;
  return NULL;
}

static void begin(struct flipper *flipper, pthread_t *thread, uint64_t flips) {
  flipper->flips = flips;
  atomic_init(&flipper->run, 1);
  atomic_init(&flipper->runs, 0);
  cr_assert_eq(pthread_create(thread, NULL, flip, flipper), 0);
  while (!atomic_load(&flipper->runs)) sched_yield();
}

static volatile uint64_t sink;

/* A subscriber's connection in heap blocks of just the right size. */
struct reader {
  struct npi_ring_block *submissions, *returns;
  uint8_t *segment;
  struct npi_segment_view views[2];
  struct npi_inlet inlet;
};

static void open_reader(struct reader *reader) {
  uint64_t bytes = npi_ring_block_bytes(CAPACITY);
  reader->submissions = malloc(bytes);
  reader->returns = malloc(bytes);
  reader->segment = aligned_alloc(NPI_CACHE_LINE, SEGMENT_BYTES);
  cr_assert(reader->submissions && reader->returns && reader->segment);
  npi_ring_format(reader->submissions, CAPACITY);
  npi_ring_format(reader->returns, CAPACITY);
  memset(reader->segment, 7, SEGMENT_BYTES);
  reader->views[0] = (struct npi_segment_view){0};
  reader->views[1] = (struct npi_segment_view){reader->segment, SEGMENT_BYTES};
  cr_assert_eq(npi_inlet_init(&reader->inlet, reader->returns, reader->submissions, CAPACITY, reader->views, 2), 0);
}

static void close_reader(struct reader *reader) {
  npi_inlet_deinit(&reader->inlet);
  free(reader->submissions);
  free(reader->returns);
  free(reader->segment);
}

/* One take of what is there, every byte read, and given back. 1: it was taken. */
static int take_and_read(struct reader *reader, uint64_t *refused) {
  struct npi_taken taken;
  uint64_t element, sum = 0;
  if (!npi_inlet_look(&reader->inlet, &element)) return 0;
  if (npi_inlet_open(&reader->inlet, element, &taken) != 0) {
    ++*refused;
    return 0;
  }
  for (uint32_t i = 0; i < taken.payload_bytes + taken.topic_bytes; i += 61) sum += taken.payload[i];
  if (taken.payload_bytes + taken.topic_bytes > 0) sum += taken.payload[taken.payload_bytes + taken.topic_bytes - 1];
  sum += taken.header->sequence;
  sink += sum;
  cr_assert(taken.payload + taken.payload_bytes + taken.topic_bytes <= reader->segment + SEGMENT_BYTES);
  cr_assert_eq(npi_inlet_release(&reader->inlet, element), 0);
  /* The element stays where it is and is taken again: its position as well. */
  reader->inlet.taken--;
  reader->inlet.returned--;
  return 1;
}

static void run_reader(struct flipper *flipper, struct reader *reader, const char *what) {
  pthread_t thread;
  uint64_t taken = 0, refused = 0, reads = 0;
  begin(flipper, &thread, FLIPS);
  /* On a busy machine the other thread may not have its turn for a while. */
  for (time_t end = time(NULL) + 20; reads < 2000000 || ((taken == 0 || refused == 0) && time(NULL) < end); reads++) {
    taken += (uint64_t)take_and_read(reader, &refused);
  }
  atomic_store(&flipper->run, 0);
  pthread_join(thread, NULL);
  fprintf(stderr, "%s: %llu flips, %llu reads, %llu taken, %llu refused\n", what, (unsigned long long)flipper->flips,
          (unsigned long long)reads, (unsigned long long)taken, (unsigned long long)refused);
  cr_assert(taken > 0 && refused > 0);
}

Test(double_fetch, of_the_sizes_in_a_slot_header) {
  struct reader reader;
  open_reader(&reader);
  uint64_t offset = SEGMENT_BYTES - NPI_SLOT_HEADER_BYTES - 256;
  npi_ring_store(&reader.inlet.submissions, 0, npi_element(npi_handle(1, offset), 3, 1));
  struct flipper flipper = {.word = (struct npi_atomic_u64 *)(void *)(reader.segment + offset + 16),
                            .value = {npi_slot_sizes(200, 56, 0, 0), npi_slot_sizes(UINT32_MAX, UINT16_MAX, 0, 0),
                                      npi_slot_sizes(256, 1, 0, 0), npi_slot_sizes(0, 0, 0, 0)}};
  run_reader(&flipper, &reader, "sizes");
  close_reader(&reader);
}

Test(double_fetch, of_an_element) {
  struct reader reader;
  open_reader(&reader);
  memset(reader.segment, 0, SEGMENT_BYTES);
  uint64_t good = npi_element(npi_handle(1, 1024), 3, 1);
  npi_ring_store(&reader.inlet.submissions, 0, good);
  uint64_t stored = npi_load_relaxed_u64(&reader.submissions->element[0]);
  struct flipper flipper = {
      .word = &reader.submissions->element[0],
      .value = {stored, npi_element(npi_handle(4095, 1024), 3, 1), npi_element(npi_handle(1, SEGMENT_BYTES - 64), 3, 1),
                npi_element(npi_handle(1, 1024), NPI_CREDIT_MASK, 1)}};
  run_reader(&flipper, &reader, "elements");
  close_reader(&reader);
}

Test(double_fetch, of_a_return) {
  /* The publisher's end: a return that is honest or names another slot, another credit, no credit. */
  struct core_options options = {.n_segments = 1, .segment_chunks = 2};
  struct core_pair pair;
  uint64_t reaped = 0, lies = 0, none = 0, flips = 0;
  core_pair_open(&pair, &options);
  for (int round = 0; round < 400; round++) {
    struct core_end *end = core_connect(&pair, &(struct core_end_options){.capacity = CAPACITY});
    uint64_t element;
    struct npi_taken taken;
    pthread_t thread;
    cr_assert_eq(core_publish_text(&pair, "one"), NP_OK);
    cr_assert_eq(core_publish_text(&pair, "two"), NP_OK);
    cr_assert_eq(core_take(end, &element, &taken), NP_OK);
    uint64_t body = element & NPI_ELEMENT_BODY_MASK;
    struct flipper flipper = {.word = &end->returns->element[0],
                              .value = {body, body ^ (UINT64_C(5) << NPI_ELEMENT_CREDIT_SHIFT), body ^ 1,
                                        body | UINT64_C(0xffffffff) << NPI_ELEMENT_HANDLE_SHIFT}};
    begin(&flipper, &thread, FLIPS / 400);
    for (int i = 0; i < 200000; i++) {
      int n = npi_outlet_reap(&end->outlet, &pair.pool, CAPACITY);
      if (n > 0) reaped += (uint64_t)n;
      if (n == 0) none++;
      if (n == NPI_OUTLET_LIE) lies++;
      if (n != 0) break;
    }
    atomic_store(&flipper.run, 0);
    pthread_join(thread, NULL);
    flips += flipper.flips;
    core_disconnect(&pair, end);
    cr_assert_eq(core_check(&pair), 0); /* whatever was believed, the ledger is whole */
  }
  fprintf(stderr, "returns: %llu flips, %llu believed, %llu lies, %llu times none\n", (unsigned long long)flips,
          (unsigned long long)reaped, (unsigned long long)lies, (unsigned long long)none);
  cr_assert(lies > 0 && reaped > 0);
  core_pair_close(&pair);
}

Test(double_fetch, of_a_doorbell) {
  /* Flipping between awake and asleep of ever the same episode: one ring for it, not one a look. */
  struct npi_doorbell_shm *shm = aligned_alloc(64, sizeof *shm);
  struct npi_bell_peer peer = {.shm = shm, .fd = -1};
  struct flipper flipper = {.word = &shm->word,
                            .value = {NPI_BELL_AWAKE, UINT64_C(1) << 32 | NPI_BELL_ASLEEP,
                                      UINT64_C(1) << 32 | NPI_BELL_FENCED, UINT64_C(1) << 32 | UINT32_MAX}};
  pthread_t thread;
  unsigned rings = 0;
  npi_store_relaxed_u64(&shm->word, 0);
  begin(&flipper, &thread, FLIPS);
  for (int i = 0; i < 1000000; i++) rings += npi_bell_look(&peer) && npi_bell_must_ring(&peer);
  atomic_store(&flipper.run, 0);
  pthread_join(thread, NULL);
  fprintf(stderr, "doorbell: %llu flips, %u rings\n", (unsigned long long)flipper.flips, rings);
  cr_assert_leq(rings, 1);
  free(shm);
}

Test(double_fetch, of_a_ledger_that_is_checked) {
  /* As tools do: a copy, taken while its owner changes it, is checked. It ends, and reads nothing outside. */
  struct core_options options = {.n_segments = 1, .segment_chunks = 2};
  struct core_pair pair;
  core_pair_open(&pair, &options);
  struct core_end *end = core_connect(&pair, &(struct core_end_options){.capacity = CAPACITY});
  cr_assert_eq(core_publish_text(&pair, "one"), NP_OK);
  struct npi_ledger_connection *entry = end->outlet.entry;
  struct npi_atomic_u64 *words[] = {(void *)&pair.pool.ledger.header->free[0],
                                    (void *)&entry->credits_offset,
                                    (void *)&entry->submitted,
                                    (void *)&pair.pool.ledger.records[0],
                                    (void *)&pair.pool.ledger.segments[0].bytes,
                                    (void *)((uintptr_t)&entry->capacity & ~(uintptr_t)7)};
  uint64_t findings = 0, flips = 0;
  void *copy = aligned_alloc(NPI_PAGE, pair.ledger_bytes);
  cr_assert_not_null(copy);
  for (size_t i = 0; i < NPI_ARRAY_COUNT(words); i++) {
    uint64_t honest = npi_load_relaxed_u64(words[i]);
    struct flipper flipper = {.word = words[i], .value = {honest, honest ^ 0xffff, UINT64_MAX, honest + 4096}};
    pthread_t thread;
    begin(&flipper, &thread, FLIPS / 10);
    for (int k = 0; k < 300; k++) {
      struct npi_ledger ledger;
      memcpy(copy, pair.ledger_memory, pair.ledger_bytes);
      if (npi_ledger_attach(&ledger, copy, pair.ledger_bytes) != 0) continue;
      const struct npi_ledger_connection *copied = &ledger.connections[entry - pair.pool.ledger.connections];
      findings += npi_check_ledger(&ledger, NULL, NULL);
      findings += npi_check_connection(&ledger, copied, end->submissions, end->returns, CAPACITY, NULL, NULL, NULL);
    }
    atomic_store(&flipper.run, 0);
    pthread_join(thread, NULL);
    flips += flipper.flips;
    npi_store_relaxed_u64(words[i], honest);
  }
  fprintf(stderr, "ledger: %llu flips, %llu findings\n", (unsigned long long)flips, (unsigned long long)findings);
  free(copy);
  cr_assert(findings > 0);
  cr_assert_eq(core_check(&pair), 0);
  core_pair_close(&pair);
}
