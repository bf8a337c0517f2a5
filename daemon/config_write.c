/* SPDX-License-Identifier: Apache-2.0 */
/* The settings as text: the reference for --help-config, and the values in force as a YAML document. */
#include <inttypes.h>
#include <string.h>

#include "daemon/config_internal.h"

enum { VALUE_BYTES = 1024 };

/* ---- the reference ---- */

static void write_values(const struct npi_setting *setting, FILE *output) {
  char value[VALUE_BYTES];
  struct npi_setting limit = *setting;
  uint64_t field;
  limit.offset = 0;
  limit.bytes = sizeof field;
  limit.special_word = NULL;
  const char *special = setting->special_word;
  switch (setting->type) {
    case NPI_SETTING_CHOICE:
      for (const struct npi_setting_choice *choice = setting->choices; choice->word != NULL; choice++) {
        fprintf(output, "%s%s", choice == setting->choices ? "" : " | ", choice->word);
      }
      return;
    case NPI_SETTING_BOOLEAN: fputs("true | false", output); return;
    case NPI_SETTING_COUNT:
    case NPI_SETTING_BYTES:
    case NPI_SETTING_DURATION:
    case NPI_SETTING_MODE:
      field = setting->min;
      npi_setting_format(&limit, &field, value, sizeof value);
      fprintf(output, "%s to ", value);
      field = setting->max;
      npi_setting_format(&limit, &field, value, sizeof value);
      fputs(value, output);
      if (special != NULL) fprintf(output, " | %s", special);
      return;
    case NPI_SETTING_ACCESS: fputs("[ user:NAME, group:NAME, all ]", output); return;
    case NPI_SETTING_TEXT:
    case NPI_SETTING_ADDRESS: fputs("text", output); return;
    case NPI_SETTING_FRAMING:
      fputs("datagram | newline | syslog | eventstream | length_prefix | { fixed: BYTES } | { ... }", output);
      return;
    default: fputs("list", output); return;
  }
}

void npi_config_write_help(FILE *output) {
  static const struct {
    enum npi_setting_scope scope;
    const char *title;
  } parts[] = {
      {NPI_SETTING_OF_INSTANCE, "Settings of the broker (a.b is key b in mapping a):"},
      {NPI_SETTING_OF_CHANNEL, "Each item of channels:"},
      {NPI_SETTING_OF_LISTENER, "Each item of listeners:"},
      {NPI_SETTING_OF_FRAMING, "Keys of framing, where it is a mapping ({ length_prefix: 4, endian: big }):"},
  };
  for (size_t part = 0; part < sizeof parts / sizeof parts[0]; part++) {
    fprintf(output, "%s%s\n", part ? "\n" : "", parts[part].title);
    for (size_t i = 0; i < npi_n_settings; i++) {
      const struct npi_setting *setting = &npi_settings[i];
      if (setting->scope != parts[part].scope) continue;
      fprintf(output, "\n  %s: ", setting->name);
      write_values(setting, output);
      const char *derived = setting->derived;
      if (derived != NULL && strncmp(derived, "required", 8) == 0) {
        fprintf(output, "    (%s)\n", derived);
      } else {
        fprintf(output, "    (default: %s)\n", setting->initial ? setting->initial : derived);
      }
      fprintf(output, "      %s\n", setting->help);
    }
  }
  fputs("\nSizes: 4096, 64KiB, 256MiB, 1GiB. Durations: 500ms, 60s, 2m, 1h.\n", output);
}

/* ---- the values ---- */

static void write_framing(const struct npi_framing *framing, FILE *output) {
  static const char *const yes_no[] = {"false", "true"};
  switch (framing->kind) {
    case NPI_FRAMING_NEWLINE:
    case NPI_FRAMING_SYSLOG:
      fprintf(output, "{ %s: true, strip_cr: %s }", framing->kind == NPI_FRAMING_SYSLOG ? "syslog" : "newline",
              yes_no[framing->strip_cr != 0]);
      return;
    case NPI_FRAMING_LENGTH_PREFIX:
      fprintf(output, "{ length_prefix: %" PRIu32 ", endian: %s, includes_prefix: %s }", framing->prefix_bytes,
              framing->big_endian ? "big" : "little", yes_no[framing->includes_prefix != 0]);
      return;
    case NPI_FRAMING_FIXED: fprintf(output, "{ fixed: %" PRIu32 " }", framing->fixed_bytes); return;
    case NPI_FRAMING_EVENTSTREAM:
      fprintf(output, "{ eventstream: true, max_topic: %" PRIu32 " }",
              framing->max_topic ? framing->max_topic : NPI_FRAMING_MAX_TOPIC);
      return;
    default: fputs("datagram", output); return;
  }
}

static void write_address(const struct npi_listener_config *listener, FILE *output) {
  int brackets = strchr(listener->address, ':') != NULL;
  fprintf(output, "\"%s%s%s:%" PRIu32 "\"", brackets ? "[" : "", listener->address, brackets ? "]" : "",
          listener->port);
}

/* Whether the setting has a value here at all. */
static int applies(const struct npi_setting *setting, const void *base) {
  if (setting->type == NPI_SETTING_CHANNELS || setting->type == NPI_SETTING_LISTENERS) return 0;
  if (setting->type == NPI_SETTING_ACCESS) {
    return ((const struct npi_access_list *)(const void *)((const char *)base + setting->offset))->given != 0;
  }
  if (setting->type == NPI_SETTING_TEXT && ((const char *)base)[setting->offset] == '\0') return 0;
  if (setting->scope != NPI_SETTING_OF_LISTENER || setting->protos == 0) return 1;
  return setting->protos >> ((const struct npi_listener_config *)base)->proto & 1;
}

/* One scope as block YAML; `indent` blanks before each key, the first of a list item behind its dash. */
static void write_scope(enum npi_setting_scope scope, const void *base, int indent, FILE *output) {
  char section[64] = "";
  const char *dash = indent > 0 ? "  - " : "";
  for (size_t i = 0; i < npi_n_settings; i++) {
    const struct npi_setting *setting = &npi_settings[i];
    if (setting->scope != scope || !applies(setting, base)) continue;
    const char *dot = strchr(setting->name, '.');
    const char *key = setting->name;
    int depth = indent;
    if (dot != NULL) {
      size_t length = (size_t)(dot - setting->name);
      if (strlen(section) != length || strncmp(section, setting->name, length) != 0) {
        snprintf(section, sizeof section, "%.*s", (int)length, setting->name);
        fprintf(output, "%*s%s:\n", indent, "", section);
      }
      key = dot + 1;
      depth += 2;
    }
    if (dash[0] != '\0') {
      fprintf(output, "%s%s: ", dash, key);
      dash = "";
    } else {
      fprintf(output, "%*s%s: ", depth, "", key);
    }
    if (setting->type == NPI_SETTING_FRAMING) {
      write_framing(&((const struct npi_listener_config *)base)->framing, output);
    } else if (setting->type == NPI_SETTING_ADDRESS) {
      write_address(base, output);
    } else if (setting->type == NPI_SETTING_ACCESS) {
      char list[VALUE_BYTES];
      npi_config_access_format((const void *)((const char *)base + setting->offset), list, sizeof list);
      fputs(list, output);
    } else {
      char value[VALUE_BYTES];
      npi_setting_format(setting, base, value, sizeof value);
      fputs(value, output);
    }
    fputc('\n', output);
  }
}

void npi_config_write(const struct npi_config *config, FILE *output) {
  write_scope(NPI_SETTING_OF_INSTANCE, config, 0, output);
  fputs(config->n_channels ? "channels:\n" : "channels: []\n", output);
  for (size_t i = 0; i < config->n_channels; i++) {
    write_scope(NPI_SETTING_OF_CHANNEL, &config->channels[i], 4, output);
  }
  fputs(config->n_listeners ? "listeners:\n" : "listeners: []\n", output);
  for (size_t i = 0; i < config->n_listeners; i++) {
    write_scope(NPI_SETTING_OF_LISTENER, &config->listeners[i], 4, output);
  }
}
