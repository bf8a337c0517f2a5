/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new broker goes on with the instance of one that died, or that made room for it.
 *
 *   look      is there something to adopt: registry, keeper, and somebody who lives? Changes nothing.
 *   begin     the registry is ours: journal, identity; private objects are built from a checked copy of the records
 *   finish    what the earlier broker had begun is finished, who died meanwhile is reaped, the rest is told
 *
 * Every change is one that a broker makes in its normal life, in the same order, and doing it again changes nothing:
 * whoever is killed in here leaves what the next one can adopt.
 */
#ifndef NPI_DAEMON_ADOPT_H
#define NPI_DAEMON_ADOPT_H

#include <stddef.h>
#include <sys/types.h>

#include "daemon/adopt_image.h"
#include "daemon/keep.h"

struct npi_broker;
struct npi_config;
struct npi_registry;

enum { NPI_ADOPT_NOTHING = 1 };

struct npi_adopt {
  void *copy; /* of the registry; image points into it */
  size_t bytes;
  struct npi_adopt_image image;
  struct npi_kept_list kept;
  uint32_t n_dead, n_lost, n_finished;
};

/*
 * Holder of the lock only. 0: adopt it, broker->adopt, broker->registry and broker->keep are set. NPI_ADOPT_NOTHING:
 * nothing, or nothing that can be adopted: all of it may be cleaned away. < 0: it lives and cannot go on with this
 * configuration; nothing was changed.
 */
int npi_adopt_look(struct npi_broker *broker);

int npi_adopt_begin(struct npi_broker *broker);
void npi_adopt_finish(struct npi_broker *broker);
void npi_adopt_free(struct npi_broker *broker);

/* ---- parts ---- */

/* adopt_config.c: 0, or NP_ERR_CONFIG with the setting, both values and what to do. copy: a registry's, header checked. */
int npi_adopt_check_config(const struct npi_adopt_image *image, const struct npi_config *config, uint32_t n_nodes,
                           uint32_t n_workers);
/* The same before a running broker is asked to make room. */
int npi_adopt_check_running(struct npi_broker *broker);

/* adopt_objects.c */
int npi_adopt_objects(struct npi_broker *broker);
int npi_adopt_workers(struct npi_broker *broker);
void npi_adopt_settle(struct npi_broker *broker);
/* The socket of a listener that the earlier broker left, now the caller's; -1: none. */
int npi_adopt_take_listener(struct npi_adopt *adopt, uint32_t listener, uint32_t worker, uint32_t *drops,
                            uint64_t *drops_of);

#endif
