/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much memory the control groups of this process leave it. Where a group is at its limit the kernel does not refuse
 * a page: it kills somebody in the group. So whoever makes memory asks first.
 */
#ifndef NPI_OS_CGROUP_H
#define NPI_OS_CGROUP_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Bytes until the first limit of a group that this process is in, or of one above it; what the kernel could take back
 * from file caches counts as free. *bytes is UINT64_MAX, and the group "", where nothing is limited or nobody can tell.
 * group (may be NULL): where that limit is, as a path. Reads a few small files; does not fail.
 */
void npi_cgroup_memory_room(uint64_t *bytes, char *group, size_t group_size);

/* The same with the places of /proc/self/cgroup and /sys/fs/cgroup given. */
void npi_cgroup_memory_room_at(const char *membership, const char *root, uint64_t *bytes, char *group,
                               size_t group_size);

/* 1: the process is frozen by its control group (either version); 0: it is not, or nobody can tell. Does not fail. */
int npi_cgroup_is_frozen(pid_t pid);

#endif
