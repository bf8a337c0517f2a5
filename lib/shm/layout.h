/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every byte that two processes share, and nothing else.
 *
 *   object      one per        writer               mapped by others
 *   registry    instance       broker               clients and numapoolctl, read-only
 *   segment     lease          leasing client       its subscribers, read-only
 *   page        client         that client          its peers, read-only    (doorbells, counters, rings)
 *   ledger      client         that client          nobody; numapoolctl reads a copy
 *
 * Rules: fixed-width integers at their natural alignment, offsets and indexes instead of pointers, one
 * writer for each cache line. A field of type npi_atomic_* may change while others look at it; a plain
 * field is written before its record becomes active and stays. Whoever reads another process's object
 * loads a value once, checks it, and uses the copy. Object sizes and ring places come from the registry
 * or from a control frame of the broker, never from the object itself.
 */
#ifndef NPI_SHM_LAYOUT_H
#define NPI_SHM_LAYOUT_H

#include <stdint.h>

#include "base/align.h"
#include "base/atomics.h"

#define NPI_LAYOUT_VERSION UINT32_C(1)
#define NPI_MAGIC_REGISTRY UINT64_C(0x5254474c4f4f504e) /* "NPOOLGTR" as bytes in memory */
#define NPI_MAGIC_PAGE     UINT64_C(0x4547504c4f4f504e) /* "NPOOLPGE" */
#define NPI_MAGIC_LEDGER   UINT64_C(0x5244474c4f4f504e) /* "NPOOLGDR" */

enum {
  NPI_NAME_BYTES = 64,        /* channel, listener: with the final NUL */
  NPI_CLIENT_NAME_BYTES = 32, /* client, subscriber */
  NPI_INSTANCE_BYTES = 40,
  NPI_ADDRESS_BYTES = 128,
  NPI_NODES_LIMIT = 64,
};
#define NPI_NONE UINT32_MAX /* "no index" */

/* ---- sizes of what a segment holds ------------------------------------------------------------------ */

enum {
  NPI_CHUNK_BYTES = 256 * 1024, /* unit in which a segment is carved into slots of one class */
  NPI_CLASS_COUNT = 13,         /* payload 256 B << class: 256 B to 1 MiB */
  NPI_CLASS_SHIFT = 8,
  NPI_SLOT_HEADER_BYTES = 64,
  NPI_SLOTS_PER_CHUNK_MAX = NPI_CHUNK_BYTES / (NPI_SLOT_HEADER_BYTES + 256),
  NPI_SEGMENTS_PER_CLIENT_MAX = 4096, /* 12 bits of an element */
  NPI_CREDITS_MAX = 16384,            /* 14 bits of an element */
};
#define NPI_EVENT_BYTES_MAX   (UINT64_C(256) << (NPI_CLASS_COUNT - 1))
#define NPI_SEGMENT_BYTES_MAX (UINT64_C(64) << 20) /* 20 bits of slot index, in cache lines */

/* ---- slot header -------------------------------------------------------------------------------------
 *
 *   0  sequence        8  time_ns       16 payload_bytes  20 topic_bytes  22 priority  23 flags
 *  24  listener       28  generation    32 connection     40 address[16]  56 port  58 family  59 deliveries
 *  60  channel
 *  64  payload ... then the topic, right behind the payload
 *
 * Written by the home publisher between loan and publish, read by subscribers after they took the element.
 */
struct npi_slot_header {
  uint64_t sequence; /* per publisher, from 0: +1 for each event, delivered or dropped */
  uint64_t time_ns;  /* receive (ingest) or publish time, CLOCK_REALTIME; 0: not taken */
  uint32_t payload_bytes;
  uint16_t topic_bytes;
  uint8_t priority;    /* 0 batch .. 4 critical */
  uint8_t flags;       /* NPI_EVENT_* */
  uint32_t listener;   /* index in the registry, NPI_NONE: not from a socket */
  uint32_t generation; /* of the slot, for diagnosis */
  uint64_t connection; /* ingest connection number, 0: none */
  uint8_t address[16]; /* sender: IPv4 in the first four bytes, or IPv6; network order */
  uint16_t port;       /* host order */
  uint8_t family;      /* 0 none, 4, 6, 1 Unix */
  uint8_t deliveries;  /* how often a member had taken it and ended before it released it */
  uint32_t channel;
};
NPI_ASSERT_SIZE(struct npi_slot_header, NPI_SLOT_HEADER_BYTES);
NPI_ASSERT_OFFSET(struct npi_slot_header, payload_bytes, 16);
NPI_ASSERT_OFFSET(struct npi_slot_header, topic_bytes, 20);
NPI_ASSERT_OFFSET(struct npi_slot_header, priority, 22);
NPI_ASSERT_OFFSET(struct npi_slot_header, flags, 23);
NPI_ASSERT_OFFSET(struct npi_slot_header, listener, 24);
NPI_ASSERT_OFFSET(struct npi_slot_header, connection, 32);
NPI_ASSERT_OFFSET(struct npi_slot_header, address, 40);
NPI_ASSERT_OFFSET(struct npi_slot_header, port, 56);
NPI_ASSERT_OFFSET(struct npi_slot_header, channel, 60);
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the sizes word of a slot header is read as one integer");

/*
 * Bytes 16 to 23 as one word: stored once and loaded once, so that a reader's copies belong together, and so
 * that a core which reads what it has just written finds it in one entry of its store buffer.
 */
static inline uint64_t npi_slot_sizes(uint32_t payload_bytes, uint16_t topic_bytes, uint8_t priority, uint8_t flags) {
  return payload_bytes | (uint64_t)topic_bytes << 32 | (uint64_t)priority << 48 | (uint64_t)flags << 56;
}
static inline void npi_slot_sizes_store(struct npi_slot_header *header, uint64_t sizes) {
  npi_store_relaxed_u64((struct npi_atomic_u64 *)(void *)((uint8_t *)header + 16), sizes);
}
static inline uint64_t npi_slot_sizes_load(const struct npi_slot_header *header) {
  return npi_load_relaxed_u64((const struct npi_atomic_u64 *)(const void *)((const uint8_t *)header + 16));
}
static inline uint32_t npi_slot_sizes_payload(uint64_t sizes) {
  return (uint32_t)sizes;
}
static inline uint16_t npi_slot_sizes_topic(uint64_t sizes) {
  return (uint16_t)(sizes >> 32);
}
static inline uint8_t npi_slot_sizes_priority(uint64_t sizes) {
  return (uint8_t)(sizes >> 48);
}
static inline uint8_t npi_slot_sizes_flags(uint64_t sizes) {
  return (uint8_t)(sizes >> 56);
}

enum {
  NPI_EVENT_TRUNCATED = 1, /* the datagram was longer than the listener's max_frame */
  NPI_EVENT_REDELIVERED = 2,
  NPI_EVENT_DEAD_LETTER = 4,  /* given up: delivered to the dead-letter channel; `channel` still names its own */
  NPI_EVENT_REASON_SHIFT = 4, /* bits 4 to 7 of a dead letter: enum npi_dead_letter_reason */
};
enum npi_dead_letter_reason { NPI_DEAD_LETTER_DELIVERIES = 1 /* offered again more than max_deliveries times */ };

/* ---- ring block --------------------------------------------------------------------------------------
 *
 *   0  [counters]  8 x u64            W owner of the page
 *  64  [elements]  element[capacity]  W owner of the page    R the peer of the connection
 *
 * An element is one 64-bit word that validates itself:
 *
 *   63..60 lap | 59..56 flags | 55..44 segment | 43..24 slot, in cache lines | 23..10 credit | 9..0 generation
 *
 * The block of a connection's submissions lies in the publisher's page, that of its returns in the
 * subscriber's. capacity is a power of two from 16 to 16384, so a block is an odd number of lines and
 * neighbours do not fall on the same cache sets.
 */
struct npi_ring_block {
  struct npi_atomic_u64 counter[8];
  struct npi_atomic_u64 element[];
};
NPI_ASSERT_SIZE(struct npi_ring_block, 64);
enum {
  /* counters of a submission block (W publisher) */
  NPI_SUBMISSION_PUBLISHED = 0, /* elements stored */
  NPI_SUBMISSION_DROPPED = 1,   /* events that this subscriber did not get: no credit */
  NPI_SUBMISSION_RETURNED = 2,  /* returns processed */
  NPI_SUBMISSION_REDELIVERED = 3,
  /* counters of a return block (W subscriber) */
  NPI_RETURN_TAKEN = 0,
  NPI_RETURN_RETURNED = 1,
  NPI_RING_CAPACITY_MIN = 16,
};
static inline uint64_t npi_ring_block_bytes(uint32_t capacity) {
  return sizeof(struct npi_ring_block) + (uint64_t)capacity * 8;
}

/* ---- page of a client --------------------------------------------------------------------------------
 *
 *        0  [identity]  magic, version, client            W client, once
 *       64  [events]    doorbell of its subscriptions     W client   R publishers that feed it
 *      128  [credits]   doorbell of its publishers        W client   R subscribers that return to it
 *     4096  [endpoints] counters, 256 B each              W client   R anyone
 *        .. [listeners] counters, 512 B each (workers)    W client   R anyone
 *        .. [rings]     ring blocks, placed by the broker W client   R the peer of each
 */
struct npi_doorbell_shm {
  struct npi_atomic_u64 word; /* 31..0 state (core/doorbell.h), 63..32 episode */
  uint8_t reserved[56];
};
NPI_ASSERT_SIZE(struct npi_doorbell_shm, 64);

struct npi_page_shm {
  uint64_t magic;
  uint32_t layout_version;
  uint32_t client;
  uint32_t client_version;
  uint32_t pid;
  struct npi_atomic_u32 farewell; /* 1: the client ended in good order; for a broker that could not be told */
  uint8_t reserved0[36];
  struct npi_doorbell_shm events;
  struct npi_doorbell_shm credits;
  uint8_t reserved1[NPI_PAGE - 192];
};
NPI_ASSERT_SIZE(struct npi_page_shm, NPI_PAGE);
NPI_ASSERT_OFFSET(struct npi_page_shm, events, 64);
NPI_ASSERT_OFFSET(struct npi_page_shm, credits, 128);

/* Counters of one publisher or subscriber: rows of core/counters.h. */
struct npi_endpoint_counters {
  struct npi_atomic_u64 value[32];
};
NPI_ASSERT_SIZE(struct npi_endpoint_counters, 256);

/* Counters of one listener as one worker sees it: rows of core/counters.h. */
struct npi_listener_counters {
  struct npi_atomic_u64 value[64];
};
NPI_ASSERT_SIZE(struct npi_listener_counters, 512);

/* ---- registry ----------------------------------------------------------------------------------------
 *
 *     0  header, one page   W broker; magic last, with release
 *  4096  tables             nodes, clients, channels, publishers, subscribers, connections, segments,
 *                           listeners, journal: at the offsets that the header names
 *
 * A record is filled first, then its state is stored with release; it is taken down in the other order.
 */
enum npi_broker_state {
  NPI_BROKER_STARTING = 1,
  NPI_BROKER_READY = 2,
  NPI_BROKER_DRAINING = 3,
  NPI_BROKER_STOPPED = 4
};

enum { NPI_FEATURE_OTHER_USERS = 1 }; /* clients of other users may be here: nobody trusts a shared descriptor */

struct npi_table {
  uint64_t offset; /* from the registry's start */
  uint32_t count;  /* records in the table, used or not */
  uint32_t bytes;  /* of one record */
};

struct npi_registry_header {
  struct npi_atomic_u64 magic;
  uint32_t layout_version;
  uint32_t header_bytes;
  uint64_t total_bytes;
  uint64_t features;    /* NPI_FEATURE_* */
  uint64_t instance_id; /* random: tells two lives of one instance apart */
  char instance[NPI_INSTANCE_BYTES];
  char boot_id[40];
  char version[24];
  uint32_t broker_pid;
  uint32_t uid;
  uint64_t broker_start_time;  /* clock ticks since boot, as in /proc/PID/stat */
  uint64_t started_ns;         /* CLOCK_REALTIME */
  struct npi_atomic_u32 state; /* enum npi_broker_state */
  uint32_t backend;            /* enum npi_segment_backend */
  uint32_t numa_mode;
  uint32_t n_nodes;
  uint64_t per_node_bytes;
  uint64_t per_client_bytes;
  uint64_t segment_bytes;
  /* geometry of each client's page and ledger */
  uint64_t page_bytes;
  uint64_t page_endpoints_offset;
  uint64_t page_listeners_offset;
  uint64_t page_rings_offset;
  uint32_t endpoints_per_client;
  uint32_t segments_per_client;
  uint32_t connections_per_client;
  uint32_t reserved0;
  uint64_t ledger_bytes;
  struct npi_table nodes, clients, channels, publishers, subscribers, connections, segments, listeners;
  struct npi_atomic_u32 incarnation; /* 1, and one more for each broker that took the instance over */
  uint32_t n_workers;                /* ingest workers that there are when all run */
  struct npi_table journal;          /* one record */
  uint8_t reserved2[488];
  struct npi_atomic_u64 counter[64]; /* the broker's own: rows of core/counters.h */
  char config_file[256];
};
_Static_assert(sizeof(struct npi_registry_header) <= NPI_PAGE, "the registry header is one page");

struct npi_node_record {
  uint32_t id; /* of the operating system */
  uint32_t n_cpus;
  uint64_t budget_bytes;
  struct npi_atomic_u64 made_bytes; /* segments that exist, leased or ready */
  struct npi_atomic_u64 leased_bytes;
  struct npi_atomic_u64 pages_home, pages_away, pages_unknown; /* measured */
  struct npi_atomic_u32 bind_refused; /* 1: mbind is forbidden here, placement is by first touch */
  uint32_t reserved0;
  uint8_t reserved[64];
};
NPI_ASSERT_SIZE(struct npi_node_record, 128);

enum npi_record_state {
  NPI_RECORD_FREE = 0,
  NPI_RECORD_ACTIVE = 1,
  NPI_RECORD_CLOSING = 2, /* its owner closed it or is gone; peers still have to let go */
};
enum npi_client_kind { NPI_CLIENT_APPLICATION = 0, NPI_CLIENT_WORKER = 1, NPI_CLIENT_TOOL = 2 };

/* Line 0 is read at each call of the client that owns the record; all else is rarely touched. */
struct npi_client_record {
  struct npi_atomic_u32 events_sent; /* control events queued for this client so far (wire/protocol.h) */
  uint8_t reserved0[60];
  struct npi_atomic_u32 state; /* enum npi_record_state; CLOSING: dead or gone, its segments are still held */
  uint32_t version;            /* of this record: +1 each time it is given to another client */
  uint32_t pid;
  uint32_t uid;
  uint64_t start_time;
  uint64_t connected_ns;
  uint32_t node; /* index in nodes */
  uint32_t kind; /* enum npi_client_kind */
  struct npi_atomic_u64 leased_bytes;
  uint64_t budget_bytes;
  uint64_t token;
  char name[NPI_CLIENT_NAME_BYTES];
  uint32_t gid;
  uint32_t worker;                  /* number of the ingest worker, NPI_NONE: it is none */
  struct npi_atomic_u32 flags;      /* NPI_CLIENT_* */
  struct npi_atomic_u32 folded;     /* listeners whose counters of this dead worker are in the listeners' past */
  struct npi_atomic_u64 stopped_ns; /* CLOCK_MONOTONIC since when it was seen stopped; 0: it runs, or nobody looks */
  struct npi_atomic_u32 access;     /* of the channels that it has published on; 0: it has not yet */
  uint32_t reserved2;
  struct npi_atomic_u64 stopped_switches; /* times it had left a processor by then; another number: it ran since */
  uint8_t reserved1[56];
};
NPI_ASSERT_SIZE(struct npi_client_record, 256);
NPI_ASSERT_OFFSET(struct npi_client_record, state, 64);

enum {
  NPI_CLIENT_DETACHED = 1,    /* its control connection is over, its process lives: it may come back with its token */
  NPI_CLIENT_QUARANTINED = 2, /* shut out for good: no new events to it, what it holds stays its own until it ends */
};

enum npi_channel_kind { NPI_CHANNEL_BROADCAST = 0, NPI_CHANNEL_GROUP = 1 };
enum npi_on_full { NPI_ON_FULL_BLOCK = 0, NPI_ON_FULL_DROP_NEWEST = 1 };

struct npi_channel_record {
  struct npi_atomic_u32 state;
  uint32_t version;
  uint32_t kind;
  uint32_t on_full;
  uint32_t credits;
  uint32_t on_demand; /* 1: no config names it */
  struct npi_atomic_u32 n_publishers;
  struct npi_atomic_u32 n_subscribers;
  uint32_t max_deliveries; /* group: offered again more often, an event goes to dead_letter; 0: no limit */
  uint32_t dead_letter;    /* index of that channel, NPI_NONE: none */
  uint32_t access;         /* channels with equal numbers have equal access lists; only they may share a segment */
  uint8_t reserved0[20];
  char name[NPI_NAME_BYTES];
  uint8_t reserved1[64];
  /* What publishers and subscribers that are gone had counted, so that sums never go back. Written by the journal. */
  struct npi_endpoint_counters past_publishers;
  struct npi_endpoint_counters past_subscribers;
};
NPI_ASSERT_SIZE(struct npi_channel_record, 704);

struct npi_publisher_record {
  struct npi_atomic_u32 state;
  uint32_t version;
  uint32_t client;
  uint32_t channel;
  uint32_t counters; /* row of the client's endpoint counters */
  uint32_t reserved;
  /* Sums over its connections that are over, from their rings. Written by the journal. */
  struct npi_atomic_u64 ended_delivered;   /* elements */
  struct npi_atomic_u64 ended_tapped;      /* of these, to taps */
  struct npi_atomic_u64 ended_left;        /* to others than taps, and never given back */
  struct npi_atomic_u64 ended_dropped;     /* missed for want of a credit */
  struct npi_atomic_u64 ended_tap_dropped; /* of these, by taps */
};
NPI_ASSERT_SIZE(struct npi_publisher_record, 64);

enum { NPI_SUBSCRIBER_TAP = 1 }; /* sees a group's events beside its members, and never slows anybody */

struct npi_subscriber_record {
  struct npi_atomic_u32 state;
  uint32_t version;
  uint32_t client;
  uint32_t channel;
  uint32_t counters;
  uint32_t on_full;
  uint32_t credits;
  uint32_t flags;
  char name[NPI_CLIENT_NAME_BYTES];
  /* Sums over its connections that are over, from their rings. Written by the journal. */
  struct npi_atomic_u64 ended_delivered;
  struct npi_atomic_u64 ended_taken;
  struct npi_atomic_u64 ended_released;
  struct npi_atomic_u64 ended_dropped;
  uint8_t reserved[32];
};
NPI_ASSERT_SIZE(struct npi_subscriber_record, 128);

enum npi_connection_state {
  NPI_CONNECTION_FREE = 0,
  NPI_CONNECTION_ACTIVE = 1,
  NPI_CONNECTION_CLOSING = 2, /* one end closed in good order */
  NPI_CONNECTION_DEAD = 3,    /* one end died, or lied */
};

enum {
  NPI_CONNECTION_PUBLISHER_HOLDS = 1, /* each end holds it until it has said that it let go, or is gone */
  NPI_CONNECTION_SUBSCRIBER_HOLDS = 2,
  NPI_CONNECTION_PUBLISHER_TOLD = 4, /* it was told to let go, and only then an acknowledgement means something */
  NPI_CONNECTION_SUBSCRIBER_TOLD = 8,
  NPI_CONNECTION_LIED = 16, /* an end broke the rules: whoever is told again is told that */
};

struct npi_connection_record {
  struct npi_atomic_u32 state;
  struct npi_atomic_u32 version;
  uint32_t publisher; /* index in publishers */
  uint32_t subscriber;
  uint32_t publisher_client;
  uint32_t subscriber_client;
  uint32_t channel;
  uint32_t capacity;
  uint32_t limit; /* credits */
  uint32_t on_full;
  uint32_t flags;              /* NPI_SUBSCRIBER_* */
  struct npi_atomic_u32 holds; /* NPI_CONNECTION_* bits, for the broker's successor */
  uint64_t submissions_offset; /* of the ring block in the publisher's page */
  uint64_t returns_offset;     /* of the ring block in the subscriber's page */
  uint8_t reserved[64];
};
NPI_ASSERT_SIZE(struct npi_connection_record, 128);

enum npi_segment_state {
  NPI_SEGMENT_FREE = 0,  /* record unused */
  NPI_SEGMENT_READY = 1, /* bound, prefaulted and measured ahead of demand */
  NPI_SEGMENT_LEASED = 2,
  NPI_SEGMENT_DRAINING = 3, /* its publisher is gone, subscribers still read */
};

struct npi_segment_record {
  struct npi_atomic_u32 state;
  uint32_t version;
  uint32_t node;   /* index in nodes */
  uint32_t client; /* leasing client, NPI_NONE */
  uint32_t number; /* what elements of that client call it */
  uint32_t bound;
  uint64_t object; /* number in the object's name */
  uint64_t bytes;
  uint64_t page_bytes;
  struct npi_atomic_u64 pages_home, pages_away, pages_unknown;
  uint64_t measured_ns;
  uint8_t reserved[48];
};
NPI_ASSERT_SIZE(struct npi_segment_record, 128);

enum npi_listener_state {
  NPI_LISTENER_FREE = 0,
  NPI_LISTENER_STARTING = 1,
  NPI_LISTENER_LISTENING = 2,
  NPI_LISTENER_DOWN = 3
};

struct npi_listener_record {
  struct npi_atomic_u32 state;
  uint32_t version;
  uint32_t channel; /* index in channels */
  uint32_t protocol;
  uint32_t on_full;
  uint32_t port;
  struct npi_atomic_u32 restarts;
  uint32_t reserved0;
  char name[NPI_NAME_BYTES];
  char address[NPI_ADDRESS_BYTES];
  char framing[32];
  uint8_t reserved[256];
  struct npi_listener_counters past; /* of workers that are gone. Written by the journal */
};
NPI_ASSERT_SIZE(struct npi_listener_record, 1024);

/* ---- the broker's journal ------------------------------------------------------------------------------
 *
 * Adding what a dead endpoint had counted to the past of its channel must happen once, also when the broker
 * dies between two of the stores. So the sums are written here first, then `kind` says that they count
 * (release), then they are copied to their place, the record they came from is taken down, and `kind` goes
 * back to none. A successor that finds a kind copies again and goes on from there: twice is the same as once.
 */
enum npi_journal_kind {
  NPI_JOURNAL_NONE = 0,
  NPI_JOURNAL_PUBLISHER = 1,  /* index: publisher record; target: channel */
  NPI_JOURNAL_SUBSCRIBER = 2, /* index: subscriber record; target: channel */
  NPI_JOURNAL_LISTENER = 3,   /* index: client record of the worker; target: listener */
  NPI_JOURNAL_CONNECTION = 4, /* index: connection record; sums of its publisher's and subscriber's records */
};
struct npi_journal {
  struct npi_atomic_u32 kind;
  uint32_t index;
  uint32_t target;
  uint32_t reserved[13];
  struct npi_atomic_u64 sum[64];
};
NPI_ASSERT_SIZE(struct npi_journal, 576);

#endif
