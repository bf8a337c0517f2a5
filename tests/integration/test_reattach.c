/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client whose broker is gone, and how it comes back. The broker that it met was a real one and was killed; its
 * successor is played by the test, frame by frame, so that it can do what a real one does rarely.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "numapool/numapool.h"
#include "os/os_clock.h"
#include "os/os_socket.h"
#include "tests/support/broker_fixture.h"
#include "tests/support/ok.h"
#include "wire/channel.h"

TestSuite(reattach, .timeout = 60);

#define WITHIN(seconds, condition)                                         \
  do {                                                                     \
    long npi_left = (seconds)*1000L;                                       \
    while (!(condition) && npi_left-- > 0) usleep(1000);                   \
    cr_assert(npi_left > 0, "not within %d s: %s", (seconds), #condition); \
  } while (0)

/* ---- a client with one publisher and one subscriber of the same channel ---- */

struct fixture {
  struct npi_test_broker broker;
  struct np_client *client;
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
};

static void exchange(struct fixture *f, int number) {
  struct np_event event;
  OK(np_loan(f->publisher, sizeof number, &event));
  memcpy(event.data, &number, sizeof number);
  OK(np_publish(f->publisher, &event));
  int got = -1;
  OK(np_take(f->subscriber, &event));
  memcpy(&got, event.data, sizeof got);
  cr_assert_eq(got, number);
  OK(np_release(f->subscriber, &event));
}

static void set_up(struct fixture *f) {
  struct np_options options;
  memset(f, 0, sizeof *f);
  npi_test_broker_start(&f->broker, NULL);
  np_options_init(&options);
  options.socket_path = f->broker.socket_path;
  OK(np_connect(&f->client, &options));
  OK(np_publisher_open(f->client, "news", NULL, &f->publisher));
  OK(np_subscriber_open(f->client, "news", NULL, &f->subscriber));
  exchange(f, 1);
}

static void tear_down(struct fixture *f) {
  np_disconnect(f->client);
  npi_test_broker_clean(&f->broker);
}

static struct np_notice next_notice(struct fixture *f) {
  struct np_notice notice = {.size = sizeof notice};
  if (np_client_notice(f->client, &notice) != NP_OK) notice.kind = 0;
  return notice;
}

static int is_readable(int fd, int timeout_ms) {
  struct pollfd wait = {.fd = fd, .events = POLLIN};
  return poll(&wait, 1, timeout_ms) == 1;
}

/* ---- the successor ---- */

struct successor {
  int listener, socket;
  struct npi_client_record *record; /* of the fixture's client, writable */
  void *registry;
  size_t registry_bytes;
};

static void succeed(struct fixture *f, struct successor *s) {
  char name[128];
  struct stat facts;
  *s = (struct successor){.listener = -1, .socket = -1};
  snprintf(name, sizeof name, "/numapool.%s.%u.registry", f->broker.instance, (unsigned)geteuid());
  int fd = shm_open(name, O_RDWR, 0);
  cr_assert(fd >= 0 && fstat(fd, &facts) == 0);
  s->registry_bytes = (size_t)facts.st_size;
  s->registry = mmap(NULL, s->registry_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  cr_assert_neq(s->registry, MAP_FAILED);
  close(fd);
  s->record = (void *)((char *)s->registry + ((const char *)f->client->record - (const char *)f->client->registry));
  cr_assert_eq(npi_socket_listen(f->broker.socket_path, 0600, 8, &s->listener), 0);
}

static void retire(struct successor *s) {
  if (s->listener >= 0) close(s->listener);
  if (s->socket >= 0) close(s->socket);
  munmap(s->registry, s->registry_bytes);
}

/* What a successor does to every client that it takes over: one call looks up, whatever it does. */
static void announce(struct fixture *f, struct successor *s) {
  npi_store_release_u32(&s->record->events_sent, npi_load_relaxed_u32(&s->record->events_sent) + 1);
  uint64_t one = 1;
  cr_assert_eq(write(f->client->events_fd, &one, sizeof one), (ssize_t)sizeof one);
  cr_assert_eq(write(f->client->credits_fd, &one, sizeof one), (ssize_t)sizeof one);
}

static int has_newcomer(struct successor *s) {
  if (s->socket >= 0) close(s->socket);
  s->socket = -1;
  return npi_socket_accept(s->listener, &s->socket) == 0;
}

static void hear(struct successor *s, enum npi_control_type type, struct npi_control_frame *frame) {
  int fds[NPI_CONTROL_FDS_MAX], n_fds, status;
  while ((status = npi_control_receive(s->socket, frame, fds, &n_fds)) == NPI_SOCKET_AGAIN)
    is_readable(s->socket, 1000);
  cr_assert_eq(status, 0, "%s instead of a frame of type %s", status == NPI_SOCKET_END ? "end" : "error",
               npi_control_type_text(type));
  cr_assert_eq(frame->head.type, type, "%s instead of %s", npi_control_type_text(frame->head.type),
               npi_control_type_text(type));
}

static void answer(struct successor *s, const struct npi_control_frame *request, int status, const char *why) {
  struct npi_control_frame frame;
  npi_control_init(&frame, (enum npi_control_type)request->head.type, request->head.request, status);
  if (why != NULL) snprintf(frame.body.text, sizeof frame.body.text, "%s", why);
  if (request->head.type == NPI_CONTROL_ATTACH && status == 0) {
    frame.body.attach_reply.events_base = npi_load_relaxed_u32(&s->record->events_sent);
    frame.body.attach_reply.incarnation = 2;
  }
  cr_assert_eq(npi_control_send(s->socket, &frame, NULL, 0), 0);
}

static void event(struct fixture *f, struct successor *s, struct npi_control_frame *frame) {
  cr_assert_eq(npi_control_send(s->socket, frame, NULL, 0), 0);
  announce(f, s);
}

/* The client's first words: who it is. */
static void hear_attach(struct fixture *f, struct successor *s, struct npi_control_frame *frame) {
  const struct npi_registry_header *header = s->registry;
  hear(s, NPI_CONTROL_ATTACH, frame);
  cr_assert_eq(frame->body.attach.client, f->client->index);
  cr_assert_eq(frame->body.attach.client_version, f->client->version);
  cr_assert_eq(frame->body.attach.layout_version, NPI_LAYOUT_VERSION);
  cr_assert_eq(frame->body.attach.token, s->record->token);
  cr_assert_neq(frame->body.attach.token, 0);
  cr_assert_eq(frame->body.attach.instance_id, header->instance_id);
}

/* The rest, up to ATTACHED, which is returned unanswered: it has one publisher, one subscriber, one segment. */
static void hear_belongings(struct fixture *f, struct successor *s, struct npi_control_frame *frame) {
  hear(s, NPI_CONTROL_ENDPOINTS, frame);
  cr_assert_eq(frame->body.endpoints.n, 2);
  cr_assert_eq(frame->body.endpoints.list[0].role, NPI_ROLE_PUBLISHER);
  cr_assert_eq(frame->body.endpoints.list[0].index, f->publisher->index);
  cr_assert_eq(frame->body.endpoints.list[1].role, NPI_ROLE_SUBSCRIBER);
  cr_assert_eq(frame->body.endpoints.list[1].index, f->subscriber->index);
  hear(s, NPI_CONTROL_SEGMENTS_HELD, frame);
  cr_assert_eq(frame->body.segments_held.n, f->client->pool.n_segments);
  hear(s, NPI_CONTROL_ATTACHED, frame);
}

/* ---- tests ---- */

Test(reattach, a_program_asleep_in_its_own_epoll_is_woken_for_the_end_and_for_the_return) {
  struct fixture f;
  struct successor s;
  struct npi_control_frame frame;
  struct np_event taken;
  set_up(&f);
  int fd = np_fd(f.subscriber), credit_fd = np_publisher_fd(f.publisher);
  cr_assert(fd >= 0 && credit_fd >= 0 && fd != credit_fd);
  cr_assert_eq(np_take(f.subscriber, &taken), NP_EMPTY);
  cr_assert_not(is_readable(fd, 200), "nothing happened yet");
  cr_assert_not(is_readable(credit_fd, 0));
  npi_test_broker_kill(&f.broker);
  uint64_t begin = npi_clock_monotonic();
  cr_assert(is_readable(fd, 1000) && is_readable(credit_fd, 1000));
  fprintf(stderr, "reattach: woken %llu us after the broker was killed\n",
          (unsigned long long)((npi_clock_monotonic() - begin) / 1000));
  cr_assert_eq(np_take(f.subscriber, &taken), NP_EMPTY);
  struct np_notice notice = next_notice(&f);
  cr_assert_eq(notice.kind, NP_NOTICE_BROKER_LOST);
  cr_assert_eq(notice.count, 1);
  cr_assert_eq(next_notice(&f).kind, 0);
  cr_assert_not(is_readable(fd, 100), "the end is told once, or a program would spin");
  /* Without a bell: a broker that began anew rings none. */
  succeed(&f, &s);
  cr_assert(is_readable(fd, 2000));
  cr_assert_eq(np_take(f.subscriber, &taken), NP_EMPTY);
  cr_assert(has_newcomer(&s));
  hear_attach(&f, &s, &frame);
  cr_assert_not(is_readable(fd, 50));
  answer(&s, &frame, 0, NULL);
  cr_assert(is_readable(fd, 1000), "an answer rings no bell, and wakes all the same");
  cr_assert_eq(np_take(f.subscriber, &taken), NP_EMPTY);
  hear_belongings(&f, &s, &frame);
  answer(&s, &frame, 0, NULL);
  cr_assert(is_readable(fd, 1000));
  cr_assert_eq(np_take(f.subscriber, &taken), NP_EMPTY);
  notice = next_notice(&f);
  cr_assert_eq(notice.kind, NP_NOTICE_BROKER_BACK);
  cr_assert_not(is_readable(fd, 600), "all is as it was: no timer runs");
  exchange(&f, 2);
  retire(&s);
  tear_down(&f);
}

Test(reattach, a_busy_client_comes_back_on_its_way_when_a_successor_announces_itself) {
  struct fixture f;
  struct successor s;
  struct npi_control_frame frame;
  set_up(&f);
  npi_test_broker_kill(&f.broker);
  for (int i = 0; i < 1000; i++) exchange(&f, i);
  cr_assert_eq(f.client->attach, NPI_ATTACHED, "the data path does not look at the socket");
  succeed(&f, &s);
  announce(&f, &s);
  exchange(&f, 1);
  cr_assert(has_newcomer(&s));
  hear_attach(&f, &s, &frame);
  for (int i = 0; i < 100; i++) exchange(&f, i);
  answer(&s, &frame, 0, NULL);
  exchange(&f, 2);
  hear_belongings(&f, &s, &frame);
  for (int i = 0; i < 100; i++) exchange(&f, i);
  answer(&s, &frame, 0, NULL);
  exchange(&f, 3);
  cr_assert_eq(f.client->attach, NPI_ATTACHED);
  cr_assert_not(npi_client_has_news(f.client));
  cr_assert_eq(next_notice(&f).kind, NP_NOTICE_BROKER_LOST);
  cr_assert_eq(next_notice(&f).kind, NP_NOTICE_BROKER_BACK);
  cr_assert_eq(next_notice(&f).kind, 0);
  retire(&s);
  tear_down(&f);
}

Test(reattach, an_attempt_that_fails_is_made_once_for_each_announcement) {
  struct fixture f;
  struct successor s;
  set_up(&f);
  npi_test_broker_kill(&f.broker);
  succeed(&f, &s);
  close(s.listener);
  s.listener = -1;
  announce(&f, &s);
  exchange(&f, 1);
  cr_assert_eq(f.client->attach, NPI_ATTACH_AWAY);
  uint32_t requests = f.client->request;
  for (int i = 0; i < 1000; i++) exchange(&f, i);
  cr_assert_eq(f.client->request, requests);
  cr_assert_not(npi_client_has_news(f.client), "or each call would look");
  retire(&s);
  tear_down(&f);
}

struct opener {
  struct fixture *f;
  struct np_subscriber *subscriber;
  int status;
  char detail[256];
  int done;
};

static void *open_another(void *argument) {
  struct opener *opener = argument;
  opener->status = np_subscriber_open(opener->f->client, "other", NULL, &opener->subscriber);
  snprintf(opener->detail, sizeof opener->detail, "%s", np_error_detail());
  __atomic_store_n(&opener->done, 1, __ATOMIC_RELEASE);
  return NULL;
}

Test(reattach, a_call_that_needs_the_broker_comes_back_first_and_one_that_is_cut_off_says_so) {
  struct fixture f;
  struct successor s;
  struct npi_control_frame frame;
  struct opener opener = {.f = &f};
  pthread_t thread;
  set_up(&f);
  npi_test_broker_kill(&f.broker);
  succeed(&f, &s);
  cr_assert_eq(pthread_create(&thread, NULL, open_another, &opener), 0);
  WITHIN(5, has_newcomer(&s));
  hear_attach(&f, &s, &frame);
  answer(&s, &frame, 0, NULL);
  hear_belongings(&f, &s, &frame);
  answer(&s, &frame, 0, NULL);
  hear(&s, NPI_CONTROL_OPEN_SUBSCRIBER, &frame);
  close(s.socket); /* dies over it */
  s.socket = -1;
  pthread_join(thread, NULL);
  cr_assert_eq(opener.status, NP_ERR_NO_BROKER, "%s", opener.detail);
  /* Again: what was asked for is not among what it has. */
  opener.done = 0;
  cr_assert_eq(pthread_create(&thread, NULL, open_another, &opener), 0);
  WITHIN(5, has_newcomer(&s));
  hear_attach(&f, &s, &frame);
  answer(&s, &frame, 0, NULL);
  hear_belongings(&f, &s, &frame);
  answer(&s, &frame, 0, NULL);
  hear(&s, NPI_CONTROL_OPEN_SUBSCRIBER, &frame);
  answer(&s, &frame, NP_ERR_LIMIT, "no more of them");
  pthread_join(thread, NULL);
  cr_assert_eq(opener.status, NP_ERR_LIMIT);
  exchange(&f, 1);
  retire(&s);
  tear_down(&f);
}

Test(reattach, what_is_told_again_changes_nothing_and_what_is_not_known_is_acknowledged) {
  struct fixture f;
  struct successor s;
  struct npi_control_frame frame, told;
  set_up(&f);
  npi_test_broker_kill(&f.broker);
  succeed(&f, &s);
  announce(&f, &s);
  exchange(&f, 1);
  cr_assert(has_newcomer(&s));
  hear_attach(&f, &s, &frame);
  answer(&s, &frame, 0, NULL);
  exchange(&f, 2);
  hear_belongings(&f, &s, &frame);
  const struct npi_registry_header *header = s.registry;
  const struct npi_connection_record *record = NULL;
  const struct npi_link *link = f.subscriber->inlets[0];
  record = (const void *)((const char *)s.registry + header->connections.offset +
                          (size_t)link->connection * header->connections.bytes);
  for (uint32_t role = NPI_ROLE_PUBLISHER; role <= NPI_ROLE_SUBSCRIBER; role++) {
    npi_control_init(&told, NPI_CONTROL_CONNECT, 0, 0);
    told.body.connect.connection = link->connection;
    told.body.connect.version = link->version;
    told.body.connect.role = role;
    told.body.connect.endpoint = role == NPI_ROLE_PUBLISHER ? f.publisher->index : f.subscriber->index;
    told.body.connect.peer = f.client->index;
    told.body.connect.peer_version = f.client->version;
    told.body.connect.capacity = record->capacity;
    told.body.connect.limit = record->limit;
    told.body.connect.submissions_offset = record->submissions_offset;
    told.body.connect.returns_offset = record->returns_offset;
    event(&f, &s, &told);
  }
  npi_control_init(&told, NPI_CONTROL_DISCONNECT, 0, 0);
  told.body.disconnect.connection = 4000;
  told.body.disconnect.version = 7;
  told.body.disconnect.reason = NPI_REASON_PUBLISHER_DEAD;
  event(&f, &s, &told);
  answer(&s, &frame, 0, NULL);
  for (int i = 0; i < 1000; i++) exchange(&f, i);
  cr_assert_eq(f.subscriber->n_inlets, 1);
  cr_assert_eq(f.publisher->flow.n_outlets, 1);
  hear(&s, NPI_CONTROL_ACKNOWLEDGE, &frame);
  cr_assert_eq(frame.body.acknowledge.connection, 4000);
  cr_assert_eq(frame.body.acknowledge.version, 7);
  /* Ends, in an answer that is lost; the successor's successor tells of it once more, from its beginning. */
  npi_control_init(&frame, NPI_CONTROL_DISCONNECT, 0, 0);
  frame.body.disconnect.connection = link->connection;
  frame.body.disconnect.version = link->version;
  frame.body.disconnect.reason = NPI_REASON_PUBLISHER_CLOSED;
  event(&f, &s, &frame);
  told = frame;
  struct np_event none;
  cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
  cr_assert_eq(f.subscriber->n_inlets, 0);
  hear(&s, NPI_CONTROL_ACKNOWLEDGE, &frame);
  npi_control_init(&frame, NPI_CONTROL_CONNECT, 0, 0);
  frame.body.connect.connection = told.body.disconnect.connection;
  frame.body.connect.version = told.body.disconnect.version;
  frame.body.connect.role = NPI_ROLE_SUBSCRIBER;
  frame.body.connect.endpoint = f.subscriber->index;
  frame.body.connect.peer = f.client->index;
  frame.body.connect.capacity = record->capacity;
  frame.body.connect.limit = record->limit;
  frame.body.connect.submissions_offset = record->submissions_offset;
  frame.body.connect.returns_offset = record->returns_offset;
  event(&f, &s, &frame);
  cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY, "what was taken before must not come again");
  cr_assert_eq(f.subscriber->n_inlets, 0);
  event(&f, &s, &told);
  cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
  hear(&s, NPI_CONTROL_ACKNOWLEDGE, &frame);
  retire(&s);
  tear_down(&f);
}

Test(reattach, a_client_whose_instance_is_gone_keeps_what_it_has_and_is_told) {
  struct fixture f;
  struct successor s;
  struct npi_control_frame frame;
  struct np_publisher *another;
  struct np_event none;
  set_up(&f);
  int fd = np_fd(f.subscriber);
  npi_test_broker_kill(&f.broker);
  succeed(&f, &s);
  cr_assert(is_readable(fd, 1000));
  cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
  cr_assert(is_readable(fd, 1000) || has_newcomer(&s));
  cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
  if (s.socket < 0) cr_assert(has_newcomer(&s));
  hear_attach(&f, &s, &frame);
  answer(&s, &frame, NP_ERR_NOT_FOUND, "this instance began anew");
  cr_assert(is_readable(fd, 1000));
  cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
  cr_assert_eq(next_notice(&f).kind, NP_NOTICE_BROKER_LOST);
  struct np_notice notice = next_notice(&f);
  cr_assert_eq(notice.kind, NP_NOTICE_INSTANCE_GONE);
  cr_assert_str_eq(notice.text, "this instance began anew");
  cr_assert_not(is_readable(fd, 600), "it does not try again");
  for (int i = 0; i < 1000; i++) exchange(&f, i);
  cr_assert_eq(np_publisher_open(f.client, "other", NULL, &another), NP_ERR_NO_BROKER);
  cr_assert(strstr(np_error_detail(), "np_connect again") != NULL, "%s", np_error_detail());
  cr_assert_not(has_newcomer(&s));
  retire(&s);
  tear_down(&f);
}

Test(reattach, notices_beyond_the_room_are_counted_not_lost) {
  struct fixture f;
  uint32_t total = 0, list = 0, by_kind[8] = {0};
  set_up(&f);
  struct np_notice notice = {.size = 0};
  cr_assert_eq(np_client_notice(f.client, &notice), NP_ERR_ARGUMENT);
  for (uint32_t i = 0; i < 1000; i++) {
    npi_client_notify(f.client, NP_NOTICE_BROKER_LOST + i % 6, 100 + i % 7, "number %u", i);
    if (i % 10 == 9) npi_client_notify(f.client, NP_NOTICE_PEER_DIED, 1, "again");
    if (i % 10 == 9) npi_client_notify(f.client, NP_NOTICE_PEER_DIED, 1, "again");
  }
  while ((notice = next_notice(&f)).kind != 0) {
    list++;
    total += notice.count;
    by_kind[notice.kind] += notice.count;
    cr_assert_lt(strlen(notice.text), sizeof notice.text);
  }
  cr_assert_eq(list, NPI_NOTICES_MAX);
  cr_assert_eq(total, 1200);
  cr_assert_eq(by_kind[NP_NOTICE_PEER_DIED], 1000 / 6 + 200 + (1000 % 6 > 3));
  npi_test_broker_stop(&f.broker);
  np_disconnect(f.client);
}

Test(reattach, a_peer_that_dies_is_named) {
  struct fixture f;
  int ready[2];
  set_up(&f);
  cr_assert_eq(pipe(ready), 0);
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    struct np_client *client;
    struct np_subscriber *subscriber;
    struct np_options options;
    np_options_init(&options);
    options.socket_path = f.broker.socket_path;
    options.name = "mortal";
    if (np_connect(&client, &options) != NP_OK || np_subscriber_open(client, "news", NULL, &subscriber) != NP_OK)
      _exit(1);
    if (write(ready[1], "", 1) != 1) _exit(2);
    _exit(0); /* without closing */
  }
  char byte;
  cr_assert_eq(read(ready[0], &byte, 1), 1);
  struct np_notice notice = {0};
  WITHIN(5, (notice = next_notice(&f)).kind != 0);
  cr_assert_eq(notice.kind, NP_NOTICE_PEER_DIED);
  cr_assert_eq(notice.pid, (uint32_t)pid);
  cr_assert(strstr(notice.text, "mortal") != NULL, "%s", notice.text);
  close(ready[0]);
  close(ready[1]);
  np_disconnect(f.client);
  npi_test_broker_stop(&f.broker);
}

/* ---- with real successors ---- */

Test(reattach, a_real_successor_takes_back_who_slept_with_all_that_it_has) {
  struct fixture f;
  struct np_subscriber *closed, *opened;
  struct np_event none;
  set_up(&f);
  OK(np_subscriber_open(f.client, "news", NULL, &closed));
  int fd = np_fd(f.subscriber);
  cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
  npi_test_broker_kill(&f.broker);
  cr_assert(is_readable(fd, 1000));
  cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
  cr_assert_eq(next_notice(&f).kind, NP_NOTICE_BROKER_LOST);
  OK(np_subscriber_close(closed));
  exchange(&f, 1);
  npi_test_broker_start(&f.broker, NULL);
  struct np_notice notice = {0};
  uint64_t until = npi_clock_monotonic() + 5000000000;
  while (notice.kind == 0 && npi_clock_monotonic() < until && is_readable(fd, 2000)) { /* as a program does */
    cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
    notice = next_notice(&f);
  }
  cr_assert_eq(notice.kind, NP_NOTICE_BROKER_BACK);
  cr_assert_eq(notice.pid, (uint32_t)f.broker.pid);
  cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
  cr_assert_not(is_readable(fd, 600));
  exchange(&f, 2);
  OK(np_subscriber_open(f.client, "news", NULL, &opened));
  struct np_publisher_stats stats = {.size = sizeof stats};
  OK(np_publisher_stats(f.publisher, &stats));
  cr_assert_eq(stats.subscribers, 2, "the closed one is gone, the new one is there");
  exchange(&f, 3);
  OK(np_take(opened, &none));
  OK(np_release(opened, &none));
  np_disconnect(f.client);
  npi_test_broker_stop(&f.broker);
}

Test(reattach, where_nothing_could_be_kept_the_client_is_told_and_connects_anew) {
  struct fixture f;
  struct np_event none;
  struct np_options options;
  struct np_client *anew;
  set_up(&f);
  int fd = np_fd(f.subscriber);
  cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
  npi_test_broker_kill_with_keeper(&f.broker);
  npi_test_broker_start(&f.broker, NULL);
  struct np_notice notice = {0};
  uint64_t until = npi_clock_monotonic() + 5000000000;
  while (notice.kind != NP_NOTICE_INSTANCE_GONE && npi_clock_monotonic() < until && is_readable(fd, 2000)) {
    cr_assert_eq(np_take(f.subscriber, &none), NP_EMPTY);
    while ((notice = next_notice(&f)).kind == NP_NOTICE_BROKER_LOST) {
    }
  }
  cr_assert_eq(notice.kind, NP_NOTICE_INSTANCE_GONE);
  exchange(&f, 2);
  np_options_init(&options);
  options.socket_path = f.broker.socket_path;
  OK(np_connect(&anew, &options));
  exchange(&f, 3);
  np_disconnect(f.client);
  np_disconnect(anew);
  npi_test_broker_stop(&f.broker);
}
