/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames over a control socket: one frame a message, checked before anybody looks into it. Both sides use it.
 *
 * What is checked here: size, magic, version, and that as many descriptors came as the head says. What a frame
 * means, and whether its sender may say it, is for the receiver.
 */
#ifndef NPI_WIRE_CHANNEL_H
#define NPI_WIRE_CHANNEL_H

#include <stdint.h>

#include "wire/protocol.h"

/* An empty frame with its head filled in. request is 0 in events. */
void npi_control_frame_init(struct npi_control_frame *frame, enum npi_control_type type, uint32_t request);

/*
 * Sends one frame with n_fds descriptors, which stay the caller's; sets head.n_fds. Never blocks.
 * 0 sent; NPI_SOCKET_AGAIN no room; NPI_SOCKET_END the other side is gone; NP_ERR_LIMIT too many descriptors in flight.
 */
int npi_control_send(int fd, struct npi_control_frame *frame, const int *fds, int n_fds);

/*
 * Receives one frame; its *n_fds descriptors are the caller's. Never blocks.
 * 0; NPI_SOCKET_AGAIN none there; NPI_SOCKET_END the other side has closed; NP_ERR_PROTOCOL: not a frame, in words what
 * is wrong with it; NP_ERR_VERSION: a frame of another protocol version: frame holds its head, so that it can be
 * answered. After any of these every descriptor that came is closed and *n_fds is 0.
 */
int npi_control_receive(int fd, struct npi_control_frame *frame, int fds[NPI_CONTROL_FDS_MAX], int *n_fds);

/* Closes n descriptors. */
void npi_control_close_fds(const int *fds, int n);

/* "hello", "open_publisher" ..., for log lines; "unknown" for others. */
const char *npi_control_type_text(unsigned type);

#endif
