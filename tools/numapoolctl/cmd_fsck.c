/* SPDX-License-Identifier: Apache-2.0 */
/*
 * numapoolctl fsck: everything that shared memory shows, looked at several times.
 *
 * An instance at work is a moving picture: between two reads records change, and a client that was
 * interrupted inside a call stays half-way for a while. What is really wrong stays wrong. So the whole is
 * looked at again and again, and only what was found, word for word, in three looks is reported.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "fsck.h"

enum { LOOKS = 5, LOOKS_NEEDED = 3, LOOK_APART_MS = 40, LINE_BYTES = 512 };

struct finding {
  char *line;
  unsigned looks;
  unsigned last; /* look in which it was found */
};

struct findings {
  struct finding *finding;
  size_t n, room;
};

struct npi_fsck {
  struct findings found, notes;
  unsigned look;
  int out_of_memory;
};

/* Names in a broken registry may hold anything; the line goes to terminals and into JSON. */
static void make_printable(char *line) {
  for (; *line != '\0'; line++) {
    if ((unsigned char)*line < 0x20 || (unsigned char)*line > 0x7e) *line = '?';
  }
}

static void add(struct npi_fsck *fsck, struct findings *list, const char *line) {
  for (size_t i = 0; i < list->n; i++) {
    struct finding *finding = &list->finding[i];
    if (strcmp(finding->line, line) != 0) continue;
    finding->looks += finding->last != fsck->look;
    finding->last = fsck->look;
    return;
  }
  if (list->n == list->room) {
    size_t room = list->room == 0 ? 64 : list->room * 2;
    struct finding *more = realloc(list->finding, room * sizeof *more);
    if (more == NULL) {
      fsck->out_of_memory = 1;
      return;
    }
    list->finding = more;
    list->room = room;
  }
  char *copy = strdup(line);
  if (copy == NULL) {
    fsck->out_of_memory = 1;
    return;
  }
  list->finding[list->n++] = (struct finding){copy, 1, fsck->look};
}

void npi_fsck_find(struct npi_fsck *fsck, const char *format, ...) {
  char line[LINE_BYTES];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  make_printable(line);
  add(fsck, &fsck->found, line);
}

void npi_fsck_note(struct npi_fsck *fsck, const char *format, ...) {
  char line[LINE_BYTES];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  make_printable(line);
  add(fsck, &fsck->notes, line);
}

static void forget(struct findings *list) {
  for (size_t i = 0; i < list->n; i++) free(list->finding[i].line);
  free(list->finding);
}

/* Can anything that was found still be in enough looks? */
static int is_open(const struct npi_fsck *fsck) {
  for (size_t i = 0; i < fsck->found.n; i++) {
    const struct finding *finding = &fsck->found.finding[i];
    if (finding->looks < LOOKS_NEEDED && finding->looks + (LOOKS - fsck->look) >= LOOKS_NEEDED) return 1;
  }
  /* A client that moved in this look may rest in the next. */
  for (size_t i = 0; i < fsck->notes.n; i++) {
    if (fsck->notes.finding[i].last == fsck->look && fsck->look < LOOKS) return 1;
  }
  return 0;
}

static int look_around(struct npi_fsck *fsck, struct npi_view *view) {
  const struct timespec apart = {0, LOOK_APART_MS * 1000000};
  do {
    if (fsck->look++ > 0) {
      nanosleep(&apart, NULL);
      int status = npi_view_refresh(view);
      if (status != 0) return status;
    }
    npi_fsck_registry(fsck, view);
    npi_fsck_segments(fsck, view);
    npi_fsck_ledgers(fsck, view);
    if (view->denied) return npi_fail(NP_ERR_DENIED, "%s", npi_detail());
  } while (is_open(fsck));
  return 0;
}

static int report(const struct npi_command *command, const struct npi_fsck *fsck, const struct npi_view *view) {
  size_t n = 0;
  json_t *document = npi_new_object();
  npi_set_text(document, "instance", view->instance);
  npi_set_text(document, "broker", npi_process_word(npi_view_broker(view)));
  json_t *findings = npi_add_array(document, "findings");
  json_t *notes = npi_add_array(document, "notes");
  for (size_t i = 0; i < fsck->found.n; i++) {
    if (fsck->found.finding[i].looks < LOOKS_NEEDED) continue;
    json_array_append_new(findings, json_string(fsck->found.finding[i].line));
    n++;
  }
  for (size_t i = 0; i < fsck->notes.n; i++) {
    if (fsck->notes.finding[i].last != fsck->look) continue; /* judged in a later look */
    json_array_append_new(notes, json_string(fsck->notes.finding[i].line));
  }
  npi_set_number(document, "looks", fsck->look);
  npi_set_yes(document, "clean", n == 0);
  if (!npi_print_json(command, document)) {
    for (size_t i = 0; i < json_array_size(findings); i++) puts(json_string_value(json_array_get(findings, i)));
    for (size_t i = 0; i < json_array_size(notes); i++) {
      printf("note: %s\n", json_string_value(json_array_get(notes, i)));
    }
    if (n == 0) {
      printf("instance %s is clean (broker %s)\n", view->instance, npi_process_word(npi_view_broker(view)));
    } else {
      printf("%zu finding%s in instance %s (broker %s)\n", n, n == 1 ? "" : "s", view->instance,
             npi_process_word(npi_view_broker(view)));
    }
  }
  json_decref(document);
  return n == 0 ? NPI_EXIT_OK : NPI_EXIT_NO;
}

/* A registry that cannot be read as one is a finding, too. */
static int report_no_view(const struct npi_command *command, int status) {
  if (status == NP_ERR_ARGUMENT) return npi_complain(command, NPI_EXIT_USAGE, "%s", npi_detail());
  if (status != NP_ERR_CORRUPT) return npi_complain(command, NPI_EXIT_ABSENT, "%s", npi_detail());
  if (command->json) {
    json_t *document = npi_new_object();
    npi_set_text(document, "instance", command->instance);
    json_array_append_new(npi_add_array(document, "findings"), json_string(npi_detail()));
    npi_add_array(document, "notes");
    npi_set_yes(document, "clean", 0);
    npi_output_json(stdout, document);
    json_decref(document);
  } else {
    puts(npi_detail());
  }
  return NPI_EXIT_NO;
}

int npi_cmd_fsck(const struct npi_command *command) {
  struct npi_fsck fsck = {.look = 0};
  struct npi_view view;
  int status = npi_view_open(&view, command->instance);
  if (status != 0) return report_no_view(command, status);
  status = look_around(&fsck, &view);
  int result;
  if (status == NP_ERR_CORRUPT) {
    result = report_no_view(command, status);
  } else if (status != 0) {
    result = npi_complain(command, NPI_EXIT_ABSENT, "%s", npi_detail());
  } else if (fsck.out_of_memory) {
    result = npi_complain(command, NPI_EXIT_ABSENT, "out of memory");
  } else {
    result = report(command, &fsck, &view);
  }
  forget(&fsck.found);
  forget(&fsck.notes);
  npi_view_close(&view);
  return result;
}
