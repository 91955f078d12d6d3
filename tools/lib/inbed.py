# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A command in a bed, as a child of ours.

Used by badinput, bench, costs, crate-tests, emulation, guests, kvm-selftests, machine-check, models, msrs, sequences.
"""

import subprocess

from .paths import REPO, TOOLS


def start_in_bed(bed, options, command, start=subprocess.Popen, **kw):
    """Start the command in a bed: the process, with its output (text unless kw say otherwise)."""
    words = [TOOLS / "bed", "--bed", bed, *options, "--", *command]
    kw = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, "errors": "replace"} | kw
    return start([str(word) for word in words], cwd=REPO, **kw)


def in_bed(bed, options, command, **kw):
    """Run the command in a bed: the finished process, with its output."""
    return start_in_bed(bed, options, command, subprocess.run, **kw)
