/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one table of settings. A row gives name, type, default, limits, words and the field: defaults,
 * parser, "did you mean" and the printed reference all read it, so that they cannot disagree.
 * How a scalar of each type is read and written is in config_value.c.
 */
#include <stdlib.h>
#include <string.h>

#include "base/align.h"
#include "daemon/config_internal.h"

#define KIB(n)     (UINT64_C(n) << 10)
#define MIB(n)     (UINT64_C(n) << 20)
#define GIB(n)     (UINT64_C(n) << 30)
#define SECONDS(n) (UINT64_C(n) * 1000)
#define DAY        SECONDS(86400)

#define FIELD(type, member) .offset = (uint32_t)offsetof(type, member), .bytes = sizeof(((type *)0)->member)
#define INSTANCE(member)    .scope = NPI_SETTING_OF_INSTANCE, FIELD(struct npi_config, member)
#define CHANNEL(member)     .scope = NPI_SETTING_OF_CHANNEL, FIELD(struct npi_channel_config, member)
#define LISTENER(member)    .scope = NPI_SETTING_OF_LISTENER, FIELD(struct npi_listener_config, member)
#define FRAMING(member)     .scope = NPI_SETTING_OF_FRAMING, FIELD(struct npi_framing_keys, member)

#define ON(proto)    (1u << (proto))
#define ON_IP        (ON(NPI_CONFIG_UDP) | ON(NPI_CONFIG_TCP))
#define ON_UNIX      (ON(NPI_CONFIG_UNIX) | ON(NPI_CONFIG_UNIX_DATAGRAM))
#define ON_STREAMS   (ON(NPI_CONFIG_TCP) | ON(NPI_CONFIG_UNIX))
#define ON_DATAGRAMS (ON(NPI_CONFIG_UDP) | ON(NPI_CONFIG_UNIX_DATAGRAM))

static const struct npi_setting_choice log_levels[] = {{"error", NPI_LOG_ERROR},
                                                       {"warning", NPI_LOG_WARNING},
                                                       {"info", NPI_LOG_INFO},
                                                       {"debug", NPI_LOG_DEBUG},
                                                       {NULL, 0}};
static const struct npi_setting_choice memory_backends[] = {
    {"posix", NPI_BACKEND_POSIX}, {"memfd", NPI_BACKEND_MEMFD}, {NULL, 0}};
static const struct npi_setting_choice huge_pages[] = {{"auto", NPI_HUGE_AUTO},
                                                       {"never", NPI_HUGE_NEVER},
                                                       {"explicit", NPI_HUGE_EXPLICIT},
                                                       {"transparent", NPI_HUGE_TRANSPARENT},
                                                       {NULL, 0}};
static const struct npi_setting_choice numa_modes[] = {
    {"strict", NPI_NUMA_STRICT}, {"prefer", NPI_NUMA_PREFER}, {"off", NPI_NUMA_OFF}, {NULL, 0}};
static const struct npi_setting_choice ingest_backends[] = {{"auto", NPI_CONFIG_INGEST_AUTO},
                                                            {"io_uring", NPI_CONFIG_INGEST_IO_URING},
                                                            {"epoll", NPI_CONFIG_INGEST_EPOLL},
                                                            {NULL, 0}};
static const struct npi_setting_choice pins[] = {{"auto", NPI_CONFIG_PIN_AUTO}, {"off", NPI_CONFIG_PIN_OFF}, {NULL, 0}};
static const struct npi_setting_choice evictions[] = {
    {"kill", NPI_CONFIG_EVICT_KILL}, {"quarantine", NPI_CONFIG_EVICT_QUARANTINE}, {NULL, 0}};
static const struct npi_setting_choice channel_kinds[] = {
    {"broadcast", NPI_CHANNEL_BROADCAST}, {"group", NPI_CHANNEL_GROUP}, {NULL, 0}};
static const struct npi_setting_choice channel_full[] = {
    {"block", NPI_ON_FULL_BLOCK}, {"drop_newest", NPI_ON_FULL_DROP_NEWEST}, {NULL, 0}};
static const struct npi_setting_choice protos[] = {{"udp", NPI_CONFIG_UDP},
                                                   {"tcp", NPI_CONFIG_TCP},
                                                   {"unix", NPI_CONFIG_UNIX},
                                                   {"unix_datagram", NPI_CONFIG_UNIX_DATAGRAM},
                                                   {NULL, 0}};
static const struct npi_setting_choice listener_full[] = {{"pause", NPI_CONFIG_LISTENER_PAUSE},
                                                          {"drop_newest", NPI_CONFIG_LISTENER_DROP_NEWEST},
                                                          {"kernel_drop", NPI_CONFIG_LISTENER_KERNEL_DROP},
                                                          {NULL, 0}};
static const struct npi_setting_choice endians[] = {{"big", 1}, {"little", 0}, {NULL, 0}};

const struct npi_setting npi_settings[] = {
    {INSTANCE(instance), NPI_SETTING_TEXT, "instance", "default",
     .help = "Name of this broker: part of the names of its shared memory and of its runtime directory."},
    {INSTANCE(runtime_dir), NPI_SETTING_TEXT, "runtime_dir",
     .derived = "$XDG_RUNTIME_DIR/numapool/INSTANCE, else /run/numapool/INSTANCE for root, else "
                "/tmp/numapool-UID/INSTANCE",
     .help = "Directory of the broker's sockets; ${runtime} in paths."},
    {INSTANCE(drain_timeout_ms), NPI_SETTING_DURATION, "drain_timeout", "5s", .min = 0, .max = SECONDS(600),
     .help = "How long SIGTERM waits for events that subscribers still hold."},
    {INSTANCE(channels_on_demand), NPI_SETTING_BOOLEAN, "channels_on_demand", "true",
     .help = "Create a channel that is not declared when it is first used: broadcast, with defaults."},
    {INSTANCE(log_level), NPI_SETTING_CHOICE, "log.level", "info", .choices = log_levels,
     .help = "The most verbose lines that are written."},

    {INSTANCE(memory.per_node), NPI_SETTING_BYTES, "memory.per_node", "256MiB", .min = MIB(4), .max = GIB(1024),
     .help = "Budget of event memory on each NUMA node."},
    {INSTANCE(memory.per_client), NPI_SETTING_BYTES, "memory.per_client", .derived = "a quarter of memory.per_node",
     .min = NPI_CONFIG_SEGMENT_BYTES_MIN, .max = GIB(1024),
     .help = "Budget of one client; rounded up to whole segments, at most 4096 of them."},
    {INSTANCE(memory.segment), NPI_SETTING_BYTES, "memory.segment",
     .derived = "memory.per_node / 128, within 2MiB and 64MiB; more where limits.segments asks for it",
     .min = NPI_CONFIG_SEGMENT_BYTES_MIN, .max = NPI_SEGMENT_BYTES_MAX,
     .help = "Size of one shared-memory object, the unit that a publisher leases; a power of two."},
    {INSTANCE(memory.ready), NPI_SETTING_BYTES, "memory.ready", "16MiB", .min = 0, .max = GIB(1024),
     .special_word = "all", .special_value = NPI_CONFIG_DERIVED,
     .help = "Memory of each node that is bound, prefaulted and measured ahead of demand."},
    {INSTANCE(memory.backend), NPI_SETTING_CHOICE, "memory.backend", "posix", .choices = memory_backends,
     .help = "posix: named objects in /dev/shm, visible without the broker; memfd: sealed, nameless."},
    {INSTANCE(memory.huge_pages), NPI_SETTING_CHOICE, "memory.huge_pages", "auto", .choices = huge_pages,
     .help =
         "explicit: reserved huge pages, only with memfd; transparent: where the kernel can; auto: the best it gets."},
    {INSTANCE(numa.mode), NPI_SETTING_CHOICE, "numa.mode", "prefer", .choices = numa_modes,
     .help = "strict: refuse to run with memory on a wrong node; prefer: report it; off: do not place."},

    {INSTANCE(ingest.backend), NPI_SETTING_CHOICE, "ingest.backend", "auto", .choices = ingest_backends,
     .help = "How ingest workers receive; auto: io_uring where the kernel allows it, else epoll."},
    {INSTANCE(ingest.workers_per_node), NPI_SETTING_COUNT, "ingest.workers_per_node", "1", .min = 1, .max = 64,
     .help = "Ingest worker processes on each NUMA node; none is started without a listener."},
    {INSTANCE(ingest.staging_buffers), NPI_SETTING_COUNT, "ingest.staging_buffers", "64", .min = 8, .max = 4096,
     .help = "Receive buffers of one worker; a power of two."},
    {INSTANCE(ingest.staging_bytes), NPI_SETTING_BYTES, "ingest.staging_bytes", "16KiB", .min = KIB(4), .max = KIB(256),
     .help = "Size of one receive buffer; a power of two."},
    {INSTANCE(ingest.unfinished_bytes), NPI_SETTING_BYTES, "ingest.unfinished_bytes", "64MiB", .min = MIB(1),
     .max = GIB(64),
     .help =
         "Most memory of one worker for frames whose rest has not come; then the oldest such connection is closed."},
    {INSTANCE(ingest.orphan_timeout_ms), NPI_SETTING_DURATION, "ingest.orphan_timeout", "0ms", .min = 0,
     .max = SECONDS(86400),
     .help = "How long a worker goes on receiving without a broker, before it drains and ends; 0ms: for ever."},
    {INSTANCE(ingest.pin), NPI_SETTING_CHOICE, "ingest.pin", "auto", .choices = pins,
     .help = "auto: a worker runs on the processors of its node only; off: anywhere."},

    {INSTANCE(clients.evict_after_ms), NPI_SETTING_DURATION, "clients.evict_after", "never", .min = 100, .max = DAY,
     .special_word = "never", .special_value = 0,
     .help = "A client whose process is stopped (by a signal or a debugger) for longer is evicted."},
    {INSTANCE(clients.evict), NPI_SETTING_CHOICE, "clients.evict", "kill", .choices = evictions,
     .help =
         "kill: its process is killed; quarantine: it gets no more events and blocks nobody, but keeps what it has."},

    {INSTANCE(limits.clients), NPI_SETTING_COUNT, "limits.clients", "256", .min = 1, .max = 4096,
     .help = "Client processes attached at a time, ingest workers included."},
    {INSTANCE(limits.clients_per_user), NPI_SETTING_COUNT, "limits.clients_per_user", "none", .min = 1, .max = 4096,
     .special_word = "none", .special_value = 0,
     .help = "Of these, clients of one user, ingest workers not counted; none: only limits.clients limits."},
    {INSTANCE(limits.channels), NPI_SETTING_COUNT, "limits.channels", "256", .min = 1, .max = 4096,
     .help = "Channels, declared and created on demand."},
    {INSTANCE(limits.publishers), NPI_SETTING_COUNT, "limits.publishers", "1024", .min = 1, .max = 16384,
     .help = "Open publishers of all clients."},
    {INSTANCE(limits.subscribers), NPI_SETTING_COUNT, "limits.subscribers", "1024", .min = 1, .max = 16384,
     .help = "Open subscriptions of all clients."},
    {INSTANCE(limits.connections), NPI_SETTING_COUNT, "limits.connections", "4096", .min = 1, .max = 65536,
     .help = "Pairs of a publisher and a subscriber."},
    {INSTANCE(limits.segments), NPI_SETTING_COUNT, "limits.segments", "4096", .min = 2, .max = 65536,
     .help = "Segments of all nodes together."},
    {INSTANCE(limits.listeners), NPI_SETTING_COUNT, "limits.listeners", "64", .min = 1, .max = 1024,
     .help = "Listeners."},
    {INSTANCE(limits.endpoints_per_client), NPI_SETTING_COUNT, "limits.endpoints_per_client", "256", .min = 1,
     .max = 16384, .help = "Publishers and subscriptions that one client may have open."},
    {INSTANCE(limits.connections_per_client), NPI_SETTING_COUNT, "limits.connections_per_client", "1024", .min = 1,
     .max = 65536, .help = "Connections of one client; never more than limits.connections."},
    {INSTANCE(limits.rings_per_client), NPI_SETTING_BYTES, "limits.rings_per_client", "16MiB", .min = KIB(64),
     .max = GIB(1), .help = "Room for the rings of one client's connections; memory is used as they are made."},
    {INSTANCE(limits.max_credits), NPI_SETTING_COUNT, "limits.max_credits", "16384", .min = 1, .max = NPI_CREDITS_MAX,
     .help = "Most credits that a channel or a subscription may ask for."},

    {INSTANCE(access.connect), NPI_SETTING_ACCESS, "access.connect", .derived = "root and the broker's user",
     .help = "Who else may connect: user:NAME, user:NUMBER, group:NAME, group:NUMBER, all."},
    {INSTANCE(access.publish), NPI_SETTING_ACCESS, "access.publish", .derived = "as access.connect",
     .help = "Who of them may publish, on channels that do not say otherwise."},
    {INSTANCE(access.subscribe), NPI_SETTING_ACCESS, "access.subscribe", .derived = "as access.connect",
     .help = "Who of them may subscribe, to channels that do not say otherwise."},

    {NPI_SETTING_OF_INSTANCE, 0, 0, NPI_SETTING_CHANNELS, "channels", .derived = "none", .max = 4096,
     .help = "List of channels."},
    {NPI_SETTING_OF_INSTANCE, 0, 0, NPI_SETTING_LISTENERS, "listeners", .derived = "none: no port is opened",
     .max = 1024, .help = "List of listeners."},

    {CHANNEL(name), NPI_SETTING_TEXT, "name", .derived = "required", .help = "Name that clients open."},
    {CHANNEL(kind), NPI_SETTING_CHOICE, "kind", "broadcast", .choices = channel_kinds,
     .help = "broadcast: every subscriber gets every event; group: each event goes to one member."},
    {CHANNEL(credits), NPI_SETTING_COUNT, "credits", .derived = "256 for broadcast, 32 for group", .min = 1,
     .max = NPI_CREDITS_MAX, .help = "Events that a subscriber may have outstanding with one publisher."},
    {CHANNEL(on_full), NPI_SETTING_CHOICE, "on_full", .choices = channel_full,
     .derived = "drop_newest for broadcast, block for group",
     .help = "What a publisher does without credit: block waits for the slow subscriber, drop_newest counts a drop."},
    {CHANNEL(max_deliveries), NPI_SETTING_COUNT, "max_deliveries", .derived = "16 for group", .min = 1, .max = 254,
     .special_word = "off", .special_value = 0,
     .help = "group: an event that members died of is delivered again so often, then it is a dead letter."},
    {CHANNEL(dead_letter), NPI_SETTING_TEXT, "dead_letter", .derived = "the channel's name with .dead behind it",
     .help = "group: broadcast channel for its dead letters; made when first used where it is not declared."},
    {CHANNEL(access_publish), NPI_SETTING_ACCESS, "access.publish", .derived = "as access.publish of the broker",
     .help = "Who may publish on it, beside root and the broker's user."},
    {CHANNEL(access_subscribe), NPI_SETTING_ACCESS, "access.subscribe", .derived = "as access.subscribe of the broker",
     .help = "Who may subscribe to it, beside root and the broker's user."},

    {LISTENER(name), NPI_SETTING_TEXT, "name", .derived = "required",
     .help = "Name in logs, counters and event headers."},
    {LISTENER(proto), NPI_SETTING_CHOICE, "proto", .derived = "required", .choices = protos,
     .help = "Kind of socket; unix is a stream."},
    {NPI_SETTING_OF_LISTENER, 0, 0, NPI_SETTING_ADDRESS, "address", .derived = "required for udp and tcp",
     .protos = ON_IP, .help = "Numeric \"ADDRESS:PORT\", \"[IPV6]:PORT\" or \"*:PORT\"; port 0: the kernel chooses."},
    {LISTENER(ipv6_only), NPI_SETTING_BOOLEAN, "ipv6_only", "false", .protos = ON_IP,
     .help = "A listener on an IPv6 address takes no IPv4 traffic."},
    {LISTENER(path), NPI_SETTING_TEXT, "path", .derived = "required for unix and unix_datagram", .protos = ON_UNIX,
     .help = "Absolute path of the socket file, at most 107 bytes; ${runtime} is the runtime directory."},
    {LISTENER(mode), NPI_SETTING_MODE, "mode", "0660", .max = 0777, .protos = ON_UNIX,
     .help = "Permission bits of the socket file, octal."},
    {LISTENER(channel), NPI_SETTING_TEXT, "channel", .derived = "required", .help = "Channel that its events go to."},
    {NPI_SETTING_OF_LISTENER, 0, 0, NPI_SETTING_FRAMING, "framing", .derived = "datagram; required for streams",
     .help = "How bytes become events."},
    {LISTENER(priority), NPI_SETTING_COUNT, "priority", "2", .min = 0, .max = 4,
     .help = "Priority in the event header, 0 batch to 4 critical, where the framing carries none."},
    {LISTENER(max_frame), NPI_SETTING_BYTES, "max_frame", "64KiB", .min = 1, .max = NPI_FRAMING_MAX_FRAME,
     .help = "Longest event; what is longer is counted and, on a stream, ends the connection."},
    {LISTENER(on_full), NPI_SETTING_CHOICE, "on_full", .choices = listener_full,
     .derived = "pause for streams, kernel_drop for datagrams",
     .help = "What happens when the pool is dry or a blocking subscriber has no credit."},
    {LISTENER(max_connections), NPI_SETTING_COUNT, "max_connections", "1000", .min = 1, .max = 100000,
     .protos = ON_STREAMS, .help = "Connections at a time, on each worker."},
    {LISTENER(max_connections_per_address), NPI_SETTING_COUNT, "max_connections_per_address", "none", .min = 1,
     .max = 100000, .special_word = "none", .special_value = 0, .protos = ON(NPI_CONFIG_TCP),
     .help = "Connections at a time from one sender address; none: only max_connections limits."},
    {LISTENER(idle_timeout_ms), NPI_SETTING_DURATION, "idle_timeout", .derived = "5m for tcp, off for unix", .min = 100,
     .max = DAY, .special_word = "off", .special_value = 0, .protos = ON_STREAMS,
     .help = "A connection that sends nothing for this long is closed."},
    {LISTENER(frame_timeout_ms), NPI_SETTING_DURATION, "frame_timeout", "30s", .min = 100, .max = DAY,
     .special_word = "off", .special_value = 0, .protos = ON_STREAMS,
     .help = "A frame that has begun must be complete within this time."},
    {LISTENER(rcvbuf), NPI_SETTING_BYTES, "rcvbuf", "auto", .min = KIB(4), .max = MIB(256), .special_word = "auto",
     .special_value = 0, .help = "Receive buffer of the socket; auto: 4MiB for udp, else what the kernel gives."},
    {LISTENER(timestamps), NPI_SETTING_BOOLEAN, "timestamps", "false", .protos = ON_DATAGRAMS,
     .help = "Receive time from the kernel instead of the worker's clock; costs some time per datagram."},
    {LISTENER(multicast.group), NPI_SETTING_TEXT, "multicast.group", .derived = "none", .protos = ON(NPI_CONFIG_UDP),
     .help = "Multicast group to join."},
    {LISTENER(multicast.interface), NPI_SETTING_TEXT, "multicast.interface", .derived = "the kernel's choice",
     .protos = ON(NPI_CONFIG_UDP), .help = "Interface to join on: its name or an address of it."},
    {LISTENER(multicast.source), NPI_SETTING_TEXT, "multicast.source", .derived = "any", .protos = ON(NPI_CONFIG_UDP),
     .help = "Only take datagrams of this sender (source-specific multicast)."},

    {FRAMING(datagram), NPI_SETTING_BOOLEAN, "datagram", "false", .help = "One datagram is one event."},
    {FRAMING(newline), NPI_SETTING_BOOLEAN, "newline", "false", .help = "Each line is an event, without its LF."},
    {FRAMING(syslog), NPI_SETTING_BOOLEAN, "syslog", "false",
     .help = "RFC 6587: octet counting or newline, told apart per message."},
    {FRAMING(eventstream), NPI_SETTING_BOOLEAN, "eventstream", "false",
     .help = "Length of the rest (4 bytes, big-endian), priority, 2-byte topic length, topic, payload."},
    {FRAMING(length_prefix), NPI_SETTING_COUNT, "length_prefix", .derived = "none", .min = 1, .max = 8,
     .help = "A length of 1, 2, 4 or 8 bytes before each event."},
    {FRAMING(big_endian), NPI_SETTING_CHOICE, "endian", "big", .choices = endians,
     .help = "Byte order of length_prefix."},
    {FRAMING(includes_prefix), NPI_SETTING_BOOLEAN, "includes_prefix", "false",
     .help = "The length counts the bytes of length_prefix too."},
    {FRAMING(fixed), NPI_SETTING_BYTES, "fixed", .derived = "none", .min = 1, .max = NPI_FRAMING_MAX_FRAME,
     .help = "Every event has this many bytes."},
    {FRAMING(strip_cr), NPI_SETTING_BOOLEAN, "strip_cr", "false",
     .help = "With newline and syslog: a CR before the LF is not part of the event."},
    {FRAMING(max_topic), NPI_SETTING_COUNT, "max_topic", "65535", .min = 1, .max = NPI_FRAMING_MAX_TOPIC,
     .help = "With eventstream: longest topic, bytes."},
};

const size_t npi_n_settings = NPI_ARRAY_COUNT(npi_settings);

const struct npi_setting *npi_setting_find(enum npi_setting_scope scope, const char *name) {
  for (size_t i = 0; i < npi_n_settings; i++) {
    if (npi_settings[i].scope == scope && strcmp(npi_settings[i].name, name) == 0) return &npi_settings[i];
  }
  return NULL;
}

void npi_setting_defaults(enum npi_setting_scope scope, void *base) {
  char problem[256];
  for (size_t i = 0; i < npi_n_settings; i++) {
    const struct npi_setting *setting = &npi_settings[i];
    if (setting->scope != scope || setting->bytes == 0) continue;
    if (setting->initial != NULL) {
      /* The unit tests prove that every default of the table is accepted. */
      npi_setting_parse(setting, base, setting->initial, problem, sizeof problem);
    } else {
      /* Numbers that are left open become all ones (NPI_CONFIG_DERIVED), texts and choices empty. */
      int number = setting->type == NPI_SETTING_BYTES || setting->type == NPI_SETTING_COUNT ||
                   setting->type == NPI_SETTING_DURATION;
      memset((char *)base + setting->offset, number ? 0xff : 0, setting->bytes);
    }
  }
}

/* Edit distance of two short words, where a swap of neighbours costs one; 99 for long ones. */
static unsigned distance(const char *a, const char *b) {
  enum { LONGEST = 48 };
  unsigned cost[LONGEST + 1][LONGEST + 1];
  size_t n = strlen(a), m = strlen(b);
  if (n > LONGEST || m > LONGEST) return 99;
  for (size_t i = 0; i <= n; i++) cost[i][0] = (unsigned)i;
  for (size_t j = 0; j <= m; j++) cost[0][j] = (unsigned)j;
  for (size_t i = 1; i <= n; i++) {
    for (size_t j = 1; j <= m; j++) {
      unsigned best = cost[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
      if (cost[i - 1][j] + 1 < best) best = cost[i - 1][j] + 1;
      if (cost[i][j - 1] + 1 < best) best = cost[i][j - 1] + 1;
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && cost[i - 2][j - 2] + 1 < best) {
        best = cost[i - 2][j - 2] + 1;
      }
      cost[i][j] = best;
    }
  }
  return cost[n][m];
}

/* `idle` or `timeout` for idle_timeout, `protocol` for proto: one is the other with more around it. */
static int is_part(const char *a, const char *b) {
  const char *shorter = strlen(a) < strlen(b) ? a : b, *longer = shorter == a ? b : a;
  return strlen(shorter) >= 4 && strstr(longer, shorter) != NULL;
}

/* The key of the mapping at prefix that resembles name most; empty: none does. */
static void find_neighbour(enum npi_setting_scope scope, const char *prefix, const char *name, char nearest[64]) {
  size_t prefix_length = strlen(prefix);
  unsigned best = strlen(name) < 6 ? 2 : 1 + (unsigned)strlen(name) / 3; /* four letters with two wrong: any word */
  nearest[0] = '\0';
  for (size_t i = 0; i < npi_n_settings; i++) {
    const struct npi_setting *setting = &npi_settings[i];
    char word[64];
    if (setting->scope != scope || strncmp(setting->name, prefix, prefix_length) != 0) continue;
    size_t length = strcspn(setting->name + prefix_length, ".");
    if (length >= sizeof word) continue;
    memcpy(word, setting->name + prefix_length, length);
    word[length] = '\0';
    unsigned d = distance(word, name);
    if (d >= best && is_part(word, name) && nearest[0] == '\0') d = best - 1;
    if (d >= best) continue;
    best = d;
    memcpy(nearest, word, length + 1);
  }
}

/* The full name of the key of a scope whose last part is name; NULL: none is. */
static const char *find_elsewhere(enum npi_setting_scope scope, const char *name) {
  for (size_t i = 0; i < npi_n_settings; i++) {
    const char *dot = strrchr(npi_settings[i].name, '.');
    if (npi_settings[i].scope == scope && strcmp(dot != NULL ? dot + 1 : npi_settings[i].name, name) == 0) {
      return npi_settings[i].name;
    }
  }
  return NULL;
}

void npi_setting_hint(enum npi_setting_scope scope, const char *prefix, const char *name, char *hint, size_t size) {
  static const struct {
    enum npi_setting_scope scope;
    const char *text;
  } places[] = {{NPI_SETTING_OF_INSTANCE, "the whole broker has it: %s, outside of any list"},
                {NPI_SETTING_OF_CHANNEL, "an item of channels has %s"},
                {NPI_SETTING_OF_LISTENER, "an item of listeners has %s"},
                {NPI_SETTING_OF_FRAMING, "it goes into the framing of a listener: framing: { %s: ... }"}};
  char nearest[64], where[96];
  find_neighbour(scope, prefix, name, nearest);
  const char *elsewhere = find_elsewhere(scope, name);
  if (elsewhere != NULL && nearest[0] != '\0') {
    snprintf(hint, size, "did you mean %s here, or %s?", nearest, elsewhere);
    return;
  }
  if (elsewhere != NULL || nearest[0] != '\0') {
    snprintf(hint, size, "did you mean %s?", elsewhere != NULL ? elsewhere : nearest);
    return;
  }
  snprintf(hint, size, "numapoold --help-config lists all");
  for (size_t i = 0; i < NPI_ARRAY_COUNT(places); i++) {
    elsewhere = places[i].scope == scope ? NULL : find_elsewhere(places[i].scope, name);
    if (elsewhere == NULL) continue;
    snprintf(where, sizeof where, places[i].text, elsewhere);
    snprintf(hint, size, "%s", where);
    return;
  }
}
