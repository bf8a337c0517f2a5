/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listeners and the ingest workers that receive on them: sockets are opened here, before any worker runs, and
 * stay open while one is restarted, so that the kernel keeps what arrives meanwhile.
 */
#ifndef NPI_DAEMON_WORKERS_H
#define NPI_DAEMON_WORKERS_H

#include <stdint.h>
#include <sys/types.h>

#include "daemon/listener_socket.h"
#include "daemon/loop.h"

struct npi_broker;
struct npi_client;

struct npi_worker {
  struct npi_broker *broker;
  uint32_t number;
  uint32_t node; /* index */
  uint32_t n_listeners;
  pid_t pid; /* 0: does not run */
  int pidfd; /* -1: does not run */
  uint64_t start_time;
  int adopted; /* an earlier broker started it: it is no child of this one */
  int ready;
  uint64_t back_off_ns, started_ns;
  struct npi_watch watch; /* pidfd of an adopted one */
  struct npi_timer restart;
};

struct npi_listener {
  const struct npi_listener_config *config;
  uint32_t access, row;                /* of its channel; of workers */
  struct npi_listener_socket *sockets; /* one for each worker; fd -1: not this worker's */
  uint32_t *kernel_drops;              /* of each socket, that workers now dead have counted */
  uint64_t *drops_of; /* client (index and version) of the last of these: a successor may be told of it again */
};

struct npi_workers {
  struct npi_worker *workers;
  uint32_t n_workers;
  uint32_t *rows;  /* by listener: the row of workers that serves it */
  uint32_t n_rows; /* of workers; listeners whose channels have the same subscribers share one */
  struct npi_listener *listeners;
  uint32_t n_listeners;
};

/* How many processes the configuration asks for. */
uint32_t npi_workers_wanted(const struct npi_broker *broker);

/* Opens every socket that an earlier broker has not left; NP_ERR_EXISTS and the like name listener, address and fix. */
int npi_workers_init(struct npi_broker *broker);
/* Starts a process for each worker that has a listener, and does not run. */
int npi_workers_start(struct npi_broker *broker);
/* Kills those that still run, waits for them, closes the sockets. */
void npi_workers_deinit(struct npi_broker *broker);

/* An earlier broker's worker, which lives. Takes pidfd over. */
int npi_workers_adopt(struct npi_broker *broker, uint32_t number, pid_t pid, uint64_t start_time, int pidfd);

/* A child has ended, perhaps a worker. */
void npi_workers_child_ended(struct npi_broker *broker);
void npi_workers_ready(struct npi_broker *broker, pid_t pid, uint32_t backend);
/* A worker's client is about to be cleared: keeps what the next one must know. */
void npi_workers_remember(struct npi_broker *broker, const struct npi_client *client);

/* Number of the worker that this process is; NPI_NONE: none of ours. */
uint32_t npi_workers_number(const struct npi_broker *broker, pid_t pid);
int npi_workers_all_ready(const struct npi_broker *broker);

/* Asks them to stop receiving, publish what they have, and end. */
void npi_workers_drain(struct npi_broker *broker);
uint32_t npi_workers_running(const struct npi_broker *broker);

#endif
