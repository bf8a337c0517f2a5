/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/measure.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

uint64_t bench_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

double bench_stamp_ns(void) {
  static double ns;
  if (ns > 0) return ns;
  uint64_t from_ns = bench_now_ns();
  uint64_t from = bench_stamp();
  uint64_t to_ns = from_ns;
  while (to_ns - from_ns < 20000000) to_ns = bench_now_ns();
  ns = (double)(to_ns - from_ns) / (double)(bench_stamp() - from);
  return ns;
}

void bench_die(const char *format, ...) {
  va_list arguments;
  fflush(stdout);
  fputs("bench: ", stderr);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(2);
}

void bench_pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((size_t)core, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0)
    bench_die("cannot run on core %d: %s; choose others with --cores A,B", core, strerror(errno));
}

uint64_t bench_preemptions(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (uint64_t)usage.ru_nivcsw;
}

void *bench_shared_memory(size_t bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) bench_die("no memory for %zu shared bytes: %s", bytes, strerror(errno));
  return memory;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a;
  double y = *(const double *)b;
  return (x > y) - (x < y);
}

static int by_stamp(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a;
  uint64_t y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

/* Linear between the two neighbours. */
static double at(const double *values, unsigned n, double share) {
  double place = share * (n - 1);
  unsigned low = (unsigned)place;
  unsigned high = low + 1 < n ? low + 1 : low;
  return values[low] + (values[high] - values[low]) * (place - low);
}

struct bench_summary bench_summarize(double *values, unsigned n) {
  if (n == 0) return (struct bench_summary){0};
  qsort(values, n, sizeof *values, by_value);
  return (struct bench_summary){
      n, values[0], at(values, n, 0.25), at(values, n, 0.5), at(values, n, 0.75), values[n - 1]};
}

double bench_percentile(uint64_t *values, unsigned n, double percent) {
  qsort(values, n, sizeof *values, by_stamp);
  return (double)values[(unsigned)((n - 1) * percent / 100)] * bench_stamp_ns();
}

int bench_instructions_open(void) {
  struct perf_event_attr attributes = {.type = PERF_TYPE_HARDWARE,
                                       .size = sizeof attributes,
                                       .config = PERF_COUNT_HW_INSTRUCTIONS,
                                       .exclude_kernel = 1,
                                       .exclude_hv = 1};
  return (int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

uint64_t bench_instructions_read(int counter) {
  uint64_t value = 0;
  if (read(counter, &value, sizeof value) != (ssize_t)sizeof value) return 0;
  return value;
}

/* The value of the first line of /proc/cpuinfo that begins with the key. */
static void cpu_name(char *text, size_t bytes) {
  char line[256];
  snprintf(text, bytes, "unknown");
  FILE *file = fopen("/proc/cpuinfo", "re");
  if (file == NULL) return;
  while (fgets(line, sizeof line, file) != NULL) {
    const char *value = strchr(line, ':');
    if (strncmp(line, "model name", 10) != 0 || value == NULL) continue;
    snprintf(text, bytes, "%.*s", (int)strcspn(value + 2, "\"\\\n"), value + 2);
    break;
  }
  fclose(file);
}

void bench_machine_json(FILE *file) {
  struct utsname system;
  char cpu[128];
  uname(&system);
  cpu_name(cpu, sizeof cpu);
  fprintf(file, "\"machine\": {\"cpu\": \"%s\", \"cores\": %ld, \"kernel\": \"%s %s\", \"architecture\": \"%s\", ", cpu,
          sysconf(_SC_NPROCESSORS_ONLN), system.sysname, system.release, system.machine);
  fprintf(file, "\"compiler\": \"%s\"}", __VERSION__);
}

void bench_machine_print(FILE *file) {
  struct utsname system;
  char cpu[128];
  uname(&system);
  cpu_name(cpu, sizeof cpu);
  fprintf(file, "machine: %s, %ld cores online, %s %s, compiled by %s\n", cpu, sysconf(_SC_NPROCESSORS_ONLN),
          system.sysname, system.release, __VERSION__);
}
