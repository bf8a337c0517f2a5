/* SPDX-License-Identifier: Apache-2.0 */
/* The texts of --help: the program's, and each verb's with examples. */
#ifndef NUMAPOOLCTL_HELP_H
#define NUMAPOOLCTL_HELP_H

extern const char npi_help_program[];
extern const char npi_help_status[];
extern const char npi_help_clients[];
extern const char npi_help_channels[];
extern const char npi_help_listeners[];
extern const char npi_help_segments[];
extern const char npi_help_fsck[];
extern const char npi_help_audit[];
extern const char npi_help_tap[];
extern const char npi_help_pub[];

#endif
