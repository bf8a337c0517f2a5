/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Members of a group are killed while they hold events; their publisher lives. Proves: each event is acted upon at
 * least once, none is missing, and whoever gets one that another had acted upon is told so.
 *
 * ctest-timeout: 300
 */
#include <criterion/criterion.h>
#include <unistd.h>

#include "reliability/storm_driver.h"

enum { KILLS = 1000, KILLS_BETWEEN_CHECKS = 100, PAUSE_US_MAX = 12000 };

static const struct storm_part parts[] = {
    {STORM_PUBLISHER, "work"}, {STORM_MEMBER, "work"}, {STORM_MEMBER, "work"}, {STORM_MEMBER, "work"}};
enum { N_PARTS = sizeof parts / sizeof *parts };

static uint64_t acted_again(void) {
  uint64_t n = 0;
  for (uint32_t life = 0; life < storm_board->n_lives; life++) {
    for (uint64_t i = 0; i < storm_board->life[life].accepted; i++) {
      uint8_t times = storm_board->acted[life][i] & (STORM_RELEASED - 1);
      if (times > 1) n += (uint64_t)times - 1;
    }
  }
  return n;
}

Test(storm, of_killed_workers, .timeout = 300) {
  int kills = storm_kills(KILLS);
  storm_begin(parts, N_PARTS,
              "memory: { per_node: 64MiB, per_client: 16MiB }\n"
              "channels: [ { name: work, kind: group, credits: 64, on_full: block } ]\n");
  uint64_t begin = storm_now_ms();
  for (int i = 1; i <= kills; i++) {
    usleep(storm_random(PAUSE_US_MAX));
    int part = 1 + (int)storm_random(N_PARTS - 1);
    storm_kill(part);
    storm_start(part);
    if (i % KILLS_BETWEEN_CHECKS != 0 && i != kills) continue;
    storm_check(i);
    if (i < kills) storm_go_on();
  }
  uint64_t missing = storm_lost_with_publisher(storm_board), again = acted_again();
  say("storm: %d kills of workers in %.1f s, %llu events accepted, %llu delivered again, %llu acted upon again, "
      "%llu unmarked, %llu missing\n",
      kills, (double)(storm_now_ms() - begin) / 1000, (unsigned long long)storm_accepted(storm_board),
      (unsigned long long)storm_board->redelivered, (unsigned long long)again,
      (unsigned long long)storm_board->unmarked, (unsigned long long)missing);
  cr_assert_eq(missing, 0);
  cr_assert(again > 0 && again <= storm_board->redelivered, "no worker was killed between its act and its release");
  storm_end();
}
