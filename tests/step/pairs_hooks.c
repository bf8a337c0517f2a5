/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The functions that a compiler calls for ThreadSanitizer, of which only one thing is wanted: to be here before each
 * access. Programs whose library is not compiled so never come by.
 */
#include "step/pairs_hooks.h"

#include <stdint.h>

static void (*look)(const void *address, int is_store);

void pairs_hook(void (*hook)(const void *address, int is_store)) {
  look = hook;
}

static inline void access_to(const void *address, int is_store) {
  if (look != 0) look(address, is_store);
}

void __tsan_init(void);
void __tsan_func_entry(void *caller);
void __tsan_func_exit(void);
void __tsan_atomic_thread_fence(int order);
void __tsan_atomic_signal_fence(int order);
void __tsan_init(void) {
}
void __tsan_func_entry(void *caller) {
  (void)caller;
}
void __tsan_func_exit(void) {
}
void __tsan_atomic_thread_fence(int order) {
  (void)order;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int order) {
  (void)order;
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

#define PLAIN(name, is_store)      \
  void name(const void *address);  \
  void name(const void *address) { \
    access_to(address, is_store);  \
  }
PLAIN(__tsan_read1, 0)
PLAIN(__tsan_read2, 0)
PLAIN(__tsan_read4, 0)
PLAIN(__tsan_read8, 0)
PLAIN(__tsan_read16, 0)
PLAIN(__tsan_write1, 1)
PLAIN(__tsan_write2, 1)
PLAIN(__tsan_write4, 1)
PLAIN(__tsan_write8, 1)
PLAIN(__tsan_write16, 1)
PLAIN(__tsan_unaligned_read2, 0)
PLAIN(__tsan_unaligned_read4, 0)
PLAIN(__tsan_unaligned_read8, 0)
PLAIN(__tsan_unaligned_read16, 0)
PLAIN(__tsan_unaligned_write2, 1)
PLAIN(__tsan_unaligned_write4, 1)
PLAIN(__tsan_unaligned_write8, 1)
PLAIN(__tsan_unaligned_write16, 1)

#define RANGE(name, is_store)                           \
  void name(const void *address, unsigned long bytes);  \
  void name(const void *address, unsigned long bytes) { \
    (void)bytes;                                        \
    access_to(address, is_store);                       \
  }
RANGE(__tsan_read_range, 0)
RANGE(__tsan_write_range, 1)

/* The memory order is that of the machine: one process runs at a time. */
#define ATOMIC(bits)                                                                                         \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *word, int order);                 \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t *word, uint##bits##_t value, int order);          \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile uint##bits##_t *word, uint##bits##_t *expected, \
                                                    uint##bits##_t value, int order, int failed);            \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *word, int order) {                \
    (void)order;                                                                                             \
    access_to((const void *)(uintptr_t)word, 0);                                                             \
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);                                                          \
  }                                                                                                          \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t *word, uint##bits##_t value, int order) {         \
    (void)order;                                                                                             \
    access_to((const void *)(uintptr_t)word, 1);                                                             \
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);                                                         \
  }                                                                                                          \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile uint##bits##_t *word, uint##bits##_t *expected, \
                                                    uint##bits##_t value, int order, int failed) {           \
    (void)order;                                                                                             \
    (void)failed;                                                                                            \
    access_to((const void *)(uintptr_t)word, 1);                                                             \
    return __atomic_compare_exchange_n(word, expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);        \
  }
ATOMIC(8)
ATOMIC(16)
ATOMIC(32)
ATOMIC(64)

/* clang's form of a compare and exchange. */
uint32_t __tsan_atomic32_compare_exchange_val(volatile uint32_t *word, uint32_t expected, uint32_t value, int order,
                                              int failed);
uint32_t __tsan_atomic32_compare_exchange_val(volatile uint32_t *word, uint32_t expected, uint32_t value, int order,
                                              int failed) {
  __tsan_atomic32_compare_exchange_strong(word, &expected, value, order, failed);
  return expected;
}
