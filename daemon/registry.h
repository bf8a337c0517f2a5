/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry: the one object by which the broker shows what there is. Written here and in the modules that
 * own the records, read-only for everybody else, and never read back by the broker.
 *
 * A record is filled first, then its state is stored with release; it is taken down in the other order.
 */
#ifndef NPI_DAEMON_REGISTRY_H
#define NPI_DAEMON_REGISTRY_H

#include <stdint.h>

#include "core/counters.h"
#include "daemon/config.h"
#include "os/os_numa.h"
#include "shm/layout.h"

/* Free record numbers of one table, and how often each was given out. */
struct npi_index_pool {
  uint32_t *free;
  uint32_t *versions;
  uint32_t n_free, count;
};

int npi_index_pool_init(struct npi_index_pool *pool, uint32_t count);
void npi_index_pool_deinit(struct npi_index_pool *pool);
/* NPI_NONE: all are in use. */
uint32_t npi_index_take(struct npi_index_pool *pool, uint32_t *version);
void npi_index_give(struct npi_index_pool *pool, uint32_t index);
/* A predecessor's table: call it for each index from the last to 0, on a pool that was initialized. */
void npi_index_restore(struct npi_index_pool *pool, uint32_t index, uint32_t version, int used);
uint32_t npi_index_used(const struct npi_index_pool *pool);

struct npi_registry {
  char name[96];
  int fd, readonly_fd;
  uint64_t bytes;
  struct npi_registry_header *header;
  struct npi_node_record *nodes;
  struct npi_client_record *clients;
  struct npi_channel_record *channels;
  struct npi_publisher_record *publishers;
  struct npi_subscriber_record *subscribers;
  struct npi_connection_record *connections;
  struct npi_segment_record *segments;
  struct npi_listener_record *listeners;
  struct npi_journal *journal;
  /* The broker's own copy of the geometry. */
  uint32_t n_clients, n_channels, n_publishers, n_subscribers, n_connections, n_segments, n_listeners;
  uint64_t page_bytes, page_listeners_offset, page_rings_offset, ledger_bytes;
  uint32_t endpoints_per_client, segments_per_client, connections_per_client, max_credits;
};

/* Creates the object and fills the header; not announced yet. */
int npi_registry_create(struct npi_registry *registry, const struct npi_config *config,
                        const struct npi_numa_topology *topology);
/*
 * A predecessor's object: found by its name and mapped, nothing of it believed yet. NP_ERR_NOT_FOUND: there is none.
 * npi_registry_set_places() takes geometry and tables from a header that was checked; npi_registry_take_over() says that
 * this process is the broker now.
 */
int npi_registry_open(struct npi_registry *registry, const char *instance, int writable);
void npi_registry_set_places(struct npi_registry *registry, const struct npi_registry_header *checked);
int npi_registry_take_over(struct npi_registry *registry, const struct npi_config *config);
/* Unmaps, and leaves the object to whoever comes next. */
void npi_registry_close(struct npi_registry *registry);

/* Readers may believe it from now on. */
void npi_registry_announce(struct npi_registry *registry);
void npi_registry_set_state(struct npi_registry *registry, enum npi_broker_state state);
/* Unlinks and unmaps; an empty registry is fine. */
void npi_registry_destroy(struct npi_registry *registry);

static inline void npi_registry_count(struct npi_registry *registry, enum npi_counter counter, uint64_t n) {
  npi_count_add(&registry->header->counter[counter], n);
}

/* A name for people, in a fixed field: what cannot be printed becomes '?', always ended by NUL. */
void npi_registry_copy_name(char *to, size_t bytes, const char *from, size_t from_bytes);

#endif
