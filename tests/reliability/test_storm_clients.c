/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eight processes exchange events (broadcast, one to one, group) while a random one of them is killed every few
 * milliseconds and started again. Proves: nobody who lives loses or repeats an event, and nothing of the dead stays.
 *
 * STORM_KILLS and STORM_SEED choose another length and another storm.
 * ctest-timeout: 600
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "reliability/storm_board.h"
#include "support/instance.h"
#include "support/peers.h"

enum { KILLS = 10000, KILLS_BETWEEN_CHECKS = 500, PAUSE_US_MAX = 10000 };

static struct instance instance;
static struct storm_board *board;
static uint64_t random_state;

static uint32_t random_below(uint32_t n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)((random_state >> 20) % n);
}

static int body(void *part) {
  return storm_run(board, (int)(intptr_t)part);
}

static void start_part(int part) {
  struct storm_process *process = &board->process[part];
  process->ready = process->paused = 0;
  process->life = 0;
  process->from_life = UINT32_MAX;
  for (uint32_t i = 0; i < board->n_lives && i < STORM_LIVES_MAX; i++) {
    if (board->seen[part][i] != 0) board->seen[part][i] = 0;
  }
  process->pid = spawn(body, (void *)(intptr_t)part);
}

static void kill_part(int part) {
  struct storm_process *process = &board->process[part];
  uint32_t life = process->life;
  int how;
  kill(process->pid, SIGKILL);
  cr_assert_eq(waitpid(process->pid, &how, 0), process->pid);
  cr_assert(WIFSIGNALED(how), "part %d ended by itself with %d: %s", part, WEXITSTATUS(how), board->failure);
  if (life != 0) board->life[life - 1].ended = 1;
}

static long broker_kib(void) {
  char path[64], line[128];
  long kib = 0;
  snprintf(path, sizeof path, "/proc/%d/status", (int)instance.pid);
  FILE *file = fopen(path, "r");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) sscanf(line, "VmRSS: %ld", &kib);
  if (file != NULL) fclose(file);
  return kib;
}

static int ctl(const char *verb) {
  char command[400];
  snprintf(command, sizeof command, "%s %s > %s/%s 2>&1", NUMAPOOLCTL_PATH, verb, instance.folder, verb);
  int status = system(command);
  if (status == 0) return 0;
  snprintf(command, sizeof command, "cat %s/%s >&2", instance.folder, verb);
  return system(command) == 0 ? 1 : 2;
}

static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void check(int kills) {
  char text[400] = "";
  board->pause = 1;
  for (uint64_t begin = now_ms(); !storm_is_still(board) && now_ms() - begin < 30000;) usleep(2000);
  int wrong = storm_check_living(board, text, sizeof text);
  if (wrong || !storm_is_still(board)) {
    instance_print_log(&instance);
    cr_assert(0, "after %d kills: %s", kills, wrong ? text : "what was accepted has not arrived within 30 s");
  }
  EVENTUALLY(20, instance_clients(&instance, 0) == STORM_PROCESSES);
  cr_assert_eq(ctl("fsck"), 0, "fsck after %d kills", kills);
  board->pause = 0;
}

Test(storm, of_killed_clients, .timeout = 600) {
  const char *kills_text = getenv("STORM_KILLS"), *seed_text = getenv("STORM_SEED");
  int kills = kills_text != NULL ? atoi(kills_text) : KILLS;
  random_state = seed_text != NULL ? strtoull(seed_text, NULL, 0) : (uint64_t)time(NULL) * 2 + 1;
  say("storm: seed %llu\n", (unsigned long long)random_state);
  board = shared_memory(sizeof *board);
  instance_start(&instance,
                 "memory: { per_node: 96MiB, per_client: 8MiB, segment: 2MiB }\n"
                 "channels:\n"
                 "  - { name: all, kind: broadcast, credits: 128, on_full: block }\n"
                 "  - { name: one, kind: broadcast, credits: 128, on_full: block }\n"
                 "  - { name: work, kind: group, credits: 32, on_full: block }\n",
                 NULL);
  uint64_t begin = now_ms(), killing = 0;
  for (int i = 0; i < STORM_PROCESSES; i++) start_part(i);
  long first_kib = 0, last_kib = 0;
  for (int i = 1; i <= kills; i++) {
    uint64_t from = now_ms();
    usleep(random_below(PAUSE_US_MAX));
    int part = (int)random_below(STORM_PROCESSES);
    kill_part(part);
    start_part(part);
    killing += now_ms() - from;
    if (i % KILLS_BETWEEN_CHECKS != 0 && i != kills) continue;
    check(i);
    last_kib = broker_kib();
    if (first_kib == 0) first_kib = last_kib;
  }
  say("storm: %d kills in %.1f s (%.1f s with checks), %u lives of publishers, %llu events accepted, %llu redelivered, "
      "%llu lost with both publisher and member; broker %ld KiB after the first check, %ld KiB in the end\n",
      kills, (double)killing / 1000, (double)(now_ms() - begin) / 1000, board->n_lives,
      (unsigned long long)storm_accepted(board), (unsigned long long)board->redelivered,
      (unsigned long long)storm_lost_with_publisher(board), first_kib, last_kib);
  cr_assert(storm_accepted(board) > (uint64_t)kills, "hardly anything was exchanged");
  cr_assert(board->redelivered > 0, "no event was delivered again");
  cr_assert(last_kib < first_kib + 2048, "the broker grew from %ld to %ld KiB", first_kib, last_kib);
  for (int i = 0; i < STORM_PROCESSES; i++) kill_part(i);
  instance_stop(&instance);
}
