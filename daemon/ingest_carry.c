/* SPDX-License-Identifier: Apache-2.0 */
/* Memory for bytes that have to wait: the front of a frame whose rest has not come, and what came during a pause. */
#include <stdlib.h>
#include <string.h>

#include "base/align.h"
#include "base/status.h"
#include "daemon/ingest_internal.h"

static uint32_t class_of(size_t capacity) {
  return (uint32_t)__builtin_ctzll(capacity) - NPI_CARRY_SHIFT_MIN;
}

static void *get_block(struct npi_carry_pool *pool, size_t capacity) {
  uint32_t class = class_of(capacity);
  void *block;

  if (class < NPI_CARRY_CLASSES && pool->n_kept[class] > 0)
    block = pool->kept[class][--pool->n_kept[class]];
  else
    block = malloc(capacity);
  if (block) pool->used_bytes += capacity;
  return block;
}

static void put_block(struct npi_carry_pool *pool, void *block, size_t capacity) {
  uint32_t class = class_of(capacity);

  pool->used_bytes -= capacity;
  /* What is kept is small: 32 blocks of each size up to 64 KiB are 4 MiB. */
  if (capacity <= 65536 && pool->n_kept[class] < NPI_CARRY_KEPT)
    pool->kept[class][pool->n_kept[class]++] = block;
  else
    free(block);
}

void npi_carry_pool_deinit(struct npi_carry_pool *pool) {
  for (uint32_t class = 0; class < NPI_CARRY_CLASSES; class ++)
    while (pool->n_kept[class] > 0) free(pool->kept[class][--pool->n_kept[class]]);
}

int npi_carry_reserve(struct npi_carry_pool *pool, struct npi_carry *carry, size_t n) {
  size_t size = npi_carry_size(carry);
  size_t capacity = (size_t)npi_power_of_two_above(size + n);
  uint8_t *bytes;

  if (carry->capacity - carry->end >= n) return 0;
  /* Moving to the front pays only where it frees at least half, else each small append would move all. */
  if (size + n <= carry->capacity / 2) {
    memmove(carry->bytes, carry->bytes + carry->begin, size);
  } else {
    if (capacity < (size_t)1 << NPI_CARRY_SHIFT_MIN) capacity = (size_t)1 << NPI_CARRY_SHIFT_MIN;
    if (capacity == carry->capacity) capacity *= 2;
    bytes = get_block(pool, capacity);
    if (!bytes) return npi_fail(NP_ERR_NO_MEMORY, "no memory for %zu bytes that wait", capacity);
    if (size > 0) memcpy(bytes, carry->bytes + carry->begin, size);
    if (carry->bytes) put_block(pool, carry->bytes, carry->capacity);
    carry->bytes = bytes;
    carry->capacity = capacity;
  }
  carry->begin = 0;
  carry->end = size;
  return 0;
}

int npi_carry_append(struct npi_carry_pool *pool, struct npi_carry *carry, const void *bytes, size_t n) {
  int result = npi_carry_reserve(pool, carry, n);

  if (result < 0) return result;
  if (n > 0) memcpy(carry->bytes + carry->end, bytes, n);
  carry->end += n;
  return 0;
}

void npi_carry_take(struct npi_carry_pool *pool, struct npi_carry *carry, size_t n) {
  carry->begin += n;
  if (carry->begin == carry->end) npi_carry_drop(pool, carry);
}

void npi_carry_drop(struct npi_carry_pool *pool, struct npi_carry *carry) {
  if (carry->bytes) put_block(pool, carry->bytes, carry->capacity);
  *carry = (struct npi_carry){0};
}
