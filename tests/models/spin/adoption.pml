/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A broker makes and takes down records, counts what the dead had done, and is killed at any store; its successor goes on,
 * and may be killed as well (daemon/clients.c, channels.c, connections.c, journal.c, adopt.c, keep.c). The keeper may die
 * once. A client is a process with a record, a descriptor in the keeper, a publisher and a connection whose ring holds
 * what it published; each sum has two words, so that half of a sum can be seen.
 *
 * Proved: at the end of each journal entry and of each adoption what was counted for the dead and what is still in rings
 * is all that was published, once; a record that a successor finds in use has its descriptor in the keeper; a successor
 * that finds nothing begun changes nothing; when nothing is to be done the keeper holds what the records say, no more.
 *
 *   seen 1: a successor finished a publisher's sums from the journal
 *   seen 2: a successor finished a connection's sums from the journal
 *   seen 3: a successor dropped a descriptor whose record was never active, or free
 *   seen 4: a successor went on with a client that was being taken down
 *   seen 5: a client died while there was no broker
 *   seen 6: killed in adoption, and adopted again
 *   seen 7: adopted with nothing begun
 *   seen 8: a keeper replaced and told everything
 *   seen 9: no keeper that was told everything: a new life
 *   seen 10: a record used again
 *   seen 11: all came to rest
 *
 *   mutant 1: sums without a journal
 *   mutant 2: the journal counts before its sums are there
 *   mutant 3: the journal is emptied before the record is free
 *   mutant 4: a client's record is active before its descriptor is kept
 *   mutant 5: a descriptor is dropped before the record is free
 *   mutant 6: a new keeper is told of the registry first
 *   mutant 7: a successor copies the journal's sums and leaves the record in use
 *   mutant 8: a successor does not look at the journal
 *   mutant 9: a successor drops nothing
 *   mutant 10: a successor takes the journal's entry for its own work and adds again
 *   mutant 11: a keeper answers before it has read what a dead broker sent last
 */
#include "model.pml"

#ifndef CLIENTS
#define CLIENTS 1
#endif
#ifndef LIVES
#define LIVES 2 /* processes that use one record, one after the other */
#endif
#ifndef EVENTS
#define EVENTS 2 /* that a process publishes at most */
#endif
#ifndef KILLS
#define KILLS 2 /* of brokers */
#endif

mtype:record = { FREE, ACTIVE, CLOSING };
mtype:journal = { NONE, CONNECTION, PUBLISHER };

/* The registry. */
mtype:record client[CLIENTS] = FREE;
mtype:record publisher[CLIENTS] = FREE;
mtype:record connection[CLIENTS] = FREE;
byte version[CLIENTS];
byte ended[CLIENTS], ended_too[CLIENTS]; /* of a publisher's record */
byte past, past_too;                     /* of the channel */
mtype:journal kind = NONE;
byte entry, sum, sum_too;

/* Pages, processes, the keeper. */
byte stored[CLIENTS]; /* elements in the ring */
bool asks[CLIENTS], lives[CLIENTS];
byte kept[CLIENTS];   /* versions whose descriptors it holds, a bit each */
byte last, before;    /* whom the last message was about, from 1, and what was kept before it */
bool keeper_lives = true, kept_registry = true, keeper_died;

/* What really happened. */
byte published;
byte kills; /* of brokers, still to come */
bool nobody; /* no broker */
bool calm;   /* nothing has happened since the last adoption was finished */

inline check_sums() {
  k = 0;
  counted = past;
  do
  :: k < CLIENTS ->
    if
    :: publisher[k] != FREE -> counted = counted + ended[k]
    :: else
    fi;
    if
    :: connection[k] != FREE -> counted = counted + stored[k]
    :: else
    fi;
    k++
  :: else -> break
  od;
  assert(counted == published);
  assert(past == past_too);
  counted = 0;
  k = 0
}

/* One store of the broker, or its end. */
#define STEP(what)                                                                                                     \
  if                                                                                                                   \
  :: d_step { what }                                                                                                   \
  :: kills > 0 -> goto killed                                                                                      \
  fi

inline put(i) {
  if
  :: keeper_lives -> last = i + 1; before = kept[i]; kept[i] = kept[i] | (1 << version[i])
  :: else
  fi
}
inline drop(i) {
  if
  :: keeper_lives -> last = i + 1; before = kept[i]; kept[i] = kept[i] & ~(1 << version[i])
  :: else
  fi
}

/* npi_client_new; the version is in the record before the descriptor is sent. */
inline make_client(i) {
  STEP(version[i]++; stored[i] = 0; calm = false);
  STEP(
    if
    :: MUTANT(4) -> client[i] = ACTIVE; asks[i] = false
    :: else -> put(i)
    fi
  );
  STEP(
    if
    :: MUTANT(4) -> put(i)
    :: else -> client[i] = ACTIVE; asks[i] = false
    fi;
    if
    :: version[i] > 1 -> SEEN(10)
    :: else
    fi
  )
}

/* npi_publisher_open, npi_connection_announce */
inline open_publisher(i) {
  STEP(ended[i] = 0; ended_too[i] = 0; publisher[i] = ACTIVE; calm = false);
  STEP(connection[i] = ACTIVE)
}

/* npi_journal_fold and npi_journal_fold_connection: the first word, the second, [journal.kind], and both to their places */
inline fold(what, i, to, to_too, add) {
  if
  :: MUTANT(1) -> STEP(to = to + add); STEP(to_too = to_too + add) /* MUTANT */
  :: !MUTANT(1) ->
    if
    :: MUTANT(2) -> STEP(entry = i; kind = what) /* MUTANT */
    :: d_step { !MUTANT(2) -> skip }
    fi;
    STEP(sum = to + add);
    STEP(sum_too = to_too + add; entry = i);
    STEP(kind = what);
    STEP(to = sum);
    STEP(to_too = sum_too)
  fi
}

/* The record is taken down, and npi_journal_done. */
inline take_down(what) {
  STEP(
    if
    :: MUTANT(3) -> kind = NONE
    :: else -> what = FREE
    fi
  );
  STEP(
    what = FREE;
    kind = NONE;
    sum = 0;
    sum_too = 0;
    entry = 0;
    check_sums()
  )
}

/* npi_reap and npi_reap_again: each part finds done what was done before. */
inline reap(i) {
  STEP(assert(!calm); client[i] = CLOSING);
  if
  :: connection[i] != FREE ->
    fold(CONNECTION, i, ended[i], ended_too[i], stored[i]);
    take_down(connection[i])
  :: else
  fi;
  if
  :: publisher[i] != FREE ->
    fold(PUBLISHER, i, past, past_too, ended[i]);
    take_down(publisher[i])
  :: else
  fi;
  STEP(
    if
    :: MUTANT(5) -> drop(i)
    :: else -> client[i] = FREE
    fi
  );
  STEP(
    if
    :: MUTANT(5) -> client[i] = FREE
    :: else -> drop(i)
    fi
  )
}

/* npi_journal_replay: [journal.replay] */
inline replay() {
  if
  :: d_step { MUTANT(8) -> kind = NONE }
  :: d_step { kind == NONE && !MUTANT(8) -> skip }
  :: kind == CONNECTION && !MUTANT(8) ->
    STEP(
      assert(!calm);
      SEEN(2);
      if
      :: MUTANT(10) -> ended[entry] = ended[entry] + stored[entry]
      :: else -> ended[entry] = sum
      fi
    );
    STEP(ended_too[entry] = sum_too);
    STEP(
      if
      :: MUTANT(7) -> skip
      :: else -> connection[entry] = FREE
      fi
    );
    STEP(kind = NONE; sum = 0; sum_too = 0; entry = 0)
  :: kind == PUBLISHER && !MUTANT(8) ->
    STEP(assert(!calm); SEEN(1); past = sum);
    STEP(past_too = sum_too);
    STEP(publisher[entry] = FREE);
    STEP(kind = NONE; sum = 0; sum_too = 0; entry = 0)
  fi
}

/* npi_keep_start, npi_keep_everything */
inline replace_keeper() {
  STEP(keeper_lives = true; calm = false);
  if
  :: MUTANT(6) -> STEP(kept_registry = true) /* MUTANT */
  :: d_step { !MUTANT(6) -> skip }
  fi;
  do
  :: i < CLIENTS && client[i] != FREE -> STEP(put(i); i++)
  :: d_step { i < CLIENTS && client[i] == FREE -> i++ }
  :: d_step { i == CLIENTS -> i = 0 } break
  od;
  STEP(
    SEEN(8);
    if
    :: keeper_lives -> kept_registry = true
    :: else
    fi
  )
}

proctype broker() {
  byte i, k, counted;
  byte had[CLIENTS]; /* what the keeper gave */
  bool adopts;
  goto serve;

killed: /* and another one is started: npi_adopt_look */
  skip;
  d_step {
    if
    :: adopts -> SEEN(6)
    :: else
    fi;
    kills--;
    nobody = true;
    i = 0;
    adopts = true
  }
  if
  :: d_step {
      keeper_lives && kept_registry -> nobody = false;
      do
      :: i < CLIENTS -> had[i] = kept[i]; i++
      :: else -> break
      od;
      if
      :: MUTANT(11) && last > 0 -> had[last - 1] = before
      :: else
      fi;
      last = 0;
      before = 0;
      i = 0
    }
  :: d_step { !keeper_lives || !kept_registry -> SEEN(9) } goto over
  fi;
  replay();
  d_step { /* npi_adopt_objects */
    do
    :: i < CLIENTS && client[i] != FREE -> assert((had[i] >> version[i]) & 1); had[i] = 0; i++
    :: i < CLIENTS && client[i] == FREE -> had[i] = 0; i++
    :: else -> break
    od;
    i = 0;
    check_sums()
  }
  do /* npi_adopt_settle */
  :: i < CLIENTS && client[i] == CLOSING -> d_step { SEEN(4) } reap(i); i++
  :: i < CLIENTS && client[i] == ACTIVE && !lives[i] -> d_step { SEEN(5) } reap(i); i++
  :: d_step { i < CLIENTS && (client[i] == FREE || (client[i] == ACTIVE && lives[i])) -> i++ }
  :: d_step { i == CLIENTS -> i = 0 } break
  od;
  do /* drop_unneeded */
  :: i < CLIENTS && kept[i] != 0 && (client[i] == FREE || kept[i] != 1 << version[i]) && !MUTANT(9) ->
    STEP(
      assert(!calm);
      SEEN(3);
      if
      :: keeper_lives && client[i] == FREE -> kept[i] = 0
      :: keeper_lives && client[i] != FREE -> kept[i] = 1 << version[i]
      :: else
      fi;
      i++
    )
  :: d_step {
      i < CLIENTS && (kept[i] == 0 || (client[i] != FREE && kept[i] == 1 << version[i]) || MUTANT(9)) -> i++
    }
  :: d_step {
      i == CLIENTS ->
      i = 0;
      check_sums();
      if
      :: calm -> SEEN(7)
      :: else
      fi;
      calm = true;
      do /* somebody may have died since it was looked at */
      :: i < CLIENTS -> calm = calm && (client[i] == FREE || lives[i]); i++
      :: else -> break
      od;
      i = 0;
      adopts = false
    }
    break
  od;

serve:
  do
  :: i = 0;
    do
    :: i < CLIENTS && client[i] == FREE && asks[i] -> make_client(i); i = 0; break
    :: i < CLIENTS && client[i] == ACTIVE && lives[i] && publisher[i] == FREE -> open_publisher(i); i = 0; break
    :: i < CLIENTS && client[i] == ACTIVE && publisher[i] == ACTIVE && connection[i] == FREE ->
      STEP(connection[i] = ACTIVE; calm = false); i = 0; break /* asked for again */
    :: i < CLIENTS && client[i] == ACTIVE && !lives[i] -> reap(i); i = 0; break
    :: i < CLIENTS - 1 -> i++
    :: !keeper_lives -> i = 0; replace_keeper(); break
    :: kills > 0 -> goto killed
    :: timeout ->
      d_step {
        i = 0;
        do
        :: i < CLIENTS ->
          assert(!keeper_lives || kept[i] == (client[i] == FREE -> 0 : 1 << version[i]));
          i++
        :: else -> break
        od;
        check_sums();
        SEEN(11);
        i = 0
      }
      goto over
    od
  od;
over:
  skip
}

/* The processes that have the record one after the other. */
proctype process(byte i) {
  byte n, left;
end:
  do
  :: d_step {
      n < LIVES && client[i] == FREE && !nobody -> asks[i] = true; lives[i] = true; left = EVENTS; n++
    }
    do
    :: d_step { left > 0 && connection[i] == ACTIVE -> left--; stored[i]++; published++; calm = false }
    :: d_step { client[i] != FREE -> lives[i] = false; left = 0; calm = false } break
    :: d_step { asks[i] -> lives[i] = false; asks[i] = false; left = 0 } break
    od
  od
}

proctype keeper() {
  byte i;
end:
  d_step {
    !keeper_died -> keeper_died = true;
    keeper_lives = false;
    kept_registry = false;
    calm = false;
    i = 0;
    do
    :: i < CLIENTS -> kept[i] = 0; i++
    :: else -> break
    od
  }
}

init {
  byte c;
  atomic {
    model_begin();
    do
    :: c < CLIENTS -> run process(c); c++
    :: else -> break
    od;
    c = 0;
    select(c : 0 .. KILLS);
    kills = c;
    if
    :: run keeper()
    :: keeper_died = true /* it never does */
    fi;
    run broker()
  }
}
