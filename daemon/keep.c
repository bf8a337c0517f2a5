/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/keep.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/session.h"
#include "os/os_clock.h"
#include "os/os_socket.h"
#include "os/os_wait.h"

enum { BACKLOG = 8, SOCKET_MODE = 0600, PUT_PATIENCE_MS = 1000, END_PATIENCE_MS = 1000, ITEMS_MAX = 1 << 20 };
#define AGAIN_NS         UINT64_C(500000000)
#define GIVE_PATIENCE_NS UINT64_C(5000000000)

/* ---- the process ---- */

static void on_again(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  if (broker->draining || broker->keep.fd >= 0) return;
  if (npi_keep_start(broker) == 0) {
    npi_keep_everything(broker);
    npi_log(NPI_LOG_INFO, "keeper.replaced", "pid=%d", (int)broker->keep.pid);
    return;
  }
  npi_log(NPI_LOG_ERROR, "keeper.not_started", "reason=\"%s\"", npi_detail());
  npi_timer_begin(&broker->loop, timer, AGAIN_NS);
}

static void lose(struct npi_broker *broker, const char *why) {
  struct npi_keep *keep = &broker->keep;
  npi_log(NPI_LOG_WARNING, "keeper.lost",
          "reason=\"%s\" until=\"another is started; a broker that dies before it cannot be succeeded\"", why);
  if (keep->pid > 0) kill(keep->pid, SIGKILL);
  unlink(keep->path); /* one that was only stopped must not be asked: it is told nothing any more */
  npi_watch_end(&broker->loop, &keep->watch);
  close(keep->fd);
  keep->fd = -1;
  npi_timer_begin(&broker->loop, &keep->again, 0);
}

static void on_keeper(struct npi_watch *watch, uint32_t events) {
  (void)events; /* it never speaks first: this is its end */
  lose(watch->owner, "it has ended");
}

void npi_keep_init(struct npi_broker *broker) {
  struct npi_keep *keep = &broker->keep;
  keep->fd = -1;
  keep->pid = 0;
  keep->ours = 0;
  npi_watch_init(&keep->watch, on_keeper, broker);
  npi_timer_init(&keep->again, on_again, broker);
  snprintf(keep->path, sizeof keep->path, "%s/keeper.sock", broker->config->runtime_dir);
}

static void become_keeper(int listen_fd) {
  char option[40], name[] = "numapoold";
  sigset_t none;
  int flags = fcntl(listen_fd, F_GETFD);
  if (flags >= 0) fcntl(listen_fd, F_SETFD, flags & ~FD_CLOEXEC);
  setpgid(0, 0); /* what is sent to the broker's group must leave it alone */
  signal(SIGPIPE, SIG_DFL);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  snprintf(option, sizeof option, "--keeper=%d", listen_fd);
  execv("/proc/self/exe", (char *const[]){name, option, NULL});
  _exit(127);
}

int npi_keep_start(struct npi_broker *broker) {
  struct npi_keep *keep = &broker->keep;
  int listen_fd = -1, fd = -1;
  pid_t pid = -1;
  int status = npi_socket_listen(keep->path, SOCKET_MODE, BACKLOG, &listen_fd);
  if (status != 0) return npi_trail(status, "keeper");
  /* Before it runs: its first look finds us, and a broker that dies now leaves one that ends by itself. */
  status = npi_socket_connect(keep->path, &fd);
  if (status != 0) goto fail;
  pid = fork();
  if (pid == 0) become_keeper(listen_fd);
  if (pid < 0) {
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot start the keeper");
    goto fail;
  }
  status = npi_watch_begin(&broker->loop, &keep->watch, fd, EPOLLIN);
  if (status != 0) goto fail;
  close(listen_fd);
  keep->fd = fd;
  keep->pid = pid;
  keep->ours = 1;
  return 0;

fail:
  if (pid > 0) kill(pid, SIGKILL);
  if (fd >= 0) close(fd);
  close(listen_fd);
  unlink(keep->path);
  return status;
}

void npi_keep_leave(struct npi_broker *broker) {
  struct npi_keep *keep = &broker->keep;
  npi_timer_end(&broker->loop, &keep->again);
  keep->ours = 0;
  if (keep->fd < 0) return;
  npi_watch_end(&broker->loop, &keep->watch);
  close(keep->fd);
  keep->fd = -1;
}

void npi_keep_end(struct npi_broker *broker) {
  struct npi_keep *keep = &broker->keep;
  if (keep->fd >= 0) {
    struct npi_keeper_message message = {
        .magic = NPI_KEEPER_MAGIC, .version = NPI_KEEPER_VERSION, .type = NPI_KEEPER_END};
    npi_socket_send(keep->fd, &message, sizeof message, NULL, 0);
    if (npi_wait_readable(&keep->fd, 1, INT64_C(1000000) * END_PATIENCE_MS) <= 0) {
      npi_log(NPI_LOG_WARNING, "keeper.not_ended", "pid=%d", (int)keep->pid);
    }
  }
  if (keep->ours) unlink(keep->path);
  npi_keep_leave(broker);
  if (keep->pid > 0) {
    kill(keep->pid, SIGKILL);
    waitpid(keep->pid, NULL, 0);
  }
  keep->pid = 0;
}

void npi_keep_child_ended(struct npi_broker *broker) {
  struct npi_keep *keep = &broker->keep;
  if (keep->pid > 0 && waitpid(keep->pid, NULL, WNOHANG) == keep->pid) keep->pid = 0;
}

/* ---- telling ---- */

/*
 * Waits where the keeper's socket is full: it does nothing but read, so that is over in no time; if not it is stopped or
 * ill, and another takes its place.
 */
static void tell(struct npi_broker *broker, const struct npi_keeper_message *message, const int *fds, int n_fds) {
  struct npi_keep *keep = &broker->keep;
  int status = NPI_SOCKET_AGAIN;
  for (int waited = 0; keep->fd >= 0 && waited < PUT_PATIENCE_MS; waited++) {
    status = npi_socket_send(keep->fd, message, sizeof *message, fds, n_fds);
    if (status != NPI_SOCKET_AGAIN && status != NP_ERR_LIMIT) break;
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  if (keep->fd >= 0 && status != 0) lose(broker, status < 0 ? npi_detail() : "it does not read");
}

static void put(struct npi_broker *broker, enum npi_kept_kind kind, uint32_t index, uint32_t version,
                const uint64_t *data, const int *fds, int n_fds) {
  struct npi_keeper_message message = {.magic = NPI_KEEPER_MAGIC,
                                       .version = NPI_KEEPER_VERSION,
                                       .type = NPI_KEEPER_KEEP,
                                       .tag = {(uint32_t)kind, index, version},
                                       .n_fds = (uint32_t)n_fds};
  if (data != NULL) memcpy(message.data, data, sizeof message.data);
  tell(broker, &message, fds, n_fds);
}

void npi_keep_drop(struct npi_broker *broker, enum npi_kept_kind kind, uint32_t index, uint32_t version) {
  struct npi_keeper_message message = {.magic = NPI_KEEPER_MAGIC,
                                       .version = NPI_KEEPER_VERSION,
                                       .type = NPI_KEEPER_DROP,
                                       .tag = {(uint32_t)kind, index, version}};
  tell(broker, &message, NULL, 0);
}

/* ---- what is kept ---- */

void npi_keep_client(const struct npi_client *client, int pidfd) {
  const int fds[] = {pidfd, client->page_fd, client->ledger_fd, client->events_fd, client->credits_fd};
  /* One that is gone has no process: its memory is kept until its peers have let go. */
  int skip = pidfd < 0;
  const uint64_t data[NPI_KEEPER_DATA] = {!skip};
  put(client->broker, NPI_KEPT_CLIENT, client->index, client->version, data, fds + skip, 5 - skip);
}

void npi_keep_segment(struct npi_broker *broker, const struct npi_leased *segment) {
  put(broker, NPI_KEPT_SEGMENT, segment->index, segment->version, NULL, &segment->memory.fd, 1);
}

void npi_keep_listener(struct npi_broker *broker, uint32_t index, uint32_t worker) {
  const struct npi_listener *listener = &broker->workers.listeners[index];
  const uint64_t data[NPI_KEEPER_DATA] = {listener->kernel_drops[worker], listener->drops_of[worker]};
  if (listener->sockets[worker].fd < 0) return;
  put(broker, NPI_KEPT_LISTENER, index, worker, data, &listener->sockets[worker].fd, 1);
}

void npi_keep_worker(struct npi_broker *broker, uint32_t number) {
  const struct npi_worker *worker = &broker->workers.workers[number];
  const uint64_t data[NPI_KEEPER_DATA] = {worker->start_time};
  if (worker->pid == 0) return;
  put(broker, NPI_KEPT_WORKER, number, (uint32_t)worker->pid, data, &worker->pidfd, 1);
}

void npi_keep_everything(struct npi_broker *broker) {
  const struct npi_registry *registry = &broker->registry;
  const struct npi_leased *segment;
  for (uint32_t i = 0; i < registry->n_clients; i++) {
    const struct npi_client *client = broker->clients[i];
    if (client == NULL) continue;
    npi_keep_client(client, client->session != NULL ? client->session->pidfd : -1);
    DL_FOREACH(client->segments, segment) npi_keep_segment(broker, segment);
  }
  for (uint32_t i = 0; i < broker->stock.n_nodes; i++) {
    DL_FOREACH(broker->stock.nodes[i].ready, segment) npi_keep_segment(broker, segment);
  }
  for (uint32_t i = 0; i < broker->workers.n_workers; i++) {
    npi_keep_worker(broker, i);
    for (uint32_t k = 0; k < broker->workers.n_listeners; k++) npi_keep_listener(broker, k, i);
  }
  /* Last: a keeper without it is one that was not told everything, and nobody can go on with the others alone. */
  put(broker, NPI_KEPT_REGISTRY, 0, 0, NULL, &registry->fd, 1);
}

/* ---- what a predecessor left ---- */

struct npi_kept *npi_kept_find(const struct npi_kept_list *list, uint32_t kind, uint32_t index, uint32_t version) {
  for (uint32_t i = 0; i < list->n_items; i++) {
    struct npi_kept *item = &list->items[i];
    if (item->tag.kind == kind && item->tag.index == index && item->tag.version == version) return item;
  }
  return NULL;
}

void npi_kept_free(struct npi_kept_list *list) {
  for (uint32_t i = 0; i < list->n_items; i++) {
    for (int k = 0; k < list->items[i].n_fds; k++) {
      if (list->items[i].fds[k] >= 0) close(list->items[i].fds[k]);
    }
  }
  free(list->items);
  memset(list, 0, sizeof *list);
}

static int add(struct npi_kept_list *list, const struct npi_keeper_message *message, const int *fds, int n_fds) {
  if (list->n_items == list->room) {
    uint32_t room = list->room == 0 ? 64 : 2 * list->room;
    struct npi_kept *items = room > ITEMS_MAX ? NULL : realloc(list->items, room * sizeof *items);
    if (items == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for the %u descriptors of a keeper", room);
    list->items = items;
    list->room = room;
  }
  struct npi_kept *item = &list->items[list->n_items++];
  item->tag = message->tag;
  item->n_fds = n_fds;
  memcpy(item->data, message->data, sizeof item->data);
  for (int i = 0; i < NPI_KEEPER_FDS_MAX; i++) item->fds[i] = i < n_fds ? fds[i] : -1;
  return 0;
}

/* 0: an item more; 1: that was the last one. */
static int receive_item(int fd, struct npi_kept_list *list) {
  struct npi_keeper_message message;
  int fds[NPI_KEEPER_FDS_MAX], n_fds = 0;
  size_t n = 0;
  uint64_t until = npi_clock_monotonic() + GIVE_PATIENCE_NS;
  int status;
  while ((status = npi_socket_receive(fd, &message, sizeof message, &n, fds, NPI_KEEPER_FDS_MAX, &n_fds)) ==
         NPI_SOCKET_AGAIN) {
    int ready = npi_wait_readable(&fd, 1, (int64_t)GIVE_PATIENCE_NS); /* 0 also for a signal */
    if (ready < 0) return ready;
    if (ready == 0 && npi_clock_monotonic() >= until) {
      return npi_fail(
          NP_ERR_SYSTEM,
          "the keeper of the instance (process numapool-keeper) does not answer: continue it if it is stopped, "
          "or kill it, and the instance begins anew");
    }
  }
  if (status == NPI_SOCKET_END) return npi_fail(NP_ERR_NO_BROKER, "the keeper ended");
  if (status < 0) return status;
  if (n != sizeof message || message.magic != NPI_KEEPER_MAGIC || message.version != NPI_KEEPER_VERSION ||
      message.n_fds != (uint32_t)n_fds) {
    status = npi_fail(NP_ERR_VERSION, "the keeper of the earlier broker speaks another language");
  } else if (message.type == NPI_KEEPER_LAST) {
    status = message.count == list->n_items ? 1 : npi_fail(NP_ERR_PROTOCOL, "the keeper gave less than it has");
  } else if (message.type == NPI_KEEPER_ITEM) {
    status = add(list, &message, fds, n_fds);
    if (status == 0) return 0;
  }
  for (int i = 0; i < n_fds; i++) close(fds[i]);
  return status;
}

/*
 * One that does not take us in, or hangs up, is not gone while it listens: it may be stopped, and the queue of newcomers
 * full of those who have tried. What it keeps must not be cleaned away.
 */
static int not_joined(const struct npi_keep *keep, int status) {
  if (status != NP_ERR_NO_BROKER || npi_socket_has_listener(keep->path) == 0) return status;
  return npi_fail(NP_ERR_SYSTEM,
                  "the keeper of the instance (process numapool-keeper) lives, and cannot be asked now: try again, "
                  "continue it if it is stopped, or kill it, and the instance begins anew");
}

int npi_keep_join(struct npi_broker *broker, struct npi_kept_list *list) {
  struct npi_keep *keep = &broker->keep;
  struct npi_keeper_message message = {
      .magic = NPI_KEEPER_MAGIC, .version = NPI_KEEPER_VERSION, .type = NPI_KEEPER_GIVE};
  int fd = -1;
  memset(list, 0, sizeof *list);
  int status = npi_socket_connect(keep->path, &fd);
  if (status != 0) {
    status = not_joined(keep, status);
    return status == NP_ERR_NO_BROKER ? npi_fail(status, "its keeper is gone: nobody listens at %s", keep->path)
                                      : status;
  }
  status = npi_socket_send(fd, &message, sizeof message, NULL, 0);
  while (status == 0) status = receive_item(fd, list);
  if (status == 1) status = npi_watch_begin(&broker->loop, &keep->watch, fd, EPOLLIN);
  if (status == 0) {
    keep->fd = fd;
    keep->ours = 1;
    return 0;
  }
  if (status > 0) status = npi_fail(NP_ERR_NO_BROKER, "the keeper ended");
  npi_kept_free(list);
  close(fd);
  return not_joined(keep, status);
}
