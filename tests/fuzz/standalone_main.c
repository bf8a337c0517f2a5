/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target without libFuzzer: with arguments each file once, as a fuzzer left it; without, pseudo-random
 * inputs. NUMAPOOL_SEED repeats a run, NUMAPOOL_FUZZ_RUNS sets how many inputs.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_RUNS    200000
#define MAX_INPUT_BYTES 512

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* A target may say how many inputs a run without NUMAPOOL_FUZZ_RUNS has. */
extern const uint64_t fuzz_runs __attribute__((weak));

/* splitmix64: every seed is good, and the same inputs come out on every machine. */
static uint64_t next_random(uint64_t *state) {
  uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* Uniform bytes seldom get past the first field of a format: two inputs of three favour small and telling bytes. */
static size_t make_input(uint64_t *state, uint8_t *input) {
  static const char telling[] = "0123456789 \r\n<>:=.,-{}\"";
  uint64_t shape = next_random(state);
  size_t n = (shape >> 8) % (shape & 4 ? MAX_INPUT_BYTES + 1 : 33);

  for (size_t i = 0; i < n; i++) {
    uint64_t random = next_random(state);
    uint8_t byte = (uint8_t)random;

    switch (shape % 3) {
      case 1:
        if (random >> 8 & 3) byte = (uint8_t)(random >> 16 & 7);
        break;
      case 2:
        if (random >> 8 & 7) byte = (uint8_t)telling[(random >> 16) % (sizeof(telling) - 1)];
        break;
      default: break;
    }
    input[i] = byte;
  }
  return n;
}

/* The input in a heap block of just its size, so that the address sanitizer sees reads beyond it. */
static int run_one(const uint8_t *input, size_t n) {
  uint8_t *block = malloc(n ? n : 1);

  if (!block) return -1;
  if (n > 0) memcpy(block, input, n);
  LLVMFuzzerTestOneInput(block, n);
  free(block);
  return 0;
}

static int run_file(const char *path) {
  FILE *file = fopen(path, "rb");
  uint8_t *bytes = NULL;
  size_t n = 0, capacity = 0;
  int result = -1;

  if (!file) goto done;
  for (;;) {
    size_t got;

    if (n == capacity) {
      uint8_t *grown = realloc(bytes, capacity = 2 * capacity + 4096);
      if (!grown) goto done;
      bytes = grown;
    }
    got = fread(bytes + n, 1, capacity - n, file);
    n += got;
    if (got == 0) break;
  }
  if (ferror(file)) goto done;
  result = run_one(bytes, n);
done:
  if (result) fprintf(stderr, "%s: %s\n", path, strerror(errno));
  if (file) fclose(file);
  free(bytes);
  return result;
}

static int number_from_environment(const char *name, uint64_t *number) {
  const char *text = getenv(name);
  char *end;

  if (!text) return 0;
  errno = 0;
  *number = strtoull(text, &end, 0);
  if (errno == 0 && end != text && *end == '\0') return 0;
  fprintf(stderr, "%s=%s is not a number\n", name, text);
  return -1;
}

int main(int argc, char **argv) {
  struct timespec now;
  uint64_t seed, runs = &fuzz_runs != NULL ? fuzz_runs : DEFAULT_RUNS, state;
  uint8_t input[MAX_INPUT_BYTES];

  if (argc > 1) {
    int failed = 0;
    for (int i = 1; i < argc; i++) failed |= run_file(argv[i]) != 0;
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
  }
  clock_gettime(CLOCK_REALTIME, &now);
  seed = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
  if (number_from_environment("NUMAPOOL_SEED", &seed) || number_from_environment("NUMAPOOL_FUZZ_RUNS", &runs))
    return EXIT_FAILURE;
  printf("NUMAPOOL_SEED=%llu NUMAPOOL_FUZZ_RUNS=%llu\n", (unsigned long long)seed, (unsigned long long)runs);
  fflush(stdout); /* an input that aborts must not take the seed with it */
  state = seed;
  for (uint64_t i = 0; i < runs; i++) {
    if (run_one(input, make_input(&state, input))) {
      perror("input");
      return EXIT_FAILURE;
    }
  }
  printf("%llu inputs passed\n", (unsigned long long)runs);
  return EXIT_SUCCESS;
}
