/* SPDX-License-Identifier: Apache-2.0 */
/* How the broker begins and ends: without a configuration, with a wrong one, twice, after a crash, at SIGTERM. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/status.h"
#include "os/os_memory.h"
#include "os/os_process.h"
#include "shm/layout.h"
#include "shm/leftovers.h"
#include "support/broker_fixture.h"
#include "support/child.h"
#include "support/eventually.h"
#include "support/raw_client.h"

TestSuite(broker_life, .timeout = 60);

static struct npi_test_broker broker;

/* Runs a shell command; its output in text, its exit status as result. */
static int shell(const char *command, char *text, size_t bytes) {
  FILE *output = popen(command, "r");
  cr_assert_not_null(output);
  size_t n = fread(text, 1, bytes - 1, output);
  text[n] = '\0';
  int how = pclose(output);
  return WIFEXITED(how) ? WEXITSTATUS(how) : 1000;
}

Test(broker_life, sigterm_ends_it_in_order_and_leaves_nothing) {
  struct raw_client client;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, NULL);
  cr_assert(npi_test_broker_shm_count(&broker) == 9, "16 MiB are ready in segments of 2 MiB, and the registry");
  raw_connect(&client, broker.socket_path);
  cr_assert(raw_hello(&client, "stays", &frame) == 0);
  cr_assert(raw_open_publisher(&client, "c", &frame, NULL) == 0);
  cr_assert(raw_lease(&client, 4 << 20, &frame, NULL) == 0);
  npi_test_broker_stop(&broker);
  raw_expect_end(&client);
  raw_close(&client);
}

Test(broker_life, memfd_segments_have_no_name) {
  struct raw_client client;
  struct npi_control_frame frame;
  npi_test_broker_start(&broker, "memory: { backend: memfd }\n");
  cr_assert(npi_test_broker_shm_count(&broker) == 1, "only the registry has a name");
  raw_connect(&client, broker.socket_path);
  cr_assert(raw_hello(&client, "client", &frame) == 0);
  cr_assert(raw_lease(&client, 1, &frame, NULL) == 0);
  raw_goodbye(&client);
  npi_test_broker_stop(&broker);
}

Test(broker_life, a_second_broker_is_refused_and_told_whose_the_instance_is) {
  char text[4096], command[512], pid[32];
  npi_test_broker_start(&broker, NULL);
  struct npi_test_broker second = broker;
  snprintf(second.log_path, sizeof second.log_path, "%s/log2", broker.folder);
  cr_assert(npi_test_broker_refused(&second, NULL) == 1);
  snprintf(pid, sizeof pid, "process %d", (int)broker.pid);
  cr_assert(npi_test_broker_log_contains(&second, pid));
  /* Another runtime directory makes it no other instance: the names in /dev/shm would be the same. */
  snprintf(command, sizeof command, "XDG_RUNTIME_DIR=%s %s --instance %s 2>&1", broker.folder, NUMAPOOLD_PATH,
           broker.instance);
  cr_assert(shell(command, text, sizeof text) == 1 && strstr(text, pid) != NULL, "%s", text);
  cr_assert(npi_test_broker_shm_count(&broker) == 9, "the refused one touched what is not its own");
  struct raw_client client;
  struct npi_control_frame frame;
  raw_connect(&client, broker.socket_path);
  cr_assert(raw_hello(&client, "client", &frame) == 0);
  raw_goodbye(&client);
  npi_test_broker_stop(&broker);
}

/* Its registry has no magic before its memory is ready, which takes a second for each two GiB. */
Test(broker_life, a_broker_that_still_starts_is_not_cleaned_away_by_another) {
  struct npi_registry_header *header;
  char name[96];
  int fd;
  npi_test_broker_prepare(&broker);
  npi_shm_name(name, sizeof name, broker.instance, geteuid(), "registry", -1);
  cr_assert(npi_memory_create_posix(name, sizeof *header, &fd) == 0, "%s", npi_detail());
  cr_assert(npi_memory_map(fd, 0, sizeof *header, 1, (void **)&header) == 0);
  header->broker_pid = (uint32_t)getpid(); /* this process stands for it */
  cr_assert(npi_process_start_time(getpid(), &header->broker_start_time) == 0);
  cr_assert(npi_process_boot_id(header->boot_id, sizeof header->boot_id) == 0);
  int status = npi_test_broker_refused(&broker, NULL);
  int n = npi_test_broker_shm_count(&broker);
  header->broker_start_time--; /* an earlier process of this number: what it left is nobody's */
  npi_memory_unmap(header, sizeof *header);
  close(fd);
  cr_assert_eq(status, 1);
  cr_assert_eq(n, 1, "the living broker's registry was removed");
  npi_test_broker_start(&broker, "memory: { ready: 4MiB }\n");
  cr_assert(npi_test_broker_log_contains(&broker, "removed=1"));
  npi_test_broker_stop(&broker);
}

Test(broker_life, what_a_killed_broker_left_is_cleaned_at_the_next_start) {
  npi_test_broker_start(&broker, NULL);
  npi_test_broker_kill(&broker);
  cr_assert(npi_test_broker_shm_count(&broker) == 9);
  npi_test_broker_start(&broker, "memory: { ready: 4MiB }\n");
  cr_assert(npi_test_broker_shm_count(&broker) == 3);
  cr_assert(npi_test_broker_log_contains(&broker, "broker.leftovers"));
  cr_assert(npi_test_broker_log_contains(&broker, "removed=9"));
  npi_test_broker_stop(&broker);
}

/* Its workers outlive it for as long as they have something to publish, and hold its ports. */
Test(broker_life, a_broker_that_was_killed_gets_its_ports_back) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  char yaml[256];
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  cr_assert(bind(fd, (const struct sockaddr *)&address, sizeof address) == 0);
  cr_assert(getsockname(fd, (struct sockaddr *)&address, &length) == 0);
  close(fd);
  snprintf(yaml, sizeof yaml,
           "listeners: [ { name: in, proto: tcp, address: \"127.0.0.1:%u\", framing: newline, channel: c } ]",
           ntohs(address.sin_port));
  npi_test_broker_start(&broker, yaml);
  npi_test_broker_kill(&broker);
  npi_test_broker_start(&broker, yaml);
  npi_test_broker_stop(&broker);
}

Test(broker_life, the_first_lines_say_what_runs_where) {
  npi_test_broker_start(&broker, NULL);
  char text[256];
  snprintf(text, sizeof text, "broker.starting instance=%s version=", broker.instance);
  cr_assert(npi_test_broker_log_contains(&broker, text));
  snprintf(text, sizeof text, "socket=%s config=%s", broker.socket_path, broker.config_path);
  cr_assert(npi_test_broker_log_contains(&broker, text));
  snprintf(text, sizeof text, "broker.ready instance=%s in_ms=", broker.instance);
  cr_assert(npi_test_broker_log_contains(&broker, text));
  npi_test_broker_stop(&broker);
}

Test(broker_life, wrong_settings_are_refused_with_their_place) {
  char text[256];
  cr_assert(npi_test_broker_refused(&broker, "memory:\n  per_nod: 64MiB\n") == 2);
  snprintf(text, sizeof text, "%s:4:", broker.config_path);
  cr_assert(npi_test_broker_log_contains(&broker, text), "file and line");
  cr_assert(npi_test_broker_log_contains(&broker, "per_node"), "what was meant");
  cr_assert(npi_test_broker_refused(&broker, "memory: { per_node: 1TiB, segment: 2MiB }\n") == 2);
  cr_assert(npi_test_broker_refused(&broker, "numa: { mode: sometimes }\n") == 2);
  cr_assert(npi_test_broker_shm_count(&broker) == 0);
  npi_test_broker_clean(&broker);
}

Test(broker_life, arguments_have_exit_statuses_that_scripts_can_use) {
  char text[16384];
  cr_assert(shell(NUMAPOOLD_PATH " --version", text, sizeof text) == 0 && strstr(text, "numapoold ") == text);
  cr_assert(shell(NUMAPOOLD_PATH " --help", text, sizeof text) == 0 && strstr(text, "--config FILE") != NULL);
  cr_assert(shell(NUMAPOOLD_PATH " --no-such-option 2>&1", text, sizeof text) == 2);
  cr_assert(shell(NUMAPOOLD_PATH " file.yaml 2>&1", text, sizeof text) == 2);
  cr_assert(shell(NUMAPOOLD_PATH " --instance 'a b' 2>&1", text, sizeof text) == 2 && strstr(text, "a b") != NULL);
  cr_assert(shell(NUMAPOOLD_PATH " --config /no/such/file 2>&1", text, sizeof text) == 2);
  cr_assert(strstr(text, "/no/such/file") != NULL);
  cr_assert(shell(NUMAPOOLD_PATH " --log-level loud 2>&1", text, sizeof text) == 2 && strstr(text, "loud") != NULL);
  cr_assert(shell(NUMAPOOLD_PATH " --check-config --instance other", text, sizeof text) == 0);
  cr_assert(strstr(text, "other") != NULL);
}

Test(broker_life, a_port_in_use_is_named) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  char yaml[256], port[32];
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  cr_assert(bind(fd, (const struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 1) == 0);
  cr_assert(getsockname(fd, (struct sockaddr *)&address, &length) == 0);
  snprintf(port, sizeof port, "127.0.0.1:%u", ntohs(address.sin_port));
  snprintf(yaml, sizeof yaml,
           "listeners: [ { name: taken, proto: tcp, address: \"%s\", framing: newline, channel: c } ]", port);
  cr_assert(npi_test_broker_refused(&broker, yaml) == 1);
  cr_assert(npi_test_broker_log_contains(&broker, "taken") && npi_test_broker_log_contains(&broker, port));
  cr_assert(npi_test_broker_shm_count(&broker) == 0);
  close(fd);
  npi_test_broker_clean(&broker);
}

/* ---- in a process of its own ---- */

/* A /dev/shm of 8 MiB, in a mount namespace of this process. */
static int start_with_little_memory(const void *argument) {
  struct npi_test_broker *little = (struct npi_test_broker *)(uintptr_t)argument;
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
      mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=8m") != 0) {
    fprintf(stderr, "skipped: no mount namespace here\n");
    return CHILD_SKIP;
  }
  int status = npi_test_broker_refused(little, NULL);
  CHILD_EXPECT(status == 1);
  CHILD_EXPECT(npi_test_broker_log_contains(little, "memory.short"));
  CHILD_EXPECT(npi_test_broker_log_contains(little, "/dev/shm"));
  CHILD_EXPECT(npi_test_broker_log_contains(little, "broker.not_started"));
  CHILD_EXPECT(npi_test_broker_shm_count(little) == 0);
  little->pid = 0;
  npi_test_broker_start(little, "memory: { ready: 2MiB, backend: memfd }\n");
  npi_test_broker_stop(little);
  return 0;
}

Test(broker_life, too_little_memory_in_dev_shm_is_an_error_in_words) {
  npi_test_broker_prepare(&broker);
  int result = in_child(start_with_little_memory, &broker);
  npi_test_broker_clean(&broker);
  if (result == CHILD_SKIP) cr_skip_test("no mount namespace here");
  cr_assert(result == 0);
}

/* As an ordinary user, with and without XDG_RUNTIME_DIR, and with no configuration at all. */
static int run_as_nobody(const void *argument) {
  const char *runtime = argument;
  char instance[40], command[512], text[8192], path[128];
  if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) return CHILD_SKIP;
  if (runtime != NULL) {
    setenv("XDG_RUNTIME_DIR", runtime, 1);
    snprintf(path, sizeof path, "%s/numapool", runtime);
  } else {
    unsetenv("XDG_RUNTIME_DIR");
    snprintf(path, sizeof path, "/tmp/numapool-%u", (unsigned)geteuid());
  }
  snprintf(instance, sizeof instance, "user-%ld", (long)getpid());
  snprintf(command, sizeof command,
           "log=$(mktemp); %s --instance %s > $log 2>&1 & n=0; "
           "until grep -q broker.ready $log || [ $n -ge 400 ]; do n=$((n + 1)); sleep 0.05; done; "
           "kill -TERM $!; wait $!; status=$?; cat $log; rm $log; exit $status",
           NUMAPOOLD_PATH, instance);
  int status = shell(command, text, sizeof text);
  fputs(text, stderr);
  CHILD_EXPECT(status == 0);
  CHILD_EXPECT(strstr(text, "broker.ready") != NULL && strstr(text, path) != NULL);
  snprintf(command, sizeof command, "ls /dev/shm | grep -c numapool.%s; rm -rf %s/%s", instance, path, instance);
  shell(command, text, sizeof text);
  CHILD_EXPECT(atoi(text) == 0);
  return 0;
}

Test(broker_life, no_configuration_and_an_ordinary_user_are_enough) {
  char folder[] = "/tmp/numapool-user-XXXXXX";
  cr_assert_not_null(mkdtemp(folder));
  cr_assert(chmod(folder, 0777) == 0);
  int with = in_child(run_as_nobody, folder), without = in_child(run_as_nobody, NULL);
  char command[64], text[16];
  snprintf(command, sizeof command, "rm -rf %s", folder);
  shell(command, text, sizeof text);
  cr_assert(with == 0, "with XDG_RUNTIME_DIR: %d", with);
  cr_assert(without == 0, "without: %d", without);
}

Test(broker_life, a_dead_worker_is_started_again) {
  npi_test_broker_start(&broker, "listeners: [ { name: in, proto: udp, address: \"127.0.0.1:0\", channel: c } ]\n");
  char command[128], text[64];
  snprintf(command, sizeof command, "pgrep -P %d numapool-ingest", (int)broker.pid);
  cr_assert(shell(command, text, sizeof text) == 0);
  pid_t first = (pid_t)atoi(text), second = 0;
  cr_assert(first > 0 && kill(first, SIGKILL) == 0);
  for (int i = 0; i < 500 && (second == 0 || second == first); i++) {
    usleep(10000);
    if (shell(command, text, sizeof text) == 0) second = (pid_t)atoi(text);
  }
  cr_assert(second > 0 && second != first);
  cr_assert(npi_test_broker_log_will_contain(&broker, "signal=9"));
  struct raw_client client;
  struct npi_control_frame frame;
  raw_connect(&client, broker.socket_path);
  cr_assert(raw_hello(&client, "watcher", &frame) == 0);
  void *registry = NULL;
  cr_assert(npi_memory_map(client.fds[0], 0, client.registry_bytes, 0, &registry) == 0);
  const struct npi_registry_header *header = registry;
  const struct npi_listener_record *record =
      (const struct npi_listener_record *)(const void *)((const char *)registry + header->listeners.offset);
  EVENTUALLY(20, npi_load_acquire_u32(&record->state) == NPI_LISTENER_LISTENING);
  cr_assert(npi_load_relaxed_u32(&record->restarts) == 1 && record->port != 0);
  raw_goodbye(&client);
  npi_test_broker_stop(&broker);
}
