/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fsck: what each client wrote down about its slots: in itself, against its leases, and against the rings of
 * its connections.
 *
 * A copy says nothing while the original moves, so each is read again after it was copied, and judged only
 * where nothing had changed. The dead are left out: their last call may have ended half-way, and nobody will
 * ever use what they wrote.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "core/check.h"
#include "core/ledger.h"
#include "fsck.h"

struct subject {
  struct npi_fsck *fsck;
  struct npi_view *view;
  uint32_t client;
  struct npi_ledger ledger;
  struct npi_ledger_copy copy;
  /* Lines of one client are gathered, and thrown away when it turns out to have moved. */
  char **lines;
  size_t n_lines, room;
};

static void gather(void *context, const char *line) {
  struct subject *subject = context;
  if (subject->n_lines == subject->room) {
    size_t room = subject->room == 0 ? 16 : subject->room * 2;
    char **more = realloc(subject->lines, room * sizeof *more);
    if (more == NULL) return;
    subject->lines = more;
    subject->room = room;
  }
  char *copy = strdup(line);
  if (copy != NULL) subject->lines[subject->n_lines++] = copy;
}

static void settle(struct subject *subject, size_t from, int believe) {
  for (size_t i = from; i < subject->n_lines; i++) {
    if (believe) {
      npi_fsck_find(subject->fsck, "client %u (%.31s): %s", subject->client,
                    subject->view->clients[subject->client].name, subject->lines[i]);
    }
    free(subject->lines[i]);
  }
  subject->n_lines = from;
}

/* ---- segments of the ledger against the registry's leases -------------------------------------------- */

static void check_leases(struct subject *subject) {
  const struct npi_view *view = subject->view;
  uint32_t n = subject->ledger.geometry.segments;
  char line[160];
  uint8_t *leased = calloc(n + 1, 1);
  if (leased == NULL) return;
  for (uint32_t i = 0; i < view->n_segments; i++) {
    const struct npi_segment_record *record = &view->segments[i];
    if (npi_view_state(&record->state) != NPI_SEGMENT_LEASED || record->client != subject->client) continue;
    if (record->number < n) leased[record->number] = 1;
    if (record->number < n && subject->ledger.segments[record->number].leased != 1) {
      snprintf(line, sizeof line, "segment %u is leased to it as number %u, which is not in its ledger", i,
               record->number);
      gather(subject, line);
    }
  }
  for (uint32_t number = 0; number < n; number++) {
    if (subject->ledger.segments[number].leased == 0 || leased[number]) continue;
    snprintf(line, sizeof line, "its ledger has a segment number %u, which is not leased to it", number);
    gather(subject, line);
  }
  free(leased);
}

/* ---- connections ------------------------------------------------------------------------------------- */

/* A ring block as one piece, or NULL. */
static struct npi_ring_block *copy_block(struct npi_view *view, uint32_t client, uint64_t offset, uint64_t bytes) {
  struct npi_ring_block *block = malloc(bytes);
  if (block != NULL && npi_view_page(view, client, offset, block, bytes) == 0) return block;
  free(block);
  return NULL;
}

static int is_unchanged(struct npi_view *view, uint32_t client, uint64_t offset, const struct npi_ring_block *block,
                        uint64_t bytes) {
  struct npi_ring_block *again = copy_block(view, client, offset, bytes);
  int same = again != NULL && memcmp(again, block, bytes) == 0;
  free(again);
  return same;
}

/* The registry's record of what the ledger says it publishes on; NULL: not one that can be judged. */
static const struct npi_connection_record *record_of(const struct subject *subject,
                                                     const struct npi_ledger_connection *entry) {
  const struct npi_view *view = subject->view;
  if (entry->state == NPI_OUTLET_FREE || entry->connection >= view->n_connections) return NULL;
  const struct npi_connection_record *record = &view->connections[entry->connection];
  if (npi_view_state(&record->state) != NPI_CONNECTION_ACTIVE ||
      npi_load_relaxed_u32(&record->version) != entry->version || record->publisher_client != subject->client) {
    return NULL; /* just made or ending: both sides know of it at different times */
  }
  if (!npi_is_power_of_two(record->capacity) || record->capacity < NPI_RING_CAPACITY_MIN ||
      record->capacity > NPI_CREDITS_MAX || record->subscriber_client >= view->n_clients) {
    return NULL; /* the registry's own finding */
  }
  return record;
}

/* Gathers what is found. 0: something moved while it was looked at. */
static int check_connection(struct subject *subject, const struct npi_ledger_connection *entry,
                            const struct npi_connection_record *record) {
  struct npi_view *view = subject->view;
  uint64_t bytes = npi_ring_block_bytes(record->capacity);
  struct npi_check_subscriber reader;
  int rests = 1;
  if (npi_view_client_process(view, record->subscriber_client) == NPI_PROCESS_DEAD) return 1;
  struct npi_ring_block *out = copy_block(view, subject->client, record->submissions_offset, bytes);
  struct npi_ring_block *back = copy_block(view, record->subscriber_client, record->returns_offset, bytes);
  if (out != NULL && back != NULL) {
    reader.taken = npi_load_relaxed_u64(&back->counter[NPI_RETURN_TAKEN]);
    reader.returned = npi_load_relaxed_u64(&back->counter[NPI_RETURN_RETURNED]);
    npi_check_connection(&subject->ledger, entry, out, back, record->capacity, &reader, gather, subject);
    rests = is_unchanged(view, subject->client, record->submissions_offset, out, bytes) &&
            is_unchanged(view, record->subscriber_client, record->returns_offset, back, bytes);
  }
  free(out);
  free(back);
  return rests;
}

/* Connections that the registry shows as this client's, and that its ledger does not know. */
static void check_known(struct subject *subject) {
  const struct npi_view *view = subject->view;
  char line[160];
  for (uint32_t i = 0; i < view->n_connections; i++) {
    const struct npi_connection_record *record = &view->connections[i];
    if (npi_view_state(&record->state) != NPI_CONNECTION_ACTIVE || record->publisher_client != subject->client)
      continue;
    int known = 0;
    for (uint32_t e = 0; e < subject->ledger.geometry.connections && !known; e++) {
      const struct npi_ledger_connection *entry = &subject->ledger.connections[e];
      known = entry->state != NPI_OUTLET_FREE && entry->connection == i &&
              entry->version == npi_load_relaxed_u32(&record->version);
    }
    if (known) continue;
    /* It hears of a connection at its next call, which may be far away. */
    struct npi_connection_figures figures;
    npi_view_connection(subject->view, record, &figures);
    if (figures.published == 0) continue;
    snprintf(line, sizeof line, "connection %u has carried %" PRIu64 " events and is not in its ledger", i,
             figures.published);
    gather(subject, line);
  }
}

static void check_connections(struct subject *subject, int *rests) {
  for (uint32_t i = 0; i < subject->ledger.geometry.connections; i++) {
    const struct npi_ledger_connection *entry = &subject->ledger.connections[i];
    const struct npi_connection_record *record = record_of(subject, entry);
    if (record == NULL) continue;
    size_t before = subject->n_lines;
    if (check_connection(subject, entry, record)) continue;
    settle(subject, before, 0);
    *rests = 0;
  }
}

/* ---- one client after another ------------------------------------------------------------------------ */

static void check_client(struct npi_fsck *fsck, struct npi_view *view, uint32_t client) {
  struct subject subject = {.fsck = fsck, .view = view, .client = client, .copy = {.fd = -1}};
  const char *name = view->clients[client].name;
  int rests = 1;
  int status = npi_view_ledger(view, client, &subject.copy);
  if (status != 0) {
    /* Its record may just have gone to another client, or it has not yet formatted its ledger. */
    if (status != NP_ERR_DENIED) npi_fsck_note(fsck, "client %u (%.31s): not judged: %s", client, name, npi_detail());
    return;
  }
  status = npi_ledger_attach(&subject.ledger, subject.copy.memory, subject.copy.n_bytes);
  if (status != 0) {
    gather(&subject, npi_detail());
  } else {
    npi_check_ledger(&subject.ledger, gather, &subject);
    check_leases(&subject);
    check_known(&subject);
    check_connections(&subject, &rests);
  }
  int unchanged = npi_view_ledger_unchanged(&subject.copy);
  int lives = npi_view_client_process(view, client) != NPI_PROCESS_DEAD;
  settle(&subject, 0, unchanged && lives);
  if (!unchanged && lives) {
    npi_fsck_note(fsck, "client %u (%.31s): not judged: it publishes, and its ledger changed in each look", client,
                  name);
  } else if (!rests && lives) {
    npi_fsck_note(fsck, "client %u (%.31s): rings not judged: events passed in each look", client, name);
  }
  free(subject.lines);
  npi_view_ledger_free(&subject.copy);
}

void npi_fsck_ledgers(struct npi_fsck *fsck, struct npi_view *view) {
  for (uint32_t i = 0; i < view->n_clients; i++) {
    if (npi_view_state(&view->clients[i].state) != NPI_RECORD_ACTIVE) continue;
    if (npi_view_client_process(view, i) == NPI_PROCESS_DEAD) continue;
    check_client(fsck, view, i);
  }
}
