/* SPDX-License-Identifier: Apache-2.0 */
#include "core/doorbell.h"

const struct npi_doorbell_shm npi_bell_never_awake = {.word = {NPI_BELL_FENCED}};

/* Out of line: the data path's functions hold no fence, and a sleeping peer costs a system call anyway. */
int npi_bell_must_ring(struct npi_bell_peer *peer) {
  npi_fence_full(); /* [bell.look-again] pairs with the sleeper's fence in npi_bell_go_to_sleep */
  uint64_t word = npi_load_acquire_u64(&peer->shm->word);
  uint32_t episode = (uint32_t)(word >> 32);
  if ((uint32_t)word != NPI_BELL_ASLEEP || episode == peer->rung_episode) return 0;
  peer->rung_episode = episode;
  return 1;
}
