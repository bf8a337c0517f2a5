/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of POSIX shared memory objects, and the removal of those that a dead broker left.
 *   numapool.<instance>.<uid>.registry       numapool.<instance>.<uid>.seg.<id>
 */
#ifndef NPI_SHM_LEFTOVERS_H
#define NPI_SHM_LEFTOVERS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* kind is lower-case letters ("registry", "seg"); id -1: none. Text that does not fit is cut; 96 bytes are enough for
 * an instance name of up to 48. */
void npi_shm_name(char *text, size_t bytes, const char *instance, uid_t uid, const char *kind, int64_t id);

/*
 * Unlinks every object of the instance that belongs to uid; one log line each. The caller must hold the instance's lock
 * and must not want to adopt them. Objects of other instances, also of those whose name begins alike, and files of
 * another owner are left alone. n_removed may be NULL.
 */
int npi_shm_remove_leftovers(const char *instance, uid_t uid, uint32_t *n_removed);

/* The same for segments alone, and of these only for those whose id nobody needs. */
typedef int (*npi_shm_is_needed)(void *context, uint64_t id);
int npi_shm_remove_unneeded(const char *instance, uid_t uid, npi_shm_is_needed is_needed, void *context,
                            uint32_t *n_removed);

#endif
