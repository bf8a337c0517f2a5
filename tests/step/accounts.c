/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What daemon/accounts.c finds out about endpoints that are gone, held against the truth: a process may have died
 * between any two of its stores, and its counts must still come out exact, from its rings and one word of the publisher.
 */
#include "step/accounts.h"

#include "core/flow.h"
#include "core/ring.h"
#include "step/operations.h"

static struct npi_endpoint_counters *row_of(uint32_t actor) {
  const struct np_client *client = &step_actor(actor)->client;
  return (struct npi_endpoint_counters *)(void *)(client->page + client->endpoints_offset);
}

static uint64_t get(uint32_t actor, unsigned row) {
  return npi_load_relaxed_u64(&row_of(actor)->value[row]);
}

static int is_tap(const struct step_connection *connection) {
  return (connection->flags & NPI_SUBSCRIBER_TAP) != 0;
}

void accounts_publisher_opens(uint32_t actor) {
  for (size_t i = 0; i < NPI_ARRAY_COUNT(row_of(actor)->value); i++) {
    npi_store_relaxed_u64(&row_of(actor)->value[i], 0);
  }
}

/* Elements that the publisher has stored on the connection. */
static uint64_t stored_on(const struct step_connection *connection) {
  const struct npi_ring_block *block = step_ring(connection->publisher, connection->publisher_ring);
  if (!connection->publisher_made) return 0;
  uint64_t counted = npi_load_relaxed_u64(&block->counter[NPI_SUBMISSION_PUBLISHED]);
  return npi_ring_stored(block, STEP_CAPACITY, counted) - connection->start;
}

uint32_t accounts_released(const struct step_connection *connection) {
  const struct npi_ring_block *block = step_ring(connection->subscriber, connection->subscriber_ring);
  if (!connection->subscriber_made) return 0;
  uint64_t counted = npi_load_relaxed_u64(&block->counter[NPI_RETURN_RETURNED]);
  return (uint32_t)(npi_ring_stored(block, STEP_CAPACITY, counted) - connection->start);
}

static uint32_t taken_from(const struct step_connection *connection) {
  const struct npi_ring_block *block = step_ring(connection->subscriber, connection->subscriber_ring);
  uint32_t released = accounts_released(connection);
  if (!connection->subscriber_made) return 0;
  uint32_t taken = (uint32_t)(npi_load_relaxed_u64(&block->counter[NPI_RETURN_TAKEN]) - connection->start);
  return (int32_t)(taken - released) < 0 ? released : taken;
}

/* ---- subscribers ---- */

static int is_in_doubt(uint32_t actor, uint32_t operation) {
  return (world->now.operation == operation && world->now.actor == actor) ||
         (world->beside.operation == operation && world->beside.actor == actor) ||
         (world->died.operation == operation && world->died.actor == actor);
}

static void check_taken(const struct step_connection *connection) {
  uint32_t actor = connection->subscriber;
  uint32_t released = accounts_released(connection), taken = taken_from(connection);
  uint32_t more_released = is_in_doubt(actor, OPERATION_RELEASE);
  uint32_t more_taken = is_in_doubt(actor, OPERATION_TAKE);
  if (released < connection->n_released || released > connection->n_released + more_released) {
    step_violation("accounts: subscriber %u gave back %u events of publisher %u, and %u are counted", actor,
                   connection->n_released, connection->publisher, released);
  }
  if (taken < connection->n_got || taken > connection->n_got + more_taken) {
    step_violation("accounts: subscriber %u took %u events of publisher %u, and %u are counted", actor,
                   connection->n_got, connection->publisher, taken);
  }
}

void accounts_connection_ends(const struct step_connection *connection) {
  struct step_truth *truth = &world->truth[connection->publisher];
  check_taken(connection);
  if (truth->life != connection->life) return;
  uint64_t stored = stored_on(connection);
  truth->ended_elements += stored;
  if (is_tap(connection)) truth->ended_tapped += stored;
}

/* ---- publishers ---- */

static uint32_t record_of(const struct npi_pool *pool, uint32_t handle) {
  uint64_t offset = npi_handle_offset(handle);
  uint32_t first =
      npi_ledger_first_record(&pool->ledger, npi_handle_segment(handle), (uint32_t)(offset / NPI_CHUNK_BYTES));
  return first + (uint32_t)(offset % NPI_CHUNK_BYTES / npi_class_stride(STEP_CLASS));
}

/* Which of the events that it was about to publish have an element here: bits. */
static uint32_t stored_of_doubtful(const struct step_connection *connection) {
  const struct np_client *client = &step_actor(connection->publisher)->client;
  const struct step_now *died = &world->died;
  uint64_t n = stored_on(connection);
  uint32_t found = 0;
  struct npi_ring ring;
  npi_ring_attach(&ring, step_ring(connection->publisher, connection->publisher_ring), STEP_CAPACITY);
  for (uint64_t i = n > STEP_CAPACITY ? n - STEP_CAPACITY : 0; i < n; i++) {
    uint64_t element;
    npi_ring_load(&ring, connection->start + i, &element);
    uint32_t handle = npi_element_handle(element);
    const struct npi_slot_record *record = npi_pool_record(&client->pool, record_of(&client->pool, handle));
    const struct npi_slot_header *header = npi_pool_slot(&client->pool, handle);
    if ((record->generation & NPI_GENERATION_MASK) != npi_element_generation(element)) continue; /* of an earlier one */
    uint64_t ahead = header->sequence - died->number;
    if (ahead < died->many) found |= UINT32_C(1) << ahead;
  }
  return found;
}

/* An event that nobody gets leaves no element: only then may the word say more than the rings. */
static int nobody_may_get_it(uint32_t actor) {
  const struct np_publisher *publisher = step_actor(actor)->publisher;
  if (publisher == NULL) return 0;
  const struct npi_flow *flow = &publisher->flow;
  if (flow->kind == NPI_CHANNEL_GROUP) return flow->channel_on_full != NPI_ON_FULL_BLOCK;
  return flow->n_blocking == 0;
}

struct sums {
  uint64_t elements, tapped;
  uint32_t doubtful, doubtful_to_members; /* events with an element, and elements */
};

static struct sums sum_up(uint32_t actor) {
  const struct step_truth *truth = &world->truth[actor];
  struct sums sums = {.elements = truth->ended_elements, .tapped = truth->ended_tapped};
  uint32_t all = 0;
  for (uint32_t i = 0; i < world->n_connections; i++) {
    const struct step_connection *connection = &world->connections[i];
    if (!connection->used || connection->publisher != actor || connection->life != truth->life) continue;
    uint64_t stored = stored_on(connection);
    sums.elements += stored;
    if (is_tap(connection)) sums.tapped += stored;
    if (world->died.actor != actor || world->died.operation != OPERATION_PUBLISH || stored == 0) continue;
    uint32_t doubtful = stored_of_doubtful(connection);
    all |= doubtful;
    if (!is_tap(connection)) sums.doubtful_to_members += (uint32_t)__builtin_popcount(doubtful);
  }
  sums.doubtful = all == 0 ? 0 : 32 - (uint32_t)__builtin_clz(all); /* they are published in their order */
  return sums;
}

static uint64_t counted(uint32_t actor, uint64_t elements) {
  return npi_flow_published(get(actor, NPI_PUBLISHER_BEGUN), get(actor, NPI_PUBLISHER_PUBLISHED), elements);
}

/* Its deliveries to members, each event once: as the broker sets right what was counted behind the stores. */
static uint64_t to_members(uint32_t actor, const struct sums *sums) {
  uint64_t delivered = get(actor, NPI_PUBLISHER_DELIVERED), redelivered = get(actor, NPI_PUBLISHER_REDELIVERED);
  if (delivered + redelivered > sums->elements) redelivered = sums->elements - delivered;
  return sums->elements - redelivered - sums->tapped;
}

static void publisher_gone(uint32_t actor) {
  struct step_truth *truth = &world->truth[actor];
  if (truth->life == 0) return; /* it never opened */
  struct sums sums = sum_up(actor);
  uint32_t doubtful = world->died.actor == actor && world->died.operation == OPERATION_PUBLISH ? world->died.many : 0;
  uint64_t published = counted(actor, sums.elements);
  uint64_t least = truth->accepted + sums.doubtful;
  uint64_t most = nobody_may_get_it(actor) ? truth->accepted + doubtful : least;
  truth->counted = published;
  if (published < least || published > most) {
    step_violation("accounts: publisher %u published %u events and %u of %u, and %llu are counted", actor,
                   truth->accepted, sums.doubtful, doubtful, (unsigned long long)published);
  }
  if (world->options.kind != STEP_GROUP) return;
  uint64_t members = truth->accepted + sums.doubtful_to_members;
  for (uint32_t i = 0; i < truth->accepted; i++) members -= truth->fate[i] == FATE_DROPPED;
  if (to_members(actor, &sums) != members) {
    step_violation("accounts: publisher %u handed %llu events to members, and %llu are counted", actor,
                   (unsigned long long)members, (unsigned long long)to_members(actor, &sums));
  }
}

void accounts_actor_gone(uint32_t actor) {
  if (step_is_publisher(actor)) {
    publisher_gone(actor);
    return;
  }
  for (uint32_t i = 0; i < world->n_connections; i++) {
    const struct step_connection *connection = &world->connections[i];
    if (connection->used && connection->subscriber == actor) check_taken(connection);
  }
}

void accounts_check_complete(void) {
  for (uint32_t i = 0; i < world->options.n_publishers; i++) {
    const struct step_truth *truth = &world->truth[i];
    if (!step_actor(i)->is_dead || truth->life == 0) continue;
    uint64_t published = counted(i, truth->ended_elements);
    if (published == truth->counted) continue;
    step_violation("accounts: %llu events of publisher %u were counted when it died, and %llu when all had let go",
                   (unsigned long long)truth->counted, i, (unsigned long long)published);
  }
}
