/* SPDX-License-Identifier: Apache-2.0 */
/* Where an instance's runtime directory and control socket are; broker, clients and tools ask here. */
#ifndef NPI_WIRE_LOCATE_H
#define NPI_WIRE_LOCATE_H

#include <stddef.h>

/*
 * The directory that a broker of this user makes by default: $XDG_RUNTIME_DIR/numapool/INSTANCE, for root
 * without that variable /run/numapool/INSTANCE, else /tmp/numapool-UID/INSTANCE. NP_ERR_ARGUMENT: does not fit.
 */
int npi_locate_default(const char *instance, char *path, size_t bytes);

/*
 * The control socket of a running instance: $NUMAPOOL_SOCKET, else the first that exists below
 * $XDG_RUNTIME_DIR/numapool, /run/numapool, /tmp/numapool-UID. Where none exists: the first of them by
 * name, so that the connect that fails can say where it looked.
 */
int npi_locate_socket(const char *instance, char *path, size_t bytes);

/* NULL: $NUMAPOOL_INSTANCE, else "default". */
const char *npi_locate_instance(const char *instance);

#endif
