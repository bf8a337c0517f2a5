/* SPDX-License-Identifier: Apache-2.0 */
/* The life of memory objects; every way for memory to be short ends in an error that names need, have and fix. */
#include "os/os_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "base/align.h"
#include "base/status.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

/* A reservation in pieces: a signal costs the repetition of one piece, not of everything. */
static const uint64_t RESERVE_PIECE = UINT64_C(64) << 20;

static int posix_path(char path[256], const char *name) {
  if (name == NULL || name[0] == '\0' || strchr(name, '/') != NULL || strlen(name) > 254) {
    return npi_fail(NP_ERR_ARGUMENT, "shared memory name \"%s\": must be 1 to 254 characters without a slash",
                    name ? name : "(null)");
  }
  snprintf(path, 256, "/%s", name);
  return 0;
}

static int check_size(const char *name, uint64_t bytes, uint64_t step) {
  if (bytes == 0 || bytes > INT64_MAX || bytes % step != 0) {
    return npi_fail(NP_ERR_ARGUMENT,
                    "memory object \"%s\" of %" PRIu64 " bytes: the size must be a multiple of %" PRIu64, name, bytes,
                    step);
  }
  return 0;
}

static int status_of_open(int error) {
  switch (error) {
    case EEXIST: return NP_ERR_EXISTS;
    case ENOENT: return NP_ERR_NOT_FOUND;
    case EACCES:
    case EPERM: return NP_ERR_DENIED;
    case ENOMEM:
    case ENOSPC: return NP_ERR_NO_MEMORY;
    case EMFILE:
    case ENFILE: return NP_ERR_LIMIT;
    default: return NP_ERR_SYSTEM;
  }
}

int npi_memory_create_posix(const char *name, uint64_t bytes, int *fd) {
  char path[256];
  *fd = -1;
  int status = posix_path(path, name);
  if (status == 0) status = check_size(name, bytes, 1);
  if (status != 0) return status;

  int made = shm_open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
  if (made < 0) return npi_fail_errno(status_of_open(errno), errno, "cannot create shared memory /dev/shm%s", path);
  if (fchmod(made, 0600) != 0) { /* the umask may have taken bits away */
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot set mode 0600 of /dev/shm%s", path);
    goto fail;
  }
  if (ftruncate(made, (off_t)bytes) != 0) {
    status = npi_fail_errno(NP_ERR_NO_MEMORY, errno, "cannot make /dev/shm%s %" PRIu64 " bytes long", path, bytes);
    goto fail;
  }
  *fd = made;
  return 0;

fail:
  close(made);
  shm_unlink(path);
  return status;
}

int npi_memory_create_memfd(const char *name, uint64_t bytes, int huge, int *fd) {
  *fd = -1;
  int status = check_size(name, bytes, huge ? NPI_HUGE_PAGE : 1);
  if (status != 0) return status;

  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (huge) flags |= MFD_HUGETLB | MFD_HUGE_2MB;
  int made = memfd_create(name, flags);
  if (made < 0) {
    int error = errno;
    if (huge && (error == ENOSYS || error == EINVAL || error == ENOENT || error == ENODEV)) {
      return npi_fail_errno(NP_ERR_SYSTEM, error,
                            "cannot create memfd \"%s\" of 2 MiB pages: this kernel has none; set huge pages to never",
                            name);
    }
    return npi_fail_errno(status_of_open(error), error, "cannot create memfd \"%s\"", name);
  }
  if (fchmod(made, 0600) != 0) { /* it is born 0777: whoever held a read-only descriptor could reopen it for writing */
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot set mode 0600 of memfd \"%s\"", name);
    goto fail;
  }
  if (ftruncate(made, (off_t)bytes) != 0) {
    status = npi_fail_errno(NP_ERR_NO_MEMORY, errno, "cannot make memfd \"%s\" %" PRIu64 " bytes long", name, bytes);
    goto fail;
  }
  if (fcntl(made, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot seal memfd \"%s\"", name);
    goto fail;
  }
  *fd = made;
  return 0;

fail:
  close(made);
  return status;
}

int npi_memory_open_posix(const char *name, int writable, int *fd, uint64_t *bytes) {
  char path[256];
  *fd = -1;
  if (bytes != NULL) *bytes = 0;
  int status = posix_path(path, name);
  if (status != 0) return status;

  int opened = shm_open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC, 0);
  if (opened < 0) return npi_fail_errno(status_of_open(errno), errno, "cannot open shared memory /dev/shm%s", path);
  if (bytes != NULL) {
    status = npi_memory_size(opened, bytes);
    if (status != 0) {
      close(opened);
      return status;
    }
  }
  *fd = opened;
  return 0;
}

int npi_memory_reopen_readonly(int fd, int *readonly_fd) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  *readonly_fd = open(path, O_RDONLY | O_CLOEXEC);
  if (*readonly_fd >= 0) return 0;
  if (errno == ENOENT && access("/proc/self/fd", F_OK) != 0) {
    return npi_fail(NP_ERR_SYSTEM, "cannot make a read-only descriptor: /proc is not mounted here; mount it");
  }
  return npi_fail_errno(status_of_open(errno), errno, "cannot reopen descriptor %d read-only", fd);
}

int npi_memory_unlink_posix(const char *name) {
  char path[256];
  int status = posix_path(path, name);
  if (status != 0) return status;
  if (shm_unlink(path) == 0) return 0;
  return npi_fail_errno(status_of_open(errno), errno, "cannot remove shared memory /dev/shm%s", path);
}

int npi_memory_size(int fd, uint64_t *bytes) {
  struct stat facts;
  *bytes = 0;
  if (fstat(fd, &facts) != 0)
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot ask for the size of descriptor %d", fd);
  *bytes = (uint64_t)facts.st_size;
  return 0;
}

int npi_memory_is_sealed(int fd) {
  int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 && errno != EINVAL) {
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot ask for the seals of descriptor %d", fd);
  }
  return seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && (seals & F_SEAL_GROW) != 0;
}

/* Value in KiB of a line such as "MemAvailable:   123 kB" of /proc/meminfo. */
static int meminfo(const char *key, uint64_t *bytes) {
  char line[128];
  FILE *file = fopen("/proc/meminfo", "re");
  if (file == NULL) return 0;
  int found = 0;
  size_t length = strlen(key);
  while (!found && fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, key, length) == 0 && line[length] == ':') {
      found = sscanf(line + length + 1, "%" SCNu64, bytes) == 1;
      *bytes *= 1024;
    }
  }
  fclose(file);
  return found;
}

/* Says why the pages of fd could not be had: each kind of memory has another place where it is short. */
static int fail_short(int fd, uint64_t need, int error) {
  struct statfs facts;
  uint64_t have = 0;
  if (fstatfs(fd, &facts) == 0 && facts.f_type == HUGETLBFS_MAGIC) {
    npi_memory_huge_pages_free(-1, &have);
    return npi_fail_errno(NP_ERR_NO_MEMORY, error,
                          "not enough huge pages: need %" PRIu64 " of 2 MiB, have %" PRIu64
                          " free; fill the pool: echo N > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
                          npi_round_up(need, NPI_HUGE_PAGE) / NPI_HUGE_PAGE, have);
  }
  if (fstatfs(fd, &facts) == 0 && facts.f_type == TMPFS_MAGIC && facts.f_blocks > 0 && error == ENOSPC) {
    have = (uint64_t)facts.f_bfree * (uint64_t)facts.f_bsize;
    uint64_t whole = (uint64_t)facts.f_blocks * (uint64_t)facts.f_bsize;
    uint64_t wanted = (whole - have + need + (UINT64_C(1) << 20) - 1) >> 20;
    return npi_fail_errno(NP_ERR_NO_MEMORY, error,
                          "/dev/shm is too small: need %" PRIu64 " more bytes, have %" PRIu64 " of %" PRIu64
                          "; make it larger (mount -o remount,size=%" PRIu64 "M /dev/shm) or lower memory.per_node",
                          need, have, whole, wanted);
  }
  if (meminfo("MemAvailable", &have)) {
    return npi_fail_errno(NP_ERR_NO_MEMORY, error,
                          "not enough memory: need %" PRIu64 " bytes, the machine has %" PRIu64
                          " available (a cgroup limit may be lower); lower memory.per_node",
                          need, have);
  }
  return npi_fail_errno(NP_ERR_NO_MEMORY, error, "not enough memory: need %" PRIu64 " bytes; lower memory.per_node",
                        need);
}

int npi_memory_check_room(int fd, uint64_t need) {
  struct statfs facts;
  if (fstatfs(fd, &facts) != 0 || facts.f_type != TMPFS_MAGIC || facts.f_blocks == 0) return 0;
  if ((uint64_t)facts.f_bfree * (uint64_t)facts.f_bsize >= need) return 0;
  return fail_short(fd, need, ENOSPC);
}

int npi_memory_reserve(int fd, uint64_t offset, uint64_t bytes) {
  while (bytes > 0) {
    uint64_t piece = bytes < RESERVE_PIECE ? bytes : RESERVE_PIECE;
    if (fallocate(fd, 0, (off_t)offset, (off_t)piece) == 0) {
      offset += piece;
      bytes -= piece;
    } else if (errno == ENOSPC || errno == ENOMEM) {
      return fail_short(fd, bytes, errno);
    } else if (errno != EINTR) {
      return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot reserve %" PRIu64 " bytes of descriptor %d", bytes, fd);
    }
  }
  return 0;
}

int npi_memory_punch(int fd, uint64_t offset, uint64_t bytes) {
  int result;
  do {
    result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
  } while (result != 0 && errno == EINTR);
  if (result == 0) return 0;
  return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot give back %" PRIu64 " bytes of descriptor %d", bytes, fd);
}

int npi_memory_map(int fd, uint64_t offset, uint64_t bytes, int writable, void **address) {
  *address = NULL;
  void *mapped = mmap(NULL, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, (off_t)offset);
  if (mapped == MAP_FAILED) {
    int error = errno;
    int status = error == ENOMEM ? NP_ERR_NO_MEMORY : error == EACCES || error == EPERM ? NP_ERR_DENIED : NP_ERR_SYSTEM;
    return npi_fail_errno(status, error, "cannot map %" PRIu64 " bytes%s%s", bytes, writable ? " for writing" : "",
                          error == ENOMEM ? " (address space, vm.max_map_count, or huge pages run out)" : "");
  }
  /* A forked child must not hold the pages, nor a core file: both would also delay the proof of a death. */
  if (madvise(mapped, bytes, MADV_DONTFORK) != 0 || madvise(mapped, bytes, MADV_DONTDUMP) != 0) {
    int status = npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot keep a mapping of %" PRIu64 " bytes out of forks", bytes);
    munmap(mapped, bytes);
    return status;
  }
  *address = mapped;
  return 0;
}

void npi_memory_unmap(void *address, uint64_t bytes) {
  if (address != NULL) munmap(address, bytes);
}

int npi_memory_populate(void *address, uint64_t bytes, int writable) {
  int result;
  do {
    result = madvise(address, bytes, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
  } while (result != 0 && (errno == EINTR || errno == EAGAIN));
  if (result == 0) return 0;
  if (errno != EINVAL) {
    int error = errno;
    return npi_fail_errno(error == ENOMEM || error == EFAULT ? NP_ERR_NO_MEMORY : NP_ERR_SYSTEM, error,
                          "cannot bring in %" PRIu64 " bytes of a mapping", bytes);
  }
  /* Before Linux 5.14. Reading is enough: a shared mapping of these files gets its final, writable entry at once. */
  for (uint64_t at = 0; at < bytes; at += NPI_PAGE) (void)*((const volatile char *)address + at);
  return 0;
}

void npi_memory_forget(void *address, uint64_t bytes) {
  madvise(address, bytes, MADV_DONTNEED);
}

int npi_memory_advise_huge(void *address, uint64_t bytes) {
  if (madvise(address, bytes, MADV_HUGEPAGE) == 0) return 0;
  return npi_fail_errno(NP_ERR_SYSTEM, errno, "the kernel takes no advice on transparent huge pages");
}

int npi_memory_available(uint64_t *free_bytes) {
  struct statfs facts;
  *free_bytes = 0;
  if (statfs("/dev/shm", &facts) != 0) {
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot look at /dev/shm (is it mounted?)");
  }
  if (facts.f_blocks == 0) { /* a tmpfs without a limit of its own */
    if (meminfo("MemAvailable", free_bytes)) return 0;
    return npi_fail(NP_ERR_SYSTEM, "cannot read MemAvailable of /proc/meminfo");
  }
  *free_bytes = (uint64_t)facts.f_bavail * (uint64_t)facts.f_bsize;
  return 0;
}

int npi_memory_huge_pages_free(int node, uint64_t *n_pages) {
  char path[128];
  *n_pages = 0;
  if (node < 0) {
    snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
  } else {
    snprintf(path, sizeof path, "/sys/devices/system/node/node%d/hugepages/hugepages-2048kB/free_hugepages", node);
  }
  FILE *file = fopen(path, "re");
  if (file == NULL) {
    if (errno == ENOENT || errno == ENOTDIR) return 0;
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot read %s", path);
  }
  int found = fscanf(file, "%" SCNu64, n_pages);
  fclose(file);
  return found == 1 ? 0 : npi_fail(NP_ERR_SYSTEM, "%s holds no number", path);
}
