/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/reaper.h"

#include <inttypes.h>

#include "base/log.h"
#include "daemon/broker.h"
#include "daemon/channels.h"
#include "daemon/clients.h"
#include "daemon/leases.h"

static const char *reason_text(enum npi_gone_reason reason) {
  switch (reason) {
    case NPI_GONE_GOODBYE: return "goodbye";
    case NPI_GONE_EVICTED: return "evicted";
    case NPI_GONE_DIED: break;
  }
  return "died";
}

/* Each step finds done what was done before: a successor that finds a client closing goes through all of them again. */
static void reap(struct npi_broker *broker, struct npi_client *client) {
  struct npi_publisher *publisher, *next_publisher;
  struct npi_subscriber *subscriber, *next_subscriber;
  npi_store_release_u32(&broker->registry.clients[client->index].state, NPI_RECORD_CLOSING);
  npi_leases_cancel(client);
  npi_leases_drain(client);
  /* What it read is free now; what it published is still to be read. */
  DL_FOREACH_SAFE2(client->subscribers, subscriber, next_subscriber, client_next) npi_subscriber_gone(subscriber);
  DL_FOREACH_SAFE2(client->publishers, publisher, next_publisher, client_next) npi_publisher_gone(publisher);
  /* Only now: while it was set, the last connection would have freed the client under this walk. */
  client->gone = 1;
  npi_reap_finish(broker, client);
  npi_leases_progress(broker);
}

void npi_reap(struct npi_broker *broker, struct npi_client *client, enum npi_gone_reason reason) {
  npi_log(reason == NPI_GONE_GOODBYE ? NPI_LOG_INFO : NPI_LOG_WARNING, "client.gone",
          "client=%u name=%s pid=%d reason=%s leased_bytes=%" PRIu64 " connections=%u", client->index, client->name,
          (int)client->pid, reason_text(reason), client->leased_bytes, client->n_connections);
  npi_registry_count(&broker->registry, reason == NPI_GONE_GOODBYE ? NPI_BROKER_GOODBYES : NPI_BROKER_DEATHS, 1);
  reap(broker, client);
}

void npi_reap_again(struct npi_broker *broker, struct npi_client *client) {
  reap(broker, client);
}

void npi_reap_finish(struct npi_broker *broker, struct npi_client *client) {
  if (client->n_connections > 0) return;
  uint32_t index = client->index, kind = client->kind;
  uint64_t bytes = client->leased_bytes;
  npi_leases_destroy_all(client);
  if (kind == NPI_CLIENT_WORKER) npi_workers_remember(broker, client);
  npi_log(NPI_LOG_DEBUG, "client.cleared", "client=%u name=%s bytes=%" PRIu64, index, client->name, bytes);
  npi_client_free(broker, client);
  if (kind == NPI_CLIENT_WORKER) npi_broker_drained(broker);
}
