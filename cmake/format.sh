#!/usr/bin/env bash
# Checks the format of all C++ files: cmake/format.sh; cmake/format.sh -i formats them instead.
# One version of clang-format decides, from PyPI (below build/format) or, of the same major version,
# from apt. Where neither can be had there is no check, which is an error where CI is set.
set -euo pipefail
# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

version=14.0.6
log=$root/build/format.log
: >"$log"

# Sets `program` to a clang-format of that version.
find_program() {
  program=$root/build/format/clang_format/data/bin/clang-format
  if has_version; then return; fi
  say "installing clang-format $version from PyPI below build/format"
  rm -rf "$root/build/format"
  python3 -m pip install --quiet --no-deps --target "$root/build/format" \
    "clang-format==$version" >>"$log" 2>&1 || true
  if has_version; then return; fi
  program=clang-format-${version%%.*}
  if ! has "$program" && can_install; then
    update_apt
    (install_packages "$program") || true
  fi
  has "$program"
}
has_version() { [[ $("$program" --version 2>/dev/null) == *"version $version"* ]]; }

if ! find_program; then
  [[ -z ${CI:-} ]] || fail "neither PyPI nor apt gave clang-format (details: build/format.log)"
  say "the format is not checked: neither PyPI nor apt gave clang-format (details: build/format.log)"
  exit 0
fi

mapfile -t files < <(git ls-files '*.hpp' '*.cpp')
if [[ ${1:-} == -i ]]; then
  "$program" -i "${files[@]}"
  exit 0
fi
differing=()
for file in "${files[@]}"; do
  "$program" "$file" | cmp -s - "$file" || differing+=("$file")
done
[[ ${#differing[@]} -eq 0 ]] ||
  fail "not as clang-format $version writes it (cmake/format.sh -i mends it):" "${differing[@]}"
say "the format of ${#files[@]} files is clang-format's"
