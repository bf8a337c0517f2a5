/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker's side of its keeper (daemon/keeper_protocol.h): start it, tell it what to hold, ask a predecessor's for
 * all that it holds.
 *
 * A descriptor is put before the record that needs it becomes active, and dropped after the record is free. Sent is
 * as good as kept: what is in the keeper's socket is read also when the broker has died. A keeper that dies or does
 * not read is replaced and told everything again; meanwhile a broker's death would end the instance.
 */
#ifndef NPI_DAEMON_KEEP_H
#define NPI_DAEMON_KEEP_H

#include <stdint.h>
#include <sys/types.h>

#include "daemon/keeper_protocol.h"
#include "daemon/loop.h"

struct npi_broker;
struct npi_client;
struct npi_leased;

struct npi_keep {
  int fd;    /* -1: no keeper */
  pid_t pid; /* 0: not a child of this process */
  int ours;  /* the socket at path is to be removed by this broker */
  struct npi_watch watch;
  struct npi_timer again;
  char path[108];
};

/* An empty one, so that everything below is harmless. runtime_dir: keeper.sock is made in it. */
void npi_keep_init(struct npi_broker *broker);

/* Starts a keeper. Replaces the socket of one that is gone. */
int npi_keep_start(struct npi_broker *broker);

/* Tells the keeper to end, waits until it has (at most a second), and removes its socket. */
void npi_keep_end(struct npi_broker *broker);

/* Closes this side and nothing else. */
void npi_keep_leave(struct npi_broker *broker);

/* A child has ended, perhaps the keeper. */
void npi_keep_child_ended(struct npi_broker *broker);

/* ---- what a predecessor left ---- */

struct npi_kept {
  struct npi_keeper_tag tag;
  uint64_t data[NPI_KEEPER_DATA];
  int fds[NPI_KEEPER_FDS_MAX]; /* -1 behind n_fds, and where the taker has moved one to a place of its own */
  int n_fds;
};
struct npi_kept_list {
  struct npi_kept *items;
  uint32_t n_items, room;
};

/* Connects to the keeper of an earlier broker and asks for everything. NP_ERR_NO_BROKER: there is none. */
int npi_keep_join(struct npi_broker *broker, struct npi_kept_list *list);
struct npi_kept *npi_kept_find(const struct npi_kept_list *list, uint32_t kind, uint32_t index, uint32_t version);
/* Closes what was not taken. */
void npi_kept_free(struct npi_kept_list *list);

/* ---- what is kept ---- */

/* With the pidfd as long as the client has a session. */
void npi_keep_client(const struct npi_client *client, int pidfd);
void npi_keep_segment(struct npi_broker *broker, const struct npi_leased *segment);
void npi_keep_listener(struct npi_broker *broker, uint32_t listener, uint32_t worker);
void npi_keep_worker(struct npi_broker *broker, uint32_t worker);
void npi_keep_drop(struct npi_broker *broker, enum npi_kept_kind kind, uint32_t index, uint32_t version);

/* All of it: for a new keeper. */
void npi_keep_everything(struct npi_broker *broker);

#endif
