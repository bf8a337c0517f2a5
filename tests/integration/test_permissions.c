/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may do what: which processes the broker lets in, and what a process that was let in can do with the descriptors
 * and mappings that it gets. As root with children of other users; as an ordinary user what one user can show.
 *
 * ctest-timeout: 120
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/falloc.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "os/os_socket.h"
#include "shm/leftovers.h"
#include "tests/support/child.h"
#include "tests/support/instance.h"
#include "tests/support/ok.h"
#include "tests/support/peers.h"
#include "tests/support/raw_client.h"
#include "wire/channel.h"

TestSuite(permissions, .timeout = 60);

enum { READER = 65534, WRITER = 61234, STRANGER = 64321, MEMBER = 62000, READERS_GROUP = 60777 };

static int become(uid_t uid, gid_t group) {
  gid_t groups[] = {group};
  return setgroups(group == 0 ? 0 : 1, groups) != 0 || setresgid(uid, uid, uid) != 0 || setresuid(uid, uid, uid) != 0;
}

static void let_others_in(const struct instance *instance) {
  cr_assert_eq(chmod(instance->folder, 0755), 0);
}

static int not_root(const char *what) {
  if (geteuid() == 0) return 0;
  say("permissions: skipped, it needs root to be several users: %s\n", what);
  return 1;
}

/* ---- who is let in ------------------------------------------------------------------------------------- */

struct visitor {
  uid_t uid;
  gid_t group;
  const char *channel;
  int connects, publishes, subscribes; /* expected status */
};

static int visit(void *argument) {
  const struct visitor *visitor = argument;
  struct np_client *client = NULL;
  struct np_publisher *publisher = NULL;
  struct np_subscriber *subscriber = NULL;
  CHILD_EXPECT(become(visitor->uid, visitor->group) == 0);
  CHILD_EXPECT(np_connect(&client, NULL) == visitor->connects);
  if (visitor->connects != NP_OK) {
    CHILD_EXPECT(strstr(np_error_detail(), "access.connect") != NULL);
    return 0;
  }
  CHILD_EXPECT(np_publisher_open(client, visitor->channel, NULL, &publisher) == visitor->publishes);
  if (visitor->publishes != NP_OK) CHILD_EXPECT(strstr(np_error_detail(), "access.publish") != NULL);
  CHILD_EXPECT(np_subscriber_open(client, visitor->channel, NULL, &subscriber) == visitor->subscribes);
  if (visitor->subscribes != NP_OK) CHILD_EXPECT(strstr(np_error_detail(), "access.subscribe") != NULL);
  np_disconnect(client);
  return 0;
}

static const char *const several_users =
    "memory: { per_node: 64MiB, ready: 4MiB }\n"
    "access: { connect: [ user:65534, user:61234, group:60777 ], publish: user:61234 }\n"
    "channels:\n"
    "  - { name: news, kind: broadcast }\n"
    "  - { name: secret, kind: broadcast, access: { subscribe: user:61234 } }\n"
    "  - { name: mine, kind: broadcast, access: { publish: [], subscribe: [] } }\n"
    "  - { name: work, kind: group, access: { publish: user:65534 } }\n";

Test(permissions, each_user_and_group_may_what_the_configuration_says) {
  if (not_root("who may connect, publish and subscribe")) return;
  static struct visitor visitors[] = {
      {READER, 0, "news", NP_OK, NP_ERR_DENIED, NP_OK},
      {READER, 0, "secret", NP_OK, NP_ERR_DENIED, NP_ERR_DENIED},
      {READER, 0, "mine", NP_OK, NP_ERR_DENIED, NP_ERR_DENIED},
      {READER, 0, "work", NP_OK, NP_OK, NP_OK},
      {READER, 0, "work.dead", NP_OK, NP_OK, NP_OK}, /* as its group */
      {WRITER, 0, "news", NP_OK, NP_OK, NP_OK},
      {WRITER, 0, "secret", NP_OK, NP_OK, NP_OK},
      {WRITER, 0, "work", NP_OK, NP_ERR_DENIED, NP_OK},
      {WRITER, 0, "on/demand", NP_OK, NP_OK, NP_OK},
      {MEMBER, READERS_GROUP, "news", NP_OK, NP_ERR_DENIED, NP_OK},
      {MEMBER, 0, "news", NP_ERR_DENIED, 0, 0},
      {STRANGER, 0, "news", NP_ERR_DENIED, 0, 0},
      {0, 0, "mine", NP_OK, NP_OK, NP_OK},
  };
  struct instance instance;
  instance_start(&instance, several_users, NULL);
  let_others_in(&instance);
  for (size_t i = 0; i < sizeof visitors / sizeof visitors[0]; i++) {
    int result = reap(spawn(visit, &visitors[i]), 20);
    cr_expect_eq(result, 0, "user %u with group %u and channel %s", (unsigned)visitors[i].uid,
                 (unsigned)visitors[i].group, visitors[i].channel);
  }
  instance_stop(&instance);
}

static int write_news(void *argument) {
  struct sender *sender = argument;
  CHILD_EXPECT(become(WRITER, 0) == 0);
  return sender_body(sender);
}

static int read_news(void *argument) {
  CHILD_EXPECT(become(READER, 0) == 0);
  return receiver_body(argument);
}

Test(permissions, events_pass_between_users) {
  if (not_root("events between two users")) return;
  struct instance instance;
  instance_start(&instance, several_users, NULL);
  let_others_in(&instance);
  struct receiver *receiver = receiver_for("news");
  struct sender *sender = sender_for("news", 200, 1); /* within the credits: none is dropped */
  pid_t reader = spawn(read_news, receiver);
  EVENTUALLY(20, receiver->ready);
  pid_t writer = spawn(write_news, sender);
  EVENTUALLY(20, receiver->received == 200);
  receiver->stop = 1;
  cr_assert_eq(reap(reader, 20), 0);
  cr_assert_eq(reap(writer, 20), 0);
  cr_assert_eq(receiver->bad + receiver->gaps, 0);
  instance_stop(&instance);
}

Test(permissions, memory_is_not_shared_between_channels_that_different_people_may_read) {
  struct instance instance;
  struct np_client *client = NULL, *other = NULL;
  struct np_publisher *publisher = NULL;
  instance_start(&instance,
                 "access: { connect: [ user:65534, user:61234 ] }\n"
                 "channels:\n"
                 "  - { name: news, kind: broadcast }\n"
                 "  - { name: more, kind: broadcast, access: { subscribe: [ user:61234, user:65534 ] } }\n"
                 "  - { name: secret, kind: broadcast, access: { subscribe: user:61234 } }\n"
                 "listeners:\n"
                 "  - { name: a, proto: udp, address: '127.0.0.1:0', channel: news }\n"
                 "  - { name: b, proto: udp, address: '127.0.0.1:0', channel: secret }\n"
                 "  - { name: c, proto: udp, address: '127.0.0.1:0', channel: more }\n",
                 NULL);
  OK(np_connect(&client, NULL));
  OK(np_publisher_open(client, "news", NULL, &publisher));
  np_publisher_close(publisher);
  OK(np_publisher_open(client, "more", NULL, &publisher)); /* the same people, in another order */
  np_publisher_close(publisher);
  cr_assert_eq(np_publisher_open(client, "secret", NULL, &publisher), NP_ERR_DENIED);
  cr_expect(strstr(np_error_detail(), "one np_connect for each") != NULL, "%s", np_error_detail());
  OK(np_connect(&other, NULL));
  OK(np_publisher_open(other, "secret", NULL, &publisher));
  np_disconnect(other);
  np_disconnect(client);
  EVENTUALLY(20, instance_clients(&instance, 0) == 0);
  /* Two kinds of readers: two worker processes, and neither publishes on a channel of the other kind. */
  const struct npi_registry_header *header = instance_header(&instance);
  uint32_t access_of[16] = {0};
  int n_workers = 0, n_publishers = 0;
  for (uint32_t i = 0; i < header->clients.count; i++) {
    const struct npi_client_record *record =
        (const void *)(instance.registry + header->clients.offset + (uint64_t)i * header->clients.bytes);
    if (npi_load_relaxed_u32(&record->state) != NPI_RECORD_ACTIVE || record->kind != NPI_CLIENT_WORKER) continue;
    cr_assert_lt(i, 16);
    access_of[i] = npi_load_relaxed_u32(&record->access);
    n_workers++;
  }
  for (uint32_t i = 0; i < header->publishers.count; i++) {
    const struct npi_publisher_record *record =
        (const void *)(instance.registry + header->publishers.offset + (uint64_t)i * header->publishers.bytes);
    if (npi_load_relaxed_u32(&record->state) != NPI_RECORD_ACTIVE) continue;
    const struct npi_channel_record *channel = (const void *)(instance.registry + header->channels.offset +
                                                              (uint64_t)record->channel * header->channels.bytes);
    cr_assert_lt(record->client, 16);
    cr_expect_eq(channel->access, access_of[record->client]);
    n_publishers++;
  }
  cr_expect_eq(n_workers, (int)header->n_nodes * 2);
  cr_expect_eq(n_publishers, (int)header->n_nodes * 3);
  instance_stop(&instance);
}

/* ---- what a descriptor lets one do ----------------------------------------------------------------------- */

struct look {
  uid_t uid;      /* becomes it; 0: stays */
  int is_foreign; /* to the broker */
  char control[160], keeper[160], registry_name[160];
  pid_t broker, publisher;
  _Atomic int checked, failed; /* spoils_events: ready, phase */
};

#define CHECK(what, condition)                                                              \
  do {                                                                                      \
    look->checked++;                                                                        \
    if (!(condition)) {                                                                     \
      look->failed++;                                                                       \
      say("permissions: user %u: %s: not so: %s\n", (unsigned)geteuid(), what, #condition); \
    }                                                                                       \
  } while (0)

static void check_read_only(struct look *look, const char *what, int fd) {
  char path[64], byte = 1;
  CHECK(what, (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
  CHECK(what, pwrite(fd, &byte, 1, 0) < 0);
  CHECK(what, mmap(NULL, NPI_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
  void *address = mmap(NULL, NPI_PAGE, PROT_READ, MAP_SHARED, fd, 0);
  CHECK(what, address != MAP_FAILED && mprotect(address, NPI_PAGE, PROT_READ | PROT_WRITE) != 0);
  CHECK(what, ftruncate(fd, 0) != 0);
  CHECK(what, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, NPI_PAGE) != 0);
  CHECK(what, fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) != 0);
  if (!look->is_foreign) return; /* whoever is the owner may open it anew: one user is one trust */
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  CHECK(what, open(path, O_RDWR | O_CLOEXEC) < 0 && errno == EACCES);
  CHECK(what, fchmod(fd, 0666) != 0 && errno == EPERM);
}

static void check_own(struct look *look, const char *what, int fd) {
  char path[64];
  struct stat facts;
  int seals = fcntl(fd, F_GET_SEALS);
  CHECK(what, fstat(fd, &facts) == 0);
  CHECK(what, seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && (seals & F_SEAL_GROW) != 0 && (seals & F_SEAL_SEAL) != 0);
  CHECK(what, ftruncate(fd, facts.st_size - NPI_PAGE) != 0 && errno == EPERM);
  CHECK(what, ftruncate(fd, facts.st_size + NPI_PAGE) != 0 && errno == EPERM);
  CHECK(what, fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) != 0 && errno == EPERM);
  CHECK(what, (facts.st_mode & 0777) == 0600);
  if (!look->is_foreign) return;
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  CHECK(what, fchmod(fd, 0666) != 0 && errno == EPERM);
  CHECK(what, open(path, O_RDWR | O_CLOEXEC) < 0 && errno == EACCES);
}

/* What nobody but the broker's user may do to the broker and its other clients. */
static void check_strangers(struct look *look) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  char path[64];
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  snprintf(address.sun_path, sizeof address.sun_path, "%.107s", look->keeper);
  CHECK("keeper", connect(fd, (struct sockaddr *)&address, sizeof address) != 0);
  close(fd);
  CHECK("registry by name", shm_open(look->registry_name, O_RDONLY | O_CLOEXEC, 0) < 0);
  CHECK("registry by name", shm_open(look->registry_name, O_RDWR | O_CLOEXEC, 0) < 0);
  CHECK("registry by name", shm_unlink(look->registry_name) != 0);
  CHECK("control socket", unlink(look->control) != 0);
  pid_t others[] = {look->broker, look->publisher};
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "/proc/%d/mem", (int)others[i]);
    CHECK("another process", kill(others[i], 0) != 0);
    CHECK("another process", open(path, O_RDWR | O_CLOEXEC) < 0);
    CHECK("another process", ptrace(PTRACE_SEIZE, others[i], NULL, NULL) != 0);
    int pidfd = (int)syscall(SYS_pidfd_open, others[i], 0);
    CHECK("another process", pidfd < 0 || syscall(SYS_pidfd_getfd, pidfd, 3, 0) < 0);
    if (pidfd >= 0) close(pidfd);
  }
}

/* Requests that only others may make. */
static void check_requests(struct look *look, const uint8_t *registry) {
  struct raw_client raw;
  struct npi_control_frame frame;
  int n_fds;
  memset(&raw, 0, sizeof raw);
  raw_connect(&raw, look->control);
  npi_control_init(&frame, NPI_CONTROL_HELLO, 1, 0);
  frame.body.hello.layout_version = NPI_LAYOUT_VERSION;
  frame.body.hello.kind = NPI_CLIENT_WORKER;
  frame.body.hello.node = -1;
  raw_send(&raw, &frame);
  CHECK("hello as a worker",
        raw_receive(&raw, &frame, &n_fds) == 0 && frame.head.status == NP_ERR_DENIED && n_fds == 0);
  close(raw.socket);
  /* The token of another is no secret where the registry is read: it must not be enough. */
  const struct npi_registry_header *header = (const void *)registry;
  raw_connect(&raw, look->control);
  npi_control_init(&frame, NPI_CONTROL_ATTACH, 1, 0);
  for (uint32_t i = 0; i < header->clients.count; i++) {
    const struct npi_client_record *record =
        (const void *)(registry + header->clients.offset + (uint64_t)i * header->clients.bytes);
    if (npi_load_relaxed_u32(&record->state) != NPI_RECORD_ACTIVE || record->pid != (uint32_t)look->publisher) continue;
    frame.body.attach.layout_version = NPI_LAYOUT_VERSION;
    frame.body.attach.client = i;
    frame.body.attach.client_version = record->version;
    frame.body.attach.token = record->token;
    frame.body.attach.instance_id = header->instance_id;
  }
  raw_send(&raw, &frame);
  CHECK("attach as another", raw_receive(&raw, &frame, &n_fds) == 1 || (frame.head.status < 0 && n_fds == 0));
  close(raw.socket);
  if (!look->is_foreign) return;
  raw_connect(&raw, look->control);
  npi_control_init(&frame, NPI_CONTROL_TAKEOVER, 1, 0);
  raw_send(&raw, &frame);
  CHECK("takeover", raw_receive(&raw, &frame, &n_fds) == 0 && frame.head.status == NP_ERR_DENIED);
  close(raw.socket);
}

/* Subscribes by bare frames and keeps every descriptor that it is sent. */
static int look_around(void *argument) {
  struct look *look = argument;
  struct raw_client raw;
  struct npi_control_frame frame;
  int n_segments = 0, n_peers = 0;
  if (look->uid != 0) CHILD_EXPECT(become(look->uid, 0) == 0);
  memset(&raw, 0, sizeof raw);
  raw_connect(&raw, look->control);
  CHILD_EXPECT(raw_hello(&raw, "looks", &frame) == 0);
  check_read_only(look, "registry", raw.fds[0]);
  check_own(look, "own page", raw.fds[1]);
  check_own(look, "own ledger", raw.fds[2]);
  npi_control_init(&frame, NPI_CONTROL_OPEN_SUBSCRIBER, 77, 0);
  snprintf(frame.body.open_subscriber.channel, sizeof frame.body.open_subscriber.channel, "news");
  frame.body.open_subscriber.on_full = -1;
  raw_send(&raw, &frame);
  do {
    int fds[NPI_CONTROL_FDS_MAX], n_fds = 0, status;
    while ((status = npi_control_receive(raw.socket, &frame, fds, &n_fds)) == NPI_SOCKET_AGAIN) usleep(1000);
    CHILD_EXPECT(status == 0);
    if (frame.head.type == NPI_CONTROL_PEER) {
      check_read_only(look, "page of a peer", fds[0]);
      n_peers++;
    }
    if (frame.head.type == NPI_CONTROL_SEGMENT) {
      if (n_segments++ == 0) check_read_only(look, "segment of a peer", fds[0]);
    }
    npi_control_close_fds(fds, n_fds);
  } while (frame.head.type != NPI_CONTROL_OPEN_SUBSCRIBER);
  CHILD_EXPECT(frame.head.status == 0 && n_peers == 1 && n_segments > 0);
  const uint8_t *registry = mmap(NULL, raw.registry_bytes, PROT_READ, MAP_SHARED, raw.fds[0], 0);
  CHILD_EXPECT(registry != MAP_FAILED);
  if (look->is_foreign) check_strangers(look);
  check_requests(look, registry);
  raw_goodbye(&raw);
  return 0;
}

static int writes_into_an_event(void *argument) {
  struct look *look = argument;
  struct np_client *client = NULL;
  struct np_subscriber *subscriber = NULL;
  struct np_event event;
  if (look->uid != 0) CHILD_EXPECT(become(look->uid, 0) == 0);
  CHILD_EXPECT(np_connect(&client, NULL) == NP_OK && np_subscriber_open(client, "news", NULL, &subscriber) == NP_OK);
  look->checked = 1; /* ready */
  CHILD_EXPECT(np_wait(subscriber, 20000) == NP_OK && np_take(subscriber, &event) == NP_OK);
  signal(SIGSEGV, SIG_DFL); /* a sanitizer makes an exit of it */
  *(volatile char *)event.data = 1;
  return 0;
}

static void publish_one(struct np_publisher *publisher) {
  struct np_event event;
  OK(np_loan(publisher, 64, &event));
  memset(event.data, 7, 64);
  OK(np_publish(publisher, &event));
}

/* Makes every event that it was given blocking, and keeps it full (phase 0) or empty (1), until phase 2. */
static int spoils_events(void *argument) {
  struct look *look = argument;
  struct raw_client raw;
  struct npi_control_frame frame;
  int spoiled[64], n = 0;
  if (look->uid != 0) CHILD_EXPECT(become(look->uid, 0) == 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL); /* it must not outlive a test that fails */
  memset(&raw, 0, sizeof raw);
  raw_connect(&raw, look->control);
  CHILD_EXPECT(raw_hello(&raw, "spoils", &frame) == 0);
  spoiled[n++] = raw.fds[3];
  spoiled[n++] = raw.fds[4];
  npi_control_init(&frame, NPI_CONTROL_OPEN_SUBSCRIBER, 77, 0);
  snprintf(frame.body.open_subscriber.channel, sizeof frame.body.open_subscriber.channel, "news");
  frame.body.open_subscriber.on_full = -1;
  raw_send(&raw, &frame);
  do {
    int fds[NPI_CONTROL_FDS_MAX], n_fds = 0, status;
    while ((status = npi_control_receive(raw.socket, &frame, fds, &n_fds)) == NPI_SOCKET_AGAIN) usleep(1000);
    CHILD_EXPECT(status == 0);
    if (frame.head.type != NPI_CONTROL_PEER) {
      npi_control_close_fds(fds, n_fds);
      continue;
    }
    close(fds[0]);
    spoiled[n++] = fds[1];
    spoiled[n++] = fds[2];
  } while (frame.head.type != NPI_CONTROL_OPEN_SUBSCRIBER);
  for (;;) {
    int phase = look->failed;
    if (phase == 2) break;
    for (int i = 0; i < n; i++) {
      static const uint64_t full = UINT64_MAX - 1;
      struct pollfd polled = {.fd = spoiled[i], .events = POLLOUT | POLLIN};
      uint64_t count;
      poll(&polled, 1, 0);
      /* What is full stays so: a writer that waits for it shall wait. */
      if (phase == 0 ? (polled.revents & POLLOUT) == 0 : (polled.revents & POLLIN) == 0) continue;
      fcntl(spoiled[i], F_SETFL, O_NONBLOCK);
      if (read(spoiled[i], &count, sizeof count) < 0 && errno != EAGAIN) return 3;
      if (phase == 0 && write(spoiled[i], &full, sizeof full) < 0 && errno != EAGAIN) return 4;
      fcntl(spoiled[i], F_SETFL, 0);
    }
    look->checked = n;
    sched_yield();
  }
  return 0;
}

Test(permissions, nobody_waits_for_an_event_that_a_hostile_client_filled) {
  /* Proves: broker and honest clients go on while one client makes the shared wake descriptors blocking, full and empty
   * by turns. A writer that trusted them would block for ever, and the test would run into its limit. */
  struct instance instance;
  struct np_client *client = NULL;
  struct np_publisher *publisher = NULL;
  instance_start(&instance, "memory: { per_node: 64MiB, ready: 4MiB }\naccess: { connect: all }\n", NULL);
  let_others_in(&instance);
  OK(np_connect(&client, NULL));
  OK(np_publisher_open(client, "news", NULL, &publisher));
  struct look *look = shared_memory(sizeof *look);
  look->uid = geteuid() == 0 ? STRANGER : 0;
  snprintf(look->control, sizeof look->control, "%.120s/control.sock", instance.runtime);
  pid_t pid = spawn(spoils_events, look);
  EVENTUALLY(20, look->checked);
  cr_assert_eq(look->checked, 4);
  int n = 0;
  for (; n < 200; n++) {
    struct np_client *other = NULL;
    struct np_subscriber *subscriber = NULL;
    struct np_publisher *second = NULL;
    struct np_event event;
    look->failed = n >= 100; /* full first, then empty */
    OK(np_connect(&other, NULL));
    OK(np_subscriber_open(other, "news", NULL, &subscriber)); /* the broker rings the publisher */
    OK(np_publisher_open(other, "news", NULL, &second));      /* and the hostile subscriber */
    publish_one(publisher);
    np_wait_credit(publisher, 0);
    np_wait_credit(publisher, 1);
    cr_assert_geq(np_publisher_fd(publisher), 0); /* arms: empties its event */
    OK(np_wait(subscriber, 5000));
    OK(np_take(subscriber, &event));
    OK(np_release(subscriber, &event));
    np_disconnect(other);
  }
  look->failed = 2;
  cr_assert_eq(reap(pid, 20), 0);
  say("permissions: %d rounds beside a client that spoils every wake descriptor\n", n);
  np_disconnect(client);
  instance_stop(&instance);
}

static int broker_as_nobody(void) {
  const char *folder = getenv("XDG_RUNTIME_DIR");
  const char *notify = getenv("NOTIFY_SOCKET");
  if (folder == NULL || chown(folder, READER, READER) != 0) return 1;
  if (notify == NULL || chown(notify, READER, READER) != 0) return 1;
  return become(READER, 0);
}

static void look_from(const struct instance *instance, uid_t uid, int is_foreign, int at_least) {
  struct look *look = shared_memory(sizeof *look);
  look->uid = uid;
  look->is_foreign = is_foreign;
  look->broker = instance->pid;
  look->publisher = getpid();
  snprintf(look->control, sizeof look->control, "%.120s/control.sock", instance->runtime);
  snprintf(look->keeper, sizeof look->keeper, "%.120s/keeper.sock", instance->runtime);
  npi_shm_name(look->registry_name, sizeof look->registry_name, instance->name, instance_header(instance)->uid,
               "registry", -1);
  int result = reap(spawn(look_around, look), 30);
  say("permissions: user %u, %s the broker's: %d looks, %d failed\n", (unsigned)(uid != 0 ? uid : geteuid()),
      is_foreign ? "not" : "also", look->checked, look->failed);
  cr_assert_eq(result, 0);
  cr_assert_eq(look->failed, 0);
  cr_assert_geq(look->checked, at_least);
}

static void look_at_all(const char *backend, int (*before_exec)(void), uid_t same, uid_t foreign) {
  struct instance instance;
  struct np_client *client = NULL;
  struct np_publisher *publisher = NULL;
  char yaml[256];
  snprintf(yaml, sizeof yaml, "memory: { per_node: 64MiB, ready: 4MiB, backend: %s }\naccess: { connect: all }\n",
           backend);
  instance_start(&instance, yaml, before_exec);
  let_others_in(&instance);
  OK(np_connect(&client, NULL));
  OK(np_publisher_open(client, "news", NULL, &publisher));
  publish_one(publisher); /* it leases a segment */
  look_from(&instance, same, 0, 30);
  if (foreign != 0) look_from(&instance, foreign, 1, 40);
  struct look *look = shared_memory(sizeof *look);
  look->uid = foreign != 0 ? foreign : same;
  pid_t pid = spawn(writes_into_an_event, look);
  EVENTUALLY(20, look->checked);
  publish_one(publisher);
  cr_assert_eq(reap(pid, 20), CHILD_KILLED + SIGSEGV, "who writes into an event that it took dies of it");
  publish_one(publisher);
  np_disconnect(client);
  instance_stop(&instance);
}

Test(permissions, descriptors_and_mappings_allow_what_the_table_says) {
  /* As root: another user is let in by a broker of root. As an ordinary user: what one user can and cannot do. */
  uid_t foreign = geteuid() == 0 ? STRANGER : 0;
  look_at_all("posix", NULL, 0, foreign);
  look_at_all("memfd", NULL, 0, foreign);
}

Test(permissions, a_broker_of_a_user_of_its_own_protects_its_clients_from_other_users) {
  if (not_root("a broker with a user of its own")) return;
  look_at_all("posix", broker_as_nobody, READER, STRANGER);
  look_at_all("memfd", broker_as_nobody, READER, STRANGER);
}

/* ---- how many ---- */

static int two_clients_and_no_third(const void *uid) {
  struct np_client *client[3];
  if (*(const uid_t *)uid != geteuid()) CHILD_EXPECT(become(*(const uid_t *)uid, 0) == 0);
  CHILD_EXPECT(np_connect(&client[0], NULL) == NP_OK && np_connect(&client[1], NULL) == NP_OK);
  CHILD_EXPECT(np_connect(&client[2], NULL) == NP_ERR_LIMIT);
  CHILD_EXPECT(strstr(np_error_detail(), "limits.clients_per_user") != NULL);
  np_disconnect(client[0]);
  int status;
  for (int left = 5000; (status = np_connect(&client[2], NULL)) == NP_ERR_LIMIT && left > 0; left--) usleep(1000);
  CHILD_EXPECT(status == NP_OK);
  np_disconnect(client[1]);
  np_disconnect(client[2]);
  return 0;
}

Test(permissions, a_user_has_as_many_clients_as_the_limit_says_and_others_have_theirs) {
  struct instance instance;
  struct np_client *mine[2], *third;
  const uid_t self = geteuid(), other = READER;
  instance_start(&instance,
                 "access: { connect: all }\nlimits: { clients_per_user: 2 }\nchannels: [ { name: news } ]\n"
                 "listeners: [ { name: in, proto: udp, address: '127.0.0.1:0', channel: news } ]\n",
                 NULL);
  cr_assert_eq(in_child(two_clients_and_no_third, &self), 0);
  uint64_t refused = instance_broker_counter(&instance, NPI_BROKER_REJECTS);
  cr_assert_geq(refused, 1);
  EVENTUALLY(10, instance_clients(&instance, 0) == 0);
  OK(np_connect(&mine[0], NULL));
  OK(np_connect(&mine[1], NULL));
  cr_assert_eq(np_connect(&third, NULL), NP_ERR_LIMIT);
  cr_assert_eq(instance_broker_counter(&instance, NPI_BROKER_REJECTS), refused + 1);
  if (!not_root("another user's clients beside those of the first")) {
    let_others_in(&instance);
    cr_assert_eq(in_child(two_clients_and_no_third, &other), 0);
  }
  np_disconnect(mine[0]);
  np_disconnect(mine[1]);
  instance_stop(&instance);
}
