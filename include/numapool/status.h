/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Status codes of every numapool function that can fail.
 *
 *   0    NP_OK
 *   > 0  a condition of normal running that the caller handles (nothing there, no credit, time is up)
 *   < 0  a failure; np_error_detail() says what, which value, and what to do about it
 *
 * The numbers are part of the ABI and are never reused.
 */
#ifndef NUMAPOOL_STATUS_H
#define NUMAPOOL_STATUS_H

/* One row a code: name, number, text. */
#define NP_STATUS_LIST(X)                                                                       \
  X(NP_OK, 0, "success")                                                                        \
  X(NP_EMPTY, 1, "nothing there: no event to take, or no free slot to loan")                    \
  X(NP_FULL, 2, "a blocking subscriber has no credit left; the event is still yours")           \
  X(NP_TIMEOUT, 3, "the time is up")                                                            \
  X(NP_CLOSED, 4, "the other side has closed")                                                  \
  X(NP_ERR_ARGUMENT, -1, "an argument is not valid")                                            \
  X(NP_ERR_STATE, -2, "the object is not in a state that allows this")                          \
  X(NP_ERR_TOO_LARGE, -3, "the event is larger than the largest size class")                    \
  X(NP_ERR_NO_MEMORY, -4, "memory, or a memory budget, is exhausted")                           \
  X(NP_ERR_LIMIT, -5, "a configured limit is reached")                                          \
  X(NP_ERR_NO_BROKER, -6, "the broker cannot be reached")                                       \
  X(NP_ERR_DENIED, -7, "not permitted")                                                         \
  X(NP_ERR_VERSION, -8, "versions do not fit together")                                         \
  X(NP_ERR_PROTOCOL, -9, "the other side sent something that the protocol does not allow")      \
  X(NP_ERR_NOT_FOUND, -10, "there is no such object")                                           \
  X(NP_ERR_EXISTS, -11, "there is such an object already")                                      \
  X(NP_ERR_CONFIG, -12, "the configuration is not valid")                                       \
  X(NP_ERR_SYSTEM, -13, "a system call failed")                                                 \
  X(NP_ERR_CORRUPT, -14, "shared memory holds something that nobody honest wrote there")        \
  X(NP_ERR_FORKED, -15, "this handle belongs to the parent process")                            \
  X(NP_ERR_MISUSE, -16, "the event is not held by the caller (released or published already?)") \
  X(NP_ERR_EVICTED, -17, "the broker has shut this client out; connect anew")

enum np_status {
#define NP_STATUS_ROW(name, number, text) name = (number),
  NP_STATUS_LIST(NP_STATUS_ROW)
#undef NP_STATUS_ROW
};

#endif
