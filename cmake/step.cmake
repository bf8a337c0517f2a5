# SPDX-License-Identifier: Apache-2.0
# The stepping harness: tests/step/step_NAME.c is a program, all other files there are common to them. The library's
# calls of what the harness plays itself are led to tests/step/seams.c by the linker. Label: reliability.
if(NUMAPOOL_SANITIZE OR NOT NUMAPOOL_RELIABILITY)
  return() # what is stepped is the code that is delivered
endif()
set(step_wrapped malloc calloc realloc free snprintf vsnprintf npi_client_tell npi_client_request npi_client_news
  npi_link_adopt_deferred npi_event_ring npi_event_clear npi_clock_monotonic npi_membarrier_all)
list(TRANSFORM step_wrapped PREPEND "LINKER:--wrap=" OUTPUT_VARIABLE step_link_options)

file(GLOB step_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/step/*.c")
set(step_programs ${step_sources})
list(FILTER step_programs INCLUDE REGEX "/step_[^/]*\\.c$")
set(step_common ${step_sources})
list(FILTER step_common EXCLUDE REGEX "/step_[^/]*\\.c$")
foreach(source IN LISTS step_programs)
  get_filename_component(name "${source}" NAME_WE)
  add_executable(reliability_${name} "${source}" ${step_common})
  set_target_properties(reliability_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${NPI_TESTS_BIN_DIR}")
  target_link_libraries(reliability_${name} PRIVATE npi_testing)
  target_link_options(reliability_${name} PRIVATE ${step_link_options})
  npi_add_test(${name} reliability 300 "${source}")
endforeach()
