/* SPDX-License-Identifier: Apache-2.0 */
#include "line_reader.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int npi_line_reader_init(struct npi_line_reader *reader, int fd, size_t longest) {
  memset(reader, 0, sizeof *reader);
  reader->fd = fd;
  reader->size = longest + 1;
  reader->buffer = malloc(reader->size);
  return reader->buffer == NULL ? -1 : 0;
}

void npi_line_reader_free(struct npi_line_reader *reader) {
  free(reader->buffer);
  reader->buffer = NULL;
}

static enum npi_line fill(struct npi_line_reader *reader) {
  if (reader->begin > 0) {
    memmove(reader->buffer, reader->buffer + reader->begin, reader->end - reader->begin);
    reader->end -= reader->begin;
    reader->begin = 0;
  }
  ssize_t got = read(reader->fd, reader->buffer + reader->end, reader->size - reader->end);
  if (got < 0) return errno == EINTR ? NPI_LINE_INTERRUPTED : NPI_LINE_ERROR;
  if (got == 0) reader->at_end = 1;
  reader->end += (size_t)got;
  return NPI_LINE_OK;
}

enum npi_line npi_line_next(struct npi_line_reader *reader, const uint8_t **line, size_t *n) {
  size_t looked = 0;
  for (;;) {
    const uint8_t *begin = reader->buffer + reader->begin;
    size_t there = reader->end - reader->begin;
    const uint8_t *newline = looked < there ? memchr(begin + looked, '\n', there - looked) : NULL;
    if (newline != NULL || (reader->at_end && (there > 0 || reader->skipping))) {
      int too_long = reader->skipping;
      *line = begin;
      *n = newline != NULL ? (size_t)(newline - begin) : there;
      reader->begin += newline != NULL ? *n + 1 : *n;
      reader->skipping = 0;
      reader->number++;
      return too_long || *n >= reader->size ? NPI_LINE_TOO_LONG : NPI_LINE_OK;
    }
    if (reader->at_end) return NPI_LINE_END;
    looked = there;
    if (there == reader->size) { /* full without a newline: what is there is part of a line too long */
      reader->skipping = 1;
      reader->begin = reader->end = 0;
      looked = 0;
    } else if (reader->skipping) {
      reader->begin = reader->end = 0;
      looked = 0;
    }
    enum npi_line result = fill(reader);
    if (result != NPI_LINE_OK) return result;
  }
}
