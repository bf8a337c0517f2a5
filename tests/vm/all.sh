#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# Inside the machine of tools/vm.sh: one test program after the other. Exit status 0: all passed.
#
#   all.sh PROGRAM...      a word like NAME=VALUE is set in the environment of the programs behind it
failed=
for word in "$@"; do
  case $word in
    *=*) export "$word" ;;
    *)
      echo "==== $word"
      begin=$(cut -d. -f1 /proc/uptime)
      timeout 800 "$word" --verbose --jobs 1 || failed="$failed $word"
      echo "==== $word: $(($(cut -d. -f1 /proc/uptime) - begin)) s"
      ;;
  esac
done
[ -z "$failed" ] || echo "failed:$failed"
[ -z "$failed" ]
