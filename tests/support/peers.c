/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/peers.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "client/worker.h"
#include "core/check.h"
#include "os/os_clock.h"
#include "tests/support/child.h"
#include "tests/support/message.h"

void *shared_memory(size_t bytes) {
  /* Most of it is never touched, whatever a small machine thinks of its size. */
  void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) abort();
  return address;
}

pid_t spawn(int (*body)(void *argument), void *argument) {
  fflush(NULL);
  pid_t parent = getpid();
  pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves no process behind */
  if (getppid() != parent) _exit(1);
  int result = body(argument);
  fflush(stderr);
  _exit(result);
}

int reap(pid_t pid, int seconds) {
  int status = 0;
  for (int left = seconds * 1000; left > 0; left--) {
    pid_t ended = waitpid(pid, &status, WNOHANG);
    if (ended == pid) return WIFEXITED(status) ? WEXITSTATUS(status) : CHILD_KILLED + WTERMSIG(status);
    if (ended < 0 && errno != EINTR) return -2;
    usleep(1000);
  }
  kill(pid, SIGKILL);
  waitpid(pid, &status, 0);
  return -1;
}

struct stream { /* what came from one publisher so far */
  uint32_t publisher;
  int used;
  uint64_t next_sequence;
  uint64_t next_number;
};

static struct stream *stream_of(struct stream *streams, uint32_t publisher) {
  for (int i = 0; i < PEERS_PUBLISHERS_MAX; i++) {
    if (streams[i].used && streams[i].publisher == publisher) return &streams[i];
    if (!streams[i].used) {
      streams[i].publisher = publisher;
      return &streams[i];
    }
  }
  streams[0].used = 0; /* more publishers than expected in one life: the oldest gives its place */
  streams[0].publisher = publisher;
  return &streams[0];
}

static void look_at(struct receiver *receiver, struct stream *streams, const struct np_event *event) {
  struct stream *stream = stream_of(streams, event->publisher);
  uint64_t number = 0;
  int redelivered = (event->flags & NP_EVENT_REDELIVERED) != 0;
  if (redelivered) receiver->redelivered++;
  if (!message_ok(event->data, event->size, &number)) {
    receiver->bad++;
    return;
  }
  if (receiver->seen != NULL && number < receiver->n_seen) {
    if (atomic_fetch_add(&receiver->seen[number], 1) > 0 && !redelivered) receiver->twice++;
  }
  if (number == 0 && event->sequence == 0) stream->used = 0; /* another publisher under the number of a dead one */
  if (stream->used && !redelivered) {
    if (event->sequence < stream->next_sequence) {
      receiver->out_of_order++;
    } else {
      receiver->gaps += event->sequence - stream->next_sequence;
    }
    if (!receiver->no_order && number != stream->next_number) receiver->number_breaks++;
  }
  if (!redelivered) {
    stream->used = 1;
    stream->next_sequence = event->sequence + 1;
    stream->next_number = number + 1;
  }
}

struct receiver *receiver_for(const char *channel) {
  struct receiver *receiver = shared_memory(sizeof *receiver);
  snprintf(receiver->channel, sizeof receiver->channel, "%s", channel);
  receiver->on_full = NP_ON_FULL_CHANNEL;
  return receiver;
}

int receiver_body(void *argument) {
  struct receiver *receiver = argument;
  struct np_client *client = NULL;
  struct np_subscriber *subscriber = NULL;
  struct np_subscriber_options options;
  struct stream streams[PEERS_PUBLISHERS_MAX] = {0};
  struct np_event *held = calloc(receiver->hold + 1, sizeof *held);
  uint64_t n_held = 0;
  uint64_t oldest = 0;
  CHILD_EXPECT(held != NULL);
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  np_subscriber_options_init(&options);
  options.on_full = receiver->on_full;
  options.credits = receiver->credits;
  options.tap = receiver->tap;
  int opened = np_subscriber_open(client, receiver->channel, &options, &subscriber);
  if (opened != NP_OK) fprintf(stderr, "  receiver: %s\n", np_error_detail());
  receiver->refused_status = opened;
  receiver->ready = 1;
  CHILD_EXPECT(opened == NP_OK);
  for (;;) {
    struct np_event event;
    int stopping = receiver->stop; /* before the take: what was there when it was told comes first */
    int status = np_take(subscriber, &event);
    if (status == NP_ERR_CORRUPT) {
      receiver->corrupt++;
      continue;
    }
    if (status == NP_EMPTY) {
      if (stopping) break;
      status = np_wait(subscriber, 20);
      CHILD_EXPECT(status == NP_OK || status == NP_TIMEOUT);
      continue;
    }
    CHILD_EXPECT(status == NP_OK);
    uint64_t now = receiver->received % 1024 == 0 ? npi_clock_monotonic() : 0;
    if (receiver->first_ns == 0) receiver->first_ns = npi_clock_monotonic();
    if (now != 0) receiver->last_ns = now;
    look_at(receiver, streams, &event);
    receiver->bytes += event.size;
    held[(oldest + n_held) % (receiver->hold + 1)] = event;
    n_held++;
    if (n_held > receiver->hold) {
      CHILD_EXPECT(np_release(subscriber, &held[oldest]) == NP_OK);
      oldest = (oldest + 1) % (receiver->hold + 1);
      n_held--;
    }
    receiver->received++;
  }
  receiver->last_ns = npi_clock_monotonic();
  for (; n_held > 0; n_held--, oldest = (oldest + 1) % (receiver->hold + 1)) {
    CHILD_EXPECT(np_release(subscriber, &held[oldest]) == NP_OK);
  }
  struct np_subscriber_stats stats = {.size = sizeof stats};
  CHILD_EXPECT(np_subscriber_stats(subscriber, &stats) == NP_OK);
  receiver->missed = stats.missed;
  CHILD_EXPECT(stats.held == 0 && stats.taken == receiver->received && stats.released == receiver->received);
  CHILD_EXPECT(np_subscriber_close(subscriber) == NP_OK);
  np_disconnect(client);
  free(held);
  return 0;
}

int publish_message(struct np_publisher *publisher, uint64_t number, size_t size) {
  struct np_event event;
  int status;
  while ((status = np_loan(publisher, size, &event)) == NP_EMPTY) {
    status = np_wait_credit(publisher, 1000);
    if (status < 0) return status;
  }
  if (status != NP_OK) return status;
  message_fill(event.data, size, number);
  while ((status = np_publish(publisher, &event)) == NP_FULL) {
    status = np_wait_credit(publisher, 1000);
    if (status < 0) return status;
  }
  return status;
}

int all_returned(struct np_client *client, int seconds) {
  struct np_client_stats stats = {.size = sizeof stats};
  for (int left = seconds * 1000; left > 0; left--) {
    npi_client_tick(client);
    if (npi_check_pool(&client->pool, NULL, NULL) != 0) return 0;
    if (np_client_stats(client, &stats) == NP_OK && stats.outstanding_slots == 0 && stats.loaned_slots == 0) return 1;
    usleep(1000);
  }
  fprintf(stderr, "  %llu slots are still out, %llu on loan\n", (unsigned long long)stats.outstanding_slots,
          (unsigned long long)stats.loaned_slots);
  return 0;
}

struct sender *sender_for(const char *channel, uint64_t count, uint32_t wait_for) {
  struct sender *sender = shared_memory(sizeof *sender);
  snprintf(sender->channel, sizeof sender->channel, "%s", channel);
  sender->count = count;
  sender->wait_for = wait_for;
  return sender;
}

int sender_body(void *argument) {
  struct sender *sender = argument;
  struct np_client *client = NULL;
  struct np_publisher *publisher = NULL;
  struct np_publisher_stats stats = {.size = sizeof stats};
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_publisher_open(client, sender->channel, NULL, &publisher) == NP_OK);
  for (;;) {
    npi_client_tick(client);
    CHILD_EXPECT(np_publisher_stats(publisher, &stats) == NP_OK);
    if (stats.subscribers >= sender->wait_for) break;
    usleep(1000);
  }
  sender->ready = 1;
  for (uint64_t i = 0; (sender->count == 0 || i < sender->count) && !sender->stop; i++) {
    uint64_t number = sender->first + i;
    CHILD_EXPECT(publish_message(publisher, number, sender->fixed_size ? sender->fixed_size : message_size(number)) ==
                 NP_OK);
    sender->sent++;
  }
  CHILD_EXPECT(np_publisher_stats(publisher, &stats) == NP_OK);
  sender->fulls = stats.full;
  sender->empties = stats.empty;
  sender->done = 1;
  CHILD_EXPECT(all_returned(client, 60));
  np_publisher_close(publisher);
  np_disconnect(client);
  return 0;
}
