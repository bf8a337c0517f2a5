/* SPDX-License-Identifier: Apache-2.0 */
/* Frames over a control socket: whole, of the right size, magic and version, or not at all. */
#ifndef NPI_WIRE_CHANNEL_H
#define NPI_WIRE_CHANNEL_H

#include <sys/types.h>

#include "wire/protocol.h"

/* Zeroes the frame and sets its type, request number and status. */
void npi_control_init(struct npi_control_frame *frame, enum npi_control_type type, uint32_t request, int status);

/*
 * Sends a frame with n_fds descriptors, which stay the caller's. Never blocks. 0; NPI_SOCKET_AGAIN: the
 * socket is full; NPI_SOCKET_END: the other side is gone; < 0 as npi_socket_send().
 */
int npi_control_send(int socket, struct npi_control_frame *frame, const int *fds, int n_fds);

/*
 * Receives one frame; descriptors in fds[NPI_CONTROL_FDS_MAX], *n_fds of them, are the caller's. Never
 * blocks. 0; NPI_SOCKET_AGAIN; NPI_SOCKET_END; NP_ERR_VERSION: another protocol version (the frame is
 * filled); NP_ERR_PROTOCOL: anything else that is no frame. On failure every descriptor is closed.
 */
int npi_control_receive(int socket, struct npi_control_frame *frame, int fds[NPI_CONTROL_FDS_MAX], int *n_fds);

/* The same, where the socket notes senders (npi_socket_note_senders()): *sender, 0: nobody is known. */
int npi_control_receive_from(int socket, struct npi_control_frame *frame, int fds[NPI_CONTROL_FDS_MAX], int *n_fds,
                             pid_t *sender);

/* A client's answer to CHALLENGE; as npi_control_send(). */
int npi_control_prove(int socket, const struct npi_control_frame *challenge);

/* Name of a frame type for logs; "unknown" for others. */
const char *npi_control_type_text(unsigned type);

/* Closes n descriptors and sets them to -1. */
void npi_control_close_fds(int *fds, int n);

#endif
