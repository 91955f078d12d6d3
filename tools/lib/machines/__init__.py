# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The emulated machines: qemu (SVM, or an IOMMU), bochs (VMX, or SVM as a Ryzen has it) and arm. Used by bed.

Each module has start(options, run, initramfs): options are those of bed, run is a directory for the files of this run.
"""

import ctypes
import mmap
import platform
import signal
import subprocess
import time
from typing import NamedTuple


# The beds that are Bochs, and whose processor each of them has.
BOCHS_MODELS = {"intel": "corei7_icelake_u", "zen": "ryzen"}


def serial_port(options):
    """How the kernel names its serial ports, but for the number: the command's is the first one, that of the log the
    second."""
    return "ttyAMA" if options.bed == "arm" else "ttyS"


class Machine(NamedTuple):
    """A machine that has been started: its emulator, and the file descriptors of the command's serial port."""

    process: subprocess.Popen
    output: int
    input: int


def die_with_parent():
    """In the child: end with this program, however it ends (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def stop(process):
    """End our own emulator (and nothing else)."""
    if process.poll() is None:
        process.kill()
    process.wait()


def tsc_khz():
    """Frequency of this machine's TSC, which QEMU without -icount gives to the emulated one; None where there is none.

    The emulated kernel measures it against emulated timers, wrongly when this machine is overloaded at that moment.
    """
    if platform.machine() != "x86_64":
        return None
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl $32,%rdx; or %rdx,%rax; ret
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def now():
        """The narrowest of a few readings between two of the clock: ticks, nanoseconds."""
        readings = []
        for _ in range(50):
            before, ticks, after = time.monotonic_ns(), rdtsc(), time.monotonic_ns()
            readings.append((after - before, ticks, (before + after) // 2))
        return min(readings)[1:]

    (ticks, ns), _, (ticks_later, ns_later) = now(), time.sleep(0.05), now()
    return round((ticks_later - ticks) * 1_000_000 / (ns_later - ns))


def kernel_command_line(options):
    """Parameters of the host kernel."""
    words = [f"console={serial_port(options)}1,115200", "nokaslr", "panic=0", "rdinit=/init"]
    if options.bed != "arm":
        words += ["tsc=reliable", "no_timer_check"]
    # The crypto self-tests are the longest part of a boot.
    words += ["cryptomgr.notests"]
    if options.bed in BOCHS_MODELS:
        # The serial port is polled, a character costs 87 virtual microseconds: only warnings during the boot.
        words += ["loglevel=5", "no_hash_pointers" if options.debug else ""]
    elif options.bed != "arm" and not options.icount and (khz := tsc_khz()):
        words += [f"tsc_early_khz={khz}"]
    if options.bed == "iommu":
        words += ["intel_iommu=on", "iommu.strict=1"]
    if not options.no_panic_on_warn:
        words += ["panic_on_warn=1", "oops=panic"]
    return " ".join(w for w in [*words, options.append] if w)
