/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a client may ask, checked and answered. Everything in a frame is a claim: texts may lack their end,
 * indices may be anybody's. A request that cannot be granted is answered with a status and words; only a
 * frame that no honest client sends ends the session.
 */
#ifndef NPI_DAEMON_REQUESTS_H
#define NPI_DAEMON_REQUESTS_H

#include "daemon/session.h"

enum npi_request_result {
  NPI_REQUEST_DONE,
  NPI_REQUEST_BROKEN,           /* against the protocol, npi_detail() says how */
  NPI_REQUEST_GOODBYE,          /* the client has left */
  NPI_REQUEST_REFUSED_FOR_GOOD, /* hello was refused; the session ends, or has ended */
};

enum npi_request_result npi_request_handle(struct npi_session *session, const struct npi_control_frame *frame);

/* The first frame of a session whose peer is known: daemon/identity.h */
enum npi_request_result npi_request_introduce(struct npi_session *session, const struct npi_control_frame *frame);

/* Its name in log lines. */
const char *npi_request_text(unsigned type);

/* Answers a hello that cannot be granted with the detail text and ends the session. */
void npi_request_refuse_hello(struct npi_session *session, const struct npi_control_frame *frame, int status);

/* Somebody that the request concerns is away and expected back; 0: it can be handled now. */
int npi_request_must_wait(const struct npi_client *client, const struct npi_control_frame *frame);
/* Whoever is still away has been waited for long enough. */
void npi_request_wait_no_more(const struct npi_client *client, const struct npi_control_frame *frame);

#endif
