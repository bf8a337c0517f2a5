/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The invariant checker: is a ledger, and the rings of its connections, what the rest of core/ promises?
 *
 *   each carved slot is in exactly one state: free and on the list of its class, loaned, out, or waiting
 *   holders of a slot = connections that have a credit out for it
 *   per connection: outstanding = submitted - returned = capacity - free credits = credits that are out
 *   each event that is out is in one place: an untaken element, a reader's hands, an unprocessed return
 *
 * It works on the bytes as they are: a live ledger of its own process (debug builds, tests) or a copy of
 * another's, also of a dead or a hostile one. Every loop ends, nothing outside the areas is read, whatever
 * the bytes say. All of it holds between two calls of the owner: a copy of a running owner's ledger shows
 * steps half done, so look twice; and one killed inside a call leaves the half of that call for ever.
 *
 * Each finding is one line of words with values. Functions return how many there are, 0: all is well.
 */
#ifndef NPI_CORE_CHECK_H
#define NPI_CORE_CHECK_H

#include "core/pool.h"
#include "core/ring.h"

typedef void (*npi_check_report)(void *context, const char *finding);

/* Nobody reads more lines than this of one ledger; further findings are only counted. */
enum { NPI_CHECK_LINES_MAX = 200 };

/* The ledger alone. report may be NULL. Takes memory: 3 bytes for each slot record, of which little is touched. */
unsigned npi_check_ledger(const struct npi_ledger *ledger, npi_check_report report, void *context);

/* What the subscriber says of a connection: positions of its inlet. */
struct npi_check_subscriber {
  uint64_t taken;
  uint64_t returned;
};

/*
 * One connection: its entry in the ledger against both rings, which hold `capacity` elements, as the broker
 * says. subscriber: NULL where its positions are not known. Does not repeat what npi_check_ledger looks at.
 */
unsigned npi_check_connection(const struct npi_ledger *ledger, const struct npi_ledger_connection *entry,
                              const struct npi_ring_block *submissions, const struct npi_ring_block *returns,
                              uint32_t capacity, const struct npi_check_subscriber *subscriber, npi_check_report report,
                              void *context);

/* A live pool of this process: its ledger, and the private figures beside it. */
unsigned npi_check_pool(const struct npi_pool *pool, npi_check_report report, void *context);

#endif
