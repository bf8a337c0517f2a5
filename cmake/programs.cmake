# SPDX-License-Identifier: Apache-2.0
# The broker, the operator's tool, the examples and the benchmarks.

# Everything of the broker except main() is a library, so that unit tests reach its parsers and decoders.
file(GLOB daemon_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/daemon/*.c")
set(daemon_main "${PROJECT_SOURCE_DIR}/daemon/main.c")
list(FIND daemon_sources "${daemon_main}" daemon_main_index)
list(REMOVE_ITEM daemon_sources "${daemon_main}")
if(daemon_sources)
  add_library(npi_daemon STATIC ${daemon_sources})
  target_link_libraries(npi_daemon
    PUBLIC numapool_client_static PkgConfig::URING PkgConfig::YAML PkgConfig::NUMA
    PRIVATE npi_flags)
endif()
if(daemon_sources AND daemon_main_index GREATER_EQUAL 0)
  add_executable(numapoold "${daemon_main}")
  target_link_libraries(numapoold PRIVATE npi_flags npi_daemon)
else()
  message(STATUS "numapoold: skipped, daemon/ has no main.c and parts yet")
endif()

file(GLOB ctl_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tools/numapoolctl/*.c")
if(ctl_sources)
  add_executable(numapoolctl ${ctl_sources})
  target_link_libraries(numapoolctl PRIVATE npi_flags numapool_client_static PkgConfig::JANSSON PkgConfig::NUMA)
else()
  message(STATUS "numapoolctl: skipped, tools/numapoolctl has no source file")
endif()

# Examples see what a user sees: the public headers, the shared library, plain C11.
set(NPI_EXAMPLE_TARGETS "")
file(GLOB example_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/examples/*.c")
foreach(source IN LISTS example_sources)
  get_filename_component(name "${source}" NAME_WE)
  add_executable(example_${name} "${source}")
  set_target_properties(example_${name} PROPERTIES
    OUTPUT_NAME ${name} C_STANDARD 11 RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/examples")
  target_link_libraries(example_${name} PRIVATE numapool::client npi_warnings)
  list(APPEND NPI_EXAMPLE_TARGETS example_${name})
endforeach()

if(NUMAPOOL_BENCH)
  file(GLOB bench_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/bench/bench_*.c")
  file(GLOB bench_parts CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/bench/*.c")
  list(REMOVE_ITEM bench_parts ${bench_sources} "")
  foreach(source IN LISTS bench_sources)
    get_filename_component(name "${source}" NAME_WE)
    add_executable(${name} "${source}" ${bench_parts})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
    target_link_libraries(${name} PRIVATE npi_flags numapool_client_static PkgConfig::URING PkgConfig::NUMA m)
  endforeach()
endif()
