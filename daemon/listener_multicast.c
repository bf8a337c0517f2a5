/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Joining a multicast group, by the calls that work for both families and with a source (RFC 3678).
 * The membership ends with the socket.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "base/status.h"
#include "daemon/listener_internal.h"

#ifndef IPV6_MULTICAST_ALL
#define IPV6_MULTICAST_ALL 29
#endif

static int resolve(const char *text, struct sockaddr_storage *address) {
  struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_DGRAM};
  struct addrinfo *found = NULL;
  memset(address, 0, sizeof *address);
  if (getaddrinfo(text, NULL, &hints, &found) != 0) return AF_UNSPEC;
  memcpy(address, found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  return address->ss_family;
}

static int same_host(const struct sockaddr *a, const struct sockaddr_storage *b) {
  if (a == NULL || a->sa_family != b->ss_family) return 0;
  if (a->sa_family == AF_INET) {
    return ((const struct sockaddr_in *)a)->sin_addr.s_addr == ((const struct sockaddr_in *)b)->sin_addr.s_addr;
  }
  return a->sa_family == AF_INET6 && memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr,
                                            &((const struct sockaddr_in6 *)b)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

/* Index of the interface with this name or address; 0: the kernel's choice; NP_ERR_CONFIG: there is none. */
static int interface_index(const struct npi_listener_config *config, unsigned *index) {
  const char *text = config->multicast.interface;
  struct sockaddr_storage address;
  struct ifaddrs *list = NULL;
  *index = 0;
  if (text[0] == '\0') return 0;
  *index = if_nametoindex(text);
  if (*index != 0) return 0;
  if (resolve(text, &address) != AF_UNSPEC && getifaddrs(&list) == 0) {
    for (const struct ifaddrs *entry = list; entry != NULL && *index == 0; entry = entry->ifa_next) {
      if (same_host(entry->ifa_addr, &address)) *index = if_nametoindex(entry->ifa_name);
    }
    freeifaddrs(list);
  }
  if (*index != 0) return 0;
  return npi_fail(NP_ERR_CONFIG,
                  "listener \"%s\": no interface has the name or address \"%s\" (multicast.interface): `ip address` "
                  "shows those there are",
                  config->name, text);
}

int npi_listener_join(const struct npi_listener_config *config, int fd, int family) {
  const char *source = config->multicast.source;
  int level = family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;
  struct group_source_req request;
  unsigned index;
  memset(&request, 0, sizeof request);
  if (resolve(config->multicast.group, &request.gsr_group) != family) {
    return npi_fail(NP_ERR_CONFIG, "listener \"%s\": the group %s and the address %s are of different families",
                    config->name, config->multicast.group, config->address);
  }
  if (source[0] != '\0' && resolve(source, &request.gsr_source) != family) {
    return npi_fail(NP_ERR_CONFIG, "listener \"%s\": the group %s and the source %s are of different families",
                    config->name, config->multicast.group, source);
  }
  int status = interface_index(config, &index);
  if (status < 0) return status;
  request.gsr_interface = index;

  /* Without this a socket bound to every address also gets what other sockets of the machine have joined. */
  npi_listener_set(fd, level, family == AF_INET ? IP_MULTICAST_ALL : IPV6_MULTICAST_ALL, 0);

  int joined;
  if (source[0] != '\0') {
    joined = setsockopt(fd, level, MCAST_JOIN_SOURCE_GROUP, &request, sizeof request);
  } else {
    struct group_req any;
    memset(&any, 0, sizeof any);
    any.gr_interface = index;
    any.gr_group = request.gsr_group;
    joined = setsockopt(fd, level, MCAST_JOIN_GROUP, &any, sizeof any);
  }
  if (joined == 0) return 0;
  const char *fix = errno == ENODEV          ? "no route leads to the group: name the interface (multicast.interface)"
                    : errno == ENOBUFS       ? "raise net.ipv4.igmp_max_memberships"
                    : errno == EADDRNOTAVAIL ? "the interface does not exist, or takes no multicast of this kind"
                                             : "check group, source and interface";
  return npi_fail_errno(NP_ERR_SYSTEM, errno, "listener \"%s\": cannot join %s%s%s on %s; %s", config->name,
                        config->multicast.group, source[0] ? " from " : "", source,
                        config->multicast.interface[0] ? config->multicast.interface : "any interface", fix);
}
