/* SPDX-License-Identifier: Apache-2.0 */
#include "audit.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"

enum { BETWEEN_LOOKS_US = 20000 };

struct npi_audit_equation *npi_audit_equation(struct npi_audit *audit, enum npi_audit_scope scope, uint32_t index) {
  if (audit->look > 0) {
    struct npi_audit_equation *again = audit->at < audit->n_equations ? &audit->equations[audit->at++] : NULL;
    if (again == NULL || again->scope != scope || again->index != index) return NULL;
    again->n_terms = 0;
    return again;
  }
  if (audit->n_equations == audit->capacity) {
    size_t capacity = audit->capacity == 0 ? 64 : 2 * audit->capacity;
    struct npi_audit_equation *grown = realloc(audit->equations, capacity * sizeof *grown);
    if (grown == NULL) return NULL;
    audit->equations = grown;
    audit->capacity = capacity;
  }
  struct npi_audit_equation *equation = &audit->equations[audit->n_equations++];
  memset(equation, 0, sizeof *equation);
  equation->scope = scope;
  equation->index = index;
  return equation;
}

void npi_audit_add(struct npi_audit *audit, struct npi_audit_equation *equation, int is_right, const char *name,
                   uint64_t value) {
  if (equation == NULL || equation->n_terms == NPI_AUDIT_TERMS) return;
  struct npi_audit_term *term = &equation->term[equation->n_terms++];
  term->name = name;
  term->is_right = is_right;
  term->value[audit->look] = value;
}

static void judge(struct npi_audit_equation *equation) {
  uint64_t least[2] = {0}, most[2] = {0};
  for (uint32_t i = 0; i < equation->n_terms; i++) {
    const struct npi_audit_term *term = &equation->term[i];
    uint64_t a = term->value[0], b = term->value[1];
    least[term->is_right] += a < b ? a : b;
    most[term->is_right] += a < b ? b : a;
  }
  equation->fails = least[0] > most[1] || (!equation->at_most && least[1] > most[0]);
}

void npi_audit_describe(const struct npi_audit_equation *equation, char *text, size_t bytes) {
  size_t used = 0;
  for (int side = 0; side < 2; side++) {
    int first = 1;
    if (side == 1) used += (size_t)snprintf(text + used, bytes - used, equation->at_most ? " <= " : " = ");
    for (uint32_t i = 0; i < equation->n_terms && used < bytes; i++) {
      const struct npi_audit_term *term = &equation->term[i];
      if (term->is_right != side) continue;
      used += (size_t)snprintf(text + used, bytes - used, "%s%s %" PRIu64, first ? "" : " + ", term->name,
                               term->value[NPI_AUDIT_LOOKS - 1]);
      first = 0;
    }
    if (used >= bytes) return;
  }
}

/*
 * The part of the registry that says who there is, and what was. The tables as well: what was gathered has their sizes,
 * and whoever can write the registry of another user's instance can change them.
 */
static int tables_equal(const struct npi_view *view, const uint8_t *before) {
  static const size_t tables[] = {
      offsetof(struct npi_registry_header, channels),    offsetof(struct npi_registry_header, publishers),
      offsetof(struct npi_registry_header, subscribers), offsetof(struct npi_registry_header, connections),
      offsetof(struct npi_registry_header, listeners),   offsetof(struct npi_registry_header, journal)};
  for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
    const struct npi_table *table = (const void *)(view->bytes + tables[i]);
    uint64_t bytes = (uint64_t)table->count * table->bytes;
    if (memcmp(table, before + tables[i], sizeof *table) != 0) return 0;
    if (table->offset > view->n_bytes || bytes > view->n_bytes - table->offset) return 0;
    if (memcmp(view->bytes + table->offset, before + table->offset, bytes) != 0) return 0;
  }
  return 1;
}

/* The broker is at work on sums: they are in two places, or in none. */
static int journal_is_busy(const struct npi_view *view) {
  const struct npi_table *table = &view->header->journal;
  if (table->count != 1 || table->bytes < sizeof(struct npi_journal) || table->offset > view->n_bytes ||
      table->bytes > view->n_bytes - table->offset) {
    return 0;
  }
  const struct npi_journal *journal = (const void *)(view->bytes + table->offset);
  return npi_load_relaxed_u32(&journal->kind) != NPI_JOURNAL_NONE && npi_view_broker(view) != NPI_PROCESS_DEAD;
}

int npi_audit_take(struct npi_audit *audit, struct npi_view *view) {
  uint8_t *before = NULL;
  memset(audit, 0, sizeof *audit);
  audit->n_listeners = view->n_listeners;
  audit->n_channels = view->n_channels;
  audit->n_subscribers = view->n_subscribers;
  audit->listeners = calloc(view->n_listeners + 1, sizeof *audit->listeners);
  audit->channels = calloc(view->n_channels + 1, sizeof *audit->channels);
  audit->subscribers = calloc(view->n_subscribers + 1, sizeof *audit->subscribers);
  before = malloc(view->n_bytes);
  if (audit->listeners == NULL || audit->channels == NULL || audit->subscribers == NULL || before == NULL) {
    free(before);
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for the books of %u channels", view->n_channels);
  }
  int status = journal_is_busy(view);
  for (audit->look = 0; audit->look < NPI_AUDIT_LOOKS && status == 0; audit->look++) {
    if (audit->look > 0) usleep(BETWEEN_LOOKS_US);
    memset(audit->listeners, 0, view->n_listeners * sizeof *audit->listeners);
    memset(audit->channels, 0, view->n_channels * sizeof *audit->channels);
    memset(audit->subscribers, 0, view->n_subscribers * sizeof *audit->subscribers);
    audit->at = 0;
    audit->n_unread = 0;
    status = npi_audit_gather(audit, view);
  }
  memcpy(before, view->bytes, view->n_bytes);
  if (status == 0) status = npi_view_refresh(view);
  if (status == 0) status = !tables_equal(view, before);
  for (size_t i = 0; i < audit->n_equations; i++) judge(&audit->equations[i]);
  free(before);
  return status;
}

void npi_audit_free(struct npi_audit *audit) {
  free(audit->equations);
  free(audit->listeners);
  free(audit->channels);
  free(audit->subscribers);
  memset(audit, 0, sizeof *audit);
}
