/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The descriptors that a program puts into its own epoll: an epoll set over the doorbell, the control socket's end,
 * and a timer that runs only while the broker is away. A set is readable while one of them is, so everything in it is
 * made unreadable or taken out by whoever deals with it: the bell is cleared, the timer read, a socket at its end
 * taken out. While the broker is there the socket counts for its end only: what it carries is announced by the bell.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/status.h"
#include "client/client_internal.h"

enum { TICK_NS = 250000000 }; /* between attempts to come back, of a program that sleeps */

static int add(int watch, int fd, uint32_t events) {
  struct epoll_event event = {.events = events};
  if (epoll_ctl(watch, EPOLL_CTL_ADD, fd, &event) == 0) return 0;
  if (errno == EEXIST && epoll_ctl(watch, EPOLL_CTL_MOD, fd, &event) == 0) return 0;
  return npi_fail_errno(errno == ENOSPC ? NP_ERR_LIMIT : NP_ERR_SYSTEM, errno, "cannot watch descriptor %d", fd);
}

static int is_reachable(const struct np_client *client) {
  return client->attach != NPI_ATTACH_AWAY && client->attach != NPI_ATTACH_ORPHAN;
}

int npi_watch_open(struct np_client *client, int *watch, int bell_fd) {
  if (*watch >= 0) return 0;
  if (client->tick_fd < 0) client->tick_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  int made = client->tick_fd < 0 ? -1 : epoll_create1(EPOLL_CLOEXEC);
  if (made < 0) {
    return npi_fail_errno(errno == EMFILE || errno == ENFILE ? NP_ERR_LIMIT : NP_ERR_SYSTEM, errno,
                          "cannot create a descriptor for epoll");
  }
  int status = add(made, bell_fd, EPOLLIN);
  if (status == 0) status = add(made, client->tick_fd, EPOLLIN);
  if (status != 0) {
    close(made);
    return status;
  }
  *watch = made;
  npi_watch_socket(client);
  return 0;
}

void npi_watch_socket(struct np_client *client) {
  const int watches[] = {client->events_watch, client->credits_watch};
  if (client->tick_fd < 0) return;
  /* An answer to one who comes back rings no bell. EPOLLHUP is always reported. */
  uint32_t events = client->attach == NPI_ATTACHED ? 0 : (uint32_t)EPOLLIN;
  for (unsigned i = 0; i < NPI_ARRAY_COUNT(watches); i++) {
    if (watches[i] < 0) continue;
    if (is_reachable(client)) {
      add(watches[i], client->socket, events);
    } else if (client->socket >= 0) {
      epoll_ctl(watches[i], EPOLL_CTL_DEL, client->socket, NULL);
    }
  }
  struct itimerspec tick = {{0, 0}, {0, 0}};
  if (client->attach == NPI_ATTACH_AWAY) tick.it_value.tv_nsec = tick.it_interval.tv_nsec = TICK_NS;
  timerfd_settime(client->tick_fd, 0, &tick, NULL);
}

void npi_watch_forget(struct np_client *client) {
  if (client->socket < 0) return;
  if (client->events_watch >= 0) epoll_ctl(client->events_watch, EPOLL_CTL_DEL, client->socket, NULL);
  if (client->credits_watch >= 0) epoll_ctl(client->credits_watch, EPOLL_CTL_DEL, client->socket, NULL);
}

void npi_watch_close(struct np_client *client) {
  int *const fds[] = {&client->events_watch, &client->credits_watch, &client->tick_fd};
  for (unsigned i = 0; i < NPI_ARRAY_COUNT(fds); i++) {
    if (*fds[i] >= 0) close(*fds[i]);
    *fds[i] = -1;
  }
}
