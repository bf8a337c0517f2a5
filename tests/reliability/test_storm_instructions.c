/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A storm in which each process dies at an instruction: it is caught before a call (drawn), goes on for so many
 * instructions (drawn), and is killed there. The broker learns of it by its pidfd, as of any death. Proves for the whole,
 * with the real broker, what step_points proves for the library: nobody who lives loses or repeats an event, every slot
 * comes back, the registry is sound, the audit balances, and the dead are reaped soon.
 *
 * STORM_KILLS and STORM_SEED in the environment choose another length and another storm.
 *
 * ctest-labels: alone
 * ctest-timeout: 300
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/os_clock.h"
#include "reliability/storm_driver.h"
#include "support/single_step.h"
#include "support/times.h"

enum { KILLS = 2000, GROUPS = 3, CHECKS = 6, CATCH_MS = 20, REAP_MS_MAX = 20 };

static const struct storm_part parts[] = {
    {STORM_PUBLISHER, "all"},  {STORM_PUBLISHER, "work"}, {STORM_SUBSCRIBER, "all"},
    {STORM_SUBSCRIBER, "all"}, {STORM_MEMBER, "work"},    {STORM_MEMBER, "work"},
};
enum { N_PARTS = sizeof parts / sizeof *parts };

/*
 * By call: how often in 16 it is chosen, of a publisher and of a subscriber; at most so many beginnings and ends of
 * system calls at full speed first, as long calls are made of them; then at most so many instructions.
 */
static const struct {
  const char *name;
  uint32_t publisher, subscriber, system_calls, steps;
} calls[STORM_CALLS] = {
    [STORM_CONNECT] = {"connect", 1, 1, 120, 300}, [STORM_OPEN] = {"open", 1, 1, 24, 300},
    [STORM_CLOSE] = {"close", 1, 1, 10, 300},      [STORM_LOAN] = {"loan", 3, 0, 1, 150},
    [STORM_PUBLISH] = {"publish", 9, 0, 1, 300},   [STORM_WAIT_CREDIT] = {"wait for credit", 1, 0, 4, 300},
    [STORM_TAKE] = {"take", 0, 6, 1, 250},         [STORM_RELEASE] = {"release", 0, 6, 1, 200},
    [STORM_WAIT] = {"wait", 0, 1, 4, 300},
};

static uint32_t draw_call(int part) {
  uint32_t at = storm_random(16), call = STORM_CONNECT;
  for (; call < STORM_CALLS - 1; call++) {
    uint32_t share = parts[part].role == STORM_PUBLISHER ? calls[call].publisher : calls[call].subscriber;
    if (at < share) break;
    at -= share;
  }
  return call;
}

static uint64_t n_caught[STORM_CALLS], n_steps, n_uncaught;

/* It is stopped before the call, or before any where that does not come; else, asleep, it is killed as it lies. */
static int is_caught(struct storm_process *process) {
  for (int waited_us = 0; waited_us < CATCH_MS * 1000; waited_us += 50) {
    int how = 0;
    pid_t pid = waitpid(process->pid, &how, WNOHANG);
    if (pid == process->pid && WIFSTOPPED(how) && process->caught_at != STORM_NO_CALL) return 1;
    cr_assert_eq(pid, 0, "a process ended by itself with %#x: %s", (unsigned)how, storm_board->failure);
    if (waited_us == CATCH_MS * 500) process->catch_at = STORM_ANY_CALL;
    usleep(50);
  }
  return 0;
}

/* Does the registry show a client of this process that lives? */
static int is_shown_alive(pid_t pid) {
  const struct npi_registry_header *header = instance_header(&storm_instance);
  for (uint32_t i = 0; i < header->clients.count; i++) {
    const struct npi_client_record *record =
        (const struct npi_client_record *)(const void *)((const uint8_t *)header + header->clients.offset +
                                                         (uint64_t)i * header->clients.bytes);
    if (npi_load_acquire_u32(&record->state) == NPI_RECORD_ACTIVE && record->pid == (uint32_t)pid) return 1;
  }
  return 0;
}

/* They stand still while one is stepped, which needs the processors for thousands of changes between two processes. */
static void signal_others(int part, int number) {
  for (int i = 0; i < N_PARTS; i++) {
    if (i != part) kill(storm_board->process[i].pid, number);
  }
}

/* Dead at an instruction of a call. Returns the time until the broker has noted it; 0: it was no client. */
static uint64_t kill_inside(int part) {
  struct storm_process *process = &storm_board->process[part];
  if (is_caught(process)) {
    uint32_t caught_at = process->caught_at;
    n_caught[caught_at]++;
    signal_others(part, SIGSTOP);
    for (uint32_t i = storm_random(calls[caught_at].system_calls); i > 0 && step_to_call(process->pid); i--) {
    }
    for (uint32_t i = storm_random(calls[caught_at].steps); i > 0 && step_once(process->pid); i--) n_steps++;
    signal_others(part, SIGCONT);
  } else {
    n_uncaught++;
  }
  process->catch_at = STORM_NO_CALL;
  int was_client = is_shown_alive(process->pid);
  uint64_t from = npi_clock_monotonic();
  step_kill(process->pid);
  uint32_t life = process->life;
  if (life != 0) storm_board->life[life - 1].ended = 1;
  while (is_shown_alive(process->pid)) {
    cr_assert(npi_clock_monotonic() - from < UINT64_C(10000000000), "the broker does not note a death within 10 s");
    usleep(100);
  }
  return was_client ? npi_clock_monotonic() - from : 0;
}

static uint64_t judge(uint64_t *took, uint32_t n, int group) {
  times_sort(took, n);
  uint64_t p99 = n == 0 ? UINT64_MAX : took[(uint64_t)n * 99 / 100];
  if (n == 0) return p99;
  say("storm, group %d: reaped after p50 %.2f ms, p99 %.2f ms, longest %.2f ms, of %u that had a client\n", group,
      (double)took[n / 2] / 1e6, (double)p99 / 1e6, (double)took[n - 1] / 1e6, n);
  return p99;
}

Test(storm, of_kills_at_an_instruction, .timeout = 290) {
  int kills = storm_kills(KILLS);
  storm_begin(parts, N_PARTS,
              "memory: { per_node: 96MiB, per_client: 8MiB, segment: 2MiB }\n"
              "channels:\n"
              "  - { name: all, kind: broadcast, credits: 64, on_full: block }\n"
              "  - { name: work, kind: group, credits: 16, on_full: block }\n");
  uint64_t *took = calloc((size_t)kills, sizeof *took), best = UINT64_MAX, begin = storm_now_ms();
  cr_assert_not_null(took);
  for (int group = 0, done = 0; group < GROUPS; group++) {
    uint32_t n = 0;
    for (int end = kills * (group + 1) / GROUPS; done < end;) {
      int part = (int)storm_random(N_PARTS);
      uint32_t call = draw_call(part);
      struct storm_process *process = &storm_board->process[part];
      if (call == STORM_CONNECT || call == STORM_OPEN) { /* it has to begin anew for that */
        storm_kill(part);
        process->catch_at = call;
        storm_start(part);
      } else {
        process->catch_at = call;
      }
      uint64_t ns = kill_inside(part);
      if (ns > 0) took[n++] = ns;
      storm_start(part);
      done++;
      if (done % (kills / CHECKS + 1) != 0 && done != kills) continue;
      storm_check(done);
      if (done < kills) storm_go_on();
    }
    uint64_t p99 = judge(took, n, group);
    if (p99 < best) best = p99;
  }
  for (uint32_t call = STORM_CONNECT; call < STORM_CALLS; call++) {
    say("storm: %-16s %6llu kills\n", calls[call].name, (unsigned long long)n_caught[call]);
    cr_expect(kills < KILLS || n_caught[call] > 0, "nobody died in %s", calls[call].name);
  }
  say("storm: %d kills in %.1f s, %llu instructions stepped, %llu killed asleep, %u lives of publishers, %llu events "
      "accepted, %llu redelivered, %llu lost with both publisher and member\n",
      kills, (double)(storm_now_ms() - begin) / 1000, (unsigned long long)n_steps, (unsigned long long)n_uncaught,
      storm_board->n_lives, (unsigned long long)storm_accepted(storm_board),
      (unsigned long long)storm_board->redelivered, (unsigned long long)storm_lost_with_publisher(storm_board));
  cr_assert_eq(storm_ctl("audit"), 0, "the books do not balance");
  cr_assert(n_uncaught < (uint64_t)kills / 4, "%llu were not in a call", (unsigned long long)n_uncaught);
  cr_assert(best <= REAP_MS_MAX * UINT64_C(1000000), "p99 of the best group: %.2f ms", (double)best / 1e6);
  free(took);
  storm_end();
}
