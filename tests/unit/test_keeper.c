/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper: what is put is given back, and it stays exactly as long as somebody needs it. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/status.h"
#include "daemon/keeper.h"
#include "daemon/keeper_protocol.h"
#include "os/os_process.h"
#include "os/os_socket.h"
#include "os/os_wait.h"

TestSuite(keeper, .timeout = 60);

#define SECOND INT64_C(1000000000)

static char folder[64], path[96];
static pid_t keeper;

/* A keeper with one connection, as a broker starts it. */
static int start(void) {
  int listen_fd, fd;
  snprintf(folder, sizeof folder, "/tmp/npt-XXXXXX");
  cr_assert_not_null(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/keeper.sock", folder);
  cr_assert_eq(npi_socket_listen(path, 0600, 4, &listen_fd), 0);
  cr_assert_eq(npi_socket_connect(path, &fd), 0);
  keeper = fork();
  if (keeper == 0) {
    close(fd);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    _exit(npi_keeper_main(listen_fd));
  }
  close(listen_fd);
  return fd;
}

static void clean(void) {
  unlink(path);
  rmdir(folder);
}

static void tell(int fd, enum npi_keeper_type type, uint32_t kind, uint32_t index, const int *fds, int n_fds) {
  struct npi_keeper_message message = {.magic = NPI_KEEPER_MAGIC,
                                       .version = NPI_KEEPER_VERSION,
                                       .type = (uint16_t)type,
                                       .tag = {kind, index, 1},
                                       .n_fds = (uint32_t)n_fds,
                                       .data = {index + 100}};
  cr_assert_eq(npi_socket_send(fd, &message, sizeof message, fds, n_fds), 0);
}

/* 0, or what ended the connection. */
static int hear(int fd, struct npi_keeper_message *message, int *fds, int *n_fds) {
  size_t n;
  *n_fds = 0;
  cr_assert_eq(npi_wait_readable(&fd, 1, 10 * SECOND), 1, "the keeper says nothing");
  int status = npi_socket_receive(fd, message, sizeof *message, &n, fds, NPI_KEEPER_FDS_MAX, n_fds);
  if (status == 0) cr_assert_eq(n, sizeof *message);
  return status;
}

static ino_t inode(int fd) {
  struct stat facts;
  cr_assert_eq(fstat(fd, &facts), 0);
  return facts.st_ino;
}

static int has_ended(int seconds) {
  for (int left = seconds * 1000; left > 0; left--) {
    if (waitpid(keeper, NULL, WNOHANG) == keeper) return 1;
    usleep(1000);
  }
  return 0;
}

Test(keeper, what_is_kept_is_replaced_dropped_and_given_back) {
  int fd = start(), memory[3], fds[NPI_KEEPER_FDS_MAX], n_fds, n_segments = 0;
  struct npi_keeper_message message;
  for (int i = 0; i < 3; i++) memory[i] = memfd_create("kept", MFD_CLOEXEC);
  tell(fd, NPI_KEEPER_KEEP, NPI_KEPT_SEGMENT, 1, &memory[0], 1);
  tell(fd, NPI_KEEPER_KEEP, NPI_KEPT_SEGMENT, 2, &memory[0], 1);
  tell(fd, NPI_KEEPER_KEEP, NPI_KEPT_SEGMENT, 2, &memory[1], 1); /* replaced */
  tell(fd, NPI_KEEPER_KEEP, NPI_KEPT_LISTENER, 1, memory, 3);
  tell(fd, NPI_KEEPER_DROP, NPI_KEPT_SEGMENT, 1, NULL, 0);
  tell(fd, NPI_KEEPER_DROP, NPI_KEPT_SEGMENT, 7, NULL, 0); /* was never there */
  for (int round = 0; round < 2; round++) {                /* also to a second one that comes */
    int asks = fd, n_items = 0;
    if (round == 1) cr_assert_eq(npi_socket_connect(path, &asks), 0);
    tell(asks, NPI_KEEPER_GIVE, 0, 0, NULL, 0);
    for (;;) {
      cr_assert_eq(hear(asks, &message, fds, &n_fds), 0);
      if (message.type == NPI_KEEPER_LAST) break;
      cr_assert_eq(message.type, NPI_KEEPER_ITEM);
      cr_assert_eq(message.data[0], message.tag.index + 100);
      n_items++;
      if (message.tag.kind == NPI_KEPT_SEGMENT) {
        n_segments++;
        cr_assert_eq(message.tag.index, 2);
        cr_assert_eq(n_fds, 1);
        cr_assert_eq(inode(fds[0]), inode(memory[1]));
      } else {
        cr_assert_eq(n_fds, 3);
        for (int i = 0; i < 3; i++) cr_assert_eq(inode(fds[i]), inode(memory[i]));
      }
      for (int i = 0; i < n_fds; i++) close(fds[i]);
    }
    cr_assert_eq(message.count, 2);
    cr_assert_eq(n_items, 2);
    cr_assert_eq((pid_t)message.pid, keeper);
  }
  cr_assert_eq(n_segments, 2);
  tell(fd, NPI_KEEPER_END, 0, 0, NULL, 0);
  cr_assert(has_ended(10));
  clean();
}

Test(keeper, stays_while_a_process_lives_and_ends_with_the_last) {
  int fd = start(), pidfd, fds[NPI_KEEPER_FDS_MAX], n_fds;
  struct npi_keeper_message message;
  pid_t client = fork();
  if (client == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pause();
    _exit(0);
  }
  cr_assert_eq(npi_process_pidfd(client, &pidfd), 0);
  tell(fd, NPI_KEEPER_KEEP, NPI_KEPT_CLIENT, 3, &pidfd, 1);
  close(fd); /* the broker dies, right behind its last word */
  cr_assert(!has_ended(1), "it left a living client");
  kill(keeper, SIGTERM); /* a service manager's group signal */
  cr_assert_eq(npi_socket_connect(path, &fd), 0);
  tell(fd, NPI_KEEPER_GIVE, 0, 0, NULL, 0);
  cr_assert_eq(hear(fd, &message, fds, &n_fds), 0);
  cr_assert_eq(message.type, NPI_KEEPER_ITEM);
  cr_assert_eq(n_fds, 1);
  cr_assert_eq(npi_process_is_dead(fds[0]), 0);
  kill(client, SIGKILL);
  waitpid(client, NULL, 0);
  cr_assert_eq(npi_process_is_dead(fds[0]), 1);
  cr_assert(!has_ended(1), "it left a broker that is connected");
  close(fd);
  cr_assert(has_ended(10), "it waits for nobody");
  clean();
}

Test(keeper, without_anybody_it_ends) {
  int fd = start(), memory = memfd_create("kept", MFD_CLOEXEC);
  tell(fd, NPI_KEEPER_KEEP, NPI_KEPT_REGISTRY, 0, &memory, 1);
  close(fd);
  cr_assert(has_ended(10));
  clean();
}

Test(keeper, what_is_no_message_costs_the_connection_and_nothing_else) {
  int fd = start(), other, fds[NPI_KEEPER_FDS_MAX], n_fds, memory = memfd_create("kept", MFD_CLOEXEC);
  struct npi_keeper_message message;
  tell(fd, NPI_KEEPER_KEEP, NPI_KEPT_SEGMENT, 1, &memory, 1);
  for (int i = 0; i < 200; i++) {
    char bytes[80];
    cr_assert_eq(npi_socket_connect(path, &other), 0);
    for (size_t k = 0; k < sizeof bytes; k++) bytes[k] = (char)random();
    cr_assert_eq(npi_socket_send(other, bytes, 1 + (size_t)i % sizeof bytes, &memory, i % 2), 0);
    cr_assert_eq(hear(other, &message, fds, &n_fds), NPI_SOCKET_END);
    close(other);
  }
  tell(fd, NPI_KEEPER_GIVE, 0, 0, NULL, 0);
  cr_assert_eq(hear(fd, &message, fds, &n_fds), 0);
  cr_assert_eq(message.type, NPI_KEEPER_ITEM);
  cr_assert_eq(hear(fd, &message, fds, &n_fds), 0);
  cr_assert_eq(message.type, NPI_KEEPER_LAST);
  tell(fd, NPI_KEEPER_END, 0, 0, NULL, 0);
  cr_assert(has_ended(10));
  clean();
}
