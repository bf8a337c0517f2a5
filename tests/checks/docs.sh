#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The documents say what is there: the two programs of the README are the ones in examples/ and stay short, every
# file that a document links to or names exists, and every anchor within a document has its heading.
set -euo pipefail
python3 - "$SOURCE_DIR" <<'PYTHON'
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
faults = []
documents = [root / "README.md", root / "CHANGELOG.md", root / "CONTRIBUTING.md", root / "SECURITY.md"]
documents += sorted((root / "docs").rglob("*.md")) + sorted((root / "bench").glob("*.md"))


def fault(path, line, words):
    faults.append(f"{path.relative_to(root)}:{line}: {words}")


def anchor(heading):
    text = re.sub(r"[^\w\- ]", "", heading.lower())
    return text.strip().replace(" ", "-")


# The two programs.
blocks = re.findall(r"^```c\n(.*?)^```$", (root / "README.md").read_text(), re.M | re.S)
for name, block in zip(("hello_publisher.c", "hello_subscriber.c"), blocks + ["", ""]):
    source = root / "examples" / name
    first, _, program = source.read_text().partition("\n")
    if "SPDX-License-Identifier" not in first:
        fault(source, 1, "does not begin with its SPDX line")
    if block != program:
        fault(root / "README.md", 1, f"the program shown differs from examples/{name}")
    if (lines := sum(1 for line in program.splitlines() if line.strip())) > 15:
        fault(source, 1, f"{lines} lines that are not blank: at most 15, it is the first program that anybody reads")

# Links, and paths of this tree named in `code`.
named = re.compile(r"`((?:lib|daemon|include|tools|tests|examples|docs|bench|packaging|cmake)/[\w./-]+?)/?`")
links = paths = 0
for document in documents:
    text = document.read_text()
    if not text.startswith("<!-- SPDX-License-Identifier: Apache-2.0 -->"):
        fault(document, 1, "does not begin with its SPDX line")
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            in_code = not in_code
        if in_code:
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if re.match(r"[a-z]+:", target):
                continue
            links += 1
            file, _, part = target.partition("#")
            place = (document.parent / file).resolve() if file else document
            if not place.exists():
                fault(document, number, f"links to {target}, which does not exist")
            elif part and part not in {anchor(h) for h in re.findall(r"^#+ (.*)$", place.read_text(), re.M)}:
                fault(document, number, f"links to {target}: no such heading")
        for path in named.findall(line):
            if "NAME" in path:
                continue
            paths += 1
            if not (root / path).exists():
                fault(document, number, f"names {path}, which does not exist")

# "Reading the code" is only worth something where it names real files.
reading = re.search(r"^## Reading the code\n(.*?)^## ", (root / "README.md").read_text(), re.M | re.S)
steps = re.findall(r"\]\(([\w./-]+\.[ch])\)", reading.group(1)) if reading else []
if len(steps) < 10:
    fault(root / "README.md", 1, f'"Reading the code" names {len(steps)} files: an event passes more')

print("\n".join(faults) if faults else f"docs: {len(documents)} documents, {links} links and {paths} paths lead somewhere")
sys.exit(1 if faults else 0)
PYTHON
