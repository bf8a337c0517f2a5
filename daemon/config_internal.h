/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the configuration share: the table of settings, and how errors are gathered. */
#ifndef NPI_DAEMON_CONFIG_INTERNAL_H
#define NPI_DAEMON_CONFIG_INTERNAL_H

#include "daemon/config.h"

enum npi_setting_scope {
  NPI_SETTING_OF_INSTANCE, /* offset within struct npi_config */
  NPI_SETTING_OF_CHANNEL,  /* within struct npi_channel_config */
  NPI_SETTING_OF_LISTENER, /* within struct npi_listener_config */
  NPI_SETTING_OF_FRAMING   /* within struct npi_framing_keys */
};

enum npi_setting_type {
  NPI_SETTING_TEXT,
  NPI_SETTING_BOOLEAN,
  NPI_SETTING_COUNT,
  NPI_SETTING_BYTES,
  NPI_SETTING_DURATION, /* milliseconds */
  NPI_SETTING_CHOICE,
  NPI_SETTING_MODE,     /* octal permission bits */
  NPI_SETTING_ADDRESS,  /* "host:port" of a listener */
  NPI_SETTING_FRAMING,  /* a word or a mapping of NPI_SETTING_OF_FRAMING keys */
  NPI_SETTING_ACCESS,   /* a word or a list of words: user:NAME, group:NUMBER, all */
  NPI_SETTING_CHANNELS, /* lists of mappings */
  NPI_SETTING_LISTENERS
};

struct npi_setting_choice {
  const char *word;
  uint32_t value;
};

/* One row of the table. */
struct npi_setting {
  enum npi_setting_scope scope;
  uint32_t offset;
  uint32_t bytes; /* of the field; 0: set by code of its own */
  enum npi_setting_type type;
  const char *name;         /* "memory.per_node": dots are nested mappings */
  const char *initial;      /* the default as it would be written; NULL: none, or derived */
  const char *derived;      /* words on where the default comes from, when initial is NULL */
  const char *help;         /* one line */
  const char *special_word; /* a word that stands for special_value: `off` is 0, `all`, `auto` */
  uint64_t special_value;
  const struct npi_setting_choice *choices;
  uint64_t min;
  uint64_t max;
  uint32_t protos; /* listeners: bits of enum npi_config_proto that it makes sense for; 0: all */
};

/* The keys of a framing written as a mapping, before they are turned into a struct npi_framing. */
struct npi_framing_keys {
  uint32_t datagram;
  uint32_t newline;
  uint32_t syslog;
  uint32_t eventstream;
  uint32_t length_prefix; /* bytes; 0: not given */
  uint32_t big_endian;
  uint32_t includes_prefix;
  uint32_t strip_cr;
  uint32_t max_topic; /* eventstream */
  uint64_t fixed;     /* bytes; 0: not given */
};

extern const struct npi_setting npi_settings[];
extern const size_t npi_n_settings;

const struct npi_setting *npi_setting_find(enum npi_setting_scope scope, const char *name);

/* Sets all fields of a scope to their defaults; base points to the struct of the scope. */
void npi_setting_defaults(enum npi_setting_scope scope, void *base);

/*
 * Reads a scalar into the field; 0, or 1 with words in problem ("... is wrong; the fix").
 * Not for framing and lists.
 */
int npi_setting_parse(const struct npi_setting *setting, void *base, const char *text, char *problem, size_t size);

/* Writes the field as it would be written in a file. */
void npi_setting_format(const struct npi_setting *setting, const void *base, char *text, size_t size);

/* What an unknown key was meant to be, in words: the key that resembles it, or where a key of its name belongs. */
void npi_setting_hint(enum npi_setting_scope scope, const char *prefix, const char *name, char *hint, size_t size);

/* Gathers one error; line 0: no position. key may be empty. Returns NP_ERR_CONFIG. */
int npi_config_error_at(struct npi_config *config, unsigned line, unsigned column, const char *key, const char *format,
                        ...) __attribute__((format(printf, 5, 6), cold));

/* The same at the place where `key` was set, if it was. */
int npi_config_error(struct npi_config *config, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* 0, or NP_ERR_CONFIG with the first of the gathered errors in npi_detail(). */
int npi_config_verdict(const struct npi_config *config);

static inline int npi_config_full_of_errors(const struct npi_config *config) {
  return config->n_errors >= NPI_CONFIG_ERRORS;
}

/* Remembers where key ("listeners[2].channel") was set; NP_ERR_NO_MEMORY. */
int npi_config_origin_add(struct npi_config *config, const char *key, unsigned line, unsigned column);

/* The listeners' part of npi_config_finish; adds the channels that only listeners name. */
int npi_config_finish_listeners(struct npi_config *config);

/* config_access.c. One word of a list; 0, or 1 with words in problem. */
int npi_config_access_add(struct npi_access_list *list, const char *text, char *problem, size_t size);
void npi_config_access_format(const struct npi_access_list *list, char *text, size_t size);
void npi_config_finish_access(struct npi_config *config);

/* Splits "host:port" (docs/configuration.md, Addresses); 0, or 1 with words in problem. */
int npi_config_parse_address(struct npi_listener_config *listener, const char *text, char *problem, size_t size);

#endif
