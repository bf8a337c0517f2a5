/* SPDX-License-Identifier: Apache-2.0 */
#include <numapool/numapool.h>
#include <stdio.h>

int main(void) {
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_event event;
  if (np_connect(&client, NULL) < 0 || np_subscriber_open(client, "greetings", NULL, &subscriber) < 0)
    return fprintf(stderr, "%s\n", np_error_detail()), 1;
  while (np_wait(subscriber, -1) == NP_OK && np_take(subscriber, &event) == NP_OK) {
    printf("%.*s\n", (int)event.size, (const char *)event.data);
    np_release(subscriber, &event);
  }
}
