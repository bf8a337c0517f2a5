/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the processes of a storm write down in memory that they share with the test, so that what they knew
 * survives their death.
 *
 * A publisher numbers its events from 0 in each of its lives and says how many it tried and how many were
 * accepted. A subscriber says for each life how far it has come. So the truth after any kill lies between two
 * numbers: accepted <= seen <= tried, and for the living it is exact as soon as nothing moves.
 */
#ifndef NUMAPOOL_TESTS_STORM_BOARD_H
#define NUMAPOOL_TESTS_STORM_BOARD_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

enum {
  STORM_LIVES_MAX = 16384,
  STORM_PROCESSES = 8,       /* at most */
  STORM_NUMBERS_MAX = 65536, /* events of one life; then the publisher begins another */
};

enum { STORM_RELEASED = 0x80 };

enum storm_role { STORM_PUBLISHER, STORM_SUBSCRIBER, STORM_MEMBER };

/* Calls before which a process can be caught, to be stepped. */
enum storm_call {
  STORM_NO_CALL,
  STORM_CONNECT,
  STORM_OPEN,
  STORM_CLOSE,
  STORM_LOAN,
  STORM_PUBLISH,
  STORM_WAIT_CREDIT,
  STORM_TAKE,
  STORM_RELEASE,
  STORM_WAIT,
  STORM_CALLS,
  STORM_ANY_CALL = STORM_CALLS,
};

struct storm_part {
  enum storm_role role;
  const char *channel;
};
extern const struct storm_part *storm_parts; /* chosen by the test, before anything else */
extern int storm_n_parts;

struct storm_life {
  uint32_t part;          /* of the publisher */
  _Atomic uint32_t ended; /* its process was killed */
  _Atomic uint64_t tried, accepted;
};

struct storm_process { /* the one that lives now */
  pid_t pid;
  _Atomic uint32_t ready;
  _Atomic uint32_t life;      /* publisher: the current one, + 1 */
  _Atomic uint32_t from_life; /* subscriber: it was there before this life began */
  _Atomic uint32_t paused;    /* publisher: nothing of it moves */
  _Atomic uint32_t catch_at;  /* enum storm_call: the next call of this kind is stepped */
  _Atomic uint32_t caught_at; /* it is before this call, and stopped */
  _Atomic uint64_t at;        /* subscriber: events taken; any: progress */
};

struct storm_board {
  _Atomic uint32_t n_lives;
  _Atomic uint32_t pause;
  struct storm_life life[STORM_LIVES_MAX];
  struct storm_process process[STORM_PROCESSES];
  /* By subscriber and life: one more than the number of the last event seen; 0: none. */
  _Atomic uint32_t seen[STORM_PROCESSES][STORM_LIVES_MAX];
  /* By life and number: how often members of the group acted upon the event, and whether one has given it back. */
  _Atomic uint8_t acted[STORM_LIVES_MAX][STORM_NUMBERS_MAX];
  /* Violations: any of them ends the test. */
  _Atomic uint64_t bad, gaps, twice, unmarked, again, missed_first, failed_calls;
  _Atomic uint64_t redelivered; /* events that a member saw marked */
  char failure[256];
};

/* Runs part i of the storm in this process until it is killed, or pid `parent` ends. */
int storm_run(struct storm_board *board, int part);

/* The violations so far, and those that show only when nothing moves; 0: none, else text says which. */
int storm_check_living(struct storm_board *board, char *text, size_t bytes);
/* Everything has arrived that will: publishers paused and living subscribers up to date. */
int storm_is_still(const struct storm_board *board);
/* Accepted group events that nobody acted upon, of publishers that were killed. */
uint64_t storm_lost_with_publisher(const struct storm_board *board);
void storm_describe(const struct storm_board *board); /* who is where, for a check that failed */
uint64_t storm_accepted(const struct storm_board *board);

#endif
