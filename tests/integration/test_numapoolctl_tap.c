/* SPDX-License-Identifier: Apache-2.0 */
/* numapoolctl tap and pub: every byte, every ending, and nobody else disturbed. */
#include <fcntl.h>
#include <time.h>

#include "support/ctl.h"
#include "support/process.h"

TestSuite(numapoolctl_tap, .timeout = 120);

/* ---- tap and pub --------------------------------------------------------------------------------------- */

/* Lines with every byte but the newline, empty ones, and some of each size class. */
static size_t write_lines(const char *name, unsigned *n_lines) {
  char path[128];
  size_t n = 0;
  snprintf(path, sizeof path, "%s/%s", getenv("T"), name);
  FILE *file = fopen(path, "w");
  cr_assert_not_null(file);
  for (int length = 0; length < 300; length += 7) {
    for (int i = 0; i < length; i++) {
      int c = (i + length) & 0xff;
      fputc(c == '\n' ? 0 : c, file);
    }
    fputc('\n', file);
    n += (size_t)length + 1;
    (*n_lines)++;
  }
  for (size_t length = 1000; length < 300000; length *= 3) {
    for (size_t i = 0; i < length; i++) fputc('a' + (int)(i % 26), file);
    fputc('\n', file);
    n += length + 1;
    (*n_lines)++;
  }
  fclose(file);
  return n;
}

Test(numapoolctl_tap, pub_and_tap_carry_every_byte) {
  unsigned n_lines = 0;
  start();
  struct result result = shell("true");
  done(&result);
  size_t n = write_lines("lines", &n_lines);
  result = shell(
      "$ctl tap news --count %u --timeout 30 > $T/got & "
      "until $ctl channels | grep -q numapoolctl-tap; do sleep 0.02; done; "
      "$ctl pub news --json < $T/lines; echo status $?; wait; cmp $T/lines $T/got",
      n_lines);
  EXPECT_STATUS(result, 0);
  EXPECT_IN(result.out, "status 0");
  char text[64];
  snprintf(text, sizeof text, "\"published\": %u,", n_lines);
  EXPECT_IN(result.out, text);
  snprintf(text, sizeof text, "%u events taken, 0 missed", n_lines);
  EXPECT_IN(result.err, text);
  cr_assert_gt(n, 300000);
  done(&result);
  stop();
}

/* A tap of one event in some format, which is then published by a shell command. */
static struct result tap_one(const char *format, const char *publish_command) {
  return shell(
      "$ctl tap news --count 1 --timeout 20 %s > $T/one & "
      "until $ctl channels | grep -q numapoolctl-tap; do sleep 0.02; done; %s; wait $!; echo $? >&2; cat $T/one",
      format, publish_command);
}

Test(numapoolctl_tap, tap_formats) {
  start();
  struct result result = tap_one("--format text", "echo hello | $ctl pub news");
  cr_assert_str_eq(result.out, "hello\n");
  done(&result);
  result = tap_one("--format raw", "echo hello | $ctl pub news");
  cr_assert_str_eq(result.out, "hello");
  done(&result);
  result = tap_one("--format hex", "echo hello | $ctl pub news --topic greet --priority 4");
  EXPECT_IN(result.out, "priority=critical size=5 topic=greet\n");
  EXPECT_IN(result.out, "00000000  68 65 6c 6c 6f ");
  EXPECT_IN(result.out, "|hello|\n");
  done(&result);

  json_error_t error;
  result = tap_one("--format json", "echo 'quote\" and \\' | $ctl pub news --topic greet --priority 0");
  json_t *event = json_loads(result.out, 0, &error);
  cr_assert_not_null(event, "%s", result.out);
  cr_assert_str_eq(json_string_value(json_object_get(event, "channel")), "news");
  cr_assert_str_eq(json_string_value(json_object_get(event, "topic")), "greet");
  cr_assert_eq(number(event, "priority"), 0);
  cr_assert_eq(number(event, "sequence"), 0);
  cr_assert_gt(number(event, "time_ns"), 0);
  cr_assert_eq(number(event, "size"), 12);
  cr_assert_str_eq(json_string_value(json_object_get(event, "payload")), "quote\" and \\");
  cr_assert(json_is_null(json_object_get(event, "source")));
  cr_assert_eq(strchr(result.out, '\n'), result.out + result.n - 1); /* one line */
  json_decref(event);
  done(&result);

  result = tap_one("--json", "printf '\\377\\376x' | $ctl pub news");
  event = json_loads(result.out, 0, &error);
  cr_assert_not_null(event, "%s", result.out);
  cr_assert_null(json_object_get(event, "payload"));
  cr_assert_str_eq(json_string_value(json_object_get(event, "payload_base64")), "//54");
  json_decref(event);
  done(&result);

  char command[128];
  snprintf(command, sizeof command, "bash -c 'printf datagram > /dev/udp/127.0.0.1/%d'", listener_port());
  result = tap_one("--json", command);
  event = json_loads(result.out, 0, &error);
  cr_assert_not_null(event, "%s %s", result.out, result.err);
  cr_assert_str_eq(json_string_value(json_object_get(event, "payload")), "datagram");
  const json_t *source = json_object_get(event, "source");
  cr_assert_str_eq(json_string_value(json_object_get(source, "listener")), "udp-in");
  cr_assert_str_eq(json_string_value(json_object_get(source, "address")), "127.0.0.1");
  cr_assert_gt(number(source, "port"), 0);
  cr_assert_eq(number(source, "connection"), 0);
  json_decref(event);
  done(&result);
  stop();
}

Test(numapoolctl_tap, tap_ends_when_it_shall) {
  start();
  struct result result = shell("$ctl tap news --timeout 0.3");
  EXPECT_STATUS(result, 0);
  EXPECT_IN(result.err, "0 events taken, 0 missed");
  done(&result);
  result = shell(
      "$ctl tap news & until $ctl channels | grep -q numapoolctl-tap; do sleep 0.02; done; "
      "kill -INT $!; kill -TERM $!; wait $!");
  EXPECT_STATUS(result, 0);
  EXPECT_IN(result.err, "0 events taken");
  done(&result);
  /* Its reader goes away: that is no failure, and no message of the system. */
  result = shell(
      "($ctl tap news; echo status $? > $T/tap) | head -n 2 & "
      "until $ctl channels | grep -q numapoolctl-tap; do sleep 0.02; done; "
      "yes line | head -n 20000 | $ctl pub news 2> /dev/null; "
      "while [ ! -s $T/tap ]; do sleep 0.02; echo again | $ctl pub news 2> /dev/null; done; cat $T/tap");
  EXPECT_STATUS(result, 0);
  cr_assert_str_eq(result.out, "line\nline\nstatus 0\n");
  cr_assert_null(strstr(result.err, "Broken pipe"));
  done(&result);
  result = shell(
      "$ctl tap news --timeout 30 --format text > /dev/full & "
      "until $ctl channels | grep -q numapoolctl-tap; do sleep 0.02; done; echo x | $ctl pub news; wait $!");
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.err, "cannot write to standard output");
  done(&result);
  result = shell("$ctl tap 'no such name'");
  EXPECT_STATUS(result, 1);
  cr_assert_str_not_empty(result.err);
  done(&result);
  stop();
}

Test(numapoolctl_tap, tap_shows_an_event_at_once_through_a_pipe) {
  start();
  struct result result = shell(
      "mkfifo $T/pipe; $ctl tap news --timeout 30 > $T/pipe & tap=$!; exec 3< $T/pipe; "
      "until $ctl channels | grep -q numapoolctl-tap; do sleep 0.02; done; "
      "echo first | $ctl pub news; read line <&3; echo got $line; kill $tap; wait $tap");
  EXPECT_STATUS(result, 0);
  cr_assert_str_eq(result.out, "got first\n");
  done(&result);
  stop();
}

Test(numapoolctl_tap, tap_and_pub_go_on_without_a_broker) {
  char command[64];
  start();
  snprintf(command, sizeof command, "kill -9 %d", (int)broker.pid);
  struct result result = shell(
      "mkfifo $T/lines; $ctl tap news --count 3 --timeout 60 & tap=$!; $ctl pub news < $T/lines & pub=$!; "
      "exec 4> $T/lines; until $ctl channels | grep -q numapoolctl-tap; do sleep 0.02; done; "
      "until $ctl clients | grep -q numapoolctl-pub; do sleep 0.02; done; "
      "echo with >&4; until grep -q with $T/out; do sleep 0.02; done; %s; "
      "until grep -q 'the broker is gone' $T/err; do sleep 0.02; done; "
      "echo without >&4; until grep -q without $T/out; do sleep 0.02; done; echo still >&4; exec 4>&-; "
      "wait $tap && wait $pub",
      command);
  EXPECT_STATUS(result, 0);
  EXPECT_IN(result.out, "with\nwithout\nstill\n");
  EXPECT_IN(result.err, "the broker is gone");
  EXPECT_IN(result.err, "3 events taken");
  done(&result);
  stop_killed();
}

Test(numapoolctl_tap, tap_ends_when_its_instance_began_anew_and_nothing_comes) {
  start();
  struct result result = shell(
      "$ctl tap news > $T/tap-out 2> $T/tap-err & echo $! > $T/pid; "
      "until $ctl channels | grep -q numapoolctl-tap; do sleep 0.02; done");
  EXPECT_STATUS(result, 0);
  done(&result);
  npi_test_broker_kill_with_keeper(&broker);
  npi_test_broker_start(&broker, NULL);
  result =
      shell("for i in $(seq 300); do kill -0 $(cat $T/pid) 2>/dev/null || break; sleep 0.05; done; cat $T/tap-err");
  EXPECT_IN(result.out, "began anew");
  EXPECT_IN(result.out, "nothing comes any more");
  EXPECT_IN(result.out, "0 events taken");
  done(&result);
  stop();
}

/* A stopped tap with 16 credits misses all but 16 of 50, and says so; who subscribes beside it misses nothing. */
Test(numapoolctl_tap, a_slow_tap_misses_events_and_says_how_many) {
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
  struct np_event event;
  start();
  struct np_client *client = connect_as("writer");
  OK(np_subscriber_open(client, "news", NULL, &subscriber));
  OK(np_publisher_open(client, "news", NULL, &publisher));
  struct result result = shell("$ctl tap news --credits 16 > $T/slow 2> $T/slow-err & echo $! > $T/slow-pid");
  done(&result);
  wait_for_subscribers("news", 2);
  result = shell(
      "kill -STOP $(cat $T/slow-pid); while ! grep -q 'State:.T' /proc/$(cat $T/slow-pid)/status; "
      "do sleep 0.01; done");
  EXPECT_STATUS(result, 0);
  done(&result);
  for (int i = 0; i < 50; i++) publish(publisher, "abc", 3);
  for (int i = 0; i < 50; i++) {
    OK(np_take(subscriber, &event));
    OK(np_release(subscriber, &event));
  }
  json_t *document = json_of("channels", 0);
  json_t *row = row_named(json_object_get(document, "channels"), "news");
  json_t *tap = row_named(json_object_get(row, "subscriber_list"), "numapoolctl-tap");
  cr_assert_eq(number(tap, "missed"), 34);
  cr_assert_eq(number(tap, "outstanding"), 16);
  cr_assert(json_is_true(json_object_get(tap, "tap")));
  cr_assert_str_eq(json_string_value(json_object_get(tap, "process")), "stopped");
  json_decref(document);
  result = shell(
      "kill -CONT $(cat $T/slow-pid); while [ $(wc -l < $T/slow) -lt 16 ]; do sleep 0.01; done; "
      "kill -INT $(cat $T/slow-pid); while [ ! -s $T/slow-err ]; do sleep 0.01; done; cat $T/slow-err");
  EXPECT_STATUS(result, 0);
  EXPECT_IN(result.out, "16 events taken, 34 missed");
  done(&result);
  np_disconnect(client);
  stop();
}

Test(numapoolctl_tap, a_tap_takes_nothing_from_the_members_of_a_group) {
  struct np_publisher *publisher;
  struct np_subscriber *member[2];
  struct np_event event;
  int taken = 0;
  enum { EVENTS = 60 };
  start();
  struct np_client *client = connect_as("team");
  for (int i = 0; i < 2; i++) OK(np_subscriber_open(client, "work", NULL, &member[i]));
  OK(np_publisher_open(client, "work", NULL, &publisher));
  struct result result = shell("$ctl tap work --count %d --timeout 30 > $T/group 2> $T/group-err &", EVENTS);
  done(&result);
  wait_for_subscribers("work", 3);
  for (int i = 0; i < EVENTS; i++) publish(publisher, "abc", 3);
  for (int i = 0; i < 2; i++) {
    while (np_take(member[i], &event) == NP_OK) {
      OK(np_release(member[i], &event));
      taken++;
    }
  }
  cr_assert_eq(taken, EVENTS);
  result = shell("while [ ! -s $T/group-err ]; do sleep 0.01; done; cat $T/group-err; wc -l < $T/group");
  EXPECT_IN(result.out, "60 events taken, 0 missed");
  EXPECT_IN(result.out, "\n60\n");
  done(&result);
  np_disconnect(client);
  stop();
}

Test(numapoolctl_tap, pub_says_what_nobody_was_there_for) {
  start();
  struct result result = shell("printf 'a\\nb\\nc' | $ctl pub news");
  EXPECT_STATUS(result, 0);
  EXPECT_IN(result.err, "3 published, 3 had no subscriber");
  done(&result);
  result = shell("printf 'a\\n' | $ctl pub work --linger 0.1"); /* a blocking group without members keeps nothing */
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.err, "0 published, 1 had no subscriber");
  done(&result);
  result = shell("$ctl pub news --json < /dev/null");
  EXPECT_STATUS(result, 0);
  json_error_t error;
  json_t *document = json_loads(result.out, 0, &error);
  cr_assert_not_null(document, "%s", result.out);
  cr_assert_eq(number(document, "published"), 0);
  json_decref(document);
  done(&result);
  stop();
}

Test(numapoolctl_tap, pub_leaves_out_lines_that_do_not_fit) {
  start();
  struct result result = shell(
      "(head -c 1048576 /dev/zero; echo; echo short; head -c 1048577 /dev/zero; echo; "
      "head -c 3000000 /dev/zero; echo; echo last) | $ctl pub news --json");
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.err, "line 3 is longer");
  EXPECT_IN(result.err, "line 4 is longer");
  EXPECT_IN(result.err, "3 published");
  EXPECT_IN(result.out, "\"too_long\": 2");
  done(&result);
  /* Together with the topic. */
  result = shell("(head -c 1048576 /dev/zero; echo) | $ctl pub news --topic t");
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.err, "line 1 is longer than the 1048575 bytes");
  done(&result);
  stop();
}

Test(numapoolctl_tap, pub_waits_for_a_blocking_subscriber) {
  struct np_subscriber *subscriber;
  struct np_event event;
  enum { LINES = 500 }; /* the channel has 16 credits */
  int taken = 0;
  start();
  struct np_client *client = connect_as("slow");
  OK(np_subscriber_open(client, "strict", NULL, &subscriber));
  struct result result = shell("seq %d | $ctl pub strict --linger 20 > /dev/null 2> $T/pub-err &", LINES);
  done(&result);
  char text[16];
  while (taken < LINES) {
    cr_assert_eq(np_wait(subscriber, 20000), NP_OK);
    while (np_take(subscriber, &event) == NP_OK) {
      int n = snprintf(text, sizeof text, "%d", ++taken);
      cr_assert(event.size == (size_t)n && memcmp(event.data, text, event.size) == 0, "event %d", taken);
      OK(np_release(subscriber, &event));
      if (taken % 50 == 0) usleep(20000);
    }
  }
  result = shell("while [ ! -s $T/pub-err ]; do sleep 0.01; done; cat $T/pub-err");
  EXPECT_IN(result.out, "500 published, 0 had no subscriber, 0 deliveries dropped for want of credit, 0 not yet taken");
  done(&result);
  np_disconnect(client);
  stop();
}

/* ---- a broker that cannot be had ------------------------------------------------------------------------ */

static double seconds_of(const char *command, int expected, const char *words) {
  struct timespec before, after;
  clock_gettime(CLOCK_MONOTONIC, &before);
  struct result result = shell("%s", command);
  clock_gettime(CLOCK_MONOTONIC, &after);
  EXPECT_STATUS(result, expected);
  EXPECT_IN(result.err, words);
  done(&result);
  return (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9;
}

/* A judgement of time: the best of three. The broker is stopped before the command, or by it. */
static void expect_soon(const char *command, int stops, int expected, const char *words, double limit) {
  double best = limit;
  for (int i = 0; i < 3 && best >= limit; i++) {
    if (stops) cr_assert(process_stop(broker.pid));
    double seconds = seconds_of(command, expected, words);
    kill(broker.pid, SIGCONT);
    fprintf(stderr, "numapoolctl_tap: beside a stopped broker: %.2f s, allowed %.1f s\n", seconds, limit);
    if (seconds < best) best = seconds;
  }
  cr_expect(best < limit, "%s", command);
}

Test(numapoolctl_tap, a_stopped_broker_takes_no_longer_than_the_timeout) {
  start();
  expect_soon("$ctl tap news --timeout 1", 1, 3, "did not answer", 2.5);
  /* Stopped after the tap began: its end waits for nobody either. */
  char pid[16];
  snprintf(pid, sizeof pid, "%d", (int)broker.pid);
  setenv("BROKER", pid, 1);
  expect_soon(
      "$ctl tap news --timeout 2 & "
      "until $ctl channels | grep -q numapoolctl-tap || ! kill -0 $!; do sleep 0.02; done; "
      "kill -STOP $BROKER; wait $!",
      0, 0, "0 events taken", 3.5);
  stop();
}

Test(numapoolctl_tap, without_a_broker_or_permission_the_status_says_so) {
  if (geteuid() != 0) cr_skip_test("needs root, to be somebody else");
  start();
  chmod(broker.folder, 0755);
  chmod(broker.runtime_dir, 0755);
  const char *commands[] = {"setpriv --reuid 65534 --clear-groups $ctl tap news --timeout 5",
                            "echo x | setpriv --reuid 65534 --clear-groups $ctl pub news"};
  for (size_t i = 0; i < 2; i++) seconds_of(commands[i], 3, "65534");
  npi_test_broker_kill(&broker);
  seconds_of("$ctl tap news --timeout 5", 3, "no broker");
  seconds_of("echo x | $ctl pub news", 3, "no broker");
  cr_assert_eq(system("rm -f /dev/shm/numapool.$NUMAPOOL_INSTANCE.*"), 0);
  npi_test_broker_clean(&broker);
  end_tests();
}
