/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every counter by name, one row each: its place in shared memory, the name that tools print, and what it
 * counts. Rows are only ever appended: the number of a row is part of the layout. Each array has one
 * writer, which adds with npi_count_add(); whoever wants a sum reads all writers' arrays.
 */
#ifndef NPI_CORE_COUNTERS_H
#define NPI_CORE_COUNTERS_H

#include "shm/layout.h"

/* Written by the broker, in the registry's header. */
#define NPI_BROKER_COUNTERS(X)                                                                           \
  X(BROKER_CONNECTS, "connects", "clients that said hello")                                              \
  X(BROKER_REJECTS, "rejects", "clients refused: version, limits, access")                               \
  X(BROKER_PROTOCOL_ERRORS, "protocol_errors", "control connections closed for a bad frame")             \
  X(BROKER_DEATHS, "deaths", "clients that ended without a goodbye")                                     \
  X(BROKER_GOODBYES, "goodbyes", "clients that ended in good order")                                     \
  X(BROKER_LEASES, "leases", "segments leased")                                                          \
  X(BROKER_LEASES_REFUSED, "leases_refused", "lease requests that got nothing")                          \
  X(BROKER_RETURNS, "returns", "segments given back by living clients")                                  \
  X(BROKER_SEGMENTS_MADE, "segments_made", "segments created")                                           \
  X(BROKER_SEGMENTS_DESTROYED, "segments_destroyed", "segments destroyed")                               \
  X(BROKER_CONNECTIONS_MADE, "connections_made", "publisher-subscriber connections made")                \
  X(BROKER_CONNECTIONS_ENDED, "connections_ended", "publisher-subscriber connections ended")             \
  X(BROKER_LIES, "lies", "connections closed because an end broke the rules")                            \
  X(BROKER_WORKER_RESTARTS, "worker_restarts", "ingest workers started again after they died")           \
  X(BROKER_QUEUE_FULL, "queue_full", "requests refused because a peer does not read its control socket") \
  X(BROKER_ADOPTED, "adopted", "clients taken over from an earlier broker")                              \
  X(BROKER_EVICTED, "evicted", "clients that were stopped for longer than clients.evict_after")          \
  X(BROKER_REFUSED, "refused", "connections that an end could not make or keep, for want of memory")

/* Written by a publisher, in its client's page. */
#define NPI_PUBLISHER_COUNTERS(X)                                                                             \
  X(PUBLISHER_PUBLISHED, "published", "events accepted from the program")                                     \
  X(PUBLISHER_BYTES, "published_bytes", "their payload")                                                      \
  X(PUBLISHER_DELIVERED, "delivered", "events handed to subscribers for the first time, each one counted")    \
  X(PUBLISHER_DROPPED_NO_SUBSCRIBER, "dropped_no_subscriber", "events that nobody was there for")             \
  X(PUBLISHER_DROPPED_NO_MEMBER, "dropped_no_member", "events that no member of the group was there for")     \
  X(PUBLISHER_DROPPED_NO_CREDIT, "dropped_no_credit", "deliveries missed for want of a credit")               \
  X(PUBLISHER_FULL, "full", "publishes put off because a blocking subscriber had no credit")                  \
  X(PUBLISHER_EMPTY, "empty", "loans that found no slot")                                                     \
  X(PUBLISHER_REDELIVERED, "redelivered", "events handed to another member after one died; not in delivered") \
  X(PUBLISHER_WAKES, "wakes", "sleeping subscribers woken")                                                   \
  X(PUBLISHER_LOST_WITH_MEMBER, "lost_with_member", "group events that could not be offered again")           \
  X(PUBLISHER_DEAD_LETTERED, "dead_lettered", "group events given up: more deliveries than max_deliveries")   \
  X(PUBLISHER_BEGUN, "begun", "what the publish under way will be known by (core/flow.h): no count")          \
  X(PUBLISHER_FROM_LISTENERS, "from_listeners", "of published: by ingest workers that are gone (by the broker)")

/* Written by a subscriber, in its client's page. */
#define NPI_SUBSCRIBER_COUNTERS(X)                                                       \
  X(SUBSCRIBER_TAKEN, "taken", "events taken")                                           \
  X(SUBSCRIBER_BYTES, "taken_bytes", "their payload")                                    \
  X(SUBSCRIBER_RELEASED, "released", "events released")                                  \
  X(SUBSCRIBER_SLEEPS, "sleeps", "times it went to sleep")                               \
  X(SUBSCRIBER_LIES, "lies", "connections closed because the publisher broke the rules") \
  X(SUBSCRIBER_MISSED_PAST, "missed_past", "events missed on connections that are over") \
  X(SUBSCRIBER_DELIVERED, "delivered", "events handed to it on connections that are over (by the broker)")

/*
 * Written by an ingest worker for each of its listeners, in its page.
 * received = published + dropped_pool + dropped_credit + lost_with_worker + held
 */
#define NPI_LISTENER_COUNTERS(X)                                                                              \
  X(LISTENER_RECEIVED, "received", "whole frames or datagrams decoded")                                       \
  X(LISTENER_RECEIVED_BYTES, "received_bytes", "bytes read from sockets")                                     \
  X(LISTENER_PUBLISHED, "published", "events published")                                                      \
  X(LISTENER_DROPPED_POOL, "dropped_pool", "frames dropped: no free slot")                                    \
  X(LISTENER_DROPPED_CREDIT, "dropped_credit", "frames dropped: a blocking subscriber had no credit")         \
  X(LISTENER_DROPPED_KERNEL, "dropped_kernel", "datagrams that the kernel dropped (SO_MEMINFO)")              \
  X(LISTENER_DATAGRAMS, "datagrams", "datagrams received")                                                    \
  X(LISTENER_TRUNCATED, "truncated", "datagrams longer than max_frame: dropped")                              \
  X(LISTENER_EMPTY, "empty", "datagrams without a byte: dropped")                                             \
  X(LISTENER_BAD_LENGTH, "bad_length", "frames with an impossible length")                                    \
  X(LISTENER_TOO_LARGE, "too_large", "frames longer than max_frame")                                          \
  X(LISTENER_BAD_FRAME, "bad_frame", "frames broken in another way (count, priority, topic)")                 \
  X(LISTENER_PARTIAL_AT_END, "partial_at_end", "streams that ended inside a frame")                           \
  X(LISTENER_ACCEPTED, "accepted", "stream connections accepted")                                             \
  X(LISTENER_REJECTED, "rejected", "stream connections refused: max_connections")                             \
  X(LISTENER_CLOSED, "closed", "stream connections ended, for whatever reason")                               \
  X(LISTENER_CLOSED_BAD, "closed_bad", "of these: for a bad frame")                                           \
  X(LISTENER_CLOSED_IDLE, "closed_idle", "of these: idle_timeout")                                            \
  X(LISTENER_CLOSED_SLOW, "closed_slow", "of these: frame_timeout")                                           \
  X(LISTENER_PAUSES, "pauses", "times reading was paused")                                                    \
  X(LISTENER_RESUMES, "resumes", "times reading went on")                                                     \
  X(LISTENER_PAUSED_NOW, "paused_now", "1 while paused")                                                      \
  X(LISTENER_NO_BUFFERS, "no_buffers", "receives that ended because staging was used up")                     \
  X(LISTENER_REARMS, "rearms", "receives armed again")                                                        \
  X(LISTENER_HELD, "held", "decoded frames that wait for a slot or credit")                                   \
  X(LISTENER_BACKEND, "backend", "1 io_uring, 2 epoll")                                                       \
  X(LISTENER_LOST_WITH_WORKER, "lost_with_worker", "frames that a worker held, or had in hand, when it died") \
  X(LISTENER_AT_WORK, "at_work", "1: it publishes for this listener; 2: a frame that it held; no count")      \
  X(LISTENER_UNCOUNTED, "uncounted", "published by a worker that died before it counted them (by the broker)")

enum npi_counter {
#define ROW(name, text, help) NPI_##name,
  NPI_BROKER_FIRST = -1,
  NPI_BROKER_COUNTERS(ROW) NPI_BROKER_COUNTER_COUNT,
  NPI_PUBLISHER_FIRST = -1,
  NPI_PUBLISHER_COUNTERS(ROW) NPI_PUBLISHER_COUNTER_COUNT,
  NPI_SUBSCRIBER_FIRST = -1,
  NPI_SUBSCRIBER_COUNTERS(ROW) NPI_SUBSCRIBER_COUNTER_COUNT,
  NPI_LISTENER_FIRST = -1,
  NPI_LISTENER_COUNTERS(ROW) NPI_LISTENER_COUNTER_COUNT,
#undef ROW
};
_Static_assert(NPI_BROKER_COUNTER_COUNT <= 64, "the broker's counters fit in the registry header");
_Static_assert(NPI_PUBLISHER_COUNTER_COUNT <= 32 && NPI_SUBSCRIBER_COUNTER_COUNT <= 32, "endpoint counters fit");
_Static_assert(NPI_LISTENER_COUNTER_COUNT <= 64, "listener counters fit");

struct npi_counter_row {
  const char *name;
  const char *help;
};
/* Rows in order, for tools; each ends with a row of NULLs. */
extern const struct npi_counter_row npi_broker_counter_rows[];
extern const struct npi_counter_row npi_publisher_counter_rows[];
extern const struct npi_counter_row npi_subscriber_counter_rows[];
extern const struct npi_counter_row npi_listener_counter_rows[];

#endif
