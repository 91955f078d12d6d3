# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Results in the words of KTAP and of cargo. Used by test."""

import re

RESULT = re.compile(r"^(not )?ok\b[ \t]*(\d*)[ \t]*(.*)$")
PLAN = re.compile(r"^1\.\.(\d+)\b(.*)$")
CARGO = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored")


class Results:
    """How many tests of a step's output passed, failed and were skipped, and whether announced ones are missing."""

    def __init__(self, text):
        self.passed = self.failed = self.skipped = 0
        self.planned, self.seen, self.missing = 0, 0, []
        for line in text.splitlines():
            self.line(line.rstrip("\r"))
        self.close()

    def line(self, line):
        """A line of the output."""
        if cargo := CARGO.match(line):
            passed, failed, skipped = map(int, cargo.groups())
            self.passed, self.failed, self.skipped = self.passed + passed, self.failed + failed, self.skipped + skipped
        elif plan := PLAN.match(line):
            self.close()
            self.planned, self.seen = int(plan.group(1)), 0
            self.skipped += "SKIP" in plan.group(2).upper()
        elif result := RESULT.match(line):
            self.seen += 1
            if re.search(r"#\s*SKIP", result.group(3), re.I):
                self.skipped += 1
            elif not result.group(1):
                self.passed += 1
            elif not re.search(r"#\s*(XFAIL|TODO)", result.group(3), re.I):
                self.failed += 1

    def close(self):
        """The end of what a plan announced."""
        if self.seen < self.planned:
            self.missing.append(f"{self.planned - self.seen} of {self.planned} planned results are missing")
