/* SPDX-License-Identifier: Apache-2.0 */
#include "output.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/align.h"

enum { CELL_BYTES = 320, COLUMNS_MAX = 32 };

/* ---- making a document ------------------------------------------------------------------------------- */

static void out_of_memory(void) {
  fputs("numapoolctl: out of memory\n", stderr);
  exit(1);
}

static void set(json_t *object, const char *key, json_t *value) {
  if (value == NULL || json_object_set_new(object, key, value) != 0) out_of_memory();
}

void npi_set_text_n(json_t *object, const char *key, const char *text, size_t most) {
  char clean[512];
  size_t n = strnlen(text, most < sizeof clean ? most : sizeof clean - 1);
  json_t *value = json_stringn(text, n);
  if (value == NULL) {
    for (size_t i = 0; i < n; i++) clean[i] = (unsigned char)text[i] < 0x80 ? text[i] : '?';
    value = json_stringn(clean, n);
  }
  set(object, key, value);
}

void npi_set_text(json_t *object, const char *key, const char *text) {
  npi_set_text_n(object, key, text, SIZE_MAX);
}

/* JSON's integers are signed here; what does not fit can only come from memory that is not what it should be. */
void npi_set_number(json_t *object, const char *key, uint64_t number) {
  set(object, key, json_integer(number > INT64_MAX ? INT64_MAX : (json_int_t)number));
}

void npi_set_yes(json_t *object, const char *key, int yes) {
  set(object, key, json_boolean(yes));
}

void npi_set_null(json_t *object, const char *key) {
  set(object, key, json_null());
}

void npi_set_time(json_t *object, const char *key, uint64_t realtime_ns) {
  char text[40];
  npi_format_time(text, sizeof text, realtime_ns);
  npi_set_text(object, key, text);
}

json_t *npi_new_object(void) {
  json_t *object = json_object();
  if (object == NULL) out_of_memory();
  return object;
}

json_t *npi_add_object(json_t *object, const char *key) {
  json_t *added = npi_new_object();
  set(object, key, added);
  return added;
}

json_t *npi_add_array(json_t *object, const char *key) {
  json_t *added = json_array();
  set(object, key, added);
  return added;
}

json_t *npi_append_object(json_t *array) {
  json_t *added = npi_new_object();
  if (json_array_append_new(array, added) != 0) out_of_memory();
  return added;
}

void npi_format_time(char *text, size_t bytes, uint64_t realtime_ns) {
  time_t seconds = (time_t)(realtime_ns / 1000000000);
  struct tm parts;
  char day[32] = "";
  if (gmtime_r(&seconds, &parts) != NULL) strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &parts);
  snprintf(text, bytes, "%s.%09uZ", day, (unsigned)(realtime_ns % 1000000000));
}

/* ---- showing it -------------------------------------------------------------------------------------- */

int npi_output_json(FILE *out, const json_t *document) {
  if (json_dumpf(document, out, JSON_INDENT(2) | JSON_ENSURE_ASCII) != 0) return -1;
  return fputc('\n', out) == EOF || fflush(out) != 0 ? -1 : 0;
}

static const json_t *look_up(const json_t *object, const char *key) {
  char part[64];
  const char *dot;
  while (object != NULL && (dot = strchr(key, '.')) != NULL) {
    snprintf(part, sizeof part, "%.*s", (int)(dot - key), key);
    object = json_object_get(object, part);
    key = dot + 1;
  }
  return json_object_get(object, key);
}

static void format_bytes(char *text, size_t bytes, uint64_t n) {
  static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = (double)n;
  int unit = -1;
  while (value >= 1024 && unit < 5) {
    value /= 1024;
    unit++;
  }
  if (unit < 0) {
    snprintf(text, bytes, "%" PRIu64 "B", n);
  } else {
    snprintf(text, bytes, "%.1f%s", value, units[unit]);
  }
}

static void format_seconds(char *text, size_t bytes, uint64_t n) {
  unsigned hours = (unsigned)(n / 3600 % 24), minutes = (unsigned)(n / 60 % 60), seconds = (unsigned)(n % 60);
  if (n >= 86400) {
    snprintf(text, bytes, "%" PRIu64 "d %02u:%02u:%02u", n / 86400, hours, minutes, seconds);
  } else {
    snprintf(text, bytes, "%02u:%02u:%02u", hours, minutes, seconds);
  }
}

/* Names come from other processes: a terminal gets only what prints. */
static void format_text(char *text, size_t bytes, const char *from) {
  size_t n = 0;
  for (; n + 1 < bytes && from[n] != '\0'; n++) {
    unsigned char c = (unsigned char)from[n];
    text[n] = c < 0x20 || c == 0x7f ? '?' : from[n];
  }
  text[n] = '\0';
}

static void format_cell(char text[CELL_BYTES], const json_t *value, enum npi_show show) {
  if (json_is_string(value)) {
    format_text(text, CELL_BYTES, json_string_value(value));
  } else if (json_is_boolean(value)) {
    snprintf(text, CELL_BYTES, "%s", json_is_true(value) ? "yes" : "no");
  } else if (json_is_integer(value) && show == NPI_SHOW_BYTES) {
    format_bytes(text, CELL_BYTES, (uint64_t)json_integer_value(value));
  } else if (json_is_integer(value) && show == NPI_SHOW_SECONDS) {
    format_seconds(text, CELL_BYTES, (uint64_t)json_integer_value(value));
  } else if (json_is_integer(value)) {
    snprintf(text, CELL_BYTES, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
  } else if (json_is_array(value) && json_array_size(value) > 0) {
    size_t used = 0;
    for (size_t i = 0; i < json_array_size(value) && used + 32 < CELL_BYTES; i++) {
      const json_t *item = json_array_get(value, i);
      if (json_is_string(item)) {
        used += (size_t)snprintf(text + used, CELL_BYTES - used, "%s%.24s", i > 0 ? "," : "", json_string_value(item));
      } else {
        used += (size_t)snprintf(text + used, CELL_BYTES - used, "%s%" JSON_INTEGER_FORMAT, i > 0 ? "," : "",
                                 json_integer_value(item));
      }
    }
  } else {
    snprintf(text, CELL_BYTES, "-");
  }
}

/* Columns on a terminal, not bytes: what continues a UTF-8 character takes no place. */
static int width_of(const char *text) {
  int n = 0;
  for (; *text != '\0'; text++) n += ((unsigned char)*text & 0xc0) != 0x80;
  return n;
}

static void put_padded(FILE *out, const char *text, int width, int right, int last) {
  int pad = width - width_of(text);
  if (right) fprintf(out, "%*s", pad > 0 ? pad : 0, "");
  fputs(text, out);
  if (last) {
    fputc('\n', out);
  } else {
    fprintf(out, "%*s", (right || pad < 0 ? 0 : pad) + 2, "");
  }
}

static const char *title_of(const struct npi_column *column) {
  return column->title != NULL ? column->title : column->key;
}

void npi_output_table(FILE *out, const json_t *rows, const struct npi_column *columns, size_t n) {
  char text[CELL_BYTES];
  int width[COLUMNS_MAX], right[COLUMNS_MAX];
  size_t n_rows = json_array_size(rows);
  if (n > COLUMNS_MAX) n = COLUMNS_MAX;
  if (n_rows == 0) {
    fputs("  none\n", out);
    return;
  }
  for (size_t c = 0; c < n; c++) {
    width[c] = width_of(title_of(&columns[c]));
    right[c] = 0;
    for (size_t r = 0; r < n_rows; r++) {
      const json_t *value = look_up(json_array_get(rows, r), columns[c].key);
      format_cell(text, value, columns[c].show);
      if (width_of(text) > width[c]) width[c] = width_of(text);
      right[c] |= json_is_integer(value);
    }
  }
  for (size_t c = 0; c < n; c++) {
    if (c == 0) fputs("  ", out);
    put_padded(out, title_of(&columns[c]), width[c], right[c], c + 1 == n);
  }
  for (size_t r = 0; r < n_rows; r++) {
    fputs("  ", out);
    for (size_t c = 0; c < n; c++) {
      format_cell(text, look_up(json_array_get(rows, r), columns[c].key), columns[c].show);
      put_padded(out, text, width[c], right[c], c + 1 == n);
    }
  }
}

void npi_output_fields(FILE *out, const json_t *object, const struct npi_column *columns, size_t n) {
  char text[CELL_BYTES];
  int width = 0;
  for (size_t c = 0; c < n; c++) {
    if (width_of(title_of(&columns[c])) > width) width = width_of(title_of(&columns[c]));
  }
  for (size_t c = 0; c < n; c++) {
    format_cell(text, look_up(object, columns[c].key), columns[c].show);
    put_padded(out, title_of(&columns[c]), width, 0, 0);
    fprintf(out, "%s\n", text);
  }
}
