/* SPDX-License-Identifier: Apache-2.0 */
/* Where a client looks for the broker's socket, and what it believes. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_socket.h"
#include "wire/locate.h"

TestSuite(locate, .timeout = 30);

/* A socket of the user at /tmp/numapool-USER/INSTANCE, in folders of that owner and mode; its path in `socket`. */
static void make_place(uid_t user, uid_t owner, mode_t mode, char folders[2][64], char *socket, size_t bytes) {
  int fd;
  snprintf(folders[0], 64, "/tmp/numapool-%u", (unsigned)user);
  snprintf(folders[1], 64, "/tmp/numapool-%u/t", (unsigned)user);
  snprintf(socket, bytes, "%s/control.sock", folders[1]);
  for (int i = 0; i < 2; i++) {
    cr_assert_eq(mkdir(folders[i], 0755), 0, "%s is there", folders[i]);
    cr_assert_eq(chmod(folders[i], mode), 0);
    cr_assert_eq(chown(folders[i], owner, (gid_t)-1), 0);
  }
  cr_assert_eq(npi_socket_listen(socket, 0666, 1, &fd), 0, "%s", npi_detail());
  cr_assert_eq(chown(socket, user, (gid_t)-1), 0);
  close(fd);
}

/* What that user is told, in a child: 1 the place below /tmp, 0 another. */
static int is_believed(uid_t user, const char *socket) {
  pid_t child = fork();
  if (child == 0) {
    char path[256];
    unsetenv("NUMAPOOL_SOCKET");
    setenv("XDG_RUNTIME_DIR", "/nonexistent", 1);
    if (setresuid(user, user, user) != 0) _exit(9);
    _exit(npi_locate_socket("t", path, sizeof path) == 0 && strcmp(path, socket) == 0);
  }
  int how = 0;
  cr_assert_eq(waitpid(child, &how, 0), child);
  cr_assert(WIFEXITED(how) && WEXITSTATUS(how) <= 1, "status 0x%x", (unsigned)how);
  return WEXITSTATUS(how);
}

static void check(uid_t owner_is_root, mode_t mode, int believed, const char *what) {
  uid_t user = 100000 + (uid_t)getpid(); /* nobody's */
  char folders[2][64], socket[128];
  make_place(user, owner_is_root ? 0 : user, mode, folders, socket, sizeof socket);
  int result = is_believed(user, socket);
  unlink(socket);
  rmdir(folders[1]);
  rmdir(folders[0]);
  cr_assert_eq(result, believed, "%s", what);
}

Test(locate, below_tmp_only_a_folder_of_ones_own_is_believed) {
  if (geteuid() != 0) cr_skip_test("needs to become another user");
  check(0, 0755, 1, "a folder of the user");
  check(1, 0755, 0, "the owner of the folder may put another socket in the place of ours");
  check(0, 0777, 0, "so may anybody who can write there");
}

Test(locate, the_environment_goes_first) {
  char path[256];
  setenv("NUMAPOOL_SOCKET", "/somewhere/else", 1);
  cr_assert_eq(npi_locate_socket("t", path, sizeof path), 0);
  cr_assert_str_eq(path, "/somewhere/else");
  cr_assert_eq(npi_locate_socket("t", path, 8), NP_ERR_ARGUMENT);
}
