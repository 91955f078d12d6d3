# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A command in a bed, as a child of ours. Used by badinput, bench, crate-tests and kvm-selftests."""

import subprocess

from .paths import REPO, TOOLS


def in_bed(bed, options, command, **kw):
    """Run the command in a bed: the finished process, with its output (text unless kw say otherwise)."""
    words = [TOOLS / "bed", "--bed", bed, *options, "--", *command]
    kw = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, "errors": "replace"} | kw
    return subprocess.run([str(word) for word in words], cwd=REPO, **kw)
