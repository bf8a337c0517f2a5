#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a user does after `cmake --install`: build every example with pkg-config, and a CMake project with
# find_package, against the shared and the static library. The installed tree is moved first: nothing in it
# may remember where it was built.
set -euo pipefail

if [[ -n ${SANITIZE:-} ]]; then
  echo "install: skipped, a library built with a sanitizer does not link into a plain program"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${CMAKE:-cmake}" --install "$BUILD_DIR" --prefix "$work/staged" >"$work/install.log"
mv "$work/staged" "$work/prefix"

prefix=$work/prefix
pc=$(find "$prefix" -name numapool-client.pc)
export PKG_CONFIG_PATH=${pc%/*}
library_folder=$(pkg-config --variable=libdir numapool-client)
for file in "$prefix/include/numapool/numapool.h" "$prefix/include/numapool/version.h" "$prefix/bin/numapoold" \
  "$prefix/bin/numapoolctl" "$prefix/lib/systemd/system/numapoold.service" "$library_folder/libnumapool-client.so.0"; do
  if [[ ! -e $file ]]; then
    echo "install: ${file#"$prefix/"} is missing"
    exit 1
  fi
done
if grep -rlI -e "$SOURCE_DIR" -e "$BUILD_DIR" -e "$work/staged" "$prefix/include" "$library_folder" >"$work/leaks"; then
  echo "install: these name the folder they were built in:"
  cat "$work/leaks"
  exit 1
fi

read -ra flags <<<"$(pkg-config --cflags --libs numapool-client)"
count=0
for example in "$SOURCE_DIR"/examples/*.c; do
  program=$work/$(basename "$example" .c)
  "${CC:-cc}" -std=c11 -Wall -Wextra -Werror -pedantic "$example" "${flags[@]}" -o "$program"
  needed=$(readelf -d "$program" | grep -c 'NEEDED.*libnumapool-client.so.0')
  [[ $needed == 1 ]] || {
    echo "install: $(basename "$program") does not ask for libnumapool-client.so.0"
    exit 1
  }
  count=$((count + 1))
done
if ((count == 0)); then
  echo "install: there is no example to build"
  exit 1
fi

mkdir "$work/user"
cat >"$work/user/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.16)
project(user C)
find_package(numapool 0.1 REQUIRED)
add_executable(shared main.c)
target_link_libraries(shared PRIVATE numapool::client)
add_executable(static main.c)
target_link_libraries(static PRIVATE numapool::client_static)
CMAKE
cat >"$work/user/main.c" <<'PROGRAM'
#include <numapool/numapool.h>
#include <string.h>

/* Fails where header and library differ, and where the failing call brings no words. */
int main(void) {
  struct np_client *client;
  struct np_options options;
  np_options_init(&options);
  options.socket_path = "/nonexistent/numapool/control.sock";
  return np_version() == NP_VERSION && np_connect(&client, &options) < 0 && strlen(np_error_detail()) > 0 ? 0 : 1;
}
PROGRAM
"${CMAKE:-cmake}" -S "$work/user" -B "$work/user/build" -DCMAKE_C_COMPILER="${CC:-cc}" -DCMAKE_PREFIX_PATH="$prefix" >"$work/cmake.log"
"${CMAKE:-cmake}" --build "$work/user/build" >>"$work/cmake.log" || {
  cat "$work/cmake.log"
  exit 1
}
"$work/user/build/shared"
"$work/user/build/static"
LD_LIBRARY_PATH=$library_folder "$prefix/bin/numapoold" --version
echo "install: $count examples build with pkg-config; find_package gives a shared and a static program that run"
