# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The steps that fetch the stock Debian kernel and make Rust metadata that fits it. Used by setup.

The docstring of a step is what setup prints for it.
"""

import os
import re
import shutil

from .buildroot import in_root, root_output
from .debian import MIRROR, network_failure
from .files import remove_tree
from .paths import KERNEL, LOGS
from .report import Failure, say, tail
from .stock import release

# The kernel that rvmm is tested with. When the mirror no longer has it, the newest 7.x is taken, with a notice.
KERNEL_PINNED = "7.3.4+deb13-amd64"
KERNEL_FAMILY = "7."


def version_key(release):
    """What releases are ordered by."""
    return [int(n) for n in re.findall(r"\d+", release.split("+")[0])]


def version():
    """which kernel the mirror has"""
    if in_root(["apt-get", "update"], "kernel.log"):
        raise network_failure("apt-get update failed in the build root", "kernel.log")
    code, text = root_output(["apt-cache", "pkgnames", "linux-image-"])
    found = re.findall(r"^linux-image-(\d+\.\d+(?:\.\d+)?\+deb13-amd64)$", text, re.M) if code == 0 else []
    headers = root_output(["apt-cache", "pkgnames", "linux-headers-"])[1].split()
    found = [r for r in found if r.startswith(KERNEL_FAMILY) and f"linux-headers-{r}" in headers]
    chosen = KERNEL_PINNED
    if chosen not in found:
        if not found:
            raise Failure(
                f"the mirror {MIRROR} has no Debian kernel {KERNEL_FAMILY}x with its headers",
                "another mirror into RVMM_MIRROR, e.g. https://snapshot.debian.org/archive/debian/20261115T000000Z",
            )
        chosen = max(found, key=version_key)
        say(f"  NOTICE: kernel {KERNEL_PINNED}, which rvmm is tested with, is gone from the mirror; taking {chosen}")
    KERNEL.mkdir(parents=True, exist_ok=True)
    (KERNEL / "release").write_text(chosen + "\n")


def fetch_debs(names, into):
    """Download packages and unpack them into one directory (dpkg-deb -x: no maintainer script runs)."""
    debs = KERNEL / "deb"
    debs.mkdir(parents=True, exist_ok=True)
    # apt drops its privileges for a download when it can, hence no sandbox user here.
    argv = ["apt-get", "-o", "APT::Sandbox::User=root", "download", *names]
    if in_root(argv, "kernel.log", cwd=debs):
        raise network_failure(f"could not download {' '.join(names)}", "kernel.log")
    target = KERNEL / into
    fresh = KERNEL / (into + ".new")
    for path in (target, fresh):
        if path.exists():
            remove_tree(path)
    fresh.mkdir(parents=True)
    for name in names:
        for deb in debs.glob(name.replace("+", "?") + "_*.deb"):
            if in_root(["dpkg-deb", "-x", deb, fresh], "kernel.log"):
                raise Failure(f"{deb.name} could not be unpacked\n{tail(LOGS / 'kernel.log', 5)}", "run it again")
            deb.unlink()
    fresh.rename(target)


def depends(package, pattern):
    """Names among the dependencies of a package that match the pattern."""
    text = root_output(["apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
                        "--no-breaks", "--no-replaces", "--no-enhances", package])[1]
    return sorted({n for n in re.findall(r"[\w.+~-]+", text) if re.fullmatch(pattern, n)})


def image():
    """stock kernel and its modules in build/kernel/image"""
    rel = re.escape(release())
    names = [f"linux-image-{release()}"]
    # The image package may keep its parts in sub-packages of the same release.
    names += [n for n in depends(names[0], rf"linux-(binary|modules)-.*{rel}.*") if n not in names]
    fetch_debs(names, "image")
    places = [KERNEL / f"image/usr/lib/modules/{release()}/vmlinuz", KERNEL / f"image/boot/vmlinuz-{release()}"]
    vmlinuz = next((p for p in places if p.exists()), None)
    if vmlinuz is None:
        raise Failure(f"{places[0]} is not in the kernel package", "report it: the package layout has changed")
    modules = KERNEL / f"image/usr/lib/modules/{release()}"
    depmod = ["depmod", "-b", KERNEL / "image/usr", release()]
    if in_root(depmod, "kernel.log") or not (modules / "modules.dep").exists():
        raise Failure(f"depmod failed for {modules}\n{tail(LOGS / 'kernel.log', 5)}", "run it again")
    link = KERNEL / "vmlinuz"
    link.unlink(missing_ok=True)
    link.symlink_to(vmlinuz.relative_to(KERNEL))


def headers():
    """kernel headers in build/kernel/headers"""
    base = release().rsplit("-", 1)[0]
    names = [f"linux-headers-{release()}"]
    names += [n for n in depends(names[0], rf"linux-headers-{re.escape(base)}-common") if n not in names]
    fetch_debs(names, "headers")


def headers_dir():
    """Where the headers of the stock kernel are."""
    return KERNEL / "headers/usr/src" / f"linux-headers-{release()}"


def source():
    """kernel source in build/kernel/src"""
    series = ".".join(release().split("+")[0].split(".")[:2])
    fetch_debs([f"linux-source-{series}"], "source")
    src = KERNEL / "src"
    fresh = KERNEL / "src.new"
    for path in (src, fresh):
        if path.exists():
            remove_tree(path)
    fresh.mkdir()
    archive = next((KERNEL / "source/usr/src").glob("linux-source-*.tar.*"))
    if in_root(["tar", "-xf", archive, "-C", fresh, "--strip-components=1"], "kernel.log"):
        raise Failure(f"{archive.name} could not be unpacked\n{tail(LOGS / 'kernel.log', 5)}", "run it again")
    fresh.rename(src)
    remove_tree(KERNEL / "source")
    made = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", (src / "Makefile").read_text(), re.M))
    made_of = f"{made['VERSION']}.{made['PATCHLEVEL']}.{made['SUBLEVEL']}"
    if made_of != release().split("+")[0]:
        raise Failure(
            f"linux-source-{series} is version {made_of}, the kernel is {release()}",
            "wait until the mirror is in step, or use the snapshot of an earlier day by RVMM_MIRROR",
        )


def rust_symbols(path):
    """Exported Rust symbols (_R…) of a Module.symvers or of `nm` output given as text."""
    return {line.split("\t")[1] for line in path.read_text().splitlines() if line.split("\t")[1].startswith("_R")}


def metadata():
    """Rust metadata of that kernel in build/kernel/obj"""
    make_metadata(KERNEL / "obj", headers_dir())


def make_metadata(obj, headers, words=()):
    """Rust metadata in `obj`, of the kernel whose package of headers is unpacked; `words` are for make."""
    src = KERNEL / "src"
    obj.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(headers / ".config", obj / ".config")
    jobs = f"-j{os.cpu_count() or 1}"
    make = ["make", "-C", src, f"O={obj}", jobs, *words]
    # No debug info in what is rebuilt: nothing of it is ever linked, only its metadata is read.
    for target in (["olddefconfig"], ["prepare", "modules_prepare"]):
        if in_root(make + target, "metadata.log"):
            raise Failure(
                f"make {' '.join(target)} failed\n{tail(LOGS / 'metadata.log')}",
                "full output: build/log/metadata.log. `tools/setup --redo packages` renews the build root",
            )
    config = (obj / ".config").read_text()
    if "CONFIG_RUST=y" not in config:
        raise Failure(
            "the kernel's configuration lost CONFIG_RUST=y: rustc, rust-src or bindgen of the build root do not fit it",
            f"see `make -C build/kernel/src O={obj} rustavailable` inside `tools/setup run --`",
        )
    # vermagic and the list of exported symbols are the stock kernel's own.
    for name in ("Module.symvers", "include/generated/utsrelease.h", "include/config/kernel.release"):
        source = headers / name
        if not source.exists():
            raise Failure(f"{source} is missing in the headers package", "report it: the package layout has changed")
        (obj / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, obj / name)


def compare():
    """rebuilt Rust symbols against the stock kernel's"""
    compare_symbols(KERNEL / "obj", headers_dir())


def compare_symbols(obj, headers, nm="nm"):
    """Fails unless every Rust symbol that the stock kernel exports is in the metadata that was made in `obj`."""
    stock = rust_symbols(headers / "Module.symvers")
    objects = sorted((obj / "rust").glob("*.o"))
    code, text = root_output([nm, "--defined-only", "--extern-only", *objects])
    rebuilt = set(re.findall(r"^[0-9a-f]* [A-Za-z] (_R\S+)$", text, re.M))
    gone = sorted(stock - rebuilt)
    if not stock or gone:
        (LOGS / "symbols.log").write_text("\n".join(gone) + "\n")
        raise Failure(
            f"{len(gone)} of {len(stock)} exported Rust symbols of the stock kernel are not in the rebuilt metadata, "
            f"so a module built here would not match it (e.g. {gone[0] if gone else 'none at all'})",
            "the build root's rustc must be the one that built the kernel (see CONFIG_RUSTC_VERSION_TEXT); "
            "list: build/log/symbols.log",
        )
    say(f"  {len(stock)} exported Rust symbols equal the stock kernel's")
