/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker is killed before any of its operations while it makes, ends and makes again a connection; a successor
 * reads the record, and publisher and subscriber attach to it. The rules are those of the registry and the protocol:
 * a record is filled and its rings are formatted before its state says ACTIVE; the state says CLOSING before the
 * publisher is told; a number is used again only after the acknowledgement; what a successor says once more changes
 * nothing for who knows it (number and version); a client that has no such connection acknowledges all the same.
 * Publishing goes on throughout. The core is the real one; broker and control frames are transcribed.
 */
#include "side.h"

enum { PUBLISHER, SUBSCRIBER, BROKER, SUCCESSOR, EVENTS = 12, MAILS = 3 };
enum { MAIL_CONNECT = 16, MAIL_DISCONNECT = 32 };
enum { FIELDS = 3 /* the payload that stands for the fields of the record */ };

static const char *const mutants[] = {"publisher makes a connection twice", "subscriber makes a connection twice",
                                      "active before it was filled",        "successor takes closing for free",
                                      "told before the record says so",     NULL};
const char *const model_paths[] = {"broker killed",
                                   "successor found it free",
                                   "successor found it active",
                                   "successor found it closing",
                                   "told again of what it knew",
                                   "second connection made",
                                   "events taken on the second",
                                   NULL};

static struct npi_atomic_u64 *state, *version;
static struct npi_atomic_u64 *mail[2][2][MAILS];                         /* broker's life, receiver */
static struct npi_atomic_u64 *closed[2], *acknowledged[2], *attached[2]; /* what clients say; attached: by client */
static struct hands hands;
static unsigned published, seen, wants; /* wants: the version of the connection that the subscriber has opened for */
static unsigned outlet_version, ended, inlet_version, read_at[2][2], sent[2][2], life_of[2];

static void set_up(void) {
  side_set_up(1);
  state = model_word(MODEL_RECORD);
  version = model_word(MODEL_RECORD);
  for (unsigned i = 0; i < 12; i++) mail[i / 6][i / 3 % 2][i % 3] = model_word(MODEL_MAIL);
  for (unsigned i = 0; i < 2; i++) {
    closed[i] = model_word(MODEL_MAIL);
    acknowledged[i] = model_word(MODEL_MAIL);
    attached[i] = model_word(MODEL_MAIL);
  }
}

static void begin(void) {
  side_begin(NPI_CHANNEL_BROADCAST, NPI_ON_FULL_BLOCK);
  hands = (struct hands){0};
  published = seen = outlet_version = ended = inlet_version = 0;
  wants = 1;
  for (unsigned i = 0; i < 4; i++) read_at[i / 2][i % 2] = sent[i / 2][i % 2] = 0;
  life_of[0] = life_of[1] = 0;
  npi_store_relaxed_u64(version, 1);
  npi_store_relaxed_u64(state, NPI_CONNECTION_FREE);
  if (model_random(8) != 0) model_kill(BROKER, 22);
}

/* ---- clients ---- */

/* The next word from the broker, 0: none. Who finds its broker dead attaches to the successor. */
static uint64_t next_mail(unsigned who, uint64_t name) {
  unsigned life = life_of[who];
  if (life == 0 && model_is_dead(BROKER)) {
    /* Frames of the old broker that are still in the socket may have been read before its end is seen, or not. */
    if (model_random(2) == 0 || read_at[0][who] == MAILS || npi_load_acquire_u64(mail[0][who][read_at[0][who]]) == 0) {
      life = life_of[who] = 1;
      npi_store_release_u64(attached[who], name);
    }
  }
  if (read_at[life][who] == MAILS) return 0;
  uint64_t word = npi_load_acquire_u64(mail[life][who][read_at[life][who]]);
  if (word != 0) read_at[life][who]++;
  return word;
}

static void publisher_event(uint64_t word) {
  unsigned number = (unsigned)(word & 15);
  if (word & MAIL_CONNECT) {
    if (number == outlet_version && model_mutant != 1) {
      model_path[4]++;
      return;
    }
    if (number == outlet_version) npi_flow_remove(&side.flow, &side.end[0].outlet);
    MODEL_ASSERT(outlet_version == 0 || model_mutant != 0); /* the one before was ended first */
    MODEL_ASSERT(number > ended || model_mutant == 1);      /* and what ended does not come back */
    (void)model_read(FIELDS);
    side_make_outlet(0, NPI_ON_FULL_BLOCK, SIDE_CAPACITY, 0);
    outlet_version = number;
  } else {
    if (number == outlet_version) {
      side_take_back(0, 0);
      MODEL_ASSERT(!side.end[0].outlet.broken);
      ended = number;
      outlet_version = 0;
    }
    npi_store_release_u64(acknowledged[life_of[0]], number);
  }
}

static void publisher(void) {
  for (unsigned turn = 0; turn < 24; turn++) {
    uint64_t word = next_mail(PUBLISHER, 1);
    if (word != 0) publisher_event(word);
    if (outlet_version != 0 && published < EVENTS && side_publish(published + 1) == NP_OK) {
      published++;
    } else {
      model_yield();
    }
  }
}

static int take(void) {
  struct npi_taken taken;
  if (!side_take(&side.end[0], &hands, &taken)) return 0;
  unsigned value = hands.value[hands.n - 1];
  MODEL_ASSERT((seen >> value & 1) == 0 && seen < 1U << value); /* in order, none twice */
  seen |= 1U << value;
  model_path[6] += inlet_version == 2;
  return 1;
}

static void subscriber_event(uint64_t word) {
  unsigned number = (unsigned)(word & 15);
  if (!(word & MAIL_CONNECT) || number != wants) return; /* of an endpoint that is closed */
  if (number == inlet_version && model_mutant != 2) {
    model_path[4]++;
    return;
  }
  (void)model_read(FIELDS);
  if (number == inlet_version) hands.n = 0;
  side_make_inlet(0, 0);
  inlet_version = number;
}

static void subscriber(void) {
  unsigned closes_at = model_random(4);
  for (unsigned turn = 0; turn < 24; turn++) {
    uint64_t word = next_mail(SUBSCRIBER, wants);
    if (word != 0) subscriber_event(word);
    if (inlet_version != 0 && hands.n < SIDE_CAPACITY && take()) continue;
    if (hands.n > 0) {
      side_release(&side.end[0], &hands, model_random(hands.n));
    } else if (inlet_version == 1 && turn >= closes_at) {
      inlet_version = 0;
      wants = 2;
      npi_store_release_u64(closed[life_of[1]], 1);
    } else {
      model_yield();
    }
  }
}

/* ---- the broker, and who comes after it ---- */

static void tell(unsigned life, unsigned who, uint64_t word) {
  if (sent[life][who] == MAILS) return;
  npi_store_release_u64(mail[life][who][sent[life][who]++], word);
}

static void make(unsigned life, unsigned number) {
  npi_store_relaxed_u64(version, number);
  if (model_mutant == 3) npi_store_release_u64(state, NPI_CONNECTION_ACTIVE);
  side_format(0);
  model_write(FIELDS, number);
  if (model_mutant != 3) npi_store_release_u64(state, NPI_CONNECTION_ACTIVE);
  model_path[5] += number == 2;
  /* A successor tells each client when it attaches. */
  if (life == 0 || npi_load_acquire_u64(attached[SUBSCRIBER])) tell(life, SUBSCRIBER, MAIL_CONNECT | number);
  if (life == 0 || npi_load_acquire_u64(attached[PUBLISHER])) tell(life, PUBLISHER, MAIL_CONNECT | number);
}

static void serve(unsigned life) {
  unsigned known[2] = {0, 0};
  for (unsigned turn = 0; turn < 24; turn++) {
    uint64_t now = npi_load_acquire_u64(state);
    unsigned number = (unsigned)npi_load_relaxed_u64(version);
    uint64_t names = life == 1 ? npi_load_acquire_u64(attached[SUBSCRIBER]) : 0;
    int publisher_is_there = life == 0 || npi_load_acquire_u64(attached[PUBLISHER]) != 0;
    if (life == 1 && publisher_is_there && !known[0]) {
      known[0] = 1;
      if (now == NPI_CONNECTION_ACTIVE) tell(1, PUBLISHER, MAIL_CONNECT | number);
      if (now == NPI_CONNECTION_CLOSING) tell(1, PUBLISHER, MAIL_DISCONNECT | number);
    }
    if (life == 1 && names != 0 && !known[1]) {
      known[1] = 1;
      if (now == NPI_CONNECTION_ACTIVE && names == number) tell(1, SUBSCRIBER, MAIL_CONNECT | number);
    }
    int is_closed = npi_load_acquire_u64(closed[life]) == 1 || names == 2;
    if (now == NPI_CONNECTION_FREE && (life == 0 || (known[0] && known[1]))) {
      if (number == 1 && !is_closed) {
        make(life, 1);
      } else {
        make(life, 2);
        return;
      }
    } else if (now == NPI_CONNECTION_ACTIVE && number == 1 && is_closed) {
      if (model_mutant == 5 && publisher_is_there) tell(life, PUBLISHER, MAIL_DISCONNECT | 1);
      npi_store_release_u64(state, NPI_CONNECTION_CLOSING);
      if (model_mutant != 5 && publisher_is_there) tell(life, PUBLISHER, MAIL_DISCONNECT | 1);
    } else if (now == NPI_CONNECTION_CLOSING &&
               (npi_load_acquire_u64(acknowledged[life]) == 1 || (model_mutant == 4 && life == 1))) {
      npi_store_release_u64(state, NPI_CONNECTION_FREE);
      npi_store_release_u64(version, 2);
    } else {
      model_yield();
    }
  }
}

static void successor(void) {
  for (unsigned turn = 0; turn < 30; turn++) {
    if (model_is_dead(BROKER)) {
      uint64_t found = npi_load_acquire_u64(state);
      model_path[found == NPI_CONNECTION_FREE ? 1 : found == NPI_CONNECTION_ACTIVE ? 2 : 3]++;
      serve(1);
      return;
    }
    model_yield();
  }
}

static void thread(unsigned number) {
  if (number == PUBLISHER) publisher();
  if (number == SUBSCRIBER) subscriber();
  if (number == BROKER) serve(0);
  if (number == SUCCESSOR) successor();
}

static void end(void) {
  model_path[0] += (uint64_t)model_is_dead(BROKER);
  if (inlet_version != 0 && inlet_version == outlet_version) {
    do {
      while (hands.n > 0) side_release(&side.end[0], &hands, 0);
    } while (take());
  }
  if (outlet_version != 0) {
    uint32_t out = side_take_back(0, 0);
    MODEL_ASSERT(!side.end[0].outlet.broken);
    if (inlet_version == outlet_version) MODEL_ASSERT(out == 0);
  }
  side_must_be_whole();
}

const struct model model = {"attach", mutants, 4, set_up, begin, thread, end};
