// SPDX-License-Identifier: Apache-2.0
// The bridge between a model in C and relacy, and the program around it:
//
//   model_NAME [--executions N] [--mutants N]     the model, then each mutant for at most N executions
//   model_NAME --mutant M [--executions N]        one mutant, with the history of its error
//
// Exit status 0: the model without mutant has no error, and every mutant has one.
#define RL_IMPROVED_SEQ_CST_FENCE
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#include <relacy/relacy.hpp>
#pragma GCC diagnostic pop

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>

#include "model.h"

extern "C" {
#include "shim/base/atomics.h"
int model_mutant;
int model_talks;
model_weakness model_weak;
uint64_t model_path[MODEL_PATHS];
}

namespace {

struct process {
  jmp_buf start;
  int operations_left;  // -1: lives
  rl::thread_info_base *self;
  bool owes_barrier;  // a membarrier came before its first operation
};

struct checked_words {
  rl::atomic<uint64_t> word[MODEL_WORDS];
  rl::atomic<uint64_t> event;
  rl::atomic<uint64_t> dead[MODEL_THREADS];
  rl::var<unsigned> payload[MODEL_PAYLOADS];
};

npi_atomic_u64 arena[MODEL_ARENA_WORDS];
unsigned arena_used, words_used;
int8_t word_of[MODEL_ARENA_WORDS];  // -1: not watched
uint8_t tag_of[MODEL_WORDS];
process processes[MODEL_THREADS];
checked_words *now;        // of the running execution
int running = -1;          // thread that executes; -1: before or after the threads
const char *last_failure;  // no string: relacy takes over operator new while it executes

// Each operation of a process passes here: the next one may be the one that it does not live to see.
void live_or_die() {
  if (running < 0) return;
  process &p = processes[rl::ctx().threadx_->index_];
  if (p.operations_left < 0 || p.operations_left-- > 0) return;
  longjmp(p.start, 1);
}

rl::atomic<uint64_t> *watched(const npi_atomic_u64 *word, unsigned *tag) {
  size_t at = size_t(word - arena);
  if (word < arena || at >= MODEL_ARENA_WORDS || word_of[at] < 0) return nullptr;
  *tag = tag_of[word_of[at]];
  return &now->word[word_of[at]];
}

struct suite : rl::test_suite<suite, MODEL_THREADS> {
  checked_words words;

  void before() {
    now = &words;
    running = -1;
    for (auto &w : words.word) w.store(0, rl::mo_relaxed, $);
    for (auto &d : words.dead) d.store(0, rl::mo_relaxed, $);
    words.event.store(0, rl::mo_relaxed, $);
    for (auto &p : words.payload) p($).store(0);
    for (auto &p : processes) p = {};
    for (auto &p : processes) p.operations_left = -1;
    model_weak = {};
    model.begin();
    running = 0;
  }
  void thread(unsigned number) {
    process &p = processes[number];
    p.self = rl::ctx().threadx_;
    if (p.owes_barrier) rl::atomic_thread_fence(rl::mo_seq_cst, $);
    if (_setjmp(p.start) == 0) {
      model.thread(number);
    } else {
      words.dead[number].store(1, rl::mo_seq_cst, $);
    }
  }
  void after() {
    running = -1;
    model.end();
  }
};

bool run(uint64_t executions, bool history, uint64_t *stopped) {
  std::ostringstream said;
  rl::test_params params;
  params.iteration_count = executions;
  params.output_stream = history ? static_cast<std::ostream *>(&std::cout) : &said;
  params.progress_stream = &said;
  params.progress_output_period = 1u << 30;
  params.output_history = !history;
  params.execution_depth_limit = 4000;
  last_failure = nullptr;
  bool ok = rl::simulate<suite>(params);
  *stopped = params.stop_iteration;
  if (!ok && last_failure == nullptr) last_failure = rl::test_result_str(params.test_result);
  return ok;
}

}  // namespace

extern "C" {

void model_watch(npi_atomic_u64 *word, model_tag tag) {
  if (words_used == MODEL_WORDS) abort();
  tag_of[words_used] = uint8_t(tag);
  word_of[word - arena] = int8_t(words_used++);
}

static npi_atomic_u64 *take(unsigned n) {
  if (arena_used + n > MODEL_ARENA_WORDS) abort();
  npi_atomic_u64 *first = &arena[arena_used];
  arena_used += n;
  return first;
}

// A ring block: eight counters, which nobody decides by, and the elements.
npi_ring_block *model_ring(unsigned capacity, model_tag tag) {
  npi_atomic_u64 *block = take(8 + capacity);
  for (unsigned i = 0; i < capacity; i++) model_watch(&block[8 + i], tag);
  return reinterpret_cast<npi_ring_block *>(block);
}

// A word on a cache line of its own.
npi_atomic_u64 *model_word(model_tag tag) {
  npi_atomic_u64 *word = take(8);
  model_watch(word, tag);
  return word;
}

uint64_t model_load(const npi_atomic_u64 *word, model_order order) {
  unsigned tag;
  rl::atomic<uint64_t> *w = watched(word, &tag);
  if (w == nullptr) return word->value;
  live_or_die();
  bool acquire = order == MODEL_ACQUIRE && !(model_weak.loads >> tag & 1);
  return w->load(acquire ? rl::mo_acquire : rl::mo_relaxed, $);
}

void model_store(npi_atomic_u64 *word, uint64_t value, model_order order) {
  unsigned tag;
  rl::atomic<uint64_t> *w = watched(word, &tag);
  if (w == nullptr) {
    word->value = value;
    return;
  }
  live_or_die();
  bool release = order == MODEL_RELEASE && !(model_weak.stores >> tag & 1);
  w->store(value, release ? rl::mo_release : rl::mo_relaxed, $);
}

void model_fence(void) {
  live_or_die();
  if (running >= 0 && model_weak.no_fence >> rl::ctx().threadx_->index_ & 1) return;
  rl::atomic_thread_fence(rl::mo_seq_cst, $);
}

void model_membarrier(unsigned threads) {
  live_or_die();
  if (model_weak.no_membarrier) return;
  rl::context &c = rl::ctx();
  rl::thread_info_base *self = c.threadx_;
  rl::atomic_thread_fence(rl::mo_seq_cst, $);
  c.disable_preemption();  // the barriers of all happen now
  for (unsigned i = 0; i < MODEL_THREADS; i++) {
    if (!(threads >> i & 1) || processes[i].self == self) continue;
    if (processes[i].self == nullptr) {
      processes[i].owes_barrier = true;
      continue;
    }
    c.threadx_ = processes[i].self;
    rl::atomic_thread_fence(rl::mo_seq_cst, $);
    c.threadx_ = self;
    rl::atomic_thread_fence(rl::mo_seq_cst, $);
  }
  c.enable_preemption();
}

void model_write(unsigned payload, unsigned value) {
  live_or_die();
  now->payload[payload]($).store(value);
}
unsigned model_read(unsigned payload) {
  live_or_die();
  return now->payload[payload]($).load();
}

unsigned model_random(unsigned n) {
  return rl::ctx().rand(n, rl::sched_type_user);
}
void model_yield(void) {
  if (running >= 0) rl::ctx().yield(1, $);
}
void model_kill(unsigned thread, unsigned n) {
  processes[thread].operations_left = int(model_random(n));
}
int model_is_dead(unsigned thread) {
  live_or_die();
  return now->dead[thread].load(rl::mo_seq_cst, $) != 0;
}

void model_event_ring(void) {
  live_or_die();
  now->event.fetch_add(1, rl::mo_seq_cst, $);
}
int model_event_take(void) {
  live_or_die();
  return now->event.exchange(0, rl::mo_seq_cst, $) != 0;
}
unsigned model_event_value(void) {
  return unsigned(now->event.load(rl::mo_seq_cst, $));
}

void model_fail(const char *what) {
  last_failure = what;
  rl::ctx().fail_test(what, rl::test_result_user_assert_failed, $);
  abort();
}

}  // extern "C"

int main(int argc, char **argv) {
  uint64_t executions = 500000, mutant_executions = 500000;
  int only = -1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--executions") == 0) {
      executions = strtoull(argv[i + 1], nullptr, 10);
    } else if (strcmp(argv[i], "--mutants") == 0) {
      mutant_executions = strtoull(argv[i + 1], nullptr, 10);
    } else if (strcmp(argv[i], "--mutant") == 0) {
      only = atoi(argv[i + 1]);
    } else {
      fprintf(stderr, "usage: %s [--executions N] [--mutants N] [--mutant M]\n", argv[0]);
      return 2;
    }
  }
  setvbuf(stdout, nullptr, _IOLBF, 0);
  memset(word_of, -1, sizeof word_of);
  model.set_up();
  uint64_t stopped;
  if (only >= 0) {
    model_mutant = only;
    model_talks = 1;
    bool ok = run(executions, true, &stopped);
    printf("mutant %d: %s after %llu executions\n", only, ok ? "no error" : last_failure,
           static_cast<unsigned long long>(stopped));
    return ok ? 0 : 1;
  }
  int status = 0;
  bool ok = run(executions, false, &stopped);
  printf("model %s: %llu executions, %s\n", model.name, static_cast<unsigned long long>(stopped),
         ok ? "no error" : last_failure);
  if (!ok) status = 1;
  for (unsigned i = 0; model_paths[i] != nullptr; i++) {
    printf("  %-58s %12llu\n", model_paths[i], static_cast<unsigned long long>(model_path[i]));
    if (model_path[i] < 100) {
      printf("  ^ too rare: the model does not try this\n");
      status = 1;
    }
  }
  unsigned caught = 0, n = 0;
  for (; model.mutants[n] != nullptr; n++) {
    model_mutant = int(n + 1);
    bool blind = run(mutant_executions, false, &stopped);
    printf("  mutant %2u %-48s %s", model_mutant, model.mutants[n], blind ? "NOT CAUGHT\n" : "");
    if (!blind) printf("caught at %llu: %s\n", static_cast<unsigned long long>(stopped), last_failure);
    if (blind) status = 1;
    caught += !blind;
  }
  printf("model %s: %u of %u mutants caught\n", model.name, caught, n);
  return status;
}
