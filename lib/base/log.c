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

/* Stand for the quotes of the format while the values, which may have quotes of their own, are put in. */
enum { OPENS = 1, CLOSES = 2, LINE_BYTES = 1024 };

/* A value that the format quotes begins after `="` and ends at the next quote of the format. */
static void mark_quotes(const char *format, char *marked, size_t bytes) {
  size_t n = 0;
  int is_open = 0;
  for (; format[n] != '\0' && n + 1 < bytes; n++) {
    marked[n] = format[n];
    if (format[n] != '"' || (!is_open && (n == 0 || format[n - 1] != '='))) continue;
    marked[n] = is_open ? CLOSES : OPENS;
    is_open = !is_open;
  }
  marked[n] = '\0';
}

/*
 * One fact, one line, and values that end where they end, whatever a peer sent: its words come in by npi_detail() or as a
 * checked name, and neither has control characters that could stand for a quote.
 */
static void write_out(const char *text, char *line, size_t bytes) {
  int is_open = 0;
  size_t n = 0;
  for (; *text != '\0' && n + 3 < bytes; text++) { /* room for an escape and the quote that must not be cut off */
    if (*text == OPENS || *text == CLOSES) {
      is_open = *text == OPENS;
      line[n++] = '"';
    } else if (is_open && (*text == '"' || *text == '\\')) {
      line[n++] = '\\';
      line[n++] = *text;
    } else {
      line[n++] = (unsigned char)*text < ' ' ? ' ' : *text;
    }
  }
  if (is_open) line[n++] = '"';
  line[n] = '\0';
}

void npi_log(enum npi_log_level level, const char *event, const char *format, ...) {
  char marked[LINE_BYTES], text[LINE_BYTES], line[LINE_BYTES + LINE_BYTES / 4];
  if (logger.sink == NULL || level > logger.most_verbose) return;
  mark_quotes(format, marked, sizeof marked);
  int used = snprintf(text, sizeof text, "%s%s", event, format[0] ? " " : "");
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + used, sizeof text - (size_t)used, marked, arguments);
  va_end(arguments);
  write_out(text, line, sizeof line);
  logger.sink(level, line, logger.context);
}

void npi_log_sink_fd(enum npi_log_level level, const char *line, void *context) {
  static const char *const names[] = {"error", "warning", "info", "debug"};
  char text[LINE_BYTES + LINE_BYTES / 2];
  int n = snprintf(text, sizeof text, "%s %s\n", names[level], line);
  if (n > (int)sizeof text) n = (int)sizeof text;
  ssize_t written = write(*(const int *)context, text, (size_t)n);
  (void)written; /* where the log cannot be written there is nowhere to say so */
}
