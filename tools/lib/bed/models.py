# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What QEMU says of its models of processors: runs in a bed, one QEMU after the other.

    python3 models.py NODE short|whole PATTERN

Prints a line of JSON for each case that the regular expression matches: [name, [[property, value]...]]. tools/models
compares the lines of stock KVM with those of rvmm.
"""

import json
import re
import subprocess
import sys

QEMU = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-m", "32", "-qmp", "stdio"]
# Hyper-V's flags that take something else than on or off.
VALUES = {"hv-spinlocks": "0x1fff", "hv-vendor-id": "vendor", "hv-no-nonarch-coresharing": "on"}
# Nested hypervisors', and what stands for all others.
APART = ["hv-evmcs", "hv-tlbflush-direct", "hv-passthrough"]
# What others need first.
BASE = "hv-vpindex,hv-time,hv-synic,hv-stimer,hv-vapic,hv-relaxed"
# The case whose warnings tell which bits the names of flags stand for: always run.
NAMES = "every flag"
# Cases of both forms: name, -cpu, more words. `{hv}` stands for all of Hyper-V's flags, `{kvm}` for KVM's.
CASES = [
    (NAMES, "base,{flags}", []),
    ("host", "host,enforce", []),
    ("max", "max,enforce", []),
    ("host, 4 CPUs in 2 cores", "host", ["-smp", "4,threads=2"]),
    ("EPYC, 4 CPUs in 2 cores", "EPYC", ["-smp", "4,threads=2"]),
    ("host, invariant TSC", "host,+invtsc", []),
    ("host, pmu=on", "host,pmu=on", []),
    ("kvm64, kvm-*", "kvm64,{kvm}", []),
    ("host, hv-*", "host,{hv}", []),
]
# Cases of the whole form only, beside one start of every model and of every flag.
MORE = [
    ("host, kvm=off", "host,kvm=off", []),
    ("host, all that does not migrate", "host,migratable=off", []),
    ("max, all that does not migrate", "max,migratable=off", []),
    ("host, 2 CPUs", "host", ["-smp", "2"]),
    ("max, 4 CPUs in 2 cores", "max", ["-smp", "4,threads=2"]),
    ("EPYC, 2 CPUs", "EPYC", ["-smp", "2"]),
    ("EPYC, 4 CPUs in 2 cores, no TOPOEXT", "EPYC,-topoext", ["-smp", "4,threads=2"]),
    ("EPYC-Rome, 4 CPUs in 2 cores", "EPYC-Rome", ["-smp", "4,threads=2"]),
    ("host, 4 CPUs in 2 dies", "host", ["-smp", "4,dies=2,cores=2"]),
    ("host, caches of the host", "host,host-cache-info=on", []),
    ("host, invariant TSC, enforced", "host,+invtsc,enforce", []),
    ("host, invariant TSC and all that does not migrate", "host,migratable=off,+invtsc", []),
    ("host, TSC of 1 GHz", "host,tsc-frequency=1000000000", []),
    ("host, pmu=on, enforced", "host,pmu=on,enforce", []),
    ("host, hypervisor hidden", "host,-hypervisor", []),
    ("host, exact PV features", "host,kvm-pv-enforce-cpuid=on", []),
    ("host, dedicated CPUs", "host,kvm-hint-dedicated=on", []),
    ("host, local machine checks", "host,lmce=on", []),
    ("host, MWAIT", "host", ["-overcommit", "cpu-pm=on"]),
    ("host, no x2APIC", "host,-x2apic", []),
    ("host, physical addresses as wide as the host's", "host,host-phys-bits=on", []),
    ("host, physical addresses of 40 bits", "host,phys-bits=40", []),
    ("host, split irqchip", "host", ["-M", "q35,kernel-irqchip=split"]),
]


class Qemu:
    """A QEMU that has not run its guest yet, and its monitor. `up` is False if it refused."""

    def __init__(self, node, cpu, words=()):
        machine = [] if "-M" in words else ["-M", "q35"]
        argv = [*QEMU, *machine, "-accel", f"kvm,device={node}", "-cpu", cpu, *words]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=open("/tmp/said", "w"), text=True)
        # The greeting comes before the processors do, the first answer after them.
        self.message()
        self.up = self.ask("qmp_capabilities") is not None

    def message(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {}

    def ask(self, command, **arguments):
        """The answer to a command; None if it is refused."""
        try:
            self.process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        message = {"event": ""}
        while "event" in message:
            message = self.message()
        return message.get("return")

    def end(self):
        """Its status, and what it said on standard error."""
        if self.up:
            self.ask("quit")
        status = self.process.wait()
        self.process.stdout.close()
        with open("/tmp/said") as said:
            return status, said.read().splitlines()


def emit(name, properties):
    print(json.dumps([name, properties]), flush=True)


def words_of(filtered):
    """Names for the bits that QEMU could not give: leaf.sub-leaf.register.bit, or MSR.bit."""
    for word in filtered or []:
        leaf = f"{word['cpuid-input-eax']:x}.{word.get('cpuid-input-ecx', 0):x}.{word['cpuid-register']}"
        yield from (f"CPUID {leaf}.{bit}" for bit in range(32) if word["features"] >> bit & 1)


def outcome(node, cpu, words):
    """Comes up or not, what it says, what it could not give. [[property, value]...]"""
    qemu = Qemu(node, cpu, words)
    properties = []
    if qemu.up:
        cpus = qemu.ask("query-cpus-fast") or []
        for number, one in enumerate(cpus):
            filtered = qemu.ask("qom-get", path=one["qom-path"], property="filtered-features")
            properties += [[f"vCPU {number} lacks {bit}", True] for bit in words_of(filtered)]
        properties.append(["vCPUs", len(cpus)])
    status, said = qemu.end()
    # The host measures its TSC at each boot.
    said = [re.sub(r"host \(\d+ kHz\)", "host (N kHz)", line.replace(node, "NODE")) for line in said]
    properties += [["comes up", qemu.up], ["ends with", status], *([f"says {line}", True] for line in said)]
    return qemu.up, properties


def start(node, name, cpu, words):
    """One case."""
    emit(name, outcome(node, cpu, words)[1])


def start_model(node, name):
    """A model with `enforce`, and without if that does not come up; a version of one has said all by then."""
    up, properties = outcome(node, f"{name},enforce", [])
    emit(f"model {name}, enforced", properties)
    if not up and not re.search(r"-v\d+$", name):
        start(node, f"model {name}", name, [])


def query(node):
    """What libvirt asks: which features each model lacks here, and what `host` and `max` are. The models, and the
    properties of a processor."""
    qemu = Qemu(node, "host")
    definitions = qemu.ask("query-cpu-definitions") or []
    for model in sorted(definitions, key=lambda m: m["name"]):
        lacks = model.get("unavailable-features", [])
        emit(f"definition of {model['name']}", [[f"lacks {name}", True] for name in lacks])
    for name in ("host", "max"):
        answer = qemu.ask("query-cpu-model-expansion", type="full", model={"name": name})
        emit(f"expansion of {name}", sorted(answer["model"]["props"].items()) if answer else [["refused", True]])
    properties = qemu.ask("qom-list-properties", typename="max-x86_64-cpu") or []
    qemu.end()
    names = [m["name"] for m in definitions if m["name"] not in ("host", "max")]
    return sorted(names), sorted((p["name"], p["type"]) for p in properties)


def cases(whole, properties):
    """[(name, -cpu, more words)]"""
    listed = subprocess.run([QEMU[0], "-cpu", "help"], capture_output=True, text=True, check=False).stdout
    flags = listed.partition("Recognized CPUID flags:")[2].split()
    hyperv = [(name, VALUES.get(name, "on")) for name, kind in properties
              if name.startswith("hv-") and (kind == "bool" or name in VALUES)]
    kvm = [name for name, kind in properties if re.match("kvm-|kvmclock", name) and kind == "bool"]
    every = {
        "flags": ",".join(f"{name}=on" for name in flags),
        "hv": ",".join(f"{name}={value}" for name, value in hyperv if name not in APART),
        "kvm": ",".join(f"{name}=on" for name in kvm),
    }
    yield from ((name, cpu.format(**every), words) for name, cpu, words in CASES)
    if not whole:
        return
    yield from MORE
    yield from ((f"host, {name} alone", f"host,{name}={value}", []) for name, value in hyperv)
    yield from ((f"host, {name} and what it may need", f"host,{BASE},{name}={value}", []) for name, value in hyperv
                if name not in BASE.split(","))
    yield from ((f"host, {name}", f"host,{name}=on,enforce", []) for name in kvm)


def main():
    node, form, pattern = sys.argv[1:]
    models, properties = query(node)
    for name, cpu, words in cases(form == "whole", properties):
        if name == NAMES or re.search(pattern, name):
            start(node, name, cpu, words)
    for name in models if form == "whole" else []:
        if re.search(pattern, f"model {name}"):
            start_model(node, name)


if __name__ == "__main__":
    main()
