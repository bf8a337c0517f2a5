/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/session.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/clients.h"
#include "daemon/departed.h"
#include "daemon/identity.h"
#include "daemon/leases.h"
#include "daemon/reaper.h"
#include "daemon/requests.h"
#include "os/os_clock.h"
#include "os/os_process.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "wire/channel.h"

enum {
  QUEUE_FRAMES_MAX = 4096, /* for one client; over it no new work involves it */
  ANSWERS_MAX = 64,        /* a client with more of them waiting is not asked for requests */
  REQUESTS_PER_TURN = 32,  /* of one client, then others have their turn */
};
#define HELLO_PATIENCE_NS UINT64_C(10000000000)
#define UNREACHABLE_NS    UINT64_C(1000000000)
#define LOOK_NS           UINT64_C(10000000) /* first look at a client without socket, doubled each time */
#define LOOK_ADOPTED_NS   UINT64_C(100000000)
#define LOOK_NS_MAX       UINT64_C(60000000000)
#define LOOK_NS_MAX_OUT   UINT64_C(1000000000) /* at one that was shut out, which may want to connect anew */
#define ADOPTED_NS        UINT64_C(10000000000)
#define RETRY_NS          UINT64_C(20000000)
#define POSTPONED_LOOK_NS UINT64_C(2000000)
#define POSTPONED_NS      UINT64_C(1000000000)

struct npi_queued_frame {
  struct npi_control_frame frame;
  int fds[NPI_CONTROL_FDS_MAX]; /* copies, ours */
  int n_fds;
  struct npi_queued_frame *prev, *next;
};

/* ---- sending ---- */

static void drop_queue(struct npi_session *session) {
  struct npi_queued_frame *queued, *after;
  DL_FOREACH_SAFE(session->queue, queued, after) {
    DL_DELETE(session->queue, queued);
    npi_control_close_fds(queued->fds, queued->n_fds);
    free(queued);
  }
  session->n_queued = session->n_answers = 0;
}

/* Sends what waits. 1: the socket is full; < 0: it is at its end. */
static int flush(struct npi_session *session) {
  while (session->queue != NULL) {
    struct npi_queued_frame *first = session->queue;
    int status = npi_control_send(session->fd, &first->frame, first->fds, first->n_fds);
    if (status == NP_ERR_LIMIT) {
      npi_timer_begin(&session->broker->loop, &session->retry, RETRY_NS);
      return 1;
    }
    if (status == NPI_SOCKET_AGAIN) return 1;
    if (status != 0) {
      if (status != NPI_SOCKET_END) shutdown(session->fd, SHUT_RDWR);
      return -1;
    }
    DL_DELETE(session->queue, first);
    npi_control_close_fds(first->fds, first->n_fds);
    session->n_answers -= first->frame.head.type < NPI_CONTROL_PEER;
    free(first);
    session->n_queued--;
    session->n_sent++;
  }
  return 0;
}

static int enqueue(struct npi_session *session, const struct npi_control_frame *frame, const int *fds, int n_fds) {
  struct npi_queued_frame *queued = malloc(sizeof *queued);
  if (queued == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a queued frame");
  queued->frame = *frame;
  queued->n_fds = 0;
  /* The object may be gone before its frame is sent: the queue needs descriptors of its own. */
  for (int i = 0; i < n_fds; i++) {
    int copy = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
    if (copy < 0) {
      npi_control_close_fds(queued->fds, queued->n_fds);
      free(queued);
      return npi_fail(NP_ERR_LIMIT, "no descriptor left for a frame that waits; raise LimitNOFILE");
    }
    queued->fds[queued->n_fds++] = copy;
  }
  DL_APPEND(session->queue, queued);
  session->n_queued++;
  session->n_answers += frame->head.type < NPI_CONTROL_PEER;
  return 0;
}

/* Into the socket, else into the queue. A socket at its end is dealt with when the loop says so. */
static void put(struct npi_session *session, struct npi_control_frame *frame, const int *fds, int n_fds) {
  int status = NPI_SOCKET_AGAIN;
  if (session->fd < 0) return;
  session->n_put++;
  if (session->queue == NULL) status = npi_control_send(session->fd, frame, fds, n_fds);
  if (status == 0) {
    session->n_sent++;
    return;
  }
  if (status == NPI_SOCKET_END) return;
  frame->head.n_fds = (uint32_t)n_fds;
  int queued = enqueue(session, frame, fds, n_fds);
  if (queued != 0) {
    npi_log(NPI_LOG_ERROR, "session.frame_lost", "pid=%d type=%u reason=\"%s\"", (int)session->pid, frame->head.type,
            npi_detail());
    /* A client that misses a frame cannot be spoken to any more: it must see that, not run on half informed. */
    shutdown(session->fd, SHUT_RDWR);
    return;
  }
  if (status == NP_ERR_LIMIT) npi_timer_begin(&session->broker->loop, &session->retry, RETRY_NS);
  npi_session_update_watch(session);
}

void npi_session_reply(struct npi_session *session, struct npi_control_frame *frame, const int *fds, int n_fds) {
  put(session, frame, fds, n_fds);
}

void npi_session_refuse(struct npi_session *session, const struct npi_control_frame *request, int status) {
  struct npi_control_frame reply;
  npi_control_init(&reply, (enum npi_control_type)request->head.type, request->head.request, 0);
  reply.head.status = status;
  snprintf(reply.body.text, sizeof reply.body.text, "%s", npi_detail());
  npi_log(NPI_LOG_INFO, "request.refused", "type=%s pid=%d status=%d reason=\"%s\"",
          npi_request_text(request->head.type), (int)session->pid, status, npi_detail());
  put(session, &reply, NULL, 0);
}

void npi_session_event(struct npi_client *client, struct npi_control_frame *frame, const int *fds, int n_fds) {
  if (client->session == NULL || client->quarantined) return;
  put(client->session, frame, fds, n_fds);
  npi_session_count_event(client);
}

void npi_session_count_event(struct npi_client *client) {
  /* [control.count] release: the frame is under way before it is counted. Pairs with the client's look at its record. */
  npi_store_release_u32(&client->broker->registry.clients[client->index].events_sent, ++client->events_sent);
  npi_event_ring(client->events_fd);
  npi_event_ring(client->credits_fd);
}

int npi_session_reachable(const struct npi_client *client) {
  return client->session != NULL && client->session->state == NPI_SESSION_READY;
}

int npi_session_awaited(const struct npi_client *client) {
  return client->session != NULL && (npi_session_reachable(client) || !client->session->not_awaited);
}

int npi_session_check_room(const struct npi_client *client, uint32_t frames) {
  if (client->session == NULL || client->session->n_queued + frames <= QUEUE_FRAMES_MAX) return 0;
  npi_registry_count(&client->broker->registry, NPI_BROKER_QUEUE_FULL, 1);
  return npi_fail(
      NP_ERR_LIMIT,
      "client %u (%s, process %d) does not read its control socket: %u messages wait for it; is it stopped?",
      client->index, client->name, (int)client->pid, client->session->n_queued);
}

void npi_session_update_watch(struct npi_session *session) {
  int waits = session->client != NULL && session->client->grant != NULL;
  /* Events do not count: for some the client's acknowledgement is awaited, and neither side must wait for the other. */
  int reads =
      session->state <= NPI_SESSION_READY && !waits && session->postponed == NULL && session->n_answers <= ANSWERS_MAX;
  int writes = session->queue != NULL && session->retry.due_ns == 0;
  npi_watch_change(&session->broker->loop, &session->socket_watch,
                   (reads ? (uint32_t)EPOLLIN : 0) | (writes ? (uint32_t)EPOLLOUT : 0));
}

/* ---- requests that wait ---- */

static void drop_postponed(struct npi_session *session) {
  npi_timer_end(&session->broker->loop, &session->postponed_look);
  free(session->postponed);
  session->postponed = NULL;
}

void npi_session_postpone(struct npi_session *session, const struct npi_control_frame *frame) {
  drop_postponed(session); /* where the peer has closed, frames are read on, and nobody waits for their answers */
  session->postponed = malloc(sizeof *session->postponed);
  if (session->postponed == NULL) {
    npi_session_refuse(session, frame, npi_fail(NP_ERR_NO_MEMORY, "no memory for a request that waits"));
    return;
  }
  *session->postponed = *frame;
  session->postponed_until = npi_clock_monotonic() + POSTPONED_NS;
  npi_timer_begin(&session->broker->loop, &session->postponed_look, POSTPONED_LOOK_NS);
  npi_session_update_watch(session);
}

static void on_postponed_look(struct npi_timer *timer) {
  struct npi_session *session = timer->owner;
  if (session->client == NULL || session->state != NPI_SESSION_READY) {
    drop_postponed(session);
    return;
  }
  if (npi_request_must_wait(session->client, session->postponed)) {
    if (npi_clock_monotonic() < session->postponed_until) {
      npi_timer_begin(&session->broker->loop, timer, POSTPONED_LOOK_NS);
      return;
    }
    npi_request_wait_no_more(session->client, session->postponed);
  }
  struct npi_control_frame frame = *session->postponed;
  drop_postponed(session);
  npi_session_update_watch(session);
  npi_request_handle(session, &frame);
}

/* ---- ends ---- */

void npi_session_end(struct npi_session *session) {
  struct npi_broker *broker = session->broker;
  npi_watch_end(&broker->loop, &session->socket_watch);
  npi_watch_end(&broker->loop, &session->pid_watch);
  npi_timer_end(&broker->loop, &session->timer);
  npi_timer_end(&broker->loop, &session->retry);
  drop_postponed(session);
  drop_queue(session);
  if (session->fd >= 0) close(session->fd);
  if (session->pidfd >= 0) close(session->pidfd);
  free(session->challenge);
  if (session->client != NULL) session->client->session = NULL;
  if (session->state == NPI_SESSION_HELLO || session->state == NPI_SESSION_LAST_WORDS) broker->n_newcomers--;
  DL_DELETE(broker->sessions, session);
  broker->n_sessions--;
  free(session);
}

/* The session, and with it the client if it is one, is over. */
static void over(struct npi_session *session, enum npi_gone_reason reason) {
  struct npi_client *client = session->client;
  struct npi_broker *broker = session->broker;
  npi_session_end(session);
  if (client != NULL) npi_reap(broker, client, reason == NPI_GONE_DIED && client->killed ? NPI_GONE_EVICTED : reason);
}

/* It may come back, or have left without a word. */
static void await_return(struct npi_session *session, uint64_t look_ns) {
  session->lost_ns = npi_clock_monotonic();
  session->look_ns = look_ns;
  npi_timer_begin(&session->broker->loop, &session->timer, look_ns);
}

static void lose_socket(struct npi_session *session) {
  struct npi_broker *broker = session->broker;
  int dead = npi_process_is_dead(session->pidfd) == 1;
  if (session->client == NULL || dead) {
    over(session, NPI_GONE_DIED);
    return;
  }
  npi_leases_cancel(session->client);
  npi_client_set_flag(session->client, NPI_CLIENT_DETACHED, 1);
  npi_watch_end(&broker->loop, &session->socket_watch);
  npi_timer_end(&broker->loop, &session->retry);
  drop_queue(session);
  close(session->fd);
  session->fd = -1;
  session->state = NPI_SESSION_UNREACHABLE;
  await_return(session, LOOK_NS);
  npi_leases_progress(broker); /* nobody waits for a socket that is gone */
}

static void report_unreachable(struct npi_session *session) {
  session->reported = 1;
  npi_log(NPI_LOG_WARNING, "client.unreachable",
          "client=%u name=%s pid=%d reason=\"%s; it keeps its memory until it ends\"", session->client->index,
          session->client->name, (int)session->pid,
          session->adopted ? "it was a client of the broker before this one, and has not come back"
                           : "it closed its control socket without a goodbye and still runs");
}

static void look_for_departed(struct npi_session *session) {
  struct npi_broker *broker = session->broker;
  uint64_t away_ns = npi_clock_monotonic() - session->lost_ns;
  int patience_over = away_ns >= (session->adopted ? ADOPTED_NS : UNREACHABLE_NS);
  enum npi_departed departed = npi_client_departed(session->client);
  if (departed == NPI_DEPARTED_UNBORN && !patience_over) departed = NPI_DEPARTED_NOT;
  if (departed == NPI_DEPARTED_NOT) {
    if (patience_over && !session->reported) report_unreachable(session);
    uint64_t most = session->client->quarantined ? LOOK_NS_MAX_OUT : LOOK_NS_MAX;
    session->look_ns = session->look_ns < most / 2 ? session->look_ns * 2 : most;
    npi_timer_begin(&broker->loop, &session->timer, session->look_ns);
    return;
  }
  npi_log(NPI_LOG_INFO, "client.departed", "client=%u name=%s pid=%d reason=\"%s\"", session->client->index,
          session->client->name, (int)session->pid,
          departed == NPI_DEPARTED_FAREWELL ? "it ended while it could not say goodbye"
                                            : "its process runs another program, or has let go of it");
  over(session, departed == NPI_DEPARTED_FAREWELL ? NPI_GONE_GOODBYE : NPI_GONE_DIED);
  npi_leases_progress(broker);
}

static void on_timer(struct npi_timer *timer) {
  struct npi_session *session = timer->owner;
  if (session->state == NPI_SESSION_UNREACHABLE) {
    look_for_departed(session);
    return;
  }
  npi_log(NPI_LOG_WARNING, "session.silent", "pid=%d reason=\"no hello within 10 s\"", (int)session->pid);
  over(session, NPI_GONE_DIED);
}

static void on_death(struct npi_watch *watch, uint32_t events) {
  (void)events;
  over(watch->owner, NPI_GONE_DIED);
}

static void expect_no_return(struct npi_session *session) {
  session->not_awaited = session->reported = 1;
}

void npi_session_shut_out(struct npi_session *session) {
  expect_no_return(session);
  npi_session_count_event(session->client); /* it looks, as soon as it runs */
  drop_postponed(session);
  if (session->fd >= 0) {
    lose_socket(session);
    return;
  }
  /* Looked at seldom by now: but it may want to connect anew as soon as it runs. */
  session->look_ns = LOOK_NS;
  npi_timer_begin(&session->broker->loop, &session->timer, session->look_ns);
}

/* ---- receiving ---- */

static void reject_frame(struct npi_session *session, const char *what) {
  npi_registry_count(&session->broker->registry, NPI_BROKER_PROTOCOL_ERRORS, 1);
  npi_log(NPI_LOG_WARNING, "session.protocol_error", "pid=%d uid=%u client=%s reason=\"%s\"", (int)session->pid,
          (unsigned)session->uid, session->client != NULL ? session->client->name : "-", what);
}

/* 0 go on reading; else the session may be gone, or has nothing more to say now. */
static int receive_one(struct npi_session *session) {
  struct npi_control_frame frame;
  int fds[NPI_CONTROL_FDS_MAX];
  int n_fds = 0;
  pid_t sender = 0;
  int status = npi_control_receive_from(session->fd, &frame, fds, &n_fds, &sender);
  if (status == NPI_SOCKET_AGAIN) return 1;
  if (status == NPI_SOCKET_END) {
    lose_socket(session);
    return 1;
  }
  if (status == NP_ERR_LIMIT) { /* we have no descriptor left: not the peer's fault, if it sent one at all */
    npi_log(NPI_LOG_ERROR, "session.no_descriptor", "pid=%d reason=\"%s\"", (int)session->pid, npi_detail());
    over(session, NPI_GONE_EVICTED);
    return 1;
  }
  if (status == NP_ERR_VERSION && session->state == NPI_SESSION_HELLO) {
    npi_request_refuse_hello(session, &frame, status);
    return 1;
  }
  if (status < 0) {
    reject_frame(session, npi_detail());
    over(session, NPI_GONE_EVICTED);
    return 1;
  }
  if (n_fds > 0) {
    npi_control_close_fds(fds, n_fds);
    reject_frame(session, "descriptors came with a request: none has any");
    over(session, NPI_GONE_EVICTED);
    return 1;
  }
  enum npi_request_result result = frame.head.type == NPI_CONTROL_PROVE ? npi_identity_prove(session, &frame, sender)
                                                                        : npi_request_handle(session, &frame);
  if (result == NPI_REQUEST_BROKEN) {
    reject_frame(session, npi_detail());
    over(session, NPI_GONE_EVICTED);
    return 1;
  }
  if (result == NPI_REQUEST_GOODBYE) {
    over(session, NPI_GONE_GOODBYE);
    return 1;
  }
  if (result == NPI_REQUEST_REFUSED_FOR_GOOD) return 1;
  return 0;
}

static void on_socket(struct npi_watch *watch, uint32_t events) {
  struct npi_session *session = watch->owner;
  struct npi_broker *broker = session->broker;
  if ((events & EPOLLOUT) != 0 || (session->queue != NULL && session->retry.due_ns == 0)) {
    int status = flush(session);
    if (status < 0) events |= EPOLLHUP;
    if (status == 0 && session->state == NPI_SESSION_LAST_WORDS) {
      over(session, NPI_GONE_EVICTED);
      return;
    }
    npi_session_update_watch(session);
  }
  int at_end = (events & (EPOLLHUP | EPOLLERR)) != 0;
  /* Its last words may still be unread, a goodbye among them: they count whatever waits to be answered. */
  if (at_end && session->client != NULL) npi_leases_cancel(session->client);
  if (at_end) drop_postponed(session);
  if (session->state > NPI_SESSION_READY) {
    if (at_end) lose_socket(session);
  } else if (at_end || ((watch->events & EPOLLIN) != 0 && (events & EPOLLIN) != 0)) {
    uint64_t begin = npi_clock_monotonic();
    for (int i = 0; i < REQUESTS_PER_TURN && npi_clock_monotonic() - begin < NPI_TURN_NS; i++) {
      if (receive_one(session) != 0) goto progress; /* session may be freed */
      if (!at_end && (session->socket_watch.events & EPOLLIN) == 0) goto progress;
    }
  }
progress:
  npi_leases_progress(broker);
}

static void on_retry(struct npi_timer *timer) {
  struct npi_session *session = timer->owner;
  struct npi_broker *broker = session->broker;
  if (flush(session) >= 0) npi_session_update_watch(session);
  npi_leases_progress(broker);
}

static struct npi_session *new_session(struct npi_broker *broker, enum npi_session_state state, int fd) {
  struct npi_session *session = calloc(1, sizeof *session);
  if (session == NULL) return NULL;
  session->broker = broker;
  session->state = state;
  session->fd = fd;
  session->pidfd = -1;
  session->serial = ++broker->session_serial;
  npi_watch_init(&session->socket_watch, on_socket, session);
  npi_watch_init(&session->pid_watch, on_death, session);
  npi_timer_init(&session->timer, on_timer, session);
  npi_timer_init(&session->retry, on_retry, session);
  npi_timer_init(&session->postponed_look, on_postponed_look, session);
  DL_APPEND(broker->sessions, session);
  broker->n_sessions++;
  return session;
}

int npi_session_adopt(struct npi_broker *broker, struct npi_client *client, int pidfd) {
  struct npi_session *session = new_session(broker, NPI_SESSION_UNREACHABLE, -1);
  if (session == NULL) {
    close(pidfd);
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a session");
  }
  session->adopted = 1;
  session->pidfd = pidfd;
  session->pid = client->pid;
  session->uid = client->uid;
  session->client = client;
  client->session = session;
  if (client->quarantined) expect_no_return(session);
  int status = npi_watch_begin(&broker->loop, &session->pid_watch, pidfd, EPOLLIN);
  if (status != 0) return status;
  await_return(session, LOOK_ADOPTED_NS);
  return 0;
}

void npi_session_replace(struct npi_session *session, struct npi_client *client) {
  struct npi_broker *broker = session->broker;
  struct npi_session *before = client->session;
  before->client = NULL;
  npi_session_end(before);
  session->client = client;
  client->session = session;
  session->state = NPI_SESSION_ATTACHING;
  broker->n_newcomers--;
  npi_timer_end(&broker->loop, &session->timer);
}

int npi_session_begin(struct npi_broker *broker, int fd) {
  int status;
  struct npi_session *session = new_session(broker, NPI_SESSION_HELLO, fd);
  if (session == NULL) {
    close(fd);
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a session");
  }
  broker->n_newcomers++;
  status = npi_process_pidfd_of_peer(fd, &session->pidfd, &session->pid, &session->uid, &session->gid);
  if (status == 0) session->is_known = npi_process_peer_is_exact(fd);
  if (status == 0) status = npi_watch_begin(&broker->loop, &session->socket_watch, fd, EPOLLIN);
  if (status == 0) status = npi_watch_begin(&broker->loop, &session->pid_watch, session->pidfd, EPOLLIN);
  if (status != 0) {
    npi_session_end(session);
    return status;
  }
  npi_timer_begin(&broker->loop, &session->timer, HELLO_PATIENCE_NS);
  return 0;
}
