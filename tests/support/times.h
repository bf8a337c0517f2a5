/* SPDX-License-Identifier: Apache-2.0 */
/* Measured times in order: of n of them, number n / 2 is the median, number n * 99 / 100 the 99th percentile. */
#ifndef NUMAPOOL_TESTS_TIMES_H
#define NUMAPOOL_TESTS_TIMES_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

static inline int times_order(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static inline void times_sort(uint64_t *times, size_t n) {
  qsort(times, n, sizeof *times, times_order);
}

#endif
