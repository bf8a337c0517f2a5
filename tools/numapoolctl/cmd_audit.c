/* SPDX-License-Identifier: Apache-2.0 */
/* numapoolctl audit: do the books balance? Each sum that must be equal to another one, with its numbers. */
#include <unistd.h>

#include "audit.h"
#include "command.h"

/* Tries until the registry holds still for two looks, and until what failed has failed each time. */
enum { TRIES = 60, FAILURES = 4, BETWEEN_TRIES_US = 50000 };

static const char *channel_name(const struct npi_view *view, uint32_t channel) {
  return channel < view->n_channels ? view->channels[channel].name : "?";
}

static void set_channel(json_t *row, const struct npi_view *view, uint32_t channel) {
  npi_set_text_n(row, "channel", channel_name(view, channel), NPI_NAME_BYTES);
}

static int is_balanced(const struct npi_audit *audit, enum npi_audit_scope scope, uint32_t index) {
  for (size_t i = 0; i < audit->n_equations; i++) {
    const struct npi_audit_equation *equation = &audit->equations[i];
    if (equation->fails && equation->scope == scope && equation->index == index) return 0;
  }
  return 1;
}

static uint32_t n_failing(const struct npi_audit *audit) {
  uint32_t n = 0;
  for (size_t i = 0; i < audit->n_equations; i++) n += (uint32_t)audit->equations[i].fails;
  return n;
}

static void describe_channels(const struct npi_audit *audit, const struct npi_view *view, json_t *rows) {
  for (uint32_t i = 0; i < view->n_channels; i++) {
    const struct npi_audit_row *of = &audit->channels[i];
    if (npi_view_state(&view->channels[i].state) == NPI_RECORD_FREE) continue;
    json_t *row = npi_append_object(rows);
    set_channel(row, view, i);
    npi_set_number(row, "published", of->published);
    npi_set_number(row, "delivered", of->delivered);
    npi_set_number(row, "redelivered", of->redelivered);
    npi_set_number(row, "dropped", of->dropped);
    npi_set_number(row, "lost_with_member", of->lost);
    npi_set_number(row, "dead_lettered", of->dead_lettered);
    npi_set_number(row, "in_flight", of->in_flight);
    int balanced = is_balanced(audit, NPI_AUDIT_CHANNEL, i);
    for (uint32_t p = 0; p < view->n_publishers; p++) {
      if (view->publishers[p].channel == i) balanced &= is_balanced(audit, NPI_AUDIT_PUBLISHER, p);
    }
    npi_set_yes(row, "balanced", balanced);
  }
}

static void describe_listeners(const struct npi_audit *audit, const struct npi_view *view, json_t *rows) {
  for (uint32_t i = 0; i < view->n_listeners; i++) {
    const struct npi_audit_row *of = &audit->listeners[i];
    if (npi_view_state(&view->listeners[i].state) == NPI_LISTENER_FREE) continue;
    json_t *row = npi_append_object(rows);
    npi_set_text_n(row, "listener", view->listeners[i].name, NPI_NAME_BYTES);
    set_channel(row, view, view->listeners[i].channel);
    npi_set_number(row, "received", of->received);
    npi_set_number(row, "published", of->published);
    npi_set_number(row, "dropped", of->dropped);
    npi_set_number(row, "lost_with_worker", of->lost);
    npi_set_number(row, "held", of->held);
    npi_set_yes(row, "balanced", is_balanced(audit, NPI_AUDIT_LISTENER, i));
  }
}

static void describe_subscribers(const struct npi_audit *audit, const struct npi_view *view, json_t *rows) {
  for (uint32_t i = 0; i < view->n_subscribers; i++) {
    const struct npi_audit_row *of = &audit->subscribers[i];
    const struct npi_subscriber_record *record = &view->subscribers[i];
    if (npi_view_state(&record->state) == NPI_RECORD_FREE) continue;
    json_t *row = npi_append_object(rows);
    npi_set_text_n(row, "subscriber", record->name, sizeof record->name);
    npi_set_number(row, "pid", record->client < view->n_clients ? view->clients[record->client].pid : 0);
    set_channel(row, view, record->channel);
    npi_set_number(row, "delivered", of->delivered);
    npi_set_number(row, "taken", of->taken);
    npi_set_number(row, "released", of->released);
    npi_set_number(row, "waiting", of->in_flight);
    npi_set_number(row, "held", of->held);
    npi_set_number(row, "left", of->left);
    npi_set_number(row, "missed", of->missed);
    npi_set_yes(row, "balanced", is_balanced(audit, NPI_AUDIT_SUBSCRIBER, i));
  }
}

static void describe_failures(const struct npi_audit *audit, const struct npi_view *view, json_t *list) {
  char text[600];
  for (size_t i = 0; i < audit->n_equations; i++) {
    const struct npi_audit_equation *equation = &audit->equations[i];
    if (!equation->fails) continue;
    json_t *row = npi_append_object(list);
    uint32_t at = equation->index;
    switch (equation->scope) {
      case NPI_AUDIT_LISTENER:
        npi_set_text(row, "of", "listener");
        npi_set_text_n(row, "name", view->listeners[at].name, NPI_NAME_BYTES);
        break;
      case NPI_AUDIT_CHANNEL:
        npi_set_text(row, "of", "channel");
        npi_set_text_n(row, "name", view->channels[at].name, NPI_NAME_BYTES);
        break;
      case NPI_AUDIT_PUBLISHER:
        snprintf(text, sizeof text, "publisher %u (pid %u) of channel", at,
                 view->publishers[at].client < view->n_clients ? view->clients[view->publishers[at].client].pid : 0);
        npi_set_text(row, "of", text);
        npi_set_text_n(row, "name", channel_name(view, view->publishers[at].channel), NPI_NAME_BYTES);
        break;
      case NPI_AUDIT_SUBSCRIBER:
        snprintf(text, sizeof text, "subscriber %u (pid %u) of channel", at,
                 view->subscribers[at].client < view->n_clients ? view->clients[view->subscribers[at].client].pid : 0);
        npi_set_text(row, "of", text);
        npi_set_text_n(row, "name", channel_name(view, view->subscribers[at].channel), NPI_NAME_BYTES);
        break;
    }
    npi_audit_describe(equation, text, sizeof text);
    npi_set_text(row, "equation", text);
    uint64_t side[2] = {0};
    for (uint32_t t = 0; t < equation->n_terms; t++) {
      side[equation->term[t].is_right] += equation->term[t].value[NPI_AUDIT_LOOKS - 1];
    }
    npi_set_number(row, "left_side", side[0]);
    npi_set_number(row, "right_side", side[1]);
  }
}

static void print_text(const json_t *document) {
  static const struct npi_column channel_columns[] = {{"channel", NULL, 0},
                                                      {"published", NULL, 0},
                                                      {"delivered", NULL, 0},
                                                      {"redelivered", NULL, 0},
                                                      {"dropped", NULL, 0},
                                                      {"lost_with_member", "lost", 0},
                                                      {"dead_lettered", "dead letters", 0},
                                                      {"in_flight", "in flight", 0},
                                                      {"balanced", NULL, 0}};
  static const struct npi_column listener_columns[] = {{"listener", NULL, 0}, {"channel", NULL, 0},
                                                       {"received", NULL, 0}, {"published", NULL, 0},
                                                       {"dropped", NULL, 0},  {"lost_with_worker", "lost", 0},
                                                       {"held", NULL, 0},     {"balanced", NULL, 0}};
  static const struct npi_column subscriber_columns[] = {
      {"subscriber", NULL, 0}, {"pid", NULL, 0},      {"channel", NULL, 0}, {"delivered", NULL, 0},
      {"taken", NULL, 0},      {"released", NULL, 0}, {"waiting", NULL, 0}, {"held", NULL, 0},
      {"left", NULL, 0},       {"missed", NULL, 0},   {"balanced", NULL, 0}};
  size_t i;
  const json_t *failure;
  puts("channels");
  npi_output_table(stdout, json_object_get(document, "channels"), channel_columns, NPI_ARRAY_COUNT(channel_columns));
  puts("listeners");
  npi_output_table(stdout, json_object_get(document, "listeners"), listener_columns, NPI_ARRAY_COUNT(listener_columns));
  puts("subscribers");
  npi_output_table(stdout, json_object_get(document, "subscribers"), subscriber_columns,
                   NPI_ARRAY_COUNT(subscriber_columns));
  json_array_foreach(json_object_get(document, "unbalanced"), i, failure) {
    json_int_t left = json_integer_value(json_object_get(failure, "left_side"));
    json_int_t right = json_integer_value(json_object_get(failure, "right_side"));
    printf("unbalanced: %s %s: %s: %lld and %lld\n", json_string_value(json_object_get(failure, "of")),
           json_string_value(json_object_get(failure, "name")), json_string_value(json_object_get(failure, "equation")),
           (long long)left, (long long)right);
  }
}

int npi_cmd_audit(const struct npi_command *command) {
  struct npi_view view;
  struct npi_audit audit = {0};
  int status = npi_open_view(command, &view);
  if (status != NPI_EXIT_OK) return status;
  int got = 1, failures = 0, looks = 0;
  for (int i = 0; i < TRIES && failures < FAILURES; i++) {
    if (i > 0) {
      npi_audit_free(&audit);
      usleep(BETWEEN_TRIES_US);
      got = npi_view_refresh(&view);
      if (got < 0) break; /* the registry is none any more: there are no books to show */
    }
    got = npi_audit_take(&audit, &view);
    looks += NPI_AUDIT_LOOKS;
    if (got < 0) break;
    if (got == 0 && n_failing(&audit) == 0) break;
    failures += got == 0;
  }
  if (got < 0) {
    status = npi_complain(command, NPI_EXIT_ABSENT, "%s", npi_detail());
  } else if (got > 0) {
    status =
        npi_complain(command, NPI_EXIT_NO, "clients come and go faster than two looks take: nothing can be judged");
  } else if (view.denied) {
    status = npi_complain(command, NPI_EXIT_ABSENT, "counters may not be read: only user %u or root may", view.uid);
  } else {
    status = n_failing(&audit) == 0 ? NPI_EXIT_OK : NPI_EXIT_NO;
    json_t *document = npi_new_object();
    npi_set_text(document, "instance", view.instance);
    describe_channels(&audit, &view, npi_add_array(document, "channels"));
    describe_listeners(&audit, &view, npi_add_array(document, "listeners"));
    describe_subscribers(&audit, &view, npi_add_array(document, "subscribers"));
    describe_failures(&audit, &view, npi_add_array(document, "unbalanced"));
    npi_set_number(document, "equations", audit.n_equations);
    npi_set_number(document, "looks", (uint64_t)looks);
    npi_set_number(document, "unread_clients", audit.n_unread);
    npi_set_yes(document, "balanced", status == NPI_EXIT_OK);
    if (!npi_print_json(command, document)) {
      print_text(document);
      if (audit.n_unread > 0) {
        printf("note: the counters of %u clients are in no process any more; what rests on them was not judged\n",
               audit.n_unread);
      }
      printf("%s: %zu equations, %u unbalanced\n", status == NPI_EXIT_OK ? "balanced" : "unbalanced", audit.n_equations,
             n_failing(&audit));
    }
    json_decref(document);
  }
  npi_audit_free(&audit);
  npi_view_close(&view);
  return status;
}
