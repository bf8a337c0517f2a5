/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Places for ring blocks in a client's page: first fit over a sorted list of gaps. The list is the broker's
 * own memory; nothing of it lies in the page, which the client can write.
 */
#ifndef NPI_DAEMON_RING_SPACE_H
#define NPI_DAEMON_RING_SPACE_H

#include <stdint.h>

struct npi_ring_gap {
  uint64_t offset, bytes;
};

struct npi_ring_space {
  struct npi_ring_gap *gaps; /* by offset, never adjacent */
  uint32_t n_gaps, room;
};

/* The whole range is one gap. */
int npi_ring_space_init(struct npi_ring_space *space, uint64_t offset, uint64_t bytes);
void npi_ring_space_deinit(struct npi_ring_space *space);

/* bytes is a multiple of a cache line. NP_ERR_LIMIT: no gap is that large. */
int npi_ring_space_take(struct npi_ring_space *space, uint64_t bytes, uint64_t *offset);

/* Takes a place that a predecessor had given out. NP_ERR_CORRUPT: it is not free. */
int npi_ring_space_claim(struct npi_ring_space *space, uint64_t offset, uint64_t bytes);

/* Gives back exactly what was taken. */
void npi_ring_space_give(struct npi_ring_space *space, uint64_t offset, uint64_t bytes);

#endif
