/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seeded_bugs_are_caught: the harness of step_points on a copy of the library with one bug each (mutants.txt). Each
 * must be found, but those that change nothing; and the copy without a bug must pass.
 *
 * step_mutants [NUMBER]     default: all
 *
 * ctest-timeout: 600
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "step/stepper.h"

/* A finding is due within so many points, which take two seconds and less of a processor. */
enum { POINTS_MOST = 40000, SERIES = 3, AT_ONCE = 2, SECONDS_MOST = 120 };

struct mutant {
  int applies;
  const char *name, *file, *equivalent;
};
static const struct mutant mutants[] = {
#include "mutants_table.h"
};
enum { MUTANTS = NPI_ARRAY_COUNT(mutants) };

extern int npi_mutant;
int npi_mutant;

static pid_t start(uint32_t number, uint64_t seed, struct step_result *result) {
  fflush(NULL);
  pid_t pid = fork();
  if (pid != 0) return pid;
  npi_mutant = (int)number;
  *result = (struct step_result){0};
  /* Where the bug makes a survivor turn in a circle, or fall: that is a finding too. */
  int silent = freopen("/dev/null", "w", stderr) == NULL;
  alarm(SECONDS_MOST);
  step_run(&(struct step_job){.seed = seed * 1000 + number + (uint64_t)silent, .points = POINTS_MOST, .is_quick = 1},
           result);
  _exit((int)result->failed);
}

/* Its exit status; the seconds of processor time that it took are added. */
static int finish(pid_t pid, double *seconds) {
  struct rusage usage;
  int status = 0;
  wait4(pid, &status, 0, &usage);
  *seconds += (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
              (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
  return status;
}

/* 1: as expected. */
static int judge(uint32_t number, const struct step_result *result, int status, double seconds) {
  const struct mutant *mutant = &mutants[number - 1];
  int is_found = result->failed || status != 0;
  const char *how = result->failed                                       ? result->words
                    : WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? "the living do not come to an end"
                                                                         : "a survivor falls";
  printf("%2u %-70s ", number, mutant->name);
  if (is_found && mutant->equivalent[0] == '\0') {
    printf("found after %6" PRIu64 " points, %.1f s: %.*s\n", result->points, seconds, (int)strcspn(how, "\n"), how);
    return 1;
  }
  if (!is_found && mutant->equivalent[0] != '\0') {
    printf("changes nothing: %s\n", mutant->equivalent);
    return 1;
  }
  printf("%s\n", is_found ? "FOUND, though it should change nothing" : "NOT FOUND");
  if (is_found) printf("   %s\n", how);
  return 0;
}

static int run_some(const uint32_t *numbers, uint32_t n, int *failed) {
  struct step_result *results =
      mmap(NULL, AT_ONCE * sizeof *results, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  pid_t pids[AT_ONCE];
  if (results == MAP_FAILED) return -1;
  for (uint32_t i = 0; i < n; i++) pids[i] = start(numbers[i], 1, &results[i]);
  for (uint32_t i = 0; i < n; i++) {
    double seconds = 0;
    int status = finish(pids[i], &seconds);
    /* What is rare is looked for in further series. */
    for (uint64_t seed = 2; seed <= SERIES && numbers[i] > 0 && status == 0; seed++) {
      if (mutants[numbers[i] - 1].equivalent[0] != '\0') break;
      status = finish(start(numbers[i], seed, &results[i]), &seconds);
    }
    if (numbers[i] == 0) {
      printf("without a bug: %" PRIu64 " points%s%s\n", results[i].points,
             results[i].failed || status != 0 ? ", and it FAILS: " : ", nothing found",
             results[i].failed ? results[i].words : "");
      *failed += results[i].failed || status != 0;
    } else {
      *failed += !judge(numbers[i], &results[i], status, seconds);
    }
  }
  munmap(results, AT_ONCE * sizeof *results);
  return 0;
}

int main(int argc, char **argv) {
  uint32_t only = argc > 1 ? (uint32_t)atoi(argv[1]) : 0, n_equivalent = 0, n = 0;
  uint32_t numbers[AT_ONCE], waiting = 0;
  int failed = 0;
  for (uint32_t number = only; number <= MUTANTS; number++) {
    if (only != 0 && number != only) break;
    if (number > 0 && !mutants[number - 1].applies) {
      printf("%2u %s: its place in %s is not found any more: adjust tests/step/mutants.txt\n", number,
             mutants[number - 1].name, mutants[number - 1].file);
      failed++;
      continue;
    }
    if (number > 0) {
      n++;
      n_equivalent += mutants[number - 1].equivalent[0] != '\0';
    }
    numbers[waiting++] = number;
    if (waiting < AT_ONCE) continue;
    if (run_some(numbers, waiting, &failed) != 0) return 2;
    waiting = 0;
  }
  if (waiting > 0 && run_some(numbers, waiting, &failed) != 0) return 2;
  printf("%u seeded bugs, %u of them change nothing, %d not as expected\n", n, n_equivalent, failed);
  return failed > 0;
}
