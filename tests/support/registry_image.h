/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small registry as a broker might have left it: two clients that share a connection, one that is going, leased and
 * ready segments, a listener. For tests that damage it.
 */
#ifndef NUMAPOOL_TESTS_REGISTRY_IMAGE_H
#define NUMAPOOL_TESTS_REGISTRY_IMAGE_H

#include <stdio.h>
#include <string.h>

#include "core/ledger.h"
#include "daemon/adopt_image.h"
#include "shm/segment.h"

#define IMAGE_BOOT_ID "00000000-1111-2222-3333-444444444444"
enum {
  IMAGE_NODES = 2,
  IMAGE_CLIENTS = 4,
  IMAGE_CHANNELS = 4,
  IMAGE_PUBLISHERS = 4,
  IMAGE_SUBSCRIBERS = 4,
  IMAGE_CONNECTIONS = 8,
  IMAGE_SEGMENTS = 8,
  IMAGE_LISTENERS = 2,
  IMAGE_BYTES = 24576,
  IMAGE_SEGMENT_BYTES = 2 << 20,
  IMAGE_UID = 1000,
};

static const struct npi_adopt_owner image_owner = {"image", IMAGE_BOOT_ID, IMAGE_UID};

static inline void image_place(struct npi_table *table, uint64_t *end, uint32_t count, size_t bytes) {
  table->offset = npi_round_up(*end, NPI_CACHE_LINE);
  table->count = count;
  table->bytes = (uint32_t)bytes;
  *end = table->offset + (uint64_t)count * bytes;
}

static inline void image_header(struct npi_registry_header *header) {
  struct npi_ledger_geometry ledger;
  uint64_t end = NPI_PAGE;
  npi_store_relaxed_u64(&header->magic, NPI_MAGIC_REGISTRY);
  header->layout_version = NPI_LAYOUT_VERSION;
  header->header_bytes = sizeof *header;
  header->total_bytes = IMAGE_BYTES;
  header->uid = IMAGE_UID;
  snprintf(header->instance, sizeof header->instance, "image");
  snprintf(header->boot_id, sizeof header->boot_id, "%s", IMAGE_BOOT_ID);
  npi_store_relaxed_u32(&header->state, NPI_BROKER_READY);
  header->backend = NPI_BACKEND_MEMFD;
  header->n_nodes = IMAGE_NODES;
  header->segment_bytes = IMAGE_SEGMENT_BYTES;
  header->per_client_bytes = 4 * (uint64_t)IMAGE_SEGMENT_BYTES;
  header->endpoints_per_client = 8;
  header->connections_per_client = IMAGE_CONNECTIONS;
  header->page_endpoints_offset = sizeof(struct npi_page_shm);
  header->page_listeners_offset = header->page_endpoints_offset + 8 * sizeof(struct npi_endpoint_counters);
  header->page_rings_offset =
      npi_round_up(header->page_listeners_offset + IMAGE_LISTENERS * sizeof(struct npi_listener_counters), NPI_PAGE);
  header->page_bytes = header->page_rings_offset + 65536;
  npi_ledger_geometry(&ledger, header->per_client_bytes, header->segment_bytes, header->connections_per_client, 65536);
  header->segments_per_client = ledger.segments;
  header->ledger_bytes = npi_ledger_footprint(&ledger);
  image_place(&header->nodes, &end, IMAGE_NODES, sizeof(struct npi_node_record));
  image_place(&header->clients, &end, IMAGE_CLIENTS, sizeof(struct npi_client_record));
  image_place(&header->channels, &end, IMAGE_CHANNELS, sizeof(struct npi_channel_record));
  image_place(&header->publishers, &end, IMAGE_PUBLISHERS, sizeof(struct npi_publisher_record));
  image_place(&header->subscribers, &end, IMAGE_SUBSCRIBERS, sizeof(struct npi_subscriber_record));
  image_place(&header->connections, &end, IMAGE_CONNECTIONS, sizeof(struct npi_connection_record));
  image_place(&header->segments, &end, IMAGE_SEGMENTS, sizeof(struct npi_segment_record));
  image_place(&header->listeners, &end, IMAGE_LISTENERS, sizeof(struct npi_listener_record));
  image_place(&header->journal, &end, 1, sizeof(struct npi_journal));
}

static inline void *image_table(void *image, const struct npi_table *table) {
  return (unsigned char *)image + table->offset;
}

/* memory: IMAGE_BYTES at an address that is a multiple of 8. */
static inline void image_make(void *memory) {
  struct npi_registry_header *header = memory;
  memset(memory, 0, IMAGE_BYTES);
  image_header(header);
  struct npi_client_record *clients = image_table(memory, &header->clients);
  struct npi_channel_record *channels = image_table(memory, &header->channels);
  struct npi_publisher_record *publishers = image_table(memory, &header->publishers);
  struct npi_subscriber_record *subscribers = image_table(memory, &header->subscribers);
  struct npi_connection_record *connections = image_table(memory, &header->connections);
  struct npi_segment_record *segments = image_table(memory, &header->segments);
  struct npi_listener_record *listeners = image_table(memory, &header->listeners);
  for (uint32_t i = 0; i < 3; i++) {
    clients[i].version = 1;
    clients[i].pid = 100 + i;
    clients[i].node = i % IMAGE_NODES;
    snprintf(clients[i].name, sizeof clients[i].name, "client-%u", i);
    npi_store_relaxed_u32(&clients[i].state, i == 2 ? NPI_RECORD_CLOSING : NPI_RECORD_ACTIVE);
  }
  for (uint32_t i = 0; i < 2; i++) {
    channels[i].kind = i == 0 ? NPI_CHANNEL_BROADCAST : NPI_CHANNEL_GROUP;
    channels[i].credits = 20;
    snprintf(channels[i].name, sizeof channels[i].name, "channel-%u", i);
    npi_store_relaxed_u32(&channels[i].state, NPI_RECORD_ACTIVE);
    publishers[i].client = i == 0 ? 0 : 2;
    publishers[i].channel = i;
    publishers[i].counters = 0;
    npi_store_relaxed_u32(&publishers[i].state, i == 0 ? NPI_RECORD_ACTIVE : NPI_RECORD_CLOSING);
    subscribers[i].client = 1;
    subscribers[i].channel = i;
    subscribers[i].counters = i;
    subscribers[i].credits = 20;
    npi_store_relaxed_u32(&subscribers[i].state, NPI_RECORD_ACTIVE);
    connections[i].publisher = connections[i].subscriber = i;
    connections[i].publisher_client = publishers[i].client;
    connections[i].subscriber_client = 1;
    connections[i].channel = i;
    connections[i].capacity = 32;
    connections[i].limit = 20;
    connections[i].submissions_offset = header->page_rings_offset;
    connections[i].returns_offset = header->page_rings_offset + i * npi_ring_block_bytes(32);
    npi_store_relaxed_u32(&connections[i].holds, NPI_CONNECTION_PUBLISHER_HOLDS | NPI_CONNECTION_SUBSCRIBER_HOLDS);
    npi_store_relaxed_u32(&connections[i].state, i == 0 ? NPI_CONNECTION_ACTIVE : NPI_CONNECTION_DEAD);
  }
  for (uint32_t i = 0; i < 4; i++) {
    static const uint32_t owner[] = {0, 0, 2, NPI_NONE}, number[] = {0, 1, 0, NPI_NONE};
    static const uint32_t state[] = {NPI_SEGMENT_LEASED, NPI_SEGMENT_LEASED, NPI_SEGMENT_DRAINING, NPI_SEGMENT_READY};
    segments[i].version = 1;
    segments[i].object = 10 + i;
    segments[i].bytes = IMAGE_SEGMENT_BYTES;
    segments[i].page_bytes = NPI_PAGE;
    segments[i].client = owner[i];
    segments[i].number = number[i];
    npi_store_relaxed_u32(&segments[i].state, state[i]);
  }
  snprintf(listeners[0].name, sizeof listeners[0].name, "listener");
  listeners[0].port = 5514;
  npi_store_relaxed_u32(&listeners[0].state, NPI_LISTENER_LISTENING);
}

#endif
