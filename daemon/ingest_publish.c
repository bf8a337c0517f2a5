/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last step inside the worker: loan a slot, copy, fill in the header, publish without waking. Sleeping subscribers
 * are woken once a turn, or after many events: a wake costs as much as receiving a dozen datagrams.
 */
#include "daemon/ingest_publish.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "client/worker.h"

/* A turn may bring ten thousand events: who sleeps until its end finds its credits used up. */
enum { WAKE_AFTER = 64 };

int npi_ingest_publishers_init(struct npi_ingest_publishers *publishers, uint32_t n_listeners) {
  uint32_t n = n_listeners ? n_listeners : 1;

  *publishers = (struct npi_ingest_publishers){0};
  publishers->routes = calloc(n, sizeof(*publishers->routes));
  publishers->outlets = calloc(n, sizeof(*publishers->outlets));
  if (publishers->routes && publishers->outlets) return 0;
  npi_ingest_publishers_deinit(publishers);
  return npi_fail(NP_ERR_NO_MEMORY, "no memory for the publishers of %u listeners", n_listeners);
}

int npi_ingest_publishers_add(struct npi_ingest_publishers *publishers, struct np_client *client, const char *channel,
                              uint32_t registry_index) {
  struct npi_ingest_outlet *outlet = NULL;
  int result;

  for (uint32_t i = 0; i < publishers->n_outlets && !outlet; i++)
    if (strcmp(publishers->outlets[i].channel, channel) == 0) outlet = &publishers->outlets[i];
  if (!outlet) {
    outlet = &publishers->outlets[publishers->n_outlets];
    result = np_publisher_open(client, channel, NULL, &outlet->publisher);
    if (result < 0) return result;
    outlet->channel = channel;
    publishers->n_outlets++;
  }
  publishers->routes[publishers->n_routes++] =
      (struct npi_ingest_route){.outlet = outlet, .registry_index = registry_index};
  return 0;
}

void npi_ingest_publishers_deinit(struct npi_ingest_publishers *publishers) {
  for (uint32_t i = 0; publishers->outlets != NULL && i < publishers->n_outlets; i++) {
    np_publisher_close(publishers->outlets[i].publisher);
  }
  free(publishers->routes);
  free(publishers->outlets);
  *publishers = (struct npi_ingest_publishers){0};
}

static void fill_header(struct npi_slot_header *header, const struct npi_ingest_event *event, uint32_t listener) {
  header->listener = listener;
  header->connection = event->connection;
  memcpy(header->address, event->address, sizeof(header->address));
  header->port = event->port;
  header->family = event->family;
}

static void flush_outlet(struct npi_ingest_outlet *outlet) {
  outlet->n_unflushed = 0;
  npi_publisher_flush(outlet->publisher);
}

static int publish(void *context, uint32_t listener, const struct npi_ingest_event *event) {
  const struct npi_ingest_route *route = &((struct npi_ingest_publishers *)context)->routes[listener];
  struct np_publisher *publisher = route->outlet->publisher;
  struct np_event slot;
  struct npi_slot_header *header;
  int result = np_loan(publisher, event->payload_bytes + event->topic_bytes, &slot);

  if (__builtin_expect(result != NP_OK, 0)) return result;
  slot.size = event->payload_bytes;
  slot.time_ns = event->time_ns;
  slot.priority = event->priority;
  memcpy(slot.data, event->payload, event->payload_bytes);
  if (event->topic_bytes > 0) {
    result = np_set_topic(publisher, &slot, (const char *)event->topic, event->topic_bytes);
    if (result != NP_OK) goto discard;
  }
  header = npi_event_header(publisher, &slot);
  if (__builtin_expect(header == NULL, 0)) return npi_fail(NP_ERR_CORRUPT, "a slot that was just loaned is not ours");
  fill_header(header, event, route->registry_index);
  result = npi_publish_quiet(publisher, &slot);
  if (__builtin_expect(result != NP_OK, 0)) goto discard;
  if (++route->outlet->n_unflushed >= WAKE_AFTER) flush_outlet(route->outlet);
  return NP_OK;

discard: /* it is offered again from the bytes, which the engine keeps: a slot must not be pinned by a wait */
  np_discard(publisher, &slot);
  return result;
}

static uint32_t publish_batch(void *context, uint32_t listener, const struct npi_ingest_event *like,
                              const struct npi_payload *payloads, uint32_t n) {
  const struct npi_ingest_route *route = &((struct npi_ingest_publishers *)context)->routes[listener];
  struct npi_slot_header header = {.time_ns = like->time_ns, .priority = like->priority};

  fill_header(&header, like, route->registry_index);
  n = npi_publish_batch(route->outlet->publisher, &header, payloads, n);
  route->outlet->n_unflushed += n;
  if (route->outlet->n_unflushed >= WAKE_AFTER) flush_outlet(route->outlet);
  return n;
}

static void skip(void *context, uint32_t listener, uint64_t n) {
  npi_publisher_skip(((struct npi_ingest_publishers *)context)->routes[listener].outlet->publisher, n);
}

static void flush(void *context) {
  struct npi_ingest_publishers *publishers = context;

  for (uint32_t i = 0; i < publishers->n_outlets; i++) {
    struct npi_ingest_outlet *outlet = &publishers->outlets[i];
    if (outlet->n_unflushed > 0) flush_outlet(outlet);
  }
}

struct npi_ingest_sink npi_ingest_publishers_sink(struct npi_ingest_publishers *publishers) {
  return (struct npi_ingest_sink){
      .context = publishers, .publish = publish, .publish_batch = publish_batch, .skip = skip, .flush = flush};
}
