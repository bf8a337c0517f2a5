/* SPDX-License-Identifier: Apache-2.0 */
/*
 * May a successor go on with this registry? A pure function over bytes: no input, no output, bounded time.
 *
 * A registry is written by brokers only, and yet it is read here as if anybody had written it: an adopting broker
 * works on a private copy, and only on what this function has accepted. Whoever is killed between two stores leaves
 * a registry that is accepted; anything else is damage.
 */
#ifndef NPI_DAEMON_ADOPT_IMAGE_H
#define NPI_DAEMON_ADOPT_IMAGE_H

#include <stddef.h>

#include "shm/layout.h"

/* Whose registry is expected. */
struct npi_adopt_owner {
  const char *instance;
  const char *boot_id;
  uint32_t uid;
};

/* What was accepted: the tables of the image, and what was found out on the way. */
struct npi_adopt_image {
  const struct npi_registry_header *header;
  const struct npi_node_record *nodes;
  const struct npi_client_record *clients;
  const struct npi_channel_record *channels;
  const struct npi_publisher_record *publishers;
  const struct npi_subscriber_record *subscribers;
  const struct npi_connection_record *connections;
  const struct npi_segment_record *segments;
  const struct npi_listener_record *listeners;
  const struct npi_journal *journal;
  uint64_t next_object; /* greater than that of each segment there ever was */
};

/*
 * bytes of an image at an address that is a multiple of 8. 0: *image points into it.
 * NP_ERR_NOT_FOUND: of another owner, boot or life, or of a broker that was not ready or ended in order.
 * NP_ERR_VERSION: of another layout. NP_ERR_CORRUPT: nobody honest left it so. NP_ERR_NO_MEMORY.
 */
int npi_adopt_validate(const void *memory, size_t bytes, const struct npi_adopt_owner *owner,
                       struct npi_adopt_image *image);

/* The first part alone: header and the places of the tables, enough to replay the journal. */
int npi_adopt_validate_header(const void *memory, size_t bytes, const struct npi_adopt_owner *owner,
                              struct npi_adopt_image *image);

/* Elements of each ring of a subscriber with that many credits. */
uint32_t npi_ring_capacity_for(uint32_t credits);

#endif
