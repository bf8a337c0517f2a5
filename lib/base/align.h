/* SPDX-License-Identifier: Apache-2.0 */
/* Rounding, powers of two, and the assert that pins a shared-memory layout. */
#ifndef NPI_BASE_ALIGN_H
#define NPI_BASE_ALIGN_H

#include <stddef.h>
#include <stdint.h>

#define NPI_CACHE_LINE 64
#define NPI_PAGE       4096

#define NPI_LIKELY(condition)   __builtin_expect(!!(condition), 1)
#define NPI_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
/* For the few functions of the data path whose call would cost a tenth of what they do. */
#define NPI_INLINE             static inline __attribute__((always_inline))
#define NPI_ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* The offset of a field in shared memory is part of the layout version: pin it. */
#define NPI_ASSERT_OFFSET(type, field, offset) \
  _Static_assert(offsetof(type, field) == (offset), #type "." #field " moved: raise the layout version")
#define NPI_ASSERT_SIZE(type, bytes) \
  _Static_assert(sizeof(type) == (bytes), "size of " #type " changed: raise the layout version")

/* Rounds up to a multiple of step, a power of two. */
static inline uint64_t npi_round_up(uint64_t value, uint64_t step) {
  return (value + step - 1) & ~(step - 1);
}

static inline int npi_is_power_of_two(uint64_t value) {
  return value != 0 && (value & (value - 1)) == 0;
}

/* The smallest power of two that is not below value; value 1 to 2^63. */
static inline uint64_t npi_power_of_two_above(uint64_t value) {
  return value <= 1 ? 1 : UINT64_C(1) << (64 - __builtin_clzll(value - 1));
}

#endif
