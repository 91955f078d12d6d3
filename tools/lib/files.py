# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Files that are whole or absent, whoever else makes them at the same time. Used by setup, bed and guest."""

import os
import subprocess

from .report import Failure


def replace(path, data, mode=None):
    """The file `path` holds `data`, from one moment to the next."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    if mode is not None:
        temporary.chmod(mode)
    temporary.rename(path)


def cached(path, source, make):
    """`path`, made by `make` (a function that gives its bytes) if it is absent or older than the file `source`."""
    if not path.exists() or path.stat().st_mtime < source.stat().st_mtime:
        replace(path, make())
    return path


def remove_tree(path):
    """Remove a directory, on one file system: were a mount left inside by someone else, its content is not ours."""
    if subprocess.run(["rm", "-rf", "--one-file-system", str(path)]).returncode:
        raise Failure(f"{path} could not be removed", "look for mounts below it (findmnt -R) and unmount them")
