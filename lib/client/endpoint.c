/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of publishers and subscribers. Each has a page of its own that a forked child finds zeroed, so that the
 * data path learns of a fork from a pointer that it loads anyway.
 */
#include <errno.h>
#include <sys/mman.h>

#include "base/status.h"
#include "client/client_internal.h"

_Static_assert(sizeof(struct np_publisher) <= NPI_PAGE && sizeof(struct np_subscriber) <= NPI_PAGE, "one page each");

void *npi_endpoint_alloc(void) {
  void *page = mmap(NULL, NPI_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) {
    npi_fail_errno(NP_ERR_NO_MEMORY, errno, "cannot map a page for an endpoint");
    return NULL;
  }
  if (madvise(page, NPI_PAGE, MADV_WIPEONFORK) != 0) {
    npi_fail_errno(NP_ERR_NO_MEMORY, errno, "madvise(MADV_WIPEONFORK) failed; Linux 4.14 or later is needed");
    return npi_endpoint_free(page);
  }
  return page;
}

void *npi_endpoint_free(void *endpoint) {
  if (endpoint != NULL) munmap(endpoint, NPI_PAGE);
  return NULL;
}
