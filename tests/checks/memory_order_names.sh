#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The table of docs/memory-ordering.md and the code say the same: each name stands in a comment at its place, beside
# an access of its kind; pairs are mutual, a release on one side and an acquire on the other; the code has no name
# that the table lacks; and no acquire, release or fence below lib/ is without a name or a word on why it needs none.
set -euo pipefail
python3 - "$SOURCE_DIR" <<'PYTHON'
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
table = root / "docs" / "memory-ordering.md"
NAME = re.compile(r"(?<![\w\])])\[([a-z]+\.[a-z-]+)\]")  # not a subscript
ORDERED = re.compile(r"\bnpi_(?:store_release_u(?:32|64)|load_acquire_u(?:32|64)|fence_full|barrier_compiler) ?\(")
KINDS = {
    "release store": "npi_store_release_",
    "acquire load": "npi_load_acquire_",
    "compiler barrier": "npi_barrier_compiler",
    "full fence": "npi_fence_full",
}
NEAR = 12  # lines between a name and the access that it stands for
faults = []


def sources():
    for folder in ("lib", "daemon", "tools"):
        for pattern in ("*.c", "*.h"):
            yield from sorted((root / folder).rglob(pattern))


rows = {}
for number, line in enumerate(table.read_text().splitlines(), 1):
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    if len(cells) == 5 and NAME.fullmatch(cells[0]):
        name = cells[0][1:-1]
        if name in rows:
            faults.append(f"docs/memory-ordering.md:{number}: [{name}] is there twice")
        rows[name] = (number, cells[1], cells[2].strip("`"), set(NAME.findall(cells[4])))
if len(rows) < 8:
    faults.append(f"docs/memory-ordering.md: the table has {len(rows)} rows; is its shape another?")

for name, (number, kind, place, partners) in rows.items():
    where = f"docs/memory-ordering.md:{number}: [{name}]"
    for partner in partners:
        if partner not in rows:
            faults.append(f"{where} pairs with [{partner}], which has no row")
        elif name not in rows[partner][3]:
            faults.append(f"{where} pairs with [{partner}], but not the other way round")
    if not partners:
        faults.append(f"{where} pairs with nothing")
    for one, other in (("release", "acquire"), ("acquire", "release")):
        if kind.startswith(one) and not all(rows[p][1].startswith(other) for p in partners if p in rows):
            faults.append(f"{where} is {kind} and pairs with something else than {other}")
    if not (root / place).is_file():
        faults.append(f"{where}: there is no file {place}")
        continue
    lines = (root / place).read_text().splitlines()
    access = next(text for words, text in KINDS.items() if kind.startswith(words))
    spots = [i for i, line in enumerate(lines) if f"[{name}]" in line]
    if not spots:
        faults.append(f"{where} does not stand in {place}")
    elif not any(access in line for i in spots for line in lines[i : i + NEAR]):
        faults.append(f"{where}: within {NEAR} lines of the name there is no {access} in {place}")

names = accesses = 0
for source in sources():
    path = source.relative_to(root)
    lines = source.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        for name in NAME.findall(line):
            names += 1
            if name not in rows:
                faults.append(f"{path}:{number}: [{name}] is not in the table of docs/memory-ordering.md")
        if path.parts[0] != "lib" or path.name == "atomics.h" or not ORDERED.search(line):
            continue
        accesses += 1
        above = "\n".join(lines[max(0, number - 1 - NEAR) : number])
        if not NAME.search(above) and "/*" not in "\n".join(lines[max(0, number - 3) : number]):
            faults.append(f"{path}:{number}: an order without a name, or a comment that says why it needs none")

print("\n".join(faults) if faults else f"memory order: {len(rows)} names, {names} mentions, {accesses} ordered accesses in lib/")
sys.exit(1 if faults else 0)
PYTHON
