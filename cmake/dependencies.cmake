# Provides the dependencies as targets: what is installed first, else pinned sources.

include("${CMAKE_CURRENT_LIST_DIR}/find.cmake")
include(FetchContent)

set(seqmix_minimum_Catch2 3.4)
set(seqmix_target_Catch2 Catch2::Catch2WithMain)
set(seqmix_source_Catch2
    "catch2 of Debian 13 and Ubuntu 24.04 or newer, or github.com/catchorg/Catch2")
set(seqmix_minimum_benchmark 1.7)
set(seqmix_target_benchmark benchmark::benchmark)
set(seqmix_source_benchmark "libbenchmark-dev of Debian and Ubuntu, or github.com/google/benchmark")

FetchContent_Declare(
  eigen
  URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz
  URL_HASH SHA256=8586084f71f9bde545ee7fa6d00288b264a2b7ac3607b974e54d13e7162c1c72
  SOURCE_SUBDIR none # only the headers are wanted, not the project's own targets
)
FetchContent_Declare(
  xsimd
  URL https://github.com/xtensor-stack/xsimd/archive/refs/tags/14.3.0.tar.gz
  URL_HASH SHA256=b3d50e7a73fbf4642ceef30131c93414901d69eee41c2a5302db650b03e2c792
  SOURCE_SUBDIR none
)
FetchContent_Declare(
  nlohmann_json
  URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
  URL_HASH SHA256=d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d
  SOURCE_SUBDIR none
)
FetchContent_Declare(
  Catch2
  URL https://github.com/catchorg/Catch2/archive/refs/tags/v3.7.1.tar.gz
  URL_HASH SHA256=c991b247a1a0d7bb9c39aa35faf0fe9e19764213f28ffba3109388e62ee0269c
  SYSTEM
)
FetchContent_Declare(
  benchmark
  URL https://github.com/google/benchmark/archive/refs/tags/v1.9.1.tar.gz
  URL_HASH SHA256=32131c08ee31eeff2c8968d7e874f3cb648034377dfc32a4c377fa8796d84981
  SYSTEM
)

# Unpacks a header-only source and gives it the target that the installed package would have.
function(seqmix_fetch_headers source target include_directory)
  FetchContent_MakeAvailable(${source})
  if(NOT TARGET ${target})
    add_library(${target} INTERFACE IMPORTED GLOBAL)
    target_include_directories(
      ${target} INTERFACE "${${source}_SOURCE_DIR}/${include_directory}"
    )
  endif()
endfunction()

function(seqmix_fetch package)
  if(TARGET ${seqmix_target_${package}})
    message(FATAL_ERROR "seqmix needs ${package} ${seqmix_minimum_${package}} or newer, but "
                        "${${package}_VERSION} was found first: put the newer one's prefix in "
                        "CMAKE_PREFIX_PATH")
  endif()
  message(STATUS "seqmix downloads ${package}: ${seqmix_minimum_${package}} or newer is not installed")
  if(package STREQUAL "Eigen3")
    seqmix_fetch_headers(eigen Eigen3::Eigen .)
  elseif(package STREQUAL "xsimd")
    seqmix_fetch_headers(xsimd xsimd::xsimd include)
  elseif(package STREQUAL "nlohmann_json")
    seqmix_fetch_headers(nlohmann_json nlohmann_json::nlohmann_json include)
  else()
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    set(BENCHMARK_ENABLE_WERROR OFF)
    set(CMAKE_POLICY_DEFAULT_CMP0077 NEW) # the lines above override the project's options
    FetchContent_MakeAvailable(${package})
  endif()
endfunction()

# What is provided belongs to the whole build: a project around us links seqmix too.
set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)

set(packages Eigen3 xsimd)
if(SEQMIX_IO)
  list(APPEND packages nlohmann_json)
endif()
set(installed_with_us ${packages})
if(SEQMIX_BUILD_TESTS)
  list(APPEND packages Catch2)
endif()
if(SEQMIX_BUILD_BENCH)
  list(APPEND packages benchmark)
endif()

set(missing "")
foreach(package IN LISTS packages)
  seqmix_find(${package})
  if(NOT ${package}_FOUND)
    list(APPEND missing ${package})
  endif()
endforeach()

if(missing AND NOT SEQMIX_FETCH)
  set(sentences "")
  foreach(package IN LISTS missing)
    message(STATUS "missing: ${package} ${seqmix_minimum_${package}}") # setup.sh reads this line
    string(APPEND sentences "seqmix ${${package}_MISSING}\n")
  endforeach()
  message(FATAL_ERROR "${sentences}Or let CMake download what is missing: SEQMIX_FETCH=ON")
endif()
foreach(package IN LISTS missing)
  seqmix_fetch(${package})
  if(SEQMIX_INSTALL AND package IN_LIST installed_with_us)
    message(STATUS "seqmix makes no install rules: ${package} is not installed, so nobody could use "
                   "the result")
    set(SEQMIX_INSTALL OFF)
  endif()
endforeach()
