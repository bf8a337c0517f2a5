/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/loop.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "os/os_clock.h"

/* ---- watches ---- */

void npi_watch_init(struct npi_watch *watch, npi_watch_handler handler, void *owner) {
  *watch = (struct npi_watch){.fd = -1, .handler = handler, .owner = owner};
}

int npi_watch_begin(struct npi_loop *loop, struct npi_watch *watch, int fd, uint32_t events) {
  struct epoll_event wish = {.events = events, .data.ptr = watch};
  if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &wish) != 0) {
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot watch descriptor %d", fd);
  }
  watch->fd = fd;
  watch->events = events;
  return 0;
}

void npi_watch_change(struct npi_loop *loop, struct npi_watch *watch, uint32_t events) {
  if (watch->fd < 0 || watch->events == events) return;
  struct epoll_event wish = {.events = events, .data.ptr = watch};
  if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, watch->fd, &wish) == 0) watch->events = events;
}

void npi_watch_end(struct npi_loop *loop, struct npi_watch *watch) {
  if (watch->fd < 0) return;
  epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
  watch->fd = -1;
  /* Its owner may be freed next: nothing of this turn's batch may reach it any more. */
  for (int i = 0; i < loop->n_batch; i++) {
    if (loop->batch[i].data.ptr == watch) loop->batch[i].data.ptr = NULL;
  }
}

/* ---- timers ---- */

static void set_timerfd(struct npi_loop *loop) {
  struct itimerspec when;
  memset(&when, 0, sizeof when);
  if (loop->timers != NULL) {
    when.it_value.tv_sec = (time_t)(loop->timers->due_ns / 1000000000);
    when.it_value.tv_nsec = (long)(loop->timers->due_ns % 1000000000);
  }
  timerfd_settime(loop->timer.fd, TFD_TIMER_ABSTIME, &when, NULL);
}

void npi_timer_init(struct npi_timer *timer, npi_timer_handler handler, void *owner) {
  *timer = (struct npi_timer){.handler = handler, .owner = owner};
}

void npi_timer_end(struct npi_loop *loop, struct npi_timer *timer) {
  if (timer->due_ns == 0) return;
  for (struct npi_timer **at = &loop->timers; *at != NULL; at = &(*at)->next) {
    if (*at != timer) continue;
    *at = timer->next;
    break;
  }
  timer->due_ns = 0;
  timer->next = NULL;
}

void npi_timer_begin(struct npi_loop *loop, struct npi_timer *timer, uint64_t after_ns) {
  npi_timer_end(loop, timer);
  timer->due_ns = npi_clock_monotonic() + after_ns;
  struct npi_timer **at = &loop->timers;
  while (*at != NULL && (*at)->due_ns <= timer->due_ns) at = &(*at)->next;
  timer->next = *at;
  *at = timer;
  if (loop->timers == timer) set_timerfd(loop);
}

static void run_timers(struct npi_watch *watch, uint32_t events) {
  struct npi_loop *loop = watch->owner;
  uint64_t expirations, now = npi_clock_monotonic();
  (void)events;
  ssize_t n = read(watch->fd, &expirations, sizeof expirations);
  (void)n; /* only to make it unreadable again */
  /* What handlers arm anew is due later than now, so this ends. A crowd of them lets others have their turn. */
  while (loop->timers != NULL && loop->timers->due_ns <= now) {
    struct npi_timer *timer = loop->timers;
    npi_timer_end(loop, timer);
    timer->handler(timer);
    if (npi_clock_monotonic() - now > NPI_TURN_NS) break;
  }
  set_timerfd(loop);
}

/* ---- signals ---- */

static void read_signals(struct npi_watch *watch, uint32_t events) {
  struct npi_loop *loop = watch->owner;
  struct signalfd_siginfo info;
  (void)events;
  while (read(watch->fd, &info, sizeof info) == (ssize_t)sizeof info) {
    loop->on_signal(loop->signal_owner, (int)info.ssi_signo);
  }
}

/* ---- the loop ---- */

int npi_loop_init(struct npi_loop *loop, const sigset_t *signals, npi_signal_handler on_signal, void *owner) {
  int status;
  memset(loop, 0, sizeof *loop);
  npi_watch_init(&loop->signals, read_signals, loop);
  npi_watch_init(&loop->timer, run_timers, loop);
  loop->on_signal = on_signal;
  loop->signal_owner = owner;
  int signal_fd = -1, timer_fd = -1;
  loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (loop->epoll_fd < 0) {
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot create an epoll descriptor");
    goto fail;
  }
  sigprocmask(SIG_BLOCK, signals, NULL);
  signal_fd = signalfd(-1, signals, SFD_NONBLOCK | SFD_CLOEXEC);
  timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  if (signal_fd < 0 || timer_fd < 0) {
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot create descriptors for signals and timers");
    goto fail;
  }
  status = npi_watch_begin(loop, &loop->signals, signal_fd, EPOLLIN);
  if (status == 0) status = npi_watch_begin(loop, &loop->timer, timer_fd, EPOLLIN);
  if (status == 0) return 0;

fail:
  if (signal_fd >= 0) close(signal_fd);
  if (timer_fd >= 0) close(timer_fd);
  if (loop->epoll_fd >= 0) close(loop->epoll_fd);
  loop->signals.fd = loop->timer.fd = loop->epoll_fd = -1;
  return status;
}

void npi_loop_deinit(struct npi_loop *loop) {
  if (loop->signals.fd >= 0) close(loop->signals.fd);
  if (loop->timer.fd >= 0) close(loop->timer.fd);
  if (loop->epoll_fd >= 0) close(loop->epoll_fd);
  loop->signals.fd = loop->timer.fd = loop->epoll_fd = -1;
}

void npi_loop_stop(struct npi_loop *loop) {
  loop->stopped = 1;
}

int npi_loop_run(struct npi_loop *loop) {
  while (!loop->stopped) {
    int n = epoll_wait(loop->epoll_fd, loop->batch, NPI_LOOP_BATCH, -1);
    if (n < 0 && errno != EINTR) return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot wait for events");
    loop->n_batch = n < 0 ? 0 : n;
    for (int i = 0; i < loop->n_batch; i++) {
      struct npi_watch *watch = loop->batch[i].data.ptr;
      if (watch != NULL) watch->handler(watch, loop->batch[i].events);
    }
    loop->n_batch = 0;
  }
  return 0;
}
