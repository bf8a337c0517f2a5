/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is the broker of an instance: the holder of the lock on the file `lock` in the runtime directory.
 * The kernel drops the lock with its holder, however that ends. The file stays for ever: if it were
 * removed, two brokers could each hold a lock on a file of that name.
 */
#ifndef NPI_DAEMON_LOCK_H
#define NPI_DAEMON_LOCK_H

/* Makes the runtime directory where it is missing, and checks that nobody else can write in it. */
int npi_runtime_dir_make(const char *path);
/* Lets other users reach the sockets in it. */
int npi_runtime_dir_open(const char *path);

/* NP_ERR_EXISTS: another broker has it, with its pid and the fix. The caller closes *fd to let go. */
int npi_lock_take(const char *runtime_dir, const char *instance, int *fd);

/*
 * The same instance may also run from another runtime directory, and would share names in /dev/shm with us.
 * NP_ERR_EXISTS: the registry there belongs to a living process.
 */
int npi_lock_check_registry(const char *instance);

#endif
