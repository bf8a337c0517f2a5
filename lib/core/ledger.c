/* SPDX-License-Identifier: Apache-2.0 */
#include "core/ledger.h"

#include <string.h>

#include "base/status.h"

void npi_ledger_geometry(struct npi_ledger_geometry *geometry, uint64_t per_client_bytes, uint64_t segment_bytes,
                         uint32_t connections, uint64_t rings_bytes) {
  uint64_t segments = (per_client_bytes + segment_bytes - 1) / segment_bytes;
  if (segments < 1) segments = 1;
  if (segments > NPI_SEGMENTS_PER_CLIENT_MAX) segments = NPI_SEGMENTS_PER_CLIENT_MAX;
  geometry->segments = (uint32_t)segments;
  geometry->chunks_per_segment = (uint32_t)(segment_bytes / NPI_CHUNK_BYTES);
  geometry->connections = connections;
  /* 10 bytes a credit beside 8 an element of the ring area, and room for blocks of mixed sizes. */
  geometry->credits_bytes = npi_round_up(rings_bytes * 3, NPI_PAGE);
}

/* Where each area begins; the same arithmetic sizes the object, formats it and checks a copy. */
static void lay_out(struct npi_ledger_header *header, const struct npi_ledger_geometry *geometry) {
  uint64_t chunks = (uint64_t)geometry->segments * geometry->chunks_per_segment;
  header->segments = geometry->segments;
  header->chunks_per_segment = geometry->chunks_per_segment;
  header->records_per_chunk = NPI_SLOTS_PER_CHUNK_MAX;
  header->connections = geometry->connections;
  header->credits_bytes = geometry->credits_bytes;
  header->segments_offset = NPI_PAGE;
  header->chunks_offset =
      npi_round_up(header->segments_offset + geometry->segments * sizeof(struct npi_ledger_segment), NPI_PAGE);
  header->records_offset = npi_round_up(header->chunks_offset + chunks * sizeof(struct npi_ledger_chunk), NPI_PAGE);
  header->connections_offset = npi_round_up(
      header->records_offset + chunks * NPI_SLOTS_PER_CHUNK_MAX * sizeof(struct npi_slot_record), NPI_PAGE);
  header->credits_offset =
      npi_round_up(header->connections_offset + geometry->connections * sizeof(struct npi_ledger_connection), NPI_PAGE);
  header->total_bytes = npi_round_up(header->credits_offset + geometry->credits_bytes, NPI_PAGE);
}

static void view(struct npi_ledger *ledger, uint8_t *memory, const struct npi_ledger_header *places,
                 const struct npi_ledger_geometry *geometry) {
  ledger->header = (struct npi_ledger_header *)(void *)memory;
  ledger->segments = (struct npi_ledger_segment *)(void *)(memory + places->segments_offset);
  ledger->chunks = (struct npi_ledger_chunk *)(void *)(memory + places->chunks_offset);
  ledger->records = (struct npi_slot_record *)(void *)(memory + places->records_offset);
  ledger->connections = (struct npi_ledger_connection *)(void *)(memory + places->connections_offset);
  ledger->credits = memory + places->credits_offset;
  ledger->geometry = *geometry;
  ledger->n_records = geometry->segments * geometry->chunks_per_segment * (uint32_t)NPI_SLOTS_PER_CHUNK_MAX;
}

uint64_t npi_ledger_footprint(const struct npi_ledger_geometry *geometry) {
  struct npi_ledger_header places;
  lay_out(&places, geometry);
  return places.total_bytes;
}

void npi_ledger_format(struct npi_ledger *ledger, void *memory, const struct npi_ledger_geometry *geometry,
                       uint32_t client, uint32_t client_version) {
  struct npi_ledger_header *header = memory;
  lay_out(header, geometry);
  view(ledger, memory, header, geometry);
  for (uint32_t i = 0; i < NPI_CLASS_COUNT; i++) header->free[i] = (struct npi_free_list){NPI_NONE, 0};
  memset(ledger->chunks, NPI_CHUNK_FREE, (size_t)geometry->segments * geometry->chunks_per_segment);
  header->client = client;
  header->client_version = client_version;
  header->layout_version = NPI_LAYOUT_VERSION;
  npi_barrier_compiler(); /* for who looks after this process died: the magic comes last */
  header->magic = NPI_MAGIC_LEDGER;
}

int npi_ledger_attach(struct npi_ledger *ledger, void *memory, uint64_t n) {
  const struct npi_ledger_header *header = memory;
  if (n < NPI_PAGE || header->magic != NPI_MAGIC_LEDGER) {
    return npi_fail(NP_ERR_CORRUPT, "a ledger of %llu bytes has no valid magic", (unsigned long long)n);
  }
  if (header->layout_version != NPI_LAYOUT_VERSION) {
    return npi_fail(NP_ERR_VERSION,
                    "the ledger has layout version %u, this program knows %u: use the tools of the same release",
                    header->layout_version, NPI_LAYOUT_VERSION);
  }
  struct npi_ledger_geometry geometry = {header->segments, header->chunks_per_segment, header->connections,
                                         header->credits_bytes};
  if (geometry.segments > NPI_SEGMENTS_PER_CLIENT_MAX ||
      geometry.chunks_per_segment > NPI_SEGMENT_BYTES_MAX / NPI_CHUNK_BYTES || geometry.connections > (1U << 20) ||
      geometry.credits_bytes > (UINT64_C(1) << 40)) {
    return npi_fail(NP_ERR_CORRUPT, "the ledger names impossible sizes: %u segments, %u chunks each, %u connections",
                    geometry.segments, geometry.chunks_per_segment, geometry.connections);
  }
  struct npi_ledger_header places;
  lay_out(&places, &geometry);
  if (places.total_bytes > n) {
    return npi_fail(NP_ERR_CORRUPT, "the ledger needs %llu bytes and has %llu", (unsigned long long)places.total_bytes,
                    (unsigned long long)n);
  }
  view(ledger, memory, &places, &geometry);
  return 0;
}
