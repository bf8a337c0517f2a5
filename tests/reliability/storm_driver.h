/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all storms share: a broker, the parts as child processes, the dice, and the check when nothing moves.
 * STORM_KILLS and STORM_SEED in the environment choose another length and another storm.
 */
#ifndef NUMAPOOL_TESTS_STORM_DRIVER_H
#define NUMAPOOL_TESTS_STORM_DRIVER_H

#include "reliability/storm_board.h"
#include "support/instance.h"
#include "support/peers.h"

extern struct instance storm_instance;
extern struct storm_board *storm_board;

/* Starts the broker and every part; prints the seed. */
void storm_begin(const struct storm_part *parts, int n_parts, const char *yaml);
/* Kills every part, and stops the broker, which must be as it began. */
void storm_end(void);

int storm_kills(int kills); /* or as STORM_KILLS says */
uint32_t storm_random(uint32_t n);
void storm_start(int part);
void storm_kill(int part);
/* Pauses the publishers until nothing moves, and judges. */
void storm_check(int kills);
void storm_go_on(void);
/* Runs numapoolctl; its output is shown where it fails. */
int storm_ctl(const char *verb);
long storm_broker_kib(void);
uint64_t storm_now_ms(void);

#endif
