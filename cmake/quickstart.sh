#!/usr/bin/env bash
# Sets up, builds `generate` and runs it on the models that ship with the project.
set -euo pipefail
# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

options=()
if [[ ! -f build/release/CMakeCache.txt ]]; then # the tests' and benchmarks' libraries can wait
  options=(-DSEQMIX_BUILD_TESTS=OFF -DSEQMIX_BUILD_BENCH=OFF)
fi
set_up
configure release "${options[@]}"
say "building build/release/bin/generate"
cmake --build --preset release --target generate
exec build/release/bin/generate --tour examples/models
