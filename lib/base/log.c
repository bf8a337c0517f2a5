/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

static struct {
  npi_log_sink sink;
  void *context;
  enum npi_log_level most_verbose;
} logger;

void npi_log_set_sink(npi_log_sink sink, void *context, enum npi_log_level most_verbose) {
  logger.sink = sink;
  logger.context = context;
  logger.most_verbose = most_verbose;
}

void npi_log(enum npi_log_level level, const char *event, const char *format, ...) {
  char line[1024];
  if (logger.sink == NULL || level > logger.most_verbose) return;
  int used = snprintf(line, sizeof line, "%s%s", event, format[0] ? " " : "");
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line + used, sizeof line - (size_t)used, format, arguments);
  va_end(arguments);
  for (char *c = line; *c; c++) {
    if (*c == '\n' || *c == '\r') *c = ' '; /* one fact, one line, whatever a peer sent */
  }
  logger.sink(level, line, logger.context);
}

void npi_log_sink_fd(enum npi_log_level level, const char *line, void *context) {
  static const char *const names[] = {"error", "warning", "info", "debug"};
  char text[1100];
  int n = snprintf(text, sizeof text, "%s %s\n", names[level], line);
  if (n > (int)sizeof text) n = (int)sizeof text;
  ssize_t written = write(*(const int *)context, text, (size_t)n);
  (void)written; /* where the log cannot be written there is nowhere to say so */
}
