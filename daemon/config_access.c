/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of users and groups in the configuration: names are looked up when the file is read. */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "daemon/access.h"
#include "daemon/config_internal.h"

static int read_id(const char *text, uint32_t *id) {
  char *end = NULL;
  errno = 0;
  if (text[0] < '0' || text[0] > '9') return 0;
  unsigned long value = strtoul(text, &end, 10);
  if (*end != '\0' || errno != 0 || value >= UINT32_MAX) return 0;
  *id = (uint32_t)value;
  return 1;
}

int npi_config_access_add(struct npi_access_list *list, const char *text, char *problem, size_t size) {
  struct npi_access_entry entry = {0};
  const char *name = NULL;
  if (strcmp(text, "all") == 0) {
    list->everyone = 1;
    return 0;
  }
  if (strncmp(text, "user:", 5) == 0) name = text + 5;
  if (strncmp(text, "group:", 6) == 0) {
    name = text + 6;
    entry.is_group = 1;
  }
  if (name == NULL || name[0] == '\0') {
    snprintf(problem, size, "\"%.60s\" names nobody; write user:NAME, user:NUMBER, group:NAME, group:NUMBER or all",
             text);
    return 1;
  }
  if (!read_id(name, &entry.id)) {
    const struct passwd *user = entry.is_group ? NULL : getpwnam(name);
    const struct group *group = entry.is_group ? getgrnam(name) : NULL;
    if (user == NULL && group == NULL) {
      snprintf(problem, size, "there is no %s \"%.60s\" on this machine; correct the name, or write a number",
               entry.is_group ? "group" : "user", name);
      return 1;
    }
    entry.id = entry.is_group ? (uint32_t)group->gr_gid : (uint32_t)user->pw_uid;
  }
  if (list->n == NPI_ACCESS_ENTRIES_MAX) {
    snprintf(problem, size, "has more than %d entries; make a group of them", NPI_ACCESS_ENTRIES_MAX);
    return 1;
  }
  list->entry[list->n++] = entry;
  return 0;
}

void npi_config_access_format(const struct npi_access_list *list, char *text, size_t size) {
  size_t used = (size_t)snprintf(text, size, "[");
  if (list->everyone) used += (size_t)snprintf(text + used, size - used, " all,");
  for (uint32_t i = 0; i < list->n && used < size; i++) {
    used += (size_t)snprintf(text + used, size - used, " '%s:%u',", list->entry[i].is_group ? "group" : "user",
                             list->entry[i].id);
  }
  if (used > 1 && used < size) text[used - 1] = ' ';
  if (used < size) snprintf(text + used, size - used, "]");
}

/* What no single list shows. */
void npi_config_finish_access(struct npi_config *config) {
  char key[64];
  int open = config->access.connect.given;
  if (!open && (config->access.publish.given || config->access.subscribe.given)) {
    npi_config_error(config, config->access.publish.given ? "access.publish" : "access.subscribe",
                     "is without effect while nobody else may connect; set access.connect too");
  }
  for (size_t i = 0; i < config->n_channels; i++) {
    const struct npi_channel_config *channel = &config->channels[i];
    int given = channel->access_publish.given || channel->access_subscribe.given;
    snprintf(key, sizeof key, "channels[%zu].access.%s", i, channel->access_publish.given ? "publish" : "subscribe");
    if (given && !open) {
      npi_config_error(config, key, "is without effect while nobody else may connect; set access.connect too");
    }
    if (channel->max_deliveries == 0 || channel->dead_letter[0] == '\0') continue;
    if (npi_access_lists_equal(npi_access_subscribers(config, channel->name),
                               npi_access_subscribers(config, channel->dead_letter))) {
      continue;
    }
    snprintf(key, sizeof key, "channels[%zu].dead_letter", i);
    npi_config_error(config, key,
                     "other users may subscribe to \"%s\" than to \"%s\", and a dead letter stays in the same memory; "
                     "give both channels the same access.subscribe",
                     channel->dead_letter, channel->name);
  }
}
