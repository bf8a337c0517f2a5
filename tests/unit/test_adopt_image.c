/* SPDX-License-Identifier: Apache-2.0 */
/* Which registries a successor goes on with, and which it does not. */
#include <criterion/criterion.h>

#include "base/status.h"
#include "tests/support/registry_image.h"

TestSuite(adopt_image);

static _Alignas(64) unsigned char memory[IMAGE_BYTES];
static struct npi_adopt_image image;

static int look(void) {
  return npi_adopt_validate(memory, sizeof memory, &image_owner, &image);
}

#define HEADER             ((struct npi_registry_header *)(void *)memory)
#define RECORD(type, t, i) (&((struct npi_##type##_record *)image_table(memory, &HEADER->t))[i])

/* Makes the image anew, damages it, and expects the result. */
#define EXPECT_AFTER(status, damage)                                                   \
  do {                                                                                 \
    image_make(memory);                                                                \
    damage;                                                                            \
    int npi_result = look();                                                           \
    cr_assert_eq(npi_result, status, "%s: %d, %s", #damage, npi_result, npi_detail()); \
  } while (0)
#define REFUSED(damage) EXPECT_AFTER(NP_ERR_CORRUPT, damage)

Test(adopt_image, what_a_broker_leaves_is_accepted) {
  EXPECT_AFTER(0, (void)0);
  cr_assert_eq(image.next_object, 14);
  cr_assert_eq((const void *)image.clients, image_table(memory, &HEADER->clients));
  /* Wherever it was killed: a record that is filled and not active, or taken down in part. */
  EXPECT_AFTER(0, npi_store_relaxed_u32(&HEADER->state, NPI_BROKER_STARTING));
  EXPECT_AFTER(0, npi_store_relaxed_u32(&HEADER->state, NPI_BROKER_DRAINING));
  EXPECT_AFTER(0, npi_store_relaxed_u32(&RECORD(connection, connections, 0)->state, NPI_CONNECTION_FREE));
  EXPECT_AFTER(0, npi_store_relaxed_u32(&RECORD(segment, segments, 0)->state, NPI_SEGMENT_FREE));
  EXPECT_AFTER(0, RECORD(publisher, publishers, 3)->client = 77);
  EXPECT_AFTER(0, RECORD(segment, segments, 3)->client = 77);
}

Test(adopt_image, of_another_life_is_not_found) {
  EXPECT_AFTER(NP_ERR_NOT_FOUND, npi_store_relaxed_u64(&HEADER->magic, 0));
  EXPECT_AFTER(NP_ERR_NOT_FOUND, HEADER->boot_id[0] = 'x');
  EXPECT_AFTER(NP_ERR_NOT_FOUND, HEADER->instance[0] = 'x');
  EXPECT_AFTER(NP_ERR_NOT_FOUND, memset(HEADER->instance, 'i', sizeof HEADER->instance));
  EXPECT_AFTER(NP_ERR_NOT_FOUND, HEADER->uid++);
  EXPECT_AFTER(NP_ERR_NOT_FOUND, npi_store_relaxed_u32(&HEADER->state, NPI_BROKER_STOPPED));
  EXPECT_AFTER(NP_ERR_VERSION, HEADER->layout_version++);
  image_make(memory);
  cr_assert_eq(npi_adopt_validate(memory, NPI_PAGE - 1, &image_owner, &image), NP_ERR_CORRUPT);
  cr_assert_eq(npi_adopt_validate(memory, sizeof memory - 64, &image_owner, &image), NP_ERR_CORRUPT);
}

Test(adopt_image, sizes_and_places_that_do_not_fit_are_refused) {
  REFUSED(HEADER->total_bytes++);
  REFUSED(HEADER->clients.count = 0);
  REFUSED(HEADER->clients.count = UINT32_MAX);
  REFUSED(HEADER->clients.bytes = 64);
  REFUSED(HEADER->clients.offset = UINT64_MAX - 63);
  REFUSED(HEADER->clients.offset = 0);
  REFUSED(HEADER->connections.offset = HEADER->clients.offset);
  REFUSED(HEADER->journal.offset = IMAGE_BYTES - 64);
  REFUSED(HEADER->n_nodes = 3);
  REFUSED(HEADER->segment_bytes = 3 << 20);
  REFUSED(HEADER->segment_bytes = 0);
  REFUSED(HEADER->per_client_bytes = UINT64_MAX);
  REFUSED(HEADER->page_bytes = UINT64_MAX & ~UINT64_C(4095));
  REFUSED(HEADER->page_rings_offset = HEADER->page_bytes);
  REFUSED(HEADER->page_rings_offset = 0);
  REFUSED(HEADER->endpoints_per_client = UINT32_MAX);
  REFUSED(HEADER->segments_per_client++);
  REFUSED(HEADER->ledger_bytes += NPI_PAGE);
  REFUSED(HEADER->connections_per_client = UINT32_MAX);
}

Test(adopt_image, records_that_name_what_is_not_there_are_refused) {
  REFUSED(npi_store_relaxed_u32(&RECORD(client, clients, 0)->state, 3));
  REFUSED(RECORD(client, clients, 0)->node = IMAGE_NODES);
  REFUSED(RECORD(client, clients, 0)->pid = 0);
  REFUSED(memset(RECORD(client, clients, 0)->name, 'x', NPI_CLIENT_NAME_BYTES));
  REFUSED(npi_store_relaxed_u32(&RECORD(client, clients, 0)->state, NPI_RECORD_FREE)); /* has a publisher */
  REFUSED(RECORD(channel, channels, 0)->kind = 2);
  REFUSED(RECORD(channel, channels, 0)->credits = 0);
  REFUSED(RECORD(channel, channels, 0)->name[0] = '\n');
  REFUSED(memcpy(RECORD(channel, channels, 0)->name, RECORD(channel, channels, 1)->name, NPI_NAME_BYTES));
  REFUSED(RECORD(publisher, publishers, 0)->client = IMAGE_CLIENTS);
  REFUSED(RECORD(publisher, publishers, 0)->channel = 3);
  REFUSED(RECORD(publisher, publishers, 0)->counters = 8);
  REFUSED(RECORD(subscriber, subscribers, 0)->credits = NPI_CREDITS_MAX + 1);
  REFUSED(RECORD(subscriber, subscribers, 1)->counters = 0); /* another one's row */
  REFUSED(RECORD(connection, connections, 0)->publisher = 1);
  REFUSED(RECORD(connection, connections, 0)->subscriber = UINT32_MAX);
  REFUSED(RECORD(connection, connections, 0)->publisher_client = 1);
  REFUSED(RECORD(connection, connections, 0)->capacity = 64);
  REFUSED(RECORD(connection, connections, 0)->limit = 33);
  REFUSED(RECORD(connection, connections, 0)->submissions_offset = 0);
  REFUSED(RECORD(connection, connections, 0)->submissions_offset++);
  REFUSED(RECORD(connection, connections, 0)->returns_offset = HEADER->page_bytes - 64);
  REFUSED(RECORD(connection, connections, 0)->returns_offset = UINT64_MAX - 63);
  REFUSED(RECORD(connection, connections, 1)->returns_offset -= 64); /* overlaps the other one's */
  REFUSED(RECORD(segment, segments, 0)->bytes = 1);
  REFUSED(RECORD(segment, segments, 0)->node = IMAGE_NODES);
  REFUSED(RECORD(segment, segments, 0)->client = NPI_NONE);
  REFUSED(RECORD(segment, segments, 0)->number = 4);
  REFUSED(RECORD(segment, segments, 0)->number = 1); /* another one's number */
  REFUSED(RECORD(segment, segments, 0)->object = 11);
  REFUSED(RECORD(segment, segments, 0)->object = UINT64_MAX);
  REFUSED(RECORD(listener, listeners, 0)->channel = IMAGE_CHANNELS);
  REFUSED(memset(RECORD(listener, listeners, 0)->address, 'x', NPI_ADDRESS_BYTES));
  REFUSED(npi_store_relaxed_u32(&((struct npi_journal *)image_table(memory, &HEADER->journal))->kind, 5));
}
