/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that says nonsense to a real broker over a real control socket, as fast as it can: frames that are cut, too
 * long, of no type, out of order, with descriptors where none belong or without those announced, with random contents;
 * between them good ones, so that there is something to be confused about. Beside it an honest client opens and closes
 * publishers. Proves: the honest one is answered soon, throughout; the broker's descriptors and memory do not grow, and
 * nothing is left of who spoke.
 *
 * The honest client's times are judged by the best of three parts. FLOOD_FRAMES=n, FLOOD_SEED=n.
 *
 * ctest-labels: alone
 * ctest-timeout: 300
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "numapool/numapool.h"
#include "os/os_clock.h"
#include "os/os_socket.h"
#include "support/instance.h"
#include "support/peers.h"
#include "wire/channel.h"

TestSuite(control_flood, .timeout = 280);

enum { PARTS = 3, FDS = 3, TIMES_MAX = 200000, GROWTH_KIB = 1024, SOON_US = 5000 };
enum kind { GOOD, RANDOM_BODY, NO_TYPE, BAD_HEAD, CUT, LONG, UNANNOUNCED, MISSING, KINDS };

static const char *const kind_name[KINDS] = {
    "good", "random body", "no type", "bad head", "cut", "too long", "descriptors unannounced", "descriptors missing"};

struct board {
  char socket_path[160];
  uint64_t wanted, seed;
  _Atomic uint64_t sent, sessions, answers, of_kind[KINDS];
  _Atomic int end;
};

static struct instance instance;

static uint64_t next(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}
static uint32_t below(uint64_t *state, uint32_t n) {
  return (uint32_t)((next(state) >> 33) % n);
}

static void hear(int fd, struct board *board) {
  struct npi_control_frame frame;
  int fds[NPI_CONTROL_FDS_MAX], n_fds = 0;
  while (npi_control_receive(fd, &frame, fds, &n_fds) == 0) {
    npi_control_close_fds(fds, n_fds);
    board->answers++;
  }
}

static void fill(struct npi_control_frame *frame, uint64_t *state, uint32_t request) {
  static const uint16_t types[] = {NPI_CONTROL_OPEN_PUBLISHER,  NPI_CONTROL_OPEN_SUBSCRIBER,  NPI_CONTROL_LEASE,
                                   NPI_CONTROL_CLOSE_PUBLISHER, NPI_CONTROL_CLOSE_SUBSCRIBER, NPI_CONTROL_ACKNOWLEDGE,
                                   NPI_CONTROL_RETURN_SEGMENT,  NPI_CONTROL_REPORT_LIE,       NPI_CONTROL_ENDPOINTS,
                                   NPI_CONTROL_SEGMENTS_HELD,   NPI_CONTROL_ATTACHED,         NPI_CONTROL_WORKER_READY};
  npi_control_init(frame, types[below(state, sizeof types / sizeof types[0])], request, 0);
  memset(&frame->body, 0, sizeof frame->body);
  if (frame->head.type == NPI_CONTROL_OPEN_PUBLISHER || frame->head.type == NPI_CONTROL_OPEN_SUBSCRIBER) {
    snprintf(frame->body.text, 64, "flood.%u", below(state, 4));
    if (frame->head.type == NPI_CONTROL_OPEN_SUBSCRIBER) frame->body.open_subscriber.on_full = -1;
  } else if (frame->head.type == NPI_CONTROL_LEASE) {
    ((uint64_t *)(void *)&frame->body)[0] = (uint64_t)below(state, 64) << 16;
  } else {
    ((uint32_t *)(void *)&frame->body)[0] = below(state, 16);
    ((uint32_t *)(void *)&frame->body)[1] = below(state, 4);
  }
}

/* Sends one; 0: the broker has closed. */
static int say_something(struct board *board, int fd, const int *fds, uint64_t *state, uint32_t request) {
  union {
    struct npi_control_frame frame;
    uint8_t bytes[1024];
  } it;
  size_t bytes = sizeof it.frame;
  int n_fds = 0;
  /* Half are good, so that a session has something to lose when it is ended for the first bad one. */
  enum kind kind = below(state, 2) ? GOOD : (enum kind)below(state, KINDS);
  memset(it.bytes, 0x5a, sizeof it.bytes);
  fill(&it.frame, state, request);
  switch (kind) {
    case RANDOM_BODY:
      for (size_t i = 0; i < sizeof it.frame.body; i++) ((uint8_t *)&it.frame.body)[i] = (uint8_t)next(state);
      break;
    case NO_TYPE: it.frame.head.type = (uint16_t)(17 + below(state, 60000)); break;
    case BAD_HEAD:
      ((uint8_t *)&it.frame.head)[below(state, 6)] ^= (uint8_t)(1 + below(state, 255));
      break; /* not the type */
    case CUT: bytes = 1 + below(state, sizeof it.frame - 1); break;
    case LONG: bytes = sizeof it.frame + 1 + below(state, sizeof it.bytes - sizeof it.frame); break;
    case UNANNOUNCED: n_fds = 1 + (int)below(state, FDS); break;
    case MISSING: it.frame.head.n_fds = 1 + below(state, 9); break;
    default: break;
  }
  int status = npi_socket_send(fd, it.bytes, bytes, fds, n_fds);
  if (status != 0) return status == NPI_SOCKET_AGAIN;
  board->sent++;
  board->of_kind[kind]++;
  return 1;
}

/*
 * On one processor, the last one, and there only while nobody else wants it: it is the broker that is judged, and not who
 * shares a processor with whom.
 */
static void stay_on_one(void) {
  cpu_set_t cpus, last;
  struct sched_param idle = {0};
  sched_setscheduler(0, SCHED_IDLE, &idle);
  CPU_ZERO(&last);
  if (sched_getaffinity(0, sizeof cpus, &cpus) != 0) return;
  for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--) {
    if (!CPU_ISSET(cpu, &cpus)) continue;
    CPU_SET(cpu, &last);
    sched_setaffinity(0, sizeof last, &last);
    return;
  }
}

static int flood_body(void *argument) {
  struct board *board = argument;
  stay_on_one();
  uint64_t state = board->seed;
  int fds[FDS];
  signal(SIGPIPE, SIG_IGN);
  for (int i = 0; i < FDS; i++) fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
  while (board->sent < board->wanted) {
    struct npi_control_frame frame;
    uint32_t request = 1;
    int fd = -1;
    if (npi_socket_connect(board->socket_path, &fd) != 0) return 1;
    board->sessions++;
    if (below(&state, 16) != 0) {
      npi_control_init(&frame, NPI_CONTROL_HELLO, request++, 0);
      frame.body.hello.layout_version = NPI_LAYOUT_VERSION;
      frame.body.hello.kind = NPI_CLIENT_APPLICATION;
      frame.body.hello.node = -1;
      frame.body.hello.token = next(&state);
      strcpy(frame.body.hello.name, "flood");
      if (npi_control_send(fd, &frame, NULL, 0) == 0) {
        board->sent++;
        board->of_kind[GOOD]++;
      }
    }
    for (uint32_t n = 1 + below(&state, 64); n > 0; n--) {
      if (!say_something(board, fd, fds, &state, request++)) break;
      if (below(&state, 8) == 0) hear(fd, board);
    }
    if (below(&state, 4) == 0) hear(fd, board);
    close(fd);
  }
  board->end = 1;
  return 0;
}

static int by_size(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

Test(control_flood, half_a_million_frames_of_nonsense_hold_up_nobody) {
  static uint32_t us[TIMES_MAX];
  struct board *board = shared_memory(sizeof *board);
  struct np_client *client;
  uint32_t best_p99 = UINT32_MAX;
  const char *wanted = getenv("FLOOD_FRAMES"), *seed = getenv("FLOOD_SEED");
  uint64_t all = wanted != NULL ? strtoull(wanted, NULL, 10) : 500000;
  uint64_t first_seed = seed != NULL ? strtoull(seed, NULL, 10) : npi_clock_monotonic();
  long first_kib = 0;
  instance_start(&instance, "memory: { per_node: 64MiB, ready: 4MiB }\n", NULL);
  cr_assert_eq(np_connect(&client, NULL), NP_OK, "%s", np_error_detail());
  snprintf(board->socket_path, sizeof board->socket_path, "%s/control.sock", instance.runtime);
  say("seed %llu\n", (unsigned long long)first_seed);
  for (int part = 0; part < PARTS; part++) {
    uint32_t n = 0;
    board->wanted = all * (uint64_t)(part + 1) / PARTS;
    board->seed = (first_seed + (uint64_t)part) | 1;
    board->end = 0;
    uint64_t begin = npi_clock_monotonic();
    pid_t flood = spawn(flood_body, board);
    while (!board->end) {
      struct np_publisher *publisher;
      uint64_t before = npi_clock_monotonic();
      cr_assert_eq(np_publisher_open(client, "honest", NULL, &publisher), NP_OK, "%s", np_error_detail());
      uint64_t after = npi_clock_monotonic();
      np_publisher_close(publisher);
      if (n < TIMES_MAX) us[n++] = (uint32_t)((after - before) / 1000);
      usleep(200);
      if (first_kib == 0 && board->sent > all / 10) first_kib = instance_own_kib(instance.pid);
    }
    cr_assert_eq(reap(flood, 60), 0);
    qsort(us, n, sizeof us[0], by_size);
    say("part %d: %llu frames so far, %.1f s; honest client answered %u times, p50 %u us, p99 %u us, longest %u us\n",
        part + 1, (unsigned long long)board->sent, (double)(npi_clock_monotonic() - begin) / 1e9, n, us[n / 2],
        us[n * 99 / 100], us[n - 1]);
    cr_assert_gt(n, 100, "the honest client was hardly served: %u times", n);
    if (us[n * 99 / 100] < best_p99) best_p99 = us[n * 99 / 100];
  }
  for (int i = 0; i < KINDS; i++) say("%9llu %s\n", (unsigned long long)board->of_kind[i], kind_name[i]);
  long last_kib = instance_own_kib(instance.pid);
  say("%llu sessions, %llu answers; broker %ld KiB -> %ld KiB\n", (unsigned long long)board->sessions,
      (unsigned long long)board->answers, first_kib, last_kib);
  for (int i = 0; i < KINDS; i++) cr_assert_gt(board->of_kind[i], 0, "no frame: %s", kind_name[i]);
  cr_assert_gt(instance_broker_counter(&instance, NPI_BROKER_PROTOCOL_ERRORS), 0);
  cr_assert_leq(last_kib, first_kib + GROWTH_KIB, "the broker grows");
  cr_assert_leq(best_p99, SOON_US, "the honest client waits %u us", best_p99);
  np_disconnect(client);
  instance_expect_quiet(&instance); /* descriptors as in the beginning, nobody left in the registry */
  instance_stop(&instance);
}
