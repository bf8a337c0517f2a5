/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ingest on a machine with four nodes and an older kernel: a worker for each node, pinned there; what it receives lies in
 * memory of its node; nothing is lost, by TCP and by UDP, with whatever io_uring this kernel has.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "numapool/numapool.h"
#include "support/feed.h"
#include "support/message.h"
#include "vm/nodes.h"

TestSuite(vm_ingest, .timeout = 240);

enum { FLOWS = 64, EVENTS_OF_FLOW = 40, EVENTS = FLOWS * EVENTS_OF_FLOW, SIZE_MAX_HERE = 8192, IO_URING = 1 };

static struct instance instance;

static const void *record(const struct npi_table *table, uint32_t index) {
  cr_assert_lt(index, table->count);
  return instance.registry + table->offset + (uint64_t)index * table->bytes;
}

/* Node of the worker that published an event. */
static int node_of_publisher(uint32_t publisher) {
  const struct npi_registry_header *header = instance_header(&instance);
  const struct npi_publisher_record *from = record(&header->publishers, publisher);
  const struct npi_client_record *client = record(&header->clients, from->client);
  const struct npi_node_record *node = record(&header->nodes, client->node);
  cr_assert_eq(client->kind, NPI_CLIENT_WORKER);
  return (int)node->id;
}

static void expect_pinned_workers(void) {
  const struct npi_registry_header *header = instance_header(&instance);
  int workers[NODES] = {0};
  cr_assert_eq(header->n_workers, NODES);
  for (uint32_t i = 0; i < header->clients.count; i++) {
    const struct npi_client_record *client = record(&header->clients, i);
    cpu_set_t set;
    if (npi_load_acquire_u32(&client->state) != NPI_RECORD_ACTIVE || client->kind != NPI_CLIENT_WORKER) continue;
    const struct npi_node_record *node = record(&header->nodes, client->node);
    cr_assert_eq(sched_getaffinity((pid_t)client->pid, sizeof set, &set), 0);
    cr_assert(CPU_COUNT(&set) == 1 && CPU_ISSET((size_t)cpu_of_node((int)node->id), &set),
              "worker of node %u runs elsewhere", node->id);
    workers[node->id]++;
  }
  for (int i = 0; i < NODES; i++) cr_assert_eq(workers[i], 1, "%d workers of node %d", workers[i], i);
}

struct seen {
  uint32_t events, of_node[NODES];
  uint64_t on[NODES + 1], home; /* pages */
  uint8_t number[EVENTS];
};

/* Takes what is there; waits for the first. */
static void take(struct np_subscriber *subscriber, struct seen *seen) {
  struct np_event event;
  cr_assert_eq(np_wait(subscriber, 60000), NP_OK, "after %u events: %s", seen->events, np_error_detail());
  while (np_take(subscriber, &event) == NP_OK) {
    uint64_t on[NODES + 1] = {0}, pages = 0, number = 0;
    int node = node_of_publisher(event.publisher);
    cr_assert(message_ok(event.data, event.size, &number) && number < EVENTS && seen->number[number] == 0);
    seen->number[number] = 1;
    count_pages(event.data, event.size, on);
    for (int i = 0; i <= NODES; i++) pages += on[i], seen->on[i] += on[i];
    cr_assert_eq(on[node], pages, "an event of the worker of node %d is not there", node);
    seen->home += pages;
    seen->of_node[node]++;
    seen->events++;
    np_release(subscriber, &event);
  }
}

static size_t size_of(uint64_t number, int type) {
  size_t size = message_size(number);
  size_t most = type == SOCK_STREAM ? SIZE_MAX_HERE : 1400;
  return size < most ? size : most;
}

static void expect_events_home(const char *name, int type) {
  static struct seen seen;
  struct np_client *client;
  struct np_subscriber *subscriber;
  int fd[FLOWS];
  uint8_t *buffer = malloc(SIZE_MAX_HERE + 4);
  char yaml[1024];
  snprintf(yaml, sizeof yaml,
           "memory: { per_node: 32MiB, per_client: 16MiB, ready: 2MiB }\nnuma: { mode: strict }\n"
           "ingest: { backend: auto }\n"
           "channels:\n  - { name: stream, kind: broadcast, credits: 1024, on_full: block }\n"
           "listeners:\n  - { name: %s, proto: %s, address: \"127.0.0.1:0\", channel: stream, framing: %s }\n",
           name, name, type == SOCK_STREAM ? "{ length_prefix: 4 }" : "datagram");
  instance_start(&instance, yaml, NULL);
  /* 6.1 has multishot receives: a silent step back to epoll would be a loss. */
  cr_assert_eq(instance_listener_counter(&instance, name, NPI_LISTENER_BACKEND), (uint64_t)IO_URING * NODES);
  expect_pinned_workers();
  cr_assert_eq(np_connect(&client, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_subscriber_open(client, "stream", NULL, &subscriber), NP_OK, "%s", np_error_detail());
  for (int i = 0; i < FLOWS; i++) {
    fd[i] = feed_connect("127.0.0.1", instance_port(&instance, name), type);
    cr_assert_geq(fd[i], 0);
  }
  /* Rounds, so that datagrams never fill a socket's buffer: all that was sent is to arrive. */
  for (uint32_t round = 0; round < EVENTS_OF_FLOW; round++) {
    for (uint32_t i = 0; i < FLOWS; i++) {
      uint64_t number = (uint64_t)round * FLOWS + i;
      size_t n = feed_frame(buffer, number, size_of(number, type));
      int skip = type == SOCK_STREAM ? 0 : 4;
      cr_assert_eq(feed_write(fd[i], buffer + skip, n - (size_t)skip), 0);
    }
    if (round % 4 == 3) {
      while (seen.events < (round + 1) * FLOWS) take(subscriber, &seen);
    }
  }
  for (int i = 0; i < FLOWS; i++) close(fd[i]);
  struct np_event event;
  np_wait(subscriber, 200);
  cr_assert_eq(np_take(subscriber, &event), NP_EMPTY, "more arrived than was sent");
  cr_assert_eq(seen.events, EVENTS);
  for (int i = 0; i < NODES; i++) cr_assert_gt(seen.of_node[i], 0, "the worker of node %d got nothing", i);
  EVENTUALLY(60, instance_listener_counter(&instance, name, NPI_LISTENER_PUBLISHED) == EVENTS); /* the last of all */
  cr_assert_eq(instance_listener_counter(&instance, name, NPI_LISTENER_RECEIVED), EVENTS);
  cr_assert_eq(instance_listener_counter(&instance, name, NPI_LISTENER_DROPPED_KERNEL), 0);
  say("ingest: %s: %d of %d events; workers of nodes 0 to 3 had %u, %u, %u, %u; %llu of %llu pages on the worker's "
      "node\n",
      name, seen.events, EVENTS, seen.of_node[0], seen.of_node[1], seen.of_node[2], seen.of_node[3],
      (unsigned long long)seen.home,
      (unsigned long long)(seen.on[0] + seen.on[1] + seen.on[2] + seen.on[3] + seen.on[4]));
  free(buffer);
  np_disconnect(client);
  instance_stop(&instance);
}

Test(vm_ingest, tcp_events_lie_on_the_node_of_the_worker_that_received_them) {
  expect_events_home("tcp", SOCK_STREAM);
}

Test(vm_ingest, udp_events_lie_on_the_node_of_the_worker_that_received_them) {
  expect_events_home("udp", SOCK_DGRAM);
}
