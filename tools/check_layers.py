#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fails on every include that points upwards in the layers of the tree.

    tools/check_layers.py [ROOT]        checks the tree, one line "file:line: what" for each violation
    tools/check_layers.py --self-test   proves, on a tree made for it, that each rule can fail

The rules are the table below: for each part of the tree, what its files may include beside their own folder.
"""

import pathlib
import re
import sys
import tempfile

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')

# Public headers that carry no handles: any layer may use them.
PUBLIC_PLAIN = {"numapool/status.h", "numapool/stats.h", "numapool/version.h"}
LIBRARY = ("base", "os", "shm", "core", "wire")

# part: (folders whose headers it may include, may it use all public headers)
RULES = {
    "base": (("base",), False),
    "os": (("os", "base"), False),
    "shm": (("shm", "os", "base"), False),
    "core": (("core", "shm", "os", "base"), False),
    "wire": (("wire", "os", "base"), False),
    "client": (("client",) + LIBRARY, True),
    "daemon": (("daemon",) + LIBRARY, False),
    "worker": (("daemon", "client") + LIBRARY, True),
    "tool": (("tools",) + LIBRARY, True),
    "example": ((), True),
    "helper": ((), True),
    "bench": (("bench", "client") + LIBRARY, True),
    "test": (("tests", "daemon", "client", "tools") + LIBRARY, True),
    "public": ((), True),
}
KNOWN_FOLDERS = {"base", "os", "shm", "core", "wire", "client", "daemon", "tools", "tests", "bench", "numapool", "examples"}


def part_of(path):
    """The part of the tree that a file belongs to, or None where no rule applies."""
    folders = path.parts
    if folders[0] == "lib" and len(folders) > 2:
        return folders[1] if folders[1] in RULES else "unknown layer"
    if folders[0] == "daemon":
        return "worker" if re.match(r"(ingest_|worker)", path.name) else "daemon"
    if folders[0] == "include":
        return "public"
    if folders[:3] == ("tests", "integration", "helpers"):
        return "helper"
    return {"tools": "tool", "examples": "example", "bench": "bench", "tests": "test"}.get(folders[0])


def fault(path, part, name):
    """Why a file of this part may not include name, or None."""
    folder = name.split("/")[0]
    if "/" not in name:
        # Without a folder only a neighbour can be meant, and inside lib/ and daemon/ the layer is always spelled.
        if part in RULES and part not in ("test", "bench", "tool", "helper", "example"):
            return f'"{name}" does not spell its layer'
        return None
    if folder == "support" and part == "test":
        return None
    if folder == "lib" or name.startswith("../"):
        return f'"{name}" goes around the include paths: write "<layer>/{name.split("/")[-1]}"'
    if folder not in KNOWN_FOLDERS:
        return None
    folders, all_public = RULES[part]
    if folder == "numapool":
        if name in PUBLIC_PLAIN or all_public:
            return None
        return f'"{name}": {part} may use only {", ".join(sorted(PUBLIC_PLAIN))} of the public headers'
    if folder in folders:
        return None
    allowed = ", ".join(folders) or "public headers only"
    return f'"{name}" points upwards: {part} may include {allowed}'


def violations(root):
    found = []
    for top in ("include", "lib", "daemon", "tools", "examples", "bench", "tests"):
        for file in sorted((root / top).rglob("*.[ch]")):
            path = file.relative_to(root)
            part = part_of(path)
            if part is None:
                continue
            if part not in RULES:
                found.append(f"{path}:1: lib/{path.parts[1]} is not a layer; name it in {pathlib.Path(__file__).name}")
                continue
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                # <sys/socket.h> and the like are the system's; <numapool/...> and our folders are ours.
                name = match.group(1) or match.group(2)
                if match.group(2) and name.split("/")[0] not in KNOWN_FOLDERS:
                    continue
                why = fault(path, part, name)
                if why:
                    found.append(f"{path}:{number}: {why}")
    return found


def self_test():
    """Each bad line must be found, at its line, and none of the good ones."""
    good = {
        "lib/base/a.h": ['#include "numapool/status.h"', "#include <stdint.h>"],
        "lib/os/a.c": ['#include "os/a.h"', '#include "base/a.h"', "#include <sys/socket.h>"],
        "lib/core/a.c": ['#include "core/a.h"', '#include "shm/layout.h"'],
        "lib/wire/a.c": ['#include "os/os_socket.h"', '#include "base/a.h"'],
        "lib/client/a.c": ['#include "numapool/numapool.h"', '#include "core/a.h"', '#include "wire/a.h"'],
        "daemon/broker.c": ['#include "daemon/config.h"', '#include "daemon/worker.h"', '#include "wire/a.h"'],
        "daemon/ingest_udp.c": ['#include "numapool/numapool.h"', '#include "client/a.h"'],
        "daemon/worker_loop.c": ["#include <numapool/numapool.h>"],
        "tools/numapoolctl/a.c": ['#include "output.h"', '#include "numapool/numapool.h"', '#include "shm/layout.h"'],
        "examples/a.c": ["#include <numapool/numapool.h>", "#include <stdio.h>"],
        "tests/unit/test_a.c": ['#include "support/child.h"', '#include "daemon/config.h"', '#include "client/a.h"'],
        "include/numapool/a.h": ["#include <numapool/status.h>"],
    }
    bad = {
        "lib/base/bad.c": '#include "os/os_clock.h"',
        "lib/os/bad.c": '#include "shm/segment.h"',
        "lib/shm/bad.h": '#include "core/ring.h"',
        "lib/core/bad.c": '#include "wire/channel.h"',
        "lib/core/bad_public.c": "#include <numapool/numapool.h>",
        "lib/wire/bad.c": '#include "core/ring.h"',
        "lib/client/bad.c": '#include "daemon/config.h"',
        "lib/client/bad_detour.c": '#include "../core/ring.h"',
        "lib/os/bad_short.c": '#include "os_clock.h"',
        "lib/extra/bad.c": "",
        "daemon/bad.c": '#include "client/client_internal.h"',
        "daemon/bad_public.c": '#include "numapool/numapool.h"',
        "tools/numapoolctl/bad.c": '#include "client/client_internal.h"',
        "tools/numapoolctl/bad_daemon.c": '#include "daemon/config.h"',
        "examples/bad.c": '#include "base/align.h"',
        "tests/integration/helpers/bad.c": '#include "core/ring.h"',
        "include/numapool/bad.h": '#include "base/align.h"',
    }
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, lines in good.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        complaints = [f"a good line was refused: {line}" for line in violations(root)]
        for name, line in bad.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"/* one line above */\n{line}\n", encoding="utf-8")
        found = violations(root)
    for name, line in bad.items():
        expected = f"{name}:2:" if line else f"{name}:1:"
        if not any(entry.startswith(expected) for entry in found):
            complaints.append(f"not found: {expected} {line}")
    if len(found) != len(bad):
        complaints.append(f"{len(found)} violations found where {len(bad)} were planted")
    for complaint in complaints:
        print(f"check_layers self-test: {complaint}")
    print(f"check_layers self-test: {len(bad)} planted violations, {'all found' if not complaints else 'FAILED'}")
    return 1 if complaints else 0


def main():
    if "--self-test" in sys.argv[1:]:
        return self_test()
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    found = violations(root)
    for line in found:
        print(line)
    print(f"check_layers: {len(found)} upward includes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
