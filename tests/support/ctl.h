/* SPDX-License-Identifier: Apache-2.0 */
/* Runs numapoolctl as an operator does, and reads what it prints. One test, one broker; the including file has the tests. */
#ifndef NUMAPOOL_TESTS_CTL_H
#define NUMAPOOL_TESTS_CTL_H

#include <criterion/criterion.h>
#include <jansson.h>
#include <numapool/numapool.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/broker_fixture.h"
#include "support/ok.h"

static const char *const verbs[] = {"status", "clients", "channels", "listeners", "segments", "fsck", "tap", "pub"};
enum { LOOKING_VERBS = 6, VERBS = 8 };

static const char settings[] =
    "memory: { per_node: 64MiB, ready: 4MiB }\n"
    "channels:\n"
    "  - { name: news, kind: broadcast, credits: 64, on_full: drop_newest }\n"
    "  - { name: strict, kind: broadcast, credits: 16, on_full: block }\n"
    "  - { name: work, kind: group, credits: 64, on_full: block }\n"
    "listeners:\n"
    "  - { name: udp-in, proto: udp, address: \"127.0.0.1:0\", framing: datagram, channel: news }\n";

static struct npi_test_broker broker;

/* ---- running it -------------------------------------------------------------------------------------- */

struct result {
  int status;
  char *out; /* with a NUL behind it */
  size_t n;
  char *err;
};

static inline char *read_all(const char *path, size_t *n) {
  FILE *file = fopen(path, "r");
  cr_assert_not_null(file, "%s", path);
  size_t room = 1 << 16, used = 0;
  char *text = malloc(room);
  for (;;) {
    used += fread(text + used, 1, room - used - 1, file);
    if (used + 1 < room) break;
    text = realloc(text, room *= 2);
  }
  text[used] = '\0';
  fclose(file);
  if (n != NULL) *n = used;
  return text;
}

/* A shell command in which $ctl is the program and $T a folder of the test. */
static inline struct result shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline struct result shell(const char *format, ...) {
  static char folder[64];
  char command[4096], path[128];
  struct result result;
  va_list arguments;
  if (folder[0] == '\0') {
    snprintf(folder, sizeof folder, "/tmp/numapoolctl-test-%ld", (long)getpid());
    mkdir(folder, 0700);
    setenv("T", folder, 1);
    setenv("ctl", NUMAPOOLCTL_PATH, 1);
  }
  int used = snprintf(command, sizeof command, "exec > $T/out 2> $T/err; ");
  va_start(arguments, format);
  vsnprintf(command + used, sizeof command - (size_t)used, format, arguments);
  va_end(arguments);
  fflush(NULL);
  int how = system(command);
  result.status = WIFEXITED(how) ? WEXITSTATUS(how) : 1000 + WTERMSIG(how);
  snprintf(path, sizeof path, "%s/out", folder);
  result.out = read_all(path, &result.n);
  snprintf(path, sizeof path, "%s/err", folder);
  result.err = read_all(path, NULL);
  return result;
}

static inline void end_tests(void) {
  if (getenv("T") != NULL) {
    int how = system("rm -rf \"$T\"");
    cr_assert_eq(how, 0);
  }
}

static inline void done(struct result *result) {
  free(result->out);
  free(result->err);
}

#define EXPECT_STATUS(result, expected)                                                                                \
  cr_assert_eq((result).status, expected, "exit status %d\nout: %.2000s\nerr: %.2000s", (result).status, (result).out, \
               (result).err)
#define EXPECT_IN(text, part) cr_assert_not_null(strstr(text, part), "no \"%s\" in: %.2000s", part, text)

/* The verb with --json: a document that a JSON parser takes. */
static inline json_t *json_of(const char *verb, int expected) {
  json_error_t error;
  struct result result = shell("$ctl --json %s", verb);
  EXPECT_STATUS(result, expected);
  json_t *document = json_loads(result.out, JSON_REJECT_DUPLICATES, &error);
  cr_assert_not_null(document, "%s: %s in %s", verb, error.text, result.out);
  done(&result);
  return document;
}

static inline json_t *row_named(json_t *rows, const char *name) {
  size_t i;
  json_t *row;
  json_array_foreach(rows, i, row) {
    if (strcmp(json_string_value(json_object_get(row, "name")), name) == 0) return row;
  }
  cr_assert_fail("no row %s", name);
  return NULL;
}

static inline long long number(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  cr_assert(json_is_integer(value), "%s is not a number", key);
  return json_integer_value(value);
}

/* ---- a broker, and clients in this process ------------------------------------------------------------ */

static inline void start_with(const char *yaml) {
  npi_test_broker_start(&broker, yaml);
  setenv("NUMAPOOL_INSTANCE", broker.instance, 1);
  setenv("NUMAPOOL_SOCKET", broker.socket_path, 1);
}

static inline void start(void) {
  start_with(settings);
}

static inline void stop(void) {
  npi_test_broker_stop(&broker);
  end_tests();
}

static inline void stop_killed(void) {
  char command[128];
  npi_test_broker_kill(&broker);
  snprintf(command, sizeof command, "rm -f /dev/shm/numapool.%s.*", broker.instance);
  cr_assert_eq(system(command), 0);
  npi_test_broker_clean(&broker);
  end_tests();
}

static inline struct np_client *connect_as(const char *name) {
  struct np_client *client = NULL;
  struct np_options options;
  np_options_init(&options);
  options.name = name;
  OK(np_connect(&client, &options));
  return client;
}

static inline void publish(struct np_publisher *publisher, const void *bytes, size_t n) {
  struct np_event event;
  OK(np_loan(publisher, n, &event));
  memcpy(event.data, bytes, n);
  OK(np_publish(publisher, &event));
}

/* Until a channel has so many subscribers. */
static inline void wait_for_subscribers(const char *channel, long long n) {
  for (int i = 0; i < 500; i++) {
    json_t *document = json_of("channels", 0);
    size_t at;
    json_t *row;
    long long there = 0;
    json_array_foreach(json_object_get(document, "channels"), at, row) {
      if (strcmp(json_string_value(json_object_get(row, "name")), channel) == 0) there = number(row, "subscribers");
    }
    json_decref(document);
    if (there == n) return;
    usleep(10000);
  }
  cr_assert_fail("channel %s never had %lld subscribers", channel, n);
}

static inline int listener_port(void) {
  json_t *document = json_of("listeners", 0);
  int port = (int)number(row_named(json_object_get(document, "listeners"), "udp-in"), "port");
  json_decref(document);
  return port;
}

#endif
