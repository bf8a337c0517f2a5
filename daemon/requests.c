/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/requests.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/align.h"
#include "base/log.h"
#include "base/status.h"
#include "daemon/access.h"
#include "daemon/attach.h"
#include "daemon/broker.h"
#include "daemon/channels.h"
#include "daemon/clients.h"
#include "daemon/connections.h"
#include "daemon/identity.h"
#include "daemon/leases.h"
#include "os/os_process.h"
#include "wire/channel.h"

/* ---- hello ---- */

void npi_request_refuse_hello(struct npi_session *session, const struct npi_control_frame *frame, int status) {
  npi_registry_count(&session->broker->registry, NPI_BROKER_REJECTS, 1);
  npi_session_refuse(session, frame, status);
  session->state = NPI_SESSION_LAST_WORDS;
  if (session->queue == NULL) {
    npi_session_end(session);
  } else {
    npi_session_update_watch(session);
  }
}

/* Index of the node that the client wants; what it says about itself is taken where it is possible. */
static int choose_node(const struct npi_broker *broker, int32_t wanted, uint32_t current, uint32_t *index) {
  const struct npi_numa_topology *topology = &broker->topology;
  int32_t id = wanted >= 0 ? wanted : (int32_t)current;
  for (uint32_t i = 0; i < topology->n_nodes; i++) {
    if (topology->node[i].id != id) continue;
    *index = i;
    return 0;
  }
  *index = 0;
  if (wanted < 0) return 0; /* it runs on a node without memory that we may use */
  return npi_fail(NP_ERR_NOT_FOUND, "there is no NUMA node %d: the broker has %u, from %d to %d", wanted,
                  topology->n_nodes, topology->node[0].id, topology->node[topology->n_nodes - 1].id);
}

/*
 * The broker's own workers are none of a user's clients; nor is what was made for a hello whose answer was lost with an
 * earlier broker, and is removed for the same one said again.
 */
static int check_user(const struct npi_session *session, uint64_t token) {
  struct npi_broker *broker = session->broker;
  uint32_t most = broker->config->limits.clients_per_user, n = 0;
  const struct npi_client *unborn = npi_client_of_token(broker, session->pid, token);
  if (unborn != NULL && npi_session_reachable(unborn)) unborn = NULL;
  for (uint32_t i = 0; most > 0 && i < broker->registry.n_clients; i++) {
    const struct npi_client *client = broker->clients[i];
    n += client != NULL && client != unborn && !client->gone && client->kind != NPI_CLIENT_WORKER &&
         client->uid == session->uid;
  }
  if (most == 0 || n < most) return 0;
  return npi_fail(NP_ERR_LIMIT, "user %u has %u clients attached already; end one, or raise limits.clients_per_user",
                  (unsigned)session->uid, n);
}

static int check_hello(struct npi_session *session, const struct npi_control_frame *frame, uint32_t *node) {
  struct npi_broker *broker = session->broker;
  if (frame->body.hello.layout_version != NPI_LAYOUT_VERSION) {
    return npi_fail(NP_ERR_VERSION,
                    "the client was built for shared-memory layout version %u, this broker has version %u; install "
                    "library and broker of the same release",
                    frame->body.hello.layout_version, NPI_LAYOUT_VERSION);
  }
  int status = npi_access_check_connect(session);
  if (status != 0) return status;
  switch (frame->body.hello.kind) {
    case NPI_CLIENT_APPLICATION:
    case NPI_CLIENT_TOOL:
      status = check_user(session, frame->body.hello.token);
      if (status != 0) return status;
      break;
    case NPI_CLIENT_WORKER:
      if (npi_workers_number(broker, session->pid) != NPI_NONE) break;
      return npi_fail(NP_ERR_DENIED, "process %d is not an ingest worker of this broker", (int)session->pid);
    default: return npi_fail(NP_ERR_ARGUMENT, "client kind %u is not known to this broker", frame->body.hello.kind);
  }
  return choose_node(broker, frame->body.hello.node, frame->body.hello.current_node, node);
}

static enum npi_request_result hello(struct npi_session *session, const struct npi_control_frame *frame) {
  struct npi_broker *broker = session->broker;
  struct npi_client *client = NULL;
  char name[NPI_CLIENT_NAME_BYTES];
  uint32_t node = 0;
  int status = check_hello(session, frame, &node);
  if (status == 0) {
    npi_registry_copy_name(name, sizeof name, frame->body.hello.name, sizeof frame->body.hello.name);
    char process[NPI_CLIENT_NAME_BYTES] = ""; /* as free of control characters as the hello's, for logs and tools */
    if (name[0] == '\0') npi_process_name(session->pid, process, sizeof process);
    if (name[0] == '\0') npi_registry_copy_name(name, sizeof name, process, sizeof process);
    npi_attach_forget_unborn(broker, session, frame->body.hello.token);
    status = npi_client_new(broker, session, frame->body.hello.kind, node, frame->body.hello.token, name, &client);
  }
  if (status != 0) {
    npi_request_refuse_hello(session, frame, status);
    return NPI_REQUEST_REFUSED_FOR_GOOD;
  }
  session->state = NPI_SESSION_READY;
  broker->n_newcomers--;
  npi_timer_end(&broker->loop, &session->timer);
  npi_registry_count(&broker->registry, NPI_BROKER_CONNECTS, 1);
  npi_log(NPI_LOG_INFO, "client.connected", "client=%u name=%s pid=%d uid=%u node=%d", client->index, client->name,
          (int)client->pid, (unsigned)client->uid, broker->stock.nodes[node].id);

  struct npi_control_frame reply;
  npi_control_init(&reply, NPI_CONTROL_HELLO, frame->head.request, 0);
  reply.body.hello_reply.client = client->index;
  reply.body.hello_reply.client_version = client->version;
  reply.body.hello_reply.node = node;
  reply.body.hello_reply.registry_bytes = broker->registry.bytes;
  reply.body.hello_reply.page_bytes = broker->registry.page_bytes;
  reply.body.hello_reply.ledger_bytes = broker->registry.ledger_bytes;
  reply.body.hello_reply.budget_bytes = broker->config->memory.per_client;
  const int fds[] = {broker->registry.readonly_fd, client->page_fd, client->ledger_fd, client->events_fd,
                     client->credits_fd};
  npi_session_reply(session, &reply, fds, 5);
  /* Events, which the client finds as soon as it looks at its record; it asks again where this did not succeed. */
  uint64_t reserve = frame->body.hello.reserve_bytes;
  if (reserve > 0 && npi_leases_lease(client, reserve, 0) != 0) {
    npi_log(NPI_LOG_WARNING, "lease.not_reserved", "client=%u name=%s bytes=%" PRIu64 " reason=\"%s\"", client->index,
            client->name, reserve, npi_detail());
  }
  return NPI_REQUEST_DONE;
}

/* ---- endpoints ---- */

/* A text of a frame; NULL: it has no end within its field. */
static const char *text_of(const char *field, size_t bytes) {
  return memchr(field, '\0', bytes) != NULL ? field : NULL;
}

static int open_publisher(struct npi_client *client, const struct npi_control_frame *frame) {
  struct npi_publisher *publisher;
  const char *channel = text_of(frame->body.open_publisher.channel, sizeof frame->body.open_publisher.channel);
  if (channel == NULL) return npi_fail(NP_ERR_ARGUMENT, "the name of the channel has no end");
  uint32_t flags = frame->body.open_publisher.flags;
  if ((flags & ~(uint32_t)NPI_PUBLISHER_DEAD_LETTERS) != 0) {
    return npi_fail(NP_ERR_ARGUMENT, "publisher flags 0x%x are not known to this broker", flags);
  }
  int status = npi_publisher_open(client, channel, flags, &publisher);
  if (status != 0) return status;
  struct npi_control_frame reply;
  npi_control_init(&reply, NPI_CONTROL_OPEN_PUBLISHER, frame->head.request, 0);
  reply.body.open_publisher_reply.publisher = publisher->index;
  reply.body.open_publisher_reply.publisher_version = publisher->version;
  reply.body.open_publisher_reply.channel = publisher->channel->index;
  reply.body.open_publisher_reply.kind = publisher->channel->kind;
  reply.body.open_publisher_reply.on_full = publisher->channel->on_full;
  reply.body.open_publisher_reply.counters = publisher->counters;
  const struct npi_channel_record *record = &client->broker->registry.channels[publisher->channel->index];
  reply.body.open_publisher_reply.max_deliveries = record->max_deliveries;
  if (record->dead_letter < client->broker->registry.n_channels) {
    memcpy(reply.body.open_publisher_reply.dead_letter, client->broker->registry.channels[record->dead_letter].name,
           NPI_NAME_BYTES);
  }
  npi_log(NPI_LOG_INFO, "publisher.opened", "channel=%s publisher=%u client=%u name=%s", channel, publisher->index,
          client->index, client->name);
  npi_session_reply(client->session, &reply, NULL, 0);
  return 0;
}

static int open_subscriber(struct npi_client *client, const struct npi_control_frame *frame) {
  struct npi_subscriber *subscriber;
  char name[NPI_CLIENT_NAME_BYTES];
  const char *channel = text_of(frame->body.open_subscriber.channel, sizeof frame->body.open_subscriber.channel);
  if (channel == NULL) return npi_fail(NP_ERR_ARGUMENT, "the name of the channel has no end");
  npi_registry_copy_name(name, sizeof name, frame->body.open_subscriber.name, sizeof frame->body.open_subscriber.name);
  int status = npi_subscriber_open(client, channel, name, frame->body.open_subscriber.on_full,
                                   frame->body.open_subscriber.credits, frame->body.open_subscriber.flags, &subscriber);
  if (status != 0) return status;
  struct npi_control_frame reply;
  npi_control_init(&reply, NPI_CONTROL_OPEN_SUBSCRIBER, frame->head.request, 0);
  reply.body.open_subscriber_reply.subscriber = subscriber->index;
  reply.body.open_subscriber_reply.subscriber_version = subscriber->version;
  reply.body.open_subscriber_reply.channel = subscriber->channel->index;
  reply.body.open_subscriber_reply.kind = subscriber->channel->kind;
  reply.body.open_subscriber_reply.credits = subscriber->credits;
  reply.body.open_subscriber_reply.counters = subscriber->counters;
  npi_log(NPI_LOG_INFO, "subscriber.opened", "channel=%s subscriber=%u client=%u name=%s credits=%u on_full=%s%s",
          channel, subscriber->index, client->index, name[0] != '\0' ? name : client->name, subscriber->credits,
          subscriber->on_full == NPI_ON_FULL_BLOCK ? "block" : "drop_newest",
          (subscriber->flags & NPI_SUBSCRIBER_TAP) != 0 ? " tap=1" : "");
  npi_session_reply(client->session, &reply, NULL, 0);
  return 0;
}

static void reply_ok(struct npi_client *client, const struct npi_control_frame *frame) {
  struct npi_control_frame reply;
  npi_control_init(&reply, (enum npi_control_type)frame->head.type, frame->head.request, 0);
  npi_session_reply(client->session, &reply, NULL, 0);
}

static int close_publisher(struct npi_client *client, const struct npi_control_frame *frame) {
  struct npi_broker *broker = client->broker;
  uint32_t index = frame->body.close_endpoint.index;
  struct npi_publisher *publisher = index < broker->registry.n_publishers ? broker->publishers[index] : NULL;
  if (publisher == NULL || publisher->client != client || publisher->version != frame->body.close_endpoint.version ||
      publisher->closing) {
    return npi_fail(NP_ERR_NOT_FOUND, "client %u (%s) has no open publisher %u of version %u", client->index,
                    client->name, index, frame->body.close_endpoint.version);
  }
  npi_log(NPI_LOG_INFO, "publisher.closed", "channel=%s publisher=%u client=%u name=%s", publisher->channel->name,
          index, client->index, client->name);
  npi_publisher_close(publisher);
  reply_ok(client, frame);
  return 0;
}

static int close_subscriber(struct npi_client *client, const struct npi_control_frame *frame) {
  struct npi_broker *broker = client->broker;
  uint32_t index = frame->body.close_endpoint.index;
  struct npi_subscriber *subscriber = index < broker->registry.n_subscribers ? broker->subscribers[index] : NULL;
  if (subscriber == NULL || subscriber->client != client || subscriber->version != frame->body.close_endpoint.version ||
      subscriber->closing) {
    return npi_fail(NP_ERR_NOT_FOUND, "client %u (%s) has no open subscriber %u of version %u", client->index,
                    client->name, index, frame->body.close_endpoint.version);
  }
  npi_log(NPI_LOG_INFO, "subscriber.closed", "channel=%s subscriber=%u client=%u name=%s", subscriber->channel->name,
          index, client->index, client->name);
  npi_subscriber_close(subscriber);
  reply_ok(client, frame);
  return 0;
}

/* ---- memory ---- */

static int lease(struct npi_client *client, const struct npi_control_frame *frame) {
  if (frame->head.request == 0) return npi_fail(NP_ERR_ARGUMENT, "a lease needs a request number that is not 0");
  return npi_leases_lease(client, frame->body.lease.bytes, frame->head.request);
}

static int return_segment(struct npi_client *client, const struct npi_control_frame *frame) {
  /* While one waits, no request is read; were one read, it could name a segment that the grant still points to. */
  if (client->grant != NULL) return npi_fail(NP_ERR_STATE, "a lease of this client waits for an answer");
  int status = npi_leases_give_back(client, frame->body.return_segment.number);
  if (status == 0) reply_ok(client, frame);
  return status;
}

/* ---- without an answer ---- */

/* NULL: not one of the client's, or not any more: the message crossed ours. */
static struct npi_connection *connection_of(struct npi_client *client, const struct npi_control_frame *frame) {
  struct npi_broker *broker = client->broker;
  uint32_t index = frame->body.acknowledge.connection;
  struct npi_connection *connection = index < broker->registry.n_connections ? broker->connections[index] : NULL;
  if (connection == NULL || connection->version != frame->body.acknowledge.version) return NULL;
  if (connection->publisher->client != client && connection->subscriber->client != client) return NULL;
  return connection;
}

static int acknowledge(struct npi_client *client, const struct npi_control_frame *frame) {
  struct npi_connection *connection = connection_of(client, frame);
  if (connection != NULL) npi_connection_acknowledge(connection, client);
  return 0;
}

static int report_lie(struct npi_client *client, const struct npi_control_frame *frame) {
  struct npi_connection *connection = connection_of(client, frame);
  if (connection != NULL) npi_connection_lie(connection, client);
  return 0;
}

static int refuse(struct npi_client *client, const struct npi_control_frame *frame) {
  struct npi_connection *connection = connection_of(client, frame);
  if (connection != NULL) {
    npi_connection_refused(connection, client, frame->body.refuse.role, frame->body.refuse.made != 0);
  }
  return 0;
}

static int worker_ready(struct npi_client *client, const struct npi_control_frame *frame) {
  if (client->kind == NPI_CLIENT_WORKER) {
    npi_workers_ready(client->broker, client->pid, frame->body.worker_ready.backend);
  }
  return 0;
}

/* ---- all of them ---- */

struct request {
  const char *name;
  int (*handle)(struct npi_client *client, const struct npi_control_frame *frame); /* NULL: see npi_request_handle() */
  int answered;
};

static const struct request requests[] = {
    [NPI_CONTROL_HELLO] = {"hello", NULL, 1},
    [NPI_CONTROL_OPEN_PUBLISHER] = {"open_publisher", open_publisher, 1},
    [NPI_CONTROL_CLOSE_PUBLISHER] = {"close_publisher", close_publisher, 1},
    [NPI_CONTROL_OPEN_SUBSCRIBER] = {"open_subscriber", open_subscriber, 1},
    [NPI_CONTROL_CLOSE_SUBSCRIBER] = {"close_subscriber", close_subscriber, 1},
    [NPI_CONTROL_LEASE] = {"lease", lease, 1},
    [NPI_CONTROL_RETURN_SEGMENT] = {"return_segment", return_segment, 1},
    [NPI_CONTROL_ACKNOWLEDGE] = {"acknowledge", acknowledge, 0},
    [NPI_CONTROL_GOODBYE] = {"goodbye", NULL, 0},
    [NPI_CONTROL_WORKER_READY] = {"worker_ready", worker_ready, 0},
    [NPI_CONTROL_REPORT_LIE] = {"report_lie", report_lie, 0},
    [NPI_CONTROL_ATTACH] = {"attach", NULL, 1},
    [NPI_CONTROL_ENDPOINTS] = {"endpoints", npi_attach_endpoints, 0},
    [NPI_CONTROL_SEGMENTS_HELD] = {"segments_held", npi_attach_segments, 0},
    [NPI_CONTROL_ATTACHED] = {"attached", npi_attach_finish, 1},
    [NPI_CONTROL_TAKEOVER] = {"takeover", NULL, 1},
    [NPI_CONTROL_REFUSE] = {"refuse", refuse, 0},
    [NPI_CONTROL_PROVE] = {"prove", NULL, 0},
};

const char *npi_request_text(unsigned type) {
  return type < NPI_ARRAY_COUNT(requests) && requests[type].name != NULL ? requests[type].name : "not_a_request";
}

/* What a client that comes back may say before it is back: what it has, and what an event told it to answer. */
static int fits_state(const struct npi_session *session, unsigned type) {
  int naming = type == NPI_CONTROL_ENDPOINTS || type == NPI_CONTROL_SEGMENTS_HELD || type == NPI_CONTROL_ATTACHED;
  if (session->state == NPI_SESSION_READY) return !naming;
  return naming || type == NPI_CONTROL_ACKNOWLEDGE || type == NPI_CONTROL_REPORT_LIE || type == NPI_CONTROL_REFUSE;
}

/* The first frame of a connection. */
enum npi_request_result npi_request_introduce(struct npi_session *session, const struct npi_control_frame *frame) {
  switch (frame->head.type) {
    case NPI_CONTROL_HELLO: return hello(session, frame);
    case NPI_CONTROL_ATTACH: return npi_attach_begin(session, frame);
    default: return npi_takeover_yield(session, frame);
  }
}

/*
 * Whatever is published after a subscriber was opened is seen by it. A publisher that has not come back to this broker
 * yet goes on publishing without knowing of the newcomer: so it is waited for.
 */
static struct npi_client *publisher_away(const struct npi_client *client, const struct npi_control_frame *frame) {
  const struct npi_channel *channel = NULL;
  const struct npi_publisher *publisher;
  const char *name = text_of(frame->body.open_subscriber.channel, sizeof frame->body.open_subscriber.channel);
  if (frame->head.type != NPI_CONTROL_OPEN_SUBSCRIBER || name == NULL) return NULL;
  HASH_FIND_STR(client->broker->channels, name, channel);
  if (channel == NULL) return NULL;
  DL_FOREACH(channel->publishers, publisher) {
    if (!publisher->closing && npi_session_awaited(publisher->client) && !npi_session_reachable(publisher->client)) {
      return publisher->client;
    }
  }
  return NULL;
}

int npi_request_must_wait(const struct npi_client *client, const struct npi_control_frame *frame) {
  return publisher_away(client, frame) != NULL;
}

void npi_request_wait_no_more(const struct npi_client *client, const struct npi_control_frame *frame) {
  for (struct npi_client *away; (away = publisher_away(client, frame)) != NULL;) away->session->not_awaited = 1;
}

enum npi_request_result npi_request_handle(struct npi_session *session, const struct npi_control_frame *frame) {
  unsigned type = frame->head.type;
  if (type == NPI_CONTROL_HELLO || type == NPI_CONTROL_ATTACH || type == NPI_CONTROL_TAKEOVER) {
    int is_first = session->state == NPI_SESSION_HELLO && session->challenge == NULL;
    /* Whoever takes over is judged by the user alone, of whom the kernel is certain. */
    if (is_first && !session->is_known && type != NPI_CONTROL_TAKEOVER) return npi_identity_challenge(session, frame);
    if (is_first) return npi_request_introduce(session, frame);
    npi_fail(NP_ERR_PROTOCOL, "a second %s", npi_request_text(type));
    return NPI_REQUEST_BROKEN;
  }
  if (session->client == NULL) {
    npi_fail(NP_ERR_PROTOCOL, "a frame of type %u (%s) before hello", type, npi_request_text(type));
    return NPI_REQUEST_BROKEN;
  }
  if (type == NPI_CONTROL_GOODBYE) return NPI_REQUEST_GOODBYE;
  if (type >= NPI_ARRAY_COUNT(requests) || requests[type].handle == NULL) {
    npi_fail(NP_ERR_PROTOCOL, "a frame of type %u (%s), which is not a request", type, npi_request_text(type));
    return NPI_REQUEST_BROKEN;
  }
  if (!fits_state(session, type)) {
    npi_fail(NP_ERR_PROTOCOL, "%s, %s the client is back", npi_request_text(type),
             session->state == NPI_SESSION_READY ? "after" : "before");
    return NPI_REQUEST_BROKEN;
  }
  if (npi_request_must_wait(session->client, frame)) {
    npi_session_postpone(session, frame);
    return NPI_REQUEST_DONE;
  }
  int status = requests[type].handle(session->client, frame);
  if (status != 0 && requests[type].answered) npi_session_refuse(session, frame, status);
  return NPI_REQUEST_DONE;
}
