/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How functions inside numapool report failure.
 *
 *   0    success
 *   < 0  an enum np_status failure: pass it up unchanged. Where it began, npi_fail() has put words into
 *        this thread's detail text: what failed, with which value, and the fix. Frames on the way up may
 *        put their own context in front with npi_trail().
 *   > 0  a condition of this very function (NP_EMPTY, NP_FULL ...), handled by its direct caller.
 */
#ifndef NPI_BASE_STATUS_H
#define NPI_BASE_STATUS_H

#include "numapool/status.h"

/* Sets the detail text and returns status, so that `return npi_fail(...)` is the whole error path. */
int npi_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* The same, with ": <text of error_number>" appended. error_number is an errno value. */
int npi_fail_errno(int status, int error_number, const char *format, ...) __attribute__((format(printf, 3, 4), cold));

/* Puts "context: " in front of the detail text and returns status. */
int npi_trail(int status, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

#ifdef __clang_analyzer__
/* Tells the static analyzer what it cannot see across files: the result is the status that went in, so that
 * it does not follow a failure as if it were a success. The definitions write (npi_fail) to stay functions. */
#define npi_fail(status, ...)       ((void)(npi_fail)(status, __VA_ARGS__), (status))
#define npi_fail_errno(status, ...) ((void)(npi_fail_errno)(status, __VA_ARGS__), (status))
#define npi_trail(status, ...)      ((void)(npi_trail)(status, __VA_ARGS__), (status))
#endif

/* This thread's detail text; never NULL, empty before the first failure. */
const char *npi_detail(void);

/* Constant text of a status number; "unknown status" for others. */
const char *npi_status_text(int status);

#endif
