/* SPDX-License-Identifier: Apache-2.0 */
/* Mistakes in the configuration: each is refused where it stands, and with what to do. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"
#include "daemon/config.h"
#include "tests/support/config_text.h"

TestSuite(config_mistakes, .init = begin, .fini = end);

Test(config_mistakes, unknown_keys_are_refused_where_they_stand) {
  refuse("instance: a\nmemmory: {}\n", "test.yaml:2:1: memmory: ", "did you mean memory?");
  refuse("memory: { per_nod: 1GiB }\n", "test.yaml:1:11: memory.per_nod: ", "did you mean per_node?");
  refuse("per_node: 1GiB\n", "test.yaml:1:1: per_node: ", "did you mean memory.per_node?");
  refuse("memory.per_node: 1GiB\n", "test.yaml:1:1: memory.per_node: ", "memory: { per_node: ... }");
  refuse("zzzzzzz: 1\n", "test.yaml:1:1: zzzzzzz: ", "--help-config lists all");
  refuse("channels:\n  - { name: a, crdits: 5 }\n", "test.yaml:2:16: channels[0].crdits: ", "did you mean credits?");
  refuse("listeners:\n  - name: a\n    protocol: tcp\n",
         "test.yaml:3:5: listeners[0].protocol: ", "did you mean proto?");
  refuse("listeners:\n  - { name: a, proto: udp, address: '1.2.3.4:5', channel: c, multicast: { grup: x } }\n",
         "test.yaml:2:75: listeners[0].multicast.grup: ", "did you mean group?");
  refuse("<<: { instance: a }\n", "test.yaml:1:1: <<: ", "not a known setting");
  refuse("listeners: [ { name: a, proto: tcp, address: '1.2.3.4:5', channel: c, framing: { fixd: 4 } } ]\n",
         "test.yaml:1:82: listeners[0].framing.fixd: ", "did you mean fixed?");
  /* Four letters with two wrong are another word; a part of the name is meant. */
  refuse("name: a\n", "test.yaml:1:1: name: ", "an item of channels has name");
  refuse("listeners:\n  - { name: a, idle: 5s }\n",
         "test.yaml:2:16: listeners[0].idle: ", "did you mean idle_timeout?");
  refuse("memory: { segments: 5 }\n",
         "test.yaml:1:11: memory.segments: ", "did you mean segment here, or limits.segments?");
  /* The right key in the wrong place. */
  refuse("listeners:\n  - { name: a, credits: 5 }\n",
         "test.yaml:2:16: listeners[0].credits: ", "an item of channels has credits");
  refuse("channels:\n  - { name: a, proto: tcp }\n",
         "test.yaml:2:16: channels[0].proto: ", "an item of listeners has proto");
  refuse("listeners:\n  - { name: a, strip_cr: true }\n",
         "test.yaml:2:16: listeners[0].strip_cr: ", "framing: { strip_cr: ... }");
  refuse("channels:\n  - { name: a, drain_timeout: 1s }\n",
         "test.yaml:2:16: channels[0].drain_timeout: ", "the whole broker has it: drain_timeout");
}

Test(config_mistakes, duplicate_keys_are_refused) {
  refuse("instance: a\ninstance: b\n", "test.yaml:2:1: instance: is set twice, first in line 1", "remove one");
  refuse("memory: { ready: 0, ready: 1MiB }\n", "test.yaml:1:21: memory.ready: is set twice", "remove one");
}

Test(config_mistakes, bad_values_are_refused_with_the_fix) {
  refuse("memory: { per_node: 256MB }\n", "test.yaml:1:21: memory.per_node: \"256MB\"", "KiB, MiB or GiB");
  refuse("memory: { per_node: -1 }\n", "test.yaml:1:21: memory.per_node: \"-1\"", "is not a size");
  refuse("memory: { per_node: 1.5GiB }\n", "test.yaml:1:21: memory.per_node: ", "is not a size");
  refuse("memory: { per_node: 99999999999999999999 }\n", "test.yaml:1:21: memory.per_node: ", "is not a size");
  refuse("memory: { per_node: 99999999999TiB }\n", "test.yaml:1:21: memory.per_node: ", "is not a size");
  refuse("memory: { per_node: 1MiB }\n", "test.yaml:1:21: memory.per_node: 1MiB is out of range", "4MiB to 1TiB");
  refuse("memory: { ready: some }\n", "test.yaml:1:18: memory.ready: ", "or all");
  refuse("memory: { backend: shm }\n", "test.yaml:1:20: memory.backend: \"shm\"", "use one of: posix, memfd");
  refuse("numa: { mode: maybe }\n", "test.yaml:1:15: numa.mode: ", "strict, prefer, off");
  refuse("ingest: { backend: dpdk }\n", "test.yaml:1:20: ingest.backend: ", "auto, io_uring, epoll");
  refuse("ingest: { workers_per_node: 0 }\n", "test.yaml:1:29: ingest.workers_per_node: 0 is out of range", "1 to 64");
  refuse("ingest: { workers_per_node: 0x10 }\n", "test.yaml:1:29: ingest.workers_per_node: ", "is not a number");
  refuse("drain_timeout: 5\n", "test.yaml:1:16: drain_timeout: \"5\" is not a duration", "such as 60s");
  refuse("drain_timeout: 1h\n", "test.yaml:1:16: drain_timeout: 1h is out of range", "10m");
  refuse("channels_on_demand: maybe\n", "test.yaml:1:21: channels_on_demand: ", "true or false");
  refuse("log: { level: loud }\n", "test.yaml:1:15: log.level: ", "error, warning, info, debug");
  refuse("instance: Big\n", "test.yaml:1:11: instance: \"Big\" cannot name an instance", "a-z 0-9");
  refuse("instance:\n", "test.yaml:1:10: instance: has no value", "leave the key out");
  refuse("instance: abcdefghijklmnopqrstuvwxyz0123456789\n", "test.yaml:1:11: instance: ", "at most 32");
  refuse("instance: \"a\\0b\"\n", "test.yaml:1:11: instance: contains a zero byte", "remove");
  refuse("runtime_dir: here\n", "test.yaml:1:14: runtime_dir: \"here\" is not an absolute path", "begin it with /");
  refuse("runtime_dir: '/${runtime}'\n", "test.yaml:1:14: runtime_dir: ", "write the path itself");
  refuse("limits: { clients: 5000 }\n", "test.yaml:1:20: limits.clients: 5000 is out of range", "1 to 4096");
  refuse("limits: { max_credits: 16385 }\n", "test.yaml:1:24: limits.max_credits: ", "1 to 16384");
}

Test(config_mistakes, wrong_shapes_are_refused) {
  refuse("- a\n- b\n", "test.yaml:1:1: the document is a list", "key: value");
  refuse("just words\n", "test.yaml:1:1: the document is a single value", "key: value");
  refuse("memory: 256MiB\n", "test.yaml:1:9: memory: is a single value", "memory: { ... }");
  refuse("memory: { per_node: [ 1 ] }\n", "test.yaml:1:21: memory.per_node: is a list", "single value");
  refuse("channels: { name: a }\n", "test.yaml:1:11: channels: is a mapping", "write a list");
  refuse("channels:\n  - syslog\n", "test.yaml:2:5: channels[0]: is a single value", "write a mapping");
  refuse("? [ a ]\n: b\n", "test.yaml:1:3: a key is a list", "write a word");
  refuse("instance: a\n---\ninstance: b\n", "test.yaml:3:1: begins a second document", "keep one");
  refuse("instance: [ a\n", "test.yaml:2:1: is not YAML", "brackets");
  refuse("memory:\n\tper_node: 1GiB\n", "test.yaml:2:1: is not YAML", "no tabs");
  refuse("instance: \xff\xfe\n", "test.yaml: is not text in UTF-8", "UTF-8");
  refuse("instance: *missing\n", "test.yaml:1:11: is not YAML", "");
}

Test(config_mistakes, impossible_sizes_are_refused) {
  refuse("memory: { segment: 3MiB }\n", "test.yaml:1:20: memory.segment: 3MiB is not a power of two", "use 4MiB");
  refuse("memory: { segment: 1MiB }\n", "test.yaml:1:20: memory.segment: 1MiB is out of range", "2MiB to 64MiB");
  refuse("memory:\n  per_node: 32MiB\n  segment: 32MiB\n",
         "test.yaml:2:13: memory.per_node: 32MiB holds fewer than two", "64MiB");
  refuse("memory:\n  per_node: 64MiB\n  segment: 2MiB\nlimits: { segments: 16 }\n",
         "test.yaml:2:13: memory.per_node: 64MiB is 32 segments of 2MiB", "raise memory.segment");
  refuse("memory: { per_node: 64MiB, per_client: 65MiB }\n", "test.yaml:1:40: memory.per_client: 65MiB is more than",
         "lower it");
  refuse("memory: { per_node: 64MiB, ready: 65MiB }\n", "test.yaml:1:35: memory.ready: 65MiB is more than", "all");
  refuse("memory: { per_node: 8MiB }\n", "test.yaml: memory.ready: 16MiB is more than", "lower it");
  refuse("memory: { huge_pages: explicit }\n", "test.yaml:1:23: memory.huge_pages: explicit", "memfd");
  refuse("ingest: { staging_buffers: 100 }\n", "test.yaml:1:28: ingest.staging_buffers: 100 is not a power", "128");
  refuse("ingest: { staging_bytes: 24KiB }\n", "test.yaml:1:26: ingest.staging_bytes: 24KiB is not a power", "32KiB");
}

Test(config_mistakes, mistakes_in_channels_are_refused) {
  refuse("channels:\n  - { kind: group }\n", "test.yaml:2:5: channels[0].name: is missing", "give the channel a name");
  refuse("channels:\n  - { name: '-a' }\n", "test.yaml:2:13: channels[0].name: \"-a\" cannot name", "A-Z");
  refuse("channels:\n  - { name: a }\n  - { name: a }\n", "test.yaml:3:13: channels[1].name: \"a\" is declared twice",
         "remove one");
  refuse("channels:\n  - { name: a, kind: topic }\n", "test.yaml:2:22: channels[0].kind: ", "broadcast, group");
  refuse("channels:\n  - { name: a, on_full: pause }\n", "test.yaml:2:25: channels[0].on_full: ", "block, drop_newest");
  refuse("channels:\n  - { name: a, credits: 0 }\n", "test.yaml:2:25: channels[0].credits: 0 is out of range", "1 to");
  refuse("limits: { max_credits: 100 }\nchannels:\n  - { name: a, credits: 101 }\n",
         "test.yaml:3:25: channels[0].credits: 101 is more than limits.max_credits", "raise the limit");
  refuse("limits: { channels: 1 }\nchannels: [ { name: a }, { name: b } ]\n",
         "test.yaml:1:21: limits.channels: 1 is less", "raise it");
}

/* A listener in line 2 of which everything but `rest` is right. */
static void refuse_listener(const char *rest, const char *key, const char *part) {
  char text[512], start[128];
  snprintf(text, sizeof text, "listeners:\n  - { name: a, channel: c, %s }\n", rest);
  npi_config_deinit(&config);
  cr_assert_eq(read_text(text), NP_ERR_CONFIG, "accepted:\n%s", text);
  cr_expect_eq(config.n_errors, 1, "%s", config.errors);
  cr_expect_eq(strncmp(config.errors, "test.yaml:2:", 12), 0, "%s", config.errors);
  snprintf(start, sizeof start, ": listeners[0]%s%s: ", key[0] ? "." : "", key);
  cr_expect(strstr(config.errors, start) != NULL, "got %s, want %s", config.errors, start);
  cr_expect(strstr(config.errors, part) != NULL, "got %s, want %s", config.errors, part);
}

Test(config_mistakes, what_could_never_work_is_refused_before_it_is_tried) {
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: { fixed: 0 }", "framing.fixed", "use 1 to 1MiB");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: { length_prefix: 0 }", "framing.length_prefix",
                  "use 1 to 8");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: { newline: false }", "framing",
                  "names no kind of framing");
  /* Payload and topic share an event's 1 MiB. */
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: eventstream, max_frame: 1MiB", "max_frame",
                  "use at most 983041");
  refuse_listener(
      "proto: udp, address: '127.0.0.1:1', framing: { eventstream: true, max_topic: 16 }, max_frame: 1048561",
      "max_frame", "use at most 1048560");
  npi_config_deinit(&config);
  accept(
      "listeners: [ { name: a, channel: c, proto: tcp, address: '127.0.0.1:1', max_frame: 1048560,\n"
      "               framing: { eventstream: true, max_topic: 16 } } ]\n");
  /* The broker's own door. */
  refuse_listener("proto: unix, framing: newline, path: '${runtime}/control.sock'", "path", "use another name");
  refuse_listener("proto: unix_datagram, path: '${runtime}//./control.sock'", "path", "a file of the broker itself");
  refuse_listener("proto: unix_datagram, path: '${runtime}/lock'", "path", "a file of the broker itself");
  refuse("limits: { rings_per_client: 64KiB }\n", "test.yaml:1:29: limits.rings_per_client: ", "use at least 256KiB");
}

Test(config_mistakes, mistakes_in_listeners_are_refused) {
  refuse_listener("address: '127.0.0.1:1'", "proto", "is missing");
  refuse_listener("proto: sctp", "proto", "udp, tcp, unix, unix_datagram");
  refuse_listener("proto: udp", "address", "is missing");
  refuse_listener("proto: udp, address: 'localhost:5514'", "address", "names are not looked up");
  refuse_listener("proto: udp, address: '::1:5514'", "address", "without brackets");
  refuse_listener("proto: tcp, address: '127.0.0.1:1'", "framing", "a stream needs one");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: datagram", "framing", "only with udp");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: lines", "framing", "is not known");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: fixed", "framing", "{ fixed: BYTES }");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: [ newline ]", "framing", "is a list");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: {}", "framing", "names no kind");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: { newline: true, fixed: 3 }", "framing",
                  "names more than one kind");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: { length_prefix: 3 }", "framing", "3");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: { newline: true, endian: big }", "framing",
                  "goes only with length_prefix");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: { fixed: 128KiB }", "framing", "131072");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: newline, on_full: kernel_drop", "on_full",
                  "use pause or drop_newest");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: newline, path: /tmp/x", "path",
                  "means nothing for proto");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: newline, multicast: { group: 224.1.1.1 }", "multicast",
                  "means nothing for proto");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: newline, timestamps: true", "timestamps",
                  "means nothing for proto");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: newline, max_frame: 2MiB", "max_frame", "1 to 1MiB");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: newline, max_connections: 0", "max_connections",
                  "1 to");
  refuse_listener("proto: tcp, address: '127.0.0.1:1', framing: newline, idle_timeout: 60", "idle_timeout", "or off");
  refuse_listener("proto: udp, address: '127.0.0.1:1', idle_timeout: 60s", "idle_timeout",
                  "means nothing for proto udp");
  refuse_listener("proto: udp, address: '127.0.0.1:1', priority: 5", "priority", "0 to 4");
  refuse_listener("proto: udp, address: '127.0.0.1:1', rcvbuf: 1GiB", "rcvbuf", "or auto");
  refuse_listener("proto: udp, address: '0.0.0.0:1', multicast: { group: 10.0.0.1 }", "multicast.group",
                  "not a multicast address");
  refuse_listener("proto: udp, address: '0.0.0.0:1', multicast: { group: 'ff15::1' }", "multicast.group",
                  "different families");
  refuse_listener("proto: udp, address: '0.0.0.0:1', multicast: { interface: lo }", "multicast.group", "is missing");
  refuse_listener("proto: udp, address: '0.0.0.0:1', multicast: { group: 232.1.1.1, source: 'ff15::1' }",
                  "multicast.source", "family");
  refuse_listener("proto: unix, framing: newline", "path", "is missing");
  refuse_listener("proto: unix, framing: newline, path: here.sock", "path", "absolute");
  refuse_listener("proto: unix, framing: newline, path: '${home}/x'", "path", "only ${runtime}");
  refuse_listener("proto: unix, framing: newline, path: /tmp/x, mode: rw", "mode", "octal");
  refuse_listener("proto: unix, framing: newline, path: /tmp/x, mode: 01777", "mode", "0777");
  refuse_listener("proto: unix, framing: newline, path: /tmp/x, address: '127.0.0.1:1'", "address",
                  "means nothing for proto unix");
}

Test(config_mistakes, names_and_places_of_listeners_are_their_own) {
  refuse("listeners:\n  - { proto: udp, address: '127.0.0.1:1', channel: c }\n",
         "test.yaml:2:5: listeners[0].name: is missing", "");
  refuse("listeners:\n  - { name: a, proto: udp, address: '127.0.0.1:1' }\n",
         "test.yaml:2:5: listeners[0].channel: is missing", "");
  refuse("channels_on_demand: false\nlisteners:\n  - { name: a, proto: udp, address: '127.0.0.1:1', channel: c }\n",
         "test.yaml:3:61: listeners[0].channel: \"c\" is not declared", "declare it below channels");
  refuse(
      "listeners:\n  - { name: a, proto: udp, address: '127.0.0.1:1', channel: c }\n"
      "  - { name: a, proto: udp, address: '127.0.0.1:2', channel: c }\n",
      "test.yaml:3:13: listeners[1].name: \"a\" is used twice", "rename one");
  refuse(
      "listeners:\n  - { name: a, proto: udp, address: '127.0.0.1:1', channel: c }\n"
      "  - { name: b, proto: udp, address: '127.0.0.1:1', channel: c }\n",
      "test.yaml:3:37: listeners[1].address: is the same as that of listener \"a\"", "change one");
  refuse(
      "limits: { listeners: 1 }\nlisteners:\n  - { name: a, proto: udp, address: '127.0.0.1:1', channel: c }\n"
      "  - { name: b, proto: udp, address: '127.0.0.1:2', channel: c }\n",
      "test.yaml:1:22: limits.listeners: 1 is less than the 2 listeners", "raise it");
}

Test(config_mistakes, path_that_grows_too_long_is_refused) {
  char text[400], name[81];
  memset(name, 'n', 80);
  name[80] = '\0';
  snprintf(text, sizeof text,
           "listeners:\n  - { name: a, channel: c, proto: unix, framing: newline, path: '${runtime}/%s' }\n", name);
  refuse(text, "test.yaml:2:65: listeners[0].path: becomes 110 bytes", "at most 107");
}

Test(config_mistakes, ten_mistakes_are_reported_at_once_and_then_it_stops) {
  char text[1024] = "";
  size_t used = 0;
  for (int i = 0; i < 15; i++) {
    char line[32];
    snprintf(line, sizeof line, "zz%d: 1\n", i);
    memcpy(text + used, line, strlen(line) + 1);
    used += strlen(line);
  }
  cr_assert_eq(read_text(text), NP_ERR_CONFIG);
  cr_expect_eq(config.n_errors, 10);
  unsigned lines = 1;
  for (const char *c = config.errors; *c; c++) lines += *c == '\n';
  cr_expect_eq(lines, 10);
  cr_expect(strstr(config.errors, "\ntest.yaml:10:1: zz9: ") != NULL, "%s", config.errors);
  cr_expect(strstr(npi_detail(), "(and 9 more)") != NULL, "%s", npi_detail());
}

Test(config_mistakes, files_are_read_and_missing_ones_named) {
  char path[] = "/tmp/np-test-config-XXXXXX";
  int fd = mkstemp(path);
  cr_assert_geq(fd, 0);
  cr_assert_eq(write(fd, "instance: x\nbad: 1\n", 19), 19);
  close(fd);
  cr_expect_eq(npi_config_load(&config, path), NP_ERR_CONFIG);
  cr_expect_eq(strncmp(config.errors, path, strlen(path)), 0, "%s", config.errors);
  cr_expect_str_eq(config.instance, "x");
  unlink(path);
  npi_config_deinit(&config);
  cr_expect_eq(npi_config_load(&config, path), NP_ERR_CONFIG);
  cr_expect(strstr(npi_detail(), path) != NULL && strstr(npi_detail(), "No such file") != NULL, "%s", npi_detail());
  cr_expect_eq(npi_config_load(&config, "/tmp"), NP_ERR_CONFIG);
  cr_expect(strstr(npi_detail(), "is a directory") != NULL, "%s", npi_detail());
  cr_expect_eq(npi_config_load(&config, "/dev/zero"), NP_ERR_CONFIG);
  cr_expect(strstr(npi_detail(), "longer than 1 MiB") != NULL, "%s", npi_detail());
}

Test(config_mistakes, mistakes_of_access_and_dead_letters_name_line_and_fix) {
  refuse("access:\n  connect: [ user:7, bob ]\n", "test.yaml:2:22: access.connect: ", "write user:NAME, user:NUMBER");
  refuse("access: { connect: user:no-such-user }\n", "test.yaml:1:20: access.connect: ", "there is no user");
  refuse("access: { publish: all }\n", "test.yaml:1:20: access.publish: ", "set access.connect too");
  refuse(
      "access: { connect: all }\n"
      "channels: [ { name: w, kind: group, dead_letter: d }, { name: d, access: { subscribe: [] } } ]\n",
      "test.yaml:2:50: channels[0].dead_letter: ", "give both channels the same access.subscribe");
  refuse("channels: [ { name: w, kind: group, dead_letter: w } ]\n",
         "test.yaml:1:50: channels[0].dead_letter: ", "dead letters need a broadcast channel");
  refuse("channels: [ { name: w, max_deliveries: 3 } ]\n",
         "test.yaml:1:40: channels[0].max_deliveries: ", "write kind: group, or leave it out");
  refuse("channels: [ { name: w, dead_letter: d } ]\n",
         "test.yaml:1:37: channels[0].dead_letter: ", "write kind: group, or leave it out");
  refuse("channels: [ { name: w, kind: group, max_deliveries: off, dead_letter: d } ]\n",
         "test.yaml:1:71: channels[0].dead_letter: ", "remove one of them");
  refuse("channels: [ { name: w, kind: group, max_deliveries: 255 } ]\n",
         "test.yaml:1:53: channels[0].max_deliveries: ", "use 1 to 254, or off");
}
