/* SPDX-License-Identifier: Apache-2.0 */
/* Who lives, who is dead, who is at the other end. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_process.h"
#include "os/os_socket.h"
#include "tests/support/child.h"

TestSuite(os_process, .timeout = 30);

/* A child that does nothing until it is killed. */
static pid_t start_idler(void) {
  pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
  }
  return pid;
}

static void *idle_thread(void *id) {
  *(volatile pid_t *)id = (pid_t)syscall(SYS_gettid);
  while (pause() != 0) {
  }
  return NULL;
}

static void end_idler(pid_t pid) {
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
}

Test(os_process, the_descriptor_of_a_killed_child_becomes_readable) {
  /* Proves: death is seen without waiting for the child, and only death. */
  int fd;
  pid_t pid = start_idler();
  cr_assert_eq(npi_process_pidfd(pid, &fd), 0, "%s", npi_detail());
  cr_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  cr_assert_eq(npi_process_is_dead(fd), 0);
  kill(pid, SIGKILL);
  struct pollfd polled = {.fd = fd, .events = POLLIN};
  cr_assert_eq(poll(&polled, 1, 10000), 1);
  cr_assert_eq(npi_process_is_dead(fd), 1);
  waitpid(pid, NULL, 0);
  cr_assert_eq(npi_process_is_dead(fd), 1, "and it stays so after the number is free again");
  close(fd);
}

Test(os_process, a_stopped_process_is_alive) {
  /* Proves: SIGSTOP is no death, and the state letter says what it is. */
  int fd;
  char state;
  pid_t pid = start_idler();
  cr_assert_eq(npi_process_pidfd(pid, &fd), 0);
  kill(pid, SIGSTOP);
  cr_assert_eq(waitpid(pid, NULL, WUNTRACED), pid);
  cr_assert_eq(npi_process_is_dead(fd), 0);
  cr_assert_eq(npi_process_state(pid, &state), 0);
  cr_assert_eq(state, 'T');
  kill(pid, SIGKILL);
  siginfo_t info;
  cr_assert_eq(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
  cr_assert_eq(npi_process_state(pid, &state), 0);
  cr_assert_eq(state, 'Z');
  waitpid(pid, NULL, 0);
  cr_assert_eq(npi_process_state(pid, &state), NP_ERR_NOT_FOUND);
  cr_assert_eq(npi_process_pidfd(pid, &fd), NP_ERR_NOT_FOUND);
  cr_assert_eq(fd, -1);
}

Test(os_process, who_let_go_of_a_lock_by_dying_is_not_among_the_living) {
  /* Proves: between the end of its locks and its being a zombie a process is no one who could still do something. */
  enum { DEATHS = 300 };
  int file = memfd_create("lock", MFD_CLOEXEC), n_seen = 0;
  cr_assert_geq(file, 0);
  for (int i = 0; i < DEATHS; i++) {
    char path[64], state;
    int ready[2];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    cr_assert_eq(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
      int own = open(path, O_RDWR | O_CLOEXEC);
      if (fcntl(own, F_OFD_SETLK, &whole) != 0 || write(ready[1], "", 1) != 1) _exit(1);
      for (;;) pause();
    }
    cr_assert_eq(read(ready[0], &state, 1), 1);
    int mine = open(path, O_RDWR | O_CLOEXEC);
    kill(pid, SIGKILL);
    while (fcntl(mine, F_OFD_SETLK, &whole) != 0) cr_assert(errno == EAGAIN || errno == EACCES);
    cr_assert_eq(npi_process_state(pid, &state), 0);
    cr_assert(state == 'X' || state == 'Z', "state %c", state);
    n_seen += state == 'X';
    waitpid(pid, NULL, 0);
    close(mine);
    close(ready[0]);
    close(ready[1]);
  }
  cr_log_info("on its way out: %d of %d\n", n_seen, DEATHS);
  close(file);
}

Test(os_process, a_descriptor_that_is_not_open_is_neither_dead_nor_alive) {
  /* Proves: a programming mistake does not reclaim anybody's memory. */
  cr_assert_eq(npi_process_is_dead(1000), NP_ERR_ARGUMENT);
}

Test(os_process, the_peer_of_a_socket_is_known_by_descriptor_and_credentials) {
  /* Proves: the connecting process is the one that is named, and its death shows. */
  char path[96];
  int listener, accepted, fd;
  pid_t pid;
  uid_t uid;
  gid_t gid;
  snprintf(path, sizeof path, "/tmp/numapool-test-process.%d", (int)getpid());
  cr_assert_eq(npi_socket_listen(path, 0600, 4, &listener), 0, "%s", npi_detail());
  pid_t child = fork();
  if (child == 0) {
    int connected;
    if (npi_socket_connect(path, &connected) != 0) _exit(1);
    for (;;) pause();
  }
  struct pollfd polled = {.fd = listener, .events = POLLIN};
  cr_assert_eq(poll(&polled, 1, 10000), 1);
  cr_assert_eq(npi_socket_accept(listener, &accepted), 0);
  cr_assert_eq(npi_process_pidfd_of_peer(accepted, &fd, &pid, &uid, &gid), 0, "%s", npi_detail());
  cr_assert_eq(pid, child);
  cr_assert_eq(uid, getuid());
  cr_assert_eq(gid, getgid());
  cr_assert_eq(npi_process_is_dead(fd), 0);
  end_idler(child);
  cr_assert_eq(npi_process_is_dead(fd), 1);
  int n_before = count_descriptors();
  int none;
  cr_assert_eq(npi_process_pidfd_of_peer(accepted, &none, NULL, NULL, NULL), NP_ERR_NOT_FOUND);
  cr_assert_eq(none, -1);
  cr_assert_eq(count_descriptors(), n_before);
  unlink(path);
}

static int ask_old_kernel(const void *argument) {
  int ends[2], fd;
  pid_t pid;
  (void)argument;
  CHILD_EXPECT(npi_socket_pair(ends) == 0);
  if (forget_peer_pidfd() != 0) return CHILD_SKIP;
  CHILD_EXPECT(npi_process_peer_is_exact(ends[0]) == 0);
  CHILD_EXPECT(npi_process_pidfd_of_peer(ends[0], &fd, &pid, NULL, NULL) == 0);
  CHILD_EXPECT(pid == getpid());
  CHILD_EXPECT(npi_process_is_dead(fd) == 0);
  return 0;
}

Test(os_process, before_linux_6_5_the_peer_is_found_by_its_number) {
  /* Proves: the fallback gives the same descriptor, and says that it is less certain. */
  int result = in_child(ask_old_kernel, NULL);
  if (result == CHILD_SKIP) cr_skip_test("no seccomp here");
  cr_assert_eq(result, 0);
}

Test(os_process, start_times_grow_and_do_not_depend_on_the_name) {
  /* Proves: a name with brackets and blanks does not shift the fields. */
  uint64_t mine, again, childs;
  cr_assert_eq(npi_process_start_time(getpid(), &mine), 0, "%s", npi_detail());
  cr_assert_gt(mine, 0);
  prctl(PR_SET_NAME, "a) R 1 (b ) 2");
  cr_assert_eq(npi_process_start_time(getpid(), &again), 0);
  cr_assert_eq(again, mine);
  char state;
  cr_assert_eq(npi_process_state(getpid(), &state), 0);
  cr_assert_eq(state, 'R');
  usleep(30000); /* the kernel counts in steps of 10 ms */
  pid_t pid = start_idler();
  cr_assert_eq(npi_process_start_time(pid, &childs), 0);
  cr_assert_gt(childs, mine);
  end_idler(pid);
  cr_assert_eq(npi_process_start_time(pid, &childs), NP_ERR_NOT_FOUND);
}

static int ask_a_day_later(const void *argument) {
  uint64_t before = *(const uint64_t *)argument, after = 0;
  static const char offsets[] = "monotonic 86400 0\nboottime 86400 0\n";
  enum { NEW_TIME = 0x80 };
  if (syscall(SYS_unshare, NEW_TIME) != 0) return CHILD_SKIP;
  int fd = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
  CHILD_EXPECT(fd >= 0 && write(fd, offsets, sizeof offsets - 1) == (ssize_t)sizeof offsets - 1);
  close(fd);
  fd = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
  CHILD_EXPECT(fd >= 0 && syscall(SYS_setns, fd, NEW_TIME) == 0);
  close(fd);
  CHILD_EXPECT(npi_process_start_time(getppid(), &after) == 0);
  CHILD_EXPECT(after == before);
  return 0;
}

Test(os_process, start_times_are_the_same_in_another_time_namespace) {
  /* Proves: where boot was a day earlier a process did not begin a day later. */
  uint64_t mine;
  cr_assert_eq(npi_process_start_time(getpid(), &mine), 0);
  int result = in_child(ask_a_day_later, &mine);
  if (result == CHILD_SKIP) cr_skip_test("no time namespace may be made here");
  cr_assert_eq(result, 0);
}

Test(os_process, a_process_name_is_safe_to_print) {
  /* Proves: blanks, quotes of a terminal and line ends that a process gave itself do not reach a log line. */
  char name[32], tiny[4];
  prctl(PR_SET_NAME, "x y\n\033[1m");
  cr_assert_eq(npi_process_name(getpid(), name, sizeof name), 0);
  cr_assert_str_eq(name, "x?y??[1m");
  cr_assert_eq(npi_process_name(getpid(), tiny, sizeof tiny), 0);
  cr_assert_str_eq(tiny, "x?y");
  cr_assert_lt(npi_process_name(-1, name, sizeof name), 0);
  cr_assert_str_eq(name, "");
}

Test(os_process, the_boot_id_has_36_characters_and_stays) {
  /* Proves: two calls agree, and a small buffer is refused. */
  char first[37], second[37];
  cr_assert_eq(npi_process_boot_id(first, sizeof first), 0);
  cr_assert_eq(npi_process_boot_id(second, sizeof second), 0);
  cr_assert_eq(strlen(first), 36);
  cr_assert_str_eq(first, second);
  cr_assert_eq(npi_process_boot_id(first, 36), NP_ERR_ARGUMENT);
}

/* ---- stopped ---- */

static int answers(pid_t pid, int expected, uint64_t *switches) {
  for (int left = 5000; left > 0; left--) {
    if (npi_process_is_stopped(pid, switches) == expected) return 1;
    usleep(1000);
  }
  return 0;
}

Test(os_process, a_stopped_process_is_seen_and_whether_it_ran_in_between) {
  uint64_t first, second, third;
  pid_t pid = start_idler();
  cr_assert(answers(pid, 0, &first));
  kill(pid, SIGSTOP);
  cr_assert(answers(pid, 1, &first));
  usleep(20000);
  cr_assert_eq(npi_process_is_stopped(pid, &second), 1);
  cr_assert_eq(first, second, "it did not run");
  kill(pid, SIGCONT);
  cr_assert(answers(pid, 0, &third));
  kill(pid, SIGSTOP);
  cr_assert(answers(pid, 1, &third));
  cr_assert_neq(second, third, "it has run");
  end_idler(pid);
  cr_assert_eq(npi_process_is_stopped(pid, &first), NP_ERR_NOT_FOUND);
}

/* The debugger of these threads lets one of them run. */
Test(os_process, a_process_is_stopped_when_all_its_threads_are) {
  enum { THREADS = 3 };
  pid_t *ids = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  uint64_t switches;
  cr_assert_neq(ids, MAP_FAILED);
  pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < THREADS; i++) {
      pthread_t thread;
      pthread_create(&thread, NULL, idle_thread, &ids[i]);
    }
    for (;;) pause();
  }
  for (int i = 0; i < THREADS; i++) {
    while (*(volatile pid_t *)&ids[i] == 0) usleep(1000);
  }
  const pid_t all[] = {pid, ids[0], ids[1], ids[2]};
  for (int i = 0; i <= THREADS; i++) {
    if (ptrace(PTRACE_SEIZE, all[i], NULL, NULL) != 0) {
      end_idler(pid);
      cr_skip_test("this process may not debug its child here");
    }
  }
  for (int i = 0; i < THREADS; i++) { /* all but the last one */
    cr_assert_eq(ptrace(PTRACE_INTERRUPT, all[i], NULL, NULL), 0);
    cr_assert_eq(waitpid(all[i], NULL, __WALL), all[i]);
  }
  cr_assert_eq(npi_process_is_stopped(pid, &switches), 0, "one of its threads runs");
  cr_assert_eq(ptrace(PTRACE_INTERRUPT, all[THREADS], NULL, NULL), 0);
  cr_assert_eq(waitpid(all[THREADS], NULL, __WALL), all[THREADS]);
  cr_assert_eq(npi_process_is_stopped(pid, &switches), 1);
  kill(pid, SIGKILL);
  while (waitpid(-1, NULL, __WALL) > 0) { /* a debugger is told of each thread */
  }
  munmap(ids, 4096);
}
