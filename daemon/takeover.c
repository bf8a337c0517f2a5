/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/takeover.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/adopt.h"
#include "daemon/broker.h"
#include "daemon/lock.h"
#include "os/os_clock.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "wire/channel.h"

#define ANSWER_NS INT64_C(5000000000)
#define LOCK_NS   UINT64_C(5000000000)
#define NAP_NS    1000000

static int ask(int fd) {
  struct npi_control_frame frame;
  int fds[NPI_CONTROL_FDS_MAX], n_fds = 0;
  npi_control_init(&frame, NPI_CONTROL_TAKEOVER, 1, 0);
  int status = npi_control_send(fd, &frame, NULL, 0);
  if (status == 0) status = npi_wait_readable(&fd, 1, ANSWER_NS) == 1 ? 0 : NPI_SOCKET_AGAIN;
  if (status == 0) status = npi_control_receive(fd, &frame, fds, &n_fds);
  npi_control_close_fds(fds, n_fds);
  if (status == NPI_SOCKET_AGAIN)
    return npi_fail(NP_ERR_NO_BROKER, "the running broker does not answer; is it stopped?");
  if (status == NPI_SOCKET_END) return 0; /* it ended: with or without our asking */
  if (status < 0) return status;
  frame.body.text[NPI_CONTROL_TEXT_BYTES - 1] = '\0';
  if (frame.head.status < 0) return npi_fail(frame.head.status, "%s", frame.body.text);
  return 0;
}

int npi_takeover(struct npi_broker *broker) {
  char path[NPI_CONFIG_PATH_BYTES];
  const struct npi_config *config = broker->config;
  int fd = -1;
  int status = npi_adopt_check_running(broker);
  if (status != 0) return status;
  snprintf(path, sizeof path, "%s/control.sock", config->runtime_dir);
  status = npi_socket_connect(path, &fd);
  if (status == 0) status = ask(fd);
  if (fd >= 0) close(fd);
  if (status != 0 && status != NP_ERR_NO_BROKER) return status; /* refused; else it may be ending just now */
  uint64_t begin = npi_clock_monotonic();
  do {
    status = npi_lock_take(config->runtime_dir, config->instance, &broker->lock_fd);
    if (status != NP_ERR_EXISTS) break;
    nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
  } while (npi_clock_monotonic() - begin < LOCK_NS);
  if (status == 0) npi_log(NPI_LOG_INFO, "broker.takes_over", "instance=%s", config->instance);
  return status;
}
