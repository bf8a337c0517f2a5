#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The shared library exports np_ functions only, all that the public headers declare, and at most 60.
set -euo pipefail

library=$BUILD_DIR/lib/libnumapool-client.so
limit=60
exported=$(nm -D --defined-only --format=posix "$library" | awk '$2 != "A" {sub(/@.*/, "", $1); print $1}' | sort -u)
declared=$(grep -ohE '^NP_API .*' "$SOURCE_DIR"/include/numapool/*.h | grep -oE '\bnp_[a-z0-9_]+ *\(' | tr -d ' (' | sort -u)

foreign=$(grep -v '^np_' <<<"$exported" || true)
if [[ -n $foreign ]]; then
  printf 'exports: not np_, see lib/numapool.map:\n%s\n' "$foreign"
  exit 1
fi
difference=$(diff <(echo "$declared") <(echo "$exported") || true)
if [[ -n $difference ]]; then
  printf 'exports: "<" is declared in the public headers but not exported, ">" the other way round:\n%s\n' "$difference"
  exit 1
fi
count=$(grep -c . <<<"$exported")
if ((count > limit)); then
  echo "exports: $count symbols, at most $limit: take one away before adding one"
  exit 1
fi
echo "exports: $count symbols, all np_, at most $limit"
