/* SPDX-License-Identifier: Apache-2.0 */
#include "os/os_cgroup.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 1024 };

/* What the files of one version are called. */
struct version {
  const char *limit, *usage;
  const char *reclaimable[2]; /* shared memory is in none of them: the kernel counts it as anonymous */
};
static const struct version version_1 = {
    "memory.limit_in_bytes", "memory.usage_in_bytes", {"total_inactive_file ", "total_active_file "}};
static const struct version version_2 = {"memory.max", "memory.current", {"inactive_file ", "active_file "}};

/* The beginning of a file as text; 0: it cannot be read. */
static size_t read_text(const char *folder, const char *name, char *text, size_t size) {
  char path[PATH_BYTES + 64];
  snprintf(path, sizeof path, "%s%s%s", folder, name[0] != '\0' ? "/" : "", name);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  size_t n = 0;
  ssize_t got;
  while (n + 1 < size && (got = read(fd, text + n, size - 1 - n)) > 0) n += (size_t)got;
  close(fd);
  text[n] = '\0';
  return n;
}

/* Of one group; UINT64_MAX: no limit ("max"), or no such group. */
static uint64_t room_of(const char *folder, const struct version *version) {
  char text[8192];
  if (read_text(folder, version->limit, text, sizeof text) == 0 || text[0] < '0' || text[0] > '9') return UINT64_MAX;
  uint64_t limit = strtoull(text, NULL, 10);
  /* Version 1 says a number where there is no limit: the greatest multiple of a page. */
  if (limit >= UINT64_C(1) << 62 || read_text(folder, version->usage, text, sizeof text) == 0) return UINT64_MAX;
  uint64_t usage = strtoull(text, NULL, 10), reclaimable = 0;
  if (read_text(folder, "memory.stat", text, sizeof text) > 0) {
    for (const char *line = text; line != NULL; line = strchr(line, '\n'), line = line != NULL ? line + 1 : NULL) {
      for (size_t i = 0; i < sizeof version->reclaimable / sizeof version->reclaimable[0]; i++) {
        size_t n = strlen(version->reclaimable[i]);
        if (strncmp(line, version->reclaimable[i], n) == 0) reclaimable += strtoull(line + n, NULL, 10);
      }
    }
  }
  if (reclaimable > usage) reclaimable = usage;
  usage -= reclaimable;
  return limit > usage ? limit - usage : 0;
}

/* The path of this process in the hierarchy that has memory. NULL: none is named. */
static const struct version *find_membership(char *text, char path[PATH_BYTES]) {
  const struct version *found = NULL;
  char *rest = NULL;
  for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
    char *controllers = strchr(line, ':');
    char *at = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
    if (at == NULL || strlen(at + 1) >= PATH_BYTES) continue;
    *at++ = '\0';
    controllers++;
    if (strcmp(controllers, "memory") == 0 || strncmp(controllers, "memory,", 7) == 0 ||
        strstr(controllers, ",memory") != NULL) {
      snprintf(path, PATH_BYTES, "%s", at);
      return &version_1; /* then version 2 has no memory to speak of */
    }
    if (controllers[0] == '\0') {
      snprintf(path, PATH_BYTES, "%s", at);
      found = &version_2;
    }
  }
  return found;
}

void npi_cgroup_memory_room_at(const char *membership, const char *root, uint64_t *bytes, char *group,
                               size_t group_size) {
  char text[4096], path[PATH_BYTES], folder[2 * PATH_BYTES];
  *bytes = UINT64_MAX;
  if (group != NULL && group_size > 0) group[0] = '\0';
  if (read_text(membership, "", text, sizeof text) == 0) return;
  const struct version *version = find_membership(text, path);
  if (version == NULL) return;
  /* In a container the path may be one of the host, of which only the last part is mounted here: then the root is ours. */
  for (;;) {
    size_t n = strlen(path);
    while (n > 0 && path[n - 1] == '/') path[--n] = '\0';
    snprintf(folder, sizeof folder, "%s%s%s", root, version == &version_1 ? "/memory" : "", path);
    uint64_t room = strlen(folder) < PATH_BYTES ? room_of(folder, version) : UINT64_MAX;
    if (room < *bytes) {
      *bytes = room;
      if (group != NULL) snprintf(group, group_size, "%s", folder);
    }
    char *slash = strrchr(path, '/');
    if (slash == NULL) return;
    *slash = '\0';
  }
}

void npi_cgroup_memory_room(uint64_t *bytes, char *group, size_t group_size) {
  npi_cgroup_memory_room_at("/proc/self/cgroup", "/sys/fs/cgroup", bytes, group, group_size);
}

int npi_cgroup_is_frozen(pid_t pid) {
  char membership[64], text[4096], folder[2 * PATH_BYTES], state[256], *rest = NULL;
  int is_frozen = 0;
  snprintf(membership, sizeof membership, "/proc/%d/cgroup", (int)pid);
  if (read_text(membership, "", text, sizeof text) == 0) return 0;
  for (char *line = strtok_r(text, "\n", &rest); line != NULL && !is_frozen; line = strtok_r(NULL, "\n", &rest)) {
    const char *controllers = strchr(line, ':');
    const char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
    if (path == NULL || strlen(++path) >= PATH_BYTES - 32) continue;
    if (strncmp(controllers, "::", 2) == 0) {
      snprintf(folder, sizeof folder, "/sys/fs/cgroup%s", path);
      is_frozen = read_text(folder, "cgroup.events", state, sizeof state) > 0 && strstr(state, "frozen 1") != NULL;
    } else if (strncmp(controllers, ":freezer:", 9) == 0) {
      snprintf(folder, sizeof folder, "/sys/fs/cgroup/freezer%s", path);
      is_frozen = read_text(folder, "freezer.state", state, sizeof state) > 0 && strncmp(state, "FROZEN", 6) == 0;
    }
  }
  return is_frozen;
}
