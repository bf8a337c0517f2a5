/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A poison event, with real processes: whoever of a group takes it dies of it. It is given to others, marked, as often as
 * the channel's max_deliveries says, and then goes to the dead-letter channel with its reason; every other event is worked
 * on.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "numapool/numapool.h"
#include "support/backends.h"
#include "support/instance.h"
#include "support/ok.h"
#include "support/peers.h"

TestSuite(dead_letter, .timeout = 120);

enum { EVENTS = 400, MEMBERS = 3, POISONS = 2, AGAIN = 3 };
static const uint64_t poison[POISONS] = {50, 270};

struct board {
  _Atomic uint32_t done[EVENTS]; /* how often each was worked on */
  _Atomic uint32_t taken_poison, unmarked;
  _Atomic int end;
};

static int is_poison(uint64_t number) {
  return number == poison[0] || number == poison[1];
}

static int member_body(void *argument) {
  struct board *board = argument;
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_event event;
  if (np_connect(&client, NULL) != NP_OK || np_subscriber_open(client, "work", NULL, &subscriber) != NP_OK) return 1;
  while (!board->end) {
    if (np_wait(subscriber, 20) != NP_OK) continue;
    while (np_take(subscriber, &event) == NP_OK) {
      uint64_t number;
      memcpy(&number, event.data, sizeof number);
      if (is_poison(number)) {
        board->taken_poison++;
        raise(SIGKILL);
      }
      if (board->done[number]++ > 0 && !(event.flags & NP_EVENT_REDELIVERED)) board->unmarked++;
      if (np_release(subscriber, &event) != NP_OK) return 2;
    }
  }
  np_disconnect(client);
  return 0;
}

/* As a service manager: who died is started again. Returns how many had died. */
static int start_missing(pid_t *pids, struct board *board) {
  int n = 0, status = 0;
  for (int i = 0; i < MEMBERS; i++) {
    if (pids[i] != 0 && waitpid(pids[i], &status, WNOHANG) != pids[i]) continue;
    if (pids[i] != 0) cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a member ended with %#x", status);
    n += pids[i] != 0;
    pids[i] = spawn(member_body, board);
  }
  return n;
}

static uint32_t n_done(const struct board *board) {
  uint32_t n = 0;
  for (int i = 0; i < EVENTS; i++) n += board->done[i] > 0;
  return n;
}

TEST_WITH_BOTH_BACKENDS(dead_letter, an_event_that_kills_whoever_takes_it_is_given_up_and_no_other) {
  struct instance instance;
  struct board *board = shared_memory(sizeof *board);
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_subscriber *letters;
  struct np_event event = {0};
  pid_t pids[MEMBERS] = {0};
  uint32_t n_letters = 0, deliveries = 0, deaths = 0;
  instance_start_with(&instance, *backend, "per_node: 64MiB, ready: 4MiB",
                      "channels:\n  - { name: work, kind: group, credits: 16, on_full: block, max_deliveries: 3 }\n");
  OK(np_connect(&client, NULL));
  OK(np_publisher_open(client, "work", NULL, &publisher));
  OK(np_subscriber_open(client, "work.dead", NULL, &letters));
  start_missing(pids, board);
  for (uint64_t number = 0; number < EVENTS || n_letters < POISONS || n_done(board) < EVENTS - POISONS;) {
    deaths += (uint32_t)start_missing(pids, board);
    if (number < EVENTS) {
      if (event.data == NULL) OK(np_loan(publisher, sizeof number, &event));
      memcpy(event.data, &number, sizeof number);
      number += np_publish(publisher, &event) == NP_OK;
    }
    np_wait_credit(publisher, 1);
    struct np_event letter;
    while (np_take(letters, &letter) == NP_OK) {
      struct np_source source = {.size = sizeof source};
      uint64_t what;
      np_event_source(letters, &letter, &source);
      memcpy(&what, letter.data, sizeof what);
      cr_assert(is_poison(what), "event %d is no poison", (int)what);
      cr_assert_eq(source.dead_letter_reason, NP_DEAD_LETTER_DELIVERIES);
      cr_assert_str_eq(source.channel_name, "work");
      cr_assert_eq(source.deliveries, 1 + AGAIN);
      deliveries += source.deliveries;
      n_letters++;
      OK(np_release(letters, &letter));
    }
  }
  deaths += (uint32_t)start_missing(pids, board); /* the last letter came because somebody was dead */
  board->end = 1;
  for (int i = 0; i < MEMBERS; i++) cr_assert_eq(reap(pids[i], 20), 0);
  say("dead letter: %u members died of %d events, which were then given up; %d others were worked on\n", deaths,
      POISONS, EVENTS - POISONS);
  cr_assert_eq(n_letters, POISONS);
  cr_assert_eq(deaths, deliveries);
  cr_assert_eq(board->taken_poison, deliveries);
  cr_assert_eq(board->unmarked, 0);
  np_disconnect(client);
  instance_stop(&instance);
}
