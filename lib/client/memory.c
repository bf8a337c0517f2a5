/* SPDX-License-Identifier: Apache-2.0 */
/* A client's own segments: leased when loans run dry, trimmed when idle. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "client/client_internal.h"
#include "os/os_clock.h"
#include "os/os_memory.h"
#include "wire/channel.h"

enum {
  LEASE_TIMEOUT_MS = 2000,
  LEASE_MIB_MS = 10,     /* and for each MiB: memory is made at about 1 GiB a second on an idle machine */
  REFUSED_NS = 10000000, /* after a refusal, ask again not before */
  UNCARVE_NS = 10000000, /* walking all records costs: not more often */
  TRIM_EVERY_NS = 250000000,
  TRIM_IDLE_NS = 1000000000,
  TRIM_AT_ONCE = 4,
};

/* 0: the broker will read it. Where the socket is full: later. */
static int give_back(struct np_client *client, uint32_t number) __attribute__((cold, noinline));
static int give_back(struct np_client *client, uint32_t number) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_RETURN_SEGMENT, ++client->request, 0);
  frame.body.return_segment.number = number;
  return npi_control_send(client->socket, &frame, NULL, 0);
}

void npi_client_own_segment(struct np_client *client, const struct npi_control_frame *frame, int fd) {
  uint32_t number = frame->body.segment.number;
  uint64_t bytes = frame->body.segment.bytes;
  uint64_t have = 0;
  void *base = NULL;
  if (number < client->pool.ledger.geometry.segments && client->segments[number].base != NULL) {
    close(fd); /* told again, after the broker was away */
    return;
  }
  if (number >= client->pool.ledger.geometry.segments || npi_memory_size(fd, &have) < 0 || have < bytes ||
      npi_memory_map(fd, 0, bytes, 1, &base) < 0 || npi_memory_populate(base, bytes, 1) < 0 ||
      npi_pool_add_segment(&client->pool, number, base, bytes, frame->body.segment.node) < 0) {
    npi_log(NPI_LOG_ERROR, "lease.unusable", "number=%u bytes=%llu reason=\"%s\"", number, (unsigned long long)bytes,
            npi_detail());
    npi_memory_unmap(base, bytes);
    close(fd);
    /* Back with it, or each further loan would lease another one that is of no use. */
    if (number < client->pool.ledger.geometry.segments && client->segments[number].base == NULL)
      give_back(client, number);
    client->lease_again_ns = npi_clock_monotonic() + REFUSED_NS;
    return;
  }
  client->segment_fds[number] = fd; /* kept: what outlives the broker can be found through it */
}

/* The broker's successor does not know that this client leases it. */
void npi_client_own_segment_gone(struct np_client *client, uint32_t number) {
  if (number >= client->pool.ledger.geometry.segments || client->pool.segments[number].base == NULL) return;
  void *base = client->pool.segments[number].base;
  uint64_t bytes = client->pool.segments[number].bytes;
  if (npi_pool_remove_segment(&client->pool, number) != 0) {
    npi_log(NPI_LOG_ERROR, "lease.lost", "number=%u bytes=%llu reason=\"events lie in it\"", number,
            (unsigned long long)bytes);
    return; /* subscribers who have it go on; whoever comes later cannot read what lies there */
  }
  npi_memory_unmap(base, bytes);
  close(client->segment_fds[number]);
  client->segment_fds[number] = -1;
}

int npi_client_lease(struct np_client *client, uint64_t bytes) {
  struct npi_control_frame frame;
  struct npi_control_frame reply;
  npi_control_init(&frame, NPI_CONTROL_LEASE, 0, 0);
  frame.body.lease.bytes = bytes;
  uint64_t mib = (bytes < client->pool.budget_bytes ? bytes : client->pool.budget_bytes) >> 20;
  int status = npi_client_request(client, &frame, &reply, LEASE_TIMEOUT_MS + (int)(mib * LEASE_MIB_MS));
  client->lease_refusal[0] = '\0';
  if (status != 0) {
    client->lease_again_ns = npi_clock_monotonic() + REFUSED_NS;
    snprintf(client->lease_refusal, sizeof client->lease_refusal, "%s", npi_detail());
  }
  return status;
}

uint32_t npi_client_reap(struct np_client *client) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < client->n_links; i++) {
    struct npi_link *link = client->links[i];
    if (link == NULL || link->role != NPI_ROLE_PUBLISHER || link->lie_reported) continue;
    int reaped = npi_outlet_reap(&link->outlet, &client->pool, link->outlet.entry->capacity);
    if (reaped > 0) n += (uint32_t)reaped;
    if (reaped == NPI_OUTLET_LIE) npi_link_report_lie(client, link);
  }
  return n;
}

/* Does not wait for the answer: it is on the way of publishers, who never block. Where the socket is full: later. */
static void return_segment(struct np_client *client, uint32_t number) __attribute__((cold, noinline));
static void return_segment(struct np_client *client, uint32_t number) {
  void *base = client->pool.segments[number].base;
  uint64_t bytes = client->pool.segments[number].bytes;
  int cancel_state = npi_cancel_off();
  if (give_back(client, number) != 0) {
    npi_cancel_restore(cancel_state);
    return;
  }
  client->control_calls++;
  npi_pool_remove_segment(&client->pool, number); /* wholly free, or it would not have been chosen */
  npi_memory_unmap(base, bytes);
  close(client->segment_fds[number]);
  client->segment_fds[number] = -1;
  npi_cancel_restore(cancel_state);
}

void npi_client_trim(struct np_client *client, uint64_t now_ns) {
  if (now_ns < client->trim_again_ns) return;
  client->trim_again_ns = now_ns + TRIM_EVERY_NS;
  if (client->pool.n_segments <= 1 || client->attach != NPI_ATTACHED) return;
  npi_client_reap(client);
  for (int i = 0; i < TRIM_AT_ONCE; i++) {
    uint32_t number = npi_pool_idle_segment(&client->pool, now_ns, TRIM_IDLE_NS, 1);
    if (number == NPI_NONE || client->pool.leased_bytes < client->reserved_bytes + client->segment_bytes) return;
    return_segment(client, number);
  }
  npi_client_verify(client);
}

/* Who holds most of this client's memory: the words of a loan that found nothing. */
static int say_dry(struct np_client *client, const char *why) {
  char holders[256] = "nobody";
  int used = 0;
  for (int rank = 0; rank < 3; rank++) {
    struct npi_link *top = NULL;
    static const uint64_t none = UINT64_MAX;
    uint64_t below = none;
    for (int r = 0; r <= rank; r++) {
      top = NULL;
      for (uint32_t i = 0; i < client->n_links; i++) {
        struct npi_link *link = client->links[i];
        if (link == NULL || link->role != NPI_ROLE_PUBLISHER || link->outlet.entry->bytes_out >= below) continue;
        if (top == NULL || link->outlet.entry->bytes_out > top->outlet.entry->bytes_out) top = link;
      }
      if (top == NULL) break;
      below = top->outlet.entry->bytes_out;
    }
    if (top == NULL || below == 0) break;
    used += snprintf(holders + used, sizeof holders - (size_t)used, "%s%s (pid %u) %llu bytes in %u events",
                     rank == 0 ? "" : ", ", top->peer->name, top->peer->pid, (unsigned long long)below,
                     top->outlet.entry->outstanding);
    if (used >= (int)sizeof holders - 1) break;
  }
  return npi_fail(NP_EMPTY, "no free slot: %llu of %llu bytes are leased and in use; held by %s; %s",
                  (unsigned long long)client->pool.leased_bytes, (unsigned long long)client->pool.budget_bytes, holders,
                  why);
}

/* Chunks of other classes that are wholly free, for this one. Walks all records, so not often; insist: all the same. */
static int take_from_other_classes(struct np_client *client, uint32_t slot_class, uint64_t now, int insist) {
  if (now < client->uncarve_again_ns && !insist) {
    client->uncarve_put_off = 1;
    return 0;
  }
  client->uncarve_again_ns = now + UNCARVE_NS;
  client->uncarve_put_off = 0;
  return npi_pool_uncarve(&client->pool) > 0 && npi_pool_carve(&client->pool, slot_class) == 0;
}

/*
 * Would a loan of this class succeed now, without a word to the broker? Makes room where it can. last_look: nobody
 * looks again before something is released, so what was put off for its cost is done now.
 */
int npi_client_has_room(struct np_client *client, uint32_t slot_class, int last_look) {
  npi_client_reap(client);
  if (client->pool.ledger.header->free[slot_class].head != NPI_NONE) return 1;
  if (npi_pool_carve(&client->pool, slot_class) == 0) return 1;
  if (npi_pool_larger_class(&client->pool, slot_class) != NPI_NONE) return 1;
  return take_from_other_classes(client, slot_class, npi_clock_monotonic(), last_look && client->uncarve_put_off);
}

/* The list of this class is empty. Cheap ways first; at most one call to the broker. NPI_NONE: none to be had. */
uint32_t npi_client_loan_slow(struct np_publisher *publisher, uint32_t slot_class) {
  struct np_client *client = publisher->client;
  struct npi_pool *pool = &client->pool;
  if (npi_client_reap(client) > 0) {
    uint32_t slot = npi_pool_loan(pool, slot_class);
    if (slot != NPI_NONE) return slot;
  }
  if (npi_pool_carve(pool, slot_class) == 0) return npi_pool_loan(pool, slot_class);
  uint64_t now = npi_clock_monotonic();
  uint64_t run_bytes = (uint64_t)npi_class_run(slot_class) * NPI_CHUNK_BYTES;
  const char *why = "the budget is spent: raise memory.per_client, or let subscribers release sooner";
  if (pool->leased_bytes < pool->budget_bytes) why = "the broker gave no more";
  if (pool->leased_bytes < pool->budget_bytes && now >= client->lease_again_ns &&
      (client->attach == NPI_ATTACHED || npi_client_may_attach(client))) {
    /* A quarter more each time: few calls while growing, little too much at the end. */
    uint64_t bytes = pool->leased_bytes / 4 > run_bytes ? pool->leased_bytes / 4 : run_bytes;
    if (npi_client_lease(client, bytes) == 0 && npi_pool_carve(pool, slot_class) == 0) {
      return npi_pool_loan(pool, slot_class);
    }
  }
  if (pool->leased_bytes < pool->budget_bytes && client->lease_refusal[0] != '\0') why = client->lease_refusal;
  if (take_from_other_classes(client, slot_class, now, 0)) return npi_pool_loan(pool, slot_class);
  uint32_t larger = npi_pool_larger_class(pool, slot_class);
  if (larger != NPI_NONE) return npi_pool_loan(pool, larger);
  if (client->attach != NPI_ATTACHED) why = "the broker is away, so no more can be leased";
  say_dry(client, why);
  return NPI_NONE;
}

void npi_client_memory_free(struct np_client *client) {
  for (uint32_t i = 0; client->segments != NULL && i < client->pool.ledger.geometry.segments; i++) {
    npi_memory_unmap(client->segments[i].base, client->segments[i].bytes);
    if (client->segment_fds != NULL && client->segment_fds[i] >= 0) close(client->segment_fds[i]);
  }
  free(client->segments);
  free(client->segment_fds);
  client->segments = NULL;
  client->segment_fds = NULL;
  for (unsigned i = 0; i < NPI_ARRAY_COUNT(client->credit_blocks); i++) {
    while (client->credit_blocks[i] != NULL) {
      struct npi_credit_block *next = client->credit_blocks[i]->next;
      free(client->credit_blocks[i]);
      client->credit_blocks[i] = next;
    }
  }
}
