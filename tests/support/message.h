/* SPDX-License-Identifier: Apache-2.0 */
/* Numbered events whose every byte is accounted for: number, check word over number, size and the rest, then filler. */
#ifndef NUMAPOOL_TESTS_MESSAGE_H
#define NUMAPOOL_TESTS_MESSAGE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { MESSAGE_LEAST = 16, MESSAGE_MOST = 65536 };

static inline uint64_t message_mix(uint64_t x) { /* a bijection that spreads every bit */
  x ^= x >> 32;
  x *= UINT64_C(0xd6e8feb86659fd93);
  x ^= x >> 32;
  x *= UINT64_C(0xd6e8feb86659fd93);
  return x ^ x >> 32;
}

/* 16 B to 64 KiB: each octave as likely as the next, even within. */
static inline size_t message_size(uint64_t number) {
  uint64_t random = message_mix(number + 1);
  size_t octave = (size_t)16 << random % 12;
  return octave + (random >> 16) % (octave + 1);
}

static inline uint64_t message_check_word(const uint8_t *data, size_t size) {
  uint64_t number;
  memcpy(&number, data, 8);
  uint64_t sum = message_mix(number) + size;
  size_t at = MESSAGE_LEAST;
  for (; at + 8 <= size; at += 8) {
    uint64_t word;
    memcpy(&word, data + at, 8);
    sum = (sum << 7 | sum >> 57) + word;
  }
  for (; at < size; at++) sum = (sum << 7 | sum >> 57) + data[at];
  return sum;
}

static inline void message_fill(uint8_t *data, size_t size, uint64_t number) {
  uint64_t filler = message_mix(~number);
  memcpy(data, &number, 8);
  size_t at = MESSAGE_LEAST;
  for (; at + 8 <= size; at += 8, filler += UINT64_C(0x9e3779b97f4a7c15)) memcpy(data + at, &filler, 8);
  for (; at < size; at++) data[at] = (uint8_t)(filler >> at % 8);
  uint64_t check = message_check_word(data, size);
  memcpy(data + 8, &check, 8);
}

/* 1: whole and right, its number in *number. */
static inline int message_ok(const void *data, size_t size, uint64_t *number) {
  uint64_t check;
  if (size < MESSAGE_LEAST) return 0;
  memcpy(number, data, 8);
  memcpy(&check, (const uint8_t *)data + 8, 8);
  return check == message_check_word(data, size);
}

#endif
