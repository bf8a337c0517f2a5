#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# No locked instruction on the data path: loan, publish, take and release, and all that they call in the
# course of normal running, are disassembled from the shared library; a lock prefix, an xchg with memory (which
# locks without a prefix) or an mfence fails the check. Functions that the compiler was told are cold (a peer
# sleeps, lies, or is gone) are left out, and listed. First the checker proves that it finds each of the three.
set -euo pipefail

library=$BUILD_DIR/lib/libnumapool-client.so
compiler=${CC:-cc}
entries="np_loan np_publish np_publish_many np_take np_take_many np_release np_release_many np_discard np_set_topic"
# Called from the data path only where something out of the ordinary happened; each is a system call away, or an error.
cold="npi_client_forked npi_fail npi_fail_errno npi_trail not_loaned not_held met_full report_lies wake woken \
released_last loan_slow corrupt lie found_nothing npi_client_news npi_client_bell_attention npi_client_arm_credits npi_client_arm_events \
npi_client_loan_slow return_segment npi_bell_must_ring npi_bell_ring_peer npi_event_ring npi_link_let_go npi_link_report_lie"

if [[ $(uname -m) != x86_64 ]]; then
  echo "no_locked_instructions: skipped, the checker knows x86-64"
  exit 77
fi
if [[ -n ${SANITIZE:-} ]]; then
  echo "no_locked_instructions: skipped, a sanitizer adds its own instructions"
  exit 77
fi
command -v objdump >/dev/null || { echo "no_locked_instructions: skipped, no objdump (Debian: binutils)"; exit 77; }

# walk OBJECT "ENTRIES" "COLD": prints what was reached and what was found; exit status 1 where something was.
walk() {
  objdump -d --no-show-raw-insn "$1" | awk -v entries="$2" -v cold="$3" '
    /^[0-9a-f]+ <.*>:$/ { name = $2; gsub(/[<>:]/, "", name); known[name] = 1; next }
    /^ *[0-9a-f]+:/ {
      text = $0
      sub(/^ *[0-9a-f]+:[ \t]*/, "", text)
      # lock is a prefix; xchg of two registers does not touch memory, and "xchg %ax,%ax" is a nop
      if (text ~ /(^|[ \t])lock([ \t]|$)/ || text ~ /^mfence/ || (text ~ /^xchg/ && text ~ /\(/)) found[name] = found[name] "\n    " name ": " text
      if (text ~ /^(call|jmp|j[a-z]+)[a-z]*[ \t]/ && match(text, /<[^>+@]+(@plt)?(\+0x[0-9a-f]+)?>/)) {
        target = substr(text, RSTART + 1, RLENGTH - 2)
        sub(/\+0x[0-9a-f]+$/, "", target)
        sub(/@plt$/, "", target)
        if (target != name) calls[name] = calls[name] " " target
      }
      if (text ~ /^(call|jmp)[a-z]*[ \t]+\*/) indirect[name] = 1
      lines[name]++
    }
    function visit(f, list, n, i, base) {
      base = f
      sub(/\.(part|isra|constprop|cold)(\.[0-9]+)?.*$/, "", base)
      if (f ~ /\.cold/) { skipped[f] = 1; return } # the compiler moved it out: it never expects to come there
      if (base in is_cold) { skipped[base] = 1; return }
      if (f in seen) return
      seen[f] = 1
      if (!(f in known)) { outside = outside " " f; return }
      order[++count] = f
      total += lines[f]
      n = split(calls[f], list, " ")
      for (i = 1; i <= n; i++) visit(list[i])
    }
    END {
      n = split(cold, list, " ")
      for (i = 1; i <= n; i++) is_cold[list[i]] = 1
      n = split(entries, list, " ")
      for (i = 1; i <= n; i++) {
        if (!(list[i] in known)) { print "  there is no function " list[i]; bad = 1 }
        visit(list[i])
      }
      printf "  looked at %d instructions of:", total
      for (i = 1; i <= count; i++) printf " %s", order[i]
      printf "\n  left out as cold:"
      for (f in skipped) printf " %s", f
      if (outside != "") printf "\n  outside of the library:%s", outside
      printf "\n"
      for (i = 1; i <= count; i++) {
        if (order[i] in found) { print "  FOUND" found[order[i]]; bad = 1 }
        if (order[i] in indirect) { print "  an indirect call or jump in " order[i] ": it cannot be followed"; bad = 1 }
      }
      exit bad
    }'
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/locked.c" <<'END'
int word;
void plain(void);
void with_lock(void);
void with_xchg(void);
void with_mfence(void);
void with_call(void);
static void __attribute__((noinline)) inner(void) { __asm__ volatile("lock addl $1, %0" : "+m"(word)); }
void plain(void) { __asm__ volatile("addl $1, %0; xchg %%eax, %%ecx" : "+m"(word)::"eax", "ecx"); }
void with_lock(void) { __asm__ volatile("lock; addl $1, %0" : "+m"(word)); }
void with_xchg(void) { __asm__ volatile("xchg %%eax, %0" : "+m"(word)::"eax"); }
void with_mfence(void) { __asm__ volatile("mfence" ::: "memory"); }
void with_call(void) { inner(); __asm__ volatile(""); }
END
"$compiler" -O1 -fPIC -shared -o "$work/locked.so" "$work/locked.c"
if ! walk "$work/locked.so" plain "" >"$work/out"; then
  echo "no_locked_instructions: the checker finds something where nothing is:"
  cat "$work/out"
  exit 1
fi
for function in with_lock with_xchg with_mfence with_call; do
  if walk "$work/locked.so" "$function" "" >"$work/out" || ! grep -q FOUND "$work/out"; then
    echo "no_locked_instructions: the checker does not find what is in $function"
    exit 1
  fi
done

if ! walk "$library" "$entries" "$cold" >"$work/out"; then
  echo "no_locked_instructions: on the data path of $library:"
  cat "$work/out"
  exit 1
fi
cat "$work/out"
echo "no_locked_instructions: none in loan, publish, take and release; the checker finds lock, xchg and mfence where they are"
