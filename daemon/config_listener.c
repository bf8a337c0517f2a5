/* SPDX-License-Identifier: Apache-2.0 */
/* What makes a listener's settings whole: its address, its path, its framing, its channel. */
#include <arpa/inet.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "base/align.h"
#include "base/status.h"
#include "daemon/config_internal.h"

const char *npi_config_proto_text(enum npi_config_proto proto) {
  switch (proto) {
    case NPI_CONFIG_UDP: return "udp";
    case NPI_CONFIG_TCP: return "tcp";
    case NPI_CONFIG_UNIX: return "unix";
    case NPI_CONFIG_UNIX_DATAGRAM: return "unix_datagram";
    default: return "none";
  }
}

/* ---- addresses ---- */

/* Parses a numeric address, with %interface for link-local IPv6; the family, or AF_UNSPEC when it is none. */
static int numeric(const char *host, struct sockaddr_storage *address) {
  struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_DGRAM};
  struct addrinfo *found = NULL;
  memset(address, 0, sizeof *address);
  /* getaddrinfo takes forms such as "127.1" too; they surprise more than they help. */
  if (strchr(host, ':') == NULL) {
    struct sockaddr_in *in = (struct sockaddr_in *)address;
    if (inet_pton(AF_INET, host, &in->sin_addr) != 1) return AF_UNSPEC;
    return in->sin_family = AF_INET;
  }
  hints.ai_family = AF_INET6;
  if (getaddrinfo(host, NULL, &hints, &found) != 0) return AF_UNSPEC;
  memcpy(address, found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  return AF_INET6;
}

/* 0 to 65535, digits only; -1 otherwise. */
static long port_number(const char *text) {
  long port = 0;
  if (*text == '\0' || strlen(text) > 5) return -1;
  for (; *text; text++) {
    if (*text < '0' || *text > '9') return -1;
    port = port * 10 + (*text - '0');
  }
  return port <= 65535 ? port : -1;
}

int npi_config_parse_address(struct npi_listener_config *listener, const char *text, char *problem, size_t size) {
  char host[NPI_CONFIG_ADDRESS_BYTES];
  const char *begin = text, *end, *port;
  if (text[0] == '[') {
    begin = text + 1;
    end = strchr(begin, ']');
    port = end != NULL && end[1] == ':' ? end + 2 : NULL;
  } else {
    end = strrchr(text, ':');
    port = end != NULL ? end + 1 : NULL;
    if (end != NULL && strchr(text, ':') != end) {
      snprintf(problem, size, "\"%.60s\" is an IPv6 address without brackets; write \"[ADDRESS]:PORT\"", text);
      return 1;
    }
  }
  if (port == NULL) {
    snprintf(problem, size, "\"%.60s\" has no port; write \"ADDRESS:PORT\", such as \"127.0.0.1:5514\"", text);
    return 1;
  }
  long number = port_number(port);
  if (number < 0) {
    snprintf(problem, size, "\"%.60s\" has no valid port; use 0 to 65535", text);
    return 1;
  }
  size_t length = (size_t)(end - begin);
  if (length >= sizeof host) length = 0; /* no numeric address is that long: refused below */
  memcpy(host, begin, length);
  host[length] = '\0';
  struct sockaddr_storage address;
  int family = numeric(host, &address);
  int bracketed = text[0] == '[';
  if (bracketed ? family != AF_INET6 : family != AF_INET && strcmp(host, "*") != 0) {
    snprintf(problem, size,
             "\"%.60s\" is not a numeric address (names are not looked up); write such as \"127.0.0.1:5514\", "
             "\"[::1]:5514\", or \"*:5514\" for all",
             text);
    return 1;
  }
  snprintf(listener->address, sizeof listener->address, "%s", host);
  listener->port = (uint32_t)number;
  return 0;
}

/* ---- cross checks ---- */

struct check {
  struct npi_config *config;
  struct npi_listener_config *listener;
  size_t index;
};

static const char *key_of(const struct check *check, const char *name) {
  static _Thread_local char key[96];
  snprintf(key, sizeof key, "listeners[%zu].%s", check->index, name);
  return key;
}

static void check_name(struct check *check) {
  const char *name = check->listener->name;
  if (name[0] == '\0') {
    npi_config_error(check->config, key_of(check, "name"), "is missing; give the listener a name");
    return;
  }
  if (!npi_config_name_ok(name)) {
    npi_config_error(check->config, key_of(check, "name"),
                     "\"%s\" cannot name a listener; use up to 63 of A-Z a-z 0-9 . _ / -, the first a letter or digit",
                     name);
  }
  for (size_t i = 0; i < check->index; i++) {
    if (strcmp(check->config->listeners[i].name, name) != 0) continue;
    npi_config_error(check->config, key_of(check, "name"), "\"%s\" is used twice; rename one", name);
    return;
  }
}

static void expand_path(struct check *check) {
  static const char variable[] = "${runtime}";
  char *path = check->listener->path;
  char *at = strstr(path, variable);
  if (at != NULL) {
    char expanded[2 * NPI_CONFIG_PATH_BYTES];
    int n = snprintf(expanded, sizeof expanded, "%.*s%s%s", (int)(at - path), path, check->config->runtime_dir,
                     at + sizeof variable - 1);
    if (n >= NPI_CONFIG_PATH_BYTES) {
      npi_config_error(check->config, key_of(check, "path"),
                       "becomes %d bytes with the runtime directory %s; a Unix socket has at most %d, use a shorter "
                       "name or runtime_dir",
                       n, check->config->runtime_dir, NPI_CONFIG_PATH_BYTES - 1);
      return;
    }
    memset(path, 0, NPI_CONFIG_PATH_BYTES);
    memcpy(path, expanded, (size_t)n);
  }
  if (strstr(path, "${") != NULL) {
    npi_config_error(check->config, key_of(check, "path"), "\"%s\" has an unknown ${...}; only ${runtime} is known",
                     path);
  } else if (path[0] != '/') {
    npi_config_error(check->config, key_of(check, "path"),
                     "\"%s\" is not an absolute path; begin it with / or ${runtime}", path);
  }
}

/* Runs of slashes and "/./" are one slash to the kernel. */
static int same_path(const char *a, const char *b) {
  for (;;) {
    while (*a == '/' && (a[1] == '/' || (a[1] == '.' && a[2] == '/'))) a += a[1] == '/' ? 1 : 2;
    while (*b == '/' && (b[1] == '/' || (b[1] == '.' && b[2] == '/'))) b += b[1] == '/' ? 1 : 2;
    if (*a != *b) return 0;
    if (*a == '\0') return 1;
    a++;
    b++;
  }
}

/* Files of the broker itself: a listener there would take its door away. */
static int check_own_files(struct check *check) {
  static const char *const files[] = {"control.sock", "keeper.sock", "lock"};
  char path[NPI_CONFIG_RUNTIME_BYTES + 32];
  for (size_t i = 0; i < NPI_ARRAY_COUNT(files); i++) {
    snprintf(path, sizeof path, "%s/%s", check->config->runtime_dir, files[i]);
    if (!same_path(path, check->listener->path)) continue;
    npi_config_error(check->config, key_of(check, "path"), "\"%s\" is a file of the broker itself; use another name",
                     check->listener->path);
    return 1;
  }
  return 0;
}

static void check_multicast(struct check *check) {
  const struct npi_listener_config *listener = check->listener;
  struct sockaddr_storage bind_address, group, source;
  if (listener->multicast.group[0] == '\0') {
    if (listener->multicast.interface[0] != '\0' || listener->multicast.source[0] != '\0') {
      npi_config_error(check->config, key_of(check, "multicast.group"), "is missing; name the group to join");
    }
    return;
  }
  int family = numeric(listener->multicast.group, &group);
  int is_group = family == AF_INET    ? IN_MULTICAST(ntohl(((struct sockaddr_in *)&group)->sin_addr.s_addr))
                 : family == AF_INET6 ? IN6_IS_ADDR_MULTICAST(&((struct sockaddr_in6 *)&group)->sin6_addr)
                                      : 0;
  if (!is_group) {
    npi_config_error(check->config, key_of(check, "multicast.group"),
                     "\"%s\" is not a multicast address; use one of 224.0.0.0 to 239.255.255.255, or of ff00::/8",
                     listener->multicast.group);
    return;
  }
  if (strcmp(listener->address, "*") != 0 && listener->address[0] != '\0' &&
      numeric(listener->address, &bind_address) != family) {
    npi_config_error(check->config, key_of(check, "multicast.group"),
                     "\"%s\" and the address \"%s\" are of different families; use \"%s:%u\" as the address",
                     listener->multicast.group, listener->address, family == AF_INET ? "0.0.0.0" : "[::]",
                     listener->port);
  }
  if (listener->multicast.source[0] == '\0') return;
  if (numeric(listener->multicast.source, &source) != family) {
    npi_config_error(check->config, key_of(check, "multicast.source"),
                     "\"%s\" is not a numeric address of the group's family; write the sender's address",
                     listener->multicast.source);
  }
}

/* Payload and topic lie in one slot, and each must be as long as its setting says at the same time. */
static void check_event_size(struct check *check) {
  const struct npi_listener_config *listener = check->listener;
  if (listener->framing.kind != NPI_FRAMING_EVENTSTREAM) return;
  uint64_t topic = listener->framing.max_topic != 0 ? listener->framing.max_topic : NPI_FRAMING_MAX_TOPIC;
  if (listener->max_frame + topic <= NPI_EVENT_BYTES_MAX) return;
  npi_config_error(check->config, key_of(check, "max_frame"),
                   "%" PRIu64 " bytes and a topic of up to %" PRIu64 " are more than the %" PRIu64
                   " that an event can have; use at most %" PRIu64
                   ", or a smaller max_topic: framing: { eventstream: true, max_topic: ... }",
                   listener->max_frame, topic, (uint64_t)NPI_EVENT_BYTES_MAX, (uint64_t)NPI_EVENT_BYTES_MAX - topic);
}

static void check_framing(struct check *check) {
  struct npi_listener_config *listener = check->listener;
  int datagram = npi_config_proto_is_datagram(listener->proto);
  char why[256];
  if (!listener->framing_given) {
    if (!datagram) {
      npi_config_error(check->config, key_of(check, "framing"),
                       "is missing; a stream needs one: newline, syslog, eventstream, length_prefix or { fixed: "
                       "BYTES }");
      return;
    }
    listener->framing.kind = NPI_FRAMING_DATAGRAM;
    listener->framing_given = 1;
  }
  if (listener->framing.kind == NPI_FRAMING_DATAGRAM && !datagram) {
    npi_config_error(check->config, key_of(check, "framing"),
                     "datagram goes only with udp and unix_datagram; a stream needs newline, syslog, eventstream, "
                     "length_prefix or { fixed: BYTES }");
    return;
  }
  listener->framing.max_frame = listener->max_frame;
  if (npi_framing_check(&listener->framing, why, sizeof why) < 0) {
    npi_config_error(check->config, key_of(check, "framing"), "%s", why);
    return;
  }
  check_event_size(check);
}

static void check_on_full(struct check *check) {
  struct npi_listener_config *listener = check->listener;
  int datagram = npi_config_proto_is_datagram(listener->proto);
  if (listener->on_full == NPI_CONFIG_LISTENER_FULL_DERIVED) {
    listener->on_full = datagram ? NPI_CONFIG_LISTENER_KERNEL_DROP : NPI_CONFIG_LISTENER_PAUSE;
  } else if (listener->on_full == NPI_CONFIG_LISTENER_KERNEL_DROP && !datagram) {
    npi_config_error(check->config, key_of(check, "on_full"),
                     "kernel_drop goes only with datagrams, as the kernel drops nothing of a stream; use pause or "
                     "drop_newest");
  }
}

/* Two listeners on one address would fail at start, one worker after the other; say it here. */
static void check_place(struct check *check) {
  const struct npi_listener_config *listener = check->listener;
  int is_unix = npi_config_proto_is_unix(listener->proto);
  const char *place = is_unix ? "path" : "address";
  if ((is_unix ? listener->path : listener->address)[0] == '\0') {
    npi_config_error(check->config, key_of(check, place), "is missing; %s needs %s",
                     npi_config_proto_text(listener->proto),
                     is_unix ? "the path of its socket, such as \"${runtime}/ingest.sock\""
                             : "an address, such as \"127.0.0.1:5514\"");
    return;
  }
  if (is_unix && check_own_files(check)) return;
  for (size_t i = 0; i < check->index; i++) {
    const struct npi_listener_config *other = &check->config->listeners[i];
    int same = is_unix ? npi_config_proto_is_unix(other->proto) && same_path(other->path, listener->path)
                       : other->proto == listener->proto && listener->port != 0 && other->port == listener->port &&
                             strcmp(other->address, listener->address) == 0 &&
                             strcmp(other->multicast.group, listener->multicast.group) == 0;
    if (!same) continue;
    npi_config_error(check->config, key_of(check, place), "is the same as that of listener \"%s\"; change one",
                     other->name);
    return;
  }
}

/* A channel that no list declares is made here, so that the broker has one list to create. */
static int check_channel(struct check *check) {
  struct npi_config *config = check->config;
  const char *name = check->listener->channel;
  if (name[0] == '\0') {
    npi_config_error(config, key_of(check, "channel"), "is missing; name the channel that its events go to");
    return 0;
  }
  if (npi_config_find_channel(config, name) != NULL) return 0;
  if (!npi_config_name_ok(name)) {
    npi_config_error(config, key_of(check, "channel"),
                     "\"%s\" cannot name a channel; use up to 63 of A-Z a-z 0-9 . _ / -, the first a letter or digit",
                     name);
    return 0;
  }
  if (!config->channels_on_demand) {
    npi_config_error(config, key_of(check, "channel"),
                     "\"%s\" is not declared, and channels_on_demand is false; declare it below channels", name);
    return 0;
  }
  struct npi_channel_config *grown = realloc(config->channels, (config->n_channels + 1) * sizeof *grown);
  if (grown == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for %zu channels", config->n_channels + 1);
  config->channels = grown;
  struct npi_channel_config *channel = &config->channels[config->n_channels++];
  npi_channel_config_init(channel);
  memcpy(channel->name, name, sizeof channel->name);
  channel->implicit = 1;
  channel->on_full = NPI_ON_FULL_DROP_NEWEST;
  channel->max_deliveries = 0;
  channel->credits = config->limits.max_credits < 256 ? config->limits.max_credits : 256;
  return 0;
}

static int finish_listener(struct check *check) {
  struct npi_listener_config *listener = check->listener;
  check_name(check);
  int status = check_channel(check);
  if (status < 0) return status;
  if (listener->proto == NPI_CONFIG_PROTO_NONE) {
    npi_config_error(check->config, key_of(check, "proto"), "is missing; use udp, tcp, unix or unix_datagram");
    return 0;
  }
  if (npi_config_proto_is_unix(listener->proto) && listener->path[0] != '\0') expand_path(check);
  if (listener->proto == NPI_CONFIG_UDP) check_multicast(check);
  check_place(check);
  check_framing(check);
  check_on_full(check);
  if (listener->idle_timeout_ms == NPI_CONFIG_DERIVED) {
    listener->idle_timeout_ms = listener->proto == NPI_CONFIG_TCP ? 300 * 1000 : 0;
  }
  return 0;
}

int npi_config_finish_listeners(struct npi_config *config) {
  for (size_t i = 0; i < config->n_listeners && !npi_config_full_of_errors(config); i++) {
    struct check check = {config, &config->listeners[i], i};
    int status = finish_listener(&check);
    if (status < 0) return status;
  }
  if (config->n_listeners > config->limits.listeners) {
    npi_config_error(config, "limits.listeners", "%u is less than the %zu listeners of this file; raise it",
                     config->limits.listeners, config->n_listeners);
  }
  return 0;
}
