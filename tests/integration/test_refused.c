/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that has no room for its peers' memory (RLIMIT_AS): connections that it cannot make, or go on with, end and are
 * counted; nobody is taken for a liar, nothing that it holds is touched, and all else goes on.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/counters.h"
#include "tests/support/child.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"
#include "tests/support/process.h"

TestSuite(refused, .timeout = 60);

#define SETTINGS                                          \
  "memory: { per_node: 64MiB, ready: 16MiB }\n"           \
  "channels:\n"                                           \
  "  - { name: news, kind: broadcast, on_full: block }\n" \
  "  - { name: work, kind: group, credits: 16, on_full: block }\n"

enum { MIB = 1 << 20, LARGE = 1000000 };

/* What it needs beyond what it has now is not there. Room 0: no limit any more. */
static int limit_room(unsigned long room) {
  unsigned long pages = 0;
  struct rlimit limit;
  FILE *file = fopen("/proc/self/statm", "re");
  if (file == NULL || fscanf(file, "%lu", &pages) != 1) return -1;
  fclose(file);
  getrlimit(RLIMIT_AS, &limit);
  limit.rlim_cur = room == 0 ? limit.rlim_max : pages * (unsigned long)sysconf(_SC_PAGESIZE) + room;
  return setrlimit(RLIMIT_AS, &limit);
}

struct poor {
  char channel[16];
  unsigned long room;
  _Atomic int wants; /* 1: the limit; 2: none; 3: the end */
  _Atomic int has;
  _Atomic int n_taken, n_unreadable, n_notices, n_wrong;
};

/* Holds its first event for as long as it lives. */
static int poor_body(void *argument) {
  struct poor *me = argument;
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_event first = {0}, event;
  struct np_notice notice = {.size = sizeof notice};
  uint64_t number;
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_subscriber_open(client, me->channel, NULL, &subscriber) == NP_OK);
  me->has = 10;
  while (me->wants != 3) {
    if (me->wants != me->has && me->wants != 0) {
      CHILD_EXPECT(limit_room(me->wants == 1 ? me->room : 0) == 0);
      me->has = (int)me->wants;
    }
    if (np_wait(subscriber, 5) == NP_TIMEOUT) {
      while (np_client_notice(client, &notice) == NP_OK) {
        me->n_notices += notice.kind == NP_NOTICE_REFUSED;
        me->n_wrong += notice.kind == NP_NOTICE_PEER_LIED;
      }
      continue;
    }
    int status = np_take(subscriber, &event);
    if (status == NP_EMPTY) continue;
    if (status == NP_ERR_NO_MEMORY) {
      me->n_unreadable++;
      continue;
    }
    CHILD_EXPECT(status == NP_OK);
    CHILD_EXPECT(message_ok(event.data, event.size, &number));
    me->n_taken++;
    if (first.data == NULL) {
      first = event;
    } else {
      CHILD_EXPECT(np_release(subscriber, &event) == NP_OK);
    }
  }
  CHILD_EXPECT(message_ok(first.data, first.size, &number));
  CHILD_EXPECT(np_release(subscriber, &first) == NP_OK);
  me->has = 3;
  while (me->wants == 3) np_wait(subscriber, 5);
  CHILD_EXPECT(np_subscriber_close(subscriber) == NP_OK);
  np_disconnect(client);
  return 0;
}

struct fixture {
  struct instance instance;
  struct poor *poor;
  pid_t pid;
  struct np_client *client;
  struct np_publisher *publisher;
};

static void begin(struct fixture *f, const char *channel, unsigned long room) {
  memset(f, 0, sizeof *f);
  instance_start(&f->instance, SETTINGS, NULL);
  f->poor = shared_memory(sizeof *f->poor);
  snprintf(f->poor->channel, sizeof f->poor->channel, "%s", channel);
  f->poor->room = room;
  f->pid = spawn(poor_body, f->poor);
  EVENTUALLY(20, f->poor->has == 10);
  OK(np_connect(&f->client, NULL));
  OK(np_publisher_open(f->client, channel, NULL, &f->publisher));
  OK(publish_message(f->publisher, 1, 100));
  EVENTUALLY(20, f->poor->n_taken == 1);
  f->poor->wants = 1;
  EVENTUALLY(20, f->poor->has == 1);
}

static uint64_t count_of(const struct fixture *f, unsigned row) {
  return instance_broker_counter(&f->instance, row);
}

static uint64_t subscribers_of(struct np_publisher *publisher) {
  struct np_publisher_stats stats = {.size = sizeof stats};
  np_wait_credit(publisher, 0);
  OK(np_publisher_stats(publisher, &stats));
  return stats.subscribers;
}

/* 1: it went; 0: there is no credit, or no memory. */
static int publish_large(struct fixture *f, uint64_t number) {
  struct np_event event;
  np_wait_credit(f->publisher, 1);
  if (np_loan(f->publisher, LARGE, &event) != NP_OK) return 0;
  message_fill(event.data, LARGE, number);
  if (np_publish(f->publisher, &event) == NP_OK) return 1;
  OK(np_discard(f->publisher, &event));
  return 0;
}

/* AddressSanitizer's allocator ends a process that has no room. */
static int skipped(void) {
#ifdef __SANITIZE_ADDRESS__
  say("refused: skipped, a process with a sanitizer does not live without room\n");
  return 1;
#else
  return 0;
#endif
}

static void end(struct fixture *f) {
  f->poor->wants = 3;
  EVENTUALLY(20, f->poor->has == 3);
  cr_assert_eq(f->poor->n_wrong, 0, "somebody was taken for a liar");
  cr_assert_eq(count_of(f, NPI_BROKER_LIES), 0);
  EVENTUALLY(20, (np_wait_credit(f->publisher, 0), 1) && all_returned(f->client, 1));
  f->poor->wants = 4;
  cr_assert_eq(reap(f->pid, 20), 0);
  np_disconnect(f->client);
  instance_stop(&f->instance);
}

Test(refused, a_publisher_whose_page_finds_no_room_is_not_a_liar) {
  struct fixture f;
  struct np_client *newcomer;
  struct np_publisher *publisher;
  if (skipped()) return;
  begin(&f, "news", MIB);
  OK(np_connect(&newcomer, NULL));
  OK(np_publisher_open(newcomer, "news", NULL, &publisher));
  EVENTUALLY(20, count_of(&f, NPI_BROKER_REFUSED) == 1);
  cr_assert(instance_log_has(&f.instance, "connection.refused"));
  EVENTUALLY(20, subscribers_of(publisher) == 0);
  OK(publish_message(publisher, 2, 100)); /* to nobody: nobody is waited for */
  EVENTUALLY(20, f.poor->n_notices == 1);
  /* Those who were there before go on, and with room again newcomers are welcome. */
  OK(publish_message(f.publisher, 3, 100));
  EVENTUALLY(20, f.poor->n_taken == 2);
  f.poor->wants = 2;
  EVENTUALLY(20, f.poor->has == 2);
  np_publisher_close(publisher);
  OK(np_publisher_open(newcomer, "news", NULL, &publisher));
  OK(publish_message(publisher, 4, 100));
  EVENTUALLY(20, f.poor->n_taken == 3);
  cr_assert_eq(count_of(&f, NPI_BROKER_REFUSED), 1);
  EVENTUALLY(20, all_returned(newcomer, 1));
  np_disconnect(newcomer);
  end(&f);
}

/* The event goes to another member, and what the poor one holds stays its own, until it releases that. */
Test(refused, an_event_in_memory_that_finds_no_room_goes_to_another_member) {
  struct fixture f;
  struct np_client *other;
  struct np_subscriber *subscriber;
  struct np_event event;
  if (skipped()) return;
  begin(&f, "work", MIB);
  int n_published = 1;
  while (f.poor->n_unreadable == 0) n_published += publish_large(&f, (uint64_t)n_published + 1); /* a segment each */
  EVENTUALLY(20, count_of(&f, NPI_BROKER_REFUSED) == 1);
  int n_left = n_published - f.poor->n_taken, n = 0;
  cr_assert_gt(n_left, 0);
  OK(np_connect(&other, NULL));
  OK(np_subscriber_open(other, "work", NULL, &subscriber));
  f.poor->wants = 3; /* lets go of what it holds, and with that of the connection */
  EVENTUALLY(20, f.poor->has == 3);
  while (n < n_left) {
    np_wait_credit(f.publisher, 0);
    if (np_take(subscriber, &event) != NP_OK) continue;
    cr_assert(event.flags & NP_EVENT_REDELIVERED);
    OK(np_release(subscriber, &event));
    n++;
  }
  cr_assert_eq(f.poor->n_unreadable, 1, "it went on with a connection that had ended");
  EVENTUALLY(20,
             (np_wait_credit(f.publisher, 0), np_take(subscriber, &event) == NP_EMPTY) && all_returned(f.client, 1));
  np_disconnect(other);
  end(&f);
}

/* The same for one that blocks a broadcast: its publisher goes on at once, whatever it holds. */
Test(refused, a_publisher_does_not_wait_for_who_cannot_read) {
  struct fixture f;
  if (skipped()) return;
  begin(&f, "news", MIB);
  cr_assert(process_stop(f.pid)); /* or it might give each one back in time, and one segment would do for all */
  for (uint64_t i = 2; i < 10; i++) OK(publish_message(f.publisher, i, LARGE));
  kill(f.pid, SIGCONT);
  EVENTUALLY(20, f.poor->n_unreadable == 1);
  for (uint64_t i = 10; i < 2000; i++) OK(publish_message(f.publisher, i, 100));
  EVENTUALLY(20, f.poor->n_notices == 1);
  EVENTUALLY(20, count_of(&f, NPI_BROKER_REFUSED) == 1); /* the broker hears of it after that */
  end(&f);
}
