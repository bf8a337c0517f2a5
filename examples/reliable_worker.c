/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reliable_worker CHANNEL: a member of a group that loses nothing, although it dies on purpose: of each thousandth event
 * that it sees for the first time, and always of an event that begins with "poison". Run it in a loop that starts it
 * again. Each event is worked on at least once: what a dead worker had taken comes again, marked with
 * NP_EVENT_REDELIVERED, and what kills every worker ends in the channel's dead letters (max_deliveries).
 *
 * Ends with status 0 after five quiet seconds.
 */
#include <numapool/numapool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { QUIET_MS = 5000, FATAL_EVERY = 1000 };

static void work_on(struct np_subscriber *subscriber, const struct np_event *event) {
  int again = (event->flags & NP_EVENT_REDELIVERED) != 0;
  if (event->size >= 6 && memcmp(event->data, "poison", 6) == 0) abort();
  if (!again && event->sequence % FATAL_EVERY == FATAL_EVERY - 1) abort();
  printf("%.*s", (int)event->size, (const char *)event->data);
  if (again) { /* the work may have been done already: where that matters, find out */
    struct np_source source = {.size = sizeof source};
    np_event_source(subscriber, event, &source);
    if (source.deliveries > 0) {
      printf("  again: taken %u times before", source.deliveries);
    } else {
      printf("  again: it waited for one that died");
    }
  }
  putchar('\n');
  fflush(stdout); /* the work is done when its result is out: only then the event may be released */
}

int main(int argc, char **argv) {
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_subscriber_options options;
  struct np_event event;
  int status;
  if (argc != 2) return fprintf(stderr, "usage: reliable_worker CHANNEL\n"), 2;
  np_subscriber_options_init(&options);
  options.credits = 8; /* few: what waits in this worker's ring no other can take */
  if (np_connect(&client, NULL) < 0 || np_subscriber_open(client, argv[1], &options, &subscriber) < 0)
    return fprintf(stderr, "%s\n", np_error_detail()), 0;
  while ((status = np_wait(subscriber, QUIET_MS)) == NP_OK) {
    while ((status = np_take(subscriber, &event)) == NP_OK) {
      work_on(subscriber, &event);
      np_release(subscriber, &event);
    }
  }
  if (status < 0) fprintf(stderr, "%s\n", np_error_detail());
  np_disconnect(client);
  return 0;
}
