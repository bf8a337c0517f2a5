/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the records of an earlier broker to this one's private objects. Records are read from the checked copy, so what
 * they name is there; nothing is written to the registry before all objects exist.
 */
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/adopt.h"
#include "daemon/broker.h"
#include "daemon/channels.h"
#include "daemon/clients.h"
#include "daemon/connections.h"
#include "daemon/leases.h"
#include "daemon/reaper.h"
#include "daemon/session.h"
#include "os/os_memory.h"
#include "os/os_process.h"

static uint32_t state_of(const struct npi_atomic_u32 *state) {
  return npi_load_relaxed_u32(state);
}

/* ---- record numbers ---- */

static void restore_pools(struct npi_broker *broker) {
  const struct npi_adopt_image *image = &broker->adopt->image;
  for (uint32_t i = broker->registry.n_clients; i-- > 0;) {
    npi_index_restore(&broker->client_pool, i, image->clients[i].version, state_of(&image->clients[i].state) != 0);
  }
  for (uint32_t i = broker->registry.n_channels; i-- > 0;) {
    npi_index_restore(&broker->channel_pool, i, image->channels[i].version, state_of(&image->channels[i].state) != 0);
  }
  for (uint32_t i = broker->registry.n_publishers; i-- > 0;) {
    npi_index_restore(&broker->publisher_pool, i, image->publishers[i].version,
                      state_of(&image->publishers[i].state) != 0);
  }
  for (uint32_t i = broker->registry.n_subscribers; i-- > 0;) {
    npi_index_restore(&broker->subscriber_pool, i, image->subscribers[i].version,
                      state_of(&image->subscribers[i].state) != 0);
  }
  for (uint32_t i = broker->registry.n_connections; i-- > 0;) {
    npi_index_restore(&broker->connection_pool, i, npi_load_relaxed_u32(&image->connections[i].version),
                      state_of(&image->connections[i].state) != 0);
  }
  for (uint32_t i = broker->registry.n_segments; i-- > 0;) {
    npi_index_restore(&broker->stock.pool, i, image->segments[i].version, state_of(&image->segments[i].state) != 0);
  }
}

/* ---- clients ---- */

/*
 * Questions here have three answers: 1 yes, 0 no, < 0 nobody could tell. The last one ends this try to adopt: nobody is
 * taken for dead, and nothing for lost, because the system was in trouble for a moment.
 */

/* A size that is not the expected one would be a fault at the first touch. */
static int is_of_size(int fd, uint64_t bytes) {
  uint64_t have = 0;
  int status = npi_memory_size(fd, &have);
  if (status != 0) return status;
  return have == bytes ? npi_memory_is_sealed(fd) : 0;
}

/* 1: its memory, moved out of the item. 0: the keeper does not have it. */
static int take_memory(const struct npi_broker *broker, struct npi_kept *item, int memory[4], int *pidfd) {
  *pidfd = -1;
  if (item == NULL) return 0;
  int skip = item->data[0] == 0; /* it was gone already, and has no process */
  if (item->n_fds != 5 - skip) return 0;
  int fits = is_of_size(item->fds[1 - skip], broker->registry.page_bytes);
  if (fits == 1) fits = is_of_size(item->fds[2 - skip], broker->registry.ledger_bytes);
  if (fits != 1) return fits;
  if (!skip) *pidfd = item->fds[0];
  for (int i = 0; i < 4; i++) memory[i] = item->fds[1 - skip + i];
  for (int i = 0; i < item->n_fds; i++) item->fds[i] = -1;
  return 1;
}

static int adopt_client(struct npi_broker *broker, uint32_t index) {
  struct npi_adopt *adopt = broker->adopt;
  const struct npi_client_record *record = &adopt->image.clients[index];
  struct npi_client *client;
  int memory[4], pidfd;
  struct npi_kept *item = npi_kept_find(&adopt->kept, NPI_KEPT_CLIENT, index, record->version);
  int has = take_memory(broker, item, memory, &pidfd);
  int is_dead = has == 1 && pidfd >= 0 ? npi_process_is_dead(pidfd) : 1;
  int status = has < 0 ? has : is_dead < 0 ? is_dead : 0;
  if (status == 0) status = npi_client_adopt(broker, index, record, has ? memory : NULL, &client);
  if (status != 0) {
    if (pidfd >= 0) close(pidfd);
    return status;
  }
  npi_registry_count(&broker->registry, NPI_BROKER_ADOPTED, 1);
  int is_active = state_of(&record->state) == NPI_RECORD_ACTIVE;
  if (is_active && !is_dead) return npi_session_adopt(broker, client, pidfd);
  if (pidfd >= 0) close(pidfd);
  if (is_active && !has) {
    npi_log(NPI_LOG_WARNING, "client.lost", "client=%u name=%s pid=%d reason=\"the keeper does not have its memory\"",
            index, client->name, (int)client->pid);
    adopt->n_lost++;
  }
  return 0;
}

static int adopt_clients(struct npi_broker *broker) {
  int status = 0;
  for (uint32_t i = 0; i < broker->registry.n_clients && status == 0; i++) {
    if (state_of(&broker->adopt->image.clients[i].state) != NPI_RECORD_FREE) status = adopt_client(broker, i);
  }
  return status;
}

/* ---- segments ---- */

/* 1: it is in *fd. 0: the keeper does not have it. */
static int take_segment(const struct npi_broker *broker, uint32_t index, const struct npi_segment_record *record,
                        int *fd) {
  struct npi_kept *item = npi_kept_find(&broker->adopt->kept, NPI_KEPT_SEGMENT, index, record->version);
  uint64_t bytes = 0;
  if (item == NULL || item->n_fds != 1) return 0;
  int status = npi_memory_size(item->fds[0], &bytes);
  if (status != 0) return status;
  if (bytes != record->bytes) return 0;
  *fd = item->fds[0];
  item->fds[0] = -1;
  return 1;
}

static int adopt_segments(struct npi_broker *broker) {
  const struct npi_adopt_image *image = &broker->adopt->image;
  for (uint32_t i = 0; i < broker->registry.n_segments; i++) {
    const struct npi_segment_record *record = &image->segments[i];
    uint32_t state = state_of(&record->state);
    if (state == NPI_SEGMENT_FREE) continue;
    int fd = -1, status = take_segment(broker, i, record, &fd);
    if (status < 0) return status;
    if (status == 1) {
      struct npi_leased *segment;
      status = npi_stock_adopt(broker, i, record, fd, &segment);
      if (status != 0) return status;
      if (state != NPI_SEGMENT_READY) npi_leases_adopt(broker->clients[record->client], segment, record->number);
      continue;
    }
    /* Nobody can be shown it any more: who publishes in it cannot go on. */
    npi_log(NPI_LOG_WARNING, "segment.lost", "segment=%u reason=\"the keeper does not have it\"", i);
    npi_store_release_u32(&broker->registry.segments[i].state, NPI_SEGMENT_FREE);
    npi_index_give(&broker->stock.pool, i);
    if (state == NPI_SEGMENT_READY) continue;
    struct npi_client *client = broker->clients[record->client];
    if (client->session != NULL) npi_session_end(client->session);
    broker->adopt->n_lost++;
  }
  return 0;
}

/* ---- all of them ---- */

int npi_adopt_objects(struct npi_broker *broker) {
  const struct npi_registry *registry = &broker->registry;
  const struct npi_adopt_image *image = &broker->adopt->image;
  int status = npi_stock_init_adopted(broker, image->next_object);
  if (status != 0) return status;
  restore_pools(broker);
  for (uint32_t i = 0; i < registry->n_channels && status == 0; i++) {
    if (state_of(&image->channels[i].state) == NPI_RECORD_FREE) continue;
    status = npi_channel_adopt(broker, i, &image->channels[i]);
  }
  if (status == 0) status = adopt_clients(broker);
  if (status == 0) status = adopt_segments(broker);
  for (uint32_t i = 0; i < registry->n_publishers && status == 0; i++) {
    if (state_of(&image->publishers[i].state) == NPI_RECORD_FREE) continue;
    status = npi_publisher_adopt(broker, i, &image->publishers[i]);
  }
  for (uint32_t i = 0; i < registry->n_subscribers && status == 0; i++) {
    if (state_of(&image->subscribers[i].state) == NPI_RECORD_FREE) continue;
    status = npi_subscriber_adopt(broker, i, &image->subscribers[i]);
  }
  for (uint32_t i = 0; i < registry->n_connections && status == 0; i++) {
    if (state_of(&image->connections[i].state) == NPI_CONNECTION_FREE) continue;
    status = npi_connection_adopt(broker, i, &image->connections[i]);
  }
  return status;
}

/* ---- ingest workers ---- */

int npi_adopt_take_listener(struct npi_adopt *adopt, uint32_t listener, uint32_t worker, uint32_t *drops,
                            uint64_t *drops_of) {
  struct npi_kept *item = npi_kept_find(&adopt->kept, NPI_KEPT_LISTENER, listener, worker);
  if (item == NULL || item->n_fds != 1) return -1;
  int fd = item->fds[0];
  item->fds[0] = -1;
  *drops = (uint32_t)item->data[0];
  *drops_of = item->data[1];
  return fd;
}

int npi_adopt_workers(struct npi_broker *broker) {
  const struct npi_kept_list *kept = &broker->adopt->kept;
  for (uint32_t i = 0; i < kept->n_items; i++) {
    struct npi_kept *item = &kept->items[i];
    if (item->tag.kind != NPI_KEPT_WORKER || item->n_fds != 1) continue;
    if (item->tag.index >= broker->workers.n_workers || broker->workers.workers[item->tag.index].pid != 0) continue;
    int status = npi_process_is_dead(item->fds[0]);
    if (status < 0) return status;
    if (status == 1) continue;
    int fd = item->fds[0];
    item->fds[0] = -1;
    status = npi_workers_adopt(broker, item->tag.index, (pid_t)item->tag.version, item->data[0], fd);
    if (status != 0) return status;
  }
  return 0;
}

/* ---- what was begun ---- */

/* Endpoints of the living that they had closed. */
static void close_again(struct npi_client *client) {
  struct npi_publisher *publisher, *next_publisher;
  struct npi_subscriber *subscriber, *next_subscriber;
  DL_FOREACH_SAFE2(client->subscribers, subscriber, next_subscriber, client_next) {
    if (!subscriber->closing) continue;
    client->broker->adopt->n_finished++;
    npi_subscriber_close(subscriber);
  }
  DL_FOREACH_SAFE2(client->publishers, publisher, next_publisher, client_next) {
    if (!publisher->closing) continue;
    client->broker->adopt->n_finished++;
    npi_publisher_close(publisher);
  }
}

void npi_adopt_settle(struct npi_broker *broker) {
  struct npi_adopt *adopt = broker->adopt;
  const struct npi_adopt_image *image = &adopt->image;
  for (uint32_t i = 0; i < broker->registry.n_connections; i++) {
    struct npi_connection *connection = broker->connections[i];
    if (connection == NULL || connection->publisher_holds || connection->subscriber_holds) continue;
    adopt->n_finished++;
    npi_connection_settle(connection);
  }
  for (uint32_t i = 0; i < broker->registry.n_clients; i++) {
    struct npi_client *client = broker->clients[i];
    if (client == NULL) continue;
    if (client->session != NULL) {
      npi_client_set_flag(client, NPI_CLIENT_DETACHED, 1);
      close_again(client);
    } else if (state_of(&image->clients[i].state) == NPI_RECORD_CLOSING) {
      adopt->n_finished++;
      npi_reap_again(broker, client);
    } else {
      adopt->n_dead++;
      npi_reap(broker, client, NPI_GONE_DIED);
    }
  }
}
