/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/adopt_image.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/align.h"
#include "base/status.h"
#include "core/ledger.h"
#include "daemon/config.h"

enum { RECORDS_MAX = 1 << 20, ENDPOINTS_MAX = 1 << 16 };
#define PAGE_BYTES_MAX (UINT64_C(1) << 32)

#define DAMAGED(...) npi_fail(NP_ERR_CORRUPT, "registry: " __VA_ARGS__)

static int is_ended(const char *text, size_t bytes) {
  return memchr(text, '\0', bytes) != NULL;
}

uint32_t npi_ring_capacity_for(uint32_t credits) {
  uint64_t capacity = npi_power_of_two_above(credits);
  return capacity < NPI_RING_CAPACITY_MIN ? NPI_RING_CAPACITY_MIN : (uint32_t)capacity;
}

/* ---- header ---- */

static int check_owner(const struct npi_registry_header *header, const struct npi_adopt_owner *owner) {
  if (npi_load_acquire_u64(&header->magic) != NPI_MAGIC_REGISTRY) {
    return npi_fail(NP_ERR_NOT_FOUND, "the registry was never finished");
  }
  if (header->layout_version != NPI_LAYOUT_VERSION) {
    return npi_fail(NP_ERR_VERSION, "the registry has layout version %u, this broker knows %u", header->layout_version,
                    NPI_LAYOUT_VERSION);
  }
  if (!is_ended(header->instance, sizeof header->instance) || !is_ended(header->boot_id, sizeof header->boot_id) ||
      strcmp(header->instance, owner->instance) != 0 || header->uid != owner->uid) {
    return npi_fail(NP_ERR_NOT_FOUND, "the registry is of another instance or user");
  }
  if (strcmp(header->boot_id, owner->boot_id) != 0) {
    return npi_fail(NP_ERR_NOT_FOUND, "the registry is of an earlier life of the machine");
  }
  uint32_t state = npi_load_relaxed_u32(&header->state);
  if (state == NPI_BROKER_STOPPED) return npi_fail(NP_ERR_NOT_FOUND, "its broker had begun to take it down");
  if (state < NPI_BROKER_STARTING || state > NPI_BROKER_STOPPED) return DAMAGED("state %u", state);
  return 0;
}

static int check_geometry(const struct npi_registry_header *header, size_t bytes) {
  struct npi_ledger_geometry ledger;
  uint64_t segment = header->segment_bytes;
  if (header->header_bytes != sizeof *header || header->total_bytes != bytes) {
    return DAMAGED("%" PRIu64 " bytes with a header of %u, but there are %zu", header->total_bytes,
                   header->header_bytes, bytes);
  }
  if (header->backend > NPI_BACKEND_MEMFD || header->n_nodes == 0 || header->n_nodes > NPI_NODES_LIMIT ||
      header->n_nodes != header->nodes.count) {
    return DAMAGED("backend %u, %u nodes", header->backend, header->n_nodes);
  }
  if (!npi_is_power_of_two(segment) || segment < NPI_CONFIG_SEGMENT_BYTES_MIN || segment > NPI_SEGMENT_BYTES_MAX ||
      header->per_client_bytes < segment || header->per_client_bytes / segment > NPI_SEGMENTS_PER_CLIENT_MAX ||
      header->segments.count % header->n_nodes != 0) {
    return DAMAGED("segments of %" PRIu64 " bytes, %" PRIu64 " a client", segment, header->per_client_bytes);
  }
  uint64_t endpoints = header->page_endpoints_offset, listeners = header->page_listeners_offset;
  if (header->page_bytes > PAGE_BYTES_MAX || header->page_bytes % NPI_PAGE != 0 ||
      endpoints != sizeof(struct npi_page_shm) || header->endpoints_per_client > ENDPOINTS_MAX ||
      listeners != endpoints + header->endpoints_per_client * sizeof(struct npi_endpoint_counters) ||
      header->page_rings_offset % NPI_PAGE != 0 || header->page_rings_offset >= header->page_bytes ||
      header->page_rings_offset < listeners + header->listeners.count * sizeof(struct npi_listener_counters)) {
    return DAMAGED("a page of %" PRIu64 " bytes does not hold what is said to be in it", header->page_bytes);
  }
  if (header->connections_per_client > header->connections.count) {
    return DAMAGED("%u connections a client", header->connections_per_client);
  }
  npi_ledger_geometry(&ledger, header->per_client_bytes, segment, header->connections_per_client,
                      header->page_bytes - header->page_rings_offset);
  if (header->segments_per_client != ledger.segments || header->ledger_bytes != npi_ledger_footprint(&ledger)) {
    return DAMAGED("a ledger of %" PRIu64 " bytes for %u segments", header->ledger_bytes, header->segments_per_client);
  }
  return 0;
}

struct table_rule {
  const struct npi_table *table;
  size_t bytes;
};

static int check_tables(const struct npi_registry_header *header, size_t bytes) {
  const struct table_rule rules[] = {
      {&header->nodes, sizeof(struct npi_node_record)},
      {&header->clients, sizeof(struct npi_client_record)},
      {&header->channels, sizeof(struct npi_channel_record)},
      {&header->publishers, sizeof(struct npi_publisher_record)},
      {&header->subscribers, sizeof(struct npi_subscriber_record)},
      {&header->connections, sizeof(struct npi_connection_record)},
      {&header->segments, sizeof(struct npi_segment_record)},
      {&header->listeners, sizeof(struct npi_listener_record)},
      {&header->journal, sizeof(struct npi_journal)},
  };
  uint64_t end = NPI_PAGE;
  for (size_t i = 0; i < NPI_ARRAY_COUNT(rules); i++) {
    const struct npi_table *table = rules[i].table;
    if (table->bytes != rules[i].bytes || table->count == 0 || table->count > RECORDS_MAX ||
        table->offset % NPI_CACHE_LINE != 0 || table->offset < end || table->offset > bytes ||
        (uint64_t)table->count * table->bytes > bytes - table->offset) {
      return DAMAGED("table %zu lies at %" PRIu64 ", %u records of %u bytes", i, table->offset, table->count,
                     table->bytes);
    }
    end = table->offset + (uint64_t)table->count * table->bytes; /* they lie in this order, and never overlap */
  }
  return 0;
}

int npi_adopt_validate_header(const void *memory, size_t bytes, const struct npi_adopt_owner *owner,
                              struct npi_adopt_image *image) {
  const unsigned char *base = memory;
  const struct npi_registry_header *header = memory;
  memset(image, 0, sizeof *image);
  if (bytes < NPI_PAGE) return DAMAGED("%zu bytes are less than its header", bytes);
  int status = check_owner(header, owner);
  if (status == 0) status = check_tables(header, bytes);
  if (status == 0) status = check_geometry(header, bytes);
  if (status != 0) return status;
  image->header = header;
  image->nodes = (const void *)(base + header->nodes.offset);
  image->clients = (const void *)(base + header->clients.offset);
  image->channels = (const void *)(base + header->channels.offset);
  image->publishers = (const void *)(base + header->publishers.offset);
  image->subscribers = (const void *)(base + header->subscribers.offset);
  image->connections = (const void *)(base + header->connections.offset);
  image->segments = (const void *)(base + header->segments.offset);
  image->listeners = (const void *)(base + header->listeners.offset);
  image->journal = (const void *)(base + header->journal.offset);
  return 0;
}

/* ---- records, each for itself ---- */

static uint32_t state_of(const struct npi_atomic_u32 *state) {
  return npi_load_relaxed_u32(state);
}

static int check_clients(const struct npi_adopt_image *image) {
  for (uint32_t i = 0; i < image->header->clients.count; i++) {
    const struct npi_client_record *record = &image->clients[i];
    uint32_t state = state_of(&record->state);
    if (state == NPI_RECORD_FREE) continue;
    if (state > NPI_RECORD_CLOSING || record->node >= image->header->n_nodes || record->kind > NPI_CLIENT_TOOL ||
        record->pid == 0 || record->pid > INT32_MAX || !is_ended(record->name, sizeof record->name)) {
      return DAMAGED("client %u", i);
    }
  }
  return 0;
}

static int check_channels(const struct npi_adopt_image *image) {
  for (uint32_t i = 0; i < image->header->channels.count; i++) {
    const struct npi_channel_record *record = &image->channels[i];
    uint32_t state = state_of(&record->state);
    if (state == NPI_RECORD_FREE) continue;
    if (state != NPI_RECORD_ACTIVE || record->kind > NPI_CHANNEL_GROUP || record->on_full > NPI_ON_FULL_DROP_NEWEST ||
        record->credits == 0 || record->credits > NPI_CREDITS_MAX || !is_ended(record->name, sizeof record->name) ||
        !npi_config_name_ok(record->name)) {
      return DAMAGED("channel %u", i);
    }
  }
  return 0;
}

/* Client, channel and row of an endpoint. */
static int is_endpoint(const struct npi_adopt_image *image, uint32_t state, uint32_t client, uint32_t channel,
                       uint32_t row) {
  const struct npi_registry_header *header = image->header;
  return state <= NPI_RECORD_CLOSING && client < header->clients.count && channel < header->channels.count &&
         row < header->endpoints_per_client && state_of(&image->clients[client].state) != NPI_RECORD_FREE &&
         state_of(&image->channels[channel].state) != NPI_RECORD_FREE;
}

static int check_endpoints(const struct npi_adopt_image *image) {
  for (uint32_t i = 0; i < image->header->publishers.count; i++) {
    const struct npi_publisher_record *record = &image->publishers[i];
    uint32_t state = state_of(&record->state);
    if (state == NPI_RECORD_FREE) continue;
    if (!is_endpoint(image, state, record->client, record->channel, record->counters))
      return DAMAGED("publisher %u", i);
  }
  for (uint32_t i = 0; i < image->header->subscribers.count; i++) {
    const struct npi_subscriber_record *record = &image->subscribers[i];
    uint32_t state = state_of(&record->state);
    if (state == NPI_RECORD_FREE) continue;
    if (!is_endpoint(image, state, record->client, record->channel, record->counters) ||
        record->on_full > NPI_ON_FULL_DROP_NEWEST || record->credits == 0 || record->credits > NPI_CREDITS_MAX ||
        !is_ended(record->name, sizeof record->name)) {
      return DAMAGED("subscriber %u", i);
    }
  }
  return 0;
}

static int is_ring(const struct npi_registry_header *header, uint64_t offset, uint32_t capacity) {
  return offset % NPI_CACHE_LINE == 0 && offset >= header->page_rings_offset && offset < header->page_bytes &&
         npi_ring_block_bytes(capacity) <= header->page_bytes - offset;
}

static int check_connections(const struct npi_adopt_image *image) {
  const struct npi_registry_header *header = image->header;
  for (uint32_t i = 0; i < header->connections.count; i++) {
    const struct npi_connection_record *record = &image->connections[i];
    uint32_t state = state_of(&record->state);
    if (state == NPI_CONNECTION_FREE) continue;
    if (state > NPI_CONNECTION_DEAD || record->publisher >= header->publishers.count ||
        record->subscriber >= header->subscribers.count) {
      return DAMAGED("connection %u", i);
    }
    const struct npi_publisher_record *publisher = &image->publishers[record->publisher];
    const struct npi_subscriber_record *subscriber = &image->subscribers[record->subscriber];
    if (state_of(&publisher->state) == NPI_RECORD_FREE || state_of(&subscriber->state) == NPI_RECORD_FREE ||
        record->publisher_client != publisher->client || record->subscriber_client != subscriber->client ||
        publisher->channel != subscriber->channel || record->channel != publisher->channel ||
        record->capacity != npi_ring_capacity_for(subscriber->credits) || record->limit != subscriber->credits ||
        !is_ring(header, record->submissions_offset, record->capacity) ||
        !is_ring(header, record->returns_offset, record->capacity)) {
      return DAMAGED("connection %u does not fit publisher %u and subscriber %u", i, record->publisher,
                     record->subscriber);
    }
  }
  return 0;
}

static int is_leased(uint32_t state) {
  return state == NPI_SEGMENT_LEASED || state == NPI_SEGMENT_DRAINING;
}

static int check_segments(struct npi_adopt_image *image) {
  const struct npi_registry_header *header = image->header;
  for (uint32_t i = 0; i < header->segments.count; i++) {
    const struct npi_segment_record *record = &image->segments[i];
    uint32_t state = state_of(&record->state);
    if (record->object >= image->next_object) image->next_object = record->object + 1;
    if (record->object == UINT64_MAX) return DAMAGED("segment %u", i);
    if (state == NPI_SEGMENT_FREE) continue;
    if (state > NPI_SEGMENT_DRAINING || record->node >= header->n_nodes || record->bytes != header->segment_bytes ||
        (record->page_bytes != NPI_PAGE && record->page_bytes != (UINT64_C(2) << 20))) {
      return DAMAGED("segment %u", i);
    }
    if (is_leased(state) && (record->client >= header->clients.count || record->number >= header->segments_per_client ||
                             state_of(&image->clients[record->client].state) == NPI_RECORD_FREE)) {
      return DAMAGED("segment %u is leased to client %u as number %u", i, record->client, record->number);
    }
  }
  return 0;
}

static int check_listeners(const struct npi_adopt_image *image) {
  for (uint32_t i = 0; i < image->header->listeners.count; i++) {
    const struct npi_listener_record *record = &image->listeners[i];
    uint32_t state = state_of(&record->state);
    if (state == NPI_LISTENER_FREE) continue;
    if (state > NPI_LISTENER_DOWN || record->channel >= image->header->channels.count || record->port > UINT16_MAX ||
        !is_ended(record->name, sizeof record->name) || !is_ended(record->address, sizeof record->address) ||
        !is_ended(record->framing, sizeof record->framing)) {
      return DAMAGED("listener %u", i);
    }
  }
  return 0;
}

/* ---- what only one may have ---- */

struct span {
  uint64_t owner, begin, end;
};

static int compare_spans(const void *left, const void *right) {
  const struct span *a = left, *b = right;
  if (a->owner != b->owner) return a->owner < b->owner ? -1 : 1;
  return a->begin < b->begin ? -1 : a->begin > b->begin;
}

static int check_disjoint(struct span *spans, uint32_t n, const char *what) {
  if (n > 1) qsort(spans, n, sizeof *spans, compare_spans);
  for (uint32_t i = 1; i < n; i++) {
    if (spans[i].owner == spans[i - 1].owner && spans[i].begin < spans[i - 1].end) {
      return DAMAGED("two %s of client %" PRIu64 " share a place", what, spans[i].owner);
    }
  }
  return 0;
}

static uint32_t collect_rings(const struct npi_adopt_image *image, struct span *spans) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < image->header->connections.count; i++) {
    const struct npi_connection_record *record = &image->connections[i];
    if (state_of(&record->state) == NPI_CONNECTION_FREE) continue;
    uint64_t bytes = npi_ring_block_bytes(record->capacity);
    spans[n++] =
        (struct span){record->publisher_client, record->submissions_offset, record->submissions_offset + bytes};
    spans[n++] = (struct span){record->subscriber_client, record->returns_offset, record->returns_offset + bytes};
  }
  return n;
}

static uint32_t collect_rows(const struct npi_adopt_image *image, struct span *spans) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < image->header->publishers.count; i++) {
    const struct npi_publisher_record *record = &image->publishers[i];
    if (state_of(&record->state) == NPI_RECORD_FREE) continue;
    spans[n++] = (struct span){record->client, record->counters, record->counters + 1};
  }
  for (uint32_t i = 0; i < image->header->subscribers.count; i++) {
    const struct npi_subscriber_record *record = &image->subscribers[i];
    if (state_of(&record->state) == NPI_RECORD_FREE) continue;
    spans[n++] = (struct span){record->client, record->counters, record->counters + 1};
  }
  return n;
}

static uint32_t collect_numbers(const struct npi_adopt_image *image, struct span *spans) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < image->header->segments.count; i++) {
    const struct npi_segment_record *record = &image->segments[i];
    if (!is_leased(state_of(&record->state))) continue;
    spans[n++] = (struct span){record->client, record->number, (uint64_t)record->number + 1};
  }
  return n;
}

static uint32_t collect_objects(const struct npi_adopt_image *image, struct span *spans) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < image->header->segments.count; i++) {
    const struct npi_segment_record *record = &image->segments[i];
    if (state_of(&record->state) == NPI_SEGMENT_FREE) continue;
    spans[n++] = (struct span){0, record->object, record->object + 1};
  }
  return n;
}

static int compare_names(const void *left, const void *right) {
  const struct npi_channel_record *const *a = left, *const *b = right;
  return strcmp((*a)->name, (*b)->name);
}

static int check_names(const struct npi_adopt_image *image) {
  uint32_t count = image->header->channels.count, n = 0;
  const struct npi_channel_record **list = calloc(count, sizeof(struct npi_channel_record *));
  int status = 0;
  if (list == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory to check %u channels", count);
  for (uint32_t i = 0; i < count; i++) {
    if (state_of(&image->channels[i].state) != NPI_RECORD_FREE) list[n++] = &image->channels[i];
  }
  if (n > 1) qsort(list, n, sizeof *list, compare_names);
  for (uint32_t i = 1; i < n && status == 0; i++) {
    if (strcmp(list[i]->name, list[i - 1]->name) == 0) status = DAMAGED("two channels have the name %s", list[i]->name);
  }
  free(list);
  return status;
}

static int check_uniqueness(const struct npi_adopt_image *image) {
  const struct npi_registry_header *header = image->header;
  size_t most = 2 * (size_t)header->connections.count;
  size_t endpoints = (size_t)header->publishers.count + header->subscribers.count;
  if (most < endpoints) most = endpoints;
  if (most < header->segments.count) most = header->segments.count;
  struct span *spans = calloc(most + 1, sizeof *spans);
  if (spans == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory to check %zu places", most);
  int status = check_disjoint(spans, collect_rings(image, spans), "rings");
  if (status == 0) status = check_disjoint(spans, collect_rows(image, spans), "endpoints");
  if (status == 0) status = check_disjoint(spans, collect_numbers(image, spans), "segments");
  if (status == 0) status = check_disjoint(spans, collect_objects(image, spans), "segments (objects)");
  free(spans);
  return status == 0 ? check_names(image) : status;
}

int npi_adopt_validate(const void *memory, size_t bytes, const struct npi_adopt_owner *owner,
                       struct npi_adopt_image *image) {
  int status = npi_adopt_validate_header(memory, bytes, owner, image);
  if (status == 0 && npi_load_relaxed_u32(&image->journal->kind) > NPI_JOURNAL_CONNECTION) {
    status = DAMAGED("journal of kind %u", npi_load_relaxed_u32(&image->journal->kind));
  }
  if (status == 0) status = check_clients(image);
  if (status == 0) status = check_channels(image);
  if (status == 0) status = check_endpoints(image);
  if (status == 0) status = check_connections(image);
  if (status == 0) status = check_segments(image);
  if (status == 0) status = check_listeners(image);
  if (status == 0) status = check_uniqueness(image);
  if (status != 0) memset(image, 0, sizeof *image);
  return status;
}
