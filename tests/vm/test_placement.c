/* SPDX-License-Identifier: Apache-2.0 */
/*
 * On a machine with four nodes: memory is where it is said to be. Every page of every segment is looked at, by the test
 * itself, and compared with what the broker measured.
 */
#include <criterion/criterion.h>
#include <sys/wait.h>

#include "numapool/numapool.h"
#include "support/child.h"
#include "support/peers.h"
#include "vm/nodes.h"

TestSuite(placement, .timeout = 240);

enum { MIB = 1 << 20, FULL_NODE = 2, LEFT_MIB = 72, NODE_MIB_MAX = 1024 };

static void expect_all_home(const struct placement *placement) {
  cr_assert_eq(placement->home, placement->pages, "%llu of %llu pages are on their node",
               (unsigned long long)placement->home, (unsigned long long)placement->pages);
  cr_assert_eq(placement->away + placement->unknown, 0);
  cr_assert_eq(placement->said_home, placement->home, "the broker says %llu", (unsigned long long)placement->said_home);
  cr_assert_eq(placement->said_away + placement->said_unknown, 0);
}

static void expect_all_memory_home(const char *backend, uint64_t mib_per_node) {
  struct instance instance;
  struct placement placement;
  char yaml[200];
  snprintf(yaml, sizeof yaml,
           "memory: { per_node: %lluMiB, segment: 4MiB, ready: all, backend: %s }\nnuma: { mode: strict }\n",
           (unsigned long long)mib_per_node, backend);
  instance_start(&instance, yaml, NULL);
  look_at_segments(&instance, 0, &placement);
  cr_assert_eq(placement.pages, NODES * mib_per_node * MIB / PAGE);
  for (int i = 0; i < NODES; i++) cr_assert_eq(placement.of_node[i], mib_per_node / 4, "segments of node %d", i);
  expect_all_home(&placement);
  say("placement: %s: %llu of %llu pages of %llu segments are on their node\n", backend,
      (unsigned long long)placement.home, (unsigned long long)placement.pages, (unsigned long long)placement.segments);
  instance_stop(&instance);
}

Test(placement, every_page_of_all_memory_is_on_its_node_posix) {
  /* Proves: ready: all, strict: 100 % of the pages of each node's segments lie on it, by move_pages from here. */
  expect_all_memory_home("posix", 48);
}

Test(placement, every_page_of_all_memory_is_on_its_node_memfd) {
  expect_all_memory_home("memfd", 16);
}

/* ---- clients ----------------------------------------------------------------------------------------- */

struct publisher {
  int runs_on, wants; /* wants -1: where it runs */
  uint32_t count;
  _Atomic int node, published, end;
  _Atomic uint64_t on[NODES + 1]; /* pages of all that it was loaned, after it had written there */
};

static int publisher_body(void *argument) {
  struct publisher *own = argument;
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_options options;
  uint64_t on[NODES + 1] = {0};
  np_options_init(&options);
  options.node = own->wants;
  CHILD_EXPECT(run_on_node(own->runs_on) == 0);
  CHILD_EXPECT(np_connect(&client, &options) == NP_OK);
  own->node = np_client_node(client);
  CHILD_EXPECT(np_publisher_open(client, "events", NULL, &publisher) == NP_OK);
  for (uint32_t i = 0; i < own->count; i++) {
    struct np_event event;
    size_t size = (size_t)64 << i % 15; /* to 1 MiB */
    CHILD_EXPECT(np_loan(publisher, size, &event) == NP_OK);
    memset(event.data, (int)i & 0xff, size);
    memcpy(event.data, &own->node, sizeof(int));
    count_pages(event.data, size, on);
    int status;
    while ((status = np_publish(publisher, &event)) == NP_FULL) np_wait_credit(publisher, 100);
    CHILD_EXPECT(status == NP_OK);
  }
  for (int i = 0; i <= NODES; i++) own->on[i] = on[i];
  own->published = 1;
  while (!own->end) usleep(5000); /* no call: it would give back what is looked at */
  np_disconnect(client);
  return 0;
}

/* Takes what the publisher sends, and counts where it finds it. */
static uint64_t receive_from(struct np_subscriber *subscriber, int node, uint32_t count) {
  uint64_t on[NODES + 1] = {0}, pages = 0;
  struct np_event event;
  volatile char sum = 0;
  for (uint32_t i = 0; i < count; i++) {
    int from;
    cr_assert_eq(np_wait(subscriber, 30000), NP_OK);
    cr_assert_eq(np_take(subscriber, &event), NP_OK, "%s", np_error_detail());
    memcpy(&from, event.data, sizeof from);
    cr_assert_eq(from, node);
    for (size_t at = 0; at < event.size; at += PAGE) sum = (char)(sum + ((const char *)event.data)[at]);
    sum = (char)(sum + ((const char *)event.data)[event.size - 1]);
    count_pages(event.data, event.size, on);
    np_release(subscriber, &event);
  }
  for (int i = 0; i <= NODES; i++) pages += on[i];
  cr_assert_eq(on[node], pages, "%llu of %llu pages of what came from node %d are there", (unsigned long long)on[node],
               (unsigned long long)pages, node);
  return pages;
}

Test(placement, a_client_leases_memory_of_the_node_that_it_runs_on_or_asks_for) {
  /* Proves: whoever runs on a node, or asks for one, writes there, and its readers see that very memory. */
  enum { COUNT = 60, CLIENTS = NODES + 1 };
  struct instance instance;
  struct placement placement;
  struct np_client *client;
  struct np_subscriber *subscriber;
  instance_start(&instance,
                 "memory: { per_node: 32MiB, per_client: 16MiB, segment: 2MiB, ready: 4MiB }\nnuma: { mode: strict }\n"
                 "channels:\n  - { name: events, kind: broadcast, credits: 8, on_full: block }\n",
                 NULL);
  cr_assert_eq(np_connect(&client, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_subscriber_open(client, "events", NULL, &subscriber), NP_OK);
  for (int i = 0; i < CLIENTS; i++) {
    struct publisher *publisher = shared_memory(sizeof *publisher);
    int node = i < NODES ? i : NODES - 1;
    publisher->runs_on = i < NODES ? i : 0; /* the last one runs on node 0 and asks for another */
    publisher->wants = i < NODES ? -1 : node;
    publisher->count = COUNT;
    pid_t pid = spawn(publisher_body, publisher);
    uint64_t pages = receive_from(subscriber, node, COUNT);
    EVENTUALLY(60, publisher->published);
    cr_assert_eq(publisher->node, node);
    for (int k = 0; k <= NODES; k++) {
      cr_assert(k == node ? publisher->on[k] >= pages : publisher->on[k] == 0, "%llu pages on node %d",
                (unsigned long long)publisher->on[k], k);
    }
    look_at_segments(&instance, pid, &placement);
    for (int k = 0; k < NODES; k++) {
      cr_assert(k == node ? placement.of_node_by_pid[k] > 0 : placement.of_node_by_pid[k] == 0,
                "the client of node %d has %llu segments of node %d", node,
                (unsigned long long)placement.of_node_by_pid[k], k);
    }
    expect_all_home(&placement);
    publisher->end = 1;
    cr_assert_eq(reap(pid, 60), 0);
  }
  np_disconnect(client);
  instance_stop(&instance);
}

/* ---- a node that is full ----------------------------------------------------------------------------- */

static uint64_t free_of_node(int node) {
  char path[64], line[128];
  unsigned long long kib = 0;
  snprintf(path, sizeof path, "/sys/devices/system/node/node%d/meminfo", node);
  FILE *file = fopen(path, "re");
  cr_assert_not_null(file);
  while (fgets(line, sizeof line, file) != NULL) {
    if (sscanf(line, "Node %*d MemFree: %llu", &kib) == 1) break;
  }
  fclose(file);
  return kib * 1024;
}

/* Anonymous memory of the node until only so much of it is free. In steps: what the kernel calls free is not exact. */
static void *fill_node(int node, uint64_t leave, size_t *bytes) {
  enum { STEP = 2 * MIB };
  unsigned long mask[2] = {1UL << node};
  *bytes = (size_t)NODE_MIB_MAX * MIB;
  char *memory = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  cr_assert_neq(memory, MAP_FAILED);
  cr_assert_eq(syscall(SYS_mbind, memory, *bytes, 2 /* bind */, mask, 65UL, 0U), 0);
  for (size_t at = 0; free_of_node(node) > leave; at += STEP) {
    cr_assert(at < *bytes && madvise(memory + at, STEP, 23 /* MADV_POPULATE_WRITE */) == 0);
  }
  return memory;
}

Test(placement, a_strict_broker_refuses_to_begin_with_more_than_a_node_has) {
  /* Proves: an error that says which node, what it needs and what it has; nothing is put elsewhere, nothing is left. */
  struct instance instance;
  size_t bytes;
  void *filled = fill_node(FULL_NODE, LEFT_MIB * MIB, &bytes);
  int status = instance_start_refused(
      &instance, "memory: { per_node: 96MiB, segment: 4MiB, ready: all }\nnuma: { mode: strict }\n", NULL);
  cr_assert_neq(status, 0);
  cr_assert(instance_log_has(&instance, "not enough memory on node 2"));
  cr_assert(instance_log_has(&instance, "lower memory.per_node, or set numa to prefer"));
  instance_forget(&instance);
  munmap(filled, bytes);
}

/* A client of the full node that takes all it can get; 0, or the status that ended it, words in text. */
static int take_all(struct np_publisher *publisher, uint64_t mib, char *text, size_t size) {
  for (uint64_t i = 0; i < mib; i++) {
    struct np_event event;
    int status;
    /* A lease that takes long here is no refusal. */
    for (int left = 20; (status = np_loan(publisher, MIB, &event)) == NP_EMPTY && left > 0; left--) usleep(20000);
    if (status != NP_OK) {
      snprintf(text, size, "%s", np_error_detail());
      return status;
    }
    memset(event.data, (int)i, MIB);
  }
  return 0;
}

static void begin_client(struct np_client **client, struct np_publisher **publisher) {
  struct np_options options;
  np_options_init(&options);
  options.node = FULL_NODE;
  cr_assert_eq(np_connect(client, &options), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_client_node(*client), FULL_NODE);
  cr_assert_eq(np_publisher_open(*client, "events", NULL, publisher), NP_OK);
}

Test(placement, a_strict_broker_refuses_to_lease_from_a_full_node_and_takes_no_other) {
  struct instance instance;
  struct placement placement;
  struct np_client *client;
  struct np_publisher *publisher;
  char text[512] = "";
  size_t bytes;
  instance_start(&instance,
                 "memory: { per_node: 256MiB, per_client: 256MiB, segment: 4MiB, ready: 0 }\nnuma: { mode: strict }\n",
                 NULL);
  begin_client(&client, &publisher);
  void *filled = fill_node(FULL_NODE, LEFT_MIB * MIB, &bytes);
  int status = take_all(publisher, 160, text, sizeof text);
  say("placement: full node, strict: %d %s\n", status, text);
  cr_assert_neq(status, 0, "160 MiB were leased from a node that had 72 MiB left");
  look_at_segments(&instance, getpid(), &placement);
  cr_assert_eq(placement.of_node_by_pid[FULL_NODE], placement.segments, "a segment of another node was given");
  cr_assert_gt(placement.segments, 0);
  expect_all_home(&placement);
  cr_assert_not_null(strstr(text, "node 2"), "%s", text);
  /* Whoever is on another node is served, and the full one is again when there is room. */
  munmap(filled, bytes);
  cr_assert_eq(take_all(publisher, 16, text, sizeof text), 0, "%s", text);
  np_disconnect(client);
  instance_stop(&instance);
}

Test(placement, a_preferring_broker_uses_other_nodes_and_says_so) {
  struct instance instance;
  struct placement placement;
  struct np_client *client;
  struct np_publisher *publisher;
  char text[512] = "";
  size_t bytes;
  instance_start(&instance,
                 "memory: { per_node: 256MiB, per_client: 256MiB, segment: 4MiB, ready: 0 }\nnuma: { mode: prefer }\n",
                 NULL);
  begin_client(&client, &publisher);
  void *filled = fill_node(FULL_NODE, LEFT_MIB * MIB, &bytes);
  cr_assert_eq(take_all(publisher, 120, text, sizeof text), 0, "%s", text);
  look_at_segments(&instance, getpid(), &placement);
  say("placement: full node, prefer: %llu of %llu pages are away\n", (unsigned long long)placement.away,
      (unsigned long long)placement.pages);
  cr_assert_gt(placement.away, 0, "120 MiB were found on a node that had 72 MiB left");
  cr_assert_eq(placement.said_away, placement.away);
  cr_assert_eq(placement.said_home, placement.home);
  cr_assert(instance_log_has(&instance, "segment.misplaced"));
  np_disconnect(client);
  munmap(filled, bytes);
  instance_stop(&instance);
}
