/* SPDX-License-Identifier: Apache-2.0 */
/* What main() hands to a verb, and what verbs share. */
#ifndef NUMAPOOLCTL_COMMAND_H
#define NUMAPOOLCTL_COMMAND_H

#include <stdint.h>

#include "base/align.h"
#include "base/status.h"
#include "output.h"
#include "view.h"

enum npi_exit {
  NPI_EXIT_OK = 0,
  NPI_EXIT_NO = 1,     /* the verb's own "no": not ready, findings, channel cannot be opened */
  NPI_EXIT_USAGE = 2,  /* the command line is not right */
  NPI_EXIT_ABSENT = 3, /* no such instance, or it may not be looked at */
};

enum npi_option {
  NPI_OPTION_INSTANCE,
  NPI_OPTION_JSON,
  NPI_OPTION_HELP,
  NPI_OPTION_VERSION,
  NPI_OPTION_COUNT,
  NPI_OPTION_TIMEOUT,
  NPI_OPTION_FORMAT,
  NPI_OPTION_CREDITS,
  NPI_OPTION_TOPIC,
  NPI_OPTION_PRIORITY,
  NPI_OPTION_LINGER,
  NPI_OPTIONS
};

struct npi_command {
  const char *verb;
  const char *instance;
  int json;
  const char *argument;           /* the channel, for verbs that have one */
  const char *value[NPI_OPTIONS]; /* "" where an option without value was given, NULL: not given */
};

int npi_cmd_status(const struct npi_command *command);
int npi_cmd_clients(const struct npi_command *command);
int npi_cmd_channels(const struct npi_command *command);
int npi_cmd_listeners(const struct npi_command *command);
int npi_cmd_segments(const struct npi_command *command);
int npi_cmd_fsck(const struct npi_command *command);
int npi_cmd_audit(const struct npi_command *command);
int npi_cmd_tap(const struct npi_command *command);
int npi_cmd_pub(const struct npi_command *command);

/* Writes "numapoolctl VERB: message" to stderr and returns exit_status. */
int npi_complain(const struct npi_command *command, int exit_status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The view of the command's instance: NPI_EXIT_OK, or the exit status after a complaint. */
int npi_open_view(const struct npi_command *command, struct npi_view *view);

/*
 * The instance that this process is a client of, seen from outside as well: 1, or 0 where that may not be looked
 * at (the broker is another user's) or the name leads to another one. The view is closed by npi_view_close in both
 * cases.
 */
int npi_open_own_view(const struct npi_command *command, struct npi_view *view);

/* Prints the document when --json was given and returns 1, else 0. */
int npi_print_json(const struct npi_command *command, const json_t *document);

/* Values of options, checked: 0, or NPI_EXIT_USAGE after a complaint. Not given: *number stays. */
int npi_option_number(const struct npi_command *command, enum npi_option option, uint64_t least, uint64_t most,
                      uint64_t *number);
int npi_option_seconds(const struct npi_command *command, enum npi_option option, int64_t *milliseconds);

/* Ends on SIGINT and SIGTERM: installs a handler that sets the flag; ignores SIGPIPE. */
void npi_catch_signals(void);
int npi_was_interrupted(void);

/* Complains that np_connect, or once connected an open, failed; the exit status that fits. */
int npi_complain_client(const struct npi_command *command, int status, int is_connected);

struct np_client;

/*
 * What happened to the broker meanwhile, for people on standard error; asks at most ten times a second (*asked_ns is the
 * caller's, 0 at first). 1: this client's instance is gone for good, now or before.
 */
int npi_tell_notices(const struct npi_command *command, struct np_client *client, uint64_t *asked_ns);

/* The process ends with NPI_EXIT_ABSENT after that time, unless this is called with 0 before. */
void npi_bound_opening(int64_t milliseconds);

/* What several verbs show of an instance. */
void npi_describe_channel_use(struct npi_view *view, uint32_t channel, json_t *row);
void npi_describe_listener(struct npi_view *view, uint32_t listener, json_t *row);
const char *npi_backend_word(uint32_t backend);
const char *npi_record_state_word(uint32_t state);

#endif
