# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Corrected copies of the emulators: faults of the releases known here that end guests, stock KVM's as well.
Used by machines/.

A correction changes a few bytes of the program, found by the instructions around them. It says False, and changes
nothing, if the program has no such place or several: then it is another release.
"""

import re
import struct
from pathlib import Path

from .files import replace

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
# In BX_CPU_C::HandleExtInterrupt (cpu/event.cc) of Bochs 3.0: whether a virtual interrupt is pending, the jump to its
# delivery.
BOCHS_VIRTUAL_FIRST = re.compile(rb"\x48\x89\xdf\xf6\x83..\0\0\x02\x0f\x85", re.DOTALL)
# In its main loop for several CPUs (bx_begin_simulation, main.cc): the call of BX_CPU_C::cpu_run_trace.
BOCHS_RUN_TRACE = re.compile(rb"\x80\x7c\x24\x0b\0\x8b\x6c\x24\x04\x74.\xe8(....)\x48\x8b\x35", re.DOTALL)
# BX_CPU_C::cpu_loop_debugger, which only a Bochs in its debugger runs.
BOCHS_DEBUGGER = re.compile(
    rb"\xf3\x0f\x1e\xfa(?=\x41\x56\x31\xc0\x41\x54\x55\x53\x48\x83\xec\x18\x66\x89\x87)", re.DOTALL)
# In BX_CPU_C::cpu_loop, the main loop for one CPU: prev_rip = RIP; speculative_rsp = false.
BOCHS_COMMIT = re.compile(rb"\x48\x8b\x82(....)\x80\xba....\0\xc6\x82(....)\0\x48\x89\x82(....)\x0f\x85", re.DOTALL)
# In BX_CPU_C::VMX_Deliver_Virtual_Interrupt (cpu/vapic.cc): the call of bx_instr_hwinterrupt, which does nothing,
# before the delivery of the vector in R13.
BOCHS_VIRTUAL_HOOK = re.compile(
    rb"(\x48\x8b\x8b....\x0f\xb7\x93....\x44\x89\xee\x8b\x7b\x30\xe8....)"
    rb"\x45\x31\xc0\x31\xc9\x31\xd2\x44\x89\xee\x48\x89\xdf\xe8",
    re.DOTALL)
# In BX_CPU_C::VMexit_Event (cpu/vmx.cc): idt_vector_info = vector | (type << 8) | (errcode_valid << 11).
BOCHS_VECTORING = re.compile(rb"\x44\x09\xf3\xc1\xe5\x0b\x09\xeb\x41\x89\x9c\x24(....)", re.DOTALL)


def corrected(source, copy, corrections):
    """`copy`, which is the program `source` after all `corrections`; None if one of them says False."""
    if copy.exists() and copy.stat().st_mtime >= Path(__file__).stat().st_mtime:
        return copy
    binary = bytearray(source.read_bytes())
    if not all(correct(binary) for correct in corrections):
        return None
    replace(copy, binary, mode=0o755)
    return copy


def corrected_qemu(source):
    """The copy, or None, beside `source`: QEMU finds its files from its own place."""
    copy = source.with_name(f"{source.name}-corrected-{int(source.stat().st_mtime)}")
    return corrected(source, copy, [inject_once, machine_checks_intercepted])


def corrected_bochs(source, directory):
    """The copy, or None, in `directory`."""
    copy = directory / f"bochs-{int(source.stat().st_mtime)}"
    return corrected(source, copy, [host_interrupts_first, note_virtual_interrupts, commit_after_exceptions])


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


def host_interrupts_first(binary):
    """When an interrupt for the host arrives while a virtual interrupt (SDM 3C 30.2) waits for RFLAGS.IF, Bochs
    delivers the virtual one: it looks at what is pending and means what is pending and not masked. Corrected, the
    host's interrupt goes first: a virtual one is delivered unless the 8259s or the local APIC have one for the host
    (bits 10 and 11 of the word instead of bit 9, in its second byte; the jump inverted).
    selftests/lapic.c: held_back_by_if.
    """
    found = list(BOCHS_VIRTUAL_FIRST.finditer(binary))
    if len(found) != 1:
        return False
    end = found[0].end()
    binary[end - 3], binary[end - 1] = 0x0C, 0x84
    return True


def note_virtual_interrupts(binary):
    """When the delivery of a virtual interrupt causes a VM exit, Bochs' IDT-vectoring information (SDM 3C 28.2.4) is
    the event that was delivered before, which may be an exception of another guest, and is then delivered again.
    Corrected, the interrupt is noted (type 0, external interrupt). selftests/lapic.c: delivered_to_new_stack.
    """
    hook, info = (list(p.finditer(binary)) for p in (BOCHS_VIRTUAL_HOOK, BOCHS_VECTORING))
    if len(hook) != 1 or len(info) != 1:
        return False
    start, end = hook[0].span(1)
    code = b"\x44\x89\xab" + info[0].group(1)  # mov %r13d, idt_vector_info(%rbx)
    binary[start:end] = code.ljust(end - start, b"\x90")
    return True


def commit_after_exceptions(binary):
    """With more than one CPU Bochs forgets, after an exception or a VM exit, to note that RIP is another one now: the
    main loop for one CPU does, cpu_run_trace() does not. If the next thing that happens is a VM exit or an exception
    (an interrupt for the host, a page that is not mapped), RIP goes back to the instruction before: a guest that has
    just been given a page fault continues at the faulting instruction, with the handler's stack and CPL. Corrected,
    the call goes by a few instructions that do the same as the loop for one CPU, in place of the debugger's loop.
    """
    call, cave, commit = (list(p.finditer(binary)) for p in (BOCHS_RUN_TRACE, BOCHS_DEBUGGER, BOCHS_COMMIT))
    if len(call) != 1 or len(cave) != 1 or not commit or len({m.groups() for m in commit}) != 1:
        return False
    rip, speculative, previous = commit[0].groups()
    code = b"\x48\x8b\x87" + rip + b"\xc6\x87" + speculative + b"\0" + b"\x48\x89\x87" + previous + b"\xe9"
    at, start = call[0].start(1), cave[0].end()
    target = at + 4 + struct.unpack("<i", call[0].group(1))[0]
    code += struct.pack("<i", target - (start + len(code) + 4))
    binary[start : start + len(code)] = code
    binary[at : at + 4] = struct.pack("<i", start - (at + 4))
    return True
