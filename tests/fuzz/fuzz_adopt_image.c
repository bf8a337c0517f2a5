/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Damaged registries: the input is a list of stores into a good one (place, width, value). Whatever comes out, looking
 * at it ends, stays in bounds, changes nothing, and says the same twice; what is accepted names only what is there.
 */
#include <stdint.h>
#include <stdlib.h>

#include "daemon/ring_space.h"
#include "tests/support/registry_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { STORE_BYTES = 5 };

#define PROMISE(condition)     \
  do {                         \
    if (!(condition)) abort(); \
  } while (0)

/* Small values and those near a power of two are likelier to mean something. */
static uint64_t value_of(uint8_t code, uint8_t fine) {
  switch (code % 4) {
    case 0: return fine;
    case 1: return (UINT64_C(1) << fine % 64) - (code >> 2) % 3 + 1;
    case 2: return (uint64_t)fine * 64 + (uint64_t)(code >> 2) * 4096;
    default: return ~(uint64_t)fine;
  }
}

static void damage(unsigned char *memory, const uint8_t *data, size_t size) {
  static const size_t widths[] = {1, 4, 4, 8};
  for (; size >= STORE_BYTES; data += STORE_BYTES, size -= STORE_BYTES) {
    size_t width = widths[data[2] % 4];
    size_t at = ((size_t)data[0] << 8 | data[1]) * width % IMAGE_BYTES;
    uint64_t value = value_of(data[3], data[4]);
    if (at + width <= IMAGE_BYTES) memcpy(memory + at, &value, width);
  }
}

static int is_used(const struct npi_atomic_u32 *state) {
  return npi_load_relaxed_u32(state) != 0;
}

/* As an adopting broker would: every place of every ring can be taken, in whatever order. */
static void claim_rings(const struct npi_adopt_image *image) {
  const struct npi_registry_header *header = image->header;
  for (uint32_t client = 0; client < header->clients.count && client < 8; client++) {
    struct npi_ring_space space;
    PROMISE(npi_ring_space_init(&space, header->page_rings_offset, header->page_bytes - header->page_rings_offset) ==
            0);
    for (uint32_t i = 0; i < header->connections.count; i++) {
      const struct npi_connection_record *record = &image->connections[i];
      uint64_t bytes = npi_ring_block_bytes(record->capacity);
      if (!is_used(&record->state)) continue;
      if (record->publisher_client == client) {
        PROMISE(npi_ring_space_claim(&space, record->submissions_offset, bytes) == 0);
      }
      if (record->subscriber_client == client) {
        PROMISE(npi_ring_space_claim(&space, record->returns_offset, bytes) == 0);
      }
    }
    npi_ring_space_deinit(&space);
  }
}

static void follow(const struct npi_adopt_image *image) {
  const struct npi_registry_header *header = image->header;
  for (uint32_t i = 0; i < header->connections.count; i++) {
    const struct npi_connection_record *record = &image->connections[i];
    if (!is_used(&record->state)) continue;
    const struct npi_publisher_record *publisher = &image->publishers[record->publisher];
    const struct npi_subscriber_record *subscriber = &image->subscribers[record->subscriber];
    PROMISE(is_used(&publisher->state) && is_used(&subscriber->state));
    PROMISE(is_used(&image->clients[publisher->client].state) && is_used(&image->clients[subscriber->client].state));
    PROMISE(publisher->counters < header->endpoints_per_client && subscriber->counters < header->endpoints_per_client);
    PROMISE(is_used(&image->channels[publisher->channel].state));
  }
  for (uint32_t i = 0; i < header->segments.count; i++) {
    const struct npi_segment_record *record = &image->segments[i];
    uint32_t state = npi_load_relaxed_u32(&record->state);
    PROMISE(record->object < image->next_object);
    if (state != NPI_SEGMENT_LEASED && state != NPI_SEGMENT_DRAINING) continue;
    PROMISE(is_used(&image->clients[record->client].state) && record->number < header->segments_per_client);
  }
  claim_rings(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static _Alignas(64) unsigned char good[IMAGE_BYTES], before[IMAGE_BYTES];
  struct npi_adopt_image image, again;
  if (good[0] == 0) image_make(good);
  /* Of its very size, so that a sanitizer sees each byte behind it. */
  unsigned char *memory = aligned_alloc(64, IMAGE_BYTES);
  if (memory == NULL) return 0;
  memcpy(memory, good, IMAGE_BYTES);
  damage(memory, data, size);
  memcpy(before, memory, IMAGE_BYTES);
  int status = npi_adopt_validate(memory, IMAGE_BYTES, &image_owner, &image);
  PROMISE(npi_adopt_validate(memory, IMAGE_BYTES, &image_owner, &again) == status);
  PROMISE(memcmp(before, memory, IMAGE_BYTES) == 0);
  if (status == 0) follow(&image);
  free(memory);
  return 0;
}
