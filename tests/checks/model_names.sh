#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The models of tests/models/spin name the steps of the code that they transcribe. Each name must still be there: those in
# brackets as the code's comments have them, functions (np_..., npi_..., or "name of core/file.c") as somebody defines them.
# And each model names some, so that a reader finds the way from one to the other.
set -euo pipefail
python3 - "$SOURCE_DIR" <<'PYTHON'
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
sources = [path for folder in ("lib", "daemon", "include") for path in sorted((root / folder).rglob("*.[ch]"))]
code = {path.relative_to(root).as_posix(): path.read_text() for path in sources}
everything = "\n".join(code.values())
faults = []
total = 0


def place(name):
    return next((path for path in (name, f"lib/{name}") if path in code), None)


models = sorted((root / "tests/models/spin").glob("*.pml"))
if len(models) < 5:
    faults.append("tests/models/spin: models are missing")
for model in models:
    text = model.read_text()
    where = model.relative_to(root).as_posix()
    steps = set(re.findall(r"\[((?:ring|bell|control|client|registry|journal)\.[a-z-]+)\]", text))
    functions = set(re.findall(r"\bnpi?_[a-z0-9_]+\b", text))
    local = set(re.findall(r"\b([a-z_0-9]+) of ((?:core|client|daemon)/[a-z_]+\.[ch])", text))
    faults += [f"{where}: [{name}] stands nowhere in the code" for name in steps if f"[{name}]" not in everything]
    faults += [
        f"{where}: there is no function {name}" for name in functions if not re.search(rf"\b{name}\(", everything)
    ]
    for name, file in local:
        if place(file) is None or not re.search(rf"\b{name}\(", code[place(file)]):
            faults.append(f"{where}: {file} has no {name}")
    count = len(steps) + len(functions) + len(local)
    total += count
    if model.name != "model.pml" and count < 5:
        faults.append(f"{where}: names {count} steps of the code, too few to follow")

print("\n".join(faults) if faults else f"models: {len(models) - 1} name {total} steps, all of them in the code")
sys.exit(1 if faults else 0)
PYTHON
