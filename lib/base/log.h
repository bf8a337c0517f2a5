/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One log line per fact: `event.name key=value key=value`.
 *
 * The library itself is silent: nothing is written until a program (the broker, a tool) sets a sink.
 * Info and above speak to the operator, debug to developers.
 */
#ifndef NPI_BASE_LOG_H
#define NPI_BASE_LOG_H

enum npi_log_level { NPI_LOG_ERROR, NPI_LOG_WARNING, NPI_LOG_INFO, NPI_LOG_DEBUG };

/* line has no newline at its end and lives only during the call. */
typedef void (*npi_log_sink)(enum npi_log_level level, const char *line, void *context);

/* Process-wide; called by main() before anything else runs. sink NULL: silent. */
void npi_log_set_sink(npi_log_sink sink, void *context, enum npi_log_level most_verbose);

/*
 * event is "noun.verb"; format makes the `key=value` part. A value that may have blanks is quoted by the format,
 * `key=\"%s\"`; quotes and backslashes inside it are then escaped with a backslash.
 */
void npi_log(enum npi_log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* A sink that writes "LEVEL line\n" to the descriptor that context points to (an int). */
void npi_log_sink_fd(enum npi_log_level level, const char *line, void *context);

#endif
