/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the broker and its keeper say to each other: messages of one fixed size over a Unix SOCK_SEQPACKET
 * connection, the descriptors beside the message that names them.
 *
 * The keeper holds a copy of every descriptor that a broker's successor needs. What is kept is a small set of
 * descriptors under a tag; keeping a tag again replaces it, dropping one that is not there is fine, so whoever is not
 * sure says it again.
 *
 *   KEEP  tag, data, descriptors     no answer
 *   DROP  tag                        no answer
 *   GIVE                             answered by an ITEM for each set that is kept, then LAST
 *   END                              the keeper closes everything and ends; what waits before it is not read
 */
#ifndef NPI_DAEMON_KEEPER_PROTOCOL_H
#define NPI_DAEMON_KEEPER_PROTOCOL_H

#include <stdint.h>

#define NPI_KEEPER_MAGIC UINT32_C(0x504b504e) /* "NPKP" */
enum { NPI_KEEPER_VERSION = 1, NPI_KEEPER_FDS_MAX = 5, NPI_KEEPER_DATA = 2 };

enum npi_keeper_type {
  NPI_KEEPER_KEEP = 1,
  NPI_KEEPER_DROP = 2,
  NPI_KEEPER_GIVE = 3,
  NPI_KEEPER_END = 4,
  NPI_KEEPER_ITEM = 5,
  NPI_KEEPER_LAST = 6,
};

/* The first descriptor of a kind that has a process is its pidfd: the keeper stays as long as one of them lives. */
enum npi_kept_kind {
  NPI_KEPT_REGISTRY = 1, /* registry, writable. index, version: 0 */
  NPI_KEPT_CLIENT = 2,   /* pidfd, page, ledger, events, credits. index, version: of the client's record */
  NPI_KEPT_SEGMENT = 3,  /* segment, writable. index, version: of its record */
  NPI_KEPT_LISTENER = 4, /* socket. index: listener; version: worker; data: what it had dropped, see workers.h */
  NPI_KEPT_WORKER = 5,   /* pidfd. index: worker; version: its process; data[0]: its start time */
};

struct npi_keeper_tag {
  uint32_t kind, index, version;
};

struct npi_keeper_message {
  uint32_t magic;
  uint16_t version;
  uint16_t type;
  struct npi_keeper_tag tag;
  uint32_t n_fds;
  uint32_t count; /* LAST: items before it */
  uint32_t pid;   /* LAST: the keeper's */
  uint64_t data[NPI_KEEPER_DATA];
};
_Static_assert(sizeof(struct npi_keeper_message) == 48, "a successor may be of another build");

static inline int npi_kept_has_process(uint32_t kind) {
  return kind == NPI_KEPT_CLIENT || kind == NPI_KEPT_WORKER;
}

#endif
