/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/registry.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/align.h"
#include "base/status.h"
#include "core/ledger.h"
#include "numapool/version.h"
#include "os/os_clock.h"
#include "os/os_memory.h"
#include "os/os_process.h"
#include "shm/leftovers.h"

#define BYTES_MAX (UINT64_C(1) << 30)

/* ---- index pools ---- */

int npi_index_pool_init(struct npi_index_pool *pool, uint32_t count) {
  pool->count = pool->n_free = count;
  pool->free = malloc(count * sizeof *pool->free);
  pool->versions = calloc(count, sizeof *pool->versions);
  if (pool->free == NULL || pool->versions == NULL) {
    npi_index_pool_deinit(pool);
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a table of %u records", count);
  }
  for (uint32_t i = 0; i < count; i++) pool->free[i] = count - 1 - i; /* the lowest is given out first */
  return 0;
}

void npi_index_pool_deinit(struct npi_index_pool *pool) {
  free(pool->free);
  free(pool->versions);
  memset(pool, 0, sizeof *pool);
}

uint32_t npi_index_take(struct npi_index_pool *pool, uint32_t *version) {
  if (pool->n_free == 0) return NPI_NONE;
  uint32_t index = pool->free[--pool->n_free];
  *version = ++pool->versions[index];
  return index;
}

void npi_index_give(struct npi_index_pool *pool, uint32_t index) {
  pool->free[pool->n_free++] = index;
}

void npi_index_restore(struct npi_index_pool *pool, uint32_t index, uint32_t version, int used) {
  if (index + 1 == pool->count) pool->n_free = 0;
  pool->versions[index] = version;
  if (!used) pool->free[pool->n_free++] = index;
}

uint32_t npi_index_used(const struct npi_index_pool *pool) {
  return pool->count - pool->n_free;
}

/* ---- the object ---- */

static void place(struct npi_table *table, uint64_t *end, uint32_t count, uint32_t bytes) {
  table->offset = npi_round_up(*end, NPI_CACHE_LINE);
  table->count = count;
  table->bytes = bytes;
  *end = table->offset + (uint64_t)count * bytes;
}

static void set_geometry(struct npi_registry *registry, const struct npi_config *config, uint32_t n_nodes) {
  struct npi_ledger_geometry ledger;
  registry->n_clients = config->limits.clients;
  registry->n_channels = config->limits.channels;
  registry->n_publishers = config->limits.publishers;
  registry->n_subscribers = config->limits.subscribers;
  registry->n_connections = config->limits.connections;
  registry->n_segments = config->memory.segments_per_node * n_nodes;
  registry->n_listeners = config->limits.listeners;
  registry->max_credits = config->limits.max_credits;
  registry->endpoints_per_client = config->limits.endpoints_per_client;
  registry->connections_per_client = config->limits.connections_per_client;
  registry->page_listeners_offset =
      sizeof(struct npi_page_shm) + (uint64_t)registry->endpoints_per_client * sizeof(struct npi_endpoint_counters);
  registry->page_rings_offset = npi_round_up(
      registry->page_listeners_offset + (uint64_t)config->limits.listeners * sizeof(struct npi_listener_counters),
      NPI_PAGE);
  /* Pages of memory are made as rings are placed. */
  registry->page_bytes = registry->page_rings_offset + npi_round_up(config->limits.rings_per_client, NPI_PAGE);
  npi_ledger_geometry(&ledger, config->memory.per_client, config->memory.segment, registry->connections_per_client,
                      registry->page_bytes - registry->page_rings_offset);
  registry->segments_per_client = ledger.segments;
  registry->ledger_bytes = npi_ledger_footprint(&ledger);
}

static int say_who(struct npi_registry_header *header, const struct npi_config *config) {
  uint64_t start_time = 0;
  int status = npi_process_start_time(getpid(), &start_time);
  if (status != 0) return status;
  npi_registry_copy_name(header->version, sizeof header->version, NP_VERSION_STRING, sizeof NP_VERSION_STRING);
  npi_registry_copy_name(header->config_file, sizeof header->config_file, config->file, sizeof config->file);
  header->broker_start_time = start_time;
  header->broker_pid = (uint32_t)getpid();
  header->numa_mode = (uint32_t)config->numa.mode;
  return 0;
}

static int fill_header(struct npi_registry *registry, const struct npi_config *config) {
  struct npi_registry_header *header = registry->header;
  header->layout_version = NPI_LAYOUT_VERSION;
  header->header_bytes = sizeof *header;
  header->total_bytes = registry->bytes;
  if (getrandom(&header->instance_id, sizeof header->instance_id, 0) != (ssize_t)sizeof header->instance_id) {
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot choose a random instance id");
  }
  npi_registry_copy_name(header->instance, sizeof header->instance, config->instance, sizeof config->instance);
  int status = npi_process_boot_id(header->boot_id, sizeof header->boot_id);
  if (status == 0) status = say_who(header, config);
  if (status != 0) return status;
  header->uid = (uint32_t)geteuid();
  header->started_ns = npi_clock_realtime();
  header->backend = (uint32_t)config->memory.backend;
  header->n_nodes = header->nodes.count;
  header->per_node_bytes = config->memory.per_node;
  header->per_client_bytes = config->memory.per_client;
  header->segment_bytes = config->memory.segment;
  header->page_bytes = registry->page_bytes;
  header->page_endpoints_offset = sizeof(struct npi_page_shm);
  header->page_listeners_offset = registry->page_listeners_offset;
  header->page_rings_offset = registry->page_rings_offset;
  header->endpoints_per_client = registry->endpoints_per_client;
  header->segments_per_client = registry->segments_per_client;
  header->connections_per_client = registry->connections_per_client;
  header->ledger_bytes = registry->ledger_bytes;
  npi_store_relaxed_u32(&header->incarnation, 1);
  npi_store_release_u32(&header->state, NPI_BROKER_STARTING);
  return 0;
}

static void set_tables(struct npi_registry *registry, const struct npi_registry_header *places) {
  unsigned char *base = (unsigned char *)registry->header;
  registry->nodes = (void *)(base + places->nodes.offset);
  registry->clients = (void *)(base + places->clients.offset);
  registry->channels = (void *)(base + places->channels.offset);
  registry->publishers = (void *)(base + places->publishers.offset);
  registry->subscribers = (void *)(base + places->subscribers.offset);
  registry->connections = (void *)(base + places->connections.offset);
  registry->segments = (void *)(base + places->segments.offset);
  registry->listeners = (void *)(base + places->listeners.offset);
  registry->journal = (void *)(base + places->journal.offset);
}

int npi_registry_create(struct npi_registry *registry, const struct npi_config *config,
                        const struct npi_numa_topology *topology) {
  struct npi_registry_header places;
  uint64_t end = NPI_PAGE;
  void *memory = NULL;
  memset(registry, 0, sizeof *registry);
  memset(&places, 0, sizeof places);
  registry->fd = registry->readonly_fd = -1;
  set_geometry(registry, config, topology->n_nodes);
  place(&places.nodes, &end, topology->n_nodes, sizeof *registry->nodes);
  place(&places.clients, &end, registry->n_clients, sizeof *registry->clients);
  place(&places.channels, &end, registry->n_channels, sizeof *registry->channels);
  place(&places.publishers, &end, registry->n_publishers, sizeof *registry->publishers);
  place(&places.subscribers, &end, registry->n_subscribers, sizeof *registry->subscribers);
  place(&places.connections, &end, registry->n_connections, sizeof *registry->connections);
  place(&places.segments, &end, registry->n_segments, sizeof *registry->segments);
  place(&places.listeners, &end, registry->n_listeners, sizeof *registry->listeners);
  place(&places.journal, &end, 1, sizeof *registry->journal);
  registry->bytes = npi_round_up(end, NPI_PAGE);

  char name[96];
  npi_shm_name(name, sizeof name, config->instance, geteuid(), "registry", -1);
  int status = npi_memory_create_posix(name, registry->bytes, &registry->fd);
  if (status != 0) return npi_trail(status, "registry");
  memcpy(registry->name, name, sizeof name);
  status = npi_memory_reserve(registry->fd, 0, registry->bytes);
  if (status == 0) status = npi_memory_reopen_readonly(registry->fd, &registry->readonly_fd);
  if (status == 0) status = npi_memory_map(registry->fd, 0, registry->bytes, 1, &memory);
  if (status != 0) goto fail;

  registry->header = memory;
  *registry->header = places;
  set_tables(registry, &places);
  status = fill_header(registry, config);
  if (status != 0) goto fail;
  for (uint32_t i = 0; i < topology->n_nodes; i++) {
    registry->nodes[i].id = (uint32_t)topology->node[i].id;
    registry->nodes[i].n_cpus = topology->node[i].n_cpus;
    registry->nodes[i].budget_bytes = (uint64_t)config->memory.segments_per_node * config->memory.segment;
  }
  return 0;

fail:
  npi_registry_destroy(registry);
  return npi_trail(status, "registry");
}

/* ---- a predecessor's ---- */

int npi_registry_open(struct npi_registry *registry, const char *instance, int writable) {
  void *memory = NULL;
  memset(registry, 0, sizeof *registry);
  registry->fd = registry->readonly_fd = -1;
  npi_shm_name(registry->name, sizeof registry->name, instance, geteuid(), "registry", -1);
  int status = npi_memory_open_posix(registry->name, writable, &registry->fd, &registry->bytes);
  if (status == 0 && (registry->bytes < NPI_PAGE || registry->bytes > BYTES_MAX)) {
    status = npi_fail(NP_ERR_CORRUPT, "a registry of %" PRIu64 " bytes is none", registry->bytes);
  }
  if (status == 0) status = npi_memory_reopen_readonly(registry->fd, &registry->readonly_fd);
  if (status == 0) status = npi_memory_map(registry->fd, 0, registry->bytes, writable, &memory);
  registry->header = memory;
  if (status != 0) npi_registry_close(registry);
  return status;
}

void npi_registry_set_places(struct npi_registry *registry, const struct npi_registry_header *checked) {
  registry->n_clients = checked->clients.count;
  registry->n_channels = checked->channels.count;
  registry->n_publishers = checked->publishers.count;
  registry->n_subscribers = checked->subscribers.count;
  registry->n_connections = checked->connections.count;
  registry->n_segments = checked->segments.count;
  registry->n_listeners = checked->listeners.count;
  registry->page_bytes = checked->page_bytes;
  registry->page_listeners_offset = checked->page_listeners_offset;
  registry->page_rings_offset = checked->page_rings_offset;
  registry->ledger_bytes = checked->ledger_bytes;
  registry->endpoints_per_client = checked->endpoints_per_client;
  registry->segments_per_client = checked->segments_per_client;
  registry->connections_per_client = checked->connections_per_client;
  set_tables(registry, checked);
}

int npi_registry_take_over(struct npi_registry *registry, const struct npi_config *config) {
  struct npi_registry_header *header = registry->header;
  registry->max_credits = config->limits.max_credits;
  npi_store_release_u32(&header->state, NPI_BROKER_STARTING);
  int status = say_who(header, config);
  npi_store_release_u32(&header->incarnation, npi_load_relaxed_u32(&header->incarnation) + 1);
  return status;
}

void npi_registry_close(struct npi_registry *registry) {
  npi_memory_unmap(registry->header, registry->bytes);
  if (registry->readonly_fd >= 0) close(registry->readonly_fd);
  if (registry->fd >= 0) close(registry->fd);
  memset(registry, 0, sizeof *registry);
  registry->fd = registry->readonly_fd = -1;
}

void npi_registry_announce(struct npi_registry *registry) {
  /* [registry.publish] release: header and geometry before the magic. Pairs with [registry.attach]. */
  npi_store_release_u64(&registry->header->magic, NPI_MAGIC_REGISTRY);
}

void npi_registry_set_state(struct npi_registry *registry, enum npi_broker_state state) {
  npi_store_release_u32(&registry->header->state, state);
}

void npi_registry_destroy(struct npi_registry *registry) {
  if (registry->name[0] != '\0') npi_memory_unlink_posix(registry->name);
  npi_registry_close(registry);
}

void npi_registry_copy_name(char *to, size_t bytes, const char *from, size_t from_bytes) {
  size_t n = 0;
  for (; n + 1 < bytes && n < from_bytes && from[n] != '\0'; n++) {
    to[n] = from[n];
    if ((unsigned char)to[n] < 0x21 || (unsigned char)to[n] > 0x7e || to[n] == '"') to[n] = '?';
  }
  memset(to + n, 0, bytes - n);
}
