/* SPDX-License-Identifier: Apache-2.0 */
/* The 64 bytes of an event, written and read completely by whoever measures, in the same way everywhere. */
#ifndef NUMAPOOL_BENCH_PAYLOAD_H
#define NUMAPOOL_BENCH_PAYLOAD_H

#include <stdint.h>

enum { BENCH_PAYLOAD_BYTES = 64 };

static inline void bench_payload_write(void *data, uint64_t number) {
  volatile uint64_t *word = data;
#pragma GCC unroll 8
  for (unsigned i = 0; i < BENCH_PAYLOAD_BYTES / 8; i++) word[i] = number + i;
}

static inline uint64_t bench_payload_read(const void *data) {
  const volatile uint64_t *word = data;
  uint64_t sum = 0;
#pragma GCC unroll 8
  for (unsigned i = 0; i < BENCH_PAYLOAD_BYTES / 8; i++) sum += word[i];
  return sum;
}

/* What reading the events first .. first + n - 1 adds up to: proof that each was read, and was whole. */
static inline uint64_t bench_payload_sum(uint64_t first, uint64_t n) {
  uint64_t words = BENCH_PAYLOAD_BYTES / 8;
  uint64_t numbers = n * first + n * (n - 1) / 2;
  return words * numbers + n * (words * (words - 1) / 2);
}

#endif
