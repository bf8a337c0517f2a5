#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds release, starts a private broker, runs one benchmark, cleans up. bench/README.md says how to read it.
set -euo pipefail

usage() {
  cat <<'END'
bench/run.sh hop    [--rounds N] [--json FILE] [--strict] [--cores A,B] [--build DIR]
bench/run.sh ingest [--rounds N] [--json FILE] [--strict] [--build DIR] [--only udp|tcp]

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
    --rounds | --cores | --trace | --seconds | --only) options+=("$1" "$2"); shift 2 ;;
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
brokers=()
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  for broker in "${brokers[@]}"; do kill "$broker" 2>/dev/null || true; done
  wait
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
export XDG_RUNTIME_DIR=$work
unset NUMAPOOL_SOCKET NUMAPOOL_INSTANCE

fail() {
  echo "bench: $1" >&2
  tail -20 "$work"/*.log >&2 || true
  exit 2
}

# start_broker INSTANCE CONFIG: until it serves; its process is the last of brokers.
start_broker() {
  "$build/bin/numapoold" --config "$2" --instance "$1" >"$work/$1.log" 2>&1 &
  brokers+=($!)
  for _ in $(seq 200); do
    [[ -S $work/numapool/$1/control.sock ]] && return 0
    kill -0 "${brokers[-1]}" 2>/dev/null || break
    sleep 0.05
  done
  fail "the broker does not start"
}

# worker_of BROKER: the process that receives for it.
worker_of() {
  local found
  for _ in $(seq 100); do
    found=$(ps -o pid=,comm= --ppid "$1" | awk '$2 ~ /^numapool-ingest/ { print $1; exit }')
    [[ -n $found ]] && { echo "$found"; return 0; }
    sleep 0.05
  done
  return 1
}

status=0
if [[ $what == hop ]]; then
  export NUMAPOOL_INSTANCE=bench-hop-$$
  cat >"$work/hop.yaml" <<'END'
channels:
  - { name: hop.cycle,  kind: broadcast, credits: 1024, on_full: block }
  - { name: hop.stream, kind: broadcast, credits: 1024, on_full: block }
  - { name: hop.ping,   kind: broadcast, credits: 1024, on_full: block }
  - { name: hop.pong,   kind: broadcast, credits: 1024, on_full: block }
END
  start_broker "$NUMAPOOL_INSTANCE" "$work/hop.yaml"
  "$build/bench/bench_hop" "${options[@]}" || status=$?
else
  port=$((20000 + $$ % 20000))
  for backend in io_uring epoll; do
    cat >"$work/$backend.yaml" <<END
memory: { per_node: 256MiB, per_client: 64MiB, ready: 64MiB }
ingest: { backend: $backend }
channels:
  - { name: bench.in, kind: broadcast, credits: 16384, on_full: block }
listeners:
  - { name: datagrams, proto: udp, address: "127.0.0.1:$port", framing: datagram, channel: bench.in, rcvbuf: 16MiB }
  - { name: frames, proto: tcp, address: "127.0.0.1:$port", framing: { length_prefix: 4, endian: big, includes_prefix: false }, channel: bench.in }
END
    start_broker "bench-$backend-$$" "$work/$backend.yaml"
    worker=$(worker_of "${brokers[-1]}") || fail "the broker starts no worker"
    options+=(--backend "$backend:bench-$backend-$$:$worker:$port:$port")
    port=$((port + 1))
  done
  "$build/bench/bench_ingest" "${options[@]}" || status=$?
fi
exit "$status"
