# Finds installed dependencies; used by seqmix's own build and by its installed package, so that
# CMake 3.16 must understand it.

set(seqmix_minimum_Eigen3 3.4)
set(seqmix_minimum_xsimd 13)
set(seqmix_minimum_nlohmann_json 3.11)

set(seqmix_target_Eigen3 Eigen3::Eigen)
set(seqmix_target_xsimd xsimd::xsimd)
set(seqmix_target_nlohmann_json nlohmann_json::nlohmann_json)

set(seqmix_source_Eigen3 "libeigen3-dev of Debian and Ubuntu, or gitlab.com/libeigen/eigen")
set(seqmix_source_xsimd "libxsimd-dev of Debian 13 or newer, or github.com/xtensor-stack/xsimd")
set(seqmix_source_nlohmann_json
    "nlohmann-json3-dev of Debian and Ubuntu, or github.com/nlohmann/json")

# Every later major version of these will do, but their version files refuse one: they are looked up
# without a version, and the version is compared here.
set(seqmix_newer_majors Eigen3 xsimd)

# seqmix_find(<package>) makes seqmix_target_<package>, or sets <package>_FOUND to FALSE and
# <package>_MISSING to a sentence about it.
function(seqmix_find package)
  set(target ${seqmix_target_${package}})
  set(minimum ${seqmix_minimum_${package}})
  if(TARGET ${target})  # the project around us brings it
    set(${package}_FOUND TRUE PARENT_SCOPE)
    return()
  endif()

  if(NOT DEFINED XSIMD_ENABLE_XTL_COMPLEX)
    set(XSIMD_ENABLE_XTL_COMPLEX OFF)  # Debian's xsimd asks for one more library, for complex numbers
  endif()
  set(found "")
  if(package IN_LIST seqmix_newer_majors)
    find_package(${package} QUIET CONFIG)
    if(${package}_FOUND AND ${package}_VERSION VERSION_LESS minimum)
      set(${package}_FOUND FALSE)
      set(found ", but ${${package}_VERSION} was found")
      unset(${package}_DIR CACHE)  # so that the next run looks again
    endif()
  else()
    find_package(${package} ${minimum} QUIET CONFIG)
    if(NOT ${package}_FOUND AND ${package}_CONSIDERED_VERSIONS)
      set(found ", but ${${package}_CONSIDERED_VERSIONS} was found")
    endif()
  endif()

  # An installed xsimd calls its target `xsimd`, which a linker would take for a library's name.
  if(${package}_FOUND AND NOT TARGET ${target})
    if(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL)
      set(scope GLOBAL)
    endif()
    get_target_property(directories ${package} INTERFACE_INCLUDE_DIRECTORIES)
    add_library(${target} INTERFACE IMPORTED ${scope})
    target_include_directories(${target} INTERFACE ${directories})
  endif()
  set(${package}_FOUND ${${package}_FOUND} PARENT_SCOPE)
  string(
    CONCAT missing "needs ${package} ${minimum} or newer${found}. "
           "It is ${seqmix_source_${package}}. CMAKE_PREFIX_PATH says where else to look"
  )
  set(${package}_MISSING "${missing}" PARENT_SCOPE)
endfunction()
