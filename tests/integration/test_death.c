/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes killed under load: the others go on, and everything of the dead comes back. The kills hit at random
 * instructions; the seed is printed, NUMAPOOL_TEST_SEED repeats the same waiting times.
 *
 * ctest-timeout: 900
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "client/worker.h"
#include "tests/support/backends.h"
#include "tests/support/child.h"
#include "tests/support/feed.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/peers.h"
#include "tests/support/seed.h"

TestSuite(death, .timeout = 240);

enum { KILLS = 25 };

static void start(struct instance *instance, int backend) {
  instance_start_with(instance, backend, "per_node: 64MiB, ready: 4MiB",
                      "channels:\n"
                      "  - { name: news, kind: broadcast, credits: 64, on_full: block }\n"
                      "  - { name: work, kind: group, credits: 16, on_full: block }\n");
  seed_random("death");
}

static void pause_a_little(void) {
  usleep(5000 + (useconds_t)(random() % 40000));
}

/* Registry and /dev/shm hold nothing of a process that was killed. */
static void expect_nothing_of(struct instance *instance, pid_t pid) {
  EVENTUALLY(30, instance_clients(instance, pid) == 0);
  cr_assert_eq(instance_connections(instance, pid), 0);
  cr_assert_eq(instance_segments_leased(instance, pid), 0);
}

TEST_WITH_BOTH_BACKENDS(death, publishers_killed_under_load_leave_whole_events_and_nothing_else) {
  /* Proves: what a killed publisher had published arrives without gap or damage; a second publisher and both
   * subscribers go on; the dead one's memory and records are gone after each of the kills. */
  struct instance instance;
  start(&instance, *backend);
  struct receiver *receivers[2];
  pid_t pids[2];
  for (int i = 0; i < 2; i++) {
    receivers[i] = receiver_for("news");
    receivers[i]->hold = i * 10;
    pids[i] = spawn(receiver_body, receivers[i]);
    EVENTUALLY(20, receivers[i]->ready);
  }
  struct sender *living = sender_for("news", 0, 2);
  living->fixed_size = 300;
  pid_t living_pid = spawn(sender_body, living);
  EVENTUALLY(20, living->ready);
  for (int kills = 0; kills < KILLS; kills++) {
    struct sender *victim = sender_for("news", 0, 2);
    pid_t pid = spawn(sender_body, victim);
    EVENTUALLY(20, victim->sent > 0);
    uint64_t living_before = living->sent;
    pause_a_little();
    kill(pid, SIGKILL);
    cr_assert_eq(reap(pid, 20), CHILD_KILLED + SIGKILL);
    expect_nothing_of(&instance, pid);
    EVENTUALLY(20, living->sent > living_before);
  }
  living->stop = 1;
  EVENTUALLY(20, living->done);
  for (int i = 0; i < 2; i++) {
    receivers[i]->stop = 1;
    cr_assert_eq(reap(pids[i], 20), 0);
    cr_assert_eq(receivers[i]->bad, 0, "%llu damaged", (unsigned long long)receivers[i]->bad);
    cr_assert_eq(receivers[i]->gaps, 0, "%llu missing", (unsigned long long)receivers[i]->gaps);
    cr_assert_eq(receivers[i]->number_breaks + receivers[i]->out_of_order + receivers[i]->corrupt, 0);
    cr_assert_geq(receivers[i]->received, living->sent + KILLS);
  }
  cr_assert_eq(reap(living_pid, 70), 0); /* after all slots came back */
  say("death: %d publishers killed, %llu events of the living one, %llu received in all\n", KILLS,
      (unsigned long long)living->sent, (unsigned long long)receivers[0]->received);
  cr_assert_geq(instance_broker_counter(&instance, NPI_BROKER_DEATHS), KILLS);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(death, broadcast_subscribers_killed_under_load_cost_the_others_nothing) {
  /* Proves: a publisher that blocks for its subscribers goes on after one of them is killed holding events; the other
   * misses nothing; all slots come back. */
  struct instance instance;
  start(&instance, *backend);
  struct receiver *staying = receiver_for("news");
  pid_t staying_pid = spawn(receiver_body, staying);
  EVENTUALLY(20, staying->ready);
  struct sender *sender = sender_for("news", 0, 1);
  pid_t sender_pid = spawn(sender_body, sender);
  EVENTUALLY(20, sender->ready);
  for (int kills = 0; kills < KILLS; kills++) {
    struct receiver *victim = receiver_for("news");
    victim->hold = (uint32_t)random() % 60;
    pid_t pid = spawn(receiver_body, victim);
    EVENTUALLY(20, victim->received > 0);
    pause_a_little();
    if (kills % 5 == 0) { /* as full as it gets: killed while the publisher waits for it */
      kill(pid, SIGSTOP);
      usleep(20000);
    }
    kill(pid, SIGKILL);
    cr_assert_eq(reap(pid, 20), CHILD_KILLED + SIGKILL);
    cr_assert_eq(victim->bad + victim->gaps + victim->number_breaks, 0);
    uint64_t before = staying->received;
    EVENTUALLY(20, staying->received > before + 100);
    expect_nothing_of(&instance, pid);
  }
  sender->stop = 1;
  cr_assert_eq(reap(sender_pid, 70), 0); /* its body waits until every slot is back, and checks its pool */
  staying->stop = 1;
  cr_assert_eq(reap(staying_pid, 20), 0);
  cr_assert_eq(staying->received, sender->sent);
  cr_assert_eq(staying->bad + staying->gaps + staying->number_breaks + staying->out_of_order, 0);
  say("death: %d broadcast subscribers killed among %llu events\n", KILLS, (unsigned long long)sender->sent);
  instance_stop(&instance);
}

static uint64_t unseen(const _Atomic uint8_t *seen, uint64_t sent) {
  uint64_t n = 0;
  for (uint64_t i = 0; i < sent; i++) n += seen[i] == 0;
  return n;
}

TEST_WITH_BOTH_BACKENDS(death, a_killed_members_events_go_to_another_member_and_none_is_lost) {
  /* Proves: with a member of a group killed again and again while it holds events, each number is seen at least once,
   * and whatever is seen twice is marked as redelivered. */
  enum { MEMBERS = 3, NUMBERS = 4000000 };
  struct instance instance;
  start(&instance, *backend);
  _Atomic uint8_t *seen = shared_memory(NUMBERS);
  struct receiver *receivers[MEMBERS];
  pid_t pids[MEMBERS];
  uint64_t redelivered = 0;
  for (int i = 0; i < MEMBERS; i++) pids[i] = 0;
  struct sender *sender = sender_for("work", 0, MEMBERS);
  sender->fixed_size = 200;
  pid_t sender_pid = spawn(sender_body, sender);
  for (int kills = -MEMBERS; kills < KILLS; kills++) {
    int i = (kills + MEMBERS) % MEMBERS;
    if (pids[i] != 0) {
      EVENTUALLY(20, receivers[i]->received > 0);
      pause_a_little();
      kill(pids[i], SIGKILL);
      cr_assert_eq(reap(pids[i], 20), CHILD_KILLED + SIGKILL);
      cr_assert_eq(receivers[i]->bad + receivers[i]->twice, 0);
      redelivered += receivers[i]->redelivered;
      expect_nothing_of(&instance, pids[i]);
    }
    receivers[i] = receiver_for("work");
    receivers[i]->seen = seen;
    receivers[i]->n_seen = NUMBERS;
    receivers[i]->no_order = 1;
    receivers[i]->hold = (uint32_t)random() % 12;
    pids[i] = spawn(receiver_body, receivers[i]);
    EVENTUALLY(20, receivers[i]->ready);
  }
  sender->stop = 1;
  EVENTUALLY(20, sender->done);
  uint64_t sent = sender->sent;
  cr_assert_lt(sent, NUMBERS, "the test has no room for so many numbers");
  /* What the dead had waits for credit of the others; whoever stops would find nothing, and not wait for it. */
  uint64_t lost = 0;
  EVENTUALLY(20, (lost = unseen(seen, sent)) == 0);
  /* Members keep what they hold until they are told to stop; the sender waits for all of it. */
  for (int i = 0; i < MEMBERS; i++) {
    receivers[i]->stop = 1;
    cr_assert_eq(reap(pids[i], 20), 0);
    cr_assert_eq(receivers[i]->bad + receivers[i]->twice + receivers[i]->corrupt, 0);
    redelivered += receivers[i]->redelivered;
  }
  cr_assert_eq(reap(sender_pid, 70), 0);
  say("death: %d members killed among %llu events, %llu redelivered, %llu lost\n", KILLS, (unsigned long long)sent,
      (unsigned long long)redelivered, (unsigned long long)lost);
  cr_assert_gt(redelivered, 0, "no kill hit a member that held events: the test showed nothing");
  instance_stop(&instance);
}

Test(death, a_killed_ingest_worker_is_started_again_and_its_ports_are_served) {
  /* Proves: the supervisor starts it anew, the listener goes on at its old port, the restart is counted, what the
   * dead worker had published is still delivered. */
  struct instance instance;
  struct np_client *client = NULL;
  struct np_subscriber *subscriber = NULL;
  struct np_event event;
  instance_start(
      &instance,
      "memory: { per_node: 64MiB, ready: 4MiB }\n"
      "channels:\n  - { name: lines, kind: broadcast, credits: 256, on_full: block }\n"
      "listeners:\n  - { name: frames, proto: tcp, address: \"127.0.0.1:0\", framing: newline, channel: lines }\n",
      NULL);
  cr_assert_eq(np_connect(&client, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_subscriber_open(client, "lines", NULL, &subscriber), NP_OK);
  uint16_t port = instance_port(&instance, "frames");
  for (int round = 0; round < 3; round++) {
    pid_t worker = instance_worker(&instance);
    cr_assert_gt(worker, 0);
    uint64_t before = instance_listener_counter(&instance, "frames", NPI_LISTENER_PUBLISHED);
    int fd = feed_connect("127.0.0.1", port, SOCK_STREAM);
    cr_assert_geq(fd, 0);
    cr_assert_eq(feed_write(fd, "one\ntwo\n", 8), 0);
    EVENTUALLY(20, instance_listener_counter(&instance, "frames", NPI_LISTENER_PUBLISHED) == before + 2);
    kill(worker, SIGKILL);
    for (int i = 0; i < 2; i++) {
      cr_assert_eq(np_wait(subscriber, 20000), NP_OK);
      cr_assert_eq(np_take(subscriber, &event), NP_OK);
      cr_assert_eq(event.size, 3);
      cr_assert_eq(memcmp(event.data, i == 0 ? "one" : "two", 3), 0);
      cr_assert_eq(np_release(subscriber, &event), NP_OK);
    }
    cr_assert(feed_peer_closed(fd, 20));
    close(fd);
    EVENTUALLY(30, np_take(subscriber, &event) == NP_EMPTY && instance_worker(&instance) != 0 &&
                       instance_worker(&instance) != worker);
    EVENTUALLY(30, npi_load_acquire_u32(&instance_listener(&instance, "frames")->state) == NPI_LISTENER_LISTENING);
    cr_assert_eq(npi_load_relaxed_u32(&instance_listener(&instance, "frames")->restarts), (uint32_t)round + 1);
    cr_assert_eq(instance_port(&instance, "frames"), port);
  }
  np_disconnect(client);
  instance_stop(&instance);
}
