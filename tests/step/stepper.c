/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tracer. A child runs random operations; where one is to be stepped it traps, and from there on stops after
 * every instruction. Each stop is a point: what changes is copied, the process that runs the operation counts
 * as dead, the others are run to the end on the spot, everything is counted, and the copy is put back.
 */
#include "step/stepper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { AREAS_MAX = 512, SAVED_MAX = 1 << 20, OPERATIONS_STEPPED = 12, OPERATIONS_BEFORE = 160 };

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= UINT64_C(0xbf58476d1ce4e5b9);
  x ^= x >> 27;
  x *= UINT64_C(0x94d049bb133111eb);
  return x ^ x >> 31;
}

/* ---- the stepped process ----------------------------------------------------------------------------------- */

static void one_operation(uint64_t *random, int is_wanted, void (*operation)(uint64_t *)) {
  step_is_wanted = is_wanted;
  shared->operation_points = 0;
  operation(random);
  step_is_wanted = 0;
  if (shared->operation_points > 0) {
    shared->path_runs[shared->path]++;
    shared->path_points[shared->path] += shared->operation_points;
    shared->class_runs[shared->operation_class]++;
    shared->class_points[shared->operation_class] += shared->operation_points;
  }
  if (shared->n_violations > 0) _exit(1);
}

static void one_world(uint64_t seed, uint32_t is_quick) {
  struct step_options options;
  uint64_t random = mix(seed) | 1;
  step_random_options(&options, seed);
  step_world_begin(&options);
  step_open_all(&random);
  uint32_t before = step_below(&random, step_below(&random, 3) == 0 ? 16 : OPERATIONS_BEFORE);
  /* Shortly before positions wrap, operations shortly before and after are the ones to look at. */
  if (options.near_wrap) before += 2 * OPERATIONS_BEFORE;
  for (uint32_t i = 0; i < before; i++) one_operation(&random, 0, step_random_operation);
  if (step_below(&random, 2) == 0 && step_make_scarce(&random)) one_operation(&random, 1, step_offer);
  for (uint32_t i = 0; i < OPERATIONS_STEPPED && !shared->stop; i++)
    one_operation(&random, !is_quick || step_below(&random, 4) == 0, step_random_operation);
  wind_up(seed);
  if (shared->n_violations > 0) _exit(1);
  shared->worlds++;
}

static void stepped_process(uint64_t seed, uint32_t is_quick) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  ptrace(PTRACE_TRACEME, 0, NULL, NULL);
  raise(SIGSTOP);
  step_is_traced = 1;
  for (uint64_t i = 0; !shared->stop; i++) {
    shared->world_seed = mix(seed + i);
    one_world(shared->world_seed, is_quick);
  }
  _exit(0);
}

/* ---- points --------------------------------------------------------------------------------------------------- */

struct image {
  char magic[16];
  uint64_t recovery_seed;
  uint64_t n_areas;
  struct step_area areas[AREAS_MAX];
};

static struct image image = {.magic = "numapool step 1"};
static uint8_t saved[SAVED_MAX];

static int save(void) {
  uint64_t at = 0;
  image.n_areas = step_areas(image.areas, AREAS_MAX);
  for (uint64_t i = 0; i < image.n_areas; i++) {
    if (at + image.areas[i].bytes > SAVED_MAX || image.n_areas == AREAS_MAX) {
      step_violation("the copy of a world is too small");
      return 0;
    }
    memcpy(saved + at, image.areas[i].address, image.areas[i].bytes);
    at += image.areas[i].bytes;
  }
  return 1;
}

static void restore(void) {
  const uint8_t *from = saved;
  for (uint64_t i = 0; i < image.n_areas; i++) {
    memcpy(image.areas[i].address, from, image.areas[i].bytes);
    from += image.areas[i].bytes;
  }
}

static void write_image(const char *path) {
  uint64_t bytes = 0;
  for (uint64_t i = 0; i < image.n_areas; i++) bytes += image.areas[i].bytes;
  FILE *file = fopen(path, "wb");
  if (file == NULL) return;
  int failed = fwrite(&image, sizeof image, 1, file) != 1 || fwrite(saved, bytes, 1, file) != 1;
  if (fclose(file) != 0 || failed) remove(path);
}

static void point(struct step_result *result, uint64_t number) {
  if (!save()) return;
  image.recovery_seed = mix(shared->world_seed + shared->operations * 100003 + number);
  step_running = -1;
  recover(image.recovery_seed, &result->outcomes);
  result->wrap_points += world->options.near_wrap != 0;
  restore();
  result->points++;
}

int step_replay(const char *path) {
  struct step_outcomes outcomes = {0};
  FILE *file = fopen(path, "rb");
  if (file == NULL || step_arena_open() != 0 || fread(&image, sizeof image, 1, file) != 1 ||
      memcmp(image.magic, "numapool step 1", 16) != 0 || image.n_areas > AREAS_MAX) {
    fprintf(stderr, "%s is no image of a world: %s\n", path, strerror(errno));
    if (file != NULL) fclose(file);
    return 2;
  }
  for (uint64_t i = 0; i < image.n_areas; i++) {
    if (fread(image.areas[i].address, image.areas[i].bytes, 1, file) != 1) {
      fprintf(stderr, "%s is cut short\n", path);
      fclose(file);
      return 2;
    }
  }
  fclose(file);
  printf("operation %u of client %u, event %u\n", world->now.operation, world->now.actor, world->now.number);
  recover(image.recovery_seed, &outcomes);
  printf("%s\n", shared->n_violations > 0 ? shared->violation : "nothing is found");
  return shared->n_violations > 0;
}

/* ---- the tracer -------------------------------------------------------------------------------------------------- */

static const struct step_job *running_job; /* for the handler */

/* The library, run for a survivor, broke: as good a finding as any, and the state is still in `saved`. */
static void crashed(int number) {
  char words[256];
  int n = snprintf(words, sizeof words, "a survivor ends by signal %d; world %#llx, operation %llu, image %s\n", number,
                   (unsigned long long)shared->world_seed, (unsigned long long)shared->operations,
                   running_job->image != NULL ? running_job->image : "not kept");
  if (running_job->image != NULL) write_image(running_job->image);
  if (write(STDERR_FILENO, words, (size_t)n) < 0) _exit(4);
  _exit(3);
}

static void describe(struct step_result *result, const char *how) {
  result->failed = 1;
  snprintf(result->words, sizeof result->words, "%s\n  %s; world %#llx, operation %llu, path before \"%s\"",
           shared->violation, how, (unsigned long long)shared->world_seed, (unsigned long long)shared->operations,
           step_path_names[shared->path]);
}

/* Continues the child until it stops or ends; -1: it ended. */
static int go_on(pid_t child, enum __ptrace_request how, int *status) {
  if (ptrace(how, child, NULL, NULL) != 0) return -1;
  while (waitpid(child, status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  return WIFSTOPPED(*status) ? 0 : -1;
}

static void trace(pid_t child, const struct step_job *job, struct step_result *result, uint64_t begin) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)(uintptr_t)PTRACE_O_EXITKILL);
  for (;;) {
    int ended = go_on(child, shared->is_stepping ? PTRACE_SINGLESTEP : PTRACE_CONT, &status) != 0;
    if (!ended && WSTOPSIG(status) != SIGTRAP && WSTOPSIG(status) != SIGCHLD) {
      step_violation("the stepped process stops by signal %d", WSTOPSIG(status));
      describe(result, "in the operation itself");
      return;
    }
    if (ended) {
      if (shared->n_violations > 0) describe(result, "found after an operation that nobody interrupted");
      if (shared->n_violations == 0 && !(WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
        step_violation("the stepped process ends with status %#x", (unsigned)status);
        describe(result, "in the operation itself");
      }
      return;
    }
    if (!shared->is_stepping) continue;
    point(result, shared->operation_points++);
    if (shared->n_violations > 0) {
      describe(result, "a process died in the operation that follows");
      if (job->image != NULL) write_image(job->image);
      return;
    }
    if ((job->points > 0 && result->points >= job->points) ||
        (job->nanoseconds > 0 && result->points % 64 == 0 && now_ns() - begin >= job->nanoseconds)) {
      shared->stop = 1;
    }
  }
}

void step_run(const struct step_job *job, struct step_result *result) {
  uint64_t begin = now_ns();
  running_job = job;
  if (step_arena_open() != 0) {
    snprintf(result->words, sizeof result->words, "no memory for the world: %s", strerror(errno));
    result->failed = 1;
    return;
  }
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) stepped_process(job->seed, job->is_quick);
  signal(SIGSEGV, crashed);
  signal(SIGBUS, crashed);
  signal(SIGABRT, crashed);
  trace(child, job, result, begin);
  kill(child, SIGKILL);
  waitpid(child, NULL, __WALL);
  for (int i = 0; i < PATH_COUNT; i++) {
    result->path_runs[i] += shared->path_runs[i];
    result->path_points[i] += shared->path_points[i];
  }
  result->worlds += shared->worlds;
  result->operations += shared->operations;
  result->nanoseconds += now_ns() - begin;
}
