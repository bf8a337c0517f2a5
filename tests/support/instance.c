/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/instance.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { READY_SECONDS = 60, STOP_SECONDS = 60, QUIET_SECONDS = 30 };

void say(const char *format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  int n = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (n > (int)sizeof text) n = (int)sizeof text;
  if (n > 0 && write(STDERR_FILENO, text, (size_t)n) < 0) abort();
}

static long read_file(const char *path, char *text, size_t bytes) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  struct stat status;
  if (fstat(fd, &status) == 0 && status.st_size > (off_t)bytes - 1) lseek(fd, status.st_size - (off_t)bytes + 1, 0);
  ssize_t n = read(fd, text, bytes - 1);
  close(fd);
  text[n < 0 ? 0 : n] = '\0';
  return n;
}

void instance_print_log(const struct instance *instance) {
  static char text[8192];
  long n = read_file(instance->log, text, sizeof text);
  if (n <= 0) return;
  say("---- end of %s\n", instance->log);
  if (write(STDERR_FILENO, text, (size_t)n) < 0) abort(); /* more than a line that say() has room for */
  say("----\n");
}

int instance_log_has(const struct instance *instance, const char *wanted) {
  FILE *file = fopen(instance->log, "re");
  char line[2048];
  int found = 0;
  while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) found = strstr(line, wanted) != NULL;
  if (file != NULL) fclose(file);
  return found;
}

#define EXPECT(instance, condition, ...) \
  do {                                   \
    if (!(condition)) {                  \
      instance_print_log(instance);      \
      cr_assert(0, __VA_ARGS__);         \
    }                                    \
  } while (0)

static void prepare(struct instance *instance, const char *yaml) {
  static int number;
  memset(instance, 0, sizeof *instance);
  snprintf(instance->name, sizeof instance->name, "t-%d-%d", (int)getpid(), number++);
  snprintf(instance->folder, sizeof instance->folder, "/tmp/npt-XXXXXX");
  cr_assert_not_null(mkdtemp(instance->folder));
  snprintf(instance->log, sizeof instance->log, "%s/log", instance->folder);
  snprintf(instance->config, sizeof instance->config, "%s/config.yaml", instance->folder);
  snprintf(instance->runtime, sizeof instance->runtime, "%s/numapool/%s", instance->folder, instance->name);
  FILE *file = fopen(instance->config, "we");
  cr_assert_not_null(file);
  fprintf(file, "instance: %s\n%s", instance->name, yaml);
  cr_assert_eq(fclose(file), 0);
  setenv("XDG_RUNTIME_DIR", instance->folder, 1);
  setenv("NUMAPOOL_INSTANCE", instance->name, 1);
  unsetenv("NUMAPOOL_SOCKET");
}

static pid_t launch(const struct instance *instance, const char *notify, const char *option, int (*before_exec)(void)) {
  fflush(NULL);
  pid_t pid = fork();
  cr_assert_geq(pid, 0);
  if (pid > 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGTERM); /* a test that fails leaves no broker behind */
  int log = open(instance->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  if (notify != NULL) setenv("NOTIFY_SOCKET", notify, 1);
  for (int fd = 3; fd < 1024; fd++) close(fd); /* what the test runner left open is not the broker's */
  if (before_exec != NULL && before_exec() != 0) _exit(78);
  execl(NUMAPOOLD_PATH, "numapoold", "--config", instance->config, option, (char *)NULL);
  fprintf(stderr, "cannot run %s: %s\n", NUMAPOOLD_PATH, strerror(errno));
  _exit(79);
}

/* Of the broker: a test may give it a user of its own, and the folder with it. */
static unsigned broker_uid(const struct instance *instance) {
  struct stat status;
  return stat(instance->folder, &status) == 0 ? (unsigned)status.st_uid : (unsigned)geteuid();
}

static void map_registry(struct instance *instance) {
  char name[128];
  struct stat status;
  snprintf(name, sizeof name, "/numapool.%s.%u.registry", instance->name, broker_uid(instance));
  int fd = shm_open(name, O_RDONLY, 0);
  EXPECT(instance, fd >= 0 && fstat(fd, &status) == 0, "no registry %s", name);
  void *address = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  cr_assert_neq(address, MAP_FAILED);
  instance->registry = address;
  instance->registry_bytes = (uint64_t)status.st_size;
}

const struct npi_registry_header *instance_header(const struct instance *instance) {
  return (const void *)instance->registry;
}

long instance_own_kib(pid_t pid) {
  char path[64], line[128];
  long kib = -1;
  snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
  FILE *file = fopen(path, "r");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    if (sscanf(line, "RssAnon: %ld", &kib) == 1) break;
  }
  if (file != NULL) fclose(file);
  return kib;
}

int instance_descriptors(pid_t pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
  DIR *folder = opendir(path);
  int n = 0;
  if (folder == NULL) return -1;
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    char link[336];
    char target[256];
    snprintf(link, sizeof link, "%s/%s", path, entry->d_name);
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (length < 0) continue;
    target[length] = '\0';
    if (strstr(target, ".seg.") == NULL) n++;
  }
  closedir(folder);
  return n;
}

/* Starts the broker and waits until it says that it is ready. */
static void start_and_wait(struct instance *instance, const char *option) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s/notify", instance->folder);
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  cr_assert_eq(bind(fd, (const struct sockaddr *)&address, sizeof address), 0);
  instance->pid = launch(instance, address.sun_path, option, instance->before_exec);
  int ready = 0;
  for (int left = READY_SECONDS * 10; !ready && left > 0; left--) {
    char text[512];
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    int status = 0;
    EXPECT(instance, waitpid(instance->pid, &status, WNOHANG) == 0, "the broker ended with status %#x", status);
    if (poll(&poller, 1, 100) <= 0) continue;
    ssize_t n = recv(fd, text, sizeof text - 1, 0);
    text[n < 0 ? 0 : n] = '\0';
    ready = strstr(text, "READY=1") != NULL;
  }
  close(fd);
  unlink(address.sun_path);
  EXPECT(instance, ready, "the broker did not become ready in %d s", READY_SECONDS);
}

void instance_start(struct instance *instance, const char *yaml, int (*before_exec)(void)) {
  prepare(instance, yaml);
  instance->before_exec = before_exec;
  start_and_wait(instance, NULL);
  map_registry(instance);
  /* What it opened to start is closed a moment after it said that it is ready. */
  int before = -1;
  while ((instance->first_descriptors = instance_descriptors(instance->pid)) != before) {
    before = instance->first_descriptors;
    usleep(20000);
  }
}

void instance_kill(struct instance *instance) {
  kill(instance->pid, SIGKILL);
  waitpid(instance->pid, NULL, 0);
  instance->pid = 0;
}

double instance_start_again(struct instance *instance, const char *option) {
  struct timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  start_and_wait(instance, option);
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (double)(end.tv_sec - begin.tv_sec) * 1e3 + (double)(end.tv_nsec - begin.tv_nsec) / 1e6;
}

void instance_map_again(struct instance *instance) {
  munmap((void *)(uintptr_t)instance->registry, instance->registry_bytes);
  map_registry(instance);
}

pid_t instance_launch(struct instance *instance, const char *option) {
  instance->pid = launch(instance, NULL, option, instance->before_exec);
  return instance->pid;
}

void instance_forget(const struct instance *instance) {
  char command[160];
  snprintf(command, sizeof command, "rm -rf '%s'", instance->folder);
  cr_assert_eq(system(command), 0);
}

int instance_start_refused(struct instance *instance, const char *yaml, int (*before_exec)(void)) {
  int status = 0;
  prepare(instance, yaml);
  pid_t pid = launch(instance, NULL, NULL, before_exec);
  for (int left = READY_SECONDS * 100; left > 0; left--) {
    if (waitpid(pid, &status, WNOHANG) == pid) {
      if (!WIFEXITED(status)) instance_print_log(instance);
      cr_assert(WIFEXITED(status), "the broker died: status %#x", status);
      cr_assert_eq(instance_shm_count(instance), 0, "left behind: %s", instance->leftovers);
      return WEXITSTATUS(status);
    }
    usleep(10000);
  }
  kill(pid, SIGKILL);
  waitpid(pid, &status, 0);
  EXPECT(instance, 0, "the broker should have refused to start");
  return -1;
}

/* ---- what the registry says --------------------------------------------------------------------------- */

static const void *record_at(const struct instance *instance, const struct npi_table *table, uint32_t index) {
  return instance->registry + table->offset + (uint64_t)index * table->bytes;
}

static const struct npi_client_record *client_at(const struct instance *instance, uint32_t index) {
  const struct npi_table *table = &instance_header(instance)->clients;
  return index < table->count ? record_at(instance, table, index) : NULL;
}

static int client_is(const struct npi_client_record *client, pid_t pid) {
  if (npi_load_acquire_u32(&client->state) == NPI_RECORD_FREE) return 0;
  return pid == 0 ? client->kind != NPI_CLIENT_WORKER : client->pid == (uint32_t)pid;
}

int instance_clients(const struct instance *instance, pid_t pid) {
  int n = 0;
  for (uint32_t i = 0; i < instance_header(instance)->clients.count; i++) n += client_is(client_at(instance, i), pid);
  return n;
}

int instance_connections(const struct instance *instance, pid_t pid) {
  const struct npi_table *table = &instance_header(instance)->connections;
  int n = 0;
  for (uint32_t i = 0; i < table->count; i++) {
    const struct npi_connection_record *record = record_at(instance, table, i);
    if (npi_load_acquire_u32(&record->state) == NPI_CONNECTION_FREE) continue;
    if (pid == 0) {
      n++;
      continue;
    }
    const struct npi_client_record *a = client_at(instance, record->publisher_client);
    const struct npi_client_record *b = client_at(instance, record->subscriber_client);
    n += (a != NULL && a->pid == (uint32_t)pid) || (b != NULL && b->pid == (uint32_t)pid);
  }
  return n;
}

int instance_segments_leased(const struct instance *instance, pid_t pid) {
  const struct npi_table *table = &instance_header(instance)->segments;
  int n = 0;
  for (uint32_t i = 0; i < table->count; i++) {
    const struct npi_segment_record *record = record_at(instance, table, i);
    uint32_t state = npi_load_acquire_u32(&record->state);
    if (state != NPI_SEGMENT_LEASED && state != NPI_SEGMENT_DRAINING) continue;
    const struct npi_client_record *client = client_at(instance, record->client);
    if (client == NULL) {
      n += pid == 0; /* leased by nobody that is known */
    } else if (pid == 0) {
      n += client->kind != NPI_CLIENT_WORKER || npi_load_acquire_u32(&client->state) == NPI_RECORD_FREE;
    } else {
      n += client->pid == (uint32_t)pid;
    }
  }
  return n;
}

static int endpoints_of_others_than_workers(const struct instance *instance) {
  const struct npi_registry_header *header = instance_header(instance);
  int n = 0;
  for (uint32_t i = 0; i < header->publishers.count; i++) {
    const struct npi_publisher_record *record = record_at(instance, &header->publishers, i);
    const struct npi_client_record *client = client_at(instance, record->client);
    n += npi_load_acquire_u32(&record->state) != NPI_RECORD_FREE &&
         (client == NULL || client->kind != NPI_CLIENT_WORKER);
  }
  for (uint32_t i = 0; i < header->subscribers.count; i++) {
    const struct npi_subscriber_record *record = record_at(instance, &header->subscribers, i);
    n += npi_load_acquire_u32(&record->state) != NPI_RECORD_FREE;
  }
  return n;
}

uint64_t instance_broker_counter(const struct instance *instance, unsigned row) {
  return npi_load_relaxed_u64(&instance_header(instance)->counter[row]);
}

const struct npi_listener_record *instance_listener(const struct instance *instance, const char *name) {
  const struct npi_table *table = &instance_header(instance)->listeners;
  for (uint32_t i = 0; i < table->count; i++) {
    const struct npi_listener_record *record = record_at(instance, table, i);
    if (npi_load_acquire_u32(&record->state) != NPI_LISTENER_FREE && strcmp(record->name, name) == 0) return record;
  }
  cr_assert(0, "no listener %s in the registry", name);
  return NULL;
}

uint16_t instance_port(const struct instance *instance, const char *name) {
  const struct npi_listener_record *record = instance_listener(instance, name);
  cr_assert(record->port > 0 && record->port < 65536, "listener %s has port %u", name, record->port);
  return (uint16_t)record->port;
}

pid_t instance_worker(const struct instance *instance) {
  for (uint32_t i = 0; i < instance_header(instance)->clients.count; i++) {
    const struct npi_client_record *client = client_at(instance, i);
    if (npi_load_acquire_u32(&client->state) == NPI_RECORD_ACTIVE && client->kind == NPI_CLIENT_WORKER) {
      return (pid_t)client->pid;
    }
  }
  return 0;
}

/* A counter in the page of one client, which its process has open under the page's name. */
static uint64_t counter_in_page(pid_t pid, uint64_t offset) {
  char path[64];
  uint64_t value = 0;
  snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
  DIR *folder = opendir(path);
  if (folder == NULL) return 0;
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    char link[336];
    char target[256];
    snprintf(link, sizeof link, "%s/%s", path, entry->d_name);
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (length < 0) continue;
    target[length] = '\0';
    if (strstr(target, ".page.") == NULL) continue;
    int fd = open(link, O_RDONLY | O_CLOEXEC);
    struct npi_page_shm page;
    if (fd >= 0 && pread(fd, &page, sizeof page, 0) == (ssize_t)sizeof page && page.pid == (uint32_t)pid &&
        pread(fd, &value, sizeof value, (off_t)offset) != (ssize_t)sizeof value) {
      value = 0;
    }
    if (fd >= 0) close(fd);
  }
  closedir(folder);
  return value;
}

uint64_t instance_listener_counter(const struct instance *instance, const char *name, unsigned row) {
  const struct npi_registry_header *header = instance_header(instance);
  const uint8_t *record = (const void *)instance_listener(instance, name);
  uint64_t index = (uint64_t)(record - instance->registry - header->listeners.offset) / header->listeners.bytes;
  uint64_t offset = header->page_listeners_offset + index * sizeof(struct npi_listener_counters) + row * 8;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < header->clients.count; i++) {
    const struct npi_client_record *client = client_at(instance, i);
    if (npi_load_acquire_u32(&client->state) == NPI_RECORD_ACTIVE && client->kind == NPI_CLIENT_WORKER) {
      sum += counter_in_page((pid_t)client->pid, offset);
    }
  }
  return sum;
}

/* ---- the end -------------------------------------------------------------------------------------------- */

int instance_shm_count(struct instance *instance) {
  char prefix[64];
  int n = 0;
  snprintf(prefix, sizeof prefix, "numapool.%s.", instance->name);
  instance->leftovers[0] = '\0';
  DIR *folder = opendir("/dev/shm");
  cr_assert_not_null(folder);
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0) continue;
    size_t used = strlen(instance->leftovers);
    snprintf(instance->leftovers + used, sizeof instance->leftovers - used, " %s", entry->d_name);
    n++;
  }
  closedir(folder);
  return n;
}

static int is_quiet(const struct instance *instance) {
  return instance_clients(instance, 0) == 0 && instance_connections(instance, 0) == 0 &&
         instance_segments_leased(instance, 0) == 0 && endpoints_of_others_than_workers(instance) == 0 &&
         instance_descriptors(instance->pid) <= instance->first_descriptors;
}

void instance_expect_quiet(struct instance *instance) {
  for (int left = QUIET_SECONDS * 200; !is_quiet(instance) && left > 0; left--) usleep(5000);
  EXPECT(instance, is_quiet(instance),
         "still there: %d clients, %d connections, %d leased segments, %d endpoints; the broker has %d descriptors, at "
         "first %d",
         instance_clients(instance, 0), instance_connections(instance, 0), instance_segments_leased(instance, 0),
         endpoints_of_others_than_workers(instance), instance_descriptors(instance->pid), instance->first_descriptors);
  if (access(NUMAPOOLCTL_PATH, X_OK) != 0) return;
  char command[512];
  snprintf(command, sizeof command, "'%s' --instance %s fsck >%s/fsck 2>&1", NUMAPOOLCTL_PATH, instance->name,
           instance->folder);
  int status = system(command);
  if (status != 0) {
    char path[96];
    static char text[8192];
    snprintf(path, sizeof path, "%s/fsck", instance->folder);
    if (read_file(path, text, sizeof text) > 0) say("%s", text);
  }
  EXPECT(instance, status == 0, "fsck: status %#x", status);
}

static int count_entries(const char *path) {
  DIR *folder = opendir(path);
  int n = 0;
  if (folder == NULL) return 0;
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    if (entry->d_name[0] == '.' || strcmp(entry->d_name, "lock") == 0) continue;
    say("left in %s: %s\n", path, entry->d_name);
    n++;
  }
  closedir(folder);
  return n;
}

void instance_stop(struct instance *instance) {
  int status = 0;
  instance_expect_quiet(instance);
  munmap((void *)(uintptr_t)instance->registry, instance->registry_bytes);
  instance->registry = NULL;
  kill(instance->pid, SIGTERM);
  pid_t ended = 0;
  for (int left = STOP_SECONDS * 200; ended == 0 && left > 0; left--) {
    ended = waitpid(instance->pid, &status, WNOHANG);
    if (ended == 0) usleep(5000);
  }
  if (ended == 0) kill(instance->pid, SIGKILL);
  EXPECT(instance, ended == instance->pid, "the broker did not end within %d s of SIGTERM", STOP_SECONDS);
  EXPECT(instance, WIFEXITED(status) && WEXITSTATUS(status) == 0, "the broker ended with status %#x", status);
  EXPECT(instance, instance_shm_count(instance) == 0, "left behind in /dev/shm:%s", instance->leftovers);
  EXPECT(instance, count_entries(instance->runtime) == 0, "left behind in %s", instance->runtime);
  EXPECT(instance, !instance_log_has(instance, "Sanitizer"), "a sanitizer spoke in the broker's log");
  instance_forget(instance);
}
