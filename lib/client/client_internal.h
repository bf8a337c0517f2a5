/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a client is made of. Everything here belongs to the client's one thread.
 *
 *   np_client
 *     ├─ registry (read-only), own page, own ledger + pool, two doorbells
 *     ├─ peers          other clients that share a connection: page, doorbells, segments
 *     ├─ connections    by local slot; each is the outlet of a publisher or the inlet of a subscriber
 *     ├─ publishers     each a flow over its outlets
 *     └─ subscribers    each a list of inlets
 */
#ifndef NPI_CLIENT_INTERNAL_H
#define NPI_CLIENT_INTERNAL_H

#include <pthread.h>
#include <sys/types.h>

#include "core/doorbell.h"
#include "core/flow.h"
#include "core/inlet.h"
#include "core/pool.h"
#include "numapool/numapool.h"
#include "wire/protocol.h"

struct npi_peer {
  uint32_t client; /* index in the registry */
  uint32_t version;
  uint32_t pid;
  char name[NPI_CLIENT_NAME_BYTES];
  uint8_t *page; /* read-only */
  uint64_t page_bytes;
  int events_fd, credits_fd;
  struct npi_bell_peer events_bell;  /* rung by our publishers */
  struct npi_bell_peer credits_bell; /* rung by our subscribers */
  struct npi_segment_view *segments; /* by number */
  uint32_t n_segments;
  uint64_t *segment_files;       /* by number: inode of what is mapped, to tell a segment from its successor */
  struct npi_segment_view *kept; /* given back by the peer while events of it were held here; unmapped with the peer */
  uint32_t n_kept;
  uint32_t n_connections;
  int gone; /* the broker said so: freed with its last connection */
  struct npi_peer *next;
};

struct npi_link { /* a connection, either end */
  /* Inlets, read at each release or take: what the events of it are marked with; the publisher's doorbell, or a word
   * that is never AWAKE where a release has more to look at; the publisher's index in the registry. */
  uint64_t mark;
  const struct npi_atomic_u64 *bell_word;
  uint32_t publisher;
  uint32_t slot; /* in client->links */
  struct npi_inlet inlet;
  uint32_t connection; /* index in the registry */
  uint32_t version;
  uint32_t role;
  struct npi_peer *peer;
  struct np_publisher *np_publisher; /* NULL: closed, only returns are awaited */
  struct np_subscriber *np_subscriber;
  uint8_t draining; /* the publisher is gone or closed: take what is there, then let go */
  uint8_t cut;      /* take nothing more */
  uint8_t lie_reported;
  uint8_t refused; /* this end could not go on with it, and the broker was told */
  struct npi_outlet outlet;
};

/* Credit arrays that were given back, by log2 of their capacity, for the next connection of that size. */
struct npi_credit_block {
  uint64_t offset;
  struct npi_credit_block *next;
};

/* Publishers and subscribers lie in pages that a forked child finds zeroed: there, client is NULL. */
struct np_publisher {
  struct np_client *client;
  uint32_t index, version, channel;
  uint64_t loan_word;   /* what each loaned event has from topic_size to publisher */
  uint64_t header_word; /* what each header has from port to channel */
  struct npi_flow flow;
  uint32_t wanted_class; /* of the loan or publish that met a condition */
  uint8_t wants_slot;    /* NP_EMPTY */
  uint8_t wants_credit;  /* NP_FULL */
  uint8_t hidden;        /* the program did not open it: it carries the dead letters of others of this client */
  uint32_t n_users;      /* hidden: publishers of groups that use it */
  struct np_publisher *dead_letter; /* hidden publisher for what this group gives up; NULL: none */
  uint8_t looks;                    /* publishes on the long way; now and then one looks at the clock */
  char channel_name[NPI_NAME_BYTES];
  struct np_publisher *next;
};

struct np_subscriber {
  /* Whose turn it is, while nothing out of the ordinary has to be looked at: the doorbell is AWAKE, the connection is
   * not cut. NULL: np_take looks at everything (take_any), and sets it again. */
  struct npi_link *current;
  struct np_client *client;
  struct npi_endpoint_counters *counters;
  uint32_t turn_left; /* events before the next one's turn */
  uint32_t turn;      /* inlet whose turn it is */
  uint32_t n_inlets, capacity;
  struct npi_link **inlets;
  uint32_t n_draining; /* inlets whose publisher is gone or closed */
  uint32_t index, version, channel;
  struct np_subscriber *next;
};

/* A client that lost its broker comes back as the client that it was (attach.c). */
enum npi_attach {
  NPI_ATTACHED = 0,
  NPI_ATTACH_AWAY,    /* the socket is at its end */
  NPI_ATTACH_ASKED,   /* a new one is there; the answer to ATTACH is awaited */
  NPI_ATTACH_TELLING, /* what this client has was told; events come, then the answer to ATTACHED */
  NPI_ATTACH_ORPHAN,  /* the broker does not know this client: what it has it keeps, it gets no more */
};

enum { NPI_NOTICES_MAX = 16 };
struct npi_notices { /* oldest first */
  uint32_t n;
  struct np_notice list[NPI_NOTICES_MAX];
};

struct np_client {
  volatile uint32_t *alive; /* a page that a forked child finds zeroed */
  int socket;
  int said_hello;
  int draining;
  uint32_t kind;
  uint32_t index, version, node;
  const uint8_t *registry;
  uint64_t registry_bytes;
  struct npi_table clients_table, nodes_table, listeners_table, connections_table, channels_table;
  const struct npi_client_record *record;
  uint32_t events_seen;
  int news_overdue; /* events are announced and were waited for: not again before one comes */
  uint32_t request;
  uint32_t awaited; /* number of the request whose answer is waited for; 0: none */
  uint64_t control_calls;
  uint8_t *page;
  uint64_t page_bytes, rings_offset, endpoints_offset, listeners_offset;
  uint32_t endpoints;
  uint8_t *ledger;
  uint64_t ledger_bytes;
  uint64_t segment_bytes;
  int page_fd, ledger_fd, registry_fd;
  int events_fd, credits_fd;
  int events_fd_used, credits_fd_used; /* the program waits on it itself */
  int membarrier_works;
  struct npi_bell events_bell, credits_bell;
  uint32_t takes_fenced; /* takes since a look at the clock, while the bell is FENCED */
  struct npi_pool pool;
  struct npi_pool_segment *segments;
  int *segment_fds;
  uint64_t credits_used; /* bytes of the credit area handed out */
  struct npi_credit_block *credit_blocks[16];
  uint64_t lease_again_ns, uncarve_again_ns, trim_again_ns;
  uint64_t reserved_bytes; /* asked for ahead: never given back for being idle */
  int uncarve_put_off;     /* a loan went without a look for free chunks of other classes: too soon after the last */
  struct npi_peer *peers;
  struct npi_link **links;
  uint32_t n_links;
  struct npi_control_frame *deferred; /* CONNECT events that came before the reply which names their endpoint */
  uint32_t n_deferred;
  uint32_t opening;
  int unmapped; /* a status, with its words: memory of a peer could not be mapped since the last open began */
  char unmapped_words[160];
  struct np_publisher *publishers;
  struct np_subscriber *subscribers;
  /* for coming back */
  enum npi_attach attach;
  uint32_t attach_request; /* number of the ATTACH or ATTACHED whose answer is awaited */
  uint32_t socket_number;  /* +1 for each new socket */
  int shut_out;            /* evicted: it takes nothing more, and the program was told */
  uint64_t attach_again_ns;
  uint64_t token, instance_id;
  uint32_t *let_go; /* by connection and end: version + 1 of the last that was let go, whose word may be lost */
  char socket_path[256];
  int events_watch, credits_watch, tick_fd; /* watch.c; -1: the program has no epoll of its own */
  struct npi_notices notices;
  char lease_refusal[256]; /* why the last lease failed; empty: it did not */
};

#define NPI_CLIENT_ALIVE UINT32_C(0x4e554d41)

/* Every public function begins with it, or with a look at the endpoint's client: a forked child has no mappings. */
static inline int npi_client_usable(const struct np_client *client) {
  return NPI_LIKELY(client != NULL && *client->alive == NPI_CLIENT_ALIVE);
}
int npi_client_forked(void);   /* fails with NP_ERR_FORKED */
int npi_client_shut_out(void); /* fails with NP_ERR_EVICTED */

/* Has the broker sent events that were not processed yet? One load of a line that rarely changes. */
static inline int npi_client_has_news(const struct np_client *client) {
  /* [client.news] acquire: pairs with the broker's release after the frame was sent */
  return npi_load_acquire_u32(&client->record->events_sent) != client->events_seen;
}

/* A thread that is cancelled within the library leaves a client that another thread can use, or end: the library's
 * slow paths are not left half way. */
static inline int npi_cancel_off(void) {
  int before;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
  return before;
}
static inline void npi_cancel_restore(int before) {
  pthread_setcancelstate(before, NULL);
}

/* endpoint.c: memory of a publisher or subscriber, at most a page, zeroed; zeroed again in a forked child. */
void *npi_endpoint_alloc(void);
void *npi_endpoint_free(void *endpoint);

/* request.c: one exchange with the broker. reply is filled; NP_ERR_* of the broker with its text. */
int npi_client_request(struct np_client *client, struct npi_control_frame *frame, struct npi_control_frame *reply,
                       int64_t timeout_ms);
int npi_client_tell(struct np_client *client, struct npi_control_frame *frame);
void npi_client_news(struct np_client *client);
int npi_client_no_broker(const struct np_client *client); /* fails with NP_ERR_NO_BROKER and words */

/* attach.c */
void npi_client_lost(struct np_client *client);        /* the socket is at its end */
int npi_client_attach_begin(struct np_client *client); /* one attempt; does not wait. 0: the broker was asked */
void npi_client_attach_answer(struct np_client *client, const struct npi_control_frame *reply);
int npi_client_may_attach(const struct np_client *client); /* away, and the last attempt is not too fresh */
void npi_client_look(struct np_client *client);            /* from time to time: is the broker there, or there again? */
/* Sleeps until fd is readable, or the broker answers a client that comes back. As npi_wait_readable. */
int npi_client_sleep(struct np_client *client, int fd, int64_t timeout_ns);

/* notice.c */
void npi_client_notify(struct np_client *client, uint32_t kind, uint32_t pid, const char *format, ...)
    __attribute__((format(printf, 4, 5), cold));

/* watch.c: the descriptors for a program's own epoll; they also become readable when the broker goes away */
int npi_watch_open(struct np_client *client, int *watch, int bell_fd);
void npi_watch_socket(struct np_client *client); /* after a change of socket or state */
void npi_watch_forget(struct np_client *client); /* before the socket is closed */
void npi_watch_close(struct np_client *client);

/* events.c */
void npi_client_event(struct np_client *client, const struct npi_control_frame *frame, int *fds, int n_fds);

/* peer.c */
struct npi_peer *npi_peer_find(struct np_client *client, uint32_t index);
void npi_peer_add(struct np_client *client, const struct npi_control_frame *frame, int *fds, int n_fds);
void npi_peer_segment(struct np_client *client, const struct npi_control_frame *frame, int fd);
void npi_peer_segment_gone(struct np_client *client, const struct npi_control_frame *frame);
void npi_peer_gone(struct np_client *client, uint32_t index, uint32_t version);
int npi_peer_lacks(const struct npi_peer *peer, uint32_t number); /* announced, and could not be mapped here */
void npi_peer_release(struct np_client *client, struct npi_peer *peer);
void npi_peer_free(struct np_client *client, struct npi_peer *peer);
void npi_peers_forget_gone(struct np_client *client); /* of whom the registry knows nothing any more */

/* link.c */
void npi_link_make(struct np_client *client, const struct npi_control_frame *frame);
void npi_link_end(struct np_client *client, const struct npi_control_frame *frame);
void npi_link_withhold(struct np_client *client, const struct npi_control_frame *frame);
void npi_links_withhold_own(struct np_client *client);                 /* those to itself */
void npi_link_let_go(struct np_client *client, struct npi_link *link); /* drained: acknowledge and free */
void npi_link_report_lie(struct np_client *client, struct npi_link *link);
void npi_link_refuse(struct np_client *client, struct npi_link *link); /* takes nothing more; the peer did no wrong */
void npi_link_free(struct np_client *client, struct npi_link *link);
void npi_links_share_bytes(struct np_client *client);

/*
 * A request that opens an endpoint: the connections to those who are there already arrive before the reply
 * that says which index the endpoint has. They are kept; npi_link_adopt_deferred makes them, once the
 * endpoint is in the client's list, npi_link_drop_deferred forgets them.
 */
int npi_link_open_endpoint(struct np_client *client, struct npi_control_frame *frame, struct npi_control_frame *reply,
                           int64_t timeout_ms);
void npi_link_adopt_deferred(struct np_client *client);
void npi_link_drop_deferred(struct np_client *client);

/* memory.c */
int npi_client_lease(struct np_client *client, uint64_t bytes);
void npi_client_own_segment(struct np_client *client, const struct npi_control_frame *frame, int fd);
void npi_client_own_segment_gone(struct np_client *client, uint32_t number);
uint32_t npi_client_reap(struct np_client *client);
void npi_client_trim(struct np_client *client, uint64_t now_ns);
int npi_client_has_room(struct np_client *client, uint32_t slot_class, int last_look);
uint32_t npi_client_loan_slow(struct np_publisher *publisher, uint32_t slot_class);
void npi_client_memory_free(struct np_client *client);

/* verify.c: debug builds check all invariants of the ledger here */
void npi_client_verify(const struct np_client *client);

/* wait.c */
void npi_client_arm_events(struct np_client *client);
void npi_client_bell_attention(struct np_client *client);
int npi_subscriber_has(struct np_subscriber *subscriber);
void npi_client_arm_credits(struct np_client *client);
void npi_bell_ring_peer(struct npi_bell_peer *peer);

#endif
