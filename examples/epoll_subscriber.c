/* SPDX-License-Identifier: Apache-2.0 */
/*
 * epoll_subscriber CHANNEL: a subscriber in a program that has an event loop already. np_fd is readable when there is
 * something to take; take until NP_EMPTY, then go back to epoll. The take that says NP_EMPTY arms the descriptor, so
 * there is nothing else to call, and nothing to forget. It is readable also when the broker goes away or comes back, and
 * when others end: np_client_notice says what it was.
 */
#include <numapool/numapool.h>
#include <stdio.h>
#include <sys/epoll.h>

int main(int argc, char **argv) {
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_event event;
  struct epoll_event ready;
  struct np_notice notice = {.size = sizeof notice};
  int loop = epoll_create1(EPOLL_CLOEXEC);
  if (argc != 2) return fprintf(stderr, "usage: epoll_subscriber CHANNEL\n"), 2;
  if (np_connect(&client, NULL) < 0 || np_subscriber_open(client, argv[1], NULL, &subscriber) < 0)
    return fprintf(stderr, "%s\n", np_error_detail()), 1;
  int fd = np_fd(subscriber);
  struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
  if (loop < 0 || fd < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, fd, &wanted) != 0) return perror("epoll"), 1;
  for (;;) {
    if (epoll_wait(loop, &ready, 1, -1) < 1) continue; /* a signal */
    int status;
    while ((status = np_take(subscriber, &event)) != NP_EMPTY) {
      if (status == NP_OK) {
        printf("%llu: %.*s\n", (unsigned long long)event.sequence, (int)event.size, (const char *)event.data);
        np_release(subscriber, &event);
        continue;
      }
      fprintf(stderr, "%s\n", np_error_detail());
      /* a publisher that broke the rules, or could not be mapped: the others go on. All else is the end */
      if (status != NP_ERR_CORRUPT && status != NP_ERR_NO_MEMORY) return 1;
    }
    while (np_client_notice(client, &notice) == NP_OK) fprintf(stderr, "%s\n", notice.text);
    fflush(stdout);
  }
}
