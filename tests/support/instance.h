/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real broker for one test: its own instance name, its own runtime directory, its log in a file. Failures end
 * the running Criterion test, with the end of the broker's log.
 */
#ifndef NUMAPOOL_TESTS_INSTANCE_H
#define NUMAPOOL_TESTS_INSTANCE_H

#include <stdint.h>
#include <sys/types.h>

#include "core/counters.h"
#include "tests/support/eventually.h"

struct instance {
  char name[40];
  char folder[64]; /* $XDG_RUNTIME_DIR of the broker and of its clients */
  char log[96];
  char config[96];
  char runtime[128]; /* ${runtime} */
  pid_t pid;
  int (*before_exec)(void); /* in the process of each of its brokers */
  int first_descriptors;    /* of the broker when it was ready, segments not counted */
  const uint8_t *registry;
  uint64_t registry_bytes;
  char leftovers[1024]; /* what instance_shm_count found last */
};

/*
 * Writes the configuration (YAML; `instance` is added) and starts numapoold; returns when it says READY=1 and the
 * environment of this process leads its clients there. before_exec may be NULL; it runs in the broker's process.
 */
void instance_start(struct instance *instance, const char *yaml, int (*before_exec)(void));

/* SIGKILL for the broker, and for nobody else. */
void instance_kill(struct instance *instance);
/*
 * The broker again, with the same command line and perhaps one option more (NULL: none). Returns when it is ready, with
 * the milliseconds that took. Where another one runs, it stays the instance's: use it with --takeover.
 */
double instance_start_again(struct instance *instance, const char *option);
/* After it, where the instance began anew: the registry is another object. */
void instance_map_again(struct instance *instance);
/* The same, and nobody waits for it: its pid. */
pid_t instance_launch(struct instance *instance, const char *option);

/* As instance_start, but expects the broker to refuse: returns its exit status, log in instance->log. */
int instance_start_refused(struct instance *instance, const char *yaml, int (*before_exec)(void));

/* Removes the directory of a broker that was refused, or that the test itself ended. */
void instance_forget(const struct instance *instance);

/* Waits until no client but ingest workers is left in the registry, nothing is leased to one, no connection exists
 * and the broker has the descriptors that it began with; fsck is clean. */
void instance_expect_quiet(struct instance *instance);

/* instance_expect_quiet, SIGTERM, exit status 0, nothing of the instance in /dev/shm or its directory. */
void instance_stop(struct instance *instance);

/* Objects of the instance in /dev/shm. */
int instance_shm_count(struct instance *instance);

const struct npi_registry_header *instance_header(const struct instance *instance);
uint64_t instance_broker_counter(const struct instance *instance, unsigned row);

/* Listener by its name: record, and the sum of a counter over all workers' pages. */
const struct npi_listener_record *instance_listener(const struct instance *instance, const char *name);
uint16_t instance_port(const struct instance *instance, const char *name);
uint64_t instance_listener_counter(const struct instance *instance, const char *name, unsigned row);
/* Pid of an ingest worker; 0: none. */
pid_t instance_worker(const struct instance *instance);

/* Connections of the registry that are not free, those of pid only where it is not 0. */
int instance_connections(const struct instance *instance, pid_t pid);
/* Clients that the registry knows with this pid (0: any but workers), whatever their state. */
int instance_clients(const struct instance *instance, pid_t pid);
int instance_segments_leased(const struct instance *instance, pid_t pid);

/* What a process has open, segments not counted; -1: it is gone. */
int instance_descriptors(pid_t pid);

/* Memory that is a process's own, in KiB; shared memory does not count. -1: it is gone. */
long instance_own_kib(pid_t pid);

/* Does the log hold the text? */
int instance_log_has(const struct instance *instance, const char *text);
void instance_print_log(const struct instance *instance);

/* The program's tests print figures with it: one line, at once, on standard error. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
