/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The few atomic operations that numapool uses, with the order in the name. The only file that knows
 * <stdatomic.h>, so that a reader sees the whole range of orders in use: there is no read-modify-write.
 *
 * Shared memory is declared with plain fixed-width integers inside npi_atomic_* wrappers: a plain
 * dereference does not compile, every access goes through one of these functions.
 */
#ifndef NPI_BASE_ATOMICS_H
#define NPI_BASE_ATOMICS_H

#include <stdatomic.h>
#include <stdint.h>

struct npi_atomic_u64 {
  _Atomic uint64_t value;
};
struct npi_atomic_u32 {
  _Atomic uint32_t value;
};

_Static_assert(sizeof(struct npi_atomic_u64) == 8, "an atomic word is only its value");
_Static_assert(sizeof(struct npi_atomic_u32) == 4, "an atomic word is only its value");

static inline uint64_t npi_load_acquire_u64(const struct npi_atomic_u64 *word) {
  return atomic_load_explicit(&word->value, memory_order_acquire);
}
static inline uint64_t npi_load_relaxed_u64(const struct npi_atomic_u64 *word) {
  return atomic_load_explicit(&word->value, memory_order_relaxed);
}
static inline void npi_store_release_u64(struct npi_atomic_u64 *word, uint64_t value) {
  atomic_store_explicit(&word->value, value, memory_order_release);
}
static inline void npi_store_relaxed_u64(struct npi_atomic_u64 *word, uint64_t value) {
  atomic_store_explicit(&word->value, value, memory_order_relaxed);
}
static inline uint32_t npi_load_acquire_u32(const struct npi_atomic_u32 *word) {
  return atomic_load_explicit(&word->value, memory_order_acquire);
}
static inline uint32_t npi_load_relaxed_u32(const struct npi_atomic_u32 *word) {
  return atomic_load_explicit(&word->value, memory_order_relaxed);
}
static inline void npi_store_release_u32(struct npi_atomic_u32 *word, uint32_t value) {
  atomic_store_explicit(&word->value, value, memory_order_release);
}
static inline void npi_store_relaxed_u32(struct npi_atomic_u32 *word, uint32_t value) {
  atomic_store_explicit(&word->value, value, memory_order_relaxed);
}

/*
 * A counter that only the caller writes: plain load, add, store; never a locked instruction. On x86-64 these
 * three are one instruction, which compilers do not find for an atomic word.
 */
static inline void npi_count_add(struct npi_atomic_u64 *counter, uint64_t n) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
  __asm__("addq %1, %0" : "+m"(counter->value) : "er"(n) : "cc");
#else
  atomic_store_explicit(&counter->value, atomic_load_explicit(&counter->value, memory_order_relaxed) + n,
                        memory_order_relaxed);
#endif
}

/* Full fence. Only the sleep protocol needs it (core/doorbell.c), never the data path. */
static inline void npi_fence_full(void) {
  atomic_thread_fence(memory_order_seq_cst);
}

/* Keeps the compiler, not the processor, from moving accesses across. */
static inline void npi_barrier_compiler(void) {
  atomic_signal_fence(memory_order_seq_cst);
}

/* Asks for a cache line ahead of a load, or of a store; never a fault, whatever the address. */
static inline void npi_prefetch(const void *address) {
  __builtin_prefetch(address, 0);
}
static inline void npi_prefetch_for_write(void *address) {
#if defined(__x86_64__)
  __asm__ volatile("prefetchw %0" : : "m"(*(char *)address)); /* compilers use it only where told of the processor */
#else
  __builtin_prefetch(address, 1);
#endif
}

/* One turn of a spin loop: lets the other hyper-thread run and leaves the loop cheaply. */
static inline void npi_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");
#else
  npi_barrier_compiler();
#endif
}

#endif
