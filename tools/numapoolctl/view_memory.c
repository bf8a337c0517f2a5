/* SPDX-License-Identifier: Apache-2.0 */
/* Pages and ledgers: memory without a name, found by its label among the descriptors of the processes that have it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"
#include "core/ledger.h"
#include "view_internal.h"

int npi_view_make_fds(struct npi_view *view) {
  view->page_fds = malloc((view->n_clients + 1) * sizeof *view->page_fds);
  view->ledger_fds = malloc((view->n_clients + 1) * sizeof *view->ledger_fds);
  if (view->page_fds == NULL || view->ledger_fds == NULL) {
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a table of %u clients", view->n_clients);
  }
  view->n_fds = view->n_clients;
  for (uint32_t i = 0; i < view->n_fds; i++) view->page_fds[i] = view->ledger_fds[i] = NPI_VIEW_NOT_LOOKED;
  return 0;
}

void npi_view_forget_fds(struct npi_view *view) {
  for (uint32_t i = 0; i < view->n_fds; i++) {
    if (view->page_fds[i] >= 0) close(view->page_fds[i]);
    if (view->ledger_fds[i] >= 0) close(view->ledger_fds[i]);
    view->page_fds[i] = view->ledger_fds[i] = NPI_VIEW_NOT_LOOKED;
  }
  view->broker_listed = 0;
}

/* "/memfd:numapool.<instance>.<uid>.page.<client> (deleted)": whose it is, and which of the two. */
static int parse_label(const struct npi_view *view, const char *label, int *is_page, uint32_t *client) {
  char prefix[112];
  int length = snprintf(prefix, sizeof prefix, "/memfd:numapool.%s.%u.", view->instance, (unsigned)view->uid);
  if (strncmp(label, prefix, (size_t)length) != 0) return 0;
  const char *kind = label + length;
  char *end;
  if (strncmp(kind, "page.", 5) == 0) {
    *is_page = 1;
    kind += 5;
  } else if (strncmp(kind, "ledger.", 7) == 0) {
    *is_page = 0;
    kind += 7;
  } else {
    return 0;
  }
  if (*kind < '0' || *kind > '9') return 0;
  unsigned long number = strtoul(kind, &end, 10);
  if ((*end != '\0' && *end != ' ') || number >= view->n_clients) return 0;
  *client = (uint32_t)number;
  return 1;
}

/* Does it say that it is this client's, and not that of one that had the record before? */
static int belongs_to(const struct npi_view *view, int fd, int is_page, uint32_t client) {
  const struct npi_client_record *record = &view->clients[client];
  struct stat facts;
  if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) return 0;
  if ((uint64_t)facts.st_size != (is_page ? view->header->page_bytes : view->header->ledger_bytes)) return 0;
  if (is_page) {
    struct npi_page_shm page;
    return npi_view_read_at(fd, 0, &page, sizeof page) == 0 && page.magic == NPI_MAGIC_PAGE && page.client == client &&
           page.client_version == record->version;
  }
  struct npi_ledger_header ledger;
  return npi_view_read_at(fd, 0, &ledger, sizeof ledger) == 0 && ledger.magic == NPI_MAGIC_LEDGER &&
         ledger.client == client && ledger.client_version == record->version;
}

/* Opens what a process has of the clients' pages and ledgers. only: one client's, NPI_NONE: all. */
static void open_from(struct npi_view *view, uint32_t pid, uint32_t only) {
  char folder_path[48], path[320], label[PATH_MAX];
  snprintf(folder_path, sizeof folder_path, "/proc/%u/fd", pid);
  DIR *folder = opendir(folder_path);
  if (folder == NULL) {
    if (errno == EACCES || errno == EPERM) view->denied = 1;
    return;
  }
  for (const struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
    int is_page;
    uint32_t client;
    snprintf(path, sizeof path, "%s/%s", folder_path, entry->d_name);
    ssize_t n = readlink(path, label, sizeof label - 1);
    if (n <= 0) {
      if (n < 0 && (errno == EACCES || errno == EPERM)) view->denied = 1;
      continue;
    }
    label[n] = '\0';
    if (!parse_label(view, label, &is_page, &client) || (only != NPI_NONE && client != only)) continue;
    int *place = is_page ? &view->page_fds[client] : &view->ledger_fds[client];
    if (*place >= 0) continue;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
      if (errno == EACCES || errno == EPERM) view->denied = 1;
      continue;
    }
    if (belongs_to(view, fd, is_page, client)) {
      *place = fd;
    } else {
      close(fd);
    }
  }
  closedir(folder);
}

/* The broker's keeper has every page and ledger, and lives on when the broker is killed. */
static void open_from_keepers(struct npi_view *view) {
  char path[48], line[512];
  DIR *folder = opendir("/proc");
  if (folder == NULL) return;
  for (const struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
    if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
    snprintf(path, sizeof path, "/proc/%.16s/cmdline", entry->d_name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
    if (fd >= 0) close(fd);
    if (n <= 0) continue;
    line[n] = '\0';
    const char *first = line + strlen(line) + 1; /* the word behind the program's name */
    if (first < line + n && strncmp(first, "--keeper=", 9) == 0) {
      open_from(view, (uint32_t)strtoul(entry->d_name, NULL, 10), NPI_NONE);
    }
  }
  closedir(folder);
}

static int find(struct npi_view *view, int *fds, uint32_t client) {
  if (client >= view->n_clients) return npi_fail(NP_ERR_CORRUPT, "client %u of %u", client, view->n_clients);
  if (!view->broker_listed) {
    view->broker_listed = 1;
    if (npi_view_broker(view) != NPI_PROCESS_DEAD) {
      open_from(view, view->header->broker_pid, NPI_NONE);
    } else {
      open_from_keepers(view);
    }
  }
  if (fds[client] == NPI_VIEW_NOT_LOOKED) {
    if (npi_view_client_process(view, client) != NPI_PROCESS_DEAD) open_from(view, view->clients[client].pid, client);
    if (fds[client] == NPI_VIEW_NOT_LOOKED) fds[client] = NPI_VIEW_NO_FD;
  }
  if (fds[client] >= 0) return 0;
  if (view->denied) {
    return npi_fail(NP_ERR_DENIED, "the memory of client %u may not be read: run numapoolctl as user %u, or as root",
                    client, (unsigned)view->uid);
  }
  return npi_fail(NP_ERR_NOT_FOUND, "the memory of client %u is in no living process that can be seen", client);
}

int npi_view_page(struct npi_view *view, uint32_t client, uint64_t offset, void *to, uint64_t n) {
  int status = find(view, view->page_fds, client);
  if (status != 0) return status;
  if (offset > view->header->page_bytes || n > view->header->page_bytes - offset) {
    return npi_fail(NP_ERR_CORRUPT, "%" PRIu64 " bytes at %" PRIu64 " of a page of %" PRIu64, n, offset,
                    view->header->page_bytes);
  }
  return npi_view_read_at(view->page_fds[client], offset, to, n);
}

int npi_view_endpoint(struct npi_view *view, uint32_t client, uint32_t row, uint64_t value[32]) {
  memset(value, 0, 32 * sizeof *value);
  if (row >= view->header->endpoints_per_client) return npi_fail(NP_ERR_CORRUPT, "counters in row %u", row);
  return npi_view_page(view, client,
                       view->header->page_endpoints_offset + (uint64_t)row * sizeof(struct npi_endpoint_counters),
                       value, sizeof(struct npi_endpoint_counters));
}

int npi_view_listener(struct npi_view *view, uint32_t client, uint32_t listener, uint64_t value[64]) {
  memset(value, 0, 64 * sizeof *value);
  return npi_view_page(view, client,
                       view->header->page_listeners_offset + (uint64_t)listener * sizeof(struct npi_listener_counters),
                       value, sizeof(struct npi_listener_counters));
}

void npi_view_connection(struct npi_view *view, const struct npi_connection_record *connection,
                         struct npi_connection_figures *figures) {
  uint64_t counter[8];
  memset(figures, 0, sizeof *figures);
  if (npi_view_page(view, connection->publisher_client, connection->submissions_offset, counter, sizeof counter) == 0) {
    figures->publisher_known = 1;
    figures->published = counter[NPI_SUBMISSION_PUBLISHED];
    figures->dropped = counter[NPI_SUBMISSION_DROPPED];
    figures->processed = counter[NPI_SUBMISSION_RETURNED];
    figures->redelivered = counter[NPI_SUBMISSION_REDELIVERED];
  }
  if (npi_view_page(view, connection->subscriber_client, connection->returns_offset, counter, sizeof counter) == 0) {
    figures->subscriber_known = 1;
    figures->taken = counter[NPI_RETURN_TAKEN];
    figures->returned = counter[NPI_RETURN_RETURNED];
  }
}

/* ---- ledgers ----------------------------------------------------------------------------------------- */

/* The next part of a sparse object that holds something; 0: none from there on. */
static int next_extent(int fd, uint64_t *offset, uint64_t *end) {
  off_t begin = lseek(fd, (off_t)*offset, SEEK_DATA);
  if (begin < 0) return 0;
  off_t after = lseek(fd, begin, SEEK_HOLE);
  if (after <= begin) return 0;
  *offset = (uint64_t)begin;
  *end = (uint64_t)after;
  return 1;
}

int npi_view_ledger(struct npi_view *view, uint32_t client, struct npi_ledger_copy *copy) {
  uint64_t offset = 0, end;
  memset(copy, 0, sizeof *copy);
  copy->fd = -1;
  int status = find(view, view->ledger_fds, client);
  if (status != 0) return status;
  copy->fd = view->ledger_fds[client];
  copy->n_bytes = view->header->ledger_bytes;
  copy->memory = mmap(NULL, copy->n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (copy->memory == MAP_FAILED) {
    copy->memory = NULL;
    return npi_fail_errno(NP_ERR_NO_MEMORY, errno, "no memory for a copy of a ledger of %" PRIu64 " bytes",
                          copy->n_bytes);
  }
  for (; offset < copy->n_bytes && next_extent(copy->fd, &offset, &end); offset = end) {
    if (end > copy->n_bytes) end = copy->n_bytes;
    status = npi_view_read_at(copy->fd, offset, (uint8_t *)copy->memory + offset, end - offset);
    if (status != 0) {
      npi_view_ledger_free(copy);
      return status;
    }
  }
  return 0;
}

int npi_view_ledger_unchanged(const struct npi_ledger_copy *copy) {
  uint8_t part[65536];
  uint64_t offset = 0, end;
  for (; offset < copy->n_bytes && next_extent(copy->fd, &offset, &end); offset = end) {
    if (end > copy->n_bytes) end = copy->n_bytes;
    if (end - offset > sizeof part) end = offset + sizeof part;
    if (npi_view_read_at(copy->fd, offset, part, end - offset) != 0) return 0;
    if (memcmp(part, (const uint8_t *)copy->memory + offset, end - offset) != 0) return 0;
  }
  return 1;
}

void npi_view_ledger_free(struct npi_ledger_copy *copy) {
  if (copy->memory != NULL) munmap(copy->memory, copy->n_bytes);
  memset(copy, 0, sizeof *copy);
  copy->fd = -1;
}
