/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every system call fails once. A process is traced while it starts a broker, adopts an instance, connects, leases, opens or ends; its n-th
 * system call is not made, and returns an error instead; n goes up until there is no n-th call. Proves: the operation
 * goes on all the same, or fails with a status and words; nothing of it stays (descriptors, names in /dev/shm, child
 * processes); and the same operation works when it is tried again.
 *
 * The errors take turns from call to call; FAILING_ALL=1 tries each of them at every call.
 * ctest-timeout: 600
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/keeper.h"
#include "daemon/worker.h"
#include "numapool/numapool.h"
#include "support/child.h"
#include "support/instance.h"
#include "support/peers.h"

TestSuite(failing_calls, .timeout = 600);

#if defined(__x86_64__)

enum { HANG_SECONDS = 30, RETRIES = 3 };
static const int errors[] = {ENOMEM, EMFILE, EINTR, EPERM, ENOSPC};

/* Between tracer and traced. */
struct trial {
  volatile int window; /* calls count */
  int status;          /* of the operation */
  int first_status;    /* of the one that met the failure */
  char words[400];
  char wrong[400]; /* what is not as promised; empty: nothing */
};
static struct trial *trial;

/* The broker starts its keeper and its workers as /proc/self/exe, which is this program here. */
__attribute__((constructor)) static void be_another(int argc, char **argv) {
  if (argc == 2 && strncmp(argv[1], "--keeper=", 9) == 0) _exit(npi_keeper_main(atoi(argv[1] + 9)));
  if (argc == 3 && strcmp(argv[1], "--ingest-worker") == 0) _exit(npi_worker_main(atoi(argv[2])));
  if (argc == 2 && strncmp(argv[1], "--ingest-worker=", 16) == 0) _exit(npi_worker_main(atoi(argv[1] + 16)));
}

/* Calls that cannot fail, or whose failure means nothing but that somebody lied. */
static int is_exempt(long number) {
  switch (number) {
    case SYS_exit:
    case SYS_exit_group:
    case SYS_close:
    case SYS_munmap:
    case SYS_rt_sigreturn:
    case SYS_rt_sigprocmask:
    case SYS_rt_sigaction:
    case SYS_getpid:
    case SYS_getppid:
    case SYS_gettid:
    case SYS_geteuid:
    case SYS_getuid:
    case SYS_getgid:
    case SYS_getegid:
    case SYS_brk: /* tells its failure otherwise; malloc then asks mmap, which fails here too */
    case SYS_restart_syscall: return 1;
    default: return 0;
  }
}

static void wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void wrong(const char *format, ...) {
  va_list arguments;
  if (trial->wrong[0] != '\0') return;
  va_start(arguments, format);
  vsnprintf(trial->wrong, sizeof trial->wrong, format, arguments);
  va_end(arguments);
}

/*
 * Runs body in a child whose n-th call within the window fails. 1: there was such a call, its number is in *call.
 * Asserts that the child ends in order.
 */
static int fail_nth(void (*body)(void), long n, int error, long *call) {
  memset(trial, 0, sizeof *trial);
  fflush(NULL);
  pid_t child = fork();
  cr_assert(child >= 0);
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(99);
    raise(SIGSTOP);
    body();
    fflush(stderr);
    _exit(0);
  }
  int how = 0, injected = 0, entering = 1, fails_now = 0;
  long count = 0;
  waitpid(child, &how, 0);
  cr_assert(WIFSTOPPED(how), "this machine does not let a process trace its child");
  ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)(uintptr_t)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
  time_t begin = time(NULL);
  int signal_to_pass = 0;
  for (;;) {
    /* After the failure nothing needs to be traced, and the rest runs at full speed. */
    if (ptrace(injected && !fails_now ? PTRACE_CONT : PTRACE_SYSCALL, child, NULL, (void *)(uintptr_t)signal_to_pass) !=
            0 &&
        errno != ESRCH) {
      break;
    }
    signal_to_pass = 0;
    pid_t ended;
    while ((ended = waitpid(child, &how, injected ? WNOHANG : 0)) == 0 && time(NULL) - begin < HANG_SECONDS)
      usleep(100);
    if (ended == 0) {
      kill(child, SIGKILL);
      waitpid(child, &how, 0);
      cr_assert(0, "call %ld of number %ld failed with %s: hangs", n, *call, strerror(error));
    }
    if (WIFEXITED(how) || WIFSIGNALED(how)) break;
    int stop = WSTOPSIG(how);
    if (stop != (SIGTRAP | 0x80)) {
      signal_to_pass = stop == SIGSTOP ? 0 : stop;
      continue;
    }
    struct user_regs_struct registers;
    ptrace(PTRACE_GETREGS, child, NULL, &registers);
    if (entering) {
      if (trial->window && !injected && !is_exempt((long)registers.orig_rax) && count++ == n) {
        *call = (long)registers.orig_rax;
        registers.orig_rax = (unsigned long long)-1;
        ptrace(PTRACE_SETREGS, child, NULL, &registers);
        injected = fails_now = 1;
      }
    } else if (fails_now) {
      registers.rax = (unsigned long long)-error;
      ptrace(PTRACE_SETREGS, child, NULL, &registers);
      fails_now = 0;
    }
    entering = !entering;
  }
  cr_assert(WIFEXITED(how) && WEXITSTATUS(how) == 0, "call %ld of number %ld failed with %s: ended with status %#x", n,
            *call, strerror(error), (unsigned)how);
  return injected;
}

static void try_all(const char *name, void (*body)(void)) {
  int all = getenv("FAILING_ALL") != NULL;
  long n = 0, failed = 0, went_on = 0, trials = 0, call = -1;
  int more = 1;
  for (; more; n++) {
    for (int e = 0; e < (all ? (int)NPI_ARRAY_COUNT(errors) : 1); e++) {
      int error = errors[all ? e : n % (long)NPI_ARRAY_COUNT(errors)];
      more = fail_nth(body, n, error, &call);
      cr_assert(trial->wrong[0] == '\0', "%s: call %ld (number %ld) failed with %s: %s [status %d, \"%s\"]", name, n,
                call, strerror(error), trial->wrong, trial->first_status, trial->words);
      if (!more) break;
      trials++;
      if (trial->first_status < 0) failed++;
      if (trial->first_status >= 0) went_on++;
    }
  }
  say("%-18s %4ld calls, %4ld trials: %4ld failed with words, %4ld went on\n", name, n - 1, trials, failed, went_on);
}

/* What the operation said; a failure has words. */
static void note(int status, const char *words) {
  trial->window = 0;
  trial->first_status = status;
  snprintf(trial->words, sizeof trial->words, "%s", words);
  if (status < 0 && words[0] == '\0') wrong("failed without words");
}

/* ---- a broker starts ---- */

static char folder[64], instance_name[40], yaml[512];

static int names_in_dev_shm(void) {
  char prefix[64];
  int n = 0, length = snprintf(prefix, sizeof prefix, "numapool.%s.", instance_name);
  DIR *list = opendir("/dev/shm");
  const struct dirent *entry;
  while (list != NULL && (entry = readdir(list)) != NULL) n += strncmp(entry->d_name, prefix, (size_t)length) == 0;
  if (list != NULL) closedir(list);
  return n;
}

static void expect_nothing_left(int descriptors, const char *when) {
  int how;
  int n = count_descriptors(), names = names_in_dev_shm();
  if (n != descriptors) wrong("%s: %d descriptors, before there were %d", when, n, descriptors);
  if (names != 0) wrong("%s: %d names in /dev/shm", when, names);
  for (int left = 2000; left > 0 && waitpid(-1, &how, WNOHANG) >= 0; left--) usleep(10000);
  if (waitpid(-1, &how, WNOHANG) >= 0) wrong("%s: a child process is left", when);
}

static void start_a_broker(void) {
  static struct npi_broker broker;
  struct npi_config config;
  sigset_t before;
  npi_config_init(&config);
  if (npi_config_parse(&config, "test", yaml, strlen(yaml)) != 0 || npi_config_finish(&config, instance_name) != 0) {
    wrong("the configuration: %s", npi_detail());
    return;
  }
  sigprocmask(SIG_SETMASK, NULL, &before);
  int descriptors = count_descriptors();
  trial->window = 1;
  int status = npi_broker_start(&broker, &config, 0);
  note(status, npi_detail());
  if (status == 0) npi_broker_stop(&broker);
  expect_nothing_left(descriptors, "after the first start");
  status = npi_broker_start(&broker, &config, 0);
  if (status != 0) wrong("the second start: %s", npi_detail());
  if (status == 0) npi_broker_stop(&broker);
  expect_nothing_left(descriptors, "after the second start");
  sigprocmask(SIG_SETMASK, &before, NULL);
  npi_config_deinit(&config);
}

static void set_up_start(const char *backend, const char *listeners) {
  trial = shared_memory(sizeof *trial);
  snprintf(folder, sizeof folder, "/tmp/numapool-test-XXXXXX");
  cr_assert_not_null(mkdtemp(folder));
  snprintf(instance_name, sizeof instance_name, "test-%d", (int)getpid());
  snprintf(
      yaml, sizeof yaml,
      "runtime_dir: %s/run\nmemory: { backend: %s, per_node: 4MiB, per_client: 2MiB, segment: 2MiB, ready: 2MiB }\n"
      "drain_timeout: 1s\nchannels: [{ name: one }]\n%s",
      folder, backend, listeners);
  setenv("NUMAPOOL_RUNTIME", folder, 1);
}

static void tear_down_start(void) {
  char command[96];
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  cr_assert_eq(system(command), 0);
}

static void start_with(const char *name, const char *backend, const char *listeners) {
  set_up_start(backend, listeners);
  try_all(name, start_a_broker);
  tear_down_start();
}

Test(failing_calls, of_a_broker_that_starts_with_posix_memory) {
  start_with("start, posix", "posix", "");
}

Test(failing_calls, of_a_broker_that_starts_with_memfds) {
  start_with("start, memfd", "memfd", "");
}

Test(failing_calls, of_a_broker_that_starts_a_worker) {
  start_with("start, worker", "memfd",
             "listeners: [{ name: in, proto: udp, address: \"127.0.0.1:0\", channel: one }]\n");
}

/* ---- a broker adopts ---- */

struct adopted {
  _Atomic int is_ready; /* the earlier broker's */
  _Atomic int n_up;     /* the client has what it wants */
  _Atomic int go;       /* there is a successor */
  _Atomic int done;     /* 1: all is as it was; < 0: not */
  char words[300];
};
static struct adopted *adopted;

static int earlier_broker(const struct npi_config *config) {
  static struct npi_broker broker;
  if (npi_broker_start(&broker, config, 0) != 0) return 1;
  adopted->is_ready = 1;
  return npi_broker_run(&broker);
}

static int say_wrong(const char *what, int status) {
  snprintf(adopted->words, sizeof adopted->words, "%s: %d, \"%s\"", what, status, np_error_detail());
  adopted->done = -1;
  return 1;
}

/* A client of the earlier broker, with events on the way and one in its hands, that wants to go on with the next. */
static int lasting_client(void) {
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber, *another = NULL;
  struct np_options options;
  struct np_event event, held;
  char path[128];
  int status;
  snprintf(path, sizeof path, "%s/run/control.sock", folder);
  np_options_init(&options);
  options.socket_path = path;
  if ((status = np_connect(&client, &options)) != 0) return say_wrong("connect", status);
  if ((status = np_publisher_open(client, "one", NULL, &publisher)) != 0) return say_wrong("publisher", status);
  if ((status = np_subscriber_open(client, "one", NULL, &subscriber)) != 0) return say_wrong("subscriber", status);
  for (char i = 0; i < 3; i++) {
    if ((status = np_loan(publisher, 100, &event)) != NP_OK) return say_wrong("loan", status);
    memset(event.data, 'a' + i, event.size);
    if ((status = np_publish(publisher, &event)) != NP_OK) return say_wrong("publish", status);
  }
  if ((status = np_take(subscriber, &held)) != NP_OK) return say_wrong("take", status);
  adopted->n_up = 1;
  while (!adopted->go) usleep(500);
  status = NP_ERR_NO_BROKER;
  for (time_t begin = time(NULL); status != NP_OK && time(NULL) - begin < HANG_SECONDS / 2;) {
    status = np_subscriber_open(client, "one", NULL, &another);
    if (status != NP_OK) usleep(2000);
  }
  if (status != NP_OK) return say_wrong("opening something at the successor", status);
  if (held.size != 100 || ((const char *)held.data)[99] != 'a') return say_wrong("the event in its hands", 0);
  if ((status = np_release(subscriber, &held)) != NP_OK) return say_wrong("release", status);
  for (char i = 1; i < 3; i++) {
    if ((status = np_take(subscriber, &event)) != NP_OK) return say_wrong("an event on the way", status);
    if (((const char *)event.data)[0] != 'a' + i) return say_wrong("an event's bytes", i);
    np_release(subscriber, &event);
  }
  np_disconnect(client);
  adopted->done = 1;
  return 0;
}

static void look_whether_done(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  if (adopted->done != 0) {
    npi_loop_stop(&broker->loop);
  } else {
    npi_timer_begin(&broker->loop, timer, 1000000);
  }
}

enum { DESCRIPTORS_MAX = 256 };

static void mark_descriptors(uint8_t *is_open) {
  for (int fd = 0; fd < DESCRIPTORS_MAX; fd++) is_open[fd] = fcntl(fd, F_GETFD) >= 0;
}
/* A broker that could not start leaves what it opened to the end of its process: this is that end. */
static void close_others(const uint8_t *was_open) {
  for (int fd = 0; fd < DESCRIPTORS_MAX; fd++) {
    if (!was_open[fd]) close(fd);
  }
}

static void adopt(void) {
  static struct npi_broker broker;
  uint8_t was_open[DESCRIPTORS_MAX];
  struct npi_config config;
  struct npi_timer timer;
  int how;
  npi_config_init(&config);
  if (npi_config_parse(&config, "test", yaml, strlen(yaml)) != 0 || npi_config_finish(&config, instance_name) != 0) {
    wrong("the configuration: %s", npi_detail());
    return;
  }
  memset(adopted, 0, sizeof *adopted);
  int descriptors = count_descriptors();
  fflush(NULL);
  pid_t earlier = fork();
  if (earlier == 0) _exit(earlier_broker(&config));
  for (int left = 20000; left > 0 && !adopted->is_ready; left--) usleep(1000);
  pid_t client = fork();
  if (client == 0) _exit(lasting_client());
  for (int left = 20000; left > 0 && !adopted->n_up; left--) usleep(1000);
  if (!adopted->n_up) wrong("before it began: %s", adopted->words);
  kill(earlier, SIGKILL);
  waitpid(earlier, &how, 0);

  mark_descriptors(was_open);
  trial->window = 1;
  int status = npi_broker_start(&broker, &config, 0);
  note(status, npi_detail());
  if (status != 0) {
    close_others(was_open);
    status = npi_broker_start(&broker, &config, 0);
  }
  if (status != 0) {
    wrong("the second start: %s", npi_detail());
    kill(client, SIGKILL);
    return;
  }
  adopted->go = 1;
  npi_timer_init(&timer, look_whether_done, &broker);
  npi_timer_begin(&broker.loop, &timer, 1000000);
  npi_broker_run(&broker);
  npi_timer_end(&broker.loop, &timer);
  if (adopted->done != 1) wrong("its client: %s", adopted->words);
  waitpid(client, &how, 0);
  npi_broker_stop(&broker);
  expect_nothing_left(descriptors, "after the successor has stopped");
  npi_config_deinit(&config);
}

static void adopt_with(const char *name, const char *backend, const char *listeners) {
  adopted = shared_memory(sizeof *adopted);
  set_up_start(backend, listeners);
  try_all(name, adopt);
  tear_down_start();
}

Test(failing_calls, of_a_broker_that_adopts_with_posix_memory) {
  adopt_with("adopt, posix", "posix", "");
}

Test(failing_calls, of_a_broker_that_adopts_with_memfds_and_a_worker) {
  adopt_with("adopt, worker", "memfd",
             "listeners: [{ name: in, proto: udp, address: \"127.0.0.1:0\", channel: two }]\n");
}

/* ---- a client ---- */

struct actor {
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
};

static int do_connect(struct actor *actor) {
  return np_connect(&actor->client, NULL);
}
static int do_open_publisher(struct actor *actor) {
  return np_publisher_open(actor->client, "one", NULL, &actor->publisher);
}
static int do_lease(struct actor *actor) {
  struct np_event event;
  int status = np_loan(actor->publisher, 100000, &event);
  if (status == NP_OK) np_discard(actor->publisher, &event);
  return status;
}
static int do_open_subscriber(struct actor *actor) {
  return np_subscriber_open(actor->client, "one", NULL, &actor->subscriber);
}
static int do_exchange(struct actor *actor) {
  struct np_event event;
  int status = np_loan(actor->publisher, 100, &event);
  if (status != NP_OK) return status;
  memset(event.data, 1, event.size);
  status = np_publish(actor->publisher, &event);
  if (status != NP_OK) return status;
  for (int i = 0; i < 50; i++) {
    status = np_take(actor->subscriber, &event);
    if (status == NP_OK) return np_release(actor->subscriber, &event);
    if (status < 0) return status;
    status = np_wait(actor->subscriber, 20);
    if (status < 0) return status;
  }
  return NP_TIMEOUT;
}
static int do_wait(struct actor *actor) {
  return np_wait(actor->subscriber, 3);
}
static int (*const steps[])(struct actor *) = {do_connect,         do_open_publisher, do_lease,
                                               do_open_subscriber, do_exchange,       do_wait};
static size_t failing_step;

static int is_done(size_t step, int status) {
  return status == NP_OK || (steps[step] == do_wait && status == NP_TIMEOUT);
}

static void act(void) {
  struct actor actor = {0};
  int descriptors = count_descriptors();
  for (int life = 0; life < 2; life++) { /* the second one is as if nothing had been */
    for (size_t step = 0; step < NPI_ARRAY_COUNT(steps); step++) {
      trial->window = life == 0 && step == failing_step;
      int status = steps[step](&actor);
      if (trial->window) note(status, np_error_detail());
      if (life == 0 && step == 0 && status < 0 && count_descriptors() != descriptors) {
        wrong("a connect that failed left %d descriptors, before there were %d", count_descriptors(), descriptors);
      }
      /* Once more, without a failure. */
      for (int again = 0; again < RETRIES && !is_done(step, status); again++) {
        usleep(20000);
        status = steps[step](&actor);
      }
      if (!is_done(step, status)) {
        wrong("step %zu of life %d does not work again: %d, \"%s\"", step, life, status, np_error_detail());
        return;
      }
    }
    actor.client = np_disconnect(actor.client);
    memset(&actor, 0, sizeof actor);
    int n = count_descriptors();
    if (n != descriptors) wrong("after disconnecting %d descriptors, before there were %d", n, descriptors);
  }
}

static void act_at(size_t step, const char *name) {
  struct instance instance;
  trial = shared_memory(sizeof *trial);
  instance_start(&instance, "memory: { per_node: 64MiB, per_client: 8MiB, segment: 2MiB, ready: 4MiB }\n", NULL);
  failing_step = step;
  try_all(name, act);
  instance_stop(&instance);
}

Test(failing_calls, of_a_client_that_connects) {
  act_at(0, "connect");
}
Test(failing_calls, of_a_client_that_opens_a_publisher) {
  act_at(1, "open publisher");
}
Test(failing_calls, of_a_client_that_leases) {
  act_at(2, "lease");
}
Test(failing_calls, of_a_client_that_opens_a_subscriber) {
  act_at(3, "open subscriber");
}
Test(failing_calls, of_a_client_that_exchanges) {
  act_at(4, "exchange");
}
Test(failing_calls, of_a_client_that_sleeps) {
  act_at(5, "sleep");
}

#else
Test(failing_calls, of_x86_64_only, .disabled = true) {
}
#endif
