/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of opening a listener's socket that have files of their own. */
#ifndef NPI_DAEMON_LISTENER_INTERNAL_H
#define NPI_DAEMON_LISTENER_INTERNAL_H

#include "daemon/listener_socket.h"

/* An unbound socket of the listener's kind in out->fd. */
int npi_listener_make(const struct npi_listener_config *config, int family, struct npi_listener_socket *out);

/* setsockopt with an int. */
int npi_listener_set(int fd, int level, int option, int value);

/* Joins the listener's multicast group on a bound UDP socket. */
int npi_listener_join(const struct npi_listener_config *config, int fd, int family);

/* Makes and binds a Unix socket; not listening yet. */
int npi_listener_open_unix(const struct npi_listener_config *config, struct npi_listener_socket *out);

#endif
