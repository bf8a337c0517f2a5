#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing of the Debian 12 packages that numapool needs, and nothing else.
#
#   tools/install-deps.sh [GROUP...]     groups: runtime build check vm (default: runtime build)
#
# Nothing is asked of the network where everything is there already.
set -euo pipefail

runtime=(libnuma1 liburing2 libyaml-0-2 libjansson4 bsdutils netcat-openbsd)
build=(build-essential cmake ninja-build pkg-config libnuma-dev liburing-dev libyaml-dev libjansson-dev uthash-dev)
check=(libcriterion-dev clang clang-14 clang-format clang-tidy libclang-rt-14-dev libfuzzer-14-dev libseccomp-dev
  relacy-dev spin rsyslog socat strace procps binutils iproute2 util-linux python3 git)
vm=(qemu-system-x86 busybox-static cpio)

usage() {
  sed -n '3,7s/^# \{0,1\}//p' "$0"
}

wanted=()
for group in "${@:-runtime build}"; do
  for name in $group; do
    case $name in
      runtime) wanted+=("${runtime[@]}") ;;
      build) wanted+=("${build[@]}") ;;
      check) wanted+=("${check[@]}") ;;
      vm) wanted+=("${vm[@]}") ;;
      -h | --help)
        usage
        exit 0
        ;;
      *)
        echo "install-deps: no group '$name'; there are: runtime build check vm" >&2
        exit 2
        ;;
    esac
  done
done

if ! command -v dpkg-query >/dev/null; then
  echo "install-deps: this is not a Debian system; install the equivalents of: ${wanted[*]}" >&2
  exit 1
fi

missing=()
for package in "${wanted[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $state == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "install-deps: everything is there"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "install-deps: not root and no sudo; as root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

# A package that brings a service (rsyslog) must not start it here: the tests start their own, and in a
# container there is no init system to start it with. policy-rc.d is Debian's way to say so; one that is
# there already is the machine's own and stays.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "install-deps: installing ${missing[*]}"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -q -y)
"${apt[@]}" update
"${apt[@]}" install --no-install-recommends "${missing[@]}"
