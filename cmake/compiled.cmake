# The library compiled once; used by seqmix's own build and by its installed package, so that CMake
# 3.16 must understand it.

set(seqmix_compiled_sources "${CMAKE_CURRENT_LIST_DIR}/compiled")

set(SEQMIX_COMPILED_SCALARS "float;double" CACHE STRING "The scalars that seqmix::compiled is for")

# seqmix_add_compiled(<target> <scalar>...) adds a static library of the kernels and layers for float,
# double or both. It is built in the project that uses it, with that project's flags: a program must
# be built with the same -m flags, else it does not link. In each source what stands above the
# redefined SEQMIX_EXTERN is compiled by another one, hence no unity build.
function(seqmix_add_compiled target)
  file(GLOB sources CONFIGURE_DEPENDS "${seqmix_compiled_sources}/*.cpp")
  add_library(${target} STATIC EXCLUDE_FROM_ALL ${sources})
  set_target_properties(${target} PROPERTIES UNITY_BUILD OFF)
  target_link_libraries(${target} PUBLIC seqmix::io)
  foreach(scalar IN LISTS ARGN)
    if(NOT scalar MATCHES "^(float|double)$")
      message(FATAL_ERROR "SEQMIX_COMPILED_SCALARS has ${scalar}, expected float or double")
    endif()
    string(TOUPPER "SEQMIX_COMPILED_${scalar}" definition)
    target_compile_definitions(${target} PUBLIC ${definition})
  endforeach()
endfunction()
