/* SPDX-License-Identifier: Apache-2.0 */
/* Many events of the ingest worker in one call; core/flow_batch.h does the work. */
#include "client/client_internal.h"
#include "client/worker.h"

uint32_t npi_publish_batch(struct np_publisher *publisher, const struct npi_slot_header *like,
                           const struct npi_payload *payloads, uint32_t n) {
  struct np_client *client = publisher->client;
  if (!npi_client_usable(client)) return 0; /* as for every other reason: np_loan says it */
  if (NPI_UNLIKELY(npi_client_has_news(client))) npi_client_news(client);
  struct npi_slot_header header = *like;
  header.channel = publisher->channel;
  return npi_flow_publish_batch(&publisher->flow, &header, payloads, n);
}
