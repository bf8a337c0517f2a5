#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that must hold before a change lands, in a clean clone on Debian 12 or in a working tree.
#
#   tools/check.sh                 all stages
#   tools/check.sh --quick         gcc build and unit tests only
#   tools/check.sh --stage NAME    one stage; may be given several times
#   tools/check.sh --nightly       all stages, then the tests labelled nightly and the fuzzers
#   tools/check.sh --help          this text, with the stages
#
# Builds go to ${BUILD_ROOT:-build}/{gcc,clang,asan,tsan,fuzz}. Stops at the first stage that fails, then prints
# one line for each stage and, as the last line, the counts of all test cases that ran; a stage that fails
# without a failing test counts as one failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all_stages=(deps format spdx layers gcc clang tidy asan tsan reliability vm)
nightly_stages=(nightly fuzz tsan_long)
build_root=${BUILD_ROOT:-build}
jobs=$(nproc)

usage() {
  sed -n '3,13s/^# \{0,1\}//p' tools/check.sh
  echo "Stages: ${all_stages[*]}; with --nightly also: ${nightly_stages[*]}"
}

stages=()
quick=
while (($#)); do
  case $1 in
    --quick)
      quick=1
      stages=(deps gcc)
      ;;
    --nightly) stages=("${all_stages[@]}" "${nightly_stages[@]}") ;;
    --stage)
      if [[ -z ${2:-} || " ${all_stages[*]} ${nightly_stages[*]} " != *" $2 "* ]]; then
        echo "check: no stage '${2:-}'; there are: ${all_stages[*]} ${nightly_stages[*]}" >&2
        exit 2
      fi
      stages+=("$2")
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      echo "check: unknown option '$1'" >&2
      usage >&2
      exit 2
      ;;
  esac
  shift
done
((${#stages[@]})) || stages=("${all_stages[@]}")

mkdir -p "$build_root"
build_root=$(cd "$build_root" && pwd)
results=$build_root/results
rm -rf "$results"
mkdir -p "$results"

# Tracked and new files that match the patterns; ignored and deleted ones are not ours to check.
files() {
  git ls-files -z --cached --others --exclude-standard -- "$@" | while IFS= read -r -d '' file; do
    [[ ! -f $file ]] || printf '%s\0' "$file"
  done
}

# build NAME COMPILER TARGET [CMAKE-ARGUMENT...]
build() {
  local name=$1 compiler=$2 target=$3
  shift 3
  cmake -G Ninja -S . -B "$build_root/$name" --log-level=WARNING -DCMAKE_C_COMPILER="$compiler" \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo -DNUMAPOOL_WERROR=ON "$@"
  cmake --build "$build_root/$name" -j "$jobs" --target "$target"
}

# run_tests NAME CTEST-ARGUMENT...: two at a time; what judges time runs alone (RUN_SERIAL, label alone).
run_tests() {
  local name=$1
  shift
  ctest --test-dir "$build_root/$name" -j 2 --timeout 300 --output-on-failure --no-tests=error \
    --test-output-size-passed 4000000 --test-output-size-failed 4000000 \
    --output-junit "$results/$stage.xml" "$@"
}

stage_deps() {
  tools/install-deps.sh runtime build check
}

stage_format() {
  clang-format --version
  files '*.c' '*.h' | xargs -0 -r clang-format --dry-run -Werror
}

stage_spdx() {
  local missing=0 file count=0
  while IFS= read -r -d '' file; do
    count=$((count + 1))
    if ! head -n 3 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0'; then
      echo "$file:1: no SPDX line: begin with 'SPDX-License-Identifier: Apache-2.0' in a comment"
      missing=1
    fi
  done < <(files '*.c' '*.h' '*.sh' '*.py' '*.cmake' '*.in' '*.map' '*.yaml' '*.yml' '*.service' 'CMakeLists.txt' \
    '.ci/run' '.clang-tidy' '.editorconfig')
  echo "$count files looked at"
  return "$missing"
}

stage_layers() {
  tools/check_layers.py --self-test
  tools/check_layers.py
}

stage_gcc() {
  build gcc gcc all
  if [[ -n $quick ]]; then
    run_tests gcc -L '^unit$' -LE nightly
  else
    run_tests gcc -LE '^(fuzz|reliability|vm|nightly|stress-long)$' # fuzz: in the stage asan
  fi
}

stage_clang() {
  build clang clang all -DNUMAPOOL_RELIABILITY=OFF
  run_tests clang -L '^unit$' -LE nightly
}

stage_tidy() {
  [[ -f $build_root/clang/compile_commands.json ]] || build clang clang all -DNUMAPOOL_RELIABILITY=OFF
  # One file a run: clang-tidy 14 mistakes every va_list for uninitialized from the second file on.
  files 'lib/*.c' 'daemon/*.c' 'tools/*.c' | xargs -0 -r -n 1 -P "$jobs" clang-tidy --quiet -p "$build_root/clang" \
    2> >(grep -v ' warnings\? generated' >&2)
}

stage_asan() {
  build asan gcc all -DNUMAPOOL_SANITIZE=address -DNUMAPOOL_CHECK=ON
  ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 \
    LSAN_OPTIONS="suppressions=$PWD/tests/support/criterion.supp:print_suppressions=0" \
    run_tests asan -L '^(unit|integration|fuzz|asan)$' -LE '^(asan-slow|nightly)$'
}

stage_tsan() {
  build tsan clang stress_tests -DNUMAPOOL_SANITIZE=thread
  TSAN_OPTIONS=halt_on_error=0:second_deadlock_stack=1:allow_addr2line=1 run_tests tsan -L '^stress$' -LE nightly
}

# Storms of kills, the stepping harness, models: against the code that is delivered.
stage_reliability() {
  build gcc gcc all
  run_tests gcc -L '^reliability$' -LE nightly
}

# The same programs in an emulated machine with four NUMA nodes and an older kernel. Where it cannot be had, the test
# says why and counts as skipped.
stage_vm() {
  tools/install-deps.sh vm || echo "the packages of the emulated machine cannot be installed here"
  build gcc gcc all
  run_tests gcc -L '^vm$' -LE nightly
}

stage_nightly() {
  tools/install-deps.sh vm || echo "the packages of the emulated machine cannot be installed here"
  build gcc gcc all
  run_tests gcc -L '^nightly$'
}

stage_tsan_long() {
  build tsan clang stress_tests -DNUMAPOOL_SANITIZE=thread
  TSAN_OPTIONS=halt_on_error=0:second_deadlock_stack=1:allow_addr2line=1 run_tests tsan -L '^stress-long$'
}

stage_fuzz() {
  build fuzz clang fuzz_tests -DNUMAPOOL_SANITIZE=address -DNUMAPOOL_FUZZ=ON
  run_tests fuzz -L '^fuzz$'
}

table=()
failed_stages=0
extra_failures=0
for stage in "${stages[@]}"; do
  printf '\n==== %s ====\n' "$stage"
  begin=$SECONDS
  set +e # so that `set -e` holds inside the stage
  (
    set -e
    "stage_$stage"
  )
  status=$?
  set -e
  counts=(0 0 0)
  said=
  if [[ -f $results/$stage.xml ]]; then
    said=$(tools/test_counts.py "$results/$stage.xml")
    read -ra counts <<<"$(head -n 1 <<<"$said")"
  fi
  # A test that was not run is no success, whatever ctest says.
  if ((status == 0 && counts[1] > 0)); then status=1; fi
  if ((status != 0 && counts[1] == 0)); then extra_failures=$((extra_failures + 1)); fi
  [[ -z $said ]] || tail -n +2 <<<"$said" | sed 's/^/skipped: /'
  verdict=ok
  if ((status != 0)); then verdict="FAILED ($status)"; fi
  printf -v row '%-8s %-11s %5d s   %d passed, %d failed, %d skipped' "$stage" "$verdict" $((SECONDS - begin)) "${counts[@]}"
  table+=("$row")
  echo "==== $row"
  if ((status != 0)); then
    failed_stages=1
    break
  fi
done

printf '\n'
printf '%s\n' "${table[@]}"
((failed_stages == 0)) || echo "stopped at stage '$stage'; again, only it: tools/check.sh --stage $stage"
shopt -s nullglob
xml=("$results"/*.xml)
total=(0 0 0)
((${#xml[@]} == 0)) || read -ra total <<<"$(tools/test_counts.py "${xml[@]}")"
echo "${total[0]} passed, $((total[1] + extra_failures)) failed, ${total[2]} skipped"
exit "$failed_stages"
