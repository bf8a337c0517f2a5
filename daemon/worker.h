/* SPDX-License-Identifier: Apache-2.0 */
/* The ingest worker: a process of its own, started by the broker, an ordinary publisher to everybody else. */
#ifndef NPI_DAEMON_WORKER_H
#define NPI_DAEMON_WORKER_H

/*
 * Runs until the broker asks for the end or is gone; returns the exit status of the process. setup_fd: a memfd with a
 * struct npi_worker_setup. The calling thread becomes the only one that receives, on the node that the setup names.
 */
int npi_worker_main(int setup_fd);

#endif
