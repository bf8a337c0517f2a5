/* SPDX-License-Identifier: Apache-2.0 */
/* How failures are put into words. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/status.h"

Test(status, every_code_has_its_own_number_and_its_own_text) {
  /* Proves: no two rows of the list share a number or a text. */
  static const struct {
    int number;
    const char *text;
  } rows[] = {
#define ROW(name, number, text) {number, text},
      NP_STATUS_LIST(ROW)
#undef ROW
  };
  const size_t n = sizeof rows / sizeof rows[0];
  for (size_t i = 0; i < n; i++) {
    cr_assert_str_eq(npi_status_text(rows[i].number), rows[i].text);
    for (size_t k = 0; k < i; k++) {
      cr_assert_neq(rows[i].number, rows[k].number, "rows %zu and %zu share a number", i, k);
      cr_assert_neq(strcmp(rows[i].text, rows[k].text), 0, "rows %zu and %zu share a text", i, k);
    }
  }
}

Test(status, an_unknown_number_has_a_text_too) {
  /* Proves: a number of a newer library is no NULL. */
  cr_assert_str_eq(npi_status_text(-4711), "unknown status");
  cr_assert_str_eq(npi_status_text(4711), "unknown status");
}

Test(status, the_detail_is_empty_before_the_first_failure) {
  /* Proves: it may be printed at any time. */
  cr_assert_str_eq(npi_detail(), "");
}

Test(status, a_failure_returns_its_status_and_keeps_its_words) {
  /* Proves: `return npi_fail(...)` is a whole error path. */
  cr_assert_eq(npi_fail(NP_ERR_CONFIG, "line %d: %s", 7, "no such key"), NP_ERR_CONFIG);
  cr_assert_str_eq(npi_detail(), "line 7: no such key");
}

Test(status, an_errno_is_appended_as_text) {
  /* Proves: the operator reads the kernel's reason, not its number. */
  cr_assert_eq(npi_fail_errno(NP_ERR_SYSTEM, ENOENT, "cannot open %s", "x"), NP_ERR_SYSTEM);
  cr_assert_str_eq(npi_detail(), "cannot open x: No such file or directory");
}

Test(status, a_trail_goes_in_front_of_the_words) {
  /* Proves: frames on the way up add context, outermost first, and keep the status. */
  npi_fail(NP_ERR_NO_MEMORY, "need 5");
  cr_assert_eq(npi_trail(NP_ERR_NO_MEMORY, "segment %d", 3), NP_ERR_NO_MEMORY);
  npi_trail(NP_ERR_NO_MEMORY, "start");
  cr_assert_str_eq(npi_detail(), "start: segment 3: need 5");
}

Test(status, the_old_detail_may_be_an_argument_of_the_new) {
  /* Proves: words can be built from the words of the failure underneath. */
  npi_fail(NP_ERR_SYSTEM, "inner");
  npi_fail(NP_ERR_DENIED, "outer (%s)", npi_detail());
  cr_assert_str_eq(npi_detail(), "outer (inner)");
}

Test(status, words_that_are_too_long_are_cut_not_overrun) {
  /* Proves: neither a long text nor a pile of trails leaves the buffer, and the errno text survives. */
  char text[4096];
  memset(text, 'a', sizeof text - 1);
  text[sizeof text - 1] = '\0';
  npi_fail(NP_ERR_SYSTEM, "%s", text);
  size_t whole = strlen(npi_detail());
  cr_assert_gt(whole, 500);
  cr_assert_lt(whole, sizeof text - 1);
  npi_fail_errno(NP_ERR_SYSTEM, EPERM, "%s", text);
  cr_assert_not_null(strstr(npi_detail(), "Operation not permitted"));
  for (int i = 0; i < 100; i++) npi_trail(NP_ERR_SYSTEM, "%s", text);
  cr_assert_leq(strlen(npi_detail()), whole);
}

static void *fail_elsewhere(void *argument) {
  (void)argument;
  npi_fail(NP_ERR_CORRUPT, "of the other thread");
  return NULL;
}

Test(status, each_thread_has_its_own_detail) {
  /* Proves: a failure in one thread does not change what another one reports. */
  pthread_t thread;
  npi_fail(NP_ERR_SYSTEM, "mine");
  cr_assert_eq(pthread_create(&thread, NULL, fail_elsewhere, NULL), 0);
  pthread_join(thread, NULL);
  cr_assert_str_eq(npi_detail(), "mine");
}
