/* SPDX-License-Identifier: Apache-2.0 */
/* numapoolctl status: is the broker ready, and the instance at a glance. */
#include "command.h"
#include "core/counters.h"
#include "os/os_clock.h"
#include "shm/segment.h"

static const char *state_word(const struct npi_view *view, enum npi_process process) {
  uint32_t state = npi_view_state(&view->header->state);
  if (state == NPI_BROKER_STOPPED) return "ended";
  if (process == NPI_PROCESS_DEAD) return "dead";
  if (process == NPI_PROCESS_STOPPED) return "stopped";
  switch (state) {
    case NPI_BROKER_STARTING: return "starting";
    case NPI_BROKER_READY: return "ready";
    case NPI_BROKER_DRAINING: return "draining";
    default: return "invalid";
  }
}

static const char *numa_word(uint32_t mode) {
  static const char *const words[] = {"off", "prefer", "strict"};
  return mode < NPI_ARRAY_COUNT(words) ? words[mode] : "invalid";
}

static void describe_broker(const struct npi_view *view, enum npi_process process, json_t *document) {
  const struct npi_registry_header *header = view->header;
  uint64_t now = npi_clock_realtime();
  npi_set_text(document, "state", state_word(view, process));
  npi_set_text(document, "instance", view->instance);
  npi_set_text_n(document, "version", header->version, sizeof header->version);
  npi_set_number(document, "pid", header->broker_pid);
  npi_set_text(document, "process", npi_process_word(process));
  npi_set_time(document, "started", header->started_ns);
  if (process == NPI_PROCESS_DEAD) {
    npi_set_null(document, "uptime_s");
  } else {
    npi_set_number(document, "uptime_s", now > header->started_ns ? (now - header->started_ns) / 1000000000 : 0);
  }
  npi_set_number(document, "uid", header->uid);
  if (header->config_file[0] != '\0') {
    npi_set_text_n(document, "config_file", header->config_file, sizeof header->config_file);
  } else {
    npi_set_null(document, "config_file");
  }
  npi_set_text(document, "backend", npi_backend_word(header->backend));
  npi_set_text(document, "numa_mode", numa_word(header->numa_mode));
  npi_set_number(document, "segment_bytes", header->segment_bytes);
  npi_set_number(document, "per_client_bytes", header->per_client_bytes);
}

static void describe_nodes(const struct npi_view *view, json_t *nodes) {
  for (uint32_t i = 0; i < view->n_nodes; i++) {
    const struct npi_node_record *node = &view->nodes[i];
    json_t *row = npi_append_object(nodes);
    npi_set_number(row, "node", node->id);
    npi_set_number(row, "cpus", node->n_cpus);
    npi_set_number(row, "budget_bytes", node->budget_bytes);
    npi_set_number(row, "made_bytes", npi_load_relaxed_u64(&node->made_bytes));
    npi_set_number(row, "leased_bytes", npi_load_relaxed_u64(&node->leased_bytes));
    json_t *pages = npi_add_object(row, "pages");
    npi_set_number(pages, "home", npi_load_relaxed_u64(&node->pages_home));
    npi_set_number(pages, "away", npi_load_relaxed_u64(&node->pages_away));
    npi_set_number(pages, "unknown", npi_load_relaxed_u64(&node->pages_unknown));
    npi_set_yes(row, "bind_refused", npi_load_relaxed_u32(&node->bind_refused) != 0);
  }
}

#define COUNT_USED(view, records, n_records, used)                \
  do {                                                            \
    (used) = 0;                                                   \
    for (uint32_t at_ = 0; at_ < (view)->n_records; at_++) {      \
      (used) += npi_view_state(&(view)->records[at_].state) != 0; \
    }                                                             \
  } while (0)

static void describe_totals(const struct npi_view *view, json_t *totals) {
  uint64_t used;
  COUNT_USED(view, clients, n_clients, used);
  npi_set_number(totals, "clients", used);
  COUNT_USED(view, channels, n_channels, used);
  npi_set_number(totals, "channels", used);
  COUNT_USED(view, publishers, n_publishers, used);
  npi_set_number(totals, "publishers", used);
  COUNT_USED(view, subscribers, n_subscribers, used);
  npi_set_number(totals, "subscribers", used);
  COUNT_USED(view, connections, n_connections, used);
  npi_set_number(totals, "connections", used);
  COUNT_USED(view, segments, n_segments, used);
  npi_set_number(totals, "segments", used);
  COUNT_USED(view, listeners, n_listeners, used);
  npi_set_number(totals, "listeners", used);
}

/* Sums over all channels of what each shows. */
static void describe_events(struct npi_view *view, json_t *events) {
  json_int_t published = 0, delivered = 0, dropped = 0;
  for (uint32_t i = 0; i < view->n_channels; i++) {
    if (npi_view_state(&view->channels[i].state) == NPI_RECORD_FREE) continue;
    json_t *row = npi_new_object();
    npi_describe_channel_use(view, i, row);
    published += json_integer_value(json_object_get(row, "published"));
    delivered += json_integer_value(json_object_get(row, "delivered"));
    dropped += json_integer_value(json_object_get(json_object_get(row, "dropped"), "total"));
    json_decref(row);
  }
  npi_set_number(events, "published", (uint64_t)published);
  npi_set_number(events, "delivered", (uint64_t)delivered);
  npi_set_number(events, "dropped", (uint64_t)dropped);
}

int npi_cmd_status(const struct npi_command *command) {
  static const struct npi_column broker_columns[] = {
      {"state", NULL, 0},
      {"instance", NULL, 0},
      {"version", NULL, 0},
      {"pid", NULL, 0},
      {"process", NULL, 0},
      {"uptime_s", "uptime", NPI_SHOW_SECONDS},
      {"uid", NULL, 0},
      {"config_file", "config", 0},
      {"backend", NULL, 0},
      {"numa_mode", "numa", 0},
      {"segment_bytes", "segment", NPI_SHOW_BYTES},
      {"per_client_bytes", "per client", NPI_SHOW_BYTES},
  };
  static const struct npi_column node_columns[] = {
      {"node", NULL, 0},
      {"cpus", NULL, 0},
      {"budget_bytes", "budget", NPI_SHOW_BYTES},
      {"made_bytes", "made", NPI_SHOW_BYTES},
      {"leased_bytes", "leased", NPI_SHOW_BYTES},
      {"pages.home", "pages home", 0},
      {"pages.away", "away", 0},
      {"pages.unknown", "unknown", 0},
      {"bind_refused", "bind refused", 0},
  };
  static const struct npi_column total_columns[] = {
      {"clients", NULL, 0},     {"channels", NULL, 0}, {"publishers", NULL, 0}, {"subscribers", NULL, 0},
      {"connections", NULL, 0}, {"segments", NULL, 0}, {"listeners", NULL, 0},
  };
  static const struct npi_column event_columns[] = {
      {"published", NULL, 0}, {"delivered", NULL, 0}, {"dropped", NULL, 0}};
  static const struct npi_column listener_columns[] = {
      {"name", NULL, 0},  {"protocol", NULL, 0}, {"place", "address", 0}, {"channel", NULL, 0},
      {"state", NULL, 0}, {"received", NULL, 0}, {"published", NULL, 0},  {"dropped.total", "dropped", 0},
  };
  struct npi_column counter_columns[NPI_BROKER_COUNTER_COUNT];
  struct npi_view view;
  int status = npi_open_view(command, &view);
  if (status != NPI_EXIT_OK) return status;
  enum npi_process process = npi_view_broker(&view);
  int is_ready = process == NPI_PROCESS_RUNNING && npi_view_state(&view.header->state) == NPI_BROKER_READY;

  json_t *document = npi_new_object();
  describe_broker(&view, process, document);
  describe_nodes(&view, npi_add_array(document, "nodes"));
  describe_totals(&view, npi_add_object(document, "totals"));
  describe_events(&view, npi_add_object(document, "events"));
  json_t *listeners = npi_add_array(document, "listeners");
  for (uint32_t i = 0; i < view.n_listeners; i++) {
    if (npi_view_state(&view.listeners[i].state) != NPI_LISTENER_FREE) {
      npi_describe_listener(&view, i, npi_append_object(listeners));
    }
  }
  json_t *counters = npi_add_object(document, "counters");
  for (int i = 0; i < NPI_BROKER_COUNTER_COUNT; i++) {
    npi_set_number(counters, npi_broker_counter_rows[i].name, npi_load_relaxed_u64(&view.header->counter[i]));
    counter_columns[i] = (struct npi_column){npi_broker_counter_rows[i].name, NULL, 0};
  }

  if (!npi_print_json(command, document)) {
    npi_output_fields(stdout, document, broker_columns, NPI_ARRAY_COUNT(broker_columns));
    puts("nodes");
    npi_output_table(stdout, json_object_get(document, "nodes"), node_columns, NPI_ARRAY_COUNT(node_columns));
    puts("in use");
    json_t *one = json_pack("[O]", json_object_get(document, "totals"));
    npi_output_table(stdout, one, total_columns, NPI_ARRAY_COUNT(total_columns));
    json_decref(one);
    puts("events");
    one = json_pack("[O]", json_object_get(document, "events"));
    npi_output_table(stdout, one, event_columns, NPI_ARRAY_COUNT(event_columns));
    json_decref(one);
    puts("listeners");
    npi_output_table(stdout, listeners, listener_columns, NPI_ARRAY_COUNT(listener_columns));
    puts("broker counters");
    npi_output_fields(stdout, counters, counter_columns, NPI_ARRAY_COUNT(counter_columns));
  }
  json_decref(document);
  npi_view_close(&view);
  return is_ready ? NPI_EXIT_OK : NPI_EXIT_NO;
}
