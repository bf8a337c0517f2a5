/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/locate.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"

enum { PLACES = 3 };

/* The i-th place where an instance's directory may be; 0: none of that number here. */
static int place(int i, const char *instance, char *path, size_t bytes) {
  const char *runtime = getenv("XDG_RUNTIME_DIR");
  int n = 0;
  if (i == 0 && runtime != NULL && runtime[0] == '/') {
    n = snprintf(path, bytes, "%s/numapool/%s", runtime, instance);
  } else if (i == 1) {
    n = snprintf(path, bytes, "/run/numapool/%s", instance);
  } else if (i == 2) {
    n = snprintf(path, bytes, "/tmp/numapool-%u/%s", (unsigned)geteuid(), instance);
  }
  return n > 0 && (size_t)n < bytes;
}

int npi_locate_default(const char *instance, char *path, size_t bytes) {
  if (place(0, instance, path, bytes)) return 0;
  if (place(geteuid() == 0 ? 1 : 2, instance, path, bytes)) return 0;
  return npi_fail(NP_ERR_ARGUMENT, "the runtime directory of instance %s does not fit in %zu bytes: set runtime_dir",
                  instance, bytes);
}

/*
 * A directory below /tmp is only believed where it is ours and nobody else may write in it: anybody may have made it,
 * and could put another socket there between our look and our connect.
 */
static int is_ours(const char *path) {
  struct stat status;
  return lstat(path, &status) == 0 && S_ISDIR(status.st_mode) && status.st_uid == geteuid() &&
         (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

static int trusted(int i, const char *folder) {
  char parent[200];
  if (i != 2) return 1;
  snprintf(parent, sizeof parent, "/tmp/numapool-%u", (unsigned)geteuid());
  return is_ours(parent) && is_ours(folder);
}

int npi_locate_socket(const char *instance, char *path, size_t bytes) {
  const char *given = getenv("NUMAPOOL_SOCKET");
  char first[256] = "";
  if (given != NULL && given[0] != '\0') {
    if ((size_t)snprintf(path, bytes, "%s", given) < bytes) return 0;
    return npi_fail(NP_ERR_ARGUMENT, "NUMAPOOL_SOCKET=%s is too long for a socket path", given);
  }
  for (int i = 0; i < PLACES; i++) {
    char folder[200];
    char socket[256];
    struct stat status;
    if (!place(i, instance, folder, sizeof folder)) continue;
    snprintf(socket, sizeof socket, "%s/control.sock", folder);
    if (first[0] == '\0') snprintf(first, sizeof first, "%s", socket);
    if (stat(socket, &status) != 0 || !S_ISSOCK(status.st_mode) || !trusted(i, folder)) continue;
    if ((size_t)snprintf(path, bytes, "%s", socket) < bytes) return 0;
  }
  if (first[0] != '\0' && (size_t)snprintf(path, bytes, "%s", first) < bytes) return 0;
  return npi_fail(NP_ERR_ARGUMENT, "the socket path of instance %s does not fit in %zu bytes", instance, bytes);
}

const char *npi_locate_instance(const char *instance) {
  if (instance != NULL && instance[0] != '\0') return instance;
  instance = getenv("NUMAPOOL_INSTANCE");
  return instance != NULL && instance[0] != '\0' ? instance : "default";
}
