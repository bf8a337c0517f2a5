/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A subscriber closes, or is killed, beside a publisher that goes on publishing; the broker then gives the same
 * connection number and the same ring memory to the next connection, as daemon/connections.c does: mark, word to the
 * publisher, its acknowledgement, rings formatted anew, word to both ends. Broadcast and group. Words that travel by
 * a socket are release stores and acquire loads here.
 */
#include "side.h"

enum { PUBLISHER, SUBSCRIBER, BROKER, EVENTS = 6 };
enum { MAIL_DISCONNECT = 1, MAIL_CONNECT = 2 };

static const char *const mutants[] = {"rings formatted before the acknowledgement",
                                      "rings not formatted anew",
                                      "returns not read after the mark",
                                      "acknowledged, then published once more",
                                      "closed while holding, and read on",
                                      "waiting events dropped instead of offered again",
                                      NULL};
const char *const model_paths[] = {"publisher killed",     "subscriber killed",
                                   "closed in good order", "connected again",
                                   "group: offered again", "events taken on the second connection",
                                   "publish full",         NULL};

static struct npi_atomic_u64 *closed, *to_publisher, *acknowledged, *to_subscriber;
static struct hands hands;
static unsigned published, kind, seen, returned, life;
static int has_outlet, outlets_made, reads_on;
static uint64_t kept_element;

static void set_up(void) {
  side_set_up(1);
  closed = model_word(MODEL_MAIL);
  to_publisher = model_word(MODEL_MAIL);
  acknowledged = model_word(MODEL_MAIL);
  to_subscriber = model_word(MODEL_MAIL);
}

static void begin(void) {
  kind = model_random(2) ? NPI_CHANNEL_GROUP : NPI_CHANNEL_BROADCAST;
  side_begin(kind, NPI_ON_FULL_BLOCK);
  side_format(0);
  side_make_outlet(0, NPI_ON_FULL_BLOCK, SIDE_CAPACITY, 0);
  side_make_inlet(0, 0);
  hands = (struct hands){0};
  published = seen = returned = 0;
  life = 1;
  has_outlet = outlets_made = 1;
  reads_on = 0;
  unsigned victim = model_random(4);
  if (victim < 2) model_kill(victim, 24);
}

static void let_go(void) {
  int keeps = kind == NPI_CHANNEL_GROUP;
  if (model_mutant == 3) side.end[0].outlet.broken = 1;
  side_take_back(0, keeps);
  has_outlet = 0;
  if (model_mutant == 6) npi_flow_abandon_waiting(&side.flow);
}

static void publisher(void) {
  for (unsigned turn = 0; turn < 16 && published < EVENTS; turn++) {
    uint64_t mail = npi_load_acquire_u64(to_publisher);
    if (mail >= MAIL_DISCONNECT && has_outlet && outlets_made == 1) {
      if (model_mutant == 4) {
        npi_store_release_u64(acknowledged, 1);
        if (side_publish(published + 1) == NP_OK) published++;
      }
      let_go();
      npi_store_release_u64(acknowledged, 1);
    }
    if (mail >= MAIL_CONNECT && outlets_made == 1) {
      side_make_outlet(0, NPI_ON_FULL_BLOCK, SIDE_CAPACITY, 0);
      has_outlet = 1;
      outlets_made = 2;
      if (kind == NPI_CHANNEL_GROUP) model_path[4] += npi_flow_offer_waiting(&side.flow);
    }
    if (side_publish(published + 1) == NP_OK) {
      published++;
    } else {
      model_path[6]++;
      model_yield();
    }
  }
}

static int take(void) {
  struct npi_taken taken;
  if (!side_take(&side.end[0], &hands, &taken)) return 0;
  unsigned value = hands.value[hands.n - 1];
  MODEL_ASSERT(value >= 1 && value <= EVENTS + 1);
  MODEL_ASSERT((seen >> value & 1) == 0); /* what was returned does not come again */
  seen |= 1U << value;
  model_path[5] += life == 2;
  return 1;
}

static void give(unsigned i) {
  returned++; /* counted before: of one killed within, the return may be there or not */
  side_release(&side.end[0], &hands, i);
}

static void subscriber(void) {
  unsigned turns = 1 + model_random(6);
  for (unsigned turn = 0; turn < turns; turn++) {
    if (hands.n < SIDE_CAPACITY && take()) continue;
    if (hands.n > 0 && model_random(2)) {
      give(model_random(hands.n));
    } else {
      model_yield();
    }
  }
  if (model_mutant == 5 && hands.n > 0) {
    reads_on = 1;
    kept_element = hands.element[0];
    hands.n = 0;
  }
  while (hands.n > 0) give(0);
  model_path[2]++;
  npi_store_release_u64(closed, 1);
  for (unsigned turn = 0; turn < 10; turn++) {
    if (reads_on) (void)model_read(side_payload_of(npi_element_handle(kept_element)));
    if (life == 1 && npi_load_acquire_u64(to_subscriber) == MAIL_CONNECT) {
      side_make_inlet(0, 0);
      life = 2;
      model_path[3]++;
    }
    if (life == 2 && hands.n < SIDE_CAPACITY && take()) continue;
    if (hands.n > 0) {
      give(model_random(hands.n));
    } else {
      model_yield();
    }
  }
}

static void broker(void) {
  unsigned step = 0;
  for (unsigned turn = 0; turn < 24 && step < 2; turn++) {
    if (step == 0 && (npi_load_acquire_u64(closed) || model_is_dead(SUBSCRIBER))) {
      npi_store_release_u64(to_publisher, MAIL_DISCONNECT);
      step = 1;
    }
    if (step == 1 && (model_mutant == 1 || npi_load_acquire_u64(acknowledged) || model_is_dead(PUBLISHER))) {
      if (model_mutant != 2) side_format(0);
      npi_store_release_u64(to_subscriber, MAIL_CONNECT);
      npi_store_release_u64(to_publisher, MAIL_CONNECT);
      step = 2;
    }
    model_yield();
  }
}

static void thread(unsigned number) {
  if (number == PUBLISHER) publisher();
  if (number == SUBSCRIBER) subscriber();
  if (number == BROKER) broker();
}

static void end(void) {
  int publisher_died = model_is_dead(PUBLISHER), subscriber_died = model_is_dead(SUBSCRIBER);
  model_path[0] += publisher_died;
  model_path[1] += subscriber_died;
  int connected = life == 2 && outlets_made == 2;
  if (!subscriber_died && connected) {
    do {
      while (hands.n > 0) give(0);
      if (!publisher_died) {
        npi_flow_reap(&side.flow);
        if (kind == NPI_CHANNEL_GROUP) npi_flow_offer_waiting(&side.flow);
      }
    } while (take());
    /* A group loses nothing, whatever was going on when its only member closed and came again. */
    if (!publisher_died && kind == NPI_CHANNEL_GROUP) MODEL_ASSERT(seen == (1U << (published + 1)) - 2);
  }
  if (publisher_died) return;
  if (has_outlet) let_go();
  if (kind == NPI_CHANNEL_GROUP && !connected) {
    unsigned back = published - side.flow.n_waiting;
    MODEL_ASSERT(model_mutant == 6 || back == returned || (subscriber_died && back + 1 == returned));
  }
  npi_flow_abandon_waiting(&side.flow);
  side_must_be_whole();
}

const struct model model = {"close", mutants, 3, set_up, begin, thread, end};
