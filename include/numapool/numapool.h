/* SPDX-License-Identifier: Apache-2.0 */
/*
 * numapool: events between processes, through NUMA-bound shared memory, without a copy.
 *
 *   struct np_client *client;
 *   struct np_subscriber *subscriber;
 *   struct np_event event;
 *   if (np_connect(&client, NULL) < 0) die(np_error_detail());
 *   if (np_subscriber_open(client, "syslog", NULL, &subscriber) < 0) die(np_error_detail());
 *   while (np_wait(subscriber, -1) == NP_OK)
 *     while (np_take(subscriber, &event) == NP_OK) {
 *       work_on(event.data, event.size);
 *       np_release(subscriber, &event);
 *     }
 *
 * Threads. A client and all that was opened through it belong to one thread at a time; different clients
 * are independent of each other, in one process or in many. So: one np_connect for each thread.
 *
 *   may run at the same time           same client   different clients
 *   any two functions with a handle    no            yes
 *   np_version, np_*_text, options     yes           yes
 *   np_error_detail                    per thread
 *
 * Fork. A handle does not work in a child process: every function answers NP_ERR_FORKED there, and the
 * parent notices nothing.
 *
 * The library starts no thread, installs no signal handler, prints nothing and never ends the process.
 * np_loan, np_publish, np_take and np_release make no system call and allocate nothing in steady state.
 *
 * Broker. Where it dies or is replaced, events go on between all who are connected; calls that need it answer
 * NP_ERR_NO_BROKER. A client comes back by itself, with all that it has open, at its next call that needs the broker
 * or while it waits; np_client_notice tells. A program that sleeps in its own epoll is woken for both.
 *
 * Every function that can fail returns enum np_status as an int: 0 success, > 0 a condition of normal
 * running, < 0 a failure with words in np_error_detail(). Times are in milliseconds where the name says
 * so, else in nanoseconds; -1 milliseconds means "for ever"; sizes are in bytes.
 */
#ifndef NUMAPOOL_NUMAPOOL_H
#define NUMAPOOL_NUMAPOOL_H

#include <stddef.h>
#include <stdint.h>

#include <numapool/notice.h>
#include <numapool/stats.h>
#include <numapool/status.h>
#include <numapool/version.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NP_API __attribute__((visibility("default")))
#else
#define NP_API
#endif

struct np_client;
struct np_publisher;
struct np_subscriber;

/* ---- events ------------------------------------------------------------------------------------------ */

enum np_event_flags {
  NP_EVENT_TRUNCATED = 1,   /* the datagram was longer than its listener allows */
  NP_EVENT_REDELIVERED = 2, /* another member of the group had it and ended before it released it */
  NP_EVENT_DEAD_LETTER = 4, /* a group gave it up: its members died of it too often (np_source says more) */
  /* the four highest bits are the library's */
};

enum np_priority {
  NP_PRIORITY_BATCH = 0,
  NP_PRIORITY_LOW = 1,
  NP_PRIORITY_NORMAL = 2,
  NP_PRIORITY_HIGH = 3,
  NP_PRIORITY_CRITICAL = 4
};

/*
 * A loaned or taken event: a small value on the caller's stack. data points into shared memory; it is
 * valid from loan to publish or discard, and from take to release. A taken event is read-only memory:
 * writing to it is a fault of the processor. token is the library's.
 */
struct np_event {
  void *data;
  size_t size;       /* payload bytes; a publisher may make it smaller between loan and publish */
  uint64_t sequence; /* per publisher; a gap in a broadcast is an event that this subscriber did not get */
  uint64_t time_ns;  /* CLOCK_REALTIME; 0: nobody set it. A publisher may set it */
  const char *topic; /* behind the payload, not ended by NUL; NULL: none */
  uint16_t topic_size;
  uint8_t priority;   /* enum np_priority; a publisher may set it */
  uint8_t flags;      /* enum np_event_flags */
  uint32_t publisher; /* taken: number of the publisher it came from, unique while that lives */
  uint64_t token[2];
};

enum np_dead_letter_reason {
  NP_DEAD_LETTER_DELIVERIES = 1, /* delivered again more often than the channel's max_deliveries */
};

/* Where an event came from. */
struct np_source {
  uint32_t size;       /* of this struct as the caller knows it: set it to sizeof */
  uint32_t listener;   /* number of the listener */
  uint64_t connection; /* number of the stream connection; 0: a datagram */
  uint8_t address[16]; /* sender, network order; IPv4 in the first four bytes */
  uint16_t port;       /* host order */
  uint8_t family;      /* 0 unknown, 1 Unix socket, 4 IPv4, 6 IPv6 */
  uint8_t deliveries;  /* how often a member of the group had taken it and ended before it released it */
  char listener_name[64];
  uint32_t dead_letter_reason; /* enum np_dead_letter_reason; 0: it is no dead letter */
  char channel_name[64];       /* where it was published; of a dead letter: the group that gave it up */
};

/* ---- version and errors ------------------------------------------------------------------------------ */

/* np_version returns the library's version at run time, to compare with NP_VERSION (version.h). */
NP_API uint32_t np_version(void);

/* np_status_text returns constant English text for a status. */
NP_API const char *np_status_text(int status);

/* np_error_detail returns this thread's last failure in words: what, which value, the fix. Valid until
 * the next call of this thread; empty before the first failure; never NULL. */
NP_API const char *np_error_detail(void);

/* ---- client ------------------------------------------------------------------------------------------ */

struct np_options {
  uint32_t size;           /* set by np_options_init */
  int32_t node;            /* NUMA node for this client's memory; -1 (default): where the thread runs now */
  const char *instance;    /* NULL: $NUMAPOOL_INSTANCE, else "default" */
  const char *socket_path; /* NULL: found by the instance's name */
  const char *name;        /* shown by numapoolctl; NULL: the process's name */
  int64_t timeout_ms;      /* how long np_connect waits for the broker to become ready; default 0: not */
  uint64_t reserve_bytes;  /* lease at least this much memory at once; default 0: at the first loan */
};

/* np_options_init fills in the defaults. */
NP_API void np_options_init(struct np_options *options);

/* np_connect reaches the broker and maps what it sends; all or nothing. options NULL: defaults. Blocks for
 * the exchange with the broker, and up to timeout_ms where none is there. *client is the caller's, ended
 * by np_disconnect.
 * NP_ERR_NO_BROKER, NP_ERR_DENIED, NP_ERR_VERSION, NP_ERR_LIMIT, NP_ERR_ARGUMENT, NP_ERR_SYSTEM. */
NP_API int np_connect(struct np_client **client, const struct np_options *options);

/* np_disconnect closes all publishers and subscribers of the client, gives its memory back and frees it.
 * What was published stays readable for its subscribers. Events still held become invalid. NULL is fine.
 * Returns NULL. Blocks for one message to the broker. */
NP_API struct np_client *np_disconnect(struct np_client *client);

/* np_client_notice takes the oldest notice of what happened around this client: the broker went away or came back, a
 * process that shared events with it died. Never blocks; looks at the broker by itself, so it may be called from time to
 * time, or after np_take or np_publish had nothing to do. Set notice->size before each call. Few notices are kept; where
 * more come, one stands for several (count). NP_OK, NP_EMPTY, NP_ERR_ARGUMENT. */
NP_API int np_client_notice(struct np_client *client, struct np_notice *notice);

/* np_client_node returns the node, as the operating system numbers it, of this client's memory. */
NP_API int np_client_node(const struct np_client *client);

/* ---- publishing -------------------------------------------------------------------------------------- */

struct np_publisher_options {
  uint32_t size; /* set by np_publisher_options_init */
  uint32_t reserved;
  uint64_t reserve_bytes; /* memory to lease ahead, so that no loan has to ask for it */
};

NP_API void np_publisher_options_init(struct np_publisher_options *options);

/* np_publisher_open makes the client a publisher of a channel. A channel that nobody configured is made as
 * broadcast, where the broker allows it. options NULL: defaults. *publisher is the caller's, ended by
 * np_publisher_close or np_disconnect. Blocks for the exchange with the broker.
 * NP_ERR_ARGUMENT (name), NP_ERR_NOT_FOUND, NP_ERR_LIMIT, NP_ERR_NO_BROKER, NP_ERR_NO_MEMORY. */
NP_API int np_publisher_open(struct np_client *client, const char *channel, const struct np_publisher_options *options,
                             struct np_publisher **publisher);

/* np_publisher_close ends it; what was published is still delivered. Loaned events go back. NULL is fine.
 * Returns NULL. Blocks for the exchange with the broker. */
NP_API struct np_publisher *np_publisher_close(struct np_publisher *publisher);

/* np_loan borrows a writable slot for size bytes (payload and topic together, at most 1 MiB). On NP_OK the
 * caller owns the event until it publishes or discards it. Where the memory in hand is all in use it makes
 * at most one bounded call to the broker for more.
 * NP_EMPTY: all slots are with subscribers and the budget is spent (np_error_detail names who holds how
 * much); NP_ERR_EVICTED: the same, where this process was shut out, as np_take says; NP_ERR_TOO_LARGE; NP_ERR_FORKED. */
NP_API int np_loan(struct np_publisher *publisher, size_t size, struct np_event *event);

/* np_set_topic copies a topic behind the payload of a loaned event: event->size + length must fit in what
 * was loaned. After it, size must not change. NP_ERR_TOO_LARGE, NP_ERR_MISUSE (not on loan). */
NP_API int np_set_topic(struct np_publisher *publisher, struct np_event *event, const char *topic, size_t length);

/* np_publish hands a loaned event on; never blocks. NP_OK: it is the subscribers' now, and *event is
 * cleared; also where nobody was there to get it, or all dropped it: that is counted. NP_FULL: a blocking
 * subscriber has no credit; the event stays the caller's (np_wait_credit, then try again). NP_ERR_EVICTED: the same,
 * where this process was shut out, as np_take says: disconnect, and connect anew.
 * NP_ERR_MISUSE: not an event on loan from this client. NP_ERR_ARGUMENT: its size was made larger than the loan. */
NP_API int np_publish(struct np_publisher *publisher, struct np_event *event);

/* np_publish_many publishes up to n events, in order, and wakes sleeping subscribers once. Returns how
 * many went (fewer than n: the next met NP_FULL), or < 0 where the first failed. */
NP_API int64_t np_publish_many(struct np_publisher *publisher, struct np_event *events, size_t n);

/* np_discard gives a loaned slot back unpublished and clears *event. NP_ERR_MISUSE. */
NP_API int np_discard(struct np_publisher *publisher, struct np_event *event);

/* np_wait_credit sleeps until a publish that said NP_FULL, or a loan that said NP_EMPTY, may go on.
 * NP_OK, NP_TIMEOUT; NP_ERR_EVICTED: as np_take says, and nobody would tell it that who it waits for is gone.
 * timeout_ms 0: looks once; -1: for ever. */
NP_API int np_wait_credit(struct np_publisher *publisher, int64_t timeout_ms);

/* np_publisher_fd returns a descriptor for epoll, poll or select: readable when a publisher of this client
 * that met NP_FULL or NP_EMPTY may go on, or the broker went away or came back. It stays the library's: do not read or
 * close it. From the first call on, a publish or loan that meets such a condition arms it. < 0: a status. */
NP_API int np_publisher_fd(struct np_publisher *publisher);

/* ---- subscribing ------------------------------------------------------------------------------------- */

enum np_on_full {
  NP_ON_FULL_CHANNEL = -1,    /* as the channel is configured */
  NP_ON_FULL_BLOCK = 0,       /* publishers wait for this subscriber; only where the channel says block */
  NP_ON_FULL_DROP_NEWEST = 1, /* it misses what it has no credit for: counted, and a gap in the sequence */
};

struct np_subscriber_options {
  uint32_t size;    /* set by np_subscriber_options_init */
  int32_t on_full;  /* enum np_on_full */
  uint32_t credits; /* events that it may have outstanding, for each publisher; 0: the channel's */
  uint32_t tap;     /* 1: sees a group's events beside its members, never slows anybody */
  const char *name; /* shown by numapoolctl; NULL: the client's */
};

NP_API void np_subscriber_options_init(struct np_subscriber_options *options);

/* np_subscriber_open subscribes: whatever is published after it returned is seen. options NULL: defaults.
 * *subscriber is the caller's, ended by np_subscriber_close or np_disconnect. Blocks for the exchange with
 * the broker. Errors as np_publisher_open. */
NP_API int np_subscriber_open(struct np_client *client, const char *channel,
                              const struct np_subscriber_options *options, struct np_subscriber **subscriber);

/* np_subscriber_close ends it; what it did not take is lost to it, and in a group goes to other members.
 * NP_ERR_STATE while it holds events: release them first. NULL is fine (NP_OK). */
NP_API int np_subscriber_close(struct np_subscriber *subscriber);

/* np_take receives the next event, read-only; never blocks. On NP_OK the caller holds it until it releases
 * it. NP_EMPTY: nothing there. NP_ERR_CORRUPT: a publisher broke the rules; its connection is closed, the
 * next take goes on with the others; likewise NP_ERR_NO_MEMORY: memory of a publisher could not be mapped here.
 * NP_ERR_EVICTED: this process was stopped for longer than the operator
 * allows; there is nothing to take any more, what is held can be released: disconnect, and connect anew. */
NP_API int np_take(struct np_subscriber *subscriber, struct np_event *event);

/* np_take_many takes up to n events; returns how many (0: nothing there), or < 0. */
NP_API int64_t np_take_many(struct np_subscriber *subscriber, struct np_event *events, size_t n);

/* np_release gives an event back, in any order, and clears *event; never blocks, never fails for an event
 * that is held. NP_ERR_MISUSE: released already, or not of this subscriber; nothing happened. */
NP_API int np_release(struct np_subscriber *subscriber, struct np_event *event);

/* np_release_many releases n events. NP_OK, or the first failure (the others are released all the same). */
NP_API int np_release_many(struct np_subscriber *subscriber, struct np_event *events, size_t n);

/* np_wait spins a little, then sleeps until there is something to take, or the time is up.
 * NP_OK, NP_TIMEOUT, NP_ERR_*. timeout_ms 0: looks once; -1: for ever. */
NP_API int np_wait(struct np_subscriber *subscriber, int64_t timeout_ms);

/* np_fd returns a descriptor for epoll, poll or select: readable when there is something to take, or the broker
 * went away or came back. It stays the library's: do not read or close it. From the first call on, a take that
 * says NP_EMPTY arms it: take until NP_EMPTY, then go back to epoll. Subscribers of one client share it.
 * < 0: a status. */
NP_API int np_fd(struct np_subscriber *subscriber);

/* np_event_source copies where a taken event came from. NP_ERR_NOT_FOUND: not from a socket; channel, deliveries
 * and dead_letter_reason are there all the same. NP_ERR_MISUSE. */
NP_API int np_event_source(struct np_subscriber *subscriber, const struct np_event *event, struct np_source *source);

/* ---- statistics -------------------------------------------------------------------------------------- */

/* Each copies counters into a struct that begins with its size (set it to sizeof, or use the _init of your
 * language); counters may be a moment old. No locks, no call to the broker. */
NP_API int np_client_stats(const struct np_client *client, struct np_client_stats *stats);
NP_API int np_publisher_stats(const struct np_publisher *publisher, struct np_publisher_stats *stats);
NP_API int np_subscriber_stats(const struct np_subscriber *subscriber, struct np_subscriber_stats *stats);

#ifdef __cplusplus
}
#endif

#endif
