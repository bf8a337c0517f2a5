/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One ingest worker: setup, one loop, drain. The order of the start matters: first the CPU, so that all memory that
 * follows is first touched on the right node; then the broker, for counters and publishers; sockets last, so that the
 * first byte that is read already has a place to go.
 *
 * Signals that end a whole group (a terminal's interrupt, a service manager's TERM) are left to the broker, which ends
 * its workers in order. Where the broker is gone the worker goes on receiving until a successor takes it over; then it
 * ends by itself only when the instance began anew, when `ingest.orphan_timeout` is over, or at SIGTERM.
 */
#include "daemon/worker.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "client/worker.h"
#include "core/counters.h"
#include "daemon/ingest.h"
#include "daemon/ingest_publish.h"
#include "daemon/worker_setup.h"
#include "numapool/numapool.h"
#include "os/os_clock.h"
#include "os/os_numa.h"

enum { CONNECT_TIMEOUT_MS = 5000, RETRY_US = 20000, LISTENERS_MAX = 4096, ORPHAN_DRAIN_MS = 1000, DRAIN_LAST_MS = 500 };

#define TURN_NS_MAX UINT64_C(1000000000)
#define AWAY_NS     UINT64_C(50000000)  /* a turn while there is no broker */
#define CARE_NS     UINT64_C(100000000) /* between looks at memory that can go back */
#define NS_PER_MS   UINT64_C(1000000)

struct worker {
  struct npi_worker_setup *setup;
  struct np_client *client;
  struct npi_ingest_publishers publishers;
  struct npi_ingest *ingest;
  uint32_t is_draining;
  uint32_t is_orphan; /* the broker is gone, and this worker goes as well */
  uint32_t socket;    /* number of the client's socket that is watched */
  uint64_t away_ns;   /* since when there is no broker; 0: there is one */
};

static volatile sig_atomic_t is_asked_to_end;

static void on_term(int signal) {
  (void)signal;
  is_asked_to_end = 1;
}

static int read_setup(int fd, struct npi_worker_setup **result_setup) {
  struct npi_worker_setup *setup;
  struct stat status;
  size_t bytes, at = 0;

  *result_setup = NULL;
  if (fstat(fd, &status) < 0) return npi_fail_errno(NP_ERR_SYSTEM, errno, "setup descriptor %d", fd);
  bytes = (size_t)status.st_size;
  if (status.st_size < (off_t)sizeof(*setup) || bytes > sizeof(*setup) + LISTENERS_MAX * sizeof(setup->listener[0]))
    return npi_fail(NP_ERR_PROTOCOL, "a setup of %zu bytes is none", bytes);
  setup = malloc(bytes);
  if (!setup) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a setup of %zu bytes", bytes);
  while (at < bytes) {
    ssize_t n = pread(fd, (char *)setup + at, bytes - at, (off_t)at);
    if (n <= 0) {
      free(setup);
      return npi_fail_errno(NP_ERR_SYSTEM, n < 0 ? errno : ENODATA, "reading the setup");
    }
    at += (size_t)n;
  }
  if (setup->version != NPI_WORKER_SETUP_VERSION || setup->listener_bytes != sizeof(setup->listener[0]) ||
      setup->n_listeners > LISTENERS_MAX || bytes < sizeof(*setup) + setup->n_listeners * sizeof(setup->listener[0])) {
    int result = npi_fail(NP_ERR_VERSION,
                          "setup version %u of %zu bytes for %u listeners, expected version %u: the broker is of "
                          "another build; restart it",
                          setup->version, bytes, setup->n_listeners, NPI_WORKER_SETUP_VERSION);
    free(setup);
    return result;
  }
  *result_setup = setup;
  return 0;
}

/* Runs on slower memory are better than no runs: a failure is only logged. */
static void pin(const struct npi_worker_setup *setup) {
  struct npi_numa_topology *topology;

  if (setup->cpu == NPI_WORKER_CPU_ANY) return;
  topology = malloc(sizeof(*topology));
  if (!topology) return;
  if (npi_numa_discover(topology) < 0 ||
      npi_numa_pin_thread(topology, setup->node, setup->cpu >= 0 ? setup->cpu : -1) != 0)
    npi_log(NPI_LOG_WARNING, "worker.not_pinned", "worker=%u node=%d cpu=%d reason=\"%s\"", setup->worker, setup->node,
            setup->cpu, npi_detail());
  free(topology);
}

/* Connections are descriptors, and the usual soft limit of 1024 is less than one listener may be configured for. */
static void raise_descriptor_limit(void) {
  struct rlimit limit;

  if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

static int connect_to_broker(struct worker *worker) {
  const struct npi_worker_setup *setup = worker->setup;
  struct np_options options;
  char name[NPI_CLIENT_NAME_BYTES];

  snprintf(name, sizeof(name), "ingest-%u", setup->worker);
  np_options_init(&options);
  options.instance = setup->instance;
  options.socket_path = setup->control_path;
  options.node = setup->node;
  options.name = name;
  options.timeout_ms = CONNECT_TIMEOUT_MS;
  return npi_client_connect(&worker->client, &options, NPI_CLIENT_WORKER);
}

static int open_publishers(struct worker *worker) {
  const struct npi_worker_setup *setup = worker->setup;
  int result = npi_ingest_publishers_init(&worker->publishers, setup->n_listeners);

  for (uint32_t i = 0; i < setup->n_listeners && result == 0; i++) {
    uint64_t until = npi_clock_monotonic() + CONNECT_TIMEOUT_MS * NS_PER_MS;
    do {
      if (result != 0) usleep(RETRY_US); /* the broker died over it: its successor is asked */
      result = npi_ingest_publishers_add(&worker->publishers, worker->client, setup->listener[i].config.channel,
                                         setup->listener[i].registry_index);
    } while (result == NP_ERR_NO_BROKER && npi_clock_monotonic() < until);
  }
  return result;
}

static int tell_ready(struct worker *worker) {
  return npi_client_worker_ready(worker->client, npi_ingest_backend_number(worker->ingest),
                                 npi_ingest_features(worker->ingest));
}

static void lose_broker(struct worker *worker, uint64_t now) {
  const struct npi_worker_setup *setup = worker->setup;

  if (worker->away_ns == 0) {
    worker->away_ns = now;
    npi_ingest_stop_watching(worker->ingest);
    npi_log(NPI_LOG_WARNING, "worker.broker_lost", "worker=%u connections=%u reason=\"goes on receiving\"",
            setup->worker, npi_ingest_connections(worker->ingest));
  }
  if (is_asked_to_end ||
      (setup->orphan_timeout_ms > 0 && now - worker->away_ns >= setup->orphan_timeout_ms * NS_PER_MS))
    worker->is_orphan = 1;
}

static void follow_broker(struct worker *worker) {
  int result = npi_client_poll(worker->client);

  if (result == NPI_CLIENT_DRAIN) worker->is_draining = 1;
  if (result < 0) {
    npi_log(NPI_LOG_WARNING, "worker.orphaned", "worker=%u reason=\"%s\"", worker->setup->worker, npi_detail());
    npi_ingest_stop_watching(worker->ingest);
    worker->is_orphan = 1;
    return;
  }
  if (result == NPI_CLIENT_AWAY) {
    lose_broker(worker, npi_clock_monotonic());
    return;
  }
  if (npi_client_socket_number(worker->client) != worker->socket) {
    worker->socket = npi_client_socket_number(worker->client);
    if (npi_ingest_watch_instead(worker->ingest, npi_client_control_fd(worker->client)) < 0)
      npi_log(NPI_LOG_ERROR, "worker.not_watching", "reason=\"%s\"", npi_detail());
  }
  if (result != 0 || worker->away_ns == 0) return;
  npi_log(NPI_LOG_INFO, "worker.broker_back", "worker=%u ms=%" PRIu64, worker->setup->worker,
          (npi_clock_monotonic() - worker->away_ns) / NS_PER_MS);
  worker->away_ns = 0;
  tell_ready(worker);
}

static void on_control(void *context) {
  follow_broker(context);
}

static int watch_broker(struct worker *worker) {
  uint32_t n_pausing = 0;
  int result = npi_ingest_watch(worker->ingest, npi_client_control_fd(worker->client), on_control, worker);
  worker->socket = npi_client_socket_number(worker->client);
  int credit_fd;

  if (result < 0) return result;
  for (uint32_t i = 0; i < worker->setup->n_listeners; i++)
    n_pausing += worker->setup->listener[i].config.on_full != NPI_CONFIG_LISTENER_DROP_NEWEST;
  if (n_pausing == 0) return 0; /* nobody waits for credits: then refusals need not arm a descriptor */
  credit_fd = npi_client_credits_fd(worker->client);
  return credit_fd < 0 ? credit_fd : npi_ingest_watch_credit(worker->ingest, credit_fd);
}

static int start_ingest(struct worker *worker) {
  const struct npi_worker_setup *setup = worker->setup;
  struct npi_ingest_listener_options *listeners =
      calloc(setup->n_listeners ? setup->n_listeners : 1, sizeof(*listeners));
  struct npi_ingest_options options = {
      .backend = (enum npi_config_ingest)setup->backend,
      .staging_buffers = setup->staging_buffers,
      .staging_bytes = setup->staging_bytes,
      .carry_bytes = setup->unfinished_bytes,
      .worker = setup->worker,
      .sink = npi_ingest_publishers_sink(&worker->publishers),
      .listeners = listeners,
      .n_listeners = setup->n_listeners,
  };
  int result = listeners ? 0 : npi_fail(NP_ERR_NO_MEMORY, "no memory for %u listeners", setup->n_listeners);

  for (uint32_t i = 0; i < setup->n_listeners && result == 0; i++) {
    const struct npi_worker_listener *listener = &setup->listener[i];
    listeners[i] = (struct npi_ingest_listener_options){
        .config = &listener->config,
        .counters = npi_client_listener_counters(worker->client, listener->registry_index),
        .fd = listener->fd,
        .kernel_drops_before = listener->kernel_drops_before,
    };
    if (!listeners[i].counters)
      result = npi_fail(NP_ERR_PROTOCOL, "listener %s has no counters at index %u", listener->config.name,
                        listener->registry_index);
  }
  if (result == 0) result = npi_ingest_new(&worker->ingest, &options);
  free(listeners);
  return result == 0 ? watch_broker(worker) : result;
}

static int run(struct worker *worker) {
  uint64_t care_ns = 0;
  int result = 0;

  while (result == 0 && !worker->is_draining && !worker->is_orphan) {
    uint64_t now;

    result = npi_ingest_turn(worker->ingest, worker->away_ns > 0 ? AWAY_NS : TURN_NS_MAX);
    now = npi_clock_monotonic();
    if (worker->away_ns > 0) follow_broker(worker);
    if (now < care_ns) continue;
    care_ns = now + CARE_NS;
    npi_client_tick(worker->client);
  }
  return result;
}

/* Frames of all listeners that found no slot or no credit. */
static uint64_t count_dropped(const struct worker *worker) {
  uint64_t n = 0;

  for (uint32_t i = 0; i < worker->setup->n_listeners; i++) {
    const struct npi_listener_counters *counters =
        npi_client_listener_counters(worker->client, worker->setup->listener[i].registry_index);
    n += npi_load_relaxed_u64(&counters->value[NPI_LISTENER_DROPPED_POOL]);
    n += npi_load_relaxed_u64(&counters->value[NPI_LISTENER_DROPPED_CREDIT]);
  }
  return n;
}

static int drain(struct worker *worker) {
  uint64_t limit_ms = worker->setup->drain_timeout_ms;
  /* At its limit the broker kills: some of the time is for counting what found no slot, and for a goodbye. */
  uint64_t last_ms = limit_ms / 4 < DRAIN_LAST_MS ? limit_ms / 4 : DRAIN_LAST_MS;
  uint64_t wait_ms = worker->is_orphan ? ORPHAN_DRAIN_MS : limit_ms - last_ms;
  uint64_t begin = npi_clock_monotonic();
  uint64_t dropped = count_dropped(worker);
  int result;

  npi_log(NPI_LOG_INFO, "worker.drain", "worker=%u connections=%u broker=%s", worker->setup->worker,
          npi_ingest_connections(worker->ingest), worker->is_orphan ? "gone" : "here");
  result = npi_ingest_drain(worker->ingest, begin + wait_ms * NS_PER_MS);
  dropped = count_dropped(worker) - dropped;
  npi_log(dropped > 0 ? NPI_LOG_WARNING : NPI_LOG_INFO, "worker.drained", "worker=%u ms=%" PRIu64 " dropped=%" PRIu64,
          worker->setup->worker, (npi_clock_monotonic() - begin) / NS_PER_MS, dropped);
  return result;
}

static int serve(struct worker *worker) {
  int result = connect_to_broker(worker);

  if (result == 0) result = open_publishers(worker);
  if (result == 0) result = start_ingest(worker);
  if (result == 0) result = tell_ready(worker);
  if (result == NP_ERR_NO_BROKER) result = 0; /* said again when there is one */
  if (result < 0) return result;
  npi_log(NPI_LOG_INFO, "worker.ready", "worker=%u node=%d pid=%d listeners=%u", worker->setup->worker,
          np_client_node(worker->client), (int)getpid(), worker->setup->n_listeners);
  result = run(worker);
  return result < 0 ? result : drain(worker);
}

int npi_worker_main(int setup_fd) {
  static int log_fd = STDERR_FILENO;
  struct worker worker = {0};
  int result;

  prctl(PR_SET_NAME, "numapool-ingest");
  signal(SIGINT, SIG_IGN);
  sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_term, .sa_flags = SA_RESTART}, NULL);
  signal(SIGHUP, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  npi_log_set_sink(npi_log_sink_fd, &log_fd, NPI_LOG_INFO);
  result = read_setup(setup_fd, &worker.setup);
  close(setup_fd);
  if (result == 0) {
    npi_log_set_sink(npi_log_sink_fd, &log_fd, (enum npi_log_level)worker.setup->log_level);
    raise_descriptor_limit();
    pin(worker.setup);
    result = serve(&worker);
  }
  if (result < 0)
    npi_log(NPI_LOG_ERROR, "worker.failed", "worker=%u reason=\"%s\"", worker.setup ? worker.setup->worker : 0,
            npi_detail());
  npi_ingest_free(worker.ingest);
  npi_ingest_publishers_deinit(&worker.publishers);
  np_disconnect(worker.client);
  free(worker.setup);
  return result < 0 || worker.is_orphan ? 1 : 0;
}
