/* SPDX-License-Identifier: Apache-2.0 */
/*
 * numapoolctl audit: the books balance after drops and after the death of anybody, and do not where a counter is
 * wrong.
 *
 * ctest-timeout: 240
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/counters.h"
#include "support/feed.h"
#include "support/instance.h"
#include "support/message.h"
#include "support/peers.h"

TestSuite(audit, .timeout = 230);

static struct instance instance;
static const char settings[] =
    "memory: { per_node: 64MiB, per_client: 16MiB }\n"
    "limits: { clients: 64 }\n"
    "channels:\n"
    "  - { name: news, kind: broadcast, credits: 64, on_full: drop_newest }\n"
    "  - { name: work, kind: group, credits: 64, on_full: block }\n"
    "listeners:\n"
    "  - { name: udp, proto: udp, address: \"127.0.0.1:0\", framing: datagram, channel: net, on_full: drop_newest }\n"
    "  - { name: tcp, proto: tcp, address: \"127.0.0.1:0\", framing: length_prefix, channel: net, on_full: pause }\n"
    "  - { name: jobs, proto: tcp, address: \"127.0.0.1:0\", framing: length_prefix, channel: work, on_full: pause }\n";

/* ---- the verb ---------------------------------------------------------------------------------------- */

static json_t *audit(int expected) {
  json_error_t error;
  char text[1 << 16];
  fflush(NULL);
  FILE *pipe = popen(NUMAPOOLCTL_PATH " audit --json", "r");
  cr_assert_not_null(pipe);
  size_t n = fread(text, 1, sizeof text - 1, pipe);
  text[n] = '\0';
  int how = pclose(pipe);
  cr_assert(WIFEXITED(how));
  cr_assert_eq(WEXITSTATUS(how), expected, "exit status %d, not %d\n%s", WEXITSTATUS(how), expected, text);
  json_t *document = json_loads(text, JSON_REJECT_DUPLICATES, &error);
  cr_assert_not_null(document, "%s: %s", error.text, text);
  cr_assert_eq(json_is_true(json_object_get(document, "balanced")), expected == 0);
  return document;
}

static void balanced(void) {
  json_decref(audit(0));
}

static const json_t *row_of(const json_t *document, const char *list, const char *key, const char *name) {
  size_t i;
  const json_t *row;
  json_array_foreach(json_object_get(document, list), i, row) {
    if (strcmp(json_string_value(json_object_get(row, key)), name) == 0) return row;
  }
  cr_assert_fail("no %s %s", key, name);
  return NULL;
}

static uint64_t number(const json_t *row, const char *key) {
  const json_t *value = json_object_get(row, key);
  cr_assert(json_is_integer(value), "%s is no number", key);
  return (uint64_t)json_integer_value(value);
}

static uint64_t of_channel(const char *name, const char *key) {
  json_t *document = audit(0);
  uint64_t n = number(row_of(document, "channels", "channel", name), key);
  json_decref(document);
  return n;
}

static uint64_t of_listener(const char *name, const char *key) {
  json_t *document = audit(0);
  uint64_t n = number(row_of(document, "listeners", "listener", name), key);
  json_decref(document);
  return n;
}

/* ---- parts --------------------------------------------------------------------------------------------- */

static struct receiver *holder_for(const char *channel, uint32_t hold) {
  struct receiver *receiver = receiver_for(channel);
  receiver->hold = hold;
  receiver->no_order = 1;
  return receiver;
}

static struct sender *small_sender_for(const char *channel, uint64_t count, uint32_t wait_for) {
  struct sender *sender = sender_for(channel, count, wait_for);
  sender->fixed_size = 64;
  return sender;
}

static void wait_for_workers(void) {
  EVENTUALLY(20, instance_worker(&instance) != 0 &&
                     npi_load_relaxed_u32(&instance_listener(&instance, "udp")->state) == NPI_LISTENER_LISTENING);
}

static void send_datagrams(int n) {
  int fd = feed_connect("127.0.0.1", instance_port(&instance, "udp"), SOCK_DGRAM);
  cr_assert(fd >= 0);
  for (int i = 0; i < n; i++) {
    char text[32];
    int length = snprintf(text, sizeof text, "datagram %d", i);
    cr_assert_eq(send(fd, text, (size_t)length, 0), length);
    if (i % 50 == 0) usleep(1000);
  }
  close(fd);
}

/* ---- balanced ------------------------------------------------------------------------------------------ */

Test(audit, balances_under_load_and_after_it_drops_included) {
  enum { EVENTS = 200000 };
  instance_start(&instance, settings, NULL);
  balanced();
  struct receiver *quick = holder_for("news", 0), *slow = holder_for("news", 40);
  slow->credits = 48;
  struct sender *sender = small_sender_for("news", EVENTS, 2);
  pid_t pids[3] = {spawn(receiver_body, quick), spawn(receiver_body, slow), spawn(sender_body, sender)};
  int live = 0;
  while (!atomic_load(&sender->done)) {
    balanced();
    live++;
  }
  json_t *document = audit(0);
  const json_t *news = row_of(document, "channels", "channel", "news");
  cr_expect_eq(number(news, "published"), EVENTS);
  cr_expect_eq(number(news, "delivered") + number(news, "dropped"), 2 * EVENTS, "each to two, or dropped");
  say("audit: %d times under load; %llu delivered, %llu dropped\n", live, (unsigned long long)number(news, "delivered"),
      (unsigned long long)number(news, "dropped"));
  cr_expect(number(news, "dropped") > 0, "nothing was dropped: this proves less than it should");
  json_decref(document);
  atomic_store(&quick->stop, 1);
  atomic_store(&slow->stop, 1);
  cr_expect_eq(reap(pids[2], 30), 0);
  for (int i = 0; i < 2; i++) cr_expect_eq(reap(pids[i], 30), 0);
  cr_expect_eq(of_channel("news", "published"), EVENTS, "the past remembers");
  cr_expect_eq(of_channel("news", "delivered") + of_channel("news", "dropped"), 2 * EVENTS);
  instance_stop(&instance);
}

Test(audit, listeners_remember_across_workers) {
  enum { DATAGRAMS = 500 };
  instance_start(&instance, settings, NULL);
  uint64_t sum = 0;
  for (int life = 1; life <= 3; life++) {
    wait_for_workers();
    send_datagrams(DATAGRAMS);
    sum += DATAGRAMS;
    EVENTUALLY(10, of_listener("udp", "published") == sum); /* the last of its counters */
    cr_expect_eq(of_listener("udp", "received"), sum);
    cr_expect_eq(of_channel("net", "published"), sum);
    pid_t worker = instance_worker(&instance);
    kill(worker, SIGKILL);
    EVENTUALLY(10, instance_worker(&instance) != worker && instance_worker(&instance) != 0);
  }
  cr_expect_eq(of_listener("udp", "lost_with_worker"), 0, "it was at rest each time");
  instance_stop(&instance);
}

/* ---- deaths -------------------------------------------------------------------------------------------- */

enum { SENDERS = 3, RECEIVERS = 6, FEEDS = 3, PARTS = SENDERS + RECEIVERS + FEEDS };

struct part {
  int (*body)(void *argument);
  void *argument;
  pid_t pid;
};

/* Datagrams and frames without end; the connection breaks when the worker dies, and is made again. */
struct endless {
  uint16_t port;
  int is_datagram;
};

static int endless_body(void *argument) {
  const struct endless *endless = argument;
  static uint8_t frames[64 * 128];
  signal(SIGPIPE, SIG_IGN);
  for (uint64_t n = 0;;) {
    int fd = feed_connect("127.0.0.1", endless->port, endless->is_datagram ? SOCK_DGRAM : SOCK_STREAM);
    if (fd < 0) {
      usleep(5000);
      continue;
    }
    for (;;) {
      size_t bytes = 0;
      for (int i = 0; i < (endless->is_datagram ? 1 : 64); i++) bytes += feed_frame(frames + bytes, n++, 64);
      if (endless->is_datagram ? send(fd, frames, bytes, 0) < 0 : feed_write(fd, frames, bytes) != 0) break;
      usleep(endless->is_datagram ? 200 : 2000);
    }
    close(fd);
  }
  return 0;
}

static unsigned seed = 20260101;
static unsigned dice(unsigned n) {
  return (unsigned)rand_r(&seed) % n;
}

static void restart(struct part *part) {
  part->pid = spawn(part->body, part->argument);
}

/* The dead are cleared away, and who took their place is there; who was not answered for so long that it gave up tries
 * again. */
static int all_are_in(struct part *part, int *n_given_up) {
  for (int i = 0; i < SENDERS + RECEIVERS; i++) {
    if (waitpid(part[i].pid, NULL, WNOHANG) != part[i].pid) continue;
    ++*n_given_up;
    restart(&part[i]);
  }
  return instance_clients(&instance, 0) == SENDERS + RECEIVERS;
}

Test(audit, balances_after_the_death_of_anybody) {
  enum { KILLS = 120, WORKER_EVERY = 8, LOOK_EVERY = 20 };
  instance_start(&instance, settings, NULL);
  wait_for_workers();
  struct part part[PARTS];
  static const char *const to[] = {"news", "work", "work"};
  static const char *const from[] = {"news", "news", "work", "work", "work", "net"};
  static const char *const in[] = {"udp", "tcp", "jobs"};
  for (int i = 0; i < SENDERS; i++) part[i] = (struct part){sender_body, small_sender_for(to[i], 0, 0), 0};
  for (int i = 0; i < RECEIVERS; i++) {
    part[SENDERS + i] = (struct part){receiver_body, holder_for(from[i], (uint32_t)i * 3), 0};
  }
  for (int i = 0; i < FEEDS; i++) {
    struct endless *endless = shared_memory(sizeof *endless);
    endless->port = instance_port(&instance, in[i]);
    endless->is_datagram = i == 0;
    part[SENDERS + RECEIVERS + i] = (struct part){endless_body, endless, 0};
  }
  for (int i = 0; i < PARTS; i++) restart(&part[i]);
  int kills[4] = {0}, looks = 0, n_given_up = 0;
  usleep(300000);
  for (int i = 1; i <= KILLS; i++) {
    usleep(dice(30000));
    if (i % WORKER_EVERY == 0) {
      pid_t worker = instance_worker(&instance);
      if (worker != 0) {
        kill(worker, SIGKILL);
        kills[3]++;
      }
    } else {
      int at = (int)dice(SENDERS + RECEIVERS);
      kill(part[at].pid, SIGKILL);
      waitpid(part[at].pid, NULL, 0);
      kills[at < SENDERS ? 0 : strcmp(from[at - SENDERS], "work") == 0 ? 2 : 1]++;
      restart(&part[at]);
    }
    if (i % LOOK_EVERY != 0) continue;
    EVENTUALLY(60, all_are_in(part, &n_given_up));
    usleep(100000);
    balanced(); /* under load, what comes and goes is over */
    looks++;
  }
  for (int i = PARTS - 1; i >= 0; i--) { /* the feeds first; nobody ends in good order */
    kill(part[i].pid, SIGKILL);
    waitpid(part[i].pid, NULL, 0);
  }
  EVENTUALLY(20, instance_connections(&instance, 0) == 0 && instance_clients(&instance, 0) == 0);
  wait_for_workers();
  json_t *document = audit(0);
  const json_t *work = row_of(document, "channels", "channel", "work");
  uint64_t lost = number(work, "lost_with_member"), again = number(work, "redelivered");
  const json_t *udp = row_of(document, "listeners", "listener", "udp");
  const json_t *jobs = row_of(document, "listeners", "listener", "jobs");
  say("audit: %d clients were not answered in time and tried again\n", n_given_up);
  say("audit: %d publishers, %d subscribers, %d members, %d workers killed, %d looks under load; work: %llu published, "
      "%llu delivered, %llu redelivered, %llu lost; udp: %llu received, %llu lost; jobs: %llu received, %llu lost\n",
      kills[0], kills[1], kills[2], kills[3], looks, (unsigned long long)number(work, "published"),
      (unsigned long long)number(work, "delivered"), (unsigned long long)again, (unsigned long long)lost,
      (unsigned long long)number(udp, "received"), (unsigned long long)number(udp, "lost_with_worker"),
      (unsigned long long)number(jobs, "received"), (unsigned long long)number(jobs, "lost_with_worker"));
  cr_expect(kills[0] > 0 && kills[1] > 0 && kills[2] > 0 && kills[3] > 0);
  cr_expect(kills[0] + kills[1] + kills[2] + kills[3] >= 100);
  cr_expect(again > 0, "no member died with events: this proves less than it should");
  cr_expect_eq(number(work, "in_flight"), 0);
  json_decref(document);
  instance_stop(&instance);
}

/* A group whose publisher is dead when its member dies: published less given back is lost, to the last event. */
Test(audit, counts_what_nobody_is_left_to_offer_again) {
  enum { EVENTS = 50 };
  struct np_client *client = NULL;
  struct np_publisher *publisher = NULL;
  instance_start(&instance, settings, NULL);
  struct receiver *member = holder_for("work", 20); /* keeps 20 of them */
  pid_t pid = spawn(receiver_body, member);
  EVENTUALLY(10, atomic_load(&member->ready));
  for (int dies = 0; dies < 2; dies++) {
    pid_t child = fork();
    if (child == 0) {
      int status = np_connect(&client, NULL);
      if (status == NP_OK) status = np_publisher_open(client, "work", NULL, &publisher);
      for (uint64_t i = 0; i < EVENTS && status == NP_OK; i++) status = publish_message(publisher, i, 64);
      if (dies) raise(SIGKILL);
      np_publisher_close(publisher);
      np_disconnect(client);
      _exit(status == NP_OK ? 0 : 1);
    }
    cr_expect_eq(reap(child, 20), dies ? 1000 + SIGKILL : 0);
    EVENTUALLY(10, atomic_load(&member->received) == EVENTS);
    cr_expect_eq(of_channel("work", "lost_with_member"), dies ? 20 : 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    EVENTUALLY(10, instance_connections(&instance, 0) == 0);
    cr_expect_eq(of_channel("work", "lost_with_member"), dies ? 40 : 20);
    cr_expect_eq(of_channel("work", "published"), (uint64_t)(dies + 1) * EVENTS);
    atomic_store(&member->ready, 0);
    atomic_store(&member->received, 0);
    pid = spawn(receiver_body, member);
    EVENTUALLY(10, atomic_load(&member->ready));
  }
  atomic_store(&member->stop, 1);
  cr_expect_eq(reap(pid, 20), 0);
  instance_stop(&instance);
}

/* ---- not balanced -------------------------------------------------------------------------------------- */

/* A client's page, or the registry, as nobody should be able to write it but its owner. */
static int open_page(uint32_t client) {
  char folder_path[64], path[400], label[256], wanted[128];
  snprintf(folder_path, sizeof folder_path, "/proc/%d/fd", (int)instance.pid);
  snprintf(wanted, sizeof wanted, "/memfd:numapool.%s.%u.page.%u ", instance.name, (unsigned)geteuid(), client);
  DIR *folder = opendir(folder_path);
  cr_assert_not_null(folder);
  int fd = -1;
  for (const struct dirent *entry = readdir(folder); entry != NULL && fd < 0; entry = readdir(folder)) {
    snprintf(path, sizeof path, "%s/%s", folder_path, entry->d_name);
    ssize_t n = readlink(path, label, sizeof label - 1);
    if (n <= 0) continue;
    label[n] = '\0';
    if (strncmp(label, wanted, strlen(wanted)) == 0) fd = open(path, O_RDWR | O_CLOEXEC);
  }
  closedir(folder);
  cr_assert(fd >= 0, "no page of client %u", client);
  return fd;
}

/* Adds to one counter, looks, and puts it right again. */
static void falsify(int fd, uint64_t offset, uint64_t by, const char *words) {
  uint64_t value;
  cr_assert_eq(pread(fd, &value, sizeof value, (off_t)offset), (ssize_t)sizeof value);
  uint64_t wrong = value + by;
  cr_assert_eq(pwrite(fd, &wrong, sizeof wrong, (off_t)offset), (ssize_t)sizeof wrong);
  say("audit: %s is wrong by %lld, at %llu\n", words, (long long)by, (unsigned long long)offset);
  json_t *document = audit(1);
  size_t i;
  const json_t *failure;
  int found = 0;
  json_array_foreach(json_object_get(document, "unbalanced"), i, failure) {
    const char *equation = json_string_value(json_object_get(failure, "equation"));
    uint64_t left = number(failure, "left_side"), right = number(failure, "right_side");
    found |= strstr(equation, words) != NULL && left != right;
  }
  cr_expect(found, "no equation with \"%s\" fails", words);
  json_decref(document);
  cr_assert_eq(pwrite(fd, &value, sizeof value, (off_t)offset), (ssize_t)sizeof value);
  balanced();
}

Test(audit, names_the_equation_that_a_wrong_counter_breaks) {
  enum { EVENTS = 100 };
  instance_start(&instance, settings, NULL);
  wait_for_workers();
  send_datagrams(10);
  EVENTUALLY(10, of_listener("udp", "published") == 10);
  struct receiver *reader = holder_for("news", 5), *member = holder_for("work", 5);
  struct sender *sender = small_sender_for("news", EVENTS, 1), *giver = small_sender_for("work", EVENTS, 1);
  pid_t pids[4] = {spawn(receiver_body, reader), spawn(receiver_body, member), spawn(sender_body, sender),
                   spawn(sender_body, giver)};
  EVENTUALLY(20, atomic_load(&sender->done) && atomic_load(&giver->done) && atomic_load(&member->received) == EVENTS);
  EVENTUALLY(20, of_channel("news", "delivered") == atomic_load(&reader->received));
  const struct npi_registry_header *header = instance_header(&instance);
  const struct npi_publisher_record *publishers = (const void *)((const uint8_t *)header + header->publishers.offset);
  const struct npi_subscriber_record *subscribers =
      (const void *)((const uint8_t *)header + header->subscribers.offset);
  const struct npi_connection_record *connections =
      (const void *)((const uint8_t *)header + header->connections.offset);
  int n = 0;
  for (uint32_t i = 0; i < header->publishers.count; i++) {
    const struct npi_client_record *client =
        (const void *)((const uint8_t *)header + header->clients.offset +
                       (uint64_t)publishers[i].client * sizeof(struct npi_client_record));
    if (npi_load_relaxed_u32(&publishers[i].state) != NPI_RECORD_ACTIVE) continue;
    int fd = open_page(publishers[i].client);
    uint64_t row = header->page_endpoints_offset + publishers[i].counters * sizeof(struct npi_endpoint_counters);
    if (client->kind == NPI_CLIENT_WORKER) {
      /* It publishes dead letters too, which no listener feeds. */
      if (publishers[i].channel != instance_listener(&instance, "udp")->channel &&
          publishers[i].channel != instance_listener(&instance, "jobs")->channel) {
        close(fd);
        continue;
      }
      falsify(fd, row + 8 * NPI_PUBLISHER_PUBLISHED, 1, "by publishers of workers");
    } else {
      falsify(fd, row + 8 * NPI_PUBLISHER_DELIVERED, 1, "delivered");
      falsify(fd, row + 8 * NPI_PUBLISHER_REDELIVERED, 3, "redelivered");
      falsify(fd, row + 8 * NPI_PUBLISHER_DROPPED_NO_CREDIT, 1, "dropped_no_credit");
    }
    close(fd);
    n++;
  }
  for (uint32_t i = 0; i < header->subscribers.count; i++) {
    if (npi_load_relaxed_u32(&subscribers[i].state) != NPI_RECORD_ACTIVE) continue;
    int fd = open_page(subscribers[i].client);
    uint64_t row = header->page_endpoints_offset + subscribers[i].counters * sizeof(struct npi_endpoint_counters);
    falsify(fd, row + 8 * NPI_SUBSCRIBER_TAKEN, 1, "taken");
    falsify(fd, row + 8 * NPI_SUBSCRIBER_RELEASED, UINT64_MAX, "released"); /* one less */
    close(fd);
    n++;
  }
  for (uint32_t i = 0; i < header->connections.count; i++) {
    if (npi_load_relaxed_u32(&connections[i].state) != NPI_CONNECTION_ACTIVE) continue;
    int fd = open_page(connections[i].publisher_client);
    falsify(fd, connections[i].submissions_offset + 8 * NPI_SUBMISSION_PUBLISHED, 1, "delivered");
    close(fd);
    n++;
  }
  for (uint32_t i = 0; i < header->clients.count; i++) {
    const struct npi_client_record *client = (const void *)((const uint8_t *)header + header->clients.offset +
                                                            (uint64_t)i * sizeof(struct npi_client_record));
    if (npi_load_relaxed_u32(&client->state) != NPI_RECORD_ACTIVE || client->kind != NPI_CLIENT_WORKER) continue;
    int fd = open_page(i);
    falsify(fd, header->page_listeners_offset + 8 * NPI_LISTENER_RECEIVED, 1, "received");
    falsify(fd, header->page_listeners_offset + 8 * NPI_LISTENER_DROPPED_POOL, 1, "dropped_pool");
    close(fd);
    n++;
  }
  cr_expect(n >= 7, "%d things were falsified", n);
  atomic_store(&reader->stop, 1);
  atomic_store(&member->stop, 1);
  for (int i = 0; i < 4; i++) cr_expect_eq(reap(pids[i], 20), 0);
  EVENTUALLY(20, instance_connections(&instance, 0) == 0 && instance_clients(&instance, 0) == 0);
  /* What is over: in the registry. */
  char path[128];
  snprintf(path, sizeof path, "/dev/shm/numapool.%s.%u.registry", instance.name, (unsigned)geteuid());
  int fd = open(path, O_RDWR | O_CLOEXEC);
  cr_assert(fd >= 0);
  uint64_t channel = header->channels.offset;
  falsify(fd, channel + offsetof(struct npi_channel_record, past_publishers) + 8 * NPI_PUBLISHER_DELIVERED, 1,
          "by former publishers");
  falsify(fd, header->listeners.offset + offsetof(struct npi_listener_record, past) + 8 * NPI_LISTENER_PUBLISHED, 1,
          "published");
  close(fd);
  instance_stop(&instance);
}

/* ---- post mortem --------------------------------------------------------------------------------------- */

Test(audit, works_when_the_broker_is_dead) {
  instance_start(&instance, settings, NULL);
  struct receiver *reader = holder_for("news", 3);
  struct sender *sender = small_sender_for("news", 1000, 1);
  pid_t pids[2] = {spawn(receiver_body, reader), spawn(sender_body, sender)};
  EVENTUALLY(20, atomic_load(&sender->done));
  kill(instance.pid, SIGKILL);
  waitpid(instance.pid, NULL, 0);
  balanced();
  cr_expect_eq(of_channel("news", "published"), 1000);
  kill(pids[0], SIGKILL); /* nobody clears up behind it */
  waitpid(pids[0], NULL, 0);
  balanced();
  cr_expect_eq(of_channel("news", "published"), 1000);
  kill(pids[1], SIGKILL);
  waitpid(pids[1], NULL, 0);
  json_decref(audit(0));
  char command[128];
  snprintf(command, sizeof command, "rm -f /dev/shm/numapool.%s.*", instance.name);
  cr_expect_eq(system(command), 0);
  pid_t worker = instance_worker(&instance);
  if (worker != 0) kill(worker, SIGKILL);
  instance_forget(&instance);
}
