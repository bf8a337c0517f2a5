/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration: every key takes effect, every mistake is refused where it stands and with what to do. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"
#include "daemon/access.h"
#include "daemon/config.h"
#include "daemon/config_internal.h"

#define KIB(n) (UINT64_C(n) << 10)
#define MIB(n) (UINT64_C(n) << 20)
#define GIB(n) (UINT64_C(n) << 30)

static struct npi_config config;

static void begin(void) {
  setenv("XDG_RUNTIME_DIR", "/run/user/77", 1);
  npi_config_init(&config);
}

static void end(void) {
  npi_config_deinit(&config);
}

TestSuite(config, .init = begin, .fini = end);

static int read_text(const char *text) {
  int status = npi_config_parse(&config, "test.yaml", text, strlen(text));
  return status < 0 ? status : npi_config_finish(&config, NULL);
}

static void accept(const char *text) {
  int status = read_text(text);
  cr_assert_eq(status, 0, "refused: %s\n%s", config.errors, text);
}

/* The text is refused with exactly one error, whose line begins with `start` and contains `part`. */
static void refuse(const char *text, const char *start, const char *part) {
  npi_config_deinit(&config);
  int status = read_text(text);
  cr_assert_eq(status, NP_ERR_CONFIG, "accepted:\n%s", text);
  cr_expect_eq(config.n_errors, 1, "%u errors: %s\nfor\n%s", config.n_errors, config.errors, text);
  cr_expect_eq(strncmp(config.errors, start, strlen(start)), 0, "got  %s\nwant %s...", config.errors, start);
  cr_expect(strstr(config.errors, part) != NULL, "got  %s\nwithout %s", config.errors, part);
  cr_expect_str_eq(npi_detail(), config.errors);
}

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

/* ---- mistakes ---- */

Test(config, unknown_keys_are_refused_where_they_stand) {
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

Test(config, duplicate_keys_are_refused) {
  refuse("instance: a\ninstance: b\n", "test.yaml:2:1: instance: is set twice, first in line 1", "remove one");
  refuse("memory: { ready: 0, ready: 1MiB }\n", "test.yaml:1:21: memory.ready: is set twice", "remove one");
}

Test(config, bad_values_are_refused_with_the_fix) {
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

Test(config, wrong_shapes_are_refused) {
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

Test(config, impossible_sizes_are_refused) {
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

Test(config, mistakes_in_channels_are_refused) {
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

Test(config, what_could_never_work_is_refused_before_it_is_tried) {
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

Test(config, mistakes_in_listeners_are_refused) {
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

Test(config, names_and_places_of_listeners_are_their_own) {
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

Test(config, path_that_grows_too_long_is_refused) {
  char text[400], name[81];
  memset(name, 'n', 80);
  name[80] = '\0';
  snprintf(text, sizeof text,
           "listeners:\n  - { name: a, channel: c, proto: unix, framing: newline, path: '${runtime}/%s' }\n", name);
  refuse(text, "test.yaml:2:65: listeners[0].path: becomes 110 bytes", "at most 107");
}

Test(config, ten_mistakes_are_reported_at_once_and_then_it_stops) {
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

Test(config, files_are_read_and_missing_ones_named) {
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

Test(config, mistakes_of_access_and_dead_letters_name_line_and_fix) {
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
