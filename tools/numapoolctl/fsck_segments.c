/* SPDX-License-Identifier: Apache-2.0 */
/* fsck: segments against the sums that nodes and clients show, and against what is in /dev/shm. */
#include <inttypes.h>
#include <stdlib.h>

#include "fsck.h"
#include "shm/leftovers.h"
#include "shm/segment.h"

struct sums {
  uint64_t *made, *leased; /* by node */
  uint64_t *of_client;
};

static int is_leased(const struct npi_segment_record *record) {
  uint32_t state = npi_view_state(&record->state);
  return state == NPI_SEGMENT_LEASED || state == NPI_SEGMENT_DRAINING;
}

static int numbers_clash(const struct npi_segment_record *a, const struct npi_segment_record *b) {
  return is_leased(a) && is_leased(b) && a->client == b->client && a->number == b->number;
}

static void check_segment(struct npi_fsck *fsck, const struct npi_view *view, uint32_t i, struct sums *sums) {
  const struct npi_segment_record *record = &view->segments[i];
  uint32_t state = npi_view_state(&record->state);
  char name[96];
  if (state > NPI_SEGMENT_DRAINING) npi_fsck_find(fsck, "segment %u: state %u does not exist", i, state);
  if (record->node >= view->n_nodes || record->bytes != view->header->segment_bytes) {
    npi_fsck_find(fsck, "segment %u: node %u of %u, %" PRIu64 " bytes instead of %" PRIu64, i, record->node,
                  view->n_nodes, record->bytes, view->header->segment_bytes);
    return;
  }
  sums->made[record->node] += record->bytes;
  if (state == NPI_SEGMENT_READY) {
    if (record->client != NPI_NONE) {
      npi_fsck_find(fsck, "segment %u: it is ready, but of client %u", i, record->client);
    }
  } else {
    if (record->client >= view->n_clients || npi_view_state(&view->clients[record->client].state) == NPI_RECORD_FREE) {
      npi_fsck_find(fsck, "segment %u: it is leased to client %u, who is not there", i, record->client);
    } else {
      sums->of_client[record->client] += record->bytes;
    }
    if (record->number >= view->header->segments_per_client) {
      npi_fsck_find(fsck, "segment %u: its client calls it number %u of %u", i, record->number,
                    view->header->segments_per_client);
    }
    sums->leased[record->node] += record->bytes;
  }
  for (uint32_t j = 0; j < i; j++) {
    if (npi_view_state(&view->segments[j].state) == NPI_SEGMENT_FREE) continue;
    if (view->segments[j].object == record->object) {
      npi_fsck_find(fsck, "segments %u and %u are the same object, %" PRIu64, j, i, record->object);
    }
    if (numbers_clash(&view->segments[j], record)) {
      npi_fsck_find(fsck, "segments %u and %u are both number %u of client %u", j, i, record->number, record->client);
    }
  }
  if (view->header->backend == NPI_BACKEND_POSIX) {
    npi_shm_name(name, sizeof name, view->instance, view->uid, "seg", (int64_t)record->object);
    if (!npi_view_has_object(name)) npi_fsck_find(fsck, "segment %u: /dev/shm/%s is not there", i, name);
  }
}

static void check_sums(struct npi_fsck *fsck, const struct npi_view *view, const struct sums *sums) {
  for (uint32_t i = 0; i < view->n_nodes; i++) {
    const struct npi_node_record *node = &view->nodes[i];
    uint64_t made = npi_load_relaxed_u64(&node->made_bytes), leased = npi_load_relaxed_u64(&node->leased_bytes);
    if (made != sums->made[i] || leased != sums->leased[i]) {
      npi_fsck_find(fsck,
                    "node %u: it counts %" PRIu64 " bytes made and %" PRIu64 " leased, its segments have %" PRIu64
                    " and %" PRIu64,
                    node->id, made, leased, sums->made[i], sums->leased[i]);
    }
    if (sums->made[i] > node->budget_bytes) {
      npi_fsck_find(fsck, "node %u: segments of %" PRIu64 " bytes are above its budget of %" PRIu64, node->id,
                    sums->made[i], node->budget_bytes);
    }
  }
  for (uint32_t i = 0; i < view->n_clients; i++) {
    const struct npi_client_record *client = &view->clients[i];
    if (npi_view_state(&client->state) == NPI_RECORD_FREE) continue;
    uint64_t leased = npi_load_relaxed_u64(&client->leased_bytes);
    if (leased != sums->of_client[i]) {
      npi_fsck_find(fsck, "client %u (%.31s): it counts %" PRIu64 " bytes leased, its segments have %" PRIu64, i,
                    client->name, leased, sums->of_client[i]);
    }
    if (sums->of_client[i] > client->budget_bytes) {
      npi_fsck_find(fsck, "client %u (%.31s): %" PRIu64 " bytes leased are above its budget of %" PRIu64, i,
                    client->name, sums->of_client[i], client->budget_bytes);
    }
  }
}

struct orphan_context {
  struct npi_fsck *fsck;
  const struct npi_view *view;
};

static void found_orphan(void *argument, const char *name, uint64_t bytes) {
  const struct orphan_context *context = argument;
  if (npi_view_broker_has_open(context->view, name)) {
    npi_fsck_note(context->fsck, "/dev/shm/%s (%" PRIu64 " bytes) is being made by the broker", name, bytes);
  } else {
    npi_fsck_find(context->fsck, "/dev/shm/%s (%" PRIu64 " bytes) is not in the registry", name, bytes);
  }
}

void npi_fsck_segments(struct npi_fsck *fsck, const struct npi_view *view) {
  size_t n_nodes = view->n_nodes, n = n_nodes * 2 + view->n_clients;
  uint64_t *all = calloc(n + 1, sizeof *all);
  if (all == NULL) {
    npi_fsck_note(fsck, "segments were not checked: out of memory");
    return;
  }
  struct sums sums = {all, all + n_nodes, all + n_nodes * 2};
  for (uint32_t i = 0; i < view->n_segments; i++) {
    if (npi_view_state(&view->segments[i].state) != NPI_SEGMENT_FREE) check_segment(fsck, view, i, &sums);
  }
  check_sums(fsck, view, &sums);
  free(all);
  struct orphan_context context = {fsck, view};
  if (npi_view_orphans(view, found_orphan, &context) < 0) npi_fsck_note(fsck, "/dev/shm could not be listed");
}
