/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper process: numapoold --keeper=FD, started by the broker. */
#ifndef NPI_DAEMON_KEEPER_H
#define NPI_DAEMON_KEEPER_H

/*
 * Serves the listening socket until it is told to end, or until nobody is connected and every process that it has a
 * descriptor of is dead. Returns the exit status.
 */
int npi_keeper_main(int listen_fd);

#endif
