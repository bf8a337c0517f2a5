/* SPDX-License-Identifier: Apache-2.0 */
#include "os/os_wait.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/align.h"
#include "base/status.h"

int npi_event_create(int *fd) {
  *fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (*fd >= 0) return 0;
  return npi_fail_errno(errno == EMFILE || errno == ENFILE ? NP_ERR_LIMIT : NP_ERR_SYSTEM, errno,
                        "cannot create an eventfd");
}

/*
 * Whoever holds an eventfd can make it blocking, for everybody, and fill it: then write() waits until it is read. No
 * flag of a call prevents that. But the kernel itself signals an eventfd when an asynchronous read is done, and never
 * waits for it: so an empty read of /dev/null rings.
 */
static int guard_file = -1; /* /dev/null, open for as long as the process runs; -1: unguarded */

void npi_event_guard(void) {
  int none = -1;
  if (__atomic_load_n(&guard_file, __ATOMIC_RELAXED) >= 0) return;
  int file = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (file < 0) file = INT_MAX; /* no ring by the kernel, but none that is not looked at either */
  if (__atomic_compare_exchange_n(&guard_file, &none, file, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
  if (file != INT_MAX) close(file); /* another thread was first */
}

/* One for each thread that rings: it does not survive a fork. */
static _Thread_local aio_context_t ring_context;
static _Thread_local pid_t ring_process;

static int ring_by_kernel(int fd, int file) {
  struct timespec at_once = {0};
  struct io_event done[4];
  char byte;
  if (ring_process != getpid()) {
    ring_context = 0;
    if (syscall(SYS_io_setup, 1, &ring_context) != 0) return -1;
    ring_process = getpid();
  }
  struct iocb wish = {.aio_lio_opcode = IOCB_CMD_PREAD,
                      .aio_fildes = (uint32_t)file,
                      .aio_buf = (uintptr_t)&byte,
                      .aio_nbytes = sizeof byte,
                      .aio_flags = IOCB_FLAG_RESFD,
                      .aio_resfd = (uint32_t)fd};
  struct iocb *wishes[] = {&wish};
  if (syscall(SYS_io_submit, ring_context, 1, wishes) != 1) return -1;
  syscall(SYS_io_getevents, ring_context, 0, (long)(sizeof done / sizeof done[0]), done, &at_once);
  return 0;
}

/* Where the kernel has no asynchronous reads: at least not while anything looks wrong. 1: it may be written. */
static int looks_writable(int fd) {
  struct pollfd polled = {.fd = fd, .events = POLLOUT};
  int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_NONBLOCK) != 0 && poll(&polled, 1, 0) == 1;
}

int npi_event_ring(int fd) {
  static const uint64_t one = 1;
  int file = __atomic_load_n(&guard_file, __ATOMIC_RELAXED);
  if (NPI_UNLIKELY(file >= 0)) {
    if (ring_by_kernel(fd, file) == 0 || !looks_writable(fd)) return 0;
  }
  for (;;) {
    if (write(fd, &one, sizeof one) == (ssize_t)sizeof one) return 0;
    if (errno == EAGAIN) return 0; /* the count is full: readable it is */
    if (errno != EINTR) return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot ring eventfd %d", fd);
  }
}

int npi_event_clear(int fd) {
  uint64_t count;
  struct iovec place = {&count, sizeof count};
  ssize_t n;
  do {
    n = preadv2(fd, &place, 1, -1, RWF_NOWAIT); /* whatever others have made of O_NONBLOCK */
    if (n < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL)) n = read(fd, &count, sizeof count);
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
