/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tests of a machine with several NUMA nodes have in common. They ask the kernel themselves, with nothing of lib/os:
 * what the broker says of its memory is what they check.
 */
#ifndef NUMAPOOL_TESTS_VM_NODES_H
#define NUMAPOOL_TESTS_VM_NODES_H

#include <criterion/criterion.h>
#include <fcntl.h>
#include <jansson.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "support/instance.h"

enum { NODES = 4, PAGE = 4096 };

/* The first CPU of a node; -1: there is none. */
static inline int cpu_of_node(int node) {
  char path[64];
  int cpu = -1;
  snprintf(path, sizeof path, "/sys/devices/system/node/node%d/cpulist", node);
  FILE *file = fopen(path, "re");
  if (file == NULL) return -1;
  if (fscanf(file, "%d", &cpu) != 1) cpu = -1;
  fclose(file);
  return cpu;
}

/* The calling process runs on that node only. */
static inline int run_on_node(int node) {
  cpu_set_t set;
  int cpu = cpu_of_node(node);
  CPU_ZERO(&set);
  if (cpu < 0) return -1;
  CPU_SET((size_t)cpu, &set);
  return sched_setaffinity(0, sizeof set, &set);
}

/* Adds to on[] how many pages of what is mapped here are on each node; on[NODES]: not there, or no answer. */
static inline void count_pages(const void *address, size_t bytes, uint64_t on[NODES + 1]) {
  enum { BATCH = 512 };
  void *pages[BATCH];
  int where[BATCH];
  uintptr_t at = (uintptr_t)address & ~(uintptr_t)(PAGE - 1), end = (uintptr_t)address + bytes;
  while (at < end) {
    unsigned long n = 0;
    for (; n < BATCH && at < end; n++, at += PAGE) {
      pages[n] = (void *)at;
      where[n] = -1;
    }
    long result = syscall(SYS_move_pages, 0, n, pages, NULL, where, 0);
    for (unsigned long i = 0; i < n; i++) on[result == 0 && where[i] >= 0 && where[i] < NODES ? where[i] : NODES]++;
  }
}

/* The same for a shared-memory object of the broker, by its name in /dev/shm, or as a memfd that the broker has. */
static inline void count_object(pid_t broker, const char *object, int is_memfd, uint64_t on[NODES + 1]) {
  char path[320], target[320];
  struct stat facts;
  int fd = -1;
  snprintf(path, sizeof path, "/dev/shm/%s", object);
  if (!is_memfd) fd = open(path, O_RDONLY | O_CLOEXEC);
  for (int i = 0; is_memfd && fd < 0 && i < 1024; i++) {
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)broker, i);
    ssize_t n = readlink(path, target, sizeof target - 1);
    target[n < 0 ? 0 : n] = '\0';
    char *name = strstr(target, object);
    if (name == NULL || strcmp(name + strlen(object), " (deleted)") != 0) continue;
    fd = open(path, O_RDONLY | O_CLOEXEC);
  }
  cr_assert(fd >= 0 && fstat(fd, &facts) == 0, "cannot open %s", object);
  void *memory = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
  cr_assert_neq(memory, MAP_FAILED);
  close(fd);
  count_pages(memory, (size_t)facts.st_size, on);
  munmap(memory, (size_t)facts.st_size);
}

/* What `numapoolctl --json VERB` prints. */
static inline json_t *ctl_json(const char *verb) {
  char command[400];
  json_error_t error;
  snprintf(command, sizeof command, "%s --json %s", NUMAPOOLCTL_PATH, verb);
  FILE *pipe = popen(command, "re");
  cr_assert_not_null(pipe);
  json_t *document = json_loadf(pipe, 0, &error);
  int status = pclose(pipe);
  cr_assert(status == 0 && document != NULL, "%s: status %d, %s", command, status, error.text);
  return document;
}

static inline int64_t json_number(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  cr_assert(json_is_integer(value), "%s is not a number", key);
  return json_integer_value(value);
}

struct placement {
  uint64_t segments, pages, home, away, unknown; /* counted here, in pages of 4 KiB */
  uint64_t of_node[NODES];                       /* segments that say they are of this node */
  uint64_t of_node_by_pid[NODES];                /* of these, leased to the process that was asked about */
  uint64_t said_home, said_away, said_unknown;   /* as the broker says it, in the same pages */
};

/* Looks at every page of every segment; pid 0: nobody in particular. */
static inline void look_at_segments(const struct instance *instance, pid_t pid, struct placement *placement) {
  json_t *document = ctl_json("segments");
  size_t i;
  json_t *row;
  memset(placement, 0, sizeof *placement);
  json_array_foreach(json_object_get(document, "segments"), i, row) {
    uint64_t on[NODES + 1] = {0};
    int node = (int)json_number(row, "node");
    const json_t *said = json_object_get(row, "pages"), *owner = json_object_get(row, "pid");
    uint64_t unit = (uint64_t)json_number(row, "page_bytes") / PAGE;
    const char *backend = json_string_value(json_object_get(row, "backend"));
    cr_assert(node >= 0 && node < NODES);
    count_object(instance->pid, json_string_value(json_object_get(row, "object")), strcmp(backend, "memfd") == 0, on);
    placement->segments++;
    placement->of_node[node]++;
    if (pid != 0 && json_is_integer(owner) && json_integer_value(owner) == pid) placement->of_node_by_pid[node]++;
    for (int k = 0; k < NODES; k++) {
      placement->pages += on[k];
      *(k == node ? &placement->home : &placement->away) += on[k];
    }
    placement->pages += on[NODES];
    placement->unknown += on[NODES];
    placement->said_home += (uint64_t)json_number(said, "home") * unit;
    placement->said_away += (uint64_t)json_number(said, "away") * unit;
    placement->said_unknown += (uint64_t)json_number(said, "unknown") * unit;
  }
  json_decref(document);
}

#endif
