#!/usr/bin/env bash
# Sets up, builds and runs the micro-benchmarks of layers: cmake/bench.sh [LAYER...], of all without
# names. Float, one thread, a batch of one; `of_limit` is the fraction of what this machine was
# measured to do (bench/support/layer_bench.hpp). CXX chooses the compiler.
set -euo pipefail
# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# The lines of bench/ that name layers say which programs have them.
mapfile -t known < <(sed -n 's/.*\.layer = "\(.*\)".*/\1/p' bench/bench_*.cpp | sort -u)
layers=("$@")
[[ $# -gt 0 ]] || layers=("${known[@]}")
list=$(printf ', %s' "${known[@]}")
for layer in "${layers[@]}"; do
  printf '%s\n' "${known[@]}" | grep -qxFe "$layer" ||
    fail "no layer is called \"$layer\"; there are ${list:2}"
done
mapfile -t programs < <(grep -lF "$(printf '.layer = "%s"\n' "${layers[@]}")" bench/bench_*.cpp |
  sed 's#.*/\(.*\)\.cpp#\1#')

options=()
if ! grep -qs '^SEQMIX_BUILD_TESTS:BOOL=ON' build/release/CMakeCache.txt; then
  options=(-DSEQMIX_BUILD_TESTS=OFF) # their library can wait
fi
set_up
configure release "${options[@]}"
say "building ${programs[*]} with $CMAKE_BUILD_PARALLEL_LEVEL job(s)"
cmake --build --preset release --target "${programs[@]}"

# Each line of a program, <layer>/<verb>/B:1/T:<tokens>/D:<width>/..., as it is measured.
filter=$(printf '|%s' "${layers[@]}")
output=$root/build/bench.log
: >"$output"
for program in "${programs[@]}"; do
  "build/release/bin/$program" "--benchmark_filter=^(${filter:1})/" --benchmark_format=csv \
    2>>"$output" || fail "$program failed: $(tail -n 1 "$output")"
done | awk -F, '
  function row(layer, verb, T, D, time, rate, limit) {
    printf "%-28s %-17s %7s %5s %11s %10s %8s\n", layer, verb, T, D, time, rate, limit
    fflush()
  }
  BEGIN { row("layer", "verb", "T", "D", "time", "tokens/s", "of_limit") }
  { gsub(/"/, "") }
  $1 == "name" { for (i = 1; i <= NF; ++i) column[$i] = i; next }
  split($1, name, "/") > 5 {
    ms = $column["real_time"]
    time = ms < 1 ? sprintf("%.4g us", 1000 * ms) : ms < 1000 ? sprintf("%.4g ms", ms) \
      : sprintf("%.4g s", ms / 1000)
    row(name[1], name[2], substr(name[4], 3), substr(name[5], 3), time,
      sprintf("%.0f", $column["tokens_per_second"]), sprintf("%.3f", $column["of_limit"]))
  }'
