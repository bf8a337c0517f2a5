/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The world that is stepped: publishers and subscribers as real clients of the library, a broker that only
 * keeps the books, and what each program has seen so far; all of it in one mapping that the stepped process
 * and its tracer share, at one address, so that the tracer can run the survivors where they are.
 *
 *   clients   struct np_client and all that hangs on it, made by the library's own functions
 *   broker    connections, who holds them, who was told (as daemon/connections.c does it)
 *   truth     by publisher and number: who must see the event, who has it, who gave it back
 *
 * Seams to what is not there are four functions of the library, replaced when linking: requests and words to
 * the broker, what the broker sends, the clock, and ringing. Memory that the library asks for comes from a
 * small heap of the client that runs: a dead client's heap is as torn as the client.
 */
#ifndef NUMAPOOL_TESTS_STEP_WORLD_H
#define NUMAPOOL_TESTS_STEP_WORLD_H

#include "client/client_internal.h"
#include "core/check.h"

enum {
  STEP_PUBLISHERS = 2,
  STEP_SUBSCRIBERS = 8,
  STEP_ACTORS = STEP_PUBLISHERS + STEP_SUBSCRIBERS, /* publishers first */
  STEP_CONNECTIONS = 32,                            /* in the broker's books at one time */
  STEP_RINGS = 12,                                  /* ring blocks in one page */
  STEP_CAPACITY = 16,
  STEP_CHUNKS = 2,
  STEP_SLOTS = 31,    /* of a chunk, of the class in use */
  STEP_CLASS = 5,     /* 8 KiB */
  STEP_LOANS = 4,     /* that a program keeps */
  STEP_HELD = 40,     /* rows in a program's list of what it holds */
  STEP_NUMBERS = 800, /* events of one publisher's life */
  STEP_QUEUE = 64,    /* frames on the way to a client */
  STEP_PEER_SEGMENTS = 1,
  STEP_HEAP_BYTES = 32 * 1024,
};

/* One connection in the broker's books. */
struct step_connection {
  uint32_t used, version;
  uint32_t publisher, subscriber; /* actors */
  uint32_t publisher_holds, subscriber_holds, publisher_told, subscriber_told;
  uint32_t publisher_ring, subscriber_ring;
  uint32_t on_full, flags, limit;
  uint64_t start;                           /* position at which both rings begin */
  uint64_t life;                            /* of the publisher */
  uint32_t first;                           /* number of the publisher's next event when it made its end */
  uint32_t publisher_made, subscriber_made; /* has it made its end? */
  uint32_t next;                            /* number that the subscriber may see next */
  uint32_t n_taken;                         /* by the subscriber, redelivered ones not counted */
  uint32_t n_missed;                        /* gaps that it saw */
  uint32_t n_got, n_released;               /* by its program, redelivered ones counted */
};

struct step_frame {
  uint32_t type; /* NPI_CONTROL_CONNECT, NPI_CONTROL_DISCONNECT */
  uint32_t connection, version, role, reason;
};

struct step_heap {
  uint32_t top;
  uint32_t free[64]; /* by size in lines; offset of the first, 0: none */
  uint8_t *memory;
};

enum step_kind { STEP_BROADCAST, STEP_GROUP };

/* What has become of an event of a group. */
enum step_fate {
  FATE_PENDING = 0, /* published; no member has taken it yet */
  FATE_HELD = 1,    /* taken by a member that lives */
  FATE_DONE = 2,    /* given back by a member */
  FATE_AGAIN = 3,   /* held by a member that died: must come again, marked */
  FATE_DROPPED = 4, /* nobody was to get it */
};

/* What a publisher's program knows of its events. */
struct step_truth {
  uint64_t life;                         /* +1 at each open: payloads name it */
  uint32_t accepted;                     /* numbers below were published */
  uint32_t is_lossy;                     /* it died, or closed, with events that had no member */
  uint32_t n_lost;                       /* counted by its library as lost with a member */
  uint64_t ended_elements, ended_tapped; /* on connections that are over; of these, for taps */
  uint64_t counted;                      /* as published, when it died */
  uint8_t fate[STEP_NUMBERS];
};

struct step_held {
  struct np_event event;
  uint32_t publisher; /* actor */
  uint32_t number;
  uint64_t life;
  uint32_t connection, version;
};

struct step_actor {
  struct np_client client;
  uint32_t alive_word;
  uint32_t is_dead;
  struct step_heap heap;
  struct npi_peer peers[STEP_ACTORS];
  struct npi_segment_view views[STEP_ACTORS][STEP_PEER_SEGMENTS];
  struct npi_pool_segment segments[1];
  int segment_fds[1];
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
  struct np_event loans[STEP_LOANS];
  uint32_t n_loans;
  struct np_event stale;        /* one that it published, discarded or released before */
  uint64_t hoarded[STEP_SLOTS]; /* their tokens */
  uint32_t n_hoarded;           /* slots that its program loaned at the beginning and keeps */
  struct step_held held[STEP_HELD];
  uint32_t n_held;
  struct step_frame queue[STEP_QUEUE];
  uint32_t queue_head, queue_tail;
  uint32_t events_sent;
  uint32_t rings_used; /* bits */
  uint32_t is_open;    /* in the broker's books */
  uint32_t endpoint;   /* version of its publisher or subscriber there, +1 at each open */
  uint32_t on_full, flags, limit;
  uint32_t last_again; /* number of the last event that came again, for the order among them */
  uint32_t n_rung;     /* wake-ups for its events */
  uint32_t n_rung_credits;
  uint32_t cleared, cleared_credits; /* of these, before it looked at its doorbell last */
};

/* Options of a world, drawn from its seed. */
struct step_options {
  uint64_t seed;
  uint32_t kind; /* enum step_kind */
  uint32_t group_on_full;
  uint32_t n_publishers, n_subscribers;
  uint32_t chunks;
  uint32_t near_wrap; /* positions and generations begin shortly before theirs */
  uint32_t limit;
  uint32_t sleepers;         /* clients use np_fd */
  uint32_t hoarded;          /* slots that a program keeps: loans run dry */
  uint32_t publishers_share; /* of the operations, in hundredths */
  uint32_t on_full[STEP_SUBSCRIBERS], flags[STEP_SUBSCRIBERS];
};

/* The operation that runs: what of it may or may not have happened if its process ends here. */
struct step_now {
  uint32_t actor;
  uint32_t operation; /* enum step_operation */
  uint32_t publisher; /* release: whose event */
  uint32_t number;    /* publish: of the (first) event; release: of the event */
  uint32_t many;      /* publish: how many at most */
  uint64_t life;
};

struct step_world {
  struct step_options options;
  uint32_t n_actors;
  struct step_truth truth[STEP_PUBLISHERS];
  struct step_connection connections[STEP_CONNECTIONS];
  uint32_t n_connections; /* rows in use so far */
  struct step_now now;
  struct step_now beside;       /* step_pairs: the operation of the other process, which has not come to its end */
  struct step_now died;         /* recovery: what the dead one was doing */
  uint32_t died_before;         /* it was giving an event back, and did not get so far */
  uint32_t n_redelivery_rounds; /* ends of members so far: after the second, old order is not by number */
  uint64_t clock_ns;
  struct step_actor actors[STEP_ACTORS]; /* the last: what is behind n_actors is not saved */
};

/* Shared by tracer and stepped process, not part of what is saved at a point. */
struct step_shared {
  volatile uint32_t is_stepping;
  volatile uint32_t path; /* enum step_path of the operation that has ended */
  volatile uint64_t worlds;
  volatile uint64_t operation_points; /* of the operation that runs */
  volatile uint64_t path_runs[64], path_points[64];
  volatile uint64_t class_points[1024]; /* by operation, role of its program, and what it finds */
  volatile uint32_t class_runs[1024];
  volatile uint32_t operation_class;
  volatile uint64_t world_seed;
  volatile uint64_t operations; /* that ran in this world */
  volatile uint32_t stop;
  uint32_t n_violations;
  char violation[512]; /* the first one */
};

/* An area that a point saves and restores. */
struct step_area {
  void *address;
  uint32_t bytes;
};

/* ---- the arena ---- */

extern struct step_world *world;
extern struct step_shared *shared;
extern int step_running; /* client whose heap serves; -1: the program's own */

/* Once: maps the arena. 0, or -1 with errno. */
int step_arena_open(void);

/* Areas of the present world that change, at most max. */
unsigned step_areas(struct step_area *areas, unsigned max);

struct npi_ring_block *step_ring(uint32_t actor, uint32_t ring);
uint64_t step_ring_offset(uint32_t ring);
struct npi_client_record *step_client_record(uint32_t actor);
struct npi_connection_record *step_connection_record(uint32_t connection);

/* Everything anew, for these options: every actor is connected, nothing is open. */
void step_world_begin(const struct step_options *options);

/* The state of the world, kept and put back. Returns 0 where it does not fit. */
int step_keep(void);
void step_put_back(void);

/* Is it in memory that other processes see? */
int step_is_shared(const void *address);

static inline struct step_actor *step_actor(uint32_t index) {
  return &world->actors[index];
}
static inline int step_is_publisher(uint32_t actor) {
  return actor < world->options.n_publishers;
}

static inline uint64_t step_random(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C(2685821657736338717);
}
static inline uint32_t step_below(uint64_t *state, uint32_t n) {
  return (uint32_t)(step_random(state) >> 33) % n;
}

/* Notes a violation; the first one is kept in words. */
void step_violation(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- the broker ---- */

/* The process of the actor has ended: what the broker does when its pidfd says so. */
void broker_actor_gone(uint32_t actor);

/* ---- what programs do; each runs as its actor, and holds what it saw against the truth ---- */

int program_open(uint32_t actor);
void program_close(uint32_t actor);
/* NP_OK, NP_EMPTY. */
int program_loan(uint32_t actor);
/* Publishes the loan in this row, or from it on `many`. NP_OK, NP_FULL. */
int program_publish(uint32_t actor, uint32_t row, uint32_t many);
void program_discard(uint32_t actor, uint32_t row);
/* NP_OK, NP_EMPTY. */
int program_take(uint32_t actor);
void program_release(uint32_t actor, uint32_t row);
void program_news(uint32_t actor);
void program_tick(uint32_t actor);
void program_sleep(uint32_t actor);
/* Publishes up to n events at once, from private memory; how many went. */
uint32_t program_publish_batch(uint32_t actor, uint32_t n);
/* Handles that are not valid, given to the library, which must say so each time. Returns how many. */
uint32_t program_misuse(uint32_t actor, uint64_t *random);

extern int step_is_paired; /* another process runs meanwhile */

/* Credits that are out on all connections of a publisher. */
uint32_t program_outstanding(uint32_t actor);
/* The checker, on a publisher and its connections to the living. */
void program_check(uint32_t actor);

/* ---- recovery ---- */

struct step_outcomes {
  uint64_t publisher_before, publisher_after; /* died in publish: nobody gets the event, everybody does */
  uint64_t publisher_between;                 /* some of several do */
  uint64_t release_before, release_after;     /* a member died in release: the event came again, it did not */
  uint64_t came_again;                        /* events of a group that a dead member had held, or not yet taken */
  uint64_t slept_across;                      /* a publisher died while a subscriber slept */
  uint64_t two_deaths;
};

/* Nobody died: the world is run to its end and counted. */
void wind_up(uint64_t seed);

/* A process ends between two operations. */
void dies_idle(uint32_t actor);

/* The actor of world->now is dead, and the living go on to the end. Findings are violations. */
void recover(uint64_t seed, struct step_outcomes *outcomes);

#endif
