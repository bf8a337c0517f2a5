/* SPDX-License-Identifier: Apache-2.0 */
/* Talking to the broker: one exchange at a time, and the events that come in between. */
#include "base/status.h"
#include "client/client_internal.h"
#include "os/os_clock.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "wire/channel.h"

enum { NEWS_WAIT_NS = 5000000, TELL_WAIT_NS = 1000000000 };

/* There is a socket that a broker may be behind. */
static int is_reachable(const struct np_client *client) {
  return client->attach != NPI_ATTACH_AWAY && client->attach != NPI_ATTACH_ORPHAN;
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
  if (status == NPI_SOCKET_END) {
    npi_client_lost(client);
    return npi_client_no_broker(client);
  }
  if (status < 0) {
    npi_client_lost(client); /* the stream of events can no longer be believed */
    return npi_trail(status, "from the broker");
  }
  if (frame->head.type == NPI_CONTROL_CHALLENGE) {
    npi_control_close_fds(fds, n_fds);
    /* Where it cannot be sent the broker is gone, or will say that nothing came: then this client comes back. */
    if (client->attach == NPI_ATTACH_ASKED) npi_control_prove(client->socket, frame);
    frame->head.type = 0;
  } else if (frame->head.type >= NPI_CONTROL_PEER) {
    client->events_seen++;
    npi_client_event(client, frame, fds, n_fds);
    frame->head.type = 0;
  } else {
    npi_control_close_fds(fds, n_fds); /* after the hello, replies carry none */
    if (client->attach_request != 0 && frame->head.request == client->attach_request) {
      npi_client_attach_answer(client, frame);
    } else if (frame->head.request != client->awaited) {
      undo_late(client, frame);
    }
  }
  return 0;
}

int npi_client_tell(struct np_client *client, struct npi_control_frame *frame) {
  /* Until the broker knows who speaks, nothing but ATTACH may be said. What is lost so is put right at the return. */
  if (!is_reachable(client) || client->attach == NPI_ATTACH_ASKED) return npi_client_no_broker(client);
  int cancel_state = npi_cancel_off();
  uint64_t until = npi_clock_monotonic() + TELL_WAIT_NS;
  int status;
  while ((status = npi_control_send(client->socket, frame, NULL, 0)) == NPI_SOCKET_AGAIN) {
    if (npi_clock_monotonic() > until) {
      status = npi_fail(NP_ERR_NO_BROKER, "the broker does not read its control socket; is it stopped?");
      break;
    }
    npi_wait_readable(NULL, 0, 1000000);
  }
  npi_cancel_restore(cancel_state);
  /* Words of the broker may still wait to be read, so it is the reader who says that it is lost. */
  return status == NPI_SOCKET_END ? npi_client_no_broker(client) : status;
}

/* Sleeps until something can be received; the time is up: NP_ERR_NO_BROKER. */
static int wait_for_frame(const struct np_client *client, uint64_t until) {
  uint64_t now = npi_clock_monotonic();
  if (now >= until) return npi_fail(NP_ERR_NO_BROKER, "the broker did not answer in time; is it stopped?");
  int status = npi_wait_readable(&client->socket, 1, (int64_t)(until - now));
  return status < 0 ? status : 0;
}

/* Receives until the answer is there; events and late answers in between are dealt with. */
static int await(struct np_client *client, const struct npi_control_frame *frame, struct npi_control_frame *reply,
                 uint64_t until) {
  for (;;) {
    int status = receive_one(client, reply);
    if (status == 0 && reply->head.type == frame->head.type && reply->head.request == frame->head.request) return 0;
    if (status == NPI_SOCKET_AGAIN) status = wait_for_frame(client, until);
    if (status < 0) return status;
  }
}

/* 0: the broker knows this client, or knows it again. */
static int come_back(struct np_client *client, uint64_t until) {
  struct npi_control_frame frame;
  if (client->attach == NPI_ATTACH_AWAY) {
    int status = npi_client_attach_begin(client);
    if (status != 0) return status;
  }
  while (client->attach != NPI_ATTACHED) {
    if (!is_reachable(client)) return npi_client_no_broker(client);
    int status = receive_one(client, &frame);
    if (status == NPI_SOCKET_AGAIN) status = wait_for_frame(client, until);
    if (status < 0) return status;
  }
  return 0;
}

static int exchange(struct np_client *client, struct npi_control_frame *frame, struct npi_control_frame *reply,
                    uint64_t until) {
  int status = come_back(client, until);
  if (status != 0) return status;
  frame->head.request = client->awaited = ++client->request;
  status = npi_client_tell(client, frame);
  if (status == NP_ERR_NO_BROKER) {
    /* Not said, so it may be said again: the broker went away without this client having noticed. */
    uint32_t socket_number = client->socket_number;
    client->awaited = 0;
    npi_client_news(client); /* a quick successor has taken it back before this returns */
    int is_lost = client->attach != NPI_ATTACHED || client->socket_number != socket_number;
    if (is_lost && come_back(client, until) == 0) {
      client->awaited = frame->head.request = ++client->request;
      status = npi_client_tell(client, frame);
    }
  }
  if (status == 0) status = await(client, frame, reply, until);
  client->awaited = 0;
  return status;
}

int npi_client_request(struct np_client *client, struct npi_control_frame *frame, struct npi_control_frame *reply,
                       int64_t timeout_ms) {
  int cancel_state = npi_cancel_off();
  client->control_calls++;
  int status = exchange(client, frame, reply, npi_clock_monotonic() + (uint64_t)timeout_ms * 1000000);
  npi_cancel_restore(cancel_state);
  if (status != 0) return status;
  if (reply->head.status < 0) {
    reply->body.text[NPI_CONTROL_TEXT_BYTES - 1] = '\0';
    return npi_fail(reply->head.status, "%s", reply->body.text);
  }
  return 0;
}

/* The socket is at its end: 1: a successor, who announced itself, was asked to take this client back. */
static int is_succeeded(struct np_client *client) {
  if (npi_client_has_news(client) && client->attach == NPI_ATTACH_AWAY && npi_client_attach_begin(client) == 0)
    return 1;
  /* The last events of the old one are lost: what is announced counts as seen, or every call would look. */
  client->events_seen = npi_load_relaxed_u32(&client->record->events_sent);
  return 0;
}

void npi_client_news(struct np_client *client) {
  struct npi_control_frame frame;
  int cancel_state = npi_cancel_off();
  int asked = 0;
  for (;;) {
    if (!is_reachable(client)) {
      if (asked || !is_succeeded(client)) break;
      asked = 1;
    }
    int status = receive_one(client, &frame);
    if (status == 0) client->news_overdue = 0;
    if (status != NPI_SOCKET_AGAIN) continue;
    uint32_t behind = npi_load_relaxed_u32(&client->record->events_sent) - client->events_seen;
    if (behind == 0 || behind > INT32_MAX || client->news_overdue)
      break; /* above: an event came before its announcement */
    /* Announced and not here: the broker's own queue is behind because our socket was full. Once: it may be stopped. */
    client->news_overdue = 1;
    npi_wait_readable(&client->socket, 1, NEWS_WAIT_NS);
  }
  npi_cancel_restore(cancel_state);
}
