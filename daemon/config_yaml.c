/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a YAML document to settings. The document is walked along the table: what the table does not know is
 * refused, with its line. Aliases work; merge keys (<<) do not, they are unknown keys like any other.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

#include "base/status.h"
#include "daemon/config_internal.h"

enum { FILE_BYTES_MAX = 1 << 20, KEY_BYTES = 160 };

struct walk {
  struct npi_config *config;
  yaml_document_t *document;
  enum npi_setting_scope scope;
  void *base;
  char path[KEY_BYTES]; /* of the item: "listeners[2]."; empty at the top */
};

static unsigned line_of(const yaml_node_t *node) {
  return (unsigned)node->start_mark.line + 1;
}
static unsigned column_of(const yaml_node_t *node) {
  return (unsigned)node->start_mark.column + 1;
}

static const char *kind_of(const yaml_node_t *node) {
  return node->type == YAML_SEQUENCE_NODE ? "a list" : node->type == YAML_MAPPING_NODE ? "a mapping" : "a single value";
}

/* A value that is not there: `channels:` with nothing behind it. */
static int is_nothing(const yaml_node_t *node) {
  if (node->type != YAML_SCALAR_NODE || node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return 0;
  const char *text = (const char *)node->data.scalar.value;
  return text[0] == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0;
}

/* The text of a scalar, or NULL with the error noted. */
static const char *scalar_text(struct walk *walk, const yaml_node_t *node, const char *key) {
  if (node->type != YAML_SCALAR_NODE) {
    npi_config_error_at(walk->config, line_of(node), column_of(node), key, "is %s; a single value belongs here",
                        kind_of(node));
    return NULL;
  }
  if (strlen((const char *)node->data.scalar.value) != node->data.scalar.length) {
    npi_config_error_at(walk->config, line_of(node), column_of(node), key, "contains a zero byte; remove it");
    return NULL;
  }
  if (is_nothing(node)) {
    npi_config_error_at(walk->config, line_of(node), column_of(node), key,
                        "has no value; give one, or leave the key out for the default");
    return NULL;
  }
  return (const char *)node->data.scalar.value;
}

/* Whether some setting of the scope lies below name + ".". */
static int is_section(enum npi_setting_scope scope, const char *name) {
  size_t length = strlen(name);
  for (size_t i = 0; i < npi_n_settings; i++) {
    const struct npi_setting *setting = &npi_settings[i];
    if (setting->scope == scope && strncmp(setting->name, name, length) == 0 && setting->name[length] == '.') return 1;
  }
  return 0;
}

static int walk_mapping(struct walk *walk, const yaml_node_t *node, const char *prefix);

/* ---- framing: a word, or a mapping of its own keys ---- */

static int framing_from_keys(struct walk *walk, const yaml_node_t *node, const char *key,
                             const struct npi_framing_keys *keys, struct npi_framing *framing) {
  /* What was left out is all ones. */
  uint32_t length_prefix = keys->length_prefix == NPI_CONFIG_DERIVED_U32 ? 0 : keys->length_prefix;
  uint64_t fixed = keys->fixed == NPI_CONFIG_DERIVED ? 0 : keys->fixed;
  unsigned kinds =
      keys->datagram + keys->newline + keys->syslog + keys->eventstream + (length_prefix != 0) + (fixed != 0);
  if (kinds != 1) {
    return npi_config_error_at(walk->config, line_of(node), column_of(node), key,
                               "names %s; name one of: datagram, newline, syslog, eventstream, length_prefix, fixed",
                               kinds == 0 ? "no kind of framing" : "more than one kind of framing");
  }
  framing->kind = keys->datagram      ? NPI_FRAMING_DATAGRAM
                  : keys->newline     ? NPI_FRAMING_NEWLINE
                  : keys->syslog      ? NPI_FRAMING_SYSLOG
                  : keys->eventstream ? NPI_FRAMING_EVENTSTREAM
                  : length_prefix     ? NPI_FRAMING_LENGTH_PREFIX
                                      : NPI_FRAMING_FIXED;
  framing->prefix_bytes = length_prefix;
  if (length_prefix != 0) {
    framing->big_endian = keys->big_endian;
    framing->includes_prefix = keys->includes_prefix;
  }
  framing->fixed_bytes = (uint32_t)fixed;
  framing->strip_cr = keys->strip_cr;
  if (keys->eventstream) framing->max_topic = keys->max_topic;
  return 0;
}

/* Keys that go with another kind of framing would be silently without effect. */
static int check_framing_keys(struct walk *walk, const yaml_node_t *node, const char *key,
                              const struct npi_framing *framing) {
  static const struct {
    const char *word;
    unsigned kinds;
    const char *with;
  } rules[] = {
      {"endian", 1u << NPI_FRAMING_LENGTH_PREFIX, "length_prefix"},
      {"includes_prefix", 1u << NPI_FRAMING_LENGTH_PREFIX, "length_prefix"},
      {"strip_cr", 1u << NPI_FRAMING_NEWLINE | 1u << NPI_FRAMING_SYSLOG, "newline or syslog"},
      {"max_topic", 1u << NPI_FRAMING_EVENTSTREAM, "eventstream"},
  };
  yaml_node_pair_t *end = node->data.mapping.pairs.top;
  for (yaml_node_pair_t *pair = node->data.mapping.pairs.start; pair < end; pair++) {
    const yaml_node_t *word = yaml_document_get_node(walk->document, pair->key);
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
      if (strcmp((const char *)word->data.scalar.value, rules[i].word) != 0 || rules[i].kinds >> framing->kind & 1) {
        continue;
      }
      return npi_config_error_at(walk->config, line_of(word), column_of(word), key, "%s goes only with %s; remove it",
                                 rules[i].word, rules[i].with);
    }
  }
  return 0;
}

static int walk_framing(struct walk *walk, const yaml_node_t *node, const char *key) {
  struct npi_listener_config *listener = walk->base;
  struct npi_framing_keys keys;
  char problem[256];
  npi_setting_defaults(NPI_SETTING_OF_FRAMING, &keys);
  if (node->type == YAML_SCALAR_NODE) {
    const char *text = scalar_text(walk, node, key);
    if (text == NULL) return NP_ERR_CONFIG;
    const struct npi_setting *setting = npi_setting_find(NPI_SETTING_OF_FRAMING, text);
    if (strcmp(text, "length_prefix") == 0) {
      keys.length_prefix = 4;
    } else if (setting != NULL && setting->type == NPI_SETTING_BOOLEAN && strcmp(text, "includes_prefix") != 0 &&
               strcmp(text, "strip_cr") != 0) {
      npi_setting_parse(setting, &keys, "true", problem, sizeof problem);
    } else {
      return npi_config_error_at(walk->config, line_of(node), column_of(node), key,
                                 "\"%.60s\" is not known; use datagram, newline, syslog, eventstream, length_prefix, "
                                 "{ length_prefix: 1|2|4|8, ... } or { fixed: BYTES }",
                                 text);
    }
  } else if (node->type == YAML_MAPPING_NODE) {
    struct walk inner = *walk;
    inner.scope = NPI_SETTING_OF_FRAMING;
    inner.base = &keys;
    if (snprintf(inner.path, sizeof inner.path, "%s.", key) >= (int)sizeof inner.path) return NP_ERR_CONFIG;
    unsigned errors_before = walk->config->n_errors;
    int status = walk_mapping(&inner, node, "");
    if (status < 0 || walk->config->n_errors > errors_before) return status;
  } else {
    return npi_config_error_at(walk->config, line_of(node), column_of(node), key,
                               "is %s; write a word such as newline, or a mapping", kind_of(node));
  }
  struct npi_framing framing = {0};
  int status = framing_from_keys(walk, node, key, &keys, &framing);
  if (status == 0 && node->type == YAML_MAPPING_NODE) status = check_framing_keys(walk, node, key, &framing);
  if (status < 0) return status;
  listener->framing = framing;
  listener->framing_given = 1;
  return 0;
}

/* ---- lists of channels and listeners ---- */

/* Keys that mean nothing for this kind of socket would be silently without effect. */
static void check_protos(struct walk *walk, const yaml_node_t *node) {
  const struct npi_listener_config *listener = walk->base;
  if (listener->proto == NPI_CONFIG_PROTO_NONE) return;
  yaml_node_pair_t *end = node->data.mapping.pairs.top;
  for (yaml_node_pair_t *pair = node->data.mapping.pairs.start; pair < end; pair++) {
    const yaml_node_t *word = yaml_document_get_node(walk->document, pair->key);
    if (word->type != YAML_SCALAR_NODE) continue;
    const char *name = (const char *)word->data.scalar.value;
    const struct npi_setting *setting = npi_setting_find(NPI_SETTING_OF_LISTENER, name);
    if (setting == NULL && strcmp(name, "multicast") == 0) {
      setting = npi_setting_find(NPI_SETTING_OF_LISTENER, "multicast.group");
    }
    if (setting == NULL || setting->protos == 0 || (setting->protos >> listener->proto & 1)) continue;
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "%.90s%.60s", walk->path, name);
    npi_config_error_at(walk->config, line_of(word), column_of(word), key, "means nothing for proto %s; remove it",
                        npi_config_proto_text(listener->proto));
  }
}

/* One more zeroed item at the end of a list. */
static void *grow(void **items, size_t n, size_t item_bytes) {
  char *grown = realloc(*items, (n + 1) * item_bytes);
  if (grown == NULL) return NULL;
  *items = grown;
  memset(grown + n * item_bytes, 0, item_bytes);
  return grown + n * item_bytes;
}

static int walk_item(struct walk *walk, const yaml_node_t *node, const struct npi_setting *setting, size_t index) {
  struct npi_config *config = walk->config;
  struct walk inner = *walk;
  snprintf(inner.path, sizeof inner.path, "%s[%zu].", setting->name, index);
  if (node->type != YAML_MAPPING_NODE) {
    inner.path[strlen(inner.path) - 1] = '\0';
    return npi_config_error_at(config, line_of(node), column_of(node), inner.path,
                               "is %s; write a mapping such as { name: ..., ... }", kind_of(node));
  }
  int status = npi_config_origin_add(config, inner.path, line_of(node), column_of(node));
  if (status < 0) return status;
  if (setting->type == NPI_SETTING_CHANNELS) {
    struct npi_channel_config *channel =
        grow((void **)&config->channels, config->n_channels, sizeof config->channels[0]);
    if (channel == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for %zu channels", config->n_channels + 1);
    config->n_channels++;
    npi_channel_config_init(channel);
    inner.scope = NPI_SETTING_OF_CHANNEL;
    inner.base = channel;
    return walk_mapping(&inner, node, "");
  }
  struct npi_listener_config *listener =
      grow((void **)&config->listeners, config->n_listeners, sizeof config->listeners[0]);
  if (listener == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for %zu listeners", config->n_listeners + 1);
  config->n_listeners++;
  npi_listener_config_init(listener);
  inner.scope = NPI_SETTING_OF_LISTENER;
  inner.base = listener;
  status = walk_mapping(&inner, node, "");
  if (status == 0) check_protos(&inner, node);
  return status;
}

static int walk_list(struct walk *walk, const yaml_node_t *node, const struct npi_setting *setting) {
  if (is_nothing(node)) return 0;
  if (node->type != YAML_SEQUENCE_NODE) {
    return npi_config_error_at(walk->config, line_of(node), column_of(node), setting->name,
                               "is %s; write a list: each item on a line that begins with \"- \"", kind_of(node));
  }
  yaml_node_item_t *end = node->data.sequence.items.top;
  size_t count = (size_t)(end - node->data.sequence.items.start);
  if (count > setting->max) {
    return npi_config_error_at(walk->config, line_of(node), column_of(node), setting->name,
                               "has %zu items; at most %llu are possible", count, (unsigned long long)setting->max);
  }
  for (yaml_node_item_t *item = node->data.sequence.items.start; item < end; item++) {
    const yaml_node_t *child = yaml_document_get_node(walk->document, *item);
    int status = walk_item(walk, child, setting, (size_t)(item - node->data.sequence.items.start));
    if (status < 0 && status != NP_ERR_CONFIG) return status;
    if (npi_config_full_of_errors(walk->config)) return NP_ERR_CONFIG;
  }
  return 0;
}

/* ---- lists of users and groups ---- */

/* A list of words, or one word. An empty list is said, and means nobody else. */
static int walk_access(struct walk *walk, const yaml_node_t *node, const struct npi_setting *setting, const char *key) {
  struct npi_access_list *list = (void *)((char *)walk->base + setting->offset);
  char problem[256];
  size_t count = 1;
  list->given = 1;
  int is_list = node->type == YAML_SEQUENCE_NODE;
  if (is_list) count = (size_t)(node->data.sequence.items.top - node->data.sequence.items.start);
  for (size_t i = 0; i < count; i++) {
    const yaml_node_t *word =
        is_list ? yaml_document_get_node(walk->document, node->data.sequence.items.start[i]) : node;
    const char *text = scalar_text(walk, word, key);
    if (text == NULL) return NP_ERR_CONFIG;
    if (npi_config_access_add(list, text, problem, sizeof problem) != 0) {
      return npi_config_error_at(walk->config, line_of(word), column_of(word), key, "%s", problem);
    }
  }
  return 0;
}

/* ---- one mapping ---- */

static int walk_value(struct walk *walk, const yaml_node_t *node, const struct npi_setting *setting, const char *key) {
  char problem[256];
  if (setting->type == NPI_SETTING_CHANNELS || setting->type == NPI_SETTING_LISTENERS) {
    return walk_list(walk, node, setting);
  }
  int status = npi_config_origin_add(walk->config, key, line_of(node), column_of(node));
  if (status < 0) return status;
  if (setting->type == NPI_SETTING_FRAMING) return walk_framing(walk, node, key);
  if (setting->type == NPI_SETTING_ACCESS) return walk_access(walk, node, setting, key);
  const char *text = scalar_text(walk, node, key);
  if (text == NULL) return NP_ERR_CONFIG;
  int wrong = setting->type == NPI_SETTING_ADDRESS
                  ? npi_config_parse_address(walk->base, text, problem, sizeof problem)
                  : npi_setting_parse(setting, walk->base, text, problem, sizeof problem);
  if (!wrong) return 0;
  return npi_config_error_at(walk->config, line_of(node), column_of(node), key, "%s", problem);
}

static int unknown_key(struct walk *walk, const yaml_node_t *word, const char *prefix, const char *key) {
  char hint[192];
  npi_setting_hint(walk->scope, prefix, (const char *)word->data.scalar.value, hint, sizeof hint);
  return npi_config_error_at(walk->config, line_of(word), column_of(word), key, "is not a known setting; %s", hint);
}

static int walk_pair(struct walk *walk, const yaml_node_t *mapping, const yaml_node_pair_t *pair, const char *prefix) {
  const yaml_node_t *word = yaml_document_get_node(walk->document, pair->key);
  const yaml_node_t *value = yaml_document_get_node(walk->document, pair->value);
  if (word->type != YAML_SCALAR_NODE) {
    return npi_config_error_at(walk->config, line_of(word), column_of(word), "", "a key is %s; write a word",
                               kind_of(word));
  }
  const char *text = (const char *)word->data.scalar.value;
  char name[KEY_BYTES / 2]; /* within the scope: "memory.per_node" */
  char key[KEY_BYTES];      /* within the file: "listeners[2].multicast.group" */
  snprintf(name, sizeof name, "%s%.40s", prefix, text);
  snprintf(key, sizeof key, "%.70s%s", walk->path, name);
  for (const yaml_node_pair_t *earlier = mapping->data.mapping.pairs.start; earlier < pair; earlier++) {
    const yaml_node_t *other = yaml_document_get_node(walk->document, earlier->key);
    if (other->type == YAML_SCALAR_NODE && strcmp((const char *)other->data.scalar.value, text) == 0) {
      return npi_config_error_at(walk->config, line_of(word), column_of(word), key,
                                 "is set twice, first in line %u; remove one", line_of(other));
    }
  }
  const struct npi_setting *setting = npi_setting_find(walk->scope, name);
  if (strchr(text, '.') != NULL && setting != NULL) {
    return npi_config_error_at(walk->config, line_of(word), column_of(word), key,
                               "has a dot in its key; write a mapping: %.*s: { %s: ... }", (int)strcspn(text, "."),
                               text, strchr(text, '.') + 1);
  }
  /* What was cut off above is longer than any key that is known. */
  if (setting != NULL && strlen(text) <= 40) return walk_value(walk, value, setting, key);
  if (!is_section(walk->scope, name)) return unknown_key(walk, word, prefix, key);
  if (is_nothing(value)) return 0;
  if (value->type != YAML_MAPPING_NODE) {
    return npi_config_error_at(walk->config, line_of(value), column_of(value), key,
                               "is %s; write its settings as a mapping: %s: { ... }", kind_of(value), text);
  }
  char below[KEY_BYTES / 2];
  if (snprintf(below, sizeof below, "%s.", name) >= (int)sizeof below) return NP_ERR_CONFIG;
  return walk_mapping(walk, value, below);
}

/* Goes on after an error to find more; stops when the list is full or a failure is no matter of the file. */
static int walk_mapping(struct walk *walk, const yaml_node_t *node, const char *prefix) {
  yaml_node_pair_t *end = node->data.mapping.pairs.top;
  for (yaml_node_pair_t *pair = node->data.mapping.pairs.start; pair < end; pair++) {
    int status = walk_pair(walk, node, pair, prefix);
    if (status < 0 && status != NP_ERR_CONFIG) return status;
    if (npi_config_full_of_errors(walk->config)) return NP_ERR_CONFIG;
  }
  return 0;
}

/* ---- the document ---- */

static int parser_error(struct npi_config *config, const yaml_parser_t *parser) {
  if (parser->error == YAML_MEMORY_ERROR) return npi_fail(NP_ERR_NO_MEMORY, "no memory to read %s", config->file);
  const char *problem = parser->problem ? parser->problem : "it cannot be read";
  if (parser->error == YAML_READER_ERROR) {
    return npi_config_error_at(config, 0, 0, "", "is not text in UTF-8 (byte %zu: %s); save it as UTF-8",
                               parser->problem_offset, problem);
  }
  return npi_config_error_at(config, (unsigned)parser->problem_mark.line + 1, (unsigned)parser->problem_mark.column + 1,
                             "", "is not YAML: %s; check brackets, quotes and indentation (blanks, no tabs)", problem);
}

static int walk_document(struct npi_config *config, yaml_document_t *document) {
  yaml_node_t *root = yaml_document_get_root_node(document);
  if (root == NULL || is_nothing(root)) return 0; /* an empty file is the defaults */
  if (root->type != YAML_MAPPING_NODE) {
    return npi_config_error_at(config, line_of(root), column_of(root), "",
                               "the document is %s; write settings as `key: value`", kind_of(root));
  }
  struct walk walk = {config, document, NPI_SETTING_OF_INSTANCE, config, ""};
  return walk_mapping(&walk, root, "");
}

int npi_config_parse(struct npi_config *config, const char *name, const char *text, size_t length) {
  yaml_parser_t parser;
  yaml_document_t document;
  snprintf(config->file, sizeof config->file, "%s", name);
  if (!yaml_parser_initialize(&parser)) return npi_fail(NP_ERR_NO_MEMORY, "no memory to read %s", name);
  yaml_parser_set_input_string(&parser, (const unsigned char *)text, length);

  int status = 0;
  if (!yaml_parser_load(&parser, &document)) {
    status = parser_error(config, &parser);
  } else {
    status = walk_document(config, &document);
    int ended = yaml_document_get_root_node(&document) == NULL;
    yaml_document_delete(&document);
    if (status == 0 && !ended) {
      /* What follows must be the end: a second document would be without effect. */
      if (!yaml_parser_load(&parser, &document)) {
        status = parser_error(config, &parser);
      } else {
        yaml_node_t *second = yaml_document_get_root_node(&document);
        if (second != NULL) {
          status = npi_config_error_at(config, line_of(second), column_of(second), "",
                                       "begins a second document; keep one and remove the line `---` before it");
        }
        yaml_document_delete(&document);
      }
    }
  }
  yaml_parser_delete(&parser);
  if (status < 0 && status != NP_ERR_CONFIG) return status;
  return npi_config_verdict(config);
}

int npi_config_load(struct npi_config *config, const char *file) {
  char *text = NULL;
  size_t length = 0;
  int status = 0;
  int fd = open(file, O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) {
    return npi_fail_errno(NP_ERR_CONFIG, errno, "cannot open the configuration file %s; check the path", file);
  }
  struct stat facts;
  if (fstat(fd, &facts) == 0 && S_ISDIR(facts.st_mode)) {
    status = npi_fail(NP_ERR_CONFIG, "the configuration file %s is a directory; name the file", file);
    goto end;
  }
  text = malloc(FILE_BYTES_MAX + 1);
  if (text == NULL) {
    status = npi_fail(NP_ERR_NO_MEMORY, "no memory to read %s", file);
    goto end;
  }
  while (length <= FILE_BYTES_MAX) {
    ssize_t n = read(fd, text + length, FILE_BYTES_MAX + 1 - length);
    if (n == 0) break;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      status = npi_fail_errno(NP_ERR_CONFIG, errno, "cannot read the configuration file %s", file);
      goto end;
    }
    length += (size_t)n;
  }
  if (length > FILE_BYTES_MAX) {
    status = npi_fail(NP_ERR_CONFIG, "the configuration file %s is longer than 1 MiB; is it the right file?", file);
    goto end;
  }
  status = npi_config_parse(config, file, text, length);
end:
  free(text);
  close(fd);
  return status;
}
