/* SPDX-License-Identifier: Apache-2.0 */
/* A client's life: find the broker, say hello, map what it sends; and the end. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/status.h"
#include "client/client_internal.h"
#include "client/worker.h"
#include "os/os_clock.h"
#include "os/os_memory.h"
#include "os/os_numa.h"
#include "os/os_socket.h"
#include "os/os_wait.h"
#include "wire/channel.h"
#include "wire/locate.h"

enum { HELLO_TIMEOUT_MS = 5000, RETRY_NS = 20000000 };
enum { FD_REGISTRY, FD_PAGE, FD_LEDGER, FD_EVENTS, FD_CREDITS, FD_COUNT };

void np_options_init(struct np_options *options) {
  *options = (struct np_options){.size = sizeof *options, .node = -1};
}

int npi_client_forked(void) {
  return npi_fail(NP_ERR_FORKED, "this handle was opened by the parent process: connect anew after fork()");
}

/* One page that a child finds full of zeros: how a handle knows, by one load, that it was inherited. */
static int make_alive(struct np_client *client) {
  void *page = mmap(NULL, NPI_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return npi_fail_errno(NP_ERR_NO_MEMORY, errno, "cannot map a page");
  client->alive = page;
  if (madvise(page, NPI_PAGE, MADV_WIPEONFORK) != 0) {
    return npi_fail_errno(NP_ERR_SYSTEM, errno, "madvise(MADV_WIPEONFORK) failed; Linux 4.14 or later is needed");
  }
  *client->alive = NPI_CLIENT_ALIVE;
  return 0;
}

/* The registry is the broker's; all the same its offsets are checked once, and only the copies are used. */
static int attach_registry(struct np_client *client, int fd, uint64_t announced) {
  uint64_t bytes = 0;
  void *address = NULL;
  int status = npi_memory_size(fd, &bytes);
  if (status < 0) return status;
  if (bytes < announced || announced < sizeof(struct npi_registry_header)) {
    return npi_fail(NP_ERR_PROTOCOL, "the registry has %llu bytes, %llu were announced", (unsigned long long)bytes,
                    (unsigned long long)announced);
  }
  status = npi_memory_map(fd, 0, announced, 0, &address);
  if (status < 0) return status;
  client->registry = address;
  client->registry_bytes = announced;
  const struct npi_registry_header *header = address;
  /* [registry.attach] acquire: geometry and tables, of which copies are kept. Pairs with [registry.publish]. */
  if (npi_load_acquire_u64(&header->magic) != NPI_MAGIC_REGISTRY || header->layout_version != NPI_LAYOUT_VERSION) {
    return npi_fail(NP_ERR_VERSION,
                    "the broker's shared-memory layout is version %u, this library knows %u: use the same release",
                    header->layout_version, NPI_LAYOUT_VERSION);
  }
  const struct npi_table tables[] = {header->clients, header->nodes, header->listeners, header->connections,
                                     header->channels};
  const uint32_t least[] = {sizeof(struct npi_client_record), sizeof(struct npi_node_record),
                            sizeof(struct npi_listener_record), sizeof(struct npi_connection_record),
                            sizeof(struct npi_channel_record)};
  for (unsigned i = 0; i < NPI_ARRAY_COUNT(tables); i++) {
    if (tables[i].bytes < least[i] || tables[i].offset > announced ||
        (uint64_t)tables[i].count * tables[i].bytes > announced - tables[i].offset) {
      return npi_fail(NP_ERR_CORRUPT, "table %u of the registry lies outside of it", i);
    }
  }
  client->instance_id = header->instance_id;
  if ((header->features & NPI_FEATURE_OTHER_USERS) != 0) npi_event_guard();
  client->clients_table = tables[0];
  client->nodes_table = tables[1];
  client->listeners_table = tables[2];
  client->connections_table = tables[3];
  client->channels_table = tables[4];
  client->rings_offset = header->page_rings_offset;
  client->endpoints_offset = header->page_endpoints_offset;
  client->listeners_offset = header->page_listeners_offset;
  client->endpoints = header->endpoints_per_client;
  client->segment_bytes = header->segment_bytes;
  return 0;
}

static int attach_page(struct np_client *client, int fd, uint64_t bytes) {
  void *address = NULL;
  if (client->endpoints_offset + (uint64_t)client->endpoints * sizeof(struct npi_endpoint_counters) > bytes ||
      client->rings_offset > bytes || client->listeners_offset > client->rings_offset) {
    return npi_fail(NP_ERR_CORRUPT, "a page of %llu bytes does not hold what the registry places in it",
                    (unsigned long long)bytes);
  }
  int status = npi_memory_map(fd, 0, bytes, 1, &address);
  if (status < 0) return status;
  client->page = address;
  client->page_bytes = bytes;
  struct npi_page_shm *page = address;
  page->layout_version = NPI_LAYOUT_VERSION;
  page->client = client->index;
  page->client_version = client->version;
  page->pid = (uint32_t)getpid();
  page->magic = NPI_MAGIC_PAGE;
  npi_bell_init(&client->events_bell, &page->events, client->membarrier_works);
  npi_bell_init(&client->credits_bell, &page->credits, client->membarrier_works);
  return 0;
}

static int attach_ledger(struct np_client *client, int fd, uint64_t bytes, uint64_t budget) {
  struct npi_ledger_geometry geometry;
  const struct npi_registry_header *header = (const void *)client->registry;
  void *address = NULL;
  npi_ledger_geometry(&geometry, header->per_client_bytes, header->segment_bytes, header->connections_per_client,
                      client->page_bytes - client->rings_offset);
  if (npi_ledger_footprint(&geometry) > bytes) {
    return npi_fail(NP_ERR_VERSION, "the ledger has %llu bytes, this library needs %llu: use the broker's release",
                    (unsigned long long)bytes, (unsigned long long)npi_ledger_footprint(&geometry));
  }
  int status = npi_memory_map(fd, 0, bytes, 1, &address);
  if (status < 0) return status;
  client->ledger = address;
  client->ledger_bytes = bytes;
  client->segments = calloc(geometry.segments, sizeof *client->segments);
  client->segment_fds = malloc(geometry.segments * sizeof *client->segment_fds);
  if (client->segments == NULL || client->segment_fds == NULL) {
    return npi_fail(NP_ERR_NO_MEMORY, "no memory for a table of %u segments", geometry.segments);
  }
  for (uint32_t i = 0; i < geometry.segments; i++) client->segment_fds[i] = -1;
  npi_pool_init(&client->pool, address, &geometry, client->index, client->version, client->segments, budget);
  return 0;
}

/* The hello's reply is the only one with descriptors, so it is received here and not in request.c. */
static int receive_welcome(struct np_client *client, struct npi_control_frame *reply, int fds[NPI_CONTROL_FDS_MAX]) {
  uint64_t until = npi_clock_monotonic() + (uint64_t)HELLO_TIMEOUT_MS * 1000000;
  int n_fds = 0;
  for (;;) {
    int status = npi_control_receive(client->socket, reply, fds, &n_fds);
    if (status == NPI_SOCKET_END) {
      return npi_fail(NP_ERR_NO_BROKER, "the broker closed the connection before it answered; its log says why");
    }
    if (status < 0) return status;
    if (status == 0 && reply->head.type == NPI_CONTROL_CHALLENGE) {
      npi_control_close_fds(fds, n_fds);
      status = npi_control_prove(client->socket, reply);
      if (status < 0) return status;
      continue;
    }
    if (status == 0) break;
    if (npi_clock_monotonic() > until) return npi_fail(NP_ERR_NO_BROKER, "the broker did not answer; is it stopped?");
    npi_wait_readable(&client->socket, 1, 100000000);
  }
  if (reply->head.type == NPI_CONTROL_HELLO && reply->head.status < 0) {
    client->said_hello = 0; /* it is over: a goodbye would fail, and its words cover the reason */
    reply->body.text[NPI_CONTROL_TEXT_BYTES - 1] = '\0';
    npi_control_close_fds(fds, n_fds);
    return npi_fail(reply->head.status, "%s", reply->body.text);
  }
  if (reply->head.type != NPI_CONTROL_HELLO || n_fds != FD_COUNT) {
    npi_control_close_fds(fds, n_fds);
    return npi_fail(NP_ERR_PROTOCOL, "the broker answered the hello with type %u and %d descriptors", reply->head.type,
                    n_fds);
  }
  return 0;
}

static int say_hello(struct np_client *client, const struct np_options *options, uint32_t kind) {
  struct npi_control_frame frame;
  struct npi_control_frame reply;
  int fds[NPI_CONTROL_FDS_MAX];
  int node = npi_numa_current_node();
  for (int i = 0; i < NPI_CONTROL_FDS_MAX; i++) fds[i] = -1;
  npi_control_init(&frame, NPI_CONTROL_HELLO, 0, 0);
  frame.body.hello.layout_version = NPI_LAYOUT_VERSION;
  frame.body.hello.kind = kind;
  frame.body.hello.node = options->node;
  frame.body.hello.current_node = node < 0 ? 0 : (uint32_t)node;
  /* No reserve_bytes here: npi_client_connect() leases it, and so learns why where it cannot be had. */
  frame.body.hello.token = client->token;
  snprintf(frame.body.hello.name, sizeof frame.body.hello.name, "%s",
           options->name != NULL ? options->name : program_invocation_short_name);
  int status = npi_client_tell(client, &frame);
  client->said_hello = status == 0;
  if (status == 0) status = receive_welcome(client, &reply, fds);
  if (status != 0) return status;
  client->index = reply.body.hello_reply.client;
  client->version = reply.body.hello_reply.client_version;
  client->node = reply.body.hello_reply.node;
  client->registry_fd = fds[FD_REGISTRY];
  client->page_fd = fds[FD_PAGE];
  client->ledger_fd = fds[FD_LEDGER];
  client->events_fd = fds[FD_EVENTS];
  client->credits_fd = fds[FD_CREDITS];
  status = attach_registry(client, client->registry_fd, reply.body.hello_reply.registry_bytes);
  if (status == 0 && client->index >= client->clients_table.count) {
    status = npi_fail(NP_ERR_PROTOCOL, "the broker named client %u of %u", client->index, client->clients_table.count);
  }
  if (status != 0) return status;
  client->record = (const void *)(client->registry + client->clients_table.offset +
                                  (uint64_t)client->index * client->clients_table.bytes);
  status = attach_page(client, client->page_fd, reply.body.hello_reply.page_bytes);
  if (status != 0) return status;
  return attach_ledger(client, client->ledger_fd, reply.body.hello_reply.ledger_bytes,
                       reply.body.hello_reply.budget_bytes);
}

static int reach_broker(struct np_client *client, const struct np_options *options) {
  int status = 0;
  if (options->socket_path != NULL) {
    if (strlen(options->socket_path) >= sizeof client->socket_path) {
      return npi_fail(NP_ERR_ARGUMENT, "the socket path %s is too long", options->socket_path);
    }
    memcpy(client->socket_path, options->socket_path, strlen(options->socket_path) + 1);
  } else {
    status = npi_locate_socket(npi_locate_instance(options->instance), client->socket_path, sizeof client->socket_path);
  }
  return status == 0 ? npi_socket_connect(client->socket_path, &client->socket) : status;
}

/* The broker may come in a moment, or have died over the hello: then its successor gets the same hello. */
static void forget_socket(struct np_client *client) {
  struct npi_control_frame frame;
  if (client->said_hello) { /* one that is only slow must not wait for us */
    npi_control_init(&frame, NPI_CONTROL_GOODBYE, 0, 0);
    npi_control_send(client->socket, &frame, NULL, 0);
  }
  client->said_hello = 0;
  if (client->socket >= 0) close(client->socket);
  client->socket = -1;
}

static void abandon(void *client) {
  np_disconnect(client);
}

/* A thread that waits for a broker may be cancelled there: then the client goes, nobody else knows of it. */
static void nap(struct np_client *client, int cancel_state) {
  pthread_cleanup_push(abandon, client);
  npi_cancel_restore(cancel_state);
  npi_wait_readable(NULL, 0, RETRY_NS);
  npi_cancel_off();
  pthread_cleanup_pop(0);
}

/* Tries until the broker is there or the time is up: start-up order is nobody's to get right. */
static int join_broker(struct np_client *client, const struct np_options *options, uint32_t kind, uint64_t until,
                       int cancel_state) {
  for (;;) {
    int status = reach_broker(client, options);
    if (status == 0) status = say_hello(client, options, kind);
    if (status != NP_ERR_NO_BROKER || npi_clock_monotonic() >= until) return status;
    forget_socket(client);
    nap(client, cancel_state);
  }
}

static int reserve(struct np_client *client, uint64_t bytes, uint64_t until, int cancel_state) {
  while (client->pool.leased_bytes < bytes) {
    uint64_t before = client->pool.leased_bytes;
    int status = npi_client_lease(client, bytes - before);
    if (status == NP_ERR_NO_BROKER && client->attach != NPI_ATTACH_ORPHAN && npi_clock_monotonic() < until) {
      nap(client, cancel_state);
      continue;
    }
    if (status != 0) return status;
    if (client->pool.leased_bytes == before) return npi_fail(NP_ERR_NO_MEMORY, "the broker granted nothing");
  }
  return 0;
}

int npi_client_connect(struct np_client **out, const struct np_options *options, uint32_t kind) {
  struct np_options chosen;
  *out = NULL;
  np_options_init(&chosen);
  if (options != NULL) memcpy(&chosen, options, options->size < sizeof chosen ? options->size : sizeof chosen);
  struct np_client *client = calloc(1, sizeof *client);
  if (client == NULL) return npi_fail(NP_ERR_NO_MEMORY, "no memory for a client");
  client->socket = client->registry_fd = client->page_fd = client->ledger_fd = client->events_fd = client->credits_fd =
      -1;
  client->events_watch = client->credits_watch = client->tick_fd = -1;
  client->kind = kind;
  uint64_t until = npi_clock_monotonic() + (chosen.timeout_ms > 0 ? (uint64_t)chosen.timeout_ms * 1000000 : 0);
  if (chosen.timeout_ms < 0) until = UINT64_MAX;
  int cancel_state = npi_cancel_off();
  if (getrandom(&client->token, sizeof client->token, 0) < 0) client->token = 0;
  int status = make_alive(client);
  /* Before the first store that a sleeper could have to see; refused: this process fences instead. */
  client->membarrier_works = npi_membarrier_register() == 0;
  if (status == 0) status = join_broker(client, &chosen, kind, until, cancel_state);
  client->reserved_bytes = chosen.reserve_bytes;
  if (status == 0) status = reserve(client, chosen.reserve_bytes, until, cancel_state);
  if (status != 0) client = np_disconnect(client);
  npi_cancel_restore(cancel_state);
  *out = client;
  return status;
}

int np_connect(struct np_client **client, const struct np_options *options) {
  return npi_client_connect(client, options, NPI_CLIENT_APPLICATION);
}

/*
 * In a forked child: the copies of descriptors go, the parent's mappings were never here. What hangs on the copy of
 * the client stays: the program's handles point into it, and may still be asked (NP_ERR_FORKED).
 */
static void free_inherited(struct np_client *client) {
  int fds[] = {client->registry_fd, client->page_fd, client->ledger_fd,    client->events_fd,    client->credits_fd,
               client->socket,      client->tick_fd, client->events_watch, client->credits_watch};
  for (const struct npi_peer *peer = client->peers; peer != NULL; peer = peer->next) {
    if (peer->events_fd >= 0) close(peer->events_fd);
    if (peer->credits_fd >= 0) close(peer->credits_fd);
  }
  for (uint32_t i = 0; client->segment_fds != NULL && i < client->pool.ledger.geometry.segments; i++) {
    if (client->segment_fds[i] >= 0) close(client->segment_fds[i]);
  }
  npi_control_close_fds(fds, (int)NPI_ARRAY_COUNT(fds));
  munmap((void *)client->alive, NPI_PAGE);
  free(client);
}

struct np_client *np_disconnect(struct np_client *client) {
  struct npi_control_frame frame;
  if (client == NULL) return NULL;
  if (client->alive != NULL && *client->alive != NPI_CLIENT_ALIVE) {
    free_inherited(client);
    return NULL;
  }
  int cancel_state = npi_cancel_off();
  if (client->record != NULL) {
    npi_client_reap(client);
    npi_client_verify(client);
  }
  if (client->said_hello) { /* also where no answer came in time: a broker that goes on later must not wait for us */
    npi_control_init(&frame, NPI_CONTROL_GOODBYE, 0, 0);
    if (npi_client_tell(client, &frame) != 0 && client->record != NULL) {
      npi_client_lost(client);
      if (npi_client_attach_begin(client) == 0) npi_control_send(client->socket, &frame, NULL, 0);
    }
  }
  for (uint32_t i = 0; i < client->n_links; i++) {
    if (client->links[i] == NULL) continue;
    client->links[i]->np_publisher = NULL;
    client->links[i]->np_subscriber = NULL;
    npi_link_free(client, client->links[i]);
  }
  while (client->publishers != NULL) {
    struct np_publisher *next = client->publishers->next;
    npi_flow_deinit(&client->publishers->flow);
    npi_endpoint_free(client->publishers);
    client->publishers = next;
  }
  while (client->subscribers != NULL) {
    struct np_subscriber *next = client->subscribers->next;
    free(client->subscribers->inlets);
    npi_endpoint_free(client->subscribers);
    client->subscribers = next;
  }
  while (client->peers != NULL) npi_peer_free(client, client->peers);
  npi_client_memory_free(client);
  npi_link_drop_deferred(client);
  free(client->links);
  free(client->let_go);
  npi_memory_unmap(client->ledger, client->ledger_bytes);
  /* For a broker that could not be told: nothing of this client is used any more. */
  if (client->page != NULL) npi_store_release_u32(&((struct npi_page_shm *)(void *)client->page)->farewell, 1);
  npi_memory_unmap(client->page, client->page_bytes);
  npi_memory_unmap((void *)(uintptr_t)client->registry, client->registry_bytes);
  npi_watch_close(client);
  int fds[] = {client->registry_fd, client->page_fd,    client->ledger_fd,
               client->events_fd,   client->credits_fd, client->socket};
  npi_control_close_fds(fds, (int)NPI_ARRAY_COUNT(fds));
  if (client->alive != NULL) munmap((void *)client->alive, NPI_PAGE);
  free(client);
  npi_cancel_restore(cancel_state);
  return NULL;
}

int np_client_node(const struct np_client *client) {
  if (!npi_client_usable(client)) return npi_client_forked();
  if (client->node >= client->nodes_table.count)
    return npi_fail(NP_ERR_CORRUPT, "node %u is not in the registry", client->node);
  const struct npi_node_record *record = (const void *)(client->registry + client->nodes_table.offset +
                                                        (uint64_t)client->node * client->nodes_table.bytes);
  return (int)record->id;
}
