/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings, numbered credits and returns (core/ring.h, outlet.c, inlet.h, flow.c): publishers and subscribers on a broadcast
 * or a group, rings of two elements that validate themselves by their lap, slots of which each publisher has few. Any
 * process is killed at any store; the broker says so; the others go on: returns are read to their end, what is out is taken
 * back and, in a group, offered again; what a dead publisher had stored is read to its end.
 *
 * Proved: no element is overwritten before it was read; a slot is not written while somebody holds it; between the living
 * no event is lost, and none comes twice unmarked or after it was released; when nothing is left to be done all slots are
 * free, or wait for a member.
 *
 *   seen 1: a ring in its second lap
 *   seen 2: nothing published for want of a credit
 *   seen 3: a slot held by two subscribers
 *   seen 4: a publisher killed between two stores of one event
 *   seen 5: returns of a dead subscriber, read after the mark
 *   seen 6: what a dead subscriber had taken, offered again
 *   seen 7: what a dead subscriber had not taken, offered again
 *   seen 8: an element of a dead publisher, taken after the mark
 *   seen 9: an event waits, and no member lives
 *   seen 10: returned in another order than taken
 *   seen 11: all free at the end
 *
 *   mutant 1: one event more than there are credits
 *   mutant 2: the first element is stored before the second receiver is noted
 *   mutant 3: what is out is taken back before the last returns are read
 *   mutant 4: what a dead member held is freed
 *   mutant 5: not marked as redelivered
 *   mutant 6: the lap is not looked at
 *   mutant 7: returned before the last look at the payload
 *   mutant 8: what a slow subscriber holds is taken back
 *   mutant 9: the ring is looked at before the mark of its publisher's death, and not after it
 *   mutant 10: a return does not count down the holders
 *   mutant 11: an event waits that was taken back, and the next one passes it for good
 */
#include "model.pml"

#ifndef PUBLISHERS
#define PUBLISHERS 1
#endif
#ifndef SUBSCRIBERS
#define SUBSCRIBERS 2
#endif
#ifndef EVENTS
#define EVENTS 3 /* of each publisher */
#endif
#ifndef SLOTS
#define SLOTS 3 /* of each publisher: one more than credits; no other number */
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#define N           2
#define CONNECTIONS (PUBLISHERS * SUBSCRIBERS)
#define NO_SLOT     7

mtype:stage = { FREE, LOANED, OUTSTANDING, WAITING };

/* Shared memory: an element is a lap, a credit and a slot; a slot has the number of its event, from 1, and a mark. */
byte submission[CONNECTIONS * N], return_[CONNECTIONS * N];
byte payload[PUBLISHERS * SLOTS];
bool redelivered[PUBLISHERS * SLOTS];
#define ELEMENT(position, credit, slot) ((((position) / N) & 3) << 4 | (credit) << 3 | (slot))
#define IS_THERE(word, position)        ((word) >> 4 == (((position) / N) & 3) || MUTANT(6))
#define CREDIT(word)                    ((word) >> 3 & 1)
#define SLOT(word)                      ((word) & 7)

/* Ledgers of publishers. */
mtype:stage state[PUBLISHERS * SLOTS] = FREE;
byte holders[PUBLISHERS * SLOTS];
byte submitted[CONNECTIONS], returned[CONNECTIONS], outstanding[CONNECTIONS];
byte credit_slot[CONNECTIONS * N] = NO_SLOT;
bool connected[CONNECTIONS] = true;
byte next[PUBLISHERS] = 1;

/* Subscribers: what they read and hold. */
byte taken[CONNECTIONS], given[CONNECTIONS];
byte held[CONNECTIONS * N]; /* the event, by credit; 0: none */
byte held_word[CONNECTIONS * N];
bool let_go[CONNECTIONS];

bool group;
bool publisher_died[PUBLISHERS], publisher_gone[PUBLISHERS];    /* killed; the broker says so */
bool subscriber_died[SUBSCRIBERS], subscriber_gone[SUBSCRIBERS];
byte deaths;                                                    /* that are still to come */

/* What really happened, a bit an event. */
byte was_taken[PUBLISHERS], was_released[PUBLISHERS];

#define C(p, s) ((p) * SUBSCRIBERS + (s))

/* npi_outlet_note */
inline note(p, s, slot) {
  c = C(p, s);
  if
  :: credit_slot[c * N] == NO_SLOT -> credit = 0
  :: else -> assert(credit_slot[c * N + 1] == NO_SLOT || MUTANT(1)); credit = 1
  fi;
  assert(state[p * SLOTS + slot] != FREE); /* nobody frees it before all receivers are noted */
  credit_slot[c * N + credit] = slot;
  pending[s] = 1 + credit;
  outstanding[c]++;
  holders[p * SLOTS + slot]++;
  state[p * SLOTS + slot] = OUTSTANDING;
  if
  :: holders[p * SLOTS + slot] == 2 -> SEEN(3)
  :: else
  fi
}

/* npi_outlet_store: [ring.submit] */
inline store(p, s, slot) {
  c = C(p, s);
  assert(submitted[c] - taken[c] < N || subscriber_died[s]); /* what is overwritten was read */
  submission[c * N + submitted[c] % N] = ELEMENT(submitted[c], pending[s] - 1, slot);
  if
  :: submitted[c] >= N -> SEEN(1)
  :: else
  fi;
  submitted[c]++;
  pending[s] = 0
}

/* give_back of core/outlet.c */
inline give_back(p, s, a_credit) {
  i = credit_slot[C(p, s) * N + a_credit];
  assert(i != NO_SLOT);
  credit_slot[C(p, s) * N + a_credit] = NO_SLOT;
  outstanding[C(p, s)]--;
  holders[p * SLOTS + i] = holders[p * SLOTS + i] - (MUTANT(10) -> 0 : 1);
  if
  :: holders[p * SLOTS + i] == 0 && state[p * SLOTS + i] == OUTSTANDING ->
    state[p * SLOTS + i] = FREE;
    redelivered[p * SLOTS + i] = false
  :: else
  fi
}

/* npi_outlet_reap, one return: [ring.reap] */
#define HAS_RETURN(p, s) IS_THERE(return_[C(p, s) * N + returned[C(p, s)] % N], returned[C(p, s)])
inline reap(p, s) {
  w = return_[C(p, s) * N + returned[C(p, s)] % N];
  assert(credit_slot[C(p, s) * N + CREDIT(w)] == SLOT(w)); /* else a lie */
  returned[C(p, s)]++;
  give_back(p, s, CREDIT(w))
}

/* npi_outlet_take_back, after the last return: mark and keep, or give back */
inline take_back(p, s) {
  credit = 0;
  do
  :: credit < N && credit_slot[C(p, s) * N + credit] != NO_SLOT ->
    w = p * SLOTS + credit_slot[C(p, s) * N + credit];
    if
    :: group && !MUTANT(4) ->
      state[w] = WAITING;
      redelivered[w] = !MUTANT(5);
      if
      :: was_taken[p] >> payload[w] & 1 -> SEEN(6)
      :: else -> SEEN(7)
      fi
    :: else
    fi;
    give_back(p, s, credit);
    credit++
  :: credit < N && credit_slot[C(p, s) * N + credit] == NO_SLOT -> credit++
  :: else -> break
  od;
  connected[C(p, s)] = false
}

#define ROOM(p, s)  (connected[C(p, s)] && (outstanding[C(p, s)] < N || (MUTANT(1) && outstanding[C(p, s)] == N)))
#define READY(p, s) (ROOM(p, s) || !connected[C(p, s)])
#define HAS(p, what) (state[(p) * SLOTS] == what || state[(p) * SLOTS + 1] == what || state[(p) * SLOTS + 2] == what)
#if SUBSCRIBERS == 1
#define ALL_READY(p) READY(p, 0)
#else
#define ALL_READY(p) (READY(p, 0) && READY(p, 1))
#endif

/* Scratch of a d_step is put back to zero: it is no state. */
inline forget() { c = 0; w = 0; i = 0; credit = 0 }

/* The oldest event that waits; the slot that came free last, or one that was never used. */
inline find(p, what) {
  slot = NO_SLOT;
  do
  :: i < SLOTS && state[p * SLOTS + i] == what && 
      (slot == NO_SLOT || (payload[p * SLOTS + i] < payload[p * SLOTS + slot]) == (what == WAITING)) ->
    slot = i;
    i++
  :: i == SLOTS -> break
  :: else -> i++
  od;
  i = 0
}

/* What a publisher does with one of its connections; each line is one store that others see, or none. */
#define WITH_SUBSCRIBER(p, s)                                                                                          \
  :: d_step { /* publish_group */                                                                                      \
      group && ROOM(p, s) && next[p] <= EVENTS && HAS(p, FREE) && (!HAS(p, WAITING) || MUTANT(11)) ->                  \
      find(p, FREE);                                                                                                   \
      payload[p * SLOTS + slot] = next[p];                                                                             \
      next[p]++;                                                                                                       \
      state[p * SLOTS + slot] = LOANED;                                                                                \
      note(p, s, slot);                                                                                                \
      store(p, s, slot);                                                                                               \
      slot = 0;                                                                                                        \
      forget()                                                                                                         \
    }                                                                                                                  \
  :: d_step { /* npi_flow_offer_waiting: the oldest first */                                                           \
      group && ROOM(p, s) && HAS(p, WAITING) && !MUTANT(11) ->                                                         \
      find(p, WAITING);                                                                                                \
      note(p, s, slot);                                                                                                \
      store(p, s, slot);                                                                                               \
      slot = 0;                                                                                                        \
      forget()                                                                                                         \
    }                                                                                                                  \
  :: d_step {                                                                                                          \
      connected[C(p, s)] && HAS_RETURN(p, s) ->                                                                        \
      if                                                                                                               \
      :: !READY(p, s) && next[p] <= EVENTS -> SEEN(2)                                                                  \
      :: else                                                                                                          \
      fi;                                                                                                              \
      if                                                                                                               \
      :: subscriber_gone[s] -> SEEN(5)                                                                                 \
      :: else                                                                                                          \
      fi;                                                                                                              \
      reap(p, s);                                                                                                      \
      forget()                                                                                                         \
    }                                                                                                                  \
  :: d_step { /* end_outlet of client/link.c */                                                                        \
      connected[C(p, s)] && (subscriber_gone[s] || (MUTANT(8) && outstanding[C(p, s)] == N)) &&                        \
        (!HAS_RETURN(p, s) || MUTANT(3)) ->                                                                            \
      take_back(p, s);                                                                                                 \
      forget()                                                                                                         \
    }

proctype publisher(byte p) {
  byte s, slot, c, w, i, credit, pending[SUBSCRIBERS];
end:
  do
  :: d_step { /* publish_broadcast: all receivers are noted before the first store */
      !group && next[p] <= EVENTS && HAS(p, FREE) && ALL_READY(p) ->
      find(p, FREE);
      payload[p * SLOTS + slot] = next[p];
      next[p]++;
      state[p * SLOTS + slot] = LOANED;
      do
      :: s < SUBSCRIBERS && connected[C(p, s)] && !(MUTANT(2) && s > 0) -> note(p, s, slot); s++
      :: s < SUBSCRIBERS && (!connected[C(p, s)] || (MUTANT(2) && s > 0)) -> s++
      :: else -> break
      od;
      if /* publish_to_nobody */
      :: holders[p * SLOTS + slot] == 0 && !MUTANT(2) -> state[p * SLOTS + slot] = FREE
      :: else
      fi;
      s = 0;
      forget()
    }
    do
    :: d_step {
        s < SUBSCRIBERS && connected[C(p, s)] ->
        if
        :: MUTANT(2) && s > 0 -> note(p, s, slot)
        :: else
        fi;
        store(p, s, slot);
        s++;
        forget()
      }
    :: d_step { MUTANT(2) && s > 0 && connected[C(p, 0)] && HAS_RETURN(p, 0) -> reap(p, 0); forget() } /* MUTANT */
    :: d_step { s < SUBSCRIBERS && !connected[C(p, s)] -> s++ }
    :: d_step { s > 0 && s < SUBSCRIBERS && deaths > 0 -> SEEN(4); deaths--; publisher_died[p] = true } goto dead
    :: d_step { s == SUBSCRIBERS -> s = 0; slot = 0 } break
    od
  WITH_SUBSCRIBER(p, 0)
#if SUBSCRIBERS > 1
  WITH_SUBSCRIBER(p, 1)
#endif
  :: d_step { deaths > 0 -> deaths--; publisher_died[p] = true } break
  od;
dead:
  s = 0;
  slot = 0
}

/* What a subscriber does with one of its connections. */
#define TAKEN(p, s) submission[C(p, s) * N + taken[C(p, s)] % N]
#define EVENT(p, w) payload[(p) * SLOTS + SLOT(w)]
#define HOLDS(p, s) (held[C(p, s) * N] != 0 || held[C(p, s) * N + 1] != 0)
#define WITH_PUBLISHER(p, s)                                                                                           \
  :: d_step { /* npi_inlet_look and npi_inlet_open: [ring.take] */                                                     \
      !let_go[C(p, s)] && IS_THERE(TAKEN(p, s), taken[C(p, s)]) ->                                                     \
      c = C(p, s);                                                                                                     \
      w = TAKEN(p, s);                                                                                                 \
      assert(held[c * N + CREDIT(w)] == 0);                                                                            \
      e = EVENT(p, w);                                                                                                 \
      assert(e != 0);                                                                                                  \
      held[c * N + CREDIT(w)] = e;                                                                                     \
      held_word[c * N + CREDIT(w)] = w & 15;                                                                           \
      taken[c]++;                                                                                                      \
      assert(group || e == taken[c]);                                                                                  \
      assert(!(was_released[p] >> e & 1) || !group);                                                                   \
      assert(!(was_taken[p] >> e & 1) || !group || redelivered[p * SLOTS + SLOT(w)]);                                  \
      was_taken[p] = was_taken[p] | 1 << e;                                                                            \
      if                                                                                                               \
      :: publisher_gone[p] -> SEEN(8)                                                                                  \
      :: else                                                                                                          \
      fi;                                                                                                              \
      looked_empty = false;                                                                                            \
      c = 0;                                                                                                           \
      w = 0;                                                                                                           \
      e = 0                                                                                                            \
    }                                                                                                                  \
  :: d_step { held[C(p, s) * N] != 0 && late == 0 -> give(p, s, 0) }                                                   \
  :: d_step { held[C(p, s) * N + 1] != 0 && late == 0 -> give(p, s, 1) }                                               \
  :: d_step { /* found_nothing: a publisher that is gone is looked at once more, after its mark */                     \
      publisher_gone[p] && !let_go[C(p, s)] && !HOLDS(p, s) &&                                                         \
        (!IS_THERE(TAKEN(p, s), taken[C(p, s)]) || (MUTANT(9) && looked_empty)) ->                                     \
      assert(group || taken[C(p, s)] == submitted[C(p, s)]);                                                           \
      let_go[C(p, s)] = true                                                                                           \
    }

/* npi_inlet_release: [ring.return] */
inline give(p, s, a_credit) {
  c = C(p, s);
  w = held_word[c * N + a_credit];
  e = held[c * N + a_credit];
  assert(EVENT(p, w) == e); /* nobody wrote it while it was held */
  assert(given[c] - returned[c] < N || publisher_died[p]);
  if
  :: held[c * N + 1 - a_credit] != 0 && held[c * N + 1 - a_credit] < e -> SEEN(10)
  :: else
  fi;
  return_[c * N + given[c] % N] = ((given[c] / N) & 3) << 4 | w;
  given[c]++;
  held[c * N + a_credit] = 0;
  held_word[c * N + a_credit] = 0;
  assert(!(was_released[p] >> e & 1) || !group);
  was_released[p] = was_released[p] | 1 << e;
  if
  :: MUTANT(7) -> late = e; late_slot = p * SLOTS + SLOT(w)
  :: else
  fi;
  c = 0;
  w = 0;
  e = 0
}

proctype subscriber(byte s) {
  byte c, w, e, late, late_slot;
  bool looked_empty;
end:
  do
  WITH_PUBLISHER(0, s)
#if PUBLISHERS > 1
  WITH_PUBLISHER(1, s)
#endif
  :: d_step { MUTANT(7) && late != 0 -> assert(payload[late_slot] == late); late = 0; late_slot = 0 } /* MUTANT */
  :: d_step { MUTANT(9) && !looked_empty && !IS_THERE(TAKEN(0, s), taken[C(0, s)]) -> looked_empty = true } /* MUTANT */
  :: d_step { deaths > 0 -> deaths--; subscriber_died[s] = true } break
  od
}

/* npi_reap: a death is a pidfd, never a time. */
proctype broker() {
end:
  do
  :: publisher_died[0] && !publisher_gone[0] -> publisher_gone[0] = true
  :: subscriber_died[0] && !subscriber_gone[0] -> subscriber_gone[0] = true
#if PUBLISHERS > 1
  :: publisher_died[1] && !publisher_gone[1] -> publisher_gone[1] = true
#endif
#if SUBSCRIBERS > 1
  :: subscriber_died[1] && !subscriber_gone[1] -> subscriber_gone[1] = true
#endif
  od
}

/* Nothing is left to be done. */
proctype judge() {
  byte p, s, n;
  bool any;
  timeout ->
  d_step {
    do
    :: p < PUBLISHERS ->
      s = 0;
      any = false;
      do
      :: s < SUBSCRIBERS ->
        if
        :: subscriber_died[s] -> skip
        :: else ->
          any = true;
          assert(!HOLDS(p, s));
          assert(taken[C(p, s)] == submitted[C(p, s)]);
          assert(let_go[C(p, s)] == publisher_died[p]);
          assert(publisher_died[p] || group || taken[C(p, s)] == EVENTS)
        fi;
        s++
      :: else -> break
      od;
      n = 0;
      do
      :: n < SLOTS && !publisher_died[p] ->
        assert(state[p * SLOTS + n] == FREE || (!any && state[p * SLOTS + n] == WAITING));
        assert(holders[p * SLOTS + n] == 0);
        if
        :: state[p * SLOTS + n] == WAITING -> SEEN(9)
        :: else -> SEEN(11)
        fi;
        n++
      :: else -> break
      od;
      assert(publisher_died[p] || !any || (was_released[p] == (1 << (EVENTS + 1)) - 2));
      p++
    :: else -> break
    od
  }
}

init {
  byte n;
  atomic {
    model_begin();
    do
    :: n < CONNECTIONS * N -> submission[n] = 3 << 4; return_[n] = 3 << 4; n++ /* npi_ring_format: the lap before the first */
    :: else -> break
    od;
    n = 0;
    select(n : 0 .. DEATHS);
    deaths = n;
    if
    :: group = true
    :: group = false
    fi;
    n = 0;
    do
    :: n < PUBLISHERS -> run publisher(n); n++
    :: else -> break
    od;
    n = 0;
    do
    :: n < SUBSCRIBERS -> run subscriber(n); n++
    :: else -> break
    od;
    n = 0;
    run broker();
    run judge()
  }
}
