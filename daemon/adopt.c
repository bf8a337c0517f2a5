/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/adopt.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/channels.h"
#include "daemon/clients.h"
#include "daemon/journal.h"
#include "daemon/session.h"
#include "os/os_memory.h"
#include "os/os_process.h"
#include "os/os_wait.h"
#include "shm/leftovers.h"

/* ---- look ---- */

static int copy_registry(struct npi_adopt *adopt, const struct npi_registry *registry) {
  if (adopt->copy == NULL) adopt->copy = malloc(registry->bytes);
  if (adopt->copy == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a copy of the registry");
  memcpy(adopt->copy, registry->header, registry->bytes);
  adopt->bytes = registry->bytes;
  return 0;
}

/* Where the earlier broker's end was not that of the whole instance. */
static int somebody_lives(const struct npi_adopt *adopt) {
  for (uint32_t i = 0; i < adopt->kept.n_items; i++) {
    const struct npi_kept *item = &adopt->kept.items[i];
    if (item->tag.kind == NPI_KEPT_WORKER && npi_process_is_dead(item->fds[0]) != 1) return 1;
    if (item->tag.kind == NPI_KEPT_CLIENT && item->data[0] != 0 && npi_process_is_dead(item->fds[0]) != 1) return 1;
  }
  return 0;
}

static int compare_objects(int fd, int other, int *is_same) {
  struct stat a, b;
  if (fstat(fd, &a) != 0 || fstat(other, &b) != 0) {
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot ask which objects descriptors %d and %d are of", fd, other);
  }
  *is_same = a.st_dev == b.st_dev && a.st_ino == b.st_ino;
  return 0;
}

/* The keeper's descriptors belong to this registry, not to one of another life under the same name. */
static int check_kept(const struct npi_broker *broker, const struct npi_adopt *adopt) {
  const struct npi_kept *item = npi_kept_find(&adopt->kept, NPI_KEPT_REGISTRY, 0, 0);
  int is_same = 0;
  if (item != NULL && item->n_fds == 1) {
    int status = compare_objects(item->fds[0], broker->registry.fd, &is_same);
    if (status != 0) return status;
  }
  if (!is_same) {
    return npi_fail(NP_ERR_NOT_FOUND, "the keeper belongs to another life of the instance");
  }
  if (!somebody_lives(adopt)) return npi_fail(NP_ERR_NOT_FOUND, "no client and no worker lives");
  return 0;
}

static int validate(const struct npi_broker *broker, struct npi_adopt *adopt, int all) {
  char boot_id[40];
  int status = npi_process_boot_id(boot_id, sizeof boot_id);
  if (status != 0) return status;
  const struct npi_adopt_owner owner = {broker->config->instance, boot_id, (uint32_t)geteuid()};
  return all ? npi_adopt_validate(adopt->copy, adopt->bytes, &owner, &adopt->image)
             : npi_adopt_validate_header(adopt->copy, adopt->bytes, &owner, &adopt->image);
}

/*
 * Is it what was found that cannot be adopted, so that it will not be different next time? Anything else is this
 * configuration's or this moment's trouble: then nothing of those who live may be cleaned away.
 */
static int is_final(int status) {
  return status == NP_ERR_NOT_FOUND || status == NP_ERR_VERSION || status == NP_ERR_CORRUPT ||
         status == NP_ERR_NO_BROKER || status == NP_ERR_PROTOCOL;
}

int npi_adopt_look(struct npi_broker *broker) {
  struct npi_adopt *adopt = calloc(1, sizeof *adopt);
  if (adopt == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory to adopt");
  broker->adopt = adopt;
  int status = npi_registry_open(&broker->registry, broker->config->instance, 1);
  if (status == NP_ERR_NOT_FOUND) goto nothing;
  if (status == 0) status = copy_registry(adopt, &broker->registry);
  if (status == 0) status = validate(broker, adopt, 0);
  /* Also where the registry cannot be adopted: the keeper of it must end. */
  int joined = npi_keep_join(broker, &adopt->kept);
  if (status == 0) status = joined;
  if (status == 0) status = check_kept(broker, adopt);
  if (status == 0) status = validate(broker, adopt, 1);
  if (status == 0) {
    status =
        npi_adopt_check_config(&adopt->image, broker->config, broker->topology.n_nodes, npi_workers_wanted(broker));
    if (status == 0) return 0;
  }
  if (!is_final(status)) {
    npi_adopt_free(broker); /* the keeper goes on waiting for another try */
    npi_keep_leave(broker);
    npi_registry_close(&broker->registry);
    return status;
  }
  npi_log(status == NP_ERR_CORRUPT ? NPI_LOG_ERROR : NPI_LOG_INFO, "broker.not_adopted", "instance=%s reason=\"%s\"",
          broker->config->instance, npi_detail());
nothing:
  npi_adopt_free(broker);
  if (broker->keep.fd >= 0) npi_keep_end(broker);
  npi_registry_close(&broker->registry);
  return NPI_ADOPT_NOTHING;
}

void npi_adopt_free(struct npi_broker *broker) {
  struct npi_adopt *adopt = broker->adopt;
  if (adopt == NULL) return;
  npi_kept_free(&adopt->kept);
  free(adopt->copy);
  free(adopt);
  broker->adopt = NULL;
}

/* ---- begin ---- */

int npi_adopt_begin(struct npi_broker *broker) {
  struct npi_adopt *adopt = broker->adopt;
  npi_registry_set_places(&broker->registry, adopt->image.header);
  npi_journal_replay(&broker->registry);
  int status = npi_registry_take_over(&broker->registry, broker->config);
  if (status == 0) status = copy_registry(adopt, &broker->registry);
  if (status == 0) status = validate(broker, adopt, 1);
  if (status == 0) status = npi_adopt_objects(broker);
  if (status == 0) status = npi_channels_init(broker);
  if (status == 0) status = npi_workers_init(broker);
  if (status == 0) status = npi_adopt_workers(broker);
  return status;
}

/* ---- finish ---- */

static int is_needed(void *context, uint64_t object) {
  const struct npi_broker *broker = context;
  const struct npi_leased *segment;
  for (uint32_t i = 0; i < broker->stock.n_nodes; i++) {
    DL_FOREACH(broker->stock.nodes[i].ready, segment) {
      if (segment->object == object) return 1;
    }
  }
  for (uint32_t i = 0; i < broker->registry.n_clients; i++) {
    if (broker->clients[i] == NULL) continue;
    DL_FOREACH(broker->clients[i]->segments, segment) {
      if (segment->object == object) return 1;
    }
  }
  return 0;
}

/* What the keeper still has of things whose records are free. Taken items have no descriptor any more. */
static void drop_unneeded(struct npi_broker *broker) {
  const struct npi_kept_list *kept = &broker->adopt->kept;
  for (uint32_t i = 0; i < kept->n_items; i++) {
    const struct npi_kept *item = &kept->items[i];
    if (item->tag.kind == NPI_KEPT_REGISTRY || item->n_fds == 0 || item->fds[item->n_fds - 1] < 0) continue;
    uint64_t bytes = 0;
    /* Its broker died between saying that it is free and giving the pages back. */
    if (item->tag.kind == NPI_KEPT_SEGMENT && npi_memory_size(item->fds[0], &bytes) == 0) {
      npi_memory_punch(item->fds[0], 0, bytes);
    }
    npi_keep_drop(broker, (enum npi_kept_kind)item->tag.kind, item->tag.index, item->tag.version);
  }
}

/* Each living client looks at its socket, and so learns that its broker is another one; sleepers wake once. */
static void tell_all(const struct npi_broker *broker) {
  for (uint32_t i = 0; i < broker->registry.n_clients; i++) {
    struct npi_client *client = broker->clients[i];
    if (client != NULL && !client->gone && client->session != NULL) npi_session_count_event(client);
  }
}

void npi_adopt_finish(struct npi_broker *broker) {
  struct npi_adopt *adopt = broker->adopt;
  uint32_t n_removed = 0;
  npi_adopt_settle(broker);
  drop_unneeded(broker);
  npi_shm_remove_unneeded(broker->config->instance, geteuid(), is_needed, broker, &n_removed);
  tell_all(broker);
  npi_stock_plan(broker);
  npi_log(NPI_LOG_INFO, "broker.adopted",
          "instance=%s incarnation=%u clients=%u died=%u lost=%u connections=%u finished=%u leftovers=%u",
          broker->config->instance, npi_load_relaxed_u32(&broker->registry.header->incarnation),
          npi_index_used(&broker->client_pool), adopt->n_dead, adopt->n_lost, npi_index_used(&broker->connection_pool),
          adopt->n_finished, n_removed);
  npi_adopt_free(broker);
}
