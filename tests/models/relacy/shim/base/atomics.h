/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stands in for lib/base/atomics.h where core/ is compiled for a model: the same functions, but loads, stores and
 * fences go to the model checker (model.h), which knows all values that each load may see. The files of core/ are
 * compiled as they are. A word that the model does not watch is plain memory.
 */
#ifndef NPI_BASE_ATOMICS_H
#define NPI_BASE_ATOMICS_H

#include <stdint.h>

enum model_order { MODEL_RELAXED, MODEL_ACQUIRE, MODEL_RELEASE };

struct npi_atomic_u64 {
  uint64_t value;
};
struct npi_atomic_u32 {
  uint32_t value;
};

uint64_t model_load(const struct npi_atomic_u64 *word, enum model_order order);
void model_store(struct npi_atomic_u64 *word, uint64_t value, enum model_order order);
void model_fence(void);

static inline uint64_t npi_load_acquire_u64(const struct npi_atomic_u64 *word) {
  return model_load(word, MODEL_ACQUIRE);
}
static inline uint64_t npi_load_relaxed_u64(const struct npi_atomic_u64 *word) {
  return model_load(word, MODEL_RELAXED);
}
static inline void npi_store_release_u64(struct npi_atomic_u64 *word, uint64_t value) {
  model_store(word, value, MODEL_RELEASE);
}
static inline void npi_store_relaxed_u64(struct npi_atomic_u64 *word, uint64_t value) {
  model_store(word, value, MODEL_RELAXED);
}

/* Half words: none of those that core/ uses takes part in a protocol between processes. */
static inline uint32_t npi_load_acquire_u32(const struct npi_atomic_u32 *word) {
  return word->value;
}
static inline uint32_t npi_load_relaxed_u32(const struct npi_atomic_u32 *word) {
  return word->value;
}
static inline void npi_store_release_u32(struct npi_atomic_u32 *word, uint32_t value) {
  word->value = value;
}
static inline void npi_store_relaxed_u32(struct npi_atomic_u32 *word, uint32_t value) {
  word->value = value;
}

static inline void npi_count_add(struct npi_atomic_u64 *counter, uint64_t n) {
  counter->value += n;
}
static inline void npi_fence_full(void) {
  model_fence();
}
static inline void npi_barrier_compiler(void) {
}
static inline void npi_prefetch(const void *address) {
  (void)address;
}
static inline void npi_prefetch_for_write(void *address) {
  (void)address;
}
static inline void npi_pause(void) {
}

#endif
