/* SPDX-License-Identifier: Apache-2.0 */
/* What the broker's events do to a client; each hands its descriptors to the function that keeps them. */
#include "client/client_internal.h"
#include "wire/channel.h"

void npi_client_event(struct np_client *client, const struct npi_control_frame *frame, int *fds, int n_fds) {
  switch (frame->head.type) {
    case NPI_CONTROL_PEER: npi_peer_add(client, frame, fds, n_fds); break;
    case NPI_CONTROL_SEGMENT:
      if (n_fds == 1) npi_peer_segment(client, frame, fds[0]);
      break;
    case NPI_CONTROL_SEGMENT_GONE:
      npi_peer_segment_gone(client, frame);
      /* Also one that this client reads what it publishes itself: then it has given it back before. */
      if (frame->body.segment.client == client->index && frame->body.segment.client_version == client->version)
        npi_client_own_segment_gone(client, frame->body.segment.number);
      break;
    case NPI_CONTROL_OWN_SEGMENT:
      if (n_fds == 1) {
        npi_client_own_segment(client, frame, fds[0]);
        fds[0] = -1;
      }
      break;
    case NPI_CONTROL_CONNECT: npi_link_make(client, frame); break;
    case NPI_CONTROL_DISCONNECT: npi_link_end(client, frame); break;
    case NPI_CONTROL_WITHHOLD: npi_link_withhold(client, frame); break;
    case NPI_CONTROL_PEER_GONE:
      npi_peer_gone(client, frame->body.peer_gone.client, frame->body.peer_gone.client_version);
      break;
    case NPI_CONTROL_DRAIN: client->draining = 1; break;
    default: /* an event of a later release: counted as seen, its descriptors closed below */ break;
  }
  npi_control_close_fds(fds, n_fds);
}
