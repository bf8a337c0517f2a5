/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Debug asserts (NUMAPOOL_CHECK=1): the whole ledger is checked where a client leaves its slow paths, and a
 * finding ends the process, so that the bug is seen where it happened. In other builds this is empty.
 */
#include "client/client_internal.h"

#if NUMAPOOL_CHECK
#include <stdio.h>
#include <stdlib.h>

#include "core/check.h"

static void say(void *context, const char *finding) {
  const struct np_client *client = context;
  fprintf(stderr, "numapool: client %u: %s\n", client->index, finding);
}

void npi_client_verify(const struct np_client *client) {
  if (client->ledger == NULL) return;
  if (npi_check_pool(&client->pool, say, (void *)(uintptr_t)client) != 0) abort();
}
#else
void npi_client_verify(const struct np_client *client) {
  (void)client;
}
#endif
