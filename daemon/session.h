/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One control connection: HELLO or ATTACHING -> READY -> gone.
 *
 * A session is a socket, the peer's pidfd, and a queue for frames that the socket has no room for. Death is
 * the pidfd becoming readable. A socket that ends while the process lives proves nothing (it may have been
 * closed by accident, while the memory is in use; an adopted client had it with an earlier broker): the client is then
 * unreachable, keeps what it has, and may come back with another socket (daemon/attach.h).
 */
#ifndef NPI_DAEMON_SESSION_H
#define NPI_DAEMON_SESSION_H

#include <stdint.h>
#include <sys/types.h>

#include "daemon/loop.h"
#include "wire/protocol.h"

struct npi_broker;
struct npi_client;
struct npi_queued_frame;
struct npi_challenge;

enum npi_session_state {
  NPI_SESSION_HELLO,       /* has not said who it is */
  NPI_SESSION_ATTACHING,   /* is a client that was here before, and says what it still has */
  NPI_SESSION_READY,       /* is a client */
  NPI_SESSION_UNREACHABLE, /* its socket has ended, its process lives */
  NPI_SESSION_LAST_WORDS,  /* was refused; ends when that answer is out */
};

struct npi_session {
  struct npi_broker *broker;
  enum npi_session_state state;
  int fd, pidfd;
  pid_t pid;
  uid_t uid;
  gid_t gid;
  int is_known; /* the pidfd is certainly that of the peer: daemon/identity.h */
  struct npi_challenge *challenge;
  struct npi_watch socket_watch, pid_watch;
  struct npi_timer timer;              /* HELLO: patience; UNREACHABLE: the next look whether the client has left */
  uint64_t lost_ns, look_ns;           /* UNREACHABLE: since when; until the next look */
  int reported;                        /* UNREACHABLE: in the log */
  struct npi_timer retry;              /* too many descriptors were in flight */
  struct npi_control_frame *postponed; /* a request whose time has not come; the next ones wait in the socket */
  struct npi_timer postponed_look;
  uint64_t postponed_until;
  struct npi_client *client;
  struct npi_queued_frame *queue; /* head; utlist */
  uint32_t n_queued;
  uint32_t n_answers;     /* of these, those that answer requests */
  uint64_t n_put, n_sent; /* frames given to the session, and those that are in the socket */
  uint64_t serial;        /* differs for each session of a broker */
  int adopted;            /* UNREACHABLE: its socket was an earlier broker's */
  int not_awaited;        /* UNREACHABLE: leases have waited for it to come back, in vain */
  struct npi_session *prev, *next;
};

/* Takes over a fresh socket. On failure it is closed. */
int npi_session_begin(struct npi_broker *broker, int fd);

/* For a client that lives and had its socket with an earlier broker. Takes the pidfd over. */
int npi_session_adopt(struct npi_broker *broker, struct npi_client *client, int pidfd);

/* The client goes on with this session; the one that it had ends. */
void npi_session_replace(struct npi_session *session, struct npi_client *client);

/* Closes all of it; the client, if there is one, is not touched but has no session any more. */
void npi_session_end(struct npi_session *session);

/* Its client is quarantined: the socket ends and no other one is taken; the process is watched on. May end the client. */
void npi_session_shut_out(struct npi_session *session);

/* An answer: frame's head has type, request and status. fds stay the caller's. */
void npi_session_reply(struct npi_session *session, struct npi_control_frame *frame, const int *fds, int n_fds);

/* The answer that a request failed, with the detail text of this thread. */
void npi_session_refuse(struct npi_session *session, const struct npi_control_frame *request, int status);

/* An event for a client: sent or queued, then counted in its record, then its doorbells are rung. */
void npi_session_event(struct npi_client *client, struct npi_control_frame *frame, const int *fds, int n_fds);

/* Counts an event that is no frame, and rings: the client looks. */
void npi_session_count_event(struct npi_client *client);

/*
 * 0: new work may involve this client. NP_ERR_LIMIT: it does not read its socket and enough is waiting for it.
 * Never an answer to what must be said all the same (disconnects).
 */
int npi_session_check_room(const struct npi_client *client, uint32_t frames);

/* Whether its socket can be reached at all. */
int npi_session_reachable(const struct npi_client *client);

/*
 * Reachable, or expected back: after its broker's end a client comes back when it looks the next time, and must not miss
 * what others publish until then. It is told of what was made meanwhile when it is there.
 */
int npi_session_awaited(const struct npi_client *client);

/* Handles the request when nobody that it concerns is away any more, at most a second later. */
void npi_session_postpone(struct npi_session *session, const struct npi_control_frame *frame);

/* Requests of the peer are read (again), or left in the socket while one of them waits to be answered. */
void npi_session_update_watch(struct npi_session *session);

#endif
