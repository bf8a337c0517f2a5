/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping and waking (core/doorbell.h has the protocol and why no wake-up is lost). A client has two
 * doorbells: events, for all its subscribers, and credits, for all its publishers.
 */
#include "base/status.h"
#include "client/client_internal.h"
#include "client/worker.h"
#include "os/os_clock.h"
#include "os/os_wait.h"

enum {
  SPIN_TURNS = 2000,        /* looks before sleeping: about 20 us */
  CALM_EVERY_TAKES = 4096,  /* looks at the clock while the bell is fenced */
  REFUSED_NAP_NS = 1000000, /* once for each bell, if at all */
};

void npi_bell_ring_peer(struct npi_bell_peer *peer) {
  if (npi_bell_look(peer) && npi_bell_must_ring(peer)) npi_event_ring(peer->fd);
}

/* When a wait is over; a time that the clock never reaches is for ever. */
static uint64_t end_of(uint64_t now, int64_t timeout_ms) {
  return timeout_ms < 0 || timeout_ms > INT64_MAX / 1000000 ? UINT64_MAX : now + (uint64_t)timeout_ms * 1000000;
}

static void go_to_sleep(struct npi_bell *bell) {
  if (!npi_bell_go_to_sleep(bell)) return;
  if (npi_membarrier_all() != 0) { /* refused from now on (a filter was installed): fence for ever */
    bell->always_fenced = 1;
    npi_fence_full();
    /* A peer may have seen AWAKE with its element still in its store buffer, which is not so for long. */
    npi_wait_readable(NULL, 0, REFUSED_NAP_NS);
  }
}

/* ---- events ------------------------------------------------------------------------------------------ */

int npi_subscriber_has(struct np_subscriber *subscriber) {
  uint64_t element;
  for (uint32_t i = 0; i < subscriber->n_inlets; i++) {
    if (!subscriber->inlets[i]->cut && npi_inlet_look(&subscriber->inlets[i]->inlet, &element)) return 1;
  }
  return 0;
}

static int any_subscriber_has(struct np_client *client) {
  for (struct np_subscriber *s = client->subscribers; s != NULL; s = s->next) {
    if (npi_subscriber_has(s)) return 1;
  }
  return 0;
}

/* Is there something of the broker's that only a call can find? What answers one who comes back is watched by itself. */
static int must_look(const struct np_client *client) {
  return npi_client_has_news(client) && client->attach != NPI_ATTACH_ASKED && client->attach != NPI_ATTACH_TELLING;
}

/* The program was woken, or comes by, and no bell rang: the other things in its epoll set are about the broker. */
static void look_at_broker(struct np_client *client) {
  if (client->attach == NPI_ATTACH_AWAY) npi_event_clear(client->tick_fd);
  npi_client_look(client);
}

/* As go_to_sleep: takes are no more the short ones, which expect that the doorbell is AWAKE. */
static void events_go_to_sleep(struct np_client *client) {
  for (struct np_subscriber *s = client->subscribers; s != NULL; s = s->next) s->current = NULL;
  go_to_sleep(&client->events_bell);
}

/* The program sleeps in its own epoll: asleep from now on, and the descriptor readable if something is there. */
void npi_client_arm_events(struct np_client *client) {
  if (!npi_event_clear(client->events_fd)) look_at_broker(client);
  events_go_to_sleep(client);
  if (any_subscriber_has(client) || must_look(client) || client->shut_out) {
    npi_bell_wake_up(&client->events_bell, npi_clock_monotonic());
    npi_event_ring(client->events_fd);
  }
}

/* The bell is not AWAKE: a take after a sleep in the program's epoll, or busy again for a while. */
void npi_client_bell_attention(struct np_client *client) {
  if (client->events_bell.state == NPI_BELL_ASLEEP) {
    npi_bell_wake_up(&client->events_bell, npi_clock_monotonic());
  } else if (++client->takes_fenced >= CALM_EVERY_TAKES) {
    client->takes_fenced = 0;
    npi_bell_calm(&client->events_bell, npi_clock_monotonic());
  }
}

static int usable_wait(struct np_subscriber *subscriber, int *found) {
  if (npi_client_has_news(subscriber->client)) npi_client_news(subscriber->client);
  *found = subscriber->client->shut_out || npi_subscriber_has(subscriber);
  return *found;
}

int np_wait(struct np_subscriber *subscriber, int64_t timeout_ms) {
  struct np_client *client = subscriber->client;
  int found = 0;
  if (!npi_client_usable(client)) return npi_client_forked();
  struct npi_bell *bell = &client->events_bell;
  if (usable_wait(subscriber, &found)) return client->shut_out ? npi_client_shut_out() : NP_OK;
  if (timeout_ms == 0) return NP_TIMEOUT;
  for (int i = 0; i < SPIN_TURNS; i++) {
    npi_pause();
    if (npi_subscriber_has(subscriber)) return NP_OK;
  }
  uint64_t now = npi_clock_monotonic();
  uint64_t until = end_of(now, timeout_ms);
  npi_bell_calm(bell, now);
  int status = NP_OK;
  while (!found) {
    events_go_to_sleep(client);
    if (usable_wait(subscriber, &found)) break; /* the second look */
    npi_client_trim(client, now);
    uint64_t left = until - now;
    int64_t bound = left < (uint64_t)NPI_SLEEP_BOUND_NS ? (int64_t)left : NPI_SLEEP_BOUND_NS;
    npi_count_add(&subscriber->counters->value[NPI_SUBSCRIBER_SLEEPS], 1);
    int ready = npi_client_sleep(client, client->events_fd, bound);
    if (ready > 0) npi_event_clear(client->events_fd);
    if (ready == 0) npi_client_look(client); /* quiet for a while: is the broker still there, or there again? */
    now = npi_clock_monotonic();
    npi_bell_wake_up(bell, now);
    if (ready < 0) status = ready;
    if (usable_wait(subscriber, &found) || status < 0) break;
    if (now >= until) {
      status = NP_TIMEOUT;
      break;
    }
  }
  if (bell->state == NPI_BELL_ASLEEP) npi_bell_wake_up(bell, npi_clock_monotonic());
  /* This sleep may have taken the wake-up of another subscriber's epoll, and has ended the episode that it slept in. */
  if (client->events_fd_used) npi_client_arm_events(client);
  if (client->shut_out) return npi_client_shut_out();
  return found ? NP_OK : status;
}

int np_fd(struct np_subscriber *subscriber) {
  struct np_client *client = subscriber->client;
  if (!npi_client_usable(client)) return npi_client_forked();
  int status = npi_watch_open(client, &client->events_watch, client->events_fd);
  if (status != 0) return status;
  client->events_fd_used = 1;
  npi_client_arm_events(client);
  return client->events_watch;
}

/* ---- credits ----------------------------------------------------------------------------------------- */

static int may_lease(const struct np_client *client) {
  return client->pool.leased_bytes < client->pool.budget_bytes && client->attach == NPI_ATTACHED &&
         npi_clock_monotonic() >= client->lease_again_ns;
}

static int may_publish(struct np_publisher *publisher) {
  int may = npi_flow_may_publish(&publisher->flow, publisher->wanted_class);
  npi_publisher_flush(publisher); /* a group's waiting events may have gone to members that sleep */
  /* The look was at returns: who lied there must be reported here, since no publish follows where all wait for it. */
  if (publisher->flow.broken != 0) {
    publisher->flow.broken = 0;
    npi_client_reap(publisher->client);
  }
  return may;
}

/* Events of members that died go on as soon as another member has credit, also where nothing new is published. */
static void offer_waiting(struct np_client *client) {
  for (struct np_publisher *p = client->publishers; p != NULL; p = p->next) {
    if (p->flow.n_waiting > 0 && npi_flow_offer_waiting(&p->flow) > 0) npi_publisher_flush(p);
  }
}

/* May the loan or publish that met a condition go on? Looks at returns as far as needed. */
static int may_go_on(struct np_publisher *publisher) {
  struct np_client *client = publisher->client;
  if (npi_client_has_news(client)) npi_client_news(client);
  offer_waiting(client);
  int go = !publisher->wants_credit && !publisher->wants_slot;
  if (publisher->wants_credit) go = may_publish(publisher);
  /* Either will do: a loan that failed long ago must not hold up a publish that has its credit now. */
  if (!go && publisher->wants_slot) go = npi_client_has_room(client, publisher->wanted_class, 0) || may_lease(client);
  if (go) publisher->wants_credit = publisher->wants_slot = 0;
  return go;
}

/* As npi_client_arm_events, for publishers that met NP_FULL or NP_EMPTY. */
void npi_client_arm_credits(struct np_client *client) {
  if (!npi_event_clear(client->credits_fd)) look_at_broker(client);
  go_to_sleep(&client->credits_bell);
  npi_client_reap(client); /* all that is there by now, so that what the broker finds in the rings came after it */
  int ready = must_look(client) || client->shut_out;
  offer_waiting(client); /* what is left of it wakes the program when a member gives credit back */
  for (struct np_publisher *p = client->publishers; p != NULL && !ready; p = p->next) {
    ready = (p->wants_credit && may_publish(p)) || (p->wants_slot && npi_client_has_room(client, p->wanted_class, 1));
  }
  if (ready) {
    npi_bell_wake_up(&client->credits_bell, npi_clock_monotonic());
    npi_event_ring(client->credits_fd);
  }
}

int np_wait_credit(struct np_publisher *publisher, int64_t timeout_ms) {
  struct np_client *client = publisher->client;
  if (!npi_client_usable(client)) return npi_client_forked();
  struct npi_bell *bell = &client->credits_bell;
  npi_client_reap(client); /* also where nothing is waited for: a quiet publisher learns here what came back */
  if (may_go_on(publisher)) return NP_OK;
  if (client->shut_out) return npi_client_shut_out(); /* the broker tells it of no end: who is waited for may be dead */
  if (timeout_ms == 0) return NP_TIMEOUT;
  for (int i = 0; i < SPIN_TURNS / 4; i++) {
    npi_pause();
    if (may_go_on(publisher)) return NP_OK;
  }
  uint64_t now = npi_clock_monotonic();
  uint64_t until = end_of(now, timeout_ms);
  npi_bell_calm(bell, now);
  int status = NP_TIMEOUT;
  for (;;) {
    go_to_sleep(bell);
    if (may_go_on(publisher)) {
      status = NP_OK;
      break;
    }
    npi_client_trim(client, now);
    uint64_t left = until - now;
    int64_t bound = left < (uint64_t)NPI_SLEEP_BOUND_NS ? (int64_t)left : NPI_SLEEP_BOUND_NS;
    int ready = npi_client_sleep(client, client->credits_fd, bound);
    if (ready > 0) npi_event_clear(client->credits_fd);
    if (ready == 0) npi_client_look(client);
    now = npi_clock_monotonic();
    npi_bell_wake_up(bell, now);
    if (may_go_on(publisher)) {
      status = NP_OK;
      break;
    }
    if (ready < 0) status = ready;
    if (client->shut_out) status = npi_client_shut_out();
    if (status < 0 || now >= until) break;
  }
  if (bell->state == NPI_BELL_ASLEEP) npi_bell_wake_up(bell, npi_clock_monotonic());
  /* As np_wait: another publisher's epoll may sleep. */
  for (const struct np_publisher *p = client->publishers; client->credits_fd_used && p != NULL; p = p->next) {
    if (!p->wants_credit && !p->wants_slot && p->flow.n_waiting == 0) continue;
    npi_client_arm_credits(client);
    break;
  }
  return status;
}

int np_publisher_fd(struct np_publisher *publisher) {
  struct np_client *client = publisher->client;
  if (!npi_client_usable(client)) return npi_client_forked();
  int status = npi_watch_open(client, &client->credits_watch, client->credits_fd);
  if (status != 0) return status;
  client->credits_fd_used = 1;
  npi_client_arm_credits(client);
  return client->credits_watch;
}
