/* SPDX-License-Identifier: Apache-2.0 */
/* The processes of a storm: ordinary programs that use the public calls and write down what they saw. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "numapool/numapool.h"
#include "reliability/storm_board.h"
#include "support/single_step.h"

enum { BURST = 32, HOLD = 8, REST_US = 200, WORK_US = 50, WAIT_MS = 100 };

struct message {
  uint32_t life;
  uint32_t reserved;
  uint64_t number;
  uint64_t check;
};

static uint64_t check_word(uint32_t life, uint64_t number) {
  return (number + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ life;
}

static int failed(struct storm_board *board, const char *call, int status) {
  board->failed_calls++;
  snprintf(board->failure, sizeof board->failure, "%s: %d %s", call, status, np_error_detail());
  return 1;
}

static int is_wanted(const struct storm_board *board, int part, enum storm_call call) {
  uint32_t wanted = board->process[part].catch_at;
  return wanted == call || wanted == STORM_ANY_CALL;
}

/* Before each call: here the storm may catch this process. */
static void about_to(struct storm_board *board, int part, enum storm_call call) {
  if (!is_wanted(board, part, call)) return;
  board->process[part].catch_at = STORM_NO_CALL;
  board->process[part].caught_at = call;
  step_me();
}

/* ---- publisher ---- */

static uint32_t begin_life(struct storm_board *board, int part) {
  uint32_t life = atomic_fetch_add(&board->n_lives, 1);
  if (life >= STORM_LIVES_MAX) return UINT32_MAX;
  board->life[life].part = (uint32_t)part;
  board->process[part].life = life + 1;
  return life;
}

static void wait_credit(struct storm_board *board, struct np_publisher *publisher, int part, int64_t ms) {
  about_to(board, part, STORM_WAIT_CREDIT);
  np_wait_credit(publisher, ms);
}

static int publish_one(struct storm_board *board, struct np_publisher *publisher, uint32_t life, uint64_t number) {
  size_t size = sizeof(struct message) + number * 37 % 900;
  int part = (int)board->life[life].part;
  struct np_event event;
  int status;
  about_to(board, part, STORM_LOAN);
  while ((status = np_loan(publisher, size, &event)) == NP_EMPTY) wait_credit(board, publisher, part, WAIT_MS);
  if (status != NP_OK) return failed(board, "np_loan", status);
  struct message message = {.life = life, .number = number, .check = check_word(life, number)};
  memcpy(event.data, &message, sizeof message);
  memset((char *)event.data + sizeof message, (int)number & 0xff, size - sizeof message);
  board->life[life].tried = number + 1;
  about_to(board, part, STORM_PUBLISH);
  while ((status = np_publish(publisher, &event)) == NP_FULL) wait_credit(board, publisher, part, WAIT_MS);
  if (status != NP_OK) return failed(board, "np_publish", status);
  board->life[life].accepted = number + 1;
  board->process[part].at++;
  return 0;
}

/* Is only killed from here on. */
static int wait_for_the_end(void) {
  while (usleep(1000) == 0) { /* short sleeps: who steps it would wait for the end of a long one */
  }
  return 0;
}

/* Looks after what members that died left, until nothing moves. */
static void pause_here(struct storm_board *board, struct np_publisher *publisher, int part) {
  board->process[part].paused = 1;
  while (board->pause) wait_credit(board, publisher, part, 5);
  board->process[part].paused = 0;
}

static int run_publisher(struct storm_board *board, struct np_client *client, int part) {
  struct np_publisher *publisher;
  int status;
  about_to(board, part, STORM_OPEN);
  while ((status = np_publisher_open(client, storm_parts[part].channel, NULL, &publisher)) == NP_ERR_NO_BROKER) {
    usleep(1000); /* one is on its way */
  }
  if (status != NP_OK) return failed(board, "np_publisher_open", status);
  for (;;) {
    uint32_t life = begin_life(board, part);
    if (life == UINT32_MAX) return 0;
    board->process[part].ready = 1;
    for (uint64_t number = 0; number < STORM_NUMBERS_MAX; number++) {
      if (board->pause) pause_here(board, publisher, part);
      if (board->process[part].catch_at == STORM_CLOSE) {
        about_to(board, part, STORM_CLOSE);
        np_publisher_close(publisher);
        return wait_for_the_end();
      }
      if (publish_one(board, publisher, life, number) != 0) return 1;
      if (number % BURST == BURST - 1) usleep(REST_US);
    }
  }
}

/* ---- subscribers ---- */

static int is_good(const struct np_event *event, struct message *message) {
  if (event->size < sizeof *message) return 0;
  memcpy(message, event->data, sizeof *message);
  if (message->life >= STORM_LIVES_MAX || message->number >= STORM_NUMBERS_MAX) return 0;
  const unsigned char *rest = (const unsigned char *)event->data + sizeof *message;
  for (size_t i = 0; i < event->size - sizeof *message; i++) {
    if (rest[i] != (message->number & 0xff)) return 0;
  }
  return message->check == check_word(message->life, message->number);
}

static void note_in_order(struct storm_board *board, int part, const struct message *message) {
  _Atomic uint32_t *seen = &board->seen[part][message->life];
  uint32_t before = *seen;
  if (before == 0 && message->number != 0 && message->life >= board->process[part].from_life) board->missed_first++;
  if (before != 0 && message->number < before) board->twice++;
  if (before != 0 && message->number > before) board->gaps++;
  *seen = (uint32_t)message->number + 1;
}

static void act(struct storm_board *board, const struct message *message, const struct np_event *event) {
  int marked = (event->flags & NP_EVENT_REDELIVERED) != 0;
  uint8_t before = atomic_fetch_add(&board->acted[message->life][message->number], 1);
  if (before > 0 && !marked) board->unmarked++;
  if ((before & STORM_RELEASED) != 0) board->again++;
  if (marked) board->redelivered++;
}

struct held {
  struct np_event event;
  struct message message;
};

/* What a member gave back is done with: it comes to nobody again. */
static int give_back(struct storm_board *board, struct np_subscriber *subscriber, struct held *held, int part) {
  about_to(board, part, STORM_RELEASE);
  int status = np_release(subscriber, &held->event);
  if (status != NP_OK) return failed(board, "np_release", status);
  if (storm_parts[part].role == STORM_MEMBER)
    atomic_fetch_or(&board->acted[held->message.life][held->message.number], STORM_RELEASED);
  return 0;
}

static int run_subscriber(struct storm_board *board, struct np_client *client, int part) {
  struct np_subscriber *subscriber;
  struct held held[HOLD];
  struct message message;
  int member = storm_parts[part].role == STORM_MEMBER, n_held = 0;
  int status;
  about_to(board, part, STORM_OPEN);
  while ((status = np_subscriber_open(client, storm_parts[part].channel, NULL, &subscriber)) == NP_ERR_NO_BROKER) {
    usleep(1000);
  }
  if (status != NP_OK) return failed(board, "np_subscriber_open", status);
  board->process[part].from_life = board->n_lives;
  board->process[part].ready = 1;
  for (;;) {
    struct np_event event;
    if (board->process[part].catch_at == STORM_CLOSE && n_held == 0) {
      about_to(board, part, STORM_CLOSE);
      np_subscriber_close(subscriber);
      return wait_for_the_end();
    }
    about_to(board, part, STORM_TAKE);
    status = np_take(subscriber, &event);
    if (status == NP_EMPTY) {
      while (n_held > 0) { /* the last first: any order will do */
        if (give_back(board, subscriber, &held[--n_held], part) != 0) return 1;
      }
      about_to(board, part, STORM_WAIT);
      np_wait(subscriber, WAIT_MS);
      continue;
    }
    if (status != NP_OK) return failed(board, "np_take", status);
    if (!is_good(&event, &message)) {
      board->bad++;
      message = (struct message){0};
    } else if (member) {
      act(board, &message, &event);
      if (message.number % 4 == 0) usleep(WORK_US); /* so that the kill finds it with events in its hands */
    } else {
      note_in_order(board, part, &message);
    }
    board->process[part].at++;
    held[n_held++] = (struct held){event, message};
    if (n_held < HOLD) continue;
    while (n_held > 0) {
      if (give_back(board, subscriber, &held[--n_held], part) != 0) return 1;
    }
  }
}

int storm_run(struct storm_board *board, int part) {
  struct np_client *client;
  struct np_options options;
  np_options_init(&options);
  options.timeout_ms = 10000;
  about_to(board, part, STORM_CONNECT);
  int status = np_connect(&client, &options);
  if (status != NP_OK) return failed(board, "np_connect", status);
  return storm_parts[part].role == STORM_PUBLISHER ? run_publisher(board, client, part)
                                                   : run_subscriber(board, client, part);
}
