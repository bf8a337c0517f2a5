/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program can ask about after the fact. A client keeps few notices, oldest first. Where there is no room, two
 * of one kind become one that counts for both: more than kinds do not fit without two of one kind, so none is lost.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "client/client_internal.h"

_Static_assert((int)NPI_NOTICES_MAX > (int)NP_NOTICE_REFUSED, "with more notices than kinds, two are of one kind");

static void take_out(struct npi_notices *notices, uint32_t at) {
  notices->n--;
  memmove(&notices->list[at], &notices->list[at + 1], (notices->n - at) * sizeof notices->list[0]);
}

/* The oldest notice that a younger one of its kind follows is added to that. */
static void merge_two(struct npi_notices *notices) {
  for (uint32_t i = 0; i < notices->n; i++) {
    for (uint32_t j = i + 1; j < notices->n; j++) {
      const struct np_notice *older = &notices->list[i];
      struct np_notice *younger = &notices->list[j];
      if (older->kind != younger->kind) continue;
      if (older->pid != younger->pid) younger->pid = 0;
      younger->count += older->count;
      take_out(notices, i);
      return;
    }
  }
}

void npi_client_notify(struct np_client *client, uint32_t kind, uint32_t pid, const char *format, ...) {
  struct npi_notices *notices = &client->notices;
  struct np_notice *last = notices->n > 0 ? &notices->list[notices->n - 1] : NULL;
  if (last == NULL || last->kind != kind || last->pid != pid) {
    if (notices->n == NPI_NOTICES_MAX) merge_two(notices);
    last = &notices->list[notices->n++];
    *last = (struct np_notice){.kind = kind, .pid = pid};
  }
  last->count++;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last->text, sizeof last->text, format, arguments);
  va_end(arguments);
}

int np_client_notice(struct np_client *client, struct np_notice *notice) {
  if (!npi_client_usable(client)) return npi_client_forked();
  if (notice == NULL || notice->size < sizeof(uint32_t)) {
    return npi_fail(NP_ERR_ARGUMENT, "notice->size must be set to sizeof(struct np_notice)");
  }
  npi_client_look(client);
  if (client->notices.n == 0) return NP_EMPTY;
  uint32_t size = notice->size < sizeof *notice ? notice->size : (uint32_t)sizeof *notice;
  memcpy((uint8_t *)notice + sizeof size, (const uint8_t *)&client->notices.list[0] + sizeof size, size - sizeof size);
  take_out(&client->notices, 0);
  return NP_OK;
}
