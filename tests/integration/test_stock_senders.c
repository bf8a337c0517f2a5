/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Programs that nobody wrote for this: logger, rsyslogd, socat, nc. Each sends through a relay of this test, which
 * notes the bytes on their way, so that what subscribers get can be compared with what the program really sent.
 * logger also sends to the listener directly. A program that is not installed is skipped, and named.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/support/feed.h"
#include "tests/support/instance.h"
#include "tests/support/peers.h"

TestSuite(stock_senders, .timeout = 120);

enum { MESSAGES = 200 };

#define CONFIG                                                                                                    \
  "memory: { per_node: 64MiB, ready: 4MiB }\n"                                                                    \
  "channels:\n  - { name: syslog, kind: broadcast, credits: 4096, on_full: block }\n"                             \
  "listeners:\n"                                                                                                  \
  "  - { name: udp, proto: udp, address: \"127.0.0.1:0\", channel: syslog }\n"                                    \
  "  - { name: tcp, proto: tcp, address: \"127.0.0.1:0\", framing: syslog, channel: syslog, max_frame: 64KiB }\n" \
  "  - { name: lines, proto: tcp, address: \"127.0.0.1:0\", framing: newline, channel: syslog }\n"                \
  "  - { name: local, proto: unix, path: \"${runtime}/ingest.sock\", framing: newline, channel: syslog }\n"

struct bench {
  struct instance instance;
  struct np_client *client;
  struct np_subscriber *subscriber;
};

static void begin(struct bench *bench) {
  instance_start(&bench->instance, CONFIG, NULL);
  cr_assert_eq(np_connect(&bench->client, NULL), NP_OK, "%s", np_error_detail());
  cr_assert_eq(np_subscriber_open(bench->client, "syslog", NULL, &bench->subscriber), NP_OK);
}

static void end(struct bench *bench) {
  np_disconnect(bench->client);
  instance_stop(&bench->instance);
}

static int have(const char *program) {
  char command[128];
  snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", program);
  if (system(command) == 0) return 1;
  snprintf(command, sizeof command, "test -x /usr/sbin/%s", program);
  return system(command) == 0;
}

#define NEEDS(program)                                                \
  do {                                                                \
    if (!have(program)) cr_skip_test("%s is not installed", program); \
  } while (0)

/* ---- the relay --------------------------------------------------------------------------------------- */

struct relay {
  int listening; /* or the datagram socket */
  int is_stream;
  uint16_t port;
  uint16_t to;
  pthread_t thread;
  _Atomic int stop;
  _Atomic size_t n;       /* bytes noted */
  _Atomic size_t packets; /* datagrams noted */
  _Atomic int ends;       /* connections of the sender that are over */
  uint8_t bytes[1 << 20];
  uint32_t packet_end[2048];
};

static void note(struct relay *relay, const uint8_t *bytes, size_t n) {
  if (relay->n + n > sizeof relay->bytes || relay->packets >= 2048) abort();
  memcpy(relay->bytes + relay->n, bytes, n);
  relay->n += n;
  relay->packet_end[relay->packets] = (uint32_t)relay->n;
  relay->packets++;
}

static void *run_relay(void *argument) {
  struct relay *relay = argument;
  static _Thread_local uint8_t buffer[65536];
  int out = relay->is_stream ? -1 : feed_connect("127.0.0.1", relay->to, SOCK_DGRAM);
  int in = relay->is_stream ? -1 : relay->listening;
  while (!relay->stop) {
    struct pollfd look = {.fd = in >= 0 ? in : relay->listening, .events = POLLIN};
    if (poll(&look, 1, 20) <= 0) continue;
    if (in < 0) { /* connections one after another */
      in = accept4(relay->listening, NULL, NULL, SOCK_CLOEXEC);
      out = feed_connect("127.0.0.1", relay->to, SOCK_STREAM);
      continue;
    }
    ssize_t n = recv(in, buffer, sizeof buffer, 0);
    if (n > 0) {
      /* Streams count as one run of bytes: where reads end means nothing. */
      note(relay, buffer, (size_t)n);
      if (relay->is_stream) relay->packets = 0;
      if (feed_write(out, buffer, (size_t)n) != 0) break;
    } else if (relay->is_stream) {
      close(in);
      close(out);
      in = out = -1;
      relay->ends++;
    }
  }
  if (relay->is_stream && in >= 0) close(in);
  if (out >= 0) close(out);
  return NULL;
}

static struct relay *relay_to(uint16_t to, int type) {
  struct relay *relay = calloc(1, sizeof *relay);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  relay->is_stream = type == SOCK_STREAM;
  relay->to = to;
  relay->listening = socket(AF_INET, type | SOCK_CLOEXEC, 0);
  cr_assert_eq(bind(relay->listening, (const struct sockaddr *)&address, sizeof address), 0);
  if (relay->is_stream) cr_assert_eq(listen(relay->listening, 16), 0);
  cr_assert_eq(getsockname(relay->listening, (struct sockaddr *)&address, &length), 0);
  relay->port = ntohs(address.sin_port);
  cr_assert_eq(pthread_create(&relay->thread, NULL, run_relay, relay), 0);
  return relay;
}

static void relay_end(struct relay *relay) {
  relay->stop = 1;
  pthread_join(relay->thread, NULL);
  close(relay->listening);
  free(relay);
}

/* ---- comparing --------------------------------------------------------------------------------------- */

/* The next event; 0 when none came within 20 s. Copied, and given back. */
static size_t next_event(struct bench *bench, char *text, size_t room) {
  struct np_event event;
  cr_assert_eq(np_wait(bench->subscriber, 20000), NP_OK, "no event within 20 s");
  cr_assert_eq(np_take(bench->subscriber, &event), NP_OK);
  cr_assert_lt(event.size, room);
  memcpy(text, event.data, event.size);
  text[event.size] = '\0';
  size_t size = event.size;
  cr_assert_eq(np_release(bench->subscriber, &event), NP_OK);
  return size;
}

static void expect_nothing(struct bench *bench) {
  struct np_event event;
  cr_assert_eq(np_take(bench->subscriber, &event), NP_EMPTY);
}

/* The next frame of a noted stream, by the rules of RFC 6587: "LENGTH SP frame" or "frame LF". 0: none left. */
static size_t next_frame(const struct relay *relay, size_t *at, int octets, const uint8_t **frame) {
  size_t n = 0;
  if (*at >= relay->n) return 0;
  if (octets) {
    size_t digits = *at;
    for (; relay->bytes[digits] != ' '; digits++) n = n * 10 + (size_t)(relay->bytes[digits] - '0');
    *frame = relay->bytes + digits + 1;
    *at = digits + 1 + n;
  } else {
    const uint8_t *begin = relay->bytes + *at;
    const uint8_t *line_end = memchr(begin, '\n', relay->n - *at);
    cr_assert_not_null(line_end, "the program's last line has no LF");
    n = (size_t)(line_end - begin);
    *frame = begin;
    *at += n + 1;
  }
  return n;
}

/* n events come, each byte for byte what went through the relay, and each holds its text. */
static void expect_as_sent(struct bench *bench, const struct relay *relay, int octets, int n,
                           const char *const *texts) {
  static char event[65536];
  size_t at = 0;
  for (int i = 0; i < n; i++) {
    size_t size = next_event(bench, event, sizeof event);
    const uint8_t *frame = NULL;
    size_t length;
    if (relay->is_stream) {
      length = next_frame(relay, &at, octets, &frame);
    } else {
      length = relay->packet_end[i] - (i == 0 ? 0 : relay->packet_end[i - 1]);
      frame = relay->bytes + (i == 0 ? 0 : relay->packet_end[i - 1]);
    }
    cr_assert_eq(size, length, "event %d has %zu bytes, %zu were sent: %s", i, size, length, event);
    cr_assert_eq(memcmp(event, frame, size), 0, "event %d: %s", i, event);
    cr_assert_not_null(strstr(event, texts[i]), "event %d does not hold \"%s\": %s", i, texts[i], event);
  }
  if (relay->is_stream) cr_assert_eq(at, relay->n, "the program sent more than %d messages", n);
  expect_nothing(bench);
}

static const char *const texts[] = {
    "a plain message",
    "bytes \x01\x7f \xc3\xa9 \xe2\x82\xac kept",
    "12 34 56",
    "<13>a look-alike",
    "trailing space ",
    "  leading spaces",
    "1",
    "a longer message: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
};
enum { TEXTS = sizeof texts / sizeof texts[0] };

static void run(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void run(const char *format, ...) {
  char command[2048];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(command, sizeof command, format, arguments);
  va_end(arguments);
  int status = system(command);
  cr_assert_eq(status, 0, "%s: status %#x", command, status);
}

/* ---- logger ------------------------------------------------------------------------------------------ */

static void by_logger(const char *options, int type, int octets) {
  NEEDS("logger");
  struct bench bench;
  begin(&bench);
  struct relay *relay = relay_to(instance_port(&bench.instance, type == SOCK_STREAM ? "tcp" : "udp"), type);
  static const char *const shapes[] = {"--rfc3164", "--rfc5424"};
  const char *sent[2 * TEXTS];
  int n = 0;
  for (int shape = 0; shape < 2; shape++) {
    for (int i = 0; i < TEXTS; i++) {
      run("logger -n 127.0.0.1 -P %u %s %s -t tag -p user.notice -- '%s'", relay->port, options, shapes[shape],
          texts[i]);
      sent[n++] = texts[i];
    }
  }
  expect_as_sent(&bench, relay, octets, n, sent);
  relay_end(relay);
  /* Directly, without a relay: the whole message but for its time. */
  for (int i = 0; i < TEXTS; i++) {
    char event[4096];
    char tail[512];
    run("logger -n 127.0.0.1 -P %u %s --rfc3164 -t tag -p user.notice -- '%s'",
        instance_port(&bench.instance, type == SOCK_STREAM ? "tcp" : "udp"), options, texts[i]);
    size_t size = next_event(&bench, event, sizeof event);
    int length = snprintf(tail, sizeof tail, " tag: %s", texts[i]);
    cr_assert_gt(size, (size_t)length);
    cr_assert_eq(strncmp(event, "<13>", 4), 0, "%s", event);
    cr_assert_str_eq(event + size - length, tail, "%s", event);
  }
  expect_nothing(&bench);
  end(&bench);
}

Test(stock_senders, logger_over_udp) {
  /* Proves: one datagram of util-linux logger is one event, byte for byte, in both syslog shapes. */
  by_logger("--udp", SOCK_DGRAM, 0);
}

Test(stock_senders, logger_over_tcp) {
  /* Proves: newline framing as logger writes it. */
  by_logger("--tcp", SOCK_STREAM, 0);
}

Test(stock_senders, logger_over_tcp_with_octet_count) {
  /* Proves: octet counting as logger writes it. */
  by_logger("--tcp --octet-count", SOCK_STREAM, 1);
}

/* ---- rsyslogd ---------------------------------------------------------------------------------------- */

static void by_rsyslogd(const char *framing, int octets) {
  NEEDS("rsyslogd");
  NEEDS("logger");
  struct bench bench;
  begin(&bench);
  struct relay *relay = relay_to(instance_port(&bench.instance, "tcp"), SOCK_STREAM);
  char path[128];
  char folder[96];
  snprintf(folder, sizeof folder, "%s/rsyslog", bench.instance.folder);
  snprintf(path, sizeof path, "%s.conf", folder);
  run("mkdir -p %s/work", folder);
  FILE *file = fopen(path, "we");
  cr_assert_not_null(file);
  fprintf(file,
          "global(workDirectory=\"%s/work\")\n"
          "module(load=\"imuxsock\" SysSock.Use=\"off\")\n"
          "input(type=\"imuxsock\" Socket=\"%s/log\" RateLimit.Interval=\"0\")\n"
          "action(type=\"omfwd\" Target=\"127.0.0.1\" Port=\"%u\" Protocol=\"tcp\" TCP_Framing=\"%s\"\n"
          "       template=\"RSYSLOG_SyslogProtocol23Format\")\n",
          folder, folder, relay->port, framing);
  cr_assert_eq(fclose(file), 0);
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    char pid_file[128];
    snprintf(pid_file, sizeof pid_file, "%s/pid", folder);
    int log = open("/dev/null", O_RDWR);
    dup2(log, STDOUT_FILENO);
    execlp("rsyslogd", "rsyslogd", "-n", "-f", path, "-i", pid_file, (char *)NULL);
    execl("/usr/sbin/rsyslogd", "rsyslogd", "-n", "-f", path, "-i", pid_file, (char *)NULL);
    _exit(79);
  }
  char socket_path[128];
  snprintf(socket_path, sizeof socket_path, "%s/log", folder);
  EVENTUALLY(30, access(socket_path, W_OK) == 0);
  const char *sent[TEXTS + MESSAGES];
  char *numbered = calloc(MESSAGES, 32);
  int n = 0;
  for (; n < TEXTS; n++) {
    run("logger -u %s -t tag -- '%s'", socket_path, texts[n]);
    sent[n] = texts[n][0] == '<' || strchr(texts[n], '\x01') != NULL ? "tag" : texts[n]; /* rsyslog escapes controls */
  }
  char list[128];
  snprintf(list, sizeof list, "%s/list", folder);
  file = fopen(list, "we");
  for (int i = 0; i < MESSAGES; i++, n++) {
    snprintf(numbered + i * 32, 32, "numbered message %d", i);
    fprintf(file, "%s\n", numbered + i * 32);
    sent[n] = numbered + i * 32;
  }
  cr_assert_eq(fclose(file), 0);
  run("logger -u %s -t tag -f %s", socket_path, list);
  /* rsyslogd says hello itself, where it does: only what carries the tag is compared in order. */
  static char event[65536];
  size_t at = 0;
  for (int i = 0; i < n;) {
    size_t size = next_event(&bench, event, sizeof event);
    const uint8_t *frame = NULL;
    size_t length = next_frame(relay, &at, octets, &frame);
    cr_assert_eq(size, length, "%zu bytes, %zu were sent: %s", size, length, event);
    cr_assert_eq(memcmp(event, frame, size), 0, "%s", event);
    if (strstr(event, " tag ") == NULL) continue;
    cr_assert_not_null(strstr(event, sent[i]), "not \"%s\": %s", sent[i], event);
    i++;
  }
  kill(pid, SIGTERM);
  cr_assert_geq(reap(pid, 30), 0);
  EVENTUALLY(20, relay->ends > 0); /* and so all of it is noted */
  while (at < relay->n) {          /* its farewell */
    const uint8_t *frame = NULL;
    size_t length = next_frame(relay, &at, octets, &frame);
    size_t size = next_event(&bench, event, sizeof event);
    cr_assert_eq(size, length);
    cr_assert_eq(memcmp(event, frame, size), 0);
  }
  expect_nothing(&bench);
  free(numbered);
  relay_end(relay);
  end(&bench);
}

Test(stock_senders, rsyslogd_forwarding_octet_counted) {
  /* Proves: omfwd with TCP_Framing="octet-counted" from a private rsyslogd, byte for byte. */
  by_rsyslogd("octet-counted", 1);
}

Test(stock_senders, rsyslogd_forwarding_traditional) {
  /* Proves: omfwd with TCP_Framing="traditional", byte for byte. */
  by_rsyslogd("traditional", 0);
}

/* ---- lines ------------------------------------------------------------------------------------------- */

/* The command reads file `list` and sends it; events are its lines. */
static void by_lines(struct bench *bench, const char *command_format, const char *target) {
  char list[128];
  char command[1024];
  snprintf(list, sizeof list, "%s/list", bench->instance.folder);
  FILE *file = fopen(list, "we");
  cr_assert_not_null(file);
  for (int i = 0; i < MESSAGES; i++) fprintf(file, "line %d %s\n", i, texts[i % TEXTS]);
  cr_assert_eq(fclose(file), 0);
  snprintf(command, sizeof command, command_format, target, list);
  run("%s", command);
  for (int i = 0; i < MESSAGES; i++) {
    char event[4096];
    char expected[512];
    size_t size = next_event(bench, event, sizeof event);
    int length = snprintf(expected, sizeof expected, "line %d %s", i, texts[i % TEXTS]);
    cr_assert_eq(size, (size_t)length);
    cr_assert_eq(memcmp(event, expected, size), 0, "%s", event);
  }
  expect_nothing(bench);
}

Test(stock_senders, socat_sends_lines_over_tcp_and_a_unix_socket) {
  /* Proves: a file through socat arrives line for line, over both kinds of stream. */
  NEEDS("socat");
  struct bench bench;
  char target[256];
  begin(&bench);
  snprintf(target, sizeof target, "TCP:127.0.0.1:%u", instance_port(&bench.instance, "lines"));
  by_lines(&bench, "socat -u STDIN '%s' <'%s'", target);
  snprintf(target, sizeof target, "UNIX-CONNECT:%s/ingest.sock", bench.instance.runtime);
  by_lines(&bench, "socat -u STDIN '%s' <'%s'", target);
  snprintf(target, sizeof target, "TCP:127.0.0.1:%u", instance_port(&bench.instance, "tcp"));
  by_lines(&bench, "socat -u STDIN '%s' <'%s'", target);
  end(&bench);
}

Test(stock_senders, nc_sends_lines_over_tcp) {
  /* Proves: a file through nc arrives line for line. */
  NEEDS("nc");
  struct bench bench;
  char target[64];
  begin(&bench);
  snprintf(target, sizeof target, "127.0.0.1 %u", instance_port(&bench.instance, "lines"));
  by_lines(&bench, "nc -q 1 %s <'%s'", target);
  end(&bench);
}
