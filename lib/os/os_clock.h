/* SPDX-License-Identifier: Apache-2.0 */
/* The two clocks: one for intervals, one for time stamps that people read. */
#ifndef NPI_OS_CLOCK_H
#define NPI_OS_CLOCK_H

#include <stdint.h>

/* Nanoseconds of CLOCK_MONOTONIC: never set back, the same in all processes of a machine. Never fails, no lock. */
uint64_t npi_clock_monotonic(void);

/* Nanoseconds since 1970 (CLOCK_REALTIME): may be stepped by the administrator; never for deadlines. */
uint64_t npi_clock_realtime(void);

#endif
