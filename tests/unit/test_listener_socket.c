/* SPDX-License-Identifier: Apache-2.0 */
/* Opening listener sockets: what arrives there, what is left behind, and what the errors tell an operator. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "daemon/listener_socket.h"

static char directory[64];
static struct npi_listener_config config;
static struct npi_listener_socket first, second;
static char logged[1024];

static void keep_line(enum npi_log_level level, const char *line, void *context) {
  (void)level;
  (void)context;
  snprintf(logged, sizeof logged, "%s", line);
}

static void begin(void) {
  snprintf(directory, sizeof directory, "/tmp/np-test-listener-XXXXXX");
  cr_assert(mkdtemp(directory) != NULL);
  npi_listener_config_init(&config);
  snprintf(config.name, sizeof config.name, "here");
  first.fd = second.fd = -1;
  npi_log_set_sink(keep_line, NULL, NPI_LOG_DEBUG);
}

static void end(void) {
  /* After a test as an ordinary user: clean up as before, and let the leak checker look at this process again. */
  if (geteuid() != getuid() && seteuid(getuid()) == 0) prctl(PR_SET_DUMPABLE, 1);
  npi_listener_socket_close(&first);
  npi_listener_socket_close(&second);
  rmdir(directory);
}

TestSuite(listener_socket, .init = begin, .fini = end, .timeout = 20);

static void ip(enum npi_config_proto proto, const char *address, uint32_t port) {
  config.proto = proto;
  snprintf(config.address, sizeof config.address, "%s", address);
  config.port = port;
}

static void local(enum npi_config_proto proto, const char *name) {
  config.proto = proto;
  snprintf(config.path, sizeof config.path, "%.60s/%.40s", directory, name);
}

static void open_first(void) {
  int status = npi_listener_socket_open(&config, 0, &first);
  cr_assert_eq(status, 0, "%s", npi_detail());
}

static void refused(int reuse_port, int status, const char *part) {
  int got = npi_listener_socket_open(&config, reuse_port, &second);
  cr_expect_eq(got, status, "%d: %s", got, npi_detail());
  cr_expect_eq(second.fd, -1);
  cr_expect(strstr(npi_detail(), "listener \"here\"") != NULL, "%s", npi_detail());
  cr_expect(strstr(npi_detail(), part) != NULL, "got %s, want %s", npi_detail(), part);
}

static int option(int fd, int level, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  cr_expect_eq(getsockopt(fd, level, name, &value, &length), 0);
  return value;
}

/* Sends three bytes to a port of a loopback address; the errno, or 0. */
static int send_to(int family, int type, uint32_t port) {
  struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  struct sockaddr_in6 in6 = {
      .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = in6addr_loopback};
  in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(family, type | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno;
  int failed = connect(fd, family == AF_INET ? (struct sockaddr *)&in : (struct sockaddr *)&in6,
                       family == AF_INET ? sizeof in : sizeof in6) != 0 ||
               send(fd, "abc", 3, MSG_NOSIGNAL) != 3;
  int error = failed ? errno : 0;
  close(fd);
  return error;
}

static int readable(int fd, int timeout_ms) {
  struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
  return poll(&poll_fd, 1, timeout_ms);
}

static void expect_datagram(int fd) {
  char bytes[16];
  cr_assert_eq(readable(fd, 5000), 1, "nothing arrived");
  cr_expect_eq(recv(fd, bytes, sizeof bytes, 0), 3);
}

static int has_ipv6(void) {
  struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
  int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  int has = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
  if (fd >= 0) close(fd);
  return has;
}

#define NEEDS_IPV6 \
  if (!has_ipv6()) cr_skip_test("this machine has no IPv6 loopback address")

/* ---- UDP and TCP ---- */

Test(listener_socket, udp_receives_on_the_port_that_the_kernel_chose) {
  ip(NPI_CONFIG_UDP, "127.0.0.1", 0);
  open_first();
  cr_expect_neq(first.port, 0);
  cr_expect_eq(first.family, AF_INET);
  cr_expect(fcntl(first.fd, F_GETFD) & FD_CLOEXEC);
  cr_expect(fcntl(first.fd, F_GETFL) & O_NONBLOCK);
  cr_expect_eq(send_to(AF_INET, SOCK_DGRAM, first.port), 0);
  expect_datagram(first.fd);
}

Test(listener_socket, tcp_accepts_and_comes_back_at_once_after_a_close) {
  ip(NPI_CONFIG_TCP, "127.0.0.1", 0);
  open_first();
  config.port = first.port;
  cr_expect_eq(send_to(AF_INET, SOCK_STREAM, first.port), 0);
  cr_assert_eq(readable(first.fd, 5000), 1);
  int connection = accept4(first.fd, NULL, NULL, SOCK_CLOEXEC);
  cr_assert_geq(connection, 0);
  shutdown(connection, SHUT_RDWR); /* this side closes first: TIME_WAIT stays here */
  close(connection);
  npi_listener_socket_close(&first);
  open_first();
  cr_expect_eq(first.port, config.port);
}

Test(listener_socket, port_in_use_names_the_address_and_the_fix) {
  ip(NPI_CONFIG_TCP, "127.0.0.1", 0);
  open_first();
  config.port = first.port;
  char place[64];
  snprintf(place, sizeof place, "tcp 127.0.0.1:%u", (unsigned)first.port);
  refused(0, NP_ERR_EXISTS, place);
  refused(0, NP_ERR_EXISTS, "choose another port (ss -lntp");
  refused(1, NP_ERR_EXISTS, place);
  npi_listener_socket_close(&first);
  ip(NPI_CONFIG_UDP, "127.0.0.1", 0);
  open_first();
  config.port = first.port;
  refused(0, NP_ERR_EXISTS, "ss -lnup");
}

Test(listener_socket, port_is_shared_only_when_both_ask) {
  ip(NPI_CONFIG_TCP, "127.0.0.1", 0);
  cr_assert_eq(npi_listener_socket_open(&config, 1, &first), 0, "%s", npi_detail());
  config.port = first.port;
  refused(0, NP_ERR_EXISTS, "is in use");
  cr_assert_eq(npi_listener_socket_open(&config, 1, &second), 0, "%s", npi_detail());
  cr_expect_eq(second.port, first.port);
}

Test(listener_socket, address_of_another_machine_is_refused) {
  ip(NPI_CONFIG_UDP, "203.0.113.77", 0);
  refused(0, NP_ERR_CONFIG, "no interface of this machine has the address");
}

Test(listener_socket, low_port_is_refused_with_the_capability_that_it_needs) {
  if (geteuid() == 0 && seteuid(65534) != 0) cr_skip_test("cannot become an ordinary user");
  ip(NPI_CONFIG_TCP, "127.0.0.1", 81);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(81), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int free_for_all = bind(fd, (struct sockaddr *)&in, sizeof in) == 0;
  close(fd);
  if (free_for_all) cr_skip_test("low ports are free for everybody here");
  refused(0, NP_ERR_DENIED, "CAP_NET_BIND_SERVICE");
}

Test(listener_socket, words_that_are_no_address_are_refused) {
  ip(NPI_CONFIG_UDP, "localhost", 0);
  refused(0, NP_ERR_CONFIG, "write it in numbers");
}

Test(listener_socket, ipv6_takes_ipv4_too_unless_told_otherwise) {
  NEEDS_IPV6;
  ip(NPI_CONFIG_UDP, "::", 0);
  open_first();
  cr_expect_eq(first.family, AF_INET6);
  cr_expect_eq(send_to(AF_INET6, SOCK_DGRAM, first.port), 0);
  expect_datagram(first.fd);
  cr_expect_eq(send_to(AF_INET, SOCK_DGRAM, first.port), 0);
  expect_datagram(first.fd);

  config.port = first.port;
  npi_listener_socket_close(&first);
  config.ipv6_only = 1;
  open_first();
  ip(NPI_CONFIG_UDP, "0.0.0.0", first.port); /* both families beside each other */
  cr_assert_eq(npi_listener_socket_open(&config, 0, &second), 0, "%s", npi_detail());
  cr_expect_eq(send_to(AF_INET, SOCK_DGRAM, first.port), 0);
  expect_datagram(second.fd);
  cr_expect_eq(readable(first.fd, 0), 0);
}

Test(listener_socket, ipv6_port_in_use_tells_of_ipv6_only) {
  NEEDS_IPV6;
  ip(NPI_CONFIG_TCP, "0.0.0.0", 0);
  open_first();
  ip(NPI_CONFIG_TCP, "::", first.port);
  refused(0, NP_ERR_EXISTS, "set ipv6_only: true");
}

Test(listener_socket, star_is_every_address) {
  ip(NPI_CONFIG_TCP, "*", 0);
  open_first();
  cr_expect_eq(send_to(AF_INET, SOCK_STREAM, first.port), 0);
  cr_expect_eq(readable(first.fd, 5000), 1);
  NEEDS_IPV6;
  cr_expect_eq(send_to(AF_INET6, SOCK_STREAM, first.port), 0);
}

Test(listener_socket, receive_buffer_is_as_asked_or_says_why_not) {
  ip(NPI_CONFIG_UDP, "127.0.0.1", 0);
  config.rcvbuf = 65536;
  open_first();
  cr_expect_eq(first.rcvbuf, 65536);
  cr_expect_eq(first.rcvbuf_clipped, 0);
  cr_expect_str_eq(logged, "");
  npi_listener_socket_close(&first);

  if (geteuid() == 0 && seteuid(65534) != 0) cr_skip_test("cannot become an ordinary user");
  config.rcvbuf = UINT64_C(256) << 20;
  open_first();
  if (!first.rcvbuf_clipped) cr_skip_test("net.core.rmem_max is 256 MiB or more here");
  cr_expect_lt(first.rcvbuf, config.rcvbuf);
  cr_expect_eq(strncmp(logged, "socket.rcvbuf_clipped listener=here asked=268435456 got=", 56), 0, "%s", logged);
  cr_expect(strstr(logged, "fix=\"sysctl -w net.core.rmem_max=268435456\"") != NULL, "%s", logged);
}

Test(listener_socket, timestamps_are_switched_on_when_asked) {
  ip(NPI_CONFIG_UDP, "127.0.0.1", 0);
  open_first();
  cr_expect_eq(option(first.fd, SOL_SOCKET, SO_TIMESTAMPNS), 0);
  config.timestamps = 1;
  cr_assert_eq(npi_listener_socket_open(&config, 0, &second), 0, "%s", npi_detail());
  cr_expect_neq(option(second.fd, SOL_SOCKET, SO_TIMESTAMPNS), 0);
}

/* ---- multicast ---- */

static void join(const char *address, const char *group, const char *interface, const char *source) {
  ip(NPI_CONFIG_UDP, address, 0);
  snprintf(config.multicast.group, sizeof config.multicast.group, "%s", group);
  snprintf(config.multicast.interface, sizeof config.multicast.interface, "%s", interface);
  snprintf(config.multicast.source, sizeof config.multicast.source, "%s", source);
}

/* Sends to an IPv4 group over the loopback interface; the errno, or 0. */
static int send_to_group(const char *group, uint32_t port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  struct ip_mreqn out = {.imr_address.s_addr = htonl(INADDR_LOOPBACK), .imr_ifindex = (int)if_nametoindex("lo")};
  inet_pton(AF_INET, group, &to.sin_addr);
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  int failed = setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &out, sizeof out) != 0 ||
               sendto(fd, "abc", 3, 0, (struct sockaddr *)&to, sizeof to) != 3;
  int error = failed ? errno : 0;
  close(fd);
  return error;
}

Test(listener_socket, multicast_of_the_joined_group_arrives_and_of_others_not) {
  join("0.0.0.0", "239.77.1.1", "lo", "");
  open_first();
  config.port = first.port;
  snprintf(config.multicast.group, sizeof config.multicast.group, "239.77.1.2");
  snprintf(config.multicast.interface, sizeof config.multicast.interface, "127.0.0.1"); /* by address */
  cr_assert_eq(npi_listener_socket_open(&config, 0, &second), 0, "%s", npi_detail());
  int error = send_to_group("239.77.1.1", first.port);
  if (error != 0) cr_skip_test("no multicast over loopback here: %s", strerror(error));
  expect_datagram(first.fd);
  cr_expect_eq(readable(second.fd, 50), 0, "a group that only another socket joined");
}

Test(listener_socket, multicast_of_one_source_only) {
  join("0.0.0.0", "232.77.1.1", "lo", "127.0.0.1");
  open_first();
  config.port = first.port;
  snprintf(config.multicast.source, sizeof config.multicast.source, "127.0.0.9");
  cr_assert_eq(npi_listener_socket_open(&config, 0, &second), 0, "%s", npi_detail());
  int error = send_to_group("232.77.1.1", first.port);
  if (error != 0) cr_skip_test("no multicast over loopback here: %s", strerror(error));
  expect_datagram(first.fd);
  cr_expect_eq(readable(second.fd, 50), 0, "a sender that it did not ask for");
}

Test(listener_socket, multicast_of_ipv6) {
  NEEDS_IPV6;
  join("*", "ff11::77:1", "lo", "");
  open_first();
  cr_expect_eq(first.family, AF_INET6);
  struct sockaddr_in6 to = {
      .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)first.port), .sin6_scope_id = if_nametoindex("lo")};
  inet_pton(AF_INET6, "ff11::77:1", &to.sin6_addr);
  int out = (int)if_nametoindex("lo");
  int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  cr_expect_eq(setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, &out, sizeof out), 0);
  ssize_t sent = sendto(fd, "abc", 3, 0, (struct sockaddr *)&to, sizeof to);
  int error = errno;
  close(fd);
  if (sent != 3) cr_skip_test("no IPv6 multicast over loopback here: %s", strerror(error));
  expect_datagram(first.fd);
}

Test(listener_socket, multicast_on_an_interface_that_is_not_there) {
  join("0.0.0.0", "239.77.1.1", "nothere0", "");
  refused(0, NP_ERR_CONFIG, "no interface has the name or address \"nothere0\"");
  join("0.0.0.0", "239.77.1.1", "203.0.113.77", "");
  refused(0, NP_ERR_CONFIG, "`ip address` shows");
}

/* ---- Unix sockets ---- */

static int connect_to(const char *path, int type) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
  int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
  int failed = connect(fd, (struct sockaddr *)&address, sizeof address) != 0 || send(fd, "abc", 3, MSG_NOSIGNAL) != 3;
  close(fd);
  return failed;
}

Test(listener_socket, unix_stream_has_its_mode_and_goes_with_its_socket) {
  struct stat facts;
  local(NPI_CONFIG_UNIX, "s");
  config.mode = 0666; /* wider than most umasks */
  mode_t mask = umask(027);
  open_first();
  umask(mask);
  cr_assert_eq(stat(config.path, &facts), 0);
  cr_expect_eq(facts.st_mode & 07777, 0666);
  cr_expect_eq(connect_to(config.path, SOCK_STREAM), 0);
  cr_expect_eq(readable(first.fd, 5000), 1);
  npi_listener_socket_close(&first);
  cr_expect_eq(stat(config.path, &facts), -1);
}

Test(listener_socket, unix_datagram_receives) {
  local(NPI_CONFIG_UNIX_DATAGRAM, "d");
  open_first();
  cr_expect_eq(connect_to(config.path, SOCK_DGRAM), 0);
  expect_datagram(first.fd);
}

Test(listener_socket, unix_file_of_a_dead_process_is_replaced) {
  static const enum npi_config_proto protos[] = {NPI_CONFIG_UNIX, NPI_CONFIG_UNIX_DATAGRAM};
  for (int i = 0; i < 2; i++) {
    local(protos[i], "stale");
    open_first();
    close(first.fd); /* as death leaves it: the file stays */
    first.fd = -1;
    logged[0] = '\0';
    open_first();
    cr_expect_eq(strncmp(logged, "socket.leftover_removed listener=here path=/", 44), 0, "%s", logged);
    cr_expect_eq(connect_to(config.path, i == 0 ? SOCK_STREAM : SOCK_DGRAM), 0);
    npi_listener_socket_close(&first);
  }
}

Test(listener_socket, unix_file_of_a_living_process_is_in_use) {
  local(NPI_CONFIG_UNIX, "live");
  open_first();
  refused(0, NP_ERR_EXISTS, "live is in use by another process: stop it");
  cr_expect_eq(connect_to(config.path, SOCK_STREAM), 0, "and it goes on living");
  config.proto = NPI_CONFIG_UNIX_DATAGRAM; /* alive, though of another type */
  refused(0, NP_ERR_EXISTS, "live is in use by another process: stop it");
}

Test(listener_socket, unix_file_of_a_successor_is_left_alone) {
  struct stat facts;
  local(NPI_CONFIG_UNIX, "next");
  open_first();
  unlink(config.path);
  cr_assert_eq(npi_listener_socket_open(&config, 0, &second), 0, "%s", npi_detail());
  npi_listener_socket_close(&first);
  cr_expect_eq(stat(config.path, &facts), 0);
}

Test(listener_socket, file_that_is_no_socket_is_never_removed) {
  struct stat facts;
  local(NPI_CONFIG_UNIX, "precious");
  close(open(config.path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  refused(0, NP_ERR_EXISTS, "exists and is no socket");
  cr_expect_eq(stat(config.path, &facts), 0);
  unlink(config.path);
}

Test(listener_socket, missing_directory_is_named) {
  local(NPI_CONFIG_UNIX, "no/such");
  refused(0, NP_ERR_CONFIG, "create its directory");
}

Test(listener_socket, describes_itself) {
  char text[200];
  ip(NPI_CONFIG_UDP, "::1", 7);
  npi_listener_socket_describe(&config, text, sizeof text);
  cr_expect_str_eq(text, "udp [::1]:7");
  ip(NPI_CONFIG_TCP, "127.0.0.1", 7);
  npi_listener_socket_describe(&config, text, sizeof text);
  cr_expect_str_eq(text, "tcp 127.0.0.1:7");
}
