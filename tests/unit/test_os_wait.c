/* SPDX-License-Identifier: Apache-2.0 */
/* Sleeping, waking, and the barrier. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_clock.h"
#include "os/os_wait.h"
#include "tests/support/child.h"

TestSuite(os_wait, .timeout = 30);

Test(os_wait, a_ring_makes_the_event_readable_and_clear_takes_it) {
  /* Proves: many rings are one wake, and clearing twice does not block. */
  int fd;
  cr_assert_eq(npi_event_create(&fd), 0);
  cr_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  cr_assert_eq(npi_wait_readable(&fd, 1, 0), 0);
  cr_assert_eq(npi_event_ring(fd), 0);
  cr_assert_eq(npi_event_ring(fd), 0);
  cr_assert_eq(npi_wait_readable(&fd, 1, -1), 1);
  npi_event_clear(fd);
  cr_assert_eq(npi_wait_readable(&fd, 1, 0), 0);
  npi_event_clear(fd);
  close(fd);
}

Test(os_wait, ringing_a_full_event_does_not_block) {
  /* Proves: a peer that fills the counter cannot stop whoever wakes it. */
  int fd;
  uint64_t most = UINT64_MAX - 1;
  cr_assert_eq(npi_event_create(&fd), 0);
  cr_assert_eq(write(fd, &most, sizeof most), (ssize_t)sizeof most);
  cr_assert_eq(npi_event_ring(fd), 0);
  cr_assert_eq(npi_wait_readable(&fd, 1, 0), 1);
  close(fd);
}

Test(os_wait, ringing_a_closed_descriptor_is_a_failure) {
  /* Proves: it is not taken for a full one. */
  cr_assert_eq(npi_event_ring(-1), NP_ERR_SYSTEM);
}

Test(os_wait, a_wait_ends_no_earlier_than_its_bound) {
  /* Proves: the unit is nanoseconds. */
  int fd;
  cr_assert_eq(npi_event_create(&fd), 0);
  uint64_t before = npi_clock_monotonic();
  cr_assert_eq(npi_wait_readable(&fd, 1, 30000000), 0);
  cr_assert_geq(npi_clock_monotonic() - before, 30000000);
  close(fd);
}

static void *ring_soon(void *argument) {
  usleep(20000);
  npi_event_ring(*(int *)argument);
  return NULL;
}

Test(os_wait, another_thread_ends_an_unbounded_wait) {
  /* Proves: a sleeper without a bound is woken by any one of its descriptors. */
  int fds[3];
  pthread_t thread;
  for (int i = 0; i < 3; i++) cr_assert_eq(npi_event_create(&fds[i]), 0);
  cr_assert_eq(pthread_create(&thread, NULL, ring_soon, &fds[2]), 0);
  cr_assert_eq(npi_wait_readable(fds, 3, -1), 1);
  pthread_join(thread, NULL);
}

static void nothing(int signal_number) {
  (void)signal_number;
}

static void *interrupt_soon(void *argument) {
  usleep(20000);
  pthread_kill(*(pthread_t *)argument, SIGUSR1);
  return NULL;
}

Test(os_wait, a_signal_ends_a_wait_like_time) {
  /* Proves: an interrupted sleeper gets to look at its clock and its flags; 0, not a failure. */
  int fd;
  pthread_t thread, self = pthread_self();
  struct sigaction action = {.sa_handler = nothing};
  sigaction(SIGUSR1, &action, NULL);
  cr_assert_eq(npi_event_create(&fd), 0);
  cr_assert_eq(pthread_create(&thread, NULL, interrupt_soon, &self), 0);
  cr_assert_eq(npi_wait_readable(&fd, 1, -1), 0);
  pthread_join(thread, NULL);
}

Test(os_wait, a_hung_up_peer_counts_as_readable) {
  /* Proves: nobody sleeps on a pipe whose writer is gone. */
  int ends[2];
  cr_assert_eq(pipe(ends), 0);
  close(ends[1]);
  cr_assert_eq(npi_wait_readable(ends, 1, -1), 1);
}

Test(os_wait, impossible_waits_are_refused) {
  /* Proves: a closed descriptor or too many are errors, not endless sleep. */
  int fds[NPI_WAIT_FDS_MAX + 1] = {0};
  int closed = 1000;
  cr_assert_eq(npi_wait_readable(fds, NPI_WAIT_FDS_MAX + 1, 0), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_wait_readable(&closed, 1, -1), NP_ERR_ARGUMENT);
}

static int barrier_refused(const void *argument) {
  if (forbid_system_call("membarrier", *(const int *)argument) != 0) return CHILD_SKIP;
  CHILD_EXPECT(npi_membarrier_register() == NPI_MEMBARRIER_MISSING);
  CHILD_EXPECT(npi_membarrier_all() == NPI_MEMBARRIER_MISSING);
  return 0;
}

Test(os_wait, a_refused_membarrier_is_reported_as_missing) {
  /* Proves: a container without it is a condition, so that publishers use fences; never a failure. */
  static const int errors[] = {EPERM, ENOSYS, EINVAL};
  for (int i = 0; i < 3; i++) {
    int result = in_child(barrier_refused, &errors[i]);
    if (result == CHILD_SKIP) cr_skip_test("no seccomp here");
    cr_assert_eq(result, 0);
  }
}

Test(os_wait, membarrier_works_where_the_kernel_has_it) {
  /* Proves: registered and called, both succeed together or are missing together. */
  int registered = npi_membarrier_register();
  cr_assert(registered == 0 || registered == NPI_MEMBARRIER_MISSING);
  cr_assert_eq(npi_membarrier_all(), registered);
}

Test(os_wait, the_monotonic_clock_never_goes_back_and_real_time_is_this_century) {
  /* Proves: units and clock ids are the right ones. */
  uint64_t before = npi_clock_monotonic();
  for (int i = 0; i < 1000; i++) {
    uint64_t now = npi_clock_monotonic();
    cr_assert_geq(now, before);
    before = now;
  }
  cr_assert_gt(npi_clock_realtime(), UINT64_C(1577836800) * 1000000000); /* 2020 */
  cr_assert_lt(npi_clock_realtime(), UINT64_C(4102444800) * 1000000000); /* 2100 */
}
