/* SPDX-License-Identifier: Apache-2.0 */
/* What must be seen, by whom and how often; programs report what they do and see. Findings are violations. */
#ifndef NUMAPOOL_TESTS_TRUTH_H
#define NUMAPOOL_TESTS_TRUTH_H

#include "step/world.h"

/* The publisher of this actor begins anew: everything of its former life must be accounted for. */
void truth_publisher_opens(uint32_t actor);
/* Its library says that it closed; n events were lost with a member. */
void truth_publisher_closed(uint32_t actor);

/* The payload of event `number`, of STEP_PAYLOAD_BYTES. */
enum { STEP_PAYLOAD_BYTES = 32 };
void truth_fill(uint32_t publisher, uint32_t number, uint8_t *payload);

/* np_publish said OK n times; n_dropped of them went to no member of the group. */
void truth_published(uint32_t publisher, uint32_t n, uint32_t n_dropped);

/* np_take gave this event. Adds a row to what the actor holds. */
void truth_taken(uint32_t actor, const struct np_event *event);
/* Is a held event still what it was? */
void truth_look_again(uint32_t actor, uint32_t row);
/* np_release said OK: the row goes. */
void truth_released(uint32_t actor, uint32_t row);

/* The subscriber's library acknowledged the end of a connection: it has seen all of it. */
void truth_subscriber_let_go(uint32_t connection);

/* The process of this actor ended; was_now: inside world->now. */
void truth_actor_died(uint32_t actor, int was_now);

/* Everything that can be drained is: all of it must be accounted for. */
void truth_check_complete(void);

#endif
