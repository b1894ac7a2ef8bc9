# shellcheck shell=bash
# Sourced by the scripts beside it; leaves the shell in the project's root.
#
#   set_up                     compiler, CMake and a build tool, through apt where they are missing
#   configure PRESET [ARG...]  configures build/PRESET; libraries that are missing come from the first
#                              of: apt, a package of a newer suite of the same mirror (unpacked below
#                              build/dependencies), the pinned source that CMake downloads. Nothing
#                              depends on the day: a suite is a release, or a version is named
#
# The system's package sources are never changed. A second run finds everything and installs nothing.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
root=$PWD
dependencies=$root/build/dependencies
log=$root/build/setup.log
mkdir -p "$dependencies"

say() { printf -- '-- %s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

has() { command -v "$1" >/dev/null; }

at_least() { [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# ---- apt ----

ID=unknown VERSION_CODENAME=unknown
[[ ! -r /etc/os-release ]] || source /etc/os-release

as_root=(false)
if [[ $(id -u) == 0 ]]; then
  as_root=(env DEBIAN_FRONTEND=noninteractive)
elif has sudo && sudo -n true 2>/dev/null; then
  as_root=(sudo -n env DEBIAN_FRONTEND=noninteractive)
fi
can_install() { has apt-get && [[ ${as_root[0]} != false ]]; }

apt_updated=no
update_apt() {
  [[ $apt_updated == no ]] || return 0
  say "reading the package lists (apt-get update)"
  "${as_root[@]}" apt-get update >>"$log" 2>&1 || true # one dead source must not stop the others
  apt_updated=yes
}

install_packages() {
  say "installing with apt: $*"
  "${as_root[@]}" apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" \
    >>"$log" 2>&1 ||
    fail "apt could not install $*: without a network connection this cannot go on" \
      "(details: build/setup.log)"
}

# An apt with lists and sources of its own: the system's (no second argument) or one other suite.
# Signatures are checked; the age of the lists is not, because a mirror may be a frozen copy.
private_apt=()
open_suite() {
  local name=$1 state=$root/build/apt/$1
  private_apt=(-o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::Cache="$state"
    -o Dir::State::status=/var/lib/dpkg/status -o APT::Sandbox::User=root
    -o Acquire::Languages=none -o Acquire::Check-Valid-Until=false)
  if [[ $# -gt 1 ]]; then
    private_apt+=(-o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=-)
  fi
  [[ -d $state ]] && return 0
  mkdir -p "$state/lists/partial" "$state/archives/partial"
  [[ $# -eq 1 ]] || printf '%s\n' "$2" >"$state/sources.list"
  say "reading the package lists of $name into build/apt"
  apt-get "${private_apt[@]}" update >>"$log" 2>&1 || true
}

unpack() { # package version suite
  say "unpacking $1 $2 of $3 below build/dependencies (the system stays as it is)"
  local directory=$root/build/apt/unpack wanted=("$1=$2") archive
  if [[ $1 == libxsimd-dev ]] && ! at_least "$2" 14; then
    wanted+=(xtl-dev) # the CMake package of older ones insists on it
  fi
  rm -rf "$directory"
  mkdir -p "$directory"
  (cd "$directory" && apt-get "${private_apt[@]}" download "${wanted[@]}" >>"$log" 2>&1) ||
    fail "could not download ${wanted[*]} (details: build/setup.log)"
  for archive in "$directory"/*.deb; do dpkg -x "$archive" "$dependencies"; done
}

# The mirror that this machine's apt reads its own release from, whatever form its sources have.
mirror() {
  apt-get --print-uris update 2>/dev/null |
    sed -nE "s#^'(.*)/dists/($VERSION_CODENAME|stable|testing|unstable)/InRelease'.*#\1#p" |
    head -n 1
}

# The suites that a library may be unpacked from, best first: releases, which do not change, and
# `suite=version`, where a suite moves and counts only while it has this version. Headers can come
# from any release, a static library only from one that is built for this.
newer_suites() { # CMake package
  case "$ID $1" in
    "debian xsimd") echo "testing=14.3.0 unstable=14.3.0 trixie" ;;
    "debian Eigen3" | "debian nlohmann_json") echo trixie ;;
    "debian Catch2") echo "$VERSION_CODENAME-backports=3.7.1" ;;
    "ubuntu xsimd" | "ubuntu Eigen3" | "ubuntu nlohmann_json") echo resolute ;;
  esac
}

open_newer_suite() { # suite
  case $ID in
    debian) local keyring=debian-archive-keyring.gpg components=main ;;
    ubuntu) local keyring=ubuntu-archive-keyring.gpg components="main universe" ;;
  esac
  open_suite "$1" "deb [signed-by=/usr/share/keyrings/$keyring] $(mirror) $1 $components"
}

# ---- libraries ----

debian_names() { # CMake package; the first that exists is the one with the files
  case $1 in
    Eigen3) echo libeigen3-dev ;;
    xsimd) echo libxsimd-dev ;;
    nlohmann_json) echo nlohmann-json3-dev ;;
    Catch2) echo libcatch2-dev catch2 ;;
    benchmark) echo libbenchmark-dev ;;
  esac
}

# Sets `name` and `version` to the package, of the system's apt or of the open suite, that is new
# enough.
find_package() { # CMake package, minimum
  for name in $(debian_names "$1"); do
    version=$(apt-cache "${private_apt[@]}" policy "$name" | sed -n 's/^  Candidate: //p')
    [[ $version =~ ^[0-9] ]] && dpkg --compare-versions "$version" ge "$2" && return 0
  done
  return 1
}

# Installs or unpacks one library; false if no package has it.
provide() { # CMake package, minimum
  local name version suite pin
  if can_install; then
    update_apt
    private_apt=() # the system's
    if find_package "$1" "$2"; then
      install_packages "$name"
      return 0
    fi
  elif [[ $1 != benchmark ]]; then # its headers come without their library
    open_suite "$ID"
    if find_package "$1" "$2"; then
      unpack "$name" "$version" "$ID $VERSION_CODENAME"
      return 0
    fi
  fi
  [[ -n $(mirror) ]] || return 1
  for suite in $(newer_suites "$1"); do
    pin=${suite#*=}
    suite=${suite%%=*}
    open_newer_suite "$suite"
    if find_package "$1" "$2" && [[ $pin == "$suite" || $version == "$pin"-* ]]; then
      unpack "$name" "$version" "$ID $suite"
      return 0
    fi
  done
  return 1
}

# ---- what the scripts call ----

set_up() {
  : >"$log"
  local compiler=${CXX:-} missing=()
  compiler=${compiler%% *}
  if [[ -n $compiler ]]; then
    if ! has "$compiler"; then
      case ${compiler##*/} in
        g++*) missing+=("${compiler##*/}") ;;
        clang++*) missing+=("clang${compiler##*/clang++}") ;;
        *) fail "CXX=$CXX is not on this machine" ;;
      esac
    fi
  else
    has c++ || has g++ || has clang++ || missing+=(g++)
  fi
  has cmake || missing+=(cmake)
  has ninja || has make || missing+=(ninja-build)

  if [[ ${#missing[@]} -gt 0 ]]; then
    can_install || fail "needed and not installed: ${missing[*]}; install them and run this again" \
      "(as root, or as a user of sudo without a password, this script does it)"
    update_apt
    install_packages "${missing[@]}"
  fi
  local cmake_version
  cmake_version=$(cmake --version | awk 'NR == 1 { print $3 }')
  at_least "$cmake_version" 3.25 || fail "CMake 3.25 or newer is needed; this is $cmake_version"

  if has ninja; then export CMAKE_GENERATOR=${CMAKE_GENERATOR:-Ninja}; fi
  if [[ -z ${CMAKE_BUILD_PARALLEL_LEVEL:-} ]]; then
    # A compiler of such templates takes up to 1.5 GB.
    local by_memory
    by_memory=$(awk '/^MemAvailable:/ { print int($2 / 1500000) }' /proc/meminfo)
    CMAKE_BUILD_PARALLEL_LEVEL=$(printf '%s\n' "$(nproc)" "$((by_memory > 1 ? by_memory : 1))" |
      sort -n | head -n 1)
  fi
  export CMAKE_BUILD_PARALLEL_LEVEL CTEST_PARALLEL_LEVEL=${CTEST_PARALLEL_LEVEL:-$(nproc)}
}

configure() {
  local preset=$1 arguments=("${@:2}") cache=$root/build/$1/CMakeCache.txt
  local output=$root/build/$1.configure.log
  if [[ -n ${CXX:-} && -f $cache ]] &&
    ! grep -q "^CMAKE_CXX_COMPILER:[A-Z]*=$(command -v "${CXX%% *}")\$" "$cache"; then
    arguments+=(--fresh)
  fi
  run_cmake() {
    cmake --preset "$preset" "${arguments[@]}" "-DSEQMIX_FETCH=$fetch" >"$output" 2>&1
  }

  say "configuring build/$preset (log: build/$preset.configure.log)"
  local fetch=OFF
  [[ ! -e $dependencies/downloaded ]] || fetch=ON
  if run_cmake; then return; fi

  local missing library downloads=()
  mapfile -t missing < <(sed -n 's/^-- missing: //p' "$output")
  for library in "${missing[@]}"; do
    say "needed: $library or newer"
    if ! { has apt-get && provide "${library% *}" "${library#* }"; }; then
      downloads+=("${library% *}")
    fi
  done
  rm -rf "$root/build/apt"
  if [[ ${#downloads[@]} -gt 0 ]]; then
    [[ -n ${https_proxy:-}${HTTPS_PROXY:-} ]] || getent hosts github.com >/dev/null ||
      fail "no package has ${downloads[*]}, and without a network connection no source can be had"
    say "downloading the pinned sources of ${downloads[*]}: no package has them"
    fetch=ON
  fi
  if ! { [[ ${#missing[@]} -gt 0 ]] && run_cmake; }; then
    cat "$output" >&2
    fail "CMake could not configure build/$preset: see above"
  fi
  [[ $fetch == OFF ]] || touch "$dependencies/downloaded"
}
