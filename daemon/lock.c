/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "os/os_memory.h"
#include "os/os_process.h"
#include "shm/layout.h"
#include "shm/leftovers.h"

enum { ORPHANED_NAPS = 2000 };

/* ---- runtime directory ---- */

static int make_folder(const char *path) {
  if (mkdir(path, 0755) == 0 || errno == EEXIST) return 0;
  return npi_fail_errno(errno == EACCES || errno == EPERM ? NP_ERR_DENIED : NP_ERR_SYSTEM, errno,
                        "cannot make the runtime directory %s; set runtime_dir in the configuration, or "
                        "XDG_RUNTIME_DIR, to a folder that user %u may write",
                        path, (unsigned)geteuid());
}

/* Somebody else who may write here could replace our socket by theirs. */
static int check_folder(const char *path) {
  struct stat facts;
  if (lstat(path, &facts) != 0) return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot look at %s", path);
  if (!S_ISDIR(facts.st_mode)) {
    return npi_fail(NP_ERR_EXISTS, "%s is not a folder; remove it, or set runtime_dir to another path", path);
  }
  if (facts.st_uid != geteuid() && facts.st_uid != 0) {
    return npi_fail(NP_ERR_DENIED,
                    "the runtime directory %s belongs to user %u, not to user %u; remove it, or set "
                    "runtime_dir to another path",
                    path, (unsigned)facts.st_uid, (unsigned)geteuid());
  }
  if ((facts.st_mode & (S_IWOTH | S_IWGRP)) != 0) {
    return npi_fail(NP_ERR_DENIED, "others may write in the runtime directory %s (mode %04o); run chmod 755 %s", path,
                    (unsigned)(facts.st_mode & 07777), path);
  }
  return 0;
}

int npi_runtime_dir_make(const char *path) {
  char part[256], of_user[40];
  size_t length = strlen(path);
  snprintf(of_user, sizeof of_user, "/tmp/numapool-%u", (unsigned)geteuid());
  if (length >= sizeof part) return npi_fail(NP_ERR_ARGUMENT, "runtime_dir %s is too long", path);
  memcpy(part, path, length + 1);
  for (char *slash = strchr(part + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    struct stat facts;
    int there = stat(part, &facts) == 0;
    int status = there ? 0 : make_folder(part);
    if (status == 0 && strcmp(part, of_user) == 0) status = check_folder(part); /* anybody may have made it */
    if (status != 0) return status;
    *slash = '/';
  }
  int status = make_folder(path);
  return status != 0 ? status : check_folder(path);
}

int npi_runtime_dir_open(const char *path) {
  struct stat facts;
  if (stat(path, &facts) == 0 && (facts.st_mode & 0005) != 0005 && chmod(path, 0755) != 0) {
    return npi_fail_errno(NP_ERR_DENIED, errno, "others shall connect, but cannot reach %s; run chmod 755 %s", path,
                          path);
  }
  return 0;
}

/* ---- lock ---- */

static long read_pid(int fd) {
  char text[32];
  ssize_t n = pread(fd, text, sizeof text - 1, 0);
  if (n <= 0) return 0;
  text[n] = '\0';
  return strtol(text, NULL, 10);
}

/*
 * A child that a broker has just forked holds the lock with it until it runs its own program: where the broker died in
 * that instant, the lock is free in a moment.
 */
static int lock_whole(int fd) {
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  for (int naps = 0; naps < ORPHANED_NAPS; naps++) {
    char state = 'X';
    if (fcntl(fd, F_OFD_SETLK, &whole) == 0) return 0;
    if (errno != EAGAIN && errno != EACCES) return -1;
    long pid = read_pid(fd);
    if (pid <= 0 || (npi_process_state((pid_t)pid, &state) == 0 && state != 'Z' && state != 'X')) break;
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  errno = EAGAIN;
  return -1;
}

int npi_lock_take(const char *runtime_dir, const char *instance, int *fd) {
  char path[256];
  int status, made = -1;
  *fd = -1;
  snprintf(path, sizeof path, "%s/lock", runtime_dir);
  made = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (made < 0) {
    status = npi_fail_errno(errno == EACCES ? NP_ERR_DENIED : NP_ERR_SYSTEM, errno, "cannot open %s; check who owns it",
                            path);
    goto fail;
  }
  if (lock_whole(made) != 0) {
    if (errno == EAGAIN || errno == EACCES) {
      status = npi_fail(NP_ERR_EXISTS,
                        "instance \"%s\" is run by process %ld already (%s is locked); stop that one, or choose "
                        "another name with --instance",
                        instance, read_pid(made), path);
    } else {
      status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot lock %s", path);
    }
    goto fail;
  }
  char text[32];
  int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
  if (ftruncate(made, 0) != 0 || pwrite(made, text, (size_t)n, 0) != n) {
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot write %s", path);
    goto fail;
  }
  *fd = made;
  return 0;

fail:
  if (made >= 0) close(made);
  return status;
}

int npi_lock_check_registry(const char *instance) {
  char name[96], boot_id[40];
  struct npi_registry_header header;
  int fd = -1;
  npi_shm_name(name, sizeof name, instance, geteuid(), "registry", -1);
  if (npi_memory_open_posix(name, 0, &fd, NULL) != 0) return 0; /* none, or not ours to read: nothing to fear */
  ssize_t n = pread(fd, &header, sizeof header, 0);
  close(fd);
  uint64_t start_time;
  /* Also without the magic: it comes when memory is ready, and a broker that just starts is one all the same. */
  if (n != (ssize_t)sizeof header) return 0;
  if (npi_process_boot_id(boot_id, sizeof boot_id) != 0 || strncmp(boot_id, header.boot_id, sizeof boot_id) != 0) {
    return 0; /* of an earlier life of the machine */
  }
  if (header.broker_pid == 0 || npi_process_start_time((pid_t)header.broker_pid, &start_time) != 0) return 0;
  char state = '?'; /* a zombie is dead: it waits only for its parent */
  if (npi_process_state((pid_t)header.broker_pid, &state) == 0 && (state == 'Z' || state == 'X')) return 0;
  if (start_time != header.broker_start_time || header.broker_pid == (uint32_t)getpid()) return 0;
  return npi_fail(NP_ERR_EXISTS,
                  "instance \"%s\" is run by process %u already, with another runtime directory; stop that one, or "
                  "choose another name with --instance",
                  instance, header.broker_pid);
}
