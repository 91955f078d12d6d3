# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A machine that runs, watched until the command has ended, the host kernel complains, or time is up. Used by bed.

The first serial port carries the command's input and output between markers, the second one the host kernel's log.
"""

import os
import re
import select
import time

from .complaints import COMPLAINT, COMPLAINT_END
from .machines import BOCHS_MODELS


class Monitor:
    """Follows both serial ports until the command has ended, the host kernel complains, or time is up."""

    def __init__(self, options, run, token, machine):
        self.options, self.run, self.process = options, run, machine.process
        self.output, self.input = machine.output, machine.input
        self.marker = re.compile(b"\x1e" + token.encode() + rb" (start|end (\w+))\x1e")
        self.open_marker = b"\x1e" + token.encode()
        self.pending = b""
        self.started = self.ended = None
        self.begin = time.monotonic()
        self.log_at, self.log_rest = 0, b""
        self.complaint, self.complaint_at, self.complaint_over = None, 0.0, False

    def take(self, data):
        """Bytes of the command's port: pass them on from the start marker to the end marker."""
        self.pending += data
        while True:
            found = self.marker.search(self.pending)
            if not found:
                break
            before, self.pending = self.pending[: found.start()], self.pending[found.end() :]
            if self.started is not None and self.ended is None:
                self.emit(before)
            if found.group(1) == b"start":
                self.started = time.monotonic()
            else:
                self.ended = found.group(2).decode()
                return
        if self.started is None:
            self.pending = self.pending[-4096:]
            return
        # Keep back what may be the beginning of a marker.
        at = self.pending.rfind(b"\x1e")
        keep = len(self.pending)
        if at >= 0 and len(self.pending) - at < 80:
            rest = self.pending[at:]
            if self.open_marker.startswith(rest) or rest.startswith(self.open_marker):
                keep = at
        self.emit(self.pending[:keep])
        self.pending = self.pending[keep:]

    def emit(self, data):
        """Bytes of the command's, to our own output."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(1, view) :]
            except BlockingIOError:
                select.select([], [1], [])

    def look_at_log(self):
        """Read what the host kernel has logged since the last look, and notice its complaints."""
        try:
            with open(self.run / "host.log", "rb") as log:
                log.seek(self.log_at)
                new = log.read()
        except OSError:
            return
        self.log_at += len(new)
        text = self.log_rest + new
        *lines, self.log_rest = text.split(b"\n")
        for line in lines:
            if self.options.verbose:
                os.write(2, line + b"\n")
            if self.complaint is None and COMPLAINT.search(line) and not self.tolerated(line):
                self.complaint, self.complaint_at = line.strip(), time.monotonic()
            if self.complaint is not None and COMPLAINT_END.search(line):
                self.complaint_over = True

    def tolerated(self, line):
        """Whether the caller said that this line is no complaint."""
        return any(re.search(t.encode(), line) for t in self.options.tolerate)

    def take_ready(self, watched, ready):
        """Pass on what has come; what has come to its end is watched no longer."""
        if self.output in ready:
            try:
                data = os.read(self.output, 65536)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data:
                self.take(data)
            elif data == b"":
                watched.remove(self.output)
        if 0 in ready:
            typed = os.read(0, 4096)
            if typed:
                os.write(self.input, typed)
            else:
                watched.remove(0)

    def complained(self, now):
        """Whether the complaint is over: with panic_on_warn the machine stands still after its report."""
        return self.complaint_over or now > self.complaint_at + (20 if self.options.bed in BOCHS_MODELS else 5)

    def loop(self):
        """'end', 'complaint', 'timeout' or 'gone'."""
        deadline = self.begin + self.options.timeout
        watched = [self.output]
        if self.options.interactive:
            watched.append(0)
        next_look = 0.0
        while True:
            self.take_ready(watched, select.select(watched, [], [], 0.1)[0])
            now = time.monotonic()
            if now >= next_look or self.ended is not None:
                next_look = now + 0.2
                self.look_at_log()
            if self.complaint is not None:
                if self.complained(now):
                    time.sleep(0.3)
                    self.look_at_log()
                    return "complaint"
            elif self.ended is not None:
                return "end"
            if now > deadline:
                return "timeout"
            if self.process.poll() is not None and not select.select(watched[:1], [], [], 0)[0]:
                self.look_at_log()
                return "complaint" if self.complaint else "gone"
