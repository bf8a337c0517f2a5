/* SPDX-License-Identifier: Apache-2.0 */
/*
 * May a successor go on with these bytes? A registry that a real broker left, with clients, endpoints, connections and
 * segments, is changed as the input says, anywhere, and shown to npi_adopt_validate(). It must come back, soon, having
 * read nothing outside and changed nothing; the same bytes must get the same answer; and where it accepts them, every
 * index in them leads to a record that is there.
 */
#include <stdint.h>
#include <time.h>

#include "daemon/adopt_image.h"
#include "os/os_process.h"
#include "tests/fuzz/broker_rig.h"
#include "wire/channel.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern const uint64_t fuzz_runs;
const uint64_t fuzz_runs = 1000000;

enum { CLIENTS = 3, CHANGES_MAX = 24 };
#define LONGEST_NS UINT64_C(200000000)

static uint8_t *image; /* a heap block of just its size */
static size_t image_bytes;
static struct npi_adopt_owner owner;
static uint64_t n_images, n_accepted, n_refused, slowest_ns;

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void say_figures(void) {
  printf("%llu images of %zu bytes: %llu accepted, %llu refused, the slowest took %llu us\n",
         (unsigned long long)n_images, image_bytes, (unsigned long long)n_accepted, (unsigned long long)n_refused,
         (unsigned long long)slowest_ns / 1000);
  free(image);
}

static void ask(int fd, struct npi_control_frame *frame) {
  PROMISE(npi_control_send(fd, frame, NULL, 0) == 0);
  broker_turn();
  struct npi_control_frame answer;
  int fds[NPI_CONTROL_FDS_MAX], n_fds;
  while (npi_control_receive(fd, &answer, fds, &n_fds) == 0) {
    npi_control_close_fds(fds, n_fds);
    if (answer.head.type != NPI_CONTROL_CHALLENGE) continue; /* an older kernel */
    PROMISE(npi_control_prove(fd, &answer) == 0);
    broker_turn();
  }
}

/* The image: what a broker shows while three clients publish, subscribe and hold memory. */
static void begin(void) {
  static char instance[NPI_INSTANCE_BYTES], boot_id[40];
  struct npi_control_frame frame;
  int fd[CLIENTS];
  broker_begin(
      "limits: {clients: 8, channels: 8, publishers: 12, subscribers: 12, connections: 24, endpoints_per_client: 8, "
      "connections_per_client: 16, max_credits: 64, rings_per_client: 64KiB, segments: 8}\n"
      "memory: {per_node: 8MiB, per_client: 4MiB, segment: 2MiB, ready: 0, backend: memfd, huge_pages: never}\n"
      "channels: [{name: c1, kind: group}, {name: c2}]\n");
  for (unsigned i = 0; i < CLIENTS; i++) {
    fd[i] = broker_session();
    npi_control_init(&frame, NPI_CONTROL_HELLO, 1, 0);
    frame.body.hello.layout_version = NPI_LAYOUT_VERSION;
    frame.body.hello.node = -1;
    frame.body.hello.token = i + 1;
    frame.body.hello.reserve_bytes = i == 0 ? 1 : 0;
    ask(fd[i], &frame);
    for (char channel = '1'; channel <= '2'; channel++) {
      npi_control_init(&frame, NPI_CONTROL_OPEN_PUBLISHER, 2, 0);
      frame.body.open_publisher.channel[0] = 'c';
      frame.body.open_publisher.channel[1] = channel;
      ask(fd[i], &frame);
      npi_control_init(&frame, NPI_CONTROL_OPEN_SUBSCRIBER, 3, 0);
      frame.body.open_subscriber.channel[0] = 'c';
      frame.body.open_subscriber.channel[1] = channel;
      frame.body.open_subscriber.on_full = -1;
      ask(fd[i], &frame);
    }
  }
  for (int i = 0; i < 10; i++) broker_turn();
  image_bytes = broker.registry.bytes;
  image = aligned_alloc(8, image_bytes);
  PROMISE(image != NULL);
  memcpy(image, broker.registry.header, image_bytes);
  const struct npi_registry_header *header = (const void *)image;
  memcpy(instance, header->instance, sizeof instance);
  memcpy(boot_id, header->boot_id, sizeof boot_id);
  owner = (struct npi_adopt_owner){instance, boot_id, header->uid};
  for (unsigned i = 0; i < CLIENTS; i++) close(fd[i]);
  broker_end();
  struct npi_adopt_image accepted;
  int status = npi_adopt_validate(image, image_bytes, &owner, &accepted);
  if (status != 0) fprintf(stderr, "%s\n", npi_detail());
  PROMISE(status == 0); /* what an honest broker leaves is accepted */
  unsigned connections = 0;
  for (uint32_t i = 0; i < accepted.header->connections.count; i++) {
    connections += npi_load_relaxed_u32(&accepted.connections[i].state) == NPI_CONNECTION_ACTIVE;
  }
  PROMISE(connections == 2 * CLIENTS * CLIENTS);
  atexit(say_figures);
}

/* ---- what the input changes ---- */

struct reader {
  const uint8_t *at, *end;
};
static uint32_t byte(struct reader *in) {
  return in->at < in->end ? *in->at++ : 0;
}

/* Somewhere in the header, in a record, or anywhere. */
static size_t place(struct reader *in) {
  const struct npi_registry_header *header = (const void *)image;
  const struct npi_table *tables[] = {&header->nodes,      &header->clients,     &header->channels,
                                      &header->publishers, &header->subscribers, &header->connections,
                                      &header->segments,   &header->listeners,   &header->journal};
  uint32_t kind = byte(in);
  size_t at;
  if (kind < 48) {
    at = (byte(in) << 2 | byte(in) >> 6) * 4 % 1024;
  } else if (kind < 240) {
    /* Tables may have been moved by an earlier change: then it lands elsewhere, but inside. */
    const struct npi_table *table = tables[kind % NPI_ARRAY_COUNT(tables)];
    uint64_t record = byte(in) % 16, field = byte(in) % 64 * 4;
    at = (size_t)(table->offset + record * table->bytes + (table->bytes > 0 ? field % table->bytes : 0));
  } else {
    at = (size_t)(byte(in) << 16 | byte(in) << 8 | byte(in));
  }
  return at % (image_bytes - 4) / 4 * 4;
}

static uint32_t changed(struct reader *in, uint32_t is) {
  static const uint32_t telling[] = {0,          1,          2,          3,    4,     7,       15,         16,
                                     0x7fffffff, 0x80000000, 0xffffffff, 4096, 65536, 1 << 20, 0xfffffffe, 255};
  uint32_t b = byte(in);
  switch (b & 7) {
    case 0: return is ^ 1u << (b >> 3);
    case 1: return is + (b >> 3) + 1;
    case 2: return is - (b >> 3) - 1;
    case 3:
    case 4: return telling[b >> 4];
    case 5: return b >> 3;
    default: return byte(in) << 24 | byte(in) << 16 | byte(in) << 8 | byte(in);
  }
}

static int is_used(uint32_t state) {
  return state != 0;
}

static volatile uint64_t sink;

/* Looks at what was accepted as who builds its objects from it does. */
static void use(const struct npi_adopt_image *a) {
  const struct npi_registry_header *h = a->header;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < h->connections.count; i++) {
    const struct npi_connection_record *c = &a->connections[i];
    if (!is_used(npi_load_relaxed_u32(&c->state))) continue;
    PROMISE(c->publisher < h->publishers.count && c->subscriber < h->subscribers.count);
    PROMISE(c->publisher_client < h->clients.count && c->subscriber_client < h->clients.count);
    PROMISE(c->channel < h->channels.count && c->limit <= c->capacity);
    uint64_t bytes = npi_ring_block_bytes(c->capacity);
    PROMISE(c->submissions_offset >= h->page_rings_offset && bytes <= h->page_bytes);
    PROMISE(c->submissions_offset <= h->page_bytes - bytes && c->returns_offset <= h->page_bytes - bytes);
  }
  for (uint32_t i = 0; i < h->publishers.count; i++) {
    const struct npi_publisher_record *p = &a->publishers[i];
    if (!is_used(npi_load_relaxed_u32(&p->state))) continue;
    PROMISE(p->client < h->clients.count && p->channel < h->channels.count && p->counters < h->endpoints_per_client);
  }
  for (uint32_t i = 0; i < h->subscribers.count; i++) {
    const struct npi_subscriber_record *s = &a->subscribers[i];
    if (!is_used(npi_load_relaxed_u32(&s->state))) continue;
    PROMISE(s->client < h->clients.count && s->channel < h->channels.count && s->counters < h->endpoints_per_client);
  }
  for (uint32_t i = 0; i < h->segments.count; i++) {
    const struct npi_segment_record *s = &a->segments[i];
    uint32_t state = npi_load_relaxed_u32(&s->state);
    if (!is_used(state)) continue;
    PROMISE(s->node < h->n_nodes);
    if (state == NPI_SEGMENT_LEASED || state == NPI_SEGMENT_DRAINING) {
      PROMISE(s->client < h->clients.count && s->number < h->segments_per_client);
    }
  }
  for (uint32_t i = 0; i < h->clients.count; i++) sum += a->clients[i].token;
  for (uint32_t i = 0; i < h->channels.count; i++) {
    if (is_used(npi_load_relaxed_u32(&a->channels[i].state))) sum += strlen(a->channels[i].name);
  }
  for (uint32_t i = 0; i < h->listeners.count; i++) sum += npi_load_relaxed_u32(&a->listeners[i].state);
  sink = sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct reader in = {data, data + size};
  struct {
    size_t at;
    uint32_t was;
  } change[CHANGES_MAX];
  uint32_t before[CHANGES_MAX];
  unsigned n = 0;
  struct npi_adopt_image accepted;
  if (image == NULL) begin();
  while (in.at < in.end && n < CHANGES_MAX) {
    size_t at = place(&in);
    memcpy(&change[n].was, image + at, 4);
    uint32_t value = changed(&in, change[n].was);
    change[n].at = at;
    memcpy(image + at, &value, 4);
    n++;
  }
  size_t bytes = n > 0 && change[0].was % 64 == 1 ? image_bytes - byte(&in) % 64 * 8 : image_bytes;
  for (unsigned i = 0; i < n; i++) memcpy(&before[i], image + change[i].at, 4);
  uint64_t from = now_ns();
  int status = npi_adopt_validate(image, bytes, &owner, &accepted);
  uint64_t took = now_ns() - from;
  if (took > slowest_ns) slowest_ns = took;
  PROMISE(status <= 0);
  PROMISE(took < LONGEST_NS);
  if (status == 0) use(&accepted);
  struct npi_adopt_image again;
  PROMISE(npi_adopt_validate(image, bytes, &owner, &again) == status);
  for (unsigned i = 0; i < n; i++) PROMISE(memcmp(&before[i], image + change[i].at, 4) == 0);
  n_images++;
  n_accepted += status == 0;
  n_refused += status != 0;
  while (n > 0) {
    n--;
    memcpy(image + change[n].at, &change[n].was, 4);
  }
  return 0;
}
