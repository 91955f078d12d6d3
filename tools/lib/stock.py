# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The stock Debian kernel below build/kernel: its release, image and modules. Used by setup, bed and guest."""

import gzip
import lzma
import os
import re
import struct
import subprocess

from .buildroot import root_argv
from .files import cached
from .paths import BUILD, KERNEL
from .report import BedError

# What the kernel's image may be packed by, by the first bytes of the payload.
PACKERS = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zX": "xz", b"\x1f\x8b\x08\x00": "gzip"}


def release():
    """The kernel's release, as uname -r says it."""
    return (KERNEL / "release").read_text().strip()


def vmlinuz():
    """The packed image (a bzImage)."""
    return (KERNEL / "vmlinuz").resolve()


def unpacked_kernel():
    """The ELF image inside the stock bzImage, unpacked once: what its own decompressor would put into memory.

    Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, payload_offset and payload_length at 0x248.
    """

    def unpack():
        image = vmlinuz().read_bytes()
        offset, length = struct.unpack_from("<II", image, 0x248)
        start = (image[0x1F1] + 1) * 512 + offset
        payload = image[start : start + length - 4]  # the last four bytes are the unpacked size
        tool = PACKERS.get(payload[:4])
        if tool is None:
            raise BedError("the stock kernel is packed in a way not known here; --packed boots it as it is")
        done = subprocess.run(root_argv([tool, "-dc"]), input=payload, capture_output=True)
        if done.stdout[:4] != b"\x7fELF":
            raise BedError(f"the stock kernel could not be unpacked by {tool}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    return cached(BUILD / "bed" / f"vmlinux-{release()}", vmlinuz(), unpack)


def plain(path):
    """A module's name as the kernel spells it, from a file name or a name."""
    return re.sub(r"\.ko(\.\w+)?$", "", os.path.basename(path)).replace("-", "_")


def module_files(name):
    """The files of a stock module, what it depends on first (modules.dep says so)."""
    tree = KERNEL / "image/usr/lib/modules" / release()
    for line in (tree / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        if plain(path) == plain(name):
            return [tree / p for p in [*reversed(rest.split()), path]]
    raise BedError(f"the stock kernel has no module {name}")


def unpacked(path):
    """What is in a file that may be packed."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(root_argv(["zstd", "-dc", path]), capture_output=True, check=True).stdout
    return path.read_bytes()


def module_bytes(path):
    """A stock module, unpacked once into build/bed."""
    name = re.sub(r"\.(xz|zst|gz)$", "", path.name)
    return cached(BUILD / "bed" / "modules" / release() / name, path, lambda: unpacked(path)).read_bytes()
