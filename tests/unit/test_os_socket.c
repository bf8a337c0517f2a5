/* SPDX-License-Identifier: Apache-2.0 */
/* Messages and descriptors over Unix sockets, also from peers that break the rules. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "tests/support/child.h"

static char path[96];
static int ends[2];

static void open_pair(void) {
  snprintf(path, sizeof path, "/tmp/numapool-test-socket.%d", (int)getpid());
  cr_assert_eq(npi_socket_pair(ends), 0);
}

static void remove_path(void) {
  unlink(path);
}

TestSuite(os_socket, .init = open_pair, .fini = remove_path, .timeout = 30);

Test(os_socket, a_message_keeps_its_borders) {
  /* Proves: two sends are two receives, never one and a half. */
  char text[64];
  size_t n;
  int n_fds = 7;
  cr_assert_eq(npi_socket_send(ends[0], "one", 3, NULL, 0), 0);
  cr_assert_eq(npi_socket_send(ends[0], "three", 5, NULL, 0), 0);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, NULL, 0, &n_fds), 0);
  cr_assert_eq(n, 3);
  cr_assert_eq(n_fds, 0);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, NULL, 0, NULL), 0);
  cr_assert_eq(n, 5);
  cr_assert_eq(memcmp(text, "three", 5), 0);
}

Test(os_socket, descriptors_arrive_with_their_message_and_close_on_exec) {
  /* Proves: what arrives is the same open file, and a later exec does not inherit it. */
  int fds[2], got[4], n_fds;
  char text[8];
  size_t n;
  cr_assert_eq(npi_event_create(&fds[0]), 0);
  cr_assert_eq(npi_event_create(&fds[1]), 0);
  cr_assert_eq(npi_socket_send(ends[0], "x", 1, fds, 2), 0);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, got, 4, &n_fds), 0);
  cr_assert_eq(n_fds, 2);
  npi_event_ring(fds[1]);
  cr_assert_eq(npi_wait_readable(&got[0], 1, 0), 0);
  cr_assert_eq(npi_wait_readable(&got[1], 1, 0), 1);
  cr_assert(fcntl(got[0], F_GETFD) & FD_CLOEXEC);
  cr_assert(fcntl(got[1], F_GETFD) & FD_CLOEXEC);
}

Test(os_socket, an_empty_socket_says_again_and_a_closed_one_end) {
  /* Proves: nobody waits for a client that sends nothing, and a client that left is known. */
  char text[8];
  size_t n = 9;
  signal(SIGPIPE, SIG_DFL); /* whatever the test runner chose */
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, NULL, 0, NULL), NPI_SOCKET_AGAIN);
  cr_assert_eq(n, 0);
  close(ends[0]);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, NULL, 0, NULL), NPI_SOCKET_END);
  cr_assert_eq(npi_socket_send(ends[1], "x", 1, NULL, 0), NPI_SOCKET_END, "and no SIGPIPE");
}

Test(os_socket, what_was_sent_before_the_close_is_still_received) {
  /* Proves: a last message is not lost with its sender. */
  char text[8];
  size_t n;
  cr_assert_eq(npi_socket_send(ends[0], "bye", 3, NULL, 0), 0);
  close(ends[0]);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, NULL, 0, NULL), 0);
  cr_assert_eq(n, 3);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, NULL, 0, NULL), NPI_SOCKET_END);
}

Test(os_socket, last_words_are_received_also_from_a_peer_that_left_ours_unread) {
  /* Proves: a goodbye is seen though the kernel reports a reset first, which it does where unread messages are lost. */
  char text[64];
  size_t n;
  cr_assert_eq(npi_socket_send(ends[0], "unread", 6, NULL, 0), 0);
  cr_assert_eq(npi_socket_send(ends[1], "goodbye", 7, NULL, 0), 0);
  close(ends[1]);
  cr_assert_eq(npi_socket_receive(ends[0], text, sizeof text, &n, NULL, 0, NULL), 0);
  cr_assert_eq(n, 7);
  cr_assert_eq(npi_socket_receive(ends[0], text, sizeof text, &n, NULL, 0, NULL), NPI_SOCKET_END);
}

Test(os_socket, a_full_socket_says_again_and_goes_on_later) {
  /* Proves: a peer that does not read cannot stop the sender, and no message is lost or doubled. */
  char text[200] = "", got[200];
  size_t n;
  int n_sent = 0, n_received = 0;
  while (npi_socket_send(ends[0], text, sizeof text, NULL, 0) == 0) cr_assert_lt(++n_sent, 1000000);
  cr_assert_gt(n_sent, 0);
  cr_assert_eq(npi_socket_send(ends[0], text, sizeof text, NULL, 0), NPI_SOCKET_AGAIN);
  while (npi_socket_receive(ends[1], got, sizeof got, &n, NULL, 0, NULL) == 0) n_received++;
  cr_assert_eq(n_received, n_sent);
  cr_assert_eq(npi_socket_send(ends[0], text, sizeof text, NULL, 0), 0);
}

/* Sends n descriptors past npi_socket_send's own limit. */
static void send_many(int socket, int fd, int n) {
  char control[CMSG_SPACE(sizeof(int) * 64)] __attribute__((aligned(8))) = {0};
  struct iovec data = {.iov_base = "x", .iov_len = 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control};
  message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)n);
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)n);
  for (int i = 0; i < n; i++) memcpy(CMSG_DATA(header) + sizeof(int) * (size_t)i, &fd, sizeof fd);
  cr_assert_eq(sendmsg(socket, &message, 0), 1);
}

Test(os_socket, truncated_control_data_is_a_breach_and_every_descriptor_is_closed) {
  /* Proves: a peer that sends more descriptors than a message may have leaves none behind in the receiver. */
  char text[8];
  size_t n = 3;
  int got[NPI_SOCKET_FDS_MAX], n_fds = 3;
  int n_before = count_descriptors();
  send_many(ends[0], STDERR_FILENO, 40);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, got, NPI_SOCKET_FDS_MAX, &n_fds), NP_ERR_PROTOCOL);
  cr_assert_eq(n, 0);
  cr_assert_eq(n_fds, 0);
  cr_assert_eq(count_descriptors(), n_before);
}

Test(os_socket, a_truncated_message_is_a_breach_and_every_descriptor_is_closed) {
  /* Proves: half a message is never taken for a whole one. */
  char text[4];
  size_t n;
  int fd, got[4], n_fds;
  cr_assert_eq(npi_event_create(&fd), 0);
  int n_before = count_descriptors();
  cr_assert_eq(npi_socket_send(ends[0], "12345", 5, &fd, 1), 0);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, got, 4, &n_fds), NP_ERR_PROTOCOL);
  cr_assert_eq(n_fds, 0);
  cr_assert_eq(count_descriptors(), n_before);
}

Test(os_socket, descriptors_that_nobody_wants_are_closed) {
  /* Proves: a receiver that expects two, or none, keeps no more. */
  char text[4];
  size_t n;
  int got[2], n_fds;
  int n_before = count_descriptors();
  send_many(ends[0], STDERR_FILENO, 5);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, got, 2, &n_fds), 0);
  cr_assert_eq(n_fds, 2);
  cr_assert_eq(count_descriptors(), n_before + 2);
  close(got[0]);
  close(got[1]);
  send_many(ends[0], STDERR_FILENO, 5);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, NULL, 0, NULL), 0);
  cr_assert_eq(count_descriptors(), n_before);
}

Test(os_socket, a_receiver_without_free_descriptors_says_limit_not_breach) {
  /* Proves: an honest peer is not blamed for our own limit. */
  struct rlimit limit;
  char text[4];
  size_t n;
  int got[4], n_fds;
  send_many(ends[0], STDERR_FILENO, 4);
  int next = dup(STDERR_FILENO);
  close(next);
  cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
  rlim_t before = limit.rlim_cur;
  limit.rlim_cur = (rlim_t)next;
  cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
  int status = npi_socket_receive(ends[1], text, sizeof text, &n, got, 4, &n_fds);
  limit.rlim_cur = before;
  cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
  cr_assert_eq(status, NP_ERR_LIMIT, "%d: %s", status, npi_detail());
}

Test(os_socket, messages_that_cannot_be_are_refused_before_the_kernel_sees_them) {
  /* Proves: an empty message would read as the end, so it is never sent. */
  int fds[NPI_SOCKET_FDS_MAX + 1] = {0};
  cr_assert_eq(npi_socket_send(ends[0], "", 0, NULL, 0), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_socket_send(ends[0], "x", 1, fds, NPI_SOCKET_FDS_MAX + 1), NP_ERR_ARGUMENT);
}

Test(os_socket, connecting_where_nobody_is_names_path_and_fix) {
  /* Proves: the commonest first error of a user explains itself, and leaves no descriptor. */
  int fd;
  int n_before = count_descriptors();
  cr_assert_eq(npi_socket_connect(path, &fd), NP_ERR_NO_BROKER);
  cr_assert_eq(fd, -1);
  cr_assert_not_null(strstr(npi_detail(), path));
  cr_assert_not_null(strstr(npi_detail(), "start numapoold"));
  char too_long[300];
  memset(too_long, 'p', sizeof too_long - 1);
  too_long[sizeof too_long - 1] = '\0';
  cr_assert_eq(npi_socket_connect(too_long, &fd), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_socket_listen(too_long, 0600, 4, &fd), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_socket_listen("/no/such/folder/socket", 0600, 4, &fd), NP_ERR_SYSTEM);
  cr_assert_eq(count_descriptors(), n_before);
}

Test(os_socket, a_socket_of_a_dead_broker_is_replaced_and_a_file_is_not) {
  /* Proves: a restart works without cleaning up by hand, and never removes somebody's data. */
  int listener, fd;
  struct stat facts;
  cr_assert_eq(npi_socket_listen(path, 0600, 4, &listener), 0);
  close(listener); /* the file stays, as after a kill */
  cr_assert_eq(npi_socket_connect(path, &fd), NP_ERR_NO_BROKER);
  cr_assert_eq(npi_socket_listen(path, 0660, 4, &listener), 0, "%s", npi_detail());
  cr_assert_eq(stat(path, &facts), 0);
  cr_assert_eq(facts.st_mode & 0777, 0660);
  close(listener);
  unlink(path);
  fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  close(fd);
  cr_assert_eq(npi_socket_listen(path, 0600, 4, &listener), NP_ERR_EXISTS);
  cr_assert_eq(access(path, F_OK), 0);
}

Test(os_socket, a_connection_is_accepted_once_and_does_not_block) {
  /* Proves: accept says again when the queue is empty; both ends are non-blocking and close on exec. */
  int listener, connected, accepted, none;
  cr_assert_eq(npi_socket_listen(path, 0600, 4, &listener), 0);
  cr_assert_eq(npi_socket_accept(listener, &accepted), NPI_SOCKET_AGAIN);
  cr_assert_eq(npi_socket_connect(path, &connected), 0, "%s", npi_detail());
  cr_assert_eq(npi_socket_accept(listener, &accepted), 0);
  cr_assert_eq(npi_socket_accept(listener, &none), NPI_SOCKET_AGAIN);
  int both[] = {connected, accepted, listener};
  for (int i = 0; i < 3; i++) {
    cr_assert(fcntl(both[i], F_GETFD) & FD_CLOEXEC);
    cr_assert(fcntl(both[i], F_GETFL) & O_NONBLOCK);
  }
}

static int connect_as_nobody(const void *argument) {
  int fd;
  (void)argument;
  CHILD_EXPECT(setgid(65534) == 0 && setuid(65534) == 0);
  CHILD_EXPECT(npi_socket_connect(path, &fd) == NP_ERR_DENIED);
  CHILD_EXPECT(strstr(npi_detail(), path) != NULL);
  return 0;
}

Test(os_socket, the_mode_keeps_other_users_out) {
  /* Proves: a foreign user gets "not permitted" with the path, not "no broker". */
  int listener;
  if (geteuid() != 0) cr_skip_test("only root can become another user");
  cr_assert_eq(npi_socket_listen(path, 0600, 4, &listener), 0);
  cr_assert_eq(in_child(connect_as_nobody, NULL), 0);
}

enum { GOODBYES = 20000 };
static _Atomic int leaving_fd = -1; /* the next one to say goodbye; -1: taken */

static void *say_goodbyes(void *unused) {
  for (int i = 0; i < GOODBYES; i++) {
    int fd;
    while ((fd = atomic_exchange(&leaving_fd, -1)) < 0) sched_yield();
    npi_socket_send(fd, "goodbye", 7, NULL, 0);
    close(fd);
  }
  return unused;
}

Test(os_socket, last_words_are_heard_whenever_the_reader_looks, .timeout = 100) {
  /* Proves: a reader that looks while the peer sends and closes never takes that for an end without the message. */
  int n_heard = 0, n_ends = 0;
  pthread_t thread;
  cr_assert_eq(pthread_create(&thread, NULL, say_goodbyes, NULL), 0);
  for (int i = 0; i < GOODBYES; i++) {
    int pair[2], status;
    char text[16];
    size_t n = 0;
    cr_assert_eq(npi_socket_pair(pair), 0);
    leaving_fd = pair[0];
    while ((status = npi_socket_receive(pair[1], text, sizeof text, &n, NULL, 0, NULL)) == NPI_SOCKET_AGAIN) {
    }
    n_heard += status == 0 && n == 7;
    while ((status = npi_socket_receive(pair[1], text, sizeof text, &n, NULL, 0, NULL)) == NPI_SOCKET_AGAIN) {
    }
    n_ends += status == NPI_SOCKET_END;
    close(pair[1]);
  }
  pthread_join(thread, NULL);
  cr_assert(n_heard == GOODBYES && n_ends == GOODBYES, "of %d: %d messages, %d ends", GOODBYES, n_heard, n_ends);
}

Test(os_socket, an_empty_message_is_a_breach_not_an_end) {
  char text[8];
  size_t n;
  cr_assert_eq(send(ends[0], "", 0, 0), 0);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, NULL, 0, NULL), NP_ERR_PROTOCOL);
  cr_assert_eq(npi_socket_receive(ends[1], text, sizeof text, &n, NULL, 0, NULL), NPI_SOCKET_AGAIN);
}
