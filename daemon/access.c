/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/access.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/session.h"

enum { GROUPS_MAX = 1024, NUMBER_OF_NOBODY_ELSE = 1 };

/* ---- lists ---- */

static const struct npi_access_list nobody_else; /* an empty list */

int npi_access_is_open(const struct npi_config *config) {
  return config->access.connect.everyone || config->access.connect.n > 0;
}

/* A group whose dead letters go to that channel; NULL: none. */
static const struct npi_channel_config *group_of(const struct npi_config *config, const char *dead_letter) {
  for (size_t i = 0; i < config->n_channels; i++) {
    const struct npi_channel_config *channel = &config->channels[i];
    if (channel->max_deliveries > 0 && strcmp(channel->dead_letter, dead_letter) == 0) return channel;
  }
  return NULL;
}

static const struct npi_access_list *list_of(const struct npi_config *config, const char *channel, int publishers) {
  const struct npi_channel_config *declared = npi_config_find_channel(config, channel);
  if (declared == NULL) declared = group_of(config, channel);
  if (declared != NULL) {
    const struct npi_access_list *own = publishers ? &declared->access_publish : &declared->access_subscribe;
    if (own->given) return own;
  }
  const struct npi_access_list *all = publishers ? &config->access.publish : &config->access.subscribe;
  if (all->given) return all;
  return config->access.connect.given ? &config->access.connect : &nobody_else;
}

const struct npi_access_list *npi_access_publishers(const struct npi_config *config, const char *channel) {
  return list_of(config, channel, 1);
}
const struct npi_access_list *npi_access_subscribers(const struct npi_config *config, const char *channel) {
  return list_of(config, channel, 0);
}

static int has(const struct npi_access_list *list, const struct npi_access_entry *entry) {
  for (uint32_t i = 0; i < list->n; i++) {
    if (list->entry[i].id == entry->id && list->entry[i].is_group == entry->is_group) return 1;
  }
  return 0;
}

static int is_within(const struct npi_access_list *a, const struct npi_access_list *b) {
  if (a->everyone) return b->everyone != 0;
  for (uint32_t i = 0; i < a->n; i++) {
    if (!has(b, &a->entry[i])) return 0;
  }
  return 1;
}

int npi_access_lists_equal(const struct npi_access_list *a, const struct npi_access_list *b) {
  if (a->everyone || b->everyone) return a->everyone && b->everyone;
  return is_within(a, b) && is_within(b, a);
}

/*
 * A number that follows from the list alone, so that a broker which takes the instance over comes to the same. The
 * lists are the operator's: nobody makes two of them collide on purpose.
 */
uint32_t npi_access_number(const struct npi_config *config, const char *channel) {
  const struct npi_access_list *list = npi_access_subscribers(config, channel);
  if (list->everyone) return NUMBER_OF_NOBODY_ELSE + 1;
  if (list->n == 0) return NUMBER_OF_NOBODY_ELSE;
  uint32_t sum = 0; /* does not depend on the order */
  for (uint32_t i = 0; i < list->n; i++) {
    int repeated = 0;
    for (uint32_t k = 0; k < i; k++) {
      repeated |= list->entry[k].id == list->entry[i].id && list->entry[k].is_group == list->entry[i].is_group;
    }
    if (repeated) continue;
    uint64_t x = ((uint64_t)list->entry[i].id << 1 | list->entry[i].is_group) + UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 31) * UINT64_C(0xd6e8feb86659fd93);
    x = (x ^ x >> 29) * UINT64_C(0xd6e8feb86659fd93);
    sum += (uint32_t)(x >> 32);
  }
  return sum <= NUMBER_OF_NOBODY_ELSE + 1 ? sum + NUMBER_OF_NOBODY_ELSE + 2 : sum;
}

/* ---- checks ---- */

/* Groups as they were when the process connected: its own, and those that it had beside it. */
static int in_group(const struct npi_session *session, uint32_t group) {
  gid_t groups[GROUPS_MAX];
  socklen_t bytes = sizeof groups;
  if ((uint32_t)session->gid == group) return 1;
  if (session->fd < 0 || getsockopt(session->fd, SOL_SOCKET, SO_PEERGROUPS, groups, &bytes) != 0) return 0;
  for (size_t i = 0; i < bytes / sizeof groups[0]; i++) {
    if ((uint32_t)groups[i] == group) return 1;
  }
  return 0;
}

static int allows(const struct npi_access_list *list, const struct npi_session *session) {
  if (session->uid == 0 || session->uid == geteuid() || list->everyone) return 1;
  for (uint32_t i = 0; i < list->n; i++) {
    const struct npi_access_entry *entry = &list->entry[i];
    if (entry->is_group ? in_group(session, entry->id) : (uint32_t)session->uid == entry->id) return 1;
  }
  return 0;
}

int npi_access_check_connect(const struct npi_session *session) {
  if (allows(&session->broker->config->access.connect, session)) return 0;
  return npi_fail(NP_ERR_DENIED,
                  "user %u may not use the broker of user %u; run the client as that user, or add user:%u to "
                  "access.connect of its configuration",
                  (unsigned)session->uid, (unsigned)geteuid(), (unsigned)session->uid);
}

static int denied(const struct npi_client *client, const char *what, const char *channel, const char *setting) {
  return npi_fail(NP_ERR_DENIED, "user %u may not %s channel \"%s\"; add user:%u to access.%s of the channel",
                  (unsigned)client->uid, what, channel, (unsigned)client->uid, setting);
}

/*
 * What a client has published lies in segments that its readers have mapped, also after it closed that publisher: so
 * the number of its first channel is its number for life.
 */
int npi_access_check_publish(struct npi_client *client, const char *channel, uint32_t number) {
  const struct npi_broker *broker = client->broker;
  if (!allows(npi_access_publishers(broker->config, channel), client->session)) {
    return denied(client, "publish on", channel, "publish");
  }
  struct npi_client_record *record = &broker->registry.clients[client->index];
  uint32_t before = npi_load_relaxed_u32(&record->access);
  if (before != 0 && before != number) {
    return npi_fail(NP_ERR_DENIED,
                    "client %u (%s) has published on a channel with other access.subscribe than \"%s\": whoever may "
                    "read that could read this too; use one np_connect for each",
                    client->index, client->name, channel);
  }
  npi_store_relaxed_u32(&record->access, number);
  return 0;
}

int npi_access_check_subscribe(const struct npi_client *client, const char *channel) {
  if (allows(npi_access_subscribers(client->broker->config, channel), client->session)) return 0;
  return denied(client, "subscribe to", channel, "subscribe");
}
