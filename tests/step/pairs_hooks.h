/* SPDX-License-Identifier: Apache-2.0 */
/* What the library calls before each of its accesses to memory, where it is compiled with -fsanitize=thread. */
#ifndef NUMAPOOL_TESTS_STEP_PAIRS_HOOKS_H
#define NUMAPOOL_TESTS_STEP_PAIRS_HOOKS_H

/* From now on hook is called: an access to this address follows, a store or a load. NULL: no more. */
void pairs_hook(void (*hook)(const void *address, int is_store));

#endif
