/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ledger: a client's bookkeeping of the slots that it is home to. Written by that client alone, with
 * plain stores; mapped by nobody else. It lies in an object of its own rather than in the heap so that
 * numapoolctl can see who holds what, also after the client's death. It reads a copy, and a copy of a running
 * client's ledger is a moving picture: look twice before reporting.
 *
 *     0  header           geometry; free list of each class
 *  4096  [segments]       one for each segment number
 *    ..  [chunks]         one for each chunk of each segment: which class it was carved into
 *    ..  [records]        NPI_SLOTS_PER_CHUNK_MAX for each chunk: state, holders, link of the free list
 *    ..  [connections]    one for each connection that this client publishes on: credits and positions
 *    ..  [credits]        per connection: which slot each credit stands for, and the free credits
 *
 * A slot record is found from (segment, chunk, slot in chunk) by multiplication, so nothing has to be
 * compacted or searched when segments come and go. The object is sparse: what is not used is not there.
 */
#ifndef NPI_CORE_LEDGER_H
#define NPI_CORE_LEDGER_H

#include "core/slot.h"

enum npi_slot_state {
  NPI_SLOT_NONE = 0,        /* not carved */
  NPI_SLOT_FREE = 1,        /* on the free list of its class */
  NPI_SLOT_LOANED = 2,      /* with the program */
  NPI_SLOT_OUTSTANDING = 3, /* with subscribers: holders says how many */
  NPI_SLOT_WAITING = 4,     /* of a group: to be offered to another member; holders may be > 0 (taps) */
};

/* 16 bytes, four to a line: loan, publish and return each touch one. */
struct npi_slot_record {
  uint32_t handle;
  uint32_t next; /* in a free list or a waiting list; NPI_NONE: the last. On loan: whose loan it is */
  uint32_t generation;
  union {
    struct {
      uint16_t holders; /* connections that a credit is out on for this slot */
      uint8_t slot_class;
      uint8_t state; /* enum npi_slot_state */
    };
    /* The three of them. The data path writes them all at once: a load that is wider than the store before it waits
     * until that store has left the core's buffer. */
    uint32_t use;
  };
};
NPI_ASSERT_SIZE(struct npi_slot_record, 16);
enum {
  NPI_USE_CLASS_SHIFT = 16,
  NPI_USE_STATE_SHIFT = 24,
  NPI_USE_LOANED_TO_OUT = 1 << NPI_USE_STATE_SHIFT | 1, /* added to use: on loan becomes outstanding, with one holder */
};
static inline uint32_t npi_use(uint32_t slot_class, uint32_t state, uint32_t holders) {
  return state << NPI_USE_STATE_SHIFT | slot_class << NPI_USE_CLASS_SHIFT | holders;
}
_Static_assert(NPI_SLOT_OUTSTANDING == NPI_SLOT_LOANED + 1, "see NPI_USE_LOANED_TO_OUT");

struct npi_free_list {
  uint32_t head; /* slot record, NPI_NONE: empty */
  uint32_t count;
};

struct npi_ledger_header {
  uint64_t magic;
  uint32_t layout_version;
  uint32_t client;
  uint32_t client_version;
  uint32_t segments; /* most that the client can have */
  uint32_t chunks_per_segment;
  uint32_t records_per_chunk;
  uint32_t connections;
  uint32_t reserved0;
  uint64_t segments_offset, chunks_offset, records_offset, connections_offset, credits_offset, credits_bytes;
  uint64_t total_bytes;
  struct npi_free_list free[NPI_CLASS_COUNT];
};
_Static_assert(sizeof(struct npi_ledger_header) <= NPI_PAGE, "the ledger header is one page");

struct npi_ledger_segment {
  uint32_t leased; /* 1: the client has it */
  uint32_t node;
  uint64_t bytes;
  uint32_t chunks;
  uint32_t chunks_free;
};

enum { NPI_CHUNK_FREE = 0xff, NPI_CHUNK_CONTINUED = 0xfe };
struct npi_ledger_chunk {
  uint8_t slot_class; /* or NPI_CHUNK_FREE, or NPI_CHUNK_CONTINUED: belongs to the run that begins before it */
};

enum npi_outlet_state {
  NPI_OUTLET_FREE = 0,
  NPI_OUTLET_ACTIVE = 1,
  NPI_OUTLET_CLOSING = 2, /* its publisher closed: takes nothing new, returns still come */
};

/* The publisher's half of a connection. */
struct npi_ledger_connection {
  uint32_t state;      /* enum npi_outlet_state */
  uint32_t connection; /* index in the registry */
  uint32_t version;
  uint32_t publisher; /* index in the registry */
  uint32_t capacity;
  uint32_t limit;
  uint32_t outstanding;  /* = submitted - returned = credits that are out */
  uint32_t credits_free; /* on the stack; capacity - outstanding */
  uint64_t submitted;    /* position of the next element to store */
  uint64_t returned;     /* position of the next return to look for */
  uint64_t bytes_out;    /* strides of the slots that are out */
  uint64_t bytes_limit;
  uint64_t credits_offset; /* of its arrays, from the start of the credits area */
  uint32_t flags;          /* NPI_SUBSCRIBER_* */
  uint32_t on_full;
  uint32_t channel;
  uint32_t peer;
  uint8_t reserved[40];
};
NPI_ASSERT_SIZE(struct npi_ledger_connection, 128);

/*
 * The arrays of a connection in the credits area:
 *   u32 slot[capacity]   record that the credit stands for, NPI_NONE: the credit is free
 *   u32 order[capacity]  low half of the position at which it was submitted
 *   u16 stack[capacity]  numbers of the free credits
 */
static inline uint64_t npi_credit_arrays_bytes(uint32_t capacity) {
  return (uint64_t)capacity * 10;
}

struct npi_ledger_geometry {
  uint32_t segments;
  uint32_t chunks_per_segment;
  uint32_t connections;
  uint64_t credits_bytes;
};

/* A process's view of a ledger, its own or a copy of another's: every pointer inside the same bytes. */
struct npi_ledger {
  struct npi_ledger_header *header;
  struct npi_ledger_segment *segments;
  struct npi_ledger_chunk *chunks;
  struct npi_slot_record *records;
  struct npi_ledger_connection *connections;
  uint8_t *credits;
  struct npi_ledger_geometry geometry; /* checked copy */
  uint32_t n_records;                  /* that follow from it */
};

/* The geometry that follows from the registry's figures; broker and client compute the same. */
void npi_ledger_geometry(struct npi_ledger_geometry *geometry, uint64_t per_client_bytes, uint64_t segment_bytes,
                         uint32_t connections, uint64_t rings_bytes);

/* Bytes of a ledger object; rounded up to pages. */
uint64_t npi_ledger_footprint(const struct npi_ledger_geometry *geometry);

/* Owner, once, on zeroed memory of at least the footprint. */
void npi_ledger_format(struct npi_ledger *ledger, void *memory, const struct npi_ledger_geometry *geometry,
                       uint32_t client, uint32_t client_version);

/* Reader of a copy of n bytes: checks magic, version, and that every area lies inside. NP_ERR_VERSION, NP_ERR_CORRUPT. */
int npi_ledger_attach(struct npi_ledger *ledger, void *memory, uint64_t n);

static inline uint32_t npi_ledger_chunk_index(const struct npi_ledger *ledger, uint32_t segment, uint32_t chunk) {
  return segment * ledger->geometry.chunks_per_segment + chunk;
}
static inline uint32_t npi_ledger_first_record(const struct npi_ledger *ledger, uint32_t segment, uint32_t chunk) {
  return npi_ledger_chunk_index(ledger, segment, chunk) * (uint32_t)NPI_SLOTS_PER_CHUNK_MAX;
}
static inline uint32_t npi_ledger_record_count(const struct npi_ledger *ledger) {
  return ledger->n_records;
}
static inline uint32_t *npi_credit_slots(const struct npi_ledger *ledger, const struct npi_ledger_connection *c) {
  return (uint32_t *)(void *)(ledger->credits + c->credits_offset);
}
static inline uint32_t *npi_credit_orders(const struct npi_ledger *ledger, const struct npi_ledger_connection *c) {
  return npi_credit_slots(ledger, c) + c->capacity;
}
static inline uint16_t *npi_credit_stack(const struct npi_ledger *ledger, const struct npi_ledger_connection *c) {
  return (uint16_t *)(void *)(npi_credit_orders(ledger, c) + c->capacity);
}

#endif
