/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real broker, clients that speak bare control frames to it (support/raw_client.h), and what the registry says of them.
 * One test, one broker; the including file has the tests.
 */
#ifndef NUMAPOOL_TESTS_CONTROL_RIG_H
#define NUMAPOOL_TESTS_CONTROL_RIG_H

#include <criterion/criterion.h>

#include "base/status.h"
#include "core/counters.h"
#include "os/os_memory.h"
#include "support/broker_fixture.h"
#include "support/raw_client.h"

static struct npi_test_broker broker;

static inline void hello(struct raw_client *client, const char *name) {
  struct npi_control_frame frame;
  raw_connect(client, broker.socket_path);
  cr_assert(raw_hello(client, name, &frame) == 0, "%s", frame.body.text);
}

/* An honest client is still served, whatever another one did. */
static inline void expect_service(void) {
  struct raw_client client;
  hello(&client, "honest");
  raw_goodbye(&client);
}

static inline const void *map_registry(const struct raw_client *client) {
  void *address = NULL;
  cr_assert(npi_memory_map(client->fds[0], 0, client->registry_bytes, 0, &address) == 0, "%s", npi_detail());
  return address;
}

static inline uint64_t broker_counter(const void *registry, enum npi_counter row) {
  const struct npi_registry_header *header = registry;
  return npi_load_relaxed_u64(&header->counter[row]);
}

static inline const struct npi_client_record *client_record(const void *registry, uint32_t index) {
  const struct npi_registry_header *header = registry;
  return (const struct npi_client_record *)(const void *)((const char *)registry + header->clients.offset) + index;
}

static inline const struct npi_connection_record *connection_record(const void *registry, uint32_t index) {
  const struct npi_registry_header *header = registry;
  return (const struct npi_connection_record *)(const void *)((const char *)registry + header->connections.offset) +
         index;
}

#endif
