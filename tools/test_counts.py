#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts test cases in the JUnit files that ctest wrote.

    tools/test_counts.py FILE...     prints "PASSED FAILED SKIPPED", then one line for each skip, with its reason

A Criterion program counts with each of its cases, also where a test runs several of them; any other test counts as one.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree

COLOUR = re.compile(r"(?:\x1b|\[NON-XML-CHAR-0x1B\])\[[0-9;]*m")
SYNTHESIS = re.compile(r"Synthesis: Tested: (\d+) \| Passing: (\d+) \| Failing: (\d+) \| Crashing: (\d+)")
SKIP = re.compile(r"^\[SKIP\]\s*(.*)$", re.MULTILINE)


def count(case):
    """(passed, failed, skips with reasons) of one ctest test."""
    name = case.get("name", "?")
    output = COLOUR.sub("", case.findtext("system-out") or "")
    status = case.get("status")
    skipped = case.find("skipped")
    if status in ("notrun", "disabled") or skipped is not None:
        said = [line for line in output.splitlines() if line.strip()]
        chosen = skipped is not None and skipped.get("message", "").startswith("SKIP_RETURN_CODE")
        if chosen and said:
            return 0, 0, [f"{name}: {said[-1].strip()}"]
        return 0, 1, []  # not built, not found, or a skip that does not say why
    broken = status == "fail" or case.find("failure") is not None
    skips = [f"{name}: {reason.strip()}" for reason in SKIP.findall(output)]
    summary = SYNTHESIS.findall(output)
    if not summary:
        return (0, 1, []) if broken else (1, 0, skips)
    passing = sum(int(numbers[1]) for numbers in summary)
    failed = sum(int(numbers[2]) + int(numbers[3]) for numbers in summary)
    if broken and failed == 0:
        failed = 1  # the program itself failed: time, leak, exit status
    if not broken and not skips and any(numbers[0] == "0" for numbers in summary):
        failed = 1  # a test program without a test is a mistake
    return passing, failed, skips


def main():
    passed = failed = 0
    skips = []
    for path in sys.argv[1:]:
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            p, f, s = count(case)
            passed, failed, skips = passed + p, failed + f, skips + s
    print(passed, failed, len(skips))
    for skip in skips:
        print(skip)


if __name__ == "__main__":
    main()
