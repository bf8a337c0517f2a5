/* SPDX-License-Identifier: Apache-2.0 */
#include "core/inlet.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

int npi_inlet_init(struct npi_inlet *inlet, struct npi_ring_block *returns, const struct npi_ring_block *submissions,
                   uint32_t capacity, const struct npi_segment_view *segments, uint32_t n_segments) {
  memset(inlet, 0, sizeof *inlet);
  inlet->held = calloc(capacity, sizeof *inlet->held);
  if (inlet->held == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a connection of %u credits", capacity);
  inlet->block = returns;
  inlet->peer_block = submissions;
  inlet->segments = segments;
  inlet->n_segments = n_segments;
  inlet->capacity = capacity;
  /* The submissions are mapped read-only; the ring's functions for readers only load. */
  npi_ring_attach(&inlet->submissions, (struct npi_ring_block *)(uintptr_t)submissions, capacity);
  npi_ring_attach(&inlet->returns, returns, capacity);
  return 0;
}

void npi_inlet_deinit(struct npi_inlet *inlet) {
  free(inlet->held);
  inlet->held = NULL;
}
