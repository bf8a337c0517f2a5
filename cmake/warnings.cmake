# SPDX-License-Identifier: Apache-2.0
# The warnings of every C file of the tree, in one place. Link npi_warnings privately.
add_library(npi_warnings INTERFACE)
target_compile_options(npi_warnings INTERFACE
  "$<$<COMPILE_LANGUAGE:C>:-Wall;-Wextra;-Wshadow;-Wstrict-prototypes;-Wmissing-prototypes;-Wpointer-arith;-Wundef;-Wvla>")
if(NUMAPOOL_WERROR)
  target_compile_options(npi_warnings INTERFACE "$<$<COMPILE_LANGUAGE:C>:-Werror>")
endif()
