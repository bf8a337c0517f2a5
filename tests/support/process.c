/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/process.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { STOP_SECONDS = 20 };

int process_state(pid_t pid) {
  char path[64], line[512] = "";
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  FILE *file = fopen(path, "re");
  if (file == NULL) return 0;
  const char *end = fgets(line, sizeof line, file) != NULL ? strrchr(line, ')') : NULL;
  fclose(file);
  return end != NULL && end[1] == ' ' ? end[2] : 0;
}

int process_stop(pid_t pid) {
  if (kill(pid, SIGSTOP) != 0) return 0;
  for (int left = STOP_SECONDS * 1000; left > 0; left--) {
    int state = process_state(pid);
    if (state == 'T') return 1;
    if (state == 0 || state == 'Z') return 0;
    usleep(1000);
  }
  return 0;
}
