/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why this order: create, map, bind, reserve, populate, measure.
 *
 * The first touch decides where a page lands, and reserving is the first touch: so the policy must be there before.
 * The policy hangs on the object, not on the mapping: it holds for every process. Reserving turns a full tmpfs or an
 * empty pool of huge pages into an error here instead of a SIGBUS in a client. Only a page that is in this process's
 * page tables can be asked where it is: so populate before measuring.
 */
#include "shm/segment.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/align.h"
#include "base/log.h"
#include "base/status.h"
#include "os/os_cgroup.h"
#include "os/os_memory.h"
#include "os/os_numa.h"

enum { GROUP_MARGIN_BYTES = 4 * 1024 * 1024 }; /* for page tables, and what else happens meanwhile */

static void make_empty(struct npi_segment *segment) {
  memset(segment, 0, sizeof *segment);
  segment->fd = -1;
  segment->readonly_fd = -1;
  segment->node = -1;
}

static int check_options(const struct npi_segment_options *options) {
  const char *name = options->name;
  if (name == NULL || name[0] == '\0' || strlen(name) >= sizeof((struct npi_segment *)0)->name) {
    return npi_fail(NP_ERR_ARGUMENT, "segment name \"%.40s\": must have 1 to %zu characters", name ? name : "(null)",
                    sizeof((struct npi_segment *)0)->name - 1);
  }
  if (options->bytes == 0 || options->bytes % NPI_PAGE != 0) {
    return npi_fail(NP_ERR_ARGUMENT, "segment %s of %" PRIu64 " bytes: the size must be a multiple of %d", name,
                    options->bytes, NPI_PAGE);
  }
  if (options->node >= NPI_NODES_MAX || (options->node < 0 && options->numa != NPI_NUMA_OFF)) {
    return npi_fail(NP_ERR_ARGUMENT, "segment %s: node %d must be 0 to %d", name, options->node, NPI_NODES_MAX - 1);
  }
  if (options->huge == NPI_HUGE_EXPLICIT && options->backend != NPI_BACKEND_MEMFD) {
    return npi_fail(NP_ERR_ARGUMENT,
                    "segment %s: POSIX shared memory has no explicit huge pages; use the memfd backend", name);
  }
  if (options->huge == NPI_HUGE_EXPLICIT && options->bytes % NPI_HUGE_PAGE != 0) {
    return npi_fail(NP_ERR_ARGUMENT, "segment %s of %" PRIu64 " bytes: with 2 MiB pages it must be a multiple of %d",
                    name, options->bytes, NPI_HUGE_PAGE);
  }
  return 0;
}

/* 0 where the pool has enough huge pages; else an error with need, have and the command that helps. */
static int check_huge_pool(const struct npi_segment_options *options) {
  uint64_t have, need = options->bytes / NPI_HUGE_PAGE;
  int status = npi_memory_huge_pages_free(options->node, &have);
  if (status != 0 || have >= need) return status;
  char folder[96];
  if (options->node < 0) {
    snprintf(folder, sizeof folder, "/sys/kernel/mm/hugepages/hugepages-2048kB");
  } else {
    snprintf(folder, sizeof folder, "/sys/devices/system/node/node%d/hugepages/hugepages-2048kB", options->node);
  }
  return npi_fail(NP_ERR_NO_MEMORY,
                  "not enough huge pages on node %d for segment %s: need %" PRIu64 " of 2 MiB, have %" PRIu64
                  " free; fill the pool: echo N > %s/nr_hugepages (N: %" PRIu64
                  " more than now), or set huge pages to auto",
                  options->node, options->name, need, have, folder, need - have);
}

/*
 * A strict policy on a node without memory makes the kernel kill somebody rather than fail: so ask first. Between
 * question and answer others may take the memory; the broker's memory limit of the node is what prevents that.
 */
static int check_node_memory(const struct npi_segment_options *options) {
  uint64_t have;
  int status = npi_numa_memory_available(options->node, &have);
  if (status == NP_ERR_NOT_FOUND) return 0; /* the kernel does not say */
  if (status != 0 || have >= options->bytes) return status;
  return npi_fail(NP_ERR_NO_MEMORY,
                  "not enough memory on node %d for segment %s: need %" PRIu64 " bytes, have %" PRIu64
                  "; lower memory.per_node, or set numa to prefer",
                  options->node, options->name, options->bytes, have);
}

/* The same for the limits of a container or a service, whose kernel would kill the broker or somebody beside it. */
static int check_group_memory(const struct npi_segment_options *options) {
  uint64_t have;
  char group[256];
  npi_cgroup_memory_room(&have, group, sizeof group);
  if (have == UINT64_MAX || have >= options->bytes + GROUP_MARGIN_BYTES) return 0;
  return npi_fail(NP_ERR_NO_MEMORY,
                  "not enough memory for segment %s: need %" PRIu64 " bytes, and the control group %s leaves %" PRIu64
                  "; raise its limit (a container's memory, a service's MemoryMax), or lower memory.per_node",
                  options->name, options->bytes, group, have);
}

static int bind_to_node(struct npi_segment *segment, const struct npi_segment_options *options) {
  if (options->numa == NPI_NUMA_OFF) return 0;
  int strict = options->numa == NPI_NUMA_STRICT;
  int status = npi_numa_bind(segment->address, segment->bytes, options->node, strict);
  if (status == 0) {
    segment->bound = 1;
    return 0;
  }
  if (status != NPI_NUMA_REFUSED) return npi_trail(status, "segment %s", segment->name);
  if (strict) {
    return npi_fail(NP_ERR_DENIED,
                    "segment %s cannot be bound to node %d: %s; allow mbind (docker: --cap-add SYS_NICE, or a seccomp "
                    "profile with mbind), or set numa to prefer",
                    segment->name, options->node, npi_detail());
  }
  return NPI_NUMA_REFUSED;
}

/* Without a policy the page lands where the thread runs that touches it first: so run there for that moment. */
static int reserve_from_node(struct npi_segment *segment, const char *reason) {
  struct npi_numa_topology topology;
  struct npi_numa_affinity before;
  char why[256];
  int pinned = 0;
  snprintf(why, sizeof why, "%s", reason);
  if (npi_numa_affinity_save(&before) == 0 && npi_numa_discover(&topology) == 0) {
    pinned = npi_numa_pin_thread(&topology, segment->node, -1) == 0;
  }
  npi_log(NPI_LOG_WARNING, "numa.bind_refused", "node=%d segment=%s reason=\"%s\" instead=\"%s\" fix=\"%s\"",
          segment->node, segment->name, why,
          pinned ? "first touch from the node's CPUs" : "first touch from wherever this thread runs",
          "allow mbind (docker: --cap-add SYS_NICE)");
  int status = npi_memory_reserve(segment->fd, 0, segment->bytes);
  if (status == 0) segment->reserved_bytes = segment->bytes;
  if (pinned) {
    int restored = npi_numa_affinity_restore(&before);
    if (status == 0) status = restored;
  }
  return status;
}

/* Needs this part of the mapping in the page tables. */
static int measure(struct npi_segment *segment, uint64_t offset, uint64_t bytes) {
  uint64_t pages_on[NPI_NODES_MAX], unknown;
  int status = npi_numa_measure((char *)segment->address + offset, bytes, segment->page_bytes, pages_on, &unknown);
  if (status != 0) return npi_trail(status, "segment %s", segment->name);
  segment->pages_unknown += unknown;
  for (int node = 0; node < NPI_NODES_MAX; node++) {
    if (node == segment->node || segment->node < 0) {
      segment->pages_home += pages_on[node];
    } else {
      segment->pages_away += pages_on[node];
    }
  }
  return 0;
}

static int judge_placement(const struct npi_segment *segment, const struct npi_segment_options *options) {
  if (options->numa == NPI_NUMA_OFF || (segment->pages_away == 0 && segment->pages_unknown == 0)) return 0;
  if (options->numa == NPI_NUMA_PREFER) {
    npi_log(NPI_LOG_WARNING, "segment.misplaced",
            "segment=%s node=%d pages_home=%" PRIu64 " pages_away=%" PRIu64 " pages_unknown=%" PRIu64, segment->name,
            segment->node, segment->pages_home, segment->pages_away, segment->pages_unknown);
    return 0;
  }
  if (segment->pages_away > 0) {
    return npi_fail(NP_ERR_STATE,
                    "segment %s: %" PRIu64
                    " of its pages are not on node %d; free memory there, lower memory.per_node, "
                    "or set numa to prefer",
                    segment->name, segment->pages_away, segment->node);
  }
  return npi_fail(NP_ERR_DENIED,
                  "segment %s: nobody can say whether %" PRIu64
                  " of its pages are on node %d; allow move_pages (docker: "
                  "--cap-add SYS_NICE), or set numa to prefer",
                  segment->name, segment->pages_unknown, segment->node);
}

static int create_object(struct npi_segment *segment) {
  if (segment->backend == NPI_BACKEND_POSIX) {
    return npi_memory_create_posix(segment->name, segment->bytes, &segment->fd);
  }
  return npi_memory_create_memfd(segment->name, segment->bytes, segment->page_bytes == NPI_HUGE_PAGE, &segment->fd);
}

/* One attempt with a given page size, until there is a mapping to touch. */
static int begin_with_pages(struct npi_segment *segment, const struct npi_segment_options *options,
                            uint64_t page_bytes) {
  make_empty(segment);
  segment->backend = options->backend;
  segment->bytes = options->bytes;
  segment->page_bytes = page_bytes;
  segment->node = options->node;
  snprintf(segment->name, sizeof segment->name, "%s", options->name);

  int status = create_object(segment);
  if (status != 0) goto fail;
  status = npi_memory_check_room(segment->fd, segment->bytes);
  if (status != 0) goto fail;
  status = npi_memory_reopen_readonly(segment->fd, &segment->readonly_fd);
  if (status != 0) goto fail;
  status = npi_memory_map(segment->fd, 0, segment->bytes, 1, &segment->address);
  if (status != 0) goto fail;
  if (page_bytes == NPI_PAGE && (options->huge == NPI_HUGE_AUTO || options->huge == NPI_HUGE_TRANSPARENT) &&
      npi_memory_advise_huge(segment->address, segment->bytes) != 0) {
    npi_log(options->huge == NPI_HUGE_AUTO ? NPI_LOG_DEBUG : NPI_LOG_WARNING, "segment.no_transparent_pages",
            "segment=%s reason=\"%s\"", segment->name, npi_detail());
  }
  status = bind_to_node(segment, options);
  if (status == NPI_NUMA_REFUSED) status = reserve_from_node(segment, npi_detail());
  if (status != 0) goto fail;
  return 0;

fail:
  npi_segment_destroy(segment);
  return status;
}

/* Where nobody insists on huge pages. */
static int begin_with_small_pages(struct npi_segment *segment, const struct npi_segment_options *options) {
  npi_log(NPI_LOG_INFO, "segment.no_huge_pages", "segment=%s node=%d instead=%d reason=\"%s\"", options->name,
          options->node, NPI_PAGE, npi_detail());
  return begin_with_pages(segment, options, NPI_PAGE);
}

int npi_segment_begin(struct npi_segment *segment, const struct npi_segment_options *options) {
  make_empty(segment);
  int status = check_options(options);
  if (status == 0 && options->numa == NPI_NUMA_STRICT && options->huge != NPI_HUGE_EXPLICIT) {
    status = check_node_memory(options);
  }
  if (status == 0 && options->huge != NPI_HUGE_EXPLICIT) status = check_group_memory(options);
  if (status != 0) return status;

  if (options->huge == NPI_HUGE_EXPLICIT) {
    status = check_huge_pool(options);
    return status != 0 ? status : begin_with_pages(segment, options, NPI_HUGE_PAGE);
  }
  if (options->huge == NPI_HUGE_AUTO && options->backend == NPI_BACKEND_MEMFD) {
    status = options->bytes % NPI_HUGE_PAGE != 0
                 ? npi_fail(NP_ERR_ARGUMENT, "%" PRIu64 " bytes are not a multiple of 2 MiB", options->bytes)
                 : check_huge_pool(options);
    if (status == 0) status = begin_with_pages(segment, options, NPI_HUGE_PAGE);
    return status == 0 ? 0 : begin_with_small_pages(segment, options);
  }
  return begin_with_pages(segment, options, NPI_PAGE);
}

static int make_piece(struct npi_segment *segment, uint64_t bytes) {
  uint64_t offset = segment->made_bytes;
  char *address = (char *)segment->address + offset;
  int status = 0;
  if (offset + bytes > segment->reserved_bytes) {
    status = npi_memory_reserve(segment->fd, offset, bytes);
    if (status != 0) return status;
    segment->reserved_bytes = offset + bytes;
  }
  status = npi_memory_populate(address, bytes, 1);
  if (status == 0) status = measure(segment, offset, bytes);
  if (status != 0) return status;
  npi_memory_forget(address, bytes); /* or the end of the mapping would be slow */
  segment->made_bytes = offset + bytes;
  return 0;
}

int npi_segment_go_on(struct npi_segment *segment, const struct npi_segment_options *options) {
  uint64_t left = segment->bytes - segment->made_bytes;
  uint64_t piece = segment->page_bytes > NPI_SEGMENT_PIECE ? segment->page_bytes : NPI_SEGMENT_PIECE;
  int status = make_piece(segment, left < piece ? left : piece);
  if (status == 0 && segment->made_bytes == segment->bytes) status = judge_placement(segment, options);
  if (status == 0) return 0;
  int may_be_small = options->huge == NPI_HUGE_AUTO && segment->page_bytes == NPI_HUGE_PAGE;
  npi_segment_destroy(segment);
  return may_be_small ? begin_with_small_pages(segment, options) : status;
}

int npi_segment_create(struct npi_segment *segment, const struct npi_segment_options *options) {
  int status = npi_segment_begin(segment, options);
  while (status == 0 && segment->made_bytes < segment->bytes) status = npi_segment_go_on(segment, options);
  return status;
}

void npi_segment_unmap(struct npi_segment *segment) {
  npi_memory_unmap(segment->address, segment->bytes);
  segment->address = NULL;
}

void npi_segment_unlink(struct npi_segment *segment) {
  if (segment->fd < 0 || segment->backend != NPI_BACKEND_POSIX || segment->unlinked) return;
  if (npi_memory_unlink_posix(segment->name) != 0) {
    npi_log(NPI_LOG_WARNING, "segment.name_kept", "segment=%s reason=\"%s\"", segment->name, npi_detail());
  }
  segment->unlinked = 1;
}

int npi_segment_give_back_some(struct npi_segment *segment) {
  if (segment->fd < 0) return 0;
  uint64_t end = segment->bytes - segment->given_back_bytes;
  uint64_t piece = end < NPI_SEGMENT_PIECE_BACK ? end : NPI_SEGMENT_PIECE_BACK;
  npi_segment_unmap(segment);
  npi_segment_unlink(segment);
  if (piece == 0 || npi_memory_punch(segment->fd, end - piece, piece) != 0) return 0; /* destroy says why */
  segment->given_back_bytes += piece;
  return end > piece;
}

void npi_segment_destroy(struct npi_segment *segment) {
  npi_segment_unmap(segment);
  npi_segment_unlink(segment);
  if (segment->fd >= 0) {
    uint64_t left = segment->bytes - segment->given_back_bytes;
    if (left > 0 && npi_memory_punch(segment->fd, 0, left) != 0) {
      npi_log(NPI_LOG_WARNING, "segment.pages_kept", "segment=%s reason=\"%s\"", segment->name, npi_detail());
    }
    close(segment->fd);
  }
  if (segment->readonly_fd >= 0) close(segment->readonly_fd);
  make_empty(segment);
}

int npi_segment_remeasure(struct npi_segment *segment) {
  if (segment->fd < 0) return npi_fail(NP_ERR_STATE, "there is no segment to measure");
  int mapped_here = segment->address == NULL;
  uint64_t away_before = segment->pages_away;
  int status = 0;
  if (mapped_here) status = npi_memory_map(segment->readonly_fd, 0, segment->bytes, 0, &segment->address);
  if (status == 0) status = npi_memory_populate(segment->address, segment->bytes, !mapped_here);
  if (status == 0) {
    segment->pages_home = segment->pages_away = segment->pages_unknown = 0;
    status = measure(segment, 0, segment->bytes);
  }
  if (mapped_here) npi_segment_unmap(segment);
  if (status == 0 && segment->pages_away > away_before) {
    npi_log(NPI_LOG_WARNING, "segment.drifted", "segment=%s node=%d pages_home=%" PRIu64 " pages_away=%" PRIu64,
            segment->name, segment->node, segment->pages_home, segment->pages_away);
  }
  return status;
}
