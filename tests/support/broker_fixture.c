/* SPDX-License-Identifier: Apache-2.0 */
#include "support/broker_fixture.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/process.h"

enum { READY_TIMEOUT_MS = 20000, LOG_TIMEOUT_MS = 20000 };

static void print_log(const struct npi_test_broker *broker) {
  char text[4096];
  FILE *log = fopen(broker->log_path, "r");
  while (log != NULL && fgets(text, sizeof text, log) != NULL) fprintf(stderr, "  broker: %s", text);
  if (log != NULL) fclose(log);
}

void npi_test_broker_prepare(struct npi_test_broker *broker) {
  static unsigned number;
  memset(broker, 0, sizeof *broker);
  snprintf(broker->instance, sizeof broker->instance, "test-%ld-%u", (long)getpid(), ++number);
  snprintf(broker->folder, sizeof broker->folder, "/tmp/numapool-test-XXXXXX");
  cr_assert_not_null(mkdtemp(broker->folder));
  snprintf(broker->runtime_dir, sizeof broker->runtime_dir, "%s/run", broker->folder);
  snprintf(broker->socket_path, sizeof broker->socket_path, "%s/control.sock", broker->runtime_dir);
  snprintf(broker->config_path, sizeof broker->config_path, "%s/broker.yaml", broker->folder);
  snprintf(broker->log_path, sizeof broker->log_path, "%s/log", broker->folder);
}

static void write_config(const struct npi_test_broker *broker, const char *yaml) {
  FILE *file = fopen(broker->config_path, "w");
  cr_assert_not_null(file);
  fprintf(file, "instance: %s\nruntime_dir: %s\n%s\n", broker->instance, broker->runtime_dir, yaml != NULL ? yaml : "");
  fclose(file);
}

static int open_notify_socket(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  unlink(path);
  memcpy(address.sun_path, path, strlen(path) + 1);
  cr_assert(fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof address) == 0);
  return fd;
}

static void launch(struct npi_test_broker *broker, const char *yaml, const char *notify_path) {
  if (broker->instance[0] == '\0') npi_test_broker_prepare(broker);
  write_config(broker, yaml);
  fflush(NULL);
  broker->pid = fork();
  cr_assert(broker->pid >= 0);
  if (broker->pid > 0) return;
  prctl(PR_SET_PDEATHSIG, SIGTERM); /* a test that fails takes its broker along */
  int log = open(broker->log_path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  if (notify_path != NULL) setenv("NOTIFY_SOCKET", notify_path, 1);
  execl(NUMAPOOLD_PATH, "numapoold", "--config", broker->config_path, "--log-level", "debug", (char *)NULL);
  _exit(127);
}

static int wait_for_end(struct npi_test_broker *broker) {
  int how = 0;
  while (waitpid(broker->pid, &how, 0) < 0 && errno == EINTR) {
  }
  broker->pid = 0;
  return WIFEXITED(how) ? WEXITSTATUS(how) : 1000 + WTERMSIG(how);
}

void npi_test_broker_start(struct npi_test_broker *broker, const char *yaml) {
  char path[80], message[256] = "";
  if (broker->instance[0] == '\0') npi_test_broker_prepare(broker);
  snprintf(path, sizeof path, "%s/notify", broker->folder);
  int fd = open_notify_socket(path);
  launch(broker, yaml, path);
  struct pollfd wait = {.fd = fd, .events = POLLIN};
  int waited = 0, how;
  while (poll(&wait, 1, 100) == 0 && (waited += 100) < READY_TIMEOUT_MS) {
    if (waitpid(broker->pid, &how, WNOHANG) != broker->pid) continue;
    broker->pid = 0;
    break;
  }
  ssize_t n = broker->pid != 0 ? recv(fd, message, sizeof message - 1, MSG_DONTWAIT) : 0;
  close(fd);
  if (n <= 0 || strncmp(message, "READY=1", 7) != 0) {
    print_log(broker);
    cr_assert_fail("the broker did not become ready");
  }
}

int npi_test_broker_refused(struct npi_test_broker *broker, const char *yaml) {
  launch(broker, yaml, NULL);
  return wait_for_end(broker);
}

int npi_test_broker_shm_count(const struct npi_test_broker *broker) {
  char prefix[64];
  int n = 0;
  snprintf(prefix, sizeof prefix, "numapool.%s.", broker->instance);
  DIR *folder = opendir("/dev/shm");
  const struct dirent *entry;
  while (folder != NULL && (entry = readdir(folder)) != NULL) n += strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
  if (folder != NULL) closedir(folder);
  return n;
}

/* Does the process hold an object of the instance, and is it numapoold? */
static int is_leftover(const char *pid, const char *prefix) {
  char path[300], link[600], target[300];
  int found = 0;
  snprintf(path, sizeof path, "/proc/%s/exe", pid);
  ssize_t n = readlink(path, target, sizeof target - 1);
  if (n < 10 || strncmp(target + n - 10, "/numapoold", 10) != 0) return 0;
  snprintf(path, sizeof path, "/proc/%s/fd", pid);
  DIR *folder = opendir(path);
  const struct dirent *entry;
  while (folder != NULL && !found && (entry = readdir(folder)) != NULL) {
    snprintf(link, sizeof link, "%s/%s", path, entry->d_name);
    n = readlink(link, target, sizeof target - 1);
    target[n < 0 ? 0 : n] = '\0';
    found = strstr(target, prefix) != NULL;
  }
  if (folder != NULL) closedir(folder);
  return found;
}

/* Workers go on without their broker, for as long as it takes. */
static void end_leftovers(const struct npi_test_broker *broker) {
  char prefix[64];
  snprintf(prefix, sizeof prefix, "numapool.%s.", broker->instance);
  DIR *folder = opendir("/proc");
  const struct dirent *entry;
  while (folder != NULL && (entry = readdir(folder)) != NULL) {
    if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && is_leftover(entry->d_name, prefix)) {
      kill((pid_t)atoi(entry->d_name), SIGKILL);
    }
  }
  if (folder != NULL) closedir(folder);
}

void npi_test_broker_clean(struct npi_test_broker *broker) {
  char command[256];
  if (broker->folder[0] == '\0') return;
  end_leftovers(broker);
  /* A broker that was killed with its keeper leaves its objects. */
  snprintf(command, sizeof command, "rm -rf '%s' /dev/shm/numapool.%s.*", broker->folder, broker->instance);
  int status = system(command);
  cr_assert(status == 0);
  memset(broker, 0, sizeof *broker);
}

void npi_test_broker_stop(struct npi_test_broker *broker) {
  kill(broker->pid, SIGTERM);
  int status = wait_for_end(broker);
  int left = npi_test_broker_shm_count(broker);
  int socket_left = access(broker->socket_path, F_OK) == 0;
  if (status != 0 || left != 0 || socket_left) print_log(broker);
  cr_assert(status == 0, "the broker ended with status %d", status);
  cr_assert(left == 0, "%d objects of the instance are left in /dev/shm", left);
  cr_assert(!socket_left, "the control socket is left");
  npi_test_broker_clean(broker);
}

void npi_test_broker_kill_with_keeper(struct npi_test_broker *broker) {
  char command[96];
  int status = 1;
  cr_assert(process_stop(broker->pid)); /* or it would start another keeper */
  snprintf(command, sizeof command, "pkill -KILL -P %d numapool-keeper", (int)broker->pid);
  /* The broker does not wait for its keeper, which has its name only when it runs. */
  for (int i = 0; i < 1000 && (status = system(command)) != 0; i++) usleep(10000);
  cr_assert_eq(status, 0, "it has no keeper");
  npi_test_broker_kill(broker);
}

void npi_test_broker_kill(struct npi_test_broker *broker) {
  kill(broker->pid, SIGKILL);
  wait_for_end(broker);
}

int npi_test_broker_log_contains(const struct npi_test_broker *broker, const char *text) {
  char line[4096];
  int found = 0;
  FILE *log = fopen(broker->log_path, "r");
  while (log != NULL && !found && fgets(line, sizeof line, log) != NULL) found = strstr(line, text) != NULL;
  if (log != NULL) fclose(log);
  return found;
}

int npi_test_broker_log_will_contain(const struct npi_test_broker *broker, const char *text) {
  for (int waited = 0; waited < LOG_TIMEOUT_MS; waited += 10) {
    if (npi_test_broker_log_contains(broker, text)) return 1;
    usleep(10000);
  }
  print_log(broker);
  return 0;
}
