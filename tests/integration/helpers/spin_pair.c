/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One end of a spinning pair, for tests that watch it from outside:
 *
 *   spin_pair publish CHANNEL     publishes without a pause
 *   spin_pair subscribe CHANNEL   takes, reads and releases without a pause
 *
 * Prints "steady" on standard output once it has done 100,000 events, and from then on makes no call but to
 * the library, until a signal ends it. SIGUSR1 ends it with "N events" on standard output.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "numapool/numapool.h"

enum { WARM_EVENTS = 100000, EVENT_BYTES = 64 };

static volatile sig_atomic_t stop;

static void on_signal(int number) {
  (void)number;
  stop = 1;
}

static int die(const char *what) {
  fprintf(stderr, "spin_pair: %s: %s\n", what, np_error_detail());
  return 1;
}

static void count(unsigned long long *events) {
  if (++*events != WARM_EVENTS) return;
  printf("steady\n");
  fflush(stdout);
}

static int publish(struct np_publisher *publisher, unsigned long long *events) {
  struct np_event event;
  while (!stop) {
    int status = np_loan(publisher, EVENT_BYTES, &event);
    if (status == NP_EMPTY) continue;
    if (status != NP_OK) return die("np_loan");
    memcpy(event.data, events, sizeof *events);
    while ((status = np_publish(publisher, &event)) == NP_FULL && !stop) {
    }
    if (status == NP_FULL) break;
    if (status != NP_OK) return die("np_publish");
    count(events);
  }
  return 0;
}

static int subscribe(struct np_subscriber *subscriber, unsigned long long *events) {
  struct np_event event;
  while (!stop) {
    int status = np_take(subscriber, &event);
    if (status == NP_EMPTY) continue;
    if (status != NP_OK) return die("np_take");
    if (np_release(subscriber, &event) != NP_OK) return die("np_release");
    count(events);
  }
  return 0;
}

int main(int argc, char **argv) {
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
  unsigned long long events = 0;
  int result;
  if (argc != 3) return fprintf(stderr, "usage: spin_pair publish|subscribe CHANNEL\n"), 2;
  signal(SIGUSR1, on_signal);
  if (np_connect(&client, NULL) < 0) return die("np_connect");
  if (strcmp(argv[1], "publish") == 0) {
    if (np_publisher_open(client, argv[2], NULL, &publisher) < 0) return die("np_publisher_open");
    result = publish(publisher, &events);
  } else {
    if (np_subscriber_open(client, argv[2], NULL, &subscriber) < 0) return die("np_subscriber_open");
    result = subscribe(subscriber, &events);
  }
  printf("%llu events\n", events);
  np_disconnect(client);
  return result;
}
