# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The amd and iommu beds: QEMU's interpreter (TCG), with SVM, VT-d or AMD-Vi, edu and an NVMe disk. Used by bed."""

import shlex
import subprocess

from .. import emulators
from ..buildroot import root_argv
from ..paths import REPO, ROOT
from ..report import note
from ..stock import unpacked_kernel, vmlinuz
from . import Machine, die_with_parent, kernel_command_line

IOMMUS = {"intel": "intel-iommu,intremap=on,caching-mode=on", "amd": "amd-iommu,dma-remap=on"}


def corrected():
    """QEMU that delivers an injected interrupt once, and a machine check to the hypervisor (emulators.py): counting
    instructions brings the first fault out most."""
    source = ROOT / "usr/bin/qemu-system-x86_64"
    program = emulators.corrected_qemu(source)
    if not program:
        note("this QEMU is not the 11.1 that is known here; if it delivers injected interrupts twice, as 11.1 does, "
             "a Linux guest may stand still with --icount, and a test of interrupts fail on stock KVM")
    return (program or source).name


def command(options, run):
    """QEMU's arguments."""
    machine = {"amd": "pc", "iommu": "q35,kernel-irqchip=split"}[options.bed]
    # rvmm lives with the fault (x86/svm/quirks.rs) and has to go on doing so; stock KVM does not.
    correct = options.corrected or options.icount or options.kvm
    program = corrected() if correct else "qemu-system-x86_64"
    argv = [program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-M", machine, "-accel", "tcg,thread=single", "-cpu", options.model or "max"]
    argv += ["-smp", str(options.smp), "-m", f"{options.mem}M"]
    if options.icount:
        argv += ["-icount", "shift=0,sleep=off"]
    if options.bed == "iommu":
        disk = run / "nvme.img"
        with open(disk, "wb") as image:
            image.truncate(128 << 20)
        argv += ["-device", IOMMUS[options.iommu], "-device", "edu,dma_mask=0xffffffffffffffff"]
        argv += ["-drive", f"file={disk},if=none,id=disk,format=raw", "-device", "nvme,drive=disk,serial=rvmm"]
    # Unpacked, QEMU enters it by its PVH entry: the same code, without a second of emulated decompression.
    kernel = vmlinuz() if options.packed else unpacked_kernel()
    argv += ["-kernel", str(kernel), "-initrd", str(run / "initrd")]
    argv += ["-append", kernel_command_line(options)]
    argv += [*command_port(), "-serial", f"file:{run / 'host.log'}"]
    # Says of a machine that is gone whether it shut down: a triple fault is in no kernel's log.
    argv += ["-d", "cpu_reset", "-D", str(run / "resets.log")]
    for text in options.qemu_arg:
        argv += shlex.split(text)
    return argv


def command_port():
    """The arguments for the first serial port, on standard input and output."""
    return ["-chardev", "stdio,id=command,signal=off", "-serial", "chardev:command"]


def start(options, run, initramfs):
    """QEMU with the command's serial port on its standard input and output."""
    return launch(command(options, run), run, initramfs)


def launch(argv, run, initramfs):
    """The machine that QEMU is with these arguments."""
    (run / "initrd").write_bytes(initramfs)
    errors = open(run / "emulator.log", "wb")
    process = subprocess.Popen(
        root_argv(argv, cwd=REPO), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        start_new_session=True, preexec_fn=die_with_parent,
    )
    return Machine(process, process.stdout.fileno(), process.stdin.fileno())
