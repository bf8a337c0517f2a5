/* SPDX-License-Identifier: Apache-2.0 */
/* See listener_socket.h. Joining multicast groups is in listener_multicast.c, Unix socket files in listener_unix.c. */
#include "daemon/listener_socket.h"

#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/listener_internal.h"

enum { BACKLOG = 1024, UDP_RCVBUF = 4 << 20 };

void npi_listener_socket_describe(const struct npi_listener_config *config, char *text, size_t size) {
  const char *proto = npi_config_proto_text(config->proto);
  if (npi_config_proto_is_unix(config->proto)) {
    snprintf(text, size, "%s %s", proto, config->path);
  } else if (strchr(config->address, ':') != NULL) {
    snprintf(text, size, "%s [%s]:%" PRIu32, proto, config->address, config->port);
  } else {
    snprintf(text, size, "%s %s:%" PRIu32, proto, config->address, config->port);
  }
}

int npi_listener_set(int fd, int level, int option, int value) {
  return setsockopt(fd, level, option, &value, sizeof value);
}

/* "*" is all of IPv6 and IPv4 by one socket; of one family where a group or the kernel says so. */
static int resolve(const struct npi_listener_config *config, int family_of_any, struct sockaddr_storage *address,
                   socklen_t *length) {
  struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_DGRAM};
  struct addrinfo *found = NULL;
  char port[16];
  const char *host = config->address;
  if (strcmp(host, "*") == 0) host = family_of_any == AF_INET ? "0.0.0.0" : "::";
  snprintf(port, sizeof port, "%" PRIu32, config->port);
  int error = getaddrinfo(host, port, &hints, &found);
  if (error != 0) {
    return npi_fail(NP_ERR_CONFIG, "listener \"%s\": \"%s\" port %s is not an address: %s; write it in numbers",
                    config->name, host, port, gai_strerror(error));
  }
  memcpy(address, found->ai_addr, found->ai_addrlen);
  *length = found->ai_addrlen;
  freeaddrinfo(found);
  return 0;
}

static int family_of_any(const struct npi_listener_config *config) {
  if (config->multicast.group[0] != '\0') return strchr(config->multicast.group, ':') != NULL ? AF_INET6 : AF_INET;
  return AF_INET6;
}

/* Asks for the buffer, reads back what came of it, and says so when it is less than the operator wanted. */
static void set_rcvbuf(const struct npi_listener_config *config, struct npi_listener_socket *out) {
  uint64_t asked = config->rcvbuf;
  if (asked == 0 && config->proto == NPI_CONFIG_UDP) asked = UDP_RCVBUF;
  if (asked > 0) npi_listener_set(out->fd, SOL_SOCKET, SO_RCVBUF, (int)asked);
  int doubled = 0;
  socklen_t length = sizeof doubled;
  if (getsockopt(out->fd, SOL_SOCKET, SO_RCVBUF, &doubled, &length) != 0) return;
  if ((uint64_t)doubled / 2 < asked) {
    /* Beyond net.core.rmem_max, for those who may (CAP_NET_ADMIN). */
    npi_listener_set(out->fd, SOL_SOCKET, SO_RCVBUFFORCE, (int)asked);
    getsockopt(out->fd, SOL_SOCKET, SO_RCVBUF, &doubled, &length);
  }
  out->rcvbuf = (uint64_t)doubled / 2;
  out->rcvbuf_clipped = out->rcvbuf < asked;
  if (!out->rcvbuf_clipped) return;
  npi_log(config->rcvbuf > 0 ? NPI_LOG_WARNING : NPI_LOG_INFO, "socket.rcvbuf_clipped",
          "listener=%s asked=%" PRIu64 " got=%" PRIu64 " fix=\"sysctl -w net.core.rmem_max=%" PRIu64 "\"", config->name,
          asked, out->rcvbuf, asked);
}

static int fail_bind(const struct npi_listener_config *config, int error) {
  char place[200];
  npi_listener_socket_describe(config, place, sizeof place);
  const char *flag = config->proto == NPI_CONFIG_TCP ? "t" : "u";
  switch (error) {
    case EADDRINUSE:
      return npi_fail(
          NP_ERR_EXISTS,
          "listener \"%s\": %s is in use: stop the process that has it or choose another port (ss -ln%sp 'sport "
          "= %" PRIu32 "' shows it)%s",
          config->name, place, flag, config->port,
          strchr(config->address, ':') != NULL && !config->ipv6_only
              ? "; beside an IPv4 listener of the same port set ipv6_only: true"
              : "");
    case EACCES:
      return npi_fail(
          NP_ERR_DENIED,
          "listener \"%s\": %s is not permitted: ports below 1024 (net.ipv4.ip_unprivileged_port_start) need "
          "root or CAP_NET_BIND_SERVICE; choose a higher port, or give that capability",
          config->name, place);
    case EADDRNOTAVAIL:
      return npi_fail(
          NP_ERR_CONFIG,
          "listener \"%s\": no interface of this machine has the address of %s: `ip address` shows those it "
          "has; *:%" PRIu32 " takes all",
          config->name, place, config->port);
    default: return npi_fail_errno(NP_ERR_SYSTEM, error, "listener \"%s\": cannot bind %s", config->name, place);
  }
}

int npi_listener_make(const struct npi_listener_config *config, int family, struct npi_listener_socket *out) {
  int type = npi_config_proto_is_datagram(config->proto) ? SOCK_DGRAM : SOCK_STREAM;
  out->fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  out->family = family;
  if (out->fd >= 0) return 0;
  if (errno == EMFILE || errno == ENFILE) {
    return npi_fail_errno(NP_ERR_LIMIT, errno, "listener \"%s\": no descriptor left; raise the limit (ulimit -n)",
                          config->name);
  }
  if (errno == EAFNOSUPPORT && family == AF_INET6) {
    return npi_fail(NP_ERR_SYSTEM,
                    "listener \"%s\": this kernel has no IPv6, which [%s]:%" PRIu32 " needs; use an IPv4 address",
                    config->name, config->address, config->port);
  }
  return npi_fail_errno(NP_ERR_SYSTEM, errno, "listener \"%s\": cannot make a %s socket", config->name,
                        npi_config_proto_text(config->proto));
}

static int set_ip_options(const struct npi_listener_config *config, int reuse_port, int fd, int family) {
  /*
   * TCP: connections of an earlier process that linger in TIME_WAIT do not block a restart. Multicast: several
   * programs of a machine may listen to one group. For unicast UDP it would let a second program take the traffic.
   */
  int multicast = config->multicast.group[0] != '\0';
  const char *what = "SO_REUSEADDR";
  if ((config->proto == NPI_CONFIG_TCP || multicast) && npi_listener_set(fd, SOL_SOCKET, SO_REUSEADDR, 1) != 0) {
    goto fail;
  }
  what = "SO_REUSEPORT";
  if (reuse_port && npi_listener_set(fd, SOL_SOCKET, SO_REUSEPORT, 1) != 0) goto fail;
  what = "IPV6_V6ONLY";
  if (family == AF_INET6 && npi_listener_set(fd, IPPROTO_IPV6, IPV6_V6ONLY, config->ipv6_only != 0) != 0) goto fail;
  return 0;
fail:
  return npi_fail_errno(NP_ERR_SYSTEM, errno, "listener \"%s\": cannot set %s", config->name, what);
}

/* Family and port as the kernel says them. */
static int ask_address(const struct npi_listener_config *config, struct npi_listener_socket *out) {
  union {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_storage room;
  } bound = {.in6 = {0}};
  socklen_t length = sizeof bound;
  if (getsockname(out->fd, &bound.any, &length) != 0) {
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "listener \"%s\": cannot ask for the bound port", config->name);
  }
  out->family = bound.any.sa_family;
  out->port = out->family == AF_INET    ? ntohs(bound.in.sin_port)
              : out->family == AF_INET6 ? ntohs(bound.in6.sin6_port)
                                        : 0;
  return 0;
}

static int open_ip(const struct npi_listener_config *config, int reuse_port, struct npi_listener_socket *out) {
  struct sockaddr_storage address = {0};
  socklen_t length = 0;
  int any = family_of_any(config);
  int status = resolve(config, any, &address, &length);
  if (status < 0) return status;
  status = npi_listener_make(config, address.ss_family, out);
  if (status < 0 && strcmp(config->address, "*") == 0 && address.ss_family == AF_INET6 &&
      config->multicast.group[0] == '\0' && !config->ipv6_only) {
    /* All addresses of a machine without IPv6 are those of IPv4. */
    status = resolve(config, AF_INET, &address, &length);
    if (status == 0) status = npi_listener_make(config, AF_INET, out);
  }
  if (status < 0) return status;
  status = set_ip_options(config, reuse_port, out->fd, out->family);
  if (status < 0) return status;
  set_rcvbuf(config, out); /* before listen: accepted connections inherit it, and the window scale is fixed then */
  if (bind(out->fd, (struct sockaddr *)&address, length) != 0) return fail_bind(config, errno);
  if (config->proto == NPI_CONFIG_UDP && config->multicast.group[0] != '\0') {
    status = npi_listener_join(config, out->fd, out->family);
    if (status < 0) return status;
  }
  /* Two sockets with SO_REUSEADDR may both bind; the second learns of the first here. */
  if (config->proto == NPI_CONFIG_TCP && listen(out->fd, BACKLOG) != 0) return fail_bind(config, errno);
  return ask_address(config, out);
}

int npi_listener_socket_open(const struct npi_listener_config *config, int reuse_port,
                             struct npi_listener_socket *out) {
  memset(out, 0, sizeof *out);
  out->fd = -1;
  int is_unix = npi_config_proto_is_unix(config->proto);
  int status = is_unix ? npi_listener_open_unix(config, out) : open_ip(config, reuse_port, out);
  if (status < 0) goto fail;
  if (is_unix) {
    set_rcvbuf(config, out);
    /* Only now: bytes of a sender that came between would have met another buffer, but no error. */
    if (config->proto == NPI_CONFIG_UNIX && listen(out->fd, BACKLOG) != 0) {
      status = npi_fail_errno(NP_ERR_SYSTEM, errno, "listener \"%s\": cannot listen on %s", config->name, config->path);
      goto fail;
    }
  }
  if (config->timestamps && npi_config_proto_is_datagram(config->proto) &&
      npi_listener_set(out->fd, SOL_SOCKET, SO_TIMESTAMPNS, 1) != 0) {
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "listener \"%s\": cannot set SO_TIMESTAMPNS; set timestamps: false",
                            config->name);
    goto fail;
  }
  return 0;
fail:
  npi_listener_socket_close(out);
  return status;
}

int npi_listener_socket_adopt(const struct npi_listener_config *config, int fd, struct npi_listener_socket *out) {
  struct stat facts;
  memset(out, 0, sizeof *out);
  out->fd = fd;
  int status = ask_address(config, out);
  if (status != 0 || (out->family == AF_UNIX) != npi_config_proto_is_unix(config->proto)) {
    close(fd);
    out->fd = -1;
    return npi_fail(NP_ERR_CORRUPT, "listener \"%s\": what the earlier broker left is not its socket", config->name);
  }
  if (out->family == AF_UNIX && lstat(config->path, &facts) == 0 && S_ISSOCK(facts.st_mode)) {
    memcpy(out->path, config->path, sizeof out->path);
    out->path_device = facts.st_dev;
    out->path_inode = facts.st_ino;
  }
  return 0;
}

void npi_listener_socket_close(struct npi_listener_socket *socket) {
  struct stat facts;
  if (socket->fd < 0) return;
  /* A successor may have put its own socket there: only the file of this one goes. */
  if (socket->path[0] != '\0' && lstat(socket->path, &facts) == 0 && facts.st_dev == socket->path_device &&
      facts.st_ino == socket->path_inode) {
    unlink(socket->path);
  }
  close(socket->fd);
  socket->fd = -1;
  socket->path[0] = '\0';
}
