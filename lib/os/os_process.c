/* SPDX-License-Identifier: Apache-2.0 */
#include "os/os_process.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/status.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

int npi_process_pidfd(pid_t pid, int *fd) {
  *fd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (*fd >= 0) return 0;
  switch (errno) {
    case ESRCH: return npi_fail(NP_ERR_NOT_FOUND, "there is no process %d", (int)pid);
    case ENOSYS:
      return npi_fail(NP_ERR_SYSTEM,
                      "pidfd_open does not exist here: Linux 5.3 is needed, or a seccomp profile hides it");
    case EMFILE:
    case ENFILE: return npi_fail_errno(NP_ERR_LIMIT, errno, "no descriptor for process %d", (int)pid);
    default: return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot watch process %d", (int)pid);
  }
}

/* >= 0 a descriptor; -1 the kernel does not know the question, or has no answer for this peer (errno). */
static int peer_pidfd(int socket) {
  int fd = -1;
  socklen_t length = sizeof fd;
  return getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &length) == 0 ? fd : -1;
}

int npi_process_peer_is_exact(int socket) {
  int fd = peer_pidfd(socket);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

int npi_process_pidfd_of_peer(int socket, int *fd, pid_t *pid, uid_t *uid, gid_t *gid) {
  struct ucred peer;
  socklen_t length = sizeof peer;
  *fd = -1;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot ask who is at the other end of socket %d", socket);
  }
  if (peer.pid <= 0) {
    return npi_fail(NP_ERR_DENIED, "the peer of socket %d lives in a PID namespace that cannot be seen from here",
                    socket);
  }
  int found = peer_pidfd(socket);
  if (found < 0) {
    if (errno == EMFILE || errno == ENFILE) {
      return npi_fail_errno(NP_ERR_LIMIT, errno, "no descriptor for process %d", (int)peer.pid);
    }
    if (errno != ENOPROTOOPT) return npi_fail(NP_ERR_NOT_FOUND, "the peer, process %d, is gone", (int)peer.pid);
    int status = npi_process_pidfd(peer.pid, &found);
    if (status != 0) return status;
  }
  if (npi_process_is_dead(found) != 0) {
    close(found);
    return npi_fail(NP_ERR_NOT_FOUND, "the peer, process %d, is dead", (int)peer.pid);
  }
  *fd = found;
  if (pid != NULL) *pid = peer.pid;
  if (uid != NULL) *uid = peer.uid;
  if (gid != NULL) *gid = peer.gid;
  return 0;
}

int npi_process_is_dead(int pidfd) {
  struct pollfd polled = {.fd = pidfd, .events = POLLIN};
  int ready;
  do {
    ready = poll(&polled, 1, 0);
  } while (ready < 0 && errno == EINTR);
  if (ready < 0) return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot look at process descriptor %d", pidfd);
  if ((polled.revents & POLLNVAL) != 0) return npi_fail(NP_ERR_ARGUMENT, "process descriptor %d is not open", pidfd);
  return (polled.revents & (POLLIN | POLLHUP)) != 0;
}

int npi_process_signal(int pidfd, int signal) {
  if (syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0) == 0) return 0;
  if (errno == ESRCH) return npi_fail(NP_ERR_NOT_FOUND, "the process of descriptor %d is dead", pidfd);
  return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot send signal %d to the process of descriptor %d", signal, pidfd);
}

/* Up to bytes - 1 characters of a file, ended by 0. */
static int read_text(const char *path, char *text, size_t bytes) {
  text[0] = '\0';
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return npi_fail_errno(errno == ENOENT || errno == ESRCH ? NP_ERR_NOT_FOUND : NP_ERR_SYSTEM, errno, "cannot read %s",
                          path);
  }
  ssize_t n = read(fd, text, bytes - 1);
  int error = errno;
  close(fd);
  if (n < 0) {
    return npi_fail_errno(error == ESRCH ? NP_ERR_NOT_FOUND : NP_ERR_SYSTEM, error, "cannot read %s", path);
  }
  text[n] = '\0';
  return 0;
}

/* The fields after the name, which is in brackets and may itself hold brackets and blanks. */
static int read_stat(pid_t pid, char *text, size_t bytes, const char **fields) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  int status = read_text(path, text, bytes);
  if (status != 0) return status;
  const char *bracket = strrchr(text, ')');
  if (bracket == NULL || bracket[1] != ' ') return npi_fail(NP_ERR_SYSTEM, "%s has an unknown form", path);
  *fields = bracket + 2;
  return 0;
}

/*
 * What the kernel adds to boot times that it shows to this process: it may live in a time namespace, and whoever compares
 * start times with it in another. 0 where it does not say, or where it shows what holds for children only.
 */
static int64_t boot_time_offset_ticks(void) {
  char text[256], mine[64], of_children[64];
  long seconds = 0;
  ssize_t n = readlink("/proc/self/ns/time", mine, sizeof mine);
  if (n <= 0 || readlink("/proc/self/ns/time_for_children", of_children, sizeof of_children) != n ||
      memcmp(mine, of_children, (size_t)n) != 0 || read_text("/proc/self/timens_offsets", text, sizeof text) != 0) {
    return 0;
  }
  const char *line = strstr(text, "boottime");
  if (line == NULL || sscanf(line, "boottime %ld", &seconds) != 1) return 0;
  return (int64_t)seconds * sysconf(_SC_CLK_TCK);
}

int npi_process_start_time(pid_t pid, uint64_t *ticks) {
  char text[1024];
  const char *at;
  *ticks = 0;
  int status = read_stat(pid, text, sizeof text, &at);
  if (status != 0) return status;
  for (int field = 3; field < 22; field++) { /* the state is field 3, the start time field 22 */
    at = strchr(at, ' ');
    if (at == NULL) return npi_fail(NP_ERR_SYSTEM, "/proc/%d/stat is too short", (int)pid);
    at++;
  }
  if (sscanf(at, "%" SCNu64, ticks) != 1) return npi_fail(NP_ERR_SYSTEM, "/proc/%d/stat has an unknown form", (int)pid);
  *ticks -= (uint64_t)boot_time_offset_ticks();
  return 0;
}

int npi_process_state(pid_t pid, char *state) {
  enum { EXITING = 4 }; /* the kernel's PF_EXITING, in field 9 */
  char text[1024];
  const char *fields;
  unsigned flags = 0;
  *state = '?';
  int status = read_stat(pid, text, sizeof text, &fields);
  if (status != 0) return status;
  *state = fields[0];
  if (*state != 'Z' && sscanf(fields, "%*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & EXITING) != 0)
    *state = 'X';
  return 0;
}

/* The number behind a line's title; 0: there is no such line. */
static uint64_t number_of(const char *text, const char *title) {
  uint64_t number = 0;
  const char *line = strstr(text, title);
  if (line != NULL) sscanf(line + strlen(title), "%" SCNu64, &number);
  return number;
}

static int is_stopped_letter(char letter) {
  return letter == 'T' || letter == 't';
}

/* Threads come and go while this looks; none that is stopped does. */
static int all_threads_stopped(pid_t pid) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
  DIR *folder = opendir(path);
  if (folder == NULL) return npi_fail_errno(NP_ERR_NOT_FOUND, errno, "cannot read %s", path);
  int all = 1;
  for (const struct dirent *entry; all == 1 && (entry = readdir(folder)) != NULL;) {
    char stat_path[sizeof path + sizeof entry->d_name + 8];
    if (!isdigit((unsigned char)entry->d_name[0])) continue;
    snprintf(stat_path, sizeof stat_path, "%s/%s/stat", path, entry->d_name);
    if (read_text(stat_path, text, sizeof text) != 0) continue; /* it has ended */
    const char *bracket = strrchr(text, ')');
    char letter = bracket != NULL && bracket[1] == ' ' ? bracket[2] : '?';
    all = is_stopped_letter(letter) || letter == 'Z' || letter == 'X';
  }
  closedir(folder);
  return all;
}

int npi_process_is_stopped(pid_t pid, uint64_t *switches) {
  char path[64], text[8192];
  *switches = 0;
  snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
  int status = read_text(path, text, sizeof text);
  if (status != 0) return status;
  const char *state = strstr(text, "\nState:\t"); /* the name above it cannot hold a line's end */
  if (state == NULL) return npi_fail(NP_ERR_SYSTEM, "%s has an unknown form", path);
  if (!is_stopped_letter(state[8])) return 0;
  *switches = number_of(state, "\nvoluntary_ctxt_switches:") + number_of(state, "\nnonvoluntary_ctxt_switches:");
  return number_of(state, "\nThreads:") == 1 ? 1 : all_threads_stopped(pid);
}

int npi_process_name(pid_t pid, char *name, size_t bytes) {
  char path[64];
  if (bytes == 0) return npi_fail(NP_ERR_ARGUMENT, "no room for a process name");
  snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
  char text[64];
  int status = read_text(path, text, sizeof text);
  size_t length = strlen(text);
  if (length > 0 && text[length - 1] == '\n') text[length - 1] = '\0';
  for (char *c = text; *c != '\0'; c++) {
    if (!isgraph((unsigned char)*c)) *c = '?'; /* set by the process itself, and ends up in log lines */
  }
  snprintf(name, bytes, "%s", text);
  return status;
}

int npi_process_boot_id(char *text, size_t bytes) {
  if (bytes < 37) return npi_fail(NP_ERR_ARGUMENT, "a boot id needs room for 37 characters, not %zu", bytes);
  char id[64];
  text[0] = '\0';
  int status = read_text("/proc/sys/kernel/random/boot_id", id, sizeof id);
  if (status != 0) return status;
  id[strcspn(id, "\n")] = '\0';
  if (strlen(id) != 36) return npi_fail(NP_ERR_SYSTEM, "the kernel's boot id has an unknown form: \"%s\"", id);
  memcpy(text, id, 37);
  return 0;
}

/* Whoever wants to hide among many mappings stays unknown; the reader has other things to do. */
enum { MAPS_BYTES_MAX = 1 << 20 };

int npi_process_maps_file(pid_t pid, int file) {
  char path[48], line[512];
  struct stat facts;
  size_t n_bytes = 0;
  int result = NP_ERR_NOT_FOUND;
  if (fstat(file, &facts) != 0) return npi_fail_errno(NP_ERR_ARGUMENT, errno, "descriptor %d", file);
  snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
  FILE *maps = fopen(path, "re");
  if (maps == NULL) {
    return npi_fail_errno(errno == EACCES || errno == EPERM ? NP_ERR_DENIED : NP_ERR_NOT_FOUND, errno, "%s", path);
  }
  while (result != 1 && fgets(line, sizeof line, maps) != NULL) {
    unsigned major_number = 0, minor_number = 0;
    unsigned long long inode = 0;
    size_t length = strlen(line);
    n_bytes += length;
    if (n_bytes > MAPS_BYTES_MAX) {
      result = npi_fail(NP_ERR_LIMIT, "%s has more than %d bytes", path, MAPS_BYTES_MAX);
      break;
    }
    /* A long path comes in several pieces, of which the first has all that counts. */
    if (sscanf(line, "%*x-%*x %*s %*x %x:%x %llu", &major_number, &minor_number, &inode) == 3) {
      int is_it = major_number == major(facts.st_dev) && minor_number == minor(facts.st_dev) && inode == facts.st_ino;
      result = is_it;
    }
    while (length > 0 && line[length - 1] != '\n' && fgets(line, sizeof line, maps) != NULL) length = strlen(line);
  }
  if (result == 0 && ferror(maps)) result = npi_fail_errno(NP_ERR_NOT_FOUND, errno, "%s", path);
  if (result == NP_ERR_NOT_FOUND) npi_fail(NP_ERR_NOT_FOUND, "process %d has no mappings", (int)pid);
  fclose(maps);
  return result;
}
