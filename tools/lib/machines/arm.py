# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The arm bed: QEMU's interpreter (TCG) with an Armv8-A processor that starts at EL2, and a GICv3. Used by bed."""

import shlex

from .. import arm64
from . import kernel_command_line, qemu


def command(options, run):
    """QEMU's arguments."""
    argv = ["qemu-system-aarch64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-M", "virt,virtualization=on,gic-version=3", "-cpu", options.model or "max"]
    argv += ["-smp", str(options.smp), "-m", f"{options.mem}M"]
    if options.acpi:
        # The firmware keeps the device tree to itself.
        argv += ["-bios", str(arm64.efi())]
    if options.icount:
        argv += ["-icount", "shift=0,sleep=off"]
    argv += ["-kernel", str(arm64.image()), "-initrd", str(run / "initrd")]
    argv += ["-append", kernel_command_line(options)]
    argv += [*qemu.command_port(), "-serial", f"file:{run / 'host.log'}"]
    for text in options.qemu_arg:
        argv += shlex.split(text)
    return argv


def start(options, run, initramfs):
    """QEMU with the command's serial port on its standard input and output."""
    return qemu.launch(command(options, run), run, initramfs)
