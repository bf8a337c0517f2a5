/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers of processes are reused. Nobody is taken for the process that had its number before: not for the one that
 * connected (also on kernels that cannot say who that is), not for a client that died while there was no broker, not for
 * a broker.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/status.h"
#include "numapool/numapool.h"
#include "os/os_process.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "support/child.h"
#include "support/feed.h"
#include "support/instance.h"
#include "support/peers.h"
#include "support/process.h"
#include "support/raw_client.h"
#include "wire/channel.h"

TestSuite(identity, .timeout = 120);

/* As the kernel is; as if it were older than 6.5. */
enum { AS_IT_IS, OLDER };

/* One that is older has nothing to pretend. */
static size_t n_kernels(void) {
  int ends[2], exact = 0;
  if (npi_socket_pair(ends) != 0) return 1;
  exact = npi_process_peer_is_exact(ends[0]);
  close(ends[0]);
  close(ends[1]);
  return exact ? 2 : 1;
}

#define TEST_WITH_BOTH_KERNELS(name)                       \
  ParameterizedTestParameters(identity, name) {            \
    static int kernels[] = {AS_IT_IS, OLDER};              \
    return cr_make_param_array(int, kernels, n_kernels()); \
  }                                                        \
  ParameterizedTest(int *kernel, identity, name, .timeout = 120)

static int filters_work(void *argument) {
  (void)argument;
  return forget_peer_pidfd();
}

static void start(struct instance *instance, int kernel, const char *yaml) {
  if (kernel == OLDER && reap(spawn(filters_work, NULL), 20) != 0) cr_skip_test("no seccomp filters here");
  instance_start(instance, yaml, kernel == OLDER ? forget_peer_pidfd : NULL);
}

static const char *control_of(const struct instance *instance) {
  static char path[160];
  snprintf(path, sizeof path, "%s/control.sock", instance->runtime);
  return path;
}

/* ---- another process with the same number ------------------------------------------------------------- */

struct stranger {
  _Atomic int connect, connected, end;
};

/* Lives, and connects for itself when it is asked to. */
static int stranger_body(struct stranger *stranger) {
  struct np_client *client = NULL;
  prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves no process behind */
  while (!stranger->end) {
    if (stranger->connect && !stranger->connected) {
      CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
      stranger->connected = 1;
    }
    usleep(1000);
  }
  np_disconnect(client);
  return 0;
}

/* A child whose number is that of a process that is gone. */
static void start_stranger(pid_t pid, struct stranger *stranger) {
  struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (uint64_t)(uintptr_t)&pid, .set_tid_size = 1};
  long made = -1;
  fflush(NULL);
  for (int left = 2000; left > 0; left--) {
    made = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (made >= 0 || errno != EEXIST) break;
    usleep(1000); /* somebody may still be taking leave of it */
  }
  if (made == 0) _exit(stranger_body(stranger));
  if (made < 0 && (errno == EPERM || errno == ENOSYS || errno == EINVAL)) {
    cr_skip_test("clone3 may not choose a process number here: %s", strerror(errno));
  }
  cr_assert_eq(made, pid, "clone3: %s", strerror(errno));
}

static void end_stranger(pid_t pid, struct stranger *stranger) {
  stranger->end = 1;
  cr_assert_eq(reap(pid, 60), 0);
}

/* ---- connecting --------------------------------------------------------------------------------------- */

static void fill_hello(struct npi_control_frame *frame, const char *name) {
  npi_control_init(frame, NPI_CONTROL_HELLO, 1, 0);
  frame->body.hello.layout_version = NPI_LAYOUT_VERSION;
  frame->body.hello.kind = NPI_CLIENT_APPLICATION;
  frame->body.hello.node = -1;
  snprintf(frame->body.hello.name, sizeof frame->body.hello.name, "%s", name);
}

struct heir {
  const char *control;
  int to; /* gets the socket */
};

/* Connects, says hello, leaves the socket to somebody else and ends. */
static int short_lived(void *argument) {
  const struct heir *heir = argument;
  struct npi_control_frame frame;
  int socket;
  CHILD_EXPECT(npi_socket_connect(heir->control, &socket) == 0);
  fill_hello(&frame, "short-lived");
  CHILD_EXPECT(npi_control_send(socket, &frame, NULL, 0) == 0);
  CHILD_EXPECT(npi_socket_send(heir->to, "x", 1, &socket, 1) == 0);
  return 0;
}

/* Everything that the broker says until it closes; challenges are answered. The status of an answer to the hello. */
static int speak_for_the_dead(int socket) {
  struct npi_control_frame frame;
  int fds[NPI_CONTROL_FDS_MAX], n_fds = 0, answer = 0;
  for (;;) {
    int status = npi_control_receive(socket, &frame, fds, &n_fds);
    if (status == NPI_SOCKET_AGAIN) {
      cr_assert_eq(npi_wait_readable(&socket, 1, INT64_C(20000000000)), 1, "the broker neither answers nor closes");
      continue;
    }
    if (status == NPI_SOCKET_END) return answer;
    cr_assert_eq(status, 0, "%s", npi_detail());
    npi_control_close_fds(fds, n_fds);
    if (frame.head.type == NPI_CONTROL_CHALLENGE) npi_control_prove(socket, &frame);
    if (frame.head.type == NPI_CONTROL_HELLO) {
      cr_assert_lt(frame.head.status, 0, "whoever has the socket is client %u", frame.body.hello_reply.client);
      answer = frame.head.status;
    }
  }
}

TEST_WITH_BOTH_KERNELS(who_has_the_number_of_a_process_that_connected_is_not_taken_for_it) {
  /* Proves: between connect and the broker's look the process dies, another gets its number, and a third has the socket
   * and answers: nobody becomes a client. Then the new owner of the number connects, and is one by itself. */
  struct instance instance;
  struct stranger *stranger = shared_memory(sizeof *stranger);
  int pair[2], socket = -1, n_fds = 0;
  char byte;
  size_t n;
  start(&instance, *kernel, "");
  cr_assert_eq(npi_socket_pair(pair), 0);
  struct heir heir = {control_of(&instance), pair[1]};
  cr_assert(process_stop(instance.pid));
  pid_t pid = spawn(short_lived, &heir);
  cr_assert_eq(reap(pid, 20), 0);
  cr_assert_eq(npi_socket_receive(pair[0], &byte, 1, &n, &socket, 1, &n_fds), 0);
  cr_assert_eq(n_fds, 1);
  start_stranger(pid, stranger);
  kill(instance.pid, SIGCONT);
  int answer = speak_for_the_dead(socket);
  cr_assert(answer == 0 || answer == NP_ERR_DENIED, "%d", answer);
  if (*kernel == OLDER) cr_assert(answer == NP_ERR_DENIED && instance_log_has(&instance, "speaks there"));
  cr_assert_eq(instance_clients(&instance, 0), 0);
  close(socket);
  stranger->connect = 1;
  EVENTUALLY(20, stranger->connected);
  cr_assert_eq(instance_clients(&instance, pid), 1);
  end_stranger(pid, stranger);
  close(pair[0]);
  close(pair[1]);
  instance_stop(&instance);
}

struct proxy {
  int socket;
  struct npi_control_frame challenge;
};

static int prove_for_another(void *argument) {
  const struct proxy *proxy = argument;
  CHILD_EXPECT(npi_control_prove(proxy->socket, &proxy->challenge) == 0);
  return 0;
}

/* A client that has said hello and was asked who it is. */
static void begin_challenged(struct raw_client *raw, const struct instance *instance, struct npi_control_frame *frame) {
  raw_connect(raw, control_of(instance));
  raw->shows_challenges = 1;
  fill_hello(frame, "challenged");
  raw_send(raw, frame);
  raw_expect(raw, NPI_CONTROL_CHALLENGE, frame);
  cr_assert(frame->body.challenge.nonce[0] != 0 && frame->body.challenge.nonce[1] != 0);
}

Test(identity, the_challenge_is_answered_by_the_process_that_connected_or_not_at_all) {
  struct instance instance;
  struct raw_client raw;
  struct npi_control_frame frame, other;
  start(&instance, OLDER, "");
  uint64_t errors = instance_broker_counter(&instance, NPI_BROKER_PROTOCOL_ERRORS);

  /* A child of it is another process. */
  struct proxy *proxy = shared_memory(sizeof *proxy);
  begin_challenged(&raw, &instance, &frame);
  proxy->socket = raw.socket;
  proxy->challenge = frame;
  pid_t pid = spawn(prove_for_another, proxy);
  raw_expect(&raw, NPI_CONTROL_HELLO, &frame);
  char text[64];
  snprintf(text, sizeof text, "process %d connected, and process %d speaks there", (int)getpid(), (int)pid);
  cr_assert_eq(frame.head.status, NP_ERR_DENIED);
  cr_assert_not_null(strstr(frame.body.text, text), "%s", frame.body.text);
  raw_expect_end(&raw);
  cr_assert_eq(reap(pid, 20), 0);
  raw_close(&raw);
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_PROTOCOL_ERRORS), errors);

  /* One bit is wrong, in either word. */
  for (int word = 0; word < 2; word++) {
    begin_challenged(&raw, &instance, &frame);
    frame.body.challenge.nonce[word] ^= 1;
    cr_assert_eq(npi_control_prove(raw.socket, &frame), 0);
    raw_expect_end(&raw);
    raw_close(&raw);
  }
  /* The number of another session. */
  struct raw_client second;
  begin_challenged(&raw, &instance, &frame);
  begin_challenged(&second, &instance, &other);
  cr_assert_neq(memcmp(&frame.body.challenge, &other.body.challenge, sizeof frame.body.challenge), 0);
  cr_assert_eq(npi_control_prove(raw.socket, &other), 0);
  raw_expect_end(&raw);
  raw_close(&raw);
  raw_close(&second);
  /* Something else instead: a request, a hello once more. */
  begin_challenged(&raw, &instance, &frame);
  npi_control_init(&frame, NPI_CONTROL_LEASE, 2, 0);
  raw_send(&raw, &frame);
  raw_expect_end(&raw);
  raw_close(&raw);
  begin_challenged(&raw, &instance, &frame);
  fill_hello(&frame, "again");
  raw_send(&raw, &frame);
  raw_expect_end(&raw);
  raw_close(&raw);
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_PROTOCOL_ERRORS), errors + 5);
  cr_assert_eq(instance_clients(&instance, 0), 0);

  /* The right answer; a second one is an answer to nothing. */
  begin_challenged(&raw, &instance, &frame);
  other = frame;
  cr_assert_eq(npi_control_prove(raw.socket, &frame), 0);
  raw_expect(&raw, NPI_CONTROL_HELLO, &frame);
  cr_assert_eq(frame.head.status, 0, "%s", frame.body.text);
  cr_assert_eq(instance_clients(&instance, getpid()), 1);
  cr_assert_eq(npi_control_prove(raw.socket, &other), 0);
  raw_expect_end(&raw);
  raw_close(&raw);
  instance_stop(&instance);
}

Test(identity, an_answer_to_no_challenge_is_no_first_frame) {
  struct instance instance;
  struct raw_client raw;
  struct npi_control_frame frame;
  instance_start(&instance, "", NULL);
  raw_connect(&raw, control_of(&instance));
  npi_control_init(&frame, NPI_CONTROL_CHALLENGE, 0, 0);
  cr_assert_eq(npi_control_prove(raw.socket, &frame), 0);
  raw_expect_end(&raw);
  raw_close(&raw);
  instance_stop(&instance);
}

TEST_WITH_BOTH_KERNELS(clients_and_workers_come_and_come_back) {
  /* Proves: hello, attach, takeover and ingest workers, whatever the kernel can say about who connects. */
  enum { COUNT = 200 };
  struct instance instance;
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_event event;
  start(&instance, *kernel,
        "channels:\n  - { name: news, kind: broadcast, credits: 64, on_full: block }\n"
        "  - { name: stream, kind: broadcast, credits: 64, on_full: block }\n"
        "listeners:\n  - { name: frames, proto: tcp, address: \"127.0.0.1:0\", framing: { length_prefix: 4 }, "
        "channel: stream, max_frame: 64KiB }\n");
  struct receiver *news = receiver_for("news"), *stream = receiver_for("stream");
  pid_t pids[2] = {spawn(receiver_body, news), spawn(receiver_body, stream)};
  EVENTUALLY(30, news->ready && stream->ready);
  cr_assert_eq(np_connect(&client, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_publisher_open(client, "news", NULL, &publisher), NP_OK);
  uint64_t number = 0;
  for (int round = 0; round < 3; round++) {
    if (round == 1) {
      instance_kill(&instance);
      instance_start_again(&instance, NULL);
    } else if (round == 2) {
      pid_t before = instance.pid;
      instance_start_again(&instance, "--takeover");
      cr_assert_eq(reap(before, 60), 0);
    }
    for (int i = 0; i < COUNT; i++) cr_assert_eq(publish_message(publisher, number++, 1000), 0);
    /* Needs the broker: so it knows this client again. */
    struct np_publisher *another;
    char name[16];
    snprintf(name, sizeof name, "other-%d", round);
    cr_assert_eq(np_publisher_open(client, name, NULL, &another), NP_OK, "%s", np_error_detail());
    cr_assert_eq(np_loan(another, 100, &event), NP_OK);
    EVENTUALLY(30, news->received == number);
    struct feed *feed = shared_memory(sizeof *feed);
    feed->port = instance_port(&instance, "frames");
    feed->first = stream->received;
    feed->count = COUNT;
    pid_t sender = spawn(feed_body, feed);
    cr_assert_eq(reap(sender, 60), 0);
    EVENTUALLY(30, stream->received == (uint64_t)COUNT * (unsigned)(round + 1));
  }
  np_disconnect(client);
  news->stop = stream->stop = 1;
  for (int i = 0; i < 2; i++) cr_assert_eq(reap(pids[i], 60), 0);
  cr_assert_eq(news->bad + news->gaps + news->number_breaks + news->corrupt + stream->bad + stream->corrupt, 0);
  instance_stop(&instance);
}

/* ---- after the broker --------------------------------------------------------------------------------- */

static int hold_memory(void *argument) {
  _Atomic int *ready = argument;
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_event event;
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_publisher_open(client, "news", NULL, &publisher) == NP_OK);
  CHILD_EXPECT(np_loan(publisher, 100, &event) == NP_OK);
  *ready = 1;
  for (;;) pause();
}

TEST_WITH_BOTH_KERNELS(who_has_the_number_of_a_client_that_died_without_a_broker_is_not_taken_for_it) {
  /* Proves: a broker that adopts finds the client dead and takes its memory, though a process of that number lives. */
  struct instance instance;
  struct stranger *stranger = shared_memory(sizeof *stranger);
  _Atomic int *ready = shared_memory(sizeof *ready);
  struct np_client *living;
  start(&instance, *kernel, "memory: { ready: 0 }\n");
  cr_assert_eq(np_connect(&living, NULL), NP_OK, "%s", np_error_detail()); /* or there would be nothing to adopt */
  pid_t pid = spawn(hold_memory, (void *)(uintptr_t)ready);
  EVENTUALLY(20, *ready);
  cr_assert_gt(instance_segments_leased(&instance, pid), 0);
  instance_kill(&instance);
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  start_stranger(pid, stranger);
  instance_start_again(&instance, NULL);
  cr_assert_eq(instance_clients(&instance, getpid()), 1);
  EVENTUALLY(20, instance_clients(&instance, pid) == 0 && instance_segments_leased(&instance, 0) == 0);
  /* The new owner of the number begins from nothing. */
  stranger->connect = 1;
  EVENTUALLY(20, stranger->connected);
  cr_assert_eq(instance_clients(&instance, pid), 1);
  cr_assert_eq(instance_segments_leased(&instance, pid), 0);
  end_stranger(pid, stranger);
  np_disconnect(living);
  instance_stop(&instance);
}

Test(identity, who_has_the_number_of_a_dead_broker_is_not_taken_for_it) {
  /* Proves: numapoolctl says that the broker is dead, and the next one adopts. */
  struct instance instance;
  struct stranger *stranger = shared_memory(sizeof *stranger);
  char command[400];
  instance_start(&instance, "", NULL);
  struct np_client *client;
  cr_assert_eq(np_connect(&client, NULL), NP_OK, "%s", np_error_detail());
  pid_t pid = instance.pid;
  instance_kill(&instance);
  usleep(50000); /* start times are told apart from 10 ms on */
  start_stranger(pid, stranger);
  snprintf(command, sizeof command, "%s --json status > %s/said 2>&1; grep -q '\"state\": *\"dead\"' %s/said",
           NUMAPOOLCTL_PATH, instance.folder, instance.folder);
  int how = system(command);
  if (how != 0) {
    snprintf(command, sizeof command, "cat %s/said >&2", instance.folder);
    how = system(command);
    cr_assert(0, "numapoolctl does not say that the broker is dead");
  }
  instance_start_again(&instance, NULL);
  cr_assert_eq(instance_clients(&instance, getpid()), 1);
  struct np_publisher *publisher;
  cr_assert_eq(np_publisher_open(client, "news", NULL, &publisher), NP_OK, "%s", np_error_detail());
  np_disconnect(client);
  end_stranger(pid, stranger);
  instance_stop(&instance);
}
