/* SPDX-License-Identifier: Apache-2.0 */
/* Which backend a worker gets, and what the engine does where the system refuses something. */
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/times.h>
#ifdef NPI_HAVE_SECCOMP
#include <seccomp.h>
#endif

#include "base/log.h"
#include "os/os_wait.h"
#include "tests/support/ingest_rig.h"

TestSuite(ingest_backend, .timeout = 60);

static const struct rig_variant automatic = {"auto", NPI_CONFIG_INGEST_AUTO, 64, 16384, 0, NPI_URING_ALL};
static const struct rig_variant uring = {"io_uring", NPI_CONFIG_INGEST_IO_URING, 64, 16384, 0, NPI_URING_ALL};
static const struct rig_variant epoll = {"epoll", NPI_CONFIG_INGEST_EPOLL, 64, 16384, 0, 0};

static char log_text[4096];

static void remember(enum npi_log_level level, const char *line, void *context) {
  size_t used = strlen(log_text);

  (void)level;
  (void)context;
  snprintf(log_text + used, sizeof(log_text) - used, "%s\n", line);
}

static int descriptors_open(void) {
  int n = 0;

  for (int fd = 0; fd < 2000; fd++) n += fcntl(fd, F_GETFD) >= 0;
  return n;
}

static void expect_traffic(struct rig *rig, uint32_t listener) {
  uint64_t before = rig->n_published;
  int fd = rig_connect(rig, listener);

  rig_send(rig, fd, "hello\n", 6);
  RIG_UNTIL(rig, rig->n_published == before + 1);
  close(fd);
}

#ifdef NPI_HAVE_SECCOMP
static void forbid_io_uring(void) {
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);

  cr_assert_not_null(filter);
  cr_assert_eq(seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), 425 /* io_uring_setup */, 0), 0);
  cr_assert_eq(seccomp_load(filter), 0);
  seccomp_release(filter);
}

Test(ingest_backend, where_io_uring_is_forbidden_auto_takes_epoll_and_says_so) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);

  forbid_io_uring();
  npi_log_set_sink(remember, NULL, NPI_LOG_INFO);
  rig_start(rig, &automatic);
  cr_assert_eq(npi_ingest_backend_number(rig->ingest), 2);
  cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_BACKEND), 2);
  cr_assert_not_null(strstr(log_text, "ingest.fallback"), "%s", log_text);
  cr_assert_not_null(strstr(log_text, "seccomp"), "%s", log_text);
  expect_traffic(rig, listener);
  rig_free(rig);
}

Test(ingest_backend, where_io_uring_is_forbidden_asking_for_it_is_an_error) {
  struct rig *rig = rig_new();
  int before;

  rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  forbid_io_uring();
  before = descriptors_open();
  cr_assert_eq(rig_try_start(rig, &uring), NP_ERR_SYSTEM);
  cr_assert_not_null(strstr(npi_detail(), "Operation not permitted"), "%s", npi_detail());
  cr_assert_null(rig->ingest);
  cr_assert_eq(descriptors_open(), before, "something was left open");
  free(rig);
}
#endif

Test(ingest_backend, auto_takes_io_uring_where_it_works) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);

  rig_start(rig, &automatic);
  if (npi_uring_selftest(NPI_URING_ALL) < 0) cr_skip("no io_uring here: %s", npi_detail());
  cr_assert_eq(npi_ingest_backend_number(rig->ingest), 1);
  expect_traffic(rig, listener);
  rig_free(rig);
}

Test(ingest_backend, without_multishot_there_is_no_io_uring) {
  struct rig_variant masked = automatic;
  struct rig *rig = rig_new();

  rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  masked.mask = NPI_URING_ALL & ~(uint32_t)NPI_URING_MULTISHOT;
  rig_start(rig, &masked);
  cr_assert_eq(npi_ingest_backend_number(rig->ingest), 2);
  rig_free(rig);
}

Test(ingest_backend, each_rung_of_the_ladder_works_and_has_no_more_than_it_may) {
  for (uint32_t mask = 0; mask <= NPI_URING_ALL; mask++) {
    struct io_uring ring;
    uint32_t features;

    if (npi_uring_open(&ring, 8, 32, mask, &features) < 0) cr_skip("no io_uring here: %s", npi_detail());
    cr_assert_eq(features & ~mask, 0);
    io_uring_queue_exit(&ring);
    cr_assert_eq(npi_uring_selftest(mask), 0, "mask %u: %s", mask, npi_detail());
  }
}

static void end_to_end_leak(const struct rig_variant *variant) {
  int before = descriptors_open();

  for (int i = 0; i < 20; i++) {
    struct rig *rig = rig_new();
    uint32_t tcp = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
    rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_DATAGRAM);
    rig_start(rig, variant);
    for (int n = 0; n < 5; n++) {
      int fd = rig_connect(rig, tcp);
      rig_send(rig, fd, "half", 4);
      rig_turn(rig);
      close(fd);
    }
    rig_free(rig);
  }
  cr_assert_eq(descriptors_open(), before);
}

Test(ingest_backend, an_engine_leaves_no_descriptor_behind) {
  end_to_end_leak(&uring);
  end_to_end_leak(&epoll);
}

static void out_of_descriptors(const struct rig_variant *variant) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_UNIX, NPI_FRAMING_NEWLINE);
  struct rlimit limit, before;
  int fd[4], n_open;

  rig_start(rig, variant);
  for (int i = 0; i < 4; i++) fd[i] = rig_connect(rig, listener);
  getrlimit(RLIMIT_NOFILE, &before);
  n_open = open("/dev/null", O_RDONLY); /* the lowest free number: nothing above it may be opened */
  limit = before;
  limit.rlim_cur = (rlim_t)n_open + 2;
  cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
  close(n_open);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_REJECTED) >= 1);
  cr_assert_geq(rig_count(rig, listener, NPI_LISTENER_ACCEPTED), 1);
  cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
  RIG_UNTIL(rig,
            rig_count(rig, listener, NPI_LISTENER_REJECTED) + rig_count(rig, listener, NPI_LISTENER_ACCEPTED) == 4);
  expect_traffic(rig, listener);
  for (int i = 0; i < 4; i++) close(fd[i]);
  rig_free(rig);
}

Test(ingest_backend, without_descriptors_newcomers_are_refused_and_later_admitted_again) {
  out_of_descriptors(&epoll);
  out_of_descriptors(&uring);
}

static uint32_t n_ready;

static void count_ready(void *context) {
  n_ready++;
  npi_event_clear(*(int *)context);
}

static void watches(const struct rig_variant *variant) {
  struct rig *rig = rig_new();
  int event = -1;

  rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  rig_start(rig, variant);
  cr_assert_eq(npi_event_create(&event), 0);
  cr_assert_eq(npi_ingest_watch(rig->ingest, event, count_ready, &event), 0);
  n_ready = 0;
  rig_settle(rig);
  cr_assert_eq(n_ready, 0);
  for (uint32_t i = 1; i <= 10; i++) {
    npi_event_ring(event);
    RIG_UNTIL(rig, n_ready == i);
  }
  rig_settle(rig);
  cr_assert_eq(n_ready, 10);
  close(event);
  rig_free(rig);
}

Test(ingest_backend, a_watched_descriptor_is_reported_each_time) {
  watches(&uring);
  watches(&epoll);
}

static void do_nothing(void *context) {
  (void)context;
}

/* A control connection that ended is readable for ever; that is no work to wait for. */
static void readable_for_ever(const struct rig_variant *variant) {
  struct rig *rig = rig_new();
  uint64_t begin;
  int event = -1;

  rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  rig_start(rig, variant);
  cr_assert_eq(npi_event_create(&event), 0);
  npi_event_ring(event);
  cr_assert_eq(npi_ingest_watch(rig->ingest, event, do_nothing, NULL), 0);
  rig_settle(rig);
  begin = npi_clock_monotonic();
  cr_assert_eq(npi_ingest_drain(rig->ingest, begin + UINT64_C(30000000000)), 0);
  cr_assert_lt(npi_clock_monotonic() - begin, UINT64_C(15000000000), "it waited for its deadline");
  close(event);
  rig_free(rig);
}

Test(ingest_backend, a_watched_descriptor_that_stays_readable_does_not_prolong_a_drain) {
  readable_for_ever(&uring);
  readable_for_ever(&epoll);
}

static void stopped_watch(const struct rig_variant *variant) {
  struct rig *rig = rig_new();
  int event = -1;

  rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  rig_start(rig, variant);
  cr_assert_eq(npi_event_create(&event), 0);
  cr_assert_eq(npi_ingest_watch(rig->ingest, event, count_ready, &event), 0);
  npi_event_ring(event);
  n_ready = 0;
  RIG_UNTIL(rig, n_ready == 1);
  npi_ingest_stop_watching(rig->ingest);
  npi_event_ring(event);
  rig_settle(rig);
  cr_assert_eq(n_ready, 1);
  close(event);
  rig_free(rig);
}

Test(ingest_backend, a_watch_that_was_stopped_is_silent) {
  stopped_watch(&uring);
  stopped_watch(&epoll);
}

/* The credit descriptor ends a pause at once: long before the timed retry, which is 10 ms apart by then. */
static void credit(const struct rig_variant *variant) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  uint64_t sum = 0, begin;
  int event = -1, fd;

  rig_start(rig, variant);
  cr_assert_eq(npi_event_create(&event), 0);
  cr_assert_eq(npi_ingest_watch_credit(rig->ingest, event), 0);
  fd = rig_connect(rig, listener);
  for (int i = 0; i < 10; i++) {
    rig->refuse_always = NP_FULL;
    rig_send(rig, fd, "wait\n", 5);
    begin = npi_clock_monotonic();
    while (npi_clock_monotonic() - begin < 60000000) rig_turn(rig);
    cr_assert_eq(rig_count(rig, listener, NPI_LISTENER_HELD), 1);
    rig->refuse_always = 0;
    npi_event_ring(event);
    begin = npi_clock_monotonic();
    RIG_UNTIL(rig, rig->n_published == (uint64_t)i + 1);
    sum += npi_clock_monotonic() - begin;
    npi_event_clear(event);
  }
  cr_assert_lt(sum / 10, 2000000, "%lu ns to go on", (unsigned long)(sum / 10));
  close(fd);
  close(event);
  rig_free(rig);
}

Test(ingest_backend, the_credit_descriptor_ends_a_pause_at_once) {
  credit(&uring);
  credit(&epoll);
}

static void idle(const struct rig_variant *variant) {
  struct rig *rig = rig_new();
  uint32_t listener = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_NEWLINE);
  struct rusage before, after;
  uint64_t begin, n_turns = 0, used_us;
  int fd[200];

  rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_DATAGRAM);
  rig->config[listener].idle_timeout_ms = 300000;
  rig_start(rig, variant);
  for (int i = 0; i < 200; i++) fd[i] = rig_connect(rig, listener);
  RIG_UNTIL(rig, rig_count(rig, listener, NPI_LISTENER_ACCEPTED) == 200);
  rig_settle(rig);
  getrusage(RUSAGE_SELF, &before);
  begin = npi_clock_monotonic();
  while (npi_clock_monotonic() - begin < UINT64_C(4000000000)) {
    cr_assert_eq(npi_ingest_turn(rig->ingest, UINT64_C(1000000000)), 0);
    n_turns++;
  }
  getrusage(RUSAGE_SELF, &after);
  used_us =
      (uint64_t)((after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec) *
                     1000000 +
                 after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec);
  cr_log_info("%s: %lu turns, %lu us of CPU in 4 s", variant->name, (unsigned long)n_turns, (unsigned long)used_us);
  cr_assert_leq(n_turns, 20, "%s wakes %lu times in 4 s", variant->name, (unsigned long)n_turns);
  cr_assert_leq(used_us, 20000, "%lu us of CPU", (unsigned long)used_us);
  for (int i = 0; i < 200; i++) close(fd[i]);
  rig_free(rig);
}

Test(ingest_backend, silent_connections_cost_nothing) {
  idle(&uring);
  idle(&epoll);
}

/*
 * Streams that are never empty, and datagrams that come all the time. The kernel gives each source the same number of
 * completions, and one of a stream brings two hundred times as many events; so datagrams must get more than their turn.
 */
static void flood(const struct rig_variant *variant) {
  enum { STREAMS = 4, TURNS = 100, A_TURN = 200, BEHIND_MOST = 2 * A_TURN };
  struct rig *rig = rig_new();
  uint32_t stream = rig_listen(rig, NPI_CONFIG_TCP, NPI_FRAMING_LENGTH_PREFIX);
  uint32_t datagrams = rig_listen(rig, NPI_CONFIG_UDP, NPI_FRAMING_DATAGRAM);
  static uint8_t frames[64 * 1024];
  size_t at[STREAMS] = {0};
  int fd[STREAMS], sender;
  uint64_t sent = 0, behind = 0;

  for (size_t i = 0; i < sizeof(frames); i += 64) frames[i + 3] = 60;
  rig_start(rig, variant);
  for (int i = 0; i < STREAMS; i++) fd[i] = rig_connect(rig, stream);
  sender = rig_connect(rig, datagrams);
  RIG_UNTIL(rig, npi_ingest_connections(rig->ingest) == STREAMS);
  for (int turn = 0; turn < TURNS; turn++) {
    for (int i = 0; i < STREAMS; i++) {
      ssize_t n;
      while ((n = send(fd[i], frames + at[i], sizeof(frames) - at[i], MSG_NOSIGNAL)) > 0)
        at[i] = (at[i] + (size_t)n) % sizeof(frames);
    }
    for (int i = 0; i < A_TURN; i++) sent += send(sender, "datagram", 8, 0) == 8;
    rig_turn(rig);
    behind = sent - rig_count(rig, datagrams, NPI_LISTENER_RECEIVED);
    cr_assert_leq(behind, BEHIND_MOST, "%s, turn %d: %lu of %lu datagrams still wait", variant->name, turn,
                  (unsigned long)behind, (unsigned long)sent);
  }
  cr_assert_gt(rig_count(rig, stream, NPI_LISTENER_RECEIVED), 10 * sent, "%s: the streams were no flood",
               variant->name);
  RIG_UNTIL(rig, rig_count(rig, datagrams, NPI_LISTENER_RECEIVED) == sent);
  for (int i = 0; i < STREAMS; i++) close(fd[i]);
  close(sender);
  rig_free(rig);
}

Test(ingest_backend, a_flood_of_stream_bytes_does_not_starve_datagrams) {
  flood(&uring);
  flood(&epoll);
}
