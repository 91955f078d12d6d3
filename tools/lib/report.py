# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What is said to the user, and the two ways to fail. Used by setup, bed and what they import."""

import sys


class Failure(Exception):
    """A step that cannot go on: what happened, and what to do about it."""

    def __init__(self, cause, remedy):
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy


class BedError(Exception):
    """The bed cannot be started: what is wrong and what to do."""


def say(text):
    """A line of the program's own output."""
    print(text, flush=True)


def note(text):
    """A line of the bed's own, beside what the command prints."""
    print(f"bed: {text}", file=sys.stderr, flush=True)


def tail(path, lines=25):
    """The last lines of a file; nothing if there is no such file."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def show_tail(path, title, lines):
    """The end of a log on standard error, if it says anything."""
    text = tail(path, lines)
    if text:
        print(f"--- {title}\n{text}\n---", file=sys.stderr, flush=True)
