/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is the pidfd of a session that of the process that speaks there?
 *
 * From Linux 6.5 on the kernel hands out the pidfd of whoever connected. Before that there is only the number that the
 * peer had when it connected, and who has it now may be another process: the peer died, its number was given away, and a
 * child that inherited the socket keeps it open. The pidfd of a stranger would then be watched for the peer's death, and
 * the peer's memory and rights be the stranger's.
 *
 * So the broker opens the pidfd first, and then sends a random number that must come back in a message of which the
 * kernel says that a process with the peer's number sent it. If after that the pidfd still says that its process lives,
 * that process has had the number all the time since the pidfd was opened, so it is the one that answered.
 */
#ifndef NPI_DAEMON_IDENTITY_H
#define NPI_DAEMON_IDENTITY_H

#include <sys/types.h>

#include "daemon/requests.h"

/* Keeps the first frame of a session until the peer has answered. */
enum npi_request_result npi_identity_challenge(struct npi_session *session, const struct npi_control_frame *first);

/* The answer, and whose the kernel says it is. The first frame is handled, or refused. */
enum npi_request_result npi_identity_prove(struct npi_session *session, const struct npi_control_frame *frame,
                                           pid_t sender);

#endif
