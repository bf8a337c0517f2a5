/* SPDX-License-Identifier: Apache-2.0 */
/* A real broker inside a fuzzer's process: its loop is turned by hand, its clients are ends of socket pairs. */
#ifndef NUMAPOOL_TESTS_BROKER_RIG_H
#define NUMAPOOL_TESTS_BROKER_RIG_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/keeper.h"
#include "daemon/session.h"

#define PROMISE(condition)                                                            \
  do {                                                                                \
    if (!(condition)) {                                                               \
      fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                                        \
    }                                                                                 \
  } while (0)

static struct npi_config config;
static struct npi_broker broker;
static struct npi_watch stopper; /* always ready: the loop makes one turn, then stops */
static char folder[64];
static int stopper_fd;

/* The broker starts its keeper as /proc/self/exe, which is this program here. */
__attribute__((constructor)) static void be_the_keeper(int argc, char **argv) {
  if (argc == 2 && strncmp(argv[1], "--keeper=", 9) == 0) _exit(npi_keeper_main(atoi(argv[1] + 9)));
}

static void stop_after_turn(struct npi_watch *watch, uint32_t events) {
  (void)watch;
  (void)events;
  npi_loop_stop(&broker.loop);
}

static void broker_turn(void) {
  broker.loop.stopped = 0;
  PROMISE(npi_loop_run(&broker.loop) == 0);
}

/* text: settings without instance and runtime_dir. */
static void broker_begin(const char *text) {
  static int log_fd = 2;
  char more[1024], instance[32];
  if (getenv("NUMAPOOL_FUZZ_LOG") != NULL) npi_log_set_sink(npi_log_sink_fd, &log_fd, NPI_LOG_DEBUG);
  snprintf(folder, sizeof folder, "/tmp/numapool-fuzz-XXXXXX");
  PROMISE(mkdtemp(folder) != NULL);
  int n = snprintf(more, sizeof more, "runtime_dir: %s/run\n%s", folder, text);
  snprintf(instance, sizeof instance, "fuzz-%d", (int)getpid());
  npi_config_init(&config);
  int status = npi_config_parse(&config, "fuzz", more, (size_t)n);
  if (status == 0) status = npi_config_finish(&config, instance);
  if (status != 0) fprintf(stderr, "%s\n", config.errors);
  PROMISE(status == 0);
  status = npi_broker_start(&broker, &config, 0);
  if (status != 0) fprintf(stderr, "%s\n", npi_detail());
  PROMISE(status == 0);
  npi_watch_init(&stopper, stop_after_turn, NULL);
  stopper_fd = eventfd(1, EFD_CLOEXEC);
  PROMISE(stopper_fd >= 0 && npi_watch_begin(&broker.loop, &stopper, stopper_fd, EPOLLIN) == 0);
}

static void broker_end(void) {
  char command[96];
  npi_broker_stop(&broker);
  npi_config_deinit(&config);
  close(stopper_fd);
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  PROMISE(system(command) == 0);
}

/* The client's end of a new session. */
static int broker_session(void) {
  int pair[2];
  PROMISE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
  PROMISE(npi_session_begin(&broker, pair[1]) == 0);
  return pair[0];
}

#endif
