/* SPDX-License-Identifier: Apache-2.0 */
/* Where the broker of an instance is to be found: the rule that broker and clients share. */
#ifndef NPI_WIRE_LOCATE_H
#define NPI_WIRE_LOCATE_H

#include <stddef.h>

/*
 * The control socket of an instance. Tried in order, the first where a socket is: $NUMAPOOL_SOCKET (taken as it is),
 * $XDG_RUNTIME_DIR/numapool/INSTANCE, /run/numapool/INSTANCE, /tmp/numapool-UID/INSTANCE (only where that folder
 * belongs to this user or root: anybody may make one there). NP_ERR_NO_BROKER names all places that were looked at.
 */
int npi_locate_socket(const char *instance, char *path, size_t bytes);

/* The folder that holds it. */
int npi_locate_runtime(const char *instance, char *path, size_t bytes);

#endif
