/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/leases.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/clients.h"
#include "daemon/session.h"
#include "wire/channel.h"

#define GRANT_PATIENCE_NS UINT64_C(1000000000)

/* ---- segments of a client ---- */

static void account(struct npi_client *client, struct npi_leased *segment, int sign) {
  struct npi_broker *broker = client->broker;
  client->leased_bytes += sign > 0 ? segment->memory.bytes : -segment->memory.bytes;
  npi_store_relaxed_u64(&broker->registry.clients[client->index].leased_bytes, client->leased_bytes);
  npi_stock_account(broker, segment, sign);
}

static void give_to(struct npi_client *client, struct npi_leased *segment) {
  uint32_t number = 0;
  while (client->numbers[number] != NULL) number++; /* the caller made sure that one is free */
  client->numbers[number] = segment;
  segment->number = number;
  segment->client = client;
  DL_APPEND(client->segments, segment);
  account(client, segment, 1);
  npi_stock_set_state(client->broker, segment, NPI_SEGMENT_LEASED);
}

void npi_leases_adopt(struct npi_client *client, struct npi_leased *segment, uint32_t number) {
  segment->client = client;
  segment->number = number;
  client->numbers[number] = segment;
  DL_APPEND(client->segments, segment);
  account(client, segment, 1);
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
  npi_stock_retire(client->broker, segment);
}

int npi_leases_give_back(struct npi_client *client, uint32_t number) {
  struct npi_leased *segment = number < client->broker->registry.segments_per_client ? client->numbers[number] : NULL;
  if (segment == NULL) {
    return npi_fail(NP_ERR_NOT_FOUND, "client %u (%s) has no segment number %u", client->index, client->name, number);
  }
  take_back(segment);
  npi_registry_count(&client->broker->registry, NPI_BROKER_RETURNS, 1);
  npi_stock_plan(client->broker);
  return 0;
}

void npi_leases_take_back_unnamed(struct npi_client *client) {
  struct npi_leased *segment, *after;
  DL_FOREACH_SAFE(client->segments, segment, after) {
    if (!segment->named) take_back(segment);
  }
  npi_stock_plan(client->broker);
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
  DL_FOREACH(client->segments, segment) npi_stock_set_state(client->broker, segment, NPI_SEGMENT_DRAINING);
}

void npi_leases_destroy_all(struct npi_client *client) {
  struct npi_leased *segment, *after;
  DL_FOREACH_SAFE(client->segments, segment, after) take_back(segment);
  npi_stock_plan(client->broker);
}

/* ---- leases ---- */

static void free_grant(struct npi_client *client) {
  struct npi_grant *grant = client->grant;
  npi_timer_end(&client->broker->loop, &grant->timer);
  if (grant->waits_for_stock) DL_DELETE(client->broker->short_grants, grant);
  client->grant = NULL;
  client->broker->n_grants--;
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
  npi_stock_plan(client->broker);
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
  npi_stock_plan(client->broker);
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
  for (uint32_t i = 0; broker->n_grants > 0 && i < broker->registry.n_clients; i++) {
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
  grant->client = client;
  grant->turn = ++client->broker->grant_turns;
  grant->request = request;
  grant->wanted = n;
  npi_timer_init(&grant->timer, NULL, client);
  client->grant = grant;
  client->broker->n_grants++;
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

static int by_turn(const struct npi_grant *a, const struct npi_grant *b) {
  return (a->turn > b->turn) - (a->turn < b->turn);
}

/*
 * Takes the segments of the grant from the stock, as far as they are ready; goes on when there are others. Fewer than
 * wanted will do, where there are not more. The status is why there is none.
 */
static int take_some(struct npi_client *client) {
  struct npi_broker *broker = client->broker;
  struct npi_grant *grant = client->grant;
  struct npi_link *link;
  int status = 0;
  while (grant->n_segments < grant->wanted) {
    struct npi_leased *segment;
    status = npi_stock_take(broker, client->node, grant->failed_nodes, &segment);
    if (status == NPI_STOCK_LATER) {
      DL_INSERT_INORDER(broker->short_grants, grant, by_turn);
      grant->waits_for_stock = 1;
      if (client->session != NULL) npi_session_update_watch(client->session);
      return 0;
    }
    if (status != 0) break;
    give_to(client, segment);
    grant->segments[grant->n_segments++] = segment;
    grant->turn = ++broker->grant_turns;
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

/*
 * Whoever got a segment comes after all others, so one that wants many takes turns with those that want few. Answers are
 * only queued: nothing ends a grant in here but its own try.
 */
void npi_leases_go_on(struct npi_broker *broker, uint64_t failed_nodes) {
  struct npi_grant *grant, *next;
  DL_FOREACH(broker->short_grants, grant) grant->failed_nodes |= failed_nodes;
  DL_FOREACH_SAFE(broker->short_grants, grant, next) {
    struct npi_client *client = grant->client;
    struct npi_control_frame asked;
    npi_control_init(&asked, NPI_CONTROL_LEASE, grant->request, 0);
    DL_DELETE(broker->short_grants, grant);
    grant->waits_for_stock = 0;
    int status = take_some(client);
    if (status == 0) continue;
    npi_registry_count(&broker->registry, NPI_BROKER_LEASES_REFUSED, 1);
    if (asked.head.request == 0) {
      npi_log(NPI_LOG_WARNING, "lease.not_reserved", "client=%u name=%s reason=\"%s\"", client->index, client->name,
              npi_detail());
    } else if (client->session != NULL) {
      npi_session_refuse(client->session, &asked, status);
    }
  }
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
  return status == 0 ? take_some(client) : status;
}

int npi_leases_lease(struct npi_client *client, uint64_t bytes, uint32_t request) {
  int status = lease(client, bytes, request);
  if (status != 0) npi_registry_count(&client->broker->registry, NPI_BROKER_LEASES_REFUSED, 1);
  return status;
}

void npi_leases_deinit(struct npi_broker *broker) {
  for (uint32_t i = 0; broker->clients != NULL && i < broker->registry.n_clients; i++) {
    struct npi_leased *segment, *after;
    if (broker->clients[i] == NULL) continue;
    DL_FOREACH_SAFE(broker->clients[i]->segments, segment, after) {
      DL_DELETE(broker->clients[i]->segments, segment);
      npi_stock_abandon(broker, segment);
    }
  }
}
