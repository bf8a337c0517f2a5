#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Each public header compiles alone, and twice, as strict C11 and as C++17.
set -euo pipefail

compiler_cxx=${CXX:-}
if [[ -z $compiler_cxx || $compiler_cxx == *NOTFOUND ]]; then
  echo "headers: skipped, no C++ compiler (Debian: g++)"
  exit 77
fi
warnings=(-Wall -Wextra -Werror -pedantic -fsyntax-only)
includes=(-I "$SOURCE_DIR/include" -I "$BUILD_DIR/include")
count=0
for header in "$SOURCE_DIR"/include/numapool/*.h "$BUILD_DIR"/include/numapool/*.h; do
  name=numapool/$(basename "$header")
  program=$(printf '#include <%s>\n#include <%s>\nint main(void) { return 0; }' "$name" "$name")
  "${CC:-cc}" -std=c11 "${warnings[@]}" -Wstrict-prototypes "${includes[@]}" -x c - <<<"$program"
  "$compiler_cxx" -std=c++17 "${warnings[@]}" "${includes[@]}" -x c++ - <<<"$program"
  count=$((count + 1))
done
echo "headers: $count compile alone as C11 and as C++17"
