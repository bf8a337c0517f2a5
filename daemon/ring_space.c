/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/ring_space.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

int npi_ring_space_init(struct npi_ring_space *space, uint64_t offset, uint64_t bytes) {
  space->room = 8;
  space->n_gaps = 1;
  space->gaps = malloc(space->room * sizeof *space->gaps);
  if (space->gaps == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a client's ring places");
  space->gaps[0] = (struct npi_ring_gap){offset, bytes};
  return 0;
}

void npi_ring_space_deinit(struct npi_ring_space *space) {
  free(space->gaps);
  memset(space, 0, sizeof *space);
}

int npi_ring_space_take(struct npi_ring_space *space, uint64_t bytes, uint64_t *offset) {
  uint64_t largest = 0;
  for (uint32_t i = 0; i < space->n_gaps; i++) {
    struct npi_ring_gap *gap = &space->gaps[i];
    if (gap->bytes > largest) largest = gap->bytes;
    if (gap->bytes < bytes) continue;
    *offset = gap->offset;
    gap->offset += bytes;
    gap->bytes -= bytes;
    if (gap->bytes == 0) {
      memmove(gap, gap + 1, (space->n_gaps - i - 1) * sizeof *gap);
      space->n_gaps--;
    }
    return 0;
  }
  return npi_fail(NP_ERR_LIMIT,
                  "no place for a ring of %" PRIu64 " bytes in the client's page: the largest gap has %" PRIu64
                  "; use fewer credits or connections",
                  bytes, largest);
}

static int insert_gap(struct npi_ring_space *space, uint32_t at, uint64_t offset, uint64_t bytes) {
  if (space->n_gaps == space->room) {
    uint32_t room = space->room > 0 ? 2 * space->room : 8;
    struct npi_ring_gap *grown = realloc(space->gaps, room * sizeof *grown);
    if (grown == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a client's ring places");
    space->gaps = grown;
    space->room = room;
  }
  memmove(&space->gaps[at + 1], &space->gaps[at], (space->n_gaps - at) * sizeof *space->gaps);
  space->gaps[at] = (struct npi_ring_gap){offset, bytes};
  space->n_gaps++;
  return 0;
}

int npi_ring_space_claim(struct npi_ring_space *space, uint64_t offset, uint64_t bytes) {
  for (uint32_t i = 0; i < space->n_gaps; i++) {
    struct npi_ring_gap *gap = &space->gaps[i];
    uint64_t end = gap->offset + gap->bytes;
    if (offset < gap->offset || offset >= end) continue;
    if (bytes > end - offset) break;
    uint64_t after = end - offset - bytes;
    gap->bytes = offset - gap->offset;
    if (gap->bytes > 0) return after == 0 ? 0 : insert_gap(space, i + 1, offset + bytes, after);
    *gap = (struct npi_ring_gap){offset + bytes, after};
    if (after > 0) return 0;
    memmove(gap, gap + 1, (space->n_gaps - i - 1) * sizeof *gap);
    space->n_gaps--;
    return 0;
  }
  return npi_fail(NP_ERR_CORRUPT, "a ring of %" PRIu64 " bytes at %" PRIu64 " lies where another one is", bytes,
                  offset);
}

void npi_ring_space_give(struct npi_ring_space *space, uint64_t offset, uint64_t bytes) {
  uint32_t at = 0;
  while (at < space->n_gaps && space->gaps[at].offset < offset) at++;
  struct npi_ring_gap *before = at > 0 ? &space->gaps[at - 1] : NULL;
  struct npi_ring_gap *after = at < space->n_gaps ? &space->gaps[at] : NULL;
  int joins_before = before != NULL && before->offset + before->bytes == offset;
  int joins_after = after != NULL && offset + bytes == after->offset;
  if (joins_before && joins_after) {
    before->bytes += bytes + after->bytes;
    memmove(after, after + 1, (space->n_gaps - at - 1) * sizeof *after);
    space->n_gaps--;
  } else if (joins_before) {
    before->bytes += bytes;
  } else if (joins_after) {
    after->offset = offset;
    after->bytes += bytes;
  } else {
    insert_gap(space, at, offset, bytes); /* where that fails, the place is lost until its client goes */
  }
}
