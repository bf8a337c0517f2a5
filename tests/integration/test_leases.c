/* SPDX-License-Identifier: Apache-2.0 */
/* Who gets memory, and in what order, while it is made and given back piece by piece. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "numapool/numapool.h"
#include "support/instance.h"
#include "support/ok.h"
#include "support/peers.h"

TestSuite(leases, .timeout = 120);

enum { SEGMENT = 2 << 20, LARGE_SEGMENT = 64 << 20, MANY = 100 };

static struct instance instance;

static uint64_t n_made(void) {
  return instance_broker_counter(&instance, NPI_BROKER_SEGMENTS_MADE);
}

static int reserve(struct np_client *client, const char *channel, uint64_t bytes) {
  struct np_publisher *publisher;
  struct np_publisher_options options;
  np_publisher_options_init(&options);
  options.reserve_bytes = bytes;
  return np_publisher_open(client, channel, &options, &publisher);
}

struct owner {
  uint64_t bytes;
  _Atomic int has_all;
};

static int owner_body(void *argument) {
  struct owner *owner = argument;
  struct np_client *client;
  if (np_connect(&client, NULL) != NP_OK || reserve(client, "many", owner->bytes) != NP_OK) return 1;
  owner->has_all = 1;
  for (;;) pause();
}

/* Gone from the registry; its memory is still being given back. */
static void own_all_and_die(struct owner *owner) {
  owner->has_all = 0;
  pid_t pid = spawn(owner_body, owner);
  EVENTUALLY(20, owner->has_all);
  kill(pid, SIGKILL);
  reap(pid, 10);
  EVENTUALLY(20, instance_clients(&instance, pid) == 0);
}

Test(leases, who_wants_few_does_not_wait_for_who_wants_many) {
  struct np_client *client;
  struct owner *owner = shared_memory(sizeof *owner);
  owner->bytes = (uint64_t)MANY * SEGMENT;
  instance_start(&instance, "memory: { segment: 2MiB, per_node: 512MiB, per_client: 256MiB, ready: 0 }\n", NULL);
  OK(np_connect(&client, NULL));
  pid_t pid = spawn(owner_body, owner);
  EVENTUALLY(20, n_made() >= 5);
  uint64_t before = n_made();
  OK(reserve(client, "few", 3 * SEGMENT));
  uint64_t made = n_made() - before;
  say("leases: 3 segments after %d were made, while another wants %d\n", (int)made, MANY);
  cr_assert_lt(before, MANY * 3 / 4, "the other one was done before anything could be seen");
  cr_assert_leq(made, 15);
  EVENTUALLY(20, owner->has_all);
  kill(pid, SIGKILL);
  reap(pid, 10);
  np_disconnect(client);
  instance_stop(&instance);
}

Test(leases, all_of_a_node_is_leased_again_as_soon_as_its_owner_is_dead) {
  /* Proves: what is still being given back is waited for, not refused. Two segments, each of which takes a while. */
  struct np_client *client;
  struct owner *owner = shared_memory(sizeof *owner);
  struct np_client_stats stats = {.size = sizeof stats};
  owner->bytes = 2 * (uint64_t)LARGE_SEGMENT;
  instance_start(&instance, "memory: { segment: 64MiB, per_node: 128MiB, per_client: 128MiB, ready: 0 }\n", NULL);
  OK(np_connect(&client, NULL));
  own_all_and_die(owner);
  OK(reserve(client, "all", owner->bytes));
  OK(np_client_stats(client, &stats));
  cr_assert_eq(stats.leased_bytes, owner->bytes);
  np_disconnect(client);
  instance_stop(&instance);
}

Test(leases, a_broker_that_dies_while_it_gives_memory_back_leaves_right_figures) {
  struct owner *owner = shared_memory(sizeof *owner);
  struct np_client *client;
  owner->bytes = (uint64_t)MANY * SEGMENT;
  instance_start(&instance, "memory: { segment: 2MiB, per_node: 256MiB, per_client: 256MiB, ready: 0 }\n", NULL);
  OK(np_connect(&client, NULL)); /* somebody lives, so it is adopted */
  for (int i = 0; i < 5; i++) {
    own_all_and_die(owner);
    instance_kill(&instance);
    instance_start_again(&instance, NULL);
    cr_assert_eq(system(NUMAPOOLCTL_PATH " fsck"), 0);
  }
  np_disconnect(client);
  instance_stop(&instance);
}
