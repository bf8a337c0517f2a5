/* SPDX-License-Identifier: Apache-2.0 */
/* What the service manager wants to know, as a datagram to the socket that it names in $NOTIFY_SOCKET. */
#ifndef NPI_DAEMON_NOTIFY_H
#define NPI_DAEMON_NOTIFY_H

/* "READY=1\nSTATUS=..." and the like. Without a service manager: nothing. Failure is logged, and harmless. */
void npi_notify(const char *state);

#endif
