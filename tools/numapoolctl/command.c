/* SPDX-License-Identifier: Apache-2.0 */
#include "command.h"

#include <ctype.h>
#include <errno.h>
#include <numapool/numapool.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "os/os_clock.h"

#define NOTICES_NS UINT64_C(100000000)

int npi_complain(const struct npi_command *command, int exit_status, const char *format, ...) {
  va_list arguments;
  fflush(stdout);
  fprintf(stderr, "numapoolctl %s: ", command->verb);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  return exit_status;
}

int npi_open_view(const struct npi_command *command, struct npi_view *view) {
  int status = npi_view_open(view, command->instance);
  if (status == 0) return NPI_EXIT_OK;
  npi_complain(command, 0, "%s", npi_detail());
  return status == NP_ERR_ARGUMENT ? NPI_EXIT_USAGE : NPI_EXIT_ABSENT;
}

int npi_open_own_view(const struct npi_command *command, struct npi_view *view) {
  if (npi_view_open(view, command->instance) != 0) return 0;
  for (uint32_t i = 0; i < view->n_clients; i++) {
    const struct npi_client_record *client = &view->clients[i];
    if (npi_view_state(&client->state) == NPI_RECORD_ACTIVE && client->pid == (uint32_t)getpid()) return 1;
  }
  return 0;
}

int npi_print_json(const struct npi_command *command, const json_t *document) {
  if (!command->json) return 0;
  npi_output_json(stdout, document); /* main() looks whether it got out */
  return 1;
}

int npi_option_number(const struct npi_command *command, enum npi_option option, uint64_t least, uint64_t most,
                      uint64_t *number) {
  const char *text = command->value[option];
  char *end = NULL;
  if (text == NULL) return 0;
  errno = 0;
  unsigned long long value = strtoull(text, &end, 10);
  if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0 || value < least || value > most) {
    return npi_complain(command, NPI_EXIT_USAGE, "\"%s\" is not a number from %llu to %llu", text,
                        (unsigned long long)least, (unsigned long long)most);
  }
  *number = value;
  return 0;
}

int npi_option_seconds(const struct npi_command *command, enum npi_option option, int64_t *milliseconds) {
  const char *text = command->value[option];
  char *end = NULL;
  if (text == NULL) return 0;
  double seconds = strtod(text, &end);
  if (!(isdigit((unsigned char)text[0]) || text[0] == '.') || *end != '\0' || !(seconds >= 0 && seconds <= 1e9)) {
    return npi_complain(command, NPI_EXIT_USAGE, "\"%s\" is not a number of seconds, such as 5 or 0.5", text);
  }
  *milliseconds = (int64_t)(seconds * 1000 + 0.5);
  return 0;
}

static volatile sig_atomic_t interrupted;

static void on_signal(int signal_number) {
  (void)signal_number;
  interrupted = 1;
}

void npi_catch_signals(void) {
  struct sigaction action = {.sa_handler = on_signal}; /* without SA_RESTART: a read of a terminal ends */
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  signal(SIGPIPE, SIG_IGN);
}

int npi_was_interrupted(void) {
  return interrupted;
}

int npi_complain_client(const struct npi_command *command, int status, int is_connected) {
  int result = NPI_EXIT_NO;
  if (status == NP_ERR_NO_BROKER || !is_connected) result = NPI_EXIT_ABSENT;
  if (status == NP_ERR_ARGUMENT && !is_connected) result = NPI_EXIT_USAGE;
  return npi_complain(command, result, "%s", npi_detail());
}

int npi_tell_notices(const struct npi_command *command, struct np_client *client, uint64_t *asked_ns) {
  static int is_gone;
  struct np_notice notice = {.size = sizeof notice};
  uint64_t now = npi_clock_monotonic();
  if (now - *asked_ns < NOTICES_NS) return is_gone;
  *asked_ns = now;
  while (np_client_notice(client, &notice) == NP_OK) {
    if (notice.kind == NP_NOTICE_PEER_DIED) continue; /* programs come and go */
    is_gone |= notice.kind == NP_NOTICE_INSTANCE_GONE || (notice.kind == NP_NOTICE_EVICTED && notice.pid == 0);
    npi_complain(command, 0, "%s", notice.text);
  }
  return is_gone;
}

/* One write and the end: nothing else is safe in a handler, and what was opened by halves ends with the process. */
static void on_late(int signal_number) {
  static const char text[] = "numapoolctl tap: the broker did not answer in the time of --timeout; is it stopped?\n";
  (void)signal_number;
  if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(NPI_EXIT_ABSENT);
  _exit(NPI_EXIT_ABSENT);
}

void npi_bound_opening(int64_t milliseconds) {
  struct sigaction action = {.sa_handler = milliseconds > 0 ? on_late : SIG_IGN};
  struct itimerval timer = {.it_value = {.tv_sec = milliseconds / 1000, .tv_usec = milliseconds % 1000 * 1000}};
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &timer, NULL);
}

const char *npi_backend_word(uint32_t backend) {
  return backend == 0 ? "posix" : backend == 1 ? "memfd" : "unknown";
}

const char *npi_record_state_word(uint32_t state) {
  static const char *const words[] = {"free", "active", "closing"};
  return state < NPI_ARRAY_COUNT(words) ? words[state] : "invalid";
}
