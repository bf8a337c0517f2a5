/* SPDX-License-Identifier: Apache-2.0 */
/* The ladder of ring flags, the self-test, and the choice between the backends. */
#include "daemon/ingest_probe.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/align.h"
#include "base/log.h"
#include "base/status.h"
#include "daemon/ingest_backend.h"

enum { TEST_BUFFERS = 4, TEST_BUFFER_BYTES = 256, TEST_GROUP = 7 };

uint32_t npi_uring_mask(void) {
  const char *text = getenv("NUMAPOOL_URING_MASK");

  return text && *text ? (uint32_t)strtoul(text, NULL, 0) & NPI_URING_ALL : NPI_URING_ALL;
}

static uint32_t setup_flags(uint32_t features) {
  uint32_t flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;

  if (features & NPI_URING_DEFER_TASKRUN) flags |= IORING_SETUP_DEFER_TASKRUN;
  if (features & NPI_URING_SINGLE_ISSUER) flags |= IORING_SETUP_SINGLE_ISSUER;
  if (features & NPI_URING_COOP_TASKRUN) flags |= IORING_SETUP_COOP_TASKRUN;
  if (features & NPI_URING_SUBMIT_ALL) flags |= IORING_SETUP_SUBMIT_ALL;
  return flags;
}

int npi_uring_open(struct io_uring *ring, uint32_t entries, uint32_t cq_entries, uint32_t mask, uint32_t *features) {
  static const uint32_t rungs[] = {
      NPI_URING_DEFER_TASKRUN | NPI_URING_SINGLE_ISSUER | NPI_URING_COOP_TASKRUN | NPI_URING_SUBMIT_ALL,
      NPI_URING_SINGLE_ISSUER | NPI_URING_COOP_TASKRUN | NPI_URING_SUBMIT_ALL,
      NPI_URING_COOP_TASKRUN | NPI_URING_SUBMIT_ALL,
      0,
  };
  int result = -EINVAL;

  memset(ring, 0, sizeof(*ring));
  ring->ring_fd = -1;
  *features = 0;
  for (size_t i = 0; i < NPI_ARRAY_COUNT(rungs) && result == -EINVAL; i++) {
    struct io_uring_params parameters = {0};
    uint32_t wanted = rungs[i] & mask;

    /* Deferred task work is only for rings of a single issuer. */
    if (!(wanted & NPI_URING_SINGLE_ISSUER)) wanted &= ~(uint32_t)NPI_URING_DEFER_TASKRUN;
    parameters.flags = setup_flags(wanted);
    parameters.cq_entries = cq_entries;
    result = io_uring_queue_init_params(entries, ring, &parameters);
    if (result == 0) *features = wanted;
    if (result == 0 && !(parameters.features & IORING_FEAT_EXT_ARG)) {
      io_uring_queue_exit(ring);
      ring->ring_fd = -1;
      return npi_fail(NP_ERR_SYSTEM, "this kernel's io_uring cannot wait with a timeout (needs Linux 5.11)");
    }
  }
  if (result < 0) {
    ring->ring_fd = -1;
    return npi_fail_errno(NP_ERR_SYSTEM, -result,
                          "io_uring_setup refused (a container's seccomp filter, kernel.io_uring_disabled, or an old "
                          "kernel); use ingest.backend epoll, or allow io_uring");
  }
  if ((mask & NPI_URING_REGISTERED_RING) && io_uring_register_ring_fd(ring) == 1)
    *features |= NPI_URING_REGISTERED_RING;
  return 0;
}

/* One buffer group as the backend uses it, in one private mapping: the ring in its first page, then the buffers. */
struct test_buffers {
  struct io_uring_buf_ring *ring;
  uint8_t *memory;
};

static int register_test_buffers(struct io_uring *ring, struct test_buffers *buffers) {
  struct io_uring_buf_reg registration = {.ring_entries = TEST_BUFFERS, .bgid = TEST_GROUP};
  void *memory = mmap(NULL, 2 * NPI_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int result;

  if (memory == MAP_FAILED) return npi_fail_errno(NP_ERR_NO_MEMORY, errno, "mmap of %d bytes", 2 * NPI_PAGE);
  buffers->ring = memory;
  buffers->memory = (uint8_t *)memory + NPI_PAGE;
  registration.ring_addr = (uintptr_t)memory;
  result = io_uring_register_buf_ring(ring, &registration, 0);
  if (result < 0)
    return npi_fail_errno(NP_ERR_SYSTEM, -result, "this kernel's io_uring has no provided buffer rings (Linux 5.19)");
  io_uring_buf_ring_init(buffers->ring);
  for (int i = 0; i < TEST_BUFFERS; i++)
    io_uring_buf_ring_add(buffers->ring, buffers->memory + (size_t)i * TEST_BUFFER_BYTES, TEST_BUFFER_BYTES,
                          (unsigned short)i, io_uring_buf_ring_mask(TEST_BUFFERS), i);
  io_uring_buf_ring_advance(buffers->ring, TEST_BUFFERS);
  return 0;
}

/* The next completion, copied; waits at most a second. */
static int next_completion(struct io_uring *ring, struct io_uring_cqe *copy) {
  struct __kernel_timespec second = {.tv_sec = 1};
  struct io_uring_cqe *completion = NULL;
  int result = io_uring_submit_and_wait_timeout(ring, &completion, 1, &second, NULL);

  if (result < 0) return result;
  if (!completion) return -ETIME;
  copy->res = completion->res;
  copy->flags = completion->flags;
  io_uring_cqe_seen(ring, completion);
  return 0;
}

static int test_stream(struct io_uring *ring, const int pair[2]) {
  struct io_uring_cqe completion = {0};
  struct io_uring_sqe *entry = io_uring_get_sqe(ring);
  int result;

  io_uring_prep_recv_multishot(entry, pair[0], NULL, 0, 0);
  entry->flags |= IOSQE_BUFFER_SELECT;
  entry->buf_group = TEST_GROUP;
  if (send(pair[1], "numa", 4, MSG_NOSIGNAL) != 4) return npi_fail_errno(NP_ERR_SYSTEM, errno, "send to ourselves");
  result = next_completion(ring, &completion);
  if (result < 0 || completion.res != 4 || !(completion.flags & IORING_CQE_F_BUFFER) ||
      !(completion.flags & IORING_CQE_F_MORE))
    return npi_fail(NP_ERR_SYSTEM, "multishot receive does not work (wait %d, result %d, flags 0x%x; Linux 6.0)",
                    result, completion.res, completion.flags);
  shutdown(pair[1], SHUT_WR);
  result = next_completion(ring, &completion);
  if (result < 0 || completion.res != 0 || (completion.flags & IORING_CQE_F_MORE))
    return npi_fail(NP_ERR_SYSTEM, "multishot receive does not end with its stream (wait %d, result %d, flags 0x%x)",
                    result, completion.res, completion.flags);
  return 0;
}

static int test_datagram(struct io_uring *ring, const int pair[2]) {
  struct io_uring_cqe completion = {0};
  struct io_uring_sqe *entry = io_uring_get_sqe(ring);
  struct msghdr shape = {.msg_namelen = 48};
  int result;

  io_uring_prep_recvmsg_multishot(entry, pair[0], &shape, MSG_TRUNC);
  entry->flags |= IOSQE_BUFFER_SELECT;
  entry->buf_group = TEST_GROUP;
  if (send(pair[1], "pool", 4, MSG_NOSIGNAL) != 4) return npi_fail_errno(NP_ERR_SYSTEM, errno, "send to ourselves");
  result = next_completion(ring, &completion);
  if (result < 0 || completion.res != (int)sizeof(struct io_uring_recvmsg_out) + 48 + 4 ||
      !(completion.flags & IORING_CQE_F_BUFFER) || !(completion.flags & IORING_CQE_F_MORE))
    return npi_fail(NP_ERR_SYSTEM, "multishot recvmsg does not work (wait %d, result %d, flags 0x%x; Linux 6.0)",
                    result, completion.res, completion.flags);
  return 0;
}

int npi_uring_selftest(uint32_t mask) {
  struct test_buffers buffers = {.ring = NULL};
  struct io_uring ring;
  uint32_t features;
  int stream[2] = {-1, -1}, datagram[2] = {-1, -1};
  int result = npi_uring_open(&ring, 8, 32, mask, &features);

  if (result < 0) return result;
  result = register_test_buffers(&ring, &buffers);
  if (result == 0 && (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream) < 0 ||
                      socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, datagram) < 0))
    result = npi_fail_errno(NP_ERR_SYSTEM, errno, "socketpair");
  if (result == 0) result = test_stream(&ring, stream);
  if (result == 0) result = test_datagram(&ring, datagram);
  io_uring_queue_exit(&ring);
  for (int i = 0; i < 2; i++) {
    if (stream[i] >= 0) close(stream[i]);
    if (datagram[i] >= 0) close(datagram[i]);
  }
  if (buffers.ring) munmap(buffers.ring, 2 * NPI_PAGE);
  return result;
}

static int create_uring(struct npi_ingest_backend **backend, const struct npi_ingest_backend_options *options) {
  uint32_t mask = options->features & npi_uring_mask();
  struct npi_ingest_backend_options masked = *options;
  int result;

  if (!(mask & NPI_URING_MULTISHOT))
    return npi_fail(NP_ERR_SYSTEM, "multishot receive is switched off by NUMAPOOL_URING_MASK; set bit %d",
                    NPI_URING_MULTISHOT);
  result = npi_uring_selftest(mask);
  if (result < 0) return result;
  masked.features = mask;
  return npi_ingest_uring.create(backend, &masked);
}

int npi_ingest_backend_create(struct npi_ingest_backend **backend, enum npi_config_ingest choice,
                              const struct npi_ingest_backend_options *options) {
  int result;

  *backend = NULL;
  if (choice != NPI_CONFIG_INGEST_EPOLL) {
    result = create_uring(backend, options);
    if (result < 0 && choice == NPI_CONFIG_INGEST_IO_URING) return npi_trail(result, "ingest.backend io_uring");
    if (result < 0) npi_log(NPI_LOG_WARNING, "ingest.fallback", "backend=epoll reason=\"%s\"", npi_detail());
  }
  if (!*backend) {
    result = npi_ingest_epoll.create(backend, options);
    if (result < 0) return result;
  }
  npi_log(NPI_LOG_INFO, "ingest.backend", "backend=%s features=0x%" PRIx32, (*backend)->operations->name,
          (*backend)->operations->features(*backend));
  return 0;
}
