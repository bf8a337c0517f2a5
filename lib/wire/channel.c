/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/channel.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_socket.h"

void npi_control_frame_init(struct npi_control_frame *frame, enum npi_control_type type, uint32_t request) {
  memset(frame, 0, sizeof *frame);
  frame->head.magic = NPI_PROTOCOL_MAGIC;
  frame->head.version = NPI_PROTOCOL_VERSION;
  frame->head.type = (uint16_t)type;
  frame->head.request = request;
}

int npi_control_send(int fd, struct npi_control_frame *frame, const int *fds, int n_fds) {
  if (n_fds < 0 || n_fds > NPI_CONTROL_FDS_MAX) {
    return npi_fail(NP_ERR_ARGUMENT, "a control frame carries at most %d descriptors, not %d", NPI_CONTROL_FDS_MAX,
                    n_fds);
  }
  frame->head.n_fds = (uint32_t)n_fds;
  return npi_socket_send(fd, frame, sizeof *frame, fds, n_fds);
}

void npi_control_close_fds(const int *fds, int n) {
  for (int i = 0; i < n; i++) close(fds[i]);
}

static int check_frame(const struct npi_control_frame *frame, size_t size, int n_fds) {
  const struct npi_control_head *head = &frame->head;
  if (size < sizeof *head || head->magic != NPI_PROTOCOL_MAGIC) {
    return npi_fail(NP_ERR_PROTOCOL, "a message of %zu bytes is not a control frame%s", size,
                    size < sizeof *head ? ": too short" : ": its first word is not the protocol's");
  }
  /* Before the size: another version may have frames of another size, but its head is the same for ever. */
  if (head->version != NPI_PROTOCOL_VERSION) {
    return npi_fail(NP_ERR_VERSION, "the other side speaks control protocol version %u, this one version %u",
                    head->version, NPI_PROTOCOL_VERSION);
  }
  if (size != sizeof *frame) {
    return npi_fail(NP_ERR_PROTOCOL, "a %s frame of %zu bytes: frames have %d", npi_control_type_text(head->type), size,
                    NPI_CONTROL_FRAME_BYTES);
  }
  if (head->n_fds != (uint32_t)n_fds) {
    return npi_fail(NP_ERR_PROTOCOL, "a %s frame came with %d descriptors and says %" PRIu32,
                    npi_control_type_text(head->type), n_fds, head->n_fds);
  }
  return 0;
}

int npi_control_receive(int fd, struct npi_control_frame *frame, int fds[NPI_CONTROL_FDS_MAX], int *n_fds) {
  size_t size = 0;
  memset(frame, 0, sizeof *frame);
  int status = npi_socket_receive(fd, frame, sizeof *frame, &size, fds, NPI_CONTROL_FDS_MAX, n_fds);
  if (status != 0) return status;
  status = check_frame(frame, size, *n_fds);
  if (status != 0) {
    npi_control_close_fds(fds, *n_fds);
    *n_fds = 0;
  }
  return status;
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
    case NPI_CONTROL_PEER: return "peer";
    case NPI_CONTROL_SEGMENT: return "segment";
    case NPI_CONTROL_CONNECT: return "connect";
    case NPI_CONTROL_DISCONNECT: return "disconnect";
    case NPI_CONTROL_OWN_SEGMENT: return "own_segment";
    case NPI_CONTROL_SEGMENT_GONE: return "segment_gone";
    case NPI_CONTROL_PEER_GONE: return "peer_gone";
    case NPI_CONTROL_DRAIN: return "drain";
    default: return "unknown";
  }
}
