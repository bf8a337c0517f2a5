/* SPDX-License-Identifier: Apache-2.0 */
/* A client that speaks bare control frames, to say what the library never would. Failures end the Criterion test. */
#ifndef NUMAPOOL_TESTS_RAW_CLIENT_H
#define NUMAPOOL_TESTS_RAW_CLIENT_H

#include "shm/layout.h"
#include "wire/protocol.h"

struct raw_client {
  int socket;
  uint32_t index, version; /* after hello */
  uint32_t request;        /* number of the last one */
  uint64_t token;          /* of hello; 0 unless set before it */
  uint64_t instance_id;    /* after hello */
  int fds[5];              /* of hello: registry, page, ledger, events, credits */
  uint64_t registry_bytes, page_bytes;
  uint32_t n_events;    /* received */
  int shows_challenges; /* a test answers them itself; set after raw_connect */
};

void raw_connect(struct raw_client *client, const char *socket_path);
void raw_close(struct raw_client *client);

void raw_send(struct raw_client *client, struct npi_control_frame *frame);

/* The next frame within five seconds; its descriptors are closed, *n_fds says how many came. 1: the broker has closed. */
int raw_receive(struct raw_client *client, struct npi_control_frame *frame, int *n_fds);

/* The next frame must be of that type. */
void raw_expect(struct raw_client *client, enum npi_control_type type, struct npi_control_frame *frame);
/* The broker must close the connection. */
void raw_expect_end(struct raw_client *client);

/* Hello and its answer, which is returned in *frame; the status of it is the result. */
int raw_hello(struct raw_client *client, const char *name, struct npi_control_frame *frame);

/* Closes the socket and nothing else, connects anew and sends ATTACH as the client that it was; the status. */
int raw_attach(struct raw_client *client, const char *socket_path, struct npi_control_frame *frame);
/* One endpoint, or one segment, that it still has. */
void raw_name_endpoint(struct raw_client *client, uint32_t role, uint32_t index, uint32_t version);
void raw_name_segment(struct raw_client *client, uint32_t number);

/* Sends a request (type and number are filled in) and receives until its answer; events before it are kept in events. */
struct raw_events {
  struct npi_control_frame frame[32];
  int n;
};
int raw_request(struct raw_client *client, enum npi_control_type type, struct npi_control_frame *frame,
                struct raw_events *events);

int raw_open_publisher(struct raw_client *client, const char *channel, struct npi_control_frame *frame,
                       struct raw_events *events);
int raw_open_subscriber(struct raw_client *client, const char *channel, uint32_t credits,
                        struct npi_control_frame *frame, struct raw_events *events);
int raw_lease(struct raw_client *client, uint64_t bytes, struct npi_control_frame *frame, struct raw_events *events);
void raw_acknowledge(struct raw_client *client, uint32_t connection, uint32_t version);
void raw_goodbye(struct raw_client *client);

#endif
