/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a listener's settings to a socket that receives: bound, listening or joined, non-blocking, close-on-exec.
 * What goes wrong here goes wrong at an operator's hands, so each error names listener, place, cause and fix.
 */
#ifndef NPI_DAEMON_LISTENER_SOCKET_H
#define NPI_DAEMON_LISTENER_SOCKET_H

#include <stdint.h>
#include <sys/types.h>

#include "daemon/config.h"

struct npi_listener_socket {
  int fd;          /* -1: none */
  int family;      /* AF_INET, AF_INET6, AF_UNIX */
  uint32_t port;   /* bound; differs from the configured one where that is 0 */
  uint64_t rcvbuf; /* obtained, in the unit of the setting (the kernel books twice that) */
  uint32_t rcvbuf_clipped;
  char path[NPI_CONFIG_PATH_BYTES]; /* Unix: the file that npi_listener_socket_close removes */
  dev_t path_device;                /* it is removed only while it is still this socket's */
  ino_t path_inode;
};

/*
 * reuse_port: several sockets share the address (SO_REUSEPORT), one a worker. Not for multicast: each socket
 * of such a group gets every datagram. On failure nothing is left behind and out->fd is -1.
 * NP_ERR_EXISTS: the address is in use. NP_ERR_DENIED, NP_ERR_CONFIG, NP_ERR_LIMIT, NP_ERR_SYSTEM.
 */
int npi_listener_socket_open(const struct npi_listener_config *config, int reuse_port, struct npi_listener_socket *out);

/* A socket that an earlier broker had opened with the same settings. Takes fd over; what is no such socket: NP_ERR_CORRUPT. */
int npi_listener_socket_adopt(const struct npi_listener_config *config, int fd, struct npi_listener_socket *out);

/* Closes, and removes the file of a Unix socket; a socket that was never opened (fd -1) is fine. */
void npi_listener_socket_close(struct npi_listener_socket *socket);

/* "tcp 127.0.0.1:5514", "unix /run/...": for log lines. */
void npi_listener_socket_describe(const struct npi_listener_config *config, char *text, size_t size);

#endif
