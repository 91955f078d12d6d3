# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a 64-bit little-endian ELF file says of itself (System V ABI, chapter 5). Used by bed and guest."""

import struct
from typing import NamedTuple

LOAD, DYNAMIC, INTERPRETER = 1, 2, 3
NEEDED, STRING_TABLE = 1, 5
X86_64, AARCH64 = 62, 183


class Segment(NamedTuple):
    """An entry of the program header table."""

    kind: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int


def is_elf(data):
    """Whether the bytes are those of such a file."""
    return data[:6] == b"\x7fELF\x02\x01"


def machine(data):
    """The architecture's number, e.g. `X86_64`."""
    return struct.unpack_from("<H", data, 18)[0]


def entry_point(data):
    """Where execution begins."""
    return struct.unpack_from("<Q", data, 24)[0]


def segments(data):
    """The program header table."""
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return [Segment(*struct.unpack_from("<IIQQQQ", data, start + index * size)) for index in range(count)]


def needs(data):
    """(interpreter, DT_NEEDED names) of an ELF file; nothing for anything else."""
    if not is_elf(data):
        return None, []
    interpreter, dynamic, loads = None, None, []
    for segment in segments(data):
        if segment.kind == LOAD:
            loads.append(segment)
        elif segment.kind == DYNAMIC:
            dynamic = segment
        elif segment.kind == INTERPRETER:
            interpreter = data[segment.offset : segment.offset + segment.filesz].rstrip(b"\0").decode()
    if dynamic is None:
        return interpreter, []
    names, table = [], 0
    for at in range(dynamic.offset, dynamic.offset + dynamic.filesz, 16):
        tag, value = struct.unpack_from("<QQ", data, at)
        if tag == NEEDED:
            names.append(value)
        elif tag == STRING_TABLE:
            table = next((s.offset + value - s.vaddr for s in loads if s.vaddr <= value < s.vaddr + s.filesz), 0)
    text = []
    for name in names:
        end = data.index(b"\0", table + name)
        text.append(data[table + name : end].decode())
    return interpreter, text
