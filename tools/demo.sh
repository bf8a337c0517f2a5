#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# numapool at work, in about 15 seconds: builds it, starts a broker and two subscribers, sends syslog and lines to it
# with stock programs (logger, nc), and shows what arrives. Exit status 0: each subscriber got each event.
#
#   tools/demo.sh          the whole demo, and nothing of it stays but the build
#   tools/demo.sh --keep   leaves broker and subscribers running, and says what to type next
#   tools/demo.sh --help   this text
#
# Builds in build/demo (or $BUILD_DIR, or below the user's cache folder where the tree cannot be written). Installs
# Debian packages that are missing, with sudo when not root.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

keep=0
case ${1:-} in
  '') ;;
  --keep) keep=1 ;;
  -h | --help)
    sed -n '3,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  *)
    echo "demo: unknown option '$1'; there are: --keep --help" >&2
    exit 2
    ;;
esac

work=$(mktemp -d "${TMPDIR:-/tmp}/numapool-demo.XXXXXX")
pids=()     # broker and subscribers
watcher=    # shows the subscribers' output
kept=0

still_there() { kill -0 "$1" 2>/dev/null; }

finish() {
  local status=$? pid
  trap - EXIT INT TERM HUP
  [[ -z $watcher ]] || kill "$watcher" 2>/dev/null || true
  if ((kept)); then exit "$status"; fi
  # Subscribers first, then the broker, which ends its workers and removes what it made.
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for _ in {1..100}; do
    local running=0
    for pid in "${pids[@]}"; do if still_there "$pid"; then running=1; fi; done
    ((running)) || break
    sleep 0.1
  done
  for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  if ((${#pids[@]})) && compgen -G "/dev/shm/numapool.$instance.$EUID.*" >/dev/null; then
    echo "demo: left in /dev/shm:" /dev/shm/numapool."$instance.$EUID".* >&2
    status=1
  fi
  if ((status != 0)) && [[ -s $work/broker.log ]]; then
    echo "demo: the last lines of the broker:" >&2
    tail -n 20 "$work/broker.log" >&2
  fi
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() { printf '\n== %s\n' "$*"; }

# ---- build -------------------------------------------------------------------------------------------------------

say "packages"
"$root/tools/install-deps.sh" runtime build

build=${BUILD_DIR:-$root/build/demo}
if ! mkdir -p "$build" 2>/dev/null || [[ ! -w $build || (-e $build/build.ninja && ! -w $build/build.ninja) ]]; then
  build=${XDG_CACHE_HOME:-$HOME/.cache}/numapool-demo
  mkdir -p "$build"
fi
say "build in $build"
if ! {
  cmake -G Ninja -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DNUMAPOOL_TESTS=OFF -DNUMAPOOL_BENCH=OFF &&
    cmake --build "$build"
} >"$work/build.log" 2>&1; then
  tail -n 40 "$work/build.log" >&2
  echo "demo: the build failed" >&2
  exit 1
fi
tail -n 1 "$work/build.log"
export PATH=$build/bin:$PATH

# ---- start -------------------------------------------------------------------------------------------------------

# taken PROTOCOL PORT: does a socket of this machine have the port?
taken() {
  local hex
  printf -v hex '%04X' "$2"
  awk -v port="$hex" '{n = split($2, part, ":")} part[n] == port {found = 1} END {exit !found}' \
    /proc/net/"$1" $([[ ! -e /proc/net/$1"6" ]] || echo "/proc/net/${1}6")
}

# A runtime directory of our own, so that nothing stays; with --keep the usual one, so that commands are short.
((keep)) || export XDG_RUNTIME_DIR=$work/run
instance=demo
port=5514
try=0
while :; do
  while taken udp "$port" || taken tcp "$port" || taken tcp $((port + 1)); do port=$((port + 2)); done
  sed -e "s/:5514\"/:$port\"/" -e "s/:5515\"/:$((port + 1))\"/" "$root/examples/demo.yaml" >"$work/demo.yaml"
  say "broker: numapoold --instance $instance --config examples/demo.yaml, ports $port (syslog) and $((port + 1)) (lines)"
  setsid numapoold --instance "$instance" --config "$work/demo.yaml" >"$work/broker.log" 2>&1 </dev/null &
  broker=$!
  pids=("$broker")
  for _ in {1..200}; do
    if ! still_there "$broker"; then break; fi
    if grep -q ' broker.ready ' "$work/broker.log"; then break 2; fi
    sleep 0.1
  done
  try=$((try + 1))
  if still_there "$broker" || ((try == 5)); then
    echo "demo: the broker did not become ready" >&2
    exit 1
  fi
  # Somebody was faster with a port, or there is a demo already.
  tail -n 1 "$work/broker.log"
  instance=demo-$$
  if ((try > 1)); then port=$((port + 2)); fi
done
export NUMAPOOL_INSTANCE=$instance

say "two subscribers of channel syslog; of fast traffic they show some events a second"
for name in alpha beta; do
  : >"$work/$name.log"
  setsid "$build/examples/demo_subscriber" "$name" syslog >>"$work/$name.log" 2>&1 </dev/null &
  pids=("$!" "${pids[@]}")
done
tail -q -n +1 -F "$work/alpha.log" "$work/beta.log" 2>/dev/null &
watcher=$!
for name in alpha beta; do
  for _ in {1..50}; do
    grep -q subscribed "$work/$name.log" && break
    sleep 0.1
  done
  grep -q subscribed "$work/$name.log" || {
    echo "demo: subscriber $name did not start" >&2
    exit 1
  }
done

# ---- traffic -----------------------------------------------------------------------------------------------------

sent=0
host=127.0.0.1

# send N PROGRAM...: what goes out counts as sent where the program says that it went.
send() {
  local n=$1
  shift
  if "$@"; then sent=$((sent + n)); else echo "demo: failed: $*" >&2; fi
}
lines() { nc -N "$host" $((port + 1)); }
line() { printf '%s\n' "$1" | lines; }

say "single events: logger over UDP, TCP and TCP with octet counting, nc with lines"
for i in 1 2 3 4 5 6; do
  send 1 logger --rfc5424=notq -n "$host" -P "$port" -d -t demo "datagram $i"
  send 1 logger --rfc5424=notq -n "$host" -P "$port" -T -t demo "over TCP, $i"
  send 1 logger --rfc5424=notq -n "$host" -P "$port" -T --octet-count -t demo "over TCP with octet counting, $i"
  send 1 line "a line through nc, $i"
  sleep 0.5
done

say "many events"
for ((i = 1; i <= 100; i++)); do echo "message $i of a file"; done >"$work/hundred"
for ((i = 0; i < 20; i++)); do cat "$work/hundred"; done >"$work/messages"
seq -f 'line %.0f of a stream through nc' 20000 >"$work/lines"
end=$((SECONDS + 8))
while ((SECONDS < end)); do
  send 100 logger --rfc5424=notq -n "$host" -P "$port" -d -t demo -f "$work/hundred"
  send 2000 logger --rfc5424=notq -n "$host" -P "$port" -T -t demo -f "$work/messages"
  send 2000 logger --rfc5424=notq -n "$host" -P "$port" -T --octet-count -t demo -f "$work/messages"
  send 20000 lines <"$work/lines"
  sleep 0.2
done

# ---- result ------------------------------------------------------------------------------------------------------

total_of() { { grep -o 'total [0-9]*' "$work/$1.log" || echo 'total 0'; } | tail -n 1 | cut -d ' ' -f 2; }
alpha=0 beta=0
for _ in {1..100}; do
  alpha=$(total_of alpha) beta=$(total_of beta)
  ((alpha < sent || beta < sent)) || break
  sleep 0.1
done
kill "$watcher" 2>/dev/null || true
wait "$watcher" 2>/dev/null || true
watcher=

say "numapoolctl --instance $instance status"
numapoolctl --instance "$instance" status

if ((keep)); then
  kept=1
  say "still running; in another shell:"
  cat <<EOF
  export PATH=$build/bin:\$PATH NUMAPOOL_INSTANCE=$instance
  numapoolctl tap syslog                              # see each event
  logger -n $host -P $port -d "hello over UDP"       # send one
  echo "hello from nc" | nc -N $host $((port + 1))      # send a line
  numapoolctl status; numapoolctl listeners           # what came in, what was dropped
  $build/examples/demo_subscriber gamma syslog        # one more subscriber
  tail -f $work/alpha.log           # what a subscriber sees
  tail -f $work/broker.log          # what the broker says
  kill ${pids[*]}; rm -r $work      # the end of it
EOF
fi

printf '\n'
least=$((alpha < beta ? alpha : beta))
status=0
if ((alpha != beta)); then
  echo "demo: alpha received $alpha, beta $beta"
  status=1
fi
echo "demo: $sent events sent, $least received, $((sent - least)) lost"
((sent > 0 && least == sent)) || status=1
exit "$status"
