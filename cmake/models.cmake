# SPDX-License-Identifier: Apache-2.0
# Models of the protocols, each with mutants that it must catch: relacy runs the code of core/ under a model checker's
# atomics (tests/models/relacy), spin explores transcribed protocols exhaustively (tests/models/spin).
if(NOT NUMAPOOL_RELIABILITY)
  return()
endif()
include(CheckLanguage)
find_path(NPI_RELACY_DIR relacy/relacy.hpp)
check_language(CXX)
if(NUMAPOOL_SANITIZE)
  message(STATUS "models: skipped, a model checker's fibers and a sanitizer's stacks do not go together")
elseif(NOT NPI_RELACY_DIR OR NOT CMAKE_CXX_COMPILER)
  message(STATUS "relacy models: skipped, relacy or a C++ compiler is missing (Debian: relacy-dev)")
else()
  enable_language(CXX)
  set(relacy_dir "${PROJECT_SOURCE_DIR}/tests/models/relacy")
  file(GLOB model_core CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/lib/core/*.c" "${PROJECT_SOURCE_DIR}/lib/base/*.c")
  add_library(npi_model_core STATIC EXCLUDE_FROM_ALL ${model_core} "${relacy_dir}/side.c")
  target_include_directories(npi_model_core BEFORE PUBLIC "${relacy_dir}/shim" "${relacy_dir}")
  target_link_libraries(npi_model_core PUBLIC npi_flags)
  set(relacy_threads_ring 2)
  set(relacy_threads_broadcast 3)
  set(relacy_threads_sleep 3)
  set(relacy_threads_close 3)
  set(relacy_threads_attach 4)
  foreach(name IN ITEMS ring broadcast sleep close attach)
    add_executable(relacy_${name} "${relacy_dir}/relacy_main.cpp" "${relacy_dir}/model_${name}.c")
    set_target_properties(relacy_${name} PROPERTIES
      RUNTIME_OUTPUT_DIRECTORY "${NPI_TESTS_BIN_DIR}" CXX_STANDARD 17 LINKER_LANGUAGE CXX)
    target_include_directories(relacy_${name} SYSTEM PRIVATE "${NPI_RELACY_DIR}")
    target_compile_definitions(relacy_${name} PRIVATE MODEL_THREADS=${relacy_threads_${name}})
    target_link_libraries(relacy_${name} PRIVATE npi_model_core)
    add_test(NAME model.relacy_${name} COMMAND relacy_${name} --executions 500000)
    set_tests_properties(model.relacy_${name} PROPERTIES LABELS "reliability;model" TIMEOUT 300)
    add_test(NAME model.relacy_${name}_long COMMAND relacy_${name} --executions 10000000)
    set_tests_properties(model.relacy_${name}_long PROPERTIES LABELS "nightly;model" TIMEOUT 3600)
  endforeach()
endif()

# What the longer explorations are given. "pairs" is short: two publishers, whose rings have no second lap then.
set(spin_models sleep_wake adoption ring_credits close_publish)
set(spin_long_sleep_wake -DEVENTS=2)
set(spin_long_adoption -DCLIENTS=2 -DEVENTS=1)
set(spin_long_ring_credits -DEVENTS=4)
set(spin_long_close_publish -DEVENTS=3 -DCLOSES=3)
find_program(NPI_SPIN spin)
find_package(Python3 COMPONENTS Interpreter QUIET)
if(NUMAPOOL_SANITIZE)
  # They are programs of their own, to which this build's flags mean nothing.
elseif(NOT NPI_SPIN OR NOT Python3_FOUND)
  message(STATUS "spin models: skipped, spin or Python 3 is missing (Debian: spin python3)")
else()
  set(spin_dir "${PROJECT_SOURCE_DIR}/tests/models/spin")
  foreach(name IN LISTS spin_models)
    set(explore ${Python3_EXECUTABLE} "${spin_dir}/explore.py" "${spin_dir}/${name}.pml"
      --spin "${NPI_SPIN}" --cc "${CMAKE_C_COMPILER}")
    add_test(NAME model.spin_${name} COMMAND ${explore} --work "${NPI_TESTS_BIN_DIR}/spin/${name}")
    set_tests_properties(model.spin_${name} PROPERTIES LABELS "reliability;model" TIMEOUT 300 SKIP_RETURN_CODE 77)
    add_test(NAME model.spin_${name}_long COMMAND ${explore} --work "${NPI_TESTS_BIN_DIR}/spin/${name}_long"
      --mutant 0 ${spin_long_${name}})
    set_tests_properties(model.spin_${name}_long PROPERTIES
      LABELS "nightly;model" TIMEOUT 3600 SKIP_RETURN_CODE 77 RUN_SERIAL ON)
  endforeach()
  set(explore_pairs ${Python3_EXECUTABLE} "${spin_dir}/explore.py" "${spin_dir}/ring_credits.pml"
    --spin "${NPI_SPIN}" --cc "${CMAKE_C_COMPILER}" --mutant 0 -DPUBLISHERS=2 --beyond 1 --beyond 2)
  add_test(NAME model.spin_ring_credits_pairs COMMAND ${explore_pairs}
    --work "${NPI_TESTS_BIN_DIR}/spin/ring_credits_pairs" -DEVENTS=1 --beyond 10)
  set_tests_properties(model.spin_ring_credits_pairs PROPERTIES
    LABELS "reliability;model" TIMEOUT 300 SKIP_RETURN_CODE 77)
  add_test(NAME model.spin_ring_credits_pairs_long COMMAND ${explore_pairs}
    --work "${NPI_TESTS_BIN_DIR}/spin/ring_credits_pairs_long" -DEVENTS=2 -DDEATHS=1 --beyond 9)
  set_tests_properties(model.spin_ring_credits_pairs_long PROPERTIES
    LABELS "nightly;model" TIMEOUT 3600 SKIP_RETURN_CODE 77 RUN_SERIAL ON)
endif()
