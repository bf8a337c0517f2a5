/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the library meets what is not there: the linker leads its calls of these functions here (--wrap).
 * None of it is stepped: what happens between two instructions of a client is the broker's or the kernel's.
 */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "step/stepper.h"
#include "step/world.h"

enum { CLASS_RUNS_LEAST = 3 }; /* then it waits until the others have had their share */

int step_is_traced;
int step_is_wanted;
static int is_stepped; /* the operation that runs */

static void trap(void) {
#if defined(__x86_64__) || defined(__i386__)
  __asm__ volatile("int3" ::: "memory");
#else
  raise(SIGTRAP);
#endif
}

void step_on(void) {
  if (!step_is_traced || !is_stepped) return;
  shared->is_stepping = 1;
  trap(); /* the tracer steps from here */
}

void step_off(void) {
  if (!step_is_traced) return;
  shared->is_stepping = 0; /* seen by the tracer after this instruction */
}

void step_begin_operation(uint32_t kind, uint32_t weight) {
  is_stepped = 0;
  if (!step_is_traced || !step_is_wanted) return;
  uint64_t all = 0, classes = 0;
  for (uint32_t i = 0; i < NPI_ARRAY_COUNT(shared->class_points); i++) {
    all += shared->class_points[i];
    classes += shared->class_points[i] > 0;
  }
  is_stepped = shared->class_runs[kind] < CLASS_RUNS_LEAST || shared->class_points[kind] * classes <= all * weight;
  shared->operation_class = kind;
  step_on();
}

/* A function that is not stepped, called from code that may be: BEGIN ... END. */
#define BEGIN                                                           \
  int npi_was_stepping = step_is_traced ? (int)shared->is_stepping : 0; \
  if (npi_was_stepping) step_off()
#define END \
  if (npi_was_stepping) step_on()

/* ---- memory ------------------------------------------------------------------------------------------- */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void __real_free(void *memory);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void __wrap_free(void *memory);
void *__wrap_npi_endpoint_alloc(void);
void *__wrap_npi_endpoint_free(void *endpoint);

struct block {
  uint64_t lines;
  uint8_t rest[NPI_CACHE_LINE - 8];
};

static struct block *block_of(void *memory) {
  return (struct block *)memory - 1;
}

static int is_ours(const void *memory, uint32_t *owner) {
  for (uint32_t i = 0; i < world->n_actors; i++) {
    const uint8_t *heap = step_actor(i)->heap.memory;
    if ((const uint8_t *)memory < heap || (const uint8_t *)memory >= heap + STEP_HEAP_BYTES) continue;
    *owner = i;
    return 1;
  }
  return 0;
}

static void *take(size_t bytes) {
  struct step_heap *heap = &step_actor((uint32_t)step_running)->heap;
  uint32_t lines = (uint32_t)((bytes + NPI_CACHE_LINE - 1) / NPI_CACHE_LINE) + (bytes == 0);
  struct block *block;
  if (lines < NPI_ARRAY_COUNT(heap->free) && heap->free[lines] != 0) {
    block = (void *)(heap->memory + heap->free[lines]);
    memcpy(&heap->free[lines], block + 1, sizeof(uint32_t));
  } else {
    uint32_t need = (lines + 1) * NPI_CACHE_LINE;
    if (need > STEP_HEAP_BYTES - heap->top) {
      step_violation("the heap of client %d is used up: does something leak?", step_running);
      return NULL;
    }
    block = (void *)(heap->memory + heap->top);
    heap->top += need;
  }
  block->lines = lines;
  return block + 1;
}

static void give(uint32_t owner, void *memory) {
  struct step_heap *heap = &step_actor(owner)->heap;
  struct block *block = block_of(memory);
  if (step_running != (int)owner) step_violation("client %d frees memory of client %u", step_running, owner);
  if (block->lines >= NPI_ARRAY_COUNT(heap->free)) return;
  memcpy(memory, &heap->free[block->lines], sizeof(uint32_t));
  heap->free[block->lines] = (uint32_t)((uint8_t *)block - heap->memory);
}

void *__wrap_malloc(size_t bytes) {
  if (step_running < 0) return __real_malloc(bytes);
  BEGIN;
  void *memory = take(bytes);
  if (memory != NULL) memset(memory, 0xa5, bytes);
  END;
  return memory;
}

void *__wrap_calloc(size_t n, size_t bytes) {
  if (step_running < 0) return __real_calloc(n, bytes);
  BEGIN;
  void *memory = take(n * bytes);
  if (memory != NULL) memset(memory, 0, n * bytes);
  END;
  return memory;
}

void __wrap_free(void *memory) {
  uint32_t owner;
  if (memory == NULL) return;
  if (world == NULL) {
    __real_free(memory);
    return;
  }
  BEGIN;
  if (is_ours(memory, &owner)) {
    give(owner, memory);
  } else {
    __real_free(memory);
  }
  END;
}

void *__wrap_realloc(void *memory, size_t bytes) {
  uint32_t owner;
  if (step_running < 0) return __real_realloc(memory, bytes);
  BEGIN;
  void *moved = take(bytes);
  if (moved != NULL && memory != NULL && is_ours(memory, &owner)) {
    size_t old = block_of(memory)->lines * NPI_CACHE_LINE;
    memcpy(moved, memory, old < bytes ? old : bytes);
    give(owner, memory);
  }
  END;
  return moved;
}

/* Pages of their own, which a child does not inherit, would be lost to the process that looks at a dead one's world. */
void *__wrap_npi_endpoint_alloc(void) {
  size_t publisher = sizeof(struct np_publisher), subscriber = sizeof(struct np_subscriber);
  return __wrap_calloc(1, publisher > subscriber ? publisher : subscriber);
}

void *__wrap_npi_endpoint_free(void *endpoint) {
  __wrap_free(endpoint);
  return NULL;
}

/* ---- words for people, clock, kernel -------------------------------------------------------------------- */

int __wrap_snprintf(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
int __wrap_vsnprintf(char *text, size_t size, const char *format, va_list arguments)
    __attribute__((format(printf, 3, 0)));
int __real_vsnprintf(char *text, size_t size, const char *format, va_list arguments)
    __attribute__((format(printf, 3, 0)));
uint64_t __wrap_npi_clock_monotonic(void);
int __wrap_npi_membarrier_all(void);
int __wrap_npi_event_ring(int fd);
int __wrap_npi_event_clear(int fd);
void *__wrap_memcpy(void *to, const void *from, size_t bytes);
void *__real_memcpy(void *to, const void *from, size_t bytes);

int __wrap_vsnprintf(char *text, size_t size, const char *format, va_list arguments) {
  BEGIN;
  int n = __real_vsnprintf(text, size, format, arguments);
  END;
  return n;
}

int __wrap_snprintf(char *text, size_t size, const char *format, ...) {
  va_list arguments;
  BEGIN;
  va_start(arguments, format);
  int n = __real_vsnprintf(text, size, format, arguments);
  va_end(arguments);
  END;
  return n;
}

uint64_t __wrap_npi_clock_monotonic(void) {
  return world->clock_ns += 1000000;
}

int __wrap_npi_membarrier_all(void) {
  return 0;
}

int __wrap_npi_event_ring(int fd) {
  if (fd >= 0 && fd < STEP_ACTORS) {
    step_actor((uint32_t)fd)->n_rung++;
  } else if (fd >= STEP_ACTORS && fd < 2 * STEP_ACTORS) {
    step_actor((uint32_t)fd - STEP_ACTORS)->n_rung_credits++;
  } else {
    step_violation("somebody rings descriptor %d", fd);
  }
  return 0;
}

int __wrap_npi_event_clear(int fd) {
  struct step_actor *actor = fd < STEP_ACTORS ? step_actor((uint32_t)fd) : step_actor((uint32_t)fd - STEP_ACTORS);
  if (fd < STEP_ACTORS) {
    actor->cleared = actor->n_rung;
  } else {
    actor->cleared_credits = actor->n_rung_credits;
  }
  return 1;
}

/* A long copy is one instruction to the processor and one step for each byte to a tracer. */
void *__wrap_memcpy(void *to, const void *from, size_t bytes) {
  BEGIN;
  __real_memcpy(to, from, bytes);
  END;
  return to;
}

/* ---- the broker ------------------------------------------------------------------------------------------ */

int __wrap_npi_client_tell(struct np_client *client, struct npi_control_frame *frame);
int __wrap_npi_client_request(struct np_client *client, struct npi_control_frame *frame,
                              struct npi_control_frame *reply, int64_t timeout_ms);
void __wrap_npi_client_news(struct np_client *client);
void __wrap_npi_link_adopt_deferred(struct np_client *client);
void __real_npi_link_adopt_deferred(struct np_client *client);

static uint32_t actor_of(const struct np_client *client) {
  return client->index;
}

int __wrap_npi_client_tell(struct np_client *client, struct npi_control_frame *frame) {
  BEGIN;
  broker_hears(actor_of(client), frame);
  END;
  return 0;
}

static int next_frame(struct np_client *client, struct npi_control_frame *frame) {
  BEGIN;
  int more = broker_next_frame(actor_of(client), frame);
  END;
  return more;
}

static void note_made(const struct np_client *client) {
  BEGIN;
  broker_note_made(actor_of(client));
  END;
}

void __wrap_npi_client_news(struct np_client *client) {
  struct npi_control_frame frame;
  while (next_frame(client, &frame)) {
    client->events_seen++;
    npi_client_event(client, &frame, NULL, 0);
    note_made(client);
  }
}

static void answer(struct np_client *client, const struct npi_control_frame *frame, struct npi_control_frame *reply) {
  BEGIN;
  broker_answers(actor_of(client), frame, reply);
  END;
}

int __wrap_npi_client_request(struct np_client *client, struct npi_control_frame *frame,
                              struct npi_control_frame *reply, int64_t timeout_ms) {
  (void)timeout_ms;
  client->request++;
  client->control_calls++;
  answer(client, frame, reply);
  __wrap_npi_client_news(client); /* what was sent before the answer is read before it */
  return reply->head.status < 0 ? NP_ERR_LIMIT : 0;
}

void __wrap_npi_link_adopt_deferred(struct np_client *client) {
  __real_npi_link_adopt_deferred(client);
  note_made(client);
}
