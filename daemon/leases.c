/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/leases.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/clients.h"
#include "daemon/session.h"
#include "os/os_clock.h"
#include "os/os_memory.h"
#include "shm/leftovers.h"
#include "wire/channel.h"

#define GRANT_PATIENCE_NS UINT64_C(1000000000)
#define STOCK_NAP_NS      UINT64_C(1000000)
#define STOCK_PATIENCE_NS UINT64_C(50000000)
#define STOCK_RETRY_NS    UINT64_C(5000000000)

/* ---- one segment ---- */

static void show_node(struct npi_broker *broker, uint32_t index) {
  const struct npi_node *node = &broker->leases.nodes[index];
  struct npi_node_record *record = &broker->registry.nodes[index];
  npi_store_relaxed_u64(&record->made_bytes, node->made_bytes);
  npi_store_relaxed_u64(&record->leased_bytes, node->leased_bytes);
  npi_store_relaxed_u64(&record->pages_home, node->pages_home);
  npi_store_relaxed_u64(&record->pages_away, node->pages_away);
  npi_store_relaxed_u64(&record->pages_unknown, node->pages_unknown);
}

/* A record is filled before its state says that it counts, and taken down after: a successor checks what counts. */
static void set_state(struct npi_broker *broker, struct npi_leased *segment, enum npi_segment_state state) {
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

static void account(struct npi_client *client, struct npi_leased *segment, int sign);

static int has_room(const struct npi_broker *broker, uint32_t node) {
  return broker->leases.nodes[node].n_segments < broker->config->memory.segments_per_node;
}

static int make_segment(struct npi_broker *broker, uint32_t node_index, struct npi_leased **out) {
  struct npi_leases *leases = &broker->leases;
  struct npi_node *node = &leases->nodes[node_index];
  const struct npi_config *config = broker->config;
  char name[96];
  uint32_t version = 0;
  *out = NULL;
  uint32_t index = npi_index_take(&leases->pool, &version);
  if (index == NPI_NONE) return npi_fail(NP_ERR_LIMIT, "all %u segment records are in use", leases->pool.count);
  struct npi_leased *segment = calloc(1, sizeof *segment);
  int status = segment == NULL ? npi_fail(NP_ERR_NO_MEMORY, "no memory for a segment's record") : 0;
  if (status != 0) goto fail;
  segment->index = index;
  segment->version = version;
  segment->node = node_index;
  segment->number = NPI_NONE;
  segment->object = leases->next_object++;
  npi_shm_name(name, sizeof name, config->instance, geteuid(), "seg", (int64_t)segment->object);
  struct npi_segment_options options = {.backend = config->memory.backend,
                                        .numa = config->numa.mode,
                                        .huge = config->memory.huge_pages,
                                        .name = name,
                                        .bytes = config->memory.segment,
                                        .node = config->numa.mode == NPI_NUMA_OFF ? -1 : node->id};
  leases->made_turn = broker->loop.turn;
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
  npi_index_give(&leases->pool, index);
  return status;
}

/* keep_pages: living clients may still use what they have mapped. */
static void destroy_segment(struct npi_broker *broker, struct npi_leased *segment, int keep_pages) {
  struct npi_node *node = &broker->leases.nodes[segment->node];
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
  npi_index_give(&broker->leases.pool, segment->index);
  free(segment);
}

/* It is nobody's any more. What a successor finds of it, it destroys. */
static void set_free(struct npi_broker *broker, struct npi_leased *segment) {
  segment->client = NULL;
  segment->number = NPI_NONE;
  set_state(broker, segment, NPI_SEGMENT_FREE);
}

static void destroy_first_retired(struct npi_broker *broker) {
  struct npi_leased *segment = broker->leases.retired;
  DL_DELETE(broker->leases.retired, segment);
  destroy_segment(broker, segment, 0);
}

/* Giving pages back takes as long as making them: one segment a turn, and clients are served in between. */
static void destroy_one(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  if (broker->leases.retired != NULL) destroy_first_retired(broker); /* a lease may have needed the room before */
  if (broker->leases.retired != NULL) npi_timer_begin(&broker->loop, timer, 0);
}

static void retire(struct npi_broker *broker, struct npi_leased *segment) {
  struct npi_leases *leases = &broker->leases;
  set_free(broker, segment);
  npi_segment_unlink(&segment->memory);
  DL_APPEND(leases->retired, segment);
  if (leases->retired_timer.due_ns == 0) npi_timer_begin(&broker->loop, &leases->retired_timer, 0);
}

/* ---- the stock ---- */

static int make_ready(struct npi_broker *broker, uint32_t node) {
  struct npi_leased *segment;
  int status = make_segment(broker, node, &segment);
  if (status != 0) return status;
  set_state(broker, segment, NPI_SEGMENT_READY);
  DL_APPEND(broker->leases.nodes[node].ready, segment);
  broker->leases.nodes[node].n_ready++;
  return 0;
}

static int wants_stock(const struct npi_broker *broker, uint32_t node) {
  return broker->leases.nodes[node].n_ready < broker->leases.ready_wanted && has_room(broker, node);
}

static void plan_stock(struct npi_broker *broker) {
  struct npi_leases *leases = &broker->leases;
  if (broker->draining || leases->stock_timer.due_ns != 0) return;
  for (uint32_t i = 0; i < leases->n_nodes; i++) {
    if (!wants_stock(broker, i)) continue;
    npi_timer_begin(&broker->loop, &leases->stock_timer, leases->stock_failed ? STOCK_RETRY_NS : 0);
    return;
  }
}

/* One segment a turn: clients are served in between, and before it, for a while. */
static void replenish(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  uint64_t now_ns = npi_clock_monotonic();
  int is_busy = broker->loop.n_batch > 1 || broker->leases.made_turn == broker->loop.turn;
  if (is_busy && now_ns - broker->leases.stocked_ns < STOCK_PATIENCE_NS) {
    npi_timer_begin(&broker->loop, timer, STOCK_NAP_NS);
    return;
  }
  broker->leases.stocked_ns = now_ns;
  for (uint32_t i = 0; i < broker->leases.n_nodes; i++) {
    if (!wants_stock(broker, i)) continue;
    int status = make_ready(broker, i);
    if (status != 0 && !broker->leases.stock_failed) {
      npi_log(NPI_LOG_WARNING, "memory.stock_short", "node=%d ready=%u wanted=%u reason=\"%s\"",
              broker->leases.nodes[i].id, broker->leases.nodes[i].n_ready, broker->leases.ready_wanted, npi_detail());
    }
    broker->leases.stock_failed = status != 0;
    break;
  }
  plan_stock(broker);
}

static int make_tables(struct npi_broker *broker) {
  struct npi_leases *leases = &broker->leases;
  const struct npi_config *config = broker->config;
  npi_timer_init(&leases->stock_timer, replenish, broker);
  npi_timer_init(&leases->retired_timer, destroy_one, broker);
  int status = npi_index_pool_init(&leases->pool, broker->registry.n_segments);
  if (status != 0) return status;
  leases->nodes = calloc(broker->topology.n_nodes, sizeof *leases->nodes);
  if (leases->nodes == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for the table of nodes");
  leases->n_nodes = broker->topology.n_nodes;
  uint64_t wanted = (config->memory.ready + config->memory.segment - 1) / config->memory.segment;
  if (wanted > config->memory.segments_per_node) wanted = config->memory.segments_per_node;
  leases->ready_wanted = (uint32_t)wanted;
  for (uint32_t i = 0; i < leases->n_nodes; i++) leases->nodes[i].id = broker->topology.node[i].id;
  return 0;
}

int npi_leases_init(struct npi_broker *broker) {
  struct npi_leases *leases = &broker->leases;
  int status = make_tables(broker);
  if (status != 0) return status;
  uint64_t last_report = npi_clock_monotonic();
  for (uint32_t i = 0; i < leases->n_nodes; i++) {
    for (uint32_t k = 0; k < leases->ready_wanted; k++) {
      status = make_ready(broker, i);
      if (status != 0) return npi_trail(status, "ready memory of node %d", leases->nodes[i].id);
      uint64_t now = npi_clock_monotonic();
      if (now - last_report > UINT64_C(2000000000)) {
        npi_log(NPI_LOG_INFO, "memory.progress", "node=%d ready=%u wanted=%u", leases->nodes[i].id, k + 1,
                leases->ready_wanted);
        last_report = now;
      }
    }
    const struct npi_node *node = &leases->nodes[i];
    npi_log(node->pages_away > 0 ? NPI_LOG_WARNING : NPI_LOG_INFO, "memory.ready",
            "node=%d bytes=%" PRIu64 " segments=%u pages_home=%" PRIu64 " pages_away=%" PRIu64
            " pages_unknown=%" PRIu64,
            node->id, node->made_bytes, node->n_ready, node->pages_home, node->pages_away, node->pages_unknown);
  }
  return 0;
}

/* ---- a predecessor's ---- */

int npi_leases_init_adopted(struct npi_broker *broker, uint64_t next_object) {
  broker->leases.next_object = next_object;
  return make_tables(broker);
}

void npi_leases_plan_stock(struct npi_broker *broker) {
  plan_stock(broker);
}

int npi_leases_adopt(struct npi_broker *broker, uint32_t index, const struct npi_segment_record *record,
                     struct npi_client *client, int fd) {
  struct npi_node *node = &broker->leases.nodes[record->node];
  struct npi_leased *segment = calloc(1, sizeof *segment);
  if (segment == NULL) {
    close(fd);
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a segment's record");
  }
  segment->index = index;
  segment->version = record->version;
  segment->state = npi_load_relaxed_u32(&record->state);
  segment->node = record->node;
  segment->number = client != NULL ? record->number : NPI_NONE;
  segment->object = record->object;
  segment->client = client;
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
  if (client == NULL) {
    DL_APPEND(node->ready, segment);
    node->n_ready++;
    show_node(broker, record->node);
    return 0;
  }
  client->numbers[segment->number] = segment;
  DL_APPEND(client->segments, segment);
  account(client, segment, 1);
  return 0;
}

void npi_leases_deinit(struct npi_broker *broker) {
  struct npi_leases *leases = &broker->leases;
  npi_timer_end(&broker->loop, &leases->stock_timer);
  npi_timer_end(&broker->loop, &leases->retired_timer);
  while (leases->retired != NULL) destroy_first_retired(broker);
  for (uint32_t i = 0; i < leases->n_nodes; i++) {
    struct npi_leased *segment, *after;
    DL_FOREACH_SAFE(leases->nodes[i].ready, segment, after) {
      DL_DELETE(leases->nodes[i].ready, segment);
      set_free(broker, segment);
      destroy_segment(broker, segment, 0);
    }
  }
  for (uint32_t i = 0; broker->clients != NULL && i < broker->registry.n_clients; i++) {
    struct npi_leased *segment, *after;
    if (broker->clients[i] == NULL) continue;
    DL_FOREACH_SAFE(broker->clients[i]->segments, segment, after) {
      DL_DELETE(broker->clients[i]->segments, segment);
      set_free(broker, segment);
      destroy_segment(broker, segment, 1);
    }
  }
  free(leases->nodes);
  npi_index_pool_deinit(&leases->pool);
  memset(leases, 0, sizeof *leases);
}

/* ---- taking and giving back ---- */

/* A ready segment of the node, else a new one. > 0: the node's budget is spent. */
static int take_of_node(struct npi_broker *broker, uint32_t index, struct npi_leased **out) {
  struct npi_node *node = &broker->leases.nodes[index];
  if (node->ready != NULL) {
    *out = node->ready;
    DL_DELETE(node->ready, *out);
    node->n_ready--;
    return 0;
  }
  while (!has_room(broker, index) && broker->leases.retired != NULL) destroy_first_retired(broker);
  return has_room(broker, index) ? make_segment(broker, index, out) : 1;
}

static int take_segment(struct npi_client *client, struct npi_leased **out) {
  struct npi_broker *broker = client->broker;
  int status = take_of_node(broker, client->node, out);
  if (status == 0) return 0;
  int failure = status < 0 ? status : 0;
  if (broker->config->numa.mode != NPI_NUMA_STRICT) {
    for (uint32_t i = 0; i < broker->leases.n_nodes; i++) {
      if (i == client->node) continue;
      status = take_of_node(broker, i, out);
      if (status == 0) return 0;
      if (status < 0) failure = status;
    }
  }
  if (failure != 0) return failure;
  const struct npi_node *node = &broker->leases.nodes[client->node];
  return npi_fail(NP_ERR_NO_MEMORY,
                  "the memory budget of node %d is spent: %" PRIu64 " of %" PRIu64
                  " bytes are leased; raise memory.per_node, or release events sooner",
                  node->id, node->leased_bytes,
                  (uint64_t)broker->config->memory.segments_per_node * broker->config->memory.segment);
}

static void account(struct npi_client *client, struct npi_leased *segment, int sign) {
  struct npi_broker *broker = client->broker;
  uint64_t bytes = sign > 0 ? segment->memory.bytes : -segment->memory.bytes;
  client->leased_bytes += bytes;
  broker->leases.nodes[segment->node].leased_bytes += bytes;
  npi_store_relaxed_u64(&broker->registry.clients[client->index].leased_bytes, client->leased_bytes);
  show_node(broker, segment->node);
}

static void give_to(struct npi_client *client, struct npi_leased *segment) {
  uint32_t number = 0;
  while (client->numbers[number] != NULL) number++; /* the caller made sure that one is free */
  client->numbers[number] = segment;
  segment->number = number;
  segment->client = client;
  DL_APPEND(client->segments, segment);
  account(client, segment, 1);
  set_state(client->broker, segment, NPI_SEGMENT_LEASED);
}

static void fill_segment_frame(struct npi_control_frame *frame, enum npi_control_type type,
                               const struct npi_leased *segment) {
  npi_control_init(frame, type, 0, 0);
  frame->body.segment.client = segment->client->index;
  frame->body.segment.client_version = segment->client->version;
  frame->body.segment.number = segment->number;
  frame->body.segment.node = segment->node;
  frame->body.segment.bytes = segment->memory.bytes;
}

void npi_leases_show(const struct npi_leased *segment, struct npi_client *to) {
  struct npi_control_frame frame;
  fill_segment_frame(&frame, NPI_CONTROL_SEGMENT, segment);
  npi_session_event(to, &frame, &segment->memory.readonly_fd, 1);
}

static int knows_segments(const struct npi_client *peer, const struct npi_client *client) {
  const struct npi_link *link = npi_client_link(peer, client);
  return link != NULL && link->knows_segments;
}

/* Hides it from its readers and destroys it. */
static void take_back(struct npi_leased *segment) {
  struct npi_client *client = segment->client;
  struct npi_control_frame frame;
  struct npi_link *link;
  fill_segment_frame(&frame, NPI_CONTROL_SEGMENT_GONE, segment);
  DL_FOREACH(client->links, link) {
    if (knows_segments(link->peer, client)) npi_session_event(link->peer, &frame, NULL, 0);
  }
  account(client, segment, -1);
  client->numbers[segment->number] = NULL;
  DL_DELETE(client->segments, segment);
  retire(client->broker, segment);
}

int npi_leases_give_back(struct npi_client *client, uint32_t number) {
  struct npi_leased *segment = number < client->broker->registry.segments_per_client ? client->numbers[number] : NULL;
  if (segment == NULL) {
    return npi_fail(NP_ERR_NOT_FOUND, "client %u (%s) has no segment number %u", client->index, client->name, number);
  }
  take_back(segment);
  npi_registry_count(&client->broker->registry, NPI_BROKER_RETURNS, 1);
  plan_stock(client->broker);
  return 0;
}

void npi_leases_take_back_unnamed(struct npi_client *client) {
  struct npi_leased *segment, *after;
  DL_FOREACH_SAFE(client->segments, segment, after) {
    if (!segment->named) take_back(segment);
  }
  plan_stock(client->broker);
}

void npi_leases_tell_gone(struct npi_client *client, uint32_t number) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_SEGMENT_GONE, 0, 0);
  frame.body.segment.client = client->index;
  frame.body.segment.client_version = client->version;
  frame.body.segment.number = number;
  npi_session_event(client, &frame, NULL, 0);
}

void npi_leases_drain(struct npi_client *client) {
  struct npi_leased *segment;
  DL_FOREACH(client->segments, segment) set_state(client->broker, segment, NPI_SEGMENT_DRAINING);
}

void npi_leases_destroy_all(struct npi_client *client) {
  struct npi_leased *segment, *after;
  DL_FOREACH_SAFE(client->segments, segment, after) take_back(segment);
  plan_stock(client->broker);
}

/* ---- leases ---- */

static void free_grant(struct npi_client *client) {
  struct npi_grant *grant = client->grant;
  npi_timer_end(&client->broker->loop, &grant->timer);
  client->grant = NULL;
  client->broker->leases.n_grants--;
  free(grant->segments);
  free(grant->waits);
  free(grant);
  if (client->session != NULL) npi_session_update_watch(client->session);
}

void npi_leases_cancel(struct npi_client *client) {
  struct npi_grant *grant = client->grant;
  if (grant == NULL) return;
  for (uint32_t i = 0; i < grant->n_segments; i++) take_back(grant->segments[i]);
  free_grant(client);
  plan_stock(client->broker);
}

static void complete(struct npi_client *client) {
  struct npi_grant *grant = client->grant;
  struct npi_control_frame frame;
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < grant->n_segments; i++) {
    const struct npi_leased *segment = grant->segments[i];
    bytes += segment->memory.bytes;
    fill_segment_frame(&frame, NPI_CONTROL_OWN_SEGMENT, segment);
    npi_session_event(client, &frame, &segment->memory.fd, 1);
  }
  npi_registry_count(&client->broker->registry, NPI_BROKER_LEASES, grant->n_segments);
  if (grant->request != 0) {
    npi_control_init(&frame, NPI_CONTROL_LEASE, grant->request, 0);
    frame.body.lease_reply.bytes = bytes;
    frame.body.lease_reply.segments = grant->n_segments;
    npi_session_reply(client->session, &frame, NULL, 0);
  }
  npi_log(NPI_LOG_DEBUG, "lease.granted", "client=%u name=%s segments=%u bytes=%" PRIu64 " total=%" PRIu64,
          client->index, client->name, grant->n_segments, bytes, client->leased_bytes);
  free_grant(client);
  plan_stock(client->broker);
}

/*
 * Whether the subscriber cannot know a segment of this grant yet: it is in its queue, or it is away and will be told
 * when it comes back.
 */
static int is_behind(const struct npi_client *peer, const struct npi_grant_wait *wait) {
  const struct npi_session *session = peer->session;
  if (session == NULL) return 0;
  if (!npi_session_reachable(peer)) return !session->not_awaited;
  return session->serial == wait->session ? session->n_sent < wait->target : session->queue != NULL;
}

/* The first subscriber that is behind; those that are there before those that are away. */
static struct npi_client *waits_for(const struct npi_client *client) {
  const struct npi_grant *grant = client->grant;
  struct npi_client *away = NULL;
  for (uint32_t i = 0; i < grant->n_waits; i++) {
    const struct npi_grant_wait *wait = &grant->waits[i];
    struct npi_client *peer = client->broker->clients[wait->client];
    if (peer == NULL || peer->version != wait->version || !is_behind(peer, wait)) continue;
    if (npi_session_reachable(peer)) return peer;
    away = peer;
  }
  return away;
}

void npi_leases_progress(struct npi_broker *broker) {
  for (uint32_t i = 0; broker->leases.n_grants > 0 && i < broker->registry.n_clients; i++) {
    struct npi_client *client = broker->clients[i];
    if (client == NULL || client->grant == NULL || client->grant->n_segments < client->grant->wanted) continue;
    if (waits_for(client) == NULL) complete(client);
  }
}

static void give_up(struct npi_timer *timer) {
  struct npi_client *client = timer->owner;
  struct npi_client *peer = waits_for(client);
  uint32_t request = client->grant->request;
  /*
   * Who is away is stopped, or will never come back: it asks before it looks at events again, and that is answered with
   * all segments. Once is enough to find that out.
   */
  while (peer != NULL && !npi_session_reachable(peer)) {
    peer->session->not_awaited = 1;
    peer = waits_for(client);
  }
  if (peer == NULL) {
    complete(client);
    return;
  }
  npi_fail(NP_ERR_LIMIT,
           "subscriber %u (%s, process %d) does not read its control socket, so it cannot be shown new memory; is it "
           "stopped?",
           peer->index, peer->name, (int)peer->pid);
  npi_registry_count(&client->broker->registry, NPI_BROKER_QUEUE_FULL, 1);
  npi_registry_count(&client->broker->registry, NPI_BROKER_LEASES_REFUSED, 1);
  struct npi_control_frame asked;
  npi_control_init(&asked, NPI_CONTROL_LEASE, request, 0);
  if (request != 0 && client->session != NULL) npi_session_refuse(client->session, &asked, NP_ERR_LIMIT);
  npi_leases_cancel(client);
}

/* How many segments the budgets of the client allow. */
static int check_budget(const struct npi_client *client, uint64_t bytes, uint32_t *n) {
  const struct npi_config *config = client->broker->config;
  uint64_t budget = config->memory.per_client, size = config->memory.segment;
  uint64_t left = budget > client->leased_bytes ? (budget - client->leased_bytes) / size : 0;
  if (left == 0) {
    return npi_fail(NP_ERR_LIMIT,
                    "client %u (%s) has leased %" PRIu64 " of its budget of %" PRIu64
                    " bytes, and a segment has %" PRIu64 "; raise memory.per_client, or release events sooner",
                    client->index, client->name, client->leased_bytes, budget, size);
  }
  uint64_t wanted = bytes / size + (bytes % size != 0);
  if (wanted == 0) wanted = 1;
  *n = (uint32_t)(wanted < left ? wanted : left);
  return 0;
}

static int begin_grant(struct npi_client *client, uint32_t request, uint32_t n) {
  struct npi_grant *grant = calloc(1, sizeof *grant);
  if (grant != NULL) grant->segments = calloc(n, sizeof *grant->segments);
  if (grant == NULL || grant->segments == NULL) {
    free(grant);
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a lease");
  }
  grant->request = request;
  grant->wanted = n;
  npi_timer_init(&grant->timer, NULL, client);
  client->grant = grant;
  client->broker->leases.n_grants++;
  return 0;
}

/* All are made, and those who must know them were sent them: now they have to arrive. */
static void await_subscribers(struct npi_client *client) {
  struct npi_grant *grant = client->grant;
  struct npi_link *link;
  uint32_t n_links = 1;
  DL_FOREACH(client->links, link) n_links++;
  grant->waits = calloc(n_links, sizeof *grant->waits);
  if (grant->waits == NULL) {
    struct npi_control_frame asked;
    npi_control_init(&asked, NPI_CONTROL_LEASE, grant->request, 0);
    npi_fail(NP_ERR_NO_MEMORY, "no memory for a lease");
    if (grant->request != 0 && client->session != NULL) npi_session_refuse(client->session, &asked, NP_ERR_NO_MEMORY);
    npi_leases_cancel(client);
    return;
  }
  DL_FOREACH(client->links, link) {
    const struct npi_session *session = link->peer->session;
    if (!knows_segments(link->peer, client) || session == NULL) continue;
    grant->waits[grant->n_waits++] =
        (struct npi_grant_wait){link->peer->index, link->peer->version, session->serial, session->n_put};
  }
  if (waits_for(client) == NULL) {
    complete(client);
    return;
  }
  npi_timer_init(&grant->timer, give_up, client);
  npi_timer_begin(&client->broker->loop, &grant->timer, GRANT_PATIENCE_NS);
  npi_session_update_watch(client->session);
}

static void make_on(struct npi_timer *timer);

/*
 * Makes the segments of the grant, one a turn where none is ready; the rest in later turns, so that others are served
 * in between. Fewer than wanted will do, where there are not more. The status is why there is none.
 */
static int make_some(struct npi_client *client) {
  struct npi_broker *broker = client->broker;
  struct npi_grant *grant = client->grant;
  struct npi_link *link;
  int status = 0;
  while (grant->n_segments < grant->wanted) {
    struct npi_leased *segment;
    if (broker->leases.made_turn == broker->loop.turn && broker->leases.nodes[client->node].ready == NULL) {
      npi_timer_init(&grant->timer, make_on, client);
      npi_timer_begin(&broker->loop, &grant->timer, 0);
      if (client->session != NULL) npi_session_update_watch(client->session);
      return 0;
    }
    status = take_segment(client, &segment);
    if (status != 0) break;
    give_to(client, segment);
    grant->segments[grant->n_segments++] = segment;
    DL_FOREACH(client->links, link) {
      if (knows_segments(link->peer, client)) npi_leases_show(segment, link->peer);
    }
  }
  grant->wanted = grant->n_segments;
  if (grant->wanted == 0) {
    free_grant(client);
    return status;
  }
  await_subscribers(client);
  return 0;
}

static void make_on(struct npi_timer *timer) {
  struct npi_client *client = timer->owner;
  struct npi_control_frame asked;
  npi_control_init(&asked, NPI_CONTROL_LEASE, client->grant->request, 0);
  int status = make_some(client);
  if (status == 0) return;
  npi_registry_count(&client->broker->registry, NPI_BROKER_LEASES_REFUSED, 1);
  if (asked.head.request != 0 && client->session != NULL) npi_session_refuse(client->session, &asked, status);
}

static int lease(struct npi_client *client, uint64_t bytes, uint32_t request) {
  struct npi_link *link;
  uint32_t n = 0;
  if (client->grant != NULL) return npi_fail(NP_ERR_STATE, "a lease of this client waits for an answer already");
  int status = check_budget(client, bytes, &n);
  DL_FOREACH(client->links, link) {
    if (status == 0 && knows_segments(link->peer, client)) status = npi_session_check_room(link->peer, n);
  }
  if (status == 0) status = begin_grant(client, request, n);
  return status == 0 ? make_some(client) : status;
}

int npi_leases_lease(struct npi_client *client, uint64_t bytes, uint32_t request) {
  int status = lease(client, bytes, request);
  if (status != 0) npi_registry_count(&client->broker->registry, NPI_BROKER_LEASES_REFUSED, 1);
  return status;
}
