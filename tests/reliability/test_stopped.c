/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stopped process is not a dead one: twenty clients are stopped again and again while others exchange events. Proves:
 * the others go on, nothing is taken from the stopped, and what they held is unchanged when they go on.
 *
 * ctest-labels: alone
 * ctest-timeout: 300
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "numapool/numapool.h"
#include "support/instance.h"
#include "support/message.h"
#include "support/peers.h"
#include "support/process.h"

TestSuite(stopped, .timeout = 280);

enum { STOPPED = 20, ROUNDS = 15, PART = ROUNDS / 3, HOLD = 4, STOPPED_US = 1000000, RUNNING_US = 400000 };

struct stoppable {
  _Atomic int ready;
  _Atomic uint64_t taken, bad;
};
struct board {
  struct stoppable client[STOPPED];
  _Atomic int number;
  struct sender sender;
  struct receiver receiver;
};

static struct instance instance;

/* Half of them keep some events of "all" and drop what they have no credit for; half publish for nobody. */
static int stoppable_body(void *argument) {
  struct board *board = argument;
  int number = board->number++;
  struct stoppable *me = &board->client[number];
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
  struct np_event held[HOLD], event;
  int n_held = 0;
  struct np_subscriber_options options;
  np_subscriber_options_init(&options);
  options.on_full = NP_ON_FULL_DROP_NEWEST;
  if (np_connect(&client, NULL) != NP_OK || np_publisher_open(client, "noise", NULL, &publisher) != NP_OK ||
      np_subscriber_open(client, "all", &options, &subscriber) != NP_OK) {
    return 1;
  }
  me->ready = 1;
  for (;;) {
    if (number % 2 == 0 && np_loan(publisher, 64, &event) == NP_OK) {
      memset(event.data, 1, 64);
      if (np_publish(publisher, &event) != NP_OK) return 1;
    }
    if (n_held == HOLD) {
      for (int i = 0; i < HOLD; i++) {
        uint64_t unused;
        if (!message_ok(held[i].data, held[i].size, &unused)) me->bad++;
        if (np_release(subscriber, &held[i]) != NP_OK) return 1;
      }
      n_held = 0;
    }
    if (np_wait(subscriber, 5) != NP_OK) continue;
    while (n_held < HOLD && np_take(subscriber, &held[n_held]) == NP_OK) n_held++, me->taken++;
    usleep(1000);
  }
}

static uint64_t received_in(struct board *board, int us) {
  uint64_t before = board->receiver.received;
  usleep((useconds_t)us);
  return (board->receiver.received - before) * 1000 / ((uint64_t)us / 1000);
}

static int n_stopped_shown(void) {
  char command[300], text[16];
  snprintf(command, sizeof command, "%s clients | grep -c stopped", NUMAPOOLCTL_PATH);
  FILE *output = popen(command, "r");
  int n = output != NULL && fgets(text, sizeof text, output) != NULL ? atoi(text) : -1;
  if (output != NULL) pclose(output);
  return n;
}

Test(stopped, processes_keep_what_they_have_and_hold_up_nobody) {
  struct board *board = shared_memory(sizeof *board);
  pid_t pids[STOPPED];
  uint64_t with = 0, without = 0;
  double best = 0;
  instance_start(&instance,
                 "memory: { per_node: 128MiB, per_client: 16MiB }\n"
                 "channels: [ { name: all, kind: broadcast, credits: 64, on_full: block } ]\n",
                 NULL);
  for (int i = 0; i < STOPPED; i++) pids[i] = spawn(stoppable_body, board);
  for (int i = 0; i < STOPPED; i++) EVENTUALLY(20, board->client[i].ready);
  strcpy(board->receiver.channel, "all");
  board->receiver.on_full = NP_ON_FULL_BLOCK;
  pid_t receiver = spawn(receiver_body, &board->receiver);
  EVENTUALLY(20, board->receiver.ready);
  strcpy(board->sender.channel, "all");
  board->sender.fixed_size = 200;
  board->sender.wait_for = STOPPED + 1;
  pid_t sender = spawn(sender_body, &board->sender);
  EVENTUALLY(20, board->receiver.received > 1000);
  for (int round = 0; round < ROUNDS; round++) {
    without += received_in(board, RUNNING_US);
    uint64_t bad = 0, taken = 0;
    for (int i = 0; i < STOPPED; i++) kill(pids[i], SIGSTOP);
    for (int i = 0; i < STOPPED; i++) cr_assert(process_stop(pids[i]));
    if (round == 0) cr_assert_eq(n_stopped_shown(), STOPPED);
    for (int i = 0; i < STOPPED; i++) taken += board->client[i].taken;
    with += received_in(board, STOPPED_US);
    cr_assert_eq(instance_clients(&instance, 0), STOPPED + 2, "a stopped client was taken for a dead one");
    for (int i = 0; i < STOPPED; i++) taken -= board->client[i].taken;
    cr_assert_eq(taken, 0, "they were not stopped");
    for (int i = 0; i < STOPPED; i++) kill(pids[i], SIGCONT);
    usleep(20000);
    for (int i = 0; i < STOPPED; i++) bad += board->client[i].bad;
    cr_assert_eq(bad, 0, "%llu events changed under a stopped reader", (unsigned long long)bad);
    cr_assert_eq(waitpid(-1, NULL, WNOHANG), 0, "a process ended");
    if (round % PART != PART - 1) continue;
    double ratio = (double)with / (double)without;
    if (ratio > best) best = ratio;
    say("stopped: %d stops; the others exchanged %llu events/s beside stopped, %llu beside running clients: %.2f\n",
        (round + 1) * STOPPED, (unsigned long long)(with / PART), (unsigned long long)(without / PART), ratio);
    with = without = 0;
  }
  cr_assert(best >= 0.9, "those who run are held up by those who are stopped: %.2f of the control at best", best);
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_DEATHS), 0);
  board->sender.stop = 1;
  EVENTUALLY(30, board->receiver.received == board->sender.sent);
  board->receiver.stop = 1;
  cr_assert_eq(reap(receiver, 30), 0);
  cr_assert_eq(board->receiver.gaps + board->receiver.bad + board->receiver.out_of_order, 0);
  for (int i = 0; i < STOPPED; i++) kill(pids[i], SIGKILL), reap(pids[i], 10);
  cr_assert_eq(reap(sender, 60), 0);
  instance_stop(&instance);
}
