/* SPDX-License-Identifier: Apache-2.0 */
/* One log line per fact, and silence unless asked. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"

struct seen {
  int n;
  enum npi_log_level level;
  char line[2048];
};

static void remember(enum npi_log_level level, const char *line, void *context) {
  struct seen *seen = context;
  seen->n++;
  seen->level = level;
  strncpy(seen->line, line, sizeof seen->line - 1);
}

Test(log, the_library_is_silent_until_a_sink_is_set) {
  /* Proves: an application that asks for nothing finds nothing on its descriptors. */
  int ends[2];
  char byte;
  cr_assert_eq(pipe2(ends, O_NONBLOCK), 0);
  int saved = dup(STDERR_FILENO);
  dup2(ends[1], STDERR_FILENO);
  npi_log(NPI_LOG_ERROR, "test.spoke", "n=%d", 1);
  dup2(saved, STDERR_FILENO);
  cr_assert_lt(read(ends[0], &byte, 1), 0);
}

Test(log, a_line_is_the_event_and_its_values) {
  /* Proves: "noun.verb key=value", and no blank at the end of an event without values. */
  struct seen seen = {0};
  npi_log_set_sink(remember, &seen, NPI_LOG_DEBUG);
  npi_log(NPI_LOG_WARNING, "segment.made", "node=%d bytes=%d", 1, 4096);
  cr_assert_str_eq(seen.line, "segment.made node=1 bytes=4096");
  cr_assert_eq(seen.level, NPI_LOG_WARNING);
  npi_log(NPI_LOG_INFO, "broker.ready", "%s", "");
  cr_assert_eq(strncmp(seen.line, "broker.ready", 12), 0);
  cr_assert_eq(seen.n, 2);
}

Test(log, levels_beyond_the_wish_are_dropped) {
  /* Proves: info does not reach a sink that asked for warnings, warnings and errors do. */
  struct seen seen = {0};
  npi_log_set_sink(remember, &seen, NPI_LOG_WARNING);
  npi_log(NPI_LOG_INFO, "a.b", "x=1");
  npi_log(NPI_LOG_DEBUG, "a.b", "x=1");
  cr_assert_eq(seen.n, 0);
  npi_log(NPI_LOG_WARNING, "a.b", "x=1");
  npi_log(NPI_LOG_ERROR, "a.b", "x=1");
  cr_assert_eq(seen.n, 2);
}

Test(log, a_quoted_value_ends_where_it_ends) {
  /* Proves: quotes and backslashes inside a value cannot end it, nor begin another; without quotes nothing is escaped. */
  struct seen seen = {0};
  npi_log_set_sink(remember, &seen, NPI_LOG_DEBUG);
  npi_log(NPI_LOG_INFO, "a.b", "x=%s reason=\"%s\" fix=\"%s\" n=%d", "o\"k", "no \"here\" \\ fix=\"none\"", "go on", 3);
  cr_assert_str_eq(seen.line, "a.b x=o\"k reason=\"no \\\"here\\\" \\\\ fix=\\\"none\\\"\" fix=\"go on\" n=3");
}

Test(log, words_of_a_peer_cannot_forge_values) {
  /* Proves: what a peer sends comes into a reason without control characters, so it cannot look like the end of it. */
  struct seen seen = {0};
  npi_log_set_sink(remember, &seen, NPI_LOG_DEBUG);
  int status = npi_fail(NP_ERR_ARGUMENT, "\"%s\" cannot name a channel", "a\" x=1\x02 pid=1 reason=\x01ok\x7f");
  npi_log(NPI_LOG_INFO, "request.refused", "status=%d reason=\"%s\"", status, npi_detail());
  cr_assert_str_eq(seen.line,
                   "request.refused status=-1 reason=\"\\\"a\\\" x=1? pid=1 reason=?ok?\\\" cannot name a "
                   "channel\"");
}

Test(log, a_long_value_is_cut_inside_its_quotes) {
  struct seen seen = {0};
  char long_text[2000];
  memset(long_text, '"', sizeof long_text - 1);
  long_text[sizeof long_text - 1] = '\0';
  npi_log_set_sink(remember, &seen, NPI_LOG_DEBUG);
  npi_log(NPI_LOG_INFO, "a.b", "reason=\"%s\"", long_text);
  size_t n = strlen(seen.line);
  cr_assert_gt(n, 1000);
  cr_assert_lt(n, 1400);
  cr_assert_str_eq(seen.line + n - 3, "\\\"\"");
}

Test(log, a_value_cannot_begin_a_new_line) {
  /* Proves: what a peer sends cannot forge a second fact. */
  struct seen seen = {0};
  npi_log_set_sink(remember, &seen, NPI_LOG_DEBUG);
  npi_log(NPI_LOG_INFO, "client.named", "name=%s", "x\nerror broker.died\r");
  cr_assert_null(strpbrk(seen.line, "\r\n"));
  cr_assert_str_eq(seen.line, "client.named name=x error broker.died ");
}

Test(log, a_long_line_is_cut) {
  /* Proves: a long value ends the line early, not the process. */
  struct seen seen = {0};
  char text[5000];
  memset(text, 'v', sizeof text - 1);
  text[sizeof text - 1] = '\0';
  npi_log_set_sink(remember, &seen, NPI_LOG_DEBUG);
  npi_log(NPI_LOG_INFO, "a.b", "v=%s", text);
  cr_assert_gt(strlen(seen.line), 500);
  cr_assert_lt(strlen(seen.line), 1024);
}

Test(log, the_descriptor_sink_writes_level_and_line) {
  /* Proves: what numapoold writes to standard error. */
  int ends[2];
  char text[256] = "";
  cr_assert_eq(pipe(ends), 0);
  npi_log_set_sink(npi_log_sink_fd, &ends[1], NPI_LOG_INFO);
  npi_log(NPI_LOG_ERROR, "broker.failed", "reason=%s", "why");
  cr_assert_gt(read(ends[0], text, sizeof text - 1), 0);
  cr_assert_str_eq(text, "error broker.failed reason=why\n");
}
