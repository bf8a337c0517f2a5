/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/stock.h"

#include <inttypes.h>
#include <stdio.h>
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

/* ---- one is made ---- */

static struct npi_segment_options options_of(const struct npi_broker *broker, uint32_t node) {
  const struct npi_config *config = broker->config;
  return (struct npi_segment_options){.backend = config->memory.backend,
                                      .numa = config->numa.mode,
                                      .huge = config->memory.huge_pages,
                                      .name = broker->stock.making_name,
                                      .bytes = config->memory.segment,
                                      .node = config->numa.mode == NPI_NUMA_OFF ? -1 : broker->stock.nodes[node].id};
}

/* It has a place, but nothing that anybody could see: no state, nothing kept. A successor removes what there is of it. */
static void forget_making(struct npi_broker *broker) {
  struct npi_leased *segment = broker->stock.making;
  broker->stock.making = NULL;
  broker->stock.nodes[segment->node].n_segments--;
  npi_index_give(&broker->stock.pool, segment->index);
  free(segment);
}

static int begin_making(struct npi_broker *broker, uint32_t node) {
  struct npi_stock *stock = &broker->stock;
  uint32_t version = 0, index = npi_index_take(&stock->pool, &version);
  if (index == NPI_NONE) return npi_fail(NP_ERR_LIMIT, "all %u segment records are in use", stock->pool.count);
  struct npi_leased *segment = calloc(1, sizeof *segment);
  if (segment == NULL) {
    npi_index_give(&stock->pool, index);
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a segment's record");
  }
  segment->index = index;
  segment->version = version;
  segment->node = node;
  segment->number = NPI_NONE;
  segment->object = stock->next_object++;
  npi_shm_name(stock->making_name, sizeof stock->making_name, broker->config->instance, geteuid(), "seg",
               (int64_t)segment->object);
  stock->making = segment;
  stock->nodes[node].n_segments++;
  struct npi_segment_options options = options_of(broker, node);
  int status = npi_segment_begin(&segment->memory, &options);
  if (status != 0) forget_making(broker);
  return status;
}

static void show_made(struct npi_broker *broker, struct npi_leased *segment) {
  struct npi_node *node = &broker->stock.nodes[segment->node];
  npi_segment_unmap(&segment->memory);
  node->made_bytes += segment->memory.bytes;
  node->pages_home += segment->memory.pages_home;
  node->pages_away += segment->memory.pages_away;
  node->pages_unknown += segment->memory.pages_unknown;
  if (!segment->memory.bound && broker->config->numa.mode != NPI_NUMA_OFF) {
    npi_store_relaxed_u32(&broker->registry.nodes[segment->node].bind_refused, 1);
  }
  struct npi_segment_record *record = &broker->registry.segments[segment->index];
  record->version = segment->version;
  record->node = segment->node;
  record->bound = (uint32_t)segment->memory.bound;
  record->object = segment->object;
  record->bytes = segment->memory.bytes;
  record->page_bytes = segment->memory.page_bytes;
  npi_store_relaxed_u64(&record->pages_home, segment->memory.pages_home);
  npi_store_relaxed_u64(&record->pages_away, segment->memory.pages_away);
  npi_store_relaxed_u64(&record->pages_unknown, segment->memory.pages_unknown);
  record->measured_ns = npi_clock_realtime();
  npi_keep_segment(broker, segment);
  show_node(broker, segment->node);
  npi_registry_count(&broker->registry, NPI_BROKER_SEGMENTS_MADE, 1);
}

/* A piece of what is being made; the last one makes it ready. */
static int go_on_making(struct npi_broker *broker) {
  struct npi_leased *segment = broker->stock.making;
  struct npi_node *node = &broker->stock.nodes[segment->node];
  struct npi_segment_options options = options_of(broker, segment->node);
  int status = npi_segment_go_on(&segment->memory, &options);
  if (status != 0) {
    forget_making(broker);
    return status;
  }
  if (segment->memory.made_bytes < segment->memory.bytes) return 0;
  broker->stock.making = NULL;
  show_made(broker, segment);
  npi_stock_set_state(broker, segment, NPI_SEGMENT_READY);
  DL_APPEND(node->ready, segment);
  node->n_ready++;
  return 0;
}

/* ---- one is destroyed ---- */

/* keep_pages: living clients may still use what they have mapped. */
static void destroy_segment(struct npi_broker *broker, struct npi_leased *segment, int keep_pages) {
  broker->stock.nodes[segment->node].n_segments--;
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

/* It is nobody's any more, and in no figure. What a successor finds of it, it destroys. */
static void set_free(struct npi_broker *broker, struct npi_leased *segment) {
  struct npi_node *node = &broker->stock.nodes[segment->node];
  segment->client = NULL;
  segment->number = NPI_NONE;
  npi_stock_set_state(broker, segment, NPI_SEGMENT_FREE);
  node->made_bytes -= segment->memory.bytes;
  node->pages_home -= segment->memory.pages_home;
  node->pages_away -= segment->memory.pages_away;
  node->pages_unknown -= segment->memory.pages_unknown;
  show_node(broker, segment->node);
}

/* ---- given back ---- */

static void destroy_first_retired(struct npi_broker *broker) {
  struct npi_leased *segment = broker->stock.retired;
  DL_DELETE(broker->stock.retired, segment);
  broker->stock.nodes[segment->node].n_retired--;
  destroy_segment(broker, segment, 0);
}

/* Some was made, or there is room: leases that wait for it go on. */
static void tell(struct npi_broker *broker, uint64_t failed_nodes) {
  if (broker->stock.on_change != NULL) broker->stock.on_change(broker, failed_nodes);
}

/* Giving pages back takes about as long as making them: piece by piece, and clients are served in between. */
static void give_back_some(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  struct npi_stock *stock = &broker->stock;
  uint64_t begin_ns = npi_clock_monotonic();
  int more = 1;
  while (more && npi_clock_monotonic() - begin_ns < NPI_TURN_NS)
    more = npi_segment_give_back_some(&stock->retired->memory);
  if (!more) {
    destroy_first_retired(broker);
    tell(broker, 0);
    npi_stock_plan(broker);
  }
  if (stock->retired != NULL) npi_timer_begin(&broker->loop, timer, 0);
}

void npi_stock_retire(struct npi_broker *broker, struct npi_leased *segment) {
  struct npi_stock *stock = &broker->stock;
  set_free(broker, segment);
  npi_segment_unlink(&segment->memory);
  DL_APPEND(stock->retired, segment);
  stock->nodes[segment->node].n_retired++;
  if (stock->retired_timer.due_ns == 0) npi_timer_begin(&broker->loop, &stock->retired_timer, 0);
}

void npi_stock_abandon(struct npi_broker *broker, struct npi_leased *segment) {
  set_free(broker, segment);
  destroy_segment(broker, segment, 1);
}

/* ---- ahead of demand ---- */

/* One that is made while huge pages are given back would get small ones, for good. */
static int should_wait(const struct npi_broker *broker, uint32_t node) {
  return broker->stock.nodes[node].n_retired > 0 && broker->config->memory.backend == NPI_BACKEND_MEMFD &&
         broker->config->memory.huge_pages == NPI_HUGE_AUTO;
}

static int wants_stock(const struct npi_broker *broker, uint32_t node) {
  return broker->stock.nodes[node].n_ready < broker->stock.ready_wanted && has_room(broker, node) &&
         !should_wait(broker, node);
}

void npi_stock_plan(struct npi_broker *broker) {
  struct npi_stock *stock = &broker->stock;
  if (broker->draining || stock->timer.due_ns != 0 || stock->making != NULL) return;
  for (uint32_t i = 0; i < stock->n_nodes; i++) {
    if (!wants_stock(broker, i)) continue;
    npi_timer_begin(&broker->loop, &stock->timer, stock->failed ? STOCK_RETRY_NS : 0);
    return;
  }
}

static void report_failure(struct npi_broker *broker, uint32_t node) {
  struct npi_stock *stock = &broker->stock;
  if (!stock->failed) {
    npi_log(NPI_LOG_WARNING, "memory.stock_short", "node=%d ready=%u wanted=%u reason=\"%s\"", stock->nodes[node].id,
            stock->nodes[node].n_ready, stock->ready_wanted, npi_detail());
  }
  stock->failed = 1;
}

/* For a while, clients come before it. */
static void replenish(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  struct npi_stock *stock = &broker->stock;
  uint64_t now_ns = npi_clock_monotonic();
  if (stock->making != NULL) return; /* planned again when that is made */
  if (broker->loop.n_batch > 1 && now_ns - stock->stocked_ns < STOCK_PATIENCE_NS) {
    npi_timer_begin(&broker->loop, timer, STOCK_NAP_NS);
    return;
  }
  stock->stocked_ns = now_ns;
  for (uint32_t i = 0; i < stock->n_nodes; i++) {
    if (!wants_stock(broker, i)) continue;
    if (begin_making(broker, i) == 0) {
      npi_timer_begin(&broker->loop, &stock->making_timer, 0);
      return;
    }
    report_failure(broker, i);
    break;
  }
  npi_stock_plan(broker);
}

/* What is being given back may be just what is missing. When it is there, who waits is told. */
static int comes_back(const struct npi_broker *broker, int status) {
  return status == NP_ERR_NO_MEMORY && broker->stock.retired != NULL;
}

static void make_some(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  struct npi_stock *stock = &broker->stock;
  uint32_t node = stock->making->node;
  uint64_t begin_ns = npi_clock_monotonic();
  int status = 0;
  while (status == 0 && stock->making != NULL && npi_clock_monotonic() - begin_ns < NPI_TURN_NS) {
    status = go_on_making(broker);
  }
  if (stock->making != NULL) {
    npi_timer_begin(&broker->loop, timer, 0);
    return;
  }
  if (status == 0) {
    stock->failed = 0;
    tell(broker, 0);
  } else if (!comes_back(broker, status)) {
    stock->nodes[node].failure = status;
    snprintf(stock->nodes[node].failure_text, sizeof stock->nodes[node].failure_text, "%s", npi_detail());
    if (broker->short_grants == NULL) report_failure(broker, node);
    tell(broker, UINT64_C(1) << node);
  }
  npi_stock_plan(broker);
}

/* ---- taken ---- */

_Static_assert(NPI_NODES_MAX <= 64, "nodes are bits of a word");

enum { NO_ROOM = NPI_STOCK_LATER + 1 };

/* A ready segment of the node; else one is made, if there is or will be room. */
static int take_of_node(struct npi_broker *broker, uint32_t index, uint64_t failed_nodes, struct npi_leased **out) {
  struct npi_stock *stock = &broker->stock;
  struct npi_node *node = &stock->nodes[index];
  if (node->ready != NULL) {
    *out = node->ready;
    DL_DELETE(node->ready, *out);
    node->n_ready--;
    return 0;
  }
  if ((failed_nodes >> index & 1) != 0) return npi_fail(node->failure, "%s", node->failure_text);
  if (stock->making != NULL) {
    return stock->making->node == index || has_room(broker, index) || node->n_retired > 0 ? NPI_STOCK_LATER : NO_ROOM;
  }
  if (!has_room(broker, index)) return node->n_retired > 0 ? NPI_STOCK_LATER : NO_ROOM;
  if (should_wait(broker, index)) return NPI_STOCK_LATER;
  int status = begin_making(broker, index);
  if (status != 0) return comes_back(broker, status) ? NPI_STOCK_LATER : status;
  npi_timer_begin(&broker->loop, &stock->making_timer, 0);
  return NPI_STOCK_LATER;
}

int npi_stock_take(struct npi_broker *broker, uint32_t home, uint64_t failed_nodes, struct npi_leased **out) {
  int status = take_of_node(broker, home, failed_nodes, out);
  if (status == 0 || status == NPI_STOCK_LATER) return status;
  int failure = status < 0 ? status : 0;
  if (broker->config->numa.mode != NPI_NUMA_STRICT) {
    for (uint32_t i = 0; i < broker->stock.n_nodes; i++) {
      if (i == home) continue;
      status = take_of_node(broker, i, failed_nodes, out);
      if (status == 0 || status == NPI_STOCK_LATER) return status;
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
  npi_timer_init(&stock->making_timer, make_some, broker);
  npi_timer_init(&stock->retired_timer, give_back_some, broker);
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

/* While nobody is there who would have to wait. */
static int make_ready(struct npi_broker *broker, uint32_t node) {
  int status = begin_making(broker, node);
  while (status == 0 && broker->stock.making != NULL) status = go_on_making(broker);
  return status;
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
  int status = make_tables(broker);
  /* The predecessor may have died between a record and the figures of its node. */
  for (uint32_t i = 0; status == 0 && i < broker->stock.n_nodes; i++) show_node(broker, i);
  return status;
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
  npi_timer_end(&broker->loop, &stock->making_timer);
  npi_timer_end(&broker->loop, &stock->retired_timer);
  if (stock->making != NULL) {
    npi_segment_destroy(&stock->making->memory);
    forget_making(broker);
  }
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
