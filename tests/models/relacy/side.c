/* SPDX-License-Identifier: Apache-2.0 */
#include "side.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct side side;

static uint8_t *ledger, *ledger_image;
static uint64_t ledger_bytes;
static uint8_t *segment;
static const struct npi_ledger_geometry geometry = {
    .segments = 1, .chunks_per_segment = 2, .connections = SIDE_ENDS, .credits_bytes = SIDE_ENDS * 256};

/* The pool is made once, with its slots carved; each execution begins with a copy of that image. */
static void make_pool(void) {
  memset(side.segments, 0, sizeof side.segments);
  npi_pool_init(&side.pool, ledger, &geometry, 1, 1, side.segments, UINT64_C(1) << 30);
  if (npi_pool_add_segment(&side.pool, 0, segment, 2 * NPI_CHUNK_BYTES, 0) != 0) abort();
}

void side_set_up(unsigned n_ends) {
  ledger_bytes = npi_ledger_footprint(&geometry);
  ledger = aligned_alloc(NPI_PAGE, ledger_bytes);
  ledger_image = aligned_alloc(NPI_PAGE, ledger_bytes);
  segment = aligned_alloc(NPI_PAGE, 2 * NPI_CHUNK_BYTES);
  if (ledger == NULL || ledger_image == NULL || segment == NULL) abort();
  memset(ledger, 0, ledger_bytes);
  memset(segment, 0, 2 * NPI_CHUNK_BYTES);
  make_pool();
  if (npi_pool_carve(&side.pool, SIDE_CLASS) != 0) abort();
  side.first_slot = side.pool.ledger.header->free[SIDE_CLASS].head;
  memcpy(ledger_image, ledger, ledger_bytes);
  side.views[0] = (struct npi_segment_view){segment, 2 * NPI_CHUNK_BYTES};
  for (unsigned i = 0; i < n_ends; i++) {
    side.end[i].submissions = model_ring(SIDE_CAPACITY, MODEL_SUBMISSIONS);
    side.end[i].returns = model_ring(SIDE_CAPACITY, MODEL_RETURNS);
  }
}

void side_begin(uint32_t kind, uint32_t channel_on_full) {
  static struct npi_doorbell_shm awake;
  side_end();
  /* Only the first records of each area are ever touched. */
  memcpy(ledger, ledger_image, NPI_PAGE);
  memcpy(side.pool.ledger.records, ledger_image + ((uint8_t *)side.pool.ledger.records - ledger),
         8 * sizeof(struct npi_slot_record));
  memset(side.pool.ledger.connections, 0, SIDE_ENDS * sizeof(struct npi_ledger_connection));
  memset(&side.counters, 0, sizeof side.counters);
  side.nobody = (struct npi_bell_peer){.shm = &awake, .fd = -1};
  npi_flow_init(&side.flow, &side.pool, kind, channel_on_full, &side.counters);
}

void side_format(unsigned end) {
  npi_ring_format(side.end[end].submissions, SIDE_CAPACITY);
  npi_ring_format(side.end[end].returns, SIDE_CAPACITY);
}

void side_make_outlet(unsigned number, uint32_t on_full, uint32_t limit, uint64_t position) {
  struct end *end = &side.end[number];
  struct npi_ledger_connection *entry = &side.pool.ledger.connections[number];
  memset(entry, 0, sizeof *entry);
  entry->connection = number;
  entry->capacity =
      NPI_RING_CAPACITY_MIN; /* credits that the ledger has; the rings have two elements, the limit is theirs */
  entry->limit = limit;
  entry->bytes_limit = UINT64_C(1) << 40;
  entry->credits_offset = number * 256;
  entry->on_full = on_full;
  npi_outlet_init(&end->outlet, &side.pool.ledger, entry, end->submissions, end->returns, &side.nobody);
  npi_ring_attach(&end->outlet.submissions, end->submissions, SIDE_CAPACITY);
  npi_ring_attach(&end->outlet.returns, end->returns, SIDE_CAPACITY);
  entry->submitted = entry->returned = position;
  if (npi_flow_add(&side.flow, &end->outlet) != 0) abort();
}

void side_make_inlet(unsigned number, uint64_t position) {
  struct end *end = &side.end[number];
  npi_inlet_deinit(&end->inlet);
  if (npi_inlet_init(&end->inlet, end->returns, end->submissions, NPI_RING_CAPACITY_MIN, side.views, 1) != 0) {
    abort();
  }
  npi_ring_attach(&end->inlet.submissions, end->submissions, SIDE_CAPACITY);
  npi_ring_attach(&end->inlet.returns, end->returns, SIDE_CAPACITY);
  end->inlet.taken = end->inlet.returned = position;
}

uint32_t side_take_back(unsigned number, int keeps) {
  struct npi_outlet *outlet = &side.end[number].outlet;
  npi_flow_remove(&side.flow, outlet);
  uint32_t n = npi_outlet_take_back(outlet, &side.pool, keeps ? npi_flow_keep : NULL, keeps ? &side.flow : NULL);
  memset(outlet->entry, 0, sizeof *outlet->entry);
  return n;
}

int side_publish(unsigned value) {
  uint32_t slot = npi_pool_loan(&side.pool, SIDE_CLASS);
  if (slot == NPI_NONE) {
    npi_flow_reap(&side.flow);
    return NP_EMPTY;
  }
  struct npi_slot_record *record = npi_pool_record(&side.pool, slot);
  struct npi_slot_header *header = npi_pool_slot(&side.pool, record->handle);
  model_write(side_payload_of(record->handle), value);
  memset(header, 0, sizeof *header);
  npi_slot_sizes_store(header, npi_slot_sizes(8, 0, 0, 0));
  if (npi_flow_publish_only(&side.flow, slot, record, header, 8) != NULL) return NP_OK;
  int status = npi_flow_publish(&side.flow, slot, header);
  if (status == NP_FULL) npi_pool_free(&side.pool, slot);
  return status;
}

int side_take(struct end *end, struct hands *hands, struct npi_taken *taken) {
  uint64_t element;
  if (!npi_inlet_look(&end->inlet, &element)) return 0;
  if (npi_inlet_open(&end->inlet, element, taken) != 0) model_fail("an honest publisher's element is a lie");
  MODEL_ASSERT(hands->n < SIDE_CAPACITY + 2);
  hands->element[hands->n] = element;
  hands->value[hands->n] = model_read(side_payload_of(npi_element_handle(element)));
  hands->n++;
  hands->taken++;
  return 1;
}

void side_release(struct end *end, struct hands *hands, unsigned i) {
  MODEL_ASSERT(model_read(side_payload_of(npi_element_handle(hands->element[i]))) == hands->value[i]);
  if (npi_inlet_release(&end->inlet, hands->element[i]) != 0) model_fail("a held event is not held");
  hands->n--;
  for (; i < hands->n; i++) {
    hands->element[i] = hands->element[i + 1];
    hands->value[i] = hands->value[i + 1];
  }
}

void side_end(void) {
  npi_flow_deinit(&side.flow);
  for (unsigned i = 0; i < SIDE_ENDS; i++) npi_inlet_deinit(&side.end[i].inlet);
}

static void report(void *context, const char *finding) {
  (void)context;
  if (model_talks) fprintf(stderr, "%s\n", finding);
}

void side_must_be_whole(void) {
  MODEL_ASSERT(npi_check_ledger(&side.pool.ledger, report, NULL) == 0);
  MODEL_ASSERT(side.pool.ledger.header->free[SIDE_CLASS].count == SIDE_SLOTS);
}
