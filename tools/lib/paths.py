# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Where things are. Every program of tools/ uses it."""

from pathlib import Path

LIB = Path(__file__).resolve().parent
TOOLS = LIB.parent
REPO = TOOLS.parent

BUILD = REPO / "build"
ROOT = BUILD / "root"
KERNEL = BUILD / "kernel"
ARM64 = BUILD / "arm64"
ARM64_MODULES = ARM64 / "modules"
ARM64_QEMU = ARM64 / "qemu/qemu-system-arm.whole"
ARM64_MODULE = BUILD / "module-arm64/rvmm.ko"
STAMPS = BUILD / "stamps"
LOGS = BUILD / "log"
GUEST = BUILD / "guest"
SELFTESTS = BUILD / "selftests"

# User-space programs are linked statically, for this target of rustc's.
TARGET = "x86_64-unknown-linux-gnu"
RELEASE = BUILD / "target" / TARGET / "release"
ARM64_TARGET = "aarch64-unknown-linux-gnu"
ARM64_RELEASE = BUILD / "target" / ARM64_TARGET / "release"

# Shell programs that run in a bed, and those that are put into the guest.
BED_PROGRAMS = LIB / "bed"
GUEST_PROGRAMS = LIB / "guest"
