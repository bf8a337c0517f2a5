/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker is killed and another one goes on: clients lose no event and no memory, ingest workers no connection.
 * The kills hit at random instructions; the seed is printed, NUMAPOOL_TEST_SEED repeats the same waiting times.
 *
 * ctest-timeout: 900
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/backends.h"
#include "tests/support/child.h"
#include "tests/support/feed.h"
#include "tests/support/instance.h"
#include "tests/support/message.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"
#include "tests/support/process.h"
#include "tests/support/seed.h"

TestSuite(broker_restart, .timeout = 240);

static void start(struct instance *instance, int backend) {
  instance_start_with(instance, backend, "per_node: 64MiB, ready: 4MiB",
                      "channels:\n"
                      "  - { name: news, kind: broadcast, credits: 64, on_full: block }\n"
                      "  - { name: work, kind: group, credits: 16, on_full: block }\n");
  seed_random("broker_restart");
}

static void pause_a_little(void) {
  usleep(2000 + (useconds_t)(random() % 40000));
}

static uint32_t incarnation(const struct instance *instance) {
  return npi_load_acquire_u32(&instance_header(instance)->incarnation);
}

/* Two broadcast receivers with a sender, two group members with a sender. */
enum { NUMBERS = 16000000 };
struct crowd {
  struct receiver *receivers[2], *members[2];
  struct sender *news, *work;
  pid_t pids[6];
  _Atomic uint8_t *seen;
};

static void start_crowd(struct crowd *crowd) {
  crowd->seen = shared_memory(NUMBERS);
  for (int i = 0; i < 2; i++) {
    crowd->receivers[i] = receiver_for("news");
    crowd->receivers[i]->hold = (uint32_t)i * 10;
    crowd->pids[i] = spawn(receiver_body, crowd->receivers[i]);
    crowd->members[i] = receiver_for("work");
    crowd->members[i]->seen = crowd->seen;
    crowd->members[i]->n_seen = NUMBERS;
    crowd->members[i]->no_order = 1;
    crowd->pids[2 + i] = spawn(receiver_body, crowd->members[i]);
  }
  crowd->news = sender_for("news", 0, 2);
  crowd->work = sender_for("work", 0, 2);
  crowd->work->fixed_size = 200;
  crowd->pids[4] = spawn(sender_body, crowd->news);
  crowd->pids[5] = spawn(sender_body, crowd->work);
  EVENTUALLY(30, crowd->news->sent > 1000 && crowd->work->sent > 1000);
}

/* Everybody exchanges events now. */
static void expect_progress(const struct crowd *crowd) {
  uint64_t news = crowd->news->sent, work = crowd->work->sent;
  uint64_t received = crowd->receivers[0]->received;
  uint64_t taken = crowd->members[0]->received + crowd->members[1]->received;
  EVENTUALLY(20, crowd->news->sent > news + 100 && crowd->work->sent > work + 100 &&
                     crowd->receivers[0]->received > received + 100 &&
                     crowd->members[0]->received + crowd->members[1]->received > taken + 100);
}

/* Ends all; not one event was lost, damaged or repeated. */
static void end_crowd(struct crowd *crowd) {
  crowd->news->stop = crowd->work->stop = 1;
  EVENTUALLY(30, crowd->news->done && crowd->work->done);
  for (int i = 0; i < 2; i++) crowd->receivers[i]->stop = crowd->members[i]->stop = 1;
  for (int i = 0; i < 6; i++) cr_assert_eq(reap(crowd->pids[i], 70), 0, "process %d of the crowd", i);
  for (int i = 0; i < 2; i++) {
    const struct receiver *r = crowd->receivers[i];
    cr_assert_eq(r->received, crowd->news->sent);
    cr_assert_eq(r->bad + r->gaps + r->number_breaks + r->out_of_order + r->corrupt, 0);
    cr_assert_eq(
        crowd->members[i]->bad + crowd->members[i]->twice + crowd->members[i]->corrupt + crowd->members[i]->redelivered,
        0);
  }
  cr_assert_lt(crowd->work->sent, NUMBERS, "the test has no room for so many numbers");
  uint64_t lost = 0, twice = 0;
  for (uint64_t i = 0; i < crowd->work->sent; i++) {
    lost += crowd->seen[i] == 0;
    twice += crowd->seen[i] > 1;
  }
  cr_assert_eq(lost, 0);
  cr_assert_eq(twice, 0);
  say("broker_restart: %llu broadcast and %llu group events, 0 lost, 0 repeated\n",
      (unsigned long long)crowd->news->sent, (unsigned long long)crowd->work->sent);
}

static int is_attached(const struct np_client *client) {
  struct np_client_stats stats = {.size = sizeof stats};
  return np_client_stats(client, &stats) == NP_OK && stats.broker_connected;
}

static struct np_client *connect_here(void) {
  struct np_client *client = NULL;
  OK(np_connect(&client, NULL));
  return client;
}

TEST_WITH_BOTH_BACKENDS(broker_restart, who_exchanges_events_notices_nothing) {
  /* Proves: at full speed not one event is lost or repeated over kills of the broker, what was left open goes on, and new
   * clients are served; the time without a broker is short. */
  enum { ROUNDS = 5, ROUNDS_MAX = 20, READY_MS_MAX = 100 }; /* more than 5 where the machine is busy: the best counts */
  struct instance instance;
  struct crowd crowd;
  double best = 1e9;
  start(&instance, *backend);
  start_crowd(&crowd);
  for (int round = 0; round < ROUNDS || (best >= READY_MS_MAX && round < ROUNDS_MAX); round++) {
    pause_a_little();
    instance_kill(&instance);
    expect_progress(&crowd); /* without any broker */
    double ms = instance_start_again(&instance, NULL);
    say("broker_restart: ready after %.1f ms\n", ms);
    if (ms < best) best = ms;
    cr_assert_eq(incarnation(&instance), (uint32_t)round + 2);
    expect_progress(&crowd);
    struct np_client *newcomer = connect_here();
    struct np_publisher *publisher;
    struct np_subscriber *subscriber;
    OK(np_publisher_open(newcomer, "fresh", NULL, &publisher));
    OK(np_subscriber_open(newcomer, "fresh", NULL, &subscriber));
    np_disconnect(newcomer);
  }
  say("broker_restart: best: ready after %.1f ms\n", best);
  cr_assert_lt(best, READY_MS_MAX);
  end_crowd(&crowd);
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_DEATHS), 0);
  instance_stop(&instance);
}

TEST_WITH_BOTH_BACKENDS(broker_restart, a_client_goes_on_opening_and_leasing) {
  /* Proves: the next control call of a client that was there finds the new broker, with all that it had. */
  struct instance instance;
  struct np_publisher *publisher, *another;
  struct np_subscriber *subscriber, *late;
  struct np_event event;
  start(&instance, *backend);
  struct np_client *sender = connect_here(), *receiver = connect_here();
  OK(np_subscriber_open(receiver, "news", NULL, &subscriber));
  OK(np_publisher_open(sender, "news", NULL, &publisher));
  OK(publish_message(publisher, 0, 100)); /* has memory from now on */
  OK(np_wait(subscriber, 5000));
  OK(np_take(subscriber, &event));
  OK(np_release(subscriber, &event));
  for (int round = 0; round < 3; round++) {
    instance_kill(&instance);
    OK(publish_message(publisher, 1, 100));
    instance_start_again(&instance, NULL);
    OK(np_publisher_open(sender, "other", NULL, &another));
    OK(np_subscriber_open(receiver, "other", NULL, &late));
    OK(publish_message(publisher, 2, 100));
    OK(publish_message(another, 3, 1000000)); /* needs memory that was not leased before */
    for (int i = 0; i < 2; i++) {
      OK(np_wait(subscriber, 5000));
      OK(np_take(subscriber, &event));
      OK(np_release(subscriber, &event));
    }
    OK(np_wait(late, 5000));
    OK(np_take(late, &event));
    cr_assert_eq(event.size, 1000000);
    OK(np_release(late, &event));
    cr_assert(is_attached(sender) && is_attached(receiver));
    OK(np_subscriber_close(late));
    np_publisher_close(another);
  }
  OK(np_subscriber_close(subscriber));
  np_publisher_close(publisher);
  np_disconnect(sender);
  np_disconnect(receiver);
  instance_stop(&instance);
}

/* 0: it has not got its name yet. */
static pid_t look_for_keeper(const struct instance *instance) {
  char command[64];
  int pid = 0;
  snprintf(command, sizeof command, "pgrep -P %d numapool-keeper", (int)instance->pid);
  FILE *output = popen(command, "re");
  cr_assert_not_null(output);
  if (fscanf(output, "%d", &pid) != 1) pid = 0;
  pclose(output);
  return (pid_t)pid;
}

static pid_t keeper_of(const struct instance *instance) {
  pid_t pid = 0;
  EVENTUALLY(10, (pid = look_for_keeper(instance)) != 0);
  return pid;
}

static int has_registry(pid_t keeper) {
  char command[96];
  snprintf(command, sizeof command, "ls -l /proc/%d/fd | grep -q '[.]registry'", (int)keeper);
  return system(command) == 0;
}

TEST_WITH_BOTH_BACKENDS(broker_restart, who_died_meanwhile_is_reaped) {
  /* Proves: clients that are killed while there is no broker are found, their memory is back, the others go on, and the
   * one keeper of all these brokers holds no more than at first. */
  struct instance instance;
  struct crowd crowd;
  start(&instance, *backend);
  pid_t keeper = keeper_of(&instance);
  EVENTUALLY(20, has_registry(keeper)); /* the last thing that it is told of when all begins */
  int first_descriptors = instance_descriptors(keeper);
  start_crowd(&crowd);
  for (int round = 0; round < 3; round++) {
    struct receiver *victim = receiver_for("news");
    struct sender *other = sender_for("side", 0, 0);
    pid_t pids[2] = {spawn(receiver_body, victim), spawn(sender_body, other)};
    EVENTUALLY(20, victim->received > 0 && other->sent > 0);
    instance_kill(&instance);
    for (int i = 0; i < 2; i++) {
      kill(pids[i], SIGKILL);
      cr_assert_eq(reap(pids[i], 20), CHILD_KILLED + SIGKILL);
    }
    instance_start_again(&instance, NULL);
    for (int i = 0; i < 2; i++) {
      EVENTUALLY(30, instance_clients(&instance, pids[i]) == 0);
      cr_assert_eq(instance_connections(&instance, pids[i]), 0);
      cr_assert_eq(instance_segments_leased(&instance, pids[i]), 0);
    }
    expect_progress(&crowd);
  }
  end_crowd(&crowd);
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_DEATHS), 6);
  EVENTUALLY(20, instance_descriptors(keeper) == first_descriptors);
  instance_stop(&instance);
}

/* Comes whenever there is a broker, and does what brokers can die of. */
static int visitor_body(void *argument) {
  struct np_client *client = NULL;
  struct np_publisher *publisher = NULL;
  struct np_subscriber *subscriber = NULL;
  struct np_options options;
  (void)argument;
  np_options_init(&options);
  options.timeout_ms = -1;
  if (np_connect(&client, &options) != NP_OK) return 0;
  while (np_publisher_open(client, "visits", NULL, &publisher) == NP_OK &&
         np_subscriber_open(client, "news", NULL, &subscriber) == NP_OK) {
    np_subscriber_close(subscriber);
    np_publisher_close(publisher);
  }
  for (;;) pause();
}

TEST_WITH_BOTH_BACKENDS(broker_restart, a_broker_may_die_while_it_adopts) {
  /* Proves: brokers killed at any time of their start, others right behind them, leave an instance that the next one
   * adopts; the events go on, and nothing is left behind at the end. */
  enum { KILLS = 60, START_US_MAX = 2000000 };
  struct instance instance;
  struct crowd crowd;
  uint32_t before;
  start(&instance, *backend);
  start_crowd(&crowd);
  instance_kill(&instance);
  /* How long a start takes here and now: kills shall hit all of it. */
  unsigned long whole_us = (unsigned long)(instance_start_again(&instance, NULL) * 1200);
  instance_kill(&instance);
  before = incarnation(&instance);
  for (int kills = 0; kills < KILLS; kills++) {
    pid_t pid = kills % 3 == 0 ? spawn(visitor_body, NULL) : 0;
    uint32_t was = incarnation(&instance);
    instance_launch(&instance, NULL);
    usleep((useconds_t)((unsigned long)random() % whole_us));
    if (pid != 0) {
      kill(pid, SIGKILL);
      reap(pid, 20);
    }
    instance_kill(&instance);
    /* A start takes longer where more is going on, and that changes: the kills follow it. */
    int is_early = incarnation(&instance) == was;
    if (!is_early) whole_us -= whole_us / 50;
    if (is_early && whole_us < START_US_MAX) whole_us += whole_us / 8;
  }
  double ms = instance_start_again(&instance, NULL);
  uint32_t adoptions = incarnation(&instance) - before;
  say("broker_restart: %d brokers killed, %u of them had begun to adopt; the last was ready after %.1f ms\n", KILLS,
      adoptions - 1, ms);
  cr_assert_gt(adoptions, KILLS / 10, "the kills were all too early: the test showed nothing");
  expect_progress(&crowd);
  end_crowd(&crowd);
  instance_stop(&instance);
}

/* As if the broker that runs were of another release; its layout is the same. */
static void pretend_another_version(const struct instance *instance) {
  static const char other[sizeof((struct npi_registry_header *)0)->version] = "99.1.2-other";
  char path[128];
  snprintf(path, sizeof path, "/dev/shm/numapool.%s.%u.registry", instance->name, (unsigned)geteuid());
  int fd = open(path, O_RDWR | O_CLOEXEC);
  cr_assert_geq(fd, 0, "%s", path);
  cr_assert_eq(pwrite(fd, other, sizeof other, offsetof(struct npi_registry_header, version)), (ssize_t)sizeof other);
  close(fd);
  cr_assert_str_eq(instance_header(instance)->version, other);
}

TEST_WITH_BOTH_BACKENDS(broker_restart, takeover_replaces_a_running_broker) {
  /* Proves: --takeover under load costs no event, also from another version; who was replaced ends with status 0. */
  struct instance instance;
  struct crowd crowd;
  double best = 1e9;
  start(&instance, *backend);
  start_crowd(&crowd);
  for (int round = 0; round < 3; round++) {
    int status = 0;
    pid_t old = instance.pid;
    pretend_another_version(&instance);
    double ms = instance_start_again(&instance, "--takeover");
    cr_assert_str_eq(instance_header(&instance)->version, NP_VERSION_STRING);
    say("broker_restart: took over in %.1f ms\n", ms);
    if (ms < best) best = ms;
    cr_assert_eq(waitpid(old, &status, 0), old);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the old broker ended with %#x", status);
    cr_assert_eq(incarnation(&instance), (uint32_t)round + 2);
    expect_progress(&crowd);
  }
  say("broker_restart: best takeover %.1f ms\n", best);
  end_crowd(&crowd);
  instance_stop(&instance);
}

/* ---- ingest ---- */

#define LINES                                                                                      \
  "memory: { per_node: 64MiB, ready: 4MiB }\n"                                                     \
  "channels:\n  - { name: lines, kind: broadcast, credits: 256, on_full: block }\n"                \
  "listeners:\n"                                                                                   \
  "  - { name: frames, proto: tcp, address: \"127.0.0.1:0\", framing: newline, channel: lines }\n" \
  "  - { name: grams, proto: udp, address: \"127.0.0.1:0\", channel: lines }\n"

static void expect_text(struct np_subscriber *subscriber, const char *text) {
  struct np_event event;
  OK(np_wait(subscriber, 20000));
  OK(np_take(subscriber, &event));
  cr_assert_eq(event.size, strlen(text));
  cr_assert_eq(memcmp(event.data, text, event.size), 0);
  OK(np_release(subscriber, &event));
}

static void feed_line(int fd, const char *text) {
  char line[64];
  int n = snprintf(line, sizeof line, "%s\n", text);
  cr_assert_eq(feed_write(fd, line, (size_t)n), 0);
}

Test(broker_restart, ingest_connections_stay_open_and_a_dead_worker_is_started_again) {
  /* Proves: a TCP connection goes on being received without a broker and with the next one; a worker that is no child
   * of the broker is started again when it dies, on the same port; also when it died while there was no broker. */
  struct instance instance;
  struct np_subscriber *subscriber;
  instance_start(&instance, LINES, NULL);
  struct np_client *client = connect_here();
  OK(np_subscriber_open(client, "lines", NULL, &subscriber));
  uint16_t port = instance_port(&instance, "frames");
  int fd = feed_connect("127.0.0.1", port, SOCK_STREAM);
  feed_line(fd, "with a broker");
  expect_text(subscriber, "with a broker");
  pid_t worker = instance_worker(&instance);
  for (int round = 0; round < 3; round++) {
    if (round < 2) {
      instance_kill(&instance);
      feed_line(fd, "without a broker");
      expect_text(subscriber, "without a broker");
    }
    double ms = instance_start_again(&instance, round < 2 ? NULL : "--takeover");
    say("broker_restart: ready with a worker after %.1f ms\n", ms);
    feed_line(fd, "with another broker");
    expect_text(subscriber, "with another broker");
    cr_assert_eq(instance_worker(&instance), worker);
  }
  for (int round = 0; round < 2; round++) {
    if (round == 1) instance_kill(&instance);
    kill(worker, SIGKILL);
    cr_assert(feed_peer_closed(fd, 20));
    close(fd);
    if (round == 1) instance_start_again(&instance, NULL);
    EVENTUALLY(30, instance_worker(&instance) != 0 && instance_worker(&instance) != worker);
    EVENTUALLY(30, npi_load_acquire_u32(&instance_listener(&instance, "frames")->state) == NPI_LISTENER_LISTENING);
    cr_assert_eq(npi_load_relaxed_u32(&instance_listener(&instance, "frames")->restarts), (uint32_t)round + 1);
    cr_assert_eq(instance_port(&instance, "frames"), port);
    worker = instance_worker(&instance);
    fd = feed_connect("127.0.0.1", port, SOCK_STREAM);
    feed_line(fd, "with another worker");
    expect_text(subscriber, "with another worker");
  }
  close(fd);
  np_disconnect(client);
  instance_stop(&instance);
}

/* ---- what is not adopted ---- */

Test(broker_restart, where_nobody_lives_it_begins_anew) {
  /* Proves: without a living client or worker the leftovers are removed, and the instance is a new one. */
  struct instance instance;
  struct receiver *receiver = receiver_for("news");
  start(&instance, POSIX);
  pid_t pid = spawn(receiver_body, receiver);
  EVENTUALLY(20, receiver->ready);
  uint64_t before = instance_header(&instance)->instance_id;
  instance_kill(&instance);
  kill(pid, SIGKILL);
  reap(pid, 20);
  cr_assert_gt(instance_shm_count(&instance), 0);
  instance_start_again(&instance, NULL);
  instance_map_again(&instance);
  cr_assert_neq(instance_header(&instance)->instance_id, before);
  cr_assert_eq(incarnation(&instance), 1);
  instance_stop(&instance);
}

Test(broker_restart, a_configuration_that_does_not_fit_is_refused_and_nothing_is_lost) {
  /* Proves: with other sizes or another kind of a channel the new broker says what and what to do; the instance goes on
   * living, and the old configuration adopts it; --takeover refuses before the running broker ends. */
  static const char *const others[] = {
      "memory: { per_node: 128MiB, ready: 4MiB }\n",
      "memory: { per_node: 64MiB, ready: 4MiB }\nlimits: { clients: 17 }\n",
      "memory: { per_node: 64MiB, ready: 4MiB }\nchannels: [ { name: news, kind: group } ]\n",
      "memory: { per_node: 64MiB, ready: 4MiB }\naccess: { connect: [ \"user:1\" ] }\n"};
  struct instance instance;
  struct crowd crowd;
  char good[4096];
  start(&instance, POSIX);
  start_crowd(&crowd);
  FILE *file = fopen(instance.config, "re");
  good[fread(good, 1, sizeof good - 1, file)] = '\0';
  fclose(file);
  for (int i = 0; i < 8; i++) {
    int status = 0;
    pid_t old = instance.pid;
    file = fopen(instance.config, "we");
    fprintf(file, "instance: %s\n%s", instance.name, others[i % 4]);
    fclose(file);
    if (i == 4) {
      instance_kill(&instance);
      old = 0;
    }
    if (i > 4) old = 0;
    pid_t refused = instance_launch(&instance, old != 0 ? "--takeover" : NULL);
    cr_assert_eq(waitpid(refused, &status, 0), refused);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 2, "%#x", status);
    instance.pid = old;
    cr_assert(instance_log_has(&instance, "start with the old setting"));
    expect_progress(&crowd);
  }
  file = fopen(instance.config, "we");
  fputs(good, file);
  fclose(file);
  instance_start_again(&instance, NULL);
  expect_progress(&crowd);
  end_crowd(&crowd);
  instance_stop(&instance);
}

Test(broker_restart, a_keeper_that_dies_is_replaced) {
  /* Proves: the broker notices, starts another, and that one knows enough for a successor. */
  struct instance instance;
  struct crowd crowd;
  start(&instance, MEMFD);
  start_crowd(&crowd);
  kill(keeper_of(&instance), SIGKILL);
  EVENTUALLY(20, instance_log_has(&instance, "keeper.replaced"));
  instance_kill(&instance);
  instance_start_again(&instance, NULL);
  cr_assert_eq(incarnation(&instance), 2);
  expect_progress(&crowd);
  end_crowd(&crowd);
  instance_stop(&instance);
}

Test(broker_restart, a_keeper_that_is_stopped_is_not_taken_for_a_dead_one) {
  /* Proves: while it cannot be asked, also because its queue is full of those who tried, a broker refuses to start, in
   * words, and touches nothing; when it goes on, the next one adopts. */
  enum { CALLERS = 32 };
  struct instance instance;
  struct crowd crowd;
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int fds[CALLERS], status = 0, n_waiting = 0;
  start(&instance, MEMFD);
  start_crowd(&crowd);
  pid_t keeper = keeper_of(&instance);
  instance_kill(&instance);
  cr_assert(process_stop(keeper));
  int length = snprintf(address.sun_path, sizeof address.sun_path, "%.90s/keeper.sock", instance.runtime);
  cr_assert_eq((size_t)length, strlen(instance.runtime) + strlen("/keeper.sock"));
  for (int i = 0; i < CALLERS; i++) {
    fds[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    n_waiting += connect(fds[i], (const struct sockaddr *)&address, sizeof address) == 0;
  }
  cr_assert(n_waiting > 0 && n_waiting < CALLERS, "%d of %d found room in the queue", n_waiting, CALLERS);
  for (int i = 0; i < 2; i++) {
    pid_t refused = instance_launch(&instance, NULL);
    cr_assert_eq(waitpid(refused, &status, 0), refused);
    instance.pid = 0;
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 1, "%#x", status);
    cr_assert(instance_log_has(&instance, "continue it if it is stopped"));
    expect_progress(&crowd);
  }
  kill(keeper, SIGCONT);
  for (int i = 0; i < CALLERS; i++) close(fds[i]);
  instance_start_again(&instance, NULL);
  cr_assert_eq(incarnation(&instance), 2);
  expect_progress(&crowd);
  end_crowd(&crowd);
  instance_stop(&instance);
}

static uint16_t free_port(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  cr_assert(bind(fd, (const struct sockaddr *)&address, sizeof address) == 0 &&
            getsockname(fd, (struct sockaddr *)&address, &length) == 0);
  close(fd);
  return ntohs(address.sin_port);
}

Test(broker_restart, where_broker_and_keeper_died_a_new_life_begins_on_the_same_ports) {
  /* Proves: what cannot be adopted is cleaned away although clients live; an ingest worker of the old life hears of it,
   * ends and frees its port; a client is told, and connects again. */
  struct instance instance;
  struct np_subscriber *subscriber;
  struct np_publisher *publisher;
  char yaml[512];
  uint16_t port = free_port();
  snprintf(
      yaml, sizeof yaml,
      "memory: { per_node: 64MiB, ready: 4MiB }\n"
      "channels:\n  - { name: lines, kind: broadcast, credits: 256, on_full: block }\n"
      "listeners:\n  - { name: frames, proto: tcp, address: \"127.0.0.1:%u\", framing: newline, channel: lines }\n",
      port);
  instance_start(&instance, yaml, NULL);
  struct np_client *client = connect_here();
  OK(np_subscriber_open(client, "lines", NULL, &subscriber));
  pid_t worker = instance_worker(&instance);
  uint64_t before = instance_header(&instance)->instance_id;
  int fd = feed_connect("127.0.0.1", port, SOCK_STREAM);
  feed_line(fd, "in the old life");
  expect_text(subscriber, "in the old life");
  cr_assert(process_stop(instance.pid)); /* so that it cannot replace the keeper */
  kill(keeper_of(&instance), SIGKILL);
  instance_kill(&instance);
  feed_line(fd, "between both");
  expect_text(subscriber, "between both");
  say("broker_restart: a new life after %.1f ms\n", instance_start_again(&instance, NULL));
  instance_map_again(&instance);
  cr_assert_neq(instance_header(&instance)->instance_id, before);
  cr_assert_eq(instance_port(&instance, "frames"), port);
  cr_assert_neq(instance_worker(&instance), worker);
  cr_assert_eq(np_publisher_open(client, "lines", NULL, &publisher), NP_ERR_NO_BROKER);
  struct np_notice notice = {.size = sizeof notice};
  int told = 0;
  while (np_client_notice(client, &notice) == NP_OK) told += notice.kind == NP_NOTICE_INSTANCE_GONE;
  cr_assert_eq(told, 1);
  np_disconnect(client);
  close(fd);
  client = connect_here();
  OK(np_subscriber_open(client, "lines", NULL, &subscriber));
  fd = feed_connect("127.0.0.1", port, SOCK_STREAM);
  feed_line(fd, "in the new life");
  expect_text(subscriber, "in the new life");
  close(fd);
  np_disconnect(client);
  instance_stop(&instance);
}
