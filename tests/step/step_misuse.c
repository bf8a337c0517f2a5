/* SPDX-License-Identifier: Apache-2.0 */
/*
 * misuse_is_detected: handles that are not valid (published, discarded or released before, of another, forged), given
 * to the library amid random operations of random worlds. Each must be refused with its status, and change nothing:
 * each world is run to its end and counted as in step_points. No process dies here, and nothing is stepped.
 *
 * step_misuse [TIMES [SEED]]      default 1000000
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "step/operations.h"
#include "step/world.h"

enum { OPERATIONS = 200, MISUSES_EACH = 8 };

int main(int argc, char **argv) {
  uint64_t least = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000000;
  uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() % 1000;
  uint64_t times = 0, worlds = 0, wrap = 0;
  printf("seed %" PRIu64 "\n", seed);
  if (step_arena_open() != 0) {
    perror("step_arena_open");
    return 2;
  }
  for (; times < least && shared->n_violations == 0; worlds++) {
    struct step_options options;
    uint64_t random = (seed + worlds) * UINT64_C(0x9e3779b97f4a7c15) | 1;
    shared->world_seed = seed + worlds;
    step_random_options(&options, seed + worlds);
    step_world_begin(&options);
    step_open_all(&random);
    wrap += options.near_wrap != 0;
    for (int i = 0; i < (options.near_wrap ? 4 : 1) * OPERATIONS && shared->n_violations == 0; i++) {
      step_random_operation(&random);
      for (int k = 0; k < MISUSES_EACH && shared->n_violations == 0; k++) {
        uint32_t actor = step_below(&random, world->n_actors);
        if (!step_actor(actor)->is_dead) times += program_misuse(actor, &random);
      }
    }
    if (shared->n_violations == 0) wind_up(seed + worlds);
  }
  if (shared->n_violations > 0) {
    printf("failed: %s\n  world %" PRIu64 ", operation %" PRIu64 "; again: step_misuse %" PRIu64 " %" PRIu64 "\n",
           shared->violation, shared->world_seed, (uint64_t)shared->operations, least, seed);
    return 1;
  }
  printf(
      "%" PRIu64 " misuses in %" PRIu64 " worlds (%" PRIu64
      " of them with positions and generations near their wrap): all refused; slots lost 0, slots twice 0, events lost "
      "or repeated 0\n",
      times, worlds, wrap);
  return wrap < worlds / 20;
}
