/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One segment of a pool: make it on a node, fill it with real pages, measure where they are, give it back.
 * Both backends behind the same functions. Called by the broker; clients get descriptors, never names.
 */
#ifndef NPI_SHM_SEGMENT_H
#define NPI_SHM_SEGMENT_H

#include <stdint.h>

enum npi_segment_backend { NPI_BACKEND_POSIX, NPI_BACKEND_MEMFD };

enum npi_numa_mode {
  NPI_NUMA_OFF,    /* pages go where the kernel puts them; measured all the same */
  NPI_NUMA_PREFER, /* on the node where possible; what is not is logged and counted */
  NPI_NUMA_STRICT  /* every page proven to be on the node, or an error with reason and fix */
};

enum npi_huge_pages {
  NPI_HUGE_NEVER,
  NPI_HUGE_AUTO,        /* explicit where the backend can and the node's pool has enough free, else transparent */
  NPI_HUGE_TRANSPARENT, /* asked of the kernel; what it does with that is its affair */
  NPI_HUGE_EXPLICIT     /* 2 MiB pages of the node's pool, or an error with the command that fills it; memfd only */
};

/* Each takes some tenths of a millisecond, where pages are small. */
#define NPI_SEGMENT_PIECE      (UINT64_C(256) << 10)
#define NPI_SEGMENT_PIECE_BACK (UINT64_C(2) << 20)

struct npi_segment_options {
  enum npi_segment_backend backend;
  enum npi_numa_mode numa;
  enum npi_huge_pages huge;
  const char *name; /* POSIX: of the object (npi_shm_name()); memfd: a label */
  uint64_t bytes;   /* multiple of 4096; for explicit huge pages of 2 MiB */
  int node;         /* the kernel's number; -1 only with NPI_NUMA_OFF */
};

struct npi_segment {
  int fd;              /* writable; -1: no segment here */
  int readonly_fd;     /* of the same object, cannot be mapped writable */
  void *address;       /* writable mapping, NULL after npi_segment_unmap() */
  uint64_t bytes;      /* as asked */
  uint64_t page_bytes; /* obtained: 4096, or 2 MiB with explicit huge pages */
  char name[96];
  int unlinked;                        /* see npi_segment_unlink() */
  uint64_t reserved_bytes, made_bytes; /* while it is being made: so much of it is there, and measured */
  uint64_t given_back_bytes;           /* of its end */
  enum npi_segment_backend backend;
  int node;
  int bound;              /* 1: the kernel took the memory policy */
  uint64_t pages_home;    /* counted in page_bytes; without a node (-1) each page found is at home */
  uint64_t pages_away;    /* on other nodes */
  uint64_t pages_unknown; /* where the kernel does not say */
};

/*
 * Order: create, map, bind, reserve, populate, measure. On success the caller owns descriptors, name and mapping, and
 * ends them with npi_segment_destroy(); on failure nothing is left behind and *segment is empty (fd -1).
 * Takes about a second a GiB. Under NPI_NUMA_PREFER, where binding is refused, the calling thread moves to the
 * node's CPUs while it touches the pages, and back.
 * NP_ERR_NO_MEMORY (need, have, fix), NP_ERR_DENIED (strict, and binding or measuring is refused), NP_ERR_EXISTS,
 * NP_ERR_STATE (strict, and pages are away), NP_ERR_ARGUMENT, NP_ERR_SYSTEM.
 */
int npi_segment_create(struct npi_segment *segment, const struct npi_segment_options *options);

/*
 * The same piece by piece, for who must not be away for so long: begin, then go on until made_bytes is bytes. The options
 * stay the caller's and are the same in each call. On failure, which may be any call's, nothing is left behind. Where
 * binding is refused, begin reserves all of it.
 */
int npi_segment_begin(struct npi_segment *segment, const struct npi_segment_options *options);
int npi_segment_go_on(struct npi_segment *segment, const struct npi_segment_options *options);

/* The broker keeps descriptors only; the pages stay. Without a mapping: nothing. */
void npi_segment_unmap(struct npi_segment *segment);

/* Nobody finds it by name any more; who has it open keeps it. A memfd has no name: nothing. Again: nothing. */
void npi_segment_unlink(struct npi_segment *segment);

/*
 * Gives the pages back, also where others still hold descriptors or mappings (they then read zeros and pay for what
 * they touch: only when nobody uses the segment any more), unlinks, closes. An empty segment is fine; it is empty after.
 */
void npi_segment_destroy(struct npi_segment *segment);

/* The same piece by piece: unmaps, unlinks, gives some pages back. 0: there is nothing more to give back. */
int npi_segment_give_back_some(struct npi_segment *segment);

/* Counts the pages anew; maps the segment for that time if need be. Logs segment.drifted when pages have left home. */
int npi_segment_remeasure(struct npi_segment *segment);

#endif
