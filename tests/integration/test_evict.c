/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the operator allows a client that is stopped (clients.evict_after, clients.evict): nothing is done where it is not
 * set; a killed one is a dead one; a quarantined one blocks nobody, keeps what it holds, and is told when it goes on.
 *
 * ctest-timeout: 180
 */
#include <criterion/criterion.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/counters.h"
#include "os/os_clock.h"
#include "tests/support/child.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"
#include "tests/support/process.h"

TestSuite(evict, .timeout = 120);

enum { CREDITS = 16, HOLD = 3, SIZE = 200, EVENTS_MAX = 4096 };

#define CHANNELS                                                       \
  "channels:\n"                                                        \
  "  - { name: news, kind: broadcast, credits: 16, on_full: block }\n" \
  "  - { name: work, kind: group, credits: 16, on_full: block }\n"
#define KILL       "clients: { evict_after: 300ms }\n" CHANNELS
#define QUARANTINE "clients: { evict_after: 300ms, evict: quarantine }\n" CHANNELS

/* ---- the client that is stopped ---- */

struct stopped {
  char channel[16];
  _Atomic int ready; /* it holds HOLD events, and waits to be stopped */
  _Atomic int go_on; /* stopped and continued: see what has become of it */
  _Atomic int told, connected_anew, n_new;
};

static int take_all_of(struct np_subscriber *subscriber, _Atomic int *n) {
  struct np_event event;
  int status;
  while ((status = np_take(subscriber, &event)) == NP_OK) {
    if (np_release(subscriber, &event) != NP_OK) return 1;
    (*n)++;
  }
  return status != NP_EMPTY;
}

/* Told in every way, and nothing is taken from it: what it held is unchanged and can be released. */
static int find_out(struct np_client *client, struct np_subscriber *subscriber, int fd, struct np_event held[HOLD]) {
  struct pollfd wait = {.fd = fd, .events = POLLIN};
  struct np_event event;
  struct np_subscriber *another;
  struct np_notice notice = {.size = sizeof notice};
  uint64_t number;
  CHILD_EXPECT(poll(&wait, 1, 10000) == 1);
  CHILD_EXPECT(np_take(subscriber, &event) == NP_ERR_EVICTED);
  CHILD_EXPECT(strstr(np_error_detail(), "evict_after") != NULL);
  CHILD_EXPECT(np_take(subscriber, &event) == NP_ERR_EVICTED);
  CHILD_EXPECT(np_wait(subscriber, 0) == NP_ERR_EVICTED && np_wait(subscriber, -1) == NP_ERR_EVICTED);
  CHILD_EXPECT(poll(&wait, 1, 0) == 1);
  CHILD_EXPECT(np_client_notice(client, &notice) == NP_OK && notice.kind == NP_NOTICE_EVICTED);
  CHILD_EXPECT(np_client_notice(client, &notice) == NP_EMPTY);
  CHILD_EXPECT(np_subscriber_open(client, "news", NULL, &another) == NP_ERR_NO_BROKER);
  for (int i = 0; i < HOLD; i++) {
    CHILD_EXPECT(message_ok(held[i].data, held[i].size, &number));
    CHILD_EXPECT(np_release(subscriber, &held[i]) == NP_OK);
  }
  return 0;
}

static int stopped_body(void *argument) {
  struct stopped *me = argument;
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_event held[HOLD];
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_subscriber_open(client, me->channel, NULL, &subscriber) == NP_OK);
  int fd = np_fd(subscriber);
  CHILD_EXPECT(fd >= 0);
  me->ready = 1;
  for (int n = 0; n < HOLD;) {
    CHILD_EXPECT(np_wait(subscriber, 20000) == NP_OK);
    while (n < HOLD && np_take(subscriber, &held[n]) == NP_OK) n++;
  }
  me->ready = 2;
  while (!me->go_on) usleep(1000);
  if (find_out(client, subscriber, fd, held) != 0) return 1;
  me->told = 1;
  np_disconnect(client);
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_subscriber_open(client, me->channel, NULL, &subscriber) == NP_OK);
  me->connected_anew = 1;
  while (me->go_on == 1) {
    if (take_all_of(subscriber, &me->n_new) != 0) return 1;
    usleep(1000);
  }
  CHILD_EXPECT(take_all_of(subscriber, &me->n_new) == 0);
  np_disconnect(client);
  return 0;
}

/* ---- the others: this process ---- */

struct fixture {
  struct instance instance;
  struct np_client *from, *to;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
  struct stopped *stopped;
  pid_t pid;
  uint64_t stopped_at_ns; /* not before */
  uint64_t n_published;
  uint8_t seen[EVENTS_MAX];
  uint64_t n_seen;
  int n_redelivered;
};

/* Publishes one if there is credit: 1. */
static int publish_one(struct fixture *f) {
  struct np_event event;
  if (np_loan(f->publisher, SIZE, &event) != NP_OK) return 0;
  message_fill(event.data, SIZE, f->n_published);
  if (np_publish(f->publisher, &event) != NP_OK) {
    np_discard(f->publisher, &event);
    np_wait_credit(f->publisher, 0);
    return 0;
  }
  f->n_published++;
  return 1;
}

/* Takes what is there. Returns 1, for conditions. */
static int receive(struct fixture *f) {
  struct np_event event;
  uint64_t number;
  np_wait_credit(f->publisher, 0);
  while (np_take(f->subscriber, &event) == NP_OK) {
    cr_assert(message_ok(event.data, event.size, &number));
    cr_assert_lt(number, EVENTS_MAX);
    cr_assert(f->seen[number] == 0 || (event.flags & NP_EVENT_REDELIVERED), "%d twice", (int)number);
    f->n_redelivered += (event.flags & NP_EVENT_REDELIVERED) != 0;
    f->n_seen += f->seen[number] == 0;
    f->seen[number] = 1;
    OK(np_release(f->subscriber, &event));
  }
  return 1;
}

static int publish_and_receive(struct fixture *f) {
  int published = publish_one(f);
  receive(f);
  return published;
}

/* The word that it is not waited for may still be under way before the first of them. */
static void publish_without_waiting(struct fixture *f, int n) {
  EVENTUALLY(20, publish_and_receive(f));
  for (int i = 1; i < n; i++) cr_assert(publish_and_receive(f));
}

static void begin_with(struct fixture *f, const char *settings, const char *channel, int (*before_exec)(void)) {
  memset(f, 0, sizeof *f);
  instance_start(&f->instance, settings, before_exec);
  f->stopped = shared_memory(sizeof *f->stopped);
  snprintf(f->stopped->channel, sizeof f->stopped->channel, "%s", channel);
  f->pid = spawn(stopped_body, f->stopped);
  EVENTUALLY(20, f->stopped->ready == 1);
  OK(np_connect(&f->from, NULL));
  OK(np_publisher_open(f->from, channel, NULL, &f->publisher));
  OK(np_connect(&f->to, NULL));
  OK(np_subscriber_open(f->to, channel, NULL, &f->subscriber));
}

static void begin(struct fixture *f, const char *settings, const char *channel) {
  begin_with(f, settings, channel, NULL);
}

/* It holds some and is stopped, and the rest of its credits is used up: the publisher waits for it. */
static void stop_it_and_fill(struct fixture *f) {
  EVENTUALLY(20, (publish_one(f), f->stopped->ready == 2));
  f->stopped_at_ns = npi_clock_monotonic();
  cr_assert(process_stop(f->pid));
  while (publish_one(f)) {
  }
}

static void end(struct fixture *f) {
  np_disconnect(f->from);
  np_disconnect(f->to);
  instance_stop(&f->instance);
}

static uint64_t n_evicted(const struct fixture *f) {
  return instance_broker_counter(&f->instance, NPI_BROKER_EVICTED);
}

/* ---- not set ---- */

Test(evict, nobody_is_evicted_where_it_is_not_set) {
  struct fixture f;
  begin(&f, CHANNELS, "news");
  stop_it_and_fill(&f);
  EVENTUALLY(20, !publish_and_receive(&f));
  uint64_t until = npi_clock_monotonic() + 1500000000;
  while (npi_clock_monotonic() < until) {
    cr_assert(!publish_and_receive(&f), "a blocking subscriber was not waited for");
    usleep(1000);
  }
  cr_assert_eq(n_evicted(&f), 0);
  cr_assert_eq(process_state(f.pid), 'T');
  cr_assert_eq(instance_clients(&f.instance, f.pid), 1);
  kill(f.pid, SIGKILL);
  reap(f.pid, 10);
  EVENTUALLY(20, receive(&f) && instance_clients(&f.instance, f.pid) == 0);
  cr_assert_not(instance_log_has(&f.instance, "client.evicted"));
  end(&f);
}

/* Stopped most of the time, as by a program that limits another one's use of the processor. */
Test(evict, who_runs_now_and_then_is_not_evicted) {
  struct fixture f;
  begin(&f, "clients: { evict_after: 2s }\n" CHANNELS, "news");
  EVENTUALLY(20, (publish_and_receive(&f), f.stopped->ready == 2));
  uint64_t until = npi_clock_monotonic() + 5000000000;
  uint64_t longest = 0;
  while (npi_clock_monotonic() < until) {
    uint64_t stopped_at = npi_clock_monotonic();
    kill(f.pid, SIGSTOP);
    usleep(50000);
    kill(f.pid, SIGCONT);
    EVENTUALLY(20, process_state(f.pid) == 'S'); /* it ran, and rests */
    uint64_t stopped_for = npi_clock_monotonic() - stopped_at;
    if (stopped_for > longest) longest = stopped_for;
  }
  say("evict: stopped for %.0f ms at most\n", (double)longest / 1e6);
  if (longest < 1500000000) { /* else this machine is too busy to say anything */
    cr_assert_eq(n_evicted(&f), 0);
    cr_assert_eq(instance_clients(&f.instance, f.pid), 1);
  }
  kill(f.pid, SIGKILL);
  reap(f.pid, 10);
  EVENTUALLY(20, receive(&f) && instance_clients(&f.instance, f.pid) == 0);
  end(&f);
}

/* ---- kill ---- */

Test(evict, a_member_that_is_killed_leaves_its_events_to_the_others) {
  struct fixture f;
  begin(&f, KILL, "work");
  stop_it_and_fill(&f);
  EVENTUALLY(20, (publish_and_receive(&f), n_evicted(&f) == 1));
  cr_assert_eq(reap(f.pid, 10), CHILD_KILLED + SIGKILL);
  double ms = (double)(npi_clock_monotonic() - f.stopped_at_ns) / 1e6;
  say("evict: killed %.0f ms after it was stopped\n", ms);
  cr_assert_geq(ms, 295.0);
  EVENTUALLY(20, receive(&f) && f.n_seen == f.n_published);
  cr_assert_geq(f.n_redelivered, HOLD);
  EVENTUALLY(20, receive(&f) && instance_clients(&f.instance, f.pid) == 0);
  cr_assert(instance_log_has(&f.instance, "client.evicted"));
  cr_assert(instance_log_has(&f.instance, "reason=evicted"));
  end(&f);
}

/* ---- quarantine ---- */

/* The record of the client that is stopped; NULL: there is none. */
static const struct npi_client_record *record_of(const struct fixture *f) {
  const struct npi_registry_header *header = instance_header(&f->instance);
  for (uint32_t i = 0; i < header->clients.count; i++) {
    const struct npi_client_record *record =
        (const void *)((const uint8_t *)header + header->clients.offset + (uint64_t)i * header->clients.bytes);
    if (npi_load_acquire_u32(&record->state) == NPI_RECORD_ACTIVE && record->pid == (uint32_t)f->pid) return record;
  }
  return NULL;
}

/* It is marked before its publishers hear of it, and is without a socket after that: then all of it is done. */
static int is_shut_out(const struct fixture *f) {
  const struct npi_client_record *record = record_of(f);
  uint32_t all = NPI_CLIENT_QUARANTINED | NPI_CLIENT_DETACHED;
  return record != NULL && (npi_load_relaxed_u32(&record->flags) & all) == all;
}

static void wait_for_quarantine(struct fixture *f) {
  EVENTUALLY(20, receive(f) && is_shut_out(f));
  cr_assert_eq(n_evicted(f), 1);
  cr_assert_eq(process_state(f->pid), 'T', "it must not be ended");
}

static void go_on_and_find_out(struct fixture *f) {
  f->stopped->go_on = 1;
  kill(f->pid, SIGCONT);
  EVENTUALLY(20, receive(f) && f->stopped->told);
  EVENTUALLY(20, receive(f) && f->stopped->connected_anew);
  EVENTUALLY(20, receive(f) && instance_clients(&f->instance, f->pid) == 1);
}

static void leave(struct fixture *f) {
  f->stopped->go_on = 2;
  cr_assert_eq(reap(f->pid, 20), 0);
  EVENTUALLY(20, receive(f) && instance_clients(&f->instance, f->pid) == 0);
}

Test(evict, a_quarantined_subscriber_blocks_nobody_and_is_told) {
  struct fixture f;
  struct np_publisher *another;
  struct np_event event;
  begin(&f, QUARANTINE, "news");
  stop_it_and_fill(&f);
  EVENTUALLY(20, !publish_and_receive(&f));
  /* Asleep for credit that never comes: woken by the quarantine. */
  OK(np_loan(f.publisher, SIZE, &event));
  message_fill(event.data, SIZE, f.n_published);
  while (np_publish(f.publisher, &event) == NP_FULL) {
    receive(&f);
    OK(np_wait_credit(f.publisher, 20000));
  }
  f.n_published++;
  wait_for_quarantine(&f);
  publish_without_waiting(&f, 10 * CREDITS);
  cr_assert_eq(f.n_seen, f.n_published);
  /* Whoever comes now has nothing to do with it, and memory can be leased as if it were not there. */
  OK(np_publisher_open(f.from, "news", NULL, &another));
  for (int i = 0; i < 2 * CREDITS; i++) {
    OK(np_loan(another, 60000, &event));
    message_fill(event.data, 60000, EVENTS_MAX - 1);
    OK(np_publish(another, &event));
    OK(np_wait(f.subscriber, 1000));
    OK(np_take(f.subscriber, &event));
    OK(np_release(f.subscriber, &event));
  }
  np_publisher_close(another);
  cr_assert_eq(n_evicted(&f), 1);
  cr_assert_eq(system(NUMAPOOLCTL_PATH " clients | grep -q 'evicted.*stopped'"), 0);
  cr_assert_eq(system(NUMAPOOLCTL_PATH " fsck > /dev/null"), 0);
  cr_assert_eq(system(NUMAPOOLCTL_PATH " audit > /dev/null"), 0, "what it missed is counted");
  go_on_and_find_out(&f);
  for (int i = 0; i < CREDITS; i++) EVENTUALLY(20, publish_and_receive(&f));
  EVENTUALLY(20, receive(&f) && f.stopped->n_new == CREDITS);
  leave(&f);
  cr_assert_eq(f.n_seen, f.n_published);
  end(&f);
}

Test(evict, a_quarantined_member_keeps_what_it_has_until_it_leaves) {
  struct fixture f;
  begin(&f, QUARANTINE, "work");
  stop_it_and_fill(&f);
  wait_for_quarantine(&f);
  publish_without_waiting(&f, 10 * CREDITS);
  int missing = (int)(f.n_published - f.n_seen);
  cr_assert_eq(missing, CREDITS, "what it holds, and what it has not taken yet");
  cr_assert_eq(f.n_redelivered, 0, "it may be reading them");
  f.stopped->go_on = 1;
  kill(f.pid, SIGCONT);
  EVENTUALLY(20, receive(&f) && f.stopped->connected_anew);
  /* Released by it are those that it held; the others were never its program's. */
  EVENTUALLY(20, receive(&f) && (int)(f.n_published - f.n_seen) - f.stopped->n_new == HOLD);
  leave(&f);
  cr_assert_eq((int)(f.n_published - f.n_seen) - f.stopped->n_new, HOLD);
  end(&f);
}

static int broker_as_nobody(void) {
  enum { NOBODY = 65534 };
  const char *folder = getenv("XDG_RUNTIME_DIR"), *notify = getenv("NOTIFY_SOCKET");
  if (folder == NULL || chown(folder, NOBODY, NOBODY) != 0 || notify == NULL || chown(notify, NOBODY, NOBODY) != 0) {
    return 1;
  }
  return setgroups(0, NULL) != 0 || setresgid(NOBODY, NOBODY, NOBODY) != 0 || setresuid(NOBODY, NOBODY, NOBODY) != 0;
}

Test(evict, who_may_not_be_killed_is_quarantined) {
  struct fixture f;
  if (geteuid() != 0) {
    say("evict: skipped, it needs root to be a client that its broker may not kill\n");
    return;
  }
  begin_with(&f, KILL, "news", broker_as_nobody);
  stop_it_and_fill(&f);
  wait_for_quarantine(&f);
  cr_assert(instance_log_has(&f.instance, "client.not_killed"));
  publish_without_waiting(&f, 4 * CREDITS);
  go_on_and_find_out(&f);
  leave(&f);
  end(&f);
}

/* ---- with another broker ---- */

Test(evict, a_quarantine_outlives_the_broker) {
  struct fixture f;
  begin(&f, QUARANTINE, "news");
  stop_it_and_fill(&f);
  wait_for_quarantine(&f);
  instance_kill(&f.instance);
  instance_start_again(&f.instance, NULL);
  publish_without_waiting(&f, 4 * CREDITS);
  np_publisher_close(f.publisher);
  OK(np_publisher_open(f.from, "news", NULL, &f.publisher)); /* comes back for it */
  publish_without_waiting(&f, 4 * CREDITS);
  cr_assert_eq(n_evicted(&f), 1);
  go_on_and_find_out(&f);
  leave(&f);
  end(&f);
}

/* Since when the registry says that it is stopped. */
static uint64_t stopped_since(const struct fixture *f) {
  const struct npi_client_record *record = record_of(f);
  return record != NULL ? npi_load_acquire_u64(&record->stopped_ns) : 0;
}

/* The broker that decides it is not the one that saw it stop. */
Test(evict, a_successor_goes_on_counting) {
  struct fixture f;
  begin(&f, "clients: { evict_after: 3s, evict: quarantine }\n" CHANNELS, "news");
  stop_it_and_fill(&f);
  EVENTUALLY(20, stopped_since(&f) != 0);
  instance_kill(&f.instance);
  usleep(1000000);
  instance_start_again(&f.instance, NULL);
  uint64_t back_at = npi_clock_monotonic();
  wait_for_quarantine(&f);
  double after = (double)(npi_clock_monotonic() - f.stopped_at_ns) / 1e9;
  double back = (double)(back_at - f.stopped_at_ns) / 1e9;
  say("evict: %.2f s after it was stopped, by a broker that came after %.2f s\n", after, back);
  cr_assert_geq(after, 2.9);
  /* Time in which the broker did not run is not counted, so on a machine that is busy enough nothing can be said. */
  cr_assert(stopped_since(&f) < back_at || after - back > 3.5, "it began anew to count");
  publish_without_waiting(&f, 4 * CREDITS);
  go_on_and_find_out(&f);
  leave(&f);
  end(&f);
}

/* ---- a publisher that waits for credit ---- */

struct full {
  _Atomic int ready, go_on, n_published;
};

static int full_body(void *argument) {
  struct full *me = argument;
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_event event;
  struct np_notice notice = {.size = sizeof notice};
  int status = NP_OK;
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_publisher_open(client, "news", NULL, &publisher) == NP_OK);
  struct pollfd wait = {.fd = np_publisher_fd(publisher), .events = POLLIN};
  CHILD_EXPECT(wait.fd >= 0);
  while (status == NP_OK) {
    CHILD_EXPECT(np_loan(publisher, SIZE, &event) == NP_OK);
    message_fill(event.data, SIZE, (uint64_t)me->n_published);
    status = np_publish(publisher, &event);
    if (status == NP_OK) me->n_published++;
  }
  CHILD_EXPECT(status == NP_FULL);
  me->ready = 1;
  while (!me->go_on) usleep(1000);
  CHILD_EXPECT(poll(&wait, 1, 10000) == 1);
  while ((status = np_publish(publisher, &event)) == NP_FULL) CHILD_EXPECT(poll(&wait, 1, 10000) == 1);
  CHILD_EXPECT(status == NP_ERR_EVICTED && strstr(np_error_detail(), "evict_after") != NULL);
  CHILD_EXPECT(np_wait_credit(publisher, 0) == NP_ERR_EVICTED && np_wait_credit(publisher, -1) == NP_ERR_EVICTED);
  CHILD_EXPECT(poll(&wait, 1, 0) == 1);
  CHILD_EXPECT(np_client_notice(client, &notice) == NP_OK && notice.kind == NP_NOTICE_EVICTED);
  CHILD_EXPECT(np_discard(publisher, &event) == NP_OK);
  /* It gets no more memory: not "later", but never. */
  while ((status = np_loan(publisher, 60000, &event)) == NP_OK) {
  }
  CHILD_EXPECT(status == NP_ERR_EVICTED);
  np_disconnect(client);
  return 0;
}

Test(evict, a_quarantined_publisher_that_waits_for_credit_is_told) {
  struct instance instance;
  struct full *full = shared_memory(sizeof *full);
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_event event;
  uint64_t number;
  instance_start(&instance, QUARANTINE, NULL);
  OK(np_connect(&client, NULL));
  OK(np_subscriber_open(client, "news", NULL, &subscriber));
  pid_t pid = spawn(full_body, full);
  EVENTUALLY(20, full->ready);
  cr_assert(process_stop(pid));
  EVENTUALLY(20, instance_broker_counter(&instance, NPI_BROKER_EVICTED) == 1);
  full->go_on = 1;
  kill(pid, SIGCONT);
  cr_assert_eq(reap(pid, 20), 0);
  /* What it had published is still there. */
  for (int i = 0; i < full->n_published; i++) {
    OK(np_wait(subscriber, 5000));
    OK(np_take(subscriber, &event));
    cr_assert(message_ok(event.data, event.size, &number) && (int)number == i);
    OK(np_release(subscriber, &event));
  }
  cr_assert_eq(np_take(subscriber, &event), NP_EMPTY);
  np_disconnect(client);
  instance_stop(&instance);
}
