#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# No system call in steady state: a spinning publisher and a spinning subscriber exchange events through a real
# broker; strace is attached to both for two seconds after they are warm, and must see nothing. Attached once
# more while they end it must see something, or the first look meant nothing.
set -euo pipefail

broker=$BUILD_DIR/bin/numapoold
pair=$BUILD_DIR/tests/spin_pair
for program in "$broker" "$pair"; do
  [[ -x $program ]] || { echo "no_syscalls: skipped, $program is not built"; exit 77; }
done
command -v strace >/dev/null || { echo "no_syscalls: skipped, no strace (Debian: strace)"; exit 77; }
if ! strace -o /dev/null true 2>/dev/null; then
  echo "no_syscalls: skipped, tracing is forbidden here"
  exit 77
fi
[[ ${SANITIZE:-} == thread ]] && { echo "no_syscalls: skipped, ThreadSanitizer makes calls of its own"; exit 77; }

work=$(mktemp -d)
instance=no-syscalls-$$
children=()
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  wait
  rm -rf "$work"
}
trap clean_up EXIT
export XDG_RUNTIME_DIR=$work NUMAPOOL_INSTANCE=$instance
unset NUMAPOOL_SOCKET

fail() {
  echo "no_syscalls: $1"
  for log in "$work"/*.log; do sed "s|^|  $(basename "$log"): |" "$log" | tail -20; done
  exit 1
}
# wait_for SECONDS CONDITION...
wait_for() {
  local turns=$(($1 * 20))
  shift
  for ((i = 0; i < turns; i++)); do
    "$@" && return 0
    sleep 0.05
  done
  return 1
}

cat >"$work/broker.yaml" <<'END'
channels:
  - { name: spin, kind: broadcast, credits: 256, on_full: block }
END
"$broker" --config "$work/broker.yaml" --instance "$instance" >"$work/broker.log" 2>&1 &
children+=($!)
wait_for 20 test -S "$work/numapool/$instance/control.sock" || fail "the broker does not start"

# On one core they would only take turns, a time slice each: give each its own where that is possible.
mapfile -t cores < <(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0)), sep="\n")' 2>/dev/null || true)
pin() {
  if ((${#cores[@]} > 1)) && command -v taskset >/dev/null; then exec taskset -c "${cores[$1]}" "${@:2}"; fi
  exec "${@:2}"
}
pin 0 "$pair" subscribe spin >"$work/subscriber.log" 2>&1 &
subscriber=$!
pin 1 "$pair" publish spin >"$work/publisher.log" 2>&1 &
publisher=$!
children+=("$subscriber" "$publisher")
wait_for 60 grep -q steady "$work/subscriber.log" || fail "the subscriber does not get going"
wait_for 60 grep -q steady "$work/publisher.log" || fail "the publisher does not get going"

# calls_in TRACE: strace -c lists a call a line, after a line of dashes; nothing at all where there was none.
calls_in() { grep -qE '^ *[0-9]+\.[0-9]+ ' "$1"; }

status=0
timeout --signal=INT --kill-after=5 2 strace -f -c -o "$work/steady.trace" -p "$publisher" -p "$subscriber" \
  >"$work/strace.log" 2>&1 || status=$?
[[ $status == 124 || $status == 130 || $status == 0 ]] || fail "strace could not attach (status $status)"
for pid in "$publisher" "$subscriber"; do
  grep -q "Process $pid attached" "$work/strace.log" || fail "strace did not attach to process $pid"
  kill -0 "$pid" 2>/dev/null || fail "process $pid ended"
done
if calls_in "$work/steady.trace"; then
  cat "$work/steady.trace"
  fail "system calls in steady state"
fi

# The same command sees calls where there are some: at the end of both.
strace -f -c -o "$work/end.trace" -p "$publisher" -p "$subscriber" >"$work/end.log" 2>&1 &
strace=$!
children+=("$strace")
wait_for 20 grep -q "Process $subscriber attached" "$work/end.log" || fail "strace did not attach again"
kill -USR1 "$publisher" "$subscriber"
wait_for 20 grep -q events "$work/publisher.log" || fail "the publisher does not end"
wait_for 20 grep -q events "$work/subscriber.log" || fail "the subscriber does not end"
wait "$strace" || true
calls_in "$work/end.trace" || fail "strace sees no calls where there are some: the check above means nothing"
echo "no_syscalls: 0 system calls in 2 s of spinning: publisher $(tail -1 "$work/publisher.log")," \
  "subscriber $(tail -1 "$work/subscriber.log") in all"
