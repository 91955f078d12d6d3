# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Runs the steps of a suite, and says how each of them ended. Used by test.

Steps of the host come first, one after the other; then the lanes of checks and beds run side by side.
"""

import os
import re
import signal
import subprocess
import threading
import time

from .paths import LOGS, REPO
from .results import Results


# QEMU's interpreter takes its lock twice where an interrupt of the nested guest's is delivered at an unlucky moment
# (docs/limits.md), and ends itself. That says nothing of what was to be tried: the step is run again, once.
EMULATOR_ENDS = re.compile(r"^(Bail out! )?ERROR:system/cpus\.c:\d+:bql_lock_impl: assertion failed", re.M)


# Lanes side by side: with more of them each step takes too long.
AT_ONCE = 4
# Lanes that have least to do.
SHORT = ("checks", "arm")


def log_of(step):
    """The file that gets the step's whole output."""
    return LOGS / "test" / (re.sub(r"[^\w.-]+", "-", f"{step.lane} {step.name}").strip("-") + ".log")


def end(process):
    """End our own child and its group: first politely, so that a bed can clear away its machine."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            continue


class Runner:
    """One run of a suite: the children that are at work, and the sums of the report."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.children, self.children_lock, self.print_lock = set(), threading.Lock(), threading.Lock()

    def say(self, *lines):
        """Lines that stay together."""
        with self.print_lock:
            print("\n".join(lines), flush=True)

    def interrupt(self):
        """End all children and this program."""
        with self.children_lock:
            for process in list(self.children):
                try:
                    os.killpg(process.pid, signal.SIGTERM)
                except ProcessLookupError:
                    pass
        self.say("test: interrupted")
        os._exit(130)

    def execute(self, step, command, log):
        """Run the step's command: (exit status or None, what is wrong with how it ended, or nothing)."""
        with open(log, "wb") as out:
            out.write(("$ " + " ".join(map(str, command)) + "\n").encode())
            out.flush()
            process = subprocess.Popen([str(w) for w in command], cwd=REPO, stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=subprocess.STDOUT, start_new_session=True)
            with self.children_lock:
                self.children.add(process)
            try:
                status = process.wait(timeout=step.timeout)
            except subprocess.TimeoutExpired:
                end(process)
                return None, f"timeout after {step.timeout} s"
            finally:
                with self.children_lock:
                    self.children.discard(process)
        if status == step.status:
            return status, ""
        # What the bed says at its end.
        said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("bed: ")][-1:]
        return status, "; ".join([f"exit status {status}, {step.status} expected", *said])

    def run(self, step):
        """Run one step and say how it went; True when it passed."""
        begin = time.monotonic()
        log = log_of(step)
        try:
            command = step.command() if callable(step.command) else step.command
            status, why = self.execute(step, command, log)
            if why and EMULATOR_ENDS.search(log.read_text(errors="replace")):
                log.replace(log.with_suffix(".first.log"))
                self.say(f"again {step.lane:6}  {step.name}: QEMU has ended itself, as its own log says")
                status, why = self.execute(step, command, log)
        except OSError as error:
            status, why = None, str(error)
            log.write_text(f"{error}\n")
        text = log.read_text(errors="replace")
        results = Results(text)
        why = why or "; ".join(results.missing)
        if not why and step.expect and not re.search(step.expect, text):
            why = f"nothing in the output matches {step.expect!r}"
        if results.failed and (not why or status is not None and step.status == 0):
            why = f"{results.failed} failed"
        elif why:
            results.failed += 1
        elif not results.passed and not results.skipped:
            results.passed = 1
        step.result = "FAIL" if why else "ok"
        self.report(step, results, why, time.monotonic() - begin)
        if why:
            self.show(log, text)
        return not why

    def report(self, step, results, why, took):
        """The step's line, and its share of the sums."""
        with self.print_lock:
            self.passed += results.passed
            self.failed += results.failed
            self.skipped += results.skipped
        numbers = f"{results.passed} passed" + (f", {results.failed} failed" if results.failed else "")
        numbers += f", {results.skipped} skipped" if results.skipped else ""
        numbers += f"  ({why})" if why else ""
        self.say(f"{step.result:4}  {step.lane:6}  {step.name:32} {took:6.1f} s  {numbers}")

    def show(self, log, text):
        """What a failed step said: the results that failed, and the end."""
        lines = text.splitlines()
        bad = [line for line in lines if line.startswith("not ok")][:20]
        self.say(*(f"      | {line[:300]}" for line in [*bad, *lines[-40:]]),
                 f"      | whole output: {log.relative_to(REPO)}")

    def run_host(self, steps):
        """The steps of the host up to the first vital one that fails, which is returned."""
        for step in steps:
            if not self.run(step) and step.vital:
                return step
        return None

    def run_lanes(self, steps, serial):
        """The steps of the beds, each bed's one after the other; so many lanes at once, those that are soon through
        after the others.
        """
        lanes, places = {}, threading.Semaphore(1 if serial else AT_ONCE)
        for step in sorted(steps, key=lambda step: step.lane in SHORT):
            lanes.setdefault(step.lane, []).append(step)

        def run_lane(lane):
            with places:
                for step in lane:
                    self.run(step)

        threads = [threading.Thread(target=run_lane, args=(lane,)) for lane in lanes.values()]
        for thread in threads:
            thread.start()
            if serial:
                thread.join()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)

    def run_suite(self, steps, serial):
        """Everything, with the summary as the last two lines; the exit status."""
        (LOGS / "test").mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.interrupt())
        if broken := self.run_host([s for s in steps if s.lane == "host"]):
            self.say(f"test: the rest is not run: {broken.name} failed")
            # What was not run has not passed: every step left out counts as failed.
            self.failed += sum(1 for s in steps if not s.result)
        else:
            self.run_lanes([s for s in steps if s.lane != "host"], serial)
        failed = [f"{s.lane} {s.name}" for s in steps if s.result == "FAIL"]
        self.say(f"test: {time.monotonic() - begin:.0f} s, {self.skipped} skipped"
                 + (f"; failed: {', '.join(failed)}" if failed else ""),
                 f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed or not self.passed else 0
