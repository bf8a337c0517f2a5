/* SPDX-License-Identifier: Apache-2.0 */
#include "core/counters.h"

#include <stddef.h>

#define ROW(symbol, text, help) {text, help},
const struct npi_counter_row npi_broker_counter_rows[] = {NPI_BROKER_COUNTERS(ROW){NULL, NULL}};
const struct npi_counter_row npi_publisher_counter_rows[] = {NPI_PUBLISHER_COUNTERS(ROW){NULL, NULL}};
const struct npi_counter_row npi_subscriber_counter_rows[] = {NPI_SUBSCRIBER_COUNTERS(ROW){NULL, NULL}};
const struct npi_counter_row npi_listener_counter_rows[] = {NPI_LISTENER_COUNTERS(ROW){NULL, NULL}};
#undef ROW
