/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper: a process that does nothing but hold descriptors, so that they outlive the broker.
 *
 * It is small for a reason: whatever kills the broker must not be here. It maps nothing, reads nothing that a client
 * can write, and never waits for anybody but, bounded, for a successor that asks for everything.
 */
#include "daemon/keeper.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/keeper_protocol.h"
#include "os/os_process.h"
#include "os/os_socket.h"

enum { CONNECTIONS_MAX = 4, GIVE_PATIENCE_MS = 5000, BATCH = 32, LAST_WORDS_MAX = 1 << 20 };

struct item {
  struct npi_keeper_tag tag;
  uint64_t data[NPI_KEEPER_DATA];
  int fds[NPI_KEEPER_FDS_MAX];
  int n_fds;
  int watched; /* its process was alive when it was last heard of */
};

struct keeper {
  int epoll_fd, listen_fd;
  int connections[CONNECTIONS_MAX]; /* -1: free */
  struct item *items;
  uint32_t n_items, room;
  uint32_t n_living;
  int ending;
  int giving; /* everything that was sent is being read, for a successor */
};

/* ---- items ---- */

static void close_fds(int *fds, int n) {
  for (int i = 0; i < n; i++) close(fds[i]);
}

static struct item *find(struct keeper *keeper, const struct npi_keeper_tag *tag) {
  for (uint32_t i = 0; i < keeper->n_items; i++) {
    struct item *item = &keeper->items[i];
    if (item->tag.kind == tag->kind && item->tag.index == tag->index && item->tag.version == tag->version) return item;
  }
  return NULL;
}

static void unwatch(struct keeper *keeper, struct item *item) {
  if (!item->watched) return;
  /* Others have the same description open: closing our number would not end the watch. */
  epoll_ctl(keeper->epoll_fd, EPOLL_CTL_DEL, item->fds[0], NULL);
  item->watched = 0;
  keeper->n_living--;
}

static void drop(struct keeper *keeper, struct item *item) {
  unwatch(keeper, item);
  close_fds(item->fds, item->n_fds);
  *item = keeper->items[--keeper->n_items];
}

/* Takes the descriptors over. */
static void keep(struct keeper *keeper, const struct npi_keeper_message *message, const int *fds, int n_fds) {
  struct item *item = find(keeper, &message->tag);
  if (item != NULL) {
    unwatch(keeper, item);
    close_fds(item->fds, item->n_fds);
  } else {
    if (keeper->n_items == keeper->room) {
      uint32_t room = keeper->room == 0 ? 64 : keeper->room * 2;
      struct item *items = realloc(keeper->items, room * sizeof *items);
      if (items == NULL) {
        npi_log(NPI_LOG_ERROR, "keeper.not_kept", "kind=%u index=%u reason=\"no memory\"", message->tag.kind,
                message->tag.index);
        for (int i = 0; i < n_fds; i++) close(fds[i]);
        return;
      }
      keeper->items = items;
      keeper->room = room;
    }
    item = &keeper->items[keeper->n_items++];
  }
  memset(item, 0, sizeof *item);
  item->tag = message->tag;
  memcpy(item->data, message->data, sizeof item->data);
  memcpy(item->fds, fds, (size_t)n_fds * sizeof *fds);
  item->n_fds = n_fds;
  if (!npi_kept_has_process(item->tag.kind) || n_fds == 0) return;
  /* Once: a dead process stays readable until the broker drops it. */
  struct epoll_event wish = {.events = EPOLLIN | EPOLLONESHOT, .data.fd = fds[0]};
  if (epoll_ctl(keeper->epoll_fd, EPOLL_CTL_ADD, fds[0], &wish) != 0) return; /* not a pidfd: nobody to wait for */
  item->watched = 1;
  keeper->n_living++;
}

static void process_ended(struct keeper *keeper, int pidfd) {
  for (uint32_t i = 0; i < keeper->n_items; i++) {
    if (!keeper->items[i].watched || keeper->items[i].fds[0] != pidfd) continue;
    /* Or the word is about a connection that had this number, and was closed earlier in the same turn. */
    if (npi_process_is_dead(pidfd) != 0) unwatch(keeper, &keeper->items[i]);
  }
}

/* ---- messages ---- */

static int send_patiently(int fd, const struct npi_keeper_message *message, const int *fds, int n_fds) {
  for (int waited = 0; waited < GIVE_PATIENCE_MS; waited++) {
    int status = npi_socket_send(fd, message, sizeof *message, fds, n_fds);
    if (status != NPI_SOCKET_AGAIN && status != NP_ERR_LIMIT) return status;
    struct pollfd room = {.fd = fd, .events = status == NP_ERR_LIMIT ? 0 : POLLOUT};
    poll(&room, 1, 1); /* descriptors in flight have no event: look again */
  }
  return npi_fail(NP_ERR_LIMIT, "a broker asked for all and does not read it");
}

static int give(struct keeper *keeper, int fd) {
  struct npi_keeper_message message = {.magic = NPI_KEEPER_MAGIC, .version = NPI_KEEPER_VERSION};
  for (uint32_t i = 0; i < keeper->n_items; i++) {
    const struct item *item = &keeper->items[i];
    message.type = NPI_KEEPER_ITEM;
    message.tag = item->tag;
    message.n_fds = (uint32_t)item->n_fds;
    memcpy(message.data, item->data, sizeof message.data);
    int status = send_patiently(fd, &message, item->fds, item->n_fds);
    if (status != 0) return status;
  }
  memset(&message.tag, 0, sizeof message.tag);
  memset(message.data, 0, sizeof message.data);
  message.type = NPI_KEEPER_LAST;
  message.n_fds = 0;
  message.count = keeper->n_items;
  message.pid = (uint32_t)getpid();
  return send_patiently(fd, &message, NULL, 0);
}

static void read_others(struct keeper *keeper, int fd);

/* 0: go on with this connection. */
static int handle(struct keeper *keeper, int fd, const struct npi_keeper_message *message, const int *fds, int n_fds) {
  struct item *item;
  switch (message->type) {
    case NPI_KEEPER_KEEP: keep(keeper, message, fds, n_fds); return 0;
    case NPI_KEEPER_DROP:
      item = find(keeper, &message->tag);
      if (item != NULL) drop(keeper, item);
      break;
    case NPI_KEEPER_GIVE: {
      read_others(keeper, fd);
      int status = give(keeper, fd);
      if (status != 0) npi_log(NPI_LOG_WARNING, "keeper.not_given", "reason=\"%s\"", npi_detail());
      for (int i = 0; i < n_fds; i++) close(fds[i]);
      return status;
    }
    case NPI_KEEPER_END: keeper->ending = 1; break;
    default: break; /* of a later release */
  }
  for (int i = 0; i < n_fds; i++) close(fds[i]);
  return 0;
}

static void hang_up(struct keeper *keeper, int slot) {
  epoll_ctl(keeper->epoll_fd, EPOLL_CTL_DEL, keeper->connections[slot], NULL);
  close(keeper->connections[slot]);
  keeper->connections[slot] = -1;
}

/* One message. 0: there may be more; else there is none now, or the connection is closed. */
static int serve_one(struct keeper *keeper, int slot) {
  int fd = keeper->connections[slot];
  struct npi_keeper_message message;
  int fds[NPI_KEEPER_FDS_MAX], n_fds = 0;
  size_t n = 0;
  int status = npi_socket_receive(fd, &message, sizeof message, &n, fds, NPI_KEEPER_FDS_MAX, &n_fds);
  if (status == NPI_SOCKET_AGAIN) return status;
  if (status == 0 && (n != sizeof message || message.magic != NPI_KEEPER_MAGIC ||
                      message.version != NPI_KEEPER_VERSION || message.n_fds != (uint32_t)n_fds)) {
    status = npi_fail(NP_ERR_PROTOCOL, "a message that no broker of this release sends");
    for (int k = 0; k < n_fds; k++) close(fds[k]);
  }
  if (status < 0) npi_log(NPI_LOG_WARNING, "keeper.hung_up", "reason=\"%s\"", npi_detail());
  if (status == 0) status = handle(keeper, fd, &message, fds, n_fds);
  if (status != 0) hang_up(keeper, slot);
  return status;
}

static void serve(struct keeper *keeper, int slot) {
  for (int i = 0; i < BATCH && !keeper->ending; i++) {
    if (serve_one(keeper, slot) != 0) return;
  }
}

/*
 * Who asks for everything is a successor, and whoever is connected beside it has spoken its last word: that may wait here
 * still, and its records count on it.
 */
static void read_others(struct keeper *keeper, int fd) {
  if (keeper->giving) return; /* a successor that has died meanwhile, found by the next one */
  keeper->giving = 1;
  for (int slot = 0; slot < CONNECTIONS_MAX; slot++) {
    for (int i = 0; i < LAST_WORDS_MAX && !keeper->ending; i++) {
      if (keeper->connections[slot] < 0 || keeper->connections[slot] == fd || serve_one(keeper, slot) != 0) break;
    }
  }
  keeper->giving = 0;
}

static void accept_one(struct keeper *keeper) {
  int fd, slot = 0;
  if (npi_socket_accept(keeper->listen_fd, &fd) != 0) return;
  struct ucred peer;
  socklen_t length = sizeof peer;
  while (slot < CONNECTIONS_MAX && keeper->connections[slot] >= 0) slot++;
  struct epoll_event wish = {.events = EPOLLIN, .data.fd = fd};
  if (slot == CONNECTIONS_MAX || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 ||
      (peer.uid != geteuid() && peer.uid != 0) || epoll_ctl(keeper->epoll_fd, EPOLL_CTL_ADD, fd, &wish) != 0) {
    npi_log(NPI_LOG_WARNING, "keeper.refused", "reason=\"of another user, or one too many\"");
    close(fd);
    return;
  }
  keeper->connections[slot] = fd;
}

/* ---- the process ---- */

static int is_needed(const struct keeper *keeper) {
  if (keeper->ending) return 0;
  for (int i = 0; i < CONNECTIONS_MAX; i++) {
    if (keeper->connections[i] >= 0) return 1;
  }
  return keeper->n_living > 0;
}

static void turn(struct keeper *keeper) {
  struct epoll_event events[BATCH];
  int n = epoll_wait(keeper->epoll_fd, events, BATCH, -1);
  for (int i = 0; i < n && !keeper->ending; i++) {
    int fd = events[i].data.fd, slot = 0;
    while (slot < CONNECTIONS_MAX && keeper->connections[slot] != fd) slot++;
    if (fd == keeper->listen_fd) {
      accept_one(keeper);
    } else if (slot < CONNECTIONS_MAX) {
      serve(keeper, slot);
    } else {
      process_ended(keeper, fd);
    }
  }
}

static int start(struct keeper *keeper, int listen_fd) {
  struct rlimit limit;
  memset(keeper, 0, sizeof *keeper);
  for (int i = 0; i < CONNECTIONS_MAX; i++) keeper->connections[i] = -1;
  keeper->listen_fd = listen_fd;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  keeper->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event wish = {.events = EPOLLIN, .data.fd = listen_fd};
  if (keeper->epoll_fd < 0 || epoll_ctl(keeper->epoll_fd, EPOLL_CTL_ADD, listen_fd, &wish) != 0) {
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "descriptor %d is no socket to listen at", listen_fd);
  }
  return 0;
}

int npi_keeper_main(int listen_fd) {
  static int log_fd = STDERR_FILENO;
  struct keeper keeper;
  prctl(PR_SET_NAME, "numapool-keeper");
  signal(SIGINT, SIG_IGN); /* of a terminal or a service manager: they are for the broker, which then ends this */
  signal(SIGTERM, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  npi_log_set_sink(npi_log_sink_fd, &log_fd, NPI_LOG_INFO);
  int status = start(&keeper, listen_fd);
  if (status != 0) {
    npi_log(NPI_LOG_ERROR, "keeper.failed", "reason=\"%s\"", npi_detail());
    return 1;
  }
  /* The broker connected before this process began, so its connection is waiting to be accepted. */
  accept_one(&keeper);
  while (is_needed(&keeper)) turn(&keeper);
  free(keeper.items);
  return 0;
}
