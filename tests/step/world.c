/* SPDX-License-Identifier: Apache-2.0 */
/* The world's memory, and its clients as np_connect would have made them. */
#include "step/world.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { REGISTRY_CLIENTS = NPI_PAGE, REGISTRY_CONNECTIONS = NPI_PAGE + STEP_ACTORS * sizeof(struct npi_client_record) };
enum { ENDPOINTS_OFFSET = NPI_PAGE, RINGS_OFFSET = NPI_PAGE + sizeof(struct npi_endpoint_counters) };
#define RING_BYTES     npi_ring_block_bytes(STEP_CAPACITY)
#define PAGE_BYTES     npi_round_up(RINGS_OFFSET + STEP_RINGS * RING_BYTES, NPI_PAGE)
#define REGISTRY_BYTES (REGISTRY_CONNECTIONS + STEP_CONNECTIONS * sizeof(struct npi_connection_record))
#define SEGMENT_BYTES  ((uint64_t)STEP_CHUNKS * NPI_CHUNK_BYTES)
#define ARENA_ADDRESS  ((void *)UINT64_C(0x500000000000)) /* the same in every run: saved images hold pointers */

struct step_world *world;
struct step_shared *shared;
int step_running = -1;

static uint8_t *registry;
static uint8_t *pages[STEP_ACTORS];
static uint8_t *ledgers[STEP_PUBLISHERS];
static uint8_t *segments[STEP_PUBLISHERS];
static uint8_t *heaps[STEP_ACTORS];

static const struct npi_ledger_geometry geometry = {
    .segments = 1,
    .chunks_per_segment = STEP_CHUNKS,
    .connections = STEP_RINGS,
    .credits_bytes = (STEP_RINGS + 1) * 256,
};

static void *carve(uint8_t **at, uint64_t bytes) {
  void *place = *at;
  *at += npi_round_up(bytes, NPI_PAGE);
  return place;
}

int step_arena_open(void) {
  uint64_t bytes = UINT64_C(8) << 20;
  uint8_t *at = mmap(ARENA_ADDRESS, bytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (at != ARENA_ADDRESS) return -1;
  shared = carve(&at, sizeof *shared);
  world = carve(&at, sizeof *world);
  registry = carve(&at, REGISTRY_BYTES);
  for (int i = 0; i < STEP_ACTORS; i++) pages[i] = carve(&at, PAGE_BYTES);
  for (int i = 0; i < STEP_ACTORS; i++) heaps[i] = carve(&at, STEP_HEAP_BYTES);
  for (int i = 0; i < STEP_PUBLISHERS; i++) ledgers[i] = carve(&at, npi_ledger_footprint(&geometry));
  for (int i = 0; i < STEP_PUBLISHERS; i++) segments[i] = carve(&at, SEGMENT_BYTES);
  return (uint64_t)(at - (uint8_t *)ARENA_ADDRESS) <= bytes ? 0 : -1;
}

void step_violation(const char *format, ...) {
  va_list arguments;
  if (shared->n_violations++ > 0) return;
  va_start(arguments, format);
  vsnprintf(shared->violation, sizeof shared->violation, format, arguments);
  va_end(arguments);
}

/* ---- what a point saves ------------------------------------------------------------------------------- */

static unsigned add(struct step_area *areas, unsigned n, unsigned max, void *address, uint64_t bytes) {
  if (bytes == 0 || n == max) return n;
  areas[n] = (struct step_area){address, (uint32_t)bytes};
  return n + 1;
}

unsigned step_areas(struct step_area *areas, unsigned max) {
  unsigned n = 0;
  n = add(areas, n, max, world,
          (uint64_t)((uint8_t *)&world->actors[0] - (uint8_t *)world) + world->n_actors * sizeof world->actors[0]);
  n = add(areas, n, max, registry + REGISTRY_CONNECTIONS, STEP_CONNECTIONS * sizeof(struct npi_connection_record));
  for (uint32_t i = 0; i < world->n_actors; i++) {
    const struct step_actor *actor = step_actor(i);
    uint32_t rings = actor->rings_used == 0 ? 0 : 32 - (uint32_t)__builtin_clz(actor->rings_used);
    n = add(areas, n, max, registry + REGISTRY_CLIENTS + i * sizeof(struct npi_client_record), NPI_CACHE_LINE);
    n = add(areas, n, max, pages[i] + offsetof(struct npi_page_shm, events), 2 * sizeof(struct npi_doorbell_shm));
    n = add(areas, n, max, pages[i] + ENDPOINTS_OFFSET, RINGS_OFFSET - ENDPOINTS_OFFSET + rings * RING_BYTES);
    n = add(areas, n, max, heaps[i], actor->heap.top);
    if (!step_is_publisher(i)) continue;
    const struct npi_ledger *ledger = &actor->client.pool.ledger;
    n = add(areas, n, max, ledger->header, sizeof *ledger->header);
    n = add(areas, n, max, ledger->segments, sizeof *ledger->segments);
    n = add(areas, n, max, ledger->chunks, STEP_CHUNKS * sizeof *ledger->chunks);
    n = add(areas, n, max, ledger->connections, STEP_RINGS * sizeof *ledger->connections);
    n = add(areas, n, max, ledger->credits, actor->client.credits_used);
    for (uint32_t chunk = 0; chunk < world->options.chunks; chunk++) {
      n = add(areas, n, max, &ledger->records[npi_ledger_first_record(ledger, 0, chunk)],
              STEP_SLOTS * sizeof *ledger->records);
      for (uint32_t slot = 0; slot < STEP_SLOTS; slot++) {
        n = add(areas, n, max, segments[i] + (uint64_t)chunk * NPI_CHUNK_BYTES + slot * npi_class_stride(STEP_CLASS),
                2 * NPI_CACHE_LINE);
      }
    }
  }
  return n;
}

enum { AREAS_MAX = 512, KEPT_MAX = 1 << 20 };
static struct step_area kept_areas[AREAS_MAX];
static unsigned n_kept_areas;
static uint8_t kept[KEPT_MAX];

int step_keep(void) {
  uint64_t at = 0;
  n_kept_areas = step_areas(kept_areas, AREAS_MAX);
  for (unsigned i = 0; i < n_kept_areas; i++) {
    if (at + kept_areas[i].bytes > KEPT_MAX || n_kept_areas == AREAS_MAX) return 0;
    memcpy(kept + at, kept_areas[i].address, kept_areas[i].bytes);
    at += kept_areas[i].bytes;
  }
  return 1;
}

void step_put_back(void) {
  const uint8_t *from = kept;
  for (unsigned i = 0; i < n_kept_areas; i++) {
    memcpy(kept_areas[i].address, from, kept_areas[i].bytes);
    from += kept_areas[i].bytes;
  }
}

static int is_in(const void *address, const uint8_t *memory, uint64_t bytes) {
  return (const uint8_t *)address - memory >= 0 && (uint64_t)((const uint8_t *)address - memory) < bytes;
}

int step_is_shared(const void *address) {
  return is_in(address, registry, REGISTRY_BYTES) || is_in(address, pages[0], PAGE_BYTES * STEP_ACTORS) ||
         is_in(address, segments[0], SEGMENT_BYTES * STEP_PUBLISHERS);
}

/* ---- clients ------------------------------------------------------------------------------------------ */

static void make_peers(struct step_actor *actor, uint32_t index) {
  for (uint32_t i = 0; i < world->n_actors; i++) {
    struct npi_peer *peer = &actor->peers[i];
    const struct npi_page_shm *page = (const void *)pages[i];
    if (step_is_publisher(i) == step_is_publisher(index)) continue;
    *peer = (struct npi_peer){.client = i,
                              .version = 1,
                              .pid = 1000 + i,
                              .page = pages[i],
                              .page_bytes = PAGE_BYTES,
                              .events_fd = (int)i,
                              .credits_fd = (int)(STEP_ACTORS + i),
                              .events_bell = {.shm = &page->events, .fd = (int)i},
                              .credits_bell = {.shm = &page->credits, .fd = (int)(STEP_ACTORS + i)},
                              .segments = actor->views[i],
                              .n_segments = STEP_PEER_SEGMENTS,
                              .next = actor->client.peers};
    actor->client.peers = peer;
    if (step_is_publisher(i)) {
      actor->views[i][0] = (struct npi_segment_view){segments[i], world->options.chunks * (uint64_t)NPI_CHUNK_BYTES};
    }
  }
}

/* Slots are carved now in most worlds, so that their generations can begin where a bug would show. */
static void make_pool(struct step_actor *actor, uint32_t index) {
  struct np_client *client = &actor->client;
  uint64_t bytes = world->options.chunks * (uint64_t)NPI_CHUNK_BYTES;
  client->ledger = ledgers[index];
  client->ledger_bytes = npi_ledger_footprint(&geometry);
  memset(client->ledger, 0, client->ledger_bytes);
  for (uint64_t at = 0; at + npi_class_stride(STEP_CLASS) <= bytes; at += NPI_CHUNK_BYTES) {
    for (uint32_t slot = 0; slot < STEP_SLOTS; slot++) {
      memset(segments[index] + at + slot * npi_class_stride(STEP_CLASS), 0, 2 * NPI_CACHE_LINE);
    }
  }
  client->segments = actor->segments;
  client->segment_fds = actor->segment_fds;
  actor->segment_fds[0] = -1;
  npi_pool_init(&client->pool, client->ledger, &geometry, index, 1, client->segments, UINT64_C(1) << 40);
  if (npi_pool_add_segment(&client->pool, 0, segments[index], bytes, 0) != 0) step_violation("no segment in the pool");
  actor->n_hoarded = world->options.hoarded;
  if (world->options.near_wrap == 0 && actor->n_hoarded == 0) return;
  while (npi_pool_carve(&client->pool, STEP_CLASS) == 0) {
  }
  for (uint32_t i = 0; i < actor->n_hoarded; i++) npi_pool_loan(&client->pool, STEP_CLASS);
  uint32_t n = 0;
  for (uint32_t i = 0; i < world->options.chunks * STEP_SLOTS; i++) {
    uint32_t slot = npi_ledger_first_record(&client->pool.ledger, 0, i / STEP_SLOTS) + i % STEP_SLOTS;
    struct npi_slot_record *record = npi_pool_record(&client->pool, slot);
    if (world->options.near_wrap) record->generation = i % 2 == 0 ? UINT32_MAX - i % 5 : UINT32_C(0x3ff) - i % 5;
    if (record->state == NPI_SLOT_LOANED) actor->hoarded[n++] = slot | (uint64_t)record->generation << 32;
  }
}

static void make_client(uint32_t index) {
  struct step_actor *actor = step_actor(index);
  struct np_client *client = &actor->client;
  struct npi_page_shm *page = (void *)pages[index];
  memset(page, 0, PAGE_BYTES);
  actor->heap.memory = heaps[index];
  actor->heap.top = NPI_CACHE_LINE; /* offset 0 is none */
  actor->alive_word = NPI_CLIENT_ALIVE;
  client->alive = &actor->alive_word;
  client->socket = client->registry_fd = client->page_fd = client->ledger_fd = -1;
  client->events_fd = (int)index;
  client->credits_fd = (int)(STEP_ACTORS + index);
  client->said_hello = 1;
  client->index = index;
  client->version = 1;
  client->registry = registry;
  client->registry_bytes = REGISTRY_BYTES;
  client->clients_table = (struct npi_table){REGISTRY_CLIENTS, STEP_ACTORS, sizeof(struct npi_client_record)};
  client->connections_table =
      (struct npi_table){REGISTRY_CONNECTIONS, STEP_CONNECTIONS, sizeof(struct npi_connection_record)};
  client->record = (const void *)(registry + REGISTRY_CLIENTS + index * sizeof(struct npi_client_record));
  client->page = pages[index];
  client->page_bytes = PAGE_BYTES;
  client->endpoints_offset = ENDPOINTS_OFFSET;
  client->endpoints = 1;
  client->listeners_offset = client->rings_offset = RINGS_OFFSET;
  client->membarrier_works = 1;
  client->lease_again_ns = UINT64_MAX; /* the broker has no more memory */
  client->segment_bytes = SEGMENT_BYTES;
  npi_bell_init(&client->events_bell, &page->events, 1);
  npi_bell_init(&client->credits_bell, &page->credits, 1);
  make_peers(actor, index);
  if (step_is_publisher(index)) make_pool(actor, index);
}

void step_world_begin(const struct step_options *options) {
  memset(world, 0, sizeof *world);
  memset(registry, 0, REGISTRY_BYTES);
  world->options = *options;
  world->n_actors = options->n_publishers + options->n_subscribers;
  world->clock_ns = UINT64_C(1000000000);
  for (uint32_t i = 0; i < world->n_actors; i++) make_client(i);
  for (uint32_t i = 0; i < options->n_subscribers; i++) {
    struct step_actor *actor = step_actor(options->n_publishers + i);
    actor->on_full = options->on_full[i];
    actor->flags = options->flags[i];
    actor->limit = options->limit;
  }
}

/* ---- places for the broker --------------------------------------------------------------------------- */

struct npi_ring_block *step_ring(uint32_t actor, uint32_t ring) {
  return (void *)(pages[actor] + RINGS_OFFSET + ring * RING_BYTES);
}
uint64_t step_ring_offset(uint32_t ring) {
  return RINGS_OFFSET + ring * RING_BYTES;
}
struct npi_client_record *step_client_record(uint32_t actor) {
  return (void *)(registry + REGISTRY_CLIENTS + actor * sizeof(struct npi_client_record));
}
struct npi_connection_record *step_connection_record(uint32_t connection) {
  return (void *)(registry + REGISTRY_CONNECTIONS + connection * sizeof(struct npi_connection_record));
}
