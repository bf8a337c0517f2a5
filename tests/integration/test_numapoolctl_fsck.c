/* SPDX-License-Identifier: Apache-2.0 */
/* numapoolctl fsck: finds what was put wrong on purpose, and nothing else. */
#include <fcntl.h>
#include <sys/mman.h>

#include "core/ledger.h"
#include "support/ctl.h"
#include "support/process.h"

TestSuite(numapoolctl_fsck, .timeout = 120);

/* ---- fsck finds what is wrong -------------------------------------------------------------------------- */

Test(numapoolctl_fsck, fsck_and_segments_find_an_object_that_nobody_knows) {
  char path[128];
  start();
  snprintf(path, sizeof path, "/dev/shm/numapool.%s.%u.seg.4711", broker.instance, (unsigned)geteuid());
  int fd = open(path, O_CREAT | O_WRONLY, 0600);
  cr_assert_geq(fd, 0);
  cr_assert_eq(ftruncate(fd, 4096), 0);
  close(fd);
  struct result result = shell("$ctl fsck");
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.out, "seg.4711 (4096 bytes) is not in the registry");
  done(&result);
  json_t *document = json_of("segments", 0);
  cr_assert_eq(json_array_size(json_object_get(document, "orphans")), 1);
  json_decref(document);
  unlink(path);
  json_decref(json_of("fsck", 0));
  stop();
}

Test(numapoolctl_fsck, objects_of_an_instance_whose_name_begins_alike_are_not_ours) {
  char path[128];
  start();
  /* Segment 3 of the instance "<ours>.<uid>". */
  snprintf(path, sizeof path, "/dev/shm/numapool.%s.%u.%u.seg.3", broker.instance, (unsigned)geteuid(),
           (unsigned)geteuid());
  int fd = open(path, O_CREAT | O_WRONLY, 0600);
  cr_assert_geq(fd, 0);
  close(fd);
  struct result result = shell("$ctl fsck");
  unlink(path);
  EXPECT_STATUS(result, 0);
  done(&result);
  stop();
}

Test(numapoolctl_fsck, fsck_finds_a_segment_that_has_lost_its_object) {
  char path[128];
  start();
  json_t *document = json_of("segments", 0);
  const json_t *row = json_array_get(json_object_get(document, "segments"), 0);
  snprintf(path, sizeof path, "/dev/shm/%s", json_string_value(json_object_get(row, "object")));
  json_decref(document);
  cr_assert_eq(unlink(path), 0);
  struct result result = shell("$ctl fsck");
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.out, path);
  done(&result);
  stop();
}

/* This process's own ledger, as numapoolctl finds it. */
static struct npi_ledger_header *map_own_ledger(void) {
  char path[64], label[256];
  for (int fd = 3; fd < 256; fd++) {
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, label, sizeof label - 1);
    if (n <= 0) continue;
    label[n] = '\0';
    if (strncmp(label, "/memfd:numapool.", 16) != 0 || strstr(label, ".ledger.") == NULL) continue;
    struct stat facts;
    cr_assert_eq(fstat(fd, &facts), 0);
    void *memory = mmap(NULL, (size_t)facts.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert_neq(memory, MAP_FAILED);
    return memory;
  }
  cr_assert_fail("this process has no ledger");
  return NULL;
}

Test(numapoolctl_fsck, fsck_finds_a_ledger_that_contradicts_itself) {
  struct np_publisher *publisher;
  start();
  struct np_client *client = connect_as("scribbler");
  OK(np_publisher_open(client, "news", NULL, &publisher));
  publish(publisher, "abc", 3);
  json_decref(json_of("fsck", 0));
  struct npi_ledger_header *ledger = map_own_ledger();
  cr_assert_eq(ledger->magic, NPI_MAGIC_LEDGER);
  cr_assert_gt(ledger->free[0].count, 0);
  ledger->free[0].count++;
  struct result result = shell("$ctl fsck");
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.out, "scribbler");
  EXPECT_IN(result.out, "free list of class 0");
  done(&result);
  json_t *document = json_of("fsck", 1);
  cr_assert_eq(json_array_size(json_object_get(document, "findings")), 1);
  json_decref(document);
  ledger->free[0].count--;
  json_decref(json_of("fsck", 0));

  ledger->magic ^= 1;
  result = shell("$ctl fsck"); /* it is then not recognised as this client's: said, and nothing else breaks */
  EXPECT_IN(result.out, "scribbler");
  done(&result);
  ledger->magic ^= 1;
  np_disconnect(client);
  stop();
}

Test(numapoolctl_fsck, fsck_finds_a_lease_that_the_ledger_denies) {
  struct np_publisher *publisher;
  start();
  struct np_client *client = connect_as("denier");
  OK(np_publisher_open(client, "news", NULL, &publisher));
  publish(publisher, "abc", 3);
  struct npi_ledger_header *header = map_own_ledger();
  struct npi_ledger_segment *segments = (void *)((uint8_t *)header + header->segments_offset);
  cr_assert_eq(segments[0].leased, 1);
  segments[0].leased = 0;
  struct result result = shell("$ctl fsck");
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.out, "is leased to it as number 0, which is not in its ledger");
  done(&result);
  segments[0].leased = 1;
  np_disconnect(client);
  stop();
}

Test(numapoolctl_fsck, fsck_finds_rings_that_contradict_the_ledger) {
  struct np_publisher *publisher;
  struct np_subscriber *subscriber;
  start();
  struct np_client *client = connect_as("counter"), *reader = connect_as("reader");
  OK(np_subscriber_open(reader, "news", NULL, &subscriber));
  OK(np_publisher_open(client, "news", NULL, &publisher));
  publish(publisher, "abc", 3);
  json_decref(json_of("fsck", 0));
  struct npi_ledger_header *header = map_own_ledger();
  if (header->client != 1 && header->client != 2) cr_assert_neq(header->client, 0); /* 0 is the ingest worker */
  struct npi_ledger_connection *connections = (void *)((uint8_t *)header + header->connections_offset);
  cr_assert_eq(connections[0].submitted, 1);
  connections[0].submitted += 3;
  connections[0].returned += 3; /* consistent in itself, and not what its rings say */
  struct result result = shell("$ctl fsck");
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.out, "its counters say 1 published");
  done(&result);
  connections[0].submitted -= 3;
  connections[0].returned -= 3;
  json_decref(json_of("fsck", 0));
  np_disconnect(client);
  np_disconnect(reader);
  stop();
}

Test(numapoolctl_fsck, fsck_finds_a_registry_that_contradicts_itself) {
  char path[128];
  start();
  snprintf(path, sizeof path, "/dev/shm/numapool.%s.%u.registry", broker.instance, (unsigned)geteuid());
  int fd = open(path, O_RDWR | O_CLOEXEC);
  cr_assert_geq(fd, 0);
  struct stat facts;
  cr_assert_eq(fstat(fd, &facts), 0);
  uint8_t *bytes = mmap(NULL, (size_t)facts.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  cr_assert_neq(bytes, MAP_FAILED);
  struct npi_registry_header *header = (void *)bytes;
  struct npi_node_record *nodes = (void *)(bytes + header->nodes.offset);
  npi_count_add(&nodes[0].made_bytes, 4096);
  struct result result = shell("$ctl fsck");
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.out, "bytes made");
  done(&result);
  npi_count_add(&nodes[0].made_bytes, (uint64_t)-4096);

  struct npi_channel_record *channels = (void *)(bytes + header->channels.offset);
  channels[0].name[0] = (char)0xff; /* no text at all: the line and the document stay readable */
  npi_store_relaxed_u32(&channels[0].n_publishers, 77);
  json_t *document = json_of("fsck", 1);
  cr_assert_eq(json_array_size(json_object_get(document, "findings")), 1);
  json_decref(document);
  json_decref(json_of("channels", 0));

  header->clients.count = UINT32_MAX; /* a table that leaves the object is not followed */
  for (int i = 0; i < LOOKING_VERBS; i++) {
    result = shell("$ctl %s", verbs[i]);
    EXPECT_STATUS(result, strcmp(verbs[i], "fsck") == 0 ? 1 : 3);
    done(&result);
  }
  munmap(bytes, (size_t)facts.st_size);
  close(fd);
  stop_killed();
}

Test(numapoolctl_fsck, fsck_of_a_busy_instance_invents_nothing) {
  start();
  struct result result = shell(
      "(yes hello | $ctl pub news & echo $! > $T/pub); $ctl tap news --timeout 3 > $T/taken & "
      "sleep 0.3; for i in $(seq 25); do $ctl fsck || exit 9; done; "
      "(yes word | timeout 1 $ctl pub work --linger 3 & $ctl tap news --timeout 1 > /dev/null); "
      "kill $(cat $T/pub); wait; $ctl fsck");
  EXPECT_STATUS(result, 0);
  done(&result);
  stop();
}

static int as_nobody(const char *verb) {
  pid_t child = fork();
  if (child == 0) {
    int log = open("/dev/null", O_WRONLY);
    char path[128];
    snprintf(path, sizeof path, "%s/denied", getenv("T"));
    int err = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0666);
    dup2(log, 1);
    dup2(err, 2);
    if (setgid(65534) != 0 || setuid(65534) != 0) _exit(126);
    execl(NUMAPOOLCTL_PATH, "numapoolctl", verb, (char *)NULL);
    _exit(127);
  }
  int how = 0;
  waitpid(child, &how, 0);
  return WEXITSTATUS(how);
}

Test(numapoolctl_fsck, another_user_is_told_whose_it_is) {
  if (geteuid() != 0) cr_skip_test("needs root, to look as another user");
  start();
  struct result result = shell("true");
  done(&result);
  char path[128];
  snprintf(path, sizeof path, "%s/denied", getenv("T"));
  for (int i = 0; i < LOOKING_VERBS; i++) {
    int status = as_nobody(verbs[i]);
    if (status == 127) cr_skip_test("user 65534 cannot reach " NUMAPOOLCTL_PATH);
    cr_assert_eq(status, 3, "%s: %d", verbs[i], status);
    char *err = read_all(path, NULL);
    EXPECT_IN(err, "belongs to user 0");
    free(err);
  }
  stop();
}

Test(numapoolctl_fsck, fsck_finds_a_client_that_nobody_cleared_up) {
  start();
  pid_t child = fork();
  if (child == 0) {
    struct np_client *client = NULL;
    struct np_options options;
    np_options_init(&options);
    options.name = "victim";
    if (np_connect(&client, &options) != NP_OK) _exit(1);
    raise(SIGSTOP);
    _exit(0);
  }
  int how = 0;
  cr_assert_eq(waitpid(child, &how, WUNTRACED), child);
  cr_assert(process_stop(broker.pid));
  kill(child, SIGKILL);
  waitpid(child, &how, 0);
  struct result result = shell("$ctl fsck");
  EXPECT_STATUS(result, 1);
  EXPECT_IN(result.out, "victim");
  EXPECT_IN(result.out, "not cleared up");
  done(&result);
  kill(broker.pid, SIGCONT);
  cr_assert(npi_test_broker_log_will_contain(&broker, "name=victim"));
  for (int i = 0; i < 100; i++) {
    result = shell("$ctl fsck");
    int status = result.status;
    done(&result);
    if (status == 0) break;
    usleep(20000);
  }
  result = shell("$ctl fsck");
  EXPECT_STATUS(result, 0);
  done(&result);
  stop();
}
