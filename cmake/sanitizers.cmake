# SPDX-License-Identifier: Apache-2.0
# NUMAPOOL_SANITIZE: one sanitizer for the whole build, because half a sanitized program reports nonsense.
if(NUMAPOOL_SANITIZE STREQUAL "address")
  # Half as long to build as with the usual optimization. With less of it gcc cannot tell which texts fit.
  set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O1 -g1")
  add_compile_options(-Wno-format-truncation)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(NUMAPOOL_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
  if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
    add_compile_options(-Wno-tsan) # gcc warns about every fence; the doorbell needs one
  endif()
elseif(NUMAPOOL_SANITIZE)
  message(FATAL_ERROR "NUMAPOOL_SANITIZE is '${NUMAPOOL_SANITIZE}': use 'address' (with undefined), 'thread' or nothing")
endif()

# ThreadSanitizer's shadow memory collides with the wide address randomisation of newer kernels, so its
# programs are started without it where the machine lets us.
set(NPI_TEST_LAUNCHER "")
if(NUMAPOOL_SANITIZE STREQUAL "thread")
  execute_process(COMMAND setarch -R true RESULT_VARIABLE npi_setarch_result OUTPUT_QUIET ERROR_QUIET)
  if(npi_setarch_result EQUAL 0)
    set(NPI_TEST_LAUNCHER setarch -R)
  endif()
endif()
