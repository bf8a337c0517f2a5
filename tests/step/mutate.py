#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds a copy of lib/ that holds all seeded bugs of tests/step/mutants.txt, chosen by a variable at run time.

mutate.py SOURCE_DIR OUTPUT_DIR    writes OUTPUT_DIR/lib and OUTPUT_DIR/mutants_table.h
"""
import pathlib
import sys


def read_mutants(path):
    mutants = []
    part = None
    for line in path.read_text().split("\n"):
        if line.startswith("== "):
            mutants.append({"name": line[3:], "at": 1, "kind": "statement", "equivalent": "", "--": [], "++": []})
            part = None
        elif not mutants or (part is None and (line == "" or line.startswith("#"))):
            continue
        elif line in ("--", "++"):
            part = line
        elif part is not None:
            mutants[-1][part].append(line)
        elif line.startswith("equivalent: "):
            mutants[-1]["equivalent"] = line[12:]
        elif line.startswith("in "):
            words = line.split()
            mutants[-1]["file"] = words[1]
            mutants[-1]["exact"] = "at" not in words
            for i, word in enumerate(words[2:], 2):
                if word in ("expression", "raw"):
                    mutants[-1]["kind"] = word
                elif word == "at":
                    mutants[-1]["at"] = int(words[i + 1])
        else:
            sys.exit(f"{path}: what is this: {line}")
    for mutant in mutants:
        for part in ("--", "++"):
            mutant[part] = "\n".join(mutant[part]).rstrip("\n")
    return mutants


def apply(text, mutant, number):
    """The text with the mutant beside what was there; None: its place is not found."""
    old, new = mutant["--"], mutant["++"].replace("MUTANT", f"(npi_mutant == {number})")
    place = -1
    for _ in range(mutant["at"]):
        place = text.find(old, place + 1)
        if place < 0:
            return None
    if mutant["kind"] == "expression":
        old = f"(npi_mutant == {number} ? ({new}) : ({old}))"
    elif mutant["kind"] == "raw":
        old = new
    else:
        old = f"if (npi_mutant == {number}) {{\n{new}\n}} else {{\n{old}\n}}"
    return text[:place] + old + text[place + len(mutant["--"]):]


def main():
    source, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    mutants = read_mutants(source / "tests/step/mutants.txt")
    texts = {}
    table = ["/* made by tests/step/mutate.py */"]
    for number, mutant in enumerate(mutants, 1):
        path = source / mutant["file"]
        # Each mutant is looked for in the text as it is, then put where that is by now: mutants may share a place.
        original = path.read_text() if path.exists() else ""
        text = texts.get(mutant["file"], original)
        mutated = apply(text, mutant, number) if apply(original, mutant, number) is not None else None
        if mutated is not None:
            texts[mutant["file"]] = mutated
        words = [mutant["name"], mutant["file"], mutant["equivalent"]]
        quoted = ", ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words)
        table.append(f"{{{int(mutated is not None)}, {quoted}}},")
    for path in sorted((source / "lib").rglob("*.[ch]")):
        name = str(path.relative_to(source))
        text = texts.get(name)
        text = path.read_text() if text is None else "extern int npi_mutant;\n" + text
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
    (output / "mutants_table.h").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
