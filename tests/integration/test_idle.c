/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What it costs to wait: broker, worker and sleeping subscribers while nothing happens. This is a judgement of time,
 * so it takes the best of three and prints all that it measured.
 *
 * ctest-labels: alone asan-slow
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os/os_clock.h"
#include "tests/support/child.h"
#include "tests/support/instance.h"
#include "tests/support/peers.h"

TestSuite(idle, .timeout = 120);

enum { SUBSCRIBERS = 4, SECONDS = 20, ROUNDS = 3 };

static int sleeper(void *argument) {
  struct receiver *receiver = argument;
  struct np_client *client = NULL;
  struct np_subscriber *subscriber = NULL;
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK);
  CHILD_EXPECT(np_subscriber_open(client, receiver->channel, NULL, &subscriber) == NP_OK);
  receiver->ready = 1;
  while (!receiver->stop) CHILD_EXPECT(np_wait(subscriber, 1000) == NP_TIMEOUT);
  np_disconnect(client);
  return 0;
}

/* Processor time of a process so far, all its threads: as the scheduler counts it, else user + system in clock ticks. */
static uint64_t processor_ns(pid_t pid) {
  char path[64];
  uint64_t sum = 0;
  snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
  DIR *folder = opendir(path);
  cr_assert_not_null(folder);
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    char name[384];
    unsigned long long ns = 0;
    snprintf(name, sizeof name, "%s/%s/schedstat", path, entry->d_name);
    FILE *file = entry->d_name[0] == '.' ? NULL : fopen(name, "re");
    if (file == NULL) continue;
    if (fscanf(file, "%llu", &ns) == 1) sum += ns;
    fclose(file);
  }
  closedir(folder);
  if (sum > 0) return sum;
  unsigned long long user = 0;
  unsigned long long kernel = 0;
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  FILE *file = fopen(path, "re");
  cr_assert_not_null(file);
  int read = fscanf(file, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &kernel);
  fclose(file);
  cr_assert_eq(read, 2, "cannot read %s", path);
  return (user + kernel) * (1000000000 / (uint64_t)sysconf(_SC_CLK_TCK));
}

Test(idle, broker_worker_and_four_sleeping_subscribers_take_under_one_percent_of_a_core) {
  /* Proves: nobody polls. 20 s of silence, all six processes together under 1 % of one core. */
  struct instance instance;
  instance_start(&instance,
                 "channels:\n  - { name: syslog, kind: broadcast, credits: 1024, on_full: drop_newest }\n"
                 "listeners:\n"
                 "  - { name: udp, proto: udp, address: \"127.0.0.1:0\", channel: syslog }\n"
                 "  - { name: tcp, proto: tcp, address: \"127.0.0.1:0\", framing: syslog, channel: syslog }\n",
                 NULL);
  struct receiver *receivers = shared_memory(sizeof *receivers * SUBSCRIBERS);
  pid_t pids[SUBSCRIBERS + 2];
  for (int i = 0; i < SUBSCRIBERS; i++) {
    snprintf(receivers[i].channel, sizeof receivers[i].channel, "syslog");
    pids[i] = spawn(sleeper, &receivers[i]);
    EVENTUALLY(20, receivers[i].ready);
  }
  pids[SUBSCRIBERS] = instance.pid;
  pids[SUBSCRIBERS + 1] = instance_worker(&instance);
  cr_assert_gt(pids[SUBSCRIBERS + 1], 0);
  double best = 100;
  sleep(1);
  for (int round = 0; round < ROUNDS && best >= 1.0; round++) {
    uint64_t before[SUBSCRIBERS + 2];
    uint64_t begin = npi_clock_monotonic();
    for (int i = 0; i < SUBSCRIBERS + 2; i++) before[i] = processor_ns(pids[i]);
    sleep(SECONDS);
    double all = 0;
    double of[SUBSCRIBERS + 2];
    double elapsed = (double)(npi_clock_monotonic() - begin);
    for (int i = 0; i < SUBSCRIBERS + 2; i++)
      all += of[i] = 100 * (double)(processor_ns(pids[i]) - before[i]) / elapsed;
    say("idle: round %d: %.3f %% of a core: broker %.3f, worker %.3f, subscribers %.3f %.3f %.3f %.3f\n", round + 1,
        all, of[SUBSCRIBERS], of[SUBSCRIBERS + 1], of[0], of[1], of[2], of[3]);
    if (all < best) best = all;
  }
  cr_assert_lt(best, 1.0, "%.3f %% of a core for waiting", best);
  for (int i = 0; i < SUBSCRIBERS; i++) {
    receivers[i].stop = 1;
    cr_assert_eq(reap(pids[i], 20), 0);
  }
  instance_stop(&instance);
}
