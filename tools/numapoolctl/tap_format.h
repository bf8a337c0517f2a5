/* SPDX-License-Identifier: Apache-2.0 */
/* The forms in which tap prints an event. */
#ifndef NUMAPOOLCTL_TAP_FORMAT_H
#define NUMAPOOLCTL_TAP_FORMAT_H

#include <numapool/numapool.h>
#include <stdio.h>

enum npi_tap_format { NPI_TAP_TEXT, NPI_TAP_JSON, NPI_TAP_RAW, NPI_TAP_HEX };

/* 0, or -1: there is no such format. */
int npi_tap_parse_format(const char *text, enum npi_tap_format *format);

/* source NULL: the event is from a program. What cannot be written shows in ferror(out). */
void npi_tap_print(FILE *out, enum npi_tap_format format, const char *channel, const struct np_event *event,
                   const struct np_source *source);

#endif
