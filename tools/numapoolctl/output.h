/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a verb found, as one JSON document; printed as it is, or as text for people.
 *
 * A verb fills the document and names its columns once: which keys, under which title, in which unit. Text is
 * made from the document, so both forms always say the same. Functions end the program when memory is out.
 */
#ifndef NUMAPOOLCTL_OUTPUT_H
#define NUMAPOOLCTL_OUTPUT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum npi_show {
  NPI_SHOW_PLAIN,   /* text to the left, numbers to the right */
  NPI_SHOW_BYTES,   /* 256.0MiB */
  NPI_SHOW_SECONDS, /* 1d 02:03:04 */
  NPI_SHOW_YES,     /* a boolean */
};

struct npi_column {
  const char *key;   /* in a row's object; "a.b" looks into an object inside of it */
  const char *title; /* NULL: as the key */
  enum npi_show show;
};

/* Objects of an array as aligned lines under their titles; nothing there: one line that says so. */
void npi_output_table(FILE *out, const json_t *rows, const struct npi_column *columns, size_t n);
/* One object as "title  value" lines. */
void npi_output_fields(FILE *out, const json_t *object, const struct npi_column *columns, size_t n);
/* The document with line breaks. 0, or -1 when it could not be written. */
int npi_output_json(FILE *out, const json_t *document);

/* Setters for values that JSON libraries are picky about. Text that is no UTF-8 has '?' in place of what is not. */
void npi_set_text(json_t *object, const char *key, const char *text);
void npi_set_text_n(json_t *object, const char *key, const char *text, size_t most); /* ends at most there */
void npi_set_number(json_t *object, const char *key, uint64_t number);
void npi_set_yes(json_t *object, const char *key, int yes);
void npi_set_null(json_t *object, const char *key);
void npi_set_time(json_t *object, const char *key, uint64_t realtime_ns);
/* Adds a new, empty object or array and returns it, borrowed. */
json_t *npi_add_object(json_t *object, const char *key);
json_t *npi_add_array(json_t *object, const char *key);
json_t *npi_append_object(json_t *array);
/* A new document; json_decref() frees it. */
json_t *npi_new_object(void);

/* "2026-01-31T12:00:00.123456789Z"; bytes >= 36. */
void npi_format_time(char *text, size_t bytes, uint64_t realtime_ns);

#endif
