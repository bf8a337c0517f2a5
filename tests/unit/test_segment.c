/* SPDX-License-Identifier: Apache-2.0 */
/* One suite for both kinds of segment, then what a machine can do to them. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "os/os_memory.h"
#include "os/os_numa.h"
#include "shm/leftovers.h"
#include "shm/segment.h"
#include "tests/support/child.h"

enum { BYTES = 4 << 20, PAGES = BYTES / 4096 };

TestSuite(segment, .timeout = 60);

struct kind {
  enum npi_segment_backend backend;
  enum npi_numa_mode numa;
};

static struct kind kinds[] = {
    {NPI_BACKEND_POSIX, NPI_NUMA_OFF}, {NPI_BACKEND_POSIX, NPI_NUMA_PREFER}, {NPI_BACKEND_POSIX, NPI_NUMA_STRICT},
    {NPI_BACKEND_MEMFD, NPI_NUMA_OFF}, {NPI_BACKEND_MEMFD, NPI_NUMA_PREFER}, {NPI_BACKEND_MEMFD, NPI_NUMA_STRICT},
};

#define FOR_EACH_KIND(test)                                                               \
  ParameterizedTestParameters(segment, test) {                                            \
    return cr_make_param_array(struct kind, kinds, sizeof kinds / sizeof kinds[0], NULL); \
  }                                                                                       \
  ParameterizedTest(struct kind *kind, segment, test)

static char name[96];

/* The lowest node of this machine. */
static int some_node(void) {
  struct npi_numa_topology topology;
  return npi_numa_discover(&topology) == 0 ? topology.node[0].id : 0;
}

static int binding_is_possible(void) {
  int fd, possible = 0;
  void *address;
  if (npi_memory_create_memfd("numapool-test", 4096, 0, &fd) != 0) return 0;
  if (npi_memory_map(fd, 0, 4096, 1, &address) == 0) {
    possible = npi_numa_bind(address, 4096, some_node(), 0) == 0;
    npi_memory_unmap(address, 4096);
  }
  close(fd);
  return possible;
}

static struct npi_segment_options options_of(const struct kind *kind) {
  snprintf(name, sizeof name, "numapool-test-segment.%d", (int)getpid());
  return (struct npi_segment_options){.backend = kind->backend,
                                      .numa = kind->numa,
                                      .huge = NPI_HUGE_NEVER,
                                      .name = name,
                                      .bytes = BYTES,
                                      .node = some_node()};
}

static int exists(const char *object) {
  char path[1024];
  snprintf(path, sizeof path, "/dev/shm/%s", object);
  return access(path, F_OK) == 0;
}

static void skip_without_binding(const struct kind *kind) {
  if (kind->numa == NPI_NUMA_STRICT && !binding_is_possible())
    cr_skip_test("binding is refused here: %s", npi_detail());
}

FOR_EACH_KIND(a_segment_has_all_its_pages_at_home_and_both_descriptors) {
  /* Proves: after creation every page is there, measured on its node, and readers get a descriptor of their own. */
  struct npi_segment segment;
  struct npi_segment_options options = options_of(kind);
  struct stat facts;
  skip_without_binding(kind);
  int n_before = count_descriptors();
  cr_assert_eq(npi_segment_create(&segment, &options), 0, "%s", npi_detail());
  cr_assert_eq(segment.bytes, BYTES);
  cr_assert_eq(segment.page_bytes, 4096);
  cr_assert_eq(segment.pages_home + segment.pages_away + segment.pages_unknown, PAGES);
  if (kind->numa == NPI_NUMA_STRICT) cr_assert_eq(segment.pages_home, PAGES);
  if (kind->numa == NPI_NUMA_STRICT) cr_assert_eq(segment.bound, 1);
  if (kind->numa == NPI_NUMA_OFF) cr_assert_eq(segment.bound, 0);
  cr_assert_eq(fstat(segment.fd, &facts), 0);
  cr_assert_eq(facts.st_blocks * 512, BYTES, "every page is allocated");
  cr_assert_eq(facts.st_mode & 0777, 0600);
  cr_assert_eq(fcntl(segment.readonly_fd, F_GETFL) & O_ACCMODE, O_RDONLY);
  cr_assert_eq(npi_memory_is_sealed(segment.fd), kind->backend == NPI_BACKEND_MEMFD);
  cr_assert_eq(exists(name), kind->backend == NPI_BACKEND_POSIX);
  npi_segment_destroy(&segment);
  cr_assert_eq(segment.fd, -1);
  cr_assert_eq(segment.readonly_fd, -1);
  cr_assert_null(segment.address);
  cr_assert_not(exists(name));
  cr_assert_eq(count_descriptors(), n_before);
  npi_segment_destroy(&segment); /* an empty one is fine */
}

FOR_EACH_KIND(what_the_writer_stores_a_reader_of_the_read_only_descriptor_sees) {
  /* Proves: both descriptors are the same memory, and the second cannot be mapped writable. */
  struct npi_segment segment;
  struct npi_segment_options options = options_of(kind);
  void *reader;
  skip_without_binding(kind);
  cr_assert_eq(npi_segment_create(&segment, &options), 0, "%s", npi_detail());
  strcpy((char *)segment.address + BYTES - 64, "last line");
  npi_segment_unmap(&segment);
  npi_segment_unmap(&segment); /* twice is fine */
  cr_assert_eq(npi_memory_map(segment.readonly_fd, 0, BYTES, 1, &reader), NP_ERR_DENIED);
  cr_assert_eq(npi_memory_map(segment.readonly_fd, 0, BYTES, 0, &reader), 0);
  cr_assert_str_eq((char *)reader + BYTES - 64, "last line");
  npi_memory_unmap(reader, BYTES);
  npi_segment_destroy(&segment);
}

FOR_EACH_KIND(a_destroyed_segment_gives_its_pages_back_although_a_client_still_maps_it) {
  /* Proves: a reader that never unmaps keeps no memory. */
  struct npi_segment segment;
  struct npi_segment_options options = options_of(kind);
  struct stat facts;
  skip_without_binding(kind);
  cr_assert_eq(npi_segment_create(&segment, &options), 0, "%s", npi_detail());
  int kept = dup(segment.readonly_fd);
  void *address;
  cr_assert_eq(npi_memory_map(kept, 0, BYTES, 0, &address), 0);
  npi_segment_destroy(&segment);
  cr_assert_eq(fstat(kept, &facts), 0);
  cr_assert_eq(facts.st_blocks, 0);
  npi_memory_unmap(address, BYTES);
  close(kept);
}

FOR_EACH_KIND(a_segment_can_be_measured_again_with_and_without_a_mapping) {
  /* Proves: the broker finds the same pages later, keeps no mapping, and changes no byte. */
  struct npi_segment segment;
  struct npi_segment_options options = options_of(kind);
  skip_without_binding(kind);
  cr_assert_eq(npi_segment_create(&segment, &options), 0, "%s", npi_detail());
  uint64_t home = segment.pages_home, away = segment.pages_away;
  strcpy(segment.address, "content");
  segment.pages_home = 12345;
  segment.pages_away = 5;
  cr_assert_eq(npi_segment_remeasure(&segment), 0, "%s", npi_detail());
  cr_assert_not_null(segment.address);
  cr_assert_eq(segment.pages_home, home);
  cr_assert_eq(segment.pages_away, away);
  cr_assert_str_eq(segment.address, "content");
  npi_segment_unmap(&segment);
  segment.pages_home = 12345;
  segment.pages_away = 5;
  cr_assert_eq(npi_segment_remeasure(&segment), 0, "%s", npi_detail());
  cr_assert_null(segment.address);
  cr_assert_eq(segment.pages_home, home);
  cr_assert_eq(segment.pages_away, away);
  npi_segment_destroy(&segment);
  cr_assert_eq(npi_segment_remeasure(&segment), NP_ERR_STATE);
}

Test(segment, a_taken_name_is_an_error_and_stays_its_owners) {
  /* Proves: a failed creation does not remove somebody else's object. */
  struct npi_segment first, second;
  struct kind kind = {NPI_BACKEND_POSIX, NPI_NUMA_OFF};
  struct npi_segment_options options = options_of(&kind);
  cr_assert_eq(npi_segment_create(&first, &options), 0);
  int n_before = count_descriptors();
  cr_assert_eq(npi_segment_create(&second, &options), NP_ERR_EXISTS);
  cr_assert_eq(second.fd, -1);
  cr_assert(exists(name));
  cr_assert_eq(count_descriptors(), n_before);
  npi_segment_destroy(&first);
}

Test(segment, options_that_cannot_be_are_refused_with_the_value) {
  /* Proves: each is refused before anything is made. */
  struct npi_segment segment;
  struct kind kind = {NPI_BACKEND_POSIX, NPI_NUMA_PREFER};
  const struct npi_segment_options good = options_of(&kind);
  struct npi_segment_options bad = good;
  char long_name[200];
  memset(long_name, 'n', sizeof long_name - 1);
  long_name[sizeof long_name - 1] = '\0';
  bad.bytes = 4095;
  cr_assert_eq(npi_segment_create(&segment, &bad), NP_ERR_ARGUMENT);
  cr_assert_not_null(strstr(npi_detail(), "4095"));
  bad.bytes = 0;
  cr_assert_eq(npi_segment_create(&segment, &bad), NP_ERR_ARGUMENT);
  bad = good;
  bad.node = -1;
  cr_assert_eq(npi_segment_create(&segment, &bad), NP_ERR_ARGUMENT);
  bad.node = NPI_NODES_MAX;
  cr_assert_eq(npi_segment_create(&segment, &bad), NP_ERR_ARGUMENT);
  bad = good;
  bad.name = long_name;
  cr_assert_eq(npi_segment_create(&segment, &bad), NP_ERR_ARGUMENT);
  bad = good;
  bad.huge = NPI_HUGE_EXPLICIT;
  cr_assert_eq(npi_segment_create(&segment, &bad), NP_ERR_ARGUMENT, "POSIX shared memory has no huge pages");
  bad.backend = NPI_BACKEND_MEMFD;
  bad.bytes = 4096;
  cr_assert_eq(npi_segment_create(&segment, &bad), NP_ERR_ARGUMENT);
  cr_assert_not(exists(name));
}

struct log_memory {
  int n_refused, n_huge;
  char line[1024];
};

static void remember(enum npi_log_level level, const char *line, void *context) {
  struct log_memory *memory = context;
  (void)level;
  if (strncmp(line, "numa.bind_refused ", 18) == 0) memory->n_refused++;
  if (strncmp(line, "segment.no_huge_pages ", 22) == 0) memory->n_huge++;
  snprintf(memory->line, sizeof memory->line, "%s", line);
}

static int create_where_binding_is_forbidden(const void *argument) {
  const struct kind *kind = argument;
  struct npi_segment segment;
  struct npi_segment_options options = options_of(kind);
  struct npi_numa_affinity before, after;
  struct log_memory memory = {0};
  struct npi_numa_topology topology;
  /* One CPU only: a thread that is not put back shows, also on a machine of one node. */
  if (npi_numa_discover(&topology) == 0) npi_numa_pin_thread(&topology, npi_numa_current_node(), sched_getcpu());
  if (forbid_system_call("mbind", EPERM) != 0) return CHILD_SKIP;
  npi_log_set_sink(remember, &memory, NPI_LOG_INFO);
  int n_before = count_descriptors();
  CHILD_EXPECT(npi_numa_affinity_save(&before) == 0);
  int status = npi_segment_create(&segment, &options);
  CHILD_EXPECT(npi_numa_affinity_save(&after) == 0);
  CHILD_EXPECT(memcmp(&before, &after, sizeof before) == 0);
  if (kind->numa == NPI_NUMA_STRICT) {
    CHILD_EXPECT(status == NP_ERR_DENIED);
    CHILD_EXPECT(strstr(npi_detail(), "mbind is forbidden") != NULL);
    CHILD_EXPECT(strstr(npi_detail(), "SYS_NICE") != NULL);
    CHILD_EXPECT(memory.n_refused == 0);
  } else {
    CHILD_EXPECT(status == 0);
    CHILD_EXPECT(segment.bound == 0);
    CHILD_EXPECT(segment.pages_home + segment.pages_away + segment.pages_unknown == PAGES);
    CHILD_EXPECT(memory.n_refused == (kind->numa == NPI_NUMA_PREFER));
    if (kind->numa == NPI_NUMA_PREFER) CHILD_EXPECT(strstr(memory.line, "fix=") != NULL);
    npi_segment_destroy(&segment);
  }
  CHILD_EXPECT(!exists(name));
  CHILD_EXPECT(count_descriptors() == n_before);
  return 0;
}

FOR_EACH_KIND(where_binding_is_forbidden_prefer_goes_on_and_strict_refuses) {
  /* Proves: one clear log line or one clear error, nothing left behind, the thread's CPUs as before. */
  int result = in_child(create_where_binding_is_forbidden, kind);
  if (result == CHILD_SKIP) cr_skip_test("no seccomp here");
  cr_assert_eq(result, 0);
}

static int create_where_binding_and_reserving_are_forbidden(const void *argument) {
  struct kind kind = {NPI_BACKEND_MEMFD, NPI_NUMA_STRICT};
  struct npi_segment segment;
  struct npi_segment_options options = options_of(&kind);
  (void)argument;
  if (forbid_system_call("mbind", EPERM) != 0 || forbid_system_call("fallocate", ENOSPC) != 0) return CHILD_SKIP;
  CHILD_EXPECT(npi_segment_create(&segment, &options) == NP_ERR_DENIED);
  options.numa = NPI_NUMA_OFF;
  CHILD_EXPECT(npi_segment_create(&segment, &options) == NP_ERR_NO_MEMORY);
  return 0;
}

Test(segment, binding_comes_before_the_first_touch) {
  /* Proves, also on a machine of one node: where both fail, it is the binding that is reported. */
  int result = in_child(create_where_binding_and_reserving_are_forbidden, NULL);
  if (result == CHILD_SKIP) cr_skip_test("no seccomp here");
  cr_assert_eq(result, 0);
}

static int create_where_measuring_is_forbidden(const void *argument) {
  struct kind kind = {NPI_BACKEND_MEMFD, NPI_NUMA_PREFER};
  struct npi_segment segment;
  struct npi_segment_options options = options_of(&kind);
  (void)argument;
  if (!binding_is_possible() || forbid_system_call("move_pages", EPERM) != 0) return CHILD_SKIP;
  CHILD_EXPECT(npi_segment_create(&segment, &options) == 0);
  CHILD_EXPECT(segment.pages_unknown == PAGES && segment.pages_home == 0);
  npi_segment_destroy(&segment);
  options.numa = NPI_NUMA_STRICT;
  CHILD_EXPECT(npi_segment_create(&segment, &options) == NP_ERR_DENIED);
  CHILD_EXPECT(strstr(npi_detail(), "move_pages") != NULL);
  return 0;
}

Test(segment, where_measuring_is_forbidden_nothing_is_claimed_and_strict_refuses) {
  /* Proves: "strict" means proven. */
  int result = in_child(create_where_measuring_is_forbidden, NULL);
  if (result == CHILD_SKIP) cr_skip_test("no seccomp, or no binding, here");
  cr_assert_eq(result, 0);
}

static int create_in_small_tmpfs(const void *argument) {
  struct npi_segment segment;
  struct kind kind = {NPI_BACKEND_POSIX, NPI_NUMA_PREFER};
  struct npi_segment_options options = options_of(&kind);
  uint64_t bytes;
  (void)argument;
  if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
      mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=1m") != 0) {
    return CHILD_SKIP;
  }
  int n_before = count_descriptors();
  CHILD_EXPECT(npi_segment_create(&segment, &options) == NP_ERR_NO_MEMORY);
  CHILD_EXPECT(strstr(npi_detail(), "need 4194304") != NULL && strstr(npi_detail(), "have 1048576") != NULL);
  CHILD_EXPECT(strstr(npi_detail(), "remount,size=") != NULL);
  CHILD_EXPECT(segment.fd == -1 && segment.address == NULL);
  CHILD_EXPECT(!exists(name));
  CHILD_EXPECT(count_descriptors() == n_before);
  CHILD_EXPECT(npi_memory_available(&bytes) == 0 && bytes == 1 << 20);
  options.bytes = 1 << 20;
  CHILD_EXPECT(npi_segment_create(&segment, &options) == 0);
  npi_segment_destroy(&segment);
  return 0;
}

Test(segment, a_full_tmpfs_is_an_error_without_sigbus_and_without_leftovers) {
  /* Proves: need, have and fix are named; name, descriptors and pages are given back; what fits works after. */
  if (geteuid() != 0) cr_skip_test("only root can mount a small tmpfs");
  int result = in_child(create_in_small_tmpfs, NULL);
  if (result == CHILD_SKIP) cr_skip_test("mounting is not permitted here");
  cr_assert_eq(result, 0, "child: %d", result);
}

Test(segment, too_few_huge_pages_degrade_under_auto_and_fail_when_explicit) {
  /* Proves: auto says what it fell back to; explicit names need, have and the command. Both leave nothing behind. */
  struct npi_segment segment;
  struct kind kind = {NPI_BACKEND_MEMFD, NPI_NUMA_OFF};
  struct npi_segment_options options = options_of(&kind);
  struct log_memory memory = {0};
  uint64_t have;
  char words[64];
  cr_assert_eq(npi_memory_huge_pages_free(options.node, &have), 0);
  if (have >= 16) cr_skip_test("this machine has a pool of huge pages");
  options.bytes = 32 << 20;
  options.huge = NPI_HUGE_EXPLICIT;
  int n_before = count_descriptors();
  cr_assert_eq(npi_segment_create(&segment, &options), NP_ERR_NO_MEMORY);
  snprintf(words, sizeof words, "need 16 of 2 MiB, have %u free", (unsigned)have);
  cr_assert_not_null(strstr(npi_detail(), words), "%s", npi_detail());
  snprintf(words, sizeof words, "node%d/hugepages/hugepages-2048kB/nr_hugepages", options.node);
  cr_assert_not_null(strstr(npi_detail(), words), "%s", npi_detail());
  cr_assert_eq(count_descriptors(), n_before);
  npi_log_set_sink(remember, &memory, NPI_LOG_INFO);
  options.huge = NPI_HUGE_AUTO;
  cr_assert_eq(npi_segment_create(&segment, &options), 0, "%s", npi_detail());
  cr_assert_eq(memory.n_huge, 1);
  cr_assert_eq(segment.page_bytes, 4096);
  npi_segment_destroy(&segment);
  cr_assert_eq(count_descriptors(), n_before);
}

Test(segment, huge_pages_are_obtained_where_the_pool_has_them) {
  /* Proves: explicit and auto report 2 MiB, counted in such pages, all at home, and give them back. */
  static const enum npi_huge_pages wishes[] = {NPI_HUGE_EXPLICIT, NPI_HUGE_AUTO};
  struct npi_segment segment;
  struct kind kind = {NPI_BACKEND_MEMFD, NPI_NUMA_PREFER};
  struct npi_segment_options options = options_of(&kind);
  uint64_t have, after;
  cr_assert_eq(npi_memory_huge_pages_free(options.node, &have), 0);
  if (have < 2) cr_skip_test("this machine has no pool of huge pages");
  for (int i = 0; i < 2; i++) {
    options.huge = wishes[i];
    cr_assert_eq(npi_segment_create(&segment, &options), 0, "%s", npi_detail());
    cr_assert_eq(segment.page_bytes, 2 << 20);
    cr_assert_eq(segment.pages_home + segment.pages_away + segment.pages_unknown, 2);
    if (segment.bound) cr_assert_eq(segment.pages_home, 2);
    npi_segment_unmap(&segment);
    cr_assert_eq(npi_segment_remeasure(&segment), 0, "%s", npi_detail());
    npi_segment_destroy(&segment);
    cr_assert_eq(npi_memory_huge_pages_free(options.node, &after), 0);
    cr_assert_eq(after, have);
  }
}

Test(segment, transparent_huge_pages_are_a_wish_that_never_fails) {
  /* Proves: with both backends the segment is whole, whatever the kernel makes of the advice. */
  for (int i = 0; i < 2; i++) {
    struct npi_segment segment;
    struct kind kind = {i == 0 ? NPI_BACKEND_POSIX : NPI_BACKEND_MEMFD, NPI_NUMA_PREFER};
    struct npi_segment_options options = options_of(&kind);
    options.huge = NPI_HUGE_TRANSPARENT;
    cr_assert_eq(npi_segment_create(&segment, &options), 0, "%s", npi_detail());
    cr_assert_eq(segment.pages_home + segment.pages_away + segment.pages_unknown, PAGES);
    npi_segment_destroy(&segment);
  }
}

Test(segment, with_numa_off_a_segment_needs_no_node) {
  /* Proves: node -1 is fine and every page found is at home. */
  struct npi_segment segment;
  struct kind kind = {NPI_BACKEND_MEMFD, NPI_NUMA_OFF};
  struct npi_segment_options options = options_of(&kind);
  options.node = -1;
  cr_assert_eq(npi_segment_create(&segment, &options), 0, "%s", npi_detail());
  cr_assert_eq(segment.pages_away, 0);
  cr_assert_eq(segment.pages_home + segment.pages_unknown, PAGES);
  npi_segment_destroy(&segment);
}

static void make_object(const char *object) {
  int fd;
  cr_assert_eq(npi_memory_create_posix(object, 4096, &fd), 0, "%s", npi_detail());
  close(fd);
}

Test(leftovers, every_object_of_the_instance_goes_and_no_other) {
  /* Proves: registry and segments are removed; other instances, users, and names that only begin alike stay. */
  char instance[32], gone[3][96], kept[5][96];
  uint32_t n_removed = 99;
  uid_t uid = getuid();
  snprintf(instance, sizeof instance, "test%d", (int)getpid());
  npi_shm_name(gone[0], 96, instance, uid, "registry", -1);
  npi_shm_name(gone[1], 96, instance, uid, "seg", 0);
  npi_shm_name(gone[2], 96, instance, uid, "seg", 4711);
  snprintf(kept[0], 96, "numapool.%sx.%u.registry", instance, (unsigned)uid);
  snprintf(kept[1], 96, "numapool.%s.%u.registry", instance, (unsigned)uid + 1);
  snprintf(kept[2], 96, "numapool.%s.%u.0.registry", instance, (unsigned)uid); /* of instance "<instance>.<uid>" */
  snprintf(kept[3], 96, "numapool.%s.%u.seg.0.seg.1", instance, (unsigned)uid);
  snprintf(kept[4], 96, "x.numapool.%s.%u.seg.0", instance, (unsigned)uid);
  for (int i = 0; i < 3; i++) make_object(gone[i]);
  for (int i = 0; i < 5; i++) make_object(kept[i]);
  int n_before = count_descriptors();
  cr_assert_eq(npi_shm_remove_leftovers(instance, uid, &n_removed), 0, "%s", npi_detail());
  cr_assert_eq(n_removed, 3);
  for (int i = 0; i < 3; i++) cr_assert_not(exists(gone[i]), "%s is still there", gone[i]);
  for (int i = 0; i < 5; i++) cr_assert(exists(kept[i]), "%s is gone", kept[i]);
  cr_assert_eq(npi_shm_remove_leftovers(instance, uid, &n_removed), 0);
  cr_assert_eq(n_removed, 0);
  cr_assert_eq(count_descriptors(), n_before);
  for (int i = 0; i < 5; i++) npi_memory_unlink_posix(kept[i]);
}

Test(leftovers, a_foreign_users_file_is_left_alone) {
  /* Proves: a planted name does not make a privileged broker remove, or later trust, another user's object. */
  char instance[32], object[96], path[128];
  uint32_t n_removed;
  if (geteuid() != 0) cr_skip_test("only root can give a file away");
  snprintf(instance, sizeof instance, "test%d", (int)getpid());
  npi_shm_name(object, sizeof object, instance, 0, "seg", 1);
  make_object(object);
  snprintf(path, sizeof path, "/dev/shm/%s", object);
  cr_assert_eq(chown(path, 65534, 65534), 0);
  cr_assert_eq(npi_shm_remove_leftovers(instance, 0, &n_removed), 0);
  cr_assert_eq(n_removed, 0);
  cr_assert(exists(object));
  npi_memory_unlink_posix(object);
}

Test(leftovers, names_have_the_documented_form) {
  /* Proves: what numapoolctl and the manual say about /dev/shm. */
  char text[96];
  npi_shm_name(text, sizeof text, "default", 1000, "registry", -1);
  cr_assert_str_eq(text, "numapool.default.1000.registry");
  npi_shm_name(text, sizeof text, "default", 1000, "seg", 12);
  cr_assert_str_eq(text, "numapool.default.1000.seg.12");
}
