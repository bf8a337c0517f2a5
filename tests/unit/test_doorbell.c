/* SPDX-License-Identifier: Apache-2.0 */
/* The doorbell's states as the two sides see them, one thread; the race itself is in tests/stress. */
#include <criterion/criterion.h>
#include <string.h>

#include "core/doorbell.h"

TestSuite(doorbell, .timeout = 10);

static struct npi_doorbell_shm shm;
static struct npi_bell bell;
static struct npi_bell_peer peer;

static void begin(int membarrier_works) {
  memset(&shm, 0, sizeof shm);
  memset(&peer, 0, sizeof peer);
  npi_bell_init(&bell, &shm, membarrier_works);
  peer.shm = &shm;
  peer.fd = -1;
}

static uint32_t state_in_memory(void) {
  return (uint32_t)npi_load_relaxed_u64(&shm.word);
}

Test(doorbell, an_awake_sleeper_costs_its_peers_nothing) {
  begin(1);
  cr_expect_eq(state_in_memory(), NPI_BELL_AWAKE);
  cr_expect_eq(npi_bell_look(&peer), 0);
}

Test(doorbell, a_sleeper_is_rung_once_for_each_sleep_by_each_peer) {
  struct npi_bell_peer other;
  begin(1);
  other = peer;
  for (int sleep = 0; sleep < 5; sleep++) {
    npi_bell_go_to_sleep(&bell);
    cr_expect_eq(state_in_memory(), NPI_BELL_ASLEEP);
    cr_expect_eq(npi_bell_look(&peer), 1);
    cr_expect_eq(npi_bell_must_ring(&peer), 1, "the first store of sleep %d rings", sleep);
    cr_expect_eq(npi_bell_must_ring(&peer), 0, "the second does not");
    cr_expect_eq(npi_bell_must_ring(&other), 1, "another peer cannot know that somebody rang");
    npi_bell_wake_up(&bell, 1000);
    cr_expect_eq(npi_bell_look(&peer), 1, "it slept lately: peers look again behind a fence");
    cr_expect_eq(npi_bell_must_ring(&peer), 0, "but do not ring");
  }
}

Test(doorbell, only_the_first_sleep_in_a_while_needs_a_membarrier) {
  begin(1);
  cr_expect_eq(npi_bell_go_to_sleep(&bell), 1, "from AWAKE: peers make no fence");
  npi_bell_wake_up(&bell, 5000);
  cr_expect_eq(npi_bell_go_to_sleep(&bell), 0, "from FENCED: they do");
  npi_bell_wake_up(&bell, 6000);
  npi_bell_calm(&bell, 6000 + NPI_BELL_FENCED_NS);
  cr_expect_eq(state_in_memory(), NPI_BELL_FENCED, "not yet long enough awake");
  npi_bell_calm(&bell, 6001 + NPI_BELL_FENCED_NS);
  cr_expect_eq(state_in_memory(), NPI_BELL_AWAKE);
  cr_expect_eq(npi_bell_go_to_sleep(&bell), 1);
}

Test(doorbell, calming_a_sleeper_leaves_it_asleep) {
  begin(1);
  npi_bell_go_to_sleep(&bell);
  npi_bell_calm(&bell, UINT64_MAX);
  cr_expect_eq(state_in_memory(), NPI_BELL_ASLEEP);
}

Test(doorbell, without_membarrier_the_word_is_fenced_for_ever) {
  begin(0);
  cr_expect_eq(state_in_memory(), NPI_BELL_FENCED);
  cr_expect_eq(npi_bell_look(&peer), 1);
  cr_expect_eq(npi_bell_go_to_sleep(&bell), 0, "its own fence is enough");
  npi_bell_wake_up(&bell, 1);
  npi_bell_calm(&bell, UINT64_MAX);
  cr_expect_eq(state_in_memory(), NPI_BELL_FENCED);
}

Test(doorbell, a_peer_without_membarrier_looks_again_behind_a_fence_each_time) {
  begin(1);
  peer.must_fence = 1;
  cr_expect_eq(npi_bell_look(&peer), 1, "also while the sleeper is awake");
  cr_expect_eq(npi_bell_must_ring(&peer), 0);
}

Test(doorbell, an_episode_is_told_from_the_one_that_the_peer_rang_for_across_the_wrap) {
  begin(1);
  bell.episode = UINT32_MAX - 1;
  for (int i = 0; i < 4; i++) {
    npi_bell_go_to_sleep(&bell);
    cr_expect_eq(npi_bell_must_ring(&peer), 1, "sleep %d", i);
    cr_expect_eq(npi_bell_must_ring(&peer), 0, "sleep %d", i);
    npi_bell_wake_up(&bell, 1);
  }
}
