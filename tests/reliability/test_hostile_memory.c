/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client with real mappings writes nonsense, random and aimed, into everything that it may write: its page with
 * doorbells and counters, its rings, its ledger, its segments, and the eventfds that it was given. Beside it honest
 * processes exchange events. Proves: the broker and the honest go on, nobody honest loses or repeats an event, lies are
 * noticed and counted, and nothing of the liars stays.
 *
 * HOSTILE_WRITES and HOSTILE_SEED choose another length and another run.
 * ctest-labels: asan
 * ctest-timeout: 600
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "core/ring.h"
#include "support/instance.h"
#include "support/peers.h"

enum { WRITES = 5000000, WRITES_PER_LIFE = 10000, LIARS = 2, WRITES_PER_PUBLISH = 16 };

struct board {
  _Atomic uint64_t writes, lives, publishes, taken, taken_bytes, said_corrupt, sum;
  _Atomic int stop;
};
static struct board *board;
static struct instance instance;

static uint64_t next_random(uint64_t *state) {
  uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* ---- the liar ---- */

struct liar {
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber[2];
  uint64_t random;
};

/* Something that was there, changed a little; or somebody else's; or anything. */
static uint64_t lie_about(struct liar *liar, uint64_t is, uint64_t neighbour) {
  uint64_t r = next_random(&liar->random);
  switch (r & 7) {
    case 0: return is ^ UINT64_C(1) << (r >> 8 & 63);
    case 1: return is + (UINT64_C(1) << NPI_ELEMENT_LAP_SHIFT);
    case 2: return neighbour;
    case 3: return neighbour + (UINT64_C(1) << NPI_ELEMENT_LAP_SHIFT);
    case 4: return is ^ (r >> 16 & NPI_CREDIT_MASK) << NPI_ELEMENT_CREDIT_SHIFT;
    case 5: return is ^ (r >> 16 & 0xffffffff) << NPI_ELEMENT_HANDLE_SHIFT;
    case 6: return UINT64_MAX * (r >> 8 & 1);
    default: return next_random(&liar->random);
  }
}

static void lie_in_ring(struct liar *liar, const struct npi_ring *ring, uint64_t position) {
  uint64_t at = position + next_random(&liar->random) % 4 - 1;
  struct npi_atomic_u64 *word = &ring->element[at & ring->mask];
  uint64_t is = npi_load_relaxed_u64(word);
  npi_store_relaxed_u64(word, lie_about(liar, is, npi_load_relaxed_u64(&ring->element[(at - 1) & ring->mask])));
}

static void lie_in(struct liar *liar, uint8_t *memory, uint64_t bytes) {
  if (memory == NULL || bytes < 8) return;
  struct npi_atomic_u64 *word = (void *)(memory + next_random(&liar->random) % (bytes / 8) * 8);
  npi_store_relaxed_u64(word, lie_about(liar, npi_load_relaxed_u64(word), next_random(&liar->random)));
}

/* A slot's header, or the element that names it, in one of the segments. */
static void lie_in_segment(struct liar *liar) {
  struct np_client *client = liar->client;
  uint32_t n = client->pool.ledger.geometry.segments;
  uint32_t number = next_random(&liar->random) % n;
  for (uint32_t i = 0; i < n && client->segments[number].base == NULL; i++) number = (number + 1) % n;
  struct npi_pool_segment *segment = &client->segments[number];
  if (segment->base == NULL) return;
  uint64_t r = next_random(&liar->random);
  if (r & 1) {
    lie_in(liar, segment->base, segment->bytes);
  } else { /* the sizes word of a slot that was handed out */
    uint64_t slot = (r >> 8) % 128 * npi_class_stride(0);
    if (slot + NPI_SLOT_HEADER_BYTES > segment->bytes) return;
    npi_slot_sizes_store((struct npi_slot_header *)(void *)(segment->base + slot),
                         r & 2 ? r >> 16 : (r >> 16 & 0x3ffffff));
  }
}

static struct npi_link *some_link(struct liar *liar) {
  struct np_client *client = liar->client;
  for (uint32_t i = 0, at = (uint32_t)next_random(&liar->random); i < client->n_links; i++) {
    struct npi_link *link = client->links[(at + i) % client->n_links];
    if (link != NULL) return link;
  }
  return NULL;
}

static void ring_about(struct liar *liar) {
  struct np_client *client = liar->client;
  uint64_t r = next_random(&liar->random), many = r & 1 ? 1 : UINT64_C(0x7fffffffffffffff);
  struct npi_link *link = some_link(liar);
  int fds[] = {client->events_fd, client->credits_fd, link != NULL ? link->peer->events_fd : -1,
               link != NULL ? link->peer->credits_fd : -1};
  int fd = fds[r >> 8 & 3];
  /* Also the wake-ups of others, taken away; and their counters, filled. */
  ssize_t n = fd < 0 ? 0 : (r & 2) ? write(fd, &many, sizeof many) : read(fd, &many, sizeof many);
  (void)n;
}

static void lie_once(struct liar *liar, int may_ledger) {
  struct np_client *client = liar->client;
  struct npi_link *link = some_link(liar);
  switch (next_random(&liar->random) % (may_ledger ? 12 : 9)) {
    case 0:
    case 1:
    case 2:
      if (link == NULL) break;
      if (link->role == NPI_ROLE_PUBLISHER) {
        lie_in_ring(liar, &link->outlet.submissions, link->outlet.entry->submitted);
      } else {
        lie_in_ring(liar, &link->inlet.returns, link->inlet.returned);
      }
      break;
    case 3: lie_in(liar, client->page, 192); break; /* identity and doorbells */
    case 4: lie_in(liar, client->page + client->endpoints_offset, client->endpoints * 256); break;
    case 5: {
      /* Of the place where rings are put only what is there: a sparse page would be filled with nonsense. */
      lie_in(liar, client->page + client->rings_offset, 16384);
      break;
    }
    case 6:
    case 7: lie_in_segment(liar); break;
    case 8:
      if ((next_random(&liar->random) & 15) == 0) ring_about(liar);
      break;
    case 9: lie_in(liar, client->ledger, NPI_PAGE); break;
    case 10: lie_in(liar, (uint8_t *)client->pool.ledger.connections, 8 * sizeof(struct npi_ledger_connection)); break;
    default: lie_in(liar, (uint8_t *)client->pool.ledger.records, 4096 * sizeof(struct npi_slot_record)); break;
  }
}

static void publish_something(struct liar *liar) {
  struct np_event event;
  if (np_loan(liar->publisher, next_random(&liar->random) % 256, &event) != NP_OK) return;
  memset(event.data, 'x', event.size);
  np_publish(liar->publisher, &event);
  atomic_fetch_add(&board->publishes, 1);
  for (int i = 0; i < 2; i++) {
    if (np_take(liar->subscriber[i], &event) == NP_OK && (next_random(&liar->random) & 3)) {
      np_release(liar->subscriber[i], &event);
    }
  }
}

/* One life: an honest beginning, then lies, then lies in the ledger as well, by which it harms its own library too. */
static int lie_and_die(void *seed) {
  struct liar liar = {.random = (uint64_t)(uintptr_t)seed};
  struct np_subscriber_options options;
  np_subscriber_options_init(&options);
  options.on_full = NP_ON_FULL_DROP_NEWEST;
  if (np_connect(&liar.client, NULL) != 0) return 1;
  if (np_publisher_open(liar.client, "evil", NULL, &liar.publisher) != 0) return 2;
  if (np_subscriber_open(liar.client, "news", &options, &liar.subscriber[0]) != 0) return 3;
  if (np_subscriber_open(liar.client, "work", NULL, &liar.subscriber[1]) != 0) return 4;
  for (int i = 0; i < 200; i++) publish_something(&liar);
  for (int i = 0; i < WRITES_PER_LIFE; i++) {
    int may_ledger = i > WRITES_PER_LIFE / 2;
    lie_once(&liar, may_ledger);
    if (!may_ledger && i % WRITES_PER_PUBLISH == 0) publish_something(&liar);
  }
  atomic_fetch_add(&board->writes, WRITES_PER_LIFE);
  atomic_fetch_add(&board->lives, 1);
  _exit(0); /* without a goodbye */
}

/* ---- who has to live with it ---- */

/* Takes what the liars publish, and reads every byte of it. */
static int take_evil(void *nothing) {
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_event event;
  (void)nothing;
  if (np_connect(&client, NULL) != 0 || np_subscriber_open(client, "evil", NULL, &subscriber) != 0) return 1;
  while (!board->stop) {
    int status = np_take(subscriber, &event);
    if (status == NP_EMPTY) {
      np_wait(subscriber, 20);
      continue;
    }
    if (status == NP_ERR_CORRUPT) {
      atomic_fetch_add(&board->said_corrupt, 1);
      continue;
    }
    if (status != NP_OK) return 2;
    uint64_t sum = 0;
    for (size_t i = 0; i < event.size; i += 64) sum += ((const uint8_t *)event.data)[i];
    if (event.size > 0) sum += ((const uint8_t *)event.data)[event.size - 1];
    for (size_t i = 0; i < event.topic_size; i++) sum += (uint8_t)event.topic[i];
    atomic_fetch_add(&board->sum, sum);
    atomic_fetch_add(&board->taken, 1);
    atomic_fetch_add(&board->taken_bytes, event.size);
    if (np_release(subscriber, &event) != NP_OK) return 3;
  }
  np_disconnect(client);
  return 0;
}

static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

Test(hostile, writes_into_everything_it_may_write, .timeout = 600) {
  const char *writes_text = getenv("HOSTILE_WRITES"), *seed_text = getenv("HOSTILE_SEED");
  uint64_t writes = writes_text != NULL ? strtoull(writes_text, NULL, 0) : WRITES;
  uint64_t seed = seed_text != NULL ? strtoull(seed_text, NULL, 0) : (uint64_t)time(NULL) * 977 + (uint64_t)getpid();
  say("hostile: seed %llu\n", (unsigned long long)seed);
  board = shared_memory(sizeof *board);
  instance_start(&instance,
                 "memory: { per_node: 64MiB, per_client: 8MiB, segment: 2MiB }\n"
                 "limits: { rings_per_client: 256KiB }\n"
                 "channels:\n"
                 "  - { name: news, kind: broadcast, credits: 64, on_full: block }\n"
                 "  - { name: evil, kind: broadcast, credits: 64, on_full: drop_newest }\n"
                 "  - { name: work, kind: group, credits: 16, on_full: drop_newest }\n",
                 NULL);
  struct receiver *news = receiver_for("news"), *work = receiver_for("work");
  struct sender *news_sender = sender_for("news", 0, 1), *work_sender = sender_for("work", 0, 1);
  work->no_order = 1;
  news_sender->fixed_size = work_sender->fixed_size = 200;
  pid_t honest[] = {spawn(receiver_body, news), spawn(receiver_body, work), spawn(take_evil, NULL)};
  EVENTUALLY(20, news->ready && work->ready);
  pid_t senders[] = {spawn(sender_body, news_sender), spawn(sender_body, work_sender)};
  uint64_t begin = now_ms(), random = seed, died = 0, refused = 0;
  pid_t liars[LIARS] = {0};
  while (board->writes < writes) {
    for (int i = 0; i < LIARS; i++) {
      if (liars[i] != 0) {
        int how = 0;
        pid_t ended = waitpid(liars[i], &how, WNOHANG);
        if (ended == 0) continue;
        if (WIFSIGNALED(how)) died++; /* it writes into what its own library uses: that is its affair */
        if (WIFEXITED(how) && WEXITSTATUS(how) != 0) refused++;
      }
      liars[i] = spawn(lie_and_die, (void *)(uintptr_t)next_random(&random));
    }
    for (size_t i = 0; i < 3; i++) cr_assert_eq(waitpid(honest[i], NULL, WNOHANG), 0, "honest process %zu ended", i);
    cr_assert_eq(kill(instance.pid, 0), 0);
    usleep(500);
  }
  for (int i = 0; i < LIARS; i++) reap(liars[i], 20);
  uint64_t took = now_ms() - begin;
  news_sender->stop = work_sender->stop = 1;
  int news_sent = reap(senders[0], 30), work_sent = reap(senders[1], 30);
  news->stop = work->stop = 1;
  board->stop = 1;
  int ends[] = {reap(honest[0], 30), reap(honest[1], 30), reap(honest[2], 30)};
  uint64_t lies = instance_broker_counter(&instance, NPI_BROKER_LIES);
  say("hostile: %llu writes in %llu lives, %.1f s; %llu liars killed by their own lies, %llu refused; "
      "lies closed %llu connections, takes said corrupt %llu times; %llu of their events read (%llu bytes); honest: "
      "%llu sent, %llu received, %llu in the group\n",
      (unsigned long long)board->writes, (unsigned long long)board->lives, (double)took / 1000,
      (unsigned long long)died, (unsigned long long)refused, (unsigned long long)lies,
      (unsigned long long)board->said_corrupt, (unsigned long long)board->taken, (unsigned long long)board->taken_bytes,
      (unsigned long long)news_sender->sent, (unsigned long long)news->received, (unsigned long long)work->received);
  cr_assert(news_sent == 0 && work_sent == 0, "the honest senders ended with %d and %d", news_sent, work_sent);
  cr_assert(ends[0] == 0 && ends[1] == 0 && ends[2] == 0, "the honest ended with %d, %d and %d", ends[0], ends[1],
            ends[2]);
  cr_assert_eq(news->received, news_sender->sent);
  cr_assert(
      news->gaps == 0 && news->out_of_order == 0 && news->bad == 0 && news->number_breaks == 0 && news->corrupt == 0,
      "gaps %llu, out of order %llu, bad %llu, breaks %llu, corrupt %llu", (unsigned long long)news->gaps,
      (unsigned long long)news->out_of_order, (unsigned long long)news->bad, (unsigned long long)news->number_breaks,
      (unsigned long long)news->corrupt);
  cr_assert(work->bad == 0 && work->twice == 0);
  cr_assert(lies > 0 && board->said_corrupt > 0, "no lie was noticed");
  cr_assert(board->taken > board->lives && news->received > 1000, "hardly anything was exchanged");
  instance_stop(&instance);
}
