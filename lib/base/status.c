/* SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { DETAIL_BYTES = 768 };

static _Thread_local char detail[DETAIL_BYTES];

/* Parts of it may come from a peer, and go into logs and onto terminals. */
static void make_printable(char *text) {
  for (char *c = text; *c != '\0'; c++) {
    if ((unsigned char)*c < ' ' || *c == 0x7f) *c = *c == '\n' ? '\n' : '?';
  }
}

int(npi_fail)(int status, const char *format, ...) {
  char text[DETAIL_BYTES]; /* arguments may point into the detail text itself */
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  make_printable(text);
  memcpy(detail, text, sizeof text);
  return status;
}

int(npi_fail_errno)(int status, int error_number, const char *format, ...) {
  char text[DETAIL_BYTES];
  char reason[128];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  make_printable(text);
  const char *words = strerror_r(error_number, reason, sizeof reason);
  snprintf(detail, sizeof detail, "%.*s: %s", (int)(sizeof detail - sizeof reason - 4), text, words);
  return status;
}

int(npi_trail)(int status, const char *format, ...) {
  char context[256];
  char text[DETAIL_BYTES];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(context, sizeof context, format, arguments);
  va_end(arguments);
  make_printable(context);
  memcpy(text, detail, sizeof text);
  snprintf(detail, sizeof detail, "%s: %.*s", context, (int)(sizeof detail - sizeof context - 4), text);
  return status;
}

const char *npi_detail(void) {
  return detail;
}

const char *npi_status_text(int status) {
  switch (status) {
#define ROW(name, number, text) \
  case number: return text;
    NP_STATUS_LIST(ROW)
#undef ROW
    default: return "unknown status";
  }
}
