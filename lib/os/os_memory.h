/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory objects that several processes map: named POSIX shared memory and sealed memfds.
 *
 * All descriptors are close-on-exec and owned by the caller; output parameters are set to -1, NULL or 0 first,
 * so that after a failure there is nothing to give back. Names are given without the leading slash.
 */
#ifndef NPI_OS_MEMORY_H
#define NPI_OS_MEMORY_H

#include <stdint.h>

enum { NPI_HUGE_PAGE = 2 * 1024 * 1024 };

/*
 * Makes a new named object of bytes, mode 0600 whatever the umask, all holes (reserve it before use).
 * NP_ERR_EXISTS where the name is taken. On failure the name is unlinked again. Does not block.
 */
int npi_memory_create_posix(const char *name, uint64_t bytes, int *fd);

/*
 * Makes an anonymous object of bytes, mode 0600, whose size can never change again: sealed against shrinking,
 * growing and further seals (not against writing: a restarted broker must be able to map it anew).
 * name is a label for /proc. With huge it is made of 2 MiB pages and bytes must be a multiple of NPI_HUGE_PAGE.
 */
int npi_memory_create_memfd(const char *name, uint64_t bytes, int huge, int *fd);

/* Opens an existing named object; *bytes is its size (bytes may be NULL). NP_ERR_NOT_FOUND, NP_ERR_DENIED. */
int npi_memory_open_posix(const char *name, int writable, int *fd, uint64_t *bytes);

/*
 * A second, independent descriptor of the same object that only allows reading: neither mmap nor mprotect can make a
 * writable mapping of it. A process of the same user can undo that, one of another user cannot. Needs /proc.
 */
int npi_memory_reopen_readonly(int fd, int *readonly_fd);

/* NP_ERR_NOT_FOUND where there is no such name. Mappings and descriptors of others stay valid. */
int npi_memory_unlink_posix(const char *name);

int npi_memory_size(int fd, uint64_t *bytes);

/* 1 when the size can neither shrink nor grow, else 0 (also for POSIX shared memory, which takes no seals).
 * < 0: it could not be asked. */
int npi_memory_is_sealed(int fd);

/*
 * Allocates every page of the range now: where memory is short this is NP_ERR_NO_MEMORY with what is needed, what is
 * there and what to do, instead of a SIGBUS at some later access. It is the first touch, so the pages land where the
 * memory policy at this time says: bind first. Takes a part of a second a GiB. After a failure parts may be reserved.
 */
int npi_memory_reserve(int fd, uint64_t offset, uint64_t bytes);

/* The same error beforehand, where the file system of fd has no room for so much more. */
int npi_memory_check_room(int fd, uint64_t need);

/* Gives the pages of the range back to the system; they read as zero afterwards. fd must be writable. */
int npi_memory_punch(int fd, uint64_t offset, uint64_t bytes);

/*
 * Maps a range shared, not inherited by fork and not part of core dumps. offset is a multiple of the page size.
 * The mapping is the caller's, npi_memory_unmap() ends it. NP_ERR_NO_MEMORY, NP_ERR_DENIED.
 */
int npi_memory_map(int fd, uint64_t offset, uint64_t bytes, int writable, void **address);

/* NULL is fine. */
void npi_memory_unmap(void *address, uint64_t bytes);

/*
 * Fills this process's page tables for the range, so that no later access faults. The range must have been reserved.
 * writable: the range was mapped so. Contents are not changed, also while others write them.
 */
int npi_memory_populate(void *address, uint64_t bytes, int writable);

/* The opposite: empties the page tables again. The memory stays; whoever looks faults. */
void npi_memory_forget(void *address, uint64_t bytes);

/* Asks for transparent huge pages in the range. 0, or NP_ERR_SYSTEM where the kernel has none. */
int npi_memory_advise_huge(void *address, uint64_t bytes);

/* What /dev/shm has left. */
int npi_memory_available(uint64_t *free_bytes);

/* How many 2 MiB pages the pool of a node has free; node -1: all nodes together. 0 pages where there is no pool. */
int npi_memory_huge_pages_free(int node, uint64_t *n_pages);

#endif
