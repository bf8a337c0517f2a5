/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/identity.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/status.h"
#include "daemon/session.h"
#include "os/os_process.h"
#include "os/os_socket.h"
#include "wire/channel.h"

struct npi_challenge {
  uint64_t nonce[2];
  struct npi_control_frame first;
};

enum npi_request_result npi_identity_challenge(struct npi_session *session, const struct npi_control_frame *first) {
  struct npi_control_frame frame;
  struct npi_challenge *challenge = calloc(1, sizeof *challenge);
  int status = challenge == NULL ? npi_fail(NP_ERR_NO_MEMORY, "no memory for a challenge") : 0;
  if (status == 0 && getrandom(challenge->nonce, sizeof challenge->nonce, 0) != (ssize_t)sizeof challenge->nonce) {
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "no random numbers for a challenge");
  }
  /* Before the number is out: every message that can hold it has its sender noted. */
  if (status == 0) status = npi_socket_note_senders(session->fd, 1);
  if (status != 0) {
    free(challenge);
    npi_request_refuse_hello(session, first, status);
    return NPI_REQUEST_REFUSED_FOR_GOOD;
  }
  challenge->first = *first;
  session->challenge = challenge;
  npi_control_init(&frame, NPI_CONTROL_CHALLENGE, 0, 0);
  memcpy(frame.body.challenge.nonce, challenge->nonce, sizeof challenge->nonce);
  npi_session_reply(session, &frame, NULL, 0);
  return NPI_REQUEST_DONE;
}

static int judge(const struct npi_session *session, pid_t sender) {
  if (sender != session->pid) {
    return npi_fail(NP_ERR_DENIED,
                    "process %d connected, and process %d speaks there: each process must connect for itself",
                    (int)session->pid, (int)sender);
  }
  if (npi_process_is_dead(session->pidfd) != 0) {
    return npi_fail(NP_ERR_NOT_FOUND, "process %d connected, and is gone", (int)session->pid);
  }
  return 0;
}

enum npi_request_result npi_identity_prove(struct npi_session *session, const struct npi_control_frame *frame,
                                           pid_t sender) {
  struct npi_challenge *challenge = session->challenge;
  if (challenge == NULL || session->is_known) {
    npi_fail(NP_ERR_PROTOCOL, "an answer to a challenge that there was not");
    return NPI_REQUEST_BROKEN;
  }
  if (memcmp(challenge->nonce, frame->body.challenge.nonce, sizeof challenge->nonce) != 0) {
    npi_fail(NP_ERR_PROTOCOL, "a wrong answer to a challenge");
    return NPI_REQUEST_BROKEN;
  }
  struct npi_control_frame first = challenge->first; /* the session may be freed */
  int status = judge(session, sender);
  if (status == 0) status = npi_socket_note_senders(session->fd, 0);
  if (status != 0) {
    npi_request_refuse_hello(session, &first, status);
    return NPI_REQUEST_REFUSED_FOR_GOOD;
  }
  session->is_known = 1;
  return npi_request_introduce(session, &first);
}
