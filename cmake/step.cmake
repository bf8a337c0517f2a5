# SPDX-License-Identifier: Apache-2.0
# The stepping harness: tests/step/step_NAME.c is a program, all other files there are common to them. The library's
# calls of what the harness plays itself are led to tests/step/seams.c by the linker. Label: reliability.
if(NUMAPOOL_SANITIZE OR NOT NUMAPOOL_RELIABILITY)
  return() # what is stepped is the code that is delivered
endif()
set(step_wrapped memcpy malloc calloc realloc free snprintf vsnprintf npi_endpoint_alloc npi_endpoint_free
  npi_client_tell npi_client_request npi_client_news npi_link_adopt_deferred npi_event_ring npi_event_clear
  npi_clock_monotonic npi_membarrier_all)
list(TRANSFORM step_wrapped PREPEND "LINKER:--wrap=" OUTPUT_VARIABLE step_link_options)

file(GLOB step_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/step/*.c")
set(step_programs ${step_sources})
list(FILTER step_programs INCLUDE REGEX "/step_[^/]*\\.c$")
set(step_common ${step_sources})
list(FILTER step_common EXCLUDE REGEX "/step_[^/]*\\.c$")

# A copy of the library with the seeded bugs, and the harness on it.
find_package(Python3 COMPONENTS Interpreter)
set(mutated "${PROJECT_BINARY_DIR}/mutated")
if(Python3_FOUND)
  set(mutated_sources "")
  file(GLOB_RECURSE library_files CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/lib/*.[ch]")
  foreach(file IN LISTS library_files)
    file(RELATIVE_PATH name "${PROJECT_SOURCE_DIR}" "${file}")
    list(APPEND mutated_sources "${mutated}/${name}")
  endforeach()
  add_custom_command(OUTPUT "${mutated}/mutants_table.h" ${mutated_sources}
    COMMAND Python3::Interpreter "${PROJECT_SOURCE_DIR}/tests/step/mutate.py" "${PROJECT_SOURCE_DIR}" "${mutated}"
    DEPENDS ${library_files} "${PROJECT_SOURCE_DIR}/tests/step/mutants.txt" "${PROJECT_SOURCE_DIR}/tests/step/mutate.py"
    COMMENT "Seeding bugs into a copy of the library")
else()
  message(STATUS "seeded bugs: skipped, Python 3 is missing")
  list(FILTER step_programs EXCLUDE REGEX "/step_mutants\\.c$")
endif()

# The library with a call before each of its accesses to memory: step_pairs lets two processes take turns there.
file(GLOB_RECURSE step_library_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/lib/*.c")
add_library(npi_step_hooked OBJECT ${step_library_sources})
target_link_libraries(npi_step_hooked PRIVATE npi_flags PkgConfig::NUMA)
target_compile_options(npi_step_hooked PRIVATE -fsanitize=thread -w)
list(FILTER step_common EXCLUDE REGEX "/pairs_hooks\\.c$")

list(FILTER step_programs EXCLUDE REGEX "/step_adoption\\.c$")

foreach(source IN LISTS step_programs)
  get_filename_component(name "${source}" NAME_WE)
  add_executable(reliability_${name} "${source}" ${step_common})
  set_target_properties(reliability_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${NPI_TESTS_BIN_DIR}")
  target_link_options(reliability_${name} PRIVATE ${step_link_options})
  if(name STREQUAL "step_mutants")
    target_sources(reliability_${name} PRIVATE ${mutated_sources} "${mutated}/mutants_table.h")
    target_include_directories(reliability_${name} BEFORE PRIVATE "${mutated}/lib" "${mutated}"
      "${PROJECT_SOURCE_DIR}/tests")
    target_link_libraries(reliability_${name} PRIVATE npi_flags PkgConfig::NUMA rt)
    target_compile_options(reliability_${name} PRIVATE -w)
  elseif(name STREQUAL "step_pairs")
    target_sources(reliability_${name} PRIVATE $<TARGET_OBJECTS:npi_step_hooked>
      "${PROJECT_SOURCE_DIR}/tests/step/pairs_hooks.c")
    target_include_directories(reliability_${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
    target_link_libraries(reliability_${name} PRIVATE npi_flags PkgConfig::NUMA rt)
  else()
    target_link_libraries(reliability_${name} PRIVATE npi_testing)
  endif()
  npi_add_test(${name} reliability 300 "${source}")
endforeach()

# The broker's own code with the same calls: each of its stores may be its last.
if(TARGET npi_daemon)
  get_target_property(step_daemon_sources npi_daemon SOURCES)
  add_library(npi_step_hooked_daemon OBJECT ${step_daemon_sources})
  target_link_libraries(npi_step_hooked_daemon PRIVATE npi_flags PkgConfig::URING PkgConfig::YAML PkgConfig::NUMA)
  target_compile_options(npi_step_hooked_daemon PRIVATE -fsanitize=thread -w)
  add_executable(reliability_step_adoption "${PROJECT_SOURCE_DIR}/tests/step/step_adoption.c"
    "${PROJECT_SOURCE_DIR}/tests/step/pairs_hooks.c"
    $<TARGET_OBJECTS:npi_step_hooked> $<TARGET_OBJECTS:npi_step_hooked_daemon>)
  set_target_properties(reliability_step_adoption PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${NPI_TESTS_BIN_DIR}")
  target_include_directories(reliability_step_adoption PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(reliability_step_adoption PRIVATE npi_flags PkgConfig::URING PkgConfig::YAML PkgConfig::NUMA rt)
  npi_add_test(step_adoption reliability 300 "${PROJECT_SOURCE_DIR}/tests/step/step_adoption.c")
endif()
