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

/* Stands in the header of a slot on loan, where the sequence comes when it is published: whose loan it is. */
static inline uint64_t loan_mark(const struct np_publisher *publisher) {
  return (uint64_t)publisher->version << 32 | publisher->index;
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
  struct np_publisher *publisher = calloc(1, sizeof *publisher);
  if (publisher == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a publisher");
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
    free(publisher);
    return npi_trail(status, "cannot publish on channel \"%s\"", channel);
  }
  struct npi_endpoint_counters *counters = (void *)(client->page + client->endpoints_offset);
  publisher->index = reply.body.open_publisher_reply.publisher;
  publisher->version = reply.body.open_publisher_reply.publisher_version;
  publisher->channel = reply.body.open_publisher_reply.channel;
  npi_flow_init(&publisher->flow, &client->pool, reply.body.open_publisher_reply.kind,
                reply.body.open_publisher_reply.on_full, &counters[reply.body.open_publisher_reply.counters]);
  publisher->next = client->publishers;
  client->publishers = publisher;
  npi_link_adopt_deferred(client);
  if (client->unmapped != 0) {
    *out = np_publisher_close(publisher);
    status = client->unmapped;
    client->unmapped = 0;
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
  free(publisher);
  return NULL;
}

/* ---- the hot path ------------------------------------------------------------------------------------------ */

/* Writes the header of a loaned slot and the event that names it. */
static inline int hand_out(struct np_publisher *publisher, size_t size, uint32_t slot, struct np_event *event) {
  const struct npi_pool *pool = &publisher->client->pool;
  const struct npi_slot_record *record = npi_pool_record(pool, slot);
  struct npi_slot_header *header = npi_pool_slot(pool, record->handle);
  *header = (struct npi_slot_header){.sequence = loan_mark(publisher),
                                     .listener = NPI_NONE,
                                     .generation = record->generation,
                                     .channel = publisher->channel};
  *event = (struct np_event){.data = (uint8_t *)header + NPI_SLOT_HEADER_BYTES,
                             .size = size,
                             .priority = NP_PRIORITY_NORMAL,
                             .publisher = publisher->index,
                             .token = {slot | (uint64_t)record->generation << 32, (uintptr_t)header}};
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
  publisher->wanted_class = slot_class;
  publisher->wants_slot = 1;
  if (client->credits_fd_used) npi_client_arm_credits(client);
  return NP_EMPTY;
}

int np_loan(struct np_publisher *publisher, size_t size, struct np_event *event) {
  struct np_client *client = publisher->client;
  if (!npi_client_usable(client)) return npi_client_forked();
  uint32_t slot_class = npi_class_of(size);
  if (NPI_UNLIKELY(slot_class >= NPI_CLASS_COUNT)) return loan_slow(publisher, size, event);
  uint32_t slot = npi_pool_loan(&client->pool, slot_class);
  if (NPI_UNLIKELY(slot == NPI_NONE)) return loan_slow(publisher, size, event);
  return hand_out(publisher, size, slot, event);
}

/* The record of an event that is on loan to the program; NULL: it is not (published, discarded, made up). */
NPI_INLINE struct npi_slot_record *loaned(const struct np_client *client, const struct np_event *event) {
  uint32_t slot = (uint32_t)event->token[0];
  if (NPI_UNLIKELY(slot >= npi_ledger_record_count(&client->pool.ledger))) return NULL;
  struct npi_slot_record *record = npi_pool_record(&client->pool, slot);
  if (NPI_UNLIKELY(record->state != NPI_SLOT_LOANED || record->generation != event->token[0] >> 32)) return NULL;
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
  publisher->wanted_class = slot_class;
  publisher->wants_credit = 1;
  if (publisher->client->credits_fd_used) npi_client_arm_credits(publisher->client);
  return NP_FULL;
}

/* The header takes over what the program may have set. The slot holds that much: checked by the caller. */
NPI_INLINE struct npi_slot_header *fill_header(const struct np_event *event) {
  struct npi_slot_header *header = (void *)(uintptr_t)event->token[1]; /* token[0] was checked, they go together */
  if (event->time_ns != 0) header->time_ns = event->time_ns;
  npi_slot_sizes_store(header, npi_slot_sizes((uint32_t)event->size, event->topic_size, event->priority,
                                              header->flags /* the worker's */));
  return header;
}

/* All cases of publishing, without a look at the doorbells. */
static int publish_any(struct np_publisher *publisher, struct np_event *event) __attribute__((noinline));
static int publish_any(struct np_publisher *publisher, struct np_event *event) {
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
  int status = npi_flow_publish(&publisher->flow, (uint32_t)event->token[0], fill_header(event));
  if (NPI_UNLIKELY(publisher->flow.broken != 0)) report_lies(publisher);
  if (NPI_UNLIKELY(status == NP_FULL)) return met_full(publisher, slot_class);
  event->data = NULL;
  event->token[0] = UINT64_MAX;
  return NP_OK;
}

/* One subscriber, with credit, and no news: most publishes. NULL: not that case, nothing happened. */
NPI_INLINE struct npi_outlet *publish_only(struct np_publisher *publisher, struct np_event *event) {
  struct np_client *client = publisher->client;
  if (NPI_UNLIKELY(npi_client_has_news(client))) return NULL;
  struct npi_slot_record *record = loaned(client, event);
  if (NPI_UNLIKELY(record == NULL)) return NULL;
  uint64_t room = npi_class_bytes(record->slot_class);
  if (NPI_UNLIKELY(event->size > room || event->topic_size > room - event->size)) return NULL;
  struct npi_outlet *outlet =
      npi_flow_publish_only(&publisher->flow, (uint32_t)event->token[0], record, fill_header(event), event->size);
  if (NPI_UNLIKELY(outlet == NULL)) return NULL;
  event->data = NULL;
  event->token[0] = UINT64_MAX;
  return outlet;
}

/* Now and then on the way of a busy publisher, whose subscribers never sleep. */
enum { TRIM_EVERY_EVENTS = 256 }; /* then a look at the clock */
NPI_INLINE int trim_is_due(const struct np_publisher *publisher) {
  return NPI_UNLIKELY(publisher->flow.sequence % TRIM_EVERY_EVENTS == 0);
}

/* After the store: many are out. */
static int reap_some(struct np_publisher *publisher, struct npi_outlet *outlet) __attribute__((noinline));
static int reap_some(struct np_publisher *publisher, struct npi_outlet *outlet) {
  npi_flow_reap_due(&publisher->flow, outlet);
  if (trim_is_due(publisher)) npi_client_trim(publisher->client, npi_clock_monotonic());
  if (NPI_UNLIKELY(publisher->flow.broken != 0)) report_lies(publisher);
  return NP_OK;
}

int npi_publish_quiet(struct np_publisher *publisher, struct np_event *event) {
  struct npi_outlet *outlet = publish_only(publisher, event);
  if (NPI_UNLIKELY(outlet == NULL)) return publish_any(publisher, event);
  outlet->unwoken = 1;
  return npi_flow_reap_is_due(outlet) ? reap_some(publisher, outlet) : NP_OK;
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
    if (NPI_UNLIKELY(npi_bell_look(outlet->bell))) wake(publisher, outlet);
  }
  if (NPI_UNLIKELY(flow->dead_letter != NULL && flow->dead_letter->stored)) flush_dead_letters(publisher);
}

static int publish_and_flush(struct np_publisher *publisher, struct np_event *event) __attribute__((noinline));
static int publish_and_flush(struct np_publisher *publisher, struct np_event *event) {
  int status = publish_any(publisher, event);
  npi_publisher_flush(publisher);
  if (trim_is_due(publisher)) npi_client_trim(publisher->client, npi_clock_monotonic());
  return status;
}

static int wake_and_reap(struct np_publisher *publisher, struct npi_outlet *outlet) __attribute__((cold, noinline));
static int wake_and_reap(struct np_publisher *publisher, struct npi_outlet *outlet) {
  wake(publisher, outlet);
  return reap_some(publisher, outlet);
}

int np_publish(struct np_publisher *publisher, struct np_event *event) {
  if (!npi_client_usable(publisher->client)) return npi_client_forked();
  struct npi_outlet *outlet = publish_only(publisher, event);
  if (NPI_UNLIKELY(outlet == NULL)) return publish_and_flush(publisher, event);
  if (NPI_UNLIKELY(npi_bell_look(outlet->bell))) return wake_and_reap(publisher, outlet);
  return npi_flow_reap_is_due(outlet) || trim_is_due(publisher) ? reap_some(publisher, outlet) : NP_OK;
}

int64_t np_publish_many(struct np_publisher *publisher, struct np_event *events, size_t n) {
  size_t done = 0;
  int status = NP_OK;
  if (!npi_client_usable(publisher->client)) return npi_client_forked();
  while (done < n && (status = npi_publish_quiet(publisher, &events[done])) == NP_OK) done++;
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
  return record == NULL ? NULL : npi_pool_slot(&publisher->client->pool, record->handle);
}

void npi_publisher_skip(struct np_publisher *publisher, uint64_t n) {
  publisher->flow.sequence += n;
}
