/* SPDX-License-Identifier: Apache-2.0 */
/* The sums of endpoints that are gone, as the broker makes them. Findings are violations. */
#ifndef NUMAPOOL_TESTS_STEP_ACCOUNTS_H
#define NUMAPOOL_TESTS_STEP_ACCOUNTS_H

#include "step/world.h"

/* A row of counters begins with zeros. */
void accounts_publisher_opens(uint32_t actor);

/* Both ends have let go: what its rings say is added, before they are used again. */
void accounts_connection_ends(const struct step_connection *connection);

/* Events that the subscriber has given back on the connection, as its ring says. */
uint32_t accounts_released(const struct step_connection *connection);

/* The process of the actor has ended, and nobody has done anything since. */
void accounts_actor_gone(uint32_t actor);

/* Nothing moves any more: the sums of the dead are what they were at their death. */
void accounts_check_complete(void);

#endif
