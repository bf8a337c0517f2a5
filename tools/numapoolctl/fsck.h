/* SPDX-License-Identifier: Apache-2.0 */
/* fsck's checks: each looks at one view and says what it finds, in words; cmd_fsck.c decides what to believe. */
#ifndef NUMAPOOLCTL_FSCK_H
#define NUMAPOOLCTL_FSCK_H

#include "view.h"

struct npi_fsck;

/* A line about something that is not as it must be. */
void npi_fsck_find(struct npi_fsck *fsck, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A line about something that could not be judged. */
void npi_fsck_note(struct npi_fsck *fsck, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* fsck_registry.c: records, indices, sums. */
void npi_fsck_registry(struct npi_fsck *fsck, const struct npi_view *view);
/* fsck_segments.c: segments against budgets, names and what is in /dev/shm. */
void npi_fsck_segments(struct npi_fsck *fsck, const struct npi_view *view);
/* fsck_ledgers.c: ledgers in themselves, against leases, and against the rings of their connections. */
void npi_fsck_ledgers(struct npi_fsck *fsck, struct npi_view *view);

#endif
