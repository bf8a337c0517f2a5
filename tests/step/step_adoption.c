/* SPDX-License-Identifier: Apache-2.0 */
/*
 * a_broker_may_die_at_any_store: a real broker in this process connects, leases and reaps clients that publish, take,
 * close, end and acknowledge as they like. Before each of its stores into the registry a copy is shown to what a
 * successor does first: the copy is accepted, the journal replayed, and accepted again; then every event that any
 * publisher or subscriber ever counted is in the sums exactly once; and a second replay changes nothing. Now and then the
 * successor, too, dies at each store of its replay, and the next one must come to the same sums.
 *
 * step_adoption [POINTS [SEED]]     default 200000
 *
 * ctest-timeout: 300
 */
#include <inttypes.h>
#include <stdint.h>
#include <time.h>

#include "core/flow.h"
#include "core/ring.h"
#include "daemon/adopt_image.h"
#include "daemon/channels.h"
#include "daemon/clients.h"
#include "daemon/connections.h"
#include "daemon/journal.h"
#include "os/os_process.h"
#include "os/os_socket.h"
#include "step/pairs_hooks.h"
#include "tests/fuzz/broker_rig.h"
#include "wire/channel.h"

enum { CLIENTS = 5, RECORDS = 64, CHANNELS = 2, PENDING = 64, INTERRUPT_EVERY = 16, KIND_LEAST = 100 };

/* What endpoints and connections did, by record; of an earlier user of the record where the version is another. */
struct done {
  uint32_t version;
  uint64_t published, elements, taken, released;
};
static struct done publishers[RECORDS], subscribers[RECORDS], connections[RECORDS], channels[CHANNELS];

static uint64_t random_state, n_points, n_interrupted, n_operations, by_kind[8];
static uint8_t *copy, *second;
static size_t bytes;
static struct npi_adopt_owner owner;
static int fds[CLIENTS];
static uint64_t tokens[CLIENTS];
static struct npi_control_frame pending[PENDING];
static int pending_fd[PENDING], n_pending;

static uint32_t draw(uint32_t n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)((random_state >> 20) % n);
}

static void fail(const char *what, uint64_t is, uint64_t should) {
  fprintf(stderr, "point %" PRIu64 ", operation %" PRIu64 ": %s: %" PRIu64 " instead of %" PRIu64 "\n", n_points,
          n_operations, what, is, should);
  _exit(1);
}

/* ---- what a successor finds ---- */

static void open_copy(uint8_t *memory, struct npi_registry *registry, const char *when) {
  struct npi_adopt_image image;
  memset(registry, 0, sizeof *registry);
  if (npi_adopt_validate(memory, bytes, &owner, &image) != 0) {
    fprintf(stderr, "%s: %s\n", when, npi_detail());
    fail("a registry is not accepted", 0, 1);
  }
  registry->bytes = bytes;
  registry->header = (struct npi_registry_header *)(void *)memory;
  npi_registry_set_places(registry, image.header);
}

static const struct done *done_by(const struct done *table, uint32_t index, uint32_t version) {
  static const struct done nothing;
  return index < RECORDS && table[index].version == version ? &table[index] : &nothing;
}

/* Each sum of the past, with what those have done whose records are still there. */
static void check_sums(const struct npi_registry *registry) {
  struct done sum[CHANNELS] = {0}, from[RECORDS] = {0}, to[RECORDS] = {0};
  for (uint32_t i = 0; i < registry->n_connections; i++) {
    const struct npi_connection_record *record = &registry->connections[i];
    if (npi_load_relaxed_u32(&record->state) == NPI_CONNECTION_FREE) continue;
    const struct done *done = done_by(connections, i, npi_load_relaxed_u32(&record->version));
    from[record->publisher].elements += done->elements;
    to[record->subscriber].taken += done->taken;
    to[record->subscriber].released += done->released;
  }
  for (uint32_t i = 0; i < registry->n_publishers; i++) {
    const struct npi_publisher_record *record = &registry->publishers[i];
    if (npi_load_relaxed_u32(&record->state) == NPI_RECORD_FREE) continue;
    const struct done *done = done_by(publishers, i, record->version);
    uint64_t elements = from[i].elements + npi_load_relaxed_u64(&record->ended_delivered);
    if (elements != done->elements) fail("elements of a publisher", elements, done->elements);
    sum[record->channel].published += done->published;
    sum[record->channel].elements += done->elements;
  }
  for (uint32_t i = 0; i < registry->n_subscribers; i++) {
    const struct npi_subscriber_record *record = &registry->subscribers[i];
    if (npi_load_relaxed_u32(&record->state) == NPI_RECORD_FREE) continue;
    const struct done *done = done_by(subscribers, i, record->version);
    uint64_t taken = to[i].taken + npi_load_relaxed_u64(&record->ended_taken);
    uint64_t released = to[i].released + npi_load_relaxed_u64(&record->ended_released);
    if (taken != done->taken) fail("taken by a subscriber", taken, done->taken);
    if (released != done->released) fail("released by a subscriber", released, done->released);
    sum[record->channel].taken += done->taken;
    sum[record->channel].released += done->released;
  }
  for (uint32_t i = 0; i < CHANNELS; i++) {
    const struct npi_channel_record *record = &registry->channels[i];
    const struct npi_atomic_u64 *p = record->past_publishers.value, *s = record->past_subscribers.value;
    sum[i].published += npi_load_relaxed_u64(&p[NPI_PUBLISHER_PUBLISHED]);
    sum[i].elements +=
        npi_load_relaxed_u64(&p[NPI_PUBLISHER_DELIVERED]) + npi_load_relaxed_u64(&p[NPI_PUBLISHER_REDELIVERED]);
    sum[i].taken += npi_load_relaxed_u64(&s[NPI_SUBSCRIBER_TAKEN]);
    sum[i].released += npi_load_relaxed_u64(&s[NPI_SUBSCRIBER_RELEASED]);
    if (sum[i].published != channels[i].published) {
      fail("published on a channel", sum[i].published, channels[i].published);
    }
    if (sum[i].elements != channels[i].elements) fail("delivered on a channel", sum[i].elements, channels[i].elements);
    if (sum[i].taken != channels[i].taken) fail("taken on a channel", sum[i].taken, channels[i].taken);
    if (sum[i].released != channels[i].released) fail("released on a channel", sum[i].released, channels[i].released);
  }
}

static void before_store_of_replay(const void *address, int is_store);
static void before_store(const void *address, int is_store);

static void point(void) {
  struct npi_registry registry;
  memcpy(copy, broker.registry.header, bytes);
  open_copy(copy, &registry, "as it was left");
  uint32_t kind = npi_load_relaxed_u32(&registry.journal->kind);
  by_kind[kind < 8 ? kind : 0]++;
  n_points++;
  if (kind != NPI_JOURNAL_NONE && n_points % INTERRUPT_EVERY == 0) pairs_hook(before_store_of_replay);
  npi_journal_replay(&registry);
  pairs_hook(0);
  open_copy(copy, &registry, "after the replay");
  check_sums(&registry);
  memcpy(second, copy, bytes);
  npi_journal_replay(&registry);
  if (memcmp(second, copy, bytes) != 0) fail("a second replay changes something", 1, 0);
}

/* The successor dies here; the one after it begins with what is there. */
static void before_store_of_replay(const void *address, int is_store) {
  struct npi_registry registry;
  if (!is_store || (const uint8_t *)address < copy || (const uint8_t *)address >= copy + bytes) return;
  pairs_hook(0);
  n_interrupted++;
  memcpy(second, copy, bytes);
  open_copy(second, &registry, "in the middle of a replay");
  npi_journal_replay(&registry);
  check_sums(&registry);
  pairs_hook(before_store_of_replay);
}

static void before_store(const void *address, int is_store) {
  const uint8_t *memory = (const uint8_t *)broker.registry.header;
  if (!is_store || (const uint8_t *)address < memory || (const uint8_t *)address >= memory + bytes) return;
  pairs_hook(0);
  point();
  pairs_hook(before_store);
}

/* ---- clients ---- */

/* What it still had to say it does not say any more. */
static void leave(int i) {
  int kept = 0;
  close(fds[i]);
  fds[i] = -1;
  for (int k = 0; k < n_pending; k++) {
    if (pending_fd[k] == i) continue;
    pending[kept] = pending[k];
    pending_fd[kept++] = pending_fd[k];
  }
  n_pending = kept;
}

static void listen_to(int i) {
  struct npi_control_frame frame;
  int received[NPI_CONTROL_FDS_MAX], n = 0, status = NPI_SOCKET_AGAIN;
  while (fds[i] >= 0 && (status = npi_control_receive(fds[i], &frame, received, &n)) == 0) {
    npi_control_close_fds(received, n);
    if (frame.head.type == NPI_CONTROL_CHALLENGE) npi_control_prove(fds[i], &frame);
    if (frame.head.type != NPI_CONTROL_DISCONNECT || n_pending == PENDING) continue;
    struct npi_control_frame *answer = &pending[n_pending];
    npi_control_init(answer, NPI_CONTROL_ACKNOWLEDGE, 0, 0);
    answer->body.acknowledge.connection = frame.body.disconnect.connection;
    answer->body.acknowledge.version = frame.body.disconnect.version;
    pending_fd[n_pending++] = i;
  }
  if (fds[i] >= 0 && status != NPI_SOCKET_AGAIN) leave(i);
}

/* New records: nothing was done yet. */
static void look_for_new(void) {
  for (uint32_t i = 0; i < broker.registry.n_publishers; i++) {
    if (broker.publishers[i] != NULL && broker.publishers[i]->version != publishers[i].version)
      publishers[i] = (struct done){.version = broker.publishers[i]->version};
  }
  for (uint32_t i = 0; i < broker.registry.n_subscribers; i++) {
    if (broker.subscribers[i] != NULL && broker.subscribers[i]->version != subscribers[i].version)
      subscribers[i] = (struct done){.version = broker.subscribers[i]->version};
  }
  for (uint32_t i = 0; i < broker.registry.n_connections; i++) {
    if (broker.connections[i] != NULL && broker.connections[i]->version != connections[i].version)
      connections[i] = (struct done){.version = broker.connections[i]->version};
  }
}

/* The broker works; each of its stores is a point. */
static void turn(void) {
  for (int k = 0; k < 3; k++) {
    pairs_hook(before_store);
    broker_turn();
    pairs_hook(0);
    look_for_new();
    for (int i = 0; i < CLIENTS; i++) listen_to(i);
  }
}

static void say_to_broker(int i, struct npi_control_frame *frame) {
  if (fds[i] < 0 || npi_control_send(fds[i], frame, NULL, 0) != 0) return;
  turn();
}

static struct npi_ring_block *block_of(const struct npi_client *client, uint64_t offset) {
  return (struct npi_ring_block *)(void *)(client->page + offset);
}

/* Both ends of a connection do something; they may have died before they counted the last of it. */
static uint64_t use_connection(const struct npi_connection *connection) {
  struct done *done = &connections[connection->index];
  uint32_t capacity = connection->subscriber->capacity;
  struct npi_ring_block *out = block_of(connection->publisher->client, connection->submissions_offset);
  struct npi_ring_block *back = block_of(connection->subscriber->client, connection->returns_offset);
  struct npi_ring ring;
  uint64_t n = draw(4), before = done->elements;
  npi_ring_attach(&ring, out, capacity);
  for (; n > 0 && done->elements - done->released < capacity; n--) npi_ring_store(&ring, done->elements++, 1);
  n = done->elements - before;
  npi_store_relaxed_u64(&out->counter[NPI_SUBMISSION_PUBLISHED], done->elements - (n > 0 && draw(2)));
  uint64_t took = draw((uint32_t)(done->elements - done->taken) + 1);
  done->taken += took;
  npi_store_relaxed_u64(&back->counter[NPI_RETURN_TAKEN], done->taken);
  uint64_t gave = draw((uint32_t)(done->taken - done->released) + 1);
  npi_ring_attach(&ring, back, capacity);
  for (uint64_t i = 0; i < gave; i++) npi_ring_store(&ring, done->released++, 1);
  npi_store_relaxed_u64(&back->counter[NPI_RETURN_RETURNED], done->released - (gave > 0 && draw(2)));
  struct done *to = &subscribers[connection->subscriber->index];
  struct done *channel = &channels[connection->publisher->channel->index];
  to->taken += took;
  to->released += gave;
  channel->taken += took;
  channel->released += gave;
  channel->elements += n;
  return n;
}

/* Of a row of events it may have stored only some of the elements. */
static void use_publisher(const struct npi_publisher *publisher) {
  struct done *done = &publishers[publisher->index];
  struct npi_endpoint_counters *row = npi_client_row(publisher->client, publisher->counters);
  struct npi_flow flow = {.counters = row, .published = done->published, .elements = done->elements};
  uint64_t n = draw(4), stored = 0;
  if (publisher->client->gone) return;
  npi_flow_begin(&flow, (uint32_t)n);
  for (uint32_t i = 0; i < broker.registry.n_connections; i++) {
    const struct npi_connection *connection = broker.connections[i];
    if (connection == NULL || connection->publisher != publisher || connection->subscriber->client->gone ||
        connection->state != NPI_CONNECTION_ACTIVE || !connection->publisher_holds || !connection->subscriber_holds) {
      continue;
    }
    stored += use_connection(connection);
  }
  uint64_t more = stored < n ? stored : n;
  npi_store_relaxed_u64(&row->value[NPI_PUBLISHER_PUBLISHED], done->published + draw(2) * more);
  npi_store_relaxed_u64(&row->value[NPI_PUBLISHER_DELIVERED], done->elements + draw(2) * stored);
  done->published += more;
  done->elements += stored;
  channels[publisher->channel->index].published += more;
}

static void hello(int i) {
  static uint64_t token;
  struct npi_control_frame frame;
  fds[i] = broker_session();
  npi_control_init(&frame, NPI_CONTROL_HELLO, 1, 0);
  frame.body.hello.layout_version = NPI_LAYOUT_VERSION;
  frame.body.hello.node = -1;
  frame.body.hello.token = tokens[i] = ++token;
  say_to_broker(i, &frame);
  for (uint32_t k = 0; k < broker.registry.n_clients; k++) {
    if (broker.clients[k] == NULL || broker.clients[k]->token != tokens[i]) continue;
    ((struct npi_page_shm *)(void *)broker.clients[k]->page)->magic = NPI_MAGIC_PAGE; /* as np_connect */
  }
}

static void close_endpoint(int i, enum npi_control_type type) {
  struct npi_control_frame frame;
  npi_control_init(&frame, type, 4, 0);
  for (uint32_t k = 0, from = draw(12); k < 12; k++) {
    uint32_t index = (from + k) % 12;
    const struct npi_publisher *publisher = broker.publishers[index];
    const struct npi_subscriber *subscriber = broker.subscribers[index];
    int is_one = type == NPI_CONTROL_CLOSE_PUBLISHER ? publisher != NULL && publisher->client->token == tokens[i]
                                                     : subscriber != NULL && subscriber->client->token == tokens[i];
    if (!is_one) continue;
    frame.body.close_endpoint.index = index;
    frame.body.close_endpoint.version = type == NPI_CONTROL_CLOSE_PUBLISHER ? publisher->version : subscriber->version;
    say_to_broker(i, &frame);
    return;
  }
}

static void acknowledge(uint32_t share) {
  while (n_pending > 0 && draw(share) > 0) {
    struct npi_control_frame frame = pending[--n_pending];
    say_to_broker(pending_fd[n_pending], &frame);
  }
}

static void operate(void) {
  struct npi_control_frame frame;
  int i = (int)draw(CLIENTS);
  uint32_t what = draw(100);
  n_operations++;
  if (fds[i] < 0) {
    hello(i);
  } else if (what < 16) {
    npi_control_init(&frame, NPI_CONTROL_OPEN_PUBLISHER, 2, 0);
    memcpy(frame.body.open_publisher.channel, draw(2) ? "c1" : "c2", 3);
    say_to_broker(i, &frame);
  } else if (what < 32) {
    npi_control_init(&frame, NPI_CONTROL_OPEN_SUBSCRIBER, 3, 0);
    memcpy(frame.body.open_subscriber.channel, draw(2) ? "c1" : "c2", 3);
    frame.body.open_subscriber.on_full = -1;
    frame.body.open_subscriber.flags = draw(4) == 0 ? NPI_SUBSCRIBER_TAP : 0;
    say_to_broker(i, &frame);
  } else if (what < 52) {
    for (uint32_t k = 0; k < broker.registry.n_publishers; k++) {
      if (broker.publishers[k] != NULL && draw(2) == 0) use_publisher(broker.publishers[k]);
    }
  } else if (what < 62) {
    close_endpoint(i, NPI_CONTROL_CLOSE_PUBLISHER);
  } else if (what < 72) {
    close_endpoint(i, NPI_CONTROL_CLOSE_SUBSCRIBER);
  } else if (what < 76) {
    npi_control_init(&frame, NPI_CONTROL_LEASE, 5, 0);
    frame.body.lease.bytes = 1;
    say_to_broker(i, &frame);
  } else if (what < 84) {
    /* As a death, but for the pidfd: this process lives. What the broker does is the same. */
    npi_control_init(&frame, NPI_CONTROL_GOODBYE, 6, 0);
    say_to_broker(i, &frame);
    if (fds[i] >= 0) leave(i);
    turn();
  } else {
    acknowledge(12);
  }
  acknowledge(2);
}

int main(int argc, char **argv) {
  static char boot_id[40];
  uint64_t least = argc > 1 ? strtoull(argv[1], NULL, 0) : 200000;
  uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() % 1000;
  random_state = seed * 2 + 1;
  printf("seed %" PRIu64 "\n", seed);
  broker_begin(
      "limits: {clients: 8, channels: 4, publishers: 12, subscribers: 12, connections: 24, endpoints_per_client: 8, "
      "connections_per_client: 16, max_credits: 16, rings_per_client: 64KiB, segments: 8}\n"
      "memory: {per_node: 8MiB, per_client: 2MiB, segment: 2MiB, ready: 0, backend: memfd, huge_pages: never}\n"
      "channels: [{name: c1, kind: group, credits: 16}, {name: c2, credits: 16}]\n");
  bytes = broker.registry.bytes;
  copy = aligned_alloc(64, bytes);
  second = aligned_alloc(64, bytes);
  PROMISE(copy != NULL && second != NULL);
  PROMISE(npi_process_boot_id(boot_id, sizeof boot_id) == 0);
  owner = (struct npi_adopt_owner){config.instance, boot_id, broker.registry.header->uid};
  for (int i = 0; i < CLIENTS; i++) fds[i] = -1;
  while (n_points < least) operate();
  for (int i = 0; i < CLIENTS; i++) {
    if (fds[i] >= 0) leave(i);
  }
  turn();
  broker_end();
  printf("registry of %zu bytes; points with nothing in the journal %" PRIu64 ", a publisher %" PRIu64
         ", a subscriber %" PRIu64 ", a connection %" PRIu64 "; deaths of a successor in its replay %" PRIu64 "\n",
         bytes, by_kind[NPI_JOURNAL_NONE], by_kind[NPI_JOURNAL_PUBLISHER], by_kind[NPI_JOURNAL_SUBSCRIBER],
         by_kind[NPI_JOURNAL_CONNECTION], n_interrupted);
  uint64_t published = channels[0].published + channels[1].published;
  printf("%" PRIu64 " points in %" PRIu64 " operations, %" PRIu64 " events, %" PRIu64
         " elements: each accepted, counted lost 0, counted twice 0\n",
         n_points, n_operations, published, channels[0].elements + channels[1].elements);
  int too_few =
      least >= 100000 && (by_kind[NPI_JOURNAL_PUBLISHER] < KIND_LEAST || by_kind[NPI_JOURNAL_SUBSCRIBER] < KIND_LEAST ||
                          by_kind[NPI_JOURNAL_CONNECTION] < KIND_LEAST || n_interrupted < KIND_LEAST);
  if (too_few) printf("failed: the journal was hardly in use\n");
  return too_few;
}
