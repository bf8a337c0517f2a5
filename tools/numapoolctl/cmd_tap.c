/* SPDX-License-Identifier: Apache-2.0 */
/*
 * numapoolctl tap: an onlooker on a channel, like any client, through the public interface.
 *
 * Output is written in large pieces while events keep coming, and at once when there is none left: what has
 * come is always to be seen, also through a pipe.
 */
#include <errno.h>
#include <inttypes.h>
#include <numapool/numapool.h>
#include <string.h>

#include "command.h"
#include "os/os_clock.h"
#include "tap_format.h"

enum { DEFAULT_CREDITS = 8192, FEWEST_CREDITS = 16, WAIT_MS = 100, GIVE_UP_MS = 2000, OUTPUT_BYTES = 1 << 18 };

struct tap {
  const struct npi_command *command;
  struct np_client *client;
  struct np_subscriber *subscriber;
  enum npi_tap_format format;
  uint64_t count;     /* events left to take; UINT64_MAX: no end */
  uint64_t until;     /* monotonic ns; UINT64_MAX: no end */
  int64_t timeout_ms; /* < 0: none */
  uint64_t taken;
};

static int read_options(struct tap *tap, uint64_t *credits) {
  const struct npi_command *command = tap->command;
  const char *format = command->value[NPI_OPTION_FORMAT];
  tap->timeout_ms = -1;
  tap->format = command->json ? NPI_TAP_JSON : NPI_TAP_TEXT;
  tap->count = UINT64_MAX;
  if (format != NULL && npi_tap_parse_format(format, &tap->format) != 0) {
    return npi_complain(command, NPI_EXIT_USAGE, "--format \"%s\" is none of text, json, raw, hex", format);
  }
  if (command->json && tap->format != NPI_TAP_JSON) {
    return npi_complain(command, NPI_EXIT_USAGE, "--json and --format %s are not possible together", format);
  }
  int status = npi_option_number(command, NPI_OPTION_COUNT, 1, UINT64_MAX - 1, &tap->count);
  if (status == 0) status = npi_option_number(command, NPI_OPTION_CREDITS, 1, 16384, credits);
  if (status == 0) status = npi_option_seconds(command, NPI_OPTION_TIMEOUT, &tap->timeout_ms);
  tap->until = tap->timeout_ms < 0 ? UINT64_MAX : npi_clock_monotonic() + (uint64_t)tap->timeout_ms * 1000000;
  return status;
}

/* Opens as onlooker; without --credits, as many as the broker allows. */
static int open_channel(struct tap *tap, uint64_t credits) {
  struct np_options options;
  struct np_subscriber_options subscriber_options;
  int given = tap->command->value[NPI_OPTION_CREDITS] != NULL;
  np_options_init(&options);
  options.name = "numapoolctl-tap";
  options.instance = tap->command->instance;
  int status = np_connect(&tap->client, &options);
  if (status < 0) return status;
  np_subscriber_options_init(&subscriber_options);
  subscriber_options.on_full = NP_ON_FULL_DROP_NEWEST;
  subscriber_options.tap = 1;
  for (;; credits /= 2) {
    subscriber_options.credits = (uint32_t)credits;
    status = np_subscriber_open(tap->client, tap->command->argument, &subscriber_options, &tap->subscriber);
    if (status != NP_ERR_LIMIT || given || credits <= FEWEST_CREDITS) return status;
  }
}

static int write_failed(const struct tap *tap) {
  if (errno == EPIPE) return NPI_EXIT_OK; /* the reader has seen enough */
  return npi_complain(tap->command, NPI_EXIT_NO, "cannot write to standard output: %s", strerror(errno));
}

/* Prints all that is there. 0; > 0: the end, with *result set. */
static int drain(struct tap *tap, int *result) {
  struct np_event event;
  struct np_source source;
  int status = NP_OK;
  while (tap->count > 0 && !npi_was_interrupted() && (status = np_take(tap->subscriber, &event)) == NP_OK) {
    source.size = sizeof source;
    int from_socket = np_event_source(tap->subscriber, &event, &source) == NP_OK;
    npi_tap_print(stdout, tap->format, tap->command->argument, &event, from_socket ? &source : NULL);
    np_release(tap->subscriber, &event);
    tap->taken++;
    if (tap->count != UINT64_MAX) tap->count--;
    if (ferror(stdout)) {
      *result = write_failed(tap);
      return 1;
    }
    if (tap->until != UINT64_MAX && npi_clock_monotonic() >= tap->until) break;
  }
  if (fflush(stdout) != 0) {
    *result = write_failed(tap);
    return 1;
  }
  if (status == NP_ERR_CORRUPT) {
    npi_complain(tap->command, 0, "%s", np_error_detail());
    return 0;
  }
  if (status < 0) {
    *result = npi_complain(tap->command, NPI_EXIT_NO, "%s", np_error_detail());
    return 1;
  }
  return tap->count == 0;
}

static int follow(struct tap *tap) {
  uint64_t quiet_since = npi_clock_monotonic();
  uint64_t asked_ns = 0;
  int result = NPI_EXIT_OK;
  while (!npi_was_interrupted()) {
    if (drain(tap, &result)) break;
    uint64_t now = npi_clock_monotonic();
    if (now >= tap->until) break;
    int64_t left_ms = tap->until == UINT64_MAX ? WAIT_MS : (int64_t)((tap->until - now + 999999) / 1000000);
    int status = np_wait(tap->subscriber, left_ms < WAIT_MS ? left_ms : WAIT_MS);
    now = npi_clock_monotonic();
    /* A broker that is away may come back, and until then its clients publish. */
    if (!npi_tell_notices(tap->command, tap->client, &asked_ns) || status == NP_OK) {
      quiet_since = now;
    } else if (now - quiet_since > (uint64_t)GIVE_UP_MS * 1000000) {
      result = npi_complain(tap->command, NPI_EXIT_NO, "nothing comes any more");
      break;
    }
    if (status < 0) {
      result = npi_complain(tap->command, NPI_EXIT_NO, "%s", np_error_detail());
      break;
    }
  }
  return result;
}

static void say_sums(const struct tap *tap) {
  struct np_subscriber_stats stats = {.size = sizeof stats};
  uint64_t missed = np_subscriber_stats(tap->subscriber, &stats) == NP_OK ? stats.missed : 0;
  fprintf(stderr, "numapoolctl tap: %" PRIu64 " event%s taken, %" PRIu64 " missed\n", tap->taken,
          tap->taken == 1 ? "" : "s", missed);
}

int npi_cmd_tap(const struct npi_command *command) {
  static char buffer[OUTPUT_BYTES];
  struct tap tap = {.command = command};
  uint64_t credits = DEFAULT_CREDITS;
  int result = read_options(&tap, &credits);
  if (result != 0) return result;
  setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
  npi_catch_signals();
  /* A stopped broker would take the library's own patience, however short the time. */
  if (tap.timeout_ms > 0) npi_bound_opening(tap.timeout_ms);
  int status = open_channel(&tap, credits);
  if (tap.timeout_ms > 0) npi_bound_opening(0);
  if (status < 0) {
    result = npi_complain_client(command, status, tap.client != NULL);
  } else {
    result = follow(&tap);
    say_sums(&tap);
    /* The goodbye closes the subscription too, and waits for no answer of a broker that may be stopped. */
  }
  np_disconnect(tap.client);
  return result;
}
