/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that was here before comes back with a new socket: because its old one broke, or because its broker died
 * and this one adopted the instance.
 *
 *   ATTACH          who it was: index, version, token, and the same process
 *   ENDPOINTS,      what it has; an endpoint that it does not name was opened by a request whose answer never
 *   SEGMENTS_HELD   arrived, and is closed; such a segment is taken back
 *   ATTACHED        then it is told all that it may have missed, and is a client like any other
 */
#ifndef NPI_DAEMON_ATTACH_H
#define NPI_DAEMON_ATTACH_H

#include "daemon/requests.h"

struct npi_broker;

enum npi_request_result npi_attach_begin(struct npi_session *session, const struct npi_control_frame *frame);
int npi_attach_endpoints(struct npi_client *client, const struct npi_control_frame *frame);
int npi_attach_segments(struct npi_client *client, const struct npi_control_frame *frame);
int npi_attach_finish(struct npi_client *client, const struct npi_control_frame *frame);

/* A hello is said again because the answer never came: what was made for the first one is nobody's. */
void npi_attach_forget_unborn(struct npi_broker *broker, const struct npi_session *session, uint64_t token);

/* A successor asks for the instance: answers, and ends this broker without touching anything of it. */
enum npi_request_result npi_takeover_yield(struct npi_session *session, const struct npi_control_frame *frame);

#endif
