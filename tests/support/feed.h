/* SPDX-License-Identifier: Apache-2.0 */
/* Senders without numapool: sockets, and streams of numbered messages over them. */
#ifndef NUMAPOOL_TESTS_FEED_H
#define NUMAPOOL_TESTS_FEED_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Connected sockets; -1 and errno. host is numeric, IPv4 or IPv6. */
int feed_connect(const char *host, uint16_t port, int type /* SOCK_STREAM, SOCK_DGRAM */);
int feed_connect_unix(const char *path, int type);

/* All of it, or -1 where the peer closed. */
int feed_write(int fd, const void *bytes, size_t n);

/* 1 when the peer has closed the stream, waiting at most so long. */
int feed_peer_closed(int fd, int seconds);

/* Appends number `number` as a frame with a 4-byte big-endian length; returns the bytes written to `to`. */
size_t feed_frame(uint8_t *to, uint64_t number, size_t size);

/* A child for spawn() that sends messages first .. first + count - 1, each behind a 4-byte length, to 127.0.0.1:port. */
struct feed {
  uint16_t port;
  uint64_t first, count;
  _Atomic uint64_t sent, bytes;
};
int feed_body(void *feed);

#endif
