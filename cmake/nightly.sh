#!/usr/bin/env bash
# Everything that takes hours: cmake/nightly.sh [SECONDS [TARGET...]] runs clang-tidy over all layers,
# builds the fuzz targets (file, layer, state, model; all of them by default) and runs each for
# SECONDS (default 1200). Inputs that fail land in build/fuzz/findings; a corpus grows in
# build/fuzz/corpus, from run to run. CXX chooses the compiler, which must be a clang.
set -euo pipefail
# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

seconds=${1:-1200}
targets=("${@:2}")
[[ ${#targets[@]} -gt 0 ]] || targets=(file layer state model)
[[ $seconds =~ ^[0-9]+$ ]] || fail "usage: cmake/nightly.sh [SECONDS [TARGET...]]; got $seconds"

export CXX=${CXX:-clang++}
set_up
major=$("$CXX" -dumpversion)
major=${major%%.*}
need() { # package
  can_install || fail "needed and not installed: $1"
  update_apt
  install_packages "$1"
}
# The fuzzer's run-time library and clang-tidy are packages of their own.
probe=$root/build/fuzzer-probe
if ! "$CXX" -fsanitize=fuzzer,address -x c++ -o "$probe" - >>"$log" 2>&1 \
  <<<'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'; then
  need "libclang-rt-$major-dev"
fi
rm -f "$probe"
has "clang-tidy-$major" || need "clang-tidy-$major"

configure fuzz
say "clang-tidy-$major over include/seqmix/seqmix.hpp"
"clang-tidy-$major" --quiet -p build/fuzz include/seqmix/seqmix.hpp 2>>"$log"
say "building build/fuzz with $CMAKE_BUILD_PARALLEL_LEVEL job(s)"
cmake --build --preset fuzz --target "${targets[@]/#/fuzz_}"

findings=$root/build/fuzz/findings
export TMPDIR=$root/build/fuzz/tmp # the targets' own files
rm -rf "$TMPDIR"
mkdir -p "$findings" "$TMPDIR"
export ASAN_OPTIONS=quarantine_size_mb=16:${ASAN_OPTIONS:-}
export UBSAN_OPTIONS=print_stacktrace=1:${UBSAN_OPTIONS:-}
failed=()
for target in "${targets[@]}"; do
  program=$root/build/fuzz/bin/fuzz_$target
  seeds=$root/build/fuzz/seeds/$target corpus=$root/build/fuzz/corpus/$target
  mkdir -p "$corpus"
  "$program" "--seeds=$seeds"
  say "fuzzing $target for $seconds s (log: build/fuzz/$target.log)"
  if ! "$program" "-max_total_time=$seconds" -max_len=20000 -timeout=20 -rss_limit_mb=1024 \
    -malloc_limit_mb=256 -print_final_stats=1 "-artifact_prefix=$findings/$target-" \
    "$corpus" "$seeds" >"$root/build/fuzz/$target.log" 2>&1; then
    failed+=("$target")
    grep -E "ERROR|runtime error|Test unit written" "$root/build/fuzz/$target.log" | head -n 5 || true
  fi
  grep "number_of_executed_units" "$root/build/fuzz/$target.log" || true
done
[[ ${#failed[@]} -eq 0 ]] || fail "found by the fuzzers of: ${failed[*]} (build/fuzz/findings)"
say "nothing found"
