/* SPDX-License-Identifier: Apache-2.0 */
/* How one scalar setting is read from its text, checked against its row, and written back. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/align.h"
#include "daemon/config_internal.h"

struct unit {
  const char *word;
  uint64_t factor;
};

static const struct unit byte_units[] = {{"TiB", UINT64_C(1) << 40},
                                         {"GiB", UINT64_C(1) << 30},
                                         {"MiB", UINT64_C(1) << 20},
                                         {"KiB", UINT64_C(1) << 10},
                                         {"B", 1}};
/* In milliseconds. */
static const struct unit time_units[] = {{"h", 3600000}, {"m", 60000}, {"s", 1000}, {"ms", 1}};

/* Digits only, at most 2^63: strtoull would take signs, blanks and other bases. Returns what follows, or NULL. */
static const char *read_number(const char *text, uint64_t *number) {
  const char *end = text;
  uint64_t value = 0;
  while (*end >= '0' && *end <= '9') {
    unsigned digit = (unsigned)(*end++ - '0');
    if (value > (UINT64_C(1) << 63) / 10 - 1) return NULL;
    value = value * 10 + digit;
  }
  if (end == text) return NULL;
  *number = value;
  return end;
}

static int scale(uint64_t *number, const char *word, const struct unit *units, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (strcmp(word, units[i].word) != 0) continue;
    return __builtin_mul_overflow(*number, units[i].factor, number);
  }
  return 1;
}

static void format_scaled(uint64_t number, const struct unit *units, size_t n, char *text, size_t size) {
  for (size_t i = 0; i < n; i++) {
    if (number != 0 && number % units[i].factor != 0) continue;
    if (number == 0 && i + 1 < n) continue;
    snprintf(text, size, "%" PRIu64 "%s", number / units[i].factor,
             units[i].factor == 1 && n == 5 ? "" : units[i].word);
    return;
  }
}

static void format_number(const struct npi_setting *setting, uint64_t number, char *text, size_t size) {
  if (setting->special_word != NULL && number == setting->special_value) {
    snprintf(text, size, "%s", setting->special_word);
  } else if (setting->type == NPI_SETTING_BYTES) {
    format_scaled(number, byte_units, NPI_ARRAY_COUNT(byte_units), text, size);
  } else if (setting->type == NPI_SETTING_DURATION) {
    format_scaled(number, time_units, NPI_ARRAY_COUNT(time_units), text, size);
  } else if (setting->type == NPI_SETTING_MODE) {
    snprintf(text, size, "%04" PRIo64, number);
  } else {
    snprintf(text, size, "%" PRIu64, number);
  }
}

static void store(const struct npi_setting *setting, void *base, uint64_t number) {
  char *field = (char *)base + setting->offset;
  if (setting->bytes == sizeof(uint64_t)) {
    memcpy(field, &number, sizeof number);
  } else {
    uint32_t narrow = (uint32_t)number;
    memcpy(field, &narrow, sizeof narrow);
  }
}

static uint64_t fetch(const struct npi_setting *setting, const void *base) {
  const char *field = (const char *)base + setting->offset;
  if (setting->bytes == sizeof(uint64_t)) {
    uint64_t number;
    memcpy(&number, field, sizeof number);
    return number;
  }
  uint32_t narrow;
  memcpy(&narrow, field, sizeof narrow);
  return narrow;
}

static int parse_choice(const struct npi_setting *setting, void *base, const char *text, char *problem, size_t size) {
  char words[256] = "";
  for (const struct npi_setting_choice *choice = setting->choices; choice->word != NULL; choice++) {
    if (strcmp(choice->word, text) == 0) {
      store(setting, base, choice->value);
      return 0;
    }
    size_t used = strlen(words);
    snprintf(words + used, sizeof words - used, "%s%s", used ? ", " : "", choice->word);
  }
  snprintf(problem, size, "\"%.60s\" is not known; use one of: %s", text, words);
  return 1;
}

static int parse_boolean(const struct npi_setting *setting, void *base, const char *text, char *problem, size_t size) {
  int yes = strcmp(text, "true") == 0 || strcmp(text, "yes") == 0 || strcmp(text, "on") == 0;
  int no = strcmp(text, "false") == 0 || strcmp(text, "no") == 0 || strcmp(text, "off") == 0;
  if (!yes && !no) {
    snprintf(problem, size, "\"%.60s\" is neither true nor false; write true or false", text);
    return 1;
  }
  store(setting, base, (uint64_t)yes);
  return 0;
}

static int parse_mode(const char *text, uint64_t *number) {
  char *end = NULL;
  if (text[0] < '0' || text[0] > '7' || strlen(text) > 6) return 1;
  *number = strtoull(text, &end, 8);
  return *end != '\0';
}

static int parse_number(const struct npi_setting *setting, void *base, const char *text, char *problem, size_t size) {
  uint64_t number = 0;
  const char *rest = setting->type == NPI_SETTING_MODE ? NULL : read_number(text, &number);
  int wrong = 1;
  const char *fix = "write a whole number such as 64";
  switch (setting->type) {
    case NPI_SETTING_BYTES:
      fix = "write bytes, or a whole number of KiB, MiB or GiB such as 64KiB";
      wrong = rest == NULL || (*rest != '\0' && scale(&number, rest, byte_units, NPI_ARRAY_COUNT(byte_units)));
      break;
    case NPI_SETTING_DURATION:
      fix = "write a whole number with its unit, ms, s, m or h, such as 60s";
      wrong =
          rest == NULL || (*rest == '\0' ? number != 0 : scale(&number, rest, time_units, NPI_ARRAY_COUNT(time_units)));
      break;
    case NPI_SETTING_MODE:
      fix = "write octal permission bits such as 0660";
      wrong = parse_mode(text, &number);
      break;
    default: wrong = rest == NULL || *rest != '\0'; break;
  }
  if (wrong) {
    snprintf(problem, size, "\"%.60s\" is not a %s; %s%s%s", text,
             setting->type == NPI_SETTING_BYTES      ? "size"
             : setting->type == NPI_SETTING_DURATION ? "duration"
             : setting->type == NPI_SETTING_MODE     ? "mode"
                                                     : "number",
             fix, setting->special_word ? ", or " : "", setting->special_word ? setting->special_word : "");
    return 1;
  }
  /* Zero in its own words: `idle_timeout: 0s` is `off`, wherever off is zero. */
  if (setting->special_word != NULL && setting->special_value == 0 && number == 0) {
    store(setting, base, 0);
    return 0;
  }
  if (number < setting->min || number > setting->max) {
    char least[32] = "", most[32] = "";
    format_number(setting, setting->min, least, sizeof least);
    format_number(setting, setting->max, most, sizeof most);
    snprintf(problem, size, "%.60s is out of range; use %s to %s%s%s", text, least, most,
             setting->special_word ? ", or " : "", setting->special_word ? setting->special_word : "");
    return 1;
  }
  store(setting, base, number);
  return 0;
}

int npi_setting_parse(const struct npi_setting *setting, void *base, const char *text, char *problem, size_t size) {
  if (setting->special_word != NULL && strcmp(text, setting->special_word) == 0) {
    store(setting, base, setting->special_value);
    return 0;
  }
  switch (setting->type) {
    case NPI_SETTING_TEXT: {
      size_t length = strlen(text);
      if (length == 0) {
        snprintf(problem, size, "has no value; give one, or leave the key out for the default");
        return 1;
      }
      if (length >= setting->bytes) {
        snprintf(problem, size, "\"%.40s...\" has %zu bytes; at most %u are possible", text, length,
                 setting->bytes - 1);
        return 1;
      }
      memset((char *)base + setting->offset, 0, setting->bytes);
      memcpy((char *)base + setting->offset, text, length);
      return 0;
    }
    case NPI_SETTING_BOOLEAN: return parse_boolean(setting, base, text, problem, size);
    case NPI_SETTING_CHOICE: return parse_choice(setting, base, text, problem, size);
    default: return parse_number(setting, base, text, problem, size);
  }
}

void npi_setting_format(const struct npi_setting *setting, const void *base, char *text, size_t size) {
  text[0] = '\0';
  switch (setting->type) {
    case NPI_SETTING_TEXT: {
      /* Single quotes: nothing is special in them but the quote itself, which is doubled. */
      const char *from = (const char *)base + setting->offset;
      size_t used = 0;
      if (size < 3) return;
      text[used++] = '\'';
      for (; *from != '\0' && used + 4 < size; from++) {
        if (*from == '\'') text[used++] = '\'';
        text[used++] = *from;
      }
      text[used++] = '\'';
      text[used] = '\0';
      return;
    }
    case NPI_SETTING_BOOLEAN: snprintf(text, size, "%s", fetch(setting, base) ? "true" : "false"); return;
    case NPI_SETTING_CHOICE: {
      uint64_t value = fetch(setting, base);
      for (const struct npi_setting_choice *choice = setting->choices; choice->word != NULL; choice++) {
        if (choice->value == value) snprintf(text, size, "%s", choice->word);
      }
      return;
    }
    default: format_number(setting, fetch(setting, base), text, size); return;
  }
}
