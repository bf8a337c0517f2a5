/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The io_uring backend: one multishot receive for each source, filling buffers that lie in private memory and go back
 * to the kernel when the callback that saw them returns.
 *
 * A multishot may end at any completion, for many reasons (no buffer left, a full completion queue, an empty datagram,
 * fairness, our cancel). So there is one truth and one place: a completion without F_MORE means "not armed", and only
 * work_off(), which walks the list of sources whose wish and state differ, arms, cancels or ends. Everything else puts
 * sources into that list. It is walked in order of arrival and at most one batch a turn, so a source that used up all
 * buffers waits behind the others: the staging ring is the time slice.
 *
 * All buffers are back in the ring when work_off() runs, because callbacks do not keep them; an arming that would meet
 * an empty ring, which the kernel answers with ENOBUFS at once and for ever, cannot happen.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/align.h"
#include "base/status.h"
#include "core/counters.h"
#include "daemon/ingest_backend.h"
#include "daemon/ingest_probe.h"
#include "os/os_clock.h"

_Static_assert(sizeof(struct sockaddr_storage) == 128, "NAME_BYTES holds any address");

enum {
  GROUP_STREAM = 1,
  GROUP_DATAGRAM = 2,
  SQ_ENTRIES = 256,
  CQ_ENTRIES_MAX = 65536, /* the kernel's limit */
  WORK_BATCH = 64,
  DATAGRAM_BURST = 16,     /* of one reap: there are more */
  DATAGRAM_ROUNDS = 64,    /* of one turn */
  STREAM_BURST = 4,        /* of one turn: work that datagrams must not wait for */
  NAME_BYTES = 128,        /* sockaddr_storage: a Unix sender's name fits too */
  CONTROL_BYTES = 32,      /* one SO_TIMESTAMPNS */
  ERROR_DELAY_MS_MAX = 100 /* a socket that only fails is asked ten times a second */
};

/* Buffers of one size that the kernel chooses from. Ring and buffers are private: who could write the ring could make
 * the kernel write anywhere in this process. */
struct buffer_group {
  struct io_uring_buf_ring *ring; /* NULL: the group is not in use */
  uint8_t *memory;
  size_t ring_bytes;
  size_t memory_bytes;
  size_t stride; /* an odd number of cache lines: fronts of buffers do not compete for the same cache sets */
  uint32_t buffer_bytes;
  uint32_t count;
  uint32_t n_back; /* handed back since the last advance */
};

struct source_list {
  struct npi_ingest_source *first;
  struct npi_ingest_source **end;
};

struct uring {
  struct npi_ingest_backend base;
  struct io_uring ring;
  struct npi_ingest_handler handler;
  struct buffer_group stream;
  struct buffer_group datagram;
  struct source_list work; /* wish and state differ */
  struct msghdr shapes[2]; /* of a datagram's name and control bytes, by has_timestamps; read at arming */
  uint64_t earliest_ns;    /* when a source that had an error may be armed again; UINT64_MAX: none */
  uint32_t n_datagrams;    /* of the last reap */
  uint32_t n_streams;      /* buffers of streams since the turn began */
  uint32_t features;
  uint32_t enter_flags;
};

static void list_init(struct source_list *list) {
  list->first = NULL;
  list->end = &list->first;
}

static void queue_work(struct uring *uring, struct npi_ingest_source *source) {
  if (source->queued) return;
  source->queued = 1;
  source->next = NULL;
  *uring->work.end = source;
  uring->work.end = &source->next;
}

static struct npi_ingest_source *take_work(struct uring *uring) {
  struct npi_ingest_source *source = uring->work.first;

  uring->work.first = source->next;
  if (!uring->work.first) uring->work.end = &uring->work.first;
  source->queued = 0;
  return source;
}

/* ---- buffers ---------------------------------------------------------------------------------------- */

static void give_buffer(struct buffer_group *group, uint32_t id) {
  io_uring_buf_ring_add(group->ring, group->memory + id * group->stride, group->buffer_bytes, (unsigned short)id,
                        io_uring_buf_ring_mask(group->count), (int)group->n_back++);
}

static void advance_buffers(struct buffer_group *group) {
  if (group->n_back == 0) return;
  io_uring_buf_ring_advance(group->ring, (int)group->n_back);
  group->n_back = 0;
}

static int map_private(size_t bytes, const char *what, void **memory) {
  *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*memory == MAP_FAILED) {
    *memory = NULL;
    return npi_fail_errno(NP_ERR_NO_MEMORY, errno, "%zu bytes for %s", bytes, what);
  }
  madvise(*memory, bytes, MADV_DONTFORK);
  return 0;
}

static int open_group(struct uring *uring, struct buffer_group *group, uint16_t id, uint32_t count, uint64_t bytes) {
  struct io_uring_buf_reg registration = {.ring_entries = count, .bgid = id};
  void *memory;
  int result;

  group->count = count;
  group->buffer_bytes = (uint32_t)bytes;
  group->stride = npi_round_up(bytes, NPI_CACHE_LINE);
  if ((group->stride / NPI_CACHE_LINE) % 2 == 0) group->stride += NPI_CACHE_LINE;
  group->memory_bytes = npi_round_up(group->stride * count, NPI_PAGE);
  group->ring_bytes = npi_round_up(sizeof(struct io_uring_buf) * count, NPI_PAGE);
  result = map_private(group->memory_bytes, "receive buffers", &memory);
  if (result < 0) return result;
  group->memory = memory;
  result = map_private(group->ring_bytes, "the ring of receive buffers", &memory);
  if (result < 0) return result;
  /* The page that begins each buffer, here and now: it lies on this thread's node, and the first burst does not
   * fault. The rest of large buffers comes when large messages do. */
  for (uint32_t i = 0; i < count; i++) group->memory[i * group->stride] = 0;
  registration.ring_addr = (uintptr_t)memory;
  result = io_uring_register_buf_ring(&uring->ring, &registration, 0);
  if (result < 0) {
    munmap(memory, group->ring_bytes);
    return npi_fail_errno(NP_ERR_SYSTEM, -result, "io_uring buffer ring of %u entries", count);
  }
  group->ring = memory;
  io_uring_buf_ring_init(group->ring);
  for (uint32_t i = 0; i < count; i++) give_buffer(group, i);
  advance_buffers(group);
  return 0;
}

static void close_group(struct buffer_group *group) {
  if (group->ring) munmap(group->ring, group->ring_bytes);
  if (group->memory) munmap(group->memory, group->memory_bytes);
  group->ring = NULL;
  group->memory = NULL;
}

/* ---- arming, cancelling, ending --------------------------------------------------------------------- */

/* A free submission entry. NULL: the queue is full and the kernel takes nothing, try in the next turn. */
static struct io_uring_sqe *submission(struct uring *uring) {
  struct io_uring_sqe *entry = io_uring_get_sqe(&uring->ring);

  if (!entry) {
    io_uring_submit(&uring->ring);
    entry = io_uring_get_sqe(&uring->ring);
  }
  return entry;
}

static int arm(struct uring *uring, struct npi_ingest_source *source) {
  struct io_uring_sqe *entry = submission(uring);

  if (!entry) return -1;
  switch (source->kind) {
    case NPI_SOURCE_WATCH: io_uring_prep_poll_add(entry, source->fd, POLLIN); break;
    case NPI_SOURCE_STREAM:
      io_uring_prep_recv_multishot(entry, source->fd, NULL, 0, 0);
      entry->flags |= IOSQE_BUFFER_SELECT;
      entry->buf_group = GROUP_STREAM;
      break;
    case NPI_SOURCE_DATAGRAM:
      /* MSG_TRUNC as input makes the length that of the datagram, not of what fitted. */
      io_uring_prep_recvmsg_multishot(entry, source->fd, &uring->shapes[source->has_timestamps], MSG_TRUNC);
      entry->flags |= IOSQE_BUFFER_SELECT;
      entry->buf_group = GROUP_DATAGRAM;
      break;
  }
  io_uring_sqe_set_data(entry, source);
  source->armed = 1;
  source->cancelling = 0;
  source->kicked = 0;
  if (source->rearm && source->counters && source->kind != NPI_SOURCE_WATCH)
    npi_count_add(&source->counters[NPI_LISTENER_REARMS], 1);
  source->rearm = 1;
  return 0;
}

/* The completion of the cancel itself says nothing that the terminal completion does not say better: data 0. */
static int cancel(struct uring *uring, struct npi_ingest_source *source) {
  struct io_uring_sqe *entry = submission(uring);

  if (!entry) return -1;
  io_uring_prep_cancel(entry, source, 0);
  io_uring_sqe_set_data(entry, NULL);
  source->cancelling = 1;
  return 0;
}

/* Brings state to wish for one source that was taken from the list. */
static void work_on(struct uring *uring, struct npi_ingest_source *source, uint64_t now) {
  int done = 0;

  if (source->armed) {
    if ((!source->wanted || source->closing || source->kicked) && !source->cancelling) done = cancel(uring, source);
  } else if (source->closing) {
    close(source->fd);
    source->fd = -1;
    uring->handler.gone(uring->handler.context, source);
    return;
  } else if (source->wanted) {
    if (source->not_before_ns > now) {
      if (source->not_before_ns < uring->earliest_ns) uring->earliest_ns = source->not_before_ns;
      done = -1;
    } else {
      done = arm(uring, source);
    }
  }
  if (done < 0) queue_work(uring, source);
}

static void work_off(struct uring *uring) {
  struct npi_ingest_source *last;
  uint64_t now = 0;
  int n = 0;

  uring->earliest_ns = UINT64_MAX;
  if (!uring->work.first) return;
  now = npi_clock_monotonic();
  last = (struct npi_ingest_source *)((char *)uring->work.end - offsetof(struct npi_ingest_source, next));
  for (int more = 1; more && n < WORK_BATCH && uring->work.first; n++) {
    struct npi_ingest_source *source = take_work(uring);
    more = source != last;
    work_on(uring, source, now);
  }
}

/* ---- completions ------------------------------------------------------------------------------------ */

static uint64_t timestamp_of(struct io_uring_recvmsg_out *out, struct msghdr *shape) {
  for (struct cmsghdr *control = io_uring_recvmsg_cmsg_firsthdr(out, shape); control;
       control = io_uring_recvmsg_cmsg_nexthdr(out, shape, control))
    if (control->cmsg_level == SOL_SOCKET && control->cmsg_type == SO_TIMESTAMPNS) {
      struct timespec time;
      memcpy(&time, CMSG_DATA(control), sizeof(time));
      return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
    }
  return 0;
}

static void give_datagram(struct uring *uring, struct npi_ingest_source *source, uint8_t *buffer, uint32_t n) {
  struct msghdr *shape = &uring->shapes[source->has_timestamps];
  struct io_uring_recvmsg_out *out = io_uring_recvmsg_validate(buffer, (int)n, shape);
  struct npi_ingest_datagram datagram = {0};
  struct sockaddr_storage sender;

  if (!out) return;
  datagram.bytes = io_uring_recvmsg_payload(out, shape);
  datagram.size = n - (uint64_t)(datagram.bytes - buffer);
  datagram.truncated = (out->flags & MSG_TRUNC) != 0;
  /* The true length of the name may exceed what was kept of it. */
  datagram.sender_bytes = out->namelen < sizeof(sender) ? out->namelen : sizeof(sender);
  memcpy(&sender, io_uring_recvmsg_name(out), datagram.sender_bytes);
  datagram.sender = &sender;
  datagram.time_ns = source->has_timestamps ? timestamp_of(out, shape) : 0;
  uring->handler.datagram(uring->handler.context, source, &datagram);
}

static void failed_datagram(struct npi_ingest_source *source) {
  uint64_t delay_ms = source->n_errors < 7 ? UINT64_C(1) << source->n_errors : ERROR_DELAY_MS_MAX;

  source->n_errors++;
  source->not_before_ns = npi_clock_monotonic() + delay_ms * 1000000;
}

/* A completion without bytes. */
static void complete_empty(struct uring *uring, struct npi_ingest_source *source, int result) {
  if (source->closing) return;
  if (result == -ENOBUFS) {
    if (source->counters) npi_count_add(&source->counters[NPI_LISTENER_NO_BUFFERS], 1);
  } else if (result == -ECANCELED || result == -EAGAIN || result == -EINTR) {
    /* armed again by who wants it */
  } else if (source->kind == NPI_SOURCE_WATCH) {
    if (source->wanted) uring->handler.ready(uring->handler.context, source);
  } else if (source->kind == NPI_SOURCE_DATAGRAM) {
    if (result < 0) failed_datagram(source);
  } else {
    source->wanted = 0;
    uring->handler.end(uring->handler.context, source, result < 0 ? -result : 0);
  }
}

static void complete(struct uring *uring, struct npi_ingest_source *source, int result, uint32_t flags) {
  if (!(flags & IORING_CQE_F_MORE)) {
    source->armed = 0;
    source->cancelling = 0;
  }
  if (flags & IORING_CQE_F_BUFFER) {
    struct buffer_group *group = source->kind == NPI_SOURCE_DATAGRAM ? &uring->datagram : &uring->stream;
    uint32_t id = flags >> IORING_CQE_BUFFER_SHIFT;
    uint8_t *buffer = group->memory + id * group->stride;

    source->n_errors = 0;
    if (source->kind == NPI_SOURCE_DATAGRAM)
      uring->n_datagrams++;
    else
      uring->n_streams++;
    if (result > 0 && !source->closing) {
      if (source->kind == NPI_SOURCE_DATAGRAM)
        give_datagram(uring, source, buffer, (uint32_t)result);
      else
        uring->handler.bytes(uring->handler.context, source, buffer, (size_t)result);
    }
    give_buffer(group, id);
    if (result <= 0) complete_empty(uring, source, result);
  } else {
    complete_empty(uring, source, result);
  }
  if (!source->armed && (source->wanted || source->closing)) queue_work(uring, source);
}

/*
 * All completions that are there now. Buffers of datagrams go back at once, those of streams with the end of the turn:
 * they are what streams may use in one.
 */
static void reap(struct uring *uring) {
  struct io_uring_cqe *completion;
  uint32_t n = 0;
  unsigned head;

  uring->n_datagrams = 0;
  io_uring_for_each_cqe(&uring->ring, head, completion) {
    struct npi_ingest_source *source = io_uring_cqe_get_data(completion);

    if (source) complete(uring, source, completion->res, completion->flags);
    n++;
    if (n == 64) { /* give entries and buffers back while the rest is worked on */
      io_uring_cq_advance(&uring->ring, n);
      if (uring->datagram.ring) advance_buffers(&uring->datagram);
      n = 0;
    }
  }
  io_uring_cq_advance(&uring->ring, n);
  if (uring->datagram.ring) advance_buffers(&uring->datagram);
}

static int enter(struct uring *uring, uint64_t timeout_ns) {
  struct __kernel_timespec time = {.tv_sec = (long long)(timeout_ns / 1000000000),
                                   .tv_nsec = (long long)(timeout_ns % 1000000000)};
  struct io_uring_getevents_arg argument = {.ts = (uintptr_t)&time};
  uint32_t flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG | uring->enter_flags;
  uint32_t wait_for = timeout_ns > 0 && io_uring_cq_ready(&uring->ring) == 0;

  return io_uring_enter2((unsigned)uring->ring.enter_ring_fd, 0, wait_for, flags, (sigset_t *)&argument,
                         sizeof(argument));
}

/* Beside streams any number counts: what a kernel hands over in one go is a mixture, and its size is the kernel's. */
static int expects_datagrams(const struct uring *uring) {
  return uring->n_datagrams >= DATAGRAM_BURST || (uring->n_datagrams > 0 && uring->n_streams >= STREAM_BURST);
}

static int uring_turn(struct npi_ingest_backend *backend, uint64_t timeout_ns) {
  struct uring *uring = (struct uring *)backend;
  int result;

  work_off(uring);
  if (uring->earliest_ns != UINT64_MAX) {
    uint64_t now = npi_clock_monotonic();
    uint64_t wait = uring->earliest_ns > now ? uring->earliest_ns - now : 0;
    if (wait < timeout_ns) timeout_ns = wait;
  } else if (uring->work.first) {
    timeout_ns = 0;
  }
  if (io_uring_sq_ready(&uring->ring) > 0) io_uring_submit(&uring->ring);
  result = enter(uring, timeout_ns);
  uring->handler.woke(uring->handler.context);
  if (result < 0 && result != -ETIME && result != -EINTR && result != -EBUSY && result != -EAGAIN)
    return npi_fail_errno(NP_ERR_SYSTEM, -result, "io_uring_enter");
  uring->n_streams = 0;
  reap(uring);
  /* The kernel gives the same number of completions to each source, but one of a stream may be a thousand times the
   * work of a datagram's; and what waits in a socket of datagrams is lost when more comes. */
  for (int round = 0; round < DATAGRAM_ROUNDS && expects_datagrams(uring); round++) {
    result = enter(uring, 0);
    if (result < 0) break; /* the next turn sees it, too */
    reap(uring);
  }
  advance_buffers(&uring->stream);
  return 0;
}

/* ---- the interface ---------------------------------------------------------------------------------- */

static void uring_start(struct npi_ingest_backend *backend, struct npi_ingest_source *source) {
  source->wanted = 1;
  if (!source->armed) queue_work((struct uring *)backend, source);
}

static void uring_stop(struct npi_ingest_backend *backend, struct npi_ingest_source *source) {
  source->wanted = 0;
  if (source->armed && !source->cancelling) queue_work((struct uring *)backend, source);
}

static void uring_close(struct npi_ingest_backend *backend, struct npi_ingest_source *source) {
  source->wanted = 0;
  source->closing = 1;
  queue_work((struct uring *)backend, source);
}

static void uring_kick(struct npi_ingest_backend *backend, struct npi_ingest_source *source) {
  if (!source->armed || source->cancelling) return;
  source->kicked = 1;
  queue_work((struct uring *)backend, source);
}

static uint32_t uring_features(const struct npi_ingest_backend *backend) {
  return ((const struct uring *)backend)->features;
}

static struct npi_ingest_backend *uring_free(struct npi_ingest_backend *backend) {
  struct uring *uring = (struct uring *)backend;

  if (!uring) return NULL;
  if (uring->ring.ring_fd >= 0) io_uring_queue_exit(&uring->ring);
  close_group(&uring->stream);
  close_group(&uring->datagram);
  free(uring);
  return NULL;
}

/* Room for a completion of every buffer and every source, so that the queue cannot overflow. */
static uint32_t completion_entries(const struct npi_ingest_backend_options *options) {
  uint64_t n = 2 * (uint64_t)options->staging_buffers + options->max_sources + 1024;

  if (options->cq_entries) return options->cq_entries;
  n = npi_power_of_two_above(n);
  return n < CQ_ENTRIES_MAX ? (uint32_t)n : CQ_ENTRIES_MAX;
}

static int uring_create(struct npi_ingest_backend **backend, const struct npi_ingest_backend_options *options) {
  struct uring *uring = calloc(1, sizeof(*uring));
  uint32_t entries = options->cq_entries && options->cq_entries < SQ_ENTRIES ? options->cq_entries : SQ_ENTRIES;
  uint64_t header = sizeof(struct io_uring_recvmsg_out) + NAME_BYTES + CONTROL_BYTES;
  int result;

  *backend = NULL;
  if (!uring) return npi_fail(NP_ERR_NO_MEMORY, "no memory for the io_uring backend");
  uring->base.operations = &npi_ingest_uring;
  uring->handler = options->handler;
  uring->ring.ring_fd = -1;
  uring->shapes[0].msg_namelen = uring->shapes[1].msg_namelen = NAME_BYTES;
  uring->shapes[1].msg_controllen = CONTROL_BYTES;
  list_init(&uring->work);
  result = npi_uring_open(&uring->ring, entries, completion_entries(options), options->features, &uring->features);
  if (result < 0) goto fail;
  uring->features |= NPI_URING_MULTISHOT;
  if (uring->features & NPI_URING_REGISTERED_RING) uring->enter_flags = IORING_ENTER_REGISTERED_RING;
  result = open_group(uring, &uring->stream, GROUP_STREAM, options->staging_buffers, options->staging_bytes);
  if (result < 0) goto fail;
  if (options->datagram_bytes > 0)
    result =
        open_group(uring, &uring->datagram, GROUP_DATAGRAM, options->staging_buffers, header + options->datagram_bytes);
  if (result < 0) goto fail;
  *backend = &uring->base;
  return 0;

fail:
  uring_free(&uring->base);
  return result;
}

const struct npi_ingest_backend_operations npi_ingest_uring = {
    .name = "io_uring",
    .number = 1,
    .create = uring_create,
    .free = uring_free,
    .features = uring_features,
    .start = uring_start,
    .stop = uring_stop,
    .close = uring_close,
    .kick = uring_kick,
    .turn = uring_turn,
};
