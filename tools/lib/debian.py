# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The steps that make the build root: a Debian tree with compilers, emulators and tools. Used by setup.

The docstring of a step is what setup prints for it.
"""

import os
import re
import shutil
from pathlib import Path

from .buildroot import in_root, logged
from .files import remove_tree
from .paths import BUILD, LOGS, ROOT
from .report import Failure, tail

SUITE = "trixie"
MIRROR = os.environ.get("RVMM_MIRROR", "http://deb.debian.org/debian")

HOST_TOOLS = {  # program: Debian package
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    "chroot": "coreutils",
}

# Packages of the build root. The first group is what the kernel's Rust metadata and modules need.
PACKAGES = """
    gcc make clang lld llvm libclang-dev bindgen rustc cargo rust-src rust-clippy rustfmt
    libelf-dev libssl-dev bc flex bison python3 kmod cpio rsync xz-utils zstd perl-base dwarves
    libc6-dev musl-tools ca-certificates
    xorriso isolinux syslinux-common busybox-static
    qemu-system-x86 seabios bochs bochsbios vgabios
""".split()

# Wanted later than the others: a step of its own, so that nothing is done again where those are installed already.
FIRMWARE = ["ovmf", "e2fsprogs", "qemu-utils", "passt", "virtiofsd", "libvirt-daemon-driver-qemu"]

FROM_BACKPORTS = """
    linux-image-* linux-headers-* linux-source-* linux-kbuild-* linux-base* linux-binary-* linux-modules-*
    qemu-system-x86 qemu-system-common qemu-system-data qemu-system-modules-* qemu-utils qemu-block-extra seabios
""".split()


def network_failure(what, log):
    """The Failure for something that the mirror did not give, with the end of the log that says why."""
    return Failure(
        f"{what}\n{tail(LOGS / log)}",
        f"is {MIRROR} reachable from here? (a proxy belongs into http_proxy; another mirror into RVMM_MIRROR; "
        f"full output: build/log/{log}). Run the same command again: finished steps are kept",
    )


def host_tools():
    """programs on this machine (mmdebstrap)"""
    missing = sorted({pkg for prog, pkg in HOST_TOOLS.items() if not shutil.which(prog)})
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Failure(
            f"not found on this machine: {', '.join(missing)}, and there is no apt-get to install them",
            "install them by this system's package manager, or use a Debian 12 or 13 machine",
        )
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if logged(install, "host.log", env=env):
        logged(["apt-get", "update"], "host.log", env=env)
        if logged(install, "host.log", env=env):
            raise network_failure(f"apt-get could not install {', '.join(missing)}", "host.log")


def keyring():
    """mmdebstrap's --keyring argument: trixie's keys, from the host's keyring package."""
    ring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    return [f"--keyring={ring}"] if ring.exists() else []


def tree():
    """Debian trixie tree in build/root (mmdebstrap)"""
    if ROOT.exists():
        remove_tree(ROOT)
    fresh = BUILD / "root.new"
    if fresh.exists():
        remove_tree(fresh)
    argv = ["unshare", "--mount", "--propagation", "private", "--", "mmdebstrap", "--variant=apt"]
    argv += ["--components=main", *keyring(), SUITE, str(fresh), MIRROR]
    if logged(argv, "root.log"):
        raise network_failure("mmdebstrap could not make the Debian tree", "root.log")
    (fresh / "etc/apt/sources.list").write_text(
        f"deb {MIRROR} {SUITE} main\ndeb {MIRROR} {SUITE}-backports main\n"
    )
    for old in (fresh / "etc/apt/sources.list.d").glob("*"):
        old.unlink()
    (fresh / "etc/apt/preferences.d/rvmm").write_text(
        f"Package: {' '.join(FROM_BACKPORTS)}\nPin: release n={SUITE}-backports\nPin-Priority: 990\n"
    )
    # No daemon is ever started in the tree, no man page read.
    policy = fresh / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    (fresh / "etc/dpkg/dpkg.cfg.d/rvmm").write_text(
        "path-exclude=/usr/share/man/*\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/locale/*\n"
        "force-unsafe-io\n"
    )
    (fresh / "etc/apt/apt.conf.d/80rvmm").write_text(
        'Acquire::Retries "4";\nAPT::Install-Recommends "false";\nAcquire::Languages "none";\n'
    )
    fresh.rename(ROOT)


def packages():
    """compilers, emulators and tools in the build root"""
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    if in_root(["apt-get", "update"], "packages.log", env):
        raise network_failure("apt-get update failed in the build root", "packages.log")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    if in_root(install, "packages.log", env):
        # A half-configured earlier attempt or one lost download: once more, then give up.
        in_root(["dpkg", "--configure", "-a"], "packages.log", env)
        if in_root(install, "packages.log", env):
            raise network_failure("packages could not be installed in the build root", "packages.log")
    in_root(["apt-get", "clean"], "packages.log", env)


def firmware():
    """what guests take: firmware, disk images, networks, directories; libvirt (more packages of the build root)"""
    install = ["apt-get", "install", "-y", "--no-install-recommends", *FIRMWARE]
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    # The index may be older than what the mirror still has.
    if in_root(install, "packages.log", env) and (
        in_root(["apt-get", "update"], "packages.log", env) or in_root(install, "packages.log", env)
    ):
        raise network_failure("packages could not be installed in the build root", "packages.log")


def certificates():
    """the host's CA certificates, so that cargo trusts in the root what it trusts outside"""
    inside = ROOT / "etc/ssl/certs/ca-certificates.crt"
    own = ROOT / "etc/ssl/certs/ca-certificates.debian"
    if not own.exists() and inside.exists():
        shutil.copyfile(inside, own)
    texts = [own.read_text()] if own.exists() else []
    for name in (os.environ.get("SSL_CERT_FILE"), os.environ.get("CURL_CA_BUNDLE"),
                 "/etc/ssl/certs/ca-certificates.crt"):
        if name and Path(name).is_file():
            texts.append(Path(name).read_text(errors="replace"))
    seen, out = set(), []
    for text in texts:
        for cert in re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.S):
            if cert not in seen:
                seen.add(cert)
                out.append(cert + "\n")
    inside.parent.mkdir(parents=True, exist_ok=True)
    inside.write_text("".join(out))
