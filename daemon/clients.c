/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/clients.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/leases.h"
#include "daemon/session.h"
#include "os/os_clock.h"
#include "os/os_memory.h"
#include "os/os_process.h"
#include "os/os_wait.h"
#include "shm/leftovers.h"
#include "wire/channel.h"

/* ---- what a client owns ---- */

static int make_memory(struct npi_broker *broker, struct npi_client *client) {
  const struct npi_registry *registry = &broker->registry;
  const char *instance = broker->config->instance;
  char name[96];
  npi_shm_name(name, sizeof name, instance, geteuid(), "page", client->index);
  int status = npi_memory_create_memfd(name, registry->page_bytes, 0, &client->page_fd);
  /* Header and counters now; the rings' part as they are placed. Listener counters only where there are listeners. */
  uint64_t used = client->kind == NPI_CLIENT_WORKER ? registry->page_rings_offset : registry->page_listeners_offset;
  if (status == 0) status = npi_memory_reserve(client->page_fd, 0, npi_round_up(used, NPI_PAGE));
  if (status != 0) return npi_trail(status, "page of a client");
  npi_shm_name(name, sizeof name, instance, geteuid(), "ledger", client->index);
  status = npi_memory_create_memfd(name, registry->ledger_bytes, 0, &client->ledger_fd);
  if (status != 0) return npi_trail(status, "ledger of a client");
  status = npi_event_create(&client->events_fd);
  if (status == 0) status = npi_event_create(&client->credits_fd);
  return status;
}

/* What the broker itself needs of these. */
static int make_views(struct npi_broker *broker, struct npi_client *client) {
  const struct npi_registry *registry = &broker->registry;
  void *page = NULL;
  int status = npi_memory_reopen_readonly(client->page_fd, &client->page_readonly_fd);
  if (status == 0) status = npi_memory_map(client->page_fd, 0, registry->page_bytes, 1, &page);
  client->page = page;
  if (status != 0) return npi_trail(status, "page of a client");
  if (status == 0) {
    status = npi_ring_space_init(&client->rings, registry->page_rings_offset,
                                 registry->page_bytes - registry->page_rings_offset);
  }
  if (status != 0) return status;
  client->rows_used = calloc((registry->endpoints_per_client + 63) / 64, sizeof *client->rows_used);
  client->numbers = calloc(registry->segments_per_client, sizeof *client->numbers);
  if (client->rows_used == NULL || client->numbers == NULL) {
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a client's tables");
  }
  return 0;
}

static void free_objects(struct npi_broker *broker, struct npi_client *client) {
  npi_memory_unmap(client->page, broker->registry.page_bytes);
  npi_ring_space_deinit(&client->rings);
  free(client->rows_used);
  free(client->numbers);
  const int fds[] = {client->page_fd, client->page_readonly_fd, client->ledger_fd, client->events_fd,
                     client->credits_fd};
  for (size_t i = 0; i < NPI_ARRAY_COUNT(fds); i++) {
    if (fds[i] >= 0) close(fds[i]);
  }
}

int npi_client_new(struct npi_broker *broker, struct npi_session *session, uint32_t kind, uint32_t node, uint64_t token,
                   const char *name, struct npi_client **out) {
  int status;
  uint32_t version = 0;
  *out = NULL;
  uint32_t index = npi_index_take(&broker->client_pool, &version);
  if (index == NPI_NONE) {
    return npi_fail(NP_ERR_LIMIT, "%u clients are attached already; raise limits.clients", broker->client_pool.count);
  }
  struct npi_client *client = calloc(1, sizeof *client);
  if (client == NULL) {
    status = npi_fail(NP_ERR_NO_MEMORY, "no memory for a client");
    goto fail;
  }
  client->index = index;
  client->version = version;
  client->kind = kind;
  client->worker = kind == NPI_CLIENT_WORKER ? npi_workers_number(broker, session->pid) : NPI_NONE;
  client->node = node;
  client->pid = session->pid;
  client->uid = session->uid;
  client->token = token;
  client->broker = broker;
  client->page_fd = client->page_readonly_fd = client->ledger_fd = client->events_fd = client->credits_fd = -1;
  memcpy(client->name, name, sizeof client->name);
  status = make_memory(broker, client);
  if (status == 0) status = make_views(broker, client);
  if (status != 0) goto fail;

  struct npi_client_record *record = &broker->registry.clients[index];
  npi_store_relaxed_u32(&record->events_sent, 0);
  record->version = version;
  record->pid = (uint32_t)client->pid;
  record->uid = (uint32_t)client->uid;
  npi_process_start_time(client->pid, &record->start_time);
  record->connected_ns = npi_clock_realtime();
  record->node = node;
  record->kind = kind;
  npi_store_relaxed_u64(&record->leased_bytes, 0);
  record->budget_bytes = broker->config->memory.per_client;
  record->token = token;
  memcpy(record->name, client->name, sizeof record->name);
  record->gid = (uint32_t)session->gid;
  record->worker = client->worker;
  npi_store_relaxed_u32(&record->flags, 0);
  npi_store_relaxed_u32(&record->folded, 0);
  npi_store_relaxed_u64(&record->stopped_ns, 0);
  npi_store_relaxed_u64(&record->stopped_switches, 0);
  npi_store_relaxed_u32(&record->access, 0);
  npi_keep_client(client, session->pidfd);
  npi_store_release_u32(&record->state, NPI_RECORD_ACTIVE);
  broker->clients[index] = client;
  client->session = session;
  session->client = client;
  *out = client;
  return 0;

fail:
  if (client != NULL) free_objects(broker, client);
  free(client);
  npi_index_give(&broker->client_pool, index);
  return status;
}

int npi_client_adopt(struct npi_broker *broker, uint32_t index, const struct npi_client_record *record,
                     const int memory[4], struct npi_client **out) {
  struct npi_client *client = calloc(1, sizeof *client);
  int status = 0;
  *out = NULL;
  if (client == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a client");
  client->index = index;
  client->version = record->version;
  client->kind = record->kind;
  client->worker = record->worker;
  client->node = record->node;
  client->pid = (pid_t)record->pid;
  client->uid = (uid_t)record->uid;
  client->token = record->token;
  client->events_sent = npi_load_relaxed_u32(&record->events_sent);
  client->quarantined = (npi_load_relaxed_u32(&record->flags) & NPI_CLIENT_QUARANTINED) != 0;
  client->stopped_ns = npi_load_relaxed_u64(&record->stopped_ns);
  client->stopped_switches = npi_load_relaxed_u64(&record->stopped_switches);
  client->broker = broker;
  npi_registry_copy_name(client->name, sizeof client->name, record->name, sizeof record->name);
  client->page_fd = client->page_readonly_fd = client->ledger_fd = client->events_fd = client->credits_fd = -1;
  if (memory != NULL) {
    client->page_fd = memory[0];
    client->ledger_fd = memory[1];
    client->events_fd = memory[2];
    client->credits_fd = memory[3];
  } else {
    status = make_memory(broker, client);
  }
  if (status == 0) status = make_views(broker, client);
  if (status != 0) {
    free_objects(broker, client);
    free(client);
    return status;
  }
  broker->clients[index] = client;
  *out = client;
  return 0;
}

void npi_client_free(struct npi_broker *broker, struct npi_client *client) {
  struct npi_client_record *record = &broker->registry.clients[client->index];
  npi_store_release_u32(&record->state, NPI_RECORD_FREE);
  record->version = client->version + 1;
  npi_store_relaxed_u64(&record->leased_bytes, 0);
  npi_keep_drop(broker, NPI_KEPT_CLIENT, client->index, client->version);
  broker->clients[client->index] = NULL;
  npi_index_give(&broker->client_pool, client->index);
  free_objects(broker, client);
  free(client);
}

void npi_client_set_flag(struct npi_client *client, uint32_t flag, int on) {
  struct npi_atomic_u32 *flags = &client->broker->registry.clients[client->index].flags;
  uint32_t now = npi_load_relaxed_u32(flags);
  npi_store_relaxed_u32(flags, on ? now | flag : now & ~flag);
}

struct npi_client *npi_client_of_token(struct npi_broker *broker, pid_t pid, uint64_t token) {
  for (uint32_t i = 0; token != 0 && i < broker->registry.n_clients; i++) {
    struct npi_client *client = broker->clients[i];
    if (client != NULL && !client->gone && client->pid == pid && client->token == token) return client;
  }
  return NULL;
}

/* ---- rows of endpoint counters ---- */

struct npi_endpoint_counters *npi_client_row(const struct npi_client *client, uint32_t row) {
  return (struct npi_endpoint_counters *)(void *)(client->page + sizeof(struct npi_page_shm)) + row;
}

const struct npi_ring_block *npi_client_block(const struct npi_client *client, uint64_t offset) {
  return (const struct npi_ring_block *)(const void *)(client->page + offset);
}

int npi_client_take_row(struct npi_client *client, uint32_t *row) {
  uint32_t n = client->broker->registry.endpoints_per_client;
  for (uint32_t i = 0; i < n; i++) {
    if ((client->rows_used[i / 64] >> (i % 64) & 1) != 0) continue;
    client->rows_used[i / 64] |= UINT64_C(1) << (i % 64);
    struct npi_endpoint_counters *counters = npi_client_row(client, i);
    for (size_t k = 0; k < NPI_ARRAY_COUNT(counters->value); k++) npi_store_relaxed_u64(&counters->value[k], 0);
    *row = i;
    return 0;
  }
  return npi_fail(NP_ERR_LIMIT,
                  "client %u (%s) has %u publishers and subscribers open; raise limits.endpoints_per_client",
                  client->index, client->name, n);
}

void npi_client_claim_row(struct npi_client *client, uint32_t row) {
  client->rows_used[row / 64] |= UINT64_C(1) << (row % 64);
}

void npi_client_give_row(struct npi_client *client, uint32_t row) {
  client->rows_used[row / 64] &= ~(UINT64_C(1) << (row % 64));
}

/* ---- who shares memory with whom ---- */

struct npi_link *npi_client_link(const struct npi_client *client, const struct npi_client *peer) {
  struct npi_link *link;
  DL_FOREACH(client->links, link) {
    if (link->peer == peer) return link;
  }
  return NULL;
}

static struct npi_link *make_link(struct npi_client *client, struct npi_client *peer) {
  struct npi_link *link = npi_client_link(client, peer);
  if (link != NULL) return link;
  link = calloc(1, sizeof *link);
  if (link == NULL) return NULL;
  link->peer = peer;
  DL_APPEND(client->links, link);
  return link;
}

static void drop_link(struct npi_client *client, struct npi_link *link) {
  if (link == NULL || link->n_connections > 0) return;
  if (link->introduced) {
    struct npi_control_frame frame;
    npi_control_init(&frame, NPI_CONTROL_PEER_GONE, 0, 0);
    frame.body.peer_gone.client = link->peer->index;
    frame.body.peer_gone.client_version = link->peer->version;
    npi_session_event(client, &frame, NULL, 0);
  }
  DL_DELETE(client->links, link);
  free(link);
}

int npi_clients_prepare(struct npi_client *publisher, struct npi_client *subscriber) {
  struct npi_link *there = make_link(subscriber, publisher);
  struct npi_link *back = there == NULL ? NULL : make_link(publisher, subscriber);
  if (back == NULL) {
    drop_link(subscriber, there);
    return npi_fail(NP_ERR_NO_MEMORY, "no memory to introduce two clients");
  }
  there->n_connections++;
  if (back != there) back->n_connections++;
  return 0;
}

static void introduce(struct npi_client *client, struct npi_link *link) {
  struct npi_control_frame frame;
  const struct npi_client *peer = link->peer;
  if (link->introduced) return;
  npi_control_init(&frame, NPI_CONTROL_PEER, 0, 0);
  frame.body.peer.client = peer->index;
  frame.body.peer.client_version = peer->version;
  frame.body.peer.pid = (uint32_t)peer->pid;
  frame.body.peer.uid = (uint32_t)peer->uid;
  frame.body.peer.page_bytes = client->broker->registry.page_bytes;
  memcpy(frame.body.peer.name, peer->name, sizeof frame.body.peer.name);
  npi_session_event(client, &frame, (const int[]){peer->page_readonly_fd, peer->events_fd, peer->credits_fd}, 3);
  link->introduced = 1;
}

void npi_clients_introduce(struct npi_client *publisher, struct npi_client *subscriber) {
  struct npi_link *there = npi_client_link(subscriber, publisher);
  introduce(subscriber, there);
  if (!there->knows_segments) {
    struct npi_leased *segment;
    DL_FOREACH(publisher->segments, segment) npi_leases_show(segment, subscriber);
    there->knows_segments = 1;
  }
  introduce(publisher, npi_client_link(publisher, subscriber));
}

void npi_clients_part(struct npi_client *publisher, struct npi_client *subscriber) {
  struct npi_link *there = npi_client_link(subscriber, publisher);
  struct npi_link *back = npi_client_link(publisher, subscriber);
  there->n_connections--;
  if (back != there) back->n_connections--;
  drop_link(subscriber, there);
  if (back != there) drop_link(publisher, back);
}
