# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The cpio archive that a machine starts from, with busybox and the libraries that programs are linked with.

Used by bed, whose options say what goes into it, and by guest. The format is the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import os
import stat
import subprocess
from pathlib import Path

from . import elf
from .files import cached
from .paths import ARM64_QEMU, BUILD, ROOT
from .report import BedError

# For each architecture: where its files are, the directories in which the loader looks for libraries.
LIBRARIES = {
    elf.X86_64: (ROOT, "x86_64-linux-gnu", ["usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib"]),
    elf.AARCH64: (ARM64_QEMU, "aarch64-linux-gnu", ["usr/lib/aarch64-linux-gnu"]),
}


class Cpio:
    """A newc archive, written in memory; directories are created on the way."""

    def __init__(self):
        self.parts, self.inode, self.seen = [], 0, set()

    def _entry(self, name, mode, data=b"", rdev=(0, 0), links=1):
        self.inode += 1
        encoded = name.encode() + b"\0"
        head = "070701" + "".join(
            f"{v:08X}"
            for v in (self.inode, mode, 0, 0, links, 0, len(data), 0, 0, rdev[0], rdev[1], len(encoded), 0)
        )
        blob = head.encode() + encoded
        self.parts += [blob, b"\0" * (-len(blob) % 4), data, b"\0" * (-len(data) % 4)]
        self.seen.add(name)

    def directory(self, path):
        """A directory, and those that it is in."""
        path = path.strip("/")
        if not path or path in self.seen:
            return
        self.directory(os.path.dirname(path))
        self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path, data, mode=0o755):
        """A regular file; of several of one name the first one stays."""
        path = path.strip("/")
        if path in self.seen:
            return
        self.directory(os.path.dirname(path))
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path, target):
        """A symbolic link."""
        path = path.strip("/")
        if path in self.seen:
            return
        self.directory(os.path.dirname(path))
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def node(self, path, major, minor):
        """A character device."""
        self.directory(os.path.dirname(path.strip("/")))
        self._entry(path.strip("/"), stat.S_IFCHR | 0o600, rdev=(major, minor))

    def bytes(self):
        """The whole archive; nothing can be added afterwards."""
        self._entry("TRAILER!!!", 0)
        out = b"".join(self.parts)
        return out + b"\0" * (-len(out) % 512)


def busybox_applets():
    """Names of busybox's applets, asked once."""
    binary = ROOT / "usr/bin/busybox"

    def ask():
        listing = subprocess.run([str(binary), "--list"], capture_output=True)
        if listing.returncode:
            raise BedError("busybox of the build root does not run here; run tools/setup --redo packages")
        return listing.stdout

    return cached(BUILD / "bed" / "applets", binary, ask).read_text().split()


def base_tree(cpio, busybox=ROOT / "usr/bin/busybox"):
    """Directories, two devices, busybox under all its names, which it has in every architecture."""
    for name in "proc sys dev tmp root add bed etc var mnt run lib lib64 usr/bin".split():
        cpio.directory(name)
    cpio.node("dev/console", 5, 1)
    cpio.node("dev/null", 1, 3)
    cpio.file("bin/busybox", busybox.read_bytes())
    for applet in busybox_applets():
        cpio.link(f"bin/{applet}", "busybox")
    cpio.link("etc/mtab", "/proc/mounts")
    cpio.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
    cpio.file("etc/group", b"root:x:0:\nkvm:x:104:\n", 0o644)


def add_file(cpio, source, dest):
    """One file with the libraries it is linked with (from its own directory, or from those of its architecture)."""
    data = source.read_bytes()
    cpio.file(dest, data, 0o755 if os.access(source, os.X_OK) or data[:4] == b"\x7fELF" else 0o644)
    interpreter, needed = elf.needs(data)
    if not interpreter and not needed:
        return
    root, name_of_dir, directories = LIBRARIES[elf.machine(data)]
    if interpreter:
        real = root / "usr" / interpreter.lstrip("/")  # /lib64 is usr/lib64 in the root
        cpio.file(interpreter, real.resolve().read_bytes() if real.exists() else b"")
    for name in needed:
        places = [source.parent / name] + [root / d / name for d in directories]
        real = next((p for p in places if p.exists()), None)
        if real is None:
            raise BedError(
                f"{source.name} needs {name}, which is neither beside it nor in the build root; "
                "link it statically, or install the package there: tools/setup run -- apt-get install PACKAGE"
            )
        target = f"lib/{name_of_dir}/{name}"
        if target not in cpio.seen:
            add_file(cpio, real.resolve() if real.is_symlink() else real, target)


def add_path(cpio, text):
    """FILE[:DEST] of --add: a file with its libraries, or a directory, from here or from the build root."""
    source, _, dest = text.partition(":")
    path = Path(source)
    if not path.exists() and (ROOT / source.lstrip("/")).exists():
        path = ROOT / source.lstrip("/")
    if not path.exists():
        raise BedError(f"--add {source}: no such file, neither here nor in the build root")
    dest = dest or f"/add/{path.name}"
    if dest.endswith("/"):
        dest += path.name
    if path.is_dir():
        for entry in sorted(path.rglob("*")):
            inner = f"{dest}/{entry.relative_to(path)}"
            if entry.is_symlink():
                cpio.link(inner, os.readlink(entry))
            elif entry.is_file():
                add_file(cpio, entry, inner)
            elif entry.is_dir():
                cpio.directory(inner)
    else:
        add_file(cpio, path, dest)
