/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/broker.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/access.h"
#include "daemon/adopt.h"
#include "daemon/channels.h"
#include "daemon/clients.h"
#include "daemon/evict.h"
#include "daemon/leases.h"
#include "daemon/lock.h"
#include "daemon/notify.h"
#include "daemon/session.h"
#include "daemon/takeover.h"
#include "os/os_clock.h"
#include "os/os_memory.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "shm/leftovers.h"

/* Those who are in come first: while they ask for something, who floods the door gets in one at a time, now and then. */
#define ACCEPT_PATIENCE_NS UINT64_C(4000000)
enum { BACKLOG = 128, NEWCOMERS_MAX = 128, ACCEPTS_PER_TURN = 1, SOCKET_MODE = 0660, SOCKET_MODE_OPEN = 0666 };
#define ACCEPT_AGAIN_NS UINT64_C(100000000)

/* ---- newcomers ---- */

static void on_accept(struct npi_watch *watch, uint32_t events) {
  struct npi_broker *broker = watch->owner;
  uint64_t now_ns = npi_clock_monotonic();
  (void)events;
  if (broker->loop.n_batch > 1 && now_ns - broker->accepted_ns < ACCEPT_PATIENCE_NS) return; /* it stays readable */
  broker->accepted_ns = now_ns;
  for (int i = 0; broker->n_newcomers < NEWCOMERS_MAX; i++) {
    int fd;
    if (i == ACCEPTS_PER_TURN) return;
    int status = npi_socket_accept(watch->fd, &fd);
    if (status == NPI_SOCKET_AGAIN) return;
    if (status == 0) status = npi_session_begin(broker, fd);
    if (status == NP_ERR_NOT_FOUND) continue; /* dead before it said a word */
    if (status < 0) {
      npi_registry_count(&broker->registry, NPI_BROKER_REJECTS, 1);
      npi_log(NPI_LOG_WARNING, "session.rejected", "reason=\"%s\"", npi_detail());
      break;
    }
  }
  /* Out of descriptors, or a crowd that does not speak: they wait in the socket's own queue for a while. */
  npi_watch_change(&broker->loop, watch, 0);
  npi_timer_begin(&broker->loop, &broker->accept_again, ACCEPT_AGAIN_NS);
}

static void on_accept_again(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  npi_watch_change(&broker->loop, &broker->accept_watch, EPOLLIN);
}

static int open_door(struct npi_broker *broker) {
  if (broker->accept_watch.fd >= 0) return 0;
  int fd, n = snprintf(broker->socket_path, sizeof broker->socket_path, "%s/control.sock", broker->config->runtime_dir);
  if (n >= (int)sizeof broker->socket_path) {
    return npi_fail(NP_ERR_CONFIG, "runtime_dir %s is too long for a socket below it; use a shorter path",
                    broker->config->runtime_dir);
  }
  int is_open = npi_access_is_open(broker->config); /* then who comes in is asked for in the hello */
  broker->registry.header->features = is_open ? NPI_FEATURE_OTHER_USERS : 0;
  if (is_open) npi_event_guard();
  int status = npi_socket_listen(broker->socket_path, is_open ? SOCKET_MODE_OPEN : SOCKET_MODE, BACKLOG, &fd);
  if (status != 0) return status;
  status = npi_watch_begin(&broker->loop, &broker->accept_watch, fd, EPOLLIN);
  if (status != 0) {
    close(fd);
    unlink(broker->socket_path);
  }
  return status;
}

static void close_door(struct npi_broker *broker) {
  int fd = broker->accept_watch.fd;
  npi_timer_end(&broker->loop, &broker->accept_again);
  if (fd < 0) return;
  npi_watch_end(&broker->loop, &broker->accept_watch);
  close(fd);
  unlink(broker->socket_path);
}

/* ---- signals ---- */

static void on_signal(void *owner, int signal) {
  struct npi_broker *broker = owner;
  if (signal == SIGCHLD) {
    npi_workers_child_ended(broker);
    npi_keep_child_ended(broker);
    return;
  }
  npi_log(NPI_LOG_INFO, "broker.signal", "signal=%d", signal);
  if (broker->draining) {
    npi_loop_stop(&broker->loop);
  } else {
    npi_broker_drain(broker);
  }
}

static void set_of_signals(sigset_t *set) {
  sigemptyset(set);
  sigaddset(set, SIGTERM);
  sigaddset(set, SIGINT);
  sigaddset(set, SIGHUP); /* the terminal is gone: an end in order too */
  sigaddset(set, SIGCHLD);
}

/* ---- start ---- */

/* A segment takes two descriptors, a client six: the soft limit of 1024 is for programs that use select(). */
static void raise_descriptor_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) npi_log(NPI_LOG_WARNING, "broker.nofile", "raised=0");
}

static void log_start(const struct npi_broker *broker) {
  const struct npi_config *config = broker->config;
  npi_log(NPI_LOG_INFO, "broker.starting",
          "instance=%s version=%s pid=%d uid=%u backend=%s nodes=%u per_node=%" PRIu64 " per_client=%" PRIu64
          " segment=%" PRIu64 " socket=%s/control.sock config=%s",
          config->instance, NP_VERSION_STRING, (int)getpid(), (unsigned)geteuid(),
          config->memory.backend == NPI_BACKEND_POSIX ? "posix" : "memfd", broker->topology.n_nodes,
          config->memory.per_node, config->memory.per_client, config->memory.segment, config->runtime_dir,
          config->file[0] != '\0' ? config->file : "none");
  uint64_t have = 0, budget = config->memory.per_node * broker->topology.n_nodes;
  if (config->memory.backend != NPI_BACKEND_POSIX || npi_memory_available(&have) != 0 || have >= budget) return;
  npi_log(NPI_LOG_WARNING, "memory.short",
          "have=%" PRIu64 " budget=%" PRIu64
          " reason=\"/dev/shm is smaller than the budget of all nodes; enlarge it "
          "(mount -o remount,size=...), lower memory.per_node, or use memory.backend: memfd\"",
          have, budget);
}

static int make_tables(struct npi_broker *broker) {
  const struct npi_registry *registry = &broker->registry;
  broker->clients = calloc(registry->n_clients, sizeof(struct npi_client *));
  broker->publishers = calloc(registry->n_publishers, sizeof(struct npi_publisher *));
  broker->subscribers = calloc(registry->n_subscribers, sizeof(struct npi_subscriber *));
  broker->connections = calloc(registry->n_connections, sizeof(struct npi_connection *));
  if (broker->clients == NULL || broker->publishers == NULL || broker->subscribers == NULL ||
      broker->connections == NULL) {
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for the broker's tables; lower limits");
  }
  int status = npi_index_pool_init(&broker->client_pool, registry->n_clients);
  if (status == 0) status = npi_index_pool_init(&broker->channel_pool, registry->n_channels);
  if (status == 0) status = npi_index_pool_init(&broker->publisher_pool, registry->n_publishers);
  if (status == 0) status = npi_index_pool_init(&broker->subscriber_pool, registry->n_subscribers);
  if (status == 0) status = npi_index_pool_init(&broker->connection_pool, registry->n_connections);
  return status;
}

/* Only the holder of the lock may touch names in /dev/shm and the socket. */
static int become_the_broker(struct npi_broker *broker, int takeover) {
  const struct npi_config *config = broker->config;
  uint32_t n_removed = 0;
  int status = npi_runtime_dir_make(config->runtime_dir);
  if (status == 0 && npi_access_is_open(config)) status = npi_runtime_dir_open(config->runtime_dir);
  if (status == 0) status = npi_lock_take(config->runtime_dir, config->instance, &broker->lock_fd);
  if (status == NP_ERR_EXISTS && takeover) status = npi_takeover(broker);
  if (status == 0) status = npi_lock_check_registry(config->instance);
  if (status == 0) status = npi_adopt_look(broker);
  if (status == 0) return 0; /* an instance that lives */
  if (status == NPI_ADOPT_NOTHING) status = npi_shm_remove_leftovers(config->instance, geteuid(), &n_removed);
  broker->after_crash = n_removed > 0;
  if (n_removed > 0) {
    npi_log(NPI_LOG_WARNING, "broker.leftovers",
            "instance=%s removed=%u reason=\"an earlier broker did not end in order\"", config->instance, n_removed);
  }
  return status;
}

static void on_drain_deadline(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  npi_log(NPI_LOG_WARNING, "broker.drain_timeout", "timeout_ms=%" PRIu64 " workers=%u",
          broker->config->drain_timeout_ms, npi_workers_running(broker));
  npi_loop_stop(&broker->loop);
}

/* An instance of its own. */
static int begin_life(struct npi_broker *broker) {
  int status = npi_registry_create(&broker->registry, broker->config, &broker->topology);
  if (status == 0) status = make_tables(broker);
  if (status == 0) status = npi_keep_start(broker);
  if (status == 0) npi_keep_everything(broker);
  if (status == 0) status = npi_channels_init(broker);
  if (status == 0 && broker->after_crash) status = open_door(broker); /* clients of the life before: to tell them so */
  if (status == 0) status = npi_workers_init(broker); /* sockets: before memory is filled, since more often wrong */
  if (status == 0) status = npi_stock_init(broker);
  if (status == 0) npi_registry_announce(&broker->registry);
  return status;
}

/* That of an earlier broker. */
static int go_on(struct npi_broker *broker) {
  broker->adopted = 1;
  npi_registry_set_places(&broker->registry, broker->adopt->image.header);
  int status = make_tables(broker);
  return status == 0 ? npi_adopt_begin(broker) : status;
}

int npi_broker_start(struct npi_broker *broker, const struct npi_config *config, int takeover) {
  sigset_t signals;
  memset(broker, 0, sizeof *broker);
  broker->config = config;
  broker->started_ns = npi_clock_monotonic();
  broker->lock_fd = broker->registry.fd = broker->registry.readonly_fd = -1;
  broker->loop.epoll_fd = broker->loop.signals.fd = broker->loop.timer.fd = -1;
  npi_watch_init(&broker->accept_watch, on_accept, broker);
  npi_timer_init(&broker->accept_again, on_accept_again, broker);
  npi_timer_init(&broker->drain_deadline, on_drain_deadline, broker);
  broker->stock.on_change = npi_leases_go_on;
  npi_evict_init(broker);
  npi_sleepers_init(broker);
  npi_keep_init(broker);
  set_of_signals(&signals);
  signal(SIGPIPE, SIG_IGN); /* standard error may be a pipe whose reader is gone */
  raise_descriptor_limit();

  int status = npi_numa_discover(&broker->topology);
  if (status != 0) goto fail;
  log_start(broker);
  status = npi_loop_init(&broker->loop, &signals, on_signal, broker);
  if (status == 0) status = become_the_broker(broker, takeover);
  if (status == 0) status = broker->adopt != NULL ? go_on(broker) : begin_life(broker);
  if (status == 0) status = open_door(broker);
  if (status == 0) status = npi_workers_start(broker);
  if (status != 0) goto fail;
  if (broker->adopt != NULL) npi_adopt_finish(broker);
  npi_evict_begin(broker);
  npi_sleepers_begin(broker);
  npi_broker_check_ready(broker);
  return 0;

fail:
  npi_log(NPI_LOG_ERROR, "broker.not_started", "instance=%s reason=\"%s\"", config->instance, npi_detail());
  /* Not what lives: the next try finds it as this one did. Its objects here go with the process. */
  if (broker->adopt == NULL) npi_broker_stop(broker);
  return status;
}

void npi_broker_check_ready(struct npi_broker *broker) {
  if (broker->ready || broker->draining || !npi_workers_all_ready(broker)) return;
  broker->ready = 1;
  npi_registry_set_state(&broker->registry, NPI_BROKER_READY);
  npi_log(NPI_LOG_INFO, "broker.ready", "instance=%s in_ms=%" PRIu64, broker->config->instance,
          (npi_clock_monotonic() - broker->started_ns) / 1000000);
  npi_notify("READY=1\nSTATUS=ready");
}

void npi_broker_fail(struct npi_broker *broker, int status) {
  broker->failure = status;
  snprintf(broker->failure_text, sizeof broker->failure_text, "%s", npi_detail());
  npi_loop_stop(&broker->loop);
}

int npi_broker_run(struct npi_broker *broker) {
  int status = npi_loop_run(&broker->loop);
  if (status == 0 && broker->failure != 0) status = npi_fail(broker->failure, "%s", broker->failure_text);
  return status;
}

/* ---- end ---- */

void npi_broker_drain(struct npi_broker *broker) {
  broker->draining = 1;
  /* The unit's TimeoutStopSec fits the default; whoever drains longer gets the time for it, workers included. */
  char notice[96];
  snprintf(notice, sizeof notice, "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=%" PRIu64,
           (broker->config->drain_timeout_ms + 10000) * 1000);
  npi_notify(notice);
  npi_registry_set_state(&broker->registry, NPI_BROKER_DRAINING);
  npi_log(NPI_LOG_INFO, "broker.draining", "instance=%s sessions=%u workers=%u", broker->config->instance,
          broker->n_sessions, npi_workers_running(broker));
  close_door(broker);
  npi_workers_drain(broker);
  npi_timer_begin(&broker->loop, &broker->drain_deadline, broker->config->drain_timeout_ms * 1000000);
  npi_broker_drained(broker);
}

/* Workers have ended, and what they had published has been read by those that were connected to them. */
void npi_broker_drained(struct npi_broker *broker) {
  if (!broker->draining || npi_workers_running(broker) > 0) return;
  for (uint32_t i = 0; i < broker->registry.n_clients; i++) {
    if (broker->clients[i] != NULL && broker->clients[i]->kind == NPI_CLIENT_WORKER) return;
  }
  npi_loop_stop(&broker->loop);
}

/* Private memory only: everything that is shared has been dealt with. */
static void free_tables(struct npi_broker *broker) {
  const struct npi_registry *registry = &broker->registry;
  for (uint32_t i = 0; broker->connections != NULL && i < registry->n_connections; i++) free(broker->connections[i]);
  for (uint32_t i = 0; broker->publishers != NULL && i < registry->n_publishers; i++) free(broker->publishers[i]);
  for (uint32_t i = 0; broker->subscribers != NULL && i < registry->n_subscribers; i++) free(broker->subscribers[i]);
  for (uint32_t i = 0; broker->clients != NULL && i < registry->n_clients; i++) {
    struct npi_link *link, *after;
    if (broker->clients[i] == NULL) continue;
    DL_FOREACH_SAFE(broker->clients[i]->links, link, after) free(link);
    npi_client_free(broker, broker->clients[i]);
  }
  free(broker->clients);
  free(broker->publishers);
  free(broker->subscribers);
  free(broker->connections);
  npi_index_pool_deinit(&broker->client_pool);
  npi_index_pool_deinit(&broker->channel_pool);
  npi_index_pool_deinit(&broker->publisher_pool);
  npi_index_pool_deinit(&broker->subscriber_pool);
  npi_index_pool_deinit(&broker->connection_pool);
}

void npi_broker_stop(struct npi_broker *broker) {
  struct npi_session *session, *after;
  close_door(broker);
  npi_timer_end(&broker->loop, &broker->drain_deadline);
  npi_timer_end(&broker->loop, &broker->evict.look);
  npi_sleepers_end(broker);
  /* From here on there is nothing for a successor. */
  if (broker->registry.header != NULL) npi_registry_set_state(&broker->registry, NPI_BROKER_STOPPED);
  npi_keep_end(broker);
  npi_workers_deinit(broker);
  for (uint32_t i = 0; broker->clients != NULL && i < broker->registry.n_clients; i++) {
    if (broker->clients[i] != NULL) npi_leases_cancel(broker->clients[i]);
  }
  npi_leases_deinit(broker);
  npi_stock_deinit(broker);
  DL_FOREACH_SAFE(broker->sessions, session, after) npi_session_end(session);
  npi_channels_deinit(broker);
  free_tables(broker);
  npi_registry_destroy(&broker->registry);
  /* What an earlier broker had begun to make, where the look for it did not succeed at the adoption. */
  if (broker->adopted) npi_shm_remove_leftovers(broker->config->instance, geteuid(), NULL);
  npi_loop_deinit(&broker->loop);
  if (broker->lock_fd >= 0) close(broker->lock_fd);
  broker->lock_fd = -1;
}
