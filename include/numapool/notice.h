/* SPDX-License-Identifier: Apache-2.0 */
/* What happened to a client, or to others that it shared events with, while the program was busy with events. */
#ifndef NUMAPOOL_NOTICE_H
#define NUMAPOOL_NOTICE_H

#include <stdint.h>

enum np_notice_kind {
  NP_NOTICE_BROKER_LOST = 1,   /* events go on; nothing can be opened or leased until the broker is back */
  NP_NOTICE_BROKER_BACK = 2,   /* the client is what it was before */
  NP_NOTICE_INSTANCE_GONE = 3, /* the broker began anew: this client keeps what it has, and should connect anew */
  NP_NOTICE_PEER_DIED = 4,     /* a process that shared events with this client ended without closing */
  NP_NOTICE_PEER_LIED = 5,     /* one end broke the rules of shared memory: that connection is closed */
  NP_NOTICE_EVICTED = 6, /* by the operator's policy, or after a breach of protocol, the broker shuts this client out */
  NP_NOTICE_REFUSED = 7, /* a connection to a peer could not be made or kept here, for want of memory or descriptors */
};

struct np_notice {
  uint32_t size;  /* of this struct as the caller knows it: set it to sizeof */
  uint32_t kind;  /* enum np_notice_kind */
  uint32_t pid;   /* of whom it speaks; 0: nobody, or several */
  uint32_t count; /* how many like it this one stands for */
  char text[160]; /* in words, always ended by NUL */
};

#endif
