/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unix sockets that keep message borders (SOCK_SEQPACKET) and carry descriptors. Always close-on-exec and
 * non-blocking; nothing here waits for the other side, but for npi_socket_connect().
 */
#ifndef NPI_OS_SOCKET_H
#define NPI_OS_SOCKET_H

#include <stddef.h>
#include <sys/types.h>

/* Conditions of send, receive and accept. */
enum { NPI_SOCKET_AGAIN = 1, NPI_SOCKET_END = 2 };

/* The most descriptors in one message. */
enum { NPI_SOCKET_FDS_MAX = 16 };

/*
 * Listens at path with the given mode, which is in force before the first peer can connect. A socket that lies at path
 * is replaced: the caller must know that no other broker lives (instance lock). Other kinds of file are not touched
 * (NP_ERR_EXISTS). The caller closes *fd and unlinks path.
 */
int npi_socket_listen(const char *path, int mode, int backlog, int *fd);

/* Next waiting peer. NPI_SOCKET_AGAIN: none. NP_ERR_LIMIT: out of descriptors, the peer still waits. */
int npi_socket_accept(int listener, int *fd);

/*
 * NP_ERR_NO_BROKER: nobody there, with path and fix; NP_ERR_DENIED: the socket's mode or folder keeps us out.
 * Waits up to a second where the broker's queue of newcomers is full.
 */
int npi_socket_connect(const char *path, int *fd);

/* The same without waiting: a full queue is NP_ERR_NO_BROKER. */
int npi_socket_connect_once(const char *path, int *fd);

/*
 * Does somebody listen at path, though perhaps nobody accepts? 1, also where the queue of newcomers is full; 0: nobody;
 * < 0: nobody could tell. Whoever listens sees a newcomer that leaves at once.
 */
int npi_socket_has_listener(const char *path);

/* Two connected ends. */
int npi_socket_pair(int fds[2]);

/*
 * Sends one message with n_fds descriptors, which stay the caller's; all or nothing.
 * NPI_SOCKET_AGAIN: no room, try when writable. NPI_SOCKET_END: the other side is gone.
 * NP_ERR_LIMIT: too many descriptors in flight that receivers have not read.
 */
int npi_socket_send(int fd, const void *bytes, size_t n, const int *fds, int n_fds);

/*
 * Receives one message of at most size bytes into bytes, *n of them, with *n_fds descriptors, now the caller's.
 * Descriptors over max_fds are closed. NPI_SOCKET_AGAIN: none there. NPI_SOCKET_END: the other side has closed (an
 * empty message counts as that). NP_ERR_PROTOCOL: bytes or descriptors were cut off; every descriptor is closed.
 * NP_ERR_LIMIT: the same because this process has no descriptor left. Without 0, *n and *n_fds are 0.
 */
int npi_socket_receive(int fd, void *bytes, size_t size, size_t *n, int *fds, int max_fds, int *n_fds);

/*
 * From now on the kernel notes beside each message which process sends it, until it is told otherwise. Meanwhile only
 * npi_socket_receive_from() receives.
 */
int npi_socket_note_senders(int fd, int on);

/* As npi_socket_receive(); *sender: the process as the kernel noted it when the message was sent, 0: it did not. */
int npi_socket_receive_from(int fd, void *bytes, size_t size, size_t *n, int *fds, int max_fds, int *n_fds,
                            pid_t *sender);

#endif
