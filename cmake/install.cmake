# Install rules and the package that find_package(seqmix) reads. All of it is independent of the
# machine, so it goes to share/. The program `verify` is installed beside where it is built: tests.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_directory "${CMAKE_INSTALL_DATADIR}/cmake/seqmix")

install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN *.hpp)
install(TARGETS seqmix EXPORT seqmix-targets INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT seqmix-targets NAMESPACE seqmix:: DESTINATION "${package_directory}")
if(SEQMIX_IO)
  install(TARGETS seqmix_io EXPORT seqmix-io-targets)
  install(EXPORT seqmix-io-targets NAMESPACE seqmix:: DESTINATION "${package_directory}")
endif()

write_basic_package_version_file(
  "${PROJECT_BINARY_DIR}/seqmix-config-version.cmake"
  COMPATIBILITY SameMinorVersion
  ARCH_INDEPENDENT
)
install(
  FILES "${PROJECT_SOURCE_DIR}/cmake/seqmix-config.cmake"
        "${PROJECT_SOURCE_DIR}/cmake/compiled.cmake" "${PROJECT_SOURCE_DIR}/cmake/find.cmake"
        "${PROJECT_BINARY_DIR}/seqmix-config-version.cmake"
  DESTINATION "${package_directory}"
)
install(DIRECTORY "${PROJECT_SOURCE_DIR}/cmake/compiled" DESTINATION "${package_directory}")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DATADIR}/doc/seqmix")
