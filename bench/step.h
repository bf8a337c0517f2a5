/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact counts by single steps: a child process runs to a mark, then its parent steps it instruction by
 * instruction to a second mark and looks at the bytes of each. Works on every x86-64 machine, also where
 * no performance counter is to be had.
 */
#ifndef NUMAPOOL_BENCH_STEP_H
#define NUMAPOOL_BENCH_STEP_H

#include <stdint.h>

struct step_counts {
  uint64_t instructions;
  uint64_t locked;    /* with a lock prefix */
  uint64_t exchanges; /* xchg with memory, which locks without a prefix */
  uint64_t fences;    /* mfence */
  uint64_t system_calls;
};

/*
 * Runs prepare, then counts what work does, both in a child on this core. trace: NULL, or a file that gets
 * the address of each instruction, one a line. Returns 0, or < 0 where the machine does not allow it.
 */
int bench_step(void (*prepare)(void *context), void (*work)(void *context), void *context, const char *trace,
               struct step_counts *counts);

#endif
