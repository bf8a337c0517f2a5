/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/stock.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "os/os_clock.h"
#include "os/os_memory.h"
#include "shm/leftovers.h"

#define STOCK_NAP_NS      UINT64_C(1000000)
#define STOCK_PATIENCE_NS UINT64_C(50000000)
#define STOCK_RETRY_NS    UINT64_C(5000000000)

/* ---- one segment ---- */

static void show_node(struct npi_broker *broker, uint32_t index) {
  const struct npi_node *node = &broker->stock.nodes[index];
  struct npi_node_record *record = &broker->registry.nodes[index];
  npi_store_relaxed_u64(&record->made_bytes, node->made_bytes);
  npi_store_relaxed_u64(&record->leased_bytes, node->leased_bytes);
  npi_store_relaxed_u64(&record->pages_home, node->pages_home);
  npi_store_relaxed_u64(&record->pages_away, node->pages_away);
  npi_store_relaxed_u64(&record->pages_unknown, node->pages_unknown);
}

/* A record is filled before its state says that it counts, and taken down after: a successor checks what counts. */
void npi_stock_set_state(struct npi_broker *broker, struct npi_leased *segment, enum npi_segment_state state) {
  struct npi_segment_record *record = &broker->registry.segments[segment->index];
  segment->state = (uint32_t)state;
  if (state == NPI_SEGMENT_FREE) {
    npi_store_release_u32(&record->state, state);
    npi_barrier_compiler();
  }
  record->client = segment->client != NULL ? segment->client->index : NPI_NONE;
  record->number = segment->number;
  npi_store_release_u32(&record->state, state);
}

static int has_room(const struct npi_broker *broker, uint32_t node) {
  return broker->stock.nodes[node].n_segments < broker->config->memory.segments_per_node;
}

static int make_segment(struct npi_broker *broker, uint32_t node_index, struct npi_leased **out) {
  struct npi_stock *stock = &broker->stock;
  struct npi_node *node = &stock->nodes[node_index];
  const struct npi_config *config = broker->config;
  char name[96];
  uint32_t version = 0;
  *out = NULL;
  uint32_t index = npi_index_take(&stock->pool, &version);
  if (index == NPI_NONE) return npi_fail(NP_ERR_LIMIT, "all %u segment records are in use", stock->pool.count);
  struct npi_leased *segment = calloc(1, sizeof *segment);
  int status = segment == NULL ? npi_fail(NP_ERR_NO_MEMORY, "no memory for a segment's record") : 0;
  if (status != 0) goto fail;
  segment->index = index;
  segment->version = version;
  segment->node = node_index;
  segment->number = NPI_NONE;
  segment->object = stock->next_object++;
  npi_shm_name(name, sizeof name, config->instance, geteuid(), "seg", (int64_t)segment->object);
  struct npi_segment_options options = {.backend = config->memory.backend,
                                        .numa = config->numa.mode,
                                        .huge = config->memory.huge_pages,
                                        .name = name,
                                        .bytes = config->memory.segment,
                                        .node = config->numa.mode == NPI_NUMA_OFF ? -1 : node->id};
  stock->made_turn = broker->loop.turn;
  status = npi_segment_create(&segment->memory, &options);
  if (status != 0) goto fail;
  npi_segment_unmap(&segment->memory);

  node->n_segments++;
  node->made_bytes += segment->memory.bytes;
  node->pages_home += segment->memory.pages_home;
  node->pages_away += segment->memory.pages_away;
  node->pages_unknown += segment->memory.pages_unknown;
  if (!segment->memory.bound && config->numa.mode != NPI_NUMA_OFF) {
    npi_store_relaxed_u32(&broker->registry.nodes[node_index].bind_refused, 1);
  }
  struct npi_segment_record *record = &broker->registry.segments[index];
  record->version = version;
  record->node = node_index;
  record->bound = (uint32_t)segment->memory.bound;
  record->object = segment->object;
  record->bytes = segment->memory.bytes;
  record->page_bytes = segment->memory.page_bytes;
  npi_store_relaxed_u64(&record->pages_home, segment->memory.pages_home);
  npi_store_relaxed_u64(&record->pages_away, segment->memory.pages_away);
  npi_store_relaxed_u64(&record->pages_unknown, segment->memory.pages_unknown);
  record->measured_ns = npi_clock_realtime();
  npi_keep_segment(broker, segment);
  show_node(broker, node_index);
  npi_registry_count(&broker->registry, NPI_BROKER_SEGMENTS_MADE, 1);
  *out = segment;
  return 0;

fail:
  free(segment);
  npi_index_give(&stock->pool, index);
  return status;
}

/* keep_pages: living clients may still use what they have mapped. */
static void destroy_segment(struct npi_broker *broker, struct npi_leased *segment, int keep_pages) {
  struct npi_node *node = &broker->stock.nodes[segment->node];
  node->n_segments--;
  node->made_bytes -= segment->memory.bytes;
  node->pages_home -= segment->memory.pages_home;
  node->pages_away -= segment->memory.pages_away;
  node->pages_unknown -= segment->memory.pages_unknown;
  show_node(broker, segment->node);
  if (keep_pages) {
    npi_segment_unmap(&segment->memory);
    npi_segment_unlink(&segment->memory);
    close(segment->memory.fd);
    close(segment->memory.readonly_fd);
  } else {
    npi_segment_destroy(&segment->memory);
  }
  npi_keep_drop(broker, NPI_KEPT_SEGMENT, segment->index, segment->version);
  npi_registry_count(&broker->registry, NPI_BROKER_SEGMENTS_DESTROYED, 1);
  npi_index_give(&broker->stock.pool, segment->index);
  free(segment);
}

/* It is nobody's any more. What a successor finds of it, it destroys. */
static void set_free(struct npi_broker *broker, struct npi_leased *segment) {
  segment->client = NULL;
  segment->number = NPI_NONE;
  npi_stock_set_state(broker, segment, NPI_SEGMENT_FREE);
}

/* ---- given back ---- */

static void destroy_first_retired(struct npi_broker *broker) {
  struct npi_leased *segment = broker->stock.retired;
  DL_DELETE(broker->stock.retired, segment);
  destroy_segment(broker, segment, 0);
}

/* Giving pages back takes as long as making them: one segment a turn, and clients are served in between. */
static void destroy_one(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  if (broker->stock.retired != NULL) destroy_first_retired(broker); /* a lease may have needed the room before */
  if (broker->stock.retired != NULL) npi_timer_begin(&broker->loop, timer, 0);
}

void npi_stock_retire(struct npi_broker *broker, struct npi_leased *segment) {
  struct npi_stock *stock = &broker->stock;
  set_free(broker, segment);
  npi_segment_unlink(&segment->memory);
  DL_APPEND(stock->retired, segment);
  if (stock->retired_timer.due_ns == 0) npi_timer_begin(&broker->loop, &stock->retired_timer, 0);
}

void npi_stock_abandon(struct npi_broker *broker, struct npi_leased *segment) {
  set_free(broker, segment);
  destroy_segment(broker, segment, 1);
}

/* ---- ahead of demand ---- */

static int make_ready(struct npi_broker *broker, uint32_t node) {
  struct npi_leased *segment;
  int status = make_segment(broker, node, &segment);
  if (status != 0) return status;
  npi_stock_set_state(broker, segment, NPI_SEGMENT_READY);
  DL_APPEND(broker->stock.nodes[node].ready, segment);
  broker->stock.nodes[node].n_ready++;
  return 0;
}

static int wants_stock(const struct npi_broker *broker, uint32_t node) {
  return broker->stock.nodes[node].n_ready < broker->stock.ready_wanted && has_room(broker, node);
}

void npi_stock_plan(struct npi_broker *broker) {
  struct npi_stock *stock = &broker->stock;
  if (broker->draining || stock->timer.due_ns != 0) return;
  for (uint32_t i = 0; i < stock->n_nodes; i++) {
    if (!wants_stock(broker, i)) continue;
    npi_timer_begin(&broker->loop, &stock->timer, stock->failed ? STOCK_RETRY_NS : 0);
    return;
  }
}

/* One segment a turn: clients are served in between, and before it, for a while. */
static void replenish(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  uint64_t now_ns = npi_clock_monotonic();
  int is_busy = broker->loop.n_batch > 1 || broker->stock.made_turn == broker->loop.turn;
  if (is_busy && now_ns - broker->stock.stocked_ns < STOCK_PATIENCE_NS) {
    npi_timer_begin(&broker->loop, timer, STOCK_NAP_NS);
    return;
  }
  broker->stock.stocked_ns = now_ns;
  for (uint32_t i = 0; i < broker->stock.n_nodes; i++) {
    if (!wants_stock(broker, i)) continue;
    int status = make_ready(broker, i);
    if (status != 0 && !broker->stock.failed) {
      npi_log(NPI_LOG_WARNING, "memory.stock_short", "node=%d ready=%u wanted=%u reason=\"%s\"",
              broker->stock.nodes[i].id, broker->stock.nodes[i].n_ready, broker->stock.ready_wanted, npi_detail());
    }
    broker->stock.failed = status != 0;
    break;
  }
  npi_stock_plan(broker);
}

/* ---- taken ---- */

int npi_stock_would_hold_up(const struct npi_broker *broker, uint32_t home) {
  return broker->stock.made_turn == broker->loop.turn && broker->stock.nodes[home].ready == NULL;
}

/* A ready segment of the node, else a new one. > 0: the node's budget is spent. */
static int take_of_node(struct npi_broker *broker, uint32_t index, struct npi_leased **out) {
  struct npi_node *node = &broker->stock.nodes[index];
  if (node->ready != NULL) {
    *out = node->ready;
    DL_DELETE(node->ready, *out);
    node->n_ready--;
    return 0;
  }
  while (!has_room(broker, index) && broker->stock.retired != NULL) destroy_first_retired(broker);
  return has_room(broker, index) ? make_segment(broker, index, out) : 1;
}

int npi_stock_take(struct npi_broker *broker, uint32_t home, struct npi_leased **out) {
  int status = take_of_node(broker, home, out);
  if (status == 0) return 0;
  int failure = status < 0 ? status : 0;
  if (broker->config->numa.mode != NPI_NUMA_STRICT) {
    for (uint32_t i = 0; i < broker->stock.n_nodes; i++) {
      if (i == home) continue;
      status = take_of_node(broker, i, out);
      if (status == 0) return 0;
      if (status < 0) failure = status;
    }
  }
  if (failure != 0) return failure;
  const struct npi_node *node = &broker->stock.nodes[home];
  return npi_fail(NP_ERR_NO_MEMORY,
                  "the memory budget of node %d is spent: %" PRIu64 " of %" PRIu64
                  " bytes are leased; raise memory.per_node, or release events sooner",
                  node->id, node->leased_bytes,
                  (uint64_t)broker->config->memory.segments_per_node * broker->config->memory.segment);
}

void npi_stock_account(struct npi_broker *broker, const struct npi_leased *segment, int sign) {
  struct npi_node *node = &broker->stock.nodes[segment->node];
  node->leased_bytes += sign > 0 ? segment->memory.bytes : -segment->memory.bytes;
  show_node(broker, segment->node);
}

/* ---- beginning and end; a predecessor's ---- */

static int make_tables(struct npi_broker *broker) {
  struct npi_stock *stock = &broker->stock;
  const struct npi_config *config = broker->config;
  npi_timer_init(&stock->timer, replenish, broker);
  npi_timer_init(&stock->retired_timer, destroy_one, broker);
  int status = npi_index_pool_init(&stock->pool, broker->registry.n_segments);
  if (status != 0) return status;
  stock->nodes = calloc(broker->topology.n_nodes, sizeof *stock->nodes);
  if (stock->nodes == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for the table of nodes");
  stock->n_nodes = broker->topology.n_nodes;
  uint64_t wanted = (config->memory.ready + config->memory.segment - 1) / config->memory.segment;
  if (wanted > config->memory.segments_per_node) wanted = config->memory.segments_per_node;
  stock->ready_wanted = (uint32_t)wanted;
  for (uint32_t i = 0; i < stock->n_nodes; i++) stock->nodes[i].id = broker->topology.node[i].id;
  return 0;
}

int npi_stock_init(struct npi_broker *broker) {
  struct npi_stock *stock = &broker->stock;
  int status = make_tables(broker);
  if (status != 0) return status;
  uint64_t last_report = npi_clock_monotonic();
  for (uint32_t i = 0; i < stock->n_nodes; i++) {
    for (uint32_t k = 0; k < stock->ready_wanted; k++) {
      status = make_ready(broker, i);
      if (status != 0) return npi_trail(status, "ready memory of node %d", stock->nodes[i].id);
      uint64_t now = npi_clock_monotonic();
      if (now - last_report > UINT64_C(2000000000)) {
        npi_log(NPI_LOG_INFO, "memory.progress", "node=%d ready=%u wanted=%u", stock->nodes[i].id, k + 1,
                stock->ready_wanted);
        last_report = now;
      }
    }
    const struct npi_node *node = &stock->nodes[i];
    npi_log(node->pages_away > 0 ? NPI_LOG_WARNING : NPI_LOG_INFO, "memory.ready",
            "node=%d bytes=%" PRIu64 " segments=%u pages_home=%" PRIu64 " pages_away=%" PRIu64
            " pages_unknown=%" PRIu64,
            node->id, node->made_bytes, node->n_ready, node->pages_home, node->pages_away, node->pages_unknown);
  }
  return 0;
}

int npi_stock_init_adopted(struct npi_broker *broker, uint64_t next_object) {
  broker->stock.next_object = next_object;
  return make_tables(broker);
}

int npi_stock_adopt(struct npi_broker *broker, uint32_t index, const struct npi_segment_record *record, int fd,
                    struct npi_leased **out) {
  struct npi_node *node = &broker->stock.nodes[record->node];
  struct npi_leased *segment = calloc(1, sizeof *segment);
  if (segment == NULL) {
    close(fd);
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a segment's record");
  }
  segment->index = index;
  segment->version = record->version;
  segment->state = npi_load_relaxed_u32(&record->state);
  segment->node = record->node;
  segment->number = NPI_NONE;
  segment->object = record->object;
  struct npi_segment *memory = &segment->memory;
  npi_shm_name(memory->name, sizeof memory->name, broker->config->instance, geteuid(), "seg", (int64_t)record->object);
  memory->fd = fd;
  memory->readonly_fd = -1;
  memory->bytes = record->bytes;
  memory->page_bytes = record->page_bytes;
  memory->backend = broker->config->memory.backend;
  memory->node = broker->config->numa.mode == NPI_NUMA_OFF ? -1 : node->id;
  memory->bound = (int)record->bound;
  memory->pages_home = npi_load_relaxed_u64(&record->pages_home);
  memory->pages_away = npi_load_relaxed_u64(&record->pages_away);
  memory->pages_unknown = npi_load_relaxed_u64(&record->pages_unknown);
  int status = npi_memory_reopen_readonly(fd, &memory->readonly_fd);
  if (status != 0) {
    close(fd);
    free(segment);
    return status;
  }
  node->n_segments++;
  node->made_bytes += memory->bytes;
  node->pages_home += memory->pages_home;
  node->pages_away += memory->pages_away;
  node->pages_unknown += memory->pages_unknown;
  show_node(broker, record->node);
  if (segment->state == NPI_SEGMENT_READY) {
    DL_APPEND(node->ready, segment);
    node->n_ready++;
  }
  *out = segment;
  return 0;
}

void npi_stock_deinit(struct npi_broker *broker) {
  struct npi_stock *stock = &broker->stock;
  npi_timer_end(&broker->loop, &stock->timer);
  npi_timer_end(&broker->loop, &stock->retired_timer);
  while (stock->retired != NULL) destroy_first_retired(broker);
  for (uint32_t i = 0; i < stock->n_nodes; i++) {
    struct npi_leased *segment, *after;
    DL_FOREACH_SAFE(stock->nodes[i].ready, segment, after) {
      DL_DELETE(stock->nodes[i].ready, segment);
      set_free(broker, segment);
      destroy_segment(broker, segment, 0);
    }
  }
  free(stock->nodes);
  npi_index_pool_deinit(&stock->pool);
  memset(stock, 0, sizeof *stock);
}
