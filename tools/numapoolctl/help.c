/* SPDX-License-Identifier: Apache-2.0 */
#include "help.h"

#define COMMON                                                                            \
  "\nOptions of every verb, before or after it:\n"                                        \
  "  -i, --instance NAME   which broker; default: $NUMAPOOL_INSTANCE, else \"default\"\n" \
  "      --json            one JSON document instead of text\n"                           \
  "  -h, --help            this text\n"                                                   \
  "  -V, --version         the version\n"

const char npi_help_program[] =
    "Usage: numapoolctl [--instance NAME] [--json] VERB [ARGUMENTS]\n"
    "\n"
    "Looks at a numapool instance from the outside, and puts events into it by hand.\n"
    "\n"
    "  status      is the broker ready, what has it, what passed through\n"
    "  clients     who is connected, and what each holds\n"
    "  channels    publishers, subscribers, events delivered and dropped\n"
    "  listeners   sockets: received, published, dropped by reason\n"
    "  segments    memory: where it is, who leases it\n"
    "  fsck        checks everything that shared memory shows\n"
    "  audit       do the sums of all counters balance\n"
    "  tap         prints the events of a channel\n"
    "  pub         publishes each line of standard input\n"
    "\n"
    "numapoolctl VERB --help tells more. status, clients, channels, listeners, segments, fsck and audit read\n"
    "shared memory only: they also work when the broker is dead or stuck, and nobody notices them.\n" COMMON
    "\n"
    "Exit status: 0 yes, 1 no (not ready, findings, channel cannot be opened), 2 the command line is not right,\n"
    "3 there is no such instance, or this user may not look at it.\n";

const char npi_help_status[] =
    "Usage: numapoolctl status\n"
    "\n"
    "Says whether the broker is ready, and shows the instance at a glance: version, process, memory of each\n"
    "node and where its pages are, how many clients, channels and connections there are, what the listeners\n"
    "received, and the broker's own counters.\n"
    "\n"
    "States: ready, starting, draining, stopped (by a signal or debugger; data goes on), ended (it left in good\n"
    "order), dead (it was killed; its shared memory is still there).\n"
    "\n"
    "Exit status: 0 ready, 1 any other state, 2 usage, 3 no such instance.\n" COMMON
    "\n"
    "Examples:\n"
    "  numapoolctl status\n"
    "  numapoolctl status --instance blue > /dev/null && echo blue is ready\n"
    "  numapoolctl status --json | jq .totals.clients\n";

const char npi_help_clients[] =
    "Usage: numapoolctl clients\n"
    "\n"
    "One line for each client: process and whether it runs, is stopped or dead, its node, memory leased and\n"
    "allowed, how many publishers and subscribers it has, and in slots:\n"
    "  outstanding   of its own, with others: published and not yet given back\n"
    "  held          of others, with it: taken and not yet released\n"
    "  waiting       of others, published for it and not yet taken\n" COMMON
    "\n"
    "Examples:\n"
    "  numapoolctl clients\n"
    "  numapoolctl clients --json | jq -r '.clients[] | select(.process == \"stopped\") | .pid'\n";

const char npi_help_channels[] =
    "Usage: numapoolctl channels\n"
    "\n"
    "One line for each channel: settings, events published and delivered (one event to three subscribers is\n"
    "three), dropped by reason; below it one line for each subscriber. dropped.past sums what publishers that\n"
    "are gone had dropped for any reason.\n" COMMON
    "\n"
    "Examples:\n"
    "  numapoolctl channels\n"
    "  numapoolctl channels --json | jq '.channels[] | {name, dropped}'\n";

const char npi_help_listeners[] =
    "Usage: numapoolctl listeners\n"
    "\n"
    "One line for each socket that the instance receives on: where, into which channel, by which workers;\n"
    "frames received, published, held back and dropped by reason, stream connections, pauses. --json has every\n"
    "counter, workers that are gone included; restarts tells how often one was started again. lost is what a\n"
    "worker had in hand when it died.\n" COMMON
    "\n"
    "Examples:\n"
    "  numapoolctl listeners\n"
    "  numapoolctl listeners --json | jq '.listeners[] | {name, kernel: .counters.dropped_kernel}'\n";

const char npi_help_segments[] =
    "Usage: numapoolctl segments\n"
    "\n"
    "One line for each segment: node, object, state (ready, leased, draining), who leases it, and where its\n"
    "pages were when they were last measured. Below them, objects of this instance in /dev/shm that the\n"
    "registry does not know. Works without a broker.\n" COMMON
    "\n"
    "Examples:\n"
    "  numapoolctl segments\n"
    "  numapoolctl segments --json | jq '[.segments[].pages.away] | add'\n";

const char npi_help_fsck[] =
    "Usage: numapoolctl fsck\n"
    "\n"
    "Checks what shared memory shows: the registry's records and sums, each living client's ledger, each\n"
    "connection's rings against it, segments against leases, objects left in /dev/shm, and clients that are dead\n"
    "without the broker having cleared up. Changes nothing, and works while the broker is dead or stopped.\n"
    "\n"
    "A running instance moves while it is looked at, so only what is seen in three of up to five looks is\n"
    "reported. A client that never rests for a moment cannot be judged; a note says so.\n"
    "\n"
    "Exit status: 0 clean, 1 findings (a line each), 2 usage, 3 no such instance, or not permitted.\n" COMMON
    "\n"
    "Examples:\n"
    "  numapoolctl fsck\n"
    "  sudo numapoolctl fsck --instance blue --json\n";

const char npi_help_audit[] =
    "Usage: numapoolctl audit\n"
    "\n"
    "Does everything that came in come out, or is it counted why not? For each listener:\n"
    "  received = published + dropped_pool + dropped_credit + lost_with_worker + held\n"
    "and what listeners published is what the workers' publishers published. For each publisher and channel:\n"
    "  delivered + redelivered = what is and was in the rings of the subscribers\n"
    "  dropped_no_credit       = what subscribers missed (broadcast)\n"
    "  published               = delivered to members + dropped, by reason (group)\n"
    "  left by members         = redelivered + given up + lost + waiting (group)\n"
    "For each subscriber: taken and released are what its rings say; taken is at most delivered.\n"
    "Clients, workers and connections that are gone are in the sums, however they ended.\n"
    "\n"
    "A running instance moves while it is looked at: all is looked at twice, and an equation fails only where no\n"
    "values between the two looks make it right. Works while the broker is dead or stopped.\n"
    "\n"
    "Exit status: 0 balanced, 1 not (a line for each equation that fails, with its numbers), 2 usage, 3 no such\n"
    "instance, or not permitted.\n" COMMON
    "\n"
    "Examples:\n"
    "  numapoolctl audit\n"
    "  numapoolctl audit --json | jq '.unbalanced[].equation'\n";

const char npi_help_tap[] =
    "Usage: numapoolctl tap CHANNEL [--count N] [--timeout S] [--format text|json|raw|hex] [--credits N]\n"
    "\n"
    "Prints the events of a channel as they come. It only looks on: members of a group get all that they would\n"
    "get without it, and it slows nobody. When it is too slow itself it misses events; at the end it says on\n"
    "standard error how many it took and how many it missed.\n"
    "\n"
    "  -n, --count N       end after N events\n"
    "  -t, --timeout S     end after S seconds (such as 0.5)\n"
    "  -f, --format F      text: the payload and a newline (default); raw: only the payload;\n"
    "                      json: an object a line (default with --json); hex: a header line and a dump\n"
    "      --credits N     events that may wait for it, for each publisher; default 8192, or what the broker\n"
    "                      allows\n"
    "\n"
    "A payload or topic that is not UTF-8 is in payload_base64 or topic_base64 instead.\n"
    "Exit status: 0 also when the time was up or it was interrupted, 1 the channel cannot be opened or the broker\n"
    "ended, 2 usage, 3 no broker, one that does not answer, or not permitted to connect.\n" COMMON
    "\n"
    "Examples:\n"
    "  numapoolctl tap syslog\n"
    "  numapoolctl tap syslog --count 1 --timeout 10 --format json | jq .source\n"
    "  numapoolctl tap images --format raw --count 1 > image.jpg\n";

const char npi_help_pub[] =
    "Usage: numapoolctl pub CHANNEL [--topic T] [--priority P] [--linger S] < LINES\n"
    "\n"
    "Publishes each line of standard input, without its newline, as one event. Where a blocking subscriber has no\n"
    "credit it waits, so nothing is lost. A line that does not fit into an event (1 MiB together with the topic)\n"
    "is reported with its number and left out. At the end it says on standard error how many went, and how many of\n"
    "them nobody was there for.\n"
    "\n"
    "      --topic T       topic of each event\n"
    "      --priority P    0 batch, 1 low, 2 normal (default), 3 high, 4 critical\n"
    "      --linger S      how long to wait for a member where a blocking group has none, and at the end for what\n"
    "                      was published to be taken; default 1\n"
    "\n"
    "With --json the sums are one JSON object on standard output.\n"
    "Exit status: 0 every line was published, 1 some were not, or the channel cannot be opened, 2 usage,\n"
    "3 no broker, one that does not answer, or not permitted to connect.\n" COMMON
    "\n"
    "Examples:\n"
    "  echo hello | numapoolctl pub greetings\n"
    "  journalctl -f -o json | numapoolctl pub journal --topic host1\n";
