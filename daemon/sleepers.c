/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/sleepers.h"

#include "core/doorbell.h"
#include "core/ring.h"
#include "daemon/broker.h"
#include "daemon/clients.h"
#include "os/os_clock.h"
#include "os/os_wait.h"

/* Asleep, and in this episode not rung by us yet. */
static int sleeps(const struct npi_doorbell_shm *bell, uint32_t rung_episode, uint32_t *episode) {
  uint64_t word = npi_load_acquire_u64(&bell->word);
  *episode = (uint32_t)(word >> 32);
  return (uint32_t)word == NPI_BELL_ASLEEP && *episode != rung_episode;
}

/* The pages are their clients': only loads, and a lie has the liar woken once in vain. */
static int has_element(const struct npi_ring_block *block, uint32_t capacity, uint64_t position) {
  struct npi_ring ring;
  uint64_t element;
  npi_ring_attach(&ring, (struct npi_ring_block *)(uintptr_t)block, capacity); /* only loads follow */
  return npi_ring_load(&ring, position, &element);
}

static int has_events(const struct npi_client *client) {
  const struct npi_subscriber *subscriber;
  const struct npi_connection *connection;
  DL_FOREACH2(client->subscribers, subscriber, client_next) {
    DL_FOREACH2(subscriber->connections, connection, subscriber_next) {
      if (connection->lied || !connection->subscriber_holds) continue; /* nothing is taken from it any more */
      const struct npi_ring_block *returns = npi_client_block(client, connection->returns_offset);
      const struct npi_ring_block *submissions =
          npi_client_block(connection->publisher->client, connection->submissions_offset);
      uint64_t taken = npi_load_relaxed_u64(&returns->counter[NPI_RETURN_TAKEN]);
      if (has_element(submissions, subscriber->capacity, taken)) return 1;
    }
  }
  return 0;
}

static int has_credits(const struct npi_client *client) {
  const struct npi_publisher *publisher;
  const struct npi_connection *connection;
  DL_FOREACH2(client->publishers, publisher, client_next) {
    DL_FOREACH2(publisher->connections, connection, publisher_next) {
      const struct npi_subscriber *subscriber = connection->subscriber;
      if (connection->lied || !connection->publisher_holds) continue;
      const struct npi_ring_block *submissions = npi_client_block(client, connection->submissions_offset);
      const struct npi_ring_block *returns = npi_client_block(subscriber->client, connection->returns_offset);
      uint64_t processed = npi_load_relaxed_u64(&submissions->counter[NPI_SUBMISSION_RETURNED]);
      if (has_element(returns, subscriber->capacity, processed)) return 1;
    }
  }
  return 0;
}

static void look_at(struct npi_client *client) {
  const struct npi_page_shm *page = (const struct npi_page_shm *)(const void *)client->page;
  uint32_t episode;
  if (sleeps(&page->events, client->events_rung, &episode) && has_events(client)) {
    client->events_rung = episode;
    npi_event_ring(client->events_fd);
  }
  if (sleeps(&page->credits, client->credits_rung, &episode) && has_credits(client)) {
    client->credits_rung = episode;
    npi_event_ring(client->credits_fd);
  }
}

static void on_look(struct npi_timer *timer) {
  struct npi_broker *broker = timer->owner;
  struct npi_sleepers *sleepers = &broker->sleepers;
  uint64_t begin_ns = npi_clock_monotonic();
  for (uint32_t i = sleepers->next; i < broker->registry.n_clients; i++) {
    if (broker->clients[i] == NULL || broker->clients[i]->gone) continue;
    look_at(broker->clients[i]);
    if (npi_clock_monotonic() - begin_ns < NPI_TURN_NS) continue;
    sleepers->next = i + 1;
    npi_timer_begin(&broker->loop, timer, 0);
    return;
  }
  sleepers->next = 0;
  npi_timer_begin(&broker->loop, timer, NPI_SLEEPERS_LOOK_NS);
}

void npi_sleepers_init(struct npi_broker *broker) {
  npi_timer_init(&broker->sleepers.look, on_look, broker);
}

void npi_sleepers_begin(struct npi_broker *broker) {
  npi_timer_begin(&broker->loop, &broker->sleepers.look, NPI_SLEEPERS_LOOK_NS);
}

void npi_sleepers_end(struct npi_broker *broker) {
  npi_timer_end(&broker->loop, &broker->sleepers.look);
}
