/* SPDX-License-Identifier: Apache-2.0 */
/*
 * group_worker CHANNEL: one member of a group. Start as many as there is work for: each event goes to one of them. An
 * event counts as done when it is released, so release it after the work. A worker that is killed in between has its
 * events given to another, marked with NP_EVENT_REDELIVERED: what it had begun may have to be undone or recognised.
 */
#include <numapool/numapool.h>
#include <stdio.h>

static void work_on(const struct np_event *event) {
  printf("event %llu of publisher %u, %zu bytes%s\n", (unsigned long long)event->sequence, event->publisher,
         event->size, event->flags & NP_EVENT_REDELIVERED ? ", begun before by a worker that died" : "");
  fflush(stdout);
}

int main(int argc, char **argv) {
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_subscriber_options options;
  struct np_event event;
  int status;
  if (argc != 2) return fprintf(stderr, "usage: group_worker CHANNEL\n"), 2;
  np_subscriber_options_init(&options);
  options.credits = 8; /* few: what waits in this worker's ring no other can take */
  if (np_connect(&client, NULL) < 0 || np_subscriber_open(client, argv[1], &options, &subscriber) < 0)
    return fprintf(stderr, "%s\n", np_error_detail()), 1;
  while ((status = np_wait(subscriber, -1)) >= 0) {
    if (np_take(subscriber, &event) != NP_OK) continue;
    work_on(&event);
    np_release(subscriber, &event);
  }
  return fprintf(stderr, "%s\n", np_error_detail()), 1;
}
