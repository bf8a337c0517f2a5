/* SPDX-License-Identifier: Apache-2.0 */
#include "support/core_pair.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

static void *memory(uint64_t bytes) {
  void *address = aligned_alloc(NPI_PAGE, npi_round_up(bytes, NPI_PAGE));
  if (address == NULL) {
    fprintf(stderr, "no memory for %llu bytes\n", (unsigned long long)bytes);
    exit(2);
  }
  memset(address, 0, npi_round_up(bytes, NPI_PAGE));
  return address;
}

static void need(int status, const char *what) {
  if (status == 0) return;
  fprintf(stderr, "%s: %d: %s\n", what, status, npi_detail());
  exit(2);
}

void core_pair_open(struct core_pair *pair, const struct core_options *options) {
  memset(pair, 0, sizeof *pair);
  pair->segment_bytes = (uint64_t)options->segment_chunks * NPI_CHUNK_BYTES;
  pair->geometry = (struct npi_ledger_geometry){
      .segments = options->room_for_segments ? options->room_for_segments : CORE_SEGMENTS_MAX,
      .chunks_per_segment = options->segment_chunks,
      .connections = CORE_ENDS_MAX,
      .credits_bytes = CORE_ENDS_MAX * npi_credit_arrays_bytes(CORE_CAPACITY_MAX),
  };
  pair->ledger_bytes = npi_ledger_footprint(&pair->geometry);
  pair->ledger_memory = memory(pair->ledger_bytes);
  npi_pool_init(&pair->pool, pair->ledger_memory, &pair->geometry, 3, 1, pair->pool_segments, UINT64_C(1) << 40);
  npi_flow_init(&pair->flow, &pair->pool, options->kind, options->on_full, &pair->counters);
  for (uint32_t i = 0; i < options->n_segments; i++) need(core_add_segment(pair, i), "core_add_segment");
}

void core_pair_close(struct core_pair *pair) {
  for (uint32_t i = 0; i < CORE_ENDS_MAX; i++) {
    if (pair->ends[i].open) core_disconnect(pair, &pair->ends[i]);
  }
  npi_flow_abandon_waiting(&pair->flow);
  npi_flow_deinit(&pair->flow);
  for (uint32_t i = 0; i < CORE_SEGMENTS_MAX; i++) free(pair->segment_memory[i]);
  free(pair->ledger_memory);
}

int core_add_segment(struct core_pair *pair, uint32_t number) {
  void *segment = memory(pair->segment_bytes);
  int status = npi_pool_add_segment(&pair->pool, number, segment, pair->segment_bytes, 0);
  if (status != 0) {
    free(segment);
    return status;
  }
  pair->segment_memory[number] = segment;
  pair->views[number] = (struct npi_segment_view){segment, pair->segment_bytes};
  return 0;
}

int core_remove_segment(struct core_pair *pair, uint32_t number) {
  int status = npi_pool_remove_segment(&pair->pool, number);
  if (status != 0) return status;
  free(pair->segment_memory[number]);
  pair->segment_memory[number] = NULL;
  pair->views[number] = (struct npi_segment_view){NULL, 0};
  return 0;
}

/* The formatted ring begins at position 0; any position with the same lap serves as well. */
static void start_at(struct core_end *end, uint64_t position) {
  end->outlet.entry->submitted = end->outlet.entry->returned = position;
  end->inlet.taken = end->inlet.returned = position;
  npi_store_relaxed_u64(&end->submissions->counter[NPI_SUBMISSION_PUBLISHED], position);
  npi_store_relaxed_u64(&end->submissions->counter[NPI_SUBMISSION_RETURNED], position);
}

struct core_end *core_connect(struct core_pair *pair, const struct core_end_options *options) {
  uint32_t capacity = options->capacity ? options->capacity : NPI_RING_CAPACITY_MIN;
  uint32_t number = 0;
  while (number < CORE_ENDS_MAX && pair->ends[number].open) number++;
  if (number == CORE_ENDS_MAX || capacity > CORE_CAPACITY_MAX) {
    fprintf(stderr, "core_connect: no place for another connection of %u\n", capacity);
    exit(2);
  }
  struct core_end *end = &pair->ends[number];
  struct npi_ledger_connection *entry = &pair->pool.ledger.connections[number];
  memset(end, 0, sizeof *end);
  end->submissions = memory(npi_ring_block_bytes(capacity));
  end->returns = memory(npi_ring_block_bytes(capacity));
  npi_ring_format(end->submissions, capacity);
  npi_ring_format(end->returns, capacity);
  end->doorbell = memory(sizeof *end->doorbell);
  end->bell_peer = (struct npi_bell_peer){.shm = end->doorbell, .fd = -1};
  memset(entry, 0, sizeof *entry);
  entry->connection = number;
  entry->capacity = capacity;
  entry->limit = options->limit ? options->limit : capacity;
  entry->bytes_limit = options->bytes_limit ? options->bytes_limit : UINT64_C(1) << 50;
  entry->credits_offset = number * npi_credit_arrays_bytes(CORE_CAPACITY_MAX);
  entry->flags = options->flags;
  entry->on_full = options->on_full;
  npi_outlet_init(&end->outlet, &pair->pool.ledger, entry, end->submissions, end->returns, &end->bell_peer);
  need(npi_inlet_init(&end->inlet, end->returns, end->submissions, capacity, pair->views, pair->geometry.segments),
       "npi_inlet_init");
  start_at(end, options->start);
  need(npi_flow_add(&pair->flow, &end->outlet), "npi_flow_add");
  end->open = 1;
  return end;
}

uint32_t core_disconnect(struct core_pair *pair, struct core_end *end) {
  int is_member = pair->flow.kind == NPI_CHANNEL_GROUP && !end->outlet.tap;
  npi_flow_remove(&pair->flow, &end->outlet);
  uint32_t n = npi_outlet_take_back(&end->outlet, &pair->pool, is_member ? npi_flow_keep : NULL, &pair->flow);
  end->outlet.entry->state = NPI_OUTLET_FREE;
  npi_inlet_deinit(&end->inlet);
  free(end->submissions);
  free(end->returns);
  free(end->doorbell);
  memset(end, 0, sizeof *end);
  return n;
}

uint32_t core_fill(struct core_pair *pair, const void *payload, uint32_t n) {
  uint32_t slot_class = npi_class_of(n);
  uint32_t slot = npi_pool_loan(&pair->pool, slot_class);
  if (slot == NPI_NONE && npi_pool_carve(&pair->pool, slot_class) == 0) slot = npi_pool_loan(&pair->pool, slot_class);
  if (slot == NPI_NONE) return NPI_NONE;
  struct npi_slot_header *header = npi_pool_slot(&pair->pool, npi_pool_record(&pair->pool, slot)->handle);
  memset(header, 0, sizeof *header);
  header->payload_bytes = n;
  if (n > 0) memcpy(header + 1, payload, n);
  return slot;
}

int core_publish(struct core_pair *pair, const void *payload, uint32_t n) {
  uint32_t slot = core_fill(pair, payload, n);
  if (slot == NPI_NONE) return NP_EMPTY;
  int status =
      npi_flow_publish(&pair->flow, slot, npi_pool_slot(&pair->pool, npi_pool_record(&pair->pool, slot)->handle));
  if (status == NP_FULL) npi_pool_free(&pair->pool, slot);
  return status;
}

int core_publish_text(struct core_pair *pair, const char *text) {
  return core_publish(pair, text, (uint32_t)strlen(text));
}

int core_take(struct core_end *end, uint64_t *element, struct npi_taken *taken) {
  if (!npi_inlet_look(&end->inlet, element)) return NP_EMPTY;
  int status = npi_inlet_open(&end->inlet, *element, taken);
  npi_store_relaxed_u64(&end->returns->counter[NPI_RETURN_TAKEN], end->inlet.taken);
  return status;
}

int core_take_text(struct core_end *end, char *text, uint32_t size) {
  uint64_t element;
  struct npi_taken taken;
  int status = core_take(end, &element, &taken);
  if (status != NP_OK) return status;
  snprintf(text, size, "%.*s", (int)taken.payload_bytes, (const char *)taken.payload);
  return npi_inlet_release(&end->inlet, element);
}

static void print(void *context, const char *finding) {
  const struct core_pair *pair = context;
  if (!pair->is_quiet) fprintf(stderr, "  checker: %s\n", finding);
}

unsigned core_check(struct core_pair *pair) {
  unsigned n = npi_check_pool(&pair->pool, print, pair);
  for (uint32_t i = 0; i < CORE_ENDS_MAX; i++) {
    const struct core_end *end = &pair->ends[i];
    if (!end->open) continue;
    struct npi_check_subscriber subscriber = {end->inlet.taken, end->inlet.returned};
    n += npi_check_connection(&pair->pool.ledger, end->outlet.entry, end->submissions, end->returns,
                              end->inlet.capacity, &subscriber, print, pair);
  }
  return n;
}

struct core_slots core_slots(const struct core_pair *pair) {
  struct core_slots slots;
  npi_pool_count(&pair->pool, &slots.n_free, &slots.n_loaned, &slots.n_out);
  return slots;
}
