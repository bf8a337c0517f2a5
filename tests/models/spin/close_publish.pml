/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Closing beside publish, take and release (client/link.c, publisher.c, subscriber.c; daemon/connections.c): one end or both
 * close, open again or are killed at any step, while frames are under way in both directions. The broker gives the same
 * number and the same ring memory to the next connection as soon as both ends have let go of this one, and not before.
 *
 * Proved: nobody touches rings that are not those of its connection; a slot is not written while its event is held; what a
 * publisher had stored before it closed or died is read to the end by a subscriber that goes on; of a group no event is
 * lost, or released twice, where the publisher lives; at rest both ends are connected, or the connection is free, and all
 * slots are.
 *
 *   seen 1: the subscriber closed while events were under way
 *   seen 2: the publisher closed while events were under way
 *   seen 3: both closed at the same time
 *   seen 4: connected again, in the same memory
 *   seen 5: read to the end after the publisher's end
 *   seen 6: word of a connection that this end has let go of
 *   seen 7: word of a connection for an endpoint that is closed
 *   seen 8: a group's event published again on the next connection
 *   seen 9: the publisher was killed
 *   seen 10: the subscriber was killed
 *   seen 11: at rest and connected
 *   seen 12: returns read after the subscriber's end
 *
 *   mutant 1: rings are used again before the publisher has let go
 *   mutant 2: rings are used again before the subscriber has let go
 *   mutant 3: rings are not formatted anew
 *   mutant 4: the publisher acknowledges, then publishes once more
 *   mutant 5: a subscriber closes while it holds events
 *   mutant 6: returns are not read before the rest is taken back
 *   mutant 7: the subscriber lets go without another look at its ring
 *   mutant 8: the broker does not look at the version of an acknowledgement
 *   mutant 9: a connection is made for an endpoint that is closed
 *   mutant 10: an end that has let go does not answer
 */
#include "model.pml"

#ifndef EVENTS
#define EVENTS 2
#endif
#ifndef CLOSES
#define CLOSES 2 /* by the one or the other end, which then opens again */
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#define N     2
#define SLOTS 2
#define NONE  7

mtype = { CONNECT, DISCONNECT, ACKNOWLEDGE, CLOSE, OPEN };
mtype:stage = { FREE, OUTSTANDING, WAITING };

/* Control sockets: what is said, the connection's version or the endpoint's number. */
chan to_publisher = [5] of { mtype, byte, byte };
chan to_subscriber = [5] of { mtype, byte, byte };
chan from_publisher = [5] of { mtype, byte };
chan from_subscriber = [5] of { mtype, byte };

/* Memory. An element is a lap, a slot and a credit; a word of an earlier life may lie in rings that were not formatted. */
byte submission[N], return_[N];
byte payload[SLOTS];
byte life;            /* the version that these rings belong to; 0: nobody's. What really is, no process reads it. */
byte stored, emptied; /* elements of that life: stored, taken */
byte was_released;    /* a bit an event */
bool group;
bool publisher_died, subscriber_died;
byte deaths, closes; /* that are still to come */

#define ELEMENT(position, credit, slot) ((((position) / N) & 3) << 4 | (credit) << 3 | (slot))
#define IS_THERE(word, position)        ((word) >> 4 == (((position) / N) & 3))

/* ---- the publisher ---- */

mtype:stage state[SLOTS] = FREE;
byte p_link, p_opened, p_next = 1;
bool p_open;

#define HAS_RETURN (p_link != 0 && IS_THERE(return_[returned % N], returned))

inline give_back(a_credit) {
  i = credit_slot[a_credit];
  assert(i != NONE);
  credit_slot[a_credit] = NONE;
  if
  :: state[i] == OUTSTANDING -> state[i] = FREE
  :: else
  fi;
  i = 0
}

inline reap() { /* [ring.reap] */
  assert(life == p_link);
  w = return_[returned % N];
  assert(credit_slot[w >> 3 & 1] == (w & 7));
  returned++;
  give_back(w >> 3 & 1);
  w = 0
}

inline p_forget() {
  submitted = 0;
  returned = 0;
  p_link = 0
}

proctype publisher() {
  byte submitted, returned, credit_slot[N] = NONE, i, w, slot, about, which;
  mtype what;
end:
  do
  :: d_step { /* np_publish, or npi_flow_offer_waiting: the oldest that waits goes first. [ring.submit] */
      p_open && p_link != 0 && (credit_slot[0] == NONE || credit_slot[1] == NONE) && empty(to_publisher) &&
        (state[0] == WAITING || state[1] == WAITING || (p_next <= EVENTS && (state[0] == FREE || state[1] == FREE))) ->
      if
      :: state[0] == WAITING && (state[1] != WAITING || payload[0] < payload[1]) -> slot = 0; SEEN(8)
      :: state[1] == WAITING && (state[0] != WAITING || payload[1] < payload[0]) -> slot = 1; SEEN(8)
      :: else ->
        slot = (state[0] == FREE -> 0 : 1);
        payload[slot] = p_next;
        p_next++
      fi;
      i = (credit_slot[0] == NONE -> 0 : 1);
      credit_slot[i] = slot;
      state[slot] = OUTSTANDING;
      assert(life == p_link);
      submission[submitted % N] = ELEMENT(submitted, i, slot);
      submitted++;
      stored++;
      i = 0;
      slot = 0
    }
  :: d_step { HAS_RETURN -> reap() }
  :: atomic { /* npi_link_make */
      to_publisher ? [CONNECT, _, _] -> to_publisher ? what, about, which;
      if
      :: d_step { (p_open && which == p_opened) || MUTANT(9) -> assert(p_link == 0); p_link = about }
      :: d_step { !(p_open && which == p_opened) && !MUTANT(9) -> SEEN(7) }
      fi;
      about = 0;
      which = 0;
      what = 0
    }
  :: atomic { /* npi_link_end, end_outlet, npi_link_let_go */
      to_publisher ? [DISCONNECT, _, _] -> to_publisher ? what, about, which;
      if
      :: d_step {
          p_link == about ->
          do
          :: HAS_RETURN && !MUTANT(6) -> reap(); SEEN(12)
          :: else -> break
          od;
          do
          :: slot < N ->
            if
            :: credit_slot[slot] != NONE ->
              state[credit_slot[slot]] = (group && p_open -> WAITING : FREE);
              give_back(slot)
            :: else
            fi;
            slot++
          :: else -> break
          od;
          slot = 0;
          if
          :: MUTANT(4) -> skip
          :: else -> p_forget()
          fi;
        }
        from_publisher ! ACKNOWLEDGE, about
      :: p_link != about && MUTANT(10) -> skip /* MUTANT */
      :: p_link != about && !MUTANT(10) -> d_step { SEEN(6) } from_publisher ! ACKNOWLEDGE, about
      fi;
      about = 0;
      which = 0;
      what = 0
    }
  :: atomic { /* np_publisher_close: what waits is given up, what is out still comes back */
      p_open && closes > 0 && empty(to_publisher) ->
      d_step {
        closes--;
        if
        :: p_link != 0 && submitted > returned -> SEEN(2)
        :: else
        fi;
        state[0] = (state[0] == WAITING -> FREE : state[0]);
        state[1] = (state[1] == WAITING -> FREE : state[1]);
        p_open = false
      }
      from_publisher ! CLOSE, p_opened
    }
  :: atomic { !p_open -> d_step { p_opened++; p_open = true } from_publisher ! OPEN, p_opened }
  :: d_step { deaths > 0 -> deaths--; publisher_died = true; SEEN(9) } break
  od;
  skip;
  d_step { submitted = 0; returned = 0; credit_slot[0] = NONE; credit_slot[1] = NONE; p_link = 0; p_open = false }
}

/* ---- the subscriber ---- */

byte s_link, s_opened;
bool s_open;
byte held[N]; /* the event, by credit */

#define HAS_ELEMENT (IS_THERE(submission[taken % N], taken))
#define HOLDS       (held[0] != 0 || held[1] != 0)

inline give(a_credit) { /* npi_inlet_release: [ring.return] */
  assert(life == s_link || MUTANT(5));
  assert(payload[held_slot[a_credit]] == held[a_credit]);
  assert(!group || !(was_released >> held[a_credit] & 1));
  was_released = was_released | 1 << held[a_credit];
  if
  :: life == s_link -> return_[given % N] = ELEMENT(given, a_credit, held_slot[a_credit])
  :: else
  fi;
  given++;
  held[a_credit] = 0;
  held_slot[a_credit] = 0
}

/* npi_link_free of this end */
inline s_forget() {
  taken = 0;
  given = 0;
  draining = false;
  s_link = 0
}

proctype subscriber() {
  byte taken, given, held_slot[N], about, which, w;
  bool draining, tells;
  mtype what;
end:
  do
  :: d_step { /* np_take: the news are looked at after the element. [ring.take] */
      s_open && s_link != 0 && HAS_ELEMENT && empty(to_subscriber) ->
      assert(life == s_link);
      w = submission[taken % N];
      assert(held[w >> 3 & 1] == 0);
      assert(taken < stored);
      held[w >> 3 & 1] = payload[w & 7];
      held_slot[w >> 3 & 1] = w & 7;
      assert(!group || !(was_released >> payload[w & 7] & 1));
      taken++;
      emptied++;
      if
      :: draining -> SEEN(5)
      :: else
      fi;
      w = 0
    }
  :: d_step { held[0] != 0 -> give(0) }
  :: d_step { held[1] != 0 -> give(1) }
  :: atomic { /* npi_link_make */
      to_subscriber ? [CONNECT, _, _] -> to_subscriber ? what, about, which;
      if
      :: d_step { (s_open && which == s_opened) || MUTANT(9) -> assert(s_link == 0); s_link = about }
      :: d_step { !(s_open && which == s_opened) && !MUTANT(9) -> SEEN(7) }
      fi;
      about = 0;
      which = 0;
      what = 0
    }
  :: atomic { /* npi_link_end */
      to_subscriber ? [DISCONNECT, _, _] -> to_subscriber ? what, about, which;
      if
      :: s_link == about -> draining = true
      :: s_link != about && MUTANT(10) -> skip /* MUTANT */
      :: s_link != about && !MUTANT(10) -> d_step { SEEN(6) } from_subscriber ! ACKNOWLEDGE, about
      fi;
      about = 0;
      which = 0;
      what = 0
    }
  :: atomic { /* found_nothing, released_last, npi_link_end: nothing of it is needed any more */
      draining && !HOLDS && (!HAS_ELEMENT || MUTANT(7)) ->
      d_step { assert(emptied == stored); about = s_link; s_forget() }
      from_subscriber ! ACKNOWLEDGE, about;
      about = 0
    }
  :: atomic { /* np_subscriber_close */
      s_open && closes > 0 && (!HOLDS || MUTANT(5)) && empty(to_subscriber) ->
      d_step {
        closes--;
        if
        :: s_link != 0 && HAS_ELEMENT -> SEEN(1)
        :: else
        fi;
        tells = draining;
        about = s_link;
        s_forget();
        s_open = false
      }
      if
      :: tells -> from_subscriber ! ACKNOWLEDGE, about
      :: else
      fi;
      tells = false;
      about = 0;
      from_subscriber ! CLOSE, s_opened
    }
  :: atomic { !s_open -> d_step { s_opened++; s_open = true } from_subscriber ! OPEN, s_opened }
  :: d_step { deaths > 0 -> deaths--; subscriber_died = true; SEEN(10) } break
  od;
  skip;
  d_step { s_forget(); held[0] = 0; held[1] = 0; held_slot[0] = 0; held_slot[1] = 0; s_open = false }
}

/* ---- the broker ---- */

byte version;
bool made, p_holds, s_holds, p_told, s_told;
byte p_endpoint, s_endpoint; /* that are open; 0: none */

inline tell_publisher() {
  if
  :: p_holds && !p_told ->
    p_told = true;
    assert(nfull(to_publisher));
    to_publisher ! DISCONNECT, version, 0
  :: else
  fi
}
inline tell_subscriber() {
  if
  :: s_holds && !s_told ->
    s_told = true;
    assert(nfull(to_subscriber));
    to_subscriber ! DISCONNECT, version, 0
  :: else
  fi
}

proctype broker() {
  bool publisher_gone, subscriber_gone;
  byte about;
  mtype what;
end:
  do
  :: d_step { /* settle of daemon/connections.c: both have let go, the rings may be placed anew */
      made && (!p_holds || MUTANT(1)) && (!s_holds || MUTANT(2)) ->
      made = false;
      p_holds = false;
      s_holds = false;
      p_told = false;
      s_told = false;
      life = 0;
      stored = 0;
      emptied = 0
    }
  :: atomic { /* npi_connection_prepare and npi_connection_announce */
      !made && p_endpoint != 0 && s_endpoint != 0 ->
      d_step {
        version++;
        life = version;
        if
        :: version > 1 -> SEEN(4)
        :: else
        fi;
        if
        :: MUTANT(3) && version > 1 -> skip
        :: else -> submission[0] = 3 << 4; submission[1] = 3 << 4; return_[0] = 3 << 4; return_[1] = 3 << 4
        fi;
        made = true;
        p_holds = true;
        s_holds = true
      }
      assert(nfull(to_subscriber) && nfull(to_publisher));
      to_subscriber ! CONNECT, version, s_endpoint;
      to_publisher ! CONNECT, version, p_endpoint
    }
  :: atomic {
      !publisher_gone && from_publisher ? [OPEN, _] -> from_publisher ? what, p_endpoint; what = 0
    }
  :: atomic { /* npi_connection_publisher_closed */
      !publisher_gone && from_publisher ? [CLOSE, _] -> from_publisher ? what, about;
      p_endpoint = 0;
      if
      :: made -> tell_subscriber()
      :: else
      fi;
      about = 0;
      what = 0
    }
  :: atomic { /* npi_connection_acknowledge */
      !publisher_gone && from_publisher ? [ACKNOWLEDGE, _] -> from_publisher ? what, about;
      if
      :: made && (about == version || MUTANT(8)) && p_told && p_holds -> p_holds = false
      :: else
      fi;
      about = 0;
      what = 0
    }
  :: atomic { !subscriber_gone && from_subscriber ? [OPEN, _] -> from_subscriber ? what, s_endpoint; what = 0 }
  :: atomic { /* npi_connection_subscriber_closed */
      !subscriber_gone && from_subscriber ? [CLOSE, _] -> from_subscriber ? what, about;
      if
      :: p_endpoint == 0 && made && p_holds && s_told -> d_step { SEEN(3) }
      :: else
      fi;
      s_endpoint = 0;
      if
      :: made -> s_holds = false; tell_publisher()
      :: else
      fi;
      about = 0;
      what = 0
    }
  :: atomic {
      !subscriber_gone && from_subscriber ? [ACKNOWLEDGE, _] -> from_subscriber ? what, about;
      if
      :: made && (about == version || MUTANT(8)) && s_told && s_holds -> s_holds = false; tell_publisher()
      :: else
      fi;
      about = 0;
      what = 0
    }
  :: atomic { /* npi_connection_publisher_gone */
      publisher_died && !publisher_gone -> publisher_gone = true;
      p_endpoint = 0;
      if
      :: made -> p_holds = false; tell_subscriber()
      :: else
      fi
    }
  :: atomic { /* npi_connection_subscriber_gone */
      subscriber_died && !subscriber_gone -> subscriber_gone = true;
      s_endpoint = 0;
      if
      :: made -> s_holds = false; tell_publisher()
      :: else
      fi
    }
  od
}

/* Nothing is under way any more. */
proctype judge() {
  timeout ->
  d_step {
    assert(made == (p_open && s_open));
    assert(!made || (p_link == version && s_link == version));
    assert(made || (p_link == 0 && s_link == 0));
    assert(publisher_died || state[0] == FREE || (p_open && !s_open && state[0] == WAITING));
    assert(publisher_died || state[1] == FREE || (p_open && !s_open && state[1] == WAITING));
    assert(!HOLDS);
    assert(!made || !group || p_opened > 1 || was_released == (1 << p_next) - 2);
    if
    :: made -> SEEN(11)
    :: else
    fi
  }
}

init {
  byte n;
  atomic {
    model_begin();
    select(n : 0 .. DEATHS);
    deaths = n;
    n = 0;
    select(n : 0 .. CLOSES);
    closes = n;
    n = 0;
    if
    :: group = true
    :: group = false
    fi;
    run publisher();
    run subscriber();
    run broker();
    run judge()
  }
}
