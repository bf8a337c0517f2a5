/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/feed.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/support/child.h"
#include "tests/support/message.h"

int feed_connect(const char *host, uint16_t port, int type) {
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
  int is_six = inet_pton(AF_INET6, host, &six.sin6_addr) == 1;
  if (!is_six && inet_pton(AF_INET, host, &four.sin_addr) != 1) return -1;
  int fd = socket(is_six ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  const struct sockaddr *address = is_six ? (const void *)&six : (const void *)&four;
  if (connect(fd, address, is_six ? sizeof six : sizeof four) == 0) return fd;
  close(fd);
  return -1;
}

int feed_connect_unix(const char *path, int type) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (snprintf(address.sun_path, sizeof address.sun_path, "%s", path) >= (int)sizeof address.sun_path) return -1;
  int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0) return fd;
  close(fd);
  return -1;
}

int feed_write(int fd, const void *bytes, size_t n) {
  const uint8_t *at = bytes;
  while (n > 0) {
    ssize_t written = send(fd, at, n, MSG_NOSIGNAL);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return -1;
    at += written;
    n -= (size_t)written;
  }
  return 0;
}

int feed_peer_closed(int fd, int seconds) {
  for (int left = seconds * 10; left > 0; left--) {
    char byte;
    struct pollfd look = {.fd = fd, .events = POLLIN};
    if (poll(&look, 1, 100) <= 0) continue;
    ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno == ECONNRESET)) return 1;
  }
  return 0;
}

size_t feed_frame(uint8_t *to, uint64_t number, size_t size) {
  uint32_t length = htonl((uint32_t)size);
  memcpy(to, &length, 4);
  message_fill(to + 4, size, number);
  return size + 4;
}

int feed_body(void *argument) {
  enum { BATCH = 1 << 20 };
  struct feed *feed = argument;
  uint8_t *buffer = malloc(BATCH + MESSAGE_MOST + 4);
  CHILD_EXPECT(buffer != NULL);
  int fd = feed_connect("127.0.0.1", feed->port, SOCK_STREAM);
  CHILD_EXPECT(fd >= 0);
  size_t used = 0;
  for (uint64_t i = 0; i < feed->count; i++) {
    uint64_t number = feed->first + i;
    used += feed_frame(buffer + used, number, message_size(number));
    if (used < BATCH && i + 1 < feed->count) continue;
    CHILD_EXPECT(feed_write(fd, buffer, used) == 0);
    feed->bytes += used;
    feed->sent = i + 1;
    used = 0;
  }
  shutdown(fd, SHUT_WR);
  CHILD_EXPECT(feed_peer_closed(fd, 120)); /* what it has read to the end it closes */
  close(fd);
  free(buffer);
  return 0;
}
