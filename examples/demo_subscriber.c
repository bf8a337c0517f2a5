/* SPDX-License-Identifier: Apache-2.0 */
/*
 * demo_subscriber NAME CHANNEL: shows what arrives, as far as a reader can follow it: some events of each second with
 * their sender and sequence, and a line with the rate. Used by tools/demo.sh.
 */
#include <numapool/numapool.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>

enum { SHOWN_SLOW = 8, SHOWN_FAST = 2, FAST = 100, SHOWN_BYTES = 100 }; /* events of a second */

static volatile sig_atomic_t stopped;

static void stop(int signal_number) {
  (void)signal_number;
  stopped = 1;
}

static double seconds(void) {
  struct timespec now;
  timespec_get(&now, TIME_UTC);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void show(const char *name, struct np_subscriber *subscriber, const struct np_event *event) {
  struct np_source source = {.size = sizeof source};
  const unsigned char *text = event->data;
  printf("%-6s event %llu of publisher %u", name, (unsigned long long)event->sequence, event->publisher);
  if (np_event_source(subscriber, event, &source) == NP_OK) {
    printf(", %s", source.listener_name);
    if (source.family == 4)
      printf(" from %u.%u.%u.%u:%u", source.address[0], source.address[1], source.address[2], source.address[3],
             source.port);
  }
  fputs(": ", stdout);
  for (size_t i = 0; i < event->size && i < SHOWN_BYTES; i++) putchar(text[i] < ' ' || text[i] > '~' ? '?' : text[i]);
  puts(event->size > SHOWN_BYTES ? "..." : "");
}

int main(int argc, char **argv) {
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_options options;
  struct np_event event;
  struct np_subscriber_stats stats = {.size = sizeof stats};
  unsigned long long total = 0;
  unsigned long long before = 0;
  int shown = 0;
  int may_show = SHOWN_SLOW;
  int status;
  if (argc != 3) return fprintf(stderr, "usage: demo_subscriber NAME CHANNEL\n"), 2;
  setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
  signal(SIGINT, stop);
  signal(SIGTERM, stop);
  np_options_init(&options);
  options.name = argv[1];
  options.timeout_ms = 5000;
  if (np_connect(&client, &options) < 0 || np_subscriber_open(client, argv[2], NULL, &subscriber) < 0)
    return fprintf(stderr, "%s: %s\n", argv[1], np_error_detail()), 1;
  printf("%-6s subscribed to %s\n", argv[1], argv[2]);
  double last = seconds();
  while (!stopped && (status = np_wait(subscriber, 200)) >= 0) {
    while (np_take(subscriber, &event) == NP_OK) {
      total++;
      if (shown++ < may_show) show(argv[1], subscriber, &event);
      np_release(subscriber, &event);
      if (total % 1024 == 0) break; /* to look at the clock also when events never end */
    }
    double now = seconds();
    if (now - last < 1) continue;
    np_subscriber_stats(subscriber, &stats);
    if (total != before)
      printf("%-6s %.0f events/s, total %llu, missed %llu\n", argv[1], (double)(total - before) / (now - last), total,
             (unsigned long long)stats.missed);
    may_show = total - before > FAST ? SHOWN_FAST : SHOWN_SLOW;
    before = total;
    last = now;
    shown = 0;
  }
  if (!stopped) fprintf(stderr, "%s: %s\n", argv[1], np_error_detail());
  np_subscriber_close(subscriber);
  np_disconnect(client);
  return stopped ? 0 : 1;
}
