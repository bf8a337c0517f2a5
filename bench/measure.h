/* SPDX-License-Identifier: Apache-2.0 */
/* What every benchmark needs: a clock, pinned processes, medians with their spread, and a description of the machine. */
#ifndef NUMAPOOL_BENCH_MEASURE_H
#define NUMAPOOL_BENCH_MEASURE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { BENCH_SAMPLES_MAX = 4096 };

/* The processor's time stamp, ordered after what was loaded before it; nanoseconds where there is none. */
static inline uint64_t bench_stamp(void) {
#if defined(__x86_64__)
  uint32_t low, high, core;
  __asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(core)::"memory");
  return (uint64_t)high << 32 | low;
#elif defined(__aarch64__)
  uint64_t now;
  __asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(now)::"memory");
  return now;
#else
#error "a time stamp for this processor is missing"
#endif
}

/* How many nanoseconds one tick of bench_stamp is; measured at the first call, which takes 20 ms. */
double bench_stamp_ns(void);
uint64_t bench_now_ns(void);

/* Ends the program with a message where that cannot be done: a benchmark on other cores is another benchmark. */
void bench_pin(int core);
_Noreturn void bench_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* How often the kernel took the processor away from the calling process. */
uint64_t bench_preemptions(void);

/* Shared by this process and its children. Never NULL. */
void *bench_shared_memory(size_t bytes);

struct bench_summary {
  unsigned n;
  double min, quarter, median, three_quarters, max;
};
/* Sorts the values. n may be 0: then all is 0. */
struct bench_summary bench_summarize(double *values, unsigned n);
/* Of n sorted or unsorted stamps' differences; sorts them. */
double bench_percentile(uint64_t *values, unsigned n, double percent);

/* Instructions of this process in user mode, where the machine can count them; < 0: it cannot. */
int bench_instructions_open(void);
uint64_t bench_instructions_read(int counter);

/* "cpu": ..., "kernel": ..., as members of a JSON object; and one line for people. */
void bench_machine_json(FILE *file);
void bench_machine_print(FILE *file);

#endif
