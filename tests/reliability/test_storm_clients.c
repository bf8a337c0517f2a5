/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eight processes exchange events (broadcast, one to one, group) while a random one of them is killed every few
 * milliseconds and started again. Proves: nobody who lives loses or repeats an event, and nothing of the dead stays.
 *
 * ctest-timeout: 600
 */
#include <criterion/criterion.h>
#include <unistd.h>

#include "reliability/storm_driver.h"

enum { KILLS = 10000, KILLS_BETWEEN_CHECKS = 500, PAUSE_US_MAX = 10000 };

static const struct storm_part parts[] = {
    {STORM_PUBLISHER, "all"},  {STORM_PUBLISHER, "one"},  {STORM_PUBLISHER, "work"}, {STORM_SUBSCRIBER, "all"},
    {STORM_SUBSCRIBER, "all"}, {STORM_SUBSCRIBER, "one"}, {STORM_MEMBER, "work"},    {STORM_MEMBER, "work"},
};
enum { N_PARTS = sizeof parts / sizeof *parts };

Test(storm, of_killed_clients, .timeout = 36000) {
  int kills = storm_kills(KILLS);
  storm_begin(parts, N_PARTS,
              "memory: { per_node: 96MiB, per_client: 8MiB, segment: 2MiB }\n"
              "channels:\n"
              "  - { name: all, kind: broadcast, credits: 128, on_full: block }\n"
              "  - { name: one, kind: broadcast, credits: 128, on_full: block }\n"
              "  - { name: work, kind: group, credits: 32, on_full: block }\n");
  uint64_t begin = storm_now_ms(), killing = 0;
  long first_kib = 0, last_kib = 0;
  for (int i = 1; i <= kills; i++) {
    uint64_t from = storm_now_ms();
    usleep(storm_random(PAUSE_US_MAX));
    int part = (int)storm_random(N_PARTS);
    storm_kill(part);
    storm_start(part);
    killing += storm_now_ms() - from;
    if (i % KILLS_BETWEEN_CHECKS != 0 && i != kills) continue;
    storm_check(i);
    if (i < kills) storm_go_on();
    last_kib = storm_broker_kib();
    if (first_kib == 0) first_kib = last_kib;
  }
  say("storm: %d kills in %.1f s (%.1f s with checks), %u lives of publishers, %llu events accepted, %llu redelivered, "
      "%llu lost with both publisher and member; broker %ld KiB after the first check, %ld KiB in the end\n",
      kills, (double)killing / 1000, (double)(storm_now_ms() - begin) / 1000, storm_board->n_lives,
      (unsigned long long)storm_accepted(storm_board), (unsigned long long)storm_board->redelivered,
      (unsigned long long)storm_lost_with_publisher(storm_board), first_kib, last_kib);
  cr_assert(storm_accepted(storm_board) > (uint64_t)kills, "hardly anything was exchanged");
  cr_assert(storm_board->redelivered > 0, "no event was delivered again");
  cr_assert(last_kib < first_kib + 2048, "the broker grew from %ld to %ld KiB", first_kib, last_kib);
  storm_end();
}
