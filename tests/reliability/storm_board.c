/* SPDX-License-Identifier: Apache-2.0 */
#include "reliability/storm_board.h"

#include <stdio.h>
#include <string.h>

const struct storm_part *storm_parts;
int storm_n_parts;

static int has_members(uint32_t publisher) {
  for (int i = 0; i < storm_n_parts; i++) {
    if (storm_parts[i].role == STORM_MEMBER && strcmp(storm_parts[i].channel, storm_parts[publisher].channel) == 0) {
      return 1;
    }
  }
  return 0;
}

static int feeds(uint32_t publisher, int subscriber) {
  return strcmp(storm_parts[publisher].channel, storm_parts[subscriber].channel) == 0;
}

/* Which lives a living subscriber must have seen to their end: all since it was there. */
static int must_see(const struct storm_board *board, int subscriber, uint32_t life) {
  return storm_parts[subscriber].role == STORM_SUBSCRIBER && feeds(board->life[life].part, subscriber) &&
         (life >= board->process[subscriber].from_life || board->seen[subscriber][life] != 0);
}

/* A member that was killed in the middle leaves its events to the others: all of a living publisher's must be acted upon. */
static uint64_t not_acted(const struct storm_board *board, uint32_t life) {
  uint64_t n = 0;
  for (uint64_t i = 0; i < board->life[life].accepted; i++) n += board->acted[life][i] == 0;
  return n;
}

static int is_current(const struct storm_board *board, uint32_t life) {
  return board->process[board->life[life].part].life == life + 1;
}

int storm_is_still(const struct storm_board *board) {
  uint32_t n_lives = board->n_lives;
  for (int p = 0; p < storm_n_parts; p++) {
    if (!board->process[p].ready) return 0;
    if (storm_parts[p].role == STORM_PUBLISHER && !board->process[p].paused) return 0;
  }
  for (uint32_t life = 0; life < n_lives; life++) {
    for (int s = 0; s < storm_n_parts; s++) {
      if (must_see(board, s, life) && board->seen[s][life] < board->life[life].accepted) return 0;
    }
    if (is_current(board, life) && has_members(board->life[life].part) && not_acted(board, life) > 0) {
      return 0;
    }
  }
  return 1;
}

int storm_check_living(struct storm_board *board, char *text, size_t bytes) {
  uint32_t n_lives = board->n_lives;
  if (board->bad + board->gaps + board->twice + board->unmarked + board->again + board->missed_first +
          board->failed_calls >
      0) {
    snprintf(text, bytes,
             "bad %llu, gaps %llu, twice %llu, unmarked %llu, given back before %llu, missed first %llu, failed calls "
             "%llu (%s)",
             (unsigned long long)board->bad, (unsigned long long)board->gaps, (unsigned long long)board->twice,
             (unsigned long long)board->unmarked, (unsigned long long)board->again,
             (unsigned long long)board->missed_first, (unsigned long long)board->failed_calls, board->failure);
    return 1;
  }
  for (uint32_t life = 0; life < n_lives; life++) {
    uint64_t accepted = board->life[life].accepted, tried = board->life[life].tried;
    for (int s = 0; s < storm_n_parts; s++) {
      uint64_t seen = board->seen[s][life];
      if (!must_see(board, s, life) || (seen >= accepted && seen <= tried)) continue;
      snprintf(text, bytes, "subscriber %d saw %llu of life %u, of which %llu were accepted and %llu tried", s,
               (unsigned long long)seen, life, (unsigned long long)accepted, (unsigned long long)tried);
      return 1;
    }
  }
  return 0;
}

uint64_t storm_lost_with_publisher(const struct storm_board *board) {
  uint64_t n = 0;
  for (uint32_t life = 0; life < board->n_lives; life++) {
    if (has_members(board->life[life].part)) n += not_acted(board, life);
  }
  return n;
}

uint64_t storm_accepted(const struct storm_board *board) {
  uint64_t n = 0;
  for (uint32_t life = 0; life < board->n_lives; life++) n += board->life[life].accepted;
  return n;
}

void storm_describe(const struct storm_board *board) {
  for (int i = 0; i < storm_n_parts; i++) {
    const struct storm_process *process = &board->process[i];
    fprintf(stderr, "part %d on %s: pid %d ready %u paused %u life %d events %llu\n", i, storm_parts[i].channel,
            (int)process->pid, process->ready, process->paused, (int)process->life - 1,
            (unsigned long long)process->at);
  }
  for (uint32_t life = 0; life < board->n_lives; life++) {
    if (!is_current(board, life)) continue;
    fprintf(stderr, "life %u: tried %llu accepted %llu, not acted upon:", life,
            (unsigned long long)board->life[life].tried, (unsigned long long)board->life[life].accepted);
    for (uint64_t i = 0; has_members(board->life[life].part) && i < board->life[life].accepted; i++) {
      if (board->acted[life][i] == 0) fprintf(stderr, " %llu", (unsigned long long)i);
    }
    fprintf(stderr, "\n");
  }
}
