/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the broker tells an ingest worker before it starts: plain data in a memfd that the worker inherits, together
 * with the sockets that it names. Both are the same program, so the version is only a guard against a stale binary.
 */
#ifndef NPI_DAEMON_WORKER_SETUP_H
#define NPI_DAEMON_WORKER_SETUP_H

#include <stdint.h>

#include "daemon/config.h"

#define NPI_WORKER_SETUP_VERSION UINT32_C(1)

enum { NPI_WORKER_CPU_NODE = -1, NPI_WORKER_CPU_ANY = -2 };

struct npi_worker_listener {
  struct npi_listener_config config;
  int32_t fd;                   /* inherited */
  uint32_t registry_index;      /* of the listener's record; names its counters */
  uint32_t kernel_drops_before; /* drops of this socket that an earlier worker has counted; a new socket: 0 */
  uint32_t reserved;
};

struct npi_worker_setup {
  uint32_t version;
  uint32_t listener_bytes; /* sizeof(struct npi_worker_listener) */
  char instance[NPI_CONFIG_INSTANCE_BYTES];
  char control_path[NPI_CONFIG_PATH_BYTES];
  int32_t node; /* as the operating system numbers it */
  int32_t cpu;  /* run on this one, or NPI_WORKER_CPU_* */
  uint32_t worker;
  uint32_t backend; /* enum npi_config_ingest */
  uint32_t staging_buffers;
  uint32_t log_level; /* enum npi_log_level */
  uint64_t staging_bytes;
  uint64_t unfinished_bytes;
  uint64_t drain_timeout_ms;
  uint64_t orphan_timeout_ms; /* without a broker; 0: none */
  uint32_t n_listeners;
  uint32_t reserved;
  struct npi_worker_listener listener[];
};

#endif
