/* SPDX-License-Identifier: Apache-2.0 */
/*
 * May an instance go on under this configuration? Sizes and limits are built into its registry, and its listeners into
 * sockets that workers have open; what is not, the new configuration decides.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/access.h"
#include "daemon/adopt.h"
#include "daemon/broker.h"
#include "os/os_process.h"

#define FIX "end its clients and workers, or start with the old setting"

static int differs(const char *setting, uint64_t now, uint64_t before) {
  return npi_fail(NP_ERR_CONFIG,
                  "%s is %" PRIu64 " now, and the instance that lives has %" PRIu64 ": it cannot be adopted; " FIX,
                  setting, now, before);
}

static int check_sizes(const struct npi_registry_header *header, const struct npi_config *config, uint32_t n_nodes,
                       uint32_t n_workers) {
  const struct {
    const char *setting;
    uint64_t now, before;
  } rules[] = {
      {"the number of NUMA nodes", n_nodes, header->n_nodes},
      {"memory.backend (0 posix, 1 memfd)", (uint64_t)config->memory.backend, header->backend},
      {"memory.segment", config->memory.segment, header->segment_bytes},
      {"memory.per_client", config->memory.per_client, header->per_client_bytes},
      {"memory.per_node / memory.segment", (uint64_t)config->memory.segments_per_node * n_nodes,
       header->segments.count},
      {"limits.clients", config->limits.clients, header->clients.count},
      {"limits.channels", config->limits.channels, header->channels.count},
      {"limits.publishers", config->limits.publishers, header->publishers.count},
      {"limits.subscribers", config->limits.subscribers, header->subscribers.count},
      {"limits.connections", config->limits.connections, header->connections.count},
      {"limits.listeners", config->limits.listeners, header->listeners.count},
      {"limits.endpoints_per_client", config->limits.endpoints_per_client, header->endpoints_per_client},
      {"limits.connections_per_client", config->limits.connections_per_client, header->connections_per_client},
      {"limits.rings_per_client", npi_round_up(config->limits.rings_per_client, NPI_PAGE),
       header->page_bytes - header->page_rings_offset},
      {"ingest.workers_per_node, for all nodes,", n_workers, header->n_workers},
  };
  for (size_t i = 0; i < NPI_ARRAY_COUNT(rules); i++) {
    if (rules[i].now != rules[i].before) return differs(rules[i].setting, rules[i].now, rules[i].before);
  }
  return 0;
}

static int check_channels(const struct npi_adopt_image *image, const struct npi_config *config) {
  for (size_t i = 0; i < config->n_channels; i++) {
    const struct npi_channel_config *channel = &config->channels[i];
    for (uint32_t k = 0; k < image->header->channels.count; k++) {
      const struct npi_channel_record *record = &image->channels[k];
      if (npi_load_relaxed_u32(&record->state) == NPI_RECORD_FREE ||
          strncmp(record->name, channel->name, sizeof record->name) != 0 || record->kind == (uint32_t)channel->kind) {
        continue;
      }
      return npi_fail(NP_ERR_CONFIG, "channel \"%s\" is a %s now, and a %s in the instance that lives; " FIX,
                      channel->name, channel->kind == NPI_CHANNEL_GROUP ? "group" : "broadcast",
                      record->kind == NPI_CHANNEL_GROUP ? "group" : "broadcast");
    }
  }
  return 0;
}

/* What a living publisher has leased may be read by those of the old list, and perhaps holds another channel's events. */
static int check_access(const struct npi_adopt_image *image, const struct npi_config *config) {
  for (uint32_t i = 0; i < image->header->channels.count; i++) {
    const struct npi_channel_record *record = &image->channels[i];
    char name[NPI_NAME_BYTES];
    if (npi_load_relaxed_u32(&record->state) == NPI_RECORD_FREE || npi_load_relaxed_u32(&record->n_publishers) == 0) {
      continue;
    }
    npi_registry_copy_name(name, sizeof name, record->name, sizeof record->name);
    if (npi_access_number(config, name) == record->access) continue;
    return npi_fail(NP_ERR_CONFIG,
                    "who may subscribe to channel \"%s\" is not the same as in the instance that lives, where it has "
                    "publishers; " FIX,
                    name);
  }
  return 0;
}

static int is_same_listener(const struct npi_adopt_image *image, const struct npi_listener_record *record,
                            const struct npi_listener_config *config) {
  const char *address = npi_config_proto_is_unix(config->proto) ? config->path : config->address;
  return npi_load_relaxed_u32(&record->state) != NPI_LISTENER_FREE &&
         strncmp(record->name, config->name, sizeof record->name) == 0 && record->protocol == (uint32_t)config->proto &&
         strncmp(record->address, address, sizeof record->address) == 0 &&
         (config->port == 0 || config->port == record->port) && record->channel < image->header->channels.count &&
         strncmp(image->channels[record->channel].name, config->channel, sizeof config->channel) == 0;
}

static int check_listeners(const struct npi_adopt_image *image, const struct npi_config *config) {
  for (uint32_t i = 0; i < image->header->listeners.count; i++) {
    const struct npi_listener_record *record = &image->listeners[i];
    if (i < config->n_listeners) {
      if (is_same_listener(image, record, &config->listeners[i])) continue;
      return npi_fail(NP_ERR_CONFIG,
                      "listener \"%s\" is not the one that the instance which lives has at its place; " FIX,
                      config->listeners[i].name);
    }
    if (npi_load_relaxed_u32(&record->state) == NPI_LISTENER_FREE) continue;
    return npi_fail(NP_ERR_CONFIG, "listener \"%.63s\" of the instance that lives is not configured any more; " FIX,
                    record->name);
  }
  return 0;
}

int npi_adopt_check_config(const struct npi_adopt_image *image, const struct npi_config *config, uint32_t n_nodes,
                           uint32_t n_workers) {
  int status = check_sizes(image->header, config, n_nodes, n_workers);
  if (status == 0) status = check_channels(image, config);
  if (status == 0) status = check_access(image, config);
  return status == 0 ? check_listeners(image, config) : status;
}

int npi_adopt_check_running(struct npi_broker *broker) {
  struct npi_registry registry;
  struct npi_adopt_image image;
  char boot_id[40];
  void *copy = NULL;
  int status = npi_registry_open(&registry, broker->config->instance, 0);
  if (status != 0) return npi_trail(status, "the running broker's registry");
  status = npi_process_boot_id(boot_id, sizeof boot_id);
  if (status == 0) copy = malloc(registry.bytes);
  if (status == 0 && copy == NULL) status = npi_fail(NP_ERR_NO_MEMORY, "no memory for a copy of the registry");
  if (status == 0) {
    const struct npi_adopt_owner owner = {broker->config->instance, boot_id, (uint32_t)geteuid()};
    memcpy(copy, registry.header, registry.bytes);
    status = npi_adopt_validate_header(copy, registry.bytes, &owner, &image);
  }
  if (status == 0) {
    status = npi_adopt_check_config(&image, broker->config, broker->topology.n_nodes, npi_workers_wanted(broker));
  }
  free(copy);
  npi_registry_close(&registry);
  return status;
}
