/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One hop between two pinned processes, 64 bytes written and read: what it costs, beside what the same work
 * costs without us. bench/run.sh starts it with a broker of its own; bench/README.md says how to read it.
 */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/bare.h"
#include "bench/hop_sides.h"
#include "bench/measure.h"
#include "bench/payload.h"
#include "bench/probe.h"
#include "bench/step.h"

enum {
  CYCLES = 400000,
  STREAM_EVENTS = 400000,
  ROUND_TRIPS = 25000,
  ROUNDS_MAX = 200,
  ATTEMPTS = 12,        /* of one measurement whose probes disagree or that was preempted */
  SECONDS_PATIENT = 55, /* from then on, on a busy machine, disturbed measurements are kept */
  SECONDS_MOST = 80,    /* no further round */
  STEP_CYCLES = 200,
  BARE_CREDITS = 1024, /* as the channels in bench/run.sh have */
};
#define NEAR_NS      200.0
#define PROBE_SPREAD 0.20
#define CYCLE_MOST   2.0
#define STREAM_MOST  20.0
#define ROUND_MOST   1.4

enum job { JOB_PROBE = 1, JOB_BARE_STREAM, JOB_STREAM, JOB_BARE_PONG, JOB_PONG, JOB_QUIT };
enum work { WORK_CYCLE, WORK_STREAM, WORK_ROUND_TRIP, WORK_COUNT };
static const char *const work_names[WORK_COUNT] = {"cycle", "stream", "round_trip"};
static const char *const work_titles[WORK_COUNT] = {"one-core cycle, ns", "one-way stream, ns/event",
                                                    "round trip p50, ns"};

struct sample {
  int valid;
  double probe_before, probe_after; /* p50 */
  double floor, ours;
  double floor_p99, ours_p99; /* round trip only */
  double bare;                /* round trip only: over bare rings */
  uint64_t preemptions;
};

struct hop {
  unsigned rounds;
  int cores[2];
  uint64_t started_ns;
  int strict;
  const char *json;
  const char *trace;
  struct bench_pair *pair;
  struct bare bare_cycle, bare_stream, bare_there, bare_back;
  struct hop_side side;
  unsigned dropped_probe, dropped_preempted, disturbed;
  struct sample samples[WORK_COUNT][ROUNDS_MAX];
  double perf_instructions; /* < 0: not available */
  int stepped;
  struct step_counts ours, floor; /* of STEP_CYCLES cycles */
};

/* ---- the partner on the other core ------------------------------------------------------------------- */

static _Noreturn void run_partner(struct hop *hop) {
  struct bench_pair *pair = hop->pair;
  bench_pin(hop->cores[1]);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  hop_open_partner(&hop->side);
  bench_job_done(pair, 0); /* connected: the caller may connect */
  for (;;) {
    uint64_t result = 0;
    switch (bench_job_wait(pair)) {
      case JOB_PROBE: bench_probe_answer(pair); break;
      case JOB_BARE_STREAM: result = bare_subscribe(&hop->bare_stream, pair->argument); break;
      case JOB_STREAM: result = hop_stream_subscribe(&hop->side, pair->argument); break;
      case JOB_BARE_PONG: bare_pong(&hop->bare_there, &hop->bare_back, pair->argument); break;
      case JOB_PONG: hop_pong(&hop->side, pair->argument); break;
      default:
        hop_close(&hop->side);
        bench_job_done(pair, 0);
        _exit(0);
    }
    bench_job_done(pair, result);
  }
}

/* ---- one measurement of each --------------------------------------------------------------------------- */

static void check_sum(uint64_t sum, uint64_t n, const char *what) {
  if (sum != bench_payload_sum(0, n)) bench_die("%s: what was read is not what was written", what);
}

static double time_bare_cycle(struct hop *hop) {
  uint64_t from = bench_now_ns();
  check_sum(bare_cycle(&hop->bare_cycle, CYCLES), CYCLES, "bare cycle");
  return (double)(bench_now_ns() - from) / CYCLES;
}

static double time_cycle(struct hop *hop) {
  uint64_t from = bench_now_ns();
  check_sum(hop_cycle(&hop->side, CYCLES), CYCLES, "cycle");
  return (double)(bench_now_ns() - from) / CYCLES;
}

static double time_bare_stream(struct hop *hop) {
  bench_job_start(hop->pair, JOB_BARE_STREAM, STREAM_EVENTS);
  uint64_t from = bench_now_ns();
  bare_publish(&hop->bare_stream, STREAM_EVENTS);
  uint64_t sum = bench_job_finish(hop->pair);
  uint64_t to = bench_now_ns();
  check_sum(sum, STREAM_EVENTS, "bare stream");
  return (double)(to - from) / STREAM_EVENTS;
}

static double time_stream(struct hop *hop) {
  bench_job_start(hop->pair, JOB_STREAM, STREAM_EVENTS);
  uint64_t from = bench_now_ns();
  hop_stream_publish(&hop->side, STREAM_EVENTS);
  uint64_t sum = bench_job_finish(hop->pair);
  uint64_t to = bench_now_ns();
  check_sum(sum, STREAM_EVENTS, "stream");
  return (double)(to - from) / STREAM_EVENTS;
}

static void time_round_trip(struct hop *hop, struct sample *sample) {
  static uint64_t took[ROUND_TRIPS];
  bench_job_start(hop->pair, JOB_BARE_PONG, ROUND_TRIPS);
  bare_ping(&hop->bare_there, &hop->bare_back, took, ROUND_TRIPS);
  bench_job_finish(hop->pair);
  sample->bare = bench_percentile(took, ROUND_TRIPS, 50);
  bench_job_start(hop->pair, JOB_PONG, ROUND_TRIPS);
  hop_ping(&hop->side, took, ROUND_TRIPS);
  bench_job_finish(hop->pair);
  sample->ours = bench_percentile(took, ROUND_TRIPS, 50);
  sample->ours_p99 = bench_percentile(took, ROUND_TRIPS, 99);
}

/* Floor and ours change places from round to round, so that neither always has the warmer cache. */
static void measure(struct hop *hop, enum work work, unsigned round, struct sample *sample) {
  double (*const floor)(struct hop *) = work == WORK_CYCLE ? time_bare_cycle : time_bare_stream;
  double (*const ours)(struct hop *) = work == WORK_CYCLE ? time_cycle : time_stream;
  memset(sample, 0, sizeof *sample);
  struct bench_probe before = bench_probe(hop->pair, JOB_PROBE);
  uint64_t preemptions = bench_preemptions() + hop->pair->preemptions;
  if (work == WORK_ROUND_TRIP) {
    time_round_trip(hop, sample);
  } else if (round % 2 == 0) {
    sample->floor = floor(hop);
    sample->ours = ours(hop);
  } else {
    sample->ours = ours(hop);
    sample->floor = floor(hop);
  }
  struct bench_probe after = bench_probe(hop->pair, JOB_PROBE);
  sample->preemptions = bench_preemptions() + hop->pair->preemptions - preemptions;
  sample->probe_before = before.p50;
  sample->probe_after = after.p50;
  if (work == WORK_ROUND_TRIP) {
    sample->floor = (before.p50 + after.p50) / 2;
    sample->floor_p99 = (before.p99 + after.p99) / 2;
  }
}

static int probes_agree(const struct sample *sample) {
  double low = fmin(sample->probe_before, sample->probe_after);
  return fmax(sample->probe_before, sample->probe_after) <= low * (1 + PROBE_SPREAD);
}

/* Until probes agree and nobody was preempted; else the least disturbed of those whose probes agree. */
static void measure_round(struct hop *hop, enum work work, unsigned round) {
  struct sample *best = &hop->samples[work][round];
  uint64_t patient_until = hop->started_ns + SECONDS_PATIENT * UINT64_C(1000000000);
  best->valid = 0;
  for (unsigned attempt = 0; attempt < ATTEMPTS; attempt++) {
    struct sample sample;
    measure(hop, work, round, &sample);
    if (!probes_agree(&sample)) {
      hop->dropped_probe++;
      continue;
    }
    sample.valid = 1;
    if (!best->valid || sample.preemptions < best->preemptions) *best = sample;
    if (sample.preemptions == 0) return;
    if (bench_now_ns() > patient_until) break;
    hop->dropped_preempted++;
  }
  hop->disturbed += (unsigned)best->valid;
}

/* ---- instructions ---------------------------------------------------------------------------------------- */

static void step_prepare(void *context) {
  struct hop *hop = context;
  hop_open_cycle(&hop->side);
  hop_cycle(&hop->side, 20000);
}
static void step_ours(void *context) {
  hop_cycle(&((struct hop *)context)->side, STEP_CYCLES);
}
static void step_floor_prepare(void *context) {
  bare_cycle(&((struct hop *)context)->bare_cycle, 20000);
}
static void step_floor(void *context) {
  bare_cycle(&((struct hop *)context)->bare_cycle, STEP_CYCLES);
}

static void count_by_steps(struct hop *hop) {
  hop->stepped = bench_step(step_prepare, step_ours, hop, hop->trace, &hop->ours) == 0 &&
                 bench_step(step_floor_prepare, step_floor, hop, NULL, &hop->floor) == 0;
}

static void count_by_perf(struct hop *hop) {
  int counter = bench_instructions_open();
  hop->perf_instructions = -1;
  if (counter < 0) return;
  uint64_t before = bench_instructions_read(counter);
  hop_cycle(&hop->side, CYCLES);
  uint64_t after = bench_instructions_read(counter);
  if (after > before) hop->perf_instructions = (double)(after - before) / CYCLES;
  close(counter);
}

/* ---- results --------------------------------------------------------------------------------------------- */

struct result {
  struct bench_summary floor, ours, ratio, probe;
};

enum field { FIELD_TYPICAL, FIELD_P99, FIELD_BARE };

static int is_near(const struct sample *sample) {
  return (sample->probe_before + sample->probe_after) / 2 < NEAR_NS;
}

static struct result summarize(const struct hop *hop, enum work work, enum field field, int near) {
  double floor[ROUNDS_MAX];
  double ours[ROUNDS_MAX];
  double ratio[ROUNDS_MAX];
  double probe[ROUNDS_MAX];
  unsigned n = 0;
  for (unsigned i = 0; i < hop->rounds; i++) {
    const struct sample *sample = &hop->samples[work][i];
    if (!sample->valid || is_near(sample) != near) continue;
    floor[n] = field == FIELD_P99 ? sample->floor_p99 : field == FIELD_BARE ? sample->bare : sample->floor;
    ours[n] = field == FIELD_P99 ? sample->ours_p99 : sample->ours;
    ratio[n] = ours[n] / floor[n];
    probe[n] = (sample->probe_before + sample->probe_after) / 2;
    n++;
  }
  return (struct result){bench_summarize(floor, n), bench_summarize(ours, n), bench_summarize(ratio, n),
                         bench_summarize(probe, n)};
}

static void print_line(const char *title, const struct result *result, const char *target, int met) {
  printf("  %-26s %8.1f %9.1f %7.2f   %.1f - %.1f (%.1f .. %.1f)%s%s%s\n", title, result->floor.median,
         result->ours.median, result->ratio.median, result->ours.quarter, result->ours.three_quarters, result->ours.min,
         result->ours.max, target == NULL ? "" : "   ", target == NULL ? "" : target,
         target == NULL ? ""
         : met          ? ": ok"
                        : ": MISSED");
}

/* Returns how many targets were missed. */
static unsigned print_placement(const struct hop *hop, int near) {
  unsigned missed = 0;
  struct result result[WORK_COUNT];
  for (unsigned i = 0; i < WORK_COUNT; i++) result[i] = summarize(hop, i, FIELD_TYPICAL, near);
  if (result[0].ours.n + result[1].ours.n + result[2].ours.n == 0) return 0;
  printf("\n%s: probe %.0f ns (round trip of one word over two lines, cycle/stream/round trip in %u/%u/%u rounds)\n",
         near ? "near" : "far", result[WORK_ROUND_TRIP].probe.median, result[0].ours.n, result[1].ours.n,
         result[2].ours.n);
  printf("  %-26s %8s %9s %7s   %s\n", "", "floor", "numapool", "ratio", "quartiles (min .. max) of numapool");
  if (result[WORK_CYCLE].ours.n > 0) {
    int met = result[WORK_CYCLE].ratio.median <= CYCLE_MOST;
    missed += !met;
    print_line(work_titles[WORK_CYCLE], &result[WORK_CYCLE], "<= 2 x", met);
  }
  if (result[WORK_STREAM].ours.n > 0) {
    int met = result[WORK_STREAM].ours.median <= STREAM_MOST;
    missed += near && !met;
    print_line(work_titles[WORK_STREAM], &result[WORK_STREAM], near ? "<= 20 ns" : NULL, met);
  }
  if (result[WORK_ROUND_TRIP].ours.n > 0) {
    struct result p99 = summarize(hop, WORK_ROUND_TRIP, FIELD_P99, near);
    int met = result[WORK_ROUND_TRIP].ratio.median <= ROUND_MOST;
    missed += !met;
    print_line(work_titles[WORK_ROUND_TRIP], &result[WORK_ROUND_TRIP], "<= 1.4 x", met);
    print_line("round trip p99, ns", &p99, NULL, 1);
    struct result bare = summarize(hop, WORK_ROUND_TRIP, FIELD_BARE, near);
    print_line("  p50 beside bare rings", &bare, NULL, 1);
  }
  return missed;
}

static unsigned print_results(const struct hop *hop) {
  unsigned missed = print_placement(hop, 1) + print_placement(hop, 0);
  uint64_t locked = hop->ours.locked + hop->ours.exchanges + hop->ours.fences;
  printf("\none-core cycle, by instruction:\n");
  if (hop->stepped) {
    printf("  instructions an event      %8.1f %9.1f %7.2f   every one of %d cycles, single-stepped, with the loop\n",
           (double)hop->floor.instructions / STEP_CYCLES, (double)hop->ours.instructions / STEP_CYCLES,
           (double)hop->ours.instructions / (double)hop->floor.instructions, STEP_CYCLES);
    printf("  locked instructions        %8llu %9llu           lock prefix %llu, xchg %llu, mfence %llu   0: %s\n",
           (unsigned long long)(hop->floor.locked + hop->floor.exchanges + hop->floor.fences),
           (unsigned long long)locked, (unsigned long long)hop->ours.locked, (unsigned long long)hop->ours.exchanges,
           (unsigned long long)hop->ours.fences, locked == 0 ? "ok" : "MISSED");
    printf("  system calls               %8llu %9llu\n", (unsigned long long)hop->floor.system_calls,
           (unsigned long long)hop->ours.system_calls);
    missed += locked != 0;
  } else {
    printf("  not available: this machine does not allow single steps\n");
  }
  if (hop->perf_instructions >= 0) {
    printf("  instructions an event by the performance counter: %.1f\n", hop->perf_instructions);
  } else {
    printf("  performance counter: not available on this machine\n");
  }
  printf("\ndropped and repeated: %u for probes that disagreed, %u for a preemption; kept with a preemption: %u\n",
         hop->dropped_probe, hop->dropped_preempted, hop->disturbed);
  return missed;
}

static void json_summary(FILE *file, const char *name, const struct bench_summary *summary) {
  fprintf(file, "\"%s\": {\"median\": %.3f, \"quartiles\": [%.3f, %.3f], \"min\": %.3f, \"max\": %.3f}", name,
          summary->median, summary->quarter, summary->three_quarters, summary->min, summary->max);
}

static void json_result(FILE *file, const char *name, const struct result *result, const char *end) {
  fprintf(file, "      \"%s\": {\"rounds\": %u, ", name, result->ours.n);
  json_summary(file, "floor", &result->floor);
  fprintf(file, ", ");
  json_summary(file, "numapool", &result->ours);
  fprintf(file, ", ");
  json_summary(file, "ratio", &result->ratio);
  fprintf(file, ", ");
  json_summary(file, "probe", &result->probe);
  fprintf(file, "}%s\n", end);
}

static void json_rounds(FILE *file, const struct hop *hop) {
  const char *separator = "";
  fprintf(file, "  \"rounds\": [");
  for (unsigned work = 0; work < WORK_COUNT; work++) {
    for (unsigned i = 0; i < hop->rounds; i++) {
      const struct sample *sample = &hop->samples[work][i];
      if (!sample->valid) continue;
      fprintf(file,
              "%s\n    {\"work\": \"%s\", \"round\": %u, \"placement\": \"%s\", \"probe_before\": %.1f, "
              "\"probe_after\": %.1f, \"floor\": %.3f, \"numapool\": %.3f, \"preemptions\": %llu",
              separator, work_names[work], i, is_near(sample) ? "near" : "far", sample->probe_before,
              sample->probe_after, sample->floor, sample->ours, (unsigned long long)sample->preemptions);
      if (work == WORK_ROUND_TRIP)
        fprintf(file, ", \"bare_rings\": %.1f, \"floor_p99\": %.1f, \"numapool_p99\": %.1f", sample->bare,
                sample->floor_p99, sample->ours_p99);
      fprintf(file, "}");
      separator = ",";
    }
  }
  fprintf(file, "\n  ]\n");
}

static void write_json(const struct hop *hop, unsigned missed) {
  FILE *file = fopen(hop->json, "we");
  if (file == NULL) bench_die("cannot write %s", hop->json);
  fprintf(file, "{\n  \"benchmark\": \"hop\", \"payload_bytes\": %d, \"cores\": [%d, %d],\n  ", BENCH_PAYLOAD_BYTES,
          hop->cores[0], hop->cores[1]);
  bench_machine_json(file);
  fprintf(file,
          ",\n  \"targets_missed\": %u, \"dropped_probe\": %u, \"dropped_preempted\": %u, \"kept_preempted\": %u,\n",
          missed, hop->dropped_probe, hop->dropped_preempted, hop->disturbed);
  if (hop->stepped) {
    fprintf(file,
            "  \"per_event\": {\"instructions\": %.2f, \"instructions_floor\": %.2f, \"locked\": %.3f, "
            "\"system_calls\": %.3f, \"cycles_stepped\": %d},\n",
            (double)hop->ours.instructions / STEP_CYCLES, (double)hop->floor.instructions / STEP_CYCLES,
            (double)(hop->ours.locked + hop->ours.exchanges + hop->ours.fences) / STEP_CYCLES,
            (double)hop->ours.system_calls / STEP_CYCLES, STEP_CYCLES);
  }
  if (hop->perf_instructions >= 0) fprintf(file, "  \"perf_instructions\": %.2f,\n", hop->perf_instructions);
  fprintf(file, "  \"placements\": {\n");
  for (int near = 1; near >= 0; near--) {
    fprintf(file, "    \"%s\": {\n", near ? "near" : "far");
    for (unsigned work = 0; work < WORK_COUNT; work++) {
      struct result result = summarize(hop, work, FIELD_TYPICAL, near);
      json_result(file, work_names[work], &result, ",");
    }
    struct result p99 = summarize(hop, WORK_ROUND_TRIP, FIELD_P99, near);
    struct result bare = summarize(hop, WORK_ROUND_TRIP, FIELD_BARE, near);
    json_result(file, "round_trip_bare_rings", &bare, ",");
    json_result(file, "round_trip_p99", &p99, "");
    fprintf(file, "    }%s\n", near ? "," : "");
  }
  fprintf(file, "  },\n");
  json_rounds(file, hop);
  fprintf(file, "}\n");
  if (fclose(file) != 0) bench_die("cannot write %s", hop->json);
}

/* ---- main -------------------------------------------------------------------------------------------------- */

static void read_options(struct hop *hop, int argc, char **argv) {
  hop->rounds = 15;
  hop->cores[1] = 1;
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (strcmp(argv[i], "--strict") == 0) {
      hop->strict = 1;
      continue;
    }
    if (strcmp(argv[i], "--rounds") == 0) {
      hop->rounds = (unsigned)strtoul(value, NULL, 10);
    } else if (strcmp(argv[i], "--json") == 0) {
      hop->json = value;
    } else if (strcmp(argv[i], "--trace") == 0) {
      hop->trace = value;
    } else if (strcmp(argv[i], "--cores") != 0 || sscanf(value, "%d,%d", &hop->cores[0], &hop->cores[1]) != 2) {
      bench_die("usage: bench_hop [--rounds N] [--json FILE] [--cores A,B] [--trace FILE] [--strict]");
    }
    i++;
  }
  if (hop->rounds < 1 || hop->rounds > ROUNDS_MAX) bench_die("--rounds: 1 to %d", ROUNDS_MAX);
}

int main(int argc, char **argv) {
  static struct hop hop;
  int status;
  read_options(&hop, argc, argv);
  hop.started_ns = bench_now_ns();
  setvbuf(stdout, NULL, _IOLBF, 0);
  bench_machine_print(stdout);
  hop.pair = bench_shared_memory(sizeof *hop.pair);
  bare_init(&hop.bare_cycle, BARE_CREDITS);
  bare_init(&hop.bare_stream, BARE_CREDITS);
  bare_init(&hop.bare_there, BARE_CREDITS);
  bare_init(&hop.bare_back, BARE_CREDITS);
  bench_pin(hop.cores[0]);
  bench_stamp_ns();
  printf("hop: %d rounds, %d B written and read, cores %d and %d\n", hop.rounds, BENCH_PAYLOAD_BYTES, hop.cores[0],
         hop.cores[1]);
  count_by_steps(&hop);

  npi_store_relaxed_u64(&hop.pair->job, UINT64_C(1) << 32);
  fflush(NULL);
  pid_t partner = fork();
  if (partner < 0) bench_die("fork failed");
  if (partner == 0) run_partner(&hop);
  while (npi_load_acquire_u64(&hop.pair->done) != 1) {
    if (waitpid(partner, &status, WNOHANG) == partner) bench_die("the partner process could not start");
    usleep(1000);
  }
  hop_open_caller(&hop.side);

  struct sample warm;
  for (unsigned i = 0; i < 2; i++) {
    for (enum work work = 0; work < WORK_COUNT; work++) measure(&hop, work, i, &warm);
  }
  for (unsigned round = 0; round < hop.rounds; round++) {
    if (bench_now_ns() - hop.started_ns > SECONDS_MOST * UINT64_C(1000000000)) {
      printf("  this machine is too busy: %u rounds in %d s, no more\n", round, SECONDS_MOST);
      hop.rounds = round;
      break;
    }
    for (enum work work = 0; work < WORK_COUNT; work++) measure_round(&hop, work, round);
    const struct sample *trip = &hop.samples[WORK_ROUND_TRIP][round];
    printf("  round %2u: probe %4.0f   cycle %5.1f / %5.1f   stream %5.1f / %5.1f   round trip %4.0f / %4.0f ns\n",
           round + 1, trip->probe_before, hop.samples[WORK_CYCLE][round].ours, hop.samples[WORK_CYCLE][round].floor,
           hop.samples[WORK_STREAM][round].ours, hop.samples[WORK_STREAM][round].floor, trip->ours, trip->floor);
  }
  count_by_perf(&hop);
  bench_job_start(hop.pair, JOB_QUIT, 0);
  bench_job_finish(hop.pair);
  waitpid(partner, &status, 0);
  hop_close(&hop.side);

  unsigned missed = print_results(&hop);
  if (hop.json != NULL) write_json(&hop, missed);
  return hop.strict && missed > 0 ? 1 : 0;
}
