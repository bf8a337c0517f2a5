/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/evict.h"

#include <inttypes.h>
#include <signal.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/clients.h"
#include "daemon/connections.h"
#include "daemon/session.h"
#include "os/os_clock.h"
#include "os/os_process.h"

/* Each look costs a read of /proc for each client; an eviction is late by one look at most. */
#define LOOKS_PER_LIMIT UINT64_C(8)
#define LOOK_NS_MIN     UINT64_C(10000000)
#define LOOK_NS_MAX     UINT64_C(10000000000)

static uint64_t limit_of(const struct npi_broker *broker) {
  return broker->config->clients.evict_after_ms * 1000000;
}

static uint64_t interval_of(const struct npi_broker *broker) {
  uint64_t interval = limit_of(broker) / LOOKS_PER_LIMIT;
  return interval < LOOK_NS_MIN ? LOOK_NS_MIN : interval > LOOK_NS_MAX ? LOOK_NS_MAX : interval;
}

/* Also for a successor, which goes on counting. */
static void note(struct npi_client *client, uint64_t stopped_ns, uint64_t switches) {
  struct npi_client_record *record = &client->broker->registry.clients[client->index];
  client->stopped_ns = stopped_ns;
  client->stopped_switches = switches;
  npi_store_relaxed_u64(&record->stopped_switches, switches);
  npi_store_release_u64(&record->stopped_ns, stopped_ns);
}

static void log_eviction(const struct npi_client *client, const char *how, uint64_t stopped_for_ns) {
  npi_log(NPI_LOG_WARNING, "client.evicted",
          "client=%u name=%s pid=%d reason=stopped stopped_for_ms=%" PRIu64 " how=%s", client->index, client->name,
          (int)client->pid, stopped_for_ns / 1000000, how);
  npi_registry_count(&client->broker->registry, NPI_BROKER_EVICTED, 1);
}

static void quarantine(struct npi_client *client, uint64_t stopped_for_ns) {
  const struct npi_subscriber *subscriber;
  const struct npi_connection *connection;
  log_eviction(client, "quarantine", stopped_for_ns);
  /* First: a successor tells the publishers as they come back. */
  npi_client_set_flag(client, NPI_CLIENT_QUARANTINED, 1);
  client->quarantined = 1;
  DL_FOREACH2(client->subscribers, subscriber, client_next) {
    DL_FOREACH2(subscriber->connections, connection, subscriber_next) npi_connection_withhold(connection);
  }
  npi_session_shut_out(client->session);
}

/* It is a dead one when its descriptor says so, as always. */
static int end_process(struct npi_client *client, uint64_t stopped_for_ns) {
  int status = npi_process_signal(client->session->pidfd, SIGKILL);
  if (status != 0) return status;
  client->killed = 1;
  log_eviction(client, "kill", stopped_for_ns);
  return 0;
}

static void evict(struct npi_client *client, uint64_t stopped_for_ns) {
  int is_worker = client->kind == NPI_CLIENT_WORKER;
  int kills = client->broker->config->clients.evict == NPI_CONFIG_EVICT_KILL;
  if (kills) {
    int status = end_process(client, stopped_for_ns);
    if (status == 0 || status == NP_ERR_NOT_FOUND) return;
    npi_log(NPI_LOG_WARNING, "client.not_killed", "client=%u name=%s pid=%d uid=%u reason=\"%s; quarantined instead\"",
            client->index, client->name, (int)client->pid, (unsigned)client->uid, npi_detail());
  }
  if (!is_worker) quarantine(client, stopped_for_ns); /* a worker subscribes to nothing: there is nothing to withhold */
}

/* excess_ns: the broker itself did not run for so long, and then a client may not have been able to either. */
static void look_at(struct npi_client *client, uint64_t now_ns, uint64_t excess_ns) {
  uint64_t switches;
  int stopped = npi_process_is_stopped(client->pid, &switches);
  /* It lives, so the number that was asked for was its own. */
  if (stopped < 0 || npi_process_is_dead(client->session->pidfd) != 0) return;
  if (!stopped) {
    if (client->stopped_ns != 0) note(client, 0, 0);
  } else if (client->stopped_ns == 0 || client->stopped_ns > now_ns || client->stopped_switches != switches) {
    note(client, now_ns, switches);
  } else {
    if (excess_ns > 0) note(client, client->stopped_ns + excess_ns, switches);
    if (now_ns - client->stopped_ns >= limit_of(client->broker)) evict(client, now_ns - client->stopped_ns);
  }
}

/*
 * A round over all clients; many of them take several turns. What the broker itself was away does not count: the time
 * between two rounds, or two turns of one, as far as it is longer than it should be. Some time may so be left out twice,
 * which only makes an eviction later.
 */
static void on_look(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  struct npi_evict *evict = &broker->evict;
  uint64_t now_ns = npi_clock_monotonic(), interval = interval_of(broker);
  if (evict->next == 0) {
    uint64_t since_ns = now_ns - evict->looked_ns;
    evict->away_ns = since_ns > 2 * interval ? since_ns - interval : 0;
    evict->looked_ns = now_ns;
  } else if (now_ns - evict->turn_ns > interval) {
    evict->away_ns += now_ns - evict->turn_ns;
  }
  for (uint32_t i = evict->next; i < broker->registry.n_clients; i++) {
    struct npi_client *client = broker->clients[i];
    if (client == NULL || client->gone || client->session == NULL || client->killed || client->quarantined) continue;
    look_at(client, now_ns, evict->away_ns);
    evict->turn_ns = npi_clock_monotonic();
    if (evict->turn_ns - now_ns < NPI_TURN_NS) continue;
    evict->next = i + 1;
    npi_timer_begin(&broker->loop, timer, 0);
    return;
  }
  evict->next = 0;
  npi_timer_begin(&broker->loop, timer, interval);
}

void npi_evict_init(struct npi_broker *broker) {
  npi_timer_init(&broker->evict.look, on_look, broker);
}

void npi_evict_begin(struct npi_broker *broker) {
  if (broker->config->clients.evict_after_ms == 0) return;
  broker->evict.looked_ns = npi_clock_monotonic();
  npi_timer_begin(&broker->loop, &broker->evict.look, interval_of(broker));
}
