/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker's configuration: what may be set, as plain values.
 *
 * Life of it: npi_config_init (defaults), any number of npi_config_load or npi_config_parse, then
 * npi_config_finish (names checked, values derived from others, cross checks), then it is only read.
 * Without a file the defaults alone are a working broker that opens no port.
 *
 * Every setting is one row of the table in config_table.c, which makes the defaults, the parser, the
 * limits and the printed reference. docs/configuration.md explains each to operators.
 */
#ifndef NPI_DAEMON_CONFIG_H
#define NPI_DAEMON_CONFIG_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/log.h"
#include "daemon/framing.h"
#include "shm/layout.h"
#include "shm/segment.h"

enum {
  NPI_CONFIG_INSTANCE_BYTES = 33,         /* longest instance name 32 */
  NPI_CONFIG_NAME_BYTES = NPI_NAME_BYTES, /* longest channel or listener name 63 */
  NPI_CONFIG_PATH_BYTES = 108,            /* sun_path of a Unix socket */
  NPI_CONFIG_RUNTIME_BYTES = 92,          /* leaves room for the socket names below it */
  NPI_CONFIG_ADDRESS_BYTES = 64,          /* numeric IPv6 address with a scope */
  NPI_CONFIG_ERRORS = 10                  /* errors reported at once */
};

/* A value that the file did not set and npi_config_finish derives from others. */
#define NPI_CONFIG_DERIVED     UINT64_MAX
#define NPI_CONFIG_DERIVED_U32 UINT32_MAX

#define NPI_CONFIG_SEGMENT_BYTES_MIN (UINT64_C(2) << 20) /* holds a slot of the largest class, 1 MiB */

enum npi_config_ingest { NPI_CONFIG_INGEST_AUTO = 1, NPI_CONFIG_INGEST_IO_URING, NPI_CONFIG_INGEST_EPOLL };
enum npi_config_pin { NPI_CONFIG_PIN_AUTO = 1, NPI_CONFIG_PIN_OFF };
enum npi_config_proto {
  NPI_CONFIG_PROTO_NONE,
  NPI_CONFIG_UDP,
  NPI_CONFIG_TCP,
  NPI_CONFIG_UNIX, /* stream */
  NPI_CONFIG_UNIX_DATAGRAM
};
/* What a listener does when the pool is dry or a blocking subscriber has no credit. */
enum npi_config_listener_full {
  NPI_CONFIG_LISTENER_FULL_DERIVED,
  NPI_CONFIG_LISTENER_PAUSE,       /* stop reading: a stream's sender is slowed down */
  NPI_CONFIG_LISTENER_DROP_NEWEST, /* keep reading, drop and count what finds no slot */
  NPI_CONFIG_LISTENER_KERNEL_DROP  /* stop reading: the kernel drops and counts datagrams, which is cheapest */
};

/* What becomes of a client that is stopped for too long. */
enum npi_config_evict { NPI_CONFIG_EVICT_KILL = 1, NPI_CONFIG_EVICT_QUARANTINE };

/* Users and groups beside root and the broker's user. */
enum { NPI_ACCESS_ENTRIES_MAX = 16 };
struct npi_access_entry {
  uint32_t id;
  uint32_t is_group;
};
struct npi_access_list {
  uint32_t given;
  uint32_t everyone;
  uint32_t n;
  struct npi_access_entry entry[NPI_ACCESS_ENTRIES_MAX];
};

struct npi_channel_config {
  char name[NPI_CONFIG_NAME_BYTES];
  enum npi_channel_kind kind;
  uint32_t on_full; /* enum npi_on_full, or NPI_CONFIG_DERIVED_U32 until npi_config_finish */
  uint32_t credits;
  uint32_t implicit;       /* not declared: named by a listener, made with the defaults */
  uint32_t max_deliveries; /* group: NPI_CONFIG_DERIVED_U32 until npi_config_finish; 0: no limit */
  struct npi_access_list access_publish, access_subscribe;
  char dead_letter[NPI_CONFIG_NAME_BYTES]; /* group with max_deliveries; empty until npi_config_finish */
};

/* Plain data, no pointer: this struct is copied through a memfd to the ingest workers. */
struct npi_listener_config {
  char name[NPI_CONFIG_NAME_BYTES];
  char channel[NPI_CONFIG_NAME_BYTES];
  enum npi_config_proto proto;
  enum npi_config_listener_full on_full;
  char address[NPI_CONFIG_ADDRESS_BYTES]; /* numeric host, without brackets; "*" is every address of both families */
  uint32_t port;                          /* 0: the kernel chooses one */
  uint32_t ipv6_only;                     /* an IPv6 socket takes no IPv4 traffic */
  char path[NPI_CONFIG_PATH_BYTES];       /* Unix kinds; ${runtime} is expanded by npi_config_finish */
  uint32_t mode;                          /* of the Unix socket file */
  struct npi_framing framing;
  uint32_t framing_given; /* framing was set (a datagram listener may leave it out) */
  uint32_t priority;      /* in the event header, where the framing carries none: 0 batch .. 4 critical */
  uint64_t max_frame;     /* bytes; also in framing.max_frame after npi_config_finish */
  uint32_t max_connections;
  uint32_t max_connections_per_address; /* 0: no limit of its own */
  uint64_t idle_timeout_ms;             /* a connection that sends nothing is closed; 0: never */
  uint64_t frame_timeout_ms;            /* a begun frame must be complete after this; 0: never */
  uint64_t rcvbuf;                      /* bytes; 0: 4 MiB where the kernel allows it for UDP, its default else */
  uint32_t timestamps;                  /* receive time from the kernel (SO_TIMESTAMPNS), datagrams only */
  struct {
    char group[NPI_CONFIG_ADDRESS_BYTES];     /* empty: no multicast */
    char interface[NPI_CONFIG_ADDRESS_BYTES]; /* name or address of an interface; empty: the kernel chooses */
    char source[NPI_CONFIG_ADDRESS_BYTES];    /* empty: any source */
  } multicast;
};

struct npi_config_origin;

struct npi_config {
  char instance[NPI_CONFIG_INSTANCE_BYTES];
  char runtime_dir[NPI_CONFIG_RUNTIME_BYTES];
  uint64_t drain_timeout_ms;
  enum npi_log_level log_level;
  uint32_t channels_on_demand;
  struct {
    uint64_t per_node;   /* budget of each node, bytes */
    uint64_t per_client; /* budget of one client, bytes, a multiple of segment */
    uint64_t segment;    /* bytes, a power of two */
    uint64_t ready;      /* bytes per node that are made ahead of demand */
    uint32_t ready_all;  /* ready: all */
    enum npi_segment_backend backend;
    enum npi_huge_pages huge_pages;
    uint32_t segments_per_node; /* derived: per_node / segment */
  } memory;
  struct {
    enum npi_numa_mode mode;
  } numa;
  struct {
    enum npi_config_ingest backend;
    uint32_t workers_per_node;
    uint32_t staging_buffers; /* a worker's receive buffers, a power of two */
    enum npi_config_pin pin;
    uint64_t staging_bytes;     /* of one staging buffer, a power of two */
    uint64_t orphan_timeout_ms; /* a worker without broker ends after it; 0: never */
    uint64_t unfinished_bytes;  /* most that a worker keeps of frames whose rest has not come */
  } ingest;
  struct {
    uint64_t evict_after_ms; /* 0: never */
    enum npi_config_evict evict;
  } clients;
  struct {
    uint32_t clients;
    uint32_t channels;
    uint32_t publishers;
    uint32_t subscribers;
    uint32_t connections;
    uint32_t segments;
    uint32_t listeners;
    uint32_t max_credits; /* of one connection */
    uint32_t endpoints_per_client;
    uint32_t connections_per_client; /* at most connections, after npi_config_finish */
    uint32_t clients_per_user;       /* 0: no limit of its own */
    uint64_t rings_per_client;       /* bytes */
  } limits;
  struct {
    struct npi_access_list connect, publish, subscribe;
  } access;
  struct npi_channel_config *channels;
  size_t n_channels;
  struct npi_listener_config *listeners;
  size_t n_listeners;

  /* Where it came from and what was wrong; owned by the functions below. */
  char file[256];                    /* empty: no file */
  struct npi_config_origin *origins; /* line and column of each value that was set */
  size_t n_origins;
  char errors[8192]; /* up to NPI_CONFIG_ERRORS lines joined by newlines */
  unsigned n_errors;
};

/* The defaults. Allocates nothing. */
void npi_config_init(struct npi_config *config);

/*
 * Reads a YAML file over what config holds. NP_ERR_CONFIG: config->errors lists up to ten errors, each
 * `FILE:LINE:COLUMN: KEY: what is wrong; the fix`, and npi_detail() holds the first.
 */
int npi_config_load(struct npi_config *config, const char *file);

/* The same from memory; name stands for FILE in errors. */
int npi_config_parse(struct npi_config *config, const char *name, const char *text, size_t length);

/*
 * Derives what was left open, expands ${runtime}, adds the channels that only listeners name, and checks
 * what no single value shows. instance_override (of --instance) wins over the file; NULL or empty: none.
 * Call it once.
 */
int npi_config_finish(struct npi_config *config, const char *instance_override);

/* Frees lists and leaves config empty; harmless after npi_config_init alone and when called twice. */
void npi_config_deinit(struct npi_config *config);

/* The reference of all settings, as text for --help-config. */
void npi_config_write_help(FILE *output);

/* The values in force as a YAML document, which parses to the same values. */
void npi_config_write(const struct npi_config *config, FILE *output);

/* Defaults of one list item, for callers that build one without a file. */
void npi_channel_config_init(struct npi_channel_config *channel);
void npi_listener_config_init(struct npi_listener_config *listener);

const struct npi_channel_config *npi_config_find_channel(const struct npi_config *config, const char *name);

/* Whether name may name an instance, or a channel or listener. */
int npi_config_instance_name_ok(const char *name);
int npi_config_name_ok(const char *name);

/* Words for values, as they are written in the file. */
const char *npi_config_proto_text(enum npi_config_proto proto);

static inline int npi_config_proto_is_datagram(enum npi_config_proto proto) {
  return proto == NPI_CONFIG_UDP || proto == NPI_CONFIG_UNIX_DATAGRAM;
}
static inline int npi_config_proto_is_unix(enum npi_config_proto proto) {
  return proto == NPI_CONFIG_UNIX || proto == NPI_CONFIG_UNIX_DATAGRAM;
}

#endif
