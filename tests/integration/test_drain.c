/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a broker whose worker holds frames that nobody takes: within drain_timeout, by the worker's own hand, with
 * each frame counted.
 */
#include <criterion/criterion.h>
#include <ftw.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/support/child.h"
#include "tests/support/instance.h"
#include "tests/support/peers.h"

TestSuite(drain, .timeout = 60);

enum { CREDITS = 64, LINES = 500 };

/* Subscribes, takes nothing, and ends when it is told to. */
static int idler(void *argument) {
  struct receiver *receiver = argument;
  struct np_client *client = NULL;
  struct np_subscriber *subscriber = NULL;
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_subscriber_open(client, "work", NULL, &subscriber) == NP_OK);
  receiver->ready = 1;
  while (!receiver->stop) usleep(1000);
  np_disconnect(client);
  return 0;
}

static void send_lines(uint16_t port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  char text[LINES * 8];
  size_t n = 0;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  for (int i = 0; i < LINES; i++) n += (size_t)snprintf(text + n, sizeof text - n, "line%d\n", i);
  cr_assert_eq(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
  cr_assert_eq(send(fd, text, n, 0), (ssize_t)n);
  close(fd);
}

static int remove_entry(const char *path, const struct stat *facts, int type, struct FTW *place) {
  (void)facts, (void)type, (void)place;
  return remove(path);
}

Test(drain, what_finds_no_credit_until_the_end_is_counted_by_a_worker_that_ends_by_itself) {
  struct instance instance;
  char dropped[32];
  instance_start(&instance,
                 "drain_timeout: 2s\n"
                 "channels:\n  - { name: work, kind: broadcast, credits: 64, on_full: block }\n"
                 "listeners:\n"
                 "  - { name: lines, proto: tcp, address: \"127.0.0.1:0\", framing: newline, channel: work }\n",
                 NULL);
  struct receiver *receiver = shared_memory(sizeof *receiver);
  pid_t pid = spawn(idler, receiver);
  EVENTUALLY(20, receiver->ready);
  send_lines(instance_port(&instance, "lines"));
  EVENTUALLY(20, instance_listener_counter(&instance, "lines", NPI_LISTENER_HELD) == 1);
  EVENTUALLY(20, instance_listener_counter(&instance, "lines", NPI_LISTENER_PUBLISHED) == CREDITS);
  munmap((void *)(uintptr_t)instance.registry, instance.registry_bytes);

  cr_assert_eq(kill(instance.pid, SIGTERM), 0);
  cr_assert_eq(reap(instance.pid, 20), 0, "the broker's exit status");
  snprintf(dropped, sizeof dropped, " dropped=%d\n", LINES - CREDITS);
  cr_assert(instance_log_has(&instance, "worker.drained"));
  cr_assert(instance_log_has(&instance, dropped), "each line is delivered or counted");
  cr_assert_not(instance_log_has(&instance, "worker.killed"));
  receiver->stop = 1;
  cr_assert_eq(reap(pid, 20), 0);
  cr_assert_eq(instance_shm_count(&instance), 0, "left behind in /dev/shm:%s", instance.leftovers);
  cr_assert_eq(nftw(instance.folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS), 0);
}
