/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/channel.h"

#include <string.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_socket.h"

void npi_control_init(struct npi_control_frame *frame, enum npi_control_type type, uint32_t request, int status) {
  memset(frame, 0, sizeof *frame);
  frame->head.magic = NPI_PROTOCOL_MAGIC;
  frame->head.version = NPI_PROTOCOL_VERSION;
  frame->head.type = (uint16_t)type;
  frame->head.request = request;
  frame->head.status = status;
}

int npi_control_send(int socket, struct npi_control_frame *frame, const int *fds, int n_fds) {
  frame->head.n_fds = (uint32_t)n_fds;
  return npi_socket_send(socket, frame, sizeof *frame, fds, n_fds);
}

const char *npi_control_type_text(unsigned type) {
  switch (type) {
    case NPI_CONTROL_HELLO: return "hello";
    case NPI_CONTROL_OPEN_PUBLISHER: return "open_publisher";
    case NPI_CONTROL_CLOSE_PUBLISHER: return "close_publisher";
    case NPI_CONTROL_OPEN_SUBSCRIBER: return "open_subscriber";
    case NPI_CONTROL_CLOSE_SUBSCRIBER: return "close_subscriber";
    case NPI_CONTROL_LEASE: return "lease";
    case NPI_CONTROL_RETURN_SEGMENT: return "return_segment";
    case NPI_CONTROL_ACKNOWLEDGE: return "acknowledge";
    case NPI_CONTROL_GOODBYE: return "goodbye";
    case NPI_CONTROL_WORKER_READY: return "worker_ready";
    case NPI_CONTROL_REPORT_LIE: return "report_lie";
    case NPI_CONTROL_ATTACH: return "attach";
    case NPI_CONTROL_ENDPOINTS: return "endpoints";
    case NPI_CONTROL_SEGMENTS_HELD: return "segments_held";
    case NPI_CONTROL_ATTACHED: return "attached";
    case NPI_CONTROL_TAKEOVER: return "takeover";
    case NPI_CONTROL_REFUSE: return "refuse";
    case NPI_CONTROL_PROVE: return "prove";
    case NPI_CONTROL_PEER: return "peer";
    case NPI_CONTROL_SEGMENT: return "segment";
    case NPI_CONTROL_CONNECT: return "connect";
    case NPI_CONTROL_DISCONNECT: return "disconnect";
    case NPI_CONTROL_OWN_SEGMENT: return "own_segment";
    case NPI_CONTROL_SEGMENT_GONE: return "segment_gone";
    case NPI_CONTROL_PEER_GONE: return "peer_gone";
    case NPI_CONTROL_DRAIN: return "drain";
    case NPI_CONTROL_WITHHOLD: return "withhold";
    case NPI_CONTROL_CHALLENGE: return "challenge";
    default: return "unknown";
  }
}

void npi_control_close_fds(int *fds, int n) {
  for (int i = 0; i < n; i++) {
    if (fds[i] >= 0) close(fds[i]);
    fds[i] = -1;
  }
}

static int check(const struct npi_control_frame *frame, size_t n, int n_fds) {
  if (n < sizeof frame->head || frame->head.magic != NPI_PROTOCOL_MAGIC) {
    return npi_fail(NP_ERR_PROTOCOL, "a control message of %zu bytes does not begin like a numapool frame", n);
  }
  if (frame->head.version != NPI_PROTOCOL_VERSION) {
    return npi_fail(NP_ERR_VERSION,
                    "the other side speaks control protocol version %u, this one %u: use the same release",
                    frame->head.version, NPI_PROTOCOL_VERSION);
  }
  if (n != sizeof *frame) {
    return npi_fail(NP_ERR_PROTOCOL, "a control frame has %zu bytes instead of %zu", n, sizeof *frame);
  }
  if (frame->head.n_fds != (uint32_t)n_fds) {
    return npi_fail(NP_ERR_PROTOCOL, "a control frame of type %u names %u descriptors and came with %d",
                    frame->head.type, frame->head.n_fds, n_fds);
  }
  return 0;
}

int npi_control_prove(int socket, const struct npi_control_frame *challenge) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_PROVE, 0, 0);
  memcpy(frame.body.challenge.nonce, challenge->body.challenge.nonce, sizeof frame.body.challenge.nonce);
  return npi_control_send(socket, &frame, NULL, 0);
}

int npi_control_receive(int socket, struct npi_control_frame *frame, int fds[NPI_CONTROL_FDS_MAX], int *n_fds) {
  return npi_control_receive_from(socket, frame, fds, n_fds, NULL);
}

int npi_control_receive_from(int socket, struct npi_control_frame *frame, int fds[NPI_CONTROL_FDS_MAX], int *n_fds,
                             pid_t *sender) {
  size_t n = 0;
  *n_fds = 0;
  memset(frame, 0, sizeof *frame);
  int status = npi_socket_receive_from(socket, frame, sizeof *frame, &n, fds, NPI_CONTROL_FDS_MAX, n_fds, sender);
  if (status != 0) return status;
  status = check(frame, n, *n_fds);
  if (status != 0) {
    npi_control_close_fds(fds, *n_fds);
    *n_fds = 0;
  }
  return status;
}
