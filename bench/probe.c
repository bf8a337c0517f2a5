/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/probe.h"

#include "bench/measure.h"

void bench_job_start(struct bench_pair *pair, uint32_t kind, uint64_t argument) {
  uint64_t number = (npi_load_relaxed_u64(&pair->job) >> 32) + 1;
  pair->argument = argument;
  npi_store_release_u64(&pair->job, number << 32 | kind);
}

uint64_t bench_job_finish(struct bench_pair *pair) {
  uint64_t number = npi_load_relaxed_u64(&pair->job) >> 32;
  while (npi_load_acquire_u64(&pair->done) != number) npi_pause();
  return pair->result;
}

uint32_t bench_job_wait(struct bench_pair *pair) {
  uint64_t last = npi_load_relaxed_u64(&pair->done);
  uint64_t job;
  while ((job = npi_load_acquire_u64(&pair->job)) >> 32 == last) npi_pause();
  return (uint32_t)job;
}

void bench_job_done(struct bench_pair *pair, uint64_t result) {
  pair->result = result;
  pair->preemptions = bench_preemptions();
  npi_store_release_u64(&pair->done, npi_load_relaxed_u64(&pair->job) >> 32);
}

struct bench_probe bench_probe(struct bench_pair *pair, uint32_t kind) {
  static uint64_t took[PROBE_ROUND_TRIPS];
  npi_store_relaxed_u64(&pair->ping, 0);
  npi_store_relaxed_u64(&pair->pong, 0);
  bench_job_start(pair, kind, PROBE_ROUND_TRIPS);
  for (uint64_t i = 0; i < PROBE_ROUND_TRIPS; i++) {
    uint64_t from = bench_stamp();
    npi_store_release_u64(&pair->ping, i + 1);
    while (npi_load_acquire_u64(&pair->pong) != i + 1) {
    }
    took[i] = bench_stamp() - from;
  }
  bench_job_finish(pair);
  double p50 = bench_percentile(took, PROBE_ROUND_TRIPS, 50);
  return (struct bench_probe){p50, bench_percentile(took, PROBE_ROUND_TRIPS, 99)};
}

void bench_probe_answer(struct bench_pair *pair) {
  uint64_t n = pair->argument;
  for (uint64_t i = 1; i <= n; i++) {
    while (npi_load_acquire_u64(&pair->ping) != i) {
    }
    npi_store_release_u64(&pair->pong, i);
  }
}
