/* SPDX-License-Identifier: Apache-2.0 */
#include "shm/leftovers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/status.h"
#include "os/os_memory.h"

void npi_shm_name(char *text, size_t bytes, const char *instance, uid_t uid, const char *kind, int64_t id) {
  if (id < 0) {
    snprintf(text, bytes, "numapool.%s.%u.%s", instance, (unsigned)uid, kind);
  } else {
    snprintf(text, bytes, "numapool.%s.%u.%s.%" PRId64, instance, (unsigned)uid, kind, id);
  }
}

/* "kind" or "kind.id" and nothing else: an instance may be called like another one with a dot and more. */
static int is_kind_and_id(const char *rest) {
  size_t letters = strspn(rest, "abcdefghijklmnopqrstuvwxyz");
  if (letters == 0) return 0;
  rest += letters;
  if (*rest == '\0') return 1;
  if (*rest++ != '.') return 0;
  size_t digits = strspn(rest, "0123456789");
  return digits > 0 && rest[digits] == '\0';
}

/* Whether the rest of a name is that of a segment which is still needed, or of another kind of object. */
static int is_kept(const char *rest, npi_shm_is_needed is_needed, void *context) {
  if (is_needed == NULL) return 0;
  if (strncmp(rest, "seg.", 4) != 0) return 1;
  return is_needed(context, strtoull(rest + 4, NULL, 10));
}

static int remove_names(const char *instance, uid_t uid, npi_shm_is_needed is_needed, void *context,
                        uint32_t *n_removed) {
  char prefix[256];
  uint32_t n = 0;
  int status = 0;
  if (n_removed != NULL) *n_removed = 0;
  int length = snprintf(prefix, sizeof prefix, "numapool.%s.%u.", instance, (unsigned)uid);
  if (length >= (int)sizeof prefix)
    return npi_fail(NP_ERR_ARGUMENT, "instance name \"%.60s...\" is too long", instance);

  DIR *folder = opendir("/dev/shm");
  if (folder == NULL) return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot list /dev/shm (is it mounted?)");
  for (;;) {
    struct stat facts;
    errno = 0;
    const struct dirent *entry = readdir(folder);
    if (entry == NULL) {
      if (errno != 0) status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot list /dev/shm");
      break;
    }
    if (strncmp(entry->d_name, prefix, (size_t)length) != 0 || !is_kind_and_id(entry->d_name + length)) continue;
    if (is_kept(entry->d_name + length, is_needed, context)) continue;
    if (fstatat(dirfd(folder), entry->d_name, &facts, AT_SYMLINK_NOFOLLOW) != 0) continue; /* just gone */
    if (!S_ISREG(facts.st_mode) || facts.st_uid != uid) {
      npi_log(NPI_LOG_WARNING, "shm.leftover_kept", "name=%s owner=%u reason=\"not a file of user %u\"", entry->d_name,
              (unsigned)facts.st_uid, (unsigned)uid);
      continue;
    }
    int result = npi_memory_unlink_posix(entry->d_name);
    if (result == 0) {
      n++;
      npi_log(NPI_LOG_INFO, "shm.leftover_removed", "name=%s bytes=%" PRIu64, entry->d_name, (uint64_t)facts.st_size);
    } else if (result != NP_ERR_NOT_FOUND) {
      status = result; /* go on with the others */
    }
  }
  closedir(folder);
  if (n_removed != NULL) *n_removed = n;
  return status;
}

int npi_shm_remove_leftovers(const char *instance, uid_t uid, uint32_t *n_removed) {
  return remove_names(instance, uid, NULL, NULL, n_removed);
}

int npi_shm_remove_unneeded(const char *instance, uid_t uid, npi_shm_is_needed is_needed, void *context,
                            uint32_t *n_removed) {
  return remove_names(instance, uid, is_needed, context, n_removed);
}
