/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration: every key takes effect, has a default, and is documented. (Mistakes: test_config_mistakes.c.) */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"
#include "daemon/access.h"
#include "daemon/config.h"
#include "daemon/config_internal.h"
#include "tests/support/config_text.h"

#define KIB(n) (UINT64_C(n) << 10)
#define MIB(n) (UINT64_C(n) << 20)
#define GIB(n) (UINT64_C(n) << 30)

TestSuite(config, .init = begin, .fini = end);

Test(config, without_a_file_is_a_broker_that_opens_no_port) {
  cr_assert_eq(npi_config_finish(&config, NULL), 0, "%s", config.errors);
  cr_expect_str_eq(config.instance, "default");
  cr_expect_str_eq(config.runtime_dir, "/run/user/77/numapool/default");
  cr_expect_eq(config.n_channels, 0);
  cr_expect_eq(config.n_listeners, 0);
  cr_expect_eq(config.channels_on_demand, 1);
  cr_expect_eq(config.drain_timeout_ms, 5000);
  cr_expect_eq(config.log_level, NPI_LOG_INFO);
  cr_expect_eq(config.memory.per_node, MIB(256));
  cr_expect_eq(config.memory.per_client, MIB(64));
  cr_expect_eq(config.memory.segment, MIB(2));
  cr_expect_eq(config.memory.segments_per_node, 128);
  cr_expect_eq(config.memory.ready, MIB(16));
  cr_expect_eq(config.memory.ready_all, 0);
  cr_expect_eq(config.memory.backend, NPI_BACKEND_POSIX);
  cr_expect_eq(config.memory.huge_pages, NPI_HUGE_AUTO);
  cr_expect_eq(config.numa.mode, NPI_NUMA_PREFER);
  cr_expect_eq(config.ingest.backend, NPI_CONFIG_INGEST_AUTO);
  cr_expect_eq(config.ingest.workers_per_node, 1);
  cr_expect_eq(config.ingest.staging_buffers, 64);
  cr_expect_eq(config.ingest.staging_bytes, KIB(16));
  cr_expect_eq(config.ingest.pin, NPI_CONFIG_PIN_AUTO);
  cr_expect_eq(config.limits.clients, 256);
  cr_expect_eq(config.limits.channels, 256);
  cr_expect_eq(config.limits.publishers, 1024);
  cr_expect_eq(config.limits.subscribers, 1024);
  cr_expect_eq(config.limits.connections, 4096);
  cr_expect_eq(config.limits.segments, 4096);
  cr_expect_eq(config.limits.listeners, 64);
  cr_expect_eq(config.limits.max_credits, 16384);
  cr_expect_eq(config.limits.endpoints_per_client, 256);
  cr_expect_eq(config.limits.connections_per_client, 1024);
  cr_expect_eq(config.limits.rings_per_client, MIB(16));
  cr_expect_eq(config.ingest.unfinished_bytes, MIB(64));
}

Test(config, empty_documents_are_the_defaults) {
  accept("");
  npi_config_deinit(&config);
  accept("# nothing but a comment\n");
  npi_config_deinit(&config);
  accept("memory:\nchannels:\nlisteners: ~\n");
  cr_expect_eq(config.memory.per_node, MIB(256));
}

/* What README and docs show to users. */
static const char example[] =
    "instance: default\n"
    "memory: { per_node: 256MiB, ready: 16MiB, backend: posix, huge_pages: auto }   # ready: or `all`\n"
    "numa:   { mode: prefer }                                         # strict | prefer | off\n"
    "ingest: { backend: auto, workers_per_node: 1 }                   # auto | io_uring | epoll\n"
    "channels:\n"
    "  - { name: syslog, kind: broadcast, credits: 1024, on_full: drop_newest }\n"
    "  - { name: work,   kind: group,     credits: 256,  on_full: block }\n"
    "listeners:\n"
    "  - { name: syslog-udp, proto: udp, address: \"127.0.0.1:5514\", framing: datagram, channel: syslog }\n"
    "  - { name: syslog-tcp, proto: tcp, address: \"127.0.0.1:5514\", framing: syslog,   channel: syslog, "
    "max_frame: 64KiB, max_connections: 1000, idle_timeout: 60s }\n"
    "  - { name: frames,     proto: tcp, address: \"127.0.0.1:7071\", framing: { length_prefix: 4, endian: big, "
    "includes_prefix: false }, channel: work }\n"
    "  - { name: local,      proto: unix, path: \"${runtime}/ingest.sock\", framing: newline, channel: syslog }\n";

Test(config, the_example_means_exactly_this) {
  accept(example);
  cr_expect_str_eq(config.instance, "default");
  cr_expect_eq(config.memory.per_node, MIB(256));
  cr_expect_eq(config.memory.ready, MIB(16));
  cr_expect_eq(config.memory.backend, NPI_BACKEND_POSIX);
  cr_expect_eq(config.numa.mode, NPI_NUMA_PREFER);
  cr_expect_eq(config.ingest.workers_per_node, 1);

  cr_assert_eq(config.n_channels, 2);
  cr_expect_str_eq(config.channels[0].name, "syslog");
  cr_expect_eq(config.channels[0].kind, NPI_CHANNEL_BROADCAST);
  cr_expect_eq(config.channels[0].credits, 1024);
  cr_expect_eq(config.channels[0].on_full, NPI_ON_FULL_DROP_NEWEST);
  cr_expect_str_eq(config.channels[1].name, "work");
  cr_expect_eq(config.channels[1].kind, NPI_CHANNEL_GROUP);
  cr_expect_eq(config.channels[1].credits, 256);
  cr_expect_eq(config.channels[1].on_full, NPI_ON_FULL_BLOCK);

  cr_assert_eq(config.n_listeners, 4);
  cr_assert_not_null(config.listeners);
  const struct npi_listener_config *udp = &config.listeners[0], *tcp = udp + 1, *frames = udp + 2, *local = udp + 3;
  cr_expect_str_eq(udp->name, "syslog-udp");
  cr_expect_eq(udp->proto, NPI_CONFIG_UDP);
  cr_expect_str_eq(udp->address, "127.0.0.1");
  cr_expect_eq(udp->port, 5514);
  cr_expect_eq(udp->framing.kind, NPI_FRAMING_DATAGRAM);
  cr_expect_str_eq(udp->channel, "syslog");
  cr_expect_eq(udp->on_full, NPI_CONFIG_LISTENER_KERNEL_DROP);
  cr_expect_eq(udp->max_frame, KIB(64));
  cr_expect_eq(udp->framing.max_frame, KIB(64));
  cr_expect_eq(udp->priority, 2);
  cr_expect_eq(udp->timestamps, 0);
  cr_expect_eq(udp->rcvbuf, 0);

  cr_expect_str_eq(tcp->name, "syslog-tcp");
  cr_expect_eq(tcp->proto, NPI_CONFIG_TCP);
  cr_expect_eq(tcp->framing.kind, NPI_FRAMING_SYSLOG);
  cr_expect_eq(tcp->on_full, NPI_CONFIG_LISTENER_PAUSE);
  cr_expect_eq(tcp->max_connections, 1000);
  cr_expect_eq(tcp->max_connections_per_address, 0);
  cr_expect_eq(tcp->idle_timeout_ms, 60000);
  cr_expect_eq(tcp->frame_timeout_ms, 30000);

  cr_expect_str_eq(frames->name, "frames");
  cr_expect_eq(frames->port, 7071);
  cr_expect_eq(frames->framing.kind, NPI_FRAMING_LENGTH_PREFIX);
  cr_expect_eq(frames->framing.prefix_bytes, 4);
  cr_expect_eq(frames->framing.big_endian, 1);
  cr_expect_eq(frames->framing.includes_prefix, 0);
  cr_expect_str_eq(frames->channel, "work");
  cr_expect_eq(frames->idle_timeout_ms, 300000);

  cr_expect_eq(local->proto, NPI_CONFIG_UNIX);
  cr_expect_str_eq(local->path, "/run/user/77/numapool/default/ingest.sock");
  cr_expect_eq(local->framing.kind, NPI_FRAMING_NEWLINE);
  cr_expect_eq(local->framing.strip_cr, 0);
  cr_expect_eq(local->mode, 0660);
  cr_expect_eq(local->idle_timeout_ms, 0);
}

Test(config, every_key_of_the_broker_takes_effect) {
  accept(
      "instance: blue.2\n"
      "runtime_dir: /tmp/somewhere/\n"
      "drain_timeout: 1500ms\n"
      "channels_on_demand: false\n"
      "log: { level: debug }\n"
      "memory: { per_node: 1GiB, per_client: 100MiB, segment: 16MiB, ready: all, backend: memfd, huge_pages: explicit "
      "}\n"
      "numa: { mode: strict }\n"
      "ingest: { backend: epoll, workers_per_node: 3, staging_buffers: 128, staging_bytes: 32KiB, pin: off,\n"
      "          unfinished_bytes: 3MiB }\n"
      "limits: { clients: 10, channels: 11, publishers: 12, subscribers: 13, connections: 14, segments: 100,\n"
      "          listeners: 16, max_credits: 17, endpoints_per_client: 18, connections_per_client: 9,\n"
      "          rings_per_client: 1MiB }\n");
  cr_expect_str_eq(config.instance, "blue.2");
  cr_expect_str_eq(config.runtime_dir, "/tmp/somewhere");
  cr_expect_eq(config.drain_timeout_ms, 1500);
  cr_expect_eq(config.channels_on_demand, 0);
  cr_expect_eq(config.log_level, NPI_LOG_DEBUG);
  cr_expect_eq(config.memory.per_node, GIB(1));
  cr_expect_eq(config.memory.segment, MIB(16));
  cr_expect_eq(config.memory.per_client, MIB(112), "100 MiB in whole segments of 16 MiB");
  cr_expect_eq(config.memory.segments_per_node, 64);
  cr_expect_eq(config.memory.ready_all, 1);
  cr_expect_eq(config.memory.ready, GIB(1));
  cr_expect_eq(config.memory.backend, NPI_BACKEND_MEMFD);
  cr_expect_eq(config.memory.huge_pages, NPI_HUGE_EXPLICIT);
  cr_expect_eq(config.numa.mode, NPI_NUMA_STRICT);
  cr_expect_eq(config.ingest.backend, NPI_CONFIG_INGEST_EPOLL);
  cr_expect_eq(config.ingest.workers_per_node, 3);
  cr_expect_eq(config.ingest.staging_buffers, 128);
  cr_expect_eq(config.ingest.staging_bytes, KIB(32));
  cr_expect_eq(config.ingest.pin, NPI_CONFIG_PIN_OFF);
  cr_expect_eq(config.limits.clients, 10);
  cr_expect_eq(config.limits.channels, 11);
  cr_expect_eq(config.limits.publishers, 12);
  cr_expect_eq(config.limits.subscribers, 13);
  cr_expect_eq(config.limits.connections, 14);
  cr_expect_eq(config.limits.segments, 100);
  cr_expect_eq(config.limits.listeners, 16);
  cr_expect_eq(config.limits.max_credits, 17);
  cr_expect_eq(config.limits.endpoints_per_client, 18);
  cr_expect_eq(config.limits.connections_per_client, 9);
  cr_expect_eq(config.limits.rings_per_client, MIB(1));
  cr_expect_eq(config.ingest.unfinished_bytes, MIB(3));
}

Test(config, every_key_of_a_listener_takes_effect) {
  accept(
      "listeners:\n"
      "  - name: m\n"
      "    proto: udp\n"
      "    address: \"[::]:9000\"\n"
      "    ipv6_only: true\n"
      "    framing: { newline: true, strip_cr: true }\n"
      "    channel: c/one\n"
      "    max_frame: 1000\n"
      "    on_full: drop_newest\n"
      "    rcvbuf: 1MiB\n"
      "    timestamps: true\n"
      "    priority: 4\n"
      "    multicast: { group: \"ff15::7\", interface: lo, source: \"fe80::1\" }\n"
      "  - name: t\n"
      "    proto: tcp\n"
      "    address: '*:0'\n"
      "    framing: length_prefix\n"
      "    channel: c/one\n"
      "    max_connections: 7\n"
      "    max_connections_per_address: 3\n"
      "    idle_timeout: off\n"
      "    frame_timeout: 2m\n"
      "    rcvbuf: auto\n"
      "  - { name: d, proto: unix_datagram, path: /tmp/d.sock, channel: c/one, mode: 0600, on_full: pause }\n");
  cr_assert_eq(config.n_listeners, 3);
  cr_assert_not_null(config.listeners);
  const struct npi_listener_config *m = &config.listeners[0], *t = m + 1, *d = m + 2;
  cr_expect_str_eq(m->address, "::");
  cr_expect_eq(m->port, 9000);
  cr_expect_eq(m->ipv6_only, 1);
  cr_expect_eq(m->framing.kind, NPI_FRAMING_NEWLINE);
  cr_expect_eq(m->framing.strip_cr, 1);
  cr_expect_eq(m->max_frame, 1000);
  cr_expect_eq(m->framing.max_frame, 1000);
  cr_expect_eq(m->on_full, NPI_CONFIG_LISTENER_DROP_NEWEST);
  cr_expect_eq(m->rcvbuf, MIB(1));
  cr_expect_eq(m->timestamps, 1);
  cr_expect_eq(m->priority, 4);
  cr_expect_str_eq(m->multicast.group, "ff15::7");
  cr_expect_str_eq(m->multicast.interface, "lo");
  cr_expect_str_eq(m->multicast.source, "fe80::1");
  cr_expect_str_eq(t->address, "*");
  cr_expect_eq(t->port, 0);
  cr_expect_eq(t->framing.prefix_bytes, 4);
  cr_expect_eq(t->framing.big_endian, 1);
  cr_expect_eq(t->max_connections, 7);
  cr_expect_eq(t->max_connections_per_address, 3);
  cr_expect_eq(t->idle_timeout_ms, 0);
  cr_expect_eq(t->frame_timeout_ms, 120000);
  cr_expect_eq(t->rcvbuf, 0);
  cr_expect_eq(d->mode, 0600);
  cr_expect_eq(d->on_full, NPI_CONFIG_LISTENER_PAUSE);
  cr_expect_eq(d->framing.kind, NPI_FRAMING_DATAGRAM, "the default of datagram listeners");
}

Test(config, framings_as_words_and_as_mappings) {
  static const struct {
    const char *text;
    struct npi_framing framing;
  } rows[] = {
      {"newline", {.kind = NPI_FRAMING_NEWLINE}},
      {"{ newline: true }", {.kind = NPI_FRAMING_NEWLINE}},
      {"syslog", {.kind = NPI_FRAMING_SYSLOG}},
      {"{ syslog: true, strip_cr: true }", {.kind = NPI_FRAMING_SYSLOG, .strip_cr = 1}},
      {"eventstream", {.kind = NPI_FRAMING_EVENTSTREAM, .max_topic = 65535}},
      {"{ eventstream: true, max_topic: 100 }", {.kind = NPI_FRAMING_EVENTSTREAM, .max_topic = 100}},
      {"length_prefix", {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 4, .big_endian = 1}},
      {"{ length_prefix: 1 }", {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 1, .big_endian = 1}},
      {"{ length_prefix: 8, endian: little, includes_prefix: true }",
       {.kind = NPI_FRAMING_LENGTH_PREFIX, .prefix_bytes = 8, .includes_prefix = 1}},
      {"{ fixed: 128 }", {.kind = NPI_FRAMING_FIXED, .fixed_bytes = 128}},
      {"{ fixed: 1KiB }", {.kind = NPI_FRAMING_FIXED, .fixed_bytes = 1024}},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    char text[256];
    struct npi_framing want = rows[i].framing;
    want.max_frame = KIB(64);
    if (rows[i].framing.kind == NPI_FRAMING_LENGTH_PREFIX && rows[i].framing.prefix_bytes == 1) want.max_frame = 255;
    snprintf(text, sizeof text,
             "listeners:\n  - { name: a, proto: tcp, address: '127.0.0.1:1', channel: c, max_frame: %d, framing: %s }",
             (int)want.max_frame, rows[i].text);
    npi_config_deinit(&config);
    accept(text);
    cr_expect_eq(memcmp(&config.listeners[0].framing, &want, sizeof want), 0, "framing: %s", rows[i].text);
  }
}

Test(config, addresses_of_all_forms) {
  static const struct {
    const char *text, *host;
    uint32_t port;
  } rows[] = {{"127.0.0.1:5514", "127.0.0.1", 5514}, {"[::1]:5514", "::1", 5514}, {"0.0.0.0:1", "0.0.0.0", 1},
              {"[::]:65535", "::", 65535},           {"*:5514", "*", 5514},       {"[fe80::1%lo]:9", "fe80::1%lo", 9}};
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    struct npi_listener_config listener;
    char problem[256] = "";
    npi_listener_config_init(&listener);
    cr_assert_eq(npi_config_parse_address(&listener, rows[i].text, problem, sizeof problem), 0, "%s", problem);
    cr_expect_str_eq(listener.address, rows[i].host);
    cr_expect_eq(listener.port, rows[i].port);
  }
  static const char *const wrong[] = {"",
                                      "127.0.0.1",
                                      "127.0.0.1:",
                                      "127.0.0.1:65536",
                                      "127.0.0.1:-1",
                                      "::1:5514",
                                      "localhost:1",
                                      "[127.0.0.1]:1",
                                      "[::1]",
                                      "[::1",
                                      "[::1]5514",
                                      "127.1:80",
                                      "1.2.3.4.5:1",
                                      ":5514",
                                      "[]:1",
                                      "0x7f.1.1.1:1",
                                      "*:http",
                                      "127.0.0.1: 5514"};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    struct npi_listener_config listener;
    char problem[256] = "";
    cr_expect_eq(npi_config_parse_address(&listener, wrong[i], problem, sizeof problem), 1, "accepted %s", wrong[i]);
    cr_expect_neq(problem[0], '\0');
  }
}

Test(config, defaults_of_channels_depend_on_their_kind) {
  accept("channels: [ { name: a }, { name: b, kind: group } ]");
  cr_expect_eq(config.channels[0].kind, NPI_CHANNEL_BROADCAST);
  cr_expect_eq(config.channels[0].credits, 256);
  cr_expect_eq(config.channels[0].on_full, NPI_ON_FULL_DROP_NEWEST);
  cr_expect_eq(config.channels[1].credits, 32);
  cr_expect_eq(config.channels[1].on_full, NPI_ON_FULL_BLOCK);
  npi_config_deinit(&config);
  accept("channels: [ { name: a }, { name: b, kind: group } ]\nlimits: { max_credits: 16 }");
  cr_expect_eq(config.channels[0].credits, 16, "a default gives way to the limit");
  cr_expect_eq(config.channels[1].credits, 16);
}

Test(config, channel_that_only_listeners_name_is_added_once) {
  accept(
      "listeners:\n"
      "  - { name: a, proto: tcp, address: '127.0.0.1:1', channel: made, framing: newline }\n"
      "  - { name: b, proto: tcp, address: '127.0.0.1:2', channel: made, framing: newline }\n");
  cr_assert_eq(config.n_channels, 1);
  cr_expect_str_eq(config.channels[0].name, "made");
  cr_expect_eq(config.channels[0].implicit, 1);
  cr_expect_eq(config.channels[0].kind, NPI_CHANNEL_BROADCAST);
  cr_expect_eq(config.channels[0].credits, 256);
  cr_expect_eq(config.channels[0].on_full, NPI_ON_FULL_DROP_NEWEST);
}

Test(config, segment_size_follows_the_budget) {
  static const struct {
    const char *text;
    uint64_t segment, per_client;
  } rows[] = {
      {"memory: { per_node: 4MiB, ready: 0 }", MIB(2), MIB(2)},
      {"memory: { per_node: 1GiB }", MIB(8), MIB(256)},
      {"memory: { per_node: 1000MiB }", MIB(8), MIB(256)},
      {"memory: { per_node: 16GiB }", MIB(64), GIB(4)},
      {"memory: { per_node: 100GiB }", MIB(64), GIB(25)},
      {"{ memory: { per_node: 64MiB }, limits: { segments: 4 } }", MIB(16), MIB(16)},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    npi_config_deinit(&config);
    accept(rows[i].text);
    cr_expect_eq(config.memory.segment, rows[i].segment, "%s: %llu", rows[i].text,
                 (unsigned long long)config.memory.segment);
    cr_expect_eq(config.memory.per_client, rows[i].per_client, "%s: %llu", rows[i].text,
                 (unsigned long long)config.memory.per_client);
    cr_expect_leq(config.memory.segments_per_node, config.limits.segments);
  }
}

Test(config, runtime_directory_without_the_users_own) {
  unsetenv("XDG_RUNTIME_DIR");
  char want[96];
  if (geteuid() == 0) {
    snprintf(want, sizeof want, "/run/numapool/default");
  } else {
    snprintf(want, sizeof want, "/tmp/numapool-%u/default", (unsigned)geteuid());
  }
  accept("");
  cr_expect_str_eq(config.runtime_dir, want);
  npi_config_deinit(&config);
  setenv("XDG_RUNTIME_DIR", "relative", 1);
  accept("");
  cr_expect_str_eq(config.runtime_dir, want, "a relative XDG_RUNTIME_DIR is no directory");
}

Test(config, instance_of_the_command_line_wins) {
  static const char text[] = "instance: file\n";
  cr_assert_eq(npi_config_parse(&config, "f", text, strlen(text)), 0);
  cr_assert_eq(npi_config_finish(&config, "line-1"), 0);
  cr_expect_str_eq(config.instance, "line-1");
  cr_expect_str_eq(config.runtime_dir, "/run/user/77/numapool/line-1");
  npi_config_deinit(&config);
  cr_assert_eq(npi_config_finish(&config, "../x"), NP_ERR_CONFIG);
  cr_expect_eq(strncmp(npi_detail(), "--instance: \"../x\"", 18), 0, "%s", npi_detail());
}

Test(config, names_that_are_and_are_not) {
  cr_expect(npi_config_instance_name_ok("a"));
  cr_expect(npi_config_instance_name_ok("0.b_c-d"));
  cr_expect(npi_config_instance_name_ok("abcdefghijklmnopqrstuvwxyz012345"));
  cr_expect_not(npi_config_instance_name_ok("abcdefghijklmnopqrstuvwxyz0123456"));
  cr_expect_not(npi_config_instance_name_ok(""));
  cr_expect_not(npi_config_instance_name_ok("A"));
  cr_expect_not(npi_config_instance_name_ok(".a"));
  cr_expect_not(npi_config_instance_name_ok("a/b"));
  cr_expect(npi_config_name_ok("A/b.c_d-9"));
  cr_expect_not(npi_config_name_ok("/a"));
  cr_expect_not(npi_config_name_ok("a b"));
  char longest[65];
  memset(longest, 'x', 64);
  longest[64] = '\0';
  cr_expect_not(npi_config_name_ok(longest));
  longest[63] = '\0';
  cr_expect(npi_config_name_ok(longest));
}

static char *written(const struct npi_config *from) {
  char *text = NULL;
  size_t size = 0;
  FILE *stream = open_memstream(&text, &size);
  npi_config_write(from, stream);
  fclose(stream);
  return text;
}

/* ---- access and dead letters ---- */

Test(config, users_and_groups_are_numbers_names_or_all) {
  accept(
      "access: { connect: [ user:7, user:root, group:0, 'group:12' ], publish: all }\n"
      "channels:\n"
      "  - { name: a, access: { subscribe: [] } }\n"
      "  - { name: b, access: { subscribe: [ group:12, user:7, user:0, group:0 ] } }\n"
      "  - { name: c }\n");
  cr_expect_eq(config.access.connect.n, 4);
  cr_expect_eq(config.access.connect.entry[1].id, 0);
  cr_expect_eq(config.access.connect.entry[3].is_group, 1);
  cr_expect_eq(config.access.publish.everyone, 1);
  cr_expect_eq(config.channels[0].access_subscribe.given, 1);
  cr_expect_eq(config.channels[0].access_subscribe.n, 0);
  cr_expect_eq(npi_access_number(&config, "b"), npi_access_number(&config, "c"), "the same people in another order");
  cr_expect_eq(npi_access_number(&config, "b"), npi_access_number(&config, "unknown"));
  cr_expect_neq(npi_access_number(&config, "a"), npi_access_number(&config, "b"));
  char *first = written(&config);
  struct npi_config again;
  npi_config_init(&again);
  cr_assert_eq(npi_config_parse(&again, "written", first, strlen(first)), 0, "%s\n%s", again.errors, first);
  cr_expect_eq(memcmp(&again.access, &config.access, sizeof config.access), 0, "%s", first);
  cr_expect_eq(again.channels[0].access_subscribe.given, 1);
  npi_config_deinit(&again);
  free(first);
}

/* ---- the table ---- */

Test(config, every_default_of_the_table_is_a_valid_value) {
  char problem[256];
  for (size_t i = 0; i < npi_n_settings; i++) {
    const struct npi_setting *setting = &npi_settings[i];
    union {
      struct npi_config config;
      struct npi_listener_config listener;
      struct npi_channel_config channel;
      struct npi_framing_keys framing;
    } base;
    cr_expect(setting->help != NULL && setting->help[0] != '\0', "%s", setting->name);
    cr_expect((setting->initial != NULL) != (setting->derived != NULL), "%s has one source of its default",
              setting->name);
    if (setting->initial == NULL) continue;
    memset(&base, 0, sizeof base);
    cr_expect_eq(npi_setting_parse(setting, &base, setting->initial, problem, sizeof problem), 0, "%s: %s",
                 setting->name, problem);
    char text[256];
    npi_setting_format(setting, &base, text, sizeof text);
    if (setting->type != NPI_SETTING_TEXT) cr_expect_str_eq(text, setting->initial, "%s", setting->name);
  }
}

Test(config, a_limit_of_clients_of_one_user_is_off_unless_it_is_set) {
  accept("instance: a\n");
  cr_expect_eq(config.limits.clients_per_user, 0);
  npi_config_deinit(&config);
  accept("limits: { clients_per_user: 3 }\n");
  cr_expect_eq(config.limits.clients_per_user, 3);
  npi_config_deinit(&config);
  accept("limits: { clients_per_user: none }\n");
  cr_expect_eq(config.limits.clients_per_user, 0);
  refuse("limits: { clients_per_user: 4097 }\n", "test.yaml:1:29: limits.clients_per_user: ", "4097");
}

Test(config, eviction_is_off_unless_it_is_set) {
  accept("instance: a\n");
  cr_expect_eq(config.clients.evict_after_ms, 0);
  cr_expect_eq(config.clients.evict, NPI_CONFIG_EVICT_KILL);
  npi_config_deinit(&config);
  accept("clients: { evict_after: 2m, evict: quarantine }\n");
  cr_expect_eq(config.clients.evict_after_ms, 120000);
  cr_expect_eq(config.clients.evict, NPI_CONFIG_EVICT_QUARANTINE);
  npi_config_deinit(&config);
  accept("clients: { evict_after: never }\n");
  cr_expect_eq(config.clients.evict_after_ms, 0);
  refuse("clients: { evict_after: 99ms }\n", "test.yaml:1:25: clients.evict_after: ", "99ms");
  refuse("instance: a\nclients:\n  evict_after: 25h\n", "test.yaml:3:16: clients.evict_after: ", "25h");
  refuse("clients: { evict_after: 5 }\n", "test.yaml:1:25: clients.evict_after: ", "\"5\"");
  refuse("clients: { evict: forget }\n", "test.yaml:1:19: clients.evict: ", "\"forget\"");
  refuse("clients: { evict_afer: 5s }\n", "test.yaml:1:12: clients.evict_afer: ", "evict_after");
  refuse("evict_after: 5s\n", "test.yaml:1:1: evict_after: ", "clients.evict_after");
}

Test(config, values_in_force_are_written_as_a_file_that_means_the_same) {
  accept(
      "memory: { ready: all }\nlog: { level: warning }\nclients: { evict_after: 90s, evict: quarantine }\n"
      "channels: [ { name: a, kind: group, credits: 5 } ]\n"
      "listeners:\n"
      "  - { name: m, proto: udp, address: '[::]:9000', channel: new, multicast: { group: 'ff15::7', interface: lo } "
      "}\n"
      "  - { name: e, proto: tcp, address: '*:1', channel: a, framing: eventstream, idle_timeout: off }\n"
      "  - { name: l, proto: tcp, address: '*:2', channel: a, framing: { length_prefix: 2, endian: little }, "
      "max_frame: 10 }\n"
      "  - { name: f, proto: tcp, address: '*:3', channel: a, framing: { fixed: 7 }, rcvbuf: 64KiB }\n"
      "  - { name: n, proto: unix, path: \"/tmp/it's\", channel: a, framing: { newline: true, strip_cr: true } }\n"
      "  - { name: s, proto: unix, path: '${runtime}/s', channel: a, framing: syslog, mode: 0600 }\n");
  char *first = written(&config);
  struct npi_config again;
  npi_config_init(&again);
  cr_assert_eq(npi_config_parse(&again, "written", first, strlen(first)), 0, "%s\n%s", again.errors, first);
  cr_assert_eq(npi_config_finish(&again, NULL), 0, "%s\n%s", again.errors, first);
  cr_expect_eq(memcmp(&again.memory, &config.memory, sizeof config.memory), 0);
  cr_expect_eq(memcmp(&again.limits, &config.limits, sizeof config.limits), 0);
  cr_expect_eq(again.clients.evict_after_ms, config.clients.evict_after_ms);
  cr_expect_eq(again.clients.evict, config.clients.evict);
  cr_assert_eq(again.n_listeners, config.n_listeners);
  for (size_t i = 0; i < again.n_listeners; i++) {
    /* Both began as zeroes, padding included. */
    const void *now = &again.listeners[i], *before = &config.listeners[i];
    cr_expect_eq(memcmp(now, before, sizeof again.listeners[i]), 0, "listener %s\n%s", config.listeners[i].name, first);
  }
  char *second = written(&again);
  cr_expect_str_eq(second, first);
  free(first);
  free(second);
  npi_config_deinit(&again);
}

Test(config, help_names_every_setting) {
  char *text = NULL;
  size_t size = 0;
  FILE *stream = open_memstream(&text, &size);
  npi_config_write_help(stream);
  fclose(stream);
  for (size_t i = 0; i < npi_n_settings; i++) {
    char line[96];
    snprintf(line, sizeof line, "\n  %s: ", npi_settings[i].name);
    cr_expect(strstr(text, line) != NULL, "%s", npi_settings[i].name);
    cr_expect(strstr(text, npi_settings[i].help) != NULL, "%s", npi_settings[i].name);
  }
  free(text);
}

/* The page that operators read says of each setting what the table says. */
Test(config, documentation_names_every_setting_and_its_default) {
  char path[512];
  snprintf(path, sizeof path, "%s", __FILE__);
  char *slash = strrchr(path, '/');
  cr_assert(slash != NULL);
  snprintf(slash, sizeof path - (size_t)(slash - path), "/../../docs/configuration.md");
  FILE *file = fopen(path, "r");
  if (file == NULL) cr_skip_test("the tree is not here (%s)", path);
  static char page[1 << 17];
  size_t length = fread(page, 1, sizeof page - 1, file);
  fclose(file);
  page[length] = '\0';
  for (size_t i = 0; i < npi_n_settings; i++) {
    const struct npi_setting *setting = &npi_settings[i];
    char row[256];
    snprintf(row, sizeof row, "\n| `%s` |", setting->name);
    int found = 0;
    for (char *at = strstr(page, row); at != NULL; at = strstr(at + 1, row)) {
      char line[1024];
      snprintf(line, sizeof line, "%.*s", (int)strcspn(at + 1, "\n"), at + 1);
      snprintf(row, sizeof row, "`%s`", setting->initial ? setting->initial : "");
      if (setting->initial == NULL || strstr(line, row) != NULL) found = 1;
      snprintf(row, sizeof row, "\n| `%s` |", setting->name);
    }
    cr_expect(found, "docs/configuration.md: no row `%s` with the default %s", setting->name,
              setting->initial ? setting->initial : "(derived)");
  }
}
