/* SPDX-License-Identifier: Apache-2.0 */
/* Memory objects: who may do what with them, and that memory which runs out is an error. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_memory.h"
#include "tests/support/child.h"

enum { BYTES = 64 * 4096 };

static char name[64];

static void choose_name(void) {
  snprintf(name, sizeof name, "numapool-test-memory.%d", (int)getpid());
}

static void remove_name(void) {
  npi_memory_unlink_posix(name);
}

TestSuite(os_memory, .init = choose_name, .fini = remove_name, .timeout = 60);

Test(os_memory, a_named_object_has_its_size_and_mode_0600_whatever_the_umask) {
  /* Proves: neither a wide nor a narrow umask changes who may open it. */
  struct stat facts;
  int fd;
  uint64_t bytes;
  umask(0);
  cr_assert_eq(npi_memory_create_posix(name, BYTES, &fd), 0, "%s", npi_detail());
  cr_assert_eq(fstat(fd, &facts), 0);
  cr_assert_eq(facts.st_mode & 07777, 0600);
  cr_assert_eq(npi_memory_size(fd, &bytes), 0);
  cr_assert_eq(bytes, BYTES);
  cr_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  close(fd);
  npi_memory_unlink_posix(name);
  umask(0777);
  cr_assert_eq(npi_memory_create_posix(name, BYTES, &fd), 0, "%s", npi_detail());
  umask(022);
  cr_assert_eq(fstat(fd, &facts), 0);
  cr_assert_eq(facts.st_mode & 07777, 0600);
  close(fd);
}

Test(os_memory, a_name_is_made_only_once) {
  /* Proves: a second broker cannot take over an object by creating it. */
  int fd, second;
  cr_assert_eq(npi_memory_create_posix(name, BYTES, &fd), 0);
  cr_assert_eq(npi_memory_create_posix(name, BYTES, &second), NP_ERR_EXISTS);
  cr_assert_eq(second, -1);
  cr_assert_not_null(strstr(npi_detail(), name), "the words must name the object: %s", npi_detail());
  close(fd);
}

Test(os_memory, a_name_with_a_slash_or_none_is_refused) {
  /* Proves: names cannot leave /dev/shm. */
  int fd;
  cr_assert_eq(npi_memory_create_posix("../x", BYTES, &fd), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_memory_create_posix("", BYTES, &fd), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_memory_open_posix("a/b", 0, &fd, NULL), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_memory_unlink_posix("a/b"), NP_ERR_ARGUMENT);
}

Test(os_memory, opening_what_is_not_there_says_so) {
  /* Proves: a missing object is told apart from one that is forbidden. */
  int fd = 5;
  uint64_t bytes = 5;
  cr_assert_eq(npi_memory_open_posix(name, 1, &fd, &bytes), NP_ERR_NOT_FOUND);
  cr_assert_eq(fd, -1);
  cr_assert_eq(bytes, 0);
  cr_assert_eq(npi_memory_unlink_posix(name), NP_ERR_NOT_FOUND);
}

Test(os_memory, what_one_mapping_writes_the_other_reads) {
  /* Proves: object, name and mapping belong together. */
  int fd, opened;
  uint64_t bytes;
  void *writable, *readable;
  cr_assert_eq(npi_memory_create_posix(name, BYTES, &fd), 0);
  cr_assert_eq(npi_memory_reserve(fd, 0, BYTES), 0, "%s", npi_detail());
  cr_assert_eq(npi_memory_open_posix(name, 0, &opened, &bytes), 0);
  cr_assert_eq(bytes, BYTES);
  cr_assert_eq(npi_memory_map(fd, 0, BYTES, 1, &writable), 0);
  cr_assert_eq(npi_memory_map(opened, 4096, BYTES - 4096, 0, &readable), 0);
  memcpy((char *)writable + 4096, "numapool", 9);
  cr_assert_str_eq(readable, "numapool");
  npi_memory_unmap(writable, BYTES);
  npi_memory_unmap(readable, BYTES - 4096);
  npi_memory_unmap(NULL, BYTES);
  close(fd);
  close(opened);
}

Test(os_memory, a_sealed_object_can_neither_shrink_nor_grow) {
  /* Proves: a hostile holder of a writable descriptor cannot raise SIGBUS in others by truncating. */
  struct stat facts;
  int fd;
  cr_assert_eq(npi_memory_create_memfd("numapool-test", BYTES, 0, &fd), 0, "%s", npi_detail());
  cr_assert_eq(npi_memory_is_sealed(fd), 1);
  errno = 0;
  cr_assert_eq(ftruncate(fd, BYTES / 2), -1);
  cr_assert_eq(errno, EPERM);
  errno = 0;
  cr_assert_eq(ftruncate(fd, 2 * BYTES), -1);
  cr_assert_eq(errno, EPERM);
  cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1, "and nobody can lock the owner out");
  cr_assert_eq(fstat(fd, &facts), 0);
  cr_assert_eq(facts.st_mode & 0777, 0600, "a memfd is born 0777");
  cr_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  close(fd);
}

Test(os_memory, posix_shared_memory_is_reported_as_not_sealed) {
  /* Proves: nobody takes it for safe against truncation. */
  int fd;
  cr_assert_eq(npi_memory_create_posix(name, BYTES, &fd), 0);
  cr_assert_eq(npi_memory_is_sealed(fd), 0);
  cr_assert_lt(npi_memory_is_sealed(-1), 0, "that cannot be asked");
  close(fd);
}

static void expect_readonly(int fd) {
  int readonly_fd;
  void *address;
  cr_assert_eq(npi_memory_reserve(fd, 0, BYTES), 0, "%s", npi_detail());
  cr_assert_eq(npi_memory_reopen_readonly(fd, &readonly_fd), 0, "%s", npi_detail());
  cr_assert_eq(npi_memory_map(readonly_fd, 0, BYTES, 1, &address), NP_ERR_DENIED);
  cr_assert_null(address);
  cr_assert_eq(npi_memory_map(readonly_fd, 0, BYTES, 0, &address), 0, "%s", npi_detail());
  cr_assert_eq(mprotect(address, BYTES, PROT_READ | PROT_WRITE), -1);
  cr_assert_eq(write(readonly_fd, "x", 1), -1);
  cr_assert_eq(npi_memory_punch(readonly_fd, 0, 4096), NP_ERR_SYSTEM);
  npi_memory_unmap(address, BYTES);
  close(readonly_fd);
}

Test(os_memory, a_read_only_descriptor_cannot_be_mapped_writable) {
  /* Proves: for both kinds of object, mmap, mprotect, write and punching fail. */
  int fd;
  cr_assert_eq(npi_memory_create_posix(name, BYTES, &fd), 0);
  expect_readonly(fd);
  close(fd);
  cr_assert_eq(npi_memory_create_memfd("numapool-test", BYTES, 0, &fd), 0);
  expect_readonly(fd);
  close(fd);
}

static int reopen_for_writing(const void *argument) {
  char path[64];
  int readonly_fd = *(const int *)argument;
  CHILD_EXPECT(setgid(65534) == 0 && setuid(65534) == 0);
  snprintf(path, sizeof path, "/proc/self/fd/%d", readonly_fd);
  CHILD_EXPECT(open(path, O_RDWR) < 0 && errno == EACCES);
  return 0;
}

Test(os_memory, another_user_cannot_turn_a_read_only_descriptor_into_a_writable_one) {
  /* Proves: the mode of a memfd matters, since /proc reopens it. */
  int fd, readonly_fd;
  if (geteuid() != 0) cr_skip_test("only root can become another user");
  cr_assert_eq(npi_memory_create_memfd("numapool-test", BYTES, 0, &fd), 0);
  cr_assert_eq(npi_memory_reopen_readonly(fd, &readonly_fd), 0);
  cr_assert_eq(in_child(reopen_for_writing, &readonly_fd), 0);
  close(fd);
  close(readonly_fd);
}

Test(os_memory, a_reserved_range_has_its_pages_and_a_punched_one_gives_them_back) {
  /* Proves: the kernel's own count of blocks follows. */
  struct stat facts;
  int fd;
  cr_assert_eq(npi_memory_create_memfd("numapool-test", BYTES, 0, &fd), 0);
  cr_assert_eq(fstat(fd, &facts), 0);
  cr_assert_eq(facts.st_blocks, 0);
  cr_assert_eq(npi_memory_reserve(fd, 4096, BYTES - 4096), 0);
  cr_assert_eq(fstat(fd, &facts), 0);
  cr_assert_eq(facts.st_blocks * 512, BYTES - 4096);
  cr_assert_eq(npi_memory_punch(fd, 0, BYTES), 0);
  cr_assert_eq(fstat(fd, &facts), 0);
  cr_assert_eq(facts.st_blocks, 0);
  close(fd);
}

Test(os_memory, a_populated_range_is_in_the_page_tables_and_keeps_its_content) {
  /* Proves: populating touches every page, writable or not, and changes no byte. */
  unsigned char resident[BYTES / 4096];
  int fd;
  void *writable, *readable;
  cr_assert_eq(npi_memory_create_memfd("numapool-test", BYTES, 0, &fd), 0);
  cr_assert_eq(npi_memory_reserve(fd, 0, BYTES), 0);
  cr_assert_eq(pwrite(fd, "numapool", 9, 3 * 4096), 9);
  cr_assert_eq(npi_memory_map(fd, 0, BYTES, 1, &writable), 0);
  cr_assert_eq(npi_memory_map(fd, 0, BYTES, 0, &readable), 0);
  cr_assert_eq(npi_memory_populate(writable, BYTES, 1), 0, "%s", npi_detail());
  cr_assert_eq(npi_memory_populate(readable, BYTES, 0), 0, "%s", npi_detail());
  cr_assert_str_eq((char *)readable + 3 * 4096, "numapool");
  cr_assert_eq(mincore(readable, BYTES, resident), 0);
  for (size_t i = 0; i < sizeof resident; i++) cr_assert(resident[i] & 1);
  npi_memory_unmap(writable, BYTES);
  npi_memory_unmap(readable, BYTES);
  close(fd);
}

static int populate_old_way(const void *argument) {
  int fd;
  void *address;
  (void)argument;
  CHILD_EXPECT(npi_memory_create_memfd("numapool-test", BYTES, 0, &fd) == 0);
  CHILD_EXPECT(npi_memory_reserve(fd, 0, BYTES) == 0);
  CHILD_EXPECT(npi_memory_map(fd, 0, BYTES, 1, &address) == 0);
  if (forbid_system_call("madvise", EINVAL) != 0) return CHILD_SKIP;
  CHILD_EXPECT(npi_memory_populate(address, BYTES, 1) == 0);
  return 0;
}

Test(os_memory, a_kernel_that_cannot_populate_is_helped_by_touching) {
  /* Proves: the way before Linux 5.14 works. */
  int result = in_child(populate_old_way, NULL);
  if (result == CHILD_SKIP) cr_skip_test("no seccomp here");
  cr_assert_eq(result, 0);
}

static int has_no_mapping(const void *argument) {
  unsigned char resident[BYTES / 4096];
  void *address = *(void *const *)argument;
  errno = 0;
  CHILD_EXPECT(mincore(address, BYTES, resident) == -1 && errno == ENOMEM);
  return 0;
}

Test(os_memory, a_forked_child_does_not_have_the_mapping) {
  /* Proves: a child that lives on cannot hold, or write, what its dead parent had mapped. */
  unsigned char resident[BYTES / 4096];
  int fd;
  void *address;
  cr_assert_eq(npi_memory_create_memfd("numapool-test", BYTES, 0, &fd), 0);
  cr_assert_eq(npi_memory_map(fd, 0, BYTES, 1, &address), 0);
  cr_assert_eq(in_child(has_no_mapping, &address), 0);
  cr_assert_eq(mincore(address, BYTES, resident), 0);
  npi_memory_unmap(address, BYTES);
  close(fd);
}

static int fill_small_tmpfs(const void *argument) {
  int fd, n_before;
  uint64_t bytes;
  void *address;
  (void)argument;
  if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
      mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=1m") != 0) {
    return CHILD_SKIP;
  }
  n_before = count_descriptors();
  CHILD_EXPECT(npi_memory_available(&bytes) == 0 && bytes == 1024 * 1024);
  CHILD_EXPECT(npi_memory_create_posix("small", 8 << 20, &fd) == 0);
  CHILD_EXPECT(npi_memory_reserve(fd, 0, 8 << 20) == NP_ERR_NO_MEMORY);
  CHILD_EXPECT(strstr(npi_detail(), "need 8388608") != NULL);
  CHILD_EXPECT(strstr(npi_detail(), "have 1048576") != NULL);
  CHILD_EXPECT(strstr(npi_detail(), "remount,size=8M /dev/shm") != NULL);
  CHILD_EXPECT(ftruncate(fd, 512 << 10) == 0);
  CHILD_EXPECT(npi_memory_reserve(fd, 0, 512 << 10) == 0);
  CHILD_EXPECT(npi_memory_map(fd, 0, 512 << 10, 1, &address) == 0);
  memset(address, 1, 512 << 10);
  CHILD_EXPECT(npi_memory_available(&bytes) == 0 && bytes == 512 * 1024);
  npi_memory_unmap(address, 512 << 10);
  close(fd);
  CHILD_EXPECT(count_descriptors() == n_before);
  return 0;
}

Test(os_memory, a_full_tmpfs_is_an_error_with_need_and_have_and_no_sigbus) {
  /* Proves: reserving more than there is fails in words that name the fix; what fits works. */
  if (geteuid() != 0) cr_skip_test("only root can mount a small tmpfs");
  int result = in_child(fill_small_tmpfs, NULL);
  if (result == CHILD_SKIP) cr_skip_test("mounting is not permitted here");
  cr_assert_eq(result, 0, "child: %d", result);
}

Test(os_memory, a_large_reservation_is_whole) {
  /* Proves: more than one piece, and the odd rest, are all there. */
  const uint64_t bytes = (UINT64_C(129) << 20) + 4096;
  struct stat facts;
  int fd;
  cr_assert_eq(npi_memory_create_memfd("numapool-test", bytes, 0, &fd), 0);
  cr_assert_eq(npi_memory_reserve(fd, 0, bytes), 0, "%s", npi_detail());
  cr_assert_eq(fstat(fd, &facts), 0);
  cr_assert_eq((uint64_t)facts.st_blocks * 512, bytes);
  close(fd);
}

static int create_without(const void *argument) {
  int fd;
  int n_before = count_descriptors();
  if (forbid_system_call(argument, ENOSPC) != 0) return CHILD_SKIP;
  CHILD_EXPECT(npi_memory_create_posix(name, BYTES, &fd) < 0);
  CHILD_EXPECT(fd == -1);
  CHILD_EXPECT(npi_memory_open_posix(name, 0, &fd, NULL) == NP_ERR_NOT_FOUND);
  CHILD_EXPECT(npi_memory_create_memfd("numapool-test", BYTES, 0, &fd) < 0);
  CHILD_EXPECT(fd == -1);
  CHILD_EXPECT(count_descriptors() == n_before);
  return 0;
}

Test(os_memory, a_creation_that_fails_half_way_is_undone) {
  /* Proves: with the object made and its mode or size refused, name and descriptor are given back. */
  static const char *const calls[] = {"fchmod", "ftruncate"};
  for (int i = 0; i < 2; i++) {
    int result = in_child(create_without, calls[i]);
    if (result == CHILD_SKIP) cr_skip_test("no seccomp here");
    cr_assert_eq(result, 0, "without %s", calls[i]);
  }
}

Test(os_memory, failures_leave_no_descriptor_and_no_name) {
  /* Proves: each failing call gives back what it had. */
  int fd;
  uint64_t n_pages;
  int n_before = count_descriptors();
  cr_assert_eq(npi_memory_create_posix(name, 0, &fd), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_memory_create_posix(name, UINT64_C(1) << 63, &fd), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_memory_create_memfd("x", 4096, 1, &fd), NP_ERR_ARGUMENT);
  cr_assert_eq(npi_memory_open_posix(name, 0, &fd, NULL), NP_ERR_NOT_FOUND);
  cr_assert_eq(npi_memory_huge_pages_free(-1, &n_pages), 0);
  cr_assert_eq(npi_memory_huge_pages_free(63, &n_pages), 0);
  cr_assert_eq(npi_memory_reopen_readonly(-1, &fd), NP_ERR_NOT_FOUND);
  cr_assert_eq(count_descriptors(), n_before);
}
