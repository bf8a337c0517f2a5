/* SPDX-License-Identifier: Apache-2.0 */
/* Stepping: the stepped process's side, and the tracer that stops it after every instruction. */
#ifndef NUMAPOOL_TESTS_STEPPER_H
#define NUMAPOOL_TESTS_STEPPER_H

#include "step/operations.h"
#include "step/world.h"

_Static_assert(PATH_COUNT <= 64, "a result has room for every path");

/* ---- in the stepped process ---- */

extern int step_is_traced; /* this process is the stepped one */
extern int step_is_wanted; /* the next operation may be stepped */

/* The library's call of an operation of this class begins; the classes share the points by their weights. */
void step_begin_operation(uint32_t kind, uint32_t weight);

/* From here on every instruction is a point; from here on no more. */
void step_on(void);
void step_off(void);

/* ---- the tracer ---- */

struct step_job {
  uint64_t seed;
  uint64_t points;      /* at least so many, then the world that runs is finished; 0: no end */
  uint64_t nanoseconds; /* ends then; 0: no end */
  uint32_t is_quick;    /* one operation in eight is stepped: more worlds for the same points */
  const char *image;    /* a failing state is written there; NULL: not */
};

/* What came of it; added to what is there. */
struct step_result {
  uint64_t points, worlds, operations, wrap_points;
  uint64_t path_runs[64], path_points[64];
  struct step_outcomes outcomes;
  uint64_t nanoseconds;
  uint32_t failed;
  char words[1024]; /* of the first violation */
};

/* Steps random operations of random worlds. The caller's process must not have used the arena before. */
void step_run(const struct step_job *job, struct step_result *result);

/* Recovers a saved state again and prints what is found. 0: nothing; 1: as before; 2: no such image. */
int step_replay(const char *image);

/* ---- the broker, as the seams ask it ---- */

void broker_hears(uint32_t actor, const struct npi_control_frame *frame);
void broker_answers(uint32_t actor, const struct npi_control_frame *frame, struct npi_control_frame *reply);
/* The next frame for the actor; 0: none. */
int broker_next_frame(uint32_t actor, struct npi_control_frame *frame);
/* The actor's library may have made its end of connections: they begin where the world says. */
void broker_note_made(uint32_t actor);

#endif
