# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The steps that make what only Arm64 needs: cross compilers, QEMU, the stock kernel, Rust metadata that fits it.

Used by setup, which does them when they are asked for. The docstring of a step is what setup prints for it.
"""

import shutil

from . import kernel
from .buildroot import in_root
from .debian import SUITE, network_failure
from .debpool import Pool
from .files import remove_tree
from .paths import ARM64, ARM64_MODULES, ARM64_QEMU, ARM64_TARGET, LOGS, ROOT
from .report import Failure, tail
from .stock import release, unpacked

# Debian's kernel is cross-built with these. Without the compiler for 32 bits, which its vDSO needs, the configuration
# loses options, and with them most of the Rust symbols differ.
PACKAGES = """
    gcc-14-aarch64-linux-gnu gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf libc6-dev-arm64-cross qemu-system-arm
""".split()
# Drivers that guests load, those that others need first; the last one is the host's.
MODULES = ["virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net", "virtio-rng", "tun"]
CROSS = "aarch64-linux-gnu-"
# What make has to be told of every build for that kernel. `Makefile` has the same words.
MAKE_WORDS = ["ARCH=arm64", f"CROSS_COMPILE={CROSS}", f"CC={CROSS}gcc-14", "CROSS_COMPILE_COMPAT=arm-linux-gnueabihf-"]


def packages():
    """cross compilers and QEMU for Arm64 in the build root"""
    # The emulator is of the same release as the one for x86.
    (ROOT / "etc/apt/preferences.d/rvmm-arm64").write_text(
        f"Package: qemu-system-arm\nPin: release n={SUITE}-backports\nPin-Priority: 990\n"
    )
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    # The index may be older than what the mirror still has.
    if in_root(install, "arm64.log", env) and (
        in_root(["apt-get", "update"], "arm64.log", env) or in_root(install, "arm64.log", env)
    ):
        raise network_failure("packages for Arm64 could not be installed in the build root", "arm64.log")
    in_root(["apt-get", "clean"], "arm64.log", env)


def rust():
    """Rust's standard library for Arm64, beside the one of the build root's compiler"""
    package = Pool(SUITE, "arm64", ARM64 / "apt" / SUITE).package("libstd-rust-dev")
    where = f"usr/lib/rustlib/{ARM64_TARGET}"
    if not (package / where).is_dir():
        raise Failure(f"libstd-rust-dev has no {where}", "report it: the package layout has changed")
    if (ROOT / where).exists():
        remove_tree(ROOT / where)
    shutil.move(package / where, ROOT / where)
    # The next time there may be another version.
    remove_tree(package)
    # It has to be of the same build as the compiler.
    check = ["sh", "-c", f"echo | rustc --target {ARM64_TARGET} --crate-type rlib -o /tmp/rvmm-arm64.rlib -"]
    if in_root(check, "arm64.log"):
        raise Failure(f"rustc does not take the standard library for Arm64\n{tail(LOGS / 'arm64.log')}",
                      "the mirror has another version than the build root: tools/setup --redo root")


def arm64_release():
    """The release of the kernel for Arm64 that is the sister of the one for x86."""
    return f"{release().rsplit('-', 1)[0]}-arm64"


def tree(package):
    """Where a package is unpacked."""
    return ARM64 / "packages" / package


def stock():
    """stock kernel, headers and busybox for Arm64 in build/arm64"""
    name = arm64_release()
    # KVM is built into that kernel, and the bed itself needs none of its modules.
    pools = {
        f"{SUITE}-backports": [f"linux-binary-{name}", f"linux-headers-{name}"],
        SUITE: ["busybox-static"],
    }
    for suite, wanted in pools.items():
        pool = Pool(suite, "arm64", ARM64 / "apt" / suite)
        for package in wanted:
            place = tree(package)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                pool.package(package).rename(place)
    for path in (image(), headers_dir() / "Module.symvers", busybox()):
        if not path.exists():
            raise Failure(f"{path} is not in its package", "report it: the package layout has changed")


def modules():
    """drivers of virtio devices from the stock kernel for Arm64, in build/arm64/modules"""
    package = Pool(f"{SUITE}-backports", "arm64", ARM64 / "apt" / f"{SUITE}-backports").package(
        f"linux-modules-{arm64_release()}")
    new = ARM64_MODULES.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for name in MODULES:
        found = sorted(package.rglob(f"{name}.ko*"))
        if not found:
            raise Failure(f"the stock kernel for Arm64 has no module {name}", "report it: it may be built in now")
        (new / f"{name}.ko").write_bytes(unpacked(found[0]))
    shutil.rmtree(ARM64_MODULES, ignore_errors=True)
    new.rename(ARM64_MODULES)
    # Four hundred MiB, of which nothing else is wanted.
    remove_tree(package)


def qemu():
    """QEMU for Arm64 that runs on Arm64, with its libraries, in build/arm64"""
    Pool(f"{SUITE}-backports", "arm64", ARM64_QEMU.parent, also=[SUITE]).whole("qemu-system-arm")


def firmware():
    """UEFI firmware for machines that ACPI describes, in build/arm64"""
    name = "qemu-efi-aarch64"
    if not tree(name).exists():
        Pool(SUITE, "arm64", ARM64 / "apt" / SUITE).package(name).rename(tree(name))
    if not efi().exists():
        raise Failure(f"{efi()} is not in its package", "report it: the package layout has changed")


def efi():
    """That firmware."""
    return tree("qemu-efi-aarch64") / "usr/share/qemu-efi-aarch64/QEMU_EFI.fd"


def image():
    """The stock kernel: an Image as it is, not packed."""
    return tree(f"linux-binary-{arm64_release()}") / "usr/lib/modules" / arm64_release() / "vmlinuz"


def busybox():
    """Busybox, statically linked."""
    return tree("busybox-static") / "usr/bin/busybox"


def headers_dir():
    """Where the headers of the stock kernel are."""
    return tree(f"linux-headers-{arm64_release()}") / "usr/src" / f"linux-headers-{arm64_release()}"


def metadata():
    """Rust metadata of the kernel for Arm64 in build/arm64/obj, against the stock kernel's symbols"""
    kernel.make_metadata(ARM64 / "obj", headers_dir(), MAKE_WORDS)
    kernel.compare_symbols(ARM64 / "obj", headers_dir(), f"{CROSS}nm")
