# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The emulators without the faults that end guests, stock KVM's as well. Used by setup and machines/.

Bochs is built from Debian's source package, tools/bochs/*.patch, each of which says what it is there for,
and the files beside them.

QEMU is corrected as Debian has it: a correction changes a few bytes of the program, found by the instructions around
them. It says False, and changes nothing, if the program has no such place or several: then it is another release.
"""

import hashlib
import os
import re
import shutil
import struct
from pathlib import Path

from .buildroot import in_root
from .debian import MIRROR, network_failure
from .files import remove_tree, replace
from .paths import BUILD, LOGS, ROOT, TOOLS
from .report import Failure, tail

# Bochs: where Debian has the source, what it has to be, the patches in their order.
BOCHS_SOURCE = "pool/main/b/bochs/bochs_3.0+dfsg.orig.tar.xz"
BOCHS_SHA256 = "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b"
BOCHS_PATCHES = sorted((TOOLS / "bochs").glob("*.patch"))
# New files of its directory cpu/.
BOCHS_FILES = sorted((TOOLS / "bochs").glob("*.cc")) + sorted((TOOLS / "bochs").glob("*.h"))
# Of what Debian configures, the part that a bed needs: neither debugger nor displays nor cards. The handler of the
# signal that --enable-show-ips asks for takes the lock of the log, which the program may hold already.
BOCHS_OPTIONS = """
    --with-nogui --enable-all-optimizations --enable-cpu-level=6 --enable-x86-64 --enable-smp --enable-vmx=2
    --enable-svm --enable-avx --enable-evex --enable-protection-keys --enable-cet --enable-memtype
    --enable-x86-debugger --enable-iodebug --enable-pci --disable-show-ips --disable-docbook --disable-xpm
""".split()
BOCHS_TOOLS = ["g++", "patch"]
BOCHS_FLAGS = "-O2 -fomit-frame-pointer"

BOCHS = BUILD / "bochs"
BOCHS_PROGRAM = BOCHS / "bochs"

# In helper_vmrun (target/i386/tcg/system/svm_helper.c) of QEMU 11.1, where an interrupt is injected: exception_index =
# vector, between the stores of error_code and of exception_is_int and exception_next_eip.
QEMU_INJECTED_INTERRUPT = re.compile(
    rb"\x41\x0f\xb6.\x44\x89.....(\x89\xb3....)\xc7\x83....\0\0\0\0\x48\xc7\x83....\xff\xff\xff\xff", re.DOTALL)
# In x86_cpu_exec_interrupt (target/i386/tcg/system/seg_helper.c): cpu_reset_interrupt(cs, CPU_INTERRUPT_MCE), then the
# call of do_interrupt_x86_hardirq(env, EXCP12_MCHK, 0).
QEMU_MACHINE_CHECK = re.compile(
    rb"\xbe\0\x10\0\0\xe8....\x31\xd2\xbe\x12\0\0\0\x4c\x89\xe7\xe8(....)", re.DOTALL)
# raise_exception (target/i386/tcg/excp_helper.c).
QEMU_RAISE = re.compile(
    rb"\xf3\x0f\x1e\xfa\x50\x58\x45\x31\xc9\x45\x31\xc0\x31\xc9\x31\xd2\x48\x83\xec\x08\xe8", re.DOTALL)

# get_ss_esp_from_tss, and get_rsp_from_tss in both functions that it is inlined into (the same file): where they raise
# #TS(TR), and beside it where they give the emulator up because of TR's type or of a TR that is not present.
_TS = rb"\xbe\x0a\0\0\0(?:\x48\x89\xdf)?\x81\xe2\xfc\xff\0\0\xe8...."
_ABORT = rb"\x48\x8d\x35....(?:\x4c\x89\xff)?\x31\xc0\xe8...."
# In the first of them: whether TR's type, of which shift and mask make three bits, is that of a TSS that is not busy.
QEMU_TSS_TYPE = re.compile(rb"\xc1\xe8\x08\x49\x89\xd5\x89\xca\x89\xc1\x83\xe1(\x07)\x83\xf9\x01\x0f\x85", re.DOTALL)
QEMU_NO_TSS = [
    re.compile(rb"(?P<a>%s)(?P<ts>\x8b\x93....\x4c\x89\xc1%s)(?P<b>%s)" % (_ABORT, _TS, _ABORT), re.DOTALL),
    re.compile(rb"(?P<ts>\x41\x8b\x97....\x48\x8b\x7c\x24.%s)(?P<a>%s)" % (_TS, _ABORT), re.DOTALL),
    re.compile(rb"(?P<ts>\x8b\x93....%s)(?P<a>\x48\x8d\xbb....%s)" % (_TS, _ABORT), re.DOTALL),
]


def bochs_input():
    """What decides about the program that bochs() makes."""
    # What a patch is for may be said in other words without a new program.
    changes = [p.read_text().partition("\ndiff ")[2] for p in BOCHS_PATCHES]
    changes += [p.read_text() for p in BOCHS_FILES]
    return " ".join([BOCHS_SHA256, *BOCHS_OPTIONS, BOCHS_FLAGS, hashlib.sha256("".join(changes).encode()).hexdigest()])


def bochs():
    """Bochs with tools/bochs/*.patch, in build/bochs"""

    def do(what, argv, cwd=BOCHS, env=None):
        if in_root(argv, "bochs.log", env, cwd=cwd):
            raise Failure(f"Bochs: {what} failed\n{tail(LOGS / 'bochs.log')}", "full output: build/log/bochs.log")

    if not all((ROOT / "usr/bin" / name).exists() for name in BOCHS_TOOLS):
        install = ["apt-get", "install", "-y", "--no-install-recommends", *BOCHS_TOOLS]
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        # The index may be older than what the mirror still has.
        if in_root(install, "bochs.log", env) and (
            in_root(["apt-get", "update"], "bochs.log", env) or in_root(install, "bochs.log", env)
        ):
            raise network_failure(f"{' and '.join(BOCHS_TOOLS)} could not be installed in the build root", "bochs.log")
    BOCHS.mkdir(exist_ok=True)
    archive, source = BOCHS / "source.tar.xz", BOCHS / "src"
    fetch = ["/usr/lib/apt/apt-helper", "-o", "APT::Sandbox::User=root", "download-file", f"{MIRROR}/{BOCHS_SOURCE}",
             archive, f"SHA256:{BOCHS_SHA256}"]
    if in_root(fetch, "bochs.log"):
        raise network_failure("the mirror does not give Bochs' source, or another one", "bochs.log")
    if source.exists():
        remove_tree(source)
    source.mkdir()
    do("unpacking", ["tar", "-xJf", archive, "-C", source, "--strip-components=1", "--no-same-owner"])
    for patch in BOCHS_PATCHES:
        do(patch.name, ["patch", "-p1", "--no-backup-if-mismatch", "-i", patch], cwd=source)
    for file in BOCHS_FILES:
        shutil.copyfile(file, source / "cpu" / file.name)
    do("configure", ["./configure", *BOCHS_OPTIONS], cwd=source, env={"CFLAGS": BOCHS_FLAGS, "CXXFLAGS": BOCHS_FLAGS})
    do("make", ["make", "-s", f"-j{os.cpu_count()}", "bochs"], cwd=source)
    replace(BOCHS_PROGRAM, (source / "bochs").read_bytes(), mode=0o755)


def corrected_qemu(source):
    """The copy beside `source`, from where QEMU finds its files; None if one of the corrections says False."""
    copy = source.with_name(f"{source.name}-corrected-{int(source.stat().st_mtime)}")
    if copy.exists() and copy.stat().st_mtime >= Path(__file__).stat().st_mtime:
        return copy
    binary = bytearray(source.read_bytes())
    if not all(correct(binary) for correct in (inject_once, machine_checks_intercepted, guests_without_tss)):
        return None
    replace(copy, binary, mode=0o755)
    return copy


def inject_once(binary):
    """QEMU's VMRUN delivers an interrupt of EVENTINJ at once and leaves its vector in exception_index as well, as that
    of an exception still to be delivered. If the CPU's share of instructions ends before the next #VMEXIT (with
    -icount it does at a timer's deadline), it is delivered again, whatever IF says: a guest's timer interrupt in the
    middle of its handler, which then waits for a lock that it holds. Corrected, the vector is not left.
    """
    found = list(QEMU_INJECTED_INTERRUPT.finditer(binary))
    if len(found) != 1:
        return False
    start, end = found[0].span(1)
    binary[start:end] = b"\x90" * (end - start)
    return True


def machine_checks_intercepted(binary):
    """QEMU delivers a machine check (`mce` of its monitor) that comes while a guest runs by the guest's IDT, whether
    #MC is intercepted or not. Corrected, it is raised like every other exception, which looks at the intercepts.
    """
    found, raising = (list(p.finditer(binary)) for p in (QEMU_MACHINE_CHECK, QEMU_RAISE))
    if len(found) != 1 or len(raising) != 1:
        return False
    start, end = found[0].span(1)
    binary[start:end] = struct.pack("<i", raising[0].start() - end)
    return True


def guests_without_tss(binary):
    """QEMU ends itself ("invalid tss type") when an exception or interrupt of a guest goes to an inner level and TR is
    not as its own LTR leaves it, which is not busy: a VMCB may well say that it is busy, as on every processor, or that
    there is none. Corrected, a busy TSS is one, and without any the guest gets #TS.
    """
    busy = list(QEMU_TSS_TYPE.finditer(binary))
    found = [list(pattern.finditer(binary)) for pattern in QEMU_NO_TSS]
    if any(len(places) != 1 for places in [busy, *found]):
        return False
    binary[busy[0].start(1)] = 0x05
    for (place,) in found:
        for name in place.re.groupindex.keys() - {"ts"}:
            at = place.start(name)
            binary[at:at + 2] = struct.pack("<Bb", 0xEB, place.start("ts") - at - 2)
    return True
