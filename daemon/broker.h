/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker: owns every object of an instance, and is never on the way of an event.
 *
 * One thread, one loop, never waiting for a client. Start-up and shut-down are npi_broker_start() and
 * npi_broker_stop(), each in the order of its lines.
 */
#ifndef NPI_DAEMON_BROKER_H
#define NPI_DAEMON_BROKER_H

#include "daemon/config.h"
#include "daemon/evict.h"
#include "daemon/keep.h"
#include "daemon/loop.h"
#include "daemon/objects.h"
#include "daemon/registry.h"
#include "daemon/sleepers.h"
#include "daemon/stock.h"
#include "daemon/workers.h"
#include "numapool/version.h"
#include "os/os_numa.h"

struct npi_broker {
  const struct npi_config *config;
  uint64_t started_ns; /* CLOCK_MONOTONIC */
  int lock_fd;
  int ready, draining;
  struct npi_adopt *adopt; /* what an earlier broker left, until all of it has been taken over */
  int adopted;             /* began with it */
  int yielded;             /* a successor takes over: ends without touching anything */
  int after_crash;         /* an earlier broker did not end in order: workers of it may still be ending */
  int failure;             /* a status, with words in failure_text: the loop ended for it */
  char failure_text[512];
  struct npi_loop loop;
  struct npi_numa_topology topology;
  struct npi_registry registry;
  struct npi_keep keep;

  char socket_path[NPI_CONFIG_PATH_BYTES];
  struct npi_watch accept_watch;
  struct npi_timer accept_again; /* after there was no descriptor left for a newcomer */
  uint64_t accepted_ns;          /* when a newcomer was let in last */
  struct npi_session *sessions;
  uint32_t n_sessions;
  uint64_t session_serial;
  uint32_t n_newcomers; /* sessions that have not said hello */

  struct npi_index_pool client_pool, channel_pool, publisher_pool, subscriber_pool, connection_pool;
  struct npi_client **clients; /* by index; NULL: free */
  struct npi_publisher **publishers;
  struct npi_subscriber **subscribers;
  struct npi_connection **connections;
  struct npi_channel *channels; /* uthash, by name */

  struct npi_stock stock;
  uint32_t n_grants;              /* leases that are not complete */
  struct npi_grant *short_grants; /* those that wait for segments, by their turn */
  uint64_t grant_turns;           /* how many turns were given out */
  struct npi_workers workers;
  struct npi_timer drain_deadline;
  struct npi_evict evict;
  struct npi_sleepers sleepers;
};

/*
 * Makes everything; it is ready when its workers are. On failure nothing is left behind but the lock file. config stays the
 * caller's and must outlive the broker. takeover: where another broker runs, its instance goes on with this one.
 */
int npi_broker_start(struct npi_broker *broker, const struct npi_config *config, int takeover);

/* Serves until a signal ends it and what had to drain has drained. */
int npi_broker_run(struct npi_broker *broker);

/* Removes every trace. Clients keep what they have mapped. */
void npi_broker_stop(struct npi_broker *broker);

/* SIGTERM: no newcomers, workers stop receiving; a second one ends the waiting. */
void npi_broker_drain(struct npi_broker *broker);

/* Something that the drain waits for has ended: looks whether it was the last. */
void npi_broker_drained(struct npi_broker *broker);

/* Says ready once every worker receives. */
void npi_broker_check_ready(struct npi_broker *broker);

/* Ends the loop; npi_broker_run() returns status, with the detail text of now. */
void npi_broker_fail(struct npi_broker *broker, int status);

#endif
