# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Debian packages of other suites and architectures, unpacked below build/guests or where they are wanted.

Used by guests and, for the kernel of Arm64, by setup.

apt of the build root fetches and verifies them, with lists of its own for each suite and architecture. A package that
has been unpacked stays; remove build/guests to have newer ones.
"""

import re
import shutil

from .buildroot import in_root, root_output
from .debian import MIRROR, network_failure
from .paths import BUILD

POOL = BUILD / "guests"


class Pool:
    """One suite for one architecture."""

    def __init__(self, suite, arch, home=None, also=()):
        """`also`: suites that packages of this one need others of."""
        self.suite, self.arch, self.suites = suite, arch, [suite, *also]
        self.home = home or POOL / f"{suite}-{arch}"
        self.fresh = False

    def options(self):
        """apt's options, that keep it away from the build root's own lists."""
        return [word for text in (
            f"Dir::Etc::SourceList={self.home}/sources.list", "Dir::Etc::SourceParts=/dev/null",
            f"Dir::State={self.home}/state", f"Dir::State::Status={self.home}/status", f"Dir::Cache={self.home}/cache",
            f"APT::Architecture={self.arch}", f"APT::Architectures={self.arch}", "APT::Sandbox::User=root",
        ) for word in ("-o", text)]

    def update(self):
        """The lists, once in a run."""
        if self.fresh:
            return
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        (self.home / "status").touch()
        (self.home / "sources.list").write_text("".join(f"deb {MIRROR} {suite} main\n" for suite in self.suites))
        if in_root(["apt-get", *self.options(), "update"], "guests.log"):
            raise network_failure(f"apt-get update failed for {self.suite}, {self.arch}", "guests.log")
        self.fresh = True

    def package(self, name):
        """The tree of a package, or of the kernel that one like `linux-image-amd64` stands for."""
        tree = self.home / name
        if tree.exists():
            return tree
        self.update()
        real = name
        if re.fullmatch(r"linux-image-[a-z]\w*|linux-image-686(-pae)?", name):
            _, text = root_output(["apt-cache", *self.options(), "depends", "--no-recommends", name])
            found = re.search(r"Depends: (linux-image-\d\S*)", text)
            real = found.group(1) if found else name
        debs = self.home / "debs"
        shutil.rmtree(debs, ignore_errors=True)
        debs.mkdir()
        fetch = ["sh", "-c", 'cd "$0" && exec apt-get "$@"', debs, *self.options(), "download", real]
        if in_root(fetch, "guests.log") or not list(debs.glob("*.deb")):
            raise network_failure(f"{real} of {self.suite}, {self.arch} could not be had", "guests.log")
        new = self.home / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        if in_root(["dpkg-deb", "-x", str(next(debs.glob("*.deb"))), str(new)], "guests.log"):
            raise network_failure(f"{real} could not be unpacked", "guests.log")
        new.rename(tree)
        shutil.rmtree(debs)
        return tree

    def whole(self, name):
        """The tree of a package and all that it depends on."""
        tree = self.home / f"{name}.whole"
        if tree.exists():
            return tree
        self.update()
        fetch = ["apt-get", *self.options(), "-y", "-d", "--no-install-recommends", "-t", self.suite, "install", name]
        if in_root(fetch, "guests.log"):
            raise network_failure(f"{name} of {self.suite}, {self.arch} could not be had", "guests.log")
        new = self.home / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        debs = self.home / "cache/archives"
        for deb in sorted(debs.glob("*.deb")):
            if in_root(["dpkg-deb", "-x", str(deb), str(new)], "guests.log"):
                raise network_failure(f"{deb.name} could not be unpacked", "guests.log")
        new.rename(tree)
        shutil.rmtree(debs)
        return tree

    def find(self, name, pattern):
        """One file of a package, by a pattern of its path."""
        found = sorted(self.package(name).glob(pattern))
        if not found:
            raise network_failure(f"{name} of {self.suite} has no {pattern}", "guests.log")
        return found[-1]
