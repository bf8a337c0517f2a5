/* SPDX-License-Identifier: Apache-2.0 */
/* numapoolctl: looks at an instance from the outside, and puts events into it by hand. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "command.h"
#include "help.h"
#include "numapool/version.h"
#include "wire/locate.h"

struct option_row {
  const char *name;
  char letter; /* 0: none */
  int takes_value;
};

static const struct option_row option_rows[NPI_OPTIONS] = {
    [NPI_OPTION_INSTANCE] = {"instance", 'i', 1}, [NPI_OPTION_JSON] = {"json", 0, 0},
    [NPI_OPTION_HELP] = {"help", 'h', 0},         [NPI_OPTION_VERSION] = {"version", 'V', 0},
    [NPI_OPTION_COUNT] = {"count", 'n', 1},       [NPI_OPTION_TIMEOUT] = {"timeout", 't', 1},
    [NPI_OPTION_FORMAT] = {"format", 'f', 1},     [NPI_OPTION_CREDITS] = {"credits", 0, 1},
    [NPI_OPTION_TOPIC] = {"topic", 0, 1},         [NPI_OPTION_PRIORITY] = {"priority", 0, 1},
    [NPI_OPTION_LINGER] = {"linger", 0, 1},
};

#define BIT(option) (1U << (option))
#define EVERYWHERE  (BIT(NPI_OPTION_INSTANCE) | BIT(NPI_OPTION_JSON) | BIT(NPI_OPTION_HELP) | BIT(NPI_OPTION_VERSION))

struct verb {
  const char *name;
  int (*run)(const struct npi_command *command);
  const char *help;
  unsigned options;
  int has_argument;
};

static const struct verb verbs[] = {
    {"status", npi_cmd_status, npi_help_status, EVERYWHERE, 0},
    {"clients", npi_cmd_clients, npi_help_clients, EVERYWHERE, 0},
    {"channels", npi_cmd_channels, npi_help_channels, EVERYWHERE, 0},
    {"listeners", npi_cmd_listeners, npi_help_listeners, EVERYWHERE, 0},
    {"segments", npi_cmd_segments, npi_help_segments, EVERYWHERE, 0},
    {"fsck", npi_cmd_fsck, npi_help_fsck, EVERYWHERE, 0},
    {"audit", npi_cmd_audit, npi_help_audit, EVERYWHERE, 0},
    {"tap", npi_cmd_tap, npi_help_tap,
     EVERYWHERE | BIT(NPI_OPTION_COUNT) | BIT(NPI_OPTION_TIMEOUT) | BIT(NPI_OPTION_FORMAT) | BIT(NPI_OPTION_CREDITS),
     1},
    {"pub", npi_cmd_pub, npi_help_pub,
     EVERYWHERE | BIT(NPI_OPTION_TOPIC) | BIT(NPI_OPTION_PRIORITY) | BIT(NPI_OPTION_LINGER), 1},
};

/* ---- names that were meant --------------------------------------------------------------------------- */

/* How many letters have to be put in, left out, changed or swapped with a neighbour. */
static unsigned distance(const char *a, const char *b) {
  enum { MOST = 31 };
  unsigned row[3][MOST + 1];
  size_t n = strnlen(a, MOST), m = strnlen(b, MOST);
  for (size_t j = 0; j <= m; j++) row[0][j] = (unsigned)j;
  for (size_t i = 1; i <= n; i++) {
    unsigned *now = row[i % 3], *before = row[(i + 2) % 3], *two_before = row[(i + 1) % 3];
    now[0] = (unsigned)i;
    for (size_t j = 1; j <= m; j++) {
      unsigned best = before[j - 1] + (a[i - 1] != b[j - 1]);
      if (before[j] + 1 < best) best = before[j] + 1;
      if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && two_before[j - 2] + 1 < best) {
        best = two_before[j - 2] + 1;
      }
      now[j] = best;
    }
  }
  return row[n % 3][m];
}

static const struct verb *find_verb(const char *name) {
  for (size_t i = 0; i < NPI_ARRAY_COUNT(verbs); i++) {
    if (strcmp(verbs[i].name, name) == 0) return &verbs[i];
  }
  return NULL;
}

static int unknown_verb(const char *name) {
  const struct verb *nearest = NULL;
  unsigned best = 4;
  for (size_t i = 0; i < NPI_ARRAY_COUNT(verbs); i++) {
    unsigned d = distance(name, verbs[i].name);
    if (d < best && d < strlen(verbs[i].name)) {
      best = d;
      nearest = &verbs[i];
    }
  }
  if (nearest != NULL) {
    fprintf(stderr, "numapoolctl: unknown verb \"%s\"; did you mean %s?\n", name, nearest->name);
  } else {
    fprintf(stderr, "numapoolctl: unknown verb \"%s\"; see numapoolctl --help\n", name);
  }
  return NPI_EXIT_USAGE;
}

/* ---- the command line -------------------------------------------------------------------------------- */

static int find_option(const char *name, size_t length) {
  for (int i = 0; i < NPI_OPTIONS; i++) {
    if (strlen(option_rows[i].name) == length && memcmp(option_rows[i].name, name, length) == 0) return i;
  }
  return -1;
}

static int find_letter(char letter) {
  for (int i = 0; i < NPI_OPTIONS; i++) {
    if (option_rows[i].letter == letter) return i;
  }
  return -1;
}

static int usage(const struct verb *verb, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int usage(const struct verb *verb, const char *format, ...) {
  va_list arguments;
  fprintf(stderr, "numapoolctl%s%s: ", verb != NULL ? " " : "", verb != NULL ? verb->name : "");
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, "; see numapoolctl %s%s--help\n", verb != NULL ? verb->name : "", verb != NULL ? " " : "");
  return NPI_EXIT_USAGE;
}

/* One option with its value; *i moves on where the value is the next word. */
static int take_option(struct npi_command *command, const struct verb *verb, int argc, char **argv, int *i) {
  const char *word = argv[*i], *value = NULL;
  int option;
  if (word[1] == '-') {
    const char *equals = strchr(word, '=');
    option = find_option(word + 2, equals != NULL ? (size_t)(equals - word - 2) : strlen(word + 2));
    if (equals != NULL) value = equals + 1;
  } else {
    option = find_letter(word[1]);
    if (word[2] != '\0') value = word + 2;
  }
  if (option < 0) return usage(verb, "unknown option %s", word);
  unsigned allowed = verb != NULL ? verb->options : EVERYWHERE;
  if ((allowed & BIT(option)) == 0) {
    if (verb == NULL) return usage(verb, "--%s goes behind the verb that has it", option_rows[option].name);
    return usage(verb, "has no option --%s", option_rows[option].name);
  }
  if (!option_rows[option].takes_value) {
    if (value != NULL) return usage(verb, "--%s takes no value", option_rows[option].name);
    value = "";
  } else if (value == NULL) {
    if (*i + 1 >= argc) return usage(verb, "--%s needs a value", option_rows[option].name);
    value = argv[++*i];
  }
  command->value[option] = value;
  return 0;
}

int main(int argc, char **argv) {
  struct npi_command command = {.verb = ""};
  const struct verb *verb = NULL;
  int only_words = 0;
  for (int i = 1; i < argc; i++) {
    if (!only_words && strcmp(argv[i], "--") == 0) {
      only_words = 1;
    } else if (!only_words && argv[i][0] == '-' && argv[i][1] != '\0') {
      int status = take_option(&command, verb, argc, argv, &i);
      if (status != 0) return status;
    } else if (verb == NULL) {
      if (strcmp(argv[i], "help") == 0) {
        command.value[NPI_OPTION_HELP] = "";
        continue;
      }
      verb = find_verb(argv[i]);
      if (verb == NULL) return unknown_verb(argv[i]);
    } else if (verb->has_argument && command.argument == NULL) {
      command.argument = argv[i];
    } else {
      return usage(verb, "\"%s\" is one word too many", argv[i]);
    }
  }
  if (command.value[NPI_OPTION_HELP] != NULL) {
    fputs(verb != NULL ? verb->help : npi_help_program, stdout);
    return fflush(stdout) == 0 ? NPI_EXIT_OK : NPI_EXIT_NO;
  }
  if (command.value[NPI_OPTION_VERSION] != NULL) {
    printf("numapoolctl %s\n", NP_VERSION_STRING);
    return fflush(stdout) == 0 ? NPI_EXIT_OK : NPI_EXIT_NO;
  }
  if (verb == NULL) {
    fputs(npi_help_program, stderr);
    return NPI_EXIT_USAGE;
  }
  command.verb = verb->name;
  command.json = command.value[NPI_OPTION_JSON] != NULL;
  command.instance = npi_locate_instance(command.value[NPI_OPTION_INSTANCE]);
  if (command.value[NPI_OPTION_INSTANCE] != NULL && command.value[NPI_OPTION_INSTANCE][0] == '\0') {
    return usage(verb, "--instance needs a name");
  }
  if (verb->has_argument && (command.argument == NULL || command.argument[0] == '\0')) {
    return usage(verb, "needs the name of a channel");
  }
  int status = verb->run(&command);
  if (fflush(stdout) != 0 && status == NPI_EXIT_OK && strcmp(verb->name, "tap") != 0) {
    return npi_complain(&command, NPI_EXIT_NO, "cannot write to standard output");
  }
  return status;
}
