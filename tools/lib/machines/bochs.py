# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The intel and zen beds: Bochs with our patches (emulators.py), which has VMX and SVM. Used by bed.

The unpacked kernel is booted from a disk of our own making, by bochs-boot.S; --packed, and machines with more memory
than its plain map describes, boot the packed one by isolinux from a CD.
"""

import os
import pty
import shutil
import struct
import subprocess
import sys
import tty
from pathlib import Path

from .. import elf
from ..buildroot import root_argv
from ..emulators import BOCHS_PROGRAM
from ..files import cached
from ..paths import BUILD, ROOT, TOOLS
from ..report import BedError
from ..stock import unpacked_kernel, vmlinuz
from . import BOCHS_MODELS, Machine, die_with_parent, kernel_command_line

BOOT_SOURCE = Path(__file__).with_name("bochs-boot.S")

BOCHSRC = """\
display_library: nogui
plugin_ctrl: unmapped=true, biosdev=true, extfpuirq=true, parallel=false, serial=true, iodebug=true
cpu: model={model}, count={smp}, ips={ips}, quantum=16, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={mem}, host={mem}
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
vga: extension=vbe, update_freq=1
pci: enabled=1, chipset=i440fx
clock: sync=none, time0=1700000000
com1: enabled=1, mode=term, dev={command}
com2: enabled=1, mode=file, dev={run}/host.log
log: {run}/bochs.log
panic: action=fatal
error: action={info}
info: action={info}
debug: action=ignore
"""

# What the boot sector (bochs-boot.S) expects where.
BOOT_PARAMS, PAGE_TABLES, COMMAND_LINE = 0x20000, 0x21000, 0x28000
KERNEL_LOAD = 0x1000000


def flat_kernel():
    """(file, entry point) of the unpacked kernel as it lies in memory from KERNEL_LOAD on."""
    source = unpacked_kernel()
    data = source.read_bytes()

    def flatten():
        image = bytearray()
        for segment in elf.segments(data):
            if segment.kind != elf.LOAD:
                continue
            at = segment.paddr - KERNEL_LOAD
            image.extend(bytes(max(0, at + segment.filesz - len(image))))
            image[at : at + segment.filesz] = data[segment.offset : segment.offset + segment.filesz]
        return image

    return cached(source.with_name(source.name + ".flat"), source, flatten), elf.entry_point(data)


def assemble():
    """bochs-boot.S as the machine code of a boot sector."""
    out = BUILD / "bed" / f"bochs-boot.{os.getpid()}"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        for argv in (["as", "--64", "-o", f"{out}.o", BOOT_SOURCE],
                     ["ld", "-Ttext=0x7c00", "--oformat=binary", "-o", out, f"{out}.o"]):
            made = subprocess.run(root_argv(argv), capture_output=True, text=True)
            if made.returncode:
                raise BedError(f"{BOOT_SOURCE.name} could not be assembled: {made.stderr.strip()}")
        return out.read_bytes()
    finally:
        for path in (out, Path(f"{out}.o")):
            path.unlink(missing_ok=True)


def boot_sector(entry, areas):
    """The assembled boot sector with the kernel's entry point and what to read where filled in."""
    sector = bytearray(cached(BUILD / "bed" / "bochs-boot.bin", BOOT_SOURCE, assemble).read_bytes())
    struct.pack_into("<I", sector, 440, entry)
    for index, area in enumerate(areas):
        struct.pack_into("<III", sector, 448 + 12 * index, *area)
    return bytes(sector)


def boot_data(options, ramdisk_at, ramdisk_size):
    """boot_params, identity mapping of 4 GiB and the command line, for BOOT_PARAMS."""
    top = (options.mem << 20) - 0x10000  # the BIOS keeps its ACPI tables in the last 64 KiB
    image = vmlinuz().read_bytes()[:0x1000]
    data = bytearray(COMMAND_LINE - BOOT_PARAMS + 4096)
    header_end = 0x202 + image[0x201]
    data[0x1F1:header_end] = image[0x1F1:header_end]
    data[0x210] = 0xFF  # type_of_loader: undefined
    struct.pack_into("<II", data, 0x218, ramdisk_at, ramdisk_size)
    struct.pack_into("<I", data, 0x228, COMMAND_LINE)
    memory = [(0, 0x9F000, 1), (0x9F000, 0x1000, 2), (0xE8000, 0x18000, 2), (0x100000, top - 0x100000, 1),
              (top, 0x10000, 3), (0xFFFC0000, 0x40000, 2)]
    data[0x1E8] = len(memory)
    for index, entry in enumerate(memory):
        struct.pack_into("<QQI", data, 0x2D0 + 20 * index, *entry)
    table = PAGE_TABLES - BOOT_PARAMS
    struct.pack_into("<Q", data, table, (PAGE_TABLES + 0x1000) | 3)
    for gib in range(4):
        struct.pack_into("<Q", data, table + 0x1000 + 8 * gib, (PAGE_TABLES + 0x2000 + 0x1000 * gib) | 3)
    for page in range(2048):
        struct.pack_into("<Q", data, table + 0x2000 + 8 * page, (page << 21) | 0x83)
    text = kernel_command_line(options).encode()
    if len(text) > 2047:
        raise BedError("the host's kernel command line is longer than 2047 characters")
    data[COMMAND_LINE - BOOT_PARAMS : COMMAND_LINE - BOOT_PARAMS + len(text)] = text
    return bytes(data)


def direct_boot(options, run, initramfs):
    """Lines of the Bochs configuration that boot the unpacked kernel from a disk of our own making."""
    flat, entry = flat_kernel()
    at = ((options.mem << 20) - 0x200000 - len(initramfs)) & ~0xFFF
    if at < 0x8000000:
        raise BedError(f"{options.mem} MiB is too little for this initramfs of {len(initramfs) >> 20} MiB")
    areas, sector = [], 1
    with open(run / "disk", "wb") as disk:
        for address, data in (
            (BOOT_PARAMS, boot_data(options, at, len(initramfs))),
            (KERNEL_LOAD, flat.read_bytes()),
            (at, initramfs),
        ):
            disk.seek(sector * 512)
            disk.write(data)
            count = -(-len(data) // 512)
            areas.append((sector, count, address))
            sector += count
        disk.seek(0)
        disk.write(boot_sector(entry, areas))
        cylinders = -(-sector // (16 * 63))
        disk.truncate(cylinders * 16 * 63 * 512)
    return (
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n"
        f"ata0-master: type=disk, path={run}/disk, mode=flat, cylinders={cylinders}, heads=16, spt=63\nboot: disk\n"
    )


ISOLINUX = """\
DEFAULT bed
PROMPT 0
TIMEOUT 0
LABEL bed
  KERNEL /vmlinuz
  INITRD /initrd
  APPEND {append}
"""


def iso_boot(options, run, initramfs):
    """Lines of the Bochs configuration that boot the packed kernel by isolinux from a CD."""
    tree = run / "iso"
    tree.mkdir()
    (tree / "initrd").write_bytes(initramfs)
    shutil.copyfile(vmlinuz(), tree / "vmlinuz")
    shutil.copyfile(ROOT / "usr/lib/ISOLINUX/isolinux.bin", tree / "isolinux.bin")
    shutil.copyfile(ROOT / "usr/lib/syslinux/modules/bios/ldlinux.c32", tree / "ldlinux.c32")
    (tree / "isolinux.cfg").write_text(ISOLINUX.format(append=kernel_command_line(options)))
    made = subprocess.run(
        root_argv(
            ["xorriso", "-as", "mkisofs", "-quiet", "-o", run / "boot.iso", "-b", "isolinux.bin", "-c", "boot.cat",
             "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", tree]
        ),
        capture_output=True, text=True,
    )
    if made.returncode:
        raise BedError(f"xorriso could not make the boot medium: {made.stderr.strip()}")
    return (
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n"
        f"ata0-master: type=cdrom, path={run}/boot.iso, status=inserted\nboot: cdrom\n"
    )


def program(options):
    """--bochs, or our own Bochs, which is built when it is first needed."""
    if options.bochs:
        return Path(options.bochs).resolve()
    if subprocess.run([TOOLS / "setup", "--with", "bochs"], stdout=sys.stderr).returncode:
        raise BedError("Bochs could not be built")
    return BOCHS_PROGRAM


def environment(options):
    """What our patches of Bochs read: checker.cc and costs.cc."""
    table, end = options.costs or ("", "")
    values = {"BOCHS_CHECK": options.check, "BOCHS_COSTS": str(table), "BOCHS_COSTS_AT": end}
    return {name: value for name, value in values.items() if value}


def start(options, run, initramfs):
    """Bochs with the command's serial port on a pseudo-terminal."""
    # Above 3 GiB memory goes on beyond the PCI hole, which the plain memory map of the direct boot does not know.
    boot = iso_boot if options.packed or options.mem > 3000 else direct_boot
    medium = boot(options, run, initramfs)
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    (run / "bochsrc").write_text(
        BOCHSRC.format(model=options.model or BOCHS_MODELS[options.bed], smp=options.smp, mem=options.mem,
                       ips=options.ips, run=run, command=os.ttyname(theirs),
                       info="report" if options.bochs_debug else "ignore") + medium
    )
    output = open(run / "emulator.log", "wb")
    process = subprocess.Popen(
        root_argv([program(options), "-q", "-f", run / "bochsrc"], cwd=run, env=environment(options)),
        stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, preexec_fn=die_with_parent,
    )
    os.set_blocking(ours, False)
    # Our own reference to the far end keeps the pseudo-terminal alive until Bochs has opened it.
    process.far_end = theirs
    return Machine(process, ours, ours)


def findings(run):
    """What the checks said (tools/bochs/checker.cc)."""
    return [l for l in (run / "emulator.log").read_text(errors="replace").splitlines() if l.startswith("check: ")]
