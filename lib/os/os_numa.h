/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NUMA nodes: which there are, put memory on one, see where it really is, run on one.
 *
 * A machine, kernel or container without NUMA looks like one node 0 with all CPUs; nothing here needs libnuma.
 */
#ifndef NPI_OS_NUMA_H
#define NPI_OS_NUMA_H

#include <stdint.h>

enum { NPI_NODES_MAX = 64, NPI_CPU_WORDS = 16 };
enum { NPI_NUMA_REFUSED = 1 };

struct npi_numa_node {
  int32_t id;                       /* the kernel's number; numbers may have gaps */
  uint32_t n_cpus;                  /* 0: a node of memory only */
  uint64_t memory_bytes;            /* 0: the kernel does not say */
  uint64_t cpu_mask[NPI_CPU_WORDS]; /* bit c % 64 of word c / 64: CPU c, up to 1023 */
};

struct npi_numa_topology {
  uint32_t n_nodes; /* at least 1 after a successful discovery */
  struct npi_numa_node node[NPI_NODES_MAX];
};

/* A thread's set of CPUs, to be put back after npi_numa_pin_thread(). */
struct npi_numa_affinity {
  uint64_t cpu_mask[NPI_CPU_WORDS];
};

/* The nodes with memory that this process may use. Ids of NPI_NODES_MAX and more are left out, with a log line. */
int npi_numa_discover(struct npi_numa_topology *topology);

/* The same from a folder that is laid out like /sys/devices/system/node, without a look at this process's limits. */
int npi_numa_discover_in(const char *folder, struct npi_numa_topology *topology);

/*
 * Sets the policy of a shared mapping for pages that are not there yet, for every process that maps the object:
 * strict: only this node (the kernel may kill a process that asks for a page where the node has none: look at
 * npi_numa_memory_available() first), else: this node where possible. Pages already there stay where they are.
 * NPI_NUMA_REFUSED, with the reason in the detail text, where the kernel or a container forbids the call.
 */
int npi_numa_bind(void *address, uint64_t bytes, int node, int strict);

/*
 * Counts per node where the pages of a mapping are. Only pages in this process's page tables can be seen, so populate
 * first; others, and all where the kernel forbids the question, count as unknown. page_bytes is the step.
 * unknown may not be NULL.
 */
int npi_numa_measure(const void *address, uint64_t bytes, uint64_t page_bytes, uint64_t pages_on[NPI_NODES_MAX],
                     uint64_t *unknown);

/*
 * Free memory of a node plus what its page cache could give up, less what the kernel keeps for itself: who asks for that
 * is not served, and where a policy allows no other node somebody is killed. NP_ERR_NOT_FOUND where the kernel does not say.
 */
int npi_numa_memory_available(int node, uint64_t *bytes);

/* That last part, from a file like /proc/zoneinfo; 0 where it cannot be read. */
uint64_t npi_numa_memory_kept_from(const char *path, int node);

/*
 * The calling thread runs only on the CPUs of the node (a node id, not an index), or with cpu >= 0 only on that one,
 * which must be of the node. NP_ERR_NOT_FOUND: no such node or CPU; NP_ERR_DENIED: a cpuset allows none of them.
 */
int npi_numa_pin_thread(const struct npi_numa_topology *topology, int node, int cpu);

int npi_numa_affinity_save(struct npi_numa_affinity *affinity);
int npi_numa_affinity_restore(const struct npi_numa_affinity *affinity);

/* The node of the CPU that runs the caller at this moment; 0 where the kernel does not say. */
int npi_numa_current_node(void);

#endif
