# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Where rvmm differs from KVM on purpose: the tables of docs/abi.md. Used by msrs, models."""

import re

from .paths import REPO

REGISTERS = ["EAX", "EBX", "ECX", "EDX"]


def table(title):
    """Rows of the first table below that heading of docs/abi.md: lists of cells."""
    section = (REPO / "docs/abi.md").read_text().split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")]
            for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def numbers(cell):
    """"c0010000 to c0010007, 345" as pairs of first and last."""
    for words in cell.split(","):
        first, _, last = words.strip().partition(" to ")
        yield int(first, 16), int(last or first, 16)


def differences_of_msrs():
    """[(first, last, kinds or nothing for all)]"""
    return [(first, last, set(re.findall(r"\w+", kinds)) if kinds != "all" else None)
            for cell, kinds, *_ in table("MSRs beside KVM") for first, last in numbers(cell)]


def differences_of_cpuid():
    """{(leaf, register): bits}; a leaf without a register has all of them."""
    bits = {}
    for leaf, register, cell, *_ in table("CPUID beside KVM"):
        mask = 0
        for words in cell.split(",") if cell != "all" else ["0 to 31"]:
            first, _, last = words.strip().partition(" to ")
            mask |= sum(1 << bit for bit in range(int(first), int(last or first) + 1))
        for name in REGISTERS if register == "all" else [register]:
            for first, last in numbers(leaf):
                for number in range(first, last + 1):
                    bits[number, name] = bits.get((number, name), 0) | mask
    return bits
