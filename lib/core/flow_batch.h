/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many events at once: for who has a row of payloads in private memory, all with the same header, as a decoder has
 * that was given 64 KiB of a stream.
 *
 * The same steps in the same order as npi_flow_publish for each, but step by step for all of them: slots, ledger,
 * contents, elements, returns. What is gained is less the instructions than the cache lines on their way: eight elements
 * lie in one line, and are stored in a row, where one by one each of them would have to fetch the line back from a
 * subscriber that is waiting at it; and returns are looked for once.
 */
#ifndef NPI_CORE_FLOW_BATCH_H
#define NPI_CORE_FLOW_BATCH_H

#include "core/flow.h"

enum { NPI_BATCH_MAX = 64 };

struct npi_payload {
  const uint8_t *bytes;
  uint32_t size;
};

/*
 * Publishes payloads from the front of n (at most NPI_BATCH_MAX) with the header `like`, in which sequence, sizes and
 * generation need not be set. Returns how many went out; all others are untouched. It does not look for a reason why
 * one cannot go (no slot on the list, no credit, nobody there, a tap in a group): npi_flow_publish of that one does.
 * Does not ring: outlets with new elements are marked `unwoken`.
 */
uint32_t npi_flow_publish_batch(struct npi_flow *flow, const struct npi_slot_header *like,
                                const struct npi_payload *payloads, uint32_t n);

#endif
