/* SPDX-License-Identifier: Apache-2.0 */
/* What another process does comes when it comes: tests wait for it, and judge it then. */
#ifndef NUMAPOOL_TESTS_EVENTUALLY_H
#define NUMAPOOL_TESTS_EVENTUALLY_H

#include <criterion/criterion.h>
#include <unistd.h>

/* Waits for a condition: for what must come, however slow the machine; the bound only ends a hopeless wait. */
#define EVENTUALLY(seconds, condition)                                                             \
  do {                                                                                             \
    int npi_so = 0;                                                                                \
    for (long npi_left = (seconds)*1000L; !(npi_so = !!(condition)) && npi_left > 0; npi_left--) { \
      usleep(1000);                                                                                \
    }                                                                                              \
    cr_assert(npi_so, "not within %d s: %s", (int)(seconds), #condition);                          \
  } while (0)

#endif
