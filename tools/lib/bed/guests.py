# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Guests that exist, by unmodified QEMU and by the launcher: runs in a bed, one test after the other.

    python3 guests.py NODE NAME...

Prints KTAP. tools/guests imports the table TESTS for what each needs. Times are limits only: a machine that is slow
under stock KVM has as much of them there.
"""

import hashlib
import json
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import time

NODE = "/dev/rvmm"
# name: (function, files that it needs, beds that it runs in, or nothing for all)
TESTS = {}
WORK = "/tmp/guests"


class Failed(Exception):
    """What a test expected, and what came."""


def test(name, *files, beds=("amd", "intel")):
    """Decorator: a function is the test of that name."""

    def add(function):
        TESTS[name] = (function, files, beds)
        return function

    return add


class Channel:
    """A socket that QEMU connects to, and all that has come from it."""

    def __init__(self, path):
        self.path, self.text, self.at = path, "", 0
        if os.path.exists(path):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.socket = None

    def accept(self, process, limit):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if select.select([self.listener], [], [], 1)[0]:
                self.socket = self.listener.accept()[0]
                return
            if process.poll() is not None:
                raise Failed(f"QEMU ended with {process.returncode}")
        raise Failed("QEMU does not connect")

    def more(self, seconds):
        """Whether something came within so many seconds."""
        if not select.select([self.socket], [], [], seconds)[0]:
            return False
        data = self.socket.recv(65536)
        self.text += data.decode(errors="replace")
        return bool(data)

    def close(self):
        for one in (self.socket, self.listener):
            if one:
                one.close()


class Machine:
    """One QEMU, with its serial line and its monitor."""

    count = 0

    def __init__(self, *words, memory=256, cpus=None, machine="q35", cpu="host", kernel=None, initrd=None, append="",
                 limit=120, nice=0):
        Machine.count += 1
        base = f"{WORK}/{Machine.count}"
        self.serial, self.monitor = Channel(base + ".serial"), Channel(base + ".qmp")
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "std"]
        argv += ["-accel", f"kvm,device={NODE}", "-M", machine, "-cpu", cpu, "-m", str(memory)]
        argv += ["-smp", cpus] if cpus else []
        argv += ["-chardev", f"socket,id=s,path={self.serial.path}", "-serial", "chardev:s"]
        argv += ["-qmp", f"unix:{self.monitor.path}"]
        if kernel:
            argv += ["-kernel", kernel, "-append", append]
        argv += ["-initrd", initrd] if initrd else []
        self.log = open(base + ".log", "w+")
        self.process = subprocess.Popen([*argv, *words], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        preexec_fn=lambda: os.nice(nice))
        try:
            self.serial.accept(self.process, limit)
            self.monitor.accept(self.process, limit)
            self.monitor_line("QMP")
            self.qmp("qmp_capabilities")
        except Failed as error:
            raise Failed(f"{error}: {self.said()}") from None

    def said(self):
        """What QEMU itself said."""
        self.log.flush()
        with open(self.log.name) as log:
            return log.read().strip()

    def monitor_line(self, key, limit=600):
        """The next message of the monitor's that has this key; events go by."""
        end = time.monotonic() + limit
        while True:
            while "\n" in self.monitor.text:
                line, self.monitor.text = self.monitor.text.split("\n", 1)
                message = json.loads(line)
                if "error" in message:
                    raise Failed(f"QEMU: {message['error']['desc']}")
                if key in message:
                    return message
            if time.monotonic() > end or (not self.monitor.more(1) and self.process.poll() is not None):
                raise Failed(f"the monitor is silent: {self.said()}")

    def qmp(self, command, **arguments):
        """A command of the monitor's, and its answer."""
        self.monitor.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        return self.monitor_line("return")["return"]

    def event(self, name, limit=300):
        """Waits for that event of the monitor's, of those since the last command."""
        while self.monitor_line("event", limit)["event"] != name:
            pass

    def hmp(self, line):
        """A command of the human monitor, and its text; words of an error are one."""
        text = self.qmp("human-monitor-command", **{"command-line": line})
        if text.startswith("Error"):
            raise Failed(f"{line}: {text.strip()}")
        return text

    def expect(self, pattern, limit=600):
        """Waits for that on the serial line, after what was waited for last."""
        end = time.monotonic() + limit
        while True:
            found = re.compile(pattern, re.S).search(self.serial.text, self.serial.at)
            if found:
                self.serial.at = found.end()
                return found
            if time.monotonic() > end or (not self.serial.more(1) and self.process.poll() is not None):
                ended = self.process.poll()
                raise Failed(f"no {pattern!r}, QEMU {self.where() if ended is None else f'ended with {ended}'}: "
                             f"{self.serial.text[-400:]!r} {self.said()!r}")

    def where(self):
        """What the CPUs are at."""
        places = [re.findall(r"[RE]IP=\w+|HLT=\d", self.hmp("info registers -a")) for _ in range(2)]
        return f"runs, {self.qmp('query-status')['status']}, at {places}"

    def listen(self, seconds):
        """Takes what comes on the serial line for so long: a guest waits when nobody reads it."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not self.serial.more(left) and self.process.poll() is not None:
                break

    def send(self, text):
        self.serial.socket.sendall(text.encode())

    def shell(self, line, limit=300):
        """A command in a guest of anykernel.sh, whose status has to be 0: what it printed."""
        self.send(line + "\n")
        found = self.expect(r"(.*?)GUEST done (\d+)\r?\n", limit)
        if found.group(2) != "0":
            raise Failed(f"{line}: status {found.group(2)}: {found.group(1)}")
        return found.group(1).replace("\r", "")

    def screen(self):
        """The text on the display, in VGA's text mode."""
        self.qmp("pmemsave", val=0xB8000, size=4000, filename=f"{WORK}/screen")
        with open(f"{WORK}/screen", "rb") as file:
            chars = "".join(chr(v) if 32 <= v < 127 else " " for v in file.read()[::2])
        return "\n".join(chars[i:i + 80].rstrip() for i in range(0, len(chars), 80))

    def watch(self, pattern, limit=300):
        """Waits for that on the display."""
        end = time.monotonic() + limit
        while True:
            screen = self.screen()
            found = re.search(pattern, screen, re.S)
            if found:
                return found
            if time.monotonic() > end:
                raise Failed(f"no {pattern!r} on the display: {screen.strip()!r}")
            self.listen(1)

    def keys(self, *names):
        for name in names:
            self.hmp(f"sendkey {name}")
            self.listen(0.2)

    def ends(self, limit=300):
        """Waits for QEMU's end, which has to be a good one."""
        end = time.monotonic() + limit
        while self.process.poll() is None:
            if time.monotonic() > end:
                raise Failed("the machine does not end")
            # The pipes must not fill up.
            self.serial.more(0.2)
            self.monitor.more(0)
        if self.process.returncode:
            raise Failed(f"QEMU ended with {self.process.returncode}: {self.said()}")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.serial.close()
        self.monitor.close()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# --- kernels of Debian's -----------------------------------------------------------------------------------

KERNELS = {"bookworm-amd64": "x86_64", "bookworm-686": "i686", "bookworm-686-pae": "i686", "trixie-amd64": "x86_64"}


# Every character on the serial line is an exit to QEMU: errors of the kernel's only.
CONSOLE = "console=ttyS0 panic=-1 quiet"


def linux(name, *words, append="", **options):
    """A machine with that kernel and its initrd."""
    return Machine(*words, kernel=f"{name}.kernel", initrd=f"{name}.initrd", append=f"{CONSOLE} {append}", **options)


def up(guest, name, cpus=1, limit=600):
    """Waits for the userland, and for its checks."""
    guest.expect(rf"GUEST up \S+ {KERNELS[name]} cpus={cpus} clock=kvm-clock", limit)
    result = guest.expect(r"GUEST checks (passed|failed:[^\n]*)", limit).group(1)
    if result != "passed":
        raise Failed(f"{result.strip()}: {guest.serial.text[-600:]!r}")


def quiet(guest, allowed=r"(?!)"):
    """QEMU has not warned of anything."""
    warnings = [line for line in guest.said().splitlines() if "warning" in line and not re.search(allowed, line)]
    if warnings:
        raise Failed("; ".join(warnings))


def is_amd():
    """Whether this is a machine with SVM."""
    with open("/proc/cpuinfo") as info:
        return "AuthenticAMD" in info.read()


def smp_model():
    """A model that a guest with several CPUs does not complain of: the AMD bed's own is of family 6. Without what that
    bed's processor lacks, of which QEMU warns on KVM too."""
    return "EPYC,-vme,-fxsr-opt,-misalignsse,-osvw,-xsavec" if is_amd() else "host"


# Where it counters ITS, as on the Intel bed's processor, trixie's kernel warns of pages of its own that it may write
# and execute; on stock KVM too.
APPEND = {"trixie-amd64": "indirect_target_selection=off"}


def kernel_tests(name, beds):
    files = (f"{name}.kernel", f"{name}.initrd")

    @test(f"{name}", *files, beds=beds)
    def one():
        append = APPEND.get(name, "")
        with linux(name, "-drive", "file=/tmp/disk,if=virtio,format=raw", machine="pc", append=append) as guest:
            up(guest, name)
            guest.send("poweroff -f\n")
            guest.ends()
            quiet(guest)

    @test(f"{name}-smp", *files, beds=beds)
    def several():
        with linux(name, cpus="2", cpu=smp_model(), append=APPEND.get(name, "")) as guest:
            up(guest, name, 2)
            guest.send("poweroff -f\n")
            guest.ends()
            quiet(guest, "recommended cpus")


# Debian's 686-pae kernel hangs in the AMD bed, on stock KVM too: QEMU's nested paging.
for kernel in KERNELS:
    kernel_tests(kernel, ("intel",) if kernel.endswith("pae") else ("amd", "intel"))


def model_test(model, cpu, name="bookworm-amd64"):
    @test(f"model-{model}", f"{name}.kernel", f"{name}.initrd", beds=("amd",))
    def boots():
        with linux(name, cpu=cpu, cpus="2") as guest:
            up(guest, name, 2)


for model in ("qemu64", "EPYC", "EPYC-Milan", "Opteron_G3", "Skylake-Server", "Icelake-Server"):
    model_test(model, model)
model_test("kvm32", "kvm32", "bookworm-686")
# With AMD's name a processor of family 6 is one that the guest's kernel warns of when there are two.
for model in ("coreduo", "pentium3"):
    model_test(model, f"{model},vendor=GenuineIntel", "bookworm-686")


@test("launcher-686", "rvmm", "bookworm-686.kernel", "bookworm-686.initrd")
def launcher():
    argv = ["rvmm", "run", "--device", NODE, "--kernel", "bookworm-686.kernel", "--initrd", "bookworm-686.initrd",
            "--append", "reboot=k"]
    with open(f"{WORK}/launcher", "w+b") as log, subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=log, stderr=log) as process:

        def said():
            with open(log.name, "rb") as file:
                return file.read()

        try:
            end = time.monotonic() + 900
            while b"GUEST checks" not in said():
                if time.monotonic() > end or process.poll() is not None:
                    raise Failed(f"status {process.poll()}: {said()[-600:]}")
                time.sleep(0.5)
            # Not before: what is there when the guest opens its serial port is lost.
            process.communicate(b"reboot -f\n", 300)
        finally:
            process.kill()
        if process.returncode or b"GUEST checks passed" not in said():
            raise Failed(f"status {process.returncode}: {said()[-600:]}")


# --- other systems ------------------------------------------------------------------------------------------


@test("memtest", "memtest.bin")
def memtest():
    # It writes its screen to the serial line as well, with escape sequences between the words.
    with Machine(kernel="memtest.bin", append="console=ttyS0,115200", memory=64, machine="pc") as guest:
        guest.watch(r"Memtest86\+.*(Test|Testing).*Errors: +0", 300)
        guest.watch(r"Test #[1-9]", 400)
        if not re.search(r"Errors: +0", guest.screen()):
            raise Failed(guest.screen())


@test("grub", "grub.iso")
def grub():
    with Machine("-cdrom", "grub.iso", memory=128, machine="pc") as guest:
        guest.watch(r"GNU GRUB")
        guest.keys("c")
        guest.watch(r"grub>")
        guest.keys("l", "s", "m", "m", "a", "p", "ret")
        guest.watch(r"base_addr = 0x0")


@test("ipxe", "ipxe.lkrn")
def ipxe():
    with Machine("-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile=", kernel="ipxe.lkrn",
                 append="dhcp && route && shell", memory=128, machine="pc") as guest:
        guest.watch(r"iPXE \d.*Features", 300)
        guest.watch(r"net0: 10\.0\.2\.15/.*iPXE>", 300)


@test("seabios", "efi-virtio.rom")
def seabios():
    with Machine("-boot", "menu=on,splash-time=30000", "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n",
                 memory=64, machine="pc") as guest:
        guest.watch(r"Press ESC for boot menu")
        guest.keys("esc")
        guest.watch(r"Select boot device.*1\. ")


def uefi(code, variables, secure="off"):
    """UEFI firmware in flash memory, with variables of its own; secure: they are written in SMM alone."""
    shutil.copy(variables, f"{WORK}/variables")
    return ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
            "-drive", f"if=pflash,unit=1,format=raw,file={WORK}/variables",
            "-global", f"driver=cfi.pflash01,property=secure,value={secure}"]


@test("ovmf", "ovmf.code", "ovmf.vars", beds=("amd",))
def ovmf():
    with Machine(*uefi("ovmf.code", "ovmf.vars"), memory=256) as guest:
        guest.expect(r"UEFI Interactive Shell", 900)
        # It waits for somebody to stop startup.nsh.
        guest.send("\x1b")
        guest.expect(r"Shell> ", 300)
        guest.send("memmap\r")
        guest.expect(r"Total Memory: *\d+ MB", 300)
        guest.send("reset -s\r")
        guest.ends(300)


def boots_by_uefi(code, secure, machine, limit):
    """A kernel up to its userland and down again, by that build of OVMF."""
    with linux("bookworm-amd64", *uefi(code, "ovmf.vars", secure), memory=384, machine=machine) as guest:
        up(guest, "bookworm-amd64", limit=limit)
        guest.shell("[ -d /sys/firmware/efi ]")
        guest.send("poweroff -f\n")
        guest.ends()


@test("ovmf-linux", "ovmf.code", "ovmf.vars", "bookworm-amd64.kernel", "bookworm-amd64.initrd", beds=("amd",))
def ovmf_linux():
    boots_by_uefi("ovmf.code", "off", "q35", 900)


# The build with secure boot does nothing without SMM: all services that write variables are there.
@test("ovmf-smm", "ovmf-smm.code", "ovmf.vars", "bookworm-amd64.kernel", "bookworm-amd64.initrd", beds=("amd",))
def ovmf_smm():
    boots_by_uefi("ovmf-smm.code", "on", "q35,smm=on", 1800)


@test("installer", "installer.kernel", "installer.initrd", beds=("amd",))
def installer():
    # With half of that it first asks whether low memory mode is all right.
    with Machine(kernel="installer.kernel", initrd="installer.initrd", memory=1024,
                 append=f"{CONSOLE} TERM=vt102") as guest:
        guest.expect(r"(?i)(select a language|choose the language)", 600)


# --- what QEMU does with a guest -----------------------------------------------------------------------------

SMALL = "bookworm-686"
SMALL_FILES = (f"{SMALL}.kernel", f"{SMALL}.initrd")
BIG = "bookworm-amd64"
BIG_FILES = (f"{BIG}.kernel", f"{BIG}.initrd")


def moved():
    """The kernel of a machine whose state goes into another. The AMD bed's QEMU ends at an interrupt of a 32-bit
    program where a TSS of 32 bits has been set from outside, which is busy; so it does on stock KVM."""
    return BIG if is_amd() else SMALL


# Something that goes on writing to memory, and a sum that tells whether any of it was lost: a file of random data and
# its sum are made again and again, and compared.
WRITER = ("(n=0; while :; do head -c 1000000 /dev/urandom > /tmp/w; a=$(md5sum < /tmp/w); cp /tmp/w /tmp/v; "
          "[ \"$(md5sum < /tmp/v)\" = \"$a\" ] || echo lost > /tmp/lost; n=$((n + 1)); "
          "echo $n > /tmp/m; mv /tmp/m /tmp/n; done) &")


def writes_begin(guest):
    """Starts the writer, and waits until it has been round once."""
    guest.shell(WRITER)
    guest.shell("until [ -s /tmp/n ]; do sleep 1; done")


def writes_go_on(guest):
    """The writer is alive, and has lost nothing."""
    before = int(guest.shell("cat /tmp/n").strip())
    for _ in range(60):
        if int(guest.shell("sleep 1; cat /tmp/n").strip()) > before + 1:
            break
    else:
        raise Failed("the writer stands")
    guest.shell("[ ! -e /tmp/lost ]")


def empty_qcow2(path, size):
    """A disk of zeroes that takes snapshots (QEMU, docs/interop/qcow2.rst): header, references, L1, a cluster each."""
    bits, table, block, first = 16, 1, 2, 3
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, bits, size, 0, 1, first << bits, table << bits,
                         1, 0, 0, 0, 0, 0, 4, 104)
    with open(path, "wb") as disk:
        for cluster, data in ((0, header), (table, struct.pack(">Q", block << bits)), (block, b"\0\1" * 4)):
            disk.seek(cluster << bits)
            disk.write(data)
        disk.truncate((first + 1) << bits)


@test("savevm", *SMALL_FILES, *BIG_FILES)
def savevm():
    kernel = moved()
    empty_qcow2(f"{WORK}/s.qcow2", 64 << 20)
    drive = ["-drive", f"file={WORK}/s.qcow2,if=virtio,format=qcow2"]
    with linux(kernel, *drive) as guest:
        up(guest, kernel)
        guest.shell("echo before > /tmp/state")
        writes_begin(guest)
        guest.hmp("savevm one")
        for _ in range(4):
            guest.shell("echo after > /tmp/state")
            guest.hmp("loadvm one")
            guest.shell("[ $(cat /tmp/state) = before ]")
            writes_go_on(guest)
        guest.shell("[ $(cat /tmp/state) = before ]")
    with linux(kernel, *drive, "-loadvm", "one") as guest:
        guest.shell("[ $(cat /tmp/state) = before ]")
        writes_go_on(guest)


@test("migrate-file", *SMALL_FILES, *BIG_FILES)
def migrate_file():
    kernel = moved()
    state = f"{WORK}/migrated"
    with linux(kernel, cpus="2", cpu=smp_model()) as guest:
        up(guest, kernel, 2)
        writes_begin(guest)
        guest.qmp("stop")
        guest.qmp("migrate", uri=f"exec:cat > {state}")
        migrated(guest)
    with linux(kernel, "-incoming", f"exec:cat {state}", cpus="2", cpu=smp_model()) as guest:
        arrived(guest)
        writes_go_on(guest)
        guest.send("reboot -f\n")
        up(guest, kernel, 2)


def migrated(guest, limit=300):
    """Waits for the end of a migration, and for its success."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        status = guest.qmp("query-migrate").get("status")
        if status == "completed":
            return
        if status == "failed":
            raise Failed(f"migration failed: {guest.qmp('query-migrate')}")
        time.sleep(0.5)
    raise Failed(f"migration does not end: {guest.qmp('query-migrate')}")


def arrived(guest, limit=300):
    """Waits until a machine that state comes into runs, or can."""
    end = time.monotonic() + limit
    while guest.qmp("query-status")["status"] == "inmigrate":
        if time.monotonic() > end:
            raise Failed("nothing arrives")
        time.sleep(0.5)
    guest.qmp("cont")


@test("migrate-live", *SMALL_FILES, *BIG_FILES)
def migrate_live():
    kernel = moved()
    path = f"{WORK}/live"
    two = {"cpus": "2", "cpu": smp_model()}
    with linux(kernel, **two) as guest, linux(kernel, "-incoming", f"unix:{path}", **two) as other:
        up(guest, kernel, 2)
        writes_begin(guest)
        guest.qmp("migrate-set-parameters", **{"downtime-limit": 2000, "max-bandwidth": 1 << 30})
        guest.qmp("migrate", uri=f"unix:{path}")
        migrated(guest)
        arrived(other)
        writes_go_on(other)


@test("hotplug-cpu", *BIG_FILES)
def hotplug_cpu():
    model = smp_model()
    with linux(BIG, cpus="1,cores=3,maxcpus=3", cpu=model) as guest:
        up(guest, BIG)
        for n in (1, 2):
            guest.qmp("device_add", driver=f"{model}-x86_64-cpu", id=f"c{n}", **{
                "socket-id": 0, "die-id": 0, "module-id": 0, "core-id": n, "thread-id": 0})
            guest.shell(f"until [ -e /sys/devices/system/cpu/cpu{n} ]; do sleep 1; done; sleep 1; "
                        f"cd /sys/devices/system/cpu/cpu{n}; [ $(cat online) = 1 ] || echo 1 > online")
            guest.shell(f"taskset {1 << n:x} sh -c 'seq 1 500 | wc -l'")
        guest.qmp("device_del", id="c2")
        guest.shell("while [ -e /sys/devices/system/cpu/cpu2 ]; do sleep 1; done")


def memory_of(guest):
    """KiB that the guest says it has. What it is asked may be echoed."""
    return int(guest.shell("sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo").split()[-1])


@test("hotplug-memory", *BIG_FILES)
def hotplug_memory():
    with linux(BIG, memory="256,slots=2,maxmem=1G", append="memhp_default_state=online") as guest:
        up(guest, BIG)
        before = memory_of(guest)
        guest.qmp("object-add", **{"qom-type": "memory-backend-memfd", "id": "m", "size": 128 << 20})
        guest.qmp("device_add", driver="pc-dimm", id="d", memdev="m")
        for _ in range(60):
            time.sleep(1)
            now = memory_of(guest)
            if now >= before + (100 << 10):
                break
        else:
            raise Failed(f"the guest has {now} KiB, had {before}")
        guest.shell("seq 1 3000000 > /tmp/all; md5sum /tmp/all")


@test("hotplug-device", *BIG_FILES)
def hotplug_device():
    with linux(BIG, machine="pc") as guest:
        up(guest, BIG)
        guest.shell("insmod $(ls /modules/*acpiphp* 2> /dev/null) 2> /dev/null; true")
        guest.hmp("drive_add 0 if=none,id=h,file=/tmp/disk,format=raw")
        for _ in range(2):
            guest.qmp("device_add", driver="virtio-blk-pci", id="v", drive="h")
            guest.shell("until [ -e /dev/vda ]; do sleep 1; done; dd if=/dev/vda of=/dev/null bs=4k count=64")
            guest.qmp("device_del", id="v")
            guest.shell("while [ -e /dev/vda ]; do sleep 1; done")
            guest.event("DEVICE_DELETED")
            guest.hmp("drive_add 0 if=none,id=h,file=/tmp/disk,format=raw")


@test("gdbstub", *SMALL_FILES)
def gdbstub():
    path = f"{WORK}/gdb"
    with linux(SMALL, "-chardev", f"socket,id=g,path={path},server=on,wait=off", "-gdb", "chardev:g", "-S") as guest:
        gdb = Gdb(path)
        gdb.ask("?")
        # Real mode, instruction by instruction: each is another place.
        places = set()
        for _ in range(20):
            gdb.ask("s")
            places.add(gdb.pc())
        if len(places) < 15:
            raise Failed(f"single steps: {sorted(map(hex, places))}")
        # SeaBIOS's entry of the kernel: the start of setup's code, as boot.rst has it.
        gdb.ask("c", limit=1)
        up(guest, SMALL)
        gdb.interrupt()
        pc = gdb.pc()
        for _ in range(50):
            gdb.ask("s")
        if gdb.pc() == pc:
            raise Failed("fifty steps lead nowhere")
        gdb.ask("D")
        guest.shell("true")


class Gdb:
    """GDB's remote protocol, as far as it is needed."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.text = b""

    def receive(self, limit=120):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            found = re.search(rb"\$([^#]*)#..", self.text)
            if found:
                self.text = self.text[found.end():]
                self.socket.sendall(b"+")
                return found.group(1).decode()
            if select.select([self.socket], [], [], 0.5)[0]:
                self.text += self.socket.recv(65536)
        return ""

    def ask(self, text, limit=120):
        self.socket.sendall(b"$%s#%02x" % (text.encode(), sum(text.encode()) & 255))
        return self.receive(limit)

    def interrupt(self):
        self.socket.sendall(b"\x03")
        return self.receive()

    def pc(self):
        """EIP or RIP; the registers are those of the mode that the CPU is in."""
        registers = self.ask("g")
        at, size = (8 * 8, 8) if len(registers) < 1100 else (16 * 16, 16)
        return int.from_bytes(bytes.fromhex(registers[at:at + size]), "little")


@test("reset", *SMALL_FILES)
def reset():
    with linux(SMALL) as guest:
        for n in range(20):
            # At another moment of its start each time.
            guest.listen(0.3 * n)
            guest.qmp("system_reset")
        up(guest, SMALL)
        for _ in range(20):
            guest.qmp("stop")
            guest.qmp("cont")
        guest.shell("true")


@test("balloon", *BIG_FILES, beds=("amd",))
def balloon():
    with linux(BIG, "-device", "virtio-balloon-pci") as guest:
        up(guest, BIG)
        for size in (160, 256):
            guest.qmp("balloon", value=size << 20)
            for _ in range(60):
                now = guest.qmp("query-balloon")["actual"] >> 20
                if now == size:
                    break
                time.sleep(1)
            else:
                raise Failed(f"{now} MiB, not {size}")
        guest.shell("true")


@test("sixteen", *SMALL_FILES, beds=("amd",))
def sixteen():
    """They start one after the other and stay; then all have the same work at once, and power off at once."""
    guests = []
    try:
        for _ in range(16):
            # The host's khugepaged is as nice, and would starve in the midst of a read-side section of RCU: a stall.
            guests.append(linux(SMALL, memory=96, nice=19))
            up(guests[-1], SMALL, limit=3000)
            print(f"# {len(guests)} machines are up", flush=True)
        for guest in guests:
            guest.send("head -c 4000000 /dev/zero | sha256sum; true\n")
        sums = {guest.expect(r"([0-9a-f]{64}) ", 1200).group(1) for guest in guests}
        if sums != {hashlib.sha256(bytes(4000000)).hexdigest()}:
            raise Failed(f"sums of the same: {sums}")
        print("# all have worked", flush=True)
        for guest in guests:
            guest.send("poweroff -f\n")
        for guest in guests:
            guest.ends(900)
    finally:
        for guest in guests:
            guest.close()


# --- the order of things -------------------------------------------------------------------------------------


def main():
    global NODE
    NODE, names = sys.argv[1], sys.argv[2:]
    os.makedirs(WORK, exist_ok=True)
    with open("/tmp/disk", "wb") as disk:
        disk.truncate(8 << 20)
    print(f"TAP version 13\n1..{len(names)}", flush=True)
    failed = 0
    for number, name in enumerate(names, 1):
        begin = time.monotonic()
        try:
            TESTS[name][0]()
            error = ""
        except (Failed, OSError, subprocess.SubprocessError, ValueError, KeyError) as cause:
            error = f"{type(cause).__name__}: {cause}"
            failed += 1
        for line in error.splitlines():
            print(f"# {line}")
        print(f"{'not ok' if error else 'ok'} {number} {name}  # {time.monotonic() - begin:.1f} s", flush=True)
    print(f"# Totals: pass:{len(names) - failed} fail:{failed} xfail:0 xpass:0 skip:0 error:0")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
