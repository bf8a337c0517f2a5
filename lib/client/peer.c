/* SPDX-License-Identifier: Apache-2.0 */
/* Peers: what other clients' memory this process has mapped, read-only, and for how long. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "client/client_internal.h"
#include "os/os_memory.h"

struct npi_peer *npi_peer_find(struct np_client *client, uint32_t index) {
  for (struct npi_peer *peer = client->peers; peer != NULL; peer = peer->next) {
    if (peer->client == index && !peer->gone) return peer;
  }
  return NULL;
}

void npi_peer_free(struct np_client *client, struct npi_peer *peer) {
  for (struct npi_peer **link = &client->peers; *link != NULL; link = &(*link)->next) {
    if (*link != peer) continue;
    *link = peer->next;
    break;
  }
  for (uint32_t i = 0; peer->segments != NULL && i < peer->n_segments; i++) {
    npi_memory_unmap((void *)(uintptr_t)peer->segments[i].base, peer->segments[i].bytes);
  }
  for (uint32_t i = 0; i < peer->n_kept; i++) {
    npi_memory_unmap((void *)(uintptr_t)peer->kept[i].base, peer->kept[i].bytes);
  }
  free(peer->kept);
  npi_memory_unmap(peer->page, peer->page_bytes);
  if (peer->events_fd >= 0) close(peer->events_fd);
  if (peer->credits_fd >= 0) close(peer->credits_fd);
  free(peer->segments);
  free(peer->segment_files);
  free(peer);
}

void npi_peers_forget_gone(struct np_client *client) {
  const struct npi_table *table = &client->clients_table;
  for (struct npi_peer *peer = client->peers, *next; peer != NULL; peer = next) {
    next = peer->next;
    if (peer->n_connections > 0 || peer->client >= table->count) continue;
    const struct npi_client_record *record =
        (const void *)(client->registry + table->offset + (uint64_t)peer->client * table->bytes);
    if (npi_load_relaxed_u32(&record->state) != NPI_RECORD_FREE && record->version == peer->version) continue;
    npi_peer_free(client, peer);
  }
}

/* Memory of a peer cannot be mapped: who is opening an endpoint is told, since it would never hear of that peer. */
static void note_unmapped(struct np_client *client, const char *what) {
  if (client->opening) client->unmapped = NP_ERR_NO_MEMORY; /* else the connection is refused, here or by who takes */
  snprintf(client->unmapped_words, sizeof client->unmapped_words, "%s: %s", what, npi_detail());
}

void npi_peer_add(struct np_client *client, const struct npi_control_frame *frame, int *fds, int n_fds) {
  struct npi_peer *peer = npi_peer_find(client, frame->body.peer.client);
  void *page = NULL;
  uint64_t bytes = 0;
  if (peer != NULL && peer->version == frame->body.peer.client_version) return; /* told again */
  if (peer != NULL) peer->gone = 1; /* an older life of that index, kept until its last connection ends */
  if (peer != NULL && peer->n_connections == 0) npi_peer_free(client, peer);
  peer = n_fds == 3 ? calloc(1, sizeof *peer) : NULL;
  if (peer == NULL) {
    note_unmapped(client, "no memory for a peer");
    return;
  }
  peer->events_fd = peer->credits_fd = -1;
  peer->client = frame->body.peer.client;
  peer->version = frame->body.peer.client_version;
  peer->pid = frame->body.peer.pid;
  memcpy(peer->name, frame->body.peer.name, sizeof peer->name);
  peer->name[sizeof peer->name - 1] = '\0';
  peer->page_bytes = frame->body.peer.page_bytes;
  peer->n_segments = client->pool.ledger.geometry.segments;
  peer->segments = calloc(peer->n_segments, sizeof *peer->segments);
  peer->segment_files = calloc(peer->n_segments, sizeof *peer->segment_files);
  peer->next = client->peers;
  client->peers = peer;
  /* A page that its owner could shrink under us would kill us: the seals say that nobody can. */
  if (peer->segments == NULL || peer->segment_files == NULL || npi_memory_size(fds[0], &bytes) < 0 ||
      bytes < peer->page_bytes || peer->page_bytes < sizeof(struct npi_page_shm) || npi_memory_is_sealed(fds[0]) != 1 ||
      npi_memory_map(fds[0], 0, peer->page_bytes, 0, &page) < 0) {
    npi_log(NPI_LOG_ERROR, "peer.refused", "client=%u pid=%u page_bytes=%llu", peer->client, peer->pid,
            (unsigned long long)peer->page_bytes);
    note_unmapped(client, "the page of a peer cannot be mapped");
    npi_peer_free(client, peer);
    return;
  }
  peer->page = page;
  peer->events_fd = fds[1];
  peer->credits_fd = fds[2];
  fds[1] = fds[2] = -1;
  const struct npi_page_shm *shm = (const void *)peer->page;
  peer->events_bell =
      (struct npi_bell_peer){.shm = &shm->events, .fd = peer->events_fd, .must_fence = !client->membarrier_works};
  peer->credits_bell =
      (struct npi_bell_peer){.shm = &shm->credits, .fd = peer->credits_fd, .must_fence = !client->membarrier_works};
}

#define LACKING UINT64_MAX /* in place of a file: announced, and could not be mapped */

int npi_peer_lacks(const struct npi_peer *peer, uint32_t number) {
  return number < peer->n_segments && peer->segments[number].base == NULL && peer->segment_files[number] == LACKING;
}

static void forget_segment(struct np_client *client, struct npi_peer *peer, uint32_t number);

void npi_peer_segment(struct np_client *client, const struct npi_control_frame *frame, int fd) {
  struct npi_peer *peer = npi_peer_find(client, frame->body.segment.client);
  uint32_t number = frame->body.segment.number;
  uint64_t bytes = frame->body.segment.bytes;
  uint64_t have = 0;
  struct stat file;
  void *base = NULL;
  if (peer == NULL || number >= peer->n_segments) return;
  if (fstat(fd, &file) != 0) {
    npi_fail_errno(NP_ERR_SYSTEM, errno, "cannot look at segment %u", number);
    if (peer->segments[number].base == NULL) peer->segment_files[number] = LACKING;
    note_unmapped(client, "a segment of a peer cannot be mapped");
    return;
  }
  if (peer->segments[number].base != NULL) {
    if (peer->segment_files[number] == file.st_ino && peer->segments[number].bytes == bytes) return; /* told again */
    forget_segment(client, peer, number); /* the word that it is gone was lost with a broker */
  }
  if (npi_memory_size(fd, &have) < 0 || have < bytes || npi_memory_map(fd, 0, bytes, 0, &base) < 0) {
    npi_log(NPI_LOG_ERROR, "segment.refused", "client=%u number=%u bytes=%llu have=%llu", peer->client, number,
            (unsigned long long)bytes, (unsigned long long)have);
    peer->segment_files[number] = LACKING;
    note_unmapped(client, "a segment of a peer cannot be mapped");
    return;
  }
  npi_memory_populate(base, bytes, 0); /* or each page's first event costs a fault; failing is not fatal */
  peer->segments[number] = (struct npi_segment_view){.base = base, .bytes = bytes};
  peer->segment_files[number] = file.st_ino;
}

/* Does the program hold an event that lies in this segment? */
static int is_held(const struct np_client *client, const struct npi_peer *peer, uint32_t number) {
  for (uint32_t i = 0; i < client->n_links; i++) {
    const struct npi_link *link = client->links[i];
    if (link == NULL || link->role != NPI_ROLE_SUBSCRIBER || link->peer != peer) continue;
    for (uint32_t credit = 0; npi_inlet_held(&link->inlet) > 0 && credit < link->inlet.capacity; credit++) {
      uint64_t element = link->inlet.held[credit];
      if (element != 0 && npi_handle_segment(npi_element_handle(element)) == number) return 1;
    }
  }
  return 0;
}

/*
 * A publisher says that nobody has anything of it. Where that is wrong (a lie, or its slots came back when the
 * connection was closed for one) the program's pointers into the segment must stay pointers into something.
 */
static void keep_mapped(struct npi_peer *peer, const struct npi_segment_view *segment) {
  struct npi_segment_view *kept = realloc(peer->kept, (peer->n_kept + 1) * sizeof *kept);
  if (kept == NULL) return; /* stays mapped as well, and for good */
  kept[peer->n_kept++] = *segment;
  peer->kept = kept;
}

static void forget_segment(struct np_client *client, struct npi_peer *peer, uint32_t number) {
  struct npi_segment_view segment = peer->segments[number];
  peer->segments[number] = (struct npi_segment_view){0};
  peer->segment_files[number] = 0;
  if (segment.base != NULL && is_held(client, peer, number)) {
    keep_mapped(peer, &segment);
  } else {
    npi_memory_unmap((void *)(uintptr_t)segment.base, segment.bytes);
  }
}

void npi_peer_segment_gone(struct np_client *client, const struct npi_control_frame *frame) {
  struct npi_peer *peer = npi_peer_find(client, frame->body.segment.client);
  uint32_t number = frame->body.segment.number;
  if (peer != NULL && number < peer->n_segments) forget_segment(client, peer, number);
}

void npi_peer_gone(struct np_client *client, uint32_t index, uint32_t version) {
  struct npi_peer *peer = npi_peer_find(client, index);
  if (peer == NULL || peer->version != version) return;
  peer->gone = 1;
  if (peer->n_connections == 0) npi_peer_free(client, peer);
}

void npi_peer_release(struct np_client *client, struct npi_peer *peer) {
  peer->n_connections--;
  if (peer->n_connections == 0 && peer->gone) npi_peer_free(client, peer);
}
