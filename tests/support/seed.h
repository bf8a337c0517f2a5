/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting times that are drawn: another seed in each run, printed; NUMAPOOL_TEST_SEED=N draws the same ones again. */
#ifndef NUMAPOOL_TESTS_SEED_H
#define NUMAPOOL_TESTS_SEED_H

#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "tests/support/instance.h"

/* For random(); `who` is the test's file. */
static inline void seed_random(const char *who) {
  const char *given = getenv("NUMAPOOL_TEST_SEED");
  unsigned seed = given != NULL ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL) ^ (unsigned)getpid();
  say("%s: seed %u\n", who, seed);
  srandom(seed);
}

#endif
