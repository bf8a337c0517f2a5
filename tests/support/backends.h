/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must hold with both backends is tested with both: of the memory (memory.backend), or of the ingest worker
 * (ingest.backend). The body of such a test gets `backend`, a pointer to one of the numbers below.
 */
#ifndef NUMAPOOL_TESTS_BACKENDS_H
#define NUMAPOOL_TESTS_BACKENDS_H

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "tests/support/instance.h"

enum memory_backend { POSIX = 0, MEMFD = 1 };
enum ingest_backend { IO_URING = 1, EPOLL = 2 }; /* as in NPI_LISTENER_BACKEND */

#define TEST_WITH_BACKENDS(suite, name, ...)      \
  ParameterizedTestParameters(suite, name) {      \
    static int backends[] = {__VA_ARGS__};        \
    return cr_make_param_array(int, backends, 2); \
  }                                               \
  ParameterizedTest(int *backend, suite, name)

#define TEST_WITH_BOTH_BACKENDS(suite, name)        TEST_WITH_BACKENDS(suite, name, POSIX, MEMFD)
#define TEST_WITH_BOTH_INGEST_BACKENDS(suite, name) TEST_WITH_BACKENDS(suite, name, IO_URING, EPOLL)

/* The word of the setting. */
const char *memory_backend_text(int backend);
const char *ingest_backend_text(int backend);

/* instance_start with `memory: { backend: <the word>, <memory> }` and, below it, the rest of the settings. */
void instance_start_with(struct instance *instance, int backend, const char *memory, const char *rest);

#endif
