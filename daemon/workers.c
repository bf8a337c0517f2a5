/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/workers.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/access.h"
#include "daemon/accounts.h"
#include "daemon/adopt.h"
#include "daemon/broker.h"
#include "daemon/channels.h"
#include "daemon/keep.h"
#include "daemon/orphans.h"
#include "daemon/session.h"
#include "daemon/worker_setup.h"
#include "os/os_clock.h"
#include "os/os_process.h"
#include "os/os_wait.h"
#include "wire/channel.h"

#define BACK_OFF_MIN_NS UINT64_C(100000000)
#define BACK_OFF_MAX_NS UINT64_C(5000000000)
/* A worker that ran this long was fine: the next restart is quick again. */
#define FINE_AFTER_NS      UINT64_C(30000000000)
#define ORPHAN_PATIENCE_NS UINT64_C(5000000000)
#define END_PATIENCE_NS    INT64_C(5000000000)

static void restart_worker(struct npi_timer *timer);
static void adopted_ended(struct npi_watch *watch, uint32_t events);

/* ---- listeners ---- */

static const char *framing_text(uint32_t kind) {
  static const char *const texts[NPI_FRAMING_KIND_COUNT] = {[NPI_FRAMING_DATAGRAM] = "datagram",
                                                            [NPI_FRAMING_NEWLINE] = "newline",
                                                            [NPI_FRAMING_LENGTH_PREFIX] = "length_prefix",
                                                            [NPI_FRAMING_FIXED] = "fixed",
                                                            [NPI_FRAMING_SYSLOG] = "syslog",
                                                            [NPI_FRAMING_EVENTSTREAM] = "eventstream"};
  return kind < NPI_FRAMING_KIND_COUNT ? texts[kind] : "unknown";
}

static void set_listener_state(struct npi_broker *broker, uint32_t index, enum npi_listener_state state) {
  npi_store_release_u32(&broker->registry.listeners[index].state, state);
}

static void show_listener(struct npi_broker *broker, uint32_t index, const struct npi_channel *channel, uint32_t port) {
  const struct npi_listener_config *config = broker->workers.listeners[index].config;
  struct npi_listener_record *record = &broker->registry.listeners[index];
  record->version = 1;
  record->channel = channel->index;
  record->protocol = (uint32_t)config->proto;
  record->on_full = (uint32_t)config->on_full;
  record->port = port;
  npi_registry_copy_name(record->name, sizeof record->name, config->name, sizeof config->name);
  snprintf(record->address, sizeof record->address, "%s",
           npi_config_proto_is_unix(config->proto) ? config->path : config->address);
  snprintf(record->framing, sizeof record->framing, "%s", framing_text(config->framing.kind));
  if (npi_load_relaxed_u32(&record->state) == NPI_LISTENER_FREE) {
    set_listener_state(broker, index, NPI_LISTENER_STARTING);
  }
}

/* Workers of a life that could not be adopted hold their ports until they hear that it is over, and have drained. */
static int open_anew(struct npi_broker *broker, const struct npi_listener_config *config, int reuse_port,
                     struct npi_listener_socket *out) {
  int status = npi_listener_socket_open(config, reuse_port, out);
  for (uint64_t begin = npi_clock_monotonic();
       status == NP_ERR_EXISTS && broker->after_crash && npi_clock_monotonic() - begin < ORPHAN_PATIENCE_NS;) {
    npi_orphans_refuse(broker);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    status = npi_listener_socket_open(config, reuse_port, out);
  }
  return status;
}

/* The one that an earlier broker left, else a new one. */
static int open_socket(struct npi_broker *broker, uint32_t index, uint32_t worker,
                       const struct npi_listener_config *config, int reuse_port) {
  struct npi_listener *listener = &broker->workers.listeners[index];
  int fd = -1;
  if (broker->adopt != NULL) {
    fd = npi_adopt_take_listener(broker->adopt, index, worker, &listener->kernel_drops[worker],
                                 &listener->drops_of[worker]);
  }
  if (fd < 0) return open_anew(broker, config, reuse_port, &listener->sockets[worker]);
  return npi_listener_socket_adopt(config, fd, &listener->sockets[worker]);
}

/*
 * With several workers each has a socket of its own on the same address, and the kernel spreads connections and
 * senders. A multicast group would reach every one of them, and a Unix path belongs to one: those go to one worker.
 */
static int open_listener(struct npi_broker *broker, uint32_t index) {
  struct npi_workers *workers = &broker->workers;
  struct npi_listener *listener = &workers->listeners[index];
  struct npi_listener_config config = broker->config->listeners[index];
  struct npi_channel *channel;
  listener->config = &broker->config->listeners[index];
  const uint32_t n = workers->n_workers + 1; /* never none */
  listener->sockets = calloc(n, sizeof *listener->sockets);
  listener->kernel_drops = calloc(n, sizeof *listener->kernel_drops);
  listener->drops_of = calloc(n, sizeof *listener->drops_of);
  if (listener->sockets == NULL || listener->kernel_drops == NULL || listener->drops_of == NULL) {
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for listener \"%s\"", config.name);
  }
  for (uint32_t i = 0; i < workers->n_workers; i++) listener->sockets[i].fd = -1;
  int status = npi_channel_find(broker, config.channel, &channel);
  if (status != 0) return npi_trail(status, "listener \"%s\"", config.name);

  int single = npi_config_proto_is_unix(config.proto) || config.multicast.group[0] != '\0';
  uint32_t of_row = workers->n_workers / workers->n_rows;
  uint32_t first = workers->rows[index] * of_row + (single ? index % of_row : 0);
  uint32_t last = single ? first : first + of_row - 1;
  for (uint32_t i = first; i <= last; i++) {
    status = open_socket(broker, index, i, &config, last > first);
    if (status != 0) return status;
    config.port = listener->sockets[i].port; /* where the kernel chose one, the others share it */
    workers->workers[i].n_listeners++;
    npi_keep_listener(broker, index, i);
  }
  char text[256];
  npi_listener_socket_describe(&config, text, sizeof text);
  npi_log(NPI_LOG_INFO, "listener.open", "listener=%s socket=\"%s\" channel=%s framing=%s sockets=%u", config.name,
          text, config.channel, framing_text(config.framing.kind), last - first + 1);
  show_listener(broker, index, channel, config.port);
  return 0;
}

/*
 * Events of one worker lie in the same segments, which all its subscribers may read. So where channels have different
 * subscribers, each kind of them has a row of workers of its own: as many as there are on all nodes. row may be NULL;
 * else it has a place for each listener. Returns how many rows there are; 0: no memory.
 */
static uint32_t choose_rows(const struct npi_config *config, uint32_t *row) {
  uint32_t n_rows = 0;
  uint32_t *numbers = calloc(config->n_listeners, sizeof *numbers); /* of each row */
  for (size_t i = 0; numbers != NULL && i < config->n_listeners; i++) {
    uint32_t number = npi_access_number(config, config->listeners[i].channel), r = 0;
    while (r < n_rows && numbers[r] != number) r++;
    if (r == n_rows) numbers[n_rows++] = number;
    if (row != NULL) row[i] = r;
  }
  free(numbers);
  return n_rows;
}

uint32_t npi_workers_wanted(const struct npi_broker *broker) {
  if (broker->config->n_listeners == 0) return 0;
  return broker->topology.n_nodes * broker->config->ingest.workers_per_node * choose_rows(broker->config, NULL);
}

int npi_workers_init(struct npi_broker *broker) {
  struct npi_workers *workers = &broker->workers;
  const struct npi_config *config = broker->config;
  if (config->n_listeners == 0) return 0;
  workers->n_workers = npi_workers_wanted(broker);
  broker->registry.header->n_workers = workers->n_workers;
  workers->workers = calloc(workers->n_workers + 1, sizeof *workers->workers);
  workers->listeners = calloc(config->n_listeners, sizeof *workers->listeners);
  workers->rows = calloc(config->n_listeners, sizeof *workers->rows);
  if (workers->workers == NULL || workers->listeners == NULL || workers->rows == NULL) {
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for listeners and workers");
  }
  workers->n_rows = choose_rows(config, workers->rows);
  if (workers->n_rows == 0) return npi_fail(NP_ERR_NO_MEMORY, "no memory for listeners and workers");
  for (uint32_t i = 0; i < workers->n_workers; i++) {
    struct npi_worker *worker = &workers->workers[i];
    worker->broker = broker;
    worker->pidfd = -1;
    worker->number = i;
    worker->node = i % broker->topology.n_nodes;
    worker->back_off_ns = BACK_OFF_MIN_NS;
    npi_watch_init(&worker->watch, adopted_ended, worker);
    npi_timer_init(&worker->restart, restart_worker, worker);
  }
  for (uint32_t i = 0; i < config->n_listeners; i++) {
    workers->n_listeners = i + 1;
    int status = open_listener(broker, i);
    if (status != 0) return status;
  }
  return 0;
}

static void set_worker_listeners(const struct npi_worker *worker, enum npi_listener_state state, int restarted) {
  struct npi_broker *broker = worker->broker;
  for (uint32_t i = 0; i < broker->workers.n_listeners; i++) {
    struct npi_listener_record *record = &broker->registry.listeners[i];
    if (broker->workers.listeners[i].sockets[worker->number].fd < 0) continue;
    if (restarted) npi_store_relaxed_u32(&record->restarts, npi_load_relaxed_u32(&record->restarts) + 1);
    set_listener_state(broker, i, state);
  }
}

/* ---- processes ---- */

/* The setup in a memfd; the sockets keep their numbers in the child. */
static int write_setup(const struct npi_worker *worker, int *fd) {
  const struct npi_broker *broker = worker->broker;
  const struct npi_config *config = broker->config;
  size_t bytes = sizeof(struct npi_worker_setup) + worker->n_listeners * sizeof(struct npi_worker_listener);
  struct npi_worker_setup *setup = calloc(1, bytes);
  *fd = -1;
  if (setup == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a worker's setup");
  setup->version = NPI_WORKER_SETUP_VERSION;
  setup->listener_bytes = sizeof(struct npi_worker_listener);
  memcpy(setup->instance, config->instance, sizeof setup->instance);
  memcpy(setup->control_path, broker->socket_path, sizeof setup->control_path);
  setup->node = broker->topology.node[worker->node].id;
  setup->cpu = config->ingest.pin == NPI_CONFIG_PIN_OFF ? NPI_WORKER_CPU_ANY : NPI_WORKER_CPU_NODE;
  setup->worker = worker->number;
  setup->backend = (uint32_t)config->ingest.backend;
  setup->staging_buffers = config->ingest.staging_buffers;
  setup->staging_bytes = config->ingest.staging_bytes;
  setup->unfinished_bytes = config->ingest.unfinished_bytes;
  setup->log_level = (uint32_t)config->log_level;
  setup->drain_timeout_ms = config->drain_timeout_ms;
  setup->orphan_timeout_ms = config->ingest.orphan_timeout_ms;
  for (uint32_t i = 0; i < broker->workers.n_listeners; i++) {
    const struct npi_listener *listener = &broker->workers.listeners[i];
    if (listener->sockets[worker->number].fd < 0) continue;
    struct npi_worker_listener *to = &setup->listener[setup->n_listeners++];
    to->config = *listener->config;
    to->config.port = listener->sockets[worker->number].port;
    to->fd = listener->sockets[worker->number].fd;
    to->registry_index = i;
    to->kernel_drops_before = listener->kernel_drops[worker->number];
  }
  int made = memfd_create("numapool.worker-setup", MFD_CLOEXEC);
  int status = 0;
  if (made < 0 || write(made, setup, bytes) != (ssize_t)bytes) {
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot write the setup of ingest worker %u", worker->number);
  }
  free(setup);
  if (status != 0 && made >= 0) close(made);
  if (status == 0) *fd = made;
  return status;
}

static void keep_over_exec(int fd) {
  int flags = fcntl(fd, F_GETFD);
  if (flags >= 0) fcntl(fd, F_SETFD, flags & ~FD_CLOEXEC);
}

static void become_worker(const struct npi_worker *worker, int setup_fd) {
  char option[40], name[] = "numapoold";
  sigset_t none;
  keep_over_exec(setup_fd);
  for (uint32_t i = 0; i < worker->broker->workers.n_listeners; i++) {
    int fd = worker->broker->workers.listeners[i].sockets[worker->number].fd;
    if (fd >= 0) keep_over_exec(fd);
  }
  /* A group of its own: Ctrl-C at the terminal is for the broker, which then drains its workers. */
  setpgid(0, 0);
  signal(SIGPIPE, SIG_DFL);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  snprintf(option, sizeof option, "--ingest-worker=%d", setup_fd);
  execv("/proc/self/exe", (char *const[]){name, option, NULL});
  _exit(127);
}

static int start_worker(struct npi_worker *worker) {
  int setup_fd;
  int status = write_setup(worker, &setup_fd);
  if (status != 0) return status;
  pid_t pid = fork();
  if (pid == 0) become_worker(worker, setup_fd);
  int error = errno;
  close(setup_fd);
  if (pid < 0) return npi_fail_errno(NP_ERR_SYSTEM, error, "cannot start ingest worker %u", worker->number);
  status = npi_process_pidfd(pid, &worker->pidfd); /* a child that was not waited for: it is still this one */
  if (status != 0) {
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return status;
  }
  worker->pid = pid;
  npi_process_start_time(pid, &worker->start_time);
  npi_keep_worker(worker->broker, worker->number);
  worker->ready = 0;
  worker->started_ns = npi_clock_monotonic();
  npi_log(NPI_LOG_INFO, "worker.started", "worker=%u pid=%d node=%d listeners=%u", worker->number, (int)pid,
          worker->broker->topology.node[worker->node].id, worker->n_listeners);
  return 0;
}

int npi_workers_start(struct npi_broker *broker) {
  for (uint32_t i = 0; i < broker->workers.n_workers; i++) {
    struct npi_worker *worker = &broker->workers.workers[i];
    if (worker->n_listeners == 0 || worker->pid != 0) continue;
    if (broker->adopt != NULL) { /* it died while there was no broker */
      set_worker_listeners(worker, NPI_LISTENER_DOWN, 0);
      npi_timer_begin(&broker->loop, &worker->restart, 0);
      continue;
    }
    int status = start_worker(worker);
    if (status != 0) return status;
  }
  return 0;
}

static void restart_worker(struct npi_timer *timer) {
  struct npi_worker *worker = timer->owner;
  struct npi_broker *broker = worker->broker;
  if (broker->draining) return;
  npi_registry_count(&broker->registry, NPI_BROKER_WORKER_RESTARTS, 1);
  set_worker_listeners(worker, NPI_LISTENER_STARTING, 1);
  if (start_worker(worker) == 0) return;
  npi_log(NPI_LOG_ERROR, "worker.not_started", "worker=%u reason=\"%s\"", worker->number, npi_detail());
  npi_timer_begin(&broker->loop, &worker->restart, worker->back_off_ns);
}

/* how: as waitpid() says it; -1: it was no child, so that nobody knows. */
static void worker_ended(struct npi_worker *worker, int how) {
  struct npi_broker *broker = worker->broker;
  int killed = how < 0 || WIFSIGNALED(how), code = how < 0 ? 0 : killed ? WTERMSIG(how) : WEXITSTATUS(how);
  pid_t pid = worker->pid;
  int was_ready = worker->ready;
  npi_keep_drop(broker, NPI_KEPT_WORKER, worker->number, (uint32_t)pid);
  npi_watch_end(&broker->loop, &worker->watch);
  close(worker->pidfd);
  worker->pidfd = -1;
  worker->pid = 0;
  worker->ready = worker->adopted = 0;
  set_worker_listeners(worker, NPI_LISTENER_DOWN, 0);
  npi_log(broker->draining && how <= 0 ? NPI_LOG_INFO : NPI_LOG_WARNING, "worker.ended", "worker=%u pid=%d %s=%d",
          worker->number, (int)pid, killed ? "signal" : "status", code);
  if (broker->draining) {
    npi_broker_drained(broker);
    return;
  }
  if (!was_ready && !broker->ready && !broker->adopted && !killed) {
    npi_broker_fail(broker, npi_fail(NP_ERR_SYSTEM,
                                     "ingest worker %u could not start (it ended with status %d; its "
                                     "own lines above say why)",
                                     worker->number, code));
    return;
  }
  if (npi_clock_monotonic() - worker->started_ns > FINE_AFTER_NS) worker->back_off_ns = BACK_OFF_MIN_NS;
  npi_timer_begin(&broker->loop, &worker->restart, worker->back_off_ns);
  worker->back_off_ns = worker->back_off_ns * 2 < BACK_OFF_MAX_NS ? worker->back_off_ns * 2 : BACK_OFF_MAX_NS;
}

void npi_workers_child_ended(struct npi_broker *broker) {
  for (uint32_t i = 0; i < broker->workers.n_workers; i++) {
    struct npi_worker *worker = &broker->workers.workers[i];
    int how;
    if (worker->pid == 0 || worker->adopted) continue;
    if (waitpid(worker->pid, &how, WNOHANG) == worker->pid) worker_ended(worker, how);
  }
}

static void adopted_ended(struct npi_watch *watch, uint32_t events) {
  (void)events;
  worker_ended(watch->owner, -1);
}

/* Serving, if its listeners were; else it says so when it is. */
int npi_workers_adopt(struct npi_broker *broker, uint32_t number, pid_t pid, uint64_t start_time, int pidfd) {
  struct npi_worker *worker = &broker->workers.workers[number];
  worker->pid = pid;
  worker->pidfd = pidfd;
  worker->start_time = start_time;
  worker->adopted = 1;
  worker->started_ns = npi_clock_monotonic();
  worker->ready = 1;
  for (uint32_t i = 0; i < broker->workers.n_listeners; i++) {
    if (broker->workers.listeners[i].sockets[number].fd < 0) continue;
    uint32_t state = npi_load_relaxed_u32(&broker->registry.listeners[i].state);
    if (state != NPI_LISTENER_LISTENING) worker->ready = 0;
  }
  npi_log(NPI_LOG_INFO, "worker.adopted", "worker=%u pid=%d serving=%d", number, (int)pid, worker->ready);
  return npi_watch_begin(&broker->loop, &worker->watch, pidfd, EPOLLIN);
}

/* ---- what the broker asks ---- */

uint32_t npi_workers_number(const struct npi_broker *broker, pid_t pid) {
  for (uint32_t i = 0; i < broker->workers.n_workers; i++) {
    if (pid != 0 && broker->workers.workers[i].pid == pid)
      return i; /* 0: none runs; and peers of other pid namespaces */
  }
  return NPI_NONE;
}

void npi_workers_ready(struct npi_broker *broker, pid_t pid, uint32_t backend) {
  for (uint32_t i = 0; i < broker->workers.n_workers; i++) {
    struct npi_worker *worker = &broker->workers.workers[i];
    if (worker->pid != pid || worker->ready) continue;
    worker->ready = 1;
    set_worker_listeners(worker, NPI_LISTENER_LISTENING, 0);
    npi_log(NPI_LOG_INFO, "worker.serving", "worker=%u pid=%d backend=%s", worker->number, (int)pid,
            backend == 1 ? "io_uring" : "epoll");
    npi_broker_check_ready(broker);
  }
}

int npi_workers_all_ready(const struct npi_broker *broker) {
  for (uint32_t i = 0; i < broker->workers.n_workers; i++) {
    if (broker->workers.workers[i].n_listeners > 0 && !broker->workers.workers[i].ready) return 0;
  }
  return 1;
}

uint32_t npi_workers_running(const struct npi_broker *broker) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < broker->workers.n_workers; i++) n += broker->workers.workers[i].pid != 0;
  return n;
}

/* A socket counts its drops from its beginning; the next worker must not count again what this one has. */
static void remember_kernel_drops(struct npi_broker *broker, const struct npi_client *client) {
  const struct npi_listener_counters *counters =
      (const struct npi_listener_counters *)(const void *)(client->page + broker->registry.page_listeners_offset);
  if (client->worker >= broker->workers.n_workers) return;
  uint64_t of = (uint64_t)client->index << 32 | client->version;
  for (uint32_t i = 0; i < broker->workers.n_listeners; i++) {
    struct npi_listener *listener = &broker->workers.listeners[i];
    if (listener->drops_of[client->worker] == of) continue; /* a predecessor has done that */
    listener->drops_of[client->worker] = of;
    listener->kernel_drops[client->worker] +=
        (uint32_t)npi_load_relaxed_u64(&counters[i].value[NPI_LISTENER_DROPPED_KERNEL]);
    npi_keep_listener(broker, i, client->worker);
  }
}

void npi_workers_remember(struct npi_broker *broker, const struct npi_client *client) {
  remember_kernel_drops(broker, client);
  npi_account_worker(broker, client);
}

void npi_workers_drain(struct npi_broker *broker) {
  for (uint32_t i = 0; i < broker->workers.n_workers; i++) {
    struct npi_worker *worker = &broker->workers.workers[i];
    npi_timer_end(&broker->loop, &worker->restart);
    if (worker->pid != 0 && !worker->ready) npi_process_signal(worker->pidfd, SIGKILL); /* it holds nothing yet */
  }
  for (uint32_t i = 0; i < broker->registry.n_clients; i++) {
    struct npi_client *client = broker->clients[i];
    struct npi_control_frame frame;
    if (client == NULL || client->kind != NPI_CLIENT_WORKER || !npi_session_reachable(client)) continue;
    npi_control_init(&frame, NPI_CONTROL_DRAIN, 0, 0);
    npi_session_event(client, &frame, NULL, 0);
  }
}

void npi_workers_deinit(struct npi_broker *broker) {
  struct npi_workers *workers = &broker->workers;
  for (uint32_t i = 0; workers->workers != NULL && i < workers->n_workers; i++) {
    struct npi_worker *worker = &workers->workers[i];
    npi_timer_end(&broker->loop, &worker->restart);
    if (worker->pid == 0) continue;
    npi_log(NPI_LOG_WARNING, "worker.killed", "worker=%u pid=%d", worker->number, (int)worker->pid);
    npi_watch_end(&broker->loop, &worker->watch);
    npi_process_signal(worker->pidfd, SIGKILL);
    if (worker->adopted) {
      npi_wait_readable(&worker->pidfd, 1, END_PATIENCE_NS);
    } else {
      waitpid(worker->pid, NULL, 0);
    }
    close(worker->pidfd);
  }
  for (uint32_t i = 0; i < workers->n_listeners; i++) {
    struct npi_listener *listener = &workers->listeners[i];
    for (uint32_t k = 0; listener->sockets != NULL && k < workers->n_workers; k++) {
      npi_listener_socket_close(&listener->sockets[k]);
    }
    free(listener->sockets);
    free(listener->kernel_drops);
    free(listener->drops_of);
  }
  free(workers->workers);
  free(workers->listeners);
  free(workers->rows);
  memset(workers, 0, sizeof *workers);
}
