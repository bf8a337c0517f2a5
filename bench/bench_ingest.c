/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a socket into a subscriber: what an ingest worker spends on an event, beside a bare receive loop that
 * does nothing with it. bench/run.sh starts it with one broker for each backend; bench/README.md says how to
 * read it.
 *
 * One drain: the worker is stopped, the socket is filled, the worker goes on; its processor time until the
 * subscriber has everything, by event. The bare loops drain the same amount from a socket of their own.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/atomics.h"
#include "bench/bare.h"
#include "bench/measure.h"
#include "bench/payload.h"
#include "numapool/numapool.h"

enum {
  FRAME_BYTES = 4 + BENCH_PAYLOAD_BYTES,
  FRAMES_A_SEND = 512,
  UDP_EVENTS = 8000,  /* of one drain; fewer than the credits, and than the socket holds */
  TCP_EVENTS = 12000, /* at most: what the two sockets take */
  DRAINS = 4,         /* of one round */
  ROUNDS_MAX = 100,
  BACKENDS_MAX = 2,
  BATCH = 64, /* of recvmmsg */
  RECEIVE_BYTES = 65536,
  SOCKET_BYTES = 16 << 20,
  PATIENCE_NS = 1000000000,
};
#define RATIO_MOST 1.5
#define NS_LEAST   10.0 /* less than the copy alone takes */

enum work { WORK_UDP, WORK_TCP, WORK_COUNT };
static const char *const work_names[WORK_COUNT] = {"udp", "tcp"};
static const char *const work_titles[WORK_COUNT] = {"UDP datagrams of 64 B", "TCP frames of 64 B, 4-byte prefix"};

/* What the subscriber process and this one share. */
struct tally {
  _Alignas(64) struct npi_atomic_u64 taken;
  struct npi_atomic_u64 sum;
  _Alignas(64) struct npi_atomic_u32 active; /* 1: take without a pause; 0: sleep; 2: end */
  struct npi_atomic_u32 ready;
};

struct stream { /* a sender's end of a TCP connection */
  int fd;
  uint64_t sent; /* bytes */
};

struct backend {
  const char *name;
  char instance[64];
  pid_t worker, subscriber;
  clockid_t clock;
  struct tally *tally;
  int datagrams;
  struct stream stream;
  uint64_t expected;
  double ns[WORK_COUNT][ROUNDS_MAX];
  double stop[WORK_COUNT][ROUNDS_MAX]; /* the part of it that is the benchmark's */
};

struct ingest {
  unsigned rounds, n_backends, works; /* works: a bit for each that is measured */
  int strict;
  const char *json;
  struct backend backend[BACKENDS_MAX];
  int bare_datagrams, bare_sender, bare_connection;
  struct stream bare_stream;
  double bare[WORK_COUNT][ROUNDS_MAX];
  /* the other floor: what is received goes to another process */
  struct bare passing;
  struct tally *passed;
  pid_t passed_to;
  double pass[WORK_COUNT][ROUNDS_MAX];
};

static uint64_t clock_ns(clockid_t clock) {
  struct timespec now;
  if (clock_gettime(clock, &now) != 0) bench_die("the worker's processor time cannot be read: %s", strerror(errno));
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- senders --------------------------------------------------------------------------------------------- */

static int connect_to(int type, unsigned port) {
  struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  int bytes = SOCKET_BYTES;
  place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&place, sizeof place) != 0)
    bench_die("cannot connect to port %u: %s", port, strerror(errno));
  if (type == SOCK_STREAM) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
  return fd;
}

static void send_datagrams(int fd, unsigned n) {
  uint64_t payload[BENCH_PAYLOAD_BYTES / 8];
  for (unsigned i = 0; i < n; i++) {
    bench_payload_write(payload, i);
    if (send(fd, payload, sizeof payload, 0) != (ssize_t)sizeof payload) bench_die("send: %s", strerror(errno));
  }
}

/* Sends what the sockets take, at most so many bytes more; the stream may stop inside a frame and goes on there. */
static void send_frames(struct stream *stream, uint64_t most) {
  static uint8_t frames[2 * FRAMES_A_SEND * FRAME_BYTES]; /* twice the row, to begin anywhere in it */
  const uint64_t row = sizeof frames / 2;
  uint64_t end = stream->sent + most;
  if (frames[3] == 0) {
    for (size_t i = 0; i < sizeof frames; i += FRAME_BYTES) {
      frames[i + 3] = BENCH_PAYLOAD_BYTES;
      memset(&frames[i + 4], 0x5a, BENCH_PAYLOAD_BYTES);
    }
  }
  while (stream->sent < end) {
    uint64_t n = end - stream->sent < row ? end - stream->sent : row;
    ssize_t sent = send(stream->fd, frames + stream->sent % row, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) return;
    if (sent <= 0) bench_die("send: %s", strerror(errno));
    stream->sent += (uint64_t)sent;
  }
}

/* ---- the floor ------------------------------------------------------------------------------------------- */

static void open_bare(struct ingest *ingest) {
  struct sockaddr_in place = {.sin_family = AF_INET};
  socklen_t length = sizeof place;
  int bytes = SOCKET_BYTES;
  place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ingest->bare_datagrams = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (setsockopt(ingest->bare_datagrams, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) != 0)
    setsockopt(ingest->bare_datagrams, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
  if (bind(ingest->bare_datagrams, (struct sockaddr *)&place, sizeof place) != 0)
    bench_die("bind: %s", strerror(errno));
  getsockname(ingest->bare_datagrams, (struct sockaddr *)&place, &length);
  ingest->bare_sender = connect_to(SOCK_DGRAM, ntohs(place.sin_port));
  place.sin_port = 0;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(listener, (struct sockaddr *)&place, sizeof place) != 0 || listen(listener, 1) != 0)
    bench_die("listen: %s", strerror(errno));
  getsockname(listener, (struct sockaddr *)&place, &length);
  ingest->bare_stream.fd = connect_to(SOCK_STREAM, ntohs(place.sin_port));
  ingest->bare_connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  close(listener);
}

/* Takes and reads what the other floor passes on. */
static _Noreturn void run_bare_subscriber(struct bare *bare, struct tally *tally) {
  uint64_t sum = 0;
  uint64_t taken = 0;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) {
    uint32_t active = npi_load_acquire_u32(&tally->active);
    if (active == 2) _exit(0);
    if (active == 0) usleep(200);
    taken += bare_take(bare, &sum);
    npi_store_relaxed_u64(&tally->sum, sum);
    npi_store_release_u64(&tally->taken, taken);
  }
}

static void open_passing(struct ingest *ingest) {
  bare_init(&ingest->passing, BARE_CAPACITY_MAX);
  ingest->passed = bench_shared_memory(sizeof *ingest->passed);
  fflush(NULL);
  ingest->passed_to = fork();
  if (ingest->passed_to < 0) bench_die("fork failed");
  if (ingest->passed_to == 0) run_bare_subscriber(&ingest->passing, ingest->passed);
}

static void await_passed(struct ingest *ingest) {
  uint64_t deadline = bench_now_ns() + PATIENCE_NS;
  while (npi_load_acquire_u64(&ingest->passed->taken) < ingest->passing.submitted) {
    if (bench_now_ns() > deadline) bench_die("the floor's subscriber does not take");
    usleep(500);
  }
  npi_store_release_u32(&ingest->passed->active, 0);
}

/* Batches of 64 into the same buffers; discarded, or passed on. */
static double drain_bare_datagrams(struct ingest *ingest, int passes) {
  struct bare_row row = {.n = 0};
  static uint8_t bytes[BATCH][2048];
  static struct iovec places[BATCH];
  static struct mmsghdr messages[BATCH];
  unsigned n = 0;
  for (unsigned i = 0; i < BATCH; i++) {
    places[i] = (struct iovec){bytes[i], sizeof bytes[i]};
    messages[i].msg_hdr = (struct msghdr){.msg_iov = &places[i], .msg_iovlen = 1};
  }
  send_datagrams(ingest->bare_sender, UDP_EVENTS);
  if (passes) npi_store_release_u32(&ingest->passed->active, 1);
  uint64_t from = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
  for (;;) {
    int got = recvmmsg(ingest->bare_datagrams, messages, BATCH, MSG_DONTWAIT, NULL);
    if (got <= 0) break;
    n += (unsigned)got;
    for (int i = 0; passes && i < got; i++) bare_fill(&ingest->passing, &row, bytes[i], messages[i].msg_len);
    if (passes) bare_pass(&ingest->passing, &row);
  }
  uint64_t to = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
  if (passes) await_passed(ingest);
  if (n != UDP_EVENTS)
    bench_die("%u of %d datagrams arrived: raise net.core.rmem_max to %d", n, UDP_EVENTS, SOCKET_BYTES);
  return (double)(to - from) / n;
}

/* Up to 64 KiB at a time, cut into frames, each copied out of the buffer, or passed on. */
static double drain_bare_frames(struct ingest *ingest, int passes) {
  struct bare_row row = {.n = 0};
  static uint8_t bytes[RECEIVE_BYTES + FRAME_BYTES];
  static uint8_t slots[1024][320];
  static size_t rest; /* of a frame that is not whole yet, at the buffer's start */
  uint64_t frames = 0;
  uint64_t before = ingest->bare_stream.sent;
  send_frames(&ingest->bare_stream, (uint64_t)TCP_EVENTS * FRAME_BYTES);
  uint64_t left = ingest->bare_stream.sent - before;
  if (passes) npi_store_release_u32(&ingest->passed->active, 1);
  uint64_t from = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
  while (left > 0) {
    ssize_t got = recv(ingest->bare_connection, bytes + rest, RECEIVE_BYTES, 0);
    if (got <= 0) bench_die("recv: %s", strerror(errno));
    left -= (uint64_t)got;
    size_t n = rest + (size_t)got;
    size_t at = 0;
    while (n - at >= 4) {
      uint32_t size =
          (uint32_t)bytes[at] << 24 | (uint32_t)bytes[at + 1] << 16 | (uint32_t)bytes[at + 2] << 8 | bytes[at + 3];
      if (size > 256) bench_die("a frame of %u bytes", size);
      if (n - at - 4 < size) break;
      if (passes) {
        bare_fill(&ingest->passing, &row, bytes + at + 4, size);
      } else {
        memcpy(slots[frames % 1024], bytes + at + 4, size);
        __asm__ volatile("" ::"r"(slots) : "memory"); /* the copy is made */
      }
      frames++;
      at += 4 + size;
    }
    rest = n - at;
    memmove(bytes, bytes + at, rest);
    if (passes) bare_pass(&ingest->passing, &row);
  }
  uint64_t to = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
  if (passes) await_passed(ingest);
  return (double)(to - from) / (double)frames;
}

/* ---- a broker's worker and a subscriber -------------------------------------------------------------------- */

static _Noreturn void run_subscriber(const char *instance, struct tally *tally) {
  struct np_options options;
  struct np_client *client;
  struct np_subscriber *subscriber;
  struct np_event event;
  uint64_t taken = 0;
  uint64_t sum = 0;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  np_options_init(&options);
  options.instance = instance;
  options.timeout_ms = 5000;
  if (np_connect(&client, &options) < 0 || np_subscriber_open(client, "bench.in", NULL, &subscriber) < 0)
    bench_die("the subscriber: %s", np_error_detail());
  npi_store_release_u32(&tally->ready, 1);
  for (;;) {
    uint32_t active = npi_load_acquire_u32(&tally->active);
    if (active == 2) break;
    if (active == 0) usleep(200);
    int status;
    while ((status = np_take(subscriber, &event)) == NP_OK) {
      if (event.size != BENCH_PAYLOAD_BYTES) bench_die("an event of %zu bytes", event.size);
      sum += bench_payload_read(event.data);
      np_release(subscriber, &event);
      taken++;
    }
    if (status < 0) bench_die("np_take: %s", np_error_detail());
    npi_store_relaxed_u64(&tally->sum, sum);
    npi_store_release_u64(&tally->taken, taken);
  }
  np_disconnect(client);
  _exit(0);
}

/* NAME:INSTANCE:WORKER PID:UDP PORT:TCP PORT */
static void open_backend(struct backend *backend, char *text) {
  int worker;
  unsigned udp, tcp;
  char *colon = strchr(text, ':');
  if (colon == NULL || sscanf(colon + 1, "%63[^:]:%d:%u:%u", backend->instance, &worker, &udp, &tcp) != 4)
    bench_die("--backend NAME:INSTANCE:WORKER_PID:UDP_PORT:TCP_PORT, not \"%s\"", text);
  *colon = '\0';
  backend->name = text;
  backend->worker = worker;
  if (clock_getcpuclockid(worker, &backend->clock) != 0) bench_die("there is no worker process %d", worker);
  backend->tally = bench_shared_memory(sizeof *backend->tally);
  fflush(NULL);
  backend->subscriber = fork();
  if (backend->subscriber < 0) bench_die("fork failed");
  if (backend->subscriber == 0) run_subscriber(backend->instance, backend->tally);
  for (unsigned i = 0; npi_load_acquire_u32(&backend->tally->ready) == 0; i++) {
    if (i > 10000) bench_die("the subscriber does not start");
    usleep(1000);
  }
  backend->datagrams = connect_to(SOCK_DGRAM, udp);
  backend->stream.fd = connect_to(SOCK_STREAM, tcp);
}

static void stop_worker(const struct backend *backend) {
  char path[64];
  char line[256];
  snprintf(path, sizeof path, "/proc/%d/stat", backend->worker);
  if (kill(backend->worker, SIGSTOP) != 0) bench_die("there is no worker process %d", backend->worker);
  for (unsigned i = 0; i < 10000; i++) {
    FILE *file = fopen(path, "re");
    const char *state = file == NULL ? NULL : fgets(line, sizeof line, file);
    if (file != NULL) fclose(file);
    state = state == NULL ? NULL : strrchr(line, ')');
    if (state != NULL && state[2] == 'T') return;
    usleep(100);
  }
  bench_die("the worker does not stop");
}

/* Until the subscriber has all; the worker's time by event. */
static double drain(struct backend *backend, unsigned n) {
  backend->expected += n;
  uint64_t from = clock_ns(backend->clock);
  uint64_t deadline = bench_now_ns() + PATIENCE_NS;
  npi_store_release_u32(&backend->tally->active, 1);
  kill(backend->worker, SIGCONT);
  while (npi_load_acquire_u64(&backend->tally->taken) < backend->expected) {
    if (bench_now_ns() > deadline) {
      bench_die("%s: %llu of %llu events arrived; the broker's log or numapoolctl says where the others are",
                backend->name, (unsigned long long)npi_load_acquire_u64(&backend->tally->taken),
                (unsigned long long)backend->expected);
    }
    usleep(500);
  }
  npi_store_release_u32(&backend->tally->active, 0);
  usleep(2000); /* to its next sleep: until then it looks for more, and that is part of the price */
  double ns = (double)(clock_ns(backend->clock) - from) / n;
  if (ns < NS_LEAST)
    bench_die("%s: %.1f ns an event: process %d is not who receives", backend->name, ns, backend->worker);
  return ns;
}

/* A drain of nothing: what stopping the worker costs it, which the floors do not pay; by event of a drain of n. */
static double stop_and_go_on(struct backend *backend, double n) {
  stop_worker(backend);
  uint64_t from = clock_ns(backend->clock);
  kill(backend->worker, SIGCONT);
  usleep(2000);
  return (double)(clock_ns(backend->clock) - from) / n;
}

static double drain_datagrams(struct backend *backend) {
  stop_worker(backend);
  send_datagrams(backend->datagrams, UDP_EVENTS);
  return drain(backend, UDP_EVENTS);
}

static double drain_frames(struct backend *backend) {
  uint64_t whole = backend->stream.sent / FRAME_BYTES;
  stop_worker(backend);
  send_frames(&backend->stream, (uint64_t)TCP_EVENTS * FRAME_BYTES);
  return drain(backend, (unsigned)(backend->stream.sent / FRAME_BYTES - whole));
}

/* ---- rounds and results ---------------------------------------------------------------------------------- */

/* The floor, then each backend, DRAINS times in turn; the round's figure is the median of its drains. */
static void run_round(struct ingest *ingest, enum work work, unsigned round) {
  double bare[DRAINS];
  double pass[DRAINS];
  double ours[BACKENDS_MAX][DRAINS];
  for (unsigned i = 0; i < DRAINS; i++) {
    bare[i] = work == WORK_UDP ? drain_bare_datagrams(ingest, 0) : drain_bare_frames(ingest, 0);
    pass[i] = work == WORK_UDP ? drain_bare_datagrams(ingest, 1) : drain_bare_frames(ingest, 1);
    for (unsigned b = 0; b < ingest->n_backends; b++) {
      ours[b][i] = work == WORK_UDP ? drain_datagrams(&ingest->backend[b]) : drain_frames(&ingest->backend[b]);
    }
  }
  for (unsigned b = 0; b < ingest->n_backends; b++)
    ingest->backend[b].stop[work][round] =
        stop_and_go_on(&ingest->backend[b], work == WORK_UDP ? UDP_EVENTS : TCP_EVENTS);
  ingest->bare[work][round] = bench_summarize(bare, DRAINS).median;
  ingest->pass[work][round] = bench_summarize(pass, DRAINS).median;
  for (unsigned b = 0; b < ingest->n_backends; b++) {
    ingest->backend[b].ns[work][round] = bench_summarize(ours[b], DRAINS).median;
  }
}

static int is_measured(const struct ingest *ingest, unsigned work) {
  return ingest->works >> work & 1;
}

static struct bench_summary summary_of(const double *values, const double *by, unsigned n) {
  double copy[ROUNDS_MAX];
  for (unsigned i = 0; i < n; i++) copy[i] = by == NULL ? values[i] : values[i] / by[i];
  return bench_summarize(copy, n);
}

static unsigned print_results(const struct ingest *ingest) {
  unsigned missed = 0;
  printf("\nprocessor time of the receiver, ns an event, medians of %u rounds\n", ingest->rounds);
  for (unsigned work = 0; work < WORK_COUNT; work++) {
    if (!is_measured(ingest, work)) continue;
    struct bench_summary bare = summary_of(ingest->bare[work], NULL, ingest->rounds);
    printf("%s\n  %-18s %8.1f   %.1f - %.1f (%.1f .. %.1f)\n", work_titles[work],
           work == WORK_UDP ? "recvmmsg, discard" : "recv, parse, copy", bare.median, bare.quarter, bare.three_quarters,
           bare.min, bare.max);
    struct bench_summary pass = summary_of(ingest->pass[work], NULL, ingest->rounds);
    printf("  %-18s %8.1f   %.1f - %.1f (%.1f .. %.1f)   %.2f x\n", "  and passed on", pass.median, pass.quarter,
           pass.three_quarters, pass.min, pass.max,
           summary_of(ingest->pass[work], ingest->bare[work], ingest->rounds).median);
    for (unsigned b = 0; b < ingest->n_backends; b++) {
      const double *ns = ingest->backend[b].ns[work];
      struct bench_summary ours = summary_of(ns, NULL, ingest->rounds);
      double ratio = summary_of(ns, ingest->bare[work], ingest->rounds).median;
      missed += ratio > RATIO_MOST;
      printf("  %-18s %8.1f   %.1f - %.1f (%.1f .. %.1f)   %.2f x   <= %.1f x: %s; %.2f x passed on\n",
             ingest->backend[b].name, ours.median, ours.quarter, ours.three_quarters, ours.min, ours.max, ratio,
             RATIO_MOST, ratio <= RATIO_MOST ? "ok" : "MISSED",
             summary_of(ns, ingest->pass[work], ingest->rounds).median);
      printf("  %-18s %8.1f\n", "  of it, being stopped",
             summary_of(ingest->backend[b].stop[work], NULL, ingest->rounds).median);
    }
  }
  return missed;
}

static void json_values(FILE *file, const char *name, const double *values, unsigned n, const char *end) {
  struct bench_summary summary = summary_of(values, NULL, n);
  fprintf(file, "    \"%s\": {\"median\": %.2f, \"quartiles\": [%.2f, %.2f], \"rounds\": [", name, summary.median,
          summary.quarter, summary.three_quarters);
  for (unsigned i = 0; i < n; i++) fprintf(file, "%s%.2f", i == 0 ? "" : ", ", values[i]);
  fprintf(file, "]}%s\n", end);
}

static void write_json(const struct ingest *ingest, unsigned missed) {
  FILE *file = fopen(ingest->json, "we");
  if (file == NULL) bench_die("cannot write %s: %s", ingest->json, strerror(errno));
  fprintf(file,
          "{\n  \"benchmark\": \"ingest\", \"unit\": \"ns of processor time an event\", \"payload_bytes\": %d,\n  ",
          BENCH_PAYLOAD_BYTES);
  bench_machine_json(file);
  fprintf(file, ",\n  \"targets_missed\": %u,\n", missed);
  for (unsigned work = 0; work < WORK_COUNT; work++) {
    fprintf(file, "  \"%s\": {\n", work_names[work]);
    json_values(file, "bare", ingest->bare[work], ingest->rounds, ",");
    json_values(file, "passed_on", ingest->pass[work], ingest->rounds, ingest->n_backends > 0 ? "," : "");
    for (unsigned b = 0; b < ingest->n_backends; b++) {
      json_values(file, ingest->backend[b].name, ingest->backend[b].ns[work], ingest->rounds,
                  b + 1 < ingest->n_backends ? "," : "");
    }
    fprintf(file, "  }%s\n", work + 1 < WORK_COUNT ? "," : "");
  }
  fprintf(file, "}\n");
  if (fclose(file) != 0) bench_die("cannot write %s", ingest->json);
}

int main(int argc, char **argv) {
  static struct ingest ingest;
  int status;
  ingest.rounds = 9;
  ingest.works = (1u << WORK_COUNT) - 1;
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (int i = 1; i < argc; i++) {
    char *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (strcmp(argv[i], "--strict") == 0) {
      ingest.strict = 1;
    } else if (value != NULL && strcmp(argv[i], "--rounds") == 0) {
      ingest.rounds = (unsigned)strtoul(argv[++i], NULL, 10);
    } else if (value != NULL && strcmp(argv[i], "--json") == 0) {
      ingest.json = argv[++i];
    } else if (value != NULL && strcmp(argv[i], "--only") == 0) {
      i++;
      for (unsigned work = 0; work < WORK_COUNT; work++)
        if (strcmp(value, work_names[work]) == 0) ingest.works = 1u << work;
    } else if (value != NULL && strcmp(argv[i], "--backend") == 0 && ingest.n_backends < BACKENDS_MAX) {
      open_backend(&ingest.backend[ingest.n_backends++], argv[++i]);
    } else {
      bench_die(
          "usage: bench_ingest --backend NAME:INSTANCE:WORKER_PID:UDP_PORT:TCP_PORT ... [--rounds N] [--json FILE]"
          " [--only udp|tcp] [--strict]");
    }
  }
  if (ingest.rounds < 1 || ingest.rounds > ROUNDS_MAX) bench_die("--rounds: 1 to %d", ROUNDS_MAX);
  bench_machine_print(stdout);
  printf("ingest: %u rounds of %d drains each; a drain is %d datagrams or up to %d frames\n", ingest.rounds, DRAINS,
         UDP_EVENTS, TCP_EVENTS);
  open_bare(&ingest);
  open_passing(&ingest);
  for (unsigned work = 0; work < WORK_COUNT; work++)
    if (is_measured(&ingest, work)) run_round(&ingest, work, 0); /* warm */
  for (unsigned round = 0; round < ingest.rounds; round++) {
    for (unsigned work = 0; work < WORK_COUNT; work++)
      if (is_measured(&ingest, work)) run_round(&ingest, work, round);
    printf("  round %2u:", round + 1);
    for (unsigned work = 0; work < WORK_COUNT; work++) {
      if (!is_measured(&ingest, work)) continue;
      printf("  %s bare %.1f, passed on %.1f", work_names[work], ingest.bare[work][round], ingest.pass[work][round]);
      for (unsigned b = 0; b < ingest.n_backends; b++)
        printf(", %s %.1f", ingest.backend[b].name, ingest.backend[b].ns[work][round]);
    }
    printf("\n");
  }
  for (unsigned b = 0; b < ingest.n_backends; b++) {
    npi_store_release_u32(&ingest.backend[b].tally->active, 2);
    waitpid(ingest.backend[b].subscriber, &status, 0);
  }
  npi_store_release_u32(&ingest.passed->active, 2);
  waitpid(ingest.passed_to, &status, 0);
  unsigned missed = print_results(&ingest);
  if (ingest.json != NULL) write_json(&ingest, missed);
  return ingest.strict && missed > 0 ? 1 : 0;
}
