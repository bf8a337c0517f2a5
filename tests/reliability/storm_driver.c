/* SPDX-License-Identifier: Apache-2.0 */
#include "reliability/storm_driver.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct instance storm_instance;
struct storm_board *storm_board;
static uint64_t random_state;

uint32_t storm_random(uint32_t n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)((random_state >> 20) % n);
}

static int body(void *part) {
  return storm_run(storm_board, (int)(intptr_t)part);
}

void storm_start(int part) {
  struct storm_process *process = &storm_board->process[part];
  process->ready = process->paused = process->caught_at = 0;
  process->life = 0;
  process->from_life = UINT32_MAX;
  for (uint32_t i = 0; i < storm_board->n_lives && i < STORM_LIVES_MAX; i++) {
    if (storm_board->seen[part][i] != 0) storm_board->seen[part][i] = 0;
  }
  process->pid = spawn(body, (void *)(intptr_t)part);
}

void storm_kill(int part) {
  struct storm_process *process = &storm_board->process[part];
  uint32_t life = process->life;
  int how;
  kill(process->pid, SIGKILL);
  cr_assert_eq(waitpid(process->pid, &how, 0), process->pid);
  cr_assert(WIFSIGNALED(how), "part %d ended by itself with %d: %s", part, WEXITSTATUS(how), storm_board->failure);
  if (life != 0) storm_board->life[life - 1].ended = 1;
}

long storm_broker_kib(void) {
  char path[64], line[128];
  long kib = 0;
  snprintf(path, sizeof path, "/proc/%d/status", (int)storm_instance.pid);
  FILE *file = fopen(path, "r");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) sscanf(line, "VmRSS: %ld", &kib);
  if (file != NULL) fclose(file);
  return kib;
}

int storm_ctl(const char *verb) {
  char command[400];
  snprintf(command, sizeof command, "%s %s > %s/said 2>&1", NUMAPOOLCTL_PATH, verb, storm_instance.folder);
  int status = system(command);
  if (status == 0 && strstr(verb, "--json") == NULL) return 0;
  snprintf(command, sizeof command, "cat %s/said >&2", storm_instance.folder);
  return system(command) == 0 ? 1 : 2;
}

uint64_t storm_now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void storm_check(int kills) {
  char text[400] = "";
  storm_board->pause = 1;
  for (uint64_t begin = storm_now_ms(); !storm_is_still(storm_board) && storm_now_ms() - begin < 30000;) usleep(2000);
  int wrong = storm_check_living(storm_board, text, sizeof text);
  if (wrong || !storm_is_still(storm_board)) {
    instance_print_log(&storm_instance);
    storm_describe(storm_board);
    storm_ctl("channels --json");
    storm_ctl("status --json");
    cr_assert(0, "after %d kills: %s", kills, wrong ? text : "what was accepted has not arrived within 30 s");
  }
  EVENTUALLY(20, instance_clients(&storm_instance, 0) == storm_n_parts);
  cr_assert_eq(storm_ctl("fsck"), 0, "fsck after %d kills", kills);
}

void storm_go_on(void) {
  storm_board->pause = 0;
}

void storm_begin(const struct storm_part *parts, int n_parts, const char *yaml) {
  const char *seed_text = getenv("STORM_SEED");
  random_state = seed_text != NULL ? strtoull(seed_text, NULL, 0) : (uint64_t)time(NULL) * 2 + 1;
  say("storm: seed %llu\n", (unsigned long long)random_state);
  storm_parts = parts;
  storm_n_parts = n_parts;
  storm_board = shared_memory(sizeof *storm_board);
  instance_start(&storm_instance, yaml, NULL);
  for (int i = 0; i < n_parts; i++) storm_start(i);
}

int storm_kills(int kills) {
  const char *text = getenv("STORM_KILLS");
  return text != NULL ? atoi(text) : kills;
}

void storm_end(void) {
  for (int i = 0; i < storm_n_parts; i++) storm_kill(i);
  instance_stop(&storm_instance);
}
