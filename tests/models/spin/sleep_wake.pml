/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping and waking: core/doorbell.h and client/wait.c, on processors whose stores wait in a buffer while later loads
 * go ahead. Each process has a buffer of one store; it empties at any time, at a full fence, and when a membarrier
 * comes by. A sleeper sleeps either in np_wait or in an epoll of its own (npi_client_arm_events). Of its peers the first
 * is registered for membarrier, the second is not and always fences. Peers are killed or stopped at any step; the broker
 * rings for the dead.
 *
 * No sleep has a bound here: an event beside a sleeper whom nobody will wake is an error. There is one excuse, for which
 * the bound of 50 ms is there: a sender that is stopped between its store and its ring.
 *
 *   seen 1: slept and was woken by a peer
 *   seen 2: found at the second look
 *   seen 3: asleep for good, and nothing there
 *   seen 4: went to sleep from AWAKE, by membarrier
 *   seen 5: went to sleep from FENCED
 *   seen 6: killed between store and ring, and the broker rang
 *   seen 7: asleep beside an event of a sender that is stopped
 *   seen 8: a peer saw AWAKE while its element was still in its buffer
 *   seen 9: a peer rang only at its second look
 *   seen 10: rung for this episode already
 *   seen 11: membarrier refused from now on
 *
 *   mutant 1: no membarrier
 *   mutant 2: no fence of a sleeper that slept lately
 *   mutant 3: no fence before the peer's second look
 *   mutant 4: no second look of the sleeper
 *   mutant 5: the peer looks before it stores
 *   mutant 6: episodes have all one number
 *   mutant 7: an unregistered peer that does not fence
 *   mutant 8: the broker does not ring for the dead
 *   mutant 9: the eventfd is cleared after the second look
 *   mutant 10: the sleeper looks before it says that it is asleep
 *   mutant 11: no nap where membarrier begins to be refused
 */
#include "model.pml"

#ifndef EVENTS
#define EVENTS 1 /* of each peer, or of the registered one alone one more */
#endif
#ifndef ENDS
#define ENDS 1 /* peers that may be killed or stopped */
#endif
#define PEERS      2
#define REGISTERED 0

mtype:bell = { AWAKE, FENCED, ASLEEP };
mtype:life = { RUNNING, KILLED, STOPPED };

/* Memory that all see, and what waits in buffers. */
mtype:bell word = AWAKE;
byte word_episode;
byte elements[PEERS];
bool word_waits, element_waits[PEERS];
mtype:bell buffered;
byte buffered_episode;

bool rung_for[PEERS];
bool event;           /* the eventfd is readable */
mtype:life life[PEERS] = RUNNING;
bool in_epoll;        /* the sleeper sleeps in the program's epoll */
bool always_fenced;   /* membarrier was refused at the beginning */
bool may_be_refused;  /* ... or will be */
byte ends;
byte events[PEERS];    /* that each peer stores */

inline drain_word() {
  if
  :: word_waits -> word = buffered; word_episode = buffered_episode; word_waits = false; buffered = AWAKE; buffered_episode = 0
  :: else
  fi
}
inline drain_element(i) {
  if
  :: element_waits[i] -> elements[i]++; element_waits[i] = false
  :: else
  fi
}

/* Buffers empty whenever they like. */
proctype buffers() {
end:
  do
  :: d_step { word_waits -> drain_word() }
  :: d_step { element_waits[0] -> drain_element(0) }
  :: d_step { element_waits[1] -> drain_element(1) }
  od
}

/* npi_bell_store: a release store keeps the order of stores, so what is in the buffer leaves first. */
inline store_word(what) {
  drain_word();
  buffered = what;
  buffered_episode = episode;
  state = what;
  word_waits = true
}

inline find() {
  d_step { found = elements[0] > taken[0] || elements[1] > taken[1] } /* MUTANT */
}

/* npi_bell_go_to_sleep and, where it says so, npi_membarrier_all: [bell.sleep] */
inline go_to_sleep() {
  if
  :: MUTANT(10) -> find() /* MUTANT */
  :: d_step { !MUTANT(10) -> skip }
  fi;
  d_step {
    from_awake = (state == AWAKE);
    if
    :: MUTANT(6) -> skip
    :: else -> episode++
    fi;
    store_word(ASLEEP)
  }
  if
  :: d_step { from_awake && may_be_refused -> SEEN(11); may_be_refused = false; always_fenced = true; drain_word() }
    if /* it naps: what peers stored before they saw AWAKE leaves their buffers in less time than that */
    :: MUTANT(11) -> skip
    :: d_step { !MUTANT(11) && !element_waits[REGISTERED] -> skip }
    fi
  :: d_step { from_awake && !may_be_refused -> SEEN(4); drain_word() }
    if /* the peers pass it one after the other: only one of them is registered */
    :: MUTANT(1) -> skip
    :: d_step { !MUTANT(1) -> drain_element(REGISTERED) }
    fi
  :: d_step {
      !from_awake -> SEEN(5);
      if
      :: MUTANT(2) -> skip
      :: else -> drain_word()
      fi
    }
  fi
}

inline second_look() {
  if
  :: d_step { MUTANT(4) -> found = false }
  :: MUTANT(10) -> skip
  :: d_step { !MUTANT(4) && !MUTANT(10) -> found = elements[0] > taken[0] }
    if
    :: d_step { !found -> found = elements[1] > taken[1] }
    :: found
    fi
  fi
}

/* Nobody else can do anything any more: this sleep is for good. */
inline asleep_for_good() {
  d_step {
    if
    :: elements[0] == taken[0] && elements[1] == taken[1] -> SEEN(3)
    :: else ->
      if
      :: life[0] == STOPPED || life[1] == STOPPED -> SEEN(7)
      :: else -> assert(false) /* nobody will ever wake it */
      fi
    fi
  }
}

inline take_all() {
  d_step { taken[0] = elements[0] }
  d_step { taken[1] = elements[1] }
}

proctype sleeper() {
  byte taken[PEERS], episode;
  mtype:bell state = AWAKE;
  bool found, from_awake;
  if
  :: always_fenced -> state = FENCED
  :: else
  fi;
  do
  :: d_step { taken[0] = elements[0]; from_awake = false }
    if
    :: d_step { state == FENCED && !always_fenced -> taken[1] = elements[1]; store_word(AWAKE) } /* npi_bell_calm */
    :: taken[1] = elements[1]
    fi;
    if
    :: !in_epoll ->
      go_to_sleep();
      second_look();
      if
      :: d_step { found -> SEEN(2); found = false; store_word(FENCED) }
      :: !found ->
        if
        :: d_step { event -> event = false; SEEN(1); store_word(FENCED) }
        :: timeout -> asleep_for_good(); break
        fi
      fi
    :: in_epoll ->
      event = event && MUTANT(9);
      go_to_sleep();
      second_look();
      d_step {
        event = event && !MUTANT(9);
        if
        :: found -> SEEN(2); found = false; store_word(FENCED); event = true
        :: else
        fi
      }
      if /* in the program's epoll_wait; the eventfd is cleared when it is armed again */
      :: d_step { event && state == ASLEEP -> store_word(FENCED) } /* npi_client_bell_attention */
      :: event && state != ASLEEP
      :: timeout -> asleep_for_good(); break
      fi
    fi
  od
}

/* Here the peer may end: the kernel makes its stores visible before anybody can know of it. */
#define MAY_END(i)                                                                                                     \
  :: d_step { ends < ENDS -> ends++; drain_element(i); life[i] = KILLED } goto over                                    \
  :: d_step { ends < ENDS -> ends++; drain_element(i); life[i] = STOPPED } goto over

proctype peer(byte i) {
  byte left = events[i], rung, episode;
  bool seen_awake, must_fence = (i != REGISTERED);
  do
  :: left > 0 ->
    if /* [ring.submit] or [ring.return] */
    :: d_step { !MUTANT(5) -> drain_element(i); element_waits[i] = true }
    :: MUTANT(5) -> seen_awake = (word == AWAKE); d_step { drain_element(i); element_waits[i] = true } /* MUTANT */
      MAY_END(i)
    fi;
    if
    :: d_step { /* [bell.look] */
        true ->
        left--;
        if
        :: MUTANT(5) -> skip
        :: else -> seen_awake = (word == AWAKE)
        fi;
        if
        :: MUTANT(7) -> must_fence = false
        :: else
        fi;
        if
        :: seen_awake && !must_fence && element_waits[i] -> SEEN(8)
        :: else
        fi
      }
      MAY_END(i)
    fi;
    if
    :: d_step { seen_awake && !must_fence -> seen_awake = false }
    :: d_step { /* npi_bell_must_ring: [bell.look-again] */
        !seen_awake || must_fence ->
        if
        :: MUTANT(3) -> skip
        :: else -> drain_element(i)
        fi;
      }
      d_step {
        episode = 0;
        if
        :: word == ASLEEP && word_episode == rung -> SEEN(10)
        :: word == ASLEEP && word_episode != rung ->
          episode = word_episode;
          if
          :: seen_awake -> SEEN(9)
          :: else
          fi
        :: else
        fi;
        seen_awake = false
      }
      if
      :: d_step { episode != 0 -> rung = episode; episode = 0; event = true }
      :: episode == 0
        MAY_END(i)
      fi
    fi
  :: else -> break
  od;
over:
  skip
}

/* npi_reap: a death is a pidfd, and the peers of the dead are rung. */
proctype broker() {
end:
  do
  :: d_step { life[0] == KILLED && !rung_for[0] -> rung_for[0] = true }
    if
    :: MUTANT(8) -> skip
    :: d_step { !MUTANT(8) -> event = true; SEEN(6) }
    fi
  :: d_step { life[1] == KILLED && !rung_for[1] -> rung_for[1] = true }
    if
    :: MUTANT(8) -> skip
    :: d_step { !MUTANT(8) -> event = true; SEEN(6) }
    fi
  od
}

init {
  atomic {
    model_begin();
    if
    :: in_epoll = true
    :: in_epoll = false
    fi;
    if
    :: skip
    :: always_fenced = true; word = FENCED
    :: may_be_refused = true
    fi;
    if
    :: events[0] = EVENTS; events[1] = EVENTS
    :: events[0] = EVENTS + 1
    fi;
    run buffers();
    run sleeper();
    run broker();
    run peer(0);
    run peer(1)
  }
}
