# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images of disks like those that Debian publishes: a GPT whose first partition is an ext4 root, as qcow2.

mke2fs and qemu-img are the build root's. The root is made of a directory; who owns the files in it is root.
"""

import struct
import uuid
import zlib

from .buildroot import in_root
from .report import Failure

SECTOR = 512
FIRST = 2048  # sector of the root
ROOT_TYPE = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")  # root for x86-64


def header(own, other, first_usable, last_usable, entries_at, crc, disk):
    """A GPT header (UEFI 2.10, 5.3.2)."""

    def with_crc(value):
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, value, 0, own, other, first_usable,
                           last_usable, disk.bytes_le, entries_at, 128, 128, crc)

    return with_crc(zlib.crc32(with_crc(0))).ljust(SECTOR, b"\0")


def partition_table(path, sectors, part):
    """Writes both tables into a file of so many sectors, whose one partition is named by the uuid `part`."""
    disk = uuid.uuid5(part, "disk")
    last_usable = sectors - 34
    entry = struct.pack("<16s16sQQQ72s", ROOT_TYPE.bytes_le, part.bytes_le, FIRST, last_usable, 0,
                        "root".encode("utf-16-le"))
    entries = entry.ljust(128 * 128, b"\0")
    crc = zlib.crc32(entries)
    mbr = bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, sectors - 1)
    with open(path, "r+b") as out:
        out.write(mbr.ljust(510, b"\0") + b"\x55\xaa" + header(1, sectors - 1, 34, last_usable, 2, crc, disk) + entries)
        out.seek((sectors - 33) * SECTOR)
        out.write(entries + header(sectors - 1, 1, 34, last_usable, sectors - 33, crc, disk))


def make(tree, target, mebibytes, part):
    """The directory `tree` as root of a disk of so many MiB, in the qcow2 file `target`, compressed."""
    raw = target.with_suffix(".raw")
    sectors = mebibytes * 2048
    with open(raw, "wb") as out:
        out.truncate(sectors * SECTOR)
    partition_table(raw, sectors, part)
    blocks = (sectors - 33 - FIRST) // 8
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), "-E", f"offset={FIRST * SECTOR},root_owner=0:0",
             "-b", "4096", str(raw), str(blocks)]
    if in_root(words, "image.log"):
        raise Failure("mke2fs failed", "look into build/log/image.log")
    if in_root(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(raw), f"{target}.new"], "image.log"):
        raise Failure("qemu-img failed", "look into build/log/image.log")
    target.with_name(f"{target.name}.new").rename(target)
    raw.unlink()
