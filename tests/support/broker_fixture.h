/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real numapoold for one test: its own instance and runtime directory, so that tests cannot meet. What goes
 * wrong ends the running Criterion test and shows the broker's log.
 */
#ifndef NUMAPOOL_TESTS_BROKER_FIXTURE_H
#define NUMAPOOL_TESTS_BROKER_FIXTURE_H

#include <sys/types.h>

struct npi_test_broker {
  pid_t pid; /* 0: does not run */
  char instance[33];
  char folder[64]; /* everything of this test; removed by stop */
  char runtime_dir[80];
  char socket_path[104];
  char config_path[80];
  char log_path[80];
};

/* Names only; start and refused do it themselves where it has not been done. */
void npi_test_broker_prepare(struct npi_test_broker *broker);

/* Starts it with the given settings (YAML without instance and runtime_dir; NULL: none) and waits for READY=1. */
void npi_test_broker_start(struct npi_test_broker *broker, const char *yaml);

/* The same for a broker that must not start: returns its exit status. */
int npi_test_broker_refused(struct npi_test_broker *broker, const char *yaml);

/* SIGTERM; asserts exit status 0, and that neither /dev/shm nor the runtime directory holds anything of it. */
void npi_test_broker_stop(struct npi_test_broker *broker);

/* SIGKILL. The broker can be started again. */
void npi_test_broker_kill(struct npi_test_broker *broker);

/* The broker and its keeper at once: who comes next cannot go on with anything. Not for a broker that was adopted. */
void npi_test_broker_kill_with_keeper(struct npi_test_broker *broker);

/* Removes what a killed or refused broker has left. */
void npi_test_broker_clean(struct npi_test_broker *broker);

int npi_test_broker_log_contains(const struct npi_test_broker *broker, const char *text);
/* Waits up to 20 seconds for it. */
int npi_test_broker_log_will_contain(const struct npi_test_broker *broker, const char *text);

/* Objects of the instance in /dev/shm. */
int npi_test_broker_shm_count(const struct npi_test_broker *broker);

#endif
