/* SPDX-License-Identifier: Apache-2.0 */
/* A client whose socket ended comes back with another one, in bare frames: who may, and what it is told. */
#include <criterion/criterion.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "numapool/status.h"
#include "os/os_clock.h"
#include "os/os_memory.h"
#include "os/os_wait.h"
#include "tests/support/broker_fixture.h"
#include "tests/support/child.h"
#include "tests/support/raw_client.h"
#include "wire/channel.h"

TestSuite(attach, .timeout = 60);

static struct npi_test_broker broker;

static void connect_with_token(struct raw_client *client, const char *name, uint64_t token) {
  struct npi_control_frame frame;
  raw_connect(client, broker.socket_path);
  client->token = token;
  cr_assert_eq(raw_hello(client, name, &frame), 0);
}

static int finish(struct raw_client *client, struct raw_events *events) {
  struct npi_control_frame frame;
  memset(&frame, 0, sizeof frame);
  return raw_request(client, NPI_CONTROL_ATTACHED, &frame, events);
}

static int count(const struct raw_events *events, enum npi_control_type type) {
  int n = 0;
  for (int i = 0; i < events->n; i++) n += events->frame[i].head.type == type;
  return n;
}

static const struct npi_control_frame *first(const struct raw_events *events, enum npi_control_type type) {
  for (int i = 0; i < events->n; i++) {
    if (events->frame[i].head.type == type) return &events->frame[i];
  }
  cr_assert(0, "no event of type %d", (int)type);
  return NULL;
}

/* Proves that what the client has is told again in the order that makes it usable, counted from the base. */
Test(attach, a_client_with_a_new_socket_is_told_again_what_it_has) {
  struct raw_client publisher, subscriber;
  struct npi_control_frame opened, subscribed, frame;
  struct raw_events events;
  npi_test_broker_start(&broker, NULL);
  connect_with_token(&publisher, "publisher", 17);
  connect_with_token(&subscriber, "subscriber", 18);
  cr_assert_eq(raw_open_publisher(&publisher, "news", &opened, NULL), 0);
  cr_assert_eq(raw_lease(&publisher, 1, &frame, NULL), 0);
  cr_assert_eq(raw_open_subscriber(&subscriber, "news", 16, &subscribed, &events), 0);
  uint32_t connection = first(&events, NPI_CONTROL_CONNECT)->body.connect.connection;
  cr_assert_eq(raw_attach(&subscriber, broker.socket_path, &frame), 0);
  cr_assert_eq(frame.body.attach_reply.incarnation, 1);
  cr_assert_eq(frame.body.attach_reply.events_base, subscriber.n_events);
  raw_name_endpoint(&subscriber, NPI_ROLE_SUBSCRIBER, subscribed.body.open_subscriber_reply.subscriber,
                    subscribed.body.open_subscriber_reply.subscriber_version);
  cr_assert_eq(finish(&subscriber, &events), 0);
  cr_assert_eq(events.n, 3);
  cr_assert_eq(events.frame[0].head.type, NPI_CONTROL_PEER);
  cr_assert_eq(events.frame[1].head.type, NPI_CONTROL_SEGMENT);
  cr_assert_eq(events.frame[2].head.type, NPI_CONTROL_CONNECT);
  cr_assert_eq(events.frame[2].body.connect.connection, connection);
  cr_assert_eq(events.frame[2].body.connect.role, NPI_ROLE_SUBSCRIBER);
  raw_goodbye(&subscriber);
  raw_goodbye(&publisher);
  npi_test_broker_stop(&broker);
}

/* Proves that what it does not name is cleared away, and that it learns what it has lost. */
Test(attach, both_sides_agree_on_endpoints_and_segments) {
  struct raw_client publisher, subscriber;
  struct npi_control_frame first_reply, second_reply, frame;
  struct raw_events events;
  npi_test_broker_start(&broker, NULL);
  connect_with_token(&publisher, "publisher", 17);
  connect_with_token(&subscriber, "subscriber", 18);
  cr_assert_eq(raw_open_subscriber(&subscriber, "news", 16, &frame, NULL), 0);
  cr_assert_eq(raw_open_publisher(&publisher, "news", &first_reply, NULL), 0);
  cr_assert_eq(raw_open_publisher(&publisher, "news", &second_reply, &events), 0);
  cr_assert_eq(raw_lease(&publisher, 2 << 20, &frame, &events), 0);
  cr_assert_eq(raw_lease(&publisher, 2 << 20, &frame, &events), 0);
  cr_assert_eq(raw_attach(&publisher, broker.socket_path, &frame), 0);
  raw_name_endpoint(&publisher, NPI_ROLE_PUBLISHER, first_reply.body.open_publisher_reply.publisher,
                    first_reply.body.open_publisher_reply.publisher_version);
  raw_name_endpoint(&publisher, NPI_ROLE_SUBSCRIBER, 4000000000u, 1); /* nonsense is ignored */
  raw_name_segment(&publisher, 1);
  raw_name_segment(&publisher, 5);
  raw_name_segment(&publisher, 4000000000u);
  cr_assert_eq(finish(&publisher, &events), 0);
  cr_assert_eq(count(&events, NPI_CONTROL_SEGMENT_GONE), 1);
  const struct npi_control_frame *gone = first(&events, NPI_CONTROL_SEGMENT_GONE);
  cr_assert_eq(gone->body.segment.number, 5);
  cr_assert_eq(gone->body.segment.client, publisher.index);
  cr_assert_eq(count(&events, NPI_CONTROL_CONNECT), 1);
  /* The subscriber was told of the end of the second publisher and of segment 0. */
  int ended = 0, hidden = 0;
  for (int n_fds = 0; ended + hidden < 2;) {
    cr_assert_eq(raw_receive(&subscriber, &frame, &n_fds), 0);
    ended += frame.head.type == NPI_CONTROL_DISCONNECT && frame.body.disconnect.reason == NPI_REASON_PUBLISHER_CLOSED;
    hidden += frame.head.type == NPI_CONTROL_SEGMENT_GONE && frame.body.segment.number == 0;
  }
  cr_assert_eq(ended, 1);
  cr_assert_eq(hidden, 1);
  /* It may open and lease as before. */
  cr_assert_eq(raw_open_publisher(&publisher, "other", &frame, NULL), 0);
  cr_assert_eq(raw_lease(&publisher, 1, &frame, &events), 0);
  cr_assert_eq(first(&events, NPI_CONTROL_OWN_SEGMENT)->body.segment.number, 0);
  raw_goodbye(&subscriber);
  raw_goodbye(&publisher);
  npi_test_broker_stop(&broker);
}

/* Proves that a DISCONNECT that may have been lost is said again, with its reason, until it is acknowledged. */
Test(attach, an_end_that_was_not_acknowledged_is_told_again) {
  struct raw_client publisher, subscriber;
  struct npi_control_frame opened, frame;
  struct raw_events events;
  npi_test_broker_start(&broker, NULL);
  connect_with_token(&publisher, "publisher", 17);
  connect_with_token(&subscriber, "subscriber", 18);
  cr_assert_eq(raw_open_publisher(&publisher, "news", &opened, NULL), 0);
  cr_assert_eq(raw_open_subscriber(&subscriber, "news", 16, &frame, &events), 0);
  uint32_t connection = first(&events, NPI_CONTROL_CONNECT)->body.connect.connection;
  uint32_t version = first(&events, NPI_CONTROL_CONNECT)->body.connect.version;
  frame.body.close_endpoint.index = frame.body.open_subscriber_reply.subscriber;
  frame.body.close_endpoint.version = frame.body.open_subscriber_reply.subscriber_version;
  cr_assert_eq(raw_request(&subscriber, NPI_CONTROL_CLOSE_SUBSCRIBER, &frame, NULL), 0);
  for (int round = 0; round < 2; round++) {
    cr_assert_eq(raw_attach(&publisher, broker.socket_path, &frame), 0);
    raw_name_endpoint(&publisher, NPI_ROLE_PUBLISHER, opened.body.open_publisher_reply.publisher,
                      opened.body.open_publisher_reply.publisher_version);
    cr_assert_eq(finish(&publisher, &events), 0);
    cr_assert_eq(count(&events, NPI_CONTROL_DISCONNECT), 1 - round);
    if (round == 1) break;
    cr_assert_eq(first(&events, NPI_CONTROL_DISCONNECT)->body.disconnect.reason, NPI_REASON_SUBSCRIBER_CLOSED);
    cr_assert_eq(first(&events, NPI_CONTROL_DISCONNECT)->body.disconnect.connection, connection);
    raw_acknowledge(&publisher, connection, version);
  }
  raw_goodbye(&subscriber);
  raw_goodbye(&publisher);
  npi_test_broker_stop(&broker);
}

/* Proves that a subscriber misses nothing of a publisher that came while it was away: the connection is made at once. */
Test(attach, connections_are_made_while_one_end_is_away) {
  struct raw_client publisher, subscriber;
  struct npi_control_frame opened, frame;
  struct raw_events events;
  npi_test_broker_start(&broker, NULL);
  connect_with_token(&publisher, "publisher", 17);
  connect_with_token(&subscriber, "subscriber", 18);
  cr_assert_eq(raw_open_subscriber(&subscriber, "news", 16, &opened, NULL), 0);
  close(subscriber.socket);
  subscriber.socket = -1;
  usleep(100000); /* the broker notices in its time */
  cr_assert_eq(raw_open_publisher(&publisher, "news", &frame, &events), 0);
  cr_assert_eq(count(&events, NPI_CONTROL_CONNECT), 1);
  cr_assert_eq(raw_attach(&subscriber, broker.socket_path, &frame), 0);
  raw_name_endpoint(&subscriber, NPI_ROLE_SUBSCRIBER, opened.body.open_subscriber_reply.subscriber,
                    opened.body.open_subscriber_reply.subscriber_version);
  cr_assert_eq(finish(&subscriber, &events), 0);
  cr_assert_eq(count(&events, NPI_CONTROL_CONNECT), 1);
  raw_goodbye(&subscriber);
  raw_goodbye(&publisher);
  npi_test_broker_stop(&broker);
}

/* Proves that a subscriber is not told that it is open before a publisher that is away knows of it. */
Test(attach, a_subscriber_waits_for_a_publisher_that_is_away) {
  struct raw_client publisher, subscriber;
  struct npi_control_frame opened, frame;
  struct raw_events events;
  int n_fds = 0;
  npi_test_broker_start(&broker, NULL);
  connect_with_token(&publisher, "publisher", 17);
  connect_with_token(&subscriber, "subscriber", 18);
  cr_assert_eq(raw_open_publisher(&publisher, "news", &opened, NULL), 0);
  close(publisher.socket);
  publisher.socket = -1;
  usleep(100000);
  npi_control_init(&frame, NPI_CONTROL_OPEN_SUBSCRIBER, 77, 0);
  strcpy(frame.body.open_subscriber.channel, "news");
  frame.body.open_subscriber.on_full = -1;
  raw_send(&subscriber, &frame);
  uint64_t sent_ns = npi_clock_monotonic();
  int is_answered = npi_wait_readable(&subscriber.socket, 1, 200000000);
  /* After a second it would be: where this process did not run for so long, nothing can be said. */
  cr_assert(!is_answered || npi_clock_monotonic() - sent_ns > 900000000, "answered while a publisher is away");
  cr_assert_eq(raw_attach(&publisher, broker.socket_path, &frame), 0);
  raw_name_endpoint(&publisher, NPI_ROLE_PUBLISHER, opened.body.open_publisher_reply.publisher,
                    opened.body.open_publisher_reply.publisher_version);
  cr_assert_eq(finish(&publisher, &events), 0);
  do {
    cr_assert_eq(raw_receive(&subscriber, &frame, &n_fds), 0);
  } while (frame.head.type != NPI_CONTROL_OPEN_SUBSCRIBER);
  cr_assert_eq(frame.head.status, 0);
  cr_assert_eq(frame.head.request, 77);
  /* One that never comes back holds up nobody for longer than a second. */
  close(publisher.socket);
  publisher.socket = -1;
  usleep(100000);
  cr_assert_eq(raw_open_subscriber(&subscriber, "news", 16, &frame, NULL), 0);
  raw_goodbye(&subscriber);
  npi_test_broker_stop(&broker);
}

static int attach_as_another_process(const void *argument) {
  struct raw_client client = *(const struct raw_client *)argument;
  struct npi_control_frame frame;
  client.socket = -1;
  CHILD_EXPECT(raw_attach(&client, broker.socket_path, &frame) == NP_ERR_NOT_FOUND);
  return 0;
}

/* Proves that only the same process with the same token is the client, and that others disturb nobody. */
Test(attach, nobody_else_is_taken_for_the_client) {
  struct raw_client client;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, NULL);
  connect_with_token(&client, "client", 17);
  int own = client.socket;
  for (int i = 0; i < 5; i++) {
    struct raw_client other = client;
    other.socket = -1;
    if (i == 0) other.token++;
    if (i == 1) other.version++;
    if (i == 2) other.index++;
    if (i == 3) other.index = 4000000000u;
    if (i == 4) other.instance_id++;
    cr_assert_eq(raw_attach(&other, broker.socket_path, &frame), NP_ERR_NOT_FOUND, "%d", i);
    cr_assert(strstr(frame.body.text, "connect again") != NULL, "%s", frame.body.text);
    raw_expect_end(&other);
    close(other.socket);
  }
  cr_assert_eq(in_child(attach_as_another_process, &client), 0);
  cr_assert_eq(client.socket, own);
  cr_assert_eq(raw_open_publisher(&client, "news", &frame, NULL), 0); /* it has noticed nothing */
  cr_assert_eq(raw_attach(&client, broker.socket_path, &frame), 0);
  npi_control_init(&frame, NPI_CONTROL_OPEN_PUBLISHER, 99, 0);
  raw_send(&client, &frame); /* an open before ATTACHED is against the protocol: this client is out */
  raw_expect_end(&client);
  npi_test_broker_stop(&broker);
}

/* Proves that a hello which is said again, because its answer never came, does not leave the first client behind. */
Test(attach, a_hello_said_twice_makes_one_client) {
  struct raw_client client;
  struct npi_control_frame frame;
  void *registry = NULL;
  npi_test_broker_start(&broker, NULL);
  connect_with_token(&client, "client", 17);
  close(client.socket);
  struct raw_client again;
  for (int i = 0; i < 3; i++) {
    usleep(20000);
    connect_with_token(&again, "client", 17);
    if (i < 2) close(again.socket);
  }
  cr_assert_eq(npi_memory_map(again.fds[0], 0, again.registry_bytes, 0, &registry), 0);
  const struct npi_registry_header *header = registry;
  const struct npi_client_record *records =
      (const struct npi_client_record *)(const void *)((const char *)registry + header->clients.offset);
  int n = 0;
  for (uint32_t i = 0; i < header->clients.count; i++) n += npi_load_acquire_u32(&records[i].state) != NPI_RECORD_FREE;
  cr_assert_eq(n, 1);
  cr_assert_eq(raw_open_publisher(&again, "news", &frame, NULL), 0);
  raw_goodbye(&again);
  npi_test_broker_stop(&broker);
}
