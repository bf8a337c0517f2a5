#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Explores a Promela model exhaustively, then once for each of its mutants.

    explore.py MODEL.pml --work DIR [--spin spin] [--cc cc] [-D NAME=VALUE ...] [--memory MIB] [--mutant N] [--beyond N ...]

The opening comment of a model lists its mutants ("mutant 1: ...") and the situations that it must reach ("seen 1: ...").
It passes when the model as it is has no error, was explored to the end, reached every situation and every statement
(those of mutants aside), and when each mutant is found. Exit status 77: no spin here.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time


def fail(text):
    print(f"FAILED: {text}")
    sys.exit(1)


def run(command, **more):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)


def listed(text, word):
    found = re.findall(rf"^ \*   {word} (\d+): (.*)$", text, re.MULTILINE)
    if [int(number) for number, _ in found] != list(range(1, len(found) + 1)):
        fail(f"the list of '{word}' is not numbered from 1 on")
    return {int(number): words for number, words in found}


def build(options, model, work):
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    defines = [f"-D{name}" for name in options.define]
    for source in model.parent.glob("*.pml"):
        shutil.copy(source, work)
    made = run([options.spin, *defines, "-a", model.name], cwd=work)
    if made.returncode != 0 or not (work / "pan.c").is_file():
        fail(f"spin does not accept the model:\n{made.stdout}")
    # Safety only: no cycle is looked for. States are kept whole (no bit hashing), so "no error" is a proof for the bounds.
    flags = ["-O1", "-w", "-DSAFETY", "-DNOFAIR", f"-DMEMLIM={options.memory}", *(["-DCOLLAPSE"] if options.collapse else []), f"-DVECTORSZ={options.vector}"]
    made = run([options.cc, *flags, "-o", "pan", "pan.c"], cwd=work)
    if made.returncode != 0:
        fail(f"the model's C code does not compile:\n{made.stdout}")


def explore(work, mutant):
    environment = dict(os.environ, MUTANT=str(mutant))
    begin = time.monotonic()
    said = run(["./pan", "-m20000", "-w22"], cwd=work, env=environment).stdout
    if not re.search(r"errors: \d+", said):
        fail(f"the exploration ended early:\n{said[-2000:]}")
    return said, time.monotonic() - begin


def number(pattern, text):
    found = re.search(pattern, text)
    return int(float(found.group(1))) if found else 0


def unreached(said, lines):
    """Statements that were never reached, but for those of mutants."""
    return [
        line.strip()
        for line in said.splitlines()
        if (spot := re.match(r"\s+(\S+\.pml):(\d+), state \d+", line))
        and "MUTANT" not in lines.get(pathlib.Path(spot.group(1)).name, [""])[int(spot.group(2)) - 1]
        and "-end-" not in line
    ]


def check_whole(said, seconds, seen, lines, beyond):
    if number(r"errors: (\d+)", said) != 0:
        fail(f"an error in the model as it is:\n{said[said.find('pan:'):][:1500]}\nFollow it: MUTANT=0 ./pan -r in the work folder")
    if "Search not completed" in said or "max search depth too small" in said or "out of memory" in said:
        fail(f"not explored to the end:\n{said[-1500:]}")
    states, steps = number(r"([0-9.e+]+) states, stored", said), number(r"([0-9.e+]+) transitions", said)
    depth = number(r"depth reached (\d+)", said)
    print(f"states={states} transitions={steps} depth={depth} seconds={seconds:.1f}")
    counts = {int(n): int(count) for n, count in re.findall(r"^seen (\d+) (\d+)$", said, re.MULTILINE)}
    for n, words in seen.items():
        print(f"  seen {n}: {words}: {counts.get(n, 0)}")
    missing = [words for n, words in seen.items() if counts.get(n, 0) == 0 and n not in beyond]
    strange = sorted(set(counts) - (set(seen) - set(beyond)))
    if missing or strange:
        fail(f"never reached: {missing}; reached and not expected: {strange}")
    if rest := unreached(said, lines):
        fail("statements that were never reached:\n" + "\n".join(rest))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--spin", default="spin")
    parser.add_argument("--cc", default="cc")
    parser.add_argument("--memory", default="6000", help="MiB that the exploration may take")
    parser.add_argument("--vector", default="1024", help="bytes that a state may have")
    parser.add_argument("--collapse", action="store_true", help="slower, in less memory")
    parser.add_argument("--mutant", type=int, help="only this one; 0: the model as it is")
    parser.add_argument("--beyond", type=int, action="append", default=[], help="a situation that these bounds exclude")
    parser.add_argument("-D", dest="define", action="append", default=[])
    options = parser.parse_args()
    if shutil.which(options.spin) is None:
        print("skipped: spin is missing (Debian: spin)")
        sys.exit(77)
    model = options.model.resolve()
    lines = {path.name: path.read_text().splitlines() for path in model.parent.glob("*.pml")}
    text = model.read_text()
    mutants, seen = listed(text, "mutant"), listed(text, "seen")
    if not mutants or not seen:
        fail("the opening comment lists no mutants or no situations")
    if set(mutants) != {int(n) for n in re.findall(r"\bMUTANT\((\d+)\)", text)}:
        fail("the mutants of the opening comment and of the model are not the same")
    build(options, model, options.work)
    if options.mutant in (None, 0):
        said, seconds = explore(options.work, 0)
        check_whole(said, seconds, seen, lines, options.beyond)
    missed = []
    for n, words in mutants.items():
        if options.mutant not in (None, n):
            continue
        said, seconds = explore(options.work, n)
        errors = number(r"errors: (\d+)", said)
        what = re.search(r"^pan:\d+: (.*?)(?: \(at depth (\d+)\))?$", said, re.MULTILINE)
        print(f"  mutant {n}: {words}: {what.group(1) if errors and what else 'NOT FOUND'} ({seconds:.1f} s)")
        if errors == 0:
            missed.append(words)
    if missed:
        fail(f"mutants that were not found: {missed}")


main()
