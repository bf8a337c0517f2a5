#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a command in an emulated machine with several NUMA nodes and Debian 12's own kernel (6.1).
#
#   tools/vm.sh [OPTION...] -- COMMAND [ARGUMENT...]
#
#   --nodes N       NUMA nodes, each with its own processor (4)
#   --memory SIZE   of the whole machine, M or G, shared out evenly (2G)
#   --timeout S     seconds until the machine is switched off (300)
#   --build DIR     build folder whose programs it has (build/gcc)
#   --add FILE      one file more, at the same path there; may be given several times
#   --prepare       fetch the kernel and build the machine's files, and start nothing
#
# The machine has the build's numapoold and numapoolctl, its test programs whose names begin with vm_ and those that
# --add names, at the paths that they have here and in $PATH, with the libraries that they need, and busybox. COMMAND
# runs as root. Its output is printed, and its exit status is that of this script; 124: time is up; 125: the machine
# ended without a word. 77: there is no machine to be had here, and the last line says why.
#
# Needs qemu-system-x86, busybox-static and cpio (tools/install-deps.sh vm). The kernel is taken from
# $NUMAPOOL_VM_KERNEL, else downloaded as a Debian package and unpacked below the build folder; nothing is installed.
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

nodes=4
memory=2G
timeout=300
build=
prepare=
more=()
while (($#)); do
  case $1 in
    --nodes) nodes=$2 && shift ;;
    --memory) memory=$2 && shift ;;
    --timeout) timeout=$2 && shift ;;
    --build) build=$2 && shift ;;
    --add) more+=("$(realpath -s "$2")") && shift ;;
    --prepare) prepare=1 ;;
    --) shift && break ;;
    -h | --help)
      sed -n '3,22s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "vm: unknown option '$1'; tools/vm.sh --help lists them, and the command comes after --" >&2
      exit 2
      ;;
  esac
  shift
done
if (($# == 0)) && [[ -z $prepare ]]; then
  echo "vm: no command; tools/vm.sh [OPTION...] -- COMMAND" >&2
  exit 2
fi
if ! [[ $nodes =~ ^[1-9][0-9]?$ && $memory =~ ^[1-9][0-9]*[MG]$ && $timeout =~ ^[1-9][0-9]*$ ]]; then
  echo "vm: --nodes 1 to 99, --memory like 512M or 2G, --timeout in seconds" >&2
  exit 2
fi
build=$(realpath -s "${build:-${BUILD_ROOT:-$source_dir/build}/gcc}")
if [[ ! -x $build/bin/numapoold ]]; then
  echo "vm: no $build/bin/numapoold: build first, or name the build folder with --build" >&2
  exit 2
fi

skip() {
  echo "vm: no machine: $1"
  exit 77
}

[[ $(uname -m) == x86_64 ]] || skip "it is one for x86_64 programs, and this is $(uname -m)"
for program in qemu-system-x86_64 busybox cpio; do
  command -v "$program" >/dev/null || skip "$program is missing (tools/install-deps.sh vm)"
done
busybox=$(command -v busybox)

# ---- kernel: from the package, without installing it ----

kernels=$build/vm/kernel
fetch_kernel() {
  local package
  command -v apt-get >/dev/null || return 1
  package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1)
  [[ -n $package ]] || return 1
  (cd "$kernels" && apt-get -q -y -o Acquire::Retries=3 -o APT::Sandbox::User=root download "$package" >&2) || return 1
  dpkg-deb --fsys-tarfile "$kernels/$package"_*.deb | tar -x -C "$kernels" --strip-components=2 --wildcards './boot/vmlinuz-*'
  rm -f "$kernels/$package"_*.deb
}
find_kernel() {
  kernel=${NUMAPOOL_VM_KERNEL:-$(compgen -G "$kernels/vmlinuz-*" | head -n 1)}
  [[ -n $kernel && -r $kernel ]]
}
mkdir -p "$kernels"
if [[ -n ${NUMAPOOL_VM_KERNEL:-} && ! -r $NUMAPOOL_VM_KERNEL ]]; then
  echo "vm: \$NUMAPOOL_VM_KERNEL: cannot read $NUMAPOOL_VM_KERNEL" >&2
  exit 2
fi
if ! find_kernel; then
  # A list of packages that is missing or old names a file that is gone: asked for anew, once, where we may.
  fetch_kernel || { ((EUID == 0)) && apt-get -q update >&2 && fetch_kernel; } || true
  find_kernel || skip "no kernel: the package linux-image-cloud-amd64 cannot be downloaded; NUMAPOOL_VM_KERNEL can name one"
fi

# ---- the files of the machine ----

work=$(mktemp -d "${TMPDIR:-/tmp}/numapool-vm-XXXXXX")
qemu=
cleanup() {
  if [[ -n $qemu ]]; then
    kill -KILL "$qemu" 2>/dev/null || true
    wait "$qemu" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

root=$work/root
shopt -s nullglob
programs=("$build"/bin/* "$build"/tests/vm_* "${more[@]}")
libraries=$(for file in "${programs[@]}"; do ldd "$file" 2>/dev/null || true; done |
  sed -n 's/^.*\(=> \|\t\)\(\/[^ ]*\) (0x.*/\2/p' | sort -u)
mkdir -p "$root"/{bin,dev,proc,sys,run,tmp,root,etc}
for file in "${programs[@]}" $libraries; do
  [[ -f $file ]] || continue
  mkdir -p "$root$(dirname "$file")"
  cp -L "$file" "$root$file"
done
cp -L "$busybox" "$root/bin/busybox"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'nobody:x:65534:65534:nobody:/:/bin/sh' >>"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"

# The console has the kernel's messages, the second serial line what the command says, the third its exit status.
cat >"$root/init" <<END
#!/bin/busybox sh
/bin/busybox mkdir -p /usr/bin /sbin /dev/shm
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts pts /dev/pts
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
stty -F /dev/ttyS1 raw
export PATH=$build/bin:$build/tests:/bin:/usr/bin:/sbin HOME=/root TMPDIR=/tmp VM_NODES=$nodes
ulimit -n 65536
/bin/sh /command >/dev/ttyS1 2>&1 </dev/null
echo "status \$?" >/dev/ttyS2
sync
poweroff -f
END
printf '%q ' "$@" >"$root/command"
chmod 755 "$root/init"
(cd "$root" && find . | cpio --quiet --create --format=newc) >"$work/initramfs"
rm -rf "$root"
if [[ -n $prepare ]]; then
  echo "vm: $kernel is there, and the machine's files have $(stat -c %s "$work/initramfs") bytes"
  exit 0
fi

# ---- the machine ----

case $memory in
  *G) mib=$((${memory%G} * 1024 / nodes)) ;;
  *) mib=$((${memory%M} / nodes)) ;;
esac
numa=()
for ((i = 0; i < nodes; i++)); do
  numa+=(-object "memory-backend-ram,id=memory$i,size=${mib}M" -numa "node,nodeid=$i,cpus=$i,memdev=memory$i")
done
touch "$work/output" "$work/status"
# In software also where there is /dev/kvm: inside another virtual machine that is often there and does not work.
qemu-system-x86_64 -accel tcg,thread=multi -machine q35 -cpu max -smp "$nodes" -m "$((mib * nodes))M" "${numa[@]}" \
  -nodefaults -no-user-config -display none -no-reboot -kernel "$kernel" -initrd "$work/initramfs" \
  -append "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic random.trust_cpu=on" \
  -serial "file:$work/console" -serial "file:$work/output" -serial "file:$work/status" </dev/null 2>"$work/qemu" &
qemu=$!
tail --pid="$qemu" --sleep-interval=0.1 -n +1 -f "$work/output" &
tail=$!
late=
for ((until = SECONDS + timeout; ;)); do
  kill -0 "$qemu" 2>/dev/null || break
  if ((SECONDS >= until)); then
    late=1
    kill -KILL "$qemu"
    break
  fi
  sleep 0.1
done
wait "$qemu" 2>/dev/null || true
qemu=
wait "$tail" || true

status=$(sed -n 's/^status \([0-9]*\).*/\1/p' "$work/status")
if [[ -z $status ]]; then
  if [[ -n $late ]]; then status=124; else status=125; fi
  if [[ -n $late ]]; then echo "vm: $timeout s are over; the end of its console:"; else echo "vm: the machine ended without a word; the end of its console:"; fi >&2
  tail -n 30 "$work/qemu" "$work/console" >&2 2>/dev/null || true
elif [[ -s $work/console ]]; then
  # A warning of the kernel is nobody's success; it is shown, and the status stays the command's.
  grep -a -E 'BUG|WARNING|Oops|Out of memory' "$work/console" | sed 's/^/vm: kernel: /' >&2 || true
fi
exit "$status"
