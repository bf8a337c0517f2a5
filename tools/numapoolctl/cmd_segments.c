/* SPDX-License-Identifier: Apache-2.0 */
/* numapoolctl segments: which memory there is, where its pages are, who leases it, and what nobody knows of. */
#include <inttypes.h>

#include "command.h"
#include "shm/leftovers.h"

static const char *state_word(uint32_t state) {
  static const char *const words[] = {"free", "ready", "leased", "draining"};
  return state < NPI_ARRAY_COUNT(words) ? words[state] : "invalid";
}

static void describe(const struct npi_view *view, uint32_t index, json_t *row) {
  const struct npi_segment_record *record = &view->segments[index];
  const struct npi_client_record *client = record->client < view->n_clients ? &view->clients[record->client] : NULL;
  char name[96];
  npi_shm_name(name, sizeof name, view->instance, view->uid, "seg", (int64_t)record->object);
  npi_set_number(row, "index", index);
  if (record->node < view->n_nodes) {
    npi_set_number(row, "node", view->nodes[record->node].id);
  } else {
    npi_set_null(row, "node");
  }
  npi_set_text(row, "object", name);
  npi_set_text(row, "backend", npi_backend_word(view->header->backend));
  npi_set_text(row, "state", state_word(npi_view_state(&record->state)));
  if (client != NULL) {
    npi_set_number(row, "client", record->client);
    npi_set_text_n(row, "owner", client->name, sizeof client->name);
    npi_set_number(row, "pid", client->pid);
    npi_set_number(row, "number", record->number);
  } else {
    npi_set_null(row, "client");
    npi_set_null(row, "owner");
    npi_set_null(row, "pid");
    npi_set_null(row, "number");
  }
  npi_set_number(row, "bytes", record->bytes);
  npi_set_number(row, "page_bytes", record->page_bytes);
  json_t *pages = npi_add_object(row, "pages");
  npi_set_number(pages, "home", npi_load_relaxed_u64(&record->pages_home));
  npi_set_number(pages, "away", npi_load_relaxed_u64(&record->pages_away));
  npi_set_number(pages, "unknown", npi_load_relaxed_u64(&record->pages_unknown));
  npi_set_yes(row, "bound", record->bound != 0);
  npi_set_time(row, "measured", record->measured_ns);
}

static void add_orphan(void *rows, const char *name, uint64_t bytes) {
  json_t *row = npi_append_object(rows);
  npi_set_text(row, "object", name);
  npi_set_number(row, "bytes", bytes);
}

int npi_cmd_segments(const struct npi_command *command) {
  static const struct npi_column columns[] = {
      {"index", NULL, 0},
      {"node", NULL, 0},
      {"object", NULL, 0},
      {"state", NULL, 0},
      {"client", NULL, 0},
      {"owner", NULL, 0},
      {"pid", NULL, 0},
      {"number", NULL, 0},
      {"bytes", NULL, NPI_SHOW_BYTES},
      {"page_bytes", "page", NPI_SHOW_BYTES},
      {"pages.home", "home", 0},
      {"pages.away", "away", 0},
      {"pages.unknown", "unknown", 0},
      {"bound", NULL, 0},
  };
  static const struct npi_column orphan_columns[] = {{"object", "object that nobody knows", 0},
                                                     {"bytes", NULL, NPI_SHOW_BYTES}};
  struct npi_view view;
  int status = npi_open_view(command, &view);
  if (status != NPI_EXIT_OK) return status;
  json_t *document = npi_new_object();
  npi_set_text(document, "broker", npi_process_word(npi_view_broker(&view)));
  json_t *rows = npi_add_array(document, "segments");
  for (uint32_t i = 0; i < view.n_segments; i++) {
    if (npi_view_state(&view.segments[i].state) == NPI_SEGMENT_FREE) continue;
    describe(&view, i, npi_append_object(rows));
  }
  json_t *orphans = npi_add_array(document, "orphans");
  int result = NPI_EXIT_OK;
  if (npi_view_orphans(&view, add_orphan, orphans) < 0) result = npi_complain(command, NPI_EXIT_NO, "%s", npi_detail());
  if (!npi_print_json(command, document)) {
    npi_output_table(stdout, rows, columns, NPI_ARRAY_COUNT(columns));
    if (json_array_size(orphans) > 0) {
      npi_output_table(stdout, orphans, orphan_columns, NPI_ARRAY_COUNT(orphan_columns));
    }
  }
  json_decref(document);
  npi_view_close(&view);
  return result;
}
