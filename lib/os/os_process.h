/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is at the other end, and does it still live.
 *
 * A process descriptor (pidfd) becomes readable when its process is dead; it never means another process. That is the
 * only proof of death: numbers are reused, sockets are inherited, stopped processes live.
 */
#ifndef NPI_OS_PROCESS_H
#define NPI_OS_PROCESS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The caller closes *fd. NP_ERR_NOT_FOUND: no such process. */
int npi_process_pidfd(pid_t pid, int *fd);

/*
 * Descriptor and credentials of the process that connected the Unix socket (for socketpair: that made it).
 * The kernel's own descriptor of the peer where it has one (6.5); before that by number, which is only certain once
 * the peer has answered a challenge and the descriptor is then still not readable: npi_process_peer_is_exact().
 * NP_ERR_NOT_FOUND: it is already dead; NP_ERR_DENIED: it lives in a PID namespace that cannot be seen from here.
 * pid, uid, gid may be NULL; the caller closes *fd.
 */
int npi_process_pidfd_of_peer(int socket, int *fd, pid_t *pid, uid_t *uid, gid_t *gid);

/* 1 where the kernel gives the peer's own descriptor (no challenge needed), else 0. */
int npi_process_peer_is_exact(int socket);

/* 1 dead, 0 alive (stopped and frozen too), < 0 failure. Does not block. */
int npi_process_is_dead(int pidfd);

/* Sends a signal to exactly that process. NP_ERR_NOT_FOUND: it is dead. */
int npi_process_signal(int pidfd, int signal);

/*
 * Clock ticks after boot at which the process began: with the number and the boot id it names a process for ever. The same
 * for everybody who asks, also from another time namespace (whose offset has whole seconds).
 */
int npi_process_start_time(pid_t pid, uint64_t *ticks);

/* Short name of a process for people; what cannot be printed, blanks too, becomes '?'. Empty text on failure. */
int npi_process_name(pid_t pid, char *name, size_t bytes);

/* Text of 36 characters that differs at each boot; bytes >= 37. */
int npi_process_boot_id(char *text, size_t bytes);

/*
 * Does the process have the file of this descriptor mapped? 1; 0: certainly not, now or ever again, unless it is given
 * the descriptor anew; NP_ERR_DENIED: not for us to know; NP_ERR_NOT_FOUND: it has no memory (any more);
 * NP_ERR_LIMIT: its list of mappings is too long to read.
 */
int npi_process_maps_file(pid_t pid, int file);

/*
 * The kernel's letter: R S D T t Z X I. X: also of one whose first thread is on its way out and not a zombie yet: it runs
 * nothing any more, and where it is the only one, descriptors and locks may be gone already. NP_ERR_NOT_FOUND: no such process.
 */
int npi_process_state(pid_t pid, char *state);

/*
 * 1: all threads of it are stopped, by a signal or a debugger; 0: one of them is not; NP_ERR_NOT_FOUND: no such process.
 * *switches: how often its first thread has left a processor: two equal answers say that it did not run in between.
 */
int npi_process_is_stopped(pid_t pid, uint64_t *switches);

#endif
