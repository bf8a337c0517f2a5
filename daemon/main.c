/* SPDX-License-Identifier: Apache-2.0 */
/* numapoold: arguments, configuration, exit status. Everything else is in broker.c. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/align.h"
#include "base/log.h"
#include "base/status.h"
#include "daemon/broker.h"
#include "daemon/keeper.h"
#include "daemon/worker.h"
#include "numapool/version.h"

/* What a script may rely on. */
enum { EXIT_FINE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

struct arguments {
  const char *config_file, *instance, *log_level;
  int check_config;
  int takeover;
  int worker_setup_fd; /* -1: this is no ingest worker */
  int keeper_fd;       /* -1: nor the keeper */
};

static int log_fd = STDERR_FILENO;

static const char usage[] =
    "usage: numapoold [options]\n"
    "\n"
    "Runs the numapool broker in the foreground. Without a configuration file it works with defaults and opens no "
    "port.\n"
    "\n"
    "  --config FILE      read settings from a YAML file\n"
    "  --instance NAME    name of this broker; wins over the file (default: \"default\")\n"
    "  --log-level LEVEL  error, warning, info or debug; wins over the file\n"
    "  --takeover         replace the broker that runs: clients and ingest workers go on (upgrade)\n"
    "  --check-config     check the configuration, print the values in force, and exit\n"
    "  --help-config      describe every setting, and exit\n"
    "  --version          print the version, and exit\n"
    "  --help             print this, and exit\n"
    "\n"
    "SIGTERM, SIGINT and SIGHUP end it in order: ingest workers publish what they have, shared memory is removed.\n"
    "Exit status: 0 ended in order, 1 failed at run time, 2 wrong usage or configuration.\n";

enum {
  OPTION_CONFIG = 256,
  OPTION_INSTANCE,
  OPTION_LOG_LEVEL,
  OPTION_CHECK,
  OPTION_HELP_CONFIG,
  OPTION_WORKER,
  OPTION_KEEPER,
  OPTION_TAKEOVER
};

static const struct option options[] = {{"config", required_argument, NULL, OPTION_CONFIG},
                                        {"instance", required_argument, NULL, OPTION_INSTANCE},
                                        {"log-level", required_argument, NULL, OPTION_LOG_LEVEL},
                                        {"check-config", no_argument, NULL, OPTION_CHECK},
                                        {"takeover", no_argument, NULL, OPTION_TAKEOVER},
                                        {"help-config", no_argument, NULL, OPTION_HELP_CONFIG},
                                        {"version", no_argument, NULL, 'V'},
                                        {"help", no_argument, NULL, 'h'},
                                        {"ingest-worker", required_argument, NULL, OPTION_WORKER},
                                        {"keeper", required_argument, NULL, OPTION_KEEPER},
                                        {NULL, 0, NULL, 0}};

/* < 0: go on; else the exit status. */
static int parse_arguments(int argc, char **argv, struct arguments *arguments) {
  int option;
  *arguments = (struct arguments){.worker_setup_fd = -1, .keeper_fd = -1};
  while ((option = getopt_long(argc, argv, "hV", options, NULL)) != -1) {
    switch (option) {
      case OPTION_CONFIG: arguments->config_file = optarg; break;
      case OPTION_INSTANCE: arguments->instance = optarg; break;
      case OPTION_LOG_LEVEL: arguments->log_level = optarg; break;
      case OPTION_CHECK: arguments->check_config = 1; break;
      case OPTION_WORKER: arguments->worker_setup_fd = atoi(optarg); break;
      case OPTION_TAKEOVER: arguments->takeover = 1; break;
      case OPTION_KEEPER: arguments->keeper_fd = atoi(optarg); break;
      case OPTION_HELP_CONFIG: npi_config_write_help(stdout); return EXIT_FINE;
      case 'V': printf("numapoold %s\n", NP_VERSION_STRING); return EXIT_FINE;
      case 'h': fputs(usage, stdout); return EXIT_FINE;
      default: fprintf(stderr, "try: numapoold --help\n"); return EXIT_USAGE;
    }
  }
  if (arguments->instance != NULL && arguments->instance[0] == '\0') {
    /* As of an unset variable: it must not mean the default instance, with its data. */
    fprintf(stderr, "numapoold: --instance needs a name\n");
    return EXIT_USAGE;
  }
  if (optind == argc) return -1;
  fprintf(stderr, "numapoold: \"%s\" is not an option; a configuration file is given with --config %s\n", argv[optind],
          argv[optind]);
  return EXIT_USAGE;
}

static int set_log_level(struct npi_config *config, const char *text) {
  static const char *const names[] = {"error", "warning", "info", "debug"};
  if (text == NULL) return 0;
  for (size_t i = 0; i < NPI_ARRAY_COUNT(names); i++) {
    if (strcmp(text, names[i]) != 0) continue;
    config->log_level = (enum npi_log_level)i;
    return 0;
  }
  return npi_fail(NP_ERR_CONFIG, "--log-level \"%s\" is none of error, warning, info, debug", text);
}

/* 0, or the status; what is wrong has been printed, one line each. */
static int read_config(struct npi_config *config, const struct arguments *arguments) {
  npi_config_init(config);
  int status = arguments->config_file != NULL ? npi_config_load(config, arguments->config_file) : 0;
  if (status == 0) status = npi_config_finish(config, arguments->instance);
  if (status == 0) status = set_log_level(config, arguments->log_level);
  if (status != 0) fprintf(stderr, "%s\n", config->n_errors > 0 ? config->errors : npi_detail());
  return status;
}

static int run_broker(const struct npi_config *config, int takeover) {
  static struct npi_broker broker; /* large, and there is one */
  npi_log_set_sink(npi_log_sink_fd, &log_fd, config->log_level);
  int status = npi_broker_start(&broker, config, takeover);
  if (status == 0) {
    status = npi_broker_run(&broker);
    if (status != 0) npi_log(NPI_LOG_ERROR, "broker.failed", "reason=\"%s\"", npi_detail());
    if (broker.yielded) return EXIT_FINE; /* all that is left is the successor's */
    npi_broker_stop(&broker);
  }
  if (status == 0) npi_log(NPI_LOG_INFO, "broker.stopped", "instance=%s", config->instance);
  if (status == 0) return EXIT_FINE;
  return status == NP_ERR_CONFIG ? EXIT_USAGE : EXIT_FAILED;
}

int main(int argc, char **argv) {
  struct arguments arguments;
  struct npi_config config;
  int status = parse_arguments(argc, argv, &arguments);
  if (status >= 0) return status;
  if (arguments.worker_setup_fd >= 0) return npi_worker_main(arguments.worker_setup_fd);
  if (arguments.keeper_fd >= 0) return npi_keeper_main(arguments.keeper_fd);
  if (read_config(&config, &arguments) != 0) {
    npi_config_deinit(&config);
    return EXIT_USAGE;
  }
  if (arguments.check_config) {
    npi_config_write(&config, stdout);
    status = EXIT_FINE;
  } else {
    status = run_broker(&config, arguments.takeover);
  }
  npi_config_deinit(&config);
  return status;
}
