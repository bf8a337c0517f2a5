/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One publisher thread and three subscriber threads: a broadcast that blocks, a broadcast that drops, a group
 * with a tap. Checked: each subscriber of the first sees every event in order; of the second every event or
 * a gap that the publisher counted; of the group each event is seen by exactly one member, in order at each.
 *
 * stress_flow [EVENTS]   events of each part; default 600000
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/os_clock.h"
#include "support/core_pair.h"

enum { SUBSCRIBERS = 3, BATCH = 4 };

struct reader {
  struct core_end *end;
  int gaps_are_fine;
  struct npi_atomic_u32 done;    /* the publisher is: what is still there is the rest */
  struct npi_atomic_u32 stopped; /* this reader gave up */
  uint8_t *seen;                 /* by sequence: by this reader */
  uint64_t n_seen, n_missed, n_wrong, next;
};

static uint32_t checksum(const uint8_t *bytes, uint32_t n) {
  uint32_t sum = 2166136261U;
  for (uint32_t i = 0; i < n; i++) sum = (sum ^ bytes[i]) * 16777619U;
  return sum;
}

static uint32_t make_payload(uint8_t *payload, uint64_t number) {
  uint32_t n = 16 + (uint32_t)(number * 37 % 500);
  for (uint32_t i = 4; i < n; i++) payload[i] = (uint8_t)(number * 13 + i);
  uint32_t sum = checksum(payload + 4, n - 4);
  memcpy(payload, &sum, 4);
  return n;
}

static void look_at(struct reader *reader, const struct npi_taken *taken) {
  uint8_t copy[1024];
  uint32_t sum;
  uint64_t sequence = taken->header->sequence;
  if (taken->payload_bytes > sizeof copy || taken->payload_bytes != 16 + sequence * 37 % 500) {
    reader->n_wrong++;
    return;
  }
  memcpy(copy, taken->payload, taken->payload_bytes);
  memcpy(&sum, copy, 4);
  reader->n_wrong += sum != checksum(copy + 4, taken->payload_bytes - 4);
  reader->n_wrong += copy[4] != (uint8_t)(sequence * 13 + 4);
  reader->n_wrong += sequence < reader->next || (sequence > reader->next && !reader->gaps_are_fine);
  reader->n_missed += sequence - reader->next;
  reader->next = sequence + 1;
  reader->seen[sequence]++;
  reader->n_seen++;
}

static void *read_all(void *argument) {
  struct reader *reader = argument;
  uint64_t held[BATCH];
  uint32_t n_held = 0;
  for (;;) {
    uint32_t done = npi_load_acquire_u32(&reader->done);
    uint64_t element;
    struct npi_taken taken;
    int status = core_take(reader->end, &element, &taken);
    if (status < 0) {
      reader->n_wrong++;
      npi_store_release_u32(&reader->stopped, 1);
      return NULL;
    }
    if (status == NP_OK) {
      look_at(reader, &taken);
      held[n_held++] = element;
    }
    /* Given back in batches, last first. */
    if (status == NP_EMPTY || n_held == BATCH) {
      while (n_held > 0) reader->n_wrong += npi_inlet_release(&reader->end->inlet, held[--n_held]) != 0;
    }
    if (status == NP_EMPTY) {
      if (done) return NULL;
      sched_yield();
    }
  }
}

static int run(const char *name, uint32_t kind, uint32_t on_full, uint32_t capacity, uint64_t n_events) {
  static struct core_pair pair;
  struct reader reader[SUBSCRIBERS + 1];
  pthread_t thread[SUBSCRIBERS + 1];
  uint32_t n_readers = kind == NPI_CHANNEL_GROUP ? SUBSCRIBERS + 1 : SUBSCRIBERS;
  uint64_t n_full = 0;
  int failed = 0;
  memset(reader, 0, sizeof reader);
  core_pair_open(&pair, &(struct core_options){.kind = kind, .on_full = on_full, .n_segments = 4, .segment_chunks = 8});
  for (uint32_t i = 0; i < n_readers; i++) {
    int tap = i == SUBSCRIBERS;
    reader[i].end = core_connect(
        &pair,
        &(struct core_end_options){.capacity = capacity, .on_full = on_full, .flags = tap ? NPI_SUBSCRIBER_TAP : 0});
    reader[i].gaps_are_fine = kind == NPI_CHANNEL_GROUP || on_full != NPI_ON_FULL_BLOCK;
    reader[i].seen = calloc(n_events, 1);
    if (reader[i].seen == NULL) return 1;
  }
  uint64_t begin = npi_clock_monotonic();
  for (uint32_t i = 0; i < n_readers; i++) {
    if (pthread_create(&thread[i], NULL, read_all, &reader[i]) != 0) return 1;
  }
  uint32_t stopped = 0;
  for (uint64_t number = 0; number < n_events && pair.flow.broken == 0 && !stopped;) {
    uint8_t payload[1024];
    uint32_t n = make_payload(payload, number);
    int status = core_publish(&pair, payload, n);
    if (status == NP_OK) {
      number++;
    } else {
      n_full++;
      for (uint32_t i = 0; i < n_readers; i++) stopped |= npi_load_acquire_u32(&reader[i].stopped);
      npi_flow_reap(&pair.flow); /* NP_EMPTY: slots come back with the returns */
      sched_yield();
    }
  }
  for (uint32_t i = 0; i < n_readers; i++) npi_store_release_u32(&reader[i].done, 1);
  for (uint32_t i = 0; i < n_readers; i++) pthread_join(thread[i], NULL);
  double seconds = (double)(npi_clock_monotonic() - begin) / 1e9;
  npi_flow_reap(&pair.flow);
  uint64_t n_seen = 0, n_wrong = 0;
  for (uint32_t i = 0; i < n_readers; i++) {
    const struct npi_ring_block *block = reader[i].end->submissions;
    uint64_t dropped = npi_load_relaxed_u64(&block->counter[NPI_SUBMISSION_DROPPED]);
    n_seen += reader[i].n_seen;
    n_wrong += reader[i].n_wrong;
    if (kind == NPI_CHANNEL_BROADCAST || i == SUBSCRIBERS) n_wrong += reader[i].n_seen + dropped != n_events;
    if (kind == NPI_CHANNEL_BROADCAST) n_wrong += reader[i].n_missed + (n_events - reader[i].next) != dropped;
  }
  for (uint64_t number = 0; number < n_events && kind == NPI_CHANNEL_GROUP; number++) {
    uint32_t times = 0;
    for (uint32_t i = 0; i < SUBSCRIBERS; i++) times += reader[i].seen[number];
    n_wrong += times != 1;
  }
  failed = n_wrong > 0 || pair.flow.broken > 0 || core_check(&pair) > 0 || core_slots(&pair).n_out > 0;
  printf("%-24s capacity %4u: %llu events in %.2f s, %.2f million/s, %llu deliveries, %llu times full, %llu wrong\n",
         name, capacity, (unsigned long long)n_events, seconds, (double)n_events / seconds / 1e6,
         (unsigned long long)n_seen, (unsigned long long)n_full, (unsigned long long)n_wrong);
  for (uint32_t i = 0; i < n_readers; i++) free(reader[i].seen);
  core_pair_close(&pair);
  return failed;
}

int main(int argc, char **argv) {
  uint64_t n = argc > 1 ? strtoull(argv[1], NULL, 10) : 600000;
  int failed = 0;
  failed |= run("broadcast that blocks", NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK, 16, n / 2);
  failed |= run("broadcast that blocks", NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK, 1024, n);
  failed |= run("broadcast that drops", NPI_CHANNEL_BROADCAST, NPI_ON_FULL_DROP_NEWEST, 64, n);
  failed |= run("group with a tap", NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK, 16, n / 2);
  failed |= run("group with a tap", NPI_CHANNEL_GROUP, NPI_ON_FULL_BLOCK, 256, n);
  if (failed) printf("failed\n");
  return failed;
}
