/* SPDX-License-Identifier: Apache-2.0 */
/* numapoolctl clients: who is connected, does it run, and what does it hold. */
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "os/os_clock.h"

struct use {
  uint64_t publishers, subscribers;
  uint64_t outstanding, held, waiting;
  uint64_t connections;
};

static const char *kind_word(uint32_t kind) {
  static const char *const words[] = {"application", "worker", "tool"};
  return kind < NPI_ARRAY_COUNT(words) ? words[kind] : "invalid";
}

/* Differences of two positions that different processes wrote at different times. */
static uint64_t ahead(uint64_t a, uint64_t b) {
  return a > b ? a - b : 0;
}

static void add_up(struct npi_view *view, struct use *use) {
  struct npi_connection_figures figures;
  for (uint32_t i = 0; i < view->n_publishers; i++) {
    const struct npi_publisher_record *record = &view->publishers[i];
    if (npi_view_state(&record->state) != 0 && record->client < view->n_clients) use[record->client].publishers++;
  }
  for (uint32_t i = 0; i < view->n_subscribers; i++) {
    const struct npi_subscriber_record *record = &view->subscribers[i];
    if (npi_view_state(&record->state) != 0 && record->client < view->n_clients) use[record->client].subscribers++;
  }
  for (uint32_t i = 0; i < view->n_connections; i++) {
    const struct npi_connection_record *record = &view->connections[i];
    if (npi_view_state(&record->state) == NPI_CONNECTION_FREE || record->publisher_client >= view->n_clients ||
        record->subscriber_client >= view->n_clients) {
      continue;
    }
    npi_view_connection(view, record, &figures);
    use[record->publisher_client].connections++;
    if (record->subscriber_client != record->publisher_client) use[record->subscriber_client].connections++;
    use[record->publisher_client].outstanding += ahead(figures.published, figures.processed);
    if (!figures.subscriber_known) continue;
    use[record->subscriber_client].held += ahead(figures.taken, figures.returned);
    use[record->subscriber_client].waiting += ahead(figures.published, figures.taken);
  }
}

int npi_cmd_clients(const struct npi_command *command) {
  static const struct npi_column columns[] = {
      {"index", NULL, 0},
      {"pid", NULL, 0},
      {"name", NULL, 0},
      {"kind", NULL, 0},
      {"uid", NULL, 0},
      {"node", NULL, 0},
      {"state", NULL, 0},
      {"process", NULL, 0},
      {"leased_bytes", "leased", NPI_SHOW_BYTES},
      {"budget_bytes", "budget", NPI_SHOW_BYTES},
      {"publishers", NULL, 0},
      {"subscribers", NULL, 0},
      {"outstanding", NULL, 0},
      {"held", NULL, 0},
      {"waiting", NULL, 0},
  };
  struct npi_view view;
  int status = npi_open_view(command, &view);
  if (status != NPI_EXIT_OK) return status;
  struct use *use = calloc(view.n_clients + 1, sizeof *use);
  if (use == NULL) {
    npi_view_close(&view);
    return npi_complain(command, NPI_EXIT_NO, "out of memory");
  }
  add_up(&view, use);

  uint64_t now_ns = npi_clock_monotonic();
  json_t *document = npi_new_object();
  json_t *rows = npi_add_array(document, "clients");
  for (uint32_t i = 0; i < view.n_clients; i++) {
    const struct npi_client_record *record = &view.clients[i];
    uint32_t state = npi_view_state(&record->state);
    if (state == NPI_RECORD_FREE) continue;
    json_t *row = npi_append_object(rows);
    npi_set_number(row, "index", i);
    npi_set_number(row, "pid", record->pid);
    npi_set_text_n(row, "name", record->name, sizeof record->name);
    npi_set_text(row, "kind", kind_word(record->kind));
    npi_set_number(row, "uid", record->uid);
    if (record->node < view.n_nodes) {
      npi_set_number(row, "node", view.nodes[record->node].id);
    } else {
      npi_set_null(row, "node");
    }
    int is_out = (npi_load_relaxed_u32(&record->flags) & NPI_CLIENT_QUARANTINED) != 0;
    npi_set_text(row, "state", is_out && state == NPI_RECORD_ACTIVE ? "evicted" : npi_record_state_word(state));
    npi_set_text(row, "process", npi_process_word(npi_view_client_process(&view, i)));
    uint64_t stopped_ns = npi_load_relaxed_u64(&record->stopped_ns);
    if (stopped_ns != 0 && stopped_ns <= now_ns) {
      npi_set_number(row, "stopped_ms", (now_ns - stopped_ns) / 1000000);
    } else {
      npi_set_null(row, "stopped_ms");
    }
    npi_set_time(row, "connected", record->connected_ns);
    npi_set_number(row, "leased_bytes", npi_load_relaxed_u64(&record->leased_bytes));
    npi_set_number(row, "budget_bytes", record->budget_bytes);
    npi_set_number(row, "publishers", use[i].publishers);
    npi_set_number(row, "subscribers", use[i].subscribers);
    npi_set_number(row, "connections", use[i].connections);
    npi_set_number(row, "outstanding", use[i].outstanding);
    npi_set_number(row, "held", use[i].held);
    npi_set_number(row, "waiting", use[i].waiting);
  }
  npi_set_yes(document, "complete", !view.denied);
  if (!npi_print_json(command, document)) {
    npi_output_table(stdout, rows, columns, NPI_ARRAY_COUNT(columns));
    if (view.denied) npi_complain(command, 0, "counters are incomplete: only user %u or root may see all", view.uid);
  }
  json_decref(document);
  free(use);
  npi_view_close(&view);
  return NPI_EXIT_OK;
}
