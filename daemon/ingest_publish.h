/* SPDX-License-Identifier: Apache-2.0 */
/* The sink of the ingest worker: one copy from staging into a slot, and on to the subscribers. */
#ifndef NPI_DAEMON_INGEST_PUBLISH_H
#define NPI_DAEMON_INGEST_PUBLISH_H

#include <stdint.h>

#include "daemon/ingest.h"
#include "numapool/numapool.h"

/* One publisher for each channel; listeners of one channel share it. */
struct npi_ingest_publishers {
  struct npi_ingest_route *routes; /* by listener */
  uint32_t n_routes;
  struct npi_ingest_outlet *outlets;
  uint32_t n_outlets;
};

struct npi_ingest_route {
  struct npi_ingest_outlet *outlet;
  uint32_t registry_index;
};

struct npi_ingest_outlet {
  struct np_publisher *publisher;
  const char *channel;  /* the caller's memory */
  uint32_t n_unflushed; /* events published since subscribers were woken */
};

/* Zeroed room for n listeners. On failure nothing is left behind. */
int npi_ingest_publishers_init(struct npi_ingest_publishers *publishers, uint32_t n_listeners);

/* Opens the publisher of the next listener's channel, or shares one that is open. channel must stay. */
int npi_ingest_publishers_add(struct npi_ingest_publishers *publishers, struct np_client *client, const char *channel,
                              uint32_t registry_index);

/* Closes what is open; harmless after a failed init and when called twice. */
void npi_ingest_publishers_deinit(struct npi_ingest_publishers *publishers);

struct npi_ingest_sink npi_ingest_publishers_sink(struct npi_ingest_publishers *publishers);

#endif
