/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model: processes as threads of a model checker (relacy), which runs them in random interleavings and lets each
 * load see any value that C11 allows. What runs is the code of core/, compiled with shim/base/atomics.h.
 *
 * One process may be killed: model_kill() lets it stop before an operation chosen at random, for good. Each model
 * has mutants, slips that somebody could make; a run with one of them must find an error, or the model is blind.
 */
#ifndef NUMAPOOL_TESTS_MODEL_H
#define NUMAPOOL_TESTS_MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct npi_atomic_u64;
struct npi_ring_block;

enum { MODEL_THREADS_MAX = 4, MODEL_WORDS = 28, MODEL_PAYLOADS = 4, MODEL_ARENA_WORDS = 256 };

/* What a watched word is; for mutants that weaken the order of one kind of access. */
enum model_tag { MODEL_SUBMISSIONS, MODEL_RETURNS, MODEL_BELL, MODEL_RECORD, MODEL_MAIL, MODEL_TAGS };

struct model {
  const char *name;
  const char *const *mutants; /* what is wrong in mutant 1, 2, ...; ends with NULL */
  unsigned threads;
  void (*set_up)(void); /* once: watches its words */
  void (*begin)(void);  /* before each execution */
  void (*thread)(unsigned number);
  void (*end)(void); /* after each execution, alone */
};
extern const struct model model;

/* The mutant of this run, 0: none; and the ways to weaken the shim, cleared before begin(). */
extern int model_mutant;
extern int model_talks; /* findings are to be printed */
struct model_weakness {
  unsigned stores;   /* bit of a tag: release becomes relaxed */
  unsigned loads;    /* acquire becomes relaxed */
  unsigned no_fence; /* bit of a thread: npi_fence_full does nothing */
  int no_membarrier;
};
extern struct model_weakness model_weak;

/* ---- for the processes ---- */

/* Makes word number i of the arena one that the checker watches. In set_up. */
void model_watch(struct npi_atomic_u64 *word, enum model_tag tag);
struct npi_ring_block *model_ring(unsigned capacity, enum model_tag tag);
struct npi_atomic_u64 *model_word(enum model_tag tag);

/* Memory that is no atomic: a payload. Two accesses, one a write, that nothing orders are an error. */
void model_write(unsigned payload, unsigned value);
unsigned model_read(unsigned payload);

unsigned model_random(unsigned n); /* 0 .. n-1 */
void model_yield(void);
/* This thread will be killed before one of its next n operations. In begin. */
void model_kill(unsigned thread, unsigned n);
int model_is_dead(unsigned thread); /* what a pidfd says; its stores are all there */

/* An eventfd: a count that system calls change. */
void model_event_ring(void);
int model_event_take(void);
unsigned model_event_value(void);

/* The expedited membarrier: a full barrier in this thread and in those of the mask. */
void model_membarrier(unsigned threads);

void model_fail(const char *what) __attribute__((noreturn));
#define MODEL_ASSERT(condition)               \
  do {                                        \
    if (!(condition)) model_fail(#condition); \
  } while (0)

/* How often a path was taken; printed, and a run of the model without mutant must have taken each. */
enum { MODEL_PATHS = 8 };
extern uint64_t model_path[MODEL_PATHS];
extern const char *const model_paths[];

#ifdef __cplusplus
}
#endif
#endif
