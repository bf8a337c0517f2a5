/* SPDX-License-Identifier: Apache-2.0 */
/*
 * No wake-up is lost: publishers that sleep when they have no credit, a subscriber that sleeps when it has no
 * event, with doorbells and eventfds as processes use them. All of them wait for each other only, so one
 * wake-up lost is a sleep that reaches its bound of two seconds with something to do; then the program fails.
 *
 * Two protocols: always fenced (where membarrier is refused), and awake, with a membarrier before each first
 * sleep. In the second, sleepers go back to AWAKE at random moments instead of after 10 ms, so that the way
 * through the membarrier is taken often.
 *
 * stress_doorbell [EVENTS]   of each publisher in each part; default 100000
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os/os_clock.h"
#include "os/os_wait.h"
#include "support/core_pair.h"

enum { PUBLISHERS_MAX = 2 };
#define BOUND_NS INT64_C(2000000000)

struct sleeper {
  struct npi_bell bell;
  struct npi_doorbell_shm *shm;
  int fd;
  uint64_t random;
  uint64_t n_sleeps, n_barriers, n_saved, n_late, n_lost, n_rings;
};

struct publisher {
  struct core_pair pair;
  struct core_end *end;
  struct sleeper sleeper;          /* waits for credit */
  struct npi_bell_peer to_events;  /* rings the subscriber */
  struct npi_bell_peer to_credits; /* the subscriber's view of this sleeper */
  uint64_t next;                   /* that the subscriber must see */
};

struct part {
  uint32_t n_publishers;
  uint64_t n_events;
  struct publisher publisher[PUBLISHERS_MAX];
  struct sleeper sleeper; /* waits for events */
  uint64_t n_wrong;
  struct npi_atomic_u32 stop; /* somebody lost a wake-up */
};
static struct part part;

static void sleeper_open(struct sleeper *sleeper, int membarrier_works, uint64_t seed) {
  memset(sleeper, 0, sizeof *sleeper);
  sleeper->shm = aligned_alloc(NPI_CACHE_LINE, sizeof *sleeper->shm);
  if (sleeper->shm == NULL || npi_event_create(&sleeper->fd) != 0) exit(2);
  sleeper->random = seed;
  npi_bell_init(&sleeper->bell, sleeper->shm, membarrier_works);
}

static void sleeper_close(struct sleeper *sleeper) {
  close(sleeper->fd);
  free(sleeper->shm);
}

static void spin_a_little(uint64_t *random) {
  if (core_random(random) % 4 != 0) return;
  for (uint64_t i = core_random(random) % 200; i > 0; i--) npi_pause();
}

static void ring(struct sleeper *sleeper, struct npi_bell_peer *peer) {
  if (!npi_bell_look(peer) || !npi_bell_must_ring(peer)) return;
  sleeper->n_rings++;
  npi_event_ring(peer->fd);
}

/* Sleeps unless there is something to do at the second look. */
static void sleep_unless(struct sleeper *sleeper, int (*look)(void *), void *context) {
  spin_a_little(&sleeper->random);
  if (npi_bell_go_to_sleep(&sleeper->bell)) {
    sleeper->n_barriers++;
    if (npi_membarrier_all() != 0) exit(2);
  }
  if (look(context)) {
    sleeper->n_saved++;
  } else {
    sleeper->n_sleeps++;
    if (npi_wait_readable(&sleeper->fd, 1, BOUND_NS) == 0) {
      /* Nothing to do: the others are slow. Something, and the ring comes yet: its sender was. */
      if (look(context)) {
        if (npi_wait_readable(&sleeper->fd, 1, BOUND_NS) != 0) {
          sleeper->n_late++;
        } else {
          sleeper->n_lost++;
          npi_store_release_u32(&part.stop, 1);
        }
      }
    }
    npi_event_clear(sleeper->fd);
  }
  npi_bell_wake_up(&sleeper->bell, 1);
  if (core_random(&sleeper->random) % 8 == 0) npi_bell_calm(&sleeper->bell, NPI_BELL_FENCED_NS * 2);
}

static int has_credit(void *context) {
  struct publisher *publisher = context;
  npi_flow_reap(&publisher->pair.flow);
  return publisher->end->outlet.entry->outstanding < publisher->end->outlet.entry->limit;
}

static int has_event(void *context) {
  (void)context;
  uint64_t element;
  for (uint32_t i = 0; i < part.n_publishers; i++) {
    if (npi_inlet_look(&part.publisher[i].end->inlet, &element)) return 1;
  }
  return 0;
}

static void *publish(void *argument) {
  struct publisher *publisher = argument;
  for (uint64_t number = 0; number < part.n_events && !npi_load_acquire_u32(&part.stop);) {
    if (core_publish(&publisher->pair, &number, sizeof number) == NP_OK) {
      number++;
      ring(&publisher->sleeper, &publisher->to_events);
      spin_a_little(&publisher->sleeper.random);
    } else {
      sleep_unless(&publisher->sleeper, has_credit, publisher);
    }
  }
  return NULL;
}

static void subscribe(void) {
  uint64_t n = 0, element;
  while (n < part.n_events * part.n_publishers && !npi_load_acquire_u32(&part.stop)) {
    uint64_t before = n;
    for (uint32_t i = 0; i < part.n_publishers; i++) {
      struct publisher *publisher = &part.publisher[i];
      struct npi_taken taken;
      if (core_take(publisher->end, &element, &taken) != NP_OK) continue;
      part.n_wrong += memcmp(taken.payload, &publisher->next, sizeof publisher->next) != 0;
      publisher->next++;
      part.n_wrong += npi_inlet_release(&publisher->end->inlet, element) != 0;
      ring(&part.sleeper, &publisher->to_credits);
      n++;
    }
    if (n == before) sleep_unless(&part.sleeper, has_event, NULL);
  }
}

static int run(int membarrier_works, uint32_t n_publishers, uint32_t limit, uint64_t n_events) {
  pthread_t thread[PUBLISHERS_MAX];
  struct sleeper sum;
  int failed = 0;
  memset(&part, 0, sizeof part);
  part.n_publishers = n_publishers;
  part.n_events = n_events;
  sleeper_open(&part.sleeper, membarrier_works, 77);
  for (uint32_t i = 0; i < n_publishers; i++) {
    struct publisher *publisher = &part.publisher[i];
    core_pair_open(&publisher->pair, &(struct core_options){.n_segments = 1, .segment_chunks = 1});
    publisher->end = core_connect(&publisher->pair, &(struct core_end_options){.limit = limit});
    sleeper_open(&publisher->sleeper, membarrier_works, 99 + i);
    publisher->to_events = (struct npi_bell_peer){.shm = part.sleeper.shm, .fd = part.sleeper.fd};
    publisher->to_credits = (struct npi_bell_peer){.shm = publisher->sleeper.shm, .fd = publisher->sleeper.fd};
  }
  uint64_t begin = npi_clock_monotonic();
  for (uint32_t i = 0; i < n_publishers; i++) {
    if (pthread_create(&thread[i], NULL, publish, &part.publisher[i]) != 0) return 1;
  }
  subscribe();
  for (uint32_t i = 0; i < n_publishers; i++) pthread_join(thread[i], NULL);
  double seconds = (double)(npi_clock_monotonic() - begin) / 1e9;
  sum = part.sleeper;
  for (uint32_t i = 0; i < n_publishers; i++) {
    struct publisher *publisher = &part.publisher[i];
    sum.n_sleeps += publisher->sleeper.n_sleeps;
    sum.n_barriers += publisher->sleeper.n_barriers;
    sum.n_saved += publisher->sleeper.n_saved;
    sum.n_late += publisher->sleeper.n_late;
    sum.n_lost += publisher->sleeper.n_lost;
    sum.n_rings += publisher->sleeper.n_rings;
    npi_flow_reap(&publisher->pair.flow);
    failed |= core_check(&publisher->pair) > 0;
    sleeper_close(&publisher->sleeper);
    core_pair_close(&publisher->pair);
  }
  sleeper_close(&part.sleeper);
  printf(
      "%-10s %u publishers, limit %2u: %llu events each in %.2f s, %.0f/s; %llu sleeps, %llu rings, %llu membarriers, "
      "%llu sleeps saved by the second look, %llu late, %llu lost, %llu wrong\n",
      membarrier_works ? "membarrier" : "fenced", n_publishers, limit, (unsigned long long)n_events, seconds,
      (double)(n_events * n_publishers) / seconds, (unsigned long long)sum.n_sleeps, (unsigned long long)sum.n_rings,
      (unsigned long long)sum.n_barriers, (unsigned long long)sum.n_saved, (unsigned long long)sum.n_late,
      (unsigned long long)sum.n_lost, (unsigned long long)part.n_wrong);
  return failed || sum.n_lost > 0 || part.n_wrong > 0 || sum.n_sleeps == 0;
}

/* ---- one store against one sleep, millions of times ---------------------------------------------------- */

/*
 * The race itself: in each round a peer stores one element and looks at the bell while the sleeper goes to
 * sleep and looks for the element. At least one of them must have seen the other. Nobody really sleeps, so
 * there are enough rounds for the few nanoseconds in which a missing fence shows.
 */
#define RACE_OVER UINT64_MAX

struct race {
  struct npi_ring ring;
  struct npi_bell bell;
  struct npi_bell_peer peer;
  struct npi_doorbell_shm *shm;
  struct npi_ring_block *block;
  cpu_set_t allowed;          /* that they may run on: each has one of its own, or nobody would be first by chance */
  struct npi_atomic_u64 go;   /* rounds that have begun */
  struct npi_atomic_u64 done; /* twice the rounds that the peer has done, and 1: it would have rung */
};

static uint64_t wait_for(const struct npi_atomic_u64 *word, uint64_t value, unsigned shift) {
  for (unsigned i = 1;; i++) {
    uint64_t seen = npi_load_acquire_u64(word);
    if (seen >> shift == value || seen == RACE_OVER) return seen;
    if (i % 512 == 0) sched_yield();
  }
}

static void idle(uint64_t turns) {
  for (volatile uint64_t i = turns; i > 0; i--) {
  }
}

/* Keeps the calling thread on the n-th processor that this program may use; 0 where there is none. */
static int stay_on(const cpu_set_t *allowed, int n) {
  cpu_set_t only;
  CPU_ZERO(&only);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, allowed) || n-- > 0) continue;
    CPU_SET(cpu, &only);
    return sched_setaffinity(0, sizeof only, &only) == 0;
  }
  return 0;
}

static void *race_peer(void *argument) {
  struct race *race = argument;
  uint64_t random = 5;
  stay_on(&race->allowed, 1);
  for (uint64_t round = 0;; round++) {
    uint64_t go = wait_for(&race->go, round + 1, 0);
    if (go == RACE_OVER) return NULL;
    idle((core_random(&random) >> 16) % 20);
    npi_ring_store(&race->ring, round, round & NPI_ELEMENT_BODY_MASK);
    uint64_t rang = npi_bell_look(&race->peer) && npi_bell_must_ring(&race->peer);
    npi_store_release_u64(&race->done, (round + 1) * 2 + rang);
  }
  return NULL;
}

static int run_race(int membarrier_works, uint64_t n_rounds) {
  static struct race race;
  uint64_t n_found = 0, n_rang = 0, n_lost = 0, random = 6, delay = 50, round = 0, element;
  uint64_t deadline = npi_clock_monotonic() + UINT64_C(5000000000); /* on a busy machine fewer rounds must do */
  pthread_t thread;
  memset(&race, 0, sizeof race);
  race.shm = aligned_alloc(NPI_CACHE_LINE, sizeof *race.shm);
  race.block = aligned_alloc(NPI_CACHE_LINE, npi_ring_block_bytes(64));
  if (race.shm == NULL || race.block == NULL) return 1;
  npi_ring_format(race.block, 64);
  npi_ring_attach(&race.ring, race.block, 64);
  npi_bell_init(&race.bell, race.shm, membarrier_works);
  race.peer.shm = race.shm;
  if (sched_getaffinity(0, sizeof race.allowed, &race.allowed) != 0) return 1;
  int is_race = CPU_COUNT(&race.allowed) > 1;
  if (pthread_create(&thread, NULL, race_peer, &race) != 0) return 1;
  stay_on(&race.allowed, 0);
  for (; round < n_rounds && (round % 1024 != 0 || npi_clock_monotonic() < deadline); round++) {
    npi_store_release_u64(&race.go, round + 1);
    idle(delay + (core_random(&random) >> 16) % 20);
    if (npi_bell_go_to_sleep(&race.bell) && npi_membarrier_all() != 0) exit(2);
    uint64_t found = (uint64_t)npi_ring_load(&race.ring, round, &element);
    wait_for(&race.done, round + 1, 1);
    uint64_t rang = npi_load_acquire_u64(&race.done) & 1;
    n_found += found;
    n_rang += rang;
    n_lost += !found && !rang;
    /* Towards the moment at which either may come first. */
    if (found && !rang && delay > 0) delay--;
    if (rang && !found && delay < 5000) delay++;
    npi_bell_wake_up(&race.bell, 1);
    npi_bell_calm(&race.bell, NPI_BELL_FENCED_NS * 2);
  }
  npi_store_release_u64(&race.go, RACE_OVER);
  pthread_join(thread, NULL);
  sched_setaffinity(0, sizeof race.allowed, &race.allowed);
  free(race.shm);
  free(race.block);
  printf("%-10s race: %llu rounds, found %llu, rung %llu, lost %llu\n", membarrier_works ? "membarrier" : "fenced",
         (unsigned long long)round, (unsigned long long)n_found, (unsigned long long)n_rang,
         (unsigned long long)n_lost);
  if (!is_race) printf("%-10s race: only one processor here, no race\n", "");
  return n_lost > 0 || (is_race && (n_found == 0 || n_rang == 0));
}

int main(int argc, char **argv) {
  uint64_t n = argc > 1 ? strtoull(argv[1], NULL, 10) : 100000;
  int failed = 0;
  failed |= run_race(0, n * 20);
  failed |= run(0, 1, 1, n);
  failed |= run(0, 1, 16, n);
  failed |= run(0, 2, 3, n);
  if (npi_membarrier_register() != 0 || npi_membarrier_all() != 0) {
    printf("membarrier is refused here: only the fenced protocol was run\n");
  } else {
    failed |= run_race(1, n * 2);
    failed |= run(1, 1, 1, n);
    failed |= run(1, 1, 16, n);
    failed |= run(1, 2, 3, n);
  }
  if (failed) printf("failed\n");
  return failed;
}
