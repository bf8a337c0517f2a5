/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Has a client left, though its process lives?
 *
 * The socket's end says little: it is closed by an exec, by a program that closes what it does not know, and by a client
 * that ended while there was no broker to say goodbye to. Sound signs are two: the client's own word in its page, written
 * when it unmapped everything else; and that the process maps the page no more, which an exec brings about and nothing
 * can undo. The second needs the right to look (the same user or root, as for a debugger): where that is missing, nothing
 * is known, and the client stays until its process ends.
 */
#ifndef NPI_DAEMON_DEPARTED_H
#define NPI_DAEMON_DEPARTED_H

struct npi_client;

enum npi_departed {
  NPI_DEPARTED_NOT = 0, /* or not to be known */
  NPI_DEPARTED_FAREWELL,
  NPI_DEPARTED_UNMAPPED,
  NPI_DEPARTED_UNBORN, /* has never mapped it: the answer to its hello was lost, or is still under way */
};

enum npi_departed npi_client_departed(const struct npi_client *client);

#endif
