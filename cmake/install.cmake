# SPDX-License-Identifier: Apache-2.0
# cmake --install: programs, headers, both libraries, the pkg-config file, the CMake package, the systemd unit, the
# documents that the unit refers to.
include(CMakePackageConfigHelpers)

install(TARGETS numapool_client numapool_client_static EXPORT numapool-targets
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
foreach(program IN ITEMS numapoold numapoolctl)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  endif()
endforeach()

install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/numapool" "${PROJECT_BINARY_DIR}/include/numapool"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")

# The pkg-config file finds its own prefix, so that an installed tree can be moved or staged.
file(RELATIVE_PATH NPI_PC_TO_PREFIX
  "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
string(REGEX REPLACE "/$" "" NPI_PC_TO_PREFIX "${NPI_PC_TO_PREFIX}")
configure_file(cmake/numapool-client.pc.in "${PROJECT_BINARY_DIR}/numapool-client.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/numapool-client.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

set(NPI_CMAKE_DIR "${CMAKE_INSTALL_LIBDIR}/cmake/numapool")
install(EXPORT numapool-targets NAMESPACE numapool:: DESTINATION "${NPI_CMAKE_DIR}")
configure_package_config_file(cmake/numapool-config.cmake.in "${PROJECT_BINARY_DIR}/numapool-config.cmake"
  INSTALL_DESTINATION "${NPI_CMAKE_DIR}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/numapool-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/numapool-config.cmake" "${PROJECT_BINARY_DIR}/numapool-config-version.cmake"
  DESTINATION "${NPI_CMAKE_DIR}")

configure_file(packaging/numapoold.service.in "${PROJECT_BINARY_DIR}/numapoold.service" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/numapoold.service" DESTINATION lib/systemd/system)
install(FILES README.md CHANGELOG.md SECURITY.md LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")
install(DIRECTORY docs DESTINATION "${CMAKE_INSTALL_DOCDIR}" FILES_MATCHING PATTERN "*.md")
