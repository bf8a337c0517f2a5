/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/orphans.h"

#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/session.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "wire/channel.h"

enum { AT_ONCE = 32 };
#define FIRST_WORD_NS INT64_C(5000000)

/* The first frame of a newcomer, left in its socket; 0: none there. */
static unsigned peek_type(int fd, uint32_t *request) {
  struct npi_control_head head;
  if (npi_wait_readable(&fd, 1, FIRST_WORD_NS) != 1) return 0;
  if (recv(fd, &head, sizeof head, MSG_PEEK | MSG_DONTWAIT) != (ssize_t)sizeof head) return 0;
  *request = head.request;
  return head.magic == NPI_PROTOCOL_MAGIC && head.version == NPI_PROTOCOL_VERSION ? head.type : 0;
}

static void refuse(int fd, uint32_t request) {
  struct npi_control_frame frame;
  npi_control_init(&frame, NPI_CONTROL_ATTACH, request, NP_ERR_NOT_FOUND);
  snprintf(frame.body.text, sizeof frame.body.text,
           "this instance began anew, and nothing of its earlier life is left; close all handles and connect again");
  npi_control_send(fd, &frame, NULL, 0);
  close(fd);
}

void npi_orphans_refuse(struct npi_broker *broker) {
  for (int i = 0; i < AT_ONCE && broker->accept_watch.fd >= 0; i++) {
    uint32_t request = 0;
    int fd;
    if (npi_socket_accept(broker->accept_watch.fd, &fd) != 0) return;
    if (peek_type(fd, &request) == NPI_CONTROL_ATTACH) {
      refuse(fd, request);
    } else if (npi_session_begin(broker, fd) != 0) { /* heard when the loop runs */
      npi_log(NPI_LOG_WARNING, "session.rejected", "reason=\"%s\"", npi_detail());
    }
  }
}
