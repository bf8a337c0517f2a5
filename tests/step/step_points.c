/* SPDX-License-Identifier: Apache-2.0 */
/*
 * every_instruction_of_every_call_can_be_the_last: random operations of random worlds, stepped instruction by
 * instruction; after each one the process counts as dead, the others go on, and everything is counted.
 * Slots lost, slots twice, events lost or repeated between the living: none; and what the broker counts for the dead,
 * from its rings and one word, is exact. Each path through the library is stepped whole at least RUNS_LEAST times in
 * each of three series of random numbers, and counted.
 *
 * step_points [POINTS [SEED]]     default 1500000 points, a seed from the clock
 * step_points --replay IMAGE      a state that failed, once more
 *
 * ctest-timeout: 600
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "step/stepper.h"

enum { WORKERS = 2, SERIES = 3, PATH_LEAST = 100, RUNS_LEAST = 1, PARTS_MOST = 9 };

static void add(struct step_result *sum, const struct step_result *part) {
  sum->points += part->points;
  sum->worlds += part->worlds;
  sum->operations += part->operations;
  sum->wrap_points += part->wrap_points;
  for (int i = 0; i < PATH_COUNT; i++) {
    sum->path_runs[i] += part->path_runs[i];
    sum->path_points[i] += part->path_points[i];
  }
  uint64_t *to = (uint64_t *)&sum->outcomes;
  const uint64_t *from = (const uint64_t *)&part->outcomes;
  for (size_t i = 0; i < sizeof sum->outcomes / sizeof *to; i++) to[i] += from[i];
  if (part->failed && !sum->failed) memcpy(sum->words, part->words, sizeof sum->words);
  sum->failed |= part->failed;
}

/* Each worker is a process of its own: the world is at one address. */
static void run_workers(uint64_t points, uint64_t seed, struct step_result *sum) {
  struct step_result *results =
      mmap(NULL, WORKERS * sizeof *results, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  pid_t pids[WORKERS];
  if (results == MAP_FAILED) exit(2);
  fflush(NULL);
  for (int i = 0; i < WORKERS; i++) {
    pids[i] = fork();
    if (pids[i] != 0) continue;
    char image[128];
    snprintf(image, sizeof image, "step-%" PRIu64 "-%d.image", seed, i);
    struct step_job job = {
        .seed = seed * 1000003 + (uint64_t)i * 500009, .points = points / WORKERS, .is_quick = 1, .image = image};
    step_run(&job, &results[i]);
    if (results[i].failed) printf("failed: %s\n  replay: step_points --replay %s\n", results[i].words, image);
    fflush(stdout);
    _exit((int)results[i].failed);
  }
  for (int i = 0; i < WORKERS; i++) {
    int status = 0;
    waitpid(pids[i], &status, 0);
    add(sum, &results[i]);
    if (status == 0) continue;
    sum->failed = 1;
    if (!results[i].failed) printf("failed: a worker ends with status %#x\n", (unsigned)status);
  }
  munmap(results, WORKERS * sizeof *results);
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "--replay") == 0) return step_replay(argv[2]);
  uint64_t points = argc > 1 ? strtoull(argv[1], NULL, 0) : 1500000;
  uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() % 1000;
  struct step_result sum = {0};
  uint64_t least[PATH_COUNT] = {0}; /* runs in the series that had the fewest */
  time_t begin = time(NULL);
  printf("seed %" PRIu64 "\n", seed);
  for (uint64_t i = 0; i < SERIES && !sum.failed; i++) {
    struct step_result before = sum;
    uint64_t fewest = 0;
    /* Some paths are rare: a series that had hardly one of them goes on for a while, with other numbers. */
    for (uint64_t part = 0; part < PARTS_MOST && fewest < RUNS_LEAST && !sum.failed; part++) {
      run_workers((points + SERIES - 1) / SERIES / (part == 0 ? 1 : 4), seed + i + part * 1000, &sum);
      fewest = UINT64_MAX;
      for (int path = 1; path < PATH_COUNT; path++) {
        uint64_t runs = sum.path_runs[path] - before.path_runs[path];
        if (runs < fewest) fewest = runs;
      }
      if (points < 1000000) break;
    }
    for (int path = 1; path < PATH_COUNT; path++) {
      uint64_t runs = sum.path_runs[path] - before.path_runs[path];
      if (i == 0 || runs < least[path]) least[path] = runs;
    }
  }
  uint32_t thin = 0;
  for (int i = 1; i < PATH_COUNT; i++) {
    int is_thin = sum.path_points[i] < PATH_LEAST || least[i] < RUNS_LEAST;
    thin += (uint32_t)is_thin;
    printf("%-52s %7" PRIu64 " times, %8" PRIu64 " points%s\n", step_path_names[i], sum.path_runs[i],
           sum.path_points[i], is_thin ? "  TOO FEW" : "");
  }
  const struct step_outcomes *o = &sum.outcomes;
  printf("died in publish: event for nobody %" PRIu64 ", for some %" PRIu64 ", for all %" PRIu64
         "; in release of a group: came again %" PRIu64 ", did not %" PRIu64 "\n",
         o->publisher_before, o->publisher_between, o->publisher_after, o->release_before, o->release_after);
  printf("events that came again %" PRIu64 "; publisher died beside a sleeper %" PRIu64 "; two deaths %" PRIu64
         "; positions and generations near their wrap %" PRIu64 "\n",
         o->came_again, o->slept_across, o->two_deaths, sum.wrap_points);
  printf("%" PRIu64 " points in %" PRIu64 " worlds and %" PRIu64
         " operations, %ld s: slots lost 0, slots twice 0, events lost or repeated 0%s\n",
         sum.points, sum.worlds, sum.operations, (long)(time(NULL) - begin), sum.failed ? " UP TO THE FAILURE" : "");
  int too_few = points >= 1000000 &&
                (thin > 0 || o->publisher_before < 100 || o->publisher_between < 100 || o->publisher_after < 100 ||
                 o->release_before < 100 || o->release_after < 100 || sum.wrap_points < sum.points / 20);
  if (too_few) printf("failed: a path was hardly taken\n");
  return sum.failed || too_few;
}
