# SPDX-License-Identifier: Apache-2.0
# Tests inside an emulated machine with four NUMA nodes and an older kernel (tools/vm.sh). One ctest test starts the
# machine once and runs all programs in it; where there is no machine to be had it says why and is skipped.
if(NOT CRITERION_FOUND OR NOT TARGET numapoold OR NOT NUMAPOOL_RELIABILITY OR NUMAPOOL_SANITIZE)
  return()
endif()

add_custom_target(vm_tests)
file(GLOB vm_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/vm/test_*.c"
  "${PROJECT_SOURCE_DIR}/tests/vm/nightly_*.c")
set(vm_programs "")
set(vm_nightly "")
foreach(source IN LISTS vm_sources)
  get_filename_component(name "${source}" NAME_WE)
  string(REGEX REPLACE "^test_" "" name "${name}")
  npi_add_test_program(vm_${name} "${source}" ${daemon_library} PkgConfig::CRITERION PkgConfig::JANSSON)
  add_dependencies(vm_${name} ${process_targets})
  add_dependencies(vm_tests vm_${name})
  if(name MATCHES "^nightly_")
    list(APPEND vm_nightly vm_${name})
  else()
    list(APPEND vm_programs vm_${name})
  endif()
endforeach()
add_dependencies(vm_tests reliability_storm_clients integration_identity)

# 10,000 kills take minutes there; 500 are as many as one check of the storm covers.
set(vm_all "${PROJECT_SOURCE_DIR}/tests/vm/all.sh")
add_test(NAME vm.four_nodes COMMAND bash "${PROJECT_SOURCE_DIR}/tools/vm.sh" --build "${PROJECT_BINARY_DIR}"
  --memory 1G --timeout 480 --add "${vm_all}" --add "$<TARGET_FILE:reliability_storm_clients>"
  --add "$<TARGET_FILE:integration_identity>"
  -- sh "${vm_all}" ${vm_programs} integration_identity STORM_KILLS=500 reliability_storm_clients)
set_tests_properties(vm.four_nodes PROPERTIES LABELS vm TIMEOUT 500 SKIP_RETURN_CODE 77 RUN_SERIAL ON)

# Sets the clock of its machine and freezes processes for a minute each.
add_test(NAME vm.nightly COMMAND bash "${PROJECT_SOURCE_DIR}/tools/vm.sh" --build "${PROJECT_BINARY_DIR}"
  --timeout 880 --add "${vm_all}" -- sh "${vm_all}" ${vm_nightly})
set_tests_properties(vm.nightly PROPERTIES LABELS nightly TIMEOUT 900 SKIP_RETURN_CODE 77 RUN_SERIAL ON)
