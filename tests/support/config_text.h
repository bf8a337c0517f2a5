/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configurations as text: what is accepted, and what is refused where and why. One test, one configuration; the including
 * file has the tests, and a suite that begins with begin() and ends with end().
 */
#ifndef NUMAPOOL_TESTS_CONFIG_TEXT_H
#define NUMAPOOL_TESTS_CONFIG_TEXT_H

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "daemon/config.h"

static struct npi_config config;

static inline void begin(void) {
  setenv("XDG_RUNTIME_DIR", "/run/user/77", 1);
  npi_config_init(&config);
}

static inline void end(void) {
  npi_config_deinit(&config);
}

static inline int read_text(const char *text) {
  int status = npi_config_parse(&config, "test.yaml", text, strlen(text));
  return status < 0 ? status : npi_config_finish(&config, NULL);
}

static inline void accept(const char *text) {
  int status = read_text(text);
  cr_assert_eq(status, 0, "refused: %s\n%s", config.errors, text);
}

/* The text is refused with exactly one error, whose line begins with `start` and contains `part`. */
static inline void refuse(const char *text, const char *start, const char *part) {
  npi_config_deinit(&config);
  int status = read_text(text);
  cr_assert_eq(status, NP_ERR_CONFIG, "accepted:\n%s", text);
  cr_expect_eq(config.n_errors, 1, "%u errors: %s\nfor\n%s", config.n_errors, config.errors, text);
  cr_expect_eq(strncmp(config.errors, start, strlen(start)), 0, "got  %s\nwant %s...", config.errors, start);
  cr_expect(strstr(config.errors, part) != NULL, "got  %s\nwithout %s", config.errors, part);
  cr_expect_str_eq(npi_detail(), config.errors);
}

#endif
