/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coming back after the control socket has ended: the broker died and has a successor, or was replaced.
 *
 *   ATTACHED ──end──▶ AWAY ──connect, ATTACH──▶ ASKED ──answer──▶ TELLING ──answer to ATTACHED──▶ ATTACHED
 *                      ▲  ◀───────────────────── end ──────────────────┘
 *                      └─ ASKED ──refused: nothing of this client is known──▶ ORPHAN
 *
 * No step waits, so that each can be taken on the way of a call that must not: one who waits for the answer does so in
 * request.c. Who tries, and when: every call that needs the broker; the sleeps of this library, each time they look up;
 * the data path only when `events_sent` has moved, which a successor does once for each client that it takes over.
 *
 * While an answer is awaited `events_seen` is kept one short, so that the data path comes by and takes it.
 */
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "client/client_internal.h"
#include "os/os_clock.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "wire/channel.h"

#define AGAIN_NS   UINT64_C(50000000)
#define REFUSED_NS UINT64_C(1000000000) /* a broker that cannot take it back now, but maybe later */

/* ---- lost -------------------------------------------------------------------------------------------- */

int npi_client_no_broker(const struct np_client *client) {
  if (client->attach == NPI_ATTACH_ORPHAN) {
    return npi_fail(NP_ERR_NO_BROKER,
                    "the broker does not know this client any more (its instance began anew, or the client was shut "
                    "out): what it shares goes on, for all else np_disconnect and np_connect again");
  }
  return npi_fail(NP_ERR_NO_BROKER,
                  "the broker is gone; events go on between those already connected, but nothing can be opened or "
                  "leased: restart numapoold");
}

static int is_quarantined(const struct np_client *client) {
  return client->record != NULL && npi_load_relaxed_u32(&client->record->state) == NPI_RECORD_ACTIVE &&
         client->record->version == client->version &&
         (npi_load_relaxed_u32(&client->record->flags) & NPI_CLIENT_QUARANTINED) != 0;
}

static void orphan(struct np_client *client, const char *why);

int npi_client_shut_out(void) {
  return npi_fail(
      NP_ERR_EVICTED,
      "this process was stopped for longer than clients.evict_after, and the broker has shut this client out: "
      "release what is held, np_disconnect, and np_connect again");
}

/* By the operator's policy, while this process was stopped. Whoever sleeps finds out, and finds out again. */
static void shut_out(struct np_client *client) {
  client->shut_out = 1;
  for (struct np_subscriber *s = client->subscribers; s != NULL; s = s->next) s->current = NULL;
  npi_links_withhold_own(client);
  orphan(client,
         "this process was stopped for longer than clients.evict_after: it gets no more events; what it holds "
         "stays its own until it disconnects");
  npi_event_ring(client->events_fd);
  npi_event_ring(client->credits_fd);
}

void npi_client_lost(struct np_client *client) {
  if (client->attach == NPI_ATTACH_AWAY || client->attach == NPI_ATTACH_ORPHAN) return;
  if (is_quarantined(client)) {
    shut_out(client);
    return;
  }
  if (client->attach == NPI_ATTACHED) {
    npi_client_notify(client, NP_NOTICE_BROKER_LOST, 0, "the broker is gone; events go on between those connected");
  } else {
    client->attach_again_ns = npi_clock_monotonic() + AGAIN_NS;
  }
  shutdown(client->socket, SHUT_RDWR); /* where it was us who gave up: a broker that lives must know */
  client->attach = NPI_ATTACH_AWAY;
  client->attach_request = 0;
  npi_watch_socket(client);
}

static void orphan(struct np_client *client, const char *why) {
  uint32_t state = npi_load_relaxed_u32(&client->record->state);
  /* The registry of an instance that is over is written by nobody; in one that goes on the record is someone else's. */
  int evicted = client->shut_out || state != NPI_RECORD_ACTIVE || client->record->version != client->version;
  shutdown(client->socket, SHUT_RDWR);
  client->attach = NPI_ATTACH_ORPHAN;
  client->attach_request = 0;
  client->events_seen = npi_load_relaxed_u32(&client->record->events_sent);
  npi_client_notify(client, evicted ? NP_NOTICE_EVICTED : NP_NOTICE_INSTANCE_GONE, 0, "%s", why);
  npi_log(NPI_LOG_WARNING, "client.orphaned", "client=%u reason=\"%s\"", client->index, why);
  npi_watch_socket(client);
}

/* ---- asking ------------------------------------------------------------------------------------------ */

int npi_client_may_attach(const struct np_client *client) {
  return client->attach == NPI_ATTACH_AWAY && npi_clock_monotonic() >= client->attach_again_ns;
}

int npi_client_attach_begin(struct np_client *client) {
  struct npi_control_frame frame;
  int socket = -1;
  if (client->attach != NPI_ATTACH_AWAY) return npi_client_no_broker(client);
  int cancel_state = npi_cancel_off();
  client->attach_again_ns = npi_clock_monotonic() + AGAIN_NS;
  int status = npi_socket_connect_once(client->socket_path, &socket);
  if (status == 0) {
    npi_control_init(&frame, NPI_CONTROL_ATTACH, ++client->request, 0);
    frame.body.attach.layout_version = NPI_LAYOUT_VERSION;
    frame.body.attach.client = client->index;
    frame.body.attach.client_version = client->version;
    frame.body.attach.kind = client->kind;
    frame.body.attach.token = client->token;
    frame.body.attach.instance_id = client->instance_id;
    status = npi_control_send(socket, &frame, NULL, 0);
  }
  if (status == 0) {
    npi_watch_forget(client);
    close(client->socket);
    client->socket = socket;
    client->socket_number++;
    client->attach = NPI_ATTACH_ASKED;
    client->attach_request = frame.head.request;
    client->news_overdue = 0;
    client->events_seen = npi_load_relaxed_u32(&client->record->events_sent) - 1;
    npi_watch_socket(client);
  } else if (socket >= 0) {
    close(socket);
  }
  npi_cancel_restore(cancel_state);
  return status == 0 ? 0 : npi_client_no_broker(client);
}

/* ---- telling ----------------------------------------------------------------------------------------- */

static void begin_endpoints(struct npi_control_frame *frame) {
  npi_control_init(frame, NPI_CONTROL_ENDPOINTS, 0, 0);
}

static int tell_endpoint(struct np_client *client, struct npi_control_frame *frame, uint32_t role, uint32_t index,
                         uint32_t version) {
  uint32_t n = frame->body.endpoints.n;
  frame->body.endpoints.list[n].role = role;
  frame->body.endpoints.list[n].index = index;
  frame->body.endpoints.list[n].version = version;
  frame->body.endpoints.n = n + 1;
  if (n + 1 < NPI_ENDPOINTS_PER_FRAME) return 0;
  int status = npi_client_tell(client, frame);
  begin_endpoints(frame);
  return status;
}

static int tell_endpoints(struct np_client *client) {
  struct npi_control_frame frame;
  int status = 0;
  begin_endpoints(&frame);
  for (const struct np_publisher *p = client->publishers; p != NULL && status == 0; p = p->next) {
    status = tell_endpoint(client, &frame, NPI_ROLE_PUBLISHER, p->index, p->version);
  }
  for (const struct np_subscriber *s = client->subscribers; s != NULL && status == 0; s = s->next) {
    status = tell_endpoint(client, &frame, NPI_ROLE_SUBSCRIBER, s->index, s->version);
  }
  return status == 0 && frame.body.endpoints.n > 0 ? npi_client_tell(client, &frame) : status;
}

static int tell_segments(struct np_client *client) {
  struct npi_control_frame frame;
  int status = 0;
  npi_control_init(&frame, NPI_CONTROL_SEGMENTS_HELD, 0, 0);
  for (uint32_t i = 0; i < client->pool.ledger.geometry.segments && status == 0; i++) {
    if (client->segments[i].base == NULL) continue;
    frame.body.segments_held.numbers[frame.body.segments_held.n++] = i;
    if (frame.body.segments_held.n < NPI_SEGMENTS_PER_FRAME) continue;
    status = npi_client_tell(client, &frame);
    npi_control_init(&frame, NPI_CONTROL_SEGMENTS_HELD, 0, 0);
  }
  return status == 0 && frame.body.segments_held.n > 0 ? npi_client_tell(client, &frame) : status;
}

static void tell_all(struct np_client *client) {
  struct npi_control_frame frame;
  int status = tell_endpoints(client);
  if (status == 0) status = tell_segments(client);
  npi_control_init(&frame, NPI_CONTROL_ATTACHED, ++client->request, 0);
  if (status == 0) status = npi_client_tell(client, &frame);
  client->attach_request = frame.head.request;
  if (status != 0) npi_client_lost(client);
}

/* ---- answers ----------------------------------------------------------------------------------------- */

/* What the broker said when nobody heard it. */
static void find_what_ended(struct np_client *client) {
  const struct npi_table *table = &client->connections_table;
  for (uint32_t i = 0; i < client->n_links; i++) {
    struct npi_link *link = client->links[i];
    if (link == NULL || link->connection >= table->count) continue;
    const struct npi_connection_record *record =
        (const void *)(client->registry + table->offset + (uint64_t)link->connection * table->bytes);
    if (link->lie_reported) {
      link->lie_reported = 0;
      npi_link_report_lie(client, link);
    }
    if (link->refused) npi_link_refuse(client, link);
    if (npi_load_relaxed_u32(&record->version) == link->version &&
        npi_load_relaxed_u32(&record->state) != NPI_CONNECTION_FREE) {
      continue;
    }
    struct npi_control_frame frame;
    link->cut = 1; /* its ring may be another's by now */
    npi_control_init(&frame, NPI_CONTROL_DISCONNECT, 0, 0);
    frame.body.disconnect.connection = link->connection;
    frame.body.disconnect.version = link->version;
    frame.body.disconnect.reason =
        link->role == NPI_ROLE_PUBLISHER ? NPI_REASON_SUBSCRIBER_CLOSED : NPI_REASON_PUBLISHER_CLOSED;
    npi_link_end(client, &frame);
  }
  npi_peers_forget_gone(client);
}

static void go_on(struct np_client *client) {
  const struct npi_registry_header *header = (const void *)client->registry;
  client->attach = NPI_ATTACHED;
  client->attach_request = 0;
  client->events_seen++;
  client->lease_again_ns = 0;
  npi_client_notify(client, NP_NOTICE_BROKER_BACK, header->broker_pid, "the broker is back: process %u, number %u",
                    header->broker_pid, npi_load_relaxed_u32(&header->incarnation));
  npi_log(NPI_LOG_INFO, "client.attached", "client=%u broker_pid=%u incarnation=%u", client->index, header->broker_pid,
          npi_load_relaxed_u32(&header->incarnation));
  npi_watch_socket(client);
  find_what_ended(client);
}

void npi_client_attach_answer(struct np_client *client, const struct npi_control_frame *reply) {
  char why[NPI_CONTROL_TEXT_BYTES];
  if (reply->head.status < 0) {
    for (unsigned i = 0; i < sizeof why; i++) why[i] = reply->body.text[i];
    why[sizeof why - 1] = '\0';
    if (reply->head.status == NP_ERR_NOT_FOUND || reply->head.status == NP_ERR_VERSION) {
      if (is_quarantined(client)) {
        shut_out(client);
      } else {
        orphan(client, why);
      }
      return;
    }
    npi_log(NPI_LOG_WARNING, "client.not_attached", "client=%u reason=\"%s\"", client->index, why);
    npi_client_lost(client);
    client->attach_again_ns = npi_clock_monotonic() + REFUSED_NS;
    return;
  }
  if (client->attach == NPI_ATTACH_TELLING) {
    go_on(client);
    return;
  }
  client->attach = NPI_ATTACH_TELLING;
  client->events_seen = reply->body.attach_reply.events_base - 1;
  tell_all(client);
}

/* ---- from time to time ------------------------------------------------------------------------------- */

void npi_client_look(struct np_client *client) {
  if (npi_client_may_attach(client)) npi_client_attach_begin(client);
  npi_client_news(client);
  if (client->attach != NPI_ATTACH_ORPHAN && is_quarantined(client)) shut_out(client);
}

int npi_client_sleep(struct np_client *client, int fd, int64_t timeout_ns) {
  int fds[] = {fd, client->socket};
  int is_pending = client->attach == NPI_ATTACH_ASKED || client->attach == NPI_ATTACH_TELLING;
  return npi_wait_readable(fds, is_pending ? 2 : 1, timeout_ns);
}
