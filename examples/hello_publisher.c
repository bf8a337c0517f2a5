/* SPDX-License-Identifier: Apache-2.0 */
#include <numapool/numapool.h>
#include <stdio.h>
#include <string.h>

int main(void) {
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_event event;
  if (np_connect(&client, NULL) < 0 || np_publisher_open(client, "greetings", NULL, &publisher) < 0 ||
      np_loan(publisher, 6, &event) != NP_OK)
    return fprintf(stderr, "%s\n", np_error_detail()), 1;
  memcpy(event.data, "hello", 6);
  np_publish(publisher, &event);
  np_disconnect(client);
}
