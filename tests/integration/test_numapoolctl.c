/* SPDX-License-Identifier: Apache-2.0 */
/*
 * numapoolctl as an operator runs it: the real program against a real broker, judged by what it prints and by
 * its exit status. Here: the command line, what it shows, and brokers that do not answer.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>

#include "support/ctl.h"
#include "support/process.h"

TestSuite(numapoolctl, .timeout = 120);

/* ---- the command line -------------------------------------------------------------------------------- */

Test(numapoolctl, help_of_every_verb_has_examples) {
  for (int i = 0; i < VERBS; i++) {
    struct result result = shell("$ctl %s --help", verbs[i]);
    EXPECT_STATUS(result, 0);
    EXPECT_IN(result.out, "Examples:");
    EXPECT_IN(result.out, "Usage: numapoolctl");
    EXPECT_IN(result.out, verbs[i]);
    cr_assert_str_empty(result.err);
    done(&result);
  }
  struct result result = shell("$ctl --help");
  EXPECT_STATUS(result, 0);
  for (int i = 0; i < VERBS; i++) EXPECT_IN(result.out, verbs[i]);
  done(&result);
  result = shell("$ctl --version");
  EXPECT_STATUS(result, 0);
  EXPECT_IN(result.out, NP_VERSION_STRING);
  done(&result);
  end_tests();
}

Test(numapoolctl, usage_errors_are_status_2_and_say_what) {
  static const struct {
    const char *arguments, *says;
  } wrong[] = {
      {"", "Usage:"},
      {"statsu", "did you mean status?"},
      {"chanels", "did you mean channels?"},
      {"frobnicate", "unknown verb"},
      {"status --bogus", "unknown option --bogus"},
      {"status extra", "one word too many"},
      {"status --count 3", "has no option --count"},
      {"--count 3 tap news", "goes behind the verb"},
      {"--instance", "needs a value"},
      {"status --json=1", "takes no value"},
      {"tap", "needs the name of a channel"},
      {"pub", "needs the name of a channel"},
      {"tap news --count 0", "is not a number from 1"},
      {"tap news --count 3x", "is not a number"},
      {"tap news --count -1", "is not a number"},
      {"tap news --timeout soon", "is not a number of seconds"},
      {"tap news --format xml", "none of text, json, raw, hex"},
      {"tap news --json --format raw", "not possible together"},
      {"pub news --priority 5", "is not a number from 0 to 4"},
      {"status --instance a/b", "cannot name an instance"},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    struct result result = shell("$ctl %s", wrong[i].arguments);
    cr_assert_eq(result.status, 2, "%s: exit status %d, %s", wrong[i].arguments, result.status, result.err);
    EXPECT_IN(result.err, wrong[i].says);
    cr_assert_str_empty(result.out);
    done(&result);
  }
  end_tests();
}

Test(numapoolctl, no_such_instance_is_status_3_and_lists_those_there_are) {
  start();
  for (int i = 0; i < LOOKING_VERBS; i++) {
    struct result result = shell("$ctl %s --instance no-such", verbs[i]);
    EXPECT_STATUS(result, 3);
    EXPECT_IN(result.err, "no-such");
    EXPECT_IN(result.err, broker.instance);
    done(&result);
  }
  struct result result = shell("NUMAPOOL_SOCKET= XDG_RUNTIME_DIR=$T $ctl tap news --instance no-such");
  EXPECT_STATUS(result, 3);
  EXPECT_IN(result.err, "no broker at");
  done(&result);
  stop();
}

Test(numapoolctl, instance_may_stand_before_or_behind_the_verb) {
  start();
  unsetenv("NUMAPOOL_INSTANCE");
  for (int i = 0; i < LOOKING_VERBS; i++) {
    struct result before = shell("$ctl --instance %s %s", broker.instance, verbs[i]);
    EXPECT_STATUS(before, 0);
    struct result behind = shell("$ctl %s -i %s", verbs[i], broker.instance);
    EXPECT_STATUS(behind, 0);
    cr_assert_gt(behind.n, 0);
    done(&before);
    done(&behind);
  }
  stop();
}

/* ---- what it shows ----------------------------------------------------------------------------------- */

static void send_datagram(int port, const char *text) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  cr_assert_eq(sendto(fd, text, strlen(text), 0, (const struct sockaddr *)&to, sizeof to), (ssize_t)strlen(text));
  close(fd);
}

/* A writer with 3 events out at a reader: 1 released, 1 held, 1 not yet taken, and one that nobody was there for. */
static void show_all(const char *backend) {
  struct np_publisher *publisher, *lonely;
  struct np_subscriber *subscriber;
  struct np_subscriber_options options;
  struct np_event first, second;
  struct np_client *writer = connect_as("writer"), *reader = connect_as("reader");
  np_subscriber_options_init(&options);
  options.name = "desk";
  OK(np_subscriber_open(reader, "news", &options, &subscriber));
  OK(np_publisher_open(writer, "news", NULL, &publisher));
  OK(np_publisher_open(writer, "nobody-listens", NULL, &lonely));
  for (int i = 0; i < 3; i++) publish(publisher, "abc", 3);
  publish(lonely, "x", 1);
  OK(np_take(subscriber, &first));
  OK(np_take(subscriber, &second));
  OK(np_release(subscriber, &first));

  json_t *document = json_of("clients", 0);
  json_t *row = row_named(json_object_get(document, "clients"), "writer");
  cr_assert_eq(number(row, "pid"), getpid());
  cr_assert_eq(number(row, "publishers"), 2);
  cr_assert_eq(number(row, "outstanding"), 3);
  cr_assert_geq(number(row, "leased_bytes"), 2 << 20);
  cr_assert_str_eq(json_string_value(json_object_get(row, "process")), "running");
  row = row_named(json_object_get(document, "clients"), "reader");
  cr_assert_eq(number(row, "subscribers"), 1);
  cr_assert_eq(number(row, "held"), 1);
  cr_assert_eq(number(row, "waiting"), 1);
  json_decref(document);

  document = json_of("channels", 0);
  row = row_named(json_object_get(document, "channels"), "news");
  cr_assert_eq(number(row, "published"), 3);
  cr_assert_eq(number(row, "delivered"), 3);
  cr_assert_str_eq(json_string_value(json_object_get(row, "kind")), "broadcast");
  json_t *desk = row_named(json_object_get(row, "subscriber_list"), "desk");
  cr_assert_eq(number(desk, "taken"), 2);
  cr_assert_eq(number(desk, "outstanding"), 3);
  cr_assert_eq(number(desk, "missed"), 0);
  row = row_named(json_object_get(document, "channels"), "nobody-listens");
  cr_assert_eq(number(json_object_get(row, "dropped"), "no_subscriber"), 1);
  json_decref(document);

  document = json_of("segments", 0);
  size_t i;
  int leased = 0;
  json_array_foreach(json_object_get(document, "segments"), i, row) {
    if (strcmp(json_string_value(json_object_get(row, "state")), "leased") != 0) continue;
    cr_assert_str_eq(json_string_value(json_object_get(row, "owner")), "writer");
    cr_assert_str_eq(json_string_value(json_object_get(row, "backend")), backend);
    long long pages = number(json_object_get(row, "pages"), "home") + number(json_object_get(row, "pages"), "away") +
                      number(json_object_get(row, "pages"), "unknown");
    cr_assert_eq(pages * number(row, "page_bytes"), number(row, "bytes"));
    leased++;
  }
  cr_assert_geq(leased, 1);
  cr_assert_eq(json_array_size(json_object_get(document, "orphans")), 0);
  json_decref(document);

  document = json_of("status", 0);
  cr_assert_str_eq(json_string_value(json_object_get(document, "state")), "ready");
  cr_assert_str_eq(json_string_value(json_object_get(document, "backend")), backend);
  cr_assert_eq(number(document, "pid"), broker.pid);
  /* One is the ingest worker's, which publishes there, too. */
  cr_assert_eq(number(json_object_get(document, "totals"), "connections"), 2);
  cr_assert_eq(number(json_object_get(document, "events"), "published"), 4);
  cr_assert_eq(number(json_object_get(document, "events"), "dropped"), 1);
  cr_assert_eq(json_array_size(json_object_get(document, "listeners")), 1);
  cr_assert_geq(number(json_object_get(document, "counters"), "connects"), 2);
  json_decref(document);

  json_t *clean = json_of("fsck", 0);
  cr_assert(json_is_true(json_object_get(clean, "clean")));
  json_decref(clean);

  /* The same in words. */
  struct result result = shell("$ctl clients");
  EXPECT_STATUS(result, 0);
  EXPECT_IN(result.out, "writer");
  done(&result);
  result = shell("$ctl channels");
  EXPECT_IN(result.out, "subscribers of news");
  EXPECT_IN(result.out, "desk");
  done(&result);
  result = shell("$ctl status");
  EXPECT_IN(result.out, "ready");
  done(&result);
  OK(np_release(subscriber, &second));
  np_disconnect(writer);
  np_disconnect(reader);
}

Test(numapoolctl, shows_what_clients_hold) {
  start();
  show_all("posix");
  stop();
}

Test(numapoolctl, shows_what_clients_hold_without_named_segments) {
  start_with(
      "memory: { per_node: 64MiB, ready: 4MiB, backend: memfd }\n"
      "channels: [ { name: news, kind: broadcast, credits: 64, on_full: drop_newest } ]\n"
      "listeners:\n"
      "  - { name: udp-in, proto: udp, address: \"127.0.0.1:0\", framing: datagram, channel: news }\n");
  show_all("memfd");
  stop();
}

Test(numapoolctl, what_a_channel_counted_stays_when_its_publisher_leaves) {
  struct np_publisher *publisher;
  start();
  struct np_client *writer = connect_as("writer");
  OK(np_publisher_open(writer, "news", NULL, &publisher));
  for (int i = 0; i < 5; i++) publish(publisher, "abc", 3);
  np_disconnect(writer);
  json_t *document = NULL;
  for (int i = 0; i < 100; i++) {
    json_decref(document);
    document = json_of("channels", 0);
    if (number(row_named(json_object_get(document, "channels"), "news"), "publishers") == 0) break;
    usleep(10000);
  }
  json_t *row = row_named(json_object_get(document, "channels"), "news");
  cr_assert_eq(number(row, "published"), 5);
  cr_assert_eq(number(json_object_get(row, "dropped"), "no_subscriber"), 5);
  cr_assert_eq(number(json_object_get(row, "dropped"), "total"), 5);
  json_decref(document);
  stop();
}

Test(numapoolctl, listeners_count_what_came_in) {
  start();
  int port = listener_port();
  cr_assert_gt(port, 0);
  for (int i = 0; i < 7; i++) send_datagram(port, "datagram");
  json_t *document = NULL, *row = NULL;
  for (int i = 0; i < 300; i++) {
    json_decref(document);
    document = json_of("listeners", 0);
    row = row_named(json_object_get(document, "listeners"), "udp-in");
    if (number(row, "published") == 7) break; /* the last of its counters */
    usleep(10000);
  }
  cr_assert_eq(number(row, "received"), 7);
  cr_assert_eq(number(row, "published"), 7);
  cr_assert_str_eq(json_string_value(json_object_get(row, "protocol")), "udp");
  cr_assert_str_eq(json_string_value(json_object_get(row, "channel")), "news");
  cr_assert_str_eq(json_string_value(json_object_get(row, "state")), "listening");
  cr_assert_gt(json_array_size(json_object_get(row, "workers")), 0);
  cr_assert_eq(number(json_object_get(row, "dropped"), "total"), 0);
  json_decref(document);
  stop();
}

Test(numapoolctl, clients_says_who_is_stopped) {
  start();
  pid_t child = fork();
  if (child == 0) {
    np_disconnect(NULL);
    struct np_client *client = NULL;
    struct np_options options;
    np_options_init(&options);
    options.name = "sleepy";
    if (np_connect(&client, &options) != NP_OK) _exit(1);
    raise(SIGSTOP);
    _exit(0);
  }
  int how = 0;
  cr_assert_eq(waitpid(child, &how, WUNTRACED), child);
  cr_assert(WIFSTOPPED(how));
  json_t *document = json_of("clients", 0);
  json_t *row = row_named(json_object_get(document, "clients"), "sleepy");
  cr_assert_str_eq(json_string_value(json_object_get(row, "process")), "stopped");
  json_decref(document);
  kill(child, SIGCONT);
  waitpid(child, &how, 0);
  stop();
}

/* ---- a broker that does not answer -------------------------------------------------------------------- */

static void expect_state(const char *state, const char *process) {
  json_t *document = json_of("status", 1);
  cr_assert_str_eq(json_string_value(json_object_get(document, "state")), state);
  cr_assert_str_eq(json_string_value(json_object_get(document, "process")), process);
  json_decref(document);
}

Test(numapoolctl, a_stopped_broker_can_be_looked_at) {
  start();
  struct np_client *client = connect_as("bystander");
  cr_assert(process_stop(broker.pid));
  expect_state("stopped", "stopped");
  for (int i = 1; i < LOOKING_VERBS; i++) {
    struct result result = shell("$ctl %s", verbs[i]);
    EXPECT_STATUS(result, 0);
    done(&result);
    json_decref(json_of(verbs[i], 0));
  }
  kill(broker.pid, SIGCONT);
  np_disconnect(client);
  stop();
}

Test(numapoolctl, a_broker_that_starts_is_said_to_start) {
  /* A registry without its magic, as it is until memory is ready. */
  char path[160];
  uint64_t magic = 0, none = 0;
  start();
  snprintf(path, sizeof path, "/dev/shm/numapool.%s.%u.registry", broker.instance, (unsigned)geteuid());
  int fd = open(path, O_RDWR | O_CLOEXEC);
  cr_assert_geq(fd, 0, "%s", path);
  cr_assert_eq(pread(fd, &magic, sizeof magic, 0), sizeof magic);
  cr_assert_eq(pwrite(fd, &none, sizeof none, 0), sizeof none);
  struct result result = shell("$ctl status");
  EXPECT_STATUS(result, 3);
  EXPECT_IN(result.err, "is starting");
  done(&result);
  cr_assert_eq(pwrite(fd, &magic, sizeof magic, 0), sizeof magic);
  close(fd);
  json_decref(json_of("status", 0));
  stop();
}

Test(numapoolctl, a_killed_broker_can_be_looked_at) {
  /* No worker, which would end with it, and no stock, which it could be killed over. */
  start_with("memory: { per_node: 64MiB, ready: 0 }\n");
  struct np_publisher *publisher;
  struct np_client *client = connect_as("survivor");
  OK(np_publisher_open(client, "news", NULL, &publisher));
  publish(publisher, "abc", 3);
  npi_test_broker_kill(&broker);
  expect_state("dead", "dead");
  json_t *document = json_of("segments", 0);
  cr_assert_str_eq(json_string_value(json_object_get(document, "broker")), "dead");
  cr_assert_gt(json_array_size(json_object_get(document, "segments")), 0);
  json_decref(document);
  document = json_of("channels", 0); /* its page is found in the client itself */
  cr_assert_eq(number(row_named(json_object_get(document, "channels"), "news"), "published"), 1);
  json_decref(document);
  json_decref(json_of("fsck", 0));
  np_disconnect(client);

  npi_test_broker_clean(&broker);
  end_tests();
}
