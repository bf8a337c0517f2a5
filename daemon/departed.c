/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/departed.h"

#include "daemon/broker.h"
#include "daemon/clients.h"
#include "os/os_process.h"

enum npi_departed npi_client_departed(const struct npi_client *client) {
  /* The client's memory: each word is loaded once, and a lie harms only the liar. */
  const struct npi_page_shm *page = (const void *)client->page;
  if (npi_load_relaxed_u32(&page->farewell) != 0) return NPI_DEPARTED_FAREWELL;
  /* Mapped before it was written, so it must be looked at first. */
  int was_mapped = npi_load_relaxed_u64((const struct npi_atomic_u64 *)(const void *)&page->magic) != 0;
  if (npi_process_maps_file(client->pid, client->page_fd) != 0) return NPI_DEPARTED_NOT;
  return was_mapped ? NPI_DEPARTED_UNMAPPED : NPI_DEPARTED_UNBORN;
}
