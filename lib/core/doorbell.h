/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The doorbell: how a process that found nothing goes to sleep, and how others know that they must wake it.
 *
 * The word lies in the sleeper's page; only the sleeper writes it, its peers (who store into rings that it
 * reads) look at it after their store. States:
 *
 *   AWAKE    peers do nothing, not even a fence
 *   FENCED   awake, but slept lately: peers make a full fence and look again
 *   ASLEEP   peers ring (write the eventfd), once for each episode
 *
 *   sleeper                                       peer
 *   1  word = ASLEEP, new episode                 1  store the element            [ring.submit/return]
 *   2  full barrier (below)                       2  compiler barrier; load word  [bell.look]
 *   3  look again at every ring; found: word =    3  AWAKE: done
 *      FENCED, done                               4  full fence; load word        [bell.look-again]
 *   4  sleep on the eventfd, with a bound         5  ASLEEP and this episode not rung yet: ring
 *
 * Why no wake-up is lost. If the peer's load 2 (or 4) sees ASLEEP it rings. Otherwise it saw an older word:
 *  - Was the word AWAKE before, the sleeper's barrier is an expedited membarrier, which puts a full barrier
 *    into every running thread of the peers (they registered for it before their first store). Relative to
 *    that barrier the peer's pair (store 1, load 2) is either wholly before: its element is visible to look
 *    3; or its load is after: it sees ASLEEP; or the barrier falls between: then the store is before it and
 *    visible as well. The compiler barrier keeps the pair in order, which is all that the argument needs.
 *  - Was the word FENCED, then the peer passes its own full fence between store 1 and load 4, and the
 *    sleeper one between its store 1 and look 3: of two such sides at least one sees the other's store.
 *
 * So the price of a quick publish is paid by the sleeper, and a membarrier (which interrupts every busy
 * registered core, 5 to 9 us) is paid only for the first sleep in a while: a waking sleeper goes to FENCED
 * and further sleeps need only its own fence. After FENCED_NS without sleep it goes back to AWAKE.
 * Where membarrier is refused the word is FENCED for ever, which is always right. Where it begins to be
 * refused while the word is AWAKE, the sleeper naps once between step 2 and look 3, for longer than a store
 * stays in a buffer. A peer whose own registration was refused fences at every look.
 *
 * A wake can still be lost with its sender, killed between store and ring: so every sleep of ours has a
 * bound (NPI_SLEEP_BOUND_NS), and the broker rings the peers of whoever died; also for those who sleep in an
 * epoll of their own while something lies in their rings (daemon/sleepers.h).
 */
#ifndef NPI_CORE_DOORBELL_H
#define NPI_CORE_DOORBELL_H

#include "base/atomics.h"
#include "shm/layout.h"

enum npi_bell_state { NPI_BELL_AWAKE = 0, NPI_BELL_FENCED = 1, NPI_BELL_ASLEEP = 2 };

#define NPI_BELL_FENCED_NS UINT64_C(10000000) /* back to AWAKE after so long without sleep */
#define NPI_SLEEP_BOUND_NS INT64_C(50000000)  /* no sleep of ours is longer */

/* The sleeper's side. */
struct npi_bell {
  struct npi_doorbell_shm *shm;
  uint32_t episode;
  uint32_t state;         /* copy of what the word says: only this thread writes it */
  uint32_t always_fenced; /* membarrier is refused here */
  uint64_t slept_ns;      /* when it last woke */
};

/* A peer's side: where to look, and which episode it has rung for. */
struct npi_bell_peer {
  const struct npi_doorbell_shm *shm;
  int fd;
  uint32_t rung_episode;
  uint32_t must_fence; /* this process could not register for membarrier */
};

static inline void npi_bell_store(struct npi_bell *bell, uint32_t state) {
  bell->state = state;
  /* Only ASLEEP needs more, which its caller adds: a peer that misses the way back fences or rings in vain. */
  npi_store_release_u64(&bell->shm->word, (uint64_t)bell->episode << 32 | state);
}

static inline void npi_bell_init(struct npi_bell *bell, struct npi_doorbell_shm *shm, int membarrier_works) {
  bell->shm = shm;
  bell->episode = 0;
  bell->slept_ns = 0;
  bell->always_fenced = !membarrier_works;
  npi_bell_store(bell, bell->always_fenced ? NPI_BELL_FENCED : NPI_BELL_AWAKE);
}

/*
 * Step 1. Returns 1 when step 2 has to be a membarrier, which is the caller's (a system call); where it
 * returns 0 the fence has been made here.
 */
static inline int npi_bell_go_to_sleep(struct npi_bell *bell) {
  int from_awake = bell->state == NPI_BELL_AWAKE;
  bell->episode++;
  npi_bell_store(bell, NPI_BELL_ASLEEP);
  if (from_awake) return 1; /* [bell.sleep] comes from the membarrier */
  npi_fence_full();         /* [bell.sleep] before the second look. Pairs with [bell.look], [bell.look-again] */
  return 0;
}

/* Awake again, whether it slept or found something at the second look. */
static inline void npi_bell_wake_up(struct npi_bell *bell, uint64_t now_ns) {
  bell->slept_ns = now_ns;
  npi_bell_store(bell, NPI_BELL_FENCED);
}

/* From time to time while busy: back to the state that costs peers nothing. */
static inline void npi_bell_calm(struct npi_bell *bell, uint64_t now_ns) {
  if (bell->state == NPI_BELL_FENCED && !bell->always_fenced && now_ns - bell->slept_ns > NPI_BELL_FENCED_NS) {
    npi_bell_store(bell, NPI_BELL_AWAKE);
  }
}

/* Never AWAKE: who looks here goes on to npi_bell_must_ring each time. */
extern const struct npi_doorbell_shm npi_bell_never_awake;

/* Where a peer that is in a hurry looks: a word that is not AWAKE when anything at all has to be done. */
static inline const struct npi_atomic_u64 *npi_bell_word(const struct npi_bell_peer *peer) {
  return peer->must_fence ? &npi_bell_never_awake.word : &peer->shm->word;
}
static inline int npi_bell_word_look(const struct npi_atomic_u64 *word) {
  npi_barrier_compiler(); /* [bell.look] as below */
  return NPI_UNLIKELY((uint32_t)npi_load_relaxed_u64(word) != NPI_BELL_AWAKE);
}

/* Step 2 of a peer, inline: 0 means that the other side is awake and nothing has to be done. */
static inline int npi_bell_look(const struct npi_bell_peer *peer) {
  npi_barrier_compiler(); /* [bell.look] after the element's store, in the order the compiler emits */
  return NPI_UNLIKELY((uint32_t)npi_load_relaxed_u64(&peer->shm->word) != NPI_BELL_AWAKE || peer->must_fence);
}

/* Steps 4 and 5 of a peer: returns 1 when the caller has to write peer->fd. Called once after a batch. */
int npi_bell_must_ring(struct npi_bell_peer *peer);

#endif
