/* SPDX-License-Identifier: Apache-2.0 */
/* Subscribing: take, read, release. Thin over core/inlet.h; the hot functions make no system call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "client/client_internal.h"
#include "os/os_wait.h"
#include "wire/channel.h"

enum { OPEN_TIMEOUT_MS = 5000, TURN_EVENTS = 32 /* taken from one publisher before the next one's turn */ };

void np_subscriber_options_init(struct np_subscriber_options *options) {
  *options = (struct np_subscriber_options){.size = sizeof *options, .on_full = NP_ON_FULL_CHANNEL};
}

int np_subscriber_open(struct np_client *client, const char *channel, const struct np_subscriber_options *options,
                       struct np_subscriber **out) {
  struct np_subscriber_options chosen;
  struct npi_control_frame frame;
  struct npi_control_frame reply;
  *out = NULL;
  if (!npi_client_usable(client)) return npi_client_forked();
  if (channel == NULL || channel[0] == '\0' || strlen(channel) >= NPI_NAME_BYTES) {
    return npi_fail(NP_ERR_ARGUMENT, "a channel name has 1 to %d bytes", NPI_NAME_BYTES - 1);
  }
  np_subscriber_options_init(&chosen);
  if (options != NULL) memcpy(&chosen, options, options->size < sizeof chosen ? options->size : sizeof chosen);
  struct np_subscriber *subscriber = npi_endpoint_alloc();
  if (subscriber == NULL) return npi_trail(NP_ERR_NO_MEMORY, "no memory for a subscriber");
  subscriber->client = client;
  npi_control_init(&frame, NPI_CONTROL_OPEN_SUBSCRIBER, 0, 0);
  memcpy(frame.body.open_subscriber.channel, channel, strlen(channel) + 1);
  snprintf(frame.body.open_subscriber.name, sizeof frame.body.open_subscriber.name, "%s",
           chosen.name != NULL ? chosen.name : client->record->name);
  frame.body.open_subscriber.on_full = chosen.on_full;
  frame.body.open_subscriber.credits = chosen.credits;
  frame.body.open_subscriber.flags = chosen.tap ? NPI_SUBSCRIBER_TAP : 0;
  int status = npi_link_open_endpoint(client, &frame, &reply, OPEN_TIMEOUT_MS);
  if (status == 0 && reply.body.open_subscriber_reply.counters >= client->endpoints) {
    status = npi_fail(NP_ERR_PROTOCOL, "the broker named counter row %u of %u",
                      reply.body.open_subscriber_reply.counters, client->endpoints);
  }
  if (status != 0) {
    npi_link_drop_deferred(client);
    npi_endpoint_free(subscriber);
    return npi_trail(status, "cannot subscribe to channel \"%s\"", channel);
  }
  struct npi_endpoint_counters *counters = (void *)(client->page + client->endpoints_offset);
  subscriber->index = reply.body.open_subscriber_reply.subscriber;
  subscriber->version = reply.body.open_subscriber_reply.subscriber_version;
  subscriber->channel = reply.body.open_subscriber_reply.channel;
  subscriber->counters = &counters[reply.body.open_subscriber_reply.counters];
  subscriber->next = client->subscribers;
  client->subscribers = subscriber;
  npi_link_adopt_deferred(client);
  if (client->unmapped != 0) {
    status = client->unmapped;
    client->unmapped = 0;
    np_subscriber_close(subscriber);
    return npi_fail(status, "cannot subscribe to channel \"%s\": %s", channel, client->unmapped_words);
  }
  *out = subscriber;
  return NP_OK;
}

int np_subscriber_close(struct np_subscriber *subscriber) {
  if (subscriber == NULL) return NP_OK;
  struct np_client *client = subscriber->client;
  struct npi_control_frame frame;
  struct npi_control_frame reply;
  uint64_t held = 0;
  if (!npi_client_usable(client)) return npi_client_forked();
  if (npi_client_has_news(client)) npi_client_news(client);
  for (uint32_t i = 0; i < subscriber->n_inlets; i++) held += npi_inlet_held(&subscriber->inlets[i]->inlet);
  if (held > 0) {
    return npi_fail(NP_ERR_STATE, "the subscriber still holds %llu events: release them, then close",
                    (unsigned long long)held);
  }
  for (struct np_subscriber **link = &client->subscribers; *link != NULL; link = &(*link)->next) {
    if (*link != subscriber) continue;
    *link = subscriber->next;
    break;
  }
  /* From here on it reads no ring and returns nothing: then the broker may be told exactly that. */
  for (uint32_t i = 0; i < client->n_links; i++) {
    struct npi_link *link = client->links[i];
    if (link == NULL || link->role != NPI_ROLE_SUBSCRIBER || link->np_subscriber != subscriber) continue;
    int draining = link->draining;
    link->np_subscriber = NULL;
    if (draining) {
      npi_link_let_go(client, link); /* the broker waits for this word */
    } else {
      npi_link_free(client, link);
    }
  }
  npi_control_init(&frame, NPI_CONTROL_CLOSE_SUBSCRIBER, 0, 0);
  frame.body.close_endpoint.index = subscriber->index;
  frame.body.close_endpoint.version = subscriber->version;
  npi_client_request(client, &frame, &reply, OPEN_TIMEOUT_MS); /* without a broker there is nobody to tell */
  free(subscriber->inlets);
  npi_endpoint_free(subscriber);
  return NP_OK;
}

/* ---- the hot path ------------------------------------------------------------------------------------ */

static int corrupt(struct np_subscriber *subscriber, struct npi_link *link, uint64_t element)
    __attribute__((cold, noinline));
static int corrupt(struct np_subscriber *subscriber, struct npi_link *link, uint64_t element) {
  uint32_t handle = npi_element_handle(element), number = npi_handle_segment(handle);
  const struct npi_peer *peer = link->peer;
  if (npi_peer_lacks(peer, number)) { /* nothing is wrong with it: it lies where this process cannot look */
    subscriber->current = NULL;
    npi_link_refuse(subscriber->client, link);
    return npi_fail(NP_ERR_NO_MEMORY, "an event of %s (pid %u) cannot be read, and its connection ends: %s", peer->name,
                    peer->pid, subscriber->client->unmapped_words);
  }
  npi_count_add(&subscriber->counters->value[NPI_SUBSCRIBER_LIES], 1);
  link->cut = 1;
  subscriber->current = NULL;
  npi_link_report_lie(subscriber->client, link);
  return npi_fail(NP_ERR_CORRUPT,
                  "%s (pid %u) published an element that names no valid slot (segment %u, which is %s here, line %u, "
                  "credit %u%s); its connection is closed",
                  peer->name, peer->pid, number,
                  number < peer->n_segments && peer->segments[number].base != NULL ? "mapped" : "not mapped",
                  (unsigned)(npi_handle_offset(handle) / NPI_CACHE_LINE), npi_element_credit(element),
                  link->inlet.held[npi_element_credit(element) % link->inlet.capacity] != 0 ? ", held" : "");
}

_Static_assert(offsetof(struct np_event, priority) == offsetof(struct np_event, topic_size) + 2 &&
                   offsetof(struct np_event, flags) == offsetof(struct np_event, topic_size) + 3,
               "an event has topic_size, priority and flags in the order of a slot header");

NPI_INLINE void fill(struct np_event *event, const struct npi_taken *taken, const struct npi_link *link,
                     uint64_t element) {
  const struct npi_slot_header *header = taken->header;
  event->data = (void *)(uintptr_t)taken->payload;
  event->size = taken->payload_bytes;
  event->sequence = header->sequence;
  event->time_ns = header->time_ns;
  event->topic = taken->topic_bytes == 0 ? NULL : (const char *)taken->payload + taken->payload_bytes;
  /* The upper half of that word: topic_size, priority and flags lie side by side here as well. */
  uint32_t small = (uint32_t)(taken->sizes >> 32);
  memcpy(&event->topic_size, &small, sizeof small);
  event->publisher = link->publisher;
  event->token[0] = element; /* with its lap: a release names exactly this element */
  event->token[1] = link->mark;
}

/* Nothing there. Lets go of publishers that are gone and read to the end; 1: look again. */
static int found_nothing(struct np_subscriber *subscriber) {
  struct np_client *client = subscriber->client;
  for (uint32_t i = 0; i < subscriber->n_inlets; i++) {
    struct npi_link *link = subscriber->inlets[i];
    uint64_t element;
    if (!link->draining || npi_inlet_held(&link->inlet) > 0) continue;
    if (!link->cut && npi_inlet_look(&link->inlet, &element)) return 1;
    npi_link_let_go(client, link);
    return 1;
  }
  if (!client->events_fd_used) return 0;
  npi_client_arm_events(client);
  return npi_subscriber_has(subscriber);
}

/* The next inlet that has an element, taking turns; NULL: none. */
static struct npi_link *next_inlet(struct np_subscriber *subscriber, uint64_t *element) {
  uint32_t n = subscriber->n_inlets;
  if (n == 0) return NULL;
  uint32_t turn = subscriber->turn;
  if (turn >= n) turn = 0;
  if (subscriber->turn_left > 0) {
    struct npi_link *link = subscriber->inlets[turn];
    if (!link->cut && npi_inlet_look(&link->inlet, element)) {
      subscriber->turn = turn;
      return link;
    }
  }
  for (uint32_t i = 1; i <= n; i++) {
    uint32_t at = turn + i;
    if (at >= n) at -= n;
    struct npi_link *link = subscriber->inlets[at];
    if (link->cut || !npi_inlet_look(&link->inlet, element)) continue;
    subscriber->turn = at;
    subscriber->turn_left = n > 1 ? TURN_EVENTS : UINT32_MAX;
    return link;
  }
  return NULL;
}

/* Checks the element and hands the event to the program. */
NPI_INLINE int open_event(struct np_subscriber *subscriber, struct npi_link *link, uint64_t element,
                          struct np_event *event) {
  struct npi_taken taken;
  if (NPI_UNLIKELY(npi_inlet_open(&link->inlet, element, &taken) != 0)) return corrupt(subscriber, link, element);
  fill(event, &taken, link, element);
  struct npi_endpoint_counters *counters = subscriber->counters;
  npi_count_add(&counters->value[NPI_SUBSCRIBER_TAKEN], 1);
  npi_count_add(&counters->value[NPI_SUBSCRIBER_BYTES], taken.payload_bytes);
  npi_store_relaxed_u64(&link->inlet.block->counter[NPI_RETURN_TAKEN], link->inlet.taken);
  return NP_OK;
}

/* All cases of taking. */
static int take_any(struct np_subscriber *subscriber, struct np_event *event) __attribute__((noinline));
static int take_any(struct np_subscriber *subscriber, struct np_event *event) {
  struct np_client *client = subscriber->client;
  uint64_t element;
  if (!npi_client_usable(client)) return npi_client_forked();
  for (;;) {
    if (NPI_UNLIKELY(client->shut_out)) return npi_client_shut_out();
    struct npi_link *link = next_inlet(subscriber, &element);
    /* After the look: a segment or an end that was announced before the element was stored is seen here. */
    if (NPI_UNLIKELY(npi_client_has_news(client))) {
      uint32_t seen = client->events_seen;
      npi_client_news(client);
      if (client->events_seen != seen) continue; /* link may be gone */
      /* The rest is still with the broker, who may be stopped. No element that is here needs it: a segment is leased
       * only when its announcement has left for the sockets of all who will see it. */
    }
    if (link == NULL) {
      if (NPI_UNLIKELY(client->events_fd_used || subscriber->n_draining > 0) && found_nothing(subscriber)) continue;
      return NP_EMPTY;
    }
    if (NPI_UNLIKELY(client->events_bell.state != NPI_BELL_AWAKE)) npi_client_bell_attention(client);
    subscriber->current = client->events_bell.state == NPI_BELL_AWAKE ? link : NULL;
    subscriber->turn_left--;
    return open_event(subscriber, link, element, event);
  }
}

/* The publisher whose turn it is has something, and nothing else has happened: most takes. Or it is the only one. */
int np_take(struct np_subscriber *subscriber, struct np_event *event) {
  struct npi_link *link = subscriber->current;
  uint64_t element;
  if (NPI_UNLIKELY(link == NULL || subscriber->turn_left == 0)) return take_any(subscriber, event);
  struct np_client *client = subscriber->client;
  int found = npi_inlet_look(&link->inlet, &element);
  /* After the look, as in take_any. */
  if (NPI_UNLIKELY(npi_client_has_news(client))) return take_any(subscriber, event);
  if (NPI_UNLIKELY(!found)) {
    if (subscriber->n_inlets == 1 && !client->events_fd_used && subscriber->n_draining == 0) return NP_EMPTY;
    return take_any(subscriber, event);
  }
  subscriber->turn_left--;
  return open_event(subscriber, link, element, event);
}

int64_t np_take_many(struct np_subscriber *subscriber, struct np_event *events, size_t n) {
  size_t done = 0;
  int status = NP_OK;
  while (done < n && (status = np_take(subscriber, &events[done])) == NP_OK) done++;
  return status < 0 && done == 0 ? status : (int64_t)done;
}

static int not_held(void) __attribute__((cold, noinline));
static int not_held(void) {
  return npi_fail(NP_ERR_MISUSE, "the event is not held by this subscriber: released already, or taken by another");
}

/* The connection that a taken event came by; NULL: it is not one of this subscriber's. */
static inline struct npi_link *link_of(const struct np_subscriber *subscriber, const struct np_event *event) {
  const struct np_client *client = subscriber->client;
  uint32_t slot = (uint32_t)event->token[1];
  if (NPI_UNLIKELY(slot >= client->n_links)) return NULL;
  struct npi_link *link = client->links[slot];
  if (NPI_UNLIKELY(link == NULL || link->np_subscriber != subscriber || link->version != event->token[1] >> 32))
    return NULL;
  return link;
}

/* The publisher may sleep for credit, or is gone and this was the last event of it. */
static int released_last(struct np_subscriber *subscriber, struct npi_link *link) __attribute__((cold, noinline));
static int released_last(struct np_subscriber *subscriber, struct npi_link *link) {
  uint64_t element;
  npi_bell_ring_peer(&link->peer->credits_bell);
  if (link->draining && npi_inlet_held(&link->inlet) == 0 && (link->cut || !npi_inlet_look(&link->inlet, &element))) {
    npi_link_let_go(subscriber->client, link); /* nothing of it is needed any more */
  }
  return NP_OK;
}

NPI_INLINE int release(struct np_subscriber *subscriber, struct npi_link *link, struct np_event *event) {
  if (NPI_UNLIKELY(npi_inlet_release(&link->inlet, event->token[0]) != 0)) return not_held();
  npi_count_add(&subscriber->counters->value[NPI_SUBSCRIBER_RELEASED], 1);
  npi_store_relaxed_u64(&link->inlet.block->counter[NPI_RETURN_RETURNED], link->inlet.returned);
  event->data = NULL;
  event->token[1] = UINT64_MAX;
  if (npi_bell_word_look(link->bell_word)) return released_last(subscriber, link);
  return NP_OK;
}

/* The event of another connection than the one whose turn it is. */
static int release_any(struct np_subscriber *subscriber, struct np_event *event) __attribute__((noinline));
static int release_any(struct np_subscriber *subscriber, struct np_event *event) {
  if (!npi_client_usable(subscriber->client)) return npi_client_forked();
  struct npi_link *link = link_of(subscriber, event);
  return link == NULL ? not_held() : release(subscriber, link, event);
}

int np_release(struct np_subscriber *subscriber, struct np_event *event) {
  struct npi_link *link = subscriber->current;
  if (NPI_UNLIKELY(link == NULL || link->mark != event->token[1])) return release_any(subscriber, event);
  return release(subscriber, link, event);
}

int np_release_many(struct np_subscriber *subscriber, struct np_event *events, size_t n) {
  int first = NP_OK;
  for (size_t i = 0; i < n; i++) {
    int status = np_release(subscriber, &events[i]);
    if (first == NP_OK) first = status;
  }
  return first;
}

/* The index comes from another process: checked. Empty where it names no channel. */
static void channel_name(const struct np_client *client, uint32_t channel, char name[NPI_NAME_BYTES]) {
  const struct npi_table *table = &client->channels_table;
  if (channel >= table->count) return;
  const struct npi_channel_record *record =
      (const void *)(client->registry + table->offset + (uint64_t)channel * table->bytes);
  memcpy(name, record->name, NPI_NAME_BYTES);
  name[NPI_NAME_BYTES - 1] = '\0';
}

int np_event_source(struct np_subscriber *subscriber, const struct np_event *event, struct np_source *source) {
  struct np_client *client = subscriber->client;
  struct np_source copy = {0};
  if (!npi_client_usable(client)) return npi_client_forked();
  if (source == NULL || source->size < sizeof(uint32_t)) {
    return npi_fail(NP_ERR_ARGUMENT, "source->size must be set to sizeof(struct np_source)");
  }
  const struct npi_link *link = event->data == NULL ? NULL : link_of(subscriber, event);
  if (link == NULL) return not_held();
  const struct npi_slot_header *header = (const void *)((const uint8_t *)event->data - NPI_SLOT_HEADER_BYTES);
  copy.size = source->size < sizeof copy ? source->size : (uint32_t)sizeof copy;
  copy.listener = header->listener;
  copy.connection = header->connection;
  memcpy(copy.address, header->address, sizeof copy.address);
  copy.port = header->port;
  copy.family = header->family;
  copy.deliveries = header->deliveries;
  uint8_t flags = npi_slot_sizes_flags(npi_slot_sizes_load(header));
  if ((flags & NPI_EVENT_DEAD_LETTER) != 0) copy.dead_letter_reason = flags >> NPI_EVENT_REASON_SHIFT;
  channel_name(client, header->channel, copy.channel_name);
  if (copy.listener < client->listeners_table.count) {
    const struct npi_listener_record *record = (const void *)(client->registry + client->listeners_table.offset +
                                                              (uint64_t)copy.listener * client->listeners_table.bytes);
    memcpy(copy.listener_name, record->name, sizeof copy.listener_name);
    copy.listener_name[sizeof copy.listener_name - 1] = '\0';
  }
  memcpy(source, &copy, copy.size);
  if (copy.listener == NPI_NONE)
    return npi_fail(NP_ERR_NOT_FOUND, "the event was published by a program, not received");
  return NP_OK;
}
