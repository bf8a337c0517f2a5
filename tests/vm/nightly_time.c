/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clocks that jump, clocks that differ, and time that stands still for some: nobody is declared dead for it, and all goes
 * on afterwards. Needs a machine of its own: it sets the clock and freezes processes.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "support/child.h"
#include "support/feed.h"
#include "support/message.h"
#include "support/peers.h"
#include "vm/nodes.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

TestSuite(vm_time, .timeout = 600);

enum { YEAR = 365 * 24 * 3600, MONTH = 30 * 24 * 3600 };

static struct instance instance;

/* ---- a child with other clocks ----------------------------------------------------------------------- */

/* For the calling process, and its children. */
static int shift_clocks(long seconds) {
  char text[64];
  CHILD_EXPECT(syscall(SYS_unshare, CLONE_NEWTIME) == 0);
  int fd = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
  CHILD_EXPECT(fd >= 0);
  int n = snprintf(text, sizeof text, "monotonic %ld 0\nboottime %ld 0\n", seconds, seconds);
  CHILD_EXPECT(write(fd, text, (size_t)n) == n);
  close(fd);
  fd = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
  CHILD_EXPECT(fd >= 0 && syscall(SYS_setns, fd, CLONE_NEWTIME) == 0);
  close(fd);
  return 0;
}

static int a_year_ahead(void) {
  return shift_clocks(YEAR);
}

struct elsewhen {
  long seconds;
  int (*body)(void *argument);
  void *argument;
};

static int run_elsewhen(void *argument) {
  struct elsewhen *elsewhen = argument;
  if (elsewhen->seconds == 0) return elsewhen->body(elsewhen->argument);
  return shift_clocks(elsewhen->seconds) != 0 ? 1 : elsewhen->body(elsewhen->argument);
}

static pid_t spawn_elsewhen(long seconds, int (*body)(void *argument), void *argument) {
  struct elsewhen *elsewhen = shared_memory(sizeof *elsewhen);
  *elsewhen = (struct elsewhen){seconds, body, argument};
  return spawn(run_elsewhen, elsewhen);
}

/* ---- a crowd ------------------------------------------------------------------------------------------ */

enum { RECEIVERS = 2, MEMBERS = 3, SENDERS = 2, PEOPLE = RECEIVERS + MEMBERS + SENDERS };

struct crowd {
  struct receiver *receiver[RECEIVERS], *member[MEMBERS];
  struct sender *news, *work;
  pid_t pid[PEOPLE];
};

static struct receiver *holder_for(const char *channel, uint32_t hold) {
  struct receiver *receiver = receiver_for(channel);
  receiver->hold = hold;
  receiver->no_order = 1;
  return receiver;
}

/* shift: so many seconds the clocks of each second one are ahead, 0: of nobody. */
static void start_crowd(struct crowd *crowd, const char *more, long shift) {
  char yaml[1024];
  int n = 0;
  snprintf(yaml, sizeof yaml,
           "memory: { per_node: 32MiB, per_client: 8MiB, ready: 2MiB }\n%s"
           "channels:\n"
           "  - { name: news, kind: broadcast, credits: 64, on_full: drop_newest }\n"
           "  - { name: work, kind: group, credits: 16, on_full: block }\n"
           "  - { name: stream, kind: broadcast, credits: 64, on_full: block }\n"
           "listeners:\n  - { name: tcp, proto: tcp, address: \"127.0.0.1:0\", framing: { length_prefix: 4 }, channel: "
           "stream, idle_timeout: 1h, frame_timeout: 1h }\n",
           more);
  instance_start(&instance, yaml, NULL);
  for (int i = 0; i < RECEIVERS; i++) {
    crowd->receiver[i] = holder_for("news", (uint32_t)i * 10);
    crowd->pid[n++] = spawn_elsewhen(i % 2 * shift, receiver_body, crowd->receiver[i]);
  }
  for (int i = 0; i < MEMBERS; i++) {
    crowd->member[i] = holder_for("work", (uint32_t)i);
    crowd->pid[n++] = spawn_elsewhen((i + 1) % 2 * shift, receiver_body, crowd->member[i]);
  }
  crowd->news = sender_for("news", 0, RECEIVERS);
  crowd->work = sender_for("work", 0, MEMBERS);
  crowd->news->fixed_size = crowd->work->fixed_size = 500;
  crowd->pid[n++] = spawn_elsewhen(shift, sender_body, crowd->news);
  crowd->pid[n++] = spawn_elsewhen(0, sender_body, crowd->work);
  EVENTUALLY(60, crowd->news->sent > 200 && crowd->work->sent > 200);
}

static uint64_t worked(const struct crowd *crowd) {
  uint64_t sum = 0;
  for (int i = 0; i < MEMBERS; i++) sum += crowd->member[i]->received;
  return sum;
}

/* Events flow now, to receiver 0 and to the members together. */
static void expect_progress(const struct crowd *crowd) {
  uint64_t news = crowd->receiver[0]->received, work = worked(crowd);
  EVENTUALLY(60, crowd->receiver[0]->received > news + 100 && worked(crowd) > work + 100);
}

static void expect_nobody_dead(int clients) {
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_DEATHS), 0);
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_EVICTED), 0);
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_LIES), 0);
  cr_assert_eq(instance_clients(&instance, 0), clients);
  cr_assert(!instance_log_has(&instance, "client.departed") && !instance_log_has(&instance, "client.unreachable"));
}

static void end_crowd(struct crowd *crowd) {
  crowd->news->stop = crowd->work->stop = 1;
  EVENTUALLY(60, crowd->news->done && crowd->work->done);
  for (int i = 0; i < RECEIVERS; i++) crowd->receiver[i]->stop = 1;
  for (int i = 0; i < MEMBERS; i++) crowd->member[i]->stop = 1;
  for (int i = 0; i < PEOPLE; i++) cr_assert_eq(reap(crowd->pid[i], 90), 0, "process %d of the crowd", i);
  for (int i = 0; i < RECEIVERS; i++) {
    const struct receiver *receiver = crowd->receiver[i];
    cr_assert_eq(receiver->bad + receiver->corrupt + receiver->out_of_order + receiver->redelivered, 0);
    cr_assert_leq(receiver->received + receiver->gaps, crowd->news->sent); /* the last ones may be missing */
  }
  for (int i = 0; i < MEMBERS; i++) {
    cr_assert_eq(crowd->member[i]->bad + crowd->member[i]->corrupt + crowd->member[i]->redelivered, 0);
  }
  cr_assert_eq(worked(crowd), crowd->work->sent, "%llu of %llu", (unsigned long long)worked(crowd),
               (unsigned long long)crowd->work->sent);
}

/* ---- a TCP connection that stays open ------------------------------------------------------------------ */

static void send_numbers(int fd, uint64_t first, uint64_t n) {
  uint8_t frame[1024];
  for (uint64_t i = 0; i < n; i++) cr_assert_eq(feed_write(fd, frame, feed_frame(frame, first + i, 600)), 0);
}

/* ---- the wall clock ------------------------------------------------------------------------------------ */

static void step_clock(long seconds) {
  struct timespec now;
  cr_assert_eq(clock_gettime(CLOCK_REALTIME, &now), 0);
  now.tv_sec += seconds;
  cr_assert_eq(clock_settime(CLOCK_REALTIME, &now), 0, "the clock cannot be set");
}

/* A suite of its own, without a bound: the test runner takes the wall clock for the time that passes. */
TestSuite(vm_wall_clock);

Test(vm_wall_clock, it_steps_by_a_year) {
  /* Proves: a step ahead, two back and one ahead, also around a broker's end: no client is declared dead, none that is
   * stopped is evicted before its hour, no idle connection is closed. */
  static const long steps[] = {YEAR, -2L * YEAR, YEAR};
  struct crowd crowd;
  uint64_t number = 0;
  start_crowd(&crowd, "clients: { evict_after: 1h, evict: kill }\n", 0);
  struct receiver *stream = holder_for("stream", 0);
  pid_t pid = spawn(receiver_body, stream);
  EVENTUALLY(60, stream->ready);
  int fd = feed_connect("127.0.0.1", instance_port(&instance, "tcp"), SOCK_STREAM);
  cr_assert_geq(fd, 0);
  send_numbers(fd, number++, 1);
  EVENTUALLY(60, stream->received == number);
  kill(crowd.pid[RECEIVERS], SIGSTOP); /* a member: the others go on */
  for (unsigned i = 0; i < sizeof steps / sizeof *steps; i++) {
    step_clock(steps[i]);
    sleep(3);
    expect_progress(&crowd);
    send_numbers(fd, number++, 1);
    EVENTUALLY(60, stream->received == number);
    expect_nobody_dead(PEOPLE + 1);
    if (i != 1) continue;
    instance_kill(&instance);
    step_clock(-100000);
    instance_start_again(&instance, NULL);
    step_clock(100000);
    expect_progress(&crowd);
    expect_nobody_dead(PEOPLE + 1);
  }
  kill(crowd.pid[RECEIVERS], SIGCONT);
  say("time: the wall clock went +1, -2, +1 years: %llu events of a group meanwhile\n",
      (unsigned long long)worked(&crowd));
  close(fd);
  stream->stop = 1;
  cr_assert_eq(reap(pid, 60), 0);
  end_crowd(&crowd);
  instance_stop(&instance);
}

/* ---- clocks of one's own ------------------------------------------------------------------------------- */

static int ctl_says(const char *words) {
  char command[400];
  snprintf(command, sizeof command, "%s %s > %s/said 2>&1", NUMAPOOLCTL_PATH, words, instance.folder);
  int status = system(command);
  if (status == 0) return 0;
  snprintf(command, sizeof command, "cat %s/said >&2", instance.folder);
  return system(command) == 0 ? status : -1;
}

static int look_from_here(void *argument) {
  (void)argument;
  CHILD_EXPECT(ctl_says("status") == 0);
  CHILD_EXPECT(ctl_says("fsck") == 0);
  return 0;
}

Test(vm_time, processes_with_clocks_of_their_own_share_events) {
  /* Proves: time namespaces a month ahead, for some of the clients, for a broker, for who looks: monotonic clocks that
   * differ between processes decide nothing between them. */
  struct crowd crowd;
  char mine[64] = "", its[64] = "", path[64];
  start_crowd(&crowd, "", MONTH);
  expect_progress(&crowd);
  cr_assert_eq(look_from_here(NULL), 0);
  cr_assert_eq(reap(spawn_elsewhen(MONTH, look_from_here, NULL), 60), 0, "a month ahead");
  instance_kill(&instance);
  instance.before_exec = a_year_ahead;
  instance_start_again(&instance, NULL);
  snprintf(path, sizeof path, "/proc/%d/ns/time", (int)instance.pid);
  cr_assert(readlink("/proc/self/ns/time", mine, sizeof mine - 1) > 0 && readlink(path, its, sizeof its - 1) > 0);
  cr_assert_str_neq(mine, its, "the broker has no clocks of its own");
  expect_progress(&crowd);
  expect_nobody_dead(PEOPLE);
  cr_assert_eq(look_from_here(NULL), 0, "the broker is a year ahead");
  cr_assert_eq(reap(spawn_elsewhen(MONTH, look_from_here, NULL), 60), 0, "the broker is a year ahead, this a month");
  /* Another runtime directory, the same name: it must see that the broker lives. */
  char command[400];
  snprintf(command, sizeof command,
           "timeout 20 %s --instance %s > %s/said 2>&1; test $? -ne 0 -a $? -ne 124 && "
           "grep -q 'is run by process' %s/said",
           NUMAPOOLD_PATH, instance.name, instance.folder, instance.folder);
  setenv("XDG_RUNTIME_DIR", "/tmp", 1);
  int status = system(command);
  setenv("XDG_RUNTIME_DIR", instance.folder, 1);
  cr_assert_eq(status, 0, "another broker began beside one that lives");
  end_crowd(&crowd);
  instance.before_exec = NULL;
  instance_stop(&instance);
}

/* ---- frozen -------------------------------------------------------------------------------------------- */

static const char group[] = "/sys/fs/cgroup/numapool-test";

static void write_to(const char *file, const char *text) {
  char path[128];
  snprintf(path, sizeof path, "%s/%s", group, file);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  cr_assert(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "%s: cannot write %s", path, text);
  close(fd);
}

static int is_frozen(void) {
  char path[128], text[128] = "";
  snprintf(path, sizeof path, "%s/cgroup.events", group);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  cr_assert(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
  close(fd);
  return strstr(text, "frozen 1") != NULL;
}

static unsigned freeze_seconds(void) {
  const char *text = getenv("FREEZE_SECONDS");
  return text != NULL ? (unsigned)atoi(text) : 60;
}

static void freeze(pid_t pid) {
  char text[16];
  cr_assert(mkdir(group, 0700) == 0, "no cgroup of version 2 here");
  snprintf(text, sizeof text, "%d", (int)pid);
  write_to("cgroup.procs", text);
  write_to("cgroup.freeze", "1");
  EVENTUALLY(20, is_frozen());
}

static void thaw(pid_t pid) {
  char text[16];
  write_to("cgroup.freeze", "0");
  snprintf(text, sizeof text, "%d", (int)pid);
  int fd = open("/sys/fs/cgroup/cgroup.procs", O_WRONLY | O_CLOEXEC);
  cr_assert(fd >= 0 && write(fd, text, strlen(text)) > 0);
  close(fd);
  EVENTUALLY(20, rmdir(group) == 0);
}

Test(vm_time, the_frozen_are_not_dead) {
  /* Proves: a subscriber, a member with events in hand, the ingest worker and the broker are frozen for a minute each; the
   * others go on, nobody is declared dead, nothing is taken, and afterwards the frozen go on where they were. */
  struct crowd crowd;
  start_crowd(&crowd, "", 0);
  const pid_t who[] = {crowd.pid[1], crowd.pid[RECEIVERS + 2], instance_worker(&instance), instance.pid};
  static const char *const names[] = {"subscriber", "member", "worker", "broker"};
  for (unsigned i = 0; i < sizeof who / sizeof *who; i++) {
    freeze(who[i]);
    for (unsigned left = freeze_seconds(); left > 0; left--) {
      sleep(1);
      if (left % 10 == 0) expect_progress(&crowd);
    }
    cr_assert(is_frozen());
    expect_nobody_dead(PEOPLE);
    thaw(who[i]);
    expect_progress(&crowd);
    uint64_t receiver = crowd.receiver[1]->received, member = crowd.member[2]->received;
    EVENTUALLY(60, crowd.receiver[1]->received > receiver && crowd.member[2]->received > member);
    expect_nobody_dead(PEOPLE);
    say("time: %s frozen for %u s and thawed: %d clients as before\n", names[i], freeze_seconds(), PEOPLE);
  }
  end_crowd(&crowd);
  instance_stop(&instance);
}
