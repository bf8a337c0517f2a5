/* SPDX-License-Identifier: Apache-2.0 */
/* Talking to the broker: one exchange at a time, and the events that come in between. */
#include <sys/socket.h>

#include "base/status.h"
#include "client/client_internal.h"
#include "os/os_clock.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "wire/channel.h"

enum { NEWS_WAIT_NS = 5000000, TELL_WAIT_NS = 1000000000 };

static int broker_is_gone(struct np_client *client) {
  client->broker_gone = 1;
  return npi_fail(
      NP_ERR_NO_BROKER,
      "the broker is gone; events go on between those already connected, but nothing can be opened or leased: "
      "restart numapoold");
}

/* The answer to a request that was given up: what it opened belongs to nobody here. */
static void undo_late(struct np_client *client, const struct npi_control_frame *reply) {
  struct npi_control_frame frame;
  int is_publisher = reply->head.type == NPI_CONTROL_OPEN_PUBLISHER;
  if (reply->head.status < 0 || (!is_publisher && reply->head.type != NPI_CONTROL_OPEN_SUBSCRIBER)) return;
  npi_control_init(&frame, is_publisher ? NPI_CONTROL_CLOSE_PUBLISHER : NPI_CONTROL_CLOSE_SUBSCRIBER, ++client->request,
                   0);
  frame.body.close_endpoint.index =
      is_publisher ? reply->body.open_publisher_reply.publisher : reply->body.open_subscriber_reply.subscriber;
  frame.body.close_endpoint.version = is_publisher ? reply->body.open_publisher_reply.publisher_version
                                                   : reply->body.open_subscriber_reply.subscriber_version;
  npi_client_tell(client, &frame);
}

/* 0: one frame was received and, if it was an event, processed. NPI_SOCKET_AGAIN: none there. */
static int receive_one(struct np_client *client, struct npi_control_frame *frame) {
  int fds[NPI_CONTROL_FDS_MAX];
  int n_fds = 0;
  int status = npi_control_receive(client->socket, frame, fds, &n_fds);
  if (status == NPI_SOCKET_AGAIN) return NPI_SOCKET_AGAIN;
  if (status == NPI_SOCKET_END) return broker_is_gone(client);
  if (status < 0) {
    client->broker_gone = 1;             /* the stream of events can no longer be believed */
    shutdown(client->socket, SHUT_RDWR); /* which the broker must know, or leases wait for this client to read */
    return npi_trail(status, "from the broker");
  }
  if (frame->head.type >= NPI_CONTROL_PEER) {
    client->events_seen++;
    npi_client_event(client, frame, fds, n_fds);
    frame->head.type = 0;
  } else {
    npi_control_close_fds(fds, n_fds); /* after the hello, replies carry none */
    if (frame->head.request != client->awaited) undo_late(client, frame);
  }
  return 0;
}

int npi_client_tell(struct np_client *client, struct npi_control_frame *frame) {
  uint64_t until = npi_clock_monotonic() + TELL_WAIT_NS;
  if (client->broker_gone) return broker_is_gone(client);
  for (;;) {
    int status = npi_control_send(client->socket, frame, NULL, 0);
    if (status == 0) return 0;
    if (status == NPI_SOCKET_END) return broker_is_gone(client);
    if (status != NPI_SOCKET_AGAIN) return status;
    if (npi_clock_monotonic() > until) {
      return npi_fail(NP_ERR_NO_BROKER, "the broker does not read its control socket; is it stopped?");
    }
    npi_wait_readable(NULL, 0, 1000000);
  }
}

/* Receives until the answer is there; events and late answers in between are dealt with. */
static int await(struct np_client *client, const struct npi_control_frame *frame, struct npi_control_frame *reply,
                 int64_t timeout_ms) {
  uint64_t until = npi_clock_monotonic() + (uint64_t)timeout_ms * 1000000;
  for (;;) {
    int status = receive_one(client, reply);
    if (status < 0) return status;
    if (status == 0 && reply->head.type == frame->head.type && reply->head.request == frame->head.request) return 0;
    if (status != NPI_SOCKET_AGAIN) continue; /* an event, or the late answer to a request that timed out */
    uint64_t now = npi_clock_monotonic();
    if (now >= until) {
      return npi_fail(NP_ERR_NO_BROKER, "the broker did not answer within %lld ms; is it stopped?",
                      (long long)timeout_ms);
    }
    status = npi_wait_readable(&client->socket, 1, (int64_t)(until - now));
    if (status < 0) return status;
  }
}

int npi_client_request(struct np_client *client, struct npi_control_frame *frame, struct npi_control_frame *reply,
                       int64_t timeout_ms) {
  frame->head.request = client->awaited = ++client->request;
  client->control_calls++;
  int status = npi_client_tell(client, frame);
  if (status == 0) status = await(client, frame, reply, timeout_ms);
  client->awaited = 0;
  if (status != 0) return status;
  if (reply->head.status < 0) {
    reply->body.text[NPI_CONTROL_TEXT_BYTES - 1] = '\0';
    return npi_fail(reply->head.status, "%s", reply->body.text);
  }
  return 0;
}

void npi_client_news(struct np_client *client) {
  struct npi_control_frame frame;
  while (!client->broker_gone) {
    int status = receive_one(client, &frame);
    if (status == 0) {
      client->news_overdue = 0;
      continue;
    }
    if (status != NPI_SOCKET_AGAIN) return;
    if (!npi_client_has_news(client) || client->news_overdue) return;
    /* Announced and not here: the broker's own queue is behind because our socket was full. Once: it may be stopped. */
    client->news_overdue = 1;
    npi_wait_readable(&client->socket, 1, NEWS_WAIT_NS);
  }
  /* The broker is gone and its last events are lost: what is announced counts as seen, or every call would look. */
  client->events_seen = npi_load_acquire_u32(&client->record->events_sent);
}
