/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Defaults, gathered errors, and what npi_config_finish makes of the values: derived sizes, expanded paths,
 * and the checks that need more than one value. Listeners have their own file, config_listener.c.
 */
#include "daemon/config.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/align.h"
#include "base/status.h"
#include "daemon/config_internal.h"

enum { MAX_DELIVERIES = 16 };

struct npi_config_origin {
  char key[96];
  unsigned line;
  unsigned column;
};

/* ---- defaults ---- */

void npi_config_init(struct npi_config *config) {
  memset(config, 0, sizeof *config);
  npi_setting_defaults(NPI_SETTING_OF_INSTANCE, config);
}

void npi_channel_config_init(struct npi_channel_config *channel) {
  memset(channel, 0, sizeof *channel);
  npi_setting_defaults(NPI_SETTING_OF_CHANNEL, channel);
  channel->on_full = NPI_CONFIG_DERIVED_U32; /* 0 is a policy of its own */
  channel->max_deliveries = NPI_CONFIG_DERIVED_U32;
}

void npi_listener_config_init(struct npi_listener_config *listener) {
  memset(listener, 0, sizeof *listener);
  npi_setting_defaults(NPI_SETTING_OF_LISTENER, listener);
}

void npi_config_deinit(struct npi_config *config) {
  free(config->channels);
  free(config->listeners);
  free(config->origins);
  npi_config_init(config);
}

/* ---- errors and where values came from ---- */

int npi_config_origin_add(struct npi_config *config, const char *key, unsigned line, unsigned column) {
  /* Room for a power of two of them: grown whenever the count is one. */
  if (config->n_origins == 0 || npi_is_power_of_two(config->n_origins)) {
    size_t room = config->n_origins == 0 ? 1 : 2 * config->n_origins;
    struct npi_config_origin *grown = realloc(config->origins, room * sizeof *grown);
    if (grown == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for %zu settings", room);
    config->origins = grown;
  }
  struct npi_config_origin *origin = &config->origins[config->n_origins++];
  snprintf(origin->key, sizeof origin->key, "%s", key);
  origin->line = line;
  origin->column = column;
  return 0;
}

static int add_error(struct npi_config *config, unsigned line, unsigned column, const char *key, const char *text) {
  size_t used = strlen(config->errors);
  size_t room = sizeof config->errors - used;
  if (npi_config_full_of_errors(config)) return NP_ERR_CONFIG;
  char *to = config->errors + used;
  const char *gap = config->n_errors++ > 0 ? "\n" : "";
  const char *file = config->file[0] ? config->file : "configuration";
  const char *colon = key[0] ? ": " : "";
  if (line > 0) {
    snprintf(to, room, "%s%s:%u:%u: %s%s%s", gap, file, line, column, key, colon, text);
  } else {
    snprintf(to, room, "%s%s: %s%s%s", gap, file, key, colon, text);
  }
  return NP_ERR_CONFIG;
}

int npi_config_error_at(struct npi_config *config, unsigned line, unsigned column, const char *key, const char *format,
                        ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return add_error(config, line, column, key, text);
}

int npi_config_error(struct npi_config *config, const char *key, const char *format, ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  /* The value itself, else the list item that should have it ("listeners[2].") */
  const char *end = strchr(key, ']');
  size_t item = end != NULL ? (size_t)(end - key) + 2 : 0;
  const struct npi_config_origin *found = NULL;
  for (size_t i = 0; i < config->n_origins; i++) {
    const struct npi_config_origin *origin = &config->origins[i];
    if (strcmp(origin->key, key) == 0) {
      found = origin;
      break;
    }
    if (item > 0 && strlen(origin->key) == item && strncmp(origin->key, key, item) == 0) found = origin;
  }
  return add_error(config, found ? found->line : 0, found ? found->column : 0, key, text);
}

int npi_config_verdict(const struct npi_config *config) {
  if (config->n_errors == 0) return 0;
  int first = (int)strcspn(config->errors, "\n");
  if (config->n_errors == 1) return npi_fail(NP_ERR_CONFIG, "%.*s", first, config->errors);
  return npi_fail(NP_ERR_CONFIG, "%.*s (and %u more)", first, config->errors, config->n_errors - 1);
}

/* ---- names ---- */

static int is_lower(char c) {
  return c >= 'a' && c <= 'z';
}
static int is_digit(char c) {
  return c >= '0' && c <= '9';
}
static int is_upper(char c) {
  return c >= 'A' && c <= 'Z';
}

int npi_config_instance_name_ok(const char *name) {
  size_t length = strlen(name);
  if (length == 0 || length >= NPI_CONFIG_INSTANCE_BYTES || !(is_lower(name[0]) || is_digit(name[0]))) return 0;
  for (const char *c = name; *c; c++) {
    if (!is_lower(*c) && !is_digit(*c) && strchr("._-", *c) == NULL) return 0;
  }
  return 1;
}

int npi_config_name_ok(const char *name) {
  size_t length = strlen(name);
  if (length == 0 || length >= NPI_CONFIG_NAME_BYTES) return 0;
  if (!is_lower(name[0]) && !is_upper(name[0]) && !is_digit(name[0])) return 0;
  for (const char *c = name; *c; c++) {
    if (!is_lower(*c) && !is_upper(*c) && !is_digit(*c) && strchr("._/-", *c) == NULL) return 0;
  }
  return 1;
}

const struct npi_channel_config *npi_config_find_channel(const struct npi_config *config, const char *name) {
  for (size_t i = 0; i < config->n_channels; i++) {
    if (strcmp(config->channels[i].name, name) == 0) return &config->channels[i];
  }
  return NULL;
}

/* ---- instance and runtime directory ---- */

static void finish_instance(struct npi_config *config, const char *override) {
  if (override != NULL && override[0] != '\0') {
    if (!npi_config_instance_name_ok(override)) {
      /* Not of the file: no position in front. */
      char file[sizeof config->file];
      memcpy(file, config->file, sizeof file);
      snprintf(config->file, sizeof config->file, "--instance");
      npi_config_error_at(config, 0, 0, "",
                          "\"%.60s\" cannot name an instance; use up to 32 of a-z 0-9 . _ -, the "
                          "first a letter or digit",
                          override);
      memcpy(config->file, file, sizeof file);
      return;
    }
    snprintf(config->instance, sizeof config->instance, "%s", override);
  } else if (!npi_config_instance_name_ok(config->instance)) {
    npi_config_error(config, "instance",
                     "\"%s\" cannot name an instance; use up to 32 of a-z 0-9 . _ -, the first a letter or digit",
                     config->instance);
  }
}

/*
 * Clients compute the same default (the library's connect), so the rule is part of the interface:
 * docs/configuration.md, Runtime directory.
 */
static void finish_runtime_dir(struct npi_config *config) {
  const char *base = getenv("XDG_RUNTIME_DIR");
  int n;
  if (config->runtime_dir[0] != '\0') {
    size_t length = strlen(config->runtime_dir);
    if (config->runtime_dir[0] != '/') {
      npi_config_error(config, "runtime_dir", "\"%s\" is not an absolute path; begin it with /", config->runtime_dir);
    } else if (strstr(config->runtime_dir, "${") != NULL) {
      npi_config_error(config, "runtime_dir", "\"%s\" cannot contain ${...}; write the path itself",
                       config->runtime_dir);
    }
    while (length > 1 && config->runtime_dir[length - 1] == '/') config->runtime_dir[--length] = '\0';
    return;
  }
  if (base != NULL && base[0] == '/') {
    n = snprintf(config->runtime_dir, sizeof config->runtime_dir, "%s/numapool/%s", base, config->instance);
  } else if (geteuid() == 0) {
    n = snprintf(config->runtime_dir, sizeof config->runtime_dir, "/run/numapool/%s", config->instance);
  } else {
    n = snprintf(config->runtime_dir, sizeof config->runtime_dir, "/tmp/numapool-%u/%s", (unsigned)geteuid(),
                 config->instance);
  }
  if (n >= (int)sizeof config->runtime_dir) {
    npi_config_error(config, "runtime_dir", "would be %s/..., longer than %zu bytes; set runtime_dir to a shorter path",
                     base, sizeof config->runtime_dir - 1);
  }
}

/* ---- memory ---- */

static void bytes_text(uint64_t bytes, char text[32]) {
  static const char *const units[] = {"", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (unit + 1 < NPI_ARRAY_COUNT(units) && bytes != 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    unit++;
  }
  snprintf(text, 32, "%" PRIu64 "%s", bytes, units[unit]);
}

static void derive_segment(struct npi_config *config) {
  uint64_t segment = npi_power_of_two_above(config->memory.per_node / 128);
  if (segment < NPI_CONFIG_SEGMENT_BYTES_MIN) segment = NPI_CONFIG_SEGMENT_BYTES_MIN;
  if (segment > (UINT64_C(64) << 20)) segment = UINT64_C(64) << 20;
  while (config->memory.per_node / segment > config->limits.segments && segment < NPI_SEGMENT_BYTES_MAX) {
    segment *= 2;
  }
  config->memory.segment = segment;
}

static void finish_memory(struct npi_config *config) {
  char node[32], segment[32], other[32];
  if (config->memory.huge_pages == NPI_HUGE_EXPLICIT && config->memory.backend == NPI_BACKEND_POSIX) {
    npi_config_error(
        config, "memory.huge_pages",
        "explicit is not possible with memory.backend posix; use backend: memfd, or huge_pages: transparent");
  }
  if (config->memory.segment == NPI_CONFIG_DERIVED) {
    derive_segment(config);
  } else if (!npi_is_power_of_two(config->memory.segment)) {
    bytes_text(config->memory.segment, segment);
    bytes_text(npi_power_of_two_above(config->memory.segment), other);
    npi_config_error(config, "memory.segment", "%s is not a power of two; use %s", segment, other);
    return;
  }
  uint64_t size = config->memory.segment;
  bytes_text(config->memory.per_node, node);
  bytes_text(size, segment);
  if (config->memory.per_node < 2 * size) {
    bytes_text(2 * size, other);
    npi_config_error(config, "memory.per_node",
                     "%s holds fewer than two segments of %s, so that a second publisher would get none; use at least "
                     "%s, or a smaller memory.segment",
                     node, segment, other);
    return;
  }
  uint64_t count = config->memory.per_node / size;
  if (count > config->limits.segments) {
    npi_config_error(config, "memory.per_node", "%s is %" PRIu64 " segments of %s, and limits.segments is %u; raise %s",
                     node, count, segment, config->limits.segments,
                     size < NPI_SEGMENT_BYTES_MAX ? "memory.segment" : "limits.segments, or lower it");
    return;
  }
  config->memory.segments_per_node = (uint32_t)count;

  uint64_t *client = &config->memory.per_client;
  if (*client == NPI_CONFIG_DERIVED) {
    *client = npi_round_up(config->memory.per_node / 4, size);
  } else if (*client > config->memory.per_node) {
    bytes_text(*client, other);
    npi_config_error(config, "memory.per_client", "%s is more than memory.per_node, which is %s; lower it", other,
                     node);
  } else {
    *client = npi_round_up(*client, size);
  }
  uint64_t most = NPI_SEGMENTS_PER_CLIENT_MAX * size; /* what an element's segment field can say */
  if (*client > most) *client = most;
  uint64_t whole = count * size; /* what is left of per_node beyond whole segments is never used */
  if (*client > whole) *client = whole;

  if (config->memory.ready == NPI_CONFIG_DERIVED) {
    config->memory.ready = config->memory.per_node;
  } else if (config->memory.ready > config->memory.per_node) {
    bytes_text(config->memory.ready, other);
    npi_config_error(config, "memory.ready", "%s is more than memory.per_node, which is %s; lower it, or write all",
                     other, node);
  }
  config->memory.ready_all = config->memory.ready >= config->memory.per_node;
}

static void finish_ingest(struct npi_config *config) {
  if (!npi_is_power_of_two(config->ingest.staging_buffers)) {
    npi_config_error(config, "ingest.staging_buffers", "%u is not a power of two; use %" PRIu64,
                     config->ingest.staging_buffers, npi_power_of_two_above(config->ingest.staging_buffers));
  }
  if (!npi_is_power_of_two(config->ingest.staging_bytes)) {
    char text[32], other[32];
    bytes_text(config->ingest.staging_bytes, text);
    bytes_text(npi_power_of_two_above(config->ingest.staging_bytes), other);
    npi_config_error(config, "ingest.staging_bytes", "%s is not a power of two; use %s", text, other);
  }
}

/* ---- channels ---- */

static const char *const name_rule = "use up to 63 of A-Z a-z 0-9 . _ / -, the first a letter or digit";

static void finish_dead_letter(struct npi_config *config, size_t index) {
  static const char suffix[] = ".dead";
  struct npi_channel_config *channel = &config->channels[index];
  char deliveries[64], target[64];
  snprintf(deliveries, sizeof deliveries, "channels[%zu].max_deliveries", index);
  snprintf(target, sizeof target, "channels[%zu].dead_letter", index);
  if (channel->kind != NPI_CHANNEL_GROUP) {
    if (channel->max_deliveries == NPI_CONFIG_DERIVED_U32) channel->max_deliveries = 0;
    if (channel->max_deliveries != 0) {
      npi_config_error(config, deliveries, "only a group delivers again; write kind: group, or leave it out");
    }
    if (channel->dead_letter[0] != '\0') {
      npi_config_error(config, target, "only a group has dead letters; write kind: group, or leave it out");
    }
    return;
  }
  if (channel->max_deliveries == NPI_CONFIG_DERIVED_U32) channel->max_deliveries = MAX_DELIVERIES;
  if (channel->max_deliveries == 0) {
    if (channel->dead_letter[0] != '\0') {
      npi_config_error(config, target, "has no use with max_deliveries: off; remove one of them");
    }
    return;
  }
  if (channel->dead_letter[0] == '\0') {
    if (strlen(channel->name) + sizeof suffix > sizeof channel->dead_letter) {
      npi_config_error(config, target, "\"%s%s\" would be too long for a name; set dead_letter to a shorter one",
                       channel->name, suffix);
      return;
    }
    snprintf(channel->dead_letter, sizeof channel->dead_letter, "%s%s", channel->name, suffix);
  } else if (!npi_config_name_ok(channel->dead_letter)) {
    npi_config_error(config, target, "\"%s\" cannot name a channel; %s", channel->dead_letter, name_rule);
    return;
  }
  const struct npi_channel_config *other = npi_config_find_channel(config, channel->dead_letter);
  if (other != NULL && other->kind != NPI_CHANNEL_BROADCAST) {
    npi_config_error(config, target, "channel \"%s\" is a group; dead letters need a broadcast channel",
                     channel->dead_letter);
  }
}

static void finish_channel(struct npi_config *config, size_t index) {
  struct npi_channel_config *channel = &config->channels[index];
  char key[64];
  int group = channel->kind == NPI_CHANNEL_GROUP;
  if (channel->credits == NPI_CONFIG_DERIVED_U32) {
    channel->credits = group ? 32 : 256;
    if (channel->credits > config->limits.max_credits) channel->credits = config->limits.max_credits;
  }
  if (channel->on_full == NPI_CONFIG_DERIVED_U32) {
    channel->on_full = group ? NPI_ON_FULL_BLOCK : NPI_ON_FULL_DROP_NEWEST;
  }
  snprintf(key, sizeof key, "channels[%zu].name", index);
  if (channel->name[0] == '\0') {
    npi_config_error(config, key, "is missing; give the channel a name");
  } else if (!npi_config_name_ok(channel->name)) {
    npi_config_error(config, key, "\"%s\" cannot name a channel; %s", channel->name, name_rule);
  }
  for (size_t i = 0; i < index && channel->name[0] != '\0'; i++) {
    if (strcmp(config->channels[i].name, channel->name) != 0) continue;
    npi_config_error(config, key, "\"%s\" is declared twice; remove one", channel->name);
    break;
  }
  if (channel->credits > config->limits.max_credits) {
    snprintf(key, sizeof key, "channels[%zu].credits", index);
    npi_config_error(config, key, "%u is more than limits.max_credits, which is %u; lower it, or raise the limit",
                     channel->credits, config->limits.max_credits);
  }
  finish_dead_letter(config, index);
}

/* Each ring of a connection with all credits must fit, or that setting could never be used. */
static void finish_limits(struct npi_config *config) {
  char text[32], other[32];
  uint64_t least = npi_ring_block_bytes((uint32_t)npi_power_of_two_above(config->limits.max_credits));
  if (config->limits.connections_per_client > config->limits.connections) {
    config->limits.connections_per_client = config->limits.connections;
  }
  if (config->limits.rings_per_client >= least) return;
  bytes_text(config->limits.rings_per_client, text);
  bytes_text(npi_power_of_two_above(least), other);
  npi_config_error(config, "limits.rings_per_client",
                   "%s cannot hold one ring of limits.max_credits, %u; use at least %s, or lower limits.max_credits",
                   text, config->limits.max_credits, other);
}

int npi_config_finish(struct npi_config *config, const char *instance_override) {
  finish_instance(config, instance_override);
  finish_runtime_dir(config);
  finish_memory(config);
  finish_ingest(config);
  finish_limits(config);
  for (size_t i = 0; i < config->n_channels && !npi_config_full_of_errors(config); i++) finish_channel(config, i);
  int status = npi_config_finish_listeners(config);
  if (status < 0 && status != NP_ERR_CONFIG) return status;
  npi_config_finish_access(config);
  if (config->n_channels > config->limits.channels) {
    npi_config_error(config, "limits.channels", "%u is less than the %zu channels of this file; raise it",
                     config->limits.channels, config->n_channels);
  }
  return npi_config_verdict(config);
}
