/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nothing left: of the budget, of credits, of connections, of locked memory, of /dev/shm, of what the control group
 * allows. Proves each time: who asks is told so in bounded time and in words, nobody is killed for a page, and when there is
 * something again, it goes on.
 *
 * ctest-timeout: 300
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "numapool/numapool.h"
#include "os/os_clock.h"
#include "support/instance.h"
#include "support/peers.h"
#include "tests/support/child.h"
#include "tests/support/ok.h"

TestSuite(exhaustion, .timeout = 280);

enum { HELD_MAX = 8192, PAYLOAD = 60000, BOUND_MS = 2000 };

static struct instance instance;

/* Loans until there is nothing; what was got, and how long the longest call took. */
struct hoard {
  struct np_event held[HELD_MAX];
  uint32_t n;
  uint64_t longest_ns;
  int status;
};
static struct hoard hoard;

static void fill_up(struct np_publisher *publisher) {
  memset(&hoard, 0, sizeof hoard);
  do {
    uint64_t begin = npi_clock_monotonic();
    hoard.status = np_loan(publisher, PAYLOAD, &hoard.held[hoard.n]);
    uint64_t took = npi_clock_monotonic() - begin;
    if (took > hoard.longest_ns) hoard.longest_ns = took;
    if (hoard.status == NP_OK) memset(hoard.held[hoard.n].data, 1, PAYLOAD); /* every page of it is really there */
  } while (hoard.status == NP_OK && ++hoard.n < HELD_MAX);
}
static void let_go(struct np_publisher *publisher) {
  for (uint32_t i = 0; i < hoard.n; i++) np_discard(publisher, &hoard.held[i]);
  hoard.n = 0;
}
/* A judgement of time: the best of three. */
static void fill_up_soon(struct np_publisher *publisher, const char *what) {
  for (int round = 0; round < 3; round++) {
    if (round > 0) let_go(publisher);
    fill_up(publisher);
    say("%s: %u loans of %d bytes, then %d \"%s\"; the longest call took %.1f ms\n", what, hoard.n, PAYLOAD,
        hoard.status, np_error_detail(), (double)hoard.longest_ns / 1e6);
    if (hoard.longest_ns < BOUND_MS * UINT64_C(1000000)) return;
  }
}
/* A loan succeeds again, within `seconds`. */
static int goes_on(struct np_publisher *publisher, int seconds) {
  struct np_event event;
  int status = NP_EMPTY;
  for (int i = 0; i < seconds * 100 && (status = np_loan(publisher, PAYLOAD, &event)) == NP_EMPTY; i++) {
    np_wait_credit(publisher, 10);
  }
  if (status == NP_OK) np_discard(publisher, &event);
  return status == NP_OK;
}

Test(exhaustion, a_budget_that_is_spent_and_credit_that_is_used_up) {
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
  struct np_event taken[4];
  instance_start(&instance,
                 "memory: { per_node: 32MiB, per_client: 16MiB, ready: 2MiB }\n"
                 "channels: [ { name: few, kind: broadcast, credits: 4, on_full: block } ]\n",
                 NULL);
  OK(np_connect(&client, NULL));
  OK(np_publisher_open(client, "few", NULL, &publisher));
  OK(np_subscriber_open(client, "few", NULL, &subscriber));
  fill_up_soon(publisher, "budget spent");
  cr_assert_eq(hoard.status, NP_EMPTY);
  cr_assert_gt(hoard.n, 200, "nearly all of the 16 MiB");
  cr_assert_lt(hoard.longest_ns, BOUND_MS * UINT64_C(1000000));
  for (int i = 0; i < 4; i++) OK(np_publish(publisher, &hoard.held[--hoard.n]));
  uint64_t begin = npi_clock_monotonic();
  for (int i = 0; i < 1000; i++) cr_assert_eq(np_publish(publisher, &hoard.held[hoard.n - 1]), NP_FULL);
  say("credit used up: 1000 times refused in %.2f ms\n", (double)(npi_clock_monotonic() - begin) / 1e6);
  for (int i = 0; i < 4; i++) OK(np_take(subscriber, &taken[i]));
  for (int i = 0; i < 4; i++) OK(np_release(subscriber, &taken[i]));
  OK(np_publish(publisher, &hoard.held[--hoard.n]));
  OK(np_take(subscriber, &taken[0]));
  OK(np_release(subscriber, &taken[0]));
  let_go(publisher);
  cr_assert(goes_on(publisher, 5));
  np_disconnect(client);
  instance_stop(&instance);
}

/* ---- ten thousand senders ---- */

enum { SENDERS = 10000 };

static int connect_to(uint16_t port) {
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
    close(fd);
    return -1;
  }
  return fd;
}

Test(exhaustion, ten_thousand_connections_and_one_more) {
  static int fds[SENDERS];
  struct rlimit limit;
  char byte;
  cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
  if (limit.rlim_max < SENDERS + 200) cr_skip_test("no more than %lu descriptors here", (unsigned long)limit.rlim_max);
  limit.rlim_cur = limit.rlim_max;
  cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
  instance_start(&instance,
                 "memory: { per_node: 64MiB, ready: 4MiB }\n"
                 "channels: [ { name: lines, kind: broadcast, credits: 1024 } ]\n"
                 "listeners:\n  - { name: in, proto: tcp, address: \"127.0.0.1:0\", framing: newline, channel: lines, "
                 "max_connections: 10000, max_frame: 1KiB }\n",
                 NULL);
  uint16_t port = instance_port(&instance, "in");
  pid_t worker = instance_worker(&instance);
  int before = instance_descriptors(worker);
  uint64_t begin = npi_clock_monotonic();
  for (int i = 0; i < SENDERS; i++) {
    fds[i] = connect_to(port);
    cr_assert_geq(fds[i], 0, "connection %d", i);
    cr_assert_eq(write(fds[i], "hello\n", 6), 6);
  }
  EVENTUALLY(60, instance_listener_counter(&instance, "in", NPI_LISTENER_RECEIVED) == SENDERS);
  cr_assert_geq(instance_descriptors(worker), before + SENDERS);
  say("%d connections and a line of each in %.1f s\n", SENDERS, (double)(npi_clock_monotonic() - begin) / 1e9);
  int refused = connect_to(port); /* the kernel takes it, the worker does not keep it */
  if (refused >= 0) {
    EVENTUALLY(20, recv(refused, &byte, 1, MSG_DONTWAIT) >= 0 || errno == ECONNRESET);
    close(refused);
  }
  cr_assert_eq(write(fds[SENDERS - 1], "again\n", 6), 6);
  EVENTUALLY(20, instance_listener_counter(&instance, "in", NPI_LISTENER_RECEIVED) == SENDERS + 1);
  for (int i = 0; i < SENDERS; i++) close(fds[i]);
  EVENTUALLY(60, instance_descriptors(worker) <= before + 1);
  int again = connect_to(port);
  cr_assert_eq(write(again, "after\n", 6), 6);
  EVENTUALLY(20, instance_listener_counter(&instance, "in", NPI_LISTENER_RECEIVED) == SENDERS + 2);
  close(again);
  instance_stop(&instance);
}

/* ---- limits of the process and of the machine ---- */

static int without_locked_memory(void) {
  struct rlimit none = {0, 0};
  if (prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) != 0 && geteuid() == 0) return 1;
  return setrlimit(RLIMIT_MEMLOCK, &none) != 0;
}

Test(exhaustion, no_locked_memory_at_all) {
  instance_start(
      &instance,
      "memory: { per_node: 32MiB, ready: 2MiB }\n"
      "channels: [ { name: lines, kind: broadcast, credits: 64 } ]\n"
      "listeners:\n  - { name: in, proto: tcp, address: \"127.0.0.1:0\", framing: newline, channel: lines }\n",
      without_locked_memory);
  int fd = connect_to(instance_port(&instance, "in"));
  for (int i = 0; i < 1000; i++) cr_assert_eq(write(fd, "hello\n", 6), 6);
  EVENTUALLY(20, instance_listener_counter(&instance, "in", NPI_LISTENER_RECEIVED) == 1000);
  close(fd);
  instance_stop(&instance);
}

/* The result, as a child's: `left` makes memory short before, `more` gives some again. */
static int run_short(const char *what, int (*before_exec)(void), int (*shorten)(void), int (*more)(void)) {
  struct np_client *client;
  struct np_publisher *publisher;
  instance_start(&instance, "memory: { per_node: 256MiB, per_client: 200MiB, ready: 2MiB }\n", before_exec);
  CHILD_EXPECT(shorten() == 0);
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_publisher_open(client, "short", NULL, &publisher) == NP_OK);
  fill_up_soon(publisher, what);
  CHILD_EXPECT(hoard.status == NP_EMPTY);
  CHILD_EXPECT(hoard.n > 10 && hoard.n < 1200); /* less than 200 MiB */
  CHILD_EXPECT(hoard.longest_ns < BOUND_MS * UINT64_C(1000000));
  uint32_t before = hoard.n;
  CHILD_EXPECT(kill(instance.pid, 0) == 0 && waitpid(instance.pid, NULL, WNOHANG) == 0);
  CHILD_EXPECT(more() == 0);
  struct np_event event;
  CHILD_EXPECT(goes_on(publisher, 20)); /* while all of the hoard is still on loan: this is new memory */
  CHILD_EXPECT(np_loan(publisher, PAYLOAD, &event) == NP_OK);
  np_discard(publisher, &event);
  CHILD_EXPECT(hoard.n == before);
  let_go(publisher);
  np_disconnect(client);
  instance_stop(&instance);
  return 0;
}

static int fill_shm(void) {
  static char block[1 << 20];
  int fd = open("/dev/shm/filler", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  for (int i = 0; i < 64 && write(fd, block, sizeof block) > 0; i++) {
  }
  /* Six MiB are left. */
  return fd < 0 || ftruncate(fd, lseek(fd, 0, SEEK_CUR) - (6 << 20)) != 0 || close(fd) != 0;
}
static int empty_shm(void) {
  return unlink("/dev/shm/filler");
}

static int with_little_shm(const void *argument) {
  (void)argument;
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
      mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=64m") != 0) {
    return CHILD_SKIP;
  }
  return run_short("/dev/shm full", NULL, fill_shm, empty_shm);
}

Test(exhaustion, a_full_dev_shm) {
  int result = in_child(with_little_shm, NULL);
  if (result == CHILD_SKIP) cr_skip_test("no mount namespace here");
  cr_assert_eq(result, 0);
}

/* ---- a control group ---- */

static char group[128];
static const char *limit_name;

static int write_text(const char *name, const char *text) {
  char path[256];
  snprintf(path, sizeof path, "%s/%s", group, name);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  int failed = fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text);
  if (fd >= 0) close(fd);
  return failed;
}

static int enter_group(void) {
  return write_text("cgroup.procs", "0");
}
static int shorten_group(void) {
  return write_text(limit_name, "67108864"); /* 64 MiB */
}
static int widen_group(void) {
  return write_text(limit_name, "536870912");
}
static int nothing(void) {
  return 0;
}

static int make_group(void) {
  int is_v2 = access("/sys/fs/cgroup/cgroup.controllers", R_OK) == 0;
  snprintf(group, sizeof group, "/sys/fs/cgroup%s/numapool-test-%d", is_v2 ? "" : "/memory", (int)getpid());
  limit_name = is_v2 ? "memory.max" : "memory.limit_in_bytes";
  if (is_v2) {
    char path[] = "/sys/fs/cgroup/cgroup.subtree_control";
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
      if (write(fd, "+memory", 7) < 0) fprintf(stderr, "the memory controller stays off\n");
      close(fd);
    }
  }
  if (mkdir(group, 0755) != 0) return 1;
  return shorten_group();
}

static int in_group(const void *argument) {
  (void)argument;
  return run_short("control group", enter_group, nothing, widen_group);
}

Test(exhaustion, a_control_group_s_limit) {
  if (make_group() != 0) {
    rmdir(group);
    cr_skip_test("no control group with a memory limit can be made here");
  }
  int result = in_child(in_group, NULL);
  for (int i = 0; i < 100 && rmdir(group) != 0; i++) usleep(50000);
  cr_assert_eq(result, 0);
}
