/* SPDX-License-Identifier: Apache-2.0 */
#include "os/os_socket.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/status.h"

enum { CONNECT_TRIES = 200, CONNECT_NAP_NS = 5000000 };

static int make_address(const char *path, struct sockaddr_un *address) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  size_t length = strlen(path);
  if (length == 0 || length >= sizeof address->sun_path) {
    return npi_fail(NP_ERR_ARGUMENT, "socket path \"%s\" has %zu characters: 1 to %zu are possible", path, length,
                    sizeof address->sun_path - 1);
  }
  memcpy(address->sun_path, path, length);
  return 0;
}

static int new_socket(int *fd) {
  *fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (*fd >= 0) return 0;
  return npi_fail_errno(errno == EMFILE || errno == ENFILE ? NP_ERR_LIMIT : NP_ERR_SYSTEM, errno,
                        "cannot create a Unix socket");
}

int npi_socket_listen(const char *path, int mode, int backlog, int *fd) {
  struct sockaddr_un address;
  struct stat there;
  int made = -1, bound = 0;
  *fd = -1;
  int status = make_address(path, &address);
  if (status != 0) return status;
  if (lstat(path, &there) == 0) {
    if (!S_ISSOCK(there.st_mode)) {
      return npi_fail(NP_ERR_EXISTS, "%s exists and is not a socket: remove it, or choose another path", path);
    }
    unlink(path); /* where that fails, bind says so */
  }
  status = new_socket(&made);
  if (status != 0) goto fail;
  if (bind(made, (const struct sockaddr *)&address, sizeof address) != 0) {
    int error = errno;
    status = npi_fail_errno(error == EACCES || error == EPERM ? NP_ERR_DENIED : NP_ERR_SYSTEM, error,
                            "cannot make socket %s (is its folder there, and writable?)", path);
    goto fail;
  }
  bound = 1;
  /* Nobody can connect before listen(), so the mode is never wider than asked. */
  if (chmod(path, (mode_t)mode) != 0) {
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot set mode %04o of socket %s", (unsigned)mode, path);
    goto fail;
  }
  if (listen(made, backlog) != 0) {
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot listen at %s", path);
    goto fail;
  }
  *fd = made;
  return 0;

fail:
  if (bound) unlink(path);
  if (made >= 0) close(made);
  return status;
}

int npi_socket_accept(int listener, int *fd) {
  do {
    *fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  } while (*fd < 0 && (errno == EINTR || errno == ECONNABORTED));
  if (*fd >= 0) return 0;
  if (errno == EAGAIN) return NPI_SOCKET_AGAIN;
  return npi_fail_errno(errno == EMFILE || errno == ENFILE ? NP_ERR_LIMIT : NP_ERR_SYSTEM, errno,
                        "cannot accept a peer");
}

static int connect_tries(const char *path, int tries, int *fd) {
  struct sockaddr_un address;
  int made = -1;
  *fd = -1;
  int status = make_address(path, &address);
  if (status == 0) status = new_socket(&made);
  if (status != 0) return status;

  int error = 0;
  for (int i = 0; i < tries; i++) {
    if (connect(made, (const struct sockaddr *)&address, sizeof address) == 0) {
      *fd = made;
      return 0;
    }
    error = errno;
    if (error == EAGAIN && i + 1 < tries) { /* the queue of newcomers is full; there is nothing to poll for */
      nanosleep(&(struct timespec){.tv_nsec = CONNECT_NAP_NS}, NULL);
    } else if (error != EINTR) {
      break;
    }
  }
  close(made);
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return npi_fail(NP_ERR_NO_BROKER,
                      "no broker at %s: nothing is there; start numapoold, or check the instance name", path);
    case ECONNREFUSED:
      return npi_fail(NP_ERR_NO_BROKER,
                      "no broker at %s: nobody listens (it has ended, or just starts); start numapoold", path);
    case EAGAIN:
      return npi_fail(NP_ERR_NO_BROKER, "the broker at %s takes nobody in: its queue is full; try again", path);
    case EACCES:
    case EPERM:
      return npi_fail(NP_ERR_DENIED,
                      "not permitted to connect to %s: run as the broker's user, or be let in (access.connect)", path);
    case EPROTOTYPE: return npi_fail(NP_ERR_NO_BROKER, "%s is a socket of another program", path);
    default: return npi_fail_errno(NP_ERR_SYSTEM, error, "cannot connect to %s", path);
  }
}

int npi_socket_connect(const char *path, int *fd) {
  return connect_tries(path, CONNECT_TRIES, fd);
}

int npi_socket_connect_once(const char *path, int *fd) {
  return connect_tries(path, 1, fd);
}

int npi_socket_has_listener(const char *path) {
  struct sockaddr_un address;
  int made = -1;
  int status = make_address(path, &address);
  if (status == 0) status = new_socket(&made);
  if (status != 0) return status;
  int error;
  do {
    error = connect(made, (const struct sockaddr *)&address, sizeof address) == 0 ? 0 : errno;
  } while (error == EINTR);
  close(made);
  if (error == 0 || error == EAGAIN) return 1;
  if (error == ENOENT || error == ENOTDIR || error == ECONNREFUSED || error == EPROTOTYPE) return 0;
  return npi_fail_errno(NP_ERR_SYSTEM, error, "cannot tell who listens at %s", path);
}

int npi_socket_pair(int fds[2]) {
  fds[0] = fds[1] = -1;
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0) return 0;
  fds[0] = fds[1] = -1;
  return npi_fail_errno(errno == EMFILE || errno == ENFILE ? NP_ERR_LIMIT : NP_ERR_SYSTEM, errno,
                        "cannot create a pair of sockets");
}

/* Room for the largest allowed control message, aligned for its header, and for the sender where that is noted. */
enum { CONTROL_BYTES = CMSG_SPACE(sizeof(int) * NPI_SOCKET_FDS_MAX) };
union control {
  struct cmsghdr header;
  char bytes[CONTROL_BYTES + CMSG_SPACE(sizeof(struct ucred))];
};

int npi_socket_send(int fd, const void *bytes, size_t n, const int *fds, int n_fds) {
  if (n == 0 || n_fds < 0 || n_fds > NPI_SOCKET_FDS_MAX) {
    return npi_fail(NP_ERR_ARGUMENT, "cannot send %zu bytes with %d descriptors: at least 1, at most %d", n, n_fds,
                    NPI_SOCKET_FDS_MAX);
  }
  union control control;
  struct iovec data = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = n};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
  if (n_fds > 0) {
    memset(&control, 0, sizeof control);
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)n_fds);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)n_fds);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * (size_t)n_fds);
  }
  ssize_t sent;
  do {
    sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return 0; /* message borders: all of it or nothing */
  switch (errno) {
    case EAGAIN:
    case ENOBUFS: return NPI_SOCKET_AGAIN;
    case EPIPE:
    case ECONNRESET:
    case ENOTCONN: return NPI_SOCKET_END;
    case ETOOMANYREFS:
      return npi_fail(NP_ERR_LIMIT, "too many descriptors in flight: receivers do not read; raise LimitNOFILE");
    case EMSGSIZE: return npi_fail(NP_ERR_TOO_LARGE, "a message of %zu bytes does not fit into the socket's buffer", n);
    default: return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot send %zu bytes with %d descriptors", n, n_fds);
  }
}

/* Moves the descriptors of a message to fds; what does not fit, or where fds is NULL all, is closed. */
static int take_descriptors(struct msghdr *message, int *fds, int max_fds) {
  int n_taken = 0;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL; header = CMSG_NXTHDR(message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t n = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < n; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      if (fds != NULL && n_taken < max_fds) {
        fds[n_taken++] = fd;
      } else {
        close(fd);
      }
    }
  }
  return n_taken;
}

int npi_socket_note_senders(int fd, int on) {
  if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0) return 0;
  return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot ask who sends on socket %d", fd);
}

static pid_t sender_of(struct msghdr *message) {
  struct ucred sender;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL; header = CMSG_NXTHDR(message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_CREDENTIALS) continue;
    memcpy(&sender, CMSG_DATA(header), sizeof sender);
    return sender.pid;
  }
  return 0;
}

int npi_socket_receive(int fd, void *bytes, size_t size, size_t *n, int *fds, int max_fds, int *n_fds) {
  return npi_socket_receive_from(fd, bytes, size, n, fds, max_fds, n_fds, NULL);
}

int npi_socket_receive_from(int fd, void *bytes, size_t size, size_t *n, int *fds, int max_fds, int *n_fds,
                            pid_t *sender) {
  size_t control_bytes = sender != NULL ? sizeof(union control) : (size_t)CONTROL_BYTES;
  union control control;
  struct iovec data = {.iov_base = bytes, .iov_len = size};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = control_bytes};
  *n = 0;
  if (n_fds != NULL) *n_fds = 0;
  if (sender != NULL) *sender = 0;
  ssize_t got;
  int was_reset = 0, was_end = 0;
  do {
    message.msg_controllen = control_bytes;
    got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    /* Said once where the peer closed with messages of ours unread; what it had sent before is still there. */
    was_reset += got < 0 && errno == ECONNRESET;
    /*
     * The kernel looks into the queue first and then whether the peer has closed. A peer that sends and closes in
     * between is reported as the end while its last message is there: only the second look says that it is over.
     */
    was_end += got == 0;
    if (got == 0) take_descriptors(&message, NULL, 0);
  } while ((got < 0 && (errno == EINTR || (errno == ECONNRESET && was_reset == 1))) || (got == 0 && was_end == 1));
  if (got < 0) {
    switch (errno) {
      case EAGAIN: return was_end == 0 ? NPI_SOCKET_AGAIN : npi_fail(NP_ERR_PROTOCOL, "received an empty message");
      case ECONNRESET:
      case ENOTCONN: return NPI_SOCKET_END;
      default: return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot receive from socket %d", fd);
    }
  }
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    take_descriptors(&message, NULL, 0);
    if ((message.msg_flags & MSG_TRUNC) != 0) {
      return npi_fail(NP_ERR_PROTOCOL, "received a message of more than %zu bytes", size);
    }
    int probe = dup(fd); /* the kernel cuts the list for both reasons with the same flag */
    if (probe < 0) {
      return npi_fail_errno(NP_ERR_LIMIT, errno, "no descriptor left for those of a message; raise LimitNOFILE");
    }
    close(probe);
    return npi_fail(NP_ERR_PROTOCOL, "received a message with more than %d descriptors", NPI_SOCKET_FDS_MAX);
  }
  if (got == 0) return NPI_SOCKET_END;
  if (sender != NULL) *sender = sender_of(&message);
  int n_taken = take_descriptors(&message, fds, n_fds == NULL ? 0 : max_fds);
  if (n_fds != NULL) *n_fds = n_taken;
  *n = (size_t)got;
  return 0;
}
