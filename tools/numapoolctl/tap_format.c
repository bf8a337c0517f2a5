/* SPDX-License-Identifier: Apache-2.0 */
#include "tap_format.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"

static const char *const priority_words[] = {"batch", "low", "normal", "high", "critical"};
enum { PRIORITIES = sizeof priority_words / sizeof priority_words[0], HEX_BYTES_A_LINE = 16 };

int npi_tap_parse_format(const char *text, enum npi_tap_format *format) {
  static const char *const words[] = {"text", "json", "raw", "hex"};
  for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++) {
    if (strcmp(words[i], text) != 0) continue;
    *format = (enum npi_tap_format)i;
    return 0;
  }
  return -1;
}

static void address_text(char text[INET6_ADDRSTRLEN], const struct np_source *source) {
  text[0] = '\0';
  if (source->family == 4) inet_ntop(AF_INET, source->address, text, INET6_ADDRSTRLEN);
  if (source->family == 6) inet_ntop(AF_INET6, source->address, text, INET6_ADDRSTRLEN);
}

/* RFC 4648, with padding. The caller frees; NULL: out of memory. */
static char *base64(const uint8_t *bytes, size_t n) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  char *text = malloc((n + 2) / 3 * 4 + 1);
  char *at = text;
  if (text == NULL) return NULL;
  for (size_t i = 0; i < n; i += 3) {
    uint32_t three = (uint32_t)bytes[i] << 16;
    if (i + 1 < n) three |= (uint32_t)bytes[i + 1] << 8;
    if (i + 2 < n) three |= bytes[i + 2];
    *at++ = digits[three >> 18 & 63];
    *at++ = digits[three >> 12 & 63];
    *at++ = i + 1 < n ? digits[three >> 6 & 63] : '=';
    *at++ = i + 2 < n ? digits[three & 63] : '=';
  }
  *at = '\0';
  return text;
}

/* As text under `key` where it is UTF-8, else under `key`_base64. */
static void set_bytes(json_t *object, const char *key, const void *bytes, size_t n) {
  char other_key[32];
  json_t *value = json_stringn(n == 0 ? "" : bytes, n);
  if (value != NULL) {
    json_object_set_new(object, key, value);
    return;
  }
  char *text = base64(bytes, n);
  snprintf(other_key, sizeof other_key, "%s_base64", key);
  json_object_set_new(object, other_key, text != NULL ? json_string(text) : json_null());
  free(text);
}

static void set_source(json_t *object, const struct np_source *source) {
  static const char *const families[] = {[0] = "unknown", [1] = "unix", [4] = "ipv4", [6] = "ipv6"};
  char address[INET6_ADDRSTRLEN];
  if (source == NULL) {
    npi_set_null(object, "source");
    return;
  }
  json_t *row = npi_add_object(object, "source");
  npi_set_text_n(row, "listener", source->listener_name, sizeof source->listener_name);
  const char *family = source->family < sizeof families / sizeof families[0] ? families[source->family] : NULL;
  npi_set_text(row, "family", family != NULL ? family : "unknown");
  address_text(address, source);
  if (address[0] != '\0') {
    npi_set_text(row, "address", address);
    npi_set_number(row, "port", source->port);
  } else {
    npi_set_null(row, "address");
    npi_set_null(row, "port");
  }
  npi_set_number(row, "connection", source->connection);
}

static void print_json(FILE *out, const char *channel, const struct np_event *event, const struct np_source *source) {
  json_t *object = npi_new_object();
  npi_set_text(object, "channel", channel);
  npi_set_number(object, "publisher", event->publisher);
  npi_set_number(object, "sequence", event->sequence);
  if (event->time_ns != 0) {
    npi_set_time(object, "time", event->time_ns);
  } else {
    npi_set_null(object, "time");
  }
  npi_set_number(object, "time_ns", event->time_ns);
  npi_set_number(object, "priority", event->priority);
  if (event->topic != NULL) {
    set_bytes(object, "topic", event->topic, event->topic_size);
  } else {
    npi_set_null(object, "topic");
  }
  set_source(object, source);
  json_t *flags = npi_add_array(object, "flags");
  if ((event->flags & NP_EVENT_TRUNCATED) != 0) json_array_append_new(flags, json_string("truncated"));
  if ((event->flags & NP_EVENT_REDELIVERED) != 0) json_array_append_new(flags, json_string("redelivered"));
  if ((event->flags & NP_EVENT_DEAD_LETTER) != 0) json_array_append_new(flags, json_string("dead_letter"));
  npi_set_number(object, "size", event->size);
  set_bytes(object, "payload", event->data, event->size);
  json_dumpf(object, out, JSON_COMPACT);
  fputc('\n', out);
  json_decref(object);
}

static void print_hex(FILE *out, const struct np_event *event, const struct np_source *source) {
  char text[INET6_ADDRSTRLEN], line[HEX_BYTES_A_LINE * 4 + 16];
  const uint8_t *bytes = event->data;
  npi_format_time(line, sizeof line, event->time_ns);
  fprintf(out, "# publisher=%u sequence=%" PRIu64 " time=%s priority=%s size=%zu", event->publisher, event->sequence,
          event->time_ns != 0 ? line : "-", event->priority < PRIORITIES ? priority_words[event->priority] : "?",
          event->size);
  if (event->topic != NULL) {
    fputs(" topic=", out);
    for (uint16_t i = 0; i < event->topic_size; i++) {
      unsigned char c = (unsigned char)event->topic[i];
      fputc(c > 0x20 && c < 0x7f ? c : '?', out);
    }
  }
  if (source != NULL) {
    address_text(text, source);
    fprintf(out, " listener=%.63s", source->listener_name);
    if (text[0] != '\0')
      fprintf(out, " from=%s%s%s:%u", source->family == 6 ? "[" : "", text, source->family == 6 ? "]" : "",
              source->port);
    if (source->connection != 0) fprintf(out, " connection=%" PRIu64, source->connection);
  }
  if ((event->flags & NP_EVENT_TRUNCATED) != 0) fputs(" truncated", out);
  if ((event->flags & NP_EVENT_REDELIVERED) != 0) fputs(" redelivered", out);
  if ((event->flags & NP_EVENT_DEAD_LETTER) != 0) fputs(" dead_letter", out);
  fputc('\n', out);
  for (size_t offset = 0; offset < event->size; offset += HEX_BYTES_A_LINE) {
    size_t n = event->size - offset < HEX_BYTES_A_LINE ? event->size - offset : HEX_BYTES_A_LINE;
    fprintf(out, "%08zx ", offset);
    for (size_t i = 0; i < HEX_BYTES_A_LINE; i++) {
      if (i == HEX_BYTES_A_LINE / 2) fputc(' ', out);
      if (i < n) {
        fprintf(out, " %02x", bytes[offset + i]);
      } else {
        fputs("   ", out);
      }
    }
    fputs("  |", out);
    for (size_t i = 0; i < n; i++) {
      uint8_t c = bytes[offset + i];
      fputc(c >= 0x20 && c < 0x7f ? c : '.', out);
    }
    fputs("|\n", out);
  }
}

void npi_tap_print(FILE *out, enum npi_tap_format format, const char *channel, const struct np_event *event,
                   const struct np_source *source) {
  switch (format) {
    case NPI_TAP_JSON: print_json(out, channel, event, source); break;
    case NPI_TAP_HEX: print_hex(out, event, source); break;
    case NPI_TAP_TEXT:
    case NPI_TAP_RAW:
      fwrite(event->data, 1, event->size, out);
      if (format == NPI_TAP_TEXT) fputc('\n', out);
      break;
  }
}
