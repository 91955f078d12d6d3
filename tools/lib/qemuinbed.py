# SPDX-License-Identifier: Apache-2.0 OR MIT
"""QEMU in a bed with a Python program that drives it: what has to be there. Used by guests, models."""

from .buildroot import in_root
from .debpool import POOL
from .paths import BED_PROGRAMS, ROOT
from .report import Failure

# Where QEMU looks for its firmware.
FIRMWARE = ["usr/share/seabios", *(f"usr/share/qemu/{name}" for name in (
    "linuxboot_dma.bin", "multiboot_dma.bin", "pvh.bin", "kvmvapic.bin", "efi-virtio.rom"))]


def python_library():
    """Python's own library as one archive, compiled, where the interpreter looks for it first."""
    path = POOL / "python313.zip"
    if not path.exists():
        make = ("import sys, zipfile, os; z = zipfile.PyZipFile(sys.argv[1], 'w'); top = os.path.dirname(os.__file__);"
                "z.writepy(top); [z.writepy(os.path.join(top, p)) for p in "
                "('collections', 'encodings', 'importlib', 'json', 're', 'email')]")
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        if in_root(["python3", "-c", make, str(new)], "guests.log"):
            raise Failure("Python's library could not be packed", "look into build/log/guests.log")
        new.rename(path)
    return path


def installed(name):
    """A program or file of the build root."""
    path = ROOT / name
    if not path.exists():
        raise Failure(f"the build root has no {name}", "run tools/setup --redo packages")
    return path


def words(program):
    """Options of tools/bed that put QEMU, its firmware, Python and this program of lib/bed into the bed."""
    found = [installed("usr/bin/qemu-system-x86_64"), installed("usr/bin/python3.13"),
             f"{python_library()}:/usr/lib/python313.zip", BED_PROGRAMS / program]
    found += [f"{installed(name)}:/{name}" for name in FIRMWARE]
    return [word for file in found for word in ("--add", file)]
