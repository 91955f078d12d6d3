# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The kinds of steps that the suites of tools/test are made of. Used by test alone: its table says which there are."""

import os
from dataclasses import dataclass, field

from .paths import BED_PROGRAMS, GUEST, RELEASE, REPO, ROOT, SELFTESTS
from .qemuinbed import FIRMWARE

IN_ROOT = ["tools/setup", "run", "--"]


@dataclass
class Step:
    """One line of the report: a command, what its exit status and output have to be, and how long it may take."""

    lane: str  # host, checks, amd, zen, intel, iommu or arm: lanes other than host run side by side
    name: str
    command: object  # argument vector, or a function that gives it when the step's turn has come
    status: int = 0
    expect: str = ""  # regular expression that has to occur in the output
    timeout: int = 600
    vital: bool = False  # without it nothing that follows makes sense
    result: str = field(default="", compare=False)


def add(*paths):
    """Options of tools/bed that put files into it."""
    return [word for path in paths for word in ("--add", path)]


def bed(kind, *words, command):
    """A command in a bed."""
    return ["tools/bed", "--bed", kind, *words, "--", *command]


def script(name):
    """Options of tools/bed that put one of our shell programs into it, under its own name."""
    return add(BED_PROGRAMS / name)


def guest_boot(kind, device, *options, launcher=(), cpus=1, append="rvmm.cmd=console", expect=None, name=None,
               timeout=900):
    """A Linux guest up to its own userland and down again, by the launcher, under rvmm or stock KVM."""
    words = ["--kvm"] if device == "/dev/kvm" else []
    words += [*add(RELEASE / "rvmm", GUEST / "bzImage", GUEST / "initrd"), *options]
    run = ["rvmm", "run", "--device", device, "--kernel", "bzImage", "--initrd", "initrd"]
    run += ["--append", append, *launcher]
    expect = expect or rf"(?s)rvmm guest: userland is up \({cpus} CPUs.*line 100, with"
    return Step(kind, name or f"guest boot on {device}", bed(kind, *words, command=run), expect=expect, timeout=timeout)


def image_boot(kind, device):
    """The image of a disk, by the launcher (lib/bed/image.sh)."""
    words = add(RELEASE / "rvmm", GUEST / "disk.qcow2") + script("image.sh") + ["--module", "tun"]
    # QEMU as it is ends KVM's guests of two CPUs now and then: an event waits where KVM saw none (x86/svm/quirks.rs).
    options = ["--timeout", "800", *(["--kvm", "--corrected"] if device == "/dev/kvm" else [])]
    calls = r".*[2-9]\d calls of three kinds of threads; beside the list: \." if device == "/dev/kvm" else ""
    return Step(kind, f"image of a disk on {device}",
                bed(kind, *options, *words, command=["sh", "image.sh", device]),
                expect=r"(?s)boot 1, 2 CPUs, 2 queues.*starting again.*boot 2, 2 CPUs, 2 queues.*trimmed.*data ok"
                       r".*entropy ok.*network ok.*says hello.*console ok.*balloon" + calls +
                       r".*1 packets received.*clones.*running.*machine 0: stopped.*pressed.*another generation"
                       r".*guest powered off.*the image is what it was"
                       r".*it is an overlay of /add/disk.qcow2",
                timeout=860)


def user_mode(kind, device):
    """A network in user mode, and a shared directory, by programs that the launcher starts (lib/bed/user.sh)."""
    words = add(RELEASE / "rvmm", GUEST / "bzImage", GUEST / "initrd") + script("user.sh")
    # Not to be found at first.
    words += add(f"{ROOT}/usr/bin/passt:/add/hidden/passt", f"{ROOT}/usr/libexec/virtiofsd:/add/hidden/virtiofsd")
    words += ["--module", "dummy", "--timeout", "600", *(["--kvm"] if device == "/dev/kvm" else [])]
    return Step(kind, f"network in user mode, shared directory on {device}",
                bed(kind, *words, command=["sh", "user.sh", device]),
                expect=r"(?s)apt install passt.*nowhere.*host: fetched.*written: OK.*host: read 4951"
                       r".*directory cannot be saved.*fetched again.*read 5050.*starting again.*data: OK.*read 5050"
                       r".*inet 10.0.2.15.*data: OK.*guest: fetched.*both programs have ended"
                       r".*without a directory.*in the sandbox.*guest: fetched.*from where it was saved",
                timeout=660)


def libvirt(kind):
    """A guest of libvirt's, by `rvmm exec` (lib/bed/libvirt.sh, docs/recipes.md)."""
    places = [*FIRMWARE, "usr/share/libvirt/cpu_map",
              "usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"]
    words = add("/usr/bin/qemu-system-x86_64", "/usr/bin/virt-qemu-run", RELEASE / "rvmm", GUEST / "bzImage",
                GUEST / "initrd", *(f"{ROOT / place}:/{place}" for place in places))
    return Step(kind, "guest of libvirt", bed(kind, *words, *script("libvirt.sh"), command=["sh", "libvirt.sh"]),
                expect=r"(?s)userland is up \(1 CPUs.* /dev/rvmm .*qemu-system-x86_64", timeout=360)


def smp_guest(kind, cpus, *options, name="SMP guest checks itself", append="rvmm.cmd=smpcheck", timeout=900):
    """The guest's own check of its CPUs: timers, hot-plug, a load that forks and pipes (lib/guest/smpcheck.sh)."""
    return guest_boot(kind, "/dev/rvmm", *options, launcher=["--cpus", str(cpus)], append=append, name=name,
                      expect=rf"rvmm guest: smpcheck passed \({cpus} CPUs", timeout=timeout)


def selftests(kind, *options, name="selftests", environment=(), leave_out=()):
    """Every program of selftests/ but those in leave_out, in one boot; each prints KTAP."""

    def command():
        programs = sorted(p for p in SELFTESTS.glob("*")
                          if p.is_file() and os.access(p, os.X_OK) and p.name not in leave_out)
        if not programs:
            raise FileNotFoundError("build/selftests holds no program")
        words = add(*programs, REPO / "rvmm.ko", REPO / "tools/run-selftests:/bin/run-selftests")
        return bed(kind, *words, *options, command=["env", *environment, "run-selftests", *(p.name for p in programs)])

    return Step(kind, name, command, timeout=1500)


def report(kind):
    """`rvmm report`, with the rows of `rvmm check --root` that this vendor has."""
    rows = ["nothing", "RDTSC", "MOV to CR4", "MOV from DR7", "LGDT", "LIDT", "WRMSR LSTAR", "VERW", "XRSTOR", "XSAVE"]
    rows += {"amd": ["CLGI", "STGI", "VMSAVE", "VMLOAD", "VMRUN and exit", "INVLPGA"],
             "intel": ["VMXON", "VMXOFF", "VMPTRST", "VMPTRLD", "VMCLEAR", "VMREAD", "VMWRITE", "VMLAUNCH and exit",
                       "VMRESUME and exit", "INVEPT", "INVVPID"]}[kind]
    costs = ".*".join(rf"{row} +[1-9]\d* +[1-9]\d* +\d+ +\d+\s" for row in rows)
    words = ["--rounds", "1", "--rows", "cpuid", "--output", "-"]
    return Step(kind, "report with what the root costs",
                bed(kind, *add(RELEASE / "rvmm"), command=["rvmm", "report", *words]),
                expect=rf"(?s)\[vulnerabilities\].*{costs}.*\[bench /dev/rvmm\].*cpuid +\d.*\[end\]", timeout=400)


def nmi_storm(*programs):
    """Programs of selftests/ while the host's two CPUs get NMIs."""
    words = add(*(SELFTESTS / p for p in programs), REPO / "tools/run-selftests:/bin/run-selftests",
                REPO / "tools/nmi-storm:/bin/nmi-storm")
    return Step("amd", "NMI storm", bed("amd", "--smp", "2", *words, command=["nmi-storm", "run-selftests", *programs]),
                expect=r"# \d+ NMIs")


def fuzz(kind, name, command, timeout=600):
    """selftests/fuzz, with all that the module can check by itself. QEMU as it is ends itself at some guests."""
    options = ["--smp", "2", "--modparam", "check_entry=1 oracle=1", "--timeout", str(timeout - 60)]
    options += ["--corrected"] if kind == "amd" else []
    return Step(kind, name, bed(kind, *options, *add(SELFTESTS / "fuzz"), command=command), timeout=timeout)


def qemu(kind, name, *options, machine, cpus=1, expect="disk ok, network ok", limit=600, qemu=()):
    """A Linux guest up to its own userland and down again, by unmodified QEMU, with a disk and a network card."""
    devices = ["--devices", "mmio"] if machine.startswith("microvm") else []
    words = ["tools/qemu", "--bed", kind, *devices, "--bed-arg=--timeout", f"--bed-arg={limit}", *options]
    words += ["--", "-M", machine, "-smp", str(cpus), *(["-cpu", "host"] if "-cpu" not in qemu else []), *qemu]
    return Step(kind, name, words, expect=rf"(?s)rvmm guest: userland is up \({cpus} CPUs.*{expect}",
                timeout=limit + 60)


def assign(name, *options, command, **rest):
    """selftests/assign in the iommu bed."""
    return Step("iommu", name, bed("iommu", *add(SELFTESTS / "assign"), *options, command=command), **rest)


def assigned(name, attempts, *options, command=("assign",)):
    """selftests/assign with so many attempts. Counting instructions, a bed does not wait for edu's transfers, which
    take a tenth of a second each."""
    return assign(name, "--icount", *options, command=["env", f"ATTEMPTS={attempts}", *command], timeout=1200)


def guest_with_nvme(name, *options):
    """Guests of the launcher's that are given the host's disk (lib/bed/nvme.sh)."""
    found = "nvme has the data of before.*nvme ok"
    words = add(RELEASE / "rvmm", GUEST / "vmlinux", GUEST / "initrd", GUEST / "nvme.md5")
    words += [*script("nvme.sh"), "--timeout", "800", *options]
    return Step("iommu", name, bed("iommu", *words, command=["sh", "nvme.sh"]),
                expect=rf"(?s)nvme ok.*starting again.*{found}.*here again.*{found}.*the host has the data",
                timeout=900)


def guests_attacked(name, *options):
    """A guest with the host's disk beside one that attacks (lib/bed/attacked.sh)."""
    words = add(RELEASE / "rvmm", GUEST / "vmlinux", GUEST / "initrd", GUEST / "probe", GUEST / "nvme.md5")
    return assign(name, *words, *script("attacked.sh"), *options, command=["sh", "attacked.sh"], timeout=900,
                  expect="(?s)nvme ok.*the host writes and reads its disk")
