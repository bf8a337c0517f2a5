/* SPDX-License-Identifier: Apache-2.0 */
/* What control groups leave of memory: both versions, groups within groups, files that are not there. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/os_cgroup.h"

TestSuite(os_cgroup, .timeout = 60);

static char folder[64];
static char where[256];

static void write_file(const char *name, const char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  for (char *slash = strchr(path + strlen(folder) + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    mkdir(path, 0700);
    *slash = '/';
  }
  FILE *file = fopen(path, "w");
  cr_assert_not_null(file);
  fputs(text, file);
  fclose(file);
}

static void set_up(void) {
  snprintf(folder, sizeof folder, "/tmp/numapool-test-cgroup.XXXXXX");
  cr_assert_not_null(mkdtemp(folder));
}
static void tear_down(void) {
  char command[128];
  snprintf(command, sizeof command, "rm -r %s", folder);
  cr_assert_eq(system(command), 0);
}

static uint64_t room(void) {
  char membership[128], root[128];
  uint64_t bytes;
  snprintf(membership, sizeof membership, "%s/membership", folder);
  snprintf(root, sizeof root, "%s/root", folder);
  npi_cgroup_memory_room_at(membership, root, &bytes, where, sizeof where);
  return bytes;
}
static int ends_with(const char *end) {
  return strlen(where) >= strlen(end) && strcmp(where + strlen(where) - strlen(end), end) == 0;
}

Test(os_cgroup, version_two_file_caches_count_as_free, .init = set_up, .fini = tear_down) {
  write_file("membership", "0::/service/inner\n");
  write_file("root/service/inner/memory.max", "1000000\n");
  write_file("root/service/inner/memory.current", "600000\n");
  write_file("root/service/inner/memory.stat", "anon 300000\nactive_file 7000\ninactive_file 100000\nslab 5\n");
  cr_assert_eq(room(), 507000);
  cr_assert(ends_with("/service/inner"), "%s", where);
}

Test(os_cgroup, the_narrowest_group_above_counts, .init = set_up, .fini = tear_down) {
  write_file("membership", "0::/service/inner\n");
  write_file("root/service/inner/memory.max", "max\n");
  write_file("root/service/inner/memory.current", "600000\n");
  write_file("root/service/memory.max", "700000\n");
  write_file("root/service/memory.current", "690000\n");
  cr_assert_eq(room(), 10000);
  cr_assert(ends_with("/service"), "%s", where);
  write_file("root/service/memory.current", "800000\n");
  cr_assert_eq(room(), 0, "over its limit: nothing is left");
}

Test(os_cgroup, version_one_with_its_number_for_no_limit, .init = set_up, .fini = tear_down) {
  write_file("membership", "9:name=systemd:/\n4:cpu,memory:/a\n0::/\n");
  write_file("root/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
  write_file("root/memory/a/memory.usage_in_bytes", "5\n");
  cr_assert_eq(room(), UINT64_MAX);
  cr_assert_str_empty(where);
  write_file("root/memory/a/memory.limit_in_bytes", "50000\n");
  write_file("root/memory/a/memory.usage_in_bytes", "20000\n");
  write_file("root/memory/a/memory.stat", "inactive_file 9000\ntotal_inactive_file 1000\ntotal_active_file 500\n");
  cr_assert_eq(room(), 31500);
}

Test(os_cgroup, a_path_of_the_host_in_a_container_leads_to_the_root, .init = set_up, .fini = tear_down) {
  write_file("membership", "0::/docker/0123\n");
  write_file("root/memory.max", "4096\n");
  write_file("root/memory.current", "96\n");
  cr_assert_eq(room(), 4000);
}

Test(os_cgroup, where_nothing_is_said_nothing_is_limited, .init = set_up, .fini = tear_down) {
  cr_assert_eq(room(), UINT64_MAX, "no membership");
  write_file("membership", "\n::\nnonsense\n3:cpu:/x\n");
  cr_assert_eq(room(), UINT64_MAX);
  write_file("membership", "0::/x\n");
  cr_assert_eq(room(), UINT64_MAX, "no such group");
  write_file("root/x/memory.max", "12345\n");
  cr_assert_eq(room(), UINT64_MAX, "no usage");
}

Test(os_cgroup, of_this_process) {
  uint64_t bytes = 1;
  npi_cgroup_memory_room(&bytes, NULL, 0);
  cr_assert_gt(bytes, 1, "it runs, so something is left");
}

/* Where this process may make a group that freezes. */
static int make_freezer(char path[64], int *is_v2) {
  *is_v2 = access("/sys/fs/cgroup/cgroup.controllers", R_OK) == 0;
  snprintf(path, 64, "/sys/fs/cgroup%s/numapool-test-%d", *is_v2 ? "" : "/freezer", (int)getpid());
  return mkdir(path, 0755) == 0;
}
static int write_value(const char *path, const char *name, const char *text) {
  char file[128];
  snprintf(file, sizeof file, "%s/%s", path, name);
  int fd = open(file, O_WRONLY | O_CLOEXEC);
  int is_written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
  if (fd >= 0) close(fd);
  return is_written;
}

Test(os_cgroup, a_frozen_process_is_known_as_one) {
  char path[64], number[16];
  int is_v2, is_frozen = 0;
  if (!make_freezer(path, &is_v2)) cr_skip_test("no control group can be made here");
  pid_t child = fork();
  if (child == 0) {
    for (;;) pause();
  }
  cr_assert_eq(npi_cgroup_is_frozen(child), 0);
  snprintf(number, sizeof number, "%d", (int)child);
  int can = write_value(path, "cgroup.procs", number) &&
            write_value(path, is_v2 ? "cgroup.freeze" : "freezer.state", is_v2 ? "1" : "FROZEN");
  for (int i = 0; can && !is_frozen && i < 500; i++) {
    is_frozen = npi_cgroup_is_frozen(child);
    usleep(10000);
  }
  write_value(path, is_v2 ? "cgroup.freeze" : "freezer.state", is_v2 ? "0" : "THAWED");
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
  for (int i = 0; i < 100 && rmdir(path) != 0; i++) usleep(10000);
  if (!can) cr_skip_test("no process can be frozen here");
  cr_assert(is_frozen);
  cr_assert_eq(npi_cgroup_is_frozen(child), 0, "it is gone");
}
