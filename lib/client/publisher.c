/* SPDX-License-Identifier: Apache-2.0 */
/* Publishing: loan a slot, fill it, hand it on. Thin over core/flow.h; the hot functions make no system call. */
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "client/client_internal.h"
#include "client/worker.h"
#include "os/os_clock.h"
#include "os/os_wait.h"
#include "wire/channel.h"

enum { OPEN_TIMEOUT_MS = 5000 };

void np_publisher_options_init(struct np_publisher_options *options) {
  *options = (struct np_publisher_options){.size = sizeof *options};
}

/* Stands in the record of a slot on loan, where a free one has the next: whose loan it is. No slot has that number. */
#define LOAN_MARK UINT32_C(0x80000000)
_Static_assert((uint64_t)NPI_SEGMENTS_PER_CLIENT_MAX *(NPI_SEGMENT_BYTES_MAX / NPI_CHUNK_BYTES) *
                       NPI_SLOTS_PER_CHUNK_MAX <
                   LOAN_MARK,
               "a slot's number is no mark");
static inline uint32_t loan_mark(const struct np_publisher *publisher) {
  return publisher->index | LOAN_MARK;
}

static void publisher_unlink(struct np_publisher *publisher) {
  for (struct np_publisher **link = &publisher->client->publishers; *link != NULL; link = &(*link)->next) {
    if (*link != publisher) continue;
    *link = publisher->next;
    return;
  }
}

static int open_endpoint(struct np_client *client, const char *channel, uint32_t flags, struct np_publisher **out);

/*
 * What a group gives up goes to another channel, without a copy: so by a publisher of the same client. It is opened
 * together with the group's, as on the day it is needed the broker may be away.
 */
static int open_dead_letter(struct np_publisher *publisher, const char *channel) {
  struct np_publisher *hidden = publisher->client->publishers;
  while (hidden != NULL && !(hidden->hidden && strcmp(hidden->channel_name, channel) == 0)) hidden = hidden->next;
  if (hidden == NULL) {
    int status = open_endpoint(publisher->client, channel, NPI_PUBLISHER_DEAD_LETTERS, &hidden);
    if (status != 0) return npi_trail(status, "for the dead letters of channel \"%s\"", publisher->channel_name);
    hidden->hidden = 1;
    hidden->flow.takes_dead_letters = 1;
  }
  hidden->n_users++;
  publisher->dead_letter = hidden;
  publisher->flow.dead_letter = &hidden->flow;
  return 0;
}

static int open_endpoint(struct np_client *client, const char *channel, uint32_t flags, struct np_publisher **out) {
  struct npi_control_frame frame;
  struct npi_control_frame reply;
  struct np_publisher *publisher = npi_endpoint_alloc();
  if (publisher == NULL) return npi_trail(NP_ERR_NO_MEMORY, "no memory for a publisher");
  publisher->client = client;
  memcpy(publisher->channel_name, channel, strlen(channel) + 1);
  npi_control_init(&frame, NPI_CONTROL_OPEN_PUBLISHER, 0, 0);
  memcpy(frame.body.open_publisher.channel, channel, strlen(channel) + 1);
  frame.body.open_publisher.flags = flags;
  int status = npi_link_open_endpoint(client, &frame, &reply, OPEN_TIMEOUT_MS);
  if (status == 0 && reply.body.open_publisher_reply.counters >= client->endpoints) {
    status = npi_fail(NP_ERR_PROTOCOL, "the broker named counter row %u of %u",
                      reply.body.open_publisher_reply.counters, client->endpoints);
  }
  if (status != 0) {
    npi_link_drop_deferred(client);
    npi_endpoint_free(publisher);
    return npi_trail(status, "cannot publish on channel \"%s\"", channel);
  }
  struct npi_endpoint_counters *counters = (void *)(client->page + client->endpoints_offset);
  publisher->index = reply.body.open_publisher_reply.publisher;
  publisher->version = reply.body.open_publisher_reply.publisher_version;
  publisher->channel = reply.body.open_publisher_reply.channel;
  publisher->loan_word = (uint64_t)publisher->index << 32 | NP_PRIORITY_NORMAL << 16;
  publisher->header_word = (uint64_t)publisher->channel << 32;
  npi_flow_init(&publisher->flow, &client->pool, reply.body.open_publisher_reply.kind,
                reply.body.open_publisher_reply.on_full, &counters[reply.body.open_publisher_reply.counters]);
  publisher->next = client->publishers;
  client->publishers = publisher;
  npi_link_adopt_deferred(client);
  if (client->unmapped != 0) {
    status = client->unmapped;
    client->unmapped = 0;
    *out = np_publisher_close(publisher);
    return npi_fail(status, "cannot publish on channel \"%s\": %s", channel, client->unmapped_words);
  }
  *out = publisher;
  const char *dead_letter = reply.body.open_publisher_reply.dead_letter;
  if (flags != 0 || publisher->flow.kind != NPI_CHANNEL_GROUP) return 0;
  publisher->flow.max_deliveries = reply.body.open_publisher_reply.max_deliveries;
  if (dead_letter[0] == '\0' || memchr(dead_letter, '\0', NPI_NAME_BYTES) == NULL) return 0;
  status = open_dead_letter(publisher, dead_letter);
  if (status != 0) *out = np_publisher_close(publisher);
  return status;
}

int np_publisher_open(struct np_client *client, const char *channel, const struct np_publisher_options *options,
                      struct np_publisher **out) {
  uint64_t reserve = 0;
  *out = NULL;
  if (!npi_client_usable(client)) return npi_client_forked();
  if (channel == NULL || channel[0] == '\0' || strlen(channel) >= NPI_NAME_BYTES) {
    return npi_fail(NP_ERR_ARGUMENT, "a channel name has 1 to %d bytes", NPI_NAME_BYTES - 1);
  }
  if (options != NULL && options->size >= offsetof(struct np_publisher_options, reserve_bytes) + sizeof(uint64_t)) {
    reserve = options->reserve_bytes;
  }
  struct np_publisher *publisher;
  int status = open_endpoint(client, channel, 0, &publisher);
  if (status != 0) return status;
  if (client->reserved_bytes < reserve) client->reserved_bytes = reserve;
  while (client->pool.leased_bytes < reserve) {
    uint64_t before = client->pool.leased_bytes;
    status = npi_client_lease(client, reserve - before);
    if (status == 0 && client->pool.leased_bytes == before)
      status = npi_fail(NP_ERR_NO_MEMORY, "the broker granted nothing");
    if (status != 0) {
      np_publisher_close(publisher);
      return npi_trail(status, "cannot reserve %llu bytes", (unsigned long long)reserve);
    }
  }
  *out = publisher;
  return NP_OK;
}

struct np_publisher *np_publisher_close(struct np_publisher *publisher) {
  if (publisher == NULL) return NULL;
  struct np_client *client = publisher->client;
  struct npi_control_frame frame;
  struct npi_control_frame reply;
  if (!npi_client_usable(client)) return NULL;
  if (npi_client_has_news(client)) npi_client_news(client);
  if (npi_flow_offer_waiting(&publisher->flow) > 0) npi_publisher_flush(publisher);
  npi_flow_abandon_waiting(&publisher->flow);
  if (publisher->dead_letter != NULL && --publisher->dead_letter->n_users == 0) {
    np_publisher_close(publisher->dead_letter);
  }
  npi_pool_free_loans(&client->pool, loan_mark(publisher));
  publisher_unlink(publisher);
  for (uint32_t i = 0; i < client->n_links; i++) {
    struct npi_link *link = client->links[i];
    if (link == NULL || link->role != NPI_ROLE_PUBLISHER || link->np_publisher != publisher) continue;
    link->np_publisher = NULL; /* what is out still comes back; the broker says when all of it has */
    link->outlet.entry->state = NPI_OUTLET_CLOSING;
  }
  npi_control_init(&frame, NPI_CONTROL_CLOSE_PUBLISHER, 0, 0);
  frame.body.close_endpoint.index = publisher->index;
  frame.body.close_endpoint.version = publisher->version;
  npi_client_request(client, &frame, &reply, OPEN_TIMEOUT_MS); /* without a broker there is nobody to tell */
  npi_flow_deinit(&publisher->flow);
  npi_endpoint_free(publisher);
  return NULL;
}

/* ---- the hot path ------------------------------------------------------------------------------------------ */

/* Fills in the event that names a loaned slot. The slot's header is written when it is published. */
NPI_INLINE int hand_out(struct np_publisher *publisher, size_t size, uint32_t slot, struct np_event *event) {
  const struct npi_pool *pool = &publisher->client->pool;
  struct npi_slot_record *record = npi_pool_record(pool, slot);
  struct npi_slot_header *header = npi_pool_slot(pool, record->handle);
  record->next = loan_mark(publisher);
  event->data = (uint8_t *)header + NPI_SLOT_HEADER_BYTES;
  event->size = size;
  event->sequence = 0;
  event->time_ns = 0;
  event->topic = NULL;
  memcpy(&event->topic_size, &publisher->loan_word, sizeof publisher->loan_word);
  event->token[0] = slot | (uint64_t)record->generation << 32;
  event->token[1] = (uintptr_t)header;
  return NP_OK;
}

/* All that is not a small step: no slot of that class is free, or no class is that large. */
static int loan_slow(struct np_publisher *publisher, size_t size, struct np_event *event)
    __attribute__((cold, noinline));
static int loan_slow(struct np_publisher *publisher, size_t size, struct np_event *event) {
  struct np_client *client = publisher->client;
  uint32_t slot_class = npi_class_of(size);
  if (slot_class >= NPI_CLASS_COUNT) {
    return npi_fail(NP_ERR_TOO_LARGE, "an event of %zu bytes: the largest size class holds %llu", size,
                    (unsigned long long)NPI_EVENT_BYTES_MAX);
  }
  uint32_t slot = npi_client_loan_slow(publisher, slot_class);
  if (slot != NPI_NONE) return hand_out(publisher, size, slot, event);
  npi_flow_count(&publisher->flow, NPI_PUBLISHER_EMPTY, 1);
  if (client->shut_out) return npi_client_shut_out(); /* it is given no memory any more */
  publisher->wanted_class = slot_class;
  publisher->wants_slot = 1;
  if (client->credits_fd_used) npi_client_arm_credits(client);
  return NP_EMPTY;
}

NPI_INLINE int loan(struct np_publisher *publisher, uint32_t slot_class, size_t size, struct np_event *event) {
  uint32_t slot = npi_pool_loan(&publisher->client->pool, slot_class);
  if (NPI_UNLIKELY(slot == NPI_NONE)) return loan_slow(publisher, size, event);
  return hand_out(publisher, size, slot, event);
}

int np_loan(struct np_publisher *publisher, size_t size, struct np_event *event) {
  if (NPI_UNLIKELY(publisher->client == NULL)) return npi_client_forked();
  if (NPI_LIKELY(size <= npi_class_bytes(0))) return loan(publisher, 0, size, event);
  uint32_t slot_class = npi_class_of(size);
  if (NPI_UNLIKELY(slot_class >= NPI_CLASS_COUNT)) return loan_slow(publisher, size, event);
  return loan(publisher, slot_class, size, event);
}

/* The record of an event that is on loan to the program; NULL: it is not (published, discarded, made up). */
NPI_INLINE struct npi_slot_record *loaned(const struct np_client *client, const struct np_event *event) {
  uint32_t slot = (uint32_t)event->token[0];
  if (NPI_UNLIKELY(slot >= npi_ledger_record_count(&client->pool.ledger))) return NULL;
  struct npi_slot_record *record = npi_pool_record(&client->pool, slot);
  if (NPI_UNLIKELY(record->generation != event->token[0] >> 32)) return NULL;
  if (NPI_UNLIKELY(record->use >> NPI_USE_STATE_SHIFT != NPI_SLOT_LOANED)) return NULL;
  return record;
}

static int not_loaned(void) __attribute__((cold, noinline));
static int not_loaned(void) {
  return npi_fail(NP_ERR_MISUSE, "the event is not on loan from this client: published, discarded or never loaned");
}

int np_set_topic(struct np_publisher *publisher, struct np_event *event, const char *topic, size_t length) {
  if (!npi_client_usable(publisher->client)) return npi_client_forked();
  const struct npi_slot_record *record = loaned(publisher->client, event);
  if (record == NULL) return not_loaned();
  uint64_t room = npi_class_bytes(record->slot_class);
  if (length > UINT16_MAX || event->size > room || length > room - event->size) {
    return npi_fail(NP_ERR_TOO_LARGE,
                    "a topic of %zu bytes behind a payload of %zu: the slot holds %llu in all; loan more", length,
                    event->size, (unsigned long long)room);
  }
  char *place = (char *)event->data + event->size;
  memcpy(place, topic, length);
  event->topic = place;
  event->topic_size = (uint16_t)length;
  return NP_OK;
}

/* Tells the broker of subscribers that lied about returns. Out of line: it does not happen among honest peers. */
static void report_lies(struct np_publisher *publisher) __attribute__((cold, noinline));
static void report_lies(struct np_publisher *publisher) {
  struct np_client *client = publisher->client;
  publisher->flow.broken = 0;
  for (uint32_t i = 0; i < client->n_links; i++) {
    struct npi_link *link = client->links[i];
    if (link != NULL && link->role == NPI_ROLE_PUBLISHER && link->outlet.broken) npi_link_report_lie(client, link);
  }
}

static int met_full(struct np_publisher *publisher, uint32_t slot_class) __attribute__((cold, noinline));
static int met_full(struct np_publisher *publisher, uint32_t slot_class) {
  /* No end of a subscriber is told to it any more: who it waits for may be dead. */
  if (publisher->client->shut_out) return npi_client_shut_out();
  publisher->wanted_class = slot_class;
  publisher->wants_credit = 1;
  if (publisher->client->credits_fd_used) npi_client_arm_credits(publisher->client);
  return NP_FULL;
}

/* Neighbours that are written as one word, here and in np_loan. */
NPI_ASSERT_OFFSET(struct np_event, priority, offsetof(struct np_event, topic_size) + 2);
NPI_ASSERT_OFFSET(struct np_event, flags, offsetof(struct np_event, topic_size) + 3);
NPI_ASSERT_OFFSET(struct np_event, publisher, offsetof(struct np_event, topic_size) + 4);
NPI_ASSERT_OFFSET(struct npi_slot_header, generation, offsetof(struct npi_slot_header, listener) + 4);
NPI_ASSERT_OFFSET(struct npi_slot_header, channel, offsetof(struct npi_slot_header, port) + 4);

/* Who filled in the header: nobody yet, or the ingest worker, whose words about the origin stay. */
enum origin { FROM_PROGRAM, FROM_SOCKET };

/*
 * The header takes over what the program may have set. The slot holds that much: checked by the caller. What only
 * sockets have (connection, address) is looked at only where there is a listener, so it is not cleared here.
 */
NPI_INLINE struct npi_slot_header *fill_header(const struct np_publisher *publisher, const struct np_event *event,
                                               enum origin origin) {
  struct npi_slot_header *header = (void *)(uintptr_t)event->token[1]; /* token[0] was checked, they go together */
  uint8_t flags = 0;
  if (origin == FROM_SOCKET) {
    if (event->time_ns != 0) header->time_ns = event->time_ns;
    flags = header->flags;
  } else {
    header->time_ns = event->time_ns;
    uint64_t listener_and_generation = event->token[0] | NPI_NONE;
    memcpy(&header->listener, &listener_and_generation, sizeof listener_and_generation);
    memcpy(&header->port, &publisher->header_word, sizeof publisher->header_word);
  }
  uint32_t
      small; /* topic_size, priority, flags: as in the sizes word, but for the flags, which are not the program's */
  memcpy(&small, &event->topic_size, sizeof small);
  small = (small & 0xffffff) | (uint32_t)flags << 24;
  npi_slot_sizes_store(header, (uint32_t)event->size | (uint64_t)small << 32);
  return header;
}

/* All cases of publishing, without a look at the doorbells. */
static int publish_any(struct np_publisher *publisher, struct np_event *event, enum origin origin)
    __attribute__((noinline));
static int publish_any(struct np_publisher *publisher, struct np_event *event, enum origin origin) {
  struct np_client *client = publisher->client;
  if (NPI_UNLIKELY(npi_client_has_news(client))) npi_client_news(client);
  struct npi_slot_record *record = loaned(client, event);
  if (NPI_UNLIKELY(record == NULL)) return not_loaned();
  uint32_t slot_class = record->slot_class;
  uint64_t room = npi_class_bytes(slot_class);
  if (NPI_UNLIKELY(event->size > room || event->topic_size > room - event->size)) {
    return npi_fail(NP_ERR_ARGUMENT, "event->size is %zu, topic %u: the loaned slot holds %llu", event->size,
                    event->topic_size, (unsigned long long)room);
  }
  int status = npi_flow_publish(&publisher->flow, (uint32_t)event->token[0], fill_header(publisher, event, origin));
  if (NPI_UNLIKELY(publisher->flow.broken != 0)) report_lies(publisher);
  if (NPI_UNLIKELY(status == NP_FULL)) return met_full(publisher, slot_class);
  event->data = NULL;
  event->token[0] = UINT64_MAX;
  return NP_OK;
}

/* One subscriber, with credit, and no news: most publishes. NULL: not that case, nothing happened. */
NPI_INLINE struct npi_outlet *publish_only(struct np_publisher *publisher, struct np_event *event, enum origin origin) {
  struct np_client *client = publisher->client;
  if (NPI_UNLIKELY(client == NULL)) return NULL;
  if (NPI_UNLIKELY(npi_client_has_news(client))) return NULL;
  struct npi_slot_record *record = loaned(client, event);
  if (NPI_UNLIKELY(record == NULL)) return NULL;
  uint64_t room = npi_class_bytes(record->slot_class);
  if (NPI_UNLIKELY(event->size > room || event->topic_size > room - event->size)) return NULL;
  struct npi_outlet *outlet =
      npi_flow_publish_short(&publisher->flow, (uint32_t)event->token[0], record, fill_header(publisher, event, origin),
                             NPI_SLOT_HEADER_BYTES + room, event->size);
  if (NPI_UNLIKELY(outlet == NULL)) return NULL;
  event->data = NULL;
  event->token[0] = UINT64_MAX;
  return outlet;
}

static void wake(struct np_publisher *publisher, struct npi_outlet *outlet) __attribute__((cold, noinline));
static void wake(struct np_publisher *publisher, struct npi_outlet *outlet) {
  npi_client_trim(publisher->client, npi_clock_monotonic()); /* a slow publisher comes by here each time */
  if (!npi_bell_must_ring(outlet->bell)) return;
  npi_event_ring(outlet->bell->fd);
  npi_flow_count(&publisher->flow, NPI_PUBLISHER_WAKES, 1);
}

static void flush_dead_letters(struct np_publisher *publisher) __attribute__((cold, noinline));
static void flush_dead_letters(struct np_publisher *publisher) {
  publisher->dead_letter->flow.stored = 0;
  npi_publisher_flush(publisher->dead_letter);
  if (publisher->dead_letter->flow.broken != 0) report_lies(publisher->dead_letter);
}

void npi_publisher_flush(struct np_publisher *publisher) {
  struct npi_flow *flow = &publisher->flow;
  for (uint32_t i = 0; i < flow->n_outlets; i++) {
    struct npi_outlet *outlet = flow->outlets[i];
    if (!outlet->unwoken) continue;
    outlet->unwoken = 0;
    if (npi_bell_word_look(outlet->bell_word)) wake(publisher, outlet);
  }
  if (NPI_UNLIKELY(flow->dead_letter != NULL && flow->dead_letter->stored)) flush_dead_letters(publisher);
}

/* The long way: also each time that it is time to look for returns. Busy publishers, whose subscribers never sleep,
 * come by here at least once in NPI_REAP_AT events, and give idle memory back. */
enum { TRIM_EVERY_LOOKS = 8 }; /* then a look at the clock */
static int publish_long(struct np_publisher *publisher, struct np_event *event, enum origin origin)
    __attribute__((noinline));
static int publish_long(struct np_publisher *publisher, struct np_event *event, enum origin origin) {
  if (!npi_client_usable(publisher->client)) return npi_client_forked();
  int status = publish_any(publisher, event, origin);
  if (++publisher->looks % TRIM_EVERY_LOOKS == 0) npi_client_trim(publisher->client, npi_clock_monotonic());
  return status;
}

static int publish_and_flush(struct np_publisher *publisher, struct np_event *event) __attribute__((noinline));
static int publish_and_flush(struct np_publisher *publisher, struct np_event *event) {
  int status = publish_long(publisher, event, FROM_PROGRAM);
  if (status >= 0) npi_publisher_flush(publisher);
  return status;
}

static int woken(struct np_publisher *publisher, struct npi_outlet *outlet) __attribute__((cold, noinline));
static int woken(struct np_publisher *publisher, struct npi_outlet *outlet) {
  wake(publisher, outlet);
  return NP_OK;
}

int np_publish(struct np_publisher *publisher, struct np_event *event) {
  struct npi_outlet *outlet = publish_only(publisher, event, FROM_PROGRAM);
  if (NPI_UNLIKELY(outlet == NULL)) return publish_and_flush(publisher, event);
  if (npi_bell_word_look(outlet->bell_word)) return woken(publisher, outlet);
  return NP_OK;
}

NPI_INLINE int publish_quiet(struct np_publisher *publisher, struct np_event *event, enum origin origin) {
  struct npi_outlet *outlet = publish_only(publisher, event, origin);
  if (NPI_UNLIKELY(outlet == NULL)) return publish_long(publisher, event, origin);
  outlet->unwoken = 1;
  return NP_OK;
}

int64_t np_publish_many(struct np_publisher *publisher, struct np_event *events, size_t n) {
  size_t done = 0;
  int status = NP_OK;
  if (!npi_client_usable(publisher->client)) return npi_client_forked();
  while (done < n && (status = publish_quiet(publisher, &events[done], FROM_PROGRAM)) == NP_OK) done++;
  npi_publisher_flush(publisher);
  return status < 0 && done == 0 ? status : (int64_t)done;
}

int np_discard(struct np_publisher *publisher, struct np_event *event) {
  if (!npi_client_usable(publisher->client)) return npi_client_forked();
  if (loaned(publisher->client, event) == NULL) return not_loaned();
  npi_pool_free(&publisher->client->pool, (uint32_t)event->token[0]);
  event->data = NULL;
  event->token[0] = UINT64_MAX;
  return NP_OK;
}

/* ---- for the ingest worker ----------------------------------------------------------------------------- */

struct npi_slot_header *npi_event_header(struct np_publisher *publisher, const struct np_event *event) {
  const struct npi_slot_record *record = loaned(publisher->client, event);
  if (record == NULL) return NULL;
  struct npi_slot_header *header = npi_pool_slot(&publisher->client->pool, record->handle);
  *header =
      (struct npi_slot_header){.listener = NPI_NONE, .generation = record->generation, .channel = publisher->channel};
  return header;
}

int npi_publish_quiet(struct np_publisher *publisher, struct np_event *event) {
  return publish_quiet(publisher, event, FROM_SOCKET);
}

void npi_publisher_skip(struct np_publisher *publisher, uint64_t n) {
  publisher->flow.sequence += n;
}
