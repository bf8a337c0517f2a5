/* SPDX-License-Identifier: Apache-2.0 */
#include "view.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_cgroup.h"
#include "os/os_memory.h"
#include "os/os_process.h"
#include "shm/leftovers.h"
#include "view_internal.h"

#define REGISTRY_BYTES_MAX (UINT64_C(1) << 32)

/* ---- which instances there are ---------------------------------------------------------------------- */

/* Splits "numapool.<instance>.<uid>.registry"; the instance's name may have dots of its own. */
static int parse_registry_name(const char *name, char *instance, size_t bytes, uid_t *uid) {
  static const char prefix[] = "numapool.", suffix[] = ".registry";
  size_t length = strlen(name);
  if (strncmp(name, prefix, sizeof prefix - 1) != 0 || length <= sizeof prefix + sizeof suffix) return 0;
  const char *end = name + length - (sizeof suffix - 1);
  if (strcmp(end, suffix) != 0) return 0;
  const char *dot = end - 1;
  while (dot > name && *dot >= '0' && *dot <= '9') dot--;
  const char *begin = name + sizeof prefix - 1;
  if (*dot != '.' || dot + 1 == end || dot <= begin || (size_t)(dot - begin) >= bytes) return 0;
  memcpy(instance, begin, (size_t)(dot - begin));
  instance[dot - begin] = '\0';
  *uid = (uid_t)strtoul(dot + 1, NULL, 10);
  return 1;
}

unsigned npi_view_list_instances(char *text, size_t bytes) {
  char instance[NPI_INSTANCE_BYTES];
  unsigned n = 0;
  size_t used = 0;
  uid_t uid;
  text[0] = '\0';
  DIR *folder = opendir("/dev/shm");
  if (folder == NULL) return 0;
  for (const struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
    if (!parse_registry_name(entry->d_name, instance, sizeof instance, &uid)) continue;
    int length = snprintf(text + used, bytes - used, "%s%s (user %u)", n > 0 ? ", " : "", instance, (unsigned)uid);
    if (length < 0 || (size_t)length >= bytes - used) {
      text[used] = '\0';
      break;
    }
    used += (size_t)length;
    n++;
  }
  closedir(folder);
  return n;
}

/* Another user's instance of that name; 1: there is one. */
static int find_other(const char *instance, uid_t *uid) {
  char name[NPI_INSTANCE_BYTES];
  int found = 0;
  DIR *folder = opendir("/dev/shm");
  if (folder == NULL) return 0;
  for (const struct dirent *entry = readdir(folder); entry != NULL && !found; entry = readdir(folder)) {
    found =
        parse_registry_name(entry->d_name, name, sizeof name, uid) && strcmp(name, instance) == 0 && *uid != geteuid();
  }
  closedir(folder);
  return found;
}

static int no_such_instance(const char *instance) {
  char others[512];
  if (npi_view_list_instances(others, sizeof others) == 0) {
    return npi_fail(NP_ERR_NOT_FOUND,
                    "there is no instance \"%s\", nor any other on this machine: start one with numapoold", instance);
  }
  return npi_fail(NP_ERR_NOT_FOUND, "there is no instance \"%s\"; there are: %s (choose with --instance)", instance,
                  others);
}

/* ---- the registry ------------------------------------------------------------------------------------ */

struct wanted_table {
  const struct npi_table *table;
  const char *what;
  uint32_t bytes;
  const void **records;
  uint32_t *count;
};

#define TABLE(name) \
  { &header->name, #name, sizeof *view->name, (const void **)(uintptr_t)&view->name, &view->n_##name }

static int check_header(struct npi_view *view) {
  const struct npi_registry_header *header = view->header;
  struct wanted_table tables[] = {TABLE(nodes),       TABLE(clients),     TABLE(channels), TABLE(publishers),
                                  TABLE(subscribers), TABLE(connections), TABLE(segments), TABLE(listeners)};
  if (npi_load_relaxed_u64(&header->magic) != NPI_MAGIC_REGISTRY) {
    /* It comes last, when memory is ready. */
    if (npi_load_relaxed_u64(&header->magic) == 0 && npi_view_broker(view) != NPI_PROCESS_DEAD) {
      return npi_fail(NP_ERR_STATE, "the broker of instance \"%s\" is starting (process %u): try again in a moment",
                      view->instance, header->broker_pid);
    }
    return npi_fail(NP_ERR_CORRUPT, "/dev/shm/%s is not a registry, or its broker ended while it made it", view->name);
  }
  if (header->layout_version != NPI_LAYOUT_VERSION) {
    return npi_fail(NP_ERR_VERSION,
                    "the layout of instance \"%s\" is version %u, this program knows %u: use the numapoolctl of its "
                    "release (%.23s)",
                    view->instance, header->layout_version, NPI_LAYOUT_VERSION, header->version);
  }
  for (size_t i = 0; i < NPI_ARRAY_COUNT(tables); i++) {
    const struct npi_table *table = tables[i].table;
    if (table->bytes != tables[i].bytes || table->offset % 8 != 0 || table->offset > view->n_bytes ||
        (uint64_t)table->count * table->bytes > view->n_bytes - table->offset) {
      return npi_fail(NP_ERR_CORRUPT,
                      "/dev/shm/%s: table %s of %u records of %u bytes at %" PRIu64 " is not inside %" PRIu64 " bytes",
                      view->name, tables[i].what, table->count, table->bytes, table->offset, view->n_bytes);
    }
    *tables[i].records = view->bytes + table->offset;
    *tables[i].count = table->count;
  }
  if (header->page_endpoints_offset > header->page_bytes || header->page_listeners_offset > header->page_bytes ||
      header->page_rings_offset > header->page_bytes) {
    return npi_fail(NP_ERR_CORRUPT, "/dev/shm/%s: a page of %" PRIu64 " bytes does not hold its parts", view->name,
                    header->page_bytes);
  }
  return 0;
}

int npi_view_read_at(int fd, uint64_t offset, void *to, uint64_t n) {
  uint8_t *at = to;
  while (n > 0) {
    ssize_t got = pread(fd, at, n, (off_t)offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot read shared memory");
    if (got == 0) return npi_fail(NP_ERR_CORRUPT, "shared memory ends %" PRIu64 " bytes early", n);
    at += got;
    offset += (uint64_t)got;
    n -= (uint64_t)got;
  }
  return 0;
}

static int copy_registry(struct npi_view *view) {
  int status = npi_view_read_at(view->fd, 0, view->bytes, view->n_bytes);
  return status != 0 ? status : check_header(view);
}

static int open_by_name(struct npi_view *view, const char *instance) {
  uid_t other;
  view->uid = geteuid();
  npi_shm_name(view->name, sizeof view->name, instance, view->uid, "registry", -1);
  int status = npi_memory_open_posix(view->name, 0, &view->fd, &view->n_bytes);
  if (status != NP_ERR_NOT_FOUND) return status;
  if (!find_other(instance, &other)) return no_such_instance(instance);
  view->uid = other;
  npi_shm_name(view->name, sizeof view->name, instance, other, "registry", -1);
  status = npi_memory_open_posix(view->name, 0, &view->fd, &view->n_bytes);
  if (status == NP_ERR_DENIED) {
    return npi_fail(NP_ERR_DENIED, "instance \"%s\" belongs to user %u: run numapoolctl as that user, or as root",
                    instance, (unsigned)other);
  }
  return status == NP_ERR_NOT_FOUND ? no_such_instance(instance) : status;
}

static int is_instance_name(const char *name) {
  size_t length = strlen(name);
  if (length == 0 || length >= NPI_INSTANCE_BYTES) return 0;
  return strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") == length;
}

int npi_view_open(struct npi_view *view, const char *instance) {
  memset(view, 0, sizeof *view);
  view->fd = -1;
  if (!is_instance_name(instance)) {
    return npi_fail(NP_ERR_ARGUMENT, "\"%.60s\" cannot name an instance; use up to 32 of a-z 0-9 . _ -", instance);
  }
  snprintf(view->instance, sizeof view->instance, "%s", instance);
  int status = open_by_name(view, instance);
  if (status != 0) goto fail;
  if (view->n_bytes < sizeof *view->header || view->n_bytes > REGISTRY_BYTES_MAX) {
    status = npi_fail(NP_ERR_CORRUPT, "/dev/shm/%s has %" PRIu64 " bytes: not a registry", view->name, view->n_bytes);
    goto fail;
  }
  view->bytes = malloc(view->n_bytes);
  if (view->bytes == NULL) {
    status = npi_fail(NP_ERR_NO_MEMORY, "no memory for a copy of %" PRIu64 " bytes", view->n_bytes);
    goto fail;
  }
  view->header = (const void *)view->bytes;
  status = copy_registry(view);
  if (status == 0) status = npi_view_make_fds(view);
  if (status == 0) return 0;

fail:
  npi_view_close(view);
  return status;
}

int npi_view_refresh(struct npi_view *view) {
  npi_view_forget_fds(view);
  int status = copy_registry(view);
  if (status == 0 && view->n_clients != view->n_fds) {
    return npi_fail(NP_ERR_CORRUPT, "/dev/shm/%s changed from %u clients to %u while it was read", view->name,
                    view->n_fds, view->n_clients);
  }
  return status;
}

void npi_view_close(struct npi_view *view) {
  npi_view_forget_fds(view);
  free(view->page_fds);
  free(view->ledger_fds);
  free(view->bytes);
  if (view->fd >= 0) close(view->fd);
  memset(view, 0, sizeof *view);
  view->fd = -1;
}

/* ---- processes --------------------------------------------------------------------------------------- */

enum npi_process npi_view_process(uint32_t pid, uint64_t start_time) {
  uint64_t began = 0;
  char state = '?';
  if (pid == 0 || npi_process_start_time((pid_t)pid, &began) != 0 || began != start_time) return NPI_PROCESS_DEAD;
  if (npi_process_state((pid_t)pid, &state) != 0 || state == 'Z' || state == 'X') return NPI_PROCESS_DEAD;
  if (state == 'T' || state == 't' || npi_cgroup_is_frozen((pid_t)pid)) return NPI_PROCESS_STOPPED;
  return NPI_PROCESS_RUNNING;
}

enum npi_process npi_view_broker(const struct npi_view *view) {
  return npi_view_process(view->header->broker_pid, view->header->broker_start_time);
}

enum npi_process npi_view_client_process(const struct npi_view *view, uint32_t client) {
  if (client >= view->n_clients) return NPI_PROCESS_DEAD;
  return npi_view_process(view->clients[client].pid, view->clients[client].start_time);
}

const char *npi_process_word(enum npi_process process) {
  static const char *const words[] = {"running", "stopped", "dead"};
  return words[process];
}

/* ---- /dev/shm ---------------------------------------------------------------------------------------- */

int npi_view_has_object(const char *name) {
  char path[128];
  struct stat facts;
  snprintf(path, sizeof path, "/dev/shm/%s", name);
  return stat(path, &facts) == 0;
}

int npi_view_broker_has_open(const struct npi_view *view, const char *name) {
  char folder_path[48], path[320], target[256];
  int found = 0;
  if (npi_view_broker(view) == NPI_PROCESS_DEAD) return 0;
  snprintf(folder_path, sizeof folder_path, "/proc/%u/fd", view->header->broker_pid);
  DIR *folder = opendir(folder_path);
  if (folder == NULL) return 0;
  for (const struct dirent *entry = readdir(folder); entry != NULL && !found; entry = readdir(folder)) {
    snprintf(path, sizeof path, "%s/%s", folder_path, entry->d_name);
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n <= 0) continue;
    target[n] = '\0';
    found = strncmp(target, "/dev/shm/", 9) == 0 && strcmp(target + 9, name) == 0;
  }
  closedir(folder);
  return found;
}

static int knows_object(const struct npi_view *view, uint64_t object) {
  if (view->header->backend != 0) return 0; /* memfd: nothing of it has a name */
  for (uint32_t i = 0; i < view->n_segments; i++) {
    if (npi_view_state(&view->segments[i].state) != NPI_SEGMENT_FREE && view->segments[i].object == object) return 1;
  }
  return 0;
}

int npi_view_orphans(const struct npi_view *view, void (*found)(void *context, const char *name, uint64_t bytes),
                     void *context) {
  char prefix[96], path[320];
  struct stat facts;
  int n = 0;
  DIR *folder = opendir("/dev/shm");
  if (folder == NULL) return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot list /dev/shm");
  int length = snprintf(prefix, sizeof prefix, "numapool.%s.%u.", view->instance, (unsigned)view->uid);
  for (const struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
    char *end;
    if (strncmp(entry->d_name, prefix, (size_t)length) != 0) continue;
    const char *rest = entry->d_name + length;
    if (strcmp(rest, "registry") == 0) continue;
    /* "kind" or "kind.number" is ours; "1000.seg.5" belongs to an instance named "<this>.<uid>". */
    size_t letters = strspn(rest, "abcdefghijklmnopqrstuvwxyz");
    if (letters == 0) continue;
    if (rest[letters] != '\0' && (rest[letters] != '.' || rest[letters + 1] == '\0' ||
                                  rest[letters + 1 + strspn(rest + letters + 1, "0123456789")] != '\0'))
      continue;
    if (strncmp(rest, "seg.", 4) == 0 && rest[4] >= '0' && rest[4] <= '9') {
      uint64_t object = strtoull(rest + 4, &end, 10);
      if (*end == '\0' && knows_object(view, object)) continue;
    }
    snprintf(path, sizeof path, "/dev/shm/%s", entry->d_name);
    if (stat(path, &facts) != 0) continue; /* just gone */
    found(context, entry->d_name, (uint64_t)facts.st_size);
    n++;
  }
  closedir(folder);
  return n;
}
