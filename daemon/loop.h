/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker's one loop: descriptors (epoll), signals (signalfd), timers (one timerfd for all).
 *
 * Watches and timers are embedded in the objects they belong to; the loop owns none of them. A handler may
 * end any watch or timer, also its own and also one that is due in the same turn.
 */
#ifndef NPI_DAEMON_LOOP_H
#define NPI_DAEMON_LOOP_H

#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>

struct npi_watch;
typedef void (*npi_watch_handler)(struct npi_watch *watch, uint32_t events);
struct npi_watch {
  int fd; /* -1: not watched; the descriptor stays its owner's */
  uint32_t events;
  npi_watch_handler handler;
  void *owner;
};

struct npi_timer;
typedef void (*npi_timer_handler)(struct npi_timer *timer);
struct npi_timer {
  uint64_t due_ns; /* 0: not armed */
  struct npi_timer *next;
  npi_timer_handler handler;
  void *owner;
};

struct npi_loop;
typedef void (*npi_signal_handler)(void *owner, int signal);

/* A handler that has more to do after so long leaves it for the next turn: what one asks for must not hold up another. */
#define NPI_TURN_NS UINT64_C(500000)

enum { NPI_LOOP_BATCH = 64 };
struct npi_loop {
  int epoll_fd;
  int stopped;
  struct npi_watch signals;
  npi_signal_handler on_signal;
  void *signal_owner;
  struct npi_watch timer;
  struct npi_timer *timers; /* the earliest first */
  struct epoll_event batch[NPI_LOOP_BATCH];
  int n_batch;
};

/* Blocks the signals of the set for this process and delivers them to on_signal. */
int npi_loop_init(struct npi_loop *loop, const sigset_t *signals, npi_signal_handler on_signal, void *owner);
void npi_loop_deinit(struct npi_loop *loop);

/* Runs until npi_loop_stop(). */
int npi_loop_run(struct npi_loop *loop);
void npi_loop_stop(struct npi_loop *loop);

/* An idle watch, so that ending it is harmless. */
void npi_watch_init(struct npi_watch *watch, npi_watch_handler handler, void *owner);
int npi_watch_begin(struct npi_loop *loop, struct npi_watch *watch, int fd, uint32_t events);
void npi_watch_change(struct npi_loop *loop, struct npi_watch *watch, uint32_t events);
void npi_watch_end(struct npi_loop *loop, struct npi_watch *watch);

void npi_timer_init(struct npi_timer *timer, npi_timer_handler handler, void *owner);
/* (Re)arms it, once; 0 ns: in the next turn, after all descriptors that are ready. */
void npi_timer_begin(struct npi_loop *loop, struct npi_timer *timer, uint64_t after_ns);
void npi_timer_end(struct npi_loop *loop, struct npi_timer *timer);

#endif
