/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What processes do to themselves: fork, exec, exit without closing, threads that end or are cancelled, the library
 * unloaded. Each leaves nothing behind, takes nothing from who lives on, and a handle in the wrong process says so.
 *
 * ctest-labels: alone
 */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/os_clock.h"
#include "tests/support/child.h"
#include "tests/support/instance.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"

/* AddressSanitizer takes the stack of a cancelled thread for one that is in use; a sanitizer's library cannot be loaded
 * later than the program; and what is left behind on purpose is no leak. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
enum { IS_SANITIZED = 1 };
#else
#define __lsan_disable() ((void)0)
enum { IS_SANITIZED = 0 };
#endif

TestSuite(process_life, .timeout = 120);

static const char settings[] =
    "memory: { per_node: 64MiB, ready: 4MiB }\n"
    "channels: [ { name: news, kind: broadcast, credits: 64, on_full: drop_newest } ]\n";

struct handles {
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
};

static int open_all(struct handles *h) {
  CHILD_EXPECT(np_connect(&h->client, NULL) == NP_OK);
  CHILD_EXPECT(np_publisher_open(h->client, "news", NULL, &h->publisher) == NP_OK);
  CHILD_EXPECT(np_subscriber_open(h->client, "news", NULL, &h->subscriber) == NP_OK);
  return 0;
}

/* Publishes one event, and takes one: its own. */
static int exchange(struct handles *h) {
  struct np_event event;
  CHILD_EXPECT(np_loan(h->publisher, 8, &event) == NP_OK);
  memcpy(event.data, "12345678", 8);
  CHILD_EXPECT(np_publish(h->publisher, &event) == NP_OK);
  CHILD_EXPECT(np_take(h->subscriber, &event) == NP_OK);
  CHILD_EXPECT(event.size == 8);
  CHILD_EXPECT(np_release(h->subscriber, &event) == NP_OK);
  return 0;
}

/* Takes all that others have published. Returns 1, for conditions. */
static int let_go(struct handles *h) {
  struct np_event event;
  while (np_take(h->subscriber, &event) == NP_OK) np_release(h->subscriber, &event);
  return 1;
}

/* ---- fork ---- */

/* Every function that takes a handle, in the wrong process. */
static int touch_everything(struct handles *h, struct np_event *held) {
  struct np_event event;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
  struct np_client_stats client_stats = {.size = sizeof client_stats};
  struct np_publisher_stats publisher_stats = {.size = sizeof publisher_stats};
  struct np_subscriber_stats subscriber_stats = {.size = sizeof subscriber_stats};
  struct np_notice notice = {.size = sizeof notice};
  struct np_source source = {.size = sizeof source};
  CHILD_EXPECT(np_client_node(h->client) == NP_ERR_FORKED);
  CHILD_EXPECT(np_client_stats(h->client, &client_stats) == NP_ERR_FORKED);
  CHILD_EXPECT(np_client_notice(h->client, &notice) == NP_ERR_FORKED);
  CHILD_EXPECT(np_publisher_open(h->client, "other", NULL, &publisher) == NP_ERR_FORKED);
  CHILD_EXPECT(np_subscriber_open(h->client, "other", NULL, &subscriber) == NP_ERR_FORKED);
  CHILD_EXPECT(np_loan(h->publisher, 8, &event) == NP_ERR_FORKED);
  CHILD_EXPECT(np_publish(h->publisher, held) == NP_ERR_FORKED);
  CHILD_EXPECT(np_publish_many(h->publisher, held, 1) == NP_ERR_FORKED);
  CHILD_EXPECT(np_discard(h->publisher, held) == NP_ERR_FORKED);
  CHILD_EXPECT(np_set_topic(h->publisher, held, "t", 1) == NP_ERR_FORKED);
  CHILD_EXPECT(np_wait_credit(h->publisher, 0) == NP_ERR_FORKED);
  CHILD_EXPECT(np_publisher_fd(h->publisher) == NP_ERR_FORKED);
  CHILD_EXPECT(np_publisher_stats(h->publisher, &publisher_stats) == NP_ERR_FORKED);
  CHILD_EXPECT(np_publisher_close(h->publisher) == NULL);
  CHILD_EXPECT(np_take(h->subscriber, &event) == NP_ERR_FORKED);
  CHILD_EXPECT(np_take_many(h->subscriber, &event, 1) == NP_ERR_FORKED);
  CHILD_EXPECT(np_release(h->subscriber, held) == NP_ERR_FORKED);
  CHILD_EXPECT(np_release_many(h->subscriber, held, 1) == NP_ERR_FORKED);
  CHILD_EXPECT(np_wait(h->subscriber, 0) == NP_ERR_FORKED);
  CHILD_EXPECT(np_fd(h->subscriber) == NP_ERR_FORKED);
  CHILD_EXPECT(np_event_source(h->subscriber, held, &source) == NP_ERR_FORKED);
  CHILD_EXPECT(np_subscriber_stats(h->subscriber, &subscriber_stats) == NP_ERR_FORKED);
  CHILD_EXPECT(np_subscriber_close(h->subscriber) == NP_ERR_FORKED);
  return 0;
}

struct family {
  _Atomic int parent_ready, child_ready, child_result, child_pid, stop;
};

/* A client with a child that keeps all that it inherited. */
static int parent_body(void *argument) {
  struct family *family = argument;
  struct handles h = {0};
  struct np_event event;
  if (open_all(&h) != 0) return 1;
  CHILD_EXPECT(np_fd(h.subscriber) >= 0 && np_publisher_fd(h.publisher) >= 0);
  for (int i = 0; i < 100; i++) {
    if (exchange(&h) != 0) return 1;
  }
  CHILD_EXPECT(np_loan(h.publisher, 8, &event) == NP_OK);
  pid_t pid = fork();
  if (pid == 0) {
    family->child_result = touch_everything(&h, &event) + 1;
    family->child_ready = 1;
    for (int i = 0; i < 30000 && !family->stop; i++) usleep(1000);
    np_disconnect(h.client);
    _exit(0);
  }
  family->child_pid = pid;
  while (!family->child_ready) usleep(1000);
  /* The child's touching has harmed nothing. */
  CHILD_EXPECT(np_discard(h.publisher, &event) == NP_OK);
  for (int i = 0; i < 100; i++) {
    if (exchange(&h) != 0) return 1;
  }
  family->parent_ready = 1;
  for (;;) pause();
}

Test(process_life, a_parent_s_death_is_seen_at_once_though_its_child_holds_its_socket) {
  /* Proves: a child is told that the handle is not its own; the parent goes on; and when the parent dies the pidfd says
   * so, whatever the child has inherited. A judgement of time: best of three. */
  struct instance instance;
  struct handles witness = {0};
  double best = 1e9;
  instance_start(&instance, settings, NULL);
  cr_assert_eq(open_all(&witness), 0);
  for (int round = 0; round < 3; round++) {
    struct family *family = shared_memory(sizeof *family);
    pid_t pid = spawn(parent_body, family);
    EVENTUALLY(20, family->parent_ready);
    cr_assert_eq(family->child_result, 1, "a handle worked in the child");
    cr_assert_eq(instance_clients(&instance, pid), 1);
    uint64_t begin = npi_clock_monotonic();
    kill(pid, SIGKILL);
    struct np_notice notice = {.size = sizeof notice};
    do {
      notice.kind = 0;
    } while (np_client_notice(witness.client, &notice) == NP_EMPTY && npi_clock_monotonic() - begin < 5000000000);
    double ms = (double)(npi_clock_monotonic() - begin) / 1e6;
    cr_assert_eq(notice.kind, NP_NOTICE_PEER_DIED);
    cr_assert_eq(notice.pid, (uint32_t)pid);
    say("process_life: a death was known to a peer after %.2f ms, with a child that holds the socket\n", ms);
    if (ms < best) best = ms;
    EVENTUALLY(20, let_go(&witness) && instance_clients(&instance, pid) == 0);
    cr_assert_eq(kill(family->child_pid, 0), 0, "the child lives");
    while (np_client_notice(witness.client, &notice) == NP_OK) {
    }
    family->stop = 1;
    reap(pid, 5);
  }
  cr_assert_leq(best, 20.0);
  np_disconnect(witness.client);
  instance_stop(&instance);
}

/* ---- exec ---- */

static int exec_body(void *argument) {
  _Atomic int *ready = argument;
  struct handles h = {0};
  if (open_all(&h) != 0 || exchange(&h) != 0) return 1;
  *ready = 1;
  while (*ready != 2) usleep(1000);
  execl("/bin/sleep", "sleep", "60", (char *)NULL);
  return 2;
}

Test(process_life, a_client_that_runs_another_program_is_gone_though_its_process_lives) {
  struct instance instance;
  double best = 1e9;
  instance_start(&instance, settings, NULL);
  for (int round = 0; round < 3; round++) {
    _Atomic int *ready = shared_memory(sizeof *ready);
    pid_t pid = spawn(exec_body, (void *)ready);
    EVENTUALLY(20, *ready == 1);
    cr_assert_gt(instance_segments_leased(&instance, pid), 0);
    uint64_t begin = npi_clock_monotonic();
    *ready = 2;
    EVENTUALLY(20, instance_clients(&instance, pid) == 0);
    double ms = (double)(npi_clock_monotonic() - begin) / 1e6;
    say("process_life: gone %.1f ms after it was told to exec\n", ms);
    if (ms < best) best = ms;
    cr_assert_eq(kill(pid, 0), 0, "the process lives");
    cr_assert_eq(instance_segments_leased(&instance, pid), 0);
    kill(pid, SIGKILL);
    reap(pid, 5);
  }
  cr_assert_leq(best, 500.0);
  cr_assert(instance_log_has(&instance, "client.departed"));
  instance_stop(&instance);
}

static int close_body(void *argument) {
  _Atomic int *ready = argument;
  struct handles h = {0};
  struct np_event event;
  if (open_all(&h) != 0) return 1;
  CHILD_EXPECT(np_loan(h.publisher, 8, &event) == NP_OK);
  CHILD_EXPECT(np_publish(h.publisher, &event) == NP_OK);
  CHILD_EXPECT(np_take(h.subscriber, &event) == NP_OK);
  for (int fd = 3; fd < 256; fd++) close(fd);
  *ready = 1;
  while (*ready != 2) usleep(1000);
  /* Its memory is still there: nobody has taken it for dead. */
  CHILD_EXPECT(np_release(h.subscriber, &event) == NP_OK);
  return exchange(&h);
}

Test(process_life, a_client_that_closed_all_descriptors_has_its_memory_still) {
  struct instance instance;
  instance_start(&instance, settings, NULL);
  _Atomic int *ready = shared_memory(sizeof *ready);
  pid_t pid = spawn(close_body, (void *)ready);
  EVENTUALLY(20, *ready == 1);
  EVENTUALLY(20, instance_log_has(&instance, "client.unreachable"));
  cr_assert_eq(instance_clients(&instance, pid), 1);
  cr_assert_gt(instance_segments_leased(&instance, pid), 0);
  *ready = 2;
  cr_assert_eq(reap(pid, 20), 0);
  EVENTUALLY(20, instance_clients(&instance, pid) == 0);
  instance_stop(&instance);
}

/* ---- exit ---- */

static int exit_body(void *how) {
  struct handles h = {0};
  __lsan_disable(); /* what it leaves behind is what this is about */
  if (open_all(&h) != 0 || exchange(&h) != 0) return 1;
  if (*(int *)how == 0) return 0; /* by _exit */
  if (*(int *)how == 1) exit(0);
  abort();
}

Test(process_life, an_end_without_closing_leaves_nothing) {
  struct instance instance;
  struct np_client *client;
  instance_start(&instance, settings, NULL);
  OK(np_connect(&client, NULL));
  for (int how = 0; how < 3; how++) {
    pid_t pid = spawn(exit_body, &how);
    int result = reap(pid, 20);
    cr_assert(how < 2 ? result == 0 : result == CHILD_KILLED + SIGABRT, "%d", result);
    EVENTUALLY(20, instance_clients(&instance, pid) == 0);
  }
  np_disconnect(client);
  instance_stop(&instance);
}

/* ---- threads ---- */

struct task {
  struct handles h;
  _Atomic int at; /* 1: sleeps */
};

static void *waiting_thread(void *argument) {
  struct task *task = argument;
  task->at = 1;
  np_wait(task->h.subscriber, -1);
  return NULL;
}

static void *opening_thread(void *argument) {
  struct task *task = argument;
  return (void *)(intptr_t)(open_all(&task->h) == 0 && exchange(&task->h) == 0 ? 0 : 1);
}

Test(process_life, a_client_outlives_the_thread_that_made_it_or_was_cancelled_in_it) {
  struct instance instance;
  struct task task = {0};
  pthread_t thread;
  void *result = NULL;
  instance_start(&instance, settings, NULL);
  cr_assert_eq(pthread_create(&thread, NULL, opening_thread, &task), 0);
  pthread_join(thread, &result);
  cr_assert_null(result);
  usleep(50000);
  cr_assert_eq(exchange(&task.h), 0);
  for (int i = 0; i < 20 && !IS_SANITIZED; i++) {
    task.at = 0;
    cr_assert_eq(pthread_create(&thread, NULL, waiting_thread, &task), 0);
    EVENTUALLY(20, task.at == 1);
    usleep((useconds_t)(i * 1000));
    pthread_cancel(thread);
    pthread_join(thread, &result);
    cr_assert_eq(result, PTHREAD_CANCELED, "np_wait can be cancelled");
    cr_assert_eq(exchange(&task.h), 0);
  }
  np_disconnect(task.h.client);
  instance_stop(&instance);
}

#ifndef __SANITIZE_ADDRESS__
/* A life of a client, over and over; whoever cancels finds in task what has to be ended. */
static void *busy_thread(void *argument) {
  struct task *task = argument;
  for (;;) {
    struct np_event event;
    struct np_client *client = NULL;
    if (np_connect(&client, NULL) != NP_OK) continue;
    task->h.client = client;
    if (np_publisher_open(client, "news", NULL, &task->h.publisher) == NP_OK &&
        np_subscriber_open(client, "news", NULL, &task->h.subscriber) == NP_OK) {
      for (int i = 0; i < 3 && np_loan(task->h.publisher, 8, &event) == NP_OK; i++) {
        np_wait(task->h.subscriber, 1); /* sleeps: there is nothing yet */
        np_publish(task->h.publisher, &event);
        if (np_take(task->h.subscriber, &event) == NP_OK) np_release(task->h.subscriber, &event);
      }
      np_subscriber_close(task->h.subscriber);
      np_publisher_close(task->h.publisher);
    }
    task->h.client = NULL;
    np_disconnect(client);
  }
  return NULL;
}

Test(process_life, threads_cancelled_anywhere_leave_clients_that_can_be_ended) {
  enum { CANCELS = 300 };
  struct instance instance;
  int n_left = 0;
  instance_start(&instance, settings, NULL);
  int before = count_descriptors();
  srandom((unsigned)getpid());
  for (int i = 0; i < CANCELS; i++) {
    struct task task = {0};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, busy_thread, &task), 0);
    usleep((useconds_t)(random() % 20000));
    pthread_cancel(thread);
    pthread_join(thread, NULL);
    n_left += task.h.client != NULL;
    np_disconnect(task.h.client);
  }
  say("process_life: %d threads cancelled, %d of them with a client\n", CANCELS, n_left);
  cr_assert_gt(n_left, CANCELS / 10);
  cr_assert_eq(count_descriptors(), before);
  instance_stop(&instance);
}

/* ---- the library unloaded ---- */

struct library {
  void *handle;
  int (*connect)(struct np_client **, const struct np_options *);
  struct np_client *(*disconnect)(struct np_client *);
  int (*publisher_open)(struct np_client *, const char *, const struct np_publisher_options *, struct np_publisher **);
  int (*subscriber_open)(struct np_client *, const char *, const struct np_subscriber_options *,
                         struct np_subscriber **);
  int (*loan)(struct np_publisher *, size_t, struct np_event *);
  int (*publish)(struct np_publisher *, struct np_event *);
  int (*take)(struct np_subscriber *, struct np_event *);
};

#define FIND(member, name) CHILD_EXPECT((*(void **)&library->member = dlsym(library->handle, name)) != NULL)

static int load(struct library *library) {
  char path[512];
  snprintf(path, sizeof path, "%s", NUMAPOOLD_PATH);
  char *end = strstr(path, "/bin/numapoold");
  CHILD_EXPECT(end != NULL);
  snprintf(end, sizeof path - (size_t)(end - path), "/lib/libnumapool-client.so");
  library->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library->handle == NULL) fprintf(stderr, "%s\n", dlerror());
  CHILD_EXPECT(library->handle != NULL);
  FIND(connect, "np_connect");
  FIND(disconnect, "np_disconnect");
  FIND(publisher_open, "np_publisher_open");
  FIND(subscriber_open, "np_subscriber_open");
  FIND(loan, "np_loan");
  FIND(publish, "np_publish");
  FIND(take, "np_take");
  return 0;
}

static int is_loaded(void) {
  char line[512];
  int found = 0;
  FILE *maps = fopen("/proc/self/maps", "re");
  while (maps != NULL && fgets(line, sizeof line, maps) != NULL) found |= strstr(line, "libnumapool-client") != NULL;
  if (maps != NULL) fclose(maps);
  return found;
}

static int use(struct library *library, struct handles *h) {
  struct np_event event;
  CHILD_EXPECT(library->connect(&h->client, NULL) == NP_OK);
  CHILD_EXPECT(library->publisher_open(h->client, "news", NULL, &h->publisher) == NP_OK);
  CHILD_EXPECT(library->subscriber_open(h->client, "news", NULL, &h->subscriber) == NP_OK);
  CHILD_EXPECT(library->loan(h->publisher, 8, &event) == NP_OK);
  CHILD_EXPECT(library->publish(h->publisher, &event) == NP_OK);
  CHILD_EXPECT(library->take(h->subscriber, &event) == NP_OK);
  return 0;
}

static int unload_body(void *argument) {
  _Atomic int *step = argument;
  struct library library;
  struct handles h;
  int before = 0;
  for (int i = 0; i < 20; i++) {
    if (load(&library) != 0 || use(&library, &h) != 0) return 1;
    CHILD_EXPECT(is_loaded());
    library.disconnect(h.client);
    CHILD_EXPECT(dlclose(library.handle) == 0);
    CHILD_EXPECT(!is_loaded());
    if (i == 0) before = count_descriptors();
    CHILD_EXPECT(count_descriptors() == before);
  }
  /* And once without ending what it began: nothing of the library runs on, or is called when a thread or all ends. */
  if (load(&library) != 0 || use(&library, &h) != 0) return 1;
  CHILD_EXPECT(dlclose(library.handle) == 0);
  CHILD_EXPECT(!is_loaded());
  *step = 1;
  while (*step != 2) usleep(1000);
  exit(0);
}

Test(process_life, the_library_can_be_unloaded_and_nothing_of_it_stays) {
  struct instance instance;
  instance_start(&instance, settings, NULL);
  _Atomic int *step = shared_memory(sizeof *step);
  pid_t pid = spawn(unload_body, (void *)step);
  EVENTUALLY(30, *step == 1);
  cr_assert_eq(instance_clients(&instance, pid), 1, "who unloads without ending is still a client");
  *step = 2;
  cr_assert_eq(reap(pid, 20), 0);
  EVENTUALLY(20, instance_clients(&instance, pid) == 0);
  instance_stop(&instance);
}
#endif

/* ---- while there is no broker ---- */

static int runs_sleep(pid_t pid) {
  char path[64], name[32] = "";
  snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
  FILE *file = fopen(path, "re");
  if (file == NULL) return 0;
  int n = fscanf(file, "%31s", name);
  fclose(file);
  return n == 1 && strcmp(name, "sleep") == 0;
}

Test(process_life, who_ends_while_there_is_no_broker_is_not_kept_by_the_next) {
  struct instance instance;
  struct handles stays = {0}, ends = {0};
  struct np_subscriber *another;
  instance_start(&instance, settings, NULL);
  cr_assert_eq(open_all(&stays), 0);
  cr_assert_eq(open_all(&ends), 0);
  OK(np_subscriber_open(stays.client, "news", NULL, &another));
  _Atomic int *ready = shared_memory(sizeof *ready);
  pid_t pid = spawn(exec_body, (void *)ready);
  EVENTUALLY(20, *ready == 1);
  instance_kill(&instance);
  np_disconnect(ends.client);
  OK(np_subscriber_close(another));
  *ready = 2; /* another program from here on */
  EVENTUALLY(20, runs_sleep(pid));
  instance_start_again(&instance, NULL);
  EVENTUALLY(20, let_go(&stays) && instance_clients(&instance, 0) == 1);
  EVENTUALLY(20, let_go(&stays) && instance_connections(&instance, 0) == 1);
  cr_assert_eq(kill(pid, 0), 0, "its process lives");
  kill(pid, SIGKILL);
  reap(pid, 5);
  np_disconnect(stays.client);
  instance_stop(&instance);
}
