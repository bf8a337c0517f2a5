/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker's segments, node by node: made ahead of demand, taken from there, and destroyed when they come back. What is
 * slow, making pages and giving them back, is done piece by piece, so that clients are served in between. Each segment
 * has a record in the registry, which a successor reads.
 */
#ifndef NPI_DAEMON_STOCK_H
#define NPI_DAEMON_STOCK_H

#include "daemon/objects.h"
#include "daemon/registry.h"

struct npi_broker;

struct npi_stock {
  struct npi_node *nodes; /* NULL: not initialized */
  uint32_t n_nodes;
  uint32_t ready_wanted; /* segments of each node */
  uint64_t next_object;
  struct npi_index_pool pool;
  /* The owner's: one more is ready, or there is room, or none could be made on these nodes (bits by index). */
  void (*on_change)(struct npi_broker *broker, uint64_t failed_nodes);

  struct npi_timer timer; /* ready ones are to be made */
  uint64_t stocked_ns;    /* when that was done last */
  int failed;             /* the last try failed, and that was reported */

  struct npi_leased *making; /* one at a time; NULL: none */
  char making_name[96];
  struct npi_timer making_timer;

  struct npi_leased *retired; /* free for everybody else; their pages are given back one after the other */
  struct npi_timer retired_timer;
};

/* Makes the ready segments; takes about a second a GiB. */
int npi_stock_init(struct npi_broker *broker);

/*
 * A predecessor's: first npi_stock_init_adopted(), then each segment whose record is not free, with its descriptor, which
 * is taken over; one that is leased is then the caller's to give to its client. npi_stock_plan() fills what is short.
 */
int npi_stock_init_adopted(struct npi_broker *broker, uint64_t next_object);
int npi_stock_adopt(struct npi_broker *broker, uint32_t index, const struct npi_segment_record *record, int fd,
                    struct npi_leased **out);

/* After segments were taken: others are made soon, if there is room. */
void npi_stock_plan(struct npi_broker *broker);

enum { NPI_STOCK_LATER = 1 };

/*
 * A ready segment of that node; where it can have no more, and numa is not strict, of another node. It is the caller's,
 * who says whose it is by its client and number, and then by npi_stock_set_state(). NPI_STOCK_LATER: none is ready;
 * on_change says when to ask again. failed_nodes: where none could be made since the caller asked for the first time;
 * these are not tried again. NP_ERR_NO_MEMORY: all budgets are spent; or why none can be made.
 */
int npi_stock_take(struct npi_broker *broker, uint32_t home, uint64_t failed_nodes, struct npi_leased **out);
void npi_stock_set_state(struct npi_broker *broker, struct npi_leased *segment, enum npi_segment_state state);

/* Counts it as leased (sign 1) or not any more (-1) in its node's figures. */
void npi_stock_account(struct npi_broker *broker, const struct npi_leased *segment, int sign);

/* Nobody uses it any more: free at once, without a name at once; its pages are given back in the next turns. */
void npi_stock_retire(struct npi_broker *broker, struct npi_leased *segment);

/* At the broker's end, while a client may still use it: the pages go with the last who has them mapped. */
void npi_stock_abandon(struct npi_broker *broker, struct npi_leased *segment);

/* Destroys what is ready or retired; first all others were retired or abandoned. */
void npi_stock_deinit(struct npi_broker *broker);

#endif
