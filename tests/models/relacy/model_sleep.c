/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A subscriber goes to sleep and is woken, by the doorbell of core/doorbell.h: two publishers, one of which could not
 * register for membarrier. Awake, fenced and asleep, several episodes. Here nothing bounds a sleep, so a wake-up that
 * is lost stays lost. A publisher that is killed between its store and its ring is the one excuse: the broker rings
 * for it.
 */
#include "core/doorbell.h"
#include "core/ring.h"
#include "model.h"
#include "numapool/status.h"

enum { SLEEPER, REGISTERED, UNREGISTERED, CAPACITY = 2, EVENTS = 2, ROUNDS = 6 };

static const char *const mutants[] = {"no membarrier",
                                      "no fence of a sleeper that slept lately",
                                      "no fence before the peer's second look",
                                      "no second look of the sleeper",
                                      "peer looks before it stores",
                                      "episodes have all one number",
                                      "an unregistered peer that does not fence",
                                      NULL};
const char *const model_paths[] = {"slept and was woken",
                                   "found at the second look",
                                   "slept for good, nothing there",
                                   "went to sleep from awake",
                                   "went to sleep from fenced",
                                   "a publisher killed",
                                   "slept beside a killed one's event",
                                   NULL};

static struct npi_ring ring[2];
static struct npi_doorbell_shm *shm;
static struct npi_ring_block *block[2];
static struct npi_bell bell;
static struct npi_bell_peer peer[2];
static uint64_t taken[2];
static int sleeps_for_good;

static void set_up(void) {
  for (unsigned i = 0; i < 2; i++) {
    block[i] = model_ring(CAPACITY, MODEL_SUBMISSIONS);
    npi_ring_attach(&ring[i], block[i], CAPACITY);
  }
  shm = (void *)model_word(MODEL_BELL);
}

static void begin(void) {
  for (unsigned i = 0; i < 2; i++) {
    npi_ring_format(block[i], CAPACITY);
    peer[i] = (struct npi_bell_peer){.shm = shm, .fd = -1, .must_fence = i == 1};
    taken[i] = 0;
  }
  if (model_mutant == 7) peer[1].must_fence = 0;
  npi_bell_init(&bell, shm, model_random(3) != 0);
  sleeps_for_good = 0;
  unsigned victim = model_random(4);
  if (victim == REGISTERED || victim == UNREGISTERED) model_kill(victim, 10);
  model_weak.no_membarrier = model_mutant == 1;
  model_weak.no_fence = (model_mutant == 2) << SLEEPER | (unsigned)(model_mutant == 3) << REGISTERED |
                        (unsigned)(model_mutant == 3) << UNREGISTERED;
}

static int something_there(void) {
  uint64_t element;
  return npi_ring_load(&ring[0], taken[0], &element) || npi_ring_load(&ring[1], taken[1], &element);
}

static void take_all(void) {
  uint64_t element;
  for (unsigned i = 0; i < 2; i++) {
    while (npi_ring_load(&ring[i], taken[i], &element)) {
      MODEL_ASSERT((element & NPI_ELEMENT_BODY_MASK) == taken[i] + 1);
      taken[i]++;
    }
  }
}

static void sleeper(void) {
  for (unsigned round = 0; round < ROUNDS && taken[0] + taken[1] < 2 * EVENTS; round++) {
    take_all();
    if (bell.state == NPI_BELL_FENCED && model_random(3) == 0)
      npi_bell_calm(&bell, bell.slept_ns + NPI_BELL_FENCED_NS + 1);
    model_path[bell.state == NPI_BELL_AWAKE ? 3 : 4]++;
    if (model_mutant == 6) bell.episode = 0;
    if (npi_bell_go_to_sleep(&bell)) model_membarrier(1u << REGISTERED);
    if (model_mutant != 4 && something_there()) {
      model_path[1]++;
      npi_bell_wake_up(&bell, 1);
      continue;
    }
    int woken = 0;
    for (unsigned look = 0; look < 4 && !woken; look++) {
      model_yield();
      woken = model_event_take();
    }
    if (!woken) {
      sleeps_for_good = 1;
      return;
    }
    model_path[0]++;
    npi_bell_wake_up(&bell, 1);
  }
}

static void publisher(unsigned i) {
  for (uint64_t n = 0; n < EVENTS; n++) {
    if (model_mutant == 5) {
      int rings = npi_bell_look(&peer[i]) && npi_bell_must_ring(&peer[i]);
      npi_ring_store(&ring[i], n, n + 1);
      if (rings) model_event_ring();
    } else {
      npi_ring_store(&ring[i], n, n + 1);
      if (npi_bell_look(&peer[i]) && npi_bell_must_ring(&peer[i])) model_event_ring();
    }
    if (model_random(2)) model_yield();
  }
}

static void thread(unsigned number) {
  if (number == SLEEPER) {
    sleeper();
  } else {
    publisher(number - REGISTERED);
  }
}

static void end(void) {
  uint64_t element;
  int unread = 0;
  for (unsigned i = 0; i < 2; i++) {
    int died = model_is_dead(REGISTERED + i);
    model_path[5] += died;
    if (!sleeps_for_good || !npi_ring_load(&ring[i], taken[i], &element)) continue;
    unread = 1;
    model_path[6] += died;
    if (model_event_value() == 0 && !died) model_fail("asleep beside an event, and nobody will ring");
  }
  model_path[2] += sleeps_for_good && !unread;
}

const struct model model = {"sleep", mutants, 3, set_up, begin, thread, end};
