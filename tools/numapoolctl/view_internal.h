/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the two halves of the view: view.c (the registry) and view_memory.c (pages and ledgers). */
#ifndef NUMAPOOLCTL_VIEW_INTERNAL_H
#define NUMAPOOLCTL_VIEW_INTERNAL_H

#include "view.h"

enum { NPI_VIEW_NO_FD = -1, NPI_VIEW_NOT_LOOKED = -2 };

int npi_view_read_at(int fd, uint64_t offset, void *to, uint64_t n);
int npi_view_make_fds(struct npi_view *view);
void npi_view_forget_fds(struct npi_view *view);

#endif
