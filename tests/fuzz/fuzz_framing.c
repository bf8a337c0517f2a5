/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frame decoders against any bytes under any settings: the first eight bytes choose the settings and where the
 * stream is cut, the rest is the stream. Whole, cut at random and (short streams) byte by byte must give the same
 * frames and the same error; framing_feed.h checks each single result.
 */
#include <stdint.h>
#include <stdlib.h>

#include "tests/support/framing_feed.h"

#define SETTINGS_BYTES 8
#define MAX_CUTS       4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void compare(const struct npi_framing *framing, const uint8_t *stream, size_t n, const uint64_t *cuts,
                    size_t n_cuts, const struct feed_account *expected) {
  struct feed_account account = {0};

  feed_stream(framing, stream, n, cuts, n_cuts, &account);
  FEED_PROMISE(feed_same(&account, expected));
  feed_account_free(&account);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const uint32_t widths[] = {1, 2, 4, 8};
  static uint64_t cuts[MAX_CUTS];
  struct npi_framing framing = {0};
  struct feed_account whole = {0};
  const uint8_t *stream;
  size_t n, n_cuts = 0;
  uint32_t step;
  char why[160];

  if (size < SETTINGS_BYTES) return 0;
  stream = data + SETTINGS_BYTES;
  n = size - SETTINGS_BYTES;
  framing.kind = data[0] % NPI_FRAMING_KIND_COUNT;
  framing.prefix_bytes = widths[data[1] & 3];
  framing.big_endian = data[1] >> 2 & 1;
  framing.includes_prefix = data[1] >> 3 & 1;
  framing.strip_cr = data[1] >> 4 & 1;
  /* Small limits mostly, so that short inputs reach them. */
  framing.max_frame = 1 + (data[2] & 0x80 ? (uint64_t)data[3] << (data[2] & 12) : data[2] & 31);
  framing.fixed_bytes = 1 + data[4] % (framing.max_frame > 64 ? 64 : (uint32_t)framing.max_frame);
  framing.max_topic = data[5] & 0x80 ? 0 : data[5] & 31;
  FEED_PROMISE(npi_framing_check(&framing, why, sizeof(why)) == 0);

  if (framing.kind == NPI_FRAMING_DATAGRAM) {
    /* Never cut: one frame, or one error. */
    uint64_t scan_from = 0, promised = 0, n_left;
    feed_block(&framing, stream, n, 1, &scan_from, &promised, &n_left, &whole);
    FEED_PROMISE(whole.n_frames == (n > 0 && n <= framing.max_frame));
    feed_account_free(&whole);
    return 0;
  }
  feed_stream(&framing, stream, n, NULL, 0, &whole);

  step = 1 + (data[6] & 15);
  for (uint64_t at = data[7] % 16; at < n && n_cuts < MAX_CUTS; at += step) {
    cuts[n_cuts++] = at;
    step = 1 + (step * 5 + data[6]) % 23;
  }
  compare(&framing, stream, n, cuts, n_cuts, &whole);
  if (n <= 256) {
    for (n_cuts = 0; n_cuts < n; n_cuts++) cuts[n_cuts] = n_cuts;
    compare(&framing, stream, n, cuts, n_cuts, &whole);
  }
  feed_account_free(&whole);
  return 0;
}
