#!/usr/bin/env bash
# Sets up, builds and runs every test: cmake/test.sh [PRESET]. PRESET is release (the default),
# portable, dev or tsan; CXX chooses the compiler.
set -euo pipefail
# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

preset=${1:-release}
set_up
configure "$preset"
say "building build/$preset with $CMAKE_BUILD_PARALLEL_LEVEL job(s)"
cmake --build --preset "$preset"
ctest --preset "$preset" --output-on-failure
