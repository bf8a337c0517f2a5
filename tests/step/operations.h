/* SPDX-License-Identifier: Apache-2.0 */
/* What programs do, by name; and the paths through the library that an operation may have taken. */
#ifndef NUMAPOOL_TESTS_OPERATIONS_H
#define NUMAPOOL_TESTS_OPERATIONS_H

#include "step/world.h"

enum step_operation {
  OPERATION_NONE,
  OPERATION_OPEN,
  OPERATION_CLOSE,
  OPERATION_LOAN,
  OPERATION_PUBLISH,
  OPERATION_DISCARD,
  OPERATION_TAKE,
  OPERATION_RELEASE,
  OPERATION_NEWS,
  OPERATION_TICK,
  OPERATION_SLEEP,
  OPERATION_MISUSE,
};

#define STEP_PATHS(X)                                                     \
  X(OPEN_PUBLISHER, "open a publisher")                                   \
  X(OPEN_SUBSCRIBER, "open a subscriber")                                 \
  X(CLOSE_PUBLISHER, "close a publisher")                                 \
  X(CLOSE_SUBSCRIBER, "close a subscriber")                               \
  X(ATTACH_OUTLET, "attach a connection, publisher's end")                \
  X(ATTACH_INLET, "attach a connection, subscriber's end")                \
  X(DETACH_OUTLET, "detach, publisher's end: nothing out")                \
  X(DETACH_OUTLET_BACK, "detach, publisher's end: credits taken back")    \
  X(DETACH_OUTLET_AGAIN, "detach, publisher's end: events offered again") \
  X(DETACH_INLET, "detach, subscriber's end: drained, acknowledged")      \
  X(DETACH_INLET_LATER, "detach, subscriber's end: events left")          \
  X(LOAN, "loan")                                                         \
  X(LOAN_CARVE, "loan: chunks carved")                                    \
  X(LOAN_DRY, "loan: no slot")                                            \
  X(DISCARD, "discard")                                                   \
  X(PUBLISH_NOBODY, "publish: nobody is there")                           \
  X(PUBLISH_UNICAST, "publish: one subscriber")                           \
  X(PUBLISH_BROADCAST_2, "publish: broadcast to 2")                       \
  X(PUBLISH_BROADCAST_3, "publish: broadcast to 3 to 7")                  \
  X(PUBLISH_BROADCAST_8, "publish: broadcast to 8")                       \
  X(PUBLISH_FULL, "publish: no credit, refused")                          \
  X(PUBLISH_DROP, "publish: no credit, dropped for some")                 \
  X(PUBLISH_GROUP, "publish: group")                                      \
  X(PUBLISH_GROUP_TAP, "publish: group with a tap")                       \
  X(PUBLISH_GROUP_NONE, "publish: group, dropped")                        \
  X(PUBLISH_REAP, "publish: returns processed on the way")                \
  X(PUBLISH_WAKE, "publish: a sleeper woken")                             \
  X(PUBLISH_MANY, "publish many")                                         \
  X(PUBLISH_BATCH, "publish a batch")                                     \
  X(PUBLISH_BATCH_GROUP, "publish a batch: group")                        \
  X(TAKE, "take")                                                         \
  X(TAKE_TURN, "take: one of two publishers")                             \
  X(TAKE_EMPTY, "take: nothing there")                                    \
  X(TAKE_LAST, "take: nothing left of a publisher that is gone")          \
  X(RELEASE, "release, in order")                                         \
  X(RELEASE_ANY, "release, out of order")                                 \
  X(RELEASE_WAKE, "release: a sleeper woken")                             \
  X(RELEASE_LAST, "release: the last of a publisher that is gone")        \
  X(RETURNS, "returns processed")                                         \
  X(REDELIVERY, "waiting events offered")                                 \
  X(MISUSE, "misuse")                                                     \
  X(SLEEP, "go to sleep")                                                 \
  X(IDLE, "news or returns: none")

enum step_path {
  PATH_NONE,
#define ROW(name, text) PATH_##name,
  STEP_PATHS(ROW)
#undef ROW
      PATH_COUNT
};
extern const char *const step_path_names[PATH_COUNT];

/* One random operation of a random program; stepped if step_operation_is_stepped. Sets shared->path. */
void step_random_operation(uint64_t *random);

/* Options of the world of this seed. */
void step_random_options(struct step_options *options, uint64_t seed);

/* A group in which every member's credit is used up, and one of them is dead. 1: its events wait. */
int step_make_scarce(uint64_t *random);
/* The publisher offers them. */
void step_offer(uint64_t *random);

/* Opens everybody. */
void step_open_all(uint64_t *random);

#endif
