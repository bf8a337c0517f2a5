# SPDX-License-Identifier: Apache-2.0
# lib/: one object library a layer (npi_base ...), all of them together as numapool_client (shared) and
# numapool_client_static. The layers are listed bottom up; tools/check_layers.py holds the includes to that order.
set(NPI_LIBRARY_OBJECTS "")
foreach(layer IN ITEMS base os shm core wire client)
  file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/lib/${layer}/*.c")
  if(NOT sources)
    message(STATUS "lib/${layer} has no source file")
    continue()
  endif()
  add_library(npi_${layer} OBJECT ${sources})
  target_link_libraries(npi_${layer} PRIVATE npi_flags)
  # Two words stored as one vector cost more instructions than they save, and a load of one of them waits.
  target_compile_options(npi_${layer} PRIVATE -fno-tree-slp-vectorize)
  list(APPEND NPI_LIBRARY_OBJECTS $<TARGET_OBJECTS:npi_${layer}>)
endforeach()

foreach(kind IN ITEMS SHARED STATIC)
  set(target numapool_client)
  if(kind STREQUAL "STATIC")
    set(target numapool_client_static)
  endif()
  add_library(${target} ${kind} ${NPI_LIBRARY_OBJECTS})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME numapool-client LINKER_LANGUAGE C)
  target_include_directories(${target} PUBLIC
    "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>" "$<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>")
  target_include_directories(${target} INTERFACE "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
  # Plain names, not imported targets: they are written into the installed CMake package.
  target_link_libraries(${target} PRIVATE numa rt Threads::Threads)
endforeach()

set(version_script "${PROJECT_SOURCE_DIR}/lib/numapool.map")
set_target_properties(numapool_client PROPERTIES
  VERSION ${PROJECT_VERSION} SOVERSION 0 EXPORT_NAME client LINK_DEPENDS "${version_script}")
target_link_options(numapool_client PRIVATE "LINKER:--version-script=${version_script}" LINKER:--as-needed)
if(NOT NUMAPOOL_SANITIZE)
  target_link_options(numapool_client PRIVATE LINKER:-z,defs) # a missing symbol is found here, not in the user's program
endif()
set_target_properties(numapool_client_static PROPERTIES EXPORT_NAME client_static)

add_library(numapool::client ALIAS numapool_client)
add_library(numapool::client_static ALIAS numapool_client_static)
