/* SPDX-License-Identifier: Apache-2.0 */
/*
 * New stream connections: admitted, or refused in a way that the other side sees at once.
 *
 * The listening socket is only watched; accept4() is an ordinary call. A multishot accept would save it, but kernels in
 * use hand out descriptors that do not exist, and lose connections when a table is full.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/ingest_internal.h"

enum { ACCEPT_BATCH = 64, BACK_OFF_NS = 100000000 };

static uint32_t count_of_address(const struct npi_ingest_listener *listener, const uint8_t address[16]) {
  uint32_t n = 0;

  for (const struct npi_ingest_link *link = listener->all.after; link != &listener->all; link = link->after)
    n += memcmp(NPI_LINK_OBJECT(link, struct npi_ingest_connection, in_all)->address, address, 16) == 0;
  return n;
}

static int is_admitted(const struct npi_ingest_listener *listener, const struct sockaddr_storage *from,
                       socklen_t from_bytes) {
  uint32_t per_address = listener->config.max_connections_per_address;
  uint8_t address[16], family;
  uint16_t port;

  if (listener->n_connections >= listener->config.max_connections) return 0;
  if (per_address == 0) return 1;
  npi_ingest_address(from, from_bytes, address, &port, &family);
  return count_of_address(listener, address) < per_address;
}

/*
 * No descriptor is left. The connection would stay in the queue and keep the socket readable: it is taken with the
 * spare descriptor and closed, so that its sender knows, and accepting rests for a moment.
 */
static void refuse_with_spare(struct npi_ingest_listener *listener, int error_number) {
  struct npi_ingest *ingest = listener->ingest;
  int fd;

  if (listener->spare_fd >= 0) {
    close(listener->spare_fd);
    fd = accept4(listener->source.fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0) {
      close(fd);
      npi_listener_count(listener, NPI_LISTENER_REJECTED, 1);
    }
    listener->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  }
  npi_log(NPI_LOG_WARNING, "ingest.accept_failed",
          "listener=%s connections=%u reason=\"%s\" fix=\"raise the limit of open files or lower max_connections\"",
          listener->config.name, listener->n_connections, strerror(error_number));
  listener->accept_again_ns = ingest->now_ns + BACK_OFF_NS;
  ingest->backend->operations->stop(ingest->backend, &listener->source);
}

static void set_keepalive(int fd, enum npi_config_proto proto) {
  int on = 1;

  /* A peer that vanished without a word is noticed by the system's own timing; best effort. */
  if (proto == NPI_CONFIG_TCP) setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

void npi_ingest_accept(struct npi_ingest_listener *listener) {
  for (int i = 0; i < ACCEPT_BATCH; i++) {
    struct sockaddr_storage from;
    socklen_t from_bytes = sizeof(from);
    int fd;

    memset(&from, 0, sizeof(from));
    fd = accept4(listener->source.fd, (struct sockaddr *)&from, &from_bytes, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
        refuse_with_spare(listener, errno);
      else if (errno != EAGAIN) /* the newcomer is gone already, or the network is: both pass */
        continue;
      return;
    }
    if (!is_admitted(listener, &from, from_bytes)) {
      npi_listener_count(listener, NPI_LISTENER_REJECTED, 1);
      close(fd);
      continue;
    }
    set_keepalive(fd, listener->config.proto);
    if (npi_connection_open(listener, fd, &from, from_bytes) < 0) {
      npi_log(NPI_LOG_ERROR, "ingest.no_memory", "listener=%s reason=\"%s\"", listener->config.name, npi_detail());
      npi_listener_count(listener, NPI_LISTENER_REJECTED, 1);
      close(fd);
      continue;
    }
    npi_listener_count(listener, NPI_LISTENER_ACCEPTED, 1);
  }
}
