# find_package(seqmix [COMPONENTS io]): seqmix::seqmix and seqmix::io, which reads files. Without
# nlohmann-json the component io is not found, and who links seqmix::io all the same is told why.

cmake_policy(VERSION 3.16)
include("${CMAKE_CURRENT_LIST_DIR}/find.cmake")

set(seqmix_FOUND TRUE)
foreach(package Eigen3 xsimd)
  seqmix_find(${package})
  if(NOT ${package}_FOUND)
    set(seqmix_FOUND FALSE)
    string(APPEND seqmix_NOT_FOUND_MESSAGE "seqmix ${${package}_MISSING}. ")
  endif()
endforeach()
if(NOT seqmix_FOUND)
  return()
endif()
include("${CMAKE_CURRENT_LIST_DIR}/seqmix-targets.cmake")

set(seqmix_io_FOUND FALSE)
if(EXISTS "${CMAKE_CURRENT_LIST_DIR}/seqmix-io-targets.cmake")
  seqmix_find(nlohmann_json)
  set(seqmix_io_FOUND ${nlohmann_json_FOUND})
  set(seqmix_io_MISSING "seqmix::io ${nlohmann_json_MISSING}")
else()
  set(seqmix_io_MISSING "seqmix::io is not installed: this seqmix was built with SEQMIX_IO=OFF")
endif()
if(seqmix_io_FOUND)
  include("${CMAKE_CURRENT_LIST_DIR}/seqmix-io-targets.cmake")
elseif(NOT TARGET seqmix::io)
  # No generator expression has such a name: CMake refuses it, with the sentence, if it is linked.
  add_library(seqmix::io INTERFACE IMPORTED)
  set_target_properties(
    seqmix::io PROPERTIES INTERFACE_COMPILE_DEFINITIONS "$<${seqmix_io_MISSING}>"
  )
endif()

foreach(component IN LISTS seqmix_FIND_COMPONENTS)
  if(NOT component STREQUAL "io")
    set(seqmix_${component}_FOUND FALSE)
    set(seqmix_${component}_MISSING "seqmix has no component ${component}; there is io")
  endif()
  if(seqmix_FIND_REQUIRED_${component} AND NOT seqmix_${component}_FOUND)
    set(seqmix_FOUND FALSE)
    string(APPEND seqmix_NOT_FOUND_MESSAGE "${seqmix_${component}_MISSING}. ")
  endif()
endforeach()
