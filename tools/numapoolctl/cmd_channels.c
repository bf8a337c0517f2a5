/* SPDX-License-Identifier: Apache-2.0 */
/* numapoolctl channels: what went through each channel, who subscribes, and who missed what. */
#include "command.h"
#include "core/counters.h"

static const char *kind_word(uint32_t kind) {
  return kind == NPI_CHANNEL_BROADCAST ? "broadcast" : kind == NPI_CHANNEL_GROUP ? "group" : "invalid";
}

static const char *on_full_word(uint32_t on_full) {
  return on_full == NPI_ON_FULL_BLOCK ? "block" : on_full == NPI_ON_FULL_DROP_NEWEST ? "drop_newest" : "invalid";
}

void npi_describe_channel_use(struct npi_view *view, uint32_t channel, json_t *row) {
  const struct npi_channel_record *record = &view->channels[channel];
  uint64_t sum[NPI_PUBLISHER_COUNTER_COUNT] = {0}, value[32];
  for (uint32_t i = 0; i < view->n_publishers; i++) {
    const struct npi_publisher_record *publisher = &view->publishers[i];
    if (npi_view_state(&publisher->state) == NPI_RECORD_FREE || publisher->channel != channel) continue;
    if (npi_view_endpoint(view, publisher->client, publisher->counters, value) != 0) continue;
    for (int c = 0; c < NPI_PUBLISHER_COUNTER_COUNT; c++) sum[c] += value[c];
  }
  for (int c = 0; c < NPI_PUBLISHER_COUNTER_COUNT; c++) {
    sum[c] += npi_load_relaxed_u64(&record->past_publishers.value[c]);
  }
  npi_set_number(row, "published", sum[NPI_PUBLISHER_PUBLISHED]);
  npi_set_number(row, "delivered", sum[NPI_PUBLISHER_DELIVERED]);
  json_t *dropped = npi_add_object(row, "dropped");
  npi_set_number(dropped, "no_subscriber", sum[NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER]);
  npi_set_number(dropped, "no_member", sum[NPI_PUBLISHER_DROPPED_NO_MEMBER]);
  npi_set_number(dropped, "no_credit", sum[NPI_PUBLISHER_DROPPED_NO_CREDIT]);
  npi_set_number(dropped, "lost_with_member", sum[NPI_PUBLISHER_LOST_WITH_MEMBER]);
  npi_set_number(dropped, "total",
                 sum[NPI_PUBLISHER_DROPPED_NO_SUBSCRIBER] + sum[NPI_PUBLISHER_DROPPED_NO_MEMBER] +
                     sum[NPI_PUBLISHER_DROPPED_NO_CREDIT] + sum[NPI_PUBLISHER_LOST_WITH_MEMBER]);
  npi_set_number(row, "full", sum[NPI_PUBLISHER_FULL]);
  npi_set_number(row, "redelivered", sum[NPI_PUBLISHER_REDELIVERED]);
  npi_set_number(row, "dead_lettered", sum[NPI_PUBLISHER_DEAD_LETTERED]);
}

static void describe_subscriber(struct npi_view *view, uint32_t index, json_t *row) {
  const struct npi_subscriber_record *record = &view->subscribers[index];
  const struct npi_client_record *client = record->client < view->n_clients ? &view->clients[record->client] : NULL;
  uint64_t value[32], outstanding = 0, connections = 0;
  npi_view_endpoint(view, record->client, record->counters, value); /* zeros where it cannot be read */
  uint64_t missed = value[NPI_SUBSCRIBER_MISSED_PAST];
  npi_set_text_n(row, "name", record->name, sizeof record->name);
  npi_set_number(row, "client", record->client);
  npi_set_number(row, "pid", client != NULL ? client->pid : 0);
  npi_set_text(row, "process", npi_process_word(npi_view_client_process(view, record->client)));
  npi_set_text(row, "state", npi_record_state_word(npi_view_state(&record->state)));
  npi_set_yes(row, "tap", (record->flags & NPI_SUBSCRIBER_TAP) != 0);
  npi_set_text(row, "on_full", on_full_word(record->on_full));
  npi_set_number(row, "credits", record->credits);
  json_t *list = npi_add_array(row, "connections");
  for (uint32_t i = 0; i < view->n_connections; i++) {
    const struct npi_connection_record *connection = &view->connections[i];
    struct npi_connection_figures figures;
    if (npi_view_state(&connection->state) == NPI_CONNECTION_FREE || connection->subscriber != index) continue;
    npi_view_connection(view, connection, &figures);
    uint64_t out = figures.published > figures.processed ? figures.published - figures.processed : 0;
    json_t *one = npi_append_object(list);
    npi_set_number(one, "connection", i);
    npi_set_number(one, "publisher", connection->publisher);
    npi_set_number(
        one, "publisher_pid",
        connection->publisher_client < view->n_clients ? view->clients[connection->publisher_client].pid : 0);
    npi_set_number(one, "published", figures.published);
    npi_set_number(one, "outstanding", out);
    npi_set_number(one, "missed", figures.dropped);
    npi_set_number(one, "taken", figures.taken);
    npi_set_number(one, "returned", figures.returned);
    outstanding += out;
    missed += figures.dropped;
    connections++;
  }
  npi_set_number(row, "publishers", connections);
  npi_set_number(row, "outstanding", outstanding);
  npi_set_number(row, "taken", value[NPI_SUBSCRIBER_TAKEN]);
  npi_set_number(row, "missed", missed);
}

static void describe_channel(struct npi_view *view, uint32_t index, json_t *row) {
  const struct npi_channel_record *record = &view->channels[index];
  npi_set_text_n(row, "name", record->name, sizeof record->name);
  npi_set_text(row, "kind", kind_word(record->kind));
  npi_set_text(row, "on_full", on_full_word(record->on_full));
  npi_set_number(row, "credits", record->credits);
  npi_set_yes(row, "on_demand", record->on_demand != 0);
  npi_set_number(row, "publishers", npi_load_relaxed_u32(&record->n_publishers));
  npi_set_number(row, "subscribers", npi_load_relaxed_u32(&record->n_subscribers));
  npi_describe_channel_use(view, index, row);
  npi_set_number(row, "max_deliveries", record->max_deliveries);
  if (record->max_deliveries > 0 && record->dead_letter < view->n_channels) {
    npi_set_text_n(row, "dead_letter", view->channels[record->dead_letter].name, NPI_NAME_BYTES);
  } else {
    npi_set_null(row, "dead_letter");
  }
  json_t *list = npi_add_array(row, "subscriber_list");
  for (uint32_t i = 0; i < view->n_subscribers; i++) {
    const struct npi_subscriber_record *subscriber = &view->subscribers[i];
    if (npi_view_state(&subscriber->state) == NPI_RECORD_FREE || subscriber->channel != index) continue;
    describe_subscriber(view, i, npi_append_object(list));
  }
}

int npi_cmd_channels(const struct npi_command *command) {
  static const struct npi_column columns[] = {
      {"name", NULL, 0},
      {"kind", NULL, 0},
      {"on_full", NULL, 0},
      {"credits", NULL, 0},
      {"publishers", NULL, 0},
      {"subscribers", NULL, 0},
      {"published", NULL, 0},
      {"delivered", NULL, 0},
      {"dropped.no_subscriber", "no subscriber", 0},
      {"dropped.no_member", "no member", 0},
      {"dropped.no_credit", "no credit", 0},
      {"dropped.lost_with_member", "lost", 0},
      {"dead_lettered", "dead letters", 0},
  };
  static const struct npi_column subscriber_columns[] = {
      {"name", "subscriber", 0}, {"pid", NULL, 0},     {"process", NULL, 0}, {"state", NULL, 0},
      {"tap", NULL, 0},          {"on_full", NULL, 0}, {"credits", NULL, 0}, {"publishers", NULL, 0},
      {"outstanding", NULL, 0},  {"taken", NULL, 0},   {"missed", NULL, 0},
  };
  struct npi_view view;
  size_t i;
  json_t *row;
  int status = npi_open_view(command, &view);
  if (status != NPI_EXIT_OK) return status;
  json_t *document = npi_new_object();
  json_t *rows = npi_add_array(document, "channels");
  for (uint32_t c = 0; c < view.n_channels; c++) {
    if (npi_view_state(&view.channels[c].state) == NPI_RECORD_FREE) continue;
    describe_channel(&view, c, npi_append_object(rows));
  }
  npi_set_yes(document, "complete", !view.denied);
  if (!npi_print_json(command, document)) {
    npi_output_table(stdout, rows, columns, NPI_ARRAY_COUNT(columns));
    json_array_foreach(rows, i, row) {
      json_t *list = json_object_get(row, "subscriber_list");
      if (json_array_size(list) == 0) continue;
      printf("subscribers of %s\n", json_string_value(json_object_get(row, "name")));
      npi_output_table(stdout, list, subscriber_columns, NPI_ARRAY_COUNT(subscriber_columns));
    }
    if (view.denied) npi_complain(command, 0, "counters are incomplete: only user %u or root may see all", view.uid);
  }
  json_decref(document);
  npi_view_close(&view);
  return NPI_EXIT_OK;
}
