/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream handed to the frame decoders in pieces, the way the ingest worker does it, with every promise of
 * daemon/framing.h checked on the way. Shared by the unit test and the fuzz target.
 *
 * Each call shows the decoder a heap block of exactly the bytes that it may read: the address sanitizer sees one
 * byte too many. A broken promise aborts.
 */
#ifndef NUMAPOOL_TESTS_FRAMING_FEED_H
#define NUMAPOOL_TESTS_FRAMING_FEED_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/framing.h"

#define FEED_PROMISE(condition)                                                       \
  do {                                                                                \
    if (!(condition)) {                                                               \
      fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                                        \
    }                                                                                 \
  } while (0)

/* What came out of a stream. Two streams of the same bytes must leave the same account, however they were cut. */
struct feed_account {
  uint8_t *text; /* for each frame: priority 1, topic length 4, topic, payload length 8, payload */
  size_t n_text;
  size_t text_capacity;
  uint64_t n_frames;
  uint64_t blank_lines;
  enum npi_frame_error error;
};

static inline void feed_account_free(struct feed_account *account) {
  free(account->text);
  *account = (struct feed_account){0};
}

static inline void feed_append(struct feed_account *account, const void *bytes, size_t n) {
  if (account->n_text + n > account->text_capacity) {
    account->text_capacity = 2 * account->text_capacity + n + 64;
    account->text = realloc(account->text, account->text_capacity);
    FEED_PROMISE(account->text != NULL);
  }
  if (n > 0) memcpy(account->text + account->n_text, bytes, n);
  account->n_text += n;
}

static inline int feed_same(const struct feed_account *a, const struct feed_account *b) {
  return a->n_frames == b->n_frames && a->blank_lines == b->blank_lines && a->error == b->error &&
         a->n_text == b->n_text && (a->n_text == 0 || memcmp(a->text, b->text, a->n_text) == 0);
}

static inline int feed_inside(const uint8_t *part, uint64_t part_bytes, const uint8_t *whole, uint64_t whole_bytes) {
  return part >= whole && part_bytes <= whole_bytes && (uint64_t)(part - whole) <= whole_bytes - part_bytes;
}

static inline void feed_take_frame(const struct npi_framing *framing, const struct npi_frame *frame,
                                   const uint8_t *bytes, uint64_t n, struct feed_account *account) {
  uint8_t priority = (uint8_t)frame->priority;

  FEED_PROMISE(frame->consumed > 0 && frame->consumed <= n);
  FEED_PROMISE(feed_inside(frame->payload, frame->payload_bytes, bytes, frame->consumed));
  FEED_PROMISE(frame->payload_bytes <= framing->max_frame);
  FEED_PROMISE(frame->payload_bytes > 0 || framing->kind == NPI_FRAMING_EVENTSTREAM);
  FEED_PROMISE(frame->priority <= NPI_FRAMING_MAX_PRIORITY);
  FEED_PROMISE((frame->topic != NULL) == (frame->topic_bytes > 0));
  FEED_PROMISE(frame->topic == NULL || feed_inside(frame->topic, frame->topic_bytes, bytes, frame->consumed));
  FEED_PROMISE(framing->kind == NPI_FRAMING_EVENTSTREAM || (frame->topic == NULL && frame->priority == 0));
  feed_append(account, &priority, sizeof(priority));
  feed_append(account, &frame->topic_bytes, sizeof(frame->topic_bytes));
  feed_append(account, frame->topic, frame->topic_bytes);
  feed_append(account, &frame->payload_bytes, sizeof(frame->payload_bytes));
  feed_append(account, frame->payload, frame->payload_bytes);
  account->n_frames++;
}

/* Takes all frames out of one block; *n_left are the bytes at its end that wait for more. */
static inline void feed_block(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n, int last,
                              uint64_t *scan_from, uint64_t *promised, uint64_t *n_left, struct feed_account *account) {
  uint64_t at = 0;

  for (;;) {
    struct npi_frame frame;
    uint64_t needed;
    enum npi_frame_error error;
    enum npi_frame_result result =
        (last ? npi_framing_finish : npi_framing_next)(framing, bytes + at, n - at, scan_from, &frame, &needed, &error);

    account->blank_lines += frame.blank_lines;
    FEED_PROMISE((error != NPI_FRAME_ERROR_NONE) == (result == NPI_FRAME_BAD));
    if (result == NPI_FRAME_BAD) {
      account->error = error;
      *n_left = 0;
      return;
    }
    FEED_PROMISE(frame.consumed <= n - at);
    if (result == NPI_FRAME_READY) {
      FEED_PROMISE(frame.consumed >= *promised);
      FEED_PROMISE(*scan_from == 0);
      *promised = 0;
      feed_take_frame(framing, &frame, bytes + at, n - at, account);
      at += frame.consumed;
      continue;
    }
    FEED_PROMISE(result == NPI_FRAME_NEED_MORE);
    at += frame.consumed;
    *n_left = n - at;
    FEED_PROMISE(*scan_from <= *n_left);
    FEED_PROMISE(!last || *n_left == 0);
    FEED_PROMISE(*n_left < framing->max_frame + npi_framing_overhead_max(framing) || *n_left == 0);
    if (needed > 0) {
      FEED_PROMISE(needed > *n_left && needed >= *promised);
      FEED_PROMISE(needed <= framing->max_frame + npi_framing_overhead_max(framing));
    }
    *promised = needed;
    return;
  }
}

/*
 * Feeds stream[0..n) in pieces that end at the ascending positions of cuts[0..n_cuts), then ends the stream.
 * account must be zeroed or hold what to add to.
 */
static inline void feed_stream(const struct npi_framing *framing, const uint8_t *stream, uint64_t n,
                               const uint64_t *cuts, size_t n_cuts, struct feed_account *account) {
  uint64_t scan_from = 0, promised = 0, fed = 0, n_held = 0;
  uint8_t *held = NULL;

  for (size_t i = 0; i <= n_cuts && account->error == NPI_FRAME_ERROR_NONE; i++) {
    uint64_t until = i < n_cuts ? cuts[i] : n;
    uint64_t n_block = n_held + (until - fed);
    uint8_t *block = malloc(n_block ? n_block : 1);
    uint64_t n_left = 0;

    FEED_PROMISE(block != NULL && until >= fed && until <= n);
    if (n_held > 0) memcpy(block, held, n_held);
    if (until > fed) memcpy(block + n_held, stream + fed, until - fed);
    free(held);
    fed = until;
    feed_block(framing, block, n_block, 0, &scan_from, &promised, &n_left, account);
    held = malloc(n_left ? n_left : 1);
    FEED_PROMISE(held != NULL);
    if (n_left > 0) memcpy(held, block + n_block - n_left, n_left);
    n_held = n_left;
    free(block);
  }
  if (account->error == NPI_FRAME_ERROR_NONE) {
    uint64_t n_left;
    promised = 0; /* a last line may stay shorter */
    feed_block(framing, held, n_held, 1, &scan_from, &promised, &n_left, account);
  }
  free(held);
}

#endif
