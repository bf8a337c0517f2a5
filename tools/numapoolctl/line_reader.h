/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of a descriptor, of bounded length, each as soon as it is complete. */
#ifndef NUMAPOOLCTL_LINE_READER_H
#define NUMAPOOLCTL_LINE_READER_H

#include <stddef.h>
#include <stdint.h>

enum npi_line { NPI_LINE_END, NPI_LINE_OK, NPI_LINE_TOO_LONG, NPI_LINE_ERROR, NPI_LINE_INTERRUPTED };

struct npi_line_reader {
  int fd;
  uint8_t *buffer;
  size_t size;  /* of the buffer: longest line, and its newline */
  size_t begin; /* of what was not handed out yet */
  size_t end;
  int skipping; /* the rest of a line that is too long */
  int at_end;
  uint64_t number; /* of the line that was handed out last, from 1 */
};

/* longest: bytes of a line without its newline. -1: out of memory. */
int npi_line_reader_init(struct npi_line_reader *reader, int fd, size_t longest);
void npi_line_reader_free(struct npi_line_reader *reader);

/*
 * The next line without its newline; valid until the next call. The last one may lack its newline.
 * TOO_LONG: a line was passed over. ERROR: errno says why. INTERRUPTED: by a signal; call again to go on.
 */
enum npi_line npi_line_next(struct npi_line_reader *reader, const uint8_t **line, size_t *n);

#endif
