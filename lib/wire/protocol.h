/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control protocol between a client and the broker: one Unix SOCK_SEQPACKET connection, frames of one
 * fixed size, descriptors as SCM_RIGHTS beside the frame that speaks of them.
 *
 * A client sends requests; the broker answers each that has an answer with the same type and request
 * number and a status (text says why it failed). Between answers the broker sends events. Replies and
 * events come in one order, and that order is what makes opening safe: everything that a reply refers to
 * (peers, segments, connections) has been sent as events before it.
 *
 * Events need no waiting client: the broker first puts the frame into the socket (or, when that is full,
 * into its own queue), then adds one to `events_sent` in the client's registry record, then rings the
 * client's doorbells. A client compares that number with the events it has processed: one load a call.
 *
 * Numbers of types and the places of fields are never reused.
 */
#ifndef NPI_WIRE_PROTOCOL_H
#define NPI_WIRE_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#define NPI_PROTOCOL_MAGIC   UINT32_C(0x4c50554e) /* "NUPL" */
#define NPI_PROTOCOL_VERSION UINT16_C(1)

enum { NPI_CONTROL_FRAME_BYTES = 256, NPI_CONTROL_TEXT_BYTES = 224, NPI_CONTROL_FDS_MAX = 8 };

enum npi_control_type {
  /* requests: client to broker, answered with the same type unless noted */
  NPI_CONTROL_HELLO =
      1, /* first frame. Reply carries fds: registry r, page rw, ledger rw, events eventfd, credits eventfd */
  NPI_CONTROL_OPEN_PUBLISHER = 2, /* events before the reply: PEER, CONNECT for each subscriber of the channel */
  NPI_CONTROL_CLOSE_PUBLISHER = 3,
  NPI_CONTROL_OPEN_SUBSCRIBER =
      4, /* events before the reply: PEER, SEGMENT, CONNECT for each publisher; publishers got theirs */
  NPI_CONTROL_CLOSE_SUBSCRIBER = 5, /* says: I hold nothing of it and read its rings no more */
  NPI_CONTROL_LEASE = 6,            /* events before the reply: OWN_SEGMENT, one for each segment granted */
  NPI_CONTROL_RETURN_SEGMENT = 7,   /* no slot of it is out */
  NPI_CONTROL_ACKNOWLEDGE = 8,      /* no answer. Answers DISCONNECT: this side has let go of the connection */
  NPI_CONTROL_GOODBYE = 9,          /* no answer; the client closes the socket next */
  NPI_CONTROL_WORKER_READY = 10,    /* no answer. An ingest worker receives on all its listeners */
  NPI_CONTROL_REPORT_LIE = 11,      /* no answer. The peer of this connection broke the ring's rules; close it */
  NPI_CONTROL_ATTACH = 12,          /* first frame instead of HELLO: a client that was here before has a new socket */
  NPI_CONTROL_ENDPOINTS = 13,       /* no answer. After ATTACH, as often as needed: what it has open */
  NPI_CONTROL_SEGMENTS_HELD = 14,   /* no answer. After ATTACH, as often as needed: its own segments that it knows */
  NPI_CONTROL_ATTACHED = 15,        /* it named all. Events before the reply: whatever it missed */
  NPI_CONTROL_TAKEOVER = 16,        /* first frame, broker's user or root: the broker answers and ends at once */
  NPI_CONTROL_REFUSE = 17,          /* no answer. This end can not make, or go on with, a connection: nobody lied */
  NPI_CONTROL_PROVE = 18,           /* no answer of its own. Answers CHALLENGE, with the same number */

  /* events: broker to client */
  NPI_CONTROL_PEER = 64,    /* fds: page r, events eventfd, credits eventfd */
  NPI_CONTROL_SEGMENT = 65, /* fd: segment r */
  NPI_CONTROL_CONNECT = 66,
  NPI_CONTROL_DISCONNECT = 67,
  NPI_CONTROL_OWN_SEGMENT = 68, /* fd: segment rw */
  NPI_CONTROL_SEGMENT_GONE = 69,
  NPI_CONTROL_PEER_GONE = 70, /* the last connection to the peer is over: unmap all of it */
  NPI_CONTROL_DRAIN = 71,     /* ingest workers: stop receiving, publish what is here, then say goodbye */
  NPI_CONTROL_WITHHOLD = 72,  /* to a publisher: nothing new on this connection, its subscriber was shut out */
  /* Before the answer to HELLO or ATTACH, where the kernel cannot tell who connected; not counted in events_sent. */
  NPI_CONTROL_CHALLENGE = 73,
};

struct npi_control_head {
  uint32_t magic;
  uint16_t version;
  uint16_t type;    /* enum npi_control_type */
  uint32_t request; /* chosen by the client, repeated in the reply; 0 in events */
  int32_t status;   /* replies: enum np_status */
  uint32_t n_fds;   /* that travel with the frame */
  uint32_t reserved[3];
};

enum npi_disconnect_reason {
  NPI_REASON_PUBLISHER_CLOSED = 1,
  NPI_REASON_PUBLISHER_DEAD = 2,
  NPI_REASON_SUBSCRIBER_CLOSED = 3, /* it reads no more: take back all that is out */
  NPI_REASON_SUBSCRIBER_DEAD = 4,
  NPI_REASON_LIE = 5,     /* the peer, or this client, broke the rules of the ring */
  NPI_REASON_DRAINED = 6, /* to a publisher that closed: the subscriber has let go */
};

/* A publisher that a client opens beside that of a group, for what the group gives up. Publishes nothing else. */
enum { NPI_PUBLISHER_DEAD_LETTERS = 1 };

enum { NPI_ROLE_PUBLISHER = 1, NPI_ROLE_SUBSCRIBER = 2 };

enum { NPI_ENDPOINTS_PER_FRAME = 16, NPI_SEGMENTS_PER_FRAME = 48 };

struct npi_control_frame {
  struct npi_control_head head;
  union {
    char text[NPI_CONTROL_TEXT_BYTES]; /* replies with status < 0: why, with a NUL */
    struct {
      uint32_t layout_version;
      uint32_t kind;          /* enum npi_client_kind */
      int32_t node;           /* wanted, as the operating system numbers it; -1: where the client runs now */
      uint32_t current_node;  /* where it runs */
      uint64_t token;         /* random, chosen by the client */
      uint64_t reserve_bytes; /* lease at least this much at once */
      char name[32];
    } hello;
    struct {
      uint32_t client; /* index in the registry */
      uint32_t client_version;
      uint32_t node; /* index in the registry's nodes */
      uint32_t reserved;
      uint64_t registry_bytes, page_bytes, ledger_bytes;
      uint64_t budget_bytes;
    } hello_reply;
    struct {
      char channel[64];
      uint32_t flags; /* NPI_PUBLISHER_* */
    } open_publisher;
    struct {
      uint32_t publisher; /* index in the registry */
      uint32_t publisher_version;
      uint32_t channel;
      uint32_t kind;           /* enum npi_channel_kind */
      uint32_t on_full;        /* of the channel: what a group without members does */
      uint32_t counters;       /* row of the endpoint counters in the own page */
      uint32_t max_deliveries; /* of a group; 0: no limit */
      char dead_letter[64];    /* the channel for events that were delivered more often; empty: none */
    } open_publisher_reply;
    struct {
      char channel[64];
      char name[32];
      int32_t on_full;  /* enum npi_on_full, -1: as the channel says */
      uint32_t credits; /* 0: as the channel says */
      uint32_t flags;   /* NPI_SUBSCRIBER_* */
    } open_subscriber;
    struct {
      uint32_t subscriber;
      uint32_t subscriber_version;
      uint32_t channel;
      uint32_t kind;
      uint32_t credits;
      uint32_t counters;
    } open_subscriber_reply;
    struct {
      uint32_t index; /* of the publisher or subscriber to close */
      uint32_t version;
    } close_endpoint;
    struct {
      uint64_t bytes; /* at least; at most what the budget leaves */
    } lease;
    struct {
      uint64_t bytes; /* granted, maybe less */
      uint32_t segments;
    } lease_reply;
    struct {
      uint32_t number;
    } return_segment;
    struct {
      uint32_t connection;
      uint32_t version;
    } acknowledge; /* also report_lie, withhold */
    struct {
      uint32_t connection;
      uint32_t version;
      uint32_t role; /* of the sender's end */
      uint32_t made; /* 1: it may hold events of it, and lets go when told that it ends */
    } refuse;
    struct {
      uint32_t backend; /* 1 io_uring, 2 epoll */
      uint32_t features;
    } worker_ready;
    struct {
      uint32_t layout_version;
      uint32_t client; /* index in the registry, as HELLO's reply said */
      uint32_t client_version;
      uint32_t kind;        /* enum npi_client_kind */
      uint64_t token;       /* as in HELLO */
      uint64_t instance_id; /* as in the registry: of another life nothing is left here */
    } attach;
    struct {
      uint32_t events_base; /* events up to this number that did not arrive are replaced by those that follow */
      uint32_t incarnation; /* of the broker */
    } attach_reply;
    struct {
      uint32_t n; /* at most NPI_ENDPOINTS_PER_FRAME */
      struct {
        uint32_t role; /* NPI_ROLE_* */
        uint32_t index;
        uint32_t version;
      } list[NPI_ENDPOINTS_PER_FRAME];
    } endpoints;
    struct {
      uint32_t n; /* at most NPI_SEGMENTS_PER_FRAME */
      uint32_t numbers[NPI_SEGMENTS_PER_FRAME];
    } segments_held;

    struct {
      uint32_t client;
      uint32_t client_version;
      uint32_t pid;
      uint32_t uid;
      uint64_t page_bytes;
      char name[32];
    } peer;
    struct {
      uint32_t client; /* whose segment (SEGMENT, SEGMENT_GONE) */
      uint32_t client_version;
      uint32_t number; /* 0 .. segments_per_client - 1 */
      uint32_t node;   /* index in the registry's nodes */
      uint64_t bytes;
    } segment; /* SEGMENT, OWN_SEGMENT, SEGMENT_GONE */
    struct {
      uint32_t connection; /* index in the registry */
      uint32_t version;
      uint32_t role;     /* of the receiver of this frame */
      uint32_t endpoint; /* its publisher or subscriber index */
      uint32_t peer;     /* the other client */
      uint32_t peer_version;
      uint32_t capacity; /* elements of each ring */
      uint32_t limit;    /* credits */
      uint32_t on_full;
      uint32_t kind;
      uint32_t flags; /* NPI_SUBSCRIBER_* */
      uint32_t channel;
      uint64_t submissions_offset; /* in the publisher's page */
      uint64_t returns_offset;     /* in the subscriber's page */
      char peer_name[32];
    } connect;
    struct {
      uint32_t connection;
      uint32_t version;
      uint32_t reason; /* enum npi_disconnect_reason */
    } disconnect;
    struct {
      uint32_t client;
      uint32_t client_version;
    } peer_gone;
    struct {
      uint64_t nonce[2];
    } challenge; /* CHALLENGE and PROVE */
  } body;
};
_Static_assert(sizeof(struct npi_control_head) == 32, "the head of a frame is fixed for ever");
_Static_assert(sizeof(struct npi_control_frame) == NPI_CONTROL_FRAME_BYTES, "every frame has one size");

#endif
