/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes: found on this machine and in made-up ones, bound to, measured. */
#include <criterion/criterion.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_memory.h"
#include "os/os_numa.h"
#include "tests/support/child.h"

enum { BYTES = 3000 * 4096 }; /* more than two batches of the query */

TestSuite(os_numa, .timeout = 60);

static struct npi_numa_topology topology;
static char folder[64];

static void write_file(const char *name, const char *text) {
  char path[256];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  char *slash = strrchr(path, '/');
  *slash = '\0';
  mkdir(path, 0700);
  *slash = '/';
  FILE *file = fopen(path, "w");
  cr_assert_not_null(file);
  fputs(text, file);
  fclose(file);
}

static void make_folder(void) {
  snprintf(folder, sizeof folder, "/tmp/numapool-test-nodes.XXXXXX");
  cr_assert_not_null(mkdtemp(folder));
}

static void remove_folder(void) {
  char command[128];
  snprintf(command, sizeof command, "rm -r %s", folder);
  cr_assert_eq(system(command), 0);
}

Test(os_numa, this_machine_has_at_least_one_node_with_cpus) {
  /* Proves: discovery works here, whatever the kernel offers. */
  uint32_t n_cpus = 0;
  cr_assert_eq(npi_numa_discover(&topology), 0, "%s", npi_detail());
  cr_assert_geq(topology.n_nodes, 1);
  for (uint32_t i = 0; i < topology.n_nodes; i++) n_cpus += topology.node[i].n_cpus;
  cr_assert_geq(n_cpus, 1);
  int node = npi_numa_current_node();
  cr_assert_geq(node, 0);
}

Test(os_numa, nodes_with_gaps_memory_only_nodes_and_cpu_only_nodes_are_told_apart, .init = make_folder,
     .fini = remove_folder) {
  /* Proves: ids are the kernel's, a node without memory is left out, one without CPUs is kept. */
  write_file("online", "0,2-4\n");
  write_file("node0/cpulist", "0-1,64\n");
  write_file("node0/meminfo", "Node 0 MemTotal:       1024 kB\nNode 0 MemFree:        512 kB\n");
  write_file("node2/cpulist", "\n");
  write_file("node2/meminfo", "Node 2 MemTotal:       2048 kB\n");
  write_file("node3/cpulist", "2-3\n");
  write_file("node3/meminfo", "Node 3 MemTotal:       0 kB\n");
  write_file("node4/cpulist", "1023\n");
  write_file("node4/meminfo", "Node 4 MemTotal:       4096 kB\n");
  cr_assert_eq(npi_numa_discover_in(folder, &topology), 0, "%s", npi_detail());
  cr_assert_eq(topology.n_nodes, 3);
  cr_assert_eq(topology.node[0].id, 0);
  cr_assert_eq(topology.node[0].n_cpus, 3);
  cr_assert_eq(topology.node[0].cpu_mask[0], 3);
  cr_assert_eq(topology.node[0].cpu_mask[1], 1);
  cr_assert_eq(topology.node[0].memory_bytes, 1024 * 1024);
  cr_assert_eq(topology.node[1].id, 2);
  cr_assert_eq(topology.node[1].n_cpus, 0);
  cr_assert_eq(topology.node[2].id, 4);
  cr_assert_eq(topology.node[2].cpu_mask[15], UINT64_C(1) << 63);
  cr_assert_eq(npi_numa_pin_thread(&topology, 2, -1), NP_ERR_NOT_FOUND);
  cr_assert_eq(npi_numa_pin_thread(&topology, 3, -1), NP_ERR_NOT_FOUND);
  cr_assert_eq(npi_numa_pin_thread(&topology, 0, 2), NP_ERR_NOT_FOUND);
  cr_assert_eq(npi_numa_pin_thread(&topology, 0, 1 << 20), NP_ERR_NOT_FOUND);
}

Test(os_numa, nonsense_in_place_of_a_list_is_an_error, .init = make_folder, .fini = remove_folder) {
  /* Proves: each malformed list is refused; a missing one is "not found". */
  static const char *const lists[] = {"x", "0-", "3-1", "0;1", "-1", "0-99999999999", "1 2"};
  cr_assert_eq(npi_numa_discover_in(folder, &topology), NP_ERR_NOT_FOUND);
  for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
    write_file("online", lists[i]);
    cr_assert_eq(npi_numa_discover_in(folder, &topology), NP_ERR_SYSTEM, "\"%s\" was taken", lists[i]);
  }
}

static void open_object(int *fd, void **address) {
  cr_assert_eq(npi_memory_create_memfd("numapool-test", BYTES, 0, fd), 0);
  cr_assert_eq(npi_memory_map(*fd, 0, BYTES, 1, address), 0);
}

Test(os_numa, bound_pages_are_measured_on_their_node) {
  /* Proves: for each node of this machine, all pages are home, counted in batches without loss. */
  uint64_t pages_on[NPI_NODES_MAX], unknown;
  cr_assert_eq(npi_numa_discover(&topology), 0);
  for (uint32_t i = 0; i < topology.n_nodes; i++) {
    int fd, node = topology.node[i].id;
    void *address;
    open_object(&fd, &address);
    int status = npi_numa_bind(address, BYTES, node, i % 2 == 0);
    if (status == NPI_NUMA_REFUSED) cr_skip_test("binding is refused here: %s", npi_detail());
    cr_assert_eq(status, 0, "%s", npi_detail());
    cr_assert_eq(npi_memory_reserve(fd, 0, BYTES), 0);
    cr_assert_eq(npi_memory_populate(address, BYTES, 1), 0);
    cr_assert_eq(npi_numa_measure(address, BYTES, 4096, pages_on, &unknown), 0, "%s", npi_detail());
    cr_assert_eq(unknown, 0);
    cr_assert_eq(pages_on[node], BYTES / 4096);
    npi_memory_unmap(address, BYTES);
    close(fd);
  }
}

Test(os_numa, pages_that_are_not_there_count_as_unknown) {
  /* Proves: a hole is never reported as placed. */
  uint64_t pages_on[NPI_NODES_MAX], unknown, sum = 0;
  int fd;
  void *address;
  open_object(&fd, &address);
  ((volatile char *)address)[5 * 4096] = 1;
  cr_assert_eq(npi_numa_measure(address, BYTES, 4096, pages_on, &unknown), 0);
  for (int node = 0; node < NPI_NODES_MAX; node++) sum += pages_on[node];
  if (unknown == BYTES / 4096 && sum == 0) cr_skip_test("nobody here says where pages are");
  cr_assert_eq(unknown, BYTES / 4096 - 1);
  cr_assert_eq(sum, 1);
  cr_assert_eq(npi_numa_measure(address, BYTES, 0, pages_on, &unknown), NP_ERR_ARGUMENT);
}

Test(os_numa, what_the_kernel_keeps_for_itself_is_not_available, .init = make_folder, .fini = remove_folder) {
  /* Proves: per zone of that node its high mark and the most that it protects, but no more than it has. */
  char path[80];
  write_file("zones/info",
             "Node 0, zone      DMA\n  per-node stats\n      nr_inactive_anon 1\n  pages free     2816\n"
             "        boost    0\n        min      64\n        low      80\n        high     96\n"
             "        spanned  4095\n        present  3998\n        managed  100\n        cma      0\n"
             "        protection: (0, 2979, 1970, 0, 0)\n"
             "Node 0, zone    DMA32\n  pages free     500\n        high     1000\n        managed  90000\n"
             "        protection: (0, 0, 250, 251)\n  pagesets\n    cpu: 0\n              high:  378\n"
             "Node 1, zone   Normal\n  pages free     7\n        high     40\n        managed  90000\n"
             "        protection: (0, 0, 0)\n");
  snprintf(path, sizeof path, "%s/zones/info", folder);
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  cr_assert_eq(npi_numa_memory_kept_from(path, 0), (100 + 1251) * page);
  cr_assert_eq(npi_numa_memory_kept_from(path, 1), 40 * page);
  cr_assert_eq(npi_numa_memory_kept_from(path, 2), 0);
  cr_assert_eq(npi_numa_memory_kept_from("/nowhere", 0), 0);
}

Test(os_numa, a_node_that_is_not_there_is_refused) {
  /* Proves: a wrong number in a configuration is an error, not memory somewhere. */
  int fd;
  void *address;
  uint64_t bytes;
  open_object(&fd, &address);
  cr_assert_eq(npi_numa_bind(address, BYTES, -1, 0), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_numa_bind(address, BYTES, NPI_NODES_MAX, 0), NP_ERR_ARGUMENT);
  int status = npi_numa_bind(address, BYTES, NPI_NODES_MAX - 1, 1);
  if (status == NPI_NUMA_REFUSED) cr_skip_test("binding is refused here: %s", npi_detail());
  cr_assert_eq(status, NP_ERR_NOT_FOUND, "%d: %s", status, npi_detail());
  cr_assert_eq(npi_numa_memory_available(NPI_NODES_MAX - 1, &bytes), NP_ERR_NOT_FOUND);
}

static int bind_forbidden(const void *argument) {
  int fd, error = *(const int *)argument;
  void *address;
  uint64_t pages_on[NPI_NODES_MAX], unknown;
  CHILD_EXPECT(npi_memory_create_memfd("numapool-test", BYTES, 0, &fd) == 0);
  CHILD_EXPECT(npi_memory_map(fd, 0, BYTES, 1, &address) == 0);
  if (forbid_system_call("mbind", error) != 0 || forbid_system_call("move_pages", error) != 0) return CHILD_SKIP;
  CHILD_EXPECT(npi_numa_bind(address, BYTES, 0, 1) == NPI_NUMA_REFUSED);
  CHILD_EXPECT(strstr(npi_detail(), error == EPERM ? "EPERM" : "ENOSYS") != NULL);
  CHILD_EXPECT(npi_numa_measure(address, BYTES, 4096, pages_on, &unknown) == 0);
  CHILD_EXPECT(unknown == BYTES / 4096);
  return 0;
}

Test(os_numa, a_container_that_forbids_binding_and_measuring_is_a_condition) {
  /* Proves: both refusals are told apart from failures, with the reason in words. */
  static const int errors[] = {EPERM, ENOSYS};
  for (int i = 0; i < 2; i++) {
    int result = in_child(bind_forbidden, &errors[i]);
    if (result == CHILD_SKIP) cr_skip_test("no seccomp here");
    cr_assert_eq(result, 0);
  }
}

Test(os_numa, a_pinned_thread_runs_on_its_node_and_gets_its_cpus_back) {
  /* Proves: pinning to a node, to one CPU of it, and restoring. */
  struct npi_numa_affinity before, now;
  cr_assert_eq(npi_numa_discover(&topology), 0);
  cr_assert_eq(npi_numa_affinity_save(&before), 0);
  for (uint32_t i = 0; i < topology.n_nodes; i++) {
    if (topology.node[i].n_cpus == 0) continue;
    int status = npi_numa_pin_thread(&topology, topology.node[i].id, -1);
    if (status == NP_ERR_DENIED) continue; /* a cpuset keeps us from this node */
    cr_assert_eq(status, 0, "%s", npi_detail());
    cr_assert_eq(npi_numa_current_node(), topology.node[i].id);
    int cpu = sched_getcpu();
    cr_assert_eq(npi_numa_pin_thread(&topology, topology.node[i].id, cpu), 0, "%s", npi_detail());
    cr_assert_eq(sched_getcpu(), cpu);
    cr_assert_eq(npi_numa_affinity_restore(&before), 0);
    cr_assert_eq(npi_numa_affinity_save(&now), 0);
    cr_assert_eq(memcmp(&before, &now, sizeof now), 0);
  }
}
