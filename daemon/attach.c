/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/attach.h"

#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/channels.h"
#include "daemon/clients.h"
#include "daemon/connections.h"
#include "daemon/leases.h"
#include "daemon/reaper.h"
#include "os/os_process.h"
#include "wire/channel.h"

/* ---- who it was ---- */

static int find_client(const struct npi_session *session, const struct npi_control_frame *frame,
                       struct npi_client **out) {
  struct npi_broker *broker = session->broker;
  uint32_t index = frame->body.attach.client;
  *out = NULL;
  if (frame->body.attach.layout_version != NPI_LAYOUT_VERSION) {
    return npi_fail(NP_ERR_VERSION, "the client was built for shared-memory layout version %u, this broker has %u",
                    frame->body.attach.layout_version, NPI_LAYOUT_VERSION);
  }
  if (frame->body.attach.instance_id != broker->registry.header->instance_id) {
    return npi_fail(NP_ERR_NOT_FOUND,
                    "this instance began anew, and nothing of its earlier life is left; close all handles and connect "
                    "again");
  }
  struct npi_client *client = index < broker->registry.n_clients ? broker->clients[index] : NULL;
  if (client == NULL || client->gone || client->version != frame->body.attach.client_version ||
      client->token != frame->body.attach.token || client->kind != frame->body.attach.kind ||
      client->pid != session->pid || client->session == NULL || npi_process_is_dead(client->session->pidfd) != 0) {
    return npi_fail(NP_ERR_NOT_FOUND,
                    "process %d is not client %u of version %u; it was removed, or never was: close all handles and "
                    "connect again",
                    (int)session->pid, index, frame->body.attach.client_version);
  }
  if (client->quarantined) {
    return npi_fail(NP_ERR_NOT_FOUND,
                    "client %u (%s) was stopped for longer than clients.evict_after and is shut out; close all handles "
                    "and connect again",
                    index, client->name);
  }
  *out = client;
  return 0;
}

enum npi_request_result npi_attach_begin(struct npi_session *session, const struct npi_control_frame *frame) {
  struct npi_client *client;
  struct npi_publisher *publisher;
  struct npi_subscriber *subscriber;
  struct npi_leased *segment;
  struct npi_link *link;
  int status = find_client(session, frame, &client);
  if (status != 0) {
    npi_request_refuse_hello(session, frame, status);
    return NPI_REQUEST_REFUSED_FOR_GOOD;
  }
  npi_leases_cancel(client);
  npi_session_replace(session, client);
  DL_FOREACH2(client->publishers, publisher, client_next) publisher->named = 0;
  DL_FOREACH2(client->subscribers, subscriber, client_next) subscriber->named = 0;
  DL_FOREACH(client->segments, segment) segment->named = 0;
  DL_FOREACH(client->links, link) link->introduced = link->knows_segments = 0;
  struct npi_control_frame reply;
  npi_control_init(&reply, NPI_CONTROL_ATTACH, frame->head.request, 0);
  reply.body.attach_reply.events_base = client->events_sent;
  reply.body.attach_reply.incarnation = npi_load_relaxed_u32(&session->broker->registry.header->incarnation);
  npi_session_reply(session, &reply, NULL, 0);
  return NPI_REQUEST_DONE;
}

/* ---- what it has ---- */

int npi_attach_endpoints(struct npi_client *client, const struct npi_control_frame *frame) {
  const struct npi_broker *broker = client->broker;
  uint32_t n = frame->body.endpoints.n;
  for (uint32_t i = 0; i < n && i < NPI_ENDPOINTS_PER_FRAME; i++) {
    uint32_t index = frame->body.endpoints.list[i].index, version = frame->body.endpoints.list[i].version;
    if (frame->body.endpoints.list[i].role == NPI_ROLE_PUBLISHER) {
      struct npi_publisher *publisher = index < broker->registry.n_publishers ? broker->publishers[index] : NULL;
      if (publisher != NULL && publisher->client == client && publisher->version == version) publisher->named = 1;
    } else {
      struct npi_subscriber *subscriber = index < broker->registry.n_subscribers ? broker->subscribers[index] : NULL;
      if (subscriber != NULL && subscriber->client == client && subscriber->version == version) subscriber->named = 1;
    }
  }
  return 0;
}

int npi_attach_segments(struct npi_client *client, const struct npi_control_frame *frame) {
  for (uint32_t i = 0; i < frame->body.segments_held.n && i < NPI_SEGMENTS_PER_FRAME; i++) {
    uint32_t number = frame->body.segments_held.numbers[i];
    if (number >= client->broker->registry.segments_per_client) continue;
    if (client->numbers[number] != NULL) {
      client->numbers[number]->named = 1;
    } else {
      npi_leases_tell_gone(client, number);
    }
  }
  return 0;
}

/* ---- what it missed ---- */

static void close_unnamed(struct npi_client *client) {
  struct npi_publisher *publisher, *next_publisher;
  struct npi_subscriber *subscriber, *next_subscriber;
  DL_FOREACH_SAFE2(client->subscribers, subscriber, next_subscriber, client_next) {
    if (!subscriber->named && !subscriber->closing) npi_subscriber_close(subscriber);
  }
  DL_FOREACH_SAFE2(client->publishers, publisher, next_publisher, client_next) {
    if (!publisher->named && !publisher->closing) npi_publisher_close(publisher);
  }
}

static void tell_connections(struct npi_client *client) {
  struct npi_publisher *publisher;
  struct npi_subscriber *subscriber;
  struct npi_connection *connection;
  DL_FOREACH2(client->publishers, publisher, client_next) {
    DL_FOREACH2(publisher->connections, connection, publisher_next) npi_connection_tell_again(connection, client);
  }
  DL_FOREACH2(client->subscribers, subscriber, client_next) {
    DL_FOREACH2(subscriber->connections, connection, subscriber_next) {
      if (connection->publisher->client != client) npi_connection_tell_again(connection, client);
    }
  }
}

int npi_attach_finish(struct npi_client *client, const struct npi_control_frame *frame) {
  struct npi_broker *broker = client->broker;
  npi_leases_take_back_unnamed(client);
  close_unnamed(client);
  tell_connections(client);
  client->session->state = NPI_SESSION_READY;
  npi_client_set_flag(client, NPI_CLIENT_DETACHED, 0);
  npi_channels_connect_missing(client);
  struct npi_control_frame reply;
  npi_control_init(&reply, NPI_CONTROL_ATTACHED, frame->head.request, 0);
  npi_session_reply(client->session, &reply, NULL, 0);
  npi_log(NPI_LOG_INFO, "client.attached", "client=%u name=%s pid=%d connections=%u", client->index, client->name,
          (int)client->pid, client->n_connections);
  npi_leases_progress(broker);
  return 0;
}

void npi_attach_forget_unborn(struct npi_broker *broker, const struct npi_session *session, uint64_t token) {
  struct npi_client *client = npi_client_of_token(broker, session->pid, token);
  if (client == NULL || npi_session_reachable(client)) return;
  struct npi_session *before = client->session;
  before->client = NULL;
  npi_session_end(before);
  client->session = NULL;
  npi_reap(broker, client, NPI_GONE_GOODBYE);
}

/* ---- a successor ---- */

enum npi_request_result npi_takeover_yield(struct npi_session *session, const struct npi_control_frame *frame) {
  struct npi_broker *broker = session->broker;
  struct npi_control_frame reply;
  if (session->uid != 0 && session->uid != geteuid()) {
    npi_request_refuse_hello(session, frame,
                             npi_fail(NP_ERR_DENIED, "user %u may not replace the broker of user %u",
                                      (unsigned)session->uid, (unsigned)geteuid()));
    return NPI_REQUEST_REFUSED_FOR_GOOD;
  }
  if (broker->draining) {
    npi_request_refuse_hello(session, frame, npi_fail(NP_ERR_STATE, "this broker is ending; start another after it"));
    return NPI_REQUEST_REFUSED_FOR_GOOD;
  }
  npi_log(NPI_LOG_INFO, "broker.yields", "to_pid=%d", (int)session->pid);
  npi_control_init(&reply, NPI_CONTROL_TAKEOVER, frame->head.request, 0);
  npi_session_reply(session, &reply, NULL, 0);
  broker->yielded = 1;
  npi_loop_stop(&broker->loop);
  return NPI_REQUEST_DONE;
}
