/* SPDX-License-Identifier: Apache-2.0 */
/* System calls directly, not libnuma: three calls and a few files of sysfs are all that is needed. */
#include "os/os_numa.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/align.h"
#include "base/log.h"
#include "base/status.h"

static const char NODE_FOLDER[] = "/sys/devices/system/node";

enum { CPUS_MAX = NPI_CPU_WORDS * 64, MEASURE_BATCH = 1024 };

/* Reads a list such as "0-3,8,10-11" into a bit set of n_bits; numbers beyond are counted in *n_beyond. */
static int parse_list(const char *text, uint64_t *bits, unsigned n_bits, unsigned *n_beyond) {
  memset(bits, 0, n_bits / 8);
  *n_beyond = 0;
  while (isspace((unsigned char)*text)) text++;
  while (*text != '\0') {
    char *end;
    if (!isdigit((unsigned char)*text)) return -1;
    unsigned long first = strtoul(text, &end, 10);
    unsigned long last = first;
    if (*end == '-') {
      if (!isdigit((unsigned char)end[1])) return -1;
      last = strtoul(end + 1, &end, 10);
    }
    if (last < first || last > 1000000) return -1;
    for (unsigned long number = first; number <= last; number++) {
      if (number < n_bits) {
        bits[number / 64] |= UINT64_C(1) << (number % 64);
      } else {
        ++*n_beyond;
      }
    }
    text = end;
    while (isspace((unsigned char)*text)) text++;
    if (*text == ',') {
      text++;
    } else if (*text != '\0') {
      return -1;
    }
  }
  return 0;
}

/* First line of a file, without its end; 0 where it cannot be read. */
static int read_line(const char *path, char *line, int bytes) {
  FILE *file = fopen(path, "re");
  if (file == NULL) return 0;
  int found = fgets(line, bytes, file) != NULL;
  fclose(file);
  if (found) line[strcspn(line, "\n")] = '\0';
  return found;
}

/* Value of a line "Node 1 MemTotal:   123 kB" of a node's meminfo. */
static int node_meminfo(const char *folder, int node, const char *key, uint64_t *bytes) {
  char path[512], line[160], pattern[64];
  snprintf(path, sizeof path, "%s/node%d/meminfo", folder, node);
  snprintf(pattern, sizeof pattern, " %s:", key);
  *bytes = 0;
  FILE *file = fopen(path, "re");
  if (file == NULL) return 0;
  int found = 0;
  while (!found && fgets(line, sizeof line, file) != NULL) {
    const char *at = strstr(line, pattern);
    if (at == NULL) continue;
    found = sscanf(at + strlen(pattern), "%" SCNu64, bytes) == 1;
    *bytes *= 1024;
  }
  fclose(file);
  return found;
}

static uint32_t count_cpus(const uint64_t mask[NPI_CPU_WORDS]) {
  uint32_t n = 0;
  for (int i = 0; i < NPI_CPU_WORDS; i++) n += (uint32_t)__builtin_popcountll(mask[i]);
  return n;
}

/* What a machine without NUMA looks like. */
static int one_node(struct npi_numa_topology *topology) {
  struct npi_numa_node *node = &topology->node[0];
  char line[4096];
  unsigned n_beyond = 0;
  memset(topology, 0, sizeof *topology);
  if (!read_line("/sys/devices/system/cpu/online", line, sizeof line) ||
      parse_list(line, node->cpu_mask, CPUS_MAX, &n_beyond) != 0) {
    memset(node->cpu_mask, 0, sizeof node->cpu_mask);
    long n_online = sysconf(_SC_NPROCESSORS_ONLN);
    for (long cpu = 0; cpu < n_online && cpu < CPUS_MAX; cpu++) {
      node->cpu_mask[cpu / 64] |= UINT64_C(1) << (cpu % 64);
    }
  }
  node->n_cpus = count_cpus(node->cpu_mask);
  long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) node->memory_bytes = (uint64_t)pages * (uint64_t)page;
  topology->n_nodes = 1;
  return 0;
}

int npi_numa_discover_in(const char *folder, struct npi_numa_topology *topology) {
  char path[512], line[4096];
  uint64_t online = 0;
  unsigned n_beyond = 0;
  memset(topology, 0, sizeof *topology);
  snprintf(path, sizeof path, "%s/online", folder);
  if (!read_line(path, line, sizeof line)) return npi_fail(NP_ERR_NOT_FOUND, "cannot read %s", path);
  if (parse_list(line, &online, NPI_NODES_MAX, &n_beyond) != 0) {
    return npi_fail(NP_ERR_SYSTEM, "%s is not a list of numbers: \"%.80s\"", path, line);
  }
  if (n_beyond > 0) {
    npi_log(NPI_LOG_WARNING, "numa.nodes_left_out", "n=%u reason=\"numapool knows node numbers below %d\"", n_beyond,
            NPI_NODES_MAX);
  }
  for (int id = 0; id < NPI_NODES_MAX; id++) {
    if ((online >> id & 1) == 0) continue;
    struct npi_numa_node *node = &topology->node[topology->n_nodes];
    node->id = id;
    int said = node_meminfo(folder, id, "MemTotal", &node->memory_bytes);
    if (said && node->memory_bytes == 0) continue; /* CPUs only: nothing can be put there */
    snprintf(path, sizeof path, "%s/node%d/cpulist", folder, id);
    if (read_line(path, line, sizeof line) && parse_list(line, node->cpu_mask, CPUS_MAX, &n_beyond) != 0) {
      return npi_fail(NP_ERR_SYSTEM, "%s is not a list of numbers: \"%.80s\"", path, line);
    }
    node->n_cpus = count_cpus(node->cpu_mask);
    topology->n_nodes++;
  }
  if (topology->n_nodes == 0) return npi_fail(NP_ERR_NOT_FOUND, "%s shows no node with memory", folder);
  return 0;
}

/* The nodes that a cpuset leaves to this process; all where the kernel does not say. */
static uint64_t allowed_nodes(void) {
  static const char key[] = "Mems_allowed_list:";
  char line[1024];
  uint64_t allowed = UINT64_MAX;
  unsigned n_beyond;
  FILE *file = fopen("/proc/self/status", "re");
  if (file == NULL) return allowed;
  while (fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, key, sizeof key - 1) != 0) continue;
    if (parse_list(line + sizeof key - 1, &allowed, NPI_NODES_MAX, &n_beyond) != 0) allowed = UINT64_MAX;
    break;
  }
  fclose(file);
  return allowed;
}

int npi_numa_discover(struct npi_numa_topology *topology) {
  int status = npi_numa_discover_in(NODE_FOLDER, topology);
  if (status == NP_ERR_NOT_FOUND) return one_node(topology);
  if (status != 0) return status;
  uint64_t allowed = allowed_nodes();
  uint32_t kept = 0;
  for (uint32_t i = 0; i < topology->n_nodes; i++) {
    if ((allowed >> topology->node[i].id & 1) == 0) continue;
    if (kept != i) topology->node[kept] = topology->node[i];
    kept++;
  }
  if (kept > 0) topology->n_nodes = kept;
  return 0;
}

static int check_node(int node) {
  if (node >= 0 && node < NPI_NODES_MAX) return 0;
  return npi_fail(NP_ERR_ARGUMENT, "node %d: must be 0 to %d", node, NPI_NODES_MAX - 1);
}

int npi_numa_bind(void *address, uint64_t bytes, int node, int strict) {
  int status = check_node(node);
  if (status != 0) return status;
  unsigned long mask[NPI_NODES_MAX / (8 * sizeof(unsigned long))] = {0};
  mask[(unsigned)node / (8 * sizeof(unsigned long))] = 1UL << ((unsigned)node % (8 * sizeof(unsigned long)));
  /* The kernel reads one bit less than it is told. */
  if (syscall(SYS_mbind, address, bytes, strict ? MPOL_BIND : MPOL_PREFERRED, mask, NPI_NODES_MAX + 1UL, 0U) == 0) {
    return 0;
  }
  switch (errno) {
    case EPERM:
    case EACCES:
      npi_fail(0, "mbind is forbidden here (EPERM: a container's seccomp profile, most likely)");
      return NPI_NUMA_REFUSED;
    case ENOSYS:
      npi_fail(0, "mbind does not exist here (ENOSYS: a kernel without NUMA, or a container's seccomp profile)");
      return NPI_NUMA_REFUSED;
    case EINVAL:
      return npi_fail(NP_ERR_NOT_FOUND,
                      "cannot bind memory to node %d: it has no memory, or a cpuset keeps this process from it", node);
    case ENOMEM:
      return npi_fail_errno(NP_ERR_NO_MEMORY, ENOMEM, "cannot bind %" PRIu64 " bytes to node %d", bytes, node);
    default: return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot bind %" PRIu64 " bytes to node %d", bytes, node);
  }
}

int npi_numa_measure(const void *address, uint64_t bytes, uint64_t page_bytes, uint64_t pages_on[NPI_NODES_MAX],
                     uint64_t *unknown) {
  void *pages[MEASURE_BATCH];
  int where[MEASURE_BATCH];
  memset(pages_on, 0, sizeof pages_on[0] * NPI_NODES_MAX);
  *unknown = 0;
  if (!npi_is_power_of_two(page_bytes)) {
    return npi_fail(NP_ERR_ARGUMENT, "page size %" PRIu64 ": must be a power of two", page_bytes);
  }
  const char *at = address;
  uint64_t left = npi_round_up(bytes, page_bytes) / page_bytes;
  while (left > 0) {
    unsigned long n = left < MEASURE_BATCH ? (unsigned long)left : MEASURE_BATCH;
    for (unsigned long i = 0; i < n; i++) {
      pages[i] = (void *)(uintptr_t)(at + i * page_bytes); /* only asked about, never moved: no target nodes */
      where[i] = -1;
    }
    if (syscall(SYS_move_pages, 0, n, pages, NULL, where, 0) < 0) {
      if (errno != EPERM && errno != EACCES && errno != ENOSYS) {
        return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot ask where %lu pages are", n);
      }
      npi_fail(0, "move_pages is forbidden here, so nobody can say on which node the pages are");
      *unknown += left;
      return 0;
    }
    for (unsigned long i = 0; i < n; i++) {
      if (where[i] >= 0 && where[i] < NPI_NODES_MAX) {
        pages_on[where[i]]++;
      } else {
        ++*unknown;
      }
    }
    at += n * page_bytes;
    left -= n;
  }
  return 0;
}

uint64_t npi_numa_memory_kept_from(const char *path, int node) {
  char line[1024];
  int zone_node = -1;
  uint64_t pages = 0, number, high = 0, managed = 0;
  FILE *file = fopen(path, "re");
  if (file == NULL) return 0;
  while (fgets(line, sizeof line, file) != NULL) {
    if (sscanf(line, "Node %d, zone", &zone_node) == 1) continue;
    if (zone_node != node) continue;
    if (sscanf(line, " high %" SCNu64, &number) == 1) high = number;
    if (sscanf(line, " managed %" SCNu64, &number) == 1) managed = number;
    const char *at = strstr(line, "protection: (");
    if (at == NULL) continue;
    /* The last line of a zone that matters here: how much of it requests for each zone above must leave. */
    uint64_t most = 0;
    at += strlen("protection: (");
    for (char *end; (number = strtoull(at, &end, 10), end != at); at = *end == ',' ? end + 1 : end) {
      if (number > most) most = number;
    }
    pages += high + most < managed ? high + most : managed;
    high = managed = 0;
  }
  fclose(file);
  return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

int npi_numa_memory_available(int node, uint64_t *bytes) {
  uint64_t part;
  *bytes = 0;
  int status = check_node(node);
  if (status != 0) return status;
  if (!node_meminfo(NODE_FOLDER, node, "MemFree", bytes)) {
    return npi_fail(NP_ERR_NOT_FOUND, "the kernel does not say how much memory node %d has", node);
  }
  if (node_meminfo(NODE_FOLDER, node, "Active(file)", &part)) *bytes += part;
  if (node_meminfo(NODE_FOLDER, node, "Inactive(file)", &part)) *bytes += part;
  if (node_meminfo(NODE_FOLDER, node, "SReclaimable", &part)) *bytes += part;
  part = npi_numa_memory_kept_from("/proc/zoneinfo", node);
  *bytes -= part < *bytes ? part : *bytes;
  return 0;
}

static int set_affinity(const uint64_t mask[NPI_CPU_WORDS]) {
  /* The kernel's set is an array of unsigned long: the same bytes on a little-endian or a 64-bit machine. */
  return syscall(SYS_sched_setaffinity, 0, sizeof(uint64_t) * NPI_CPU_WORDS, mask) < 0 ? errno : 0;
}

int npi_numa_pin_thread(const struct npi_numa_topology *topology, int node, int cpu) {
  const struct npi_numa_node *found = NULL;
  for (uint32_t i = 0; i < topology->n_nodes; i++) {
    if (topology->node[i].id == node) found = &topology->node[i];
  }
  if (found == NULL) return npi_fail(NP_ERR_NOT_FOUND, "there is no node %d", node);
  uint64_t mask[NPI_CPU_WORDS];
  memcpy(mask, found->cpu_mask, sizeof mask);
  if (cpu >= 0) {
    if (cpu >= CPUS_MAX || (mask[cpu / 64] >> (cpu % 64) & 1) == 0) {
      return npi_fail(NP_ERR_NOT_FOUND, "CPU %d is not of node %d", cpu, node);
    }
    memset(mask, 0, sizeof mask);
    mask[cpu / 64] = UINT64_C(1) << (cpu % 64);
  }
  if (count_cpus(mask) == 0) return npi_fail(NP_ERR_NOT_FOUND, "node %d has no CPU", node);
  int error = set_affinity(mask);
  if (error == 0) return 0;
  if (error == EINVAL || error == EPERM) {
    return npi_fail_errno(NP_ERR_DENIED, error, "cannot run on node %d (cpu %d): a cpuset allows none of its CPUs",
                          node, cpu);
  }
  return npi_fail_errno(NP_ERR_SYSTEM, error, "cannot run on node %d (cpu %d)", node, cpu);
}

int npi_numa_affinity_save(struct npi_numa_affinity *affinity) {
  memset(affinity, 0, sizeof *affinity);
  if (syscall(SYS_sched_getaffinity, 0, sizeof affinity->cpu_mask, affinity->cpu_mask) > 0) return 0;
  return npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot ask for this thread's CPUs");
}

int npi_numa_affinity_restore(const struct npi_numa_affinity *affinity) {
  int error = set_affinity(affinity->cpu_mask);
  return error == 0 ? 0 : npi_fail_errno(NP_ERR_SYSTEM, error, "cannot give this thread its CPUs back");
}

int npi_numa_current_node(void) {
  unsigned cpu = 0, node = 0;
  if (syscall(SYS_getcpu, &cpu, &node, NULL) != 0) return 0;
  return (int)node;
}
