# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Steps that are done once: a stamp below build/stamps holds the key of what a step was done with. Used by setup."""

import hashlib
from typing import Callable, NamedTuple

from .paths import STAMPS


class Step(NamedTuple):
    """One row of the table of setup."""

    name: str
    function: Callable  # its docstring says what the step makes
    after: list  # the steps whose result it uses
    input: str = ""  # what it depends on besides: a change here redoes it


class Table:
    """The steps in their order, and which of them are done."""

    def __init__(self, steps):
        self.steps, self.keys = steps, {}
        for step in steps:
            text = "\n".join([step.name, step.input, *(self.keys[name] for name in step.after)])
            self.keys[step.name] = hashlib.sha256(text.encode()).hexdigest()[:16]

    def done(self, step):
        """Whether the step was done with what it is done with now."""
        try:
            return (STAMPS / step.name).read_text().strip() == self.keys[step.name]
        except OSError:
            return False

    def mark(self, step):
        """The step is done."""
        (STAMPS / step.name).write_text(self.keys[step.name] + "\n")

    def forget(self, name):
        """The step has to be done again, and what uses its result as well."""
        (STAMPS / name).unlink(missing_ok=True)
        for other in self.steps:
            if name in other.after:
                self.forget(other.name)
