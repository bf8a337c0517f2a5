/* SPDX-License-Identifier: Apache-2.0 */
/* numapoolctl pub: a publisher on a channel, like any client; each line of standard input is an event. */
#include <errno.h>
#include <inttypes.h>
#include <numapool/numapool.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "line_reader.h"
#include "os/os_clock.h"

enum { EVENT_BYTES_MAX = 1 << 20, WAIT_MS = 100, TOPIC_BYTES_MAX = 65535 };

struct pub {
  const struct npi_command *command;
  struct np_client *client;
  struct np_publisher *publisher;
  const char *topic;
  size_t topic_bytes;
  uint64_t priority;
  int64_t linger_ms;
  uint64_t published;
  uint64_t no_member; /* given up: a blocking group without a member */
  uint64_t too_long;
  uint64_t asked_ns;
};

static int read_options(struct pub *pub) {
  const struct npi_command *command = pub->command;
  pub->topic = command->value[NPI_OPTION_TOPIC];
  pub->topic_bytes = pub->topic != NULL ? strlen(pub->topic) : 0;
  pub->priority = NP_PRIORITY_NORMAL;
  pub->linger_ms = 1000;
  if (pub->topic_bytes > TOPIC_BYTES_MAX) {
    return npi_complain(command, NPI_EXIT_USAGE, "a topic has at most %d bytes", TOPIC_BYTES_MAX);
  }
  int status = npi_option_number(command, NPI_OPTION_PRIORITY, NP_PRIORITY_BATCH, NP_PRIORITY_CRITICAL, &pub->priority);
  return status != 0 ? status : npi_option_seconds(command, NPI_OPTION_LINGER, &pub->linger_ms);
}

static int open_channel(struct pub *pub) {
  struct np_options options;
  np_options_init(&options);
  options.name = "numapoolctl-pub";
  options.instance = pub->command->instance;
  int status = np_connect(&pub->client, &options);
  if (status < 0) return status;
  return np_publisher_open(pub->client, pub->command->argument, NULL, &pub->publisher);
}

static int has_subscriber(const struct pub *pub) {
  struct np_publisher_stats stats = {.size = sizeof stats};
  return np_publisher_stats(pub->publisher, &stats) != NP_OK || stats.subscribers > 0;
}

/*
 * Waits until a loan or publish may go on. 0; NP_TIMEOUT: nobody to wait for came within the linger time;
 * NP_CLOSED: interrupted; < 0.
 */
static int wait_turn(struct pub *pub, uint64_t began) {
  if (npi_was_interrupted()) return NP_CLOSED;
  npi_tell_notices(pub->command, pub->client, &pub->asked_ns);
  int status = np_wait_credit(pub->publisher, WAIT_MS);
  if (status != NP_TIMEOUT) return status;
  if (has_subscriber(pub)) return NP_OK; /* slow ones are waited for, however long */
  return npi_clock_monotonic() - began >= (uint64_t)pub->linger_ms * 1000000 ? NP_TIMEOUT : NP_OK;
}

/* 0; NP_CLOSED: interrupted; < 0. */
static int publish(struct pub *pub, const uint8_t *line, size_t n) {
  struct np_event event;
  uint64_t began = npi_clock_monotonic();
  int status;
  while ((status = np_loan(pub->publisher, n + pub->topic_bytes, &event)) == NP_EMPTY) {
    status = wait_turn(pub, began);
    if (status == NP_TIMEOUT) continue; /* slots come back by themselves */
    if (status != NP_OK) return status;
  }
  if (status != NP_OK) return status;
  if (n > 0) memcpy(event.data, line, n);
  event.size = n;
  event.priority = (uint8_t)pub->priority;
  event.time_ns = npi_clock_realtime();
  if (pub->topic_bytes > 0) status = np_set_topic(pub->publisher, &event, pub->topic, pub->topic_bytes);
  while (status == NP_OK && (status = np_publish(pub->publisher, &event)) == NP_FULL) {
    status = wait_turn(pub, began);
  }
  if (status == NP_OK) {
    pub->published++;
    return NP_OK;
  }
  np_discard(pub->publisher, &event);
  if (status != NP_TIMEOUT) return status;
  pub->no_member++;
  return NP_OK;
}

/* All lines. NPI_EXIT_OK; NPI_EXIT_NO after a complaint. */
static int publish_lines(struct pub *pub) {
  struct npi_line_reader reader;
  const uint8_t *line;
  size_t n;
  int result = NPI_EXIT_OK;
  size_t longest = EVENT_BYTES_MAX - pub->topic_bytes;
  if (npi_line_reader_init(&reader, STDIN_FILENO, longest) != 0) {
    return npi_complain(pub->command, NPI_EXIT_NO, "out of memory");
  }
  while (!npi_was_interrupted()) {
    enum npi_line got = npi_line_next(&reader, &line, &n);
    if (got == NPI_LINE_END) break;
    if (got == NPI_LINE_INTERRUPTED) continue;
    if (got == NPI_LINE_ERROR) {
      result = npi_complain(pub->command, NPI_EXIT_NO, "cannot read standard input: %s", strerror(errno));
      break;
    }
    if (got == NPI_LINE_TOO_LONG) {
      pub->too_long++;
      result = npi_complain(pub->command, NPI_EXIT_NO, "line %" PRIu64 " is longer than the %zu bytes of an event",
                            reader.number, longest);
      continue;
    }
    int status = publish(pub, line, n);
    npi_tell_notices(pub->command, pub->client, &pub->asked_ns);
    if (status == NP_CLOSED) break;
    if (status < 0) {
      result = npi_complain(pub->command, NPI_EXIT_NO, "line %" PRIu64 ": %s", reader.number, np_error_detail());
      break;
    }
  }
  npi_line_reader_free(&reader);
  return result;
}

/* Events that subscribers have not given back, as the rings show it; without a view as the library counted last. */
static uint64_t count_outstanding(struct pub *pub, struct npi_view *view, int has_view) {
  struct np_client_stats stats = {.size = sizeof stats};
  struct npi_connection_figures figures;
  uint64_t n = 0;
  if (!has_view || npi_view_refresh(view) != 0) {
    return np_client_stats(pub->client, &stats) == NP_OK ? stats.outstanding_slots : 0;
  }
  for (uint32_t i = 0; i < view->n_connections; i++) {
    const struct npi_connection_record *connection = &view->connections[i];
    if (npi_view_state(&connection->state) != NPI_CONNECTION_ACTIVE ||
        connection->publisher_client >= view->n_clients ||
        view->clients[connection->publisher_client].pid != (uint32_t)getpid()) {
      continue;
    }
    npi_view_connection(view, connection, &figures);
    if (figures.subscriber_known && figures.published > figures.returned) n += figures.published - figures.returned;
  }
  return n;
}

/* What is with subscribers is theirs, but who looks at the sums wants to see it arrived. */
static uint64_t linger(struct pub *pub) {
  struct npi_view view;
  uint64_t until = npi_clock_monotonic() + (uint64_t)pub->linger_ms * 1000000, outstanding;
  int has_view = npi_open_own_view(pub->command, &view);
  while ((outstanding = count_outstanding(pub, &view, has_view)) > 0) {
    if (npi_clock_monotonic() >= until || npi_was_interrupted()) break;
    usleep(5000);
  }
  npi_view_close(&view);
  return outstanding;
}

static void say_sums(const struct pub *pub, uint64_t outstanding) {
  struct np_publisher_stats stats = {.size = sizeof stats};
  if (np_publisher_stats(pub->publisher, &stats) != NP_OK) memset(&stats, 0, sizeof stats);
  uint64_t nobody = stats.dropped_no_subscriber + stats.dropped_no_member + pub->no_member;
  fprintf(stderr,
          "numapoolctl pub: %" PRIu64 " published, %" PRIu64 " had no subscriber, %" PRIu64
          " deliveries dropped for want of credit, %" PRIu64 " not yet taken\n",
          pub->published, nobody, stats.dropped_no_credit, outstanding);
  if (!pub->command->json) return;
  json_t *document = npi_new_object();
  npi_set_text(document, "channel", pub->command->argument);
  npi_set_number(document, "published", pub->published);
  npi_set_number(document, "delivered", stats.delivered);
  npi_set_number(document, "no_subscriber", nobody);
  npi_set_number(document, "dropped_no_credit", stats.dropped_no_credit);
  npi_set_number(document, "given_up", pub->no_member);
  npi_set_number(document, "too_long", pub->too_long);
  npi_set_number(document, "outstanding", outstanding);
  npi_output_json(stdout, document);
  json_decref(document);
}

int npi_cmd_pub(const struct npi_command *command) {
  struct pub pub = {.command = command};
  int result = read_options(&pub);
  if (result != 0) return result;
  npi_catch_signals();
  int status = open_channel(&pub);
  if (status < 0) {
    result = npi_complain_client(command, status, pub.client != NULL);
  } else {
    result = publish_lines(&pub);
    say_sums(&pub, linger(&pub));
    if (pub.no_member > 0) result = NPI_EXIT_NO;
    np_publisher_close(pub.publisher);
  }
  np_disconnect(pub.client);
  return result;
}
