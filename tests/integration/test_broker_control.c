/* SPDX-License-Identifier: Apache-2.0 */
/* The control plane of a real broker, spoken to in bare frames: what it answers, in which order, and what it survives. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/status.h"
#include "core/counters.h"
#include "os/os_memory.h"
#include "os/os_socket.h"
#include "support/broker_fixture.h"
#include "support/eventually.h"
#include "support/raw_client.h"
#include "wire/channel.h"

TestSuite(broker_control, .timeout = 60);

static struct npi_test_broker broker;

static void hello(struct raw_client *client, const char *name) {
  struct npi_control_frame frame;
  raw_connect(client, broker.socket_path);
  cr_assert(raw_hello(client, name, &frame) == 0, "%s", frame.body.text);
}

/* An honest client is still served, whatever another one did. */
static void expect_service(void) {
  struct raw_client client;
  hello(&client, "honest");
  raw_goodbye(&client);
}

static const void *map_registry(const struct raw_client *client) {
  void *address = NULL;
  cr_assert(npi_memory_map(client->fds[0], 0, client->registry_bytes, 0, &address) == 0, "%s", npi_detail());
  return address;
}

static uint64_t broker_counter(const void *registry, enum npi_counter row) {
  const struct npi_registry_header *header = registry;
  return npi_load_relaxed_u64(&header->counter[row]);
}

static const struct npi_client_record *client_record(const void *registry, uint32_t index) {
  const struct npi_registry_header *header = registry;
  return (const struct npi_client_record *)(const void *)((const char *)registry + header->clients.offset) + index;
}

static const struct npi_connection_record *connection_record(const void *registry, uint32_t index) {
  const struct npi_registry_header *header = registry;
  return (const struct npi_connection_record *)(const void *)((const char *)registry + header->connections.offset) +
         index;
}

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

/* ---- frames that no honest client sends ---- */

Test(broker_control, frames_that_are_none_end_their_sender_only) {
  struct npi_control_frame frame;
  char big[1024];
  npi_test_broker_start(&broker, NULL);
  struct raw_client watcher;
  hello(&watcher, "watcher");
  const void *registry = map_registry(&watcher);
  memset(big, 'x', sizeof big);
  npi_control_init((struct npi_control_frame *)(void *)big, NPI_CONTROL_HELLO, 1, 0);
  int pipe_ends[2];
  cr_assert(pipe(pipe_ends) == 0);

  for (int i = 0; i < 8; i++) {
    struct raw_client client;
    raw_connect(&client, broker.socket_path);
    npi_control_init(&frame, NPI_CONTROL_HELLO, 1, 0);
    frame.body.hello.layout_version = NPI_LAYOUT_VERSION;
    frame.body.hello.node = -1;
    size_t bytes = sizeof frame;
    const void *message = &frame;
    int n_fds = 0;
    switch (i) {
      case 0: message = big, bytes = sizeof big; break; /* too long */
      case 1: bytes = sizeof frame - 1; break;          /* cut */
      case 2: bytes = 5; break;                         /* not even a head */
      case 3: frame.head.magic ^= 1; break;
      case 4: n_fds = 2, frame.head.n_fds = 2; break;               /* descriptors where none belong */
      case 5: n_fds = 1; break;                                     /* and unannounced */
      case 6: frame.head.n_fds = 3; break;                          /* announced, not there */
      default: frame.head.type = NPI_CONTROL_OPEN_PUBLISHER; break; /* before hello */
    }
    cr_assert(npi_socket_send(client.socket, message, bytes, pipe_ends, n_fds) == 0);
    raw_expect_end(&client);
    raw_close(&client);
    cr_assert(broker_counter(registry, NPI_BROKER_PROTOCOL_ERRORS) == (uint64_t)i + 1, "case %d is not counted", i);
  }
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  expect_service();
  raw_goodbye(&watcher);
  npi_test_broker_stop(&broker);
}

Test(broker_control, a_client_that_breaks_the_protocol_is_gone_with_all_it_had) {
  struct raw_client client, peer;
  struct npi_control_frame frame;
  struct raw_events events;
  npi_test_broker_start(&broker, NULL);
  hello(&peer, "peer");
  const void *registry = map_registry(&peer);
  cr_assert(raw_open_subscriber(&peer, "c", 0, &frame, NULL) == 0);
  for (int i = 0; i < 2; i++) {
    hello(&client, "breaker");
    cr_assert(raw_open_publisher(&client, "c", &frame, NULL) == 0);
    cr_assert(raw_lease(&client, 1, &frame, &events) == 0 && events.n == 1);
    npi_control_init(&frame, i == 0 ? NPI_CONTROL_HELLO : (enum npi_control_type)1234, 9, 0);
    raw_send(&client, &frame);
    raw_expect_end(&client);
    raw_close(&client);
    raw_expect(&peer, NPI_CONTROL_PEER, &frame);
    raw_expect(&peer, NPI_CONTROL_CONNECT, &frame);
    uint32_t connection = frame.body.connect.connection, version = frame.body.connect.version;
    raw_expect(&peer, NPI_CONTROL_SEGMENT, &frame);
    raw_expect(&peer, NPI_CONTROL_DISCONNECT, &frame);
    cr_assert(frame.body.disconnect.reason == NPI_REASON_PUBLISHER_DEAD);
    cr_assert(frame.body.disconnect.connection == connection && frame.body.disconnect.version == version);
    raw_acknowledge(&peer, connection, version);
    raw_expect(&peer, NPI_CONTROL_PEER_GONE, &frame);
  }
  cr_assert(broker_counter(registry, NPI_BROKER_PROTOCOL_ERRORS) == 2);
  raw_goodbye(&peer);
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

/* ---- death ---- */

/* A process that says hello, opens what role says, leases, and sleeps. */
static pid_t start_process(const char *role) {
  int ready[2];
  cr_assert(pipe(ready) == 0);
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    struct raw_client client;
    struct npi_control_frame frame;
    hello(&client, role);
    int status = strcmp(role, "publisher") == 0 ? raw_open_publisher(&client, "c", &frame, NULL)
                                                : raw_open_subscriber(&client, "c", 0, &frame, NULL);
    if (status == 0 && strcmp(role, "publisher") == 0) status = raw_lease(&client, 4 << 20, &frame, NULL);
    if (status == 0) status = write(ready[1], "x", 1) != 1;
    for (;;) pause();
  }
  char byte;
  close(ready[1]);
  cr_assert(read(ready[0], &byte, 1) == 1, "the process could not become a %s", role);
  close(ready[0]);
  return pid;
}

static void kill_process(pid_t pid) {
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
}

Test(broker_control, a_killed_publishers_memory_goes_with_its_last_reader) {
  struct raw_client subscriber;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, "memory: { ready: 0 }\n");
  hello(&subscriber, "subscriber");
  const void *registry = map_registry(&subscriber);
  cr_assert(raw_open_subscriber(&subscriber, "c", 0, &frame, NULL) == 0);
  int before = npi_test_broker_shm_count(&broker);
  pid_t pid = start_process("publisher");
  cr_assert(npi_test_broker_shm_count(&broker) == before + 2);
  raw_expect(&subscriber, NPI_CONTROL_PEER, &frame);
  uint32_t client = frame.body.peer.client;
  raw_expect(&subscriber, NPI_CONTROL_CONNECT, &frame);
  uint32_t connection = frame.body.connect.connection, version = frame.body.connect.version;
  raw_expect(&subscriber, NPI_CONTROL_SEGMENT, &frame);
  raw_expect(&subscriber, NPI_CONTROL_SEGMENT, &frame);
  kill_process(pid);
  raw_expect(&subscriber, NPI_CONTROL_DISCONNECT, &frame);
  cr_assert(frame.body.disconnect.reason == NPI_REASON_PUBLISHER_DEAD);
  cr_assert(npi_load_acquire_u32(&connection_record(registry, connection)->state) == NPI_CONNECTION_DEAD);
  cr_assert(npi_load_acquire_u32(&client_record(registry, client)->state) == NPI_RECORD_CLOSING);
  cr_assert(npi_test_broker_shm_count(&broker) == before + 2, "memory went while it was read");
  raw_acknowledge(&subscriber, connection, version);
  raw_expect(&subscriber, NPI_CONTROL_PEER_GONE, &frame);
  cr_assert(npi_test_broker_log_will_contain(&broker, "client.cleared"));
  cr_assert(npi_test_broker_shm_count(&broker) == before);
  EVENTUALLY(20, npi_load_acquire_u32(&client_record(registry, client)->state) == NPI_RECORD_FREE);
  cr_assert(broker_counter(registry, NPI_BROKER_DEATHS) == 1);
  raw_goodbye(&subscriber);
  npi_test_broker_stop(&broker);
}

Test(broker_control, a_killed_subscriber_is_taken_from_its_publishers) {
  struct raw_client publisher;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, NULL);
  hello(&publisher, "publisher");
  const void *registry = map_registry(&publisher);
  cr_assert(raw_open_publisher(&publisher, "c", &frame, NULL) == 0);
  pid_t pid = start_process("subscriber");
  raw_expect(&publisher, NPI_CONTROL_PEER, &frame);
  uint32_t client = frame.body.peer.client;
  raw_expect(&publisher, NPI_CONTROL_CONNECT, &frame);
  uint32_t connection = frame.body.connect.connection, version = frame.body.connect.version;
  kill_process(pid);
  raw_expect(&publisher, NPI_CONTROL_DISCONNECT, &frame);
  cr_assert(frame.body.disconnect.reason == NPI_REASON_SUBSCRIBER_DEAD);
  raw_acknowledge(&publisher, connection, version);
  raw_expect(&publisher, NPI_CONTROL_PEER_GONE, &frame);
  EVENTUALLY(20, npi_load_acquire_u32(&client_record(registry, client)->state) == NPI_RECORD_FREE);
  cr_assert(npi_test_broker_log_contains(&broker, "client.cleared"));
  raw_goodbye(&publisher);
  npi_test_broker_stop(&broker);
}

Test(broker_control, both_ends_of_a_connection_may_die) {
  struct raw_client watcher;
  npi_test_broker_start(&broker, "memory: { ready: 0 }\n");
  hello(&watcher, "watcher");
  const void *registry = map_registry(&watcher);
  for (int i = 0; i < 10; i++) {
    pid_t publisher = start_process("publisher"), subscriber = start_process("subscriber");
    kill(i % 2 == 0 ? publisher : subscriber, SIGKILL);
    kill(i % 2 == 0 ? subscriber : publisher, SIGKILL);
    waitpid(publisher, NULL, 0);
    waitpid(subscriber, NULL, 0);
  }
  EVENTUALLY(20, broker_counter(registry, NPI_BROKER_DEATHS) == 20);
  /* A death is counted first; then its connections end, and then what it had is cleared. */
  EVENTUALLY(20, broker_counter(registry, NPI_BROKER_CONNECTIONS_ENDED) ==
                     broker_counter(registry, NPI_BROKER_CONNECTIONS_MADE));
  EVENTUALLY(20, npi_test_broker_shm_count(&broker) == 1); /* the registry */
  raw_goodbye(&watcher);
  npi_test_broker_stop(&broker);
}

Test(broker_control, a_client_that_only_loses_its_socket_keeps_what_it_has) {
  struct raw_client client, peer;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, NULL);
  hello(&client, "careless");
  hello(&peer, "peer");
  const void *registry = map_registry(&peer);
  uint32_t index = client.index;
  cr_assert(raw_open_publisher(&client, "c", &frame, NULL) == 0);
  cr_assert(raw_open_subscriber(&peer, "c", 0, &frame, NULL) == 0);
  void *page = mmap(NULL, client.page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, client.fds[1], 0);
  cr_assert(page != MAP_FAILED);
  ((struct npi_page_shm *)page)->magic = NPI_MAGIC_PAGE;
  raw_close(&client); /* this process, which is its process, lives on, and has its memory */
  cr_assert(npi_test_broker_log_will_contain(&broker, "client.unreachable"));
  cr_assert(npi_load_acquire_u32(&client_record(registry, index)->state) == NPI_RECORD_ACTIVE);
  cr_assert(broker_counter(registry, NPI_BROKER_DEATHS) == 0);
  munmap(page, client.page_bytes); /* with that it has nothing left to keep */
  cr_assert(npi_test_broker_log_will_contain(&broker, "client.departed client=0"));
  raw_goodbye(&peer);
  npi_test_broker_stop(&broker);
}

Test(broker_control, a_lie_ends_the_connection_and_names_the_liar) {
  struct raw_client publisher, subscriber;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, NULL);
  hello(&publisher, "crooked");
  hello(&subscriber, "subscriber");
  cr_assert(raw_open_publisher(&publisher, "c", &frame, NULL) == 0);
  cr_assert(raw_open_subscriber(&subscriber, "c", 0, &frame, NULL) == 0);
  raw_expect(&publisher, NPI_CONTROL_PEER, &frame);
  raw_expect(&publisher, NPI_CONTROL_CONNECT, &frame);
  uint32_t connection = frame.body.connect.connection, version = frame.body.connect.version;
  npi_control_init(&frame, NPI_CONTROL_REPORT_LIE, 0, 0);
  frame.body.acknowledge.connection = connection;
  frame.body.acknowledge.version = version;
  raw_send(&subscriber, &frame);
  raw_expect(&subscriber, NPI_CONTROL_DISCONNECT, &frame);
  cr_assert(frame.body.disconnect.reason == NPI_REASON_LIE);
  raw_expect(&publisher, NPI_CONTROL_DISCONNECT, &frame);
  cr_assert(frame.body.disconnect.reason == NPI_REASON_LIE);
  raw_acknowledge(&publisher, connection, version);
  raw_acknowledge(&subscriber, connection, version);
  raw_expect(&publisher, NPI_CONTROL_PEER_GONE, &frame);
  raw_expect(&subscriber, NPI_CONTROL_PEER_GONE, &frame);
  cr_assert(npi_test_broker_log_contains(&broker, "liar=crooked"));
  raw_goodbye(&publisher);
  raw_goodbye(&subscriber);
  npi_test_broker_stop(&broker);
}

/* Whoever refuses, and whatever it says of itself: the connection ends for both, and nobody lied. */
Test(broker_control, a_refused_connection_ends_and_nobody_is_blamed) {
  static const struct {
    uint32_t by_publisher, role, made;
  } cases[] = {{1, NPI_ROLE_PUBLISHER, 0}, {0, NPI_ROLE_SUBSCRIBER, 0}, {0, NPI_ROLE_SUBSCRIBER, 1}};
  struct raw_client publisher, subscriber;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, NULL);
  hello(&publisher, "publisher");
  hello(&subscriber, "subscriber");
  cr_assert(raw_open_publisher(&publisher, "c", &frame, NULL) == 0);
  uint64_t registry_bytes = publisher.registry_bytes;
  const void *registry = mmap(NULL, registry_bytes, PROT_READ, MAP_SHARED, publisher.fds[0], 0);
  cr_assert(registry != MAP_FAILED);
  for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    cr_assert(raw_open_subscriber(&subscriber, "c", 0, &frame, NULL) == 0);
    uint32_t opened = frame.body.open_subscriber_reply.subscriber;
    uint32_t opened_version = frame.body.open_subscriber_reply.subscriber_version;
    raw_expect(&publisher, NPI_CONTROL_PEER, &frame);
    raw_expect(&publisher, NPI_CONTROL_CONNECT, &frame);
    uint32_t connection = frame.body.connect.connection, version = frame.body.connect.version;
    npi_control_init(&frame, NPI_CONTROL_REFUSE, 0, 0);
    frame.body.refuse.connection = connection;
    frame.body.refuse.version = version;
    frame.body.refuse.role = cases[i].role ^ 3; /* the other one's end: nothing happens */
    raw_send(cases[i].by_publisher ? &publisher : &subscriber, &frame);
    frame.body.refuse.role = cases[i].role;
    frame.body.refuse.made = cases[i].made;
    raw_send(cases[i].by_publisher ? &publisher : &subscriber, &frame);
    raw_send(cases[i].by_publisher ? &publisher : &subscriber, &frame); /* once is enough */
    if (cases[i].made) raw_expect(&publisher, NPI_CONTROL_WITHHOLD, &frame);
    if (cases[i].by_publisher || cases[i].made) {
      raw_expect(&subscriber, NPI_CONTROL_DISCONNECT, &frame);
      cr_assert(frame.body.disconnect.reason == NPI_REASON_PUBLISHER_CLOSED);
      raw_acknowledge(&subscriber, connection, version);
    }
    if (!cases[i].by_publisher) {
      raw_expect(&publisher, NPI_CONTROL_DISCONNECT, &frame);
      cr_assert(frame.body.disconnect.reason == (cases[i].made ? NPI_REASON_DRAINED : NPI_REASON_SUBSCRIBER_CLOSED));
      raw_acknowledge(&publisher, connection, version);
    }
    raw_expect(&publisher, NPI_CONTROL_PEER_GONE, &frame);
    raw_expect(&subscriber, NPI_CONTROL_PEER_GONE, &frame);
    cr_assert(broker_counter(registry, NPI_BROKER_REFUSED) == i + 1);
    npi_control_init(&frame, NPI_CONTROL_CLOSE_SUBSCRIBER, 77, 0);
    frame.body.close_endpoint.index = opened;
    frame.body.close_endpoint.version = opened_version;
    raw_send(&subscriber, &frame);
    raw_expect(&subscriber, NPI_CONTROL_CLOSE_SUBSCRIBER, &frame);
  }
  cr_assert(broker_counter(registry, NPI_BROKER_LIES) == 0);
  munmap((void *)(uintptr_t)registry, registry_bytes);
  raw_goodbye(&publisher);
  raw_goodbye(&subscriber);
  npi_test_broker_stop(&broker);
}

Test(broker_control, thousands_of_visits_leave_nothing) {
  struct raw_client watcher, client;
  struct npi_control_frame frame;
  char folder[64], command[128];
  npi_test_broker_start(&broker, NULL);
  hello(&watcher, "watcher");
  cr_assert(raw_open_publisher(&watcher, "c", &frame, NULL) == 0);
  int before = -1, after = -1;
  snprintf(folder, sizeof folder, "/proc/%d/fd", (int)broker.pid);
  snprintf(command, sizeof command, "ls %s | wc -l", folder);
  for (int i = 0; i < 2000; i++) {
    hello(&client, "visitor");
    cr_assert(raw_open_subscriber(&client, "c", 0, &frame, NULL) == 0);
    raw_goodbye(&client);
    raw_expect(&watcher, NPI_CONTROL_PEER, &frame);
    raw_expect(&watcher, NPI_CONTROL_CONNECT, &frame);
    uint32_t connection = frame.body.connect.connection, version = frame.body.connect.version;
    raw_expect(&watcher, NPI_CONTROL_DISCONNECT, &frame);
    raw_acknowledge(&watcher, connection, version);
    raw_expect(&watcher, NPI_CONTROL_PEER_GONE, &frame);
    if (i != 99 && i != 1999) continue;
    /* The peer is told first, and then its descriptors are closed: both in the turn before the next answer. */
    memset(&frame, 0, sizeof frame);
    cr_assert(raw_request(&watcher, NPI_CONTROL_RETURN_SEGMENT, &frame, NULL) == NP_ERR_NOT_FOUND);
    FILE *output = popen(command, "r");
    cr_assert(fscanf(output, "%d", i == 99 ? &before : &after) == 1);
    pclose(output);
  }
  cr_assert(before == after, "%d descriptors after 100 visits, %d after 2000", before, after);
  raw_goodbye(&watcher);
  npi_test_broker_stop(&broker);
}
