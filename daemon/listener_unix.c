/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file of a Unix socket. It outlives a killed process, so a file that is there may be a leftover or somebody
 * alive; only a connect can tell. (Two starts at the same instant are kept apart by the instance's lock, not here.)
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/listener_internal.h"

/* What is at the path: 0 nothing (any more), or the reason why it cannot be taken. */
static int clear_path(const struct npi_listener_config *config, const struct sockaddr_un *address) {
  struct stat facts;
  if (lstat(config->path, &facts) != 0) return 0; /* bind says what is wrong with the way there */
  if (!S_ISSOCK(facts.st_mode)) {
    return npi_fail(NP_ERR_EXISTS, "listener \"%s\": %s exists and is no socket; remove it, or choose another path",
                    config->name, config->path);
  }
  /* Non-blocking: a living owner with a full queue answers EAGAIN instead of holding us up. */
  int type = config->proto == NPI_CONFIG_UNIX ? SOCK_STREAM : SOCK_DGRAM;
  int probe = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (probe < 0) {
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "listener \"%s\": cannot make a socket to try %s", config->name,
                          config->path);
  }
  int answer = connect(probe, (const struct sockaddr *)address, sizeof *address) == 0 ? 0 : errno;
  close(probe);
  if (answer == ENOENT) return 0;
  if (answer == EACCES) {
    return npi_fail_errno(NP_ERR_DENIED, answer, "listener \"%s\": cannot try whether %s is in use; remove it if not",
                          config->name, config->path);
  }
  if (answer != ECONNREFUSED) { /* connected, queue full, or alive but of another type (EPROTOTYPE) */
    return npi_fail(
        NP_ERR_EXISTS,
        "listener \"%s\": %s is in use by another process: stop it or choose another path (ss -lxp shows it)",
        config->name, config->path);
  }
  if (unlink(config->path) != 0 && errno != ENOENT) {
    return npi_fail_errno(NP_ERR_DENIED, errno,
                          "listener \"%s\": cannot remove the socket that a dead process left at %s; remove it",
                          config->name, config->path);
  }
  npi_log(NPI_LOG_INFO, "socket.leftover_removed", "listener=%s path=%s", config->name, config->path);
  return 0;
}

static int fail_bind(const struct npi_listener_config *config, int error) {
  int status = error == EACCES || error == EPERM ? NP_ERR_DENIED : error == EADDRINUSE ? NP_ERR_EXISTS : NP_ERR_CONFIG;
  const char *fix = error == ENOENT    ? " (create its directory)"
                    : error == EACCES  ? " (its directory is not writable for this user)"
                    : error == ENOTDIR ? " (a part of the path is no directory)"
                                       : "";
  return npi_fail_errno(status, error, "listener \"%s\": cannot make the socket %s%s", config->name, config->path, fix);
}

int npi_listener_open_unix(const struct npi_listener_config *config, struct npi_listener_socket *out) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  struct stat facts;
  _Static_assert(sizeof address.sun_path == NPI_CONFIG_PATH_BYTES, "a configured path fits");
  if (memchr(config->path, '\0', sizeof config->path) == NULL || config->path[0] != '/') {
    return npi_fail(NP_ERR_CONFIG, "listener \"%s\": the path is not absolute or too long", config->name);
  }
  memcpy(address.sun_path, config->path, sizeof address.sun_path);
  int status = clear_path(config, &address);
  if (status < 0) return status;
  status = npi_listener_make(config, AF_UNIX, out);
  if (status < 0) return status;
  /* The file is born with the mode of the descriptor less the umask: never wider than asked, at any moment. */
  if (fchmod(out->fd, config->mode) != 0) goto fail_mode;
  if (bind(out->fd, (struct sockaddr *)&address, sizeof address) != 0) return fail_bind(config, errno);
  memcpy(out->path, config->path, sizeof out->path);
  if (lstat(config->path, &facts) != 0) goto fail_mode;
  out->path_device = facts.st_dev;
  out->path_inode = facts.st_ino;
  if ((facts.st_mode & 07777) != config->mode && chmod(config->path, config->mode) != 0) goto fail_mode;
  return 0;
fail_mode:
  return npi_fail_errno(NP_ERR_SYSTEM, errno, "listener \"%s\": cannot set the mode %04o of %s", config->name,
                        (unsigned)config->mode, config->path);
}
