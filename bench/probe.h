/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe: how far apart are the two cores right now? Two cache lines, each written by one side, bounce
 * between them; the median round trip is the floor of any round trip, and on a virtual machine it changes
 * whenever the host moves a core. So each measurement stands between two probes, and counts only where
 * they agree.
 *
 * Also the harness of the two sides: the partner process waits for a job on its core, does it, and says so.
 */
#ifndef NUMAPOOL_BENCH_PROBE_H
#define NUMAPOOL_BENCH_PROBE_H

#include "base/atomics.h"

enum { PROBE_ROUND_TRIPS = 12000 };

struct bench_pair {
  _Alignas(64) struct npi_atomic_u64 ping; /* one line for each word */
  _Alignas(64) struct npi_atomic_u64 pong;
  _Alignas(64) struct npi_atomic_u64 job; /* number of the job in the upper, its kind in the lower half */
  uint64_t argument;
  _Alignas(64) struct npi_atomic_u64 done; /* number of the last job done */
  uint64_t result;
  uint64_t preemptions;
};

/* The caller's side. Start does not wait; finish returns the partner's result. */
void bench_job_start(struct bench_pair *pair, uint32_t kind, uint64_t argument);
uint64_t bench_job_finish(struct bench_pair *pair);

/* The partner's side: the next job's kind, when there is one; and its end. */
uint32_t bench_job_wait(struct bench_pair *pair);
void bench_job_done(struct bench_pair *pair, uint64_t result);

/* Round trips in ns. The partner has to answer with bench_probe_answer in the job of this kind. */
struct bench_probe {
  double p50, p99;
};
struct bench_probe bench_probe(struct bench_pair *pair, uint32_t kind);
void bench_probe_answer(struct bench_pair *pair);

#endif
