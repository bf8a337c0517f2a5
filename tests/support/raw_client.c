/* SPDX-License-Identifier: Apache-2.0 */
#include "support/raw_client.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "wire/channel.h"

void raw_connect(struct raw_client *client, const char *socket_path) {
  memset(client, 0, sizeof *client);
  for (int i = 0; i < 5; i++) client->fds[i] = -1;
  int status = npi_socket_connect(socket_path, &client->socket);
  cr_assert(status == 0, "%s", npi_detail());
}

void raw_close(struct raw_client *client) {
  for (int i = 0; i < 5; i++) {
    if (client->fds[i] >= 0) close(client->fds[i]);
  }
  if (client->socket >= 0) close(client->socket);
  client->socket = -1;
}

void raw_send(struct raw_client *client, struct npi_control_frame *frame) {
  int status = npi_control_send(client->socket, frame, NULL, 0);
  cr_assert(status == 0, "sending a frame of type %u: %d", frame->head.type, status);
}

static int receive(struct raw_client *client, struct npi_control_frame *frame, int fds[NPI_CONTROL_FDS_MAX],
                   int *n_fds) {
  int status = npi_control_receive(client->socket, frame, fds, n_fds);
  if (status == NPI_SOCKET_AGAIN) {
    int ready = npi_wait_readable(&client->socket, 1, INT64_C(5000000000));
    cr_assert(ready == 1, "nothing from the broker within 5 s");
    status = npi_control_receive(client->socket, frame, fds, n_fds);
  }
  if (status == NPI_SOCKET_END) return 1;
  cr_assert(status == 0, "%s", npi_detail());
  if (frame->head.type == NPI_CONTROL_CHALLENGE && !client->shows_challenges) { /* an older kernel */
    cr_assert_eq(npi_control_prove(client->socket, frame), 0);
    return receive(client, frame, fds, n_fds);
  }
  if (frame->head.type >= NPI_CONTROL_PEER) client->n_events++;
  return 0;
}

int raw_receive(struct raw_client *client, struct npi_control_frame *frame, int *n_fds) {
  int fds[NPI_CONTROL_FDS_MAX];
  int status = receive(client, frame, fds, n_fds);
  if (status == 0) {
    int n = *n_fds;
    npi_control_close_fds(fds, n);
  }
  return status;
}

void raw_expect(struct raw_client *client, enum npi_control_type type, struct npi_control_frame *frame) {
  int n_fds = 0;
  int ended = raw_receive(client, frame, &n_fds);
  cr_assert(!ended, "the broker has closed instead of a frame of type %d", (int)type);
  cr_assert(frame->head.type == type, "a frame of type %u instead of %d", frame->head.type, (int)type);
}

void raw_expect_end(struct raw_client *client) {
  struct npi_control_frame frame;
  int n_fds = 0;
  int ended = raw_receive(client, &frame, &n_fds);
  cr_assert(ended, "a frame of type %u instead of the end", frame.head.type);
}

int raw_hello(struct raw_client *client, const char *name, struct npi_control_frame *frame) {
  npi_control_init(frame, NPI_CONTROL_HELLO, ++client->request, 0);
  frame->body.hello.layout_version = NPI_LAYOUT_VERSION;
  frame->body.hello.kind = NPI_CLIENT_APPLICATION;
  frame->body.hello.node = -1;
  frame->body.hello.token = client->token;
  snprintf(frame->body.hello.name, sizeof frame->body.hello.name, "%s", name);
  raw_send(client, frame);
  int fds[NPI_CONTROL_FDS_MAX];
  int n_fds = 0;
  cr_assert(receive(client, frame, fds, &n_fds) == 0, "the broker has closed instead of an answer to hello");
  cr_assert(frame->head.type == NPI_CONTROL_HELLO && frame->head.request == client->request);
  if (frame->head.status != 0) return frame->head.status;
  cr_assert(n_fds == 5);
  memcpy(client->fds, fds, sizeof client->fds);
  client->index = frame->body.hello_reply.client;
  client->version = frame->body.hello_reply.client_version;
  client->registry_bytes = frame->body.hello_reply.registry_bytes;
  client->page_bytes = frame->body.hello_reply.page_bytes;
  struct npi_registry_header header;
  cr_assert_eq(pread(fds[0], &header, sizeof header, 0), (ssize_t)sizeof header);
  client->instance_id = header.instance_id;
  return 0;
}

int raw_attach(struct raw_client *client, const char *socket_path, struct npi_control_frame *frame) {
  int n_fds = 0;
  if (client->socket >= 0) close(client->socket);
  int status = npi_socket_connect(socket_path, &client->socket);
  cr_assert(status == 0, "%s", npi_detail());
  npi_control_init(frame, NPI_CONTROL_ATTACH, ++client->request, 0);
  frame->body.attach.layout_version = NPI_LAYOUT_VERSION;
  frame->body.attach.client = client->index;
  frame->body.attach.client_version = client->version;
  frame->body.attach.kind = NPI_CLIENT_APPLICATION;
  frame->body.attach.token = client->token;
  frame->body.attach.instance_id = client->instance_id;
  raw_send(client, frame);
  cr_assert(raw_receive(client, frame, &n_fds) == 0, "the broker has closed instead of an answer to attach");
  cr_assert(frame->head.type == NPI_CONTROL_ATTACH && frame->head.request == client->request && n_fds == 0);
  return frame->head.status;
}

void raw_name_endpoint(struct raw_client *client, uint32_t role, uint32_t index, uint32_t version) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_ENDPOINTS, 0, 0);
  frame.body.endpoints.n = 1;
  frame.body.endpoints.list[0].role = role;
  frame.body.endpoints.list[0].index = index;
  frame.body.endpoints.list[0].version = version;
  raw_send(client, &frame);
}

void raw_name_segment(struct raw_client *client, uint32_t number) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_SEGMENTS_HELD, 0, 0);
  frame.body.segments_held.n = 1;
  frame.body.segments_held.numbers[0] = number;
  raw_send(client, &frame);
}

int raw_request(struct raw_client *client, enum npi_control_type type, struct npi_control_frame *frame,
                struct raw_events *events) {
  struct raw_events ignored;
  int n_fds = 0;
  if (events == NULL) events = &ignored;
  frame->head.magic = NPI_PROTOCOL_MAGIC;
  frame->head.version = NPI_PROTOCOL_VERSION;
  frame->head.type = (uint16_t)type;
  frame->head.request = ++client->request;
  raw_send(client, frame);
  events->n = 0;
  for (;;) {
    cr_assert(raw_receive(client, frame, &n_fds) == 0, "the broker has closed instead of an answer");
    if (frame->head.type < NPI_CONTROL_PEER) break;
    cr_assert(events->n < 32);
    events->frame[events->n++] = *frame;
  }
  cr_assert(frame->head.type == type && frame->head.request == client->request);
  return frame->head.status;
}

int raw_open_publisher(struct raw_client *client, const char *channel, struct npi_control_frame *frame,
                       struct raw_events *events) {
  memset(frame, 0, sizeof *frame);
  snprintf(frame->body.open_publisher.channel, sizeof frame->body.open_publisher.channel, "%s", channel);
  return raw_request(client, NPI_CONTROL_OPEN_PUBLISHER, frame, events);
}

int raw_open_subscriber(struct raw_client *client, const char *channel, uint32_t credits,
                        struct npi_control_frame *frame, struct raw_events *events) {
  memset(frame, 0, sizeof *frame);
  snprintf(frame->body.open_subscriber.channel, sizeof frame->body.open_subscriber.channel, "%s", channel);
  frame->body.open_subscriber.on_full = -1;
  frame->body.open_subscriber.credits = credits;
  return raw_request(client, NPI_CONTROL_OPEN_SUBSCRIBER, frame, events);
}

int raw_lease(struct raw_client *client, uint64_t bytes, struct npi_control_frame *frame, struct raw_events *events) {
  memset(frame, 0, sizeof *frame);
  frame->body.lease.bytes = bytes;
  return raw_request(client, NPI_CONTROL_LEASE, frame, events);
}

void raw_acknowledge(struct raw_client *client, uint32_t connection, uint32_t version) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_ACKNOWLEDGE, 0, 0);
  frame.body.acknowledge.connection = connection;
  frame.body.acknowledge.version = version;
  raw_send(client, &frame);
}

void raw_goodbye(struct raw_client *client) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_GOODBYE, 0, 0);
  raw_send(client, &frame);
  raw_close(client);
}
