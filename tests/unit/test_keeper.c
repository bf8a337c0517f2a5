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
#include "daemon/broker.h"
#include "daemon/keep.h"
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

Test(keeper, a_successor_is_given_what_a_dead_broker_had_just_sent) {
  enum { SENT = 150 };
  int fd = start(), other, fds[NPI_KEEPER_FDS_MAX], n_fds, n = 0, status;
  int memory = memfd_create("kept", MFD_CLOEXEC);
  struct npi_keeper_message message;
  kill(keeper, SIGSTOP); /* it has no processor for a moment */
  for (uint32_t i = 0; i < SENT; i++) tell(fd, NPI_KEEPER_KEEP, NPI_KEPT_SEGMENT, i, &memory, 1);
  close(fd);
  cr_assert_eq(npi_socket_connect(path, &other), 0);
  tell(other, NPI_KEEPER_GIVE, 0, 0, NULL, 0);
  kill(keeper, SIGCONT);
  while ((status = hear(other, &message, fds, &n_fds)) == 0 && message.type == NPI_KEEPER_ITEM) {
    for (int i = 0; i < n_fds; i++) close(fds[i]);
    n++;
  }
  cr_assert_eq(status, 0);
  cr_assert_eq(message.type, NPI_KEEPER_LAST);
  cr_assert_eq(n, SENT, "%d of %d", n, SENT);
  tell(other, NPI_KEEPER_END, 0, 0, NULL, 0);
  cr_assert(has_ended(10));
  clean();
}

/* A broker that has nothing but a client, a registry and a connection to its keeper; returns the keeper's end of that. */
static int rig(struct npi_broker *broker, struct npi_config *config, struct npi_client *client) {
  static struct npi_client *clients[1];
  sigset_t none;
  int ends[2];
  sigemptyset(&none);
  snprintf(folder, sizeof folder, "/tmp/npt-XXXXXX");
  cr_assert_not_null(mkdtemp(folder));
  snprintf(config->runtime_dir, sizeof config->runtime_dir, "%s", folder);
  broker->config = config;
  cr_assert_eq(npi_loop_init(&broker->loop, &none, NULL, NULL), 0);
  npi_keep_init(broker);
  snprintf(path, sizeof path, "%s/keeper.sock", folder);
  cr_assert_eq(npi_socket_pair(ends), 0);
  cr_assert_eq(npi_watch_begin(&broker->loop, &broker->keep.watch, ends[0], EPOLLIN), 0);
  broker->keep.fd = ends[0];
  broker->keep.ours = 1;
  broker->registry.fd = memfd_create("registry", MFD_CLOEXEC);
  broker->registry.n_clients = 1;
  broker->clients = clients;
  client->broker = broker;
  client->version = 1;
  client->page_fd = client->ledger_fd = client->events_fd = client->credits_fd = broker->registry.fd;
  clients[0] = client;
  return ends[1];
}

Test(keeper, a_new_one_is_told_of_the_registry_last) {
  static struct npi_broker broker;
  static struct npi_config config;
  static struct npi_client client;
  struct npi_keeper_message message;
  int end = rig(&broker, &config, &client), fds[NPI_KEEPER_FDS_MAX], n_fds;
  npi_keep_everything(&broker);
  cr_assert_eq(hear(end, &message, fds, &n_fds), 0);
  cr_assert_eq(message.tag.kind, NPI_KEPT_CLIENT);
  cr_assert_eq(hear(end, &message, fds, &n_fds), 0);
  cr_assert_eq(message.tag.kind, NPI_KEPT_REGISTRY);
  size_t n;
  cr_assert_eq(npi_socket_receive(end, &message, sizeof message, &n, fds, NPI_KEEPER_FDS_MAX, &n_fds),
               NPI_SOCKET_AGAIN);
  clean();
}

Test(keeper, one_that_is_given_up_cannot_be_found_any_more) {
  static struct npi_broker broker;
  static struct npi_config config;
  static struct npi_client client;
  int end = rig(&broker, &config, &client), listen_fd;
  cr_assert_eq(npi_socket_listen(path, 0600, 4, &listen_fd), 0); /* of a keeper that is stopped */
  close(end);
  npi_keep_drop(&broker, NPI_KEPT_SEGMENT, 1, 1);
  cr_assert_eq(broker.keep.fd, -1);
  cr_assert_neq(access(path, F_OK), 0);
  clean();
}
