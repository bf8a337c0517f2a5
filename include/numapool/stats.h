/* SPDX-License-Identifier: Apache-2.0 */
/* The counters that a program can ask its client for. Each struct begins with its size, so it can grow. */
#ifndef NUMAPOOL_STATS_H
#define NUMAPOOL_STATS_H

#include <stdint.h>

struct np_client_stats {
  uint32_t size;
  uint32_t broker_connected;  /* 1: the broker answers; 0: it is away, data goes on */
  uint64_t leased_bytes;      /* memory that this client leases */
  uint64_t budget_bytes;      /* the most it may lease */
  uint64_t free_slots;        /* carved and free */
  uint64_t outstanding_slots; /* with subscribers */
  uint64_t loaned_slots;      /* with the caller */
  uint64_t control_calls;     /* exchanges with the broker */
};

struct np_publisher_stats {
  uint32_t size;
  uint32_t subscribers; /* connected now */
  uint64_t published;   /* np_publish that returned NP_OK */
  uint64_t published_bytes;
  uint64_t delivered; /* elements handed to subscribers: one event to three is three */
  uint64_t dropped_no_subscriber;
  uint64_t dropped_no_member; /* group */
  uint64_t dropped_no_credit; /* one for each subscriber that missed an event */
  uint64_t full;              /* NP_FULL returned */
  uint64_t empty;             /* loans that found no slot */
  uint64_t redelivered;
  uint64_t wakes;         /* sleeping subscribers woken */
  uint64_t dead_lettered; /* group events given up: delivered more often than the channel's max_deliveries */
};

struct np_subscriber_stats {
  uint32_t size;
  uint32_t publishers; /* connected now */
  uint64_t taken;
  uint64_t taken_bytes;
  uint64_t released;
  uint64_t held;   /* taken and not released */
  uint64_t missed; /* dropped for want of this subscriber's credit */
  uint64_t sleeps;
  uint64_t lies; /* connections closed because the publisher broke the rules */
};

#endif
