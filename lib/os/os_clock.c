/* SPDX-License-Identifier: Apache-2.0 */
#include "os/os_clock.h"

#include <time.h>

static uint64_t nanoseconds(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now); /* cannot fail for these two clocks and a valid pointer */
  return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

uint64_t npi_clock_monotonic(void) {
  return nanoseconds(CLOCK_MONOTONIC);
}

uint64_t npi_clock_realtime(void) {
  return nanoseconds(CLOCK_REALTIME);
}
