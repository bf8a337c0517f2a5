/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control plane of a real broker, spoken to in bare frames: what it answers, and in which order. (What it survives:
 * test_broker_survives.c.)
 */
#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#include "os/os_socket.h"
#include "support/control_rig.h"
#include "wire/channel.h"

TestSuite(broker_control, .timeout = 60);

/* ---- hello ---- */

Test(broker_control, hello_brings_registry_page_ledger_and_doorbells) {
  struct raw_client client;
  npi_test_broker_start(&broker, NULL);
  hello(&client, "tester");
  const struct npi_registry_header *header = map_registry(&client);
  cr_assert(npi_load_acquire_u64(&header->magic) == NPI_MAGIC_REGISTRY);
  cr_assert(header->layout_version == NPI_LAYOUT_VERSION && header->broker_pid == (uint32_t)broker.pid);
  cr_assert_str_eq(header->instance, broker.instance);
  const struct npi_client_record *record = client_record(header, client.index);
  cr_assert(npi_load_acquire_u32(&record->state) == NPI_RECORD_ACTIVE);
  cr_assert(record->version == client.version && record->pid == (uint32_t)getpid());
  cr_assert_str_eq(record->name, "tester");
  cr_assert(npi_memory_is_sealed(client.fds[1]) == 1 && npi_memory_is_sealed(client.fds[2]) == 1);
  void *writable = NULL;
  cr_assert(npi_memory_map(client.fds[0], 0, NPI_PAGE, 1, &writable) != 0, "the registry can be mapped writable");
  raw_goodbye(&client);
  npi_test_broker_stop(&broker);
}

Test(broker_control, other_versions_are_told_both_numbers_and_refused) {
  struct raw_client client;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, NULL);
  raw_connect(&client, broker.socket_path);
  npi_control_init(&frame, NPI_CONTROL_HELLO, 7, 0);
  frame.body.hello.layout_version = 99;
  raw_send(&client, &frame);
  raw_expect(&client, NPI_CONTROL_HELLO, &frame);
  cr_assert(frame.head.status == NP_ERR_VERSION && frame.head.request == 7);
  cr_assert(strstr(frame.body.text, "99") != NULL && strstr(frame.body.text, "version 1") != NULL);
  raw_expect_end(&client);
  raw_close(&client);

  raw_connect(&client, broker.socket_path);
  npi_control_init(&frame, NPI_CONTROL_HELLO, 8, 0);
  frame.head.version = 41;
  cr_assert(npi_socket_send(client.socket, &frame, sizeof frame, NULL, 0) == 0);
  raw_expect(&client, NPI_CONTROL_HELLO, &frame);
  cr_assert(frame.head.status == NP_ERR_VERSION && strstr(frame.body.text, "41") != NULL);
  raw_expect_end(&client);
  raw_close(&client);
  expect_service();
  npi_test_broker_stop(&broker);
}

Test(broker_control, an_unknown_node_and_a_false_worker_are_refused) {
  struct raw_client client;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, NULL);
  raw_connect(&client, broker.socket_path);
  npi_control_init(&frame, NPI_CONTROL_HELLO, 1, 0);
  frame.body.hello.layout_version = NPI_LAYOUT_VERSION;
  frame.body.hello.node = 63;
  raw_send(&client, &frame);
  raw_expect(&client, NPI_CONTROL_HELLO, &frame);
  cr_assert(frame.head.status == NP_ERR_NOT_FOUND && strstr(frame.body.text, "63") != NULL);
  raw_close(&client);

  raw_connect(&client, broker.socket_path);
  npi_control_init(&frame, NPI_CONTROL_HELLO, 1, 0);
  frame.body.hello.layout_version = NPI_LAYOUT_VERSION;
  frame.body.hello.node = -1;
  frame.body.hello.kind = NPI_CLIENT_WORKER;
  raw_send(&client, &frame);
  raw_expect(&client, NPI_CONTROL_HELLO, &frame);
  cr_assert(frame.head.status == NP_ERR_DENIED);
  raw_close(&client);
  npi_test_broker_stop(&broker);
}

/* ---- endpoints ---- */

Test(broker_control, what_an_answer_refers_to_was_announced_before_it) {
  struct raw_client publisher, subscriber;
  struct npi_control_frame frame;
  struct raw_events events;
  npi_test_broker_start(&broker, NULL);
  hello(&publisher, "publisher");
  hello(&subscriber, "subscriber");
  const void *registry = map_registry(&publisher);
  cr_assert(raw_open_publisher(&publisher, "prices", &frame, &events) == 0 && events.n == 0);
  cr_assert(raw_lease(&publisher, 3 << 20, &frame, &events) == 0);
  cr_assert(events.n == 2 && frame.body.lease_reply.segments == 2 && frame.body.lease_reply.bytes == 4 << 20);

  cr_assert(raw_open_subscriber(&subscriber, "prices", 100, &frame, &events) == 0);
  cr_assert(frame.body.open_subscriber_reply.credits == 100);
  const enum npi_control_type order[] = {NPI_CONTROL_PEER, NPI_CONTROL_SEGMENT, NPI_CONTROL_SEGMENT,
                                         NPI_CONTROL_CONNECT};
  cr_assert(events.n == 4);
  for (int i = 0; i < 4; i++) cr_assert(events.frame[i].head.type == order[i], "event %d", i);
  cr_assert(events.frame[0].body.peer.client == publisher.index && events.frame[0].head.n_fds == 3);
  cr_assert(events.frame[1].body.segment.number == 0 && events.frame[2].body.segment.number == 1);
  struct npi_control_frame connect = events.frame[3];
  cr_assert(connect.body.connect.role == NPI_ROLE_SUBSCRIBER && connect.body.connect.capacity == 128);
  cr_assert(connect.body.connect.limit == 100 && connect.body.connect.peer == publisher.index);

  raw_expect(&publisher, NPI_CONTROL_PEER, &frame);
  raw_expect(&publisher, NPI_CONTROL_CONNECT, &frame);
  cr_assert(frame.body.connect.role == NPI_ROLE_PUBLISHER);
  cr_assert(frame.body.connect.connection == connect.body.connect.connection);
  cr_assert(npi_load_acquire_u32(&client_record(registry, publisher.index)->events_sent) == publisher.n_events);
  cr_assert(npi_load_acquire_u32(&client_record(registry, subscriber.index)->events_sent) == subscriber.n_events);

  /* The publisher's ring is formatted before anybody hears of it. */
  void *page = NULL;
  cr_assert(npi_memory_map(publisher.fds[1], 0, publisher.page_bytes, 0, &page) == 0);
  const struct npi_ring_block *block =
      (const struct npi_ring_block *)(const void *)((const char *)page + connect.body.connect.submissions_offset);
  for (int i = 0; i < 128; i++) cr_assert(npi_load_relaxed_u64(&block->element[i]) == UINT64_C(15) << 60);
  npi_memory_unmap(page, publisher.page_bytes);
  raw_goodbye(&publisher);
  raw_goodbye(&subscriber);
  npi_test_broker_stop(&broker);
}

Test(broker_control, a_closing_subscriber_is_let_go_of_by_its_publisher) {
  struct raw_client publisher, subscriber;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, NULL);
  hello(&publisher, "publisher");
  hello(&subscriber, "subscriber");
  const void *registry = map_registry(&publisher);
  cr_assert(raw_open_publisher(&publisher, "c", &frame, NULL) == 0);
  cr_assert(raw_open_subscriber(&subscriber, "c", 0, &frame, NULL) == 0);
  uint32_t index = frame.body.open_subscriber_reply.subscriber;
  uint32_t version = frame.body.open_subscriber_reply.subscriber_version;
  raw_expect(&publisher, NPI_CONTROL_PEER, &frame);
  raw_expect(&publisher, NPI_CONTROL_CONNECT, &frame);
  uint32_t connection = frame.body.connect.connection, connection_version = frame.body.connect.version;

  memset(&frame, 0, sizeof frame);
  frame.body.close_endpoint.index = index;
  frame.body.close_endpoint.version = version + 1;
  cr_assert(raw_request(&subscriber, NPI_CONTROL_CLOSE_SUBSCRIBER, &frame, NULL) == NP_ERR_NOT_FOUND);
  memset(&frame, 0, sizeof frame);
  frame.body.close_endpoint.index = index;
  frame.body.close_endpoint.version = version;
  cr_assert(raw_request(&publisher, NPI_CONTROL_CLOSE_SUBSCRIBER, &frame, NULL) == NP_ERR_NOT_FOUND,
            "a client closed another's subscriber");
  memset(&frame, 0, sizeof frame);
  frame.body.close_endpoint.index = index;
  frame.body.close_endpoint.version = version;
  cr_assert(raw_request(&subscriber, NPI_CONTROL_CLOSE_SUBSCRIBER, &frame, NULL) == 0);
  raw_expect(&publisher, NPI_CONTROL_DISCONNECT, &frame);
  cr_assert(frame.body.disconnect.reason == NPI_REASON_SUBSCRIBER_CLOSED);
  const struct npi_connection_record *record = connection_record(registry, connection);
  cr_assert(npi_load_acquire_u32(&record->state) == NPI_CONNECTION_CLOSING);
  raw_acknowledge(&subscriber, connection, connection_version); /* means nothing: it was not asked */
  raw_acknowledge(&publisher, connection, connection_version + 5);
  raw_acknowledge(&publisher, connection, connection_version);
  raw_expect(&publisher, NPI_CONTROL_PEER_GONE, &frame);
  raw_expect(&subscriber, NPI_CONTROL_PEER_GONE, &frame);
  cr_assert(npi_load_acquire_u32(&record->state) == NPI_CONNECTION_FREE);
  cr_assert(npi_load_acquire_u32(&record->version) == connection_version + 1);
  raw_acknowledge(&publisher, connection, connection_version); /* late, harmless */
  raw_goodbye(&publisher);
  raw_goodbye(&subscriber);
  npi_test_broker_stop(&broker);
}

Test(broker_control, a_closing_publisher_waits_for_its_subscriber_and_is_then_told) {
  struct raw_client publisher, subscriber;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, NULL);
  hello(&publisher, "publisher");
  hello(&subscriber, "subscriber");
  cr_assert(raw_open_subscriber(&subscriber, "c", 0, &frame, NULL) == 0);
  cr_assert(raw_open_publisher(&publisher, "c", &frame, NULL) == 0);
  struct npi_control_frame close_frame;
  memset(&close_frame, 0, sizeof close_frame);
  close_frame.body.close_endpoint.index = frame.body.open_publisher_reply.publisher;
  close_frame.body.close_endpoint.version = frame.body.open_publisher_reply.publisher_version;
  cr_assert(raw_request(&publisher, NPI_CONTROL_CLOSE_PUBLISHER, &close_frame, NULL) == 0);
  raw_expect(&subscriber, NPI_CONTROL_PEER, &frame);
  raw_expect(&subscriber, NPI_CONTROL_CONNECT, &frame);
  uint32_t connection = frame.body.connect.connection, version = frame.body.connect.version;
  raw_expect(&subscriber, NPI_CONTROL_DISCONNECT, &frame);
  cr_assert(frame.body.disconnect.reason == NPI_REASON_PUBLISHER_CLOSED);
  raw_acknowledge(&subscriber, connection, version);
  raw_expect(&publisher, NPI_CONTROL_DISCONNECT, &frame);
  cr_assert(frame.body.disconnect.reason == NPI_REASON_DRAINED);
  raw_acknowledge(&publisher, connection, version);
  raw_expect(&publisher, NPI_CONTROL_PEER_GONE, &frame);
  raw_expect(&subscriber, NPI_CONTROL_PEER_GONE, &frame);
  raw_goodbye(&publisher);
  raw_goodbye(&subscriber);
  npi_test_broker_stop(&broker);
}

Test(broker_control, a_client_may_feed_itself) {
  struct raw_client client;
  struct npi_control_frame frame;
  struct raw_events events;
  npi_test_broker_start(&broker, NULL);
  hello(&client, "both");
  cr_assert(raw_open_publisher(&client, "c", &frame, NULL) == 0);
  cr_assert(raw_lease(&client, 1, &frame, NULL) == 0);
  cr_assert(raw_open_subscriber(&client, "c", 0, &frame, &events) == 0);
  cr_assert(events.n == 4);
  cr_assert(events.frame[0].head.type == NPI_CONTROL_PEER && events.frame[1].head.type == NPI_CONTROL_SEGMENT);
  cr_assert(events.frame[2].body.connect.role == NPI_ROLE_SUBSCRIBER);
  cr_assert(events.frame[3].body.connect.role == NPI_ROLE_PUBLISHER);
  raw_goodbye(&client);
  cr_assert(npi_test_broker_log_will_contain(&broker, "client.cleared"));
  npi_test_broker_stop(&broker);
}

Test(broker_control, requests_that_cannot_be_granted_are_answered_in_words) {
  struct raw_client client, other;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker,
                        "channels_on_demand: false\n"
                        "limits: { clients: 2, publishers: 1, max_credits: 64 }\n"
                        "channels: [ { name: open, credits: 16 }, { name: jobs, kind: group, on_full: block } ]\n");
  hello(&client, "client");
  cr_assert(raw_open_publisher(&client, "missing", &frame, NULL) == NP_ERR_NOT_FOUND);
  cr_assert(strstr(frame.body.text, "missing") != NULL && strstr(frame.body.text, "channels_on_demand") != NULL);
  cr_assert(raw_open_publisher(&client, "../x y", &frame, NULL) == NP_ERR_ARGUMENT);
  memset(&frame, 'a', sizeof frame); /* a name without an end */
  memset(&frame.head, 0, sizeof frame.head);
  cr_assert(raw_request(&client, NPI_CONTROL_OPEN_PUBLISHER, &frame, NULL) == NP_ERR_ARGUMENT);
  cr_assert(raw_open_subscriber(&client, "open", 65, &frame, NULL) == NP_ERR_LIMIT);
  cr_assert(strstr(frame.body.text, "limits.max_credits") != NULL);
  memset(&frame, 0, sizeof frame);
  strcpy(frame.body.open_subscriber.channel, "open");
  frame.body.open_subscriber.on_full = NPI_ON_FULL_BLOCK; /* the channel does not block */
  cr_assert(raw_request(&client, NPI_CONTROL_OPEN_SUBSCRIBER, &frame, NULL) == NP_ERR_ARGUMENT);
  memset(&frame, 0, sizeof frame);
  strcpy(frame.body.open_subscriber.channel, "jobs");
  frame.body.open_subscriber.on_full = NPI_ON_FULL_BLOCK;
  frame.body.open_subscriber.flags = NPI_SUBSCRIBER_TAP; /* a tap never blocks */
  cr_assert(raw_request(&client, NPI_CONTROL_OPEN_SUBSCRIBER, &frame, NULL) == NP_ERR_ARGUMENT);
  memset(&frame, 0, sizeof frame);
  frame.body.return_segment.number = 4000000000u;
  cr_assert(raw_request(&client, NPI_CONTROL_RETURN_SEGMENT, &frame, NULL) == NP_ERR_NOT_FOUND);
  cr_assert(raw_open_publisher(&client, "open", &frame, NULL) == 0);
  cr_assert(raw_open_publisher(&client, "open", &frame, NULL) == NP_ERR_LIMIT);
  cr_assert(strstr(frame.body.text, "limits.publishers") != NULL);

  hello(&other, "other");
  struct raw_client third;
  raw_connect(&third, broker.socket_path);
  cr_assert(raw_hello(&third, "third", &frame) == NP_ERR_LIMIT);
  cr_assert(strstr(frame.body.text, "limits.clients") != NULL);
  raw_expect_end(&third);
  raw_close(&third);
  raw_goodbye(&client);
  raw_goodbye(&other);
  npi_test_broker_stop(&broker);
}

Test(broker_control, a_failed_open_leaves_no_connection_behind) {
  struct raw_client client, peer;
  struct npi_control_frame frame;
  struct raw_events events;
  npi_test_broker_start(&broker, "limits: { connections: 2 }\n");
  hello(&client, "client");
  hello(&peer, "peer");
  for (int i = 0; i < 3; i++) cr_assert(raw_open_publisher(&client, "c", &frame, NULL) == 0);
  /* Three connections would be needed, and two fit: none is made, nobody hears of any. */
  cr_assert(raw_open_subscriber(&peer, "c", 0, &frame, &events) == NP_ERR_LIMIT && events.n == 0);
  cr_assert(strstr(frame.body.text, "2 connections") != NULL);
  cr_assert(raw_open_publisher(&client, "other", &frame, &events) == 0 && events.n == 0);
  cr_assert(raw_open_subscriber(&peer, "other", 0, &frame, &events) == 0 && events.n == 2);
  raw_goodbye(&client);
  raw_goodbye(&peer);
  npi_test_broker_stop(&broker);
}

/* ---- memory ---- */

Test(broker_control, budgets_are_kept_and_named) {
  struct raw_client one, two;
  struct npi_control_frame frame;
  struct raw_events events;
  npi_test_broker_start(&broker, "memory: { per_node: 8MiB, per_client: 6MiB, segment: 2MiB, ready: 2MiB }\n");
  hello(&one, "one");
  hello(&two, "two");
  cr_assert(raw_lease(&one, 100 << 20, &frame, &events) == 0, "less than asked is fine");
  cr_assert(frame.body.lease_reply.bytes == 6 << 20 && events.n == 3);
  cr_assert(raw_lease(&one, 1, &frame, &events) == NP_ERR_LIMIT && events.n == 0);
  cr_assert(strstr(frame.body.text, "memory.per_client") != NULL && strstr(frame.body.text, "6291456") != NULL);
  cr_assert(raw_lease(&two, 6 << 20, &frame, &events) == 0);
  cr_assert(frame.body.lease_reply.bytes == 2 << 20, "what the node has left");
  cr_assert(raw_lease(&two, 1, &frame, &events) == NP_ERR_NO_MEMORY);
  cr_assert(strstr(frame.body.text, "memory.per_node") != NULL);

  memset(&frame, 0, sizeof frame);
  frame.body.return_segment.number = 1;
  cr_assert(raw_request(&one, NPI_CONTROL_RETURN_SEGMENT, &frame, NULL) == 0);
  memset(&frame, 0, sizeof frame);
  frame.body.return_segment.number = 1;
  cr_assert(raw_request(&one, NPI_CONTROL_RETURN_SEGMENT, &frame, NULL) == NP_ERR_NOT_FOUND, "given back twice");
  cr_assert(raw_lease(&one, 1, &frame, &events) == 0 && events.n == 1);
  cr_assert(events.frame[0].body.segment.number == 1, "the smallest free number");
  raw_goodbye(&one);
  raw_goodbye(&two);
  npi_test_broker_stop(&broker);
}

Test(broker_control, subscribers_see_new_memory_before_the_publisher_has_it) {
  struct raw_client publisher, subscriber;
  struct npi_control_frame frame;
  struct raw_events events;
  npi_test_broker_start(&broker, NULL);
  hello(&publisher, "publisher");
  hello(&subscriber, "subscriber");
  cr_assert(raw_open_publisher(&publisher, "c", &frame, NULL) == 0);
  cr_assert(raw_open_subscriber(&subscriber, "c", 0, &frame, NULL) == 0);
  cr_assert(raw_lease(&publisher, 1, &frame, &events) == 0);
  /* The publisher's answer is here: so the subscriber's frame is in its socket, at once and without waiting. */
  int fds[NPI_CONTROL_FDS_MAX], n_fds = 0;
  cr_assert(npi_control_receive(subscriber.socket, &frame, fds, &n_fds) == 0);
  cr_assert(frame.head.type == NPI_CONTROL_SEGMENT && n_fds == 1 && frame.body.segment.number == 0);
  void *writable = NULL, *readable = NULL;
  cr_assert(npi_memory_map(fds[0], 0, frame.body.segment.bytes, 1, &writable) != 0, "a subscriber could write");
  cr_assert(npi_memory_map(fds[0], 0, frame.body.segment.bytes, 0, &readable) == 0);
  npi_memory_unmap(readable, frame.body.segment.bytes);
  npi_control_close_fds(fds, n_fds);
  raw_goodbye(&publisher);
  raw_goodbye(&subscriber);
  npi_test_broker_stop(&broker);
}

Test(broker_control, a_subscriber_that_does_not_read_is_named_and_stops_only_its_publishers_leases) {
  struct raw_client publisher, sleeper;
  struct npi_control_frame frame;
  int status = 0;
  npi_test_broker_start(&broker, "memory: { per_node: 64MiB, per_client: 32MiB }\n");
  hello(&publisher, "publisher");
  hello(&sleeper, "sleeper");
  cr_assert(raw_open_publisher(&publisher, "c", &frame, NULL) == 0);
  cr_assert(raw_open_subscriber(&sleeper, "c", 0, &frame, NULL) == 0);
  /* Each turn puts two frames for the sleeper, which reads none, until its socket is full. */
  for (int i = 0; i < 2000 && status == 0; i++) {
    status = raw_lease(&publisher, 1, &frame, NULL);
    if (status != 0) break;
    memset(&frame, 0, sizeof frame);
    cr_assert(raw_request(&publisher, NPI_CONTROL_RETURN_SEGMENT, &frame, NULL) == 0);
  }
  cr_assert(status == NP_ERR_LIMIT, "the lease's status is %d", status);
  cr_assert(strstr(frame.body.text, "sleeper") != NULL, "%s", frame.body.text);
  expect_service();
  raw_goodbye(&publisher);
  raw_goodbye(&sleeper);
  npi_test_broker_stop(&broker);
}
