/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The books of an instance: for each listener, publisher, channel and subscriber, sums that must be equal.
 *
 * An equation is looked at twice. Each of its terms has then been seen twice as well, and as counts only grow, its true
 * value at any moment between the looks lies between the two. The equation fails only where no such values make it
 * right: exact where nothing moves, and never wrong where much does.
 *
 * Clients and connections that come or go between the looks would move whole sums from one place to another; both
 * looks therefore go to one copy of the registry, and count only if the registry has not changed behind them.
 */
#ifndef NUMAPOOLCTL_AUDIT_H
#define NUMAPOOLCTL_AUDIT_H

#include <stddef.h>
#include <stdint.h>

#include "view.h"

enum { NPI_AUDIT_TERMS = 10, NPI_AUDIT_LOOKS = 2 };

enum npi_audit_scope { NPI_AUDIT_LISTENER, NPI_AUDIT_PUBLISHER, NPI_AUDIT_CHANNEL, NPI_AUDIT_SUBSCRIBER };

struct npi_audit_term {
  const char *name;
  int is_right;
  uint64_t value[NPI_AUDIT_LOOKS];
};

struct npi_audit_equation {
  enum npi_audit_scope scope;
  uint32_t index; /* in the table of the scope */
  int at_most;    /* the left side may be less */
  int fails;      /* npi_audit_judge */
  uint32_t n_terms;
  struct npi_audit_term term[NPI_AUDIT_TERMS];
};

/* What is shown of each, of the last look. */
struct npi_audit_row {
  uint64_t published, delivered, redelivered, dropped, lost, dead_lettered, in_flight, left;
  uint64_t received, held, taken, released, missed;
};

struct npi_audit {
  struct npi_audit_equation *equations;
  size_t n_equations, capacity;
  size_t at; /* the next one, in the second look */
  unsigned look;
  struct npi_audit_row *listeners, *channels, *subscribers;
  uint32_t n_listeners, n_channels, n_subscribers;
  uint32_t n_unread; /* clients whose counters are in no process any more */
};

/* Both looks. 0; 1: the registry changed meanwhile, nothing is known; < 0. Free it in each case. */
int npi_audit_take(struct npi_audit *audit, struct npi_view *view);
void npi_audit_free(struct npi_audit *audit);

/* One look at everything that one copy of the registry shows (audit_gather.c). */
int npi_audit_gather(struct npi_audit *audit, struct npi_view *view);

/* A new equation, or in the second look the same one again; terms follow in the same order. NULL: no memory. */
struct npi_audit_equation *npi_audit_equation(struct npi_audit *audit, enum npi_audit_scope scope, uint32_t index);
void npi_audit_add(struct npi_audit *audit, struct npi_audit_equation *equation, int is_right, const char *name,
                   uint64_t value);

/* "delivered 10 + redelivered 1 = 12 elements in rings" */
void npi_audit_describe(const struct npi_audit_equation *equation, char *text, size_t bytes);

#endif
