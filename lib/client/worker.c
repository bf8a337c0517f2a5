/* SPDX-License-Identifier: Apache-2.0 */
#include "client/worker.h"

#include "base/status.h"
#include "client/client_internal.h"
#include "os/os_clock.h"
#include "wire/channel.h"

int npi_client_control_fd(const struct np_client *client) {
  return client->socket;
}

uint32_t npi_client_socket_number(const struct np_client *client) {
  return client->socket_number;
}

int npi_client_poll(struct np_client *client) {
  npi_client_look(client); /* also where nothing is announced: this is how the broker's end is noticed */
  if (client->draining) return NPI_CLIENT_DRAIN;
  if (client->attach == NPI_ATTACH_ORPHAN) return npi_client_no_broker(client);
  if (client->attach == NPI_ATTACH_AWAY) return NPI_CLIENT_AWAY;
  return client->attach == NPI_ATTACHED ? 0 : NPI_CLIENT_COMING;
}

int npi_client_credits_fd(struct np_client *client) {
  client->credits_fd_used = 1;
  npi_client_arm_credits(client);
  return client->credits_fd;
}

int npi_client_worker_ready(struct np_client *client, uint32_t backend, uint32_t features) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_WORKER_READY, 0, 0);
  frame.body.worker_ready.backend = backend;
  frame.body.worker_ready.features = features;
  return npi_client_tell(client, &frame);
}

struct npi_listener_counters *npi_client_listener_counters(struct np_client *client, uint32_t listener) {
  uint64_t offset = client->listeners_offset + (uint64_t)listener * sizeof(struct npi_listener_counters);
  if (listener >= client->listeners_table.count ||
      offset + sizeof(struct npi_listener_counters) > client->rings_offset) {
    return NULL;
  }
  return (void *)(client->page + offset);
}

void npi_client_tick(struct np_client *client) {
  if (npi_client_has_news(client) || client->attach != NPI_ATTACHED) npi_client_look(client);
  npi_client_reap(client);
  for (struct np_publisher *p = client->publishers; p != NULL; p = p->next) {
    if (!npi_flow_has_waiting(&p->flow)) continue;
    npi_flow_offer_waiting(&p->flow);
    npi_publisher_flush(p);
  }
  npi_client_trim(client, npi_clock_monotonic());
}
