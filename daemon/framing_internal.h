/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One decoder for each framing, all with the meaning of npi_framing_next(). The dispatcher has cleared *frame,
 * *needed and *error before; a decoder writes what differs from that.
 */
#ifndef NPI_DAEMON_FRAMING_INTERNAL_H
#define NPI_DAEMON_FRAMING_INTERNAL_H

#include "daemon/framing.h"

/* framing_binary.c: the length is known before the payload; nothing to remember between calls. */
enum npi_frame_result npi_framing_next_length_prefix(const struct npi_framing *framing, const uint8_t *bytes,
                                                     uint64_t n, struct npi_frame *frame, uint64_t *needed,
                                                     enum npi_frame_error *error);
enum npi_frame_result npi_framing_next_fixed(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                             struct npi_frame *frame, uint64_t *needed);
enum npi_frame_result npi_framing_next_eventstream(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                                   struct npi_frame *frame, uint64_t *needed,
                                                   enum npi_frame_error *error);
#define NPI_FRAMING_EVENTSTREAM_HEADER 7 /* length of the rest 4, priority 1, length of topic 2 */

/* framing_text.c: lines and octet counts. */
enum npi_frame_result npi_framing_next_newline(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                               uint64_t *scan_from, struct npi_frame *frame,
                                               enum npi_frame_error *error);
enum npi_frame_result npi_framing_next_syslog(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                              uint64_t *scan_from, struct npi_frame *frame, uint64_t *needed,
                                              enum npi_frame_error *error);

/* What newline or syslog left over with NEED_MORE, frame->consumed at its first byte, now that nothing follows. */
enum npi_frame_result npi_framing_finish_text(const struct npi_framing *framing, const uint8_t *bytes, uint64_t n,
                                              uint64_t *scan_from, struct npi_frame *frame,
                                              enum npi_frame_error *error);

#endif
