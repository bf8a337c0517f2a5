#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds release, starts a private broker, runs one benchmark, cleans up. bench/README.md says how to read it.
set -euo pipefail

usage() {
  cat <<'END'
bench/run.sh hop    [--rounds N] [--json FILE] [--strict] [--cores A,B] [--build DIR]
bench/run.sh ingest [--rounds N] [--json FILE] [--strict] [--build DIR]

hop      one event between two pinned processes: cycle, stream, round trip, instructions; each beside its floor
ingest   UDP datagrams and TCP frames into a subscriber; beside bare receive loops, with io_uring and epoll

--strict exits with 1 where a target is missed; else the exit status only says whether the benchmark ran.
--build  the build folder, by default build/bench; it is made and built where needed.
END
}

source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$source_dir/build/bench
what=${1:-}
case $what in
  hop | ingest) shift ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac
options=()
while (($# > 0)); do
  case $1 in
    --build) build=$2; shift 2 ;;
    --json) options+=(--json "$(realpath -m "$2")"); shift 2 ;;
    --strict) options+=(--strict); shift ;;
    --rounds | --cores | --trace | --seconds) options+=("$1" "$2"); shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "bench: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done

if [[ ! -f $build/CMakeCache.txt ]]; then
  echo "bench: configuring a release build in $build"
  cmake -S "$source_dir" -B "$build" -DCMAKE_BUILD_TYPE=Release -DNUMAPOOL_TESTS=OFF >/dev/null
fi
echo "bench: building"
cmake --build "$build" --parallel --target numapoold "bench_$what" >"$build/bench-build.log" 2>&1 ||
  { tail -30 "$build/bench-build.log" >&2; exit 2; }

work=$(mktemp -d)
instance=bench-$$
broker=
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  if [[ -n $broker ]]; then
    kill "$broker" 2>/dev/null || true
    wait "$broker" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
export XDG_RUNTIME_DIR=$work
export NUMAPOOL_INSTANCE=$instance
unset NUMAPOOL_SOCKET

# start_broker CONFIG: until it serves.
start_broker() {
  "$build/bin/numapoold" --config "$1" --instance "$instance" >>"$work/broker.log" 2>&1 &
  broker=$!
  for _ in $(seq 200); do
    [[ -S $work/numapool/$instance/control.sock ]] && return 0
    kill -0 "$broker" 2>/dev/null || break
    sleep 0.05
  done
  echo "bench: the broker does not start:" >&2
  cat "$work/broker.log" >&2
  exit 2
}

if [[ $what == hop ]]; then
  cat >"$work/hop.yaml" <<'END'
channels:
  - { name: hop.cycle,  kind: broadcast, credits: 1024, on_full: block }
  - { name: hop.stream, kind: broadcast, credits: 1024, on_full: block }
  - { name: hop.ping,   kind: broadcast, credits: 1024, on_full: block }
  - { name: hop.pong,   kind: broadcast, credits: 1024, on_full: block }
END
  start_broker "$work/hop.yaml"
  status=0
  "$build/bench/bench_hop" "${options[@]}" || status=$?
else
  status=0
  "$build/bench/bench_ingest" --broker "$build/bin/numapoold" --work "$work" "${options[@]}" || status=$?
fi
exit "$status"
