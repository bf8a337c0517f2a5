/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker's handling of control frames, in process: the real daemon with its real sockets (pairs of them), fed with
 * frames that the input spells. Four sessions talk at once, in any order, so that requests of one meet what another has
 * left: hello, endpoints, leases, acknowledgements of nothing, accusations, coming back as somebody else, frames of a
 * wrong size, with descriptors, of no type.
 *
 * From time to time everybody leaves, and then nothing may be left: no session, no client, no descriptor.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "os/os_socket.h"
#include "tests/fuzz/broker_rig.h"
#include "wire/channel.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern const uint64_t fuzz_runs;
const uint64_t fuzz_runs = 80000;

enum { SESSIONS = 4, INPUTS_PER_LIFE = 512, TURNS_MAX = 400, REST_TURNS = 32 };

static int session_fd[SESSIONS];
static int n_descriptors; /* of the broker without a client */
static uint64_t n_inputs, n_frames, n_sessions, n_answers, n_lives;

static int count_descriptors(void) {
  int n = 0;
  DIR *list = opendir("/proc/self/fd");
  PROMISE(list != NULL);
  while (readdir(list) != NULL) n++;
  closedir(list);
  return n;
}

static void say_figures(void) {
  broker_end();
  printf("%llu frames in %llu inputs, %llu sessions, %llu answers, %llu times everybody left\n",
         (unsigned long long)n_frames, (unsigned long long)n_inputs, (unsigned long long)n_sessions,
         (unsigned long long)n_answers, (unsigned long long)n_lives);
}

static void begin(void) {
  static const char text[] =
      "limits: {clients: 16, channels: 8, publishers: 24, subscribers: 24, connections: 40, endpoints_per_client: 8, "
      "connections_per_client: 24, max_credits: 64, rings_per_client: 64KiB, segments: 16}\n"
      "memory: {per_node: 8MiB, per_client: 4MiB, segment: 2MiB, ready: 0, backend: memfd, huge_pages: never}\n"
      "channels: [{name: c1, kind: group}]\n";
  for (int i = 0; i < SESSIONS; i++) session_fd[i] = -1;
  broker_begin(text);
  atexit(say_figures);
}

/* Reads what the broker says; its end ends this side too. */
static void listen_to_all(void) {
  for (int i = 0; i < SESSIONS; i++) {
    struct npi_control_frame frame;
    int fds[NPI_CONTROL_FDS_MAX], n_fds = 0, status;
    if (session_fd[i] < 0) continue;
    while ((status = npi_control_receive(session_fd[i], &frame, fds, &n_fds)) == 0) {
      npi_control_close_fds(fds, n_fds);
      n_answers++;
      if (frame.head.type == NPI_CONTROL_CHALLENGE) npi_control_prove(session_fd[i], &frame); /* an older kernel */
    }
    PROMISE(status == NPI_SOCKET_AGAIN || status == NPI_SOCKET_END); /* every frame of the broker is a good one */
    if (status == NPI_SOCKET_AGAIN) continue;
    close(session_fd[i]);
    session_fd[i] = -1;
  }
}

static void open_session(int i) {
  session_fd[i] = broker_session();
  n_sessions++;
}

static void send_bytes(int i, const void *bytes, size_t n, int with_fd) {
  union {
    struct cmsghdr head;
    char space[CMSG_SPACE(sizeof(int))];
  } control = {0};
  struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = n};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  if (with_fd) {
    message.msg_control = control.space;
    message.msg_controllen = sizeof control.space;
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    control.head.cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(&control.head), &session_fd[i], sizeof(int));
  }
  ssize_t sent = sendmsg(session_fd[i], &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  n_frames += sent >= 0;
}

/* ---- the input spells frames ---- */

struct reader {
  const uint8_t *at, *end;
};
static uint8_t byte(struct reader *in) {
  return in->at < in->end ? *in->at++ : 0;
}
/* Small numbers mostly, but every number can come. */
static uint32_t number(struct reader *in) {
  uint8_t b = byte(in);
  if (b < 0xe0) return b & 31;
  uint32_t value = 0;
  for (int i = 0; i < (b & 3) + 1; i++) value = value << 8 | byte(in);
  return b & 8 ? ~value : value;
}

static void fill(struct reader *in, struct npi_control_frame *frame, enum npi_control_type type) {
  npi_control_init(frame, type, number(in), 0);
  switch (type) {
    case NPI_CONTROL_HELLO:
      frame->body.hello.layout_version = NPI_LAYOUT_VERSION + (byte(in) == 255);
      frame->body.hello.kind = byte(in) < 240 ? NPI_CLIENT_APPLICATION : number(in);
      frame->body.hello.node = byte(in) < 240 ? -1 : (int32_t)number(in);
      frame->body.hello.token = byte(in) & 3;
      frame->body.hello.reserve_bytes = byte(in) < 250 ? 0 : (uint64_t)number(in) << (byte(in) & 63);
      memset(frame->body.hello.name, byte(in), byte(in) % (sizeof frame->body.hello.name + 1));
      break;
    case NPI_CONTROL_OPEN_PUBLISHER:
      frame->body.open_publisher.channel[0] = 'c';
      frame->body.open_publisher.channel[1] = (char)(byte(in) < 250 ? '0' + byte(in) % 4 : byte(in));
      if (byte(in) > 250) memset(frame->body.open_publisher.channel, 'x', sizeof frame->body.open_publisher.channel);
      frame->body.open_publisher.flags = byte(in) > 250 ? number(in) : 0;
      break;
    case NPI_CONTROL_OPEN_SUBSCRIBER:
      frame->body.open_subscriber.channel[0] = 'c';
      frame->body.open_subscriber.channel[1] = (char)(byte(in) < 250 ? '0' + byte(in) % 4 : byte(in));
      if (byte(in) > 250) memset(frame->body.open_subscriber.channel, 'x', sizeof frame->body.open_subscriber.channel);
      frame->body.open_subscriber.on_full = (int32_t)(byte(in) % 4) - 1;
      frame->body.open_subscriber.credits = number(in);
      frame->body.open_subscriber.flags = byte(in) % 3;
      memset(frame->body.open_subscriber.name, byte(in), byte(in) % (sizeof frame->body.open_subscriber.name + 1));
      break;
    case NPI_CONTROL_LEASE: frame->body.lease.bytes = (uint64_t)number(in) << (byte(in) & 63); break;
    case NPI_CONTROL_RETURN_SEGMENT: frame->body.return_segment.number = number(in); break;
    case NPI_CONTROL_ATTACH: {
      frame->body.attach.layout_version = NPI_LAYOUT_VERSION + (byte(in) == 255);
      frame->body.attach.client = number(in);
      uint32_t index = frame->body.attach.client;
      const struct npi_client *client = index < broker.registry.n_clients ? broker.clients[index] : NULL;
      frame->body.attach.client_version = client != NULL && byte(in) < 250 ? client->version : number(in);
      frame->body.attach.kind = byte(in) < 250 ? NPI_CLIENT_APPLICATION : number(in);
      frame->body.attach.token = client != NULL && byte(in) < 250 ? client->token : byte(in);
      frame->body.attach.instance_id = byte(in) < 250 ? broker.registry.header->instance_id : 0;
      break;
    }
    case NPI_CONTROL_ENDPOINTS:
      frame->body.endpoints.n = number(in);
      for (int i = 0; i < NPI_ENDPOINTS_PER_FRAME && in->at < in->end && i < 4; i++) {
        frame->body.endpoints.list[i].role = byte(in) % 3;
        frame->body.endpoints.list[i].index = number(in);
        frame->body.endpoints.list[i].version = number(in);
      }
      break;
    case NPI_CONTROL_SEGMENTS_HELD:
      frame->body.segments_held.n = number(in);
      for (int i = 0; i < 4; i++) frame->body.segments_held.numbers[i] = number(in);
      break;
    case NPI_CONTROL_CLOSE_PUBLISHER:
    case NPI_CONTROL_CLOSE_SUBSCRIBER: {
      uint32_t index = number(in);
      frame->body.close_endpoint.index = index;
      frame->body.close_endpoint.version = number(in);
      if (byte(in) > 200) break;
      if (type == NPI_CONTROL_CLOSE_PUBLISHER && index < broker.registry.n_publishers && broker.publishers[index])
        frame->body.close_endpoint.version = broker.publishers[index]->version;
      if (type == NPI_CONTROL_CLOSE_SUBSCRIBER && index < broker.registry.n_subscribers && broker.subscribers[index])
        frame->body.close_endpoint.version = broker.subscribers[index]->version;
      break;
    }
    case NPI_CONTROL_ACKNOWLEDGE:
    case NPI_CONTROL_REFUSE:
    case NPI_CONTROL_REPORT_LIE: {
      uint32_t index = number(in);
      frame->body.acknowledge.connection = index;
      frame->body.acknowledge.version = number(in);
      if (byte(in) > 200) break;
      if (index < broker.registry.n_connections && broker.connections[index])
        frame->body.acknowledge.version = broker.connections[index]->version;
      if (type == NPI_CONTROL_REFUSE) frame->body.refuse.role = byte(in) % 4;
      if (type == NPI_CONTROL_REFUSE) frame->body.refuse.made = byte(in) % 3;
      break;
    }
    default:
      for (size_t i = 0; i < sizeof frame->body.text && in->at < in->end; i++) frame->body.text[i] = (char)byte(in);
      break;
  }
}

static void speak(struct reader *in) {
  struct npi_control_frame frame;
  uint8_t first = byte(in), second = byte(in);
  int i = first & 3;
  unsigned type = first >> 2 & 31;
  int was_closed = session_fd[i] < 0;
  if (was_closed) open_session(i);
  /* Who speaks without a hello is closed at once: that is soon known, so it is seldom tried. */
  if (was_closed && (second & 31) != 0) {
    fill(in, &frame, (second & 0xf8) == 0x20 ? NPI_CONTROL_ATTACH : NPI_CONTROL_HELLO);
    send_bytes(i, &frame, sizeof frame, 0);
  }
  if (type == NPI_CONTROL_TAKEOVER) type = NPI_CONTROL_ATTACHED; /* granted, it ends this broker */
  /* What ends a session, or fills memory, costs a thousand times what others do: less often. */
  int is_dear = type == NPI_CONTROL_LEASE || type == NPI_CONTROL_GOODBYE || type == NPI_CONTROL_HELLO ||
                type == NPI_CONTROL_ATTACH || type == 0 || (type > NPI_CONTROL_ATTACHED && type != 23) ||
                (type >= NPI_CONTROL_ENDPOINTS && type <= NPI_CONTROL_ATTACHED);
  if (is_dear && second % 64 != 43)
    type = second % 16 < 12 ? NPI_CONTROL_OPEN_PUBLISHER + second % 4 : NPI_CONTROL_ACKNOWLEDGE;
  if (type >= 17 && type <= 19) {
    uint8_t bytes[NPI_CONTROL_FRAME_BYTES + 64];
    fill(in, (struct npi_control_frame *)(void *)memset(bytes, 0, sizeof bytes), NPI_CONTROL_LEASE);
    if (type == 17) send_bytes(i, bytes, (size_t)byte(in) + byte(in) % 65, 0); /* short, long or nothing at all */
    if (type == 18) send_bytes(i, bytes, NPI_CONTROL_FRAME_BYTES, 1);
    if (type == 19) {
      bytes[byte(in) % 32] ^= (uint8_t)(1u << (second & 7));
      send_bytes(i, bytes, NPI_CONTROL_FRAME_BYTES, 0);
    }
    return;
  }
  if (type == 23) type = NPI_CONTROL_REFUSE;
  if (type == 20 || type == 21) { /* hangs up, wholly or by half, with whatever is under way */
    if (type == 20) shutdown(session_fd[i], SHUT_WR);
    if (type == 21) close(session_fd[i]);
    if (type == 21) session_fd[i] = -1;
    return;
  }
  if (type == 22) { /* events are none of a client's business */
    fill(in, &frame, (enum npi_control_type)(NPI_CONTROL_PEER + byte(in) % 12));
  } else {
    fill(in, &frame, (enum npi_control_type)type);
  }
  if (second == 200) frame.head.n_fds = byte(in);
  send_bytes(i, &frame, sizeof frame, 0);
}

/* ---- everybody leaves ---- */

static void say_goodbye(uint32_t index) {
  struct npi_control_frame frame;
  const struct npi_client *client = broker.clients[index];
  if (session_fd[0] >= 0) close(session_fd[0]);
  open_session(0);
  npi_control_init(&frame, NPI_CONTROL_ATTACH, 1, 0);
  frame.body.attach.layout_version = NPI_LAYOUT_VERSION;
  frame.body.attach.client = index;
  frame.body.attach.client_version = client->version;
  frame.body.attach.kind = client->kind;
  frame.body.attach.token = client->token;
  frame.body.attach.instance_id = broker.registry.header->instance_id;
  send_bytes(0, &frame, sizeof frame, 0);
  npi_control_init(&frame, NPI_CONTROL_GOODBYE, 0, 0);
  send_bytes(0, &frame, sizeof frame, 0);
}

static void leave(void) {
  for (int i = 0; i < SESSIONS; i++) {
    if (session_fd[i] >= 0) close(session_fd[i]);
    session_fd[i] = -1;
  }
  uint32_t left = 1;
  for (int turns = 0; left > 0 && turns < TURNS_MAX; turns++) {
    broker_turn();
    left = broker.n_sessions;
    for (uint32_t i = 0; i < broker.registry.n_clients; i++) {
      if (broker.clients[i] == NULL) continue;
      left++;
      if (!broker.clients[i]->gone) say_goodbye(i);
      broker_turn();
      listen_to_all();
    }
    if (session_fd[0] >= 0) close(session_fd[0]);
    session_fd[0] = -1;
  }
  PROMISE(broker.n_sessions == 0 && left == 0);
  for (int i = 0; i < REST_TURNS; i++) broker_turn(); /* what the last ones had is given back */
  for (uint32_t i = 0; i < broker.registry.n_publishers; i++) PROMISE(broker.publishers[i] == NULL);
  for (uint32_t i = 0; i < broker.registry.n_subscribers; i++) PROMISE(broker.subscribers[i] == NULL);
  for (uint32_t i = 0; i < broker.registry.n_connections; i++) PROMISE(broker.connections[i] == NULL);
  int n = count_descriptors();
  if (n_lives++ == 0) n_descriptors = n;
  if (n > n_descriptors + 8) { /* segments that are being destroyed, a keeper that is being replaced */
    fprintf(stderr, "%d descriptors, at first there were %d\n", n, n_descriptors);
    abort();
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct reader in = {data, data + size};
  /* Some frames wait in the sockets before the broker looks, sometimes over the end of an input. */
  static unsigned waiting;
  unsigned most = size > 0 ? 2 + data[0] % 31 : 1;
  if (n_inputs++ == 0) begin();
  while (in.at < in.end) {
    speak(&in);
    if (++waiting < most) continue;
    broker_turn();
    listen_to_all();
    waiting = 0;
  }
  if (n_inputs % INPUTS_PER_LIFE == 0) leave();
  return 0;
}
