/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection, a publisher thread and a subscriber thread that share nothing but what processes share.
 * Every word of every payload is plain memory, so a missing release or acquire is a data race that the
 * thread sanitizer reports, and a slot that comes back too early is a payload that is not what it should be.
 *
 * stress_ring [EVENTS]   events of each part; default 2000000
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/os_clock.h"
#include "support/core_pair.h"

enum { WORDS_MAX = 16, HELD_MAX = 64 };

struct part {
  uint32_t capacity;
  uint32_t hold; /* events that the subscriber keeps before it gives one back, out of order */
  uint64_t start;
  uint64_t n_events;
  struct core_pair pair;
  struct core_end *end;
  uint64_t n_full;
  uint64_t n_wrong;
  struct npi_atomic_u32 stopped; /* the subscriber gave up */
};

static uint32_t words_of(uint64_t number) {
  return 1 + (uint32_t)(number * 7 % WORDS_MAX);
}

static void *subscribe(void *argument) {
  struct part *part = argument;
  uint64_t held[HELD_MAX], number = 0, random = 12345;
  const uint8_t *payload[HELD_MAX];
  uint64_t held_number[HELD_MAX];
  uint32_t n_held = 0;
  while (number < part->n_events || n_held > 0) {
    uint64_t element;
    struct npi_taken taken;
    int status = number < part->n_events && n_held <= part->hold ? core_take(part->end, &element, &taken) : NP_EMPTY;
    if (status == NP_OK) {
      uint64_t words[WORDS_MAX];
      part->n_wrong += taken.payload_bytes != words_of(number) * 8;
      part->n_wrong += taken.header->sequence != number;
      memcpy(words, taken.payload, words_of(number) * 8);
      for (uint32_t i = 0; i < words_of(number); i++) part->n_wrong += words[i] != number + i;
      held[n_held] = element;
      held_number[n_held] = number;
      payload[n_held++] = taken.payload;
      number++;
    } else if (status != NP_EMPTY) {
      part->n_wrong++;
      npi_store_release_u32(&part->stopped, 1);
      return NULL;
    } else if (n_held == 0 || (n_held <= part->hold && number < part->n_events && core_random(&random) % 4 != 0)) {
      sched_yield();
      continue;
    }
    if (n_held <= part->hold && status == NP_OK) continue;
    uint32_t i = (uint32_t)((core_random(&random) >> 16) % n_held);
    uint64_t first;
    memcpy(&first, payload[i], 8); /* still the same at the moment before it goes back */
    part->n_wrong += first != held_number[i];
    part->n_wrong += npi_inlet_release(&part->end->inlet, held[i]) != 0;
    n_held--;
    held[i] = held[n_held];
    held_number[i] = held_number[n_held];
    payload[i] = payload[n_held];
  }
  return NULL;
}

static int run(uint32_t capacity, uint32_t limit, uint32_t hold, uint64_t start, uint64_t n_events) {
  static struct part part;
  pthread_t thread;
  memset(&part, 0, sizeof part);
  part.capacity = capacity;
  part.hold = hold;
  part.n_events = n_events;
  core_pair_open(&part.pair, &(struct core_options){.n_segments = 2, .segment_chunks = 8});
  part.end = core_connect(&part.pair, &(struct core_end_options){.capacity = capacity, .limit = limit, .start = start});
  uint64_t begin = npi_clock_monotonic();
  if (pthread_create(&thread, NULL, subscribe, &part) != 0) return 1;
  for (uint64_t number = 0; number < n_events;) {
    uint64_t words[WORDS_MAX];
    for (uint32_t i = 0; i < words_of(number); i++) words[i] = number + i;
    int status = core_publish(&part.pair, words, words_of(number) * 8);
    if (status == NP_OK) {
      number++;
    } else if (part.pair.flow.broken > 0 || npi_load_acquire_u32(&part.stopped)) {
      break;
    } else {
      part.n_full++;
      sched_yield();
    }
  }
  pthread_join(thread, NULL);
  double seconds = (double)(npi_clock_monotonic() - begin) / 1e9;
  npi_flow_reap(&part.pair.flow);
  unsigned n_findings = core_check(&part.pair);
  uint64_t n_out = core_slots(&part.pair).n_out;
  printf("capacity %5u, limit %5u, holding %2u: %llu events in %.2f s, %.2f million/s, %llu times full, %llu wrong\n",
         capacity, limit, hold, (unsigned long long)n_events, seconds, (double)n_events / seconds / 1e6,
         (unsigned long long)part.n_full, (unsigned long long)part.n_wrong);
  int failed = part.n_wrong > 0 || n_findings > 0 || n_out > 0 || part.pair.flow.broken > 0;
  core_pair_close(&part.pair);
  return failed;
}

int main(int argc, char **argv) {
  uint64_t n = argc > 1 ? strtoull(argv[1], NULL, 10) : 2000000;
  int failed = 0;
  failed |= run(16, 16, 0, 0, n);
  failed |= run(16, 16, 15, UINT64_MAX - 16 * 16 * 40 + 1, n / 4);
  failed |= run(16, 1, 0, 0, n / 10);
  failed |= run(1024, 1000, 40, UINT64_MAX - 16 * 1024 * 10 + 1, n);
  if (failed) printf("failed\n");
  return failed;
}
