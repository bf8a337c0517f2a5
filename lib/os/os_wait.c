/* SPDX-License-Identifier: Apache-2.0 */
#include "os/os_wait.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/status.h"

int npi_event_create(int *fd) {
  *fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (*fd >= 0) return 0;
  return npi_fail_errno(errno == EMFILE || errno == ENFILE ? NP_ERR_LIMIT : NP_ERR_SYSTEM, errno,
                        "cannot create an eventfd");
}

int npi_event_ring(int fd) {
  static const uint64_t one = 1;
  for (;;) {
    if (write(fd, &one, sizeof one) == (ssize_t)sizeof one) return 0;
    if (errno == EAGAIN) return 0; /* the count is full: readable it is */
    if (errno != EINTR) return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot ring eventfd %d", fd);
  }
}

int npi_event_clear(int fd) {
  uint64_t count;
  ssize_t n;
  do {
    n = read(fd, &count, sizeof count);
  } while (n < 0 && errno == EINTR);
  return n == (ssize_t)sizeof count;
}

int npi_wait_readable(const int *fds, int n, int64_t timeout_ns) {
  struct pollfd polled[NPI_WAIT_FDS_MAX];
  if (n < 0 || n > NPI_WAIT_FDS_MAX) {
    return npi_fail(NP_ERR_ARGUMENT, "cannot wait for %d descriptors: 0 to %d", n, NPI_WAIT_FDS_MAX);
  }
  for (int i = 0; i < n; i++) polled[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
  struct timespec bound = {.tv_sec = (time_t)(timeout_ns / 1000000000), .tv_nsec = (long)(timeout_ns % 1000000000)};
  int ready = ppoll(polled, (nfds_t)n, timeout_ns < 0 ? NULL : &bound, NULL);
  if (ready == 0 || (ready < 0 && errno == EINTR)) return 0;
  if (ready < 0) return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot wait for %d descriptors", n);
  for (int i = 0; i < n; i++) {
    if ((polled[i].revents & POLLNVAL) != 0) return npi_fail(NP_ERR_ARGUMENT, "descriptor %d is not open", fds[i]);
  }
  return 1;
}

static int membarrier(int command) {
  if (syscall(SYS_membarrier, command, 0, 0) == 0) return 0;
  npi_fail_errno(0, errno, "membarrier is refused here");
  return NPI_MEMBARRIER_MISSING;
}

int npi_membarrier_register(void) {
  return membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED);
}

int npi_membarrier_all(void) {
  return membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED);
}
