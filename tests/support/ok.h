/* SPDX-License-Identifier: Apache-2.0 */
/* A call of the client library that must succeed: where it does not, the test fails with the library's own words. */
#ifndef NUMAPOOL_TESTS_OK_H
#define NUMAPOOL_TESTS_OK_H

#include <criterion/criterion.h>

#include "numapool/numapool.h"

#define OK(call)                                                                        \
  do {                                                                                  \
    int npi_result = (call);                                                            \
    cr_assert_eq(npi_result, NP_OK, "%s: %d %s", #call, npi_result, np_error_detail()); \
  } while (0)

#endif
