/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a real broker survives, shown with bare frames: clients that talk nonsense, break the protocol, lie, refuse, are
 * killed, lose their socket, or come and go by the thousand. The others are told, and nothing is left behind.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/os_socket.h"
#include "support/control_rig.h"
#include "support/eventually.h"
#include "wire/channel.h"

TestSuite(broker_survives, .timeout = 60);

/* ---- frames that no honest client sends ---- */

Test(broker_survives, frames_that_are_none_end_their_sender_only) {
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

Test(broker_survives, a_client_that_breaks_the_protocol_is_gone_with_all_it_had) {
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

Test(broker_survives, a_killed_publishers_memory_goes_with_its_last_reader) {
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

Test(broker_survives, a_killed_subscriber_is_taken_from_its_publishers) {
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

Test(broker_survives, both_ends_of_a_connection_may_die) {
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

Test(broker_survives, a_client_that_only_loses_its_socket_keeps_what_it_has) {
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

/* ---- lies and refusals ---- */

Test(broker_survives, a_lie_ends_the_connection_and_names_the_liar) {
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
Test(broker_survives, a_refused_connection_ends_and_nobody_is_blamed) {
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

/* ---- visits ---- */

Test(broker_survives, thousands_of_visits_leave_nothing) {
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
