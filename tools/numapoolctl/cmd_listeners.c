/* SPDX-License-Identifier: Apache-2.0 */
/* numapoolctl listeners: what came in by each socket, and what became of it. */
#include <string.h>

#include "command.h"
#include "core/counters.h"

enum { NO_BACKEND = 0, BACKEND_URING = 1, BACKEND_EPOLL = 2 };

/* As the broker numbers the kinds of sockets in the registry. */
static const char *protocol_word(uint32_t protocol) {
  static const char *const words[] = {"none", "udp", "tcp", "unix", "unix_datagram"};
  return protocol < NPI_ARRAY_COUNT(words) ? words[protocol] : "invalid";
}

static const char *state_word(uint32_t state) {
  static const char *const words[] = {"free", "starting", "listening", "down"};
  return state < NPI_ARRAY_COUNT(words) ? words[state] : "invalid";
}

static const char *backend_word(uint64_t backend) {
  return backend == BACKEND_URING ? "io_uring" : backend == BACKEND_EPOLL ? "epoll" : "unknown";
}

/* Rows that are a state and not a count: a sum over workers means something only for some. */
static int is_sum(int counter) {
  return counter != NPI_LISTENER_BACKEND && counter != NPI_LISTENER_AT_WORK && counter != NPI_LISTENER_UNCOUNTED;
}

static void add_up(struct npi_view *view, uint32_t listener, uint64_t sum[NPI_LISTENER_COUNTER_COUNT], json_t *workers,
                   uint64_t *backend) {
  uint64_t value[64];
  for (int c = 0; c < NPI_LISTENER_COUNTER_COUNT; c++) {
    sum[c] += npi_load_relaxed_u64(&view->listeners[listener].past.value[c]);
  }
  for (uint32_t i = 0; i < view->n_clients; i++) {
    const struct npi_client_record *client = &view->clients[i];
    if (npi_view_state(&client->state) == NPI_RECORD_FREE || client->kind != NPI_CLIENT_WORKER) continue;
    if (npi_load_relaxed_u32(&client->folded) > listener) continue; /* it is in the past already */
    if (npi_view_listener(view, i, listener, value) != 0 || value[NPI_LISTENER_BACKEND] == NO_BACKEND) continue;
    for (int c = 0; c < NPI_LISTENER_COUNTER_COUNT; c++) sum[c] += is_sum(c) ? value[c] : 0;
    *backend = value[NPI_LISTENER_BACKEND];
    json_array_append_new(workers, json_integer(client->pid));
  }
}

/* As one would write it to connect: host:port, or a path. */
static void set_place(json_t *row, const struct npi_listener_record *record) {
  char text[NPI_ADDRESS_BYTES + 16];
  int is_v6 = memchr(record->address, ':', sizeof record->address) != NULL && record->address[0] != '[';
  if (record->port == 0) {
    npi_set_text_n(row, "place", record->address, sizeof record->address);
    return;
  }
  snprintf(text, sizeof text, "%s%.*s%s:%u", is_v6 ? "[" : "", (int)sizeof record->address, record->address,
           is_v6 ? "]" : "", record->port);
  npi_set_text(row, "place", text);
}

void npi_describe_listener(struct npi_view *view, uint32_t listener, json_t *row) {
  static const int drops[] = {NPI_LISTENER_DROPPED_POOL,    NPI_LISTENER_DROPPED_CREDIT, NPI_LISTENER_DROPPED_KERNEL,
                              NPI_LISTENER_TRUNCATED,       NPI_LISTENER_EMPTY,          NPI_LISTENER_BAD_LENGTH,
                              NPI_LISTENER_TOO_LARGE,       NPI_LISTENER_BAD_FRAME,      NPI_LISTENER_PARTIAL_AT_END,
                              NPI_LISTENER_LOST_WITH_WORKER};
  const struct npi_listener_record *record = &view->listeners[listener];
  uint64_t sum[NPI_LISTENER_COUNTER_COUNT] = {0}, backend = NO_BACKEND, total = 0;
  npi_set_text_n(row, "name", record->name, sizeof record->name);
  npi_set_text(row, "protocol", protocol_word(record->protocol));
  npi_set_text_n(row, "address", record->address, sizeof record->address);
  npi_set_number(row, "port", record->port);
  set_place(row, record);
  npi_set_text_n(row, "framing", record->framing, sizeof record->framing);
  if (record->channel < view->n_channels) {
    npi_set_text_n(row, "channel", view->channels[record->channel].name, NPI_NAME_BYTES);
  } else {
    npi_set_null(row, "channel");
  }
  npi_set_text(row, "state", state_word(npi_view_state(&record->state)));
  json_t *workers = npi_add_array(row, "workers");
  add_up(view, listener, sum, workers, &backend);
  npi_set_text(row, "backend", backend_word(backend));
  npi_set_number(row, "received", sum[NPI_LISTENER_RECEIVED]);
  npi_set_number(row, "received_bytes", sum[NPI_LISTENER_RECEIVED_BYTES]);
  npi_set_number(row, "published", sum[NPI_LISTENER_PUBLISHED]);
  npi_set_number(row, "held", sum[NPI_LISTENER_HELD]);
  json_t *dropped = npi_add_object(row, "dropped");
  for (size_t i = 0; i < NPI_ARRAY_COUNT(drops); i++) {
    npi_set_number(dropped, npi_listener_counter_rows[drops[i]].name, sum[drops[i]]);
    total += sum[drops[i]];
  }
  npi_set_number(dropped, "total", total);
  uint64_t accepted = sum[NPI_LISTENER_ACCEPTED], closed = sum[NPI_LISTENER_CLOSED];
  npi_set_number(row, "connections_open", accepted > closed ? accepted - closed : 0);
  npi_set_number(row, "connections_rejected", sum[NPI_LISTENER_REJECTED]);
  npi_set_yes(row, "paused", sum[NPI_LISTENER_PAUSED_NOW] != 0);
  npi_set_number(row, "bad_frames",
                 sum[NPI_LISTENER_BAD_LENGTH] + sum[NPI_LISTENER_TOO_LARGE] + sum[NPI_LISTENER_BAD_FRAME] +
                     sum[NPI_LISTENER_PARTIAL_AT_END]);
  npi_set_number(row, "restarts", npi_load_relaxed_u32(&record->restarts));
  json_t *counters = npi_add_object(row, "counters");
  for (int c = 0; c < NPI_LISTENER_COUNTER_COUNT; c++) {
    if (is_sum(c)) npi_set_number(counters, npi_listener_counter_rows[c].name, sum[c]);
  }
}

int npi_cmd_listeners(const struct npi_command *command) {
  static const struct npi_column columns[] = {
      {"name", NULL, 0},     {"protocol", NULL, 0},  {"place", "address", 0}, {"framing", NULL, 0},
      {"channel", NULL, 0},  {"state", NULL, 0},     {"workers", NULL, 0},    {"backend", NULL, 0},
      {"received", NULL, 0}, {"published", NULL, 0}, {"held", NULL, 0},       {"connections_open", "open", 0},
      {"paused", NULL, 0},   {"restarts", NULL, 0},
  };
  static const struct npi_column drop_columns[] = {
      {"name", "dropped by", 0},
      {"dropped.dropped_pool", "pool", 0},
      {"dropped.dropped_credit", "credit", 0},
      {"dropped.dropped_kernel", "kernel", 0},
      {"dropped.truncated", "truncated", 0},
      {"dropped.empty", "empty", 0},
      {"dropped.lost_with_worker", "lost", 0},
      {"bad_frames", "bad frames", 0},
      {"connections_rejected", "rejected", 0},
  };
  struct npi_view view;
  int status = npi_open_view(command, &view);
  if (status != NPI_EXIT_OK) return status;
  json_t *document = npi_new_object();
  json_t *rows = npi_add_array(document, "listeners");
  for (uint32_t i = 0; i < view.n_listeners; i++) {
    if (npi_view_state(&view.listeners[i].state) == NPI_LISTENER_FREE) continue;
    npi_describe_listener(&view, i, npi_append_object(rows));
  }
  npi_set_yes(document, "complete", !view.denied);
  if (!npi_print_json(command, document)) {
    npi_output_table(stdout, rows, columns, NPI_ARRAY_COUNT(columns));
    if (json_array_size(rows) > 0) npi_output_table(stdout, rows, drop_columns, NPI_ARRAY_COUNT(drop_columns));
    if (view.denied) npi_complain(command, 0, "counters are incomplete: only user %u or root may see all", view.uid);
  }
  json_decref(document);
  npi_view_close(&view);
  return NPI_EXIT_OK;
}
