/* SPDX-License-Identifier: Apache-2.0 */
/* The two sides of the hop benchmark, as a user would write them: public interface only. */
#ifndef NUMAPOOL_BENCH_HOP_SIDES_H
#define NUMAPOOL_BENCH_HOP_SIDES_H

#include "numapool/numapool.h"

#define HOP_CYCLE  "hop.cycle"
#define HOP_STREAM "hop.stream"
#define HOP_PING   "hop.ping"
#define HOP_PONG   "hop.pong"

/* The channels that a side uses; NULL: not on this side. */
struct hop_side {
  struct np_client *client;
  struct np_publisher *cycle_out, *stream_out, *ping_out, *pong_out;
  struct np_subscriber *cycle_in, *stream_in, *ping_in, *pong_in;
};

/* End the program with the library's words where something fails. */
void hop_open_caller(struct hop_side *side);
void hop_open_partner(struct hop_side *side);
void hop_open_cycle(struct hop_side *side);
void hop_close(struct hop_side *side);

/* Loan, write, publish, take, read, release in one thread; returns the sum of what was read. */
uint64_t hop_cycle(struct hop_side *side, uint64_t n);

/* Both halves of a stream. */
void hop_stream_publish(struct hop_side *side, uint64_t n);
uint64_t hop_stream_subscribe(struct hop_side *side, uint64_t n);

/* The caller's half of n round trips: took[i] in stamps, from before the loan until the answer was read. */
void hop_ping(struct hop_side *side, uint64_t *took, uint64_t n);
void hop_pong(struct hop_side *side, uint64_t n);

#endif
