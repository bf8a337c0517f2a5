/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/channels.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/align.h"
#include "base/log.h"
#include "base/status.h"
#include "daemon/access.h"
#include "daemon/accounts.h"
#include "daemon/adopt_image.h"
#include "daemon/broker.h"
#include "daemon/clients.h"
#include "daemon/connections.h"
#include "daemon/journal.h"
#include "daemon/session.h"
#include "wire/protocol.h"

enum { ON_DEMAND_CREDITS = 256 };

/* ---- channels ---- */

static void free_channel(struct npi_broker *broker, struct npi_channel *channel) {
  npi_store_release_u32(&broker->registry.channels[channel->index].state, NPI_RECORD_FREE);
  npi_index_give(&broker->channel_pool, channel->index);
  HASH_DEL(broker->channels, channel);
  free(channel);
}

/* A full table: a channel that was made on demand and that nobody uses gives its place. */
static int make_place(struct npi_broker *broker) {
  struct npi_channel *channel, *after;
  if (npi_index_used(&broker->channel_pool) < broker->channel_pool.count) return 0;
  HASH_ITER(hh, broker->channels, channel, after) {
    if (!channel->on_demand || channel->n_publishers > 0 || channel->n_subscribers > 0) continue;
    free_channel(broker, channel);
    return 0;
  }
  return npi_fail(NP_ERR_LIMIT, "%u channels exist already; raise limits.channels", broker->channel_pool.count);
}

static int make_channel(struct npi_broker *broker, const struct npi_channel_config *config, uint32_t on_demand,
                        struct npi_channel **out) {
  int status = make_place(broker);
  if (status != 0) return status;
  struct npi_channel *channel = calloc(1, sizeof *channel);
  if (channel == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a channel");
  channel->index = npi_index_take(&broker->channel_pool, &channel->version);
  channel->kind = (uint32_t)config->kind;
  channel->on_full = config->on_full;
  channel->credits = config->credits;
  channel->on_demand = on_demand;
  npi_registry_copy_name(channel->name, sizeof channel->name, config->name, sizeof config->name);
  HASH_ADD_STR(broker->channels, name, channel);

  struct npi_channel_record *record = &broker->registry.channels[channel->index];
  record->version = channel->version;
  record->kind = channel->kind;
  record->on_full = channel->on_full;
  record->credits = channel->credits;
  record->on_demand = on_demand;
  npi_store_relaxed_u32(&record->n_publishers, 0);
  npi_store_relaxed_u32(&record->n_subscribers, 0);
  record->max_deliveries = 0;
  record->dead_letter = NPI_NONE;
  record->access = npi_access_number(broker->config, channel->name);
  for (size_t i = 0; i < NPI_ARRAY_COUNT(record->past_publishers.value); i++) {
    npi_store_relaxed_u64(&record->past_publishers.value[i], 0);
    npi_store_relaxed_u64(&record->past_subscribers.value[i], 0);
  }
  memcpy(record->name, channel->name, sizeof record->name);
  npi_store_release_u32(&record->state, NPI_RECORD_ACTIVE);
  *out = channel;
  return 0;
}

/* A predecessor's, which had perhaps another configuration; its kind was checked to be the same. */
static void bring_up_to_date(struct npi_broker *broker, struct npi_channel *channel,
                             const struct npi_channel_config *config) {
  struct npi_channel_record *record = &broker->registry.channels[channel->index];
  channel->on_full = record->on_full = config->on_full;
  channel->credits = record->credits = config->credits;
  channel->on_demand = record->on_demand = 0;
}

int npi_channels_init(struct npi_broker *broker) {
  for (size_t i = 0; i < broker->config->n_channels; i++) {
    const struct npi_channel_config *config = &broker->config->channels[i];
    struct npi_channel *channel = NULL;
    int status = 0;
    HASH_FIND_STR(broker->channels, config->name, channel);
    if (channel != NULL) {
      bring_up_to_date(broker, channel, config);
    } else {
      status = make_channel(broker, config, 0, &channel);
    }
    if (status != 0) return status;
  }
  return 0;
}

void npi_channels_deinit(struct npi_broker *broker) {
  struct npi_channel *channel, *after;
  HASH_ITER(hh, broker->channels, channel, after) free_channel(broker, channel);
}

/* Is it the dead-letter channel of a group? Then it is made whether or not others are made on demand. */
static int takes_dead_letters(const struct npi_config *config, const char *name) {
  for (size_t i = 0; i < config->n_channels; i++) {
    if (config->channels[i].max_deliveries > 0 && strcmp(config->channels[i].dead_letter, name) == 0) return 1;
  }
  return 0;
}

int npi_channel_find(struct npi_broker *broker, const char *name, struct npi_channel **out) {
  *out = NULL;
  if (!npi_config_name_ok(name)) {
    return npi_fail(NP_ERR_ARGUMENT,
                    "\"%.63s\" cannot name a channel; use up to 63 of A-Z a-z 0-9 . _ / -, the first a letter or digit",
                    name);
  }
  HASH_FIND_STR(broker->channels, name, *out);
  if (*out != NULL) return 0;
  int for_dead_letters = takes_dead_letters(broker->config, name);
  if (!broker->config->channels_on_demand && !for_dead_letters) {
    return npi_fail(NP_ERR_NOT_FOUND,
                    "there is no channel \"%s\"; add it to the configuration, or set channels_on_demand: true", name);
  }
  struct npi_channel_config config;
  npi_channel_config_init(&config);
  memcpy(config.name, name, strlen(name) + 1);
  config.kind = NPI_CHANNEL_BROADCAST;
  config.on_full =
      for_dead_letters ? NPI_ON_FULL_BLOCK : NPI_ON_FULL_DROP_NEWEST; /* a dead letter waits, no publisher */
  config.credits = broker->registry.max_credits < ON_DEMAND_CREDITS ? broker->registry.max_credits : ON_DEMAND_CREDITS;
  int status = make_channel(broker, &config, 1, out);
  if (status == 0) npi_log(NPI_LOG_INFO, "channel.made", "channel=%s kind=broadcast on_demand=1", name);
  return status;
}

/*
 * Where a group's dead letters go; *out NULL: nowhere. The settings are looked up each time, so that a broker which
 * took the instance over with another configuration goes by its own.
 */
static int find_dead_letter(struct npi_broker *broker, const struct npi_channel *channel, struct npi_channel **out) {
  const struct npi_channel_config *config = npi_config_find_channel(broker->config, channel->name);
  struct npi_channel_record *record = &broker->registry.channels[channel->index];
  *out = NULL;
  if (config == NULL || channel->kind != NPI_CHANNEL_GROUP || config->max_deliveries == 0) {
    record->max_deliveries = 0;
    record->dead_letter = NPI_NONE;
    return 0;
  }
  int status = npi_channel_find(broker, config->dead_letter, out);
  if (status != 0) return npi_trail(status, "for the dead letters of channel \"%s\"", channel->name);
  record->max_deliveries = config->max_deliveries;
  record->dead_letter = (*out)->index;
  return 0;
}

/* Only who publishes on the group may publish its dead letters. */
static int may_publish_dead_letters(struct npi_client *client, const struct npi_channel *channel) {
  const struct npi_publisher *publisher;
  DL_FOREACH2(client->publishers, publisher, client_next) {
    const struct npi_channel_record *record = &client->broker->registry.channels[publisher->channel->index];
    if (!publisher->closing && record->max_deliveries > 0 && record->dead_letter == channel->index) return 0;
  }
  return npi_fail(NP_ERR_DENIED, "client %u (%s) publishes on no group whose dead letters go to \"%s\"", client->index,
                  client->name, channel->name);
}

static void show_counts(struct npi_broker *broker, const struct npi_channel *channel) {
  struct npi_channel_record *record = &broker->registry.channels[channel->index];
  npi_store_relaxed_u32(&record->n_publishers, channel->n_publishers);
  npi_store_relaxed_u32(&record->n_subscribers, channel->n_subscribers);
}

/* ---- connections of a new endpoint ---- */

static void discard_all(struct npi_connection **made, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) npi_connection_discard(made[i]);
}

/* Two steps, so that a failure at the last one leaves no trace: places for all rings, then the announcements. */
static int connect_publisher(struct npi_publisher *publisher) {
  const struct npi_channel *channel = publisher->channel;
  struct npi_subscriber *subscriber;
  struct npi_connection **made = calloc(channel->n_subscribers + 1, sizeof(struct npi_connection *));
  uint32_t n = 0;
  int status = made == NULL ? npi_fail(NP_ERR_NO_MEMORY, "no memory for connections") : 0;
  DL_FOREACH(channel->subscribers, subscriber) {
    if (status != 0 || subscriber->closing || !npi_session_awaited(subscriber->client)) continue;
    status = npi_connection_prepare(publisher, subscriber, &made[n]);
    if (status == 0) n++;
  }
  for (uint32_t i = 0; i < n && status == 0; i++) npi_connection_announce(made[i]);
  if (status != 0) discard_all(made, n);
  free(made);
  return status;
}

static int connect_subscriber(struct npi_subscriber *subscriber) {
  const struct npi_channel *channel = subscriber->channel;
  struct npi_publisher *publisher;
  struct npi_connection **made = calloc(channel->n_publishers + 1, sizeof(struct npi_connection *));
  uint32_t n = 0;
  int status = made == NULL ? npi_fail(NP_ERR_NO_MEMORY, "no memory for connections") : 0;
  DL_FOREACH(channel->publishers, publisher) {
    if (status != 0 || publisher->closing || !npi_session_awaited(publisher->client)) continue;
    status = npi_connection_prepare(publisher, subscriber, &made[n]);
    if (status == 0) n++;
  }
  for (uint32_t i = 0; i < n && status == 0; i++) npi_connection_announce(made[i]);
  if (status != 0) discard_all(made, n);
  free(made);
  return status;
}

static int are_connected(const struct npi_publisher *publisher, const struct npi_subscriber *subscriber) {
  const struct npi_connection *connection;
  DL_FOREACH2(publisher->connections, connection, publisher_next) {
    if (connection->subscriber == subscriber) return 1;
  }
  return 0;
}

static void connect_if_missing(struct npi_publisher *publisher, struct npi_subscriber *subscriber) {
  struct npi_connection *made = NULL;
  if (publisher->closing || subscriber->closing || are_connected(publisher, subscriber)) return;
  if (!npi_session_awaited(publisher->client) || !npi_session_awaited(subscriber->client)) return;
  int status = npi_connection_prepare(publisher, subscriber, &made);
  if (status == 0) {
    npi_connection_announce(made);
    return;
  }
  npi_log(NPI_LOG_WARNING, "connection.not_made", "channel=%s publisher=%u subscriber=%u reason=\"%s\"",
          publisher->channel->name, publisher->index, subscriber->index, npi_detail());
}

void npi_channels_connect_missing(struct npi_client *client) {
  struct npi_publisher *publisher;
  struct npi_subscriber *subscriber;
  DL_FOREACH2(client->subscribers, subscriber, client_next) {
    DL_FOREACH(subscriber->channel->publishers, publisher) connect_if_missing(publisher, subscriber);
  }
  DL_FOREACH2(client->publishers, publisher, client_next) {
    DL_FOREACH(publisher->channel->subscribers, subscriber) connect_if_missing(publisher, subscriber);
  }
}

/* ---- publishers ---- */

static void free_publisher(struct npi_publisher *publisher) {
  struct npi_client *client = publisher->client;
  struct npi_broker *broker = client->broker;
  struct npi_channel *channel = publisher->channel;
  struct npi_registry *registry = &broker->registry;
  struct npi_endpoint_counters counted;
  npi_account_publisher(publisher, &counted);
  npi_journal_fold(registry, NPI_JOURNAL_PUBLISHER, publisher->index, channel->index,
                   registry->channels[channel->index].past_publishers.value, counted.value,
                   NPI_PUBLISHER_COUNTER_COUNT);
  struct npi_publisher_record *record = &broker->registry.publishers[publisher->index];
  npi_store_release_u32(&record->state, NPI_RECORD_FREE);
  npi_journal_done(registry);
  record->version = publisher->version + 1;
  npi_client_give_row(client, publisher->counters);
  DL_DELETE(channel->publishers, publisher);
  DL_DELETE2(client->publishers, publisher, client_prev, client_next);
  channel->n_publishers--;
  show_counts(broker, channel);
  broker->publishers[publisher->index] = NULL;
  npi_index_give(&broker->publisher_pool, publisher->index);
  free(publisher);
}

int npi_publisher_open(struct npi_client *client, const char *name, uint32_t flags, struct npi_publisher **out) {
  struct npi_broker *broker = client->broker;
  struct npi_channel *channel, *dead_letter;
  uint32_t version = 0, row = 0;
  *out = NULL;
  int status = npi_channel_find(broker, name, &channel);
  if (status == 0 && (flags & NPI_PUBLISHER_DEAD_LETTERS) != 0) {
    status = may_publish_dead_letters(client, channel);
  } else if (status == 0) {
    status = npi_access_check_publish(client, name, broker->registry.channels[channel->index].access);
  }
  if (status == 0) status = find_dead_letter(broker, channel, &dead_letter);
  if (status != 0) return status;
  uint32_t index = npi_index_take(&broker->publisher_pool, &version);
  if (index == NPI_NONE) {
    return npi_fail(NP_ERR_LIMIT, "%u publishers are open already; raise limits.publishers",
                    broker->publisher_pool.count);
  }
  status = npi_client_take_row(client, &row);
  struct npi_publisher *publisher = status == 0 ? calloc(1, sizeof *publisher) : NULL;
  if (publisher == NULL) {
    if (status == 0) {
      npi_client_give_row(client, row);
      status = npi_fail(NP_ERR_NO_MEMORY, "no memory for a publisher");
    }
    npi_index_give(&broker->publisher_pool, index);
    return status;
  }
  publisher->index = index;
  publisher->version = version;
  publisher->counters = row;
  publisher->client = client;
  publisher->channel = channel;
  struct npi_publisher_record *record = &broker->registry.publishers[index];
  record->version = version;
  record->client = client->index;
  record->channel = channel->index;
  record->counters = row;
  npi_account_open_publisher(record);
  npi_store_release_u32(&record->state, NPI_RECORD_ACTIVE);
  broker->publishers[index] = publisher;
  DL_APPEND(channel->publishers, publisher);
  DL_APPEND2(client->publishers, publisher, client_prev, client_next);
  channel->n_publishers++;
  show_counts(broker, channel);
  status = connect_publisher(publisher);
  if (status != 0) {
    free_publisher(publisher);
    return status;
  }
  *out = publisher;
  return 0;
}

void npi_publisher_settle(struct npi_publisher *publisher) {
  if (publisher->closing && publisher->connections == NULL) free_publisher(publisher);
}

/* closing is kept over the walk, or the last connection would free the endpoint under the walker. */
static void end_publisher(struct npi_publisher *publisher, void (*end)(struct npi_connection *)) {
  struct npi_connection *connection, *after;
  /* First: a successor that finds some of the connections ended ends the others. */
  npi_store_release_u32(&publisher->client->broker->registry.publishers[publisher->index].state, NPI_RECORD_CLOSING);
  publisher->closing = 0;
  DL_FOREACH_SAFE2(publisher->connections, connection, after, publisher_next) end(connection);
  publisher->closing = 1;
  npi_publisher_settle(publisher);
}

void npi_publisher_close(struct npi_publisher *publisher) {
  end_publisher(publisher, npi_connection_publisher_closed);
}
void npi_publisher_gone(struct npi_publisher *publisher) {
  end_publisher(publisher, npi_connection_publisher_gone);
}

/* ---- subscribers ---- */

static void free_subscriber(struct npi_subscriber *subscriber) {
  struct npi_client *client = subscriber->client;
  struct npi_broker *broker = client->broker;
  struct npi_channel *channel = subscriber->channel;
  struct npi_subscriber_record *record = &broker->registry.subscribers[subscriber->index];
  struct npi_registry *registry = &broker->registry;
  struct npi_endpoint_counters counted;
  npi_account_subscriber(subscriber, &counted);
  npi_journal_fold(registry, NPI_JOURNAL_SUBSCRIBER, subscriber->index, channel->index,
                   registry->channels[channel->index].past_subscribers.value, counted.value,
                   NPI_SUBSCRIBER_COUNTER_COUNT);
  npi_store_release_u32(&record->state, NPI_RECORD_FREE);
  npi_journal_done(registry);
  record->version = subscriber->version + 1;
  npi_client_give_row(client, subscriber->counters);
  DL_DELETE(channel->subscribers, subscriber);
  DL_DELETE2(client->subscribers, subscriber, client_prev, client_next);
  channel->n_subscribers--;
  show_counts(broker, channel);
  broker->subscribers[subscriber->index] = NULL;
  npi_index_give(&broker->subscriber_pool, subscriber->index);
  free(subscriber);
}

/* What was asked for, as the channel and the limits allow it. */
static int choose_terms(const struct npi_broker *broker, const struct npi_channel *channel, int32_t on_full,
                        uint32_t credits, uint32_t flags, struct npi_subscriber *terms) {
  if ((flags & ~(uint32_t)NPI_SUBSCRIBER_TAP) != 0) {
    return npi_fail(NP_ERR_ARGUMENT, "subscription flags 0x%x are not known to this broker", flags);
  }
  if (on_full < -1 || on_full > NPI_ON_FULL_DROP_NEWEST) {
    return npi_fail(NP_ERR_ARGUMENT, "on_full %d is none of -1 (the channel's), 0 (block), 1 (drop_newest)", on_full);
  }
  int tap = (flags & NPI_SUBSCRIBER_TAP) != 0;
  if (on_full == NPI_ON_FULL_BLOCK && (tap || channel->on_full != NPI_ON_FULL_BLOCK)) {
    return npi_fail(NP_ERR_ARGUMENT, "%s cannot block the publishers of channel \"%s\"; leave on_full to the channel",
                    tap ? "a tap" : "a subscriber", channel->name);
  }
  if (credits > broker->registry.max_credits) {
    return npi_fail(NP_ERR_LIMIT, "%u credits are more than limits.max_credits allows, which is %u", credits,
                    broker->registry.max_credits);
  }
  terms->flags = flags;
  terms->on_full = tap ? NPI_ON_FULL_DROP_NEWEST : on_full < 0 ? channel->on_full : (uint32_t)on_full;
  terms->credits = credits > 0 ? credits : channel->credits;
  terms->capacity = npi_ring_capacity_for(terms->credits);
  return 0;
}

int npi_subscriber_open(struct npi_client *client, const char *channel_name, const char *name, int32_t on_full,
                        uint32_t credits, uint32_t flags, struct npi_subscriber **out) {
  struct npi_broker *broker = client->broker;
  struct npi_channel *channel;
  struct npi_subscriber terms;
  uint32_t row = 0, index = NPI_NONE;
  *out = NULL;
  memset(&terms, 0, sizeof terms);
  int status = npi_channel_find(broker, channel_name, &channel);
  if (status == 0) status = npi_access_check_subscribe(client, channel_name);
  if (status == 0) status = choose_terms(broker, channel, on_full, credits, flags, &terms);
  if (status == 0) status = npi_client_take_row(client, &row);
  if (status != 0) return status;
  index = npi_index_take(&broker->subscriber_pool, &terms.version);
  struct npi_subscriber *subscriber = index == NPI_NONE ? NULL : malloc(sizeof *subscriber);
  if (subscriber == NULL) {
    status = index == NPI_NONE ? npi_fail(NP_ERR_LIMIT, "%u subscribers are open already; raise limits.subscribers",
                                          broker->subscriber_pool.count)
                               : npi_fail(NP_ERR_NO_MEMORY, "no memory for a subscriber");
    if (index != NPI_NONE) npi_index_give(&broker->subscriber_pool, index);
    npi_client_give_row(client, row);
    return status;
  }
  *subscriber = terms;
  subscriber->index = index;
  subscriber->counters = row;
  subscriber->client = client;
  subscriber->channel = channel;
  memcpy(subscriber->name, name, sizeof subscriber->name);
  struct npi_subscriber_record *record = &broker->registry.subscribers[index];
  record->version = subscriber->version;
  record->client = client->index;
  record->channel = channel->index;
  record->counters = row;
  record->on_full = subscriber->on_full;
  record->credits = subscriber->credits;
  record->flags = flags;
  memcpy(record->name, name[0] != '\0' ? name : client->name, sizeof record->name);
  npi_account_open_subscriber(record);
  npi_store_release_u32(&record->state, NPI_RECORD_ACTIVE);
  broker->subscribers[index] = subscriber;
  DL_APPEND(channel->subscribers, subscriber);
  DL_APPEND2(client->subscribers, subscriber, client_prev, client_next);
  channel->n_subscribers++;
  show_counts(broker, channel);
  status = connect_subscriber(subscriber);
  if (status != 0) {
    free_subscriber(subscriber);
    return status;
  }
  *out = subscriber;
  return 0;
}

void npi_subscriber_settle(struct npi_subscriber *subscriber) {
  if (subscriber->closing && subscriber->connections == NULL) free_subscriber(subscriber);
}

static void end_subscriber(struct npi_subscriber *subscriber, void (*end)(struct npi_connection *)) {
  struct npi_connection *connection, *after;
  /* First: a successor that finds some of the connections ended ends the others. */
  npi_store_release_u32(&subscriber->client->broker->registry.subscribers[subscriber->index].state, NPI_RECORD_CLOSING);
  subscriber->closing = 0;
  DL_FOREACH_SAFE2(subscriber->connections, connection, after, subscriber_next) end(connection);
  subscriber->closing = 1;
  npi_subscriber_settle(subscriber);
}

void npi_subscriber_close(struct npi_subscriber *subscriber) {
  end_subscriber(subscriber, npi_connection_subscriber_closed);
}
void npi_subscriber_gone(struct npi_subscriber *subscriber) {
  end_subscriber(subscriber, npi_connection_subscriber_gone);
}

/* ---- a predecessor's ---- */

int npi_channel_adopt(struct npi_broker *broker, uint32_t index, const struct npi_channel_record *record) {
  struct npi_channel *channel = calloc(1, sizeof *channel);
  if (channel == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a channel");
  channel->index = index;
  channel->version = record->version;
  channel->kind = record->kind;
  channel->on_full = record->on_full;
  channel->credits = record->credits;
  channel->on_demand = 1; /* unless the configuration names it */
  memcpy(channel->name, record->name, sizeof channel->name);
  HASH_ADD_STR(broker->channels, name, channel);
  broker->registry.channels[index].on_demand = 1;
  broker->registry.channels[index].access = npi_access_number(broker->config, channel->name);
  return 0;
}

static struct npi_channel *channel_at(struct npi_broker *broker, uint32_t index) {
  struct npi_channel *channel, *after;
  HASH_ITER(hh, broker->channels, channel, after) {
    if (channel->index == index) return channel;
  }
  return NULL;
}

int npi_publisher_adopt(struct npi_broker *broker, uint32_t index, const struct npi_publisher_record *record) {
  struct npi_client *client = broker->clients[record->client];
  struct npi_channel *channel = channel_at(broker, record->channel);
  struct npi_publisher *publisher = calloc(1, sizeof *publisher);
  if (publisher == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a publisher");
  publisher->index = index;
  publisher->version = record->version;
  publisher->counters = record->counters;
  publisher->closing = npi_load_relaxed_u32(&record->state) == NPI_RECORD_CLOSING;
  publisher->client = client;
  publisher->channel = channel;
  npi_client_claim_row(client, record->counters);
  broker->publishers[index] = publisher;
  DL_APPEND(channel->publishers, publisher);
  DL_APPEND2(client->publishers, publisher, client_prev, client_next);
  channel->n_publishers++;
  show_counts(broker, channel);
  return 0;
}

int npi_subscriber_adopt(struct npi_broker *broker, uint32_t index, const struct npi_subscriber_record *record) {
  struct npi_client *client = broker->clients[record->client];
  struct npi_channel *channel = channel_at(broker, record->channel);
  struct npi_subscriber *subscriber = calloc(1, sizeof *subscriber);
  if (subscriber == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a subscriber");
  subscriber->index = index;
  subscriber->version = record->version;
  subscriber->counters = record->counters;
  subscriber->closing = npi_load_relaxed_u32(&record->state) == NPI_RECORD_CLOSING;
  subscriber->on_full = record->on_full;
  subscriber->credits = record->credits;
  subscriber->capacity = npi_ring_capacity_for(record->credits);
  subscriber->flags = record->flags;
  subscriber->client = client;
  subscriber->channel = channel;
  memcpy(subscriber->name, record->name, sizeof subscriber->name);
  npi_client_claim_row(client, record->counters);
  broker->subscribers[index] = subscriber;
  DL_APPEND(channel->subscribers, subscriber);
  DL_APPEND2(client->subscribers, subscriber, client_prev, client_next);
  channel->n_subscribers++;
  show_counts(broker, channel);
  return 0;
}
