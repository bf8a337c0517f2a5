/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/locate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"

/* A folder in /tmp is believed only where nobody else can have made or filled it. */
static int folder_is_ours(const char *path) {
  struct stat facts;
  return lstat(path, &facts) == 0 && S_ISDIR(facts.st_mode) && (facts.st_uid == geteuid() || facts.st_uid == 0) &&
         (facts.st_mode & S_IWOTH) == 0;
}

static int has_socket(const char *folder) {
  char path[512];
  struct stat facts;
  snprintf(path, sizeof path, "%s/control.sock", folder);
  return stat(path, &facts) == 0 && S_ISSOCK(facts.st_mode);
}

int npi_locate_runtime(const char *instance, char *path, size_t bytes) {
  const char *runtime = getenv("XDG_RUNTIME_DIR");
  char shared[64];
  int n;
  if (runtime != NULL && runtime[0] == '/') {
    n = snprintf(path, bytes, "%s/numapool/%s", runtime, instance);
    if (n > 0 && (size_t)n < bytes && has_socket(path)) return 0;
  }
  n = snprintf(path, bytes, "/run/numapool/%s", instance);
  if (n > 0 && (size_t)n < bytes && has_socket(path)) return 0;
  snprintf(shared, sizeof shared, "/tmp/numapool-%u", (unsigned)geteuid());
  n = snprintf(path, bytes, "%s/%s", shared, instance);
  if (n > 0 && (size_t)n < bytes && folder_is_ours(shared) && has_socket(path)) return 0;
  path[0] = '\0';
  return npi_fail(NP_ERR_NO_BROKER,
                  "no broker of instance \"%s\": no control.sock below %s%s/run/numapool/%s or %s/%s; start numapoold, "
                  "or check the instance name",
                  instance, runtime != NULL ? runtime : "", runtime != NULL ? "/numapool, " : "", instance, shared,
                  instance);
}

int npi_locate_socket(const char *instance, char *path, size_t bytes) {
  const char *given = getenv("NUMAPOOL_SOCKET");
  if (given != NULL && given[0] != '\0') {
    if ((size_t)snprintf(path, bytes, "%s", given) < bytes) return 0;
    return npi_fail(NP_ERR_ARGUMENT, "$NUMAPOOL_SOCKET is longer than %zu bytes: \"%.80s...\"", bytes - 1, given);
  }
  int status = npi_locate_runtime(instance, path, bytes);
  if (status != 0) return status;
  size_t length = strlen(path);
  if ((size_t)snprintf(path + length, bytes - length, "/control.sock") < bytes - length) return 0;
  return npi_fail(NP_ERR_ARGUMENT, "the socket's path of instance \"%s\" is longer than %zu bytes", instance,
                  bytes - 1);
}
