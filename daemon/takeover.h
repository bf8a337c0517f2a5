/* SPDX-License-Identifier: Apache-2.0 */
/* numapoold --takeover: a running broker makes room for this one. */
#ifndef NPI_DAEMON_TAKEOVER_H
#define NPI_DAEMON_TAKEOVER_H

struct npi_broker;

/*
 * After npi_lock_take() said NP_ERR_EXISTS: asks the holder to end at once and waits, at most five seconds, for its
 * lock. A configuration that the instance cannot go on with is refused before that. 0: the lock is ours.
 */
int npi_takeover(struct npi_broker *broker);

#endif
