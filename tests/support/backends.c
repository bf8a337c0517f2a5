/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/backends.h"

#include <stdio.h>

const char *memory_backend_text(int backend) {
  return backend == MEMFD ? "memfd" : "posix";
}

const char *ingest_backend_text(int backend) {
  return backend == EPOLL ? "epoll" : "io_uring";
}

void instance_start_with(struct instance *instance, int backend, const char *memory, const char *rest) {
  char yaml[2048];
  int n = snprintf(yaml, sizeof yaml, "memory: { backend: %s, %s }\n%s", memory_backend_text(backend), memory, rest);
  cr_assert_lt(n, (int)sizeof yaml);
  instance_start(instance, yaml, NULL);
}
