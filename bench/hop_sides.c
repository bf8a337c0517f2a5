/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/hop_sides.h"

#include <stdlib.h>

#include "bench/measure.h"
#include "bench/payload.h"

static void must(int status, const char *what) {
  if (status < 0) bench_die("%s: %s: %s", what, np_status_text(status), np_error_detail());
}

static void connect_side(struct hop_side *side) {
  struct np_options options;
  *side = (struct hop_side){0};
  np_options_init(&options);
  options.timeout_ms = 5000;
  options.name = "bench_hop";
  must(np_connect(&side->client, &options), "np_connect");
}

static struct np_publisher *out(struct hop_side *side, const char *channel) {
  struct np_publisher *publisher;
  must(np_publisher_open(side->client, channel, NULL, &publisher), channel);
  return publisher;
}

static struct np_subscriber *in(struct hop_side *side, const char *channel) {
  struct np_subscriber *subscriber;
  must(np_subscriber_open(side->client, channel, NULL, &subscriber), channel);
  return subscriber;
}

void hop_open_caller(struct hop_side *side) {
  connect_side(side);
  side->cycle_out = out(side, HOP_CYCLE);
  side->cycle_in = in(side, HOP_CYCLE);
  side->stream_out = out(side, HOP_STREAM);
  side->ping_out = out(side, HOP_PING);
  side->pong_in = in(side, HOP_PONG);
}

void hop_open_partner(struct hop_side *side) {
  connect_side(side);
  side->stream_in = in(side, HOP_STREAM);
  side->ping_in = in(side, HOP_PING);
  side->pong_out = out(side, HOP_PONG);
}

void hop_open_cycle(struct hop_side *side) {
  connect_side(side);
  side->cycle_out = out(side, HOP_CYCLE);
  side->cycle_in = in(side, HOP_CYCLE);
}

void hop_close(struct hop_side *side) {
  side->client = np_disconnect(side->client);
}

static inline void publish(struct np_publisher *publisher, uint64_t number) {
  struct np_event event;
  int status;
  while ((status = np_loan(publisher, BENCH_PAYLOAD_BYTES, &event)) == NP_EMPTY) {
  }
  if (status != NP_OK) must(status, "np_loan");
  bench_payload_write(event.data, number);
  while ((status = np_publish(publisher, &event)) == NP_FULL) {
  }
  if (status != NP_OK) must(status, "np_publish");
}

/* Waits for an event, reads it and leaves it with the caller. */
static inline uint64_t receive(struct np_subscriber *subscriber, struct np_event *event) {
  int status;
  while ((status = np_take(subscriber, event)) == NP_EMPTY) {
  }
  if (status != NP_OK) must(status, "np_take");
  return bench_payload_read(event->data);
}

static inline void release(struct np_subscriber *subscriber, struct np_event *event) {
  int status = np_release(subscriber, event);
  if (status != NP_OK) must(status, "np_release");
}

uint64_t hop_cycle(struct hop_side *side, uint64_t n) {
  struct np_event event;
  uint64_t sum = 0;
  for (uint64_t i = 0; i < n; i++) {
    publish(side->cycle_out, i);
    sum += receive(side->cycle_in, &event);
    release(side->cycle_in, &event);
  }
  return sum;
}

void hop_stream_publish(struct hop_side *side, uint64_t n) {
  for (uint64_t i = 0; i < n; i++) publish(side->stream_out, i);
}

uint64_t hop_stream_subscribe(struct hop_side *side, uint64_t n) {
  struct np_event event;
  uint64_t sum = 0;
  for (uint64_t i = 0; i < n; i++) {
    sum += receive(side->stream_in, &event);
    release(side->stream_in, &event);
  }
  return sum;
}

void hop_ping(struct hop_side *side, uint64_t *took, uint64_t n) {
  struct np_event event;
  for (uint64_t i = 0; i < n; i++) {
    uint64_t from = bench_stamp();
    publish(side->ping_out, i);
    uint64_t sum = receive(side->pong_in, &event);
    took[i] = bench_stamp() - from;
    release(side->pong_in, &event);
    if (sum != bench_payload_sum(i, 1)) bench_die("round trip %llu brought another payload", (unsigned long long)i);
  }
}

void hop_pong(struct hop_side *side, uint64_t n) {
  struct np_event event;
  for (uint64_t i = 0; i < n; i++) {
    uint64_t sum = receive(side->ping_in, &event);
    /* Released after the answer is out, as a program that works on the event in place would. */
    publish(side->pong_out, i);
    release(side->ping_in, &event);
    if (sum != bench_payload_sum(i, 1)) bench_die("ping %llu brought another payload", (unsigned long long)i);
  }
}
