// SPDX-License-Identifier: GPL-2.0
//! The world switch: general registers, VMLAUNCH or VMRESUME, and back (SDM 3C 27.1, 28.1).
//!
//! `VmxVcpu::enter` alone calls it, in a stay: interrupts are off, and the vCPU's mutex is held.

use super::insn::Current;
use super::vmcs;
use crate::x86::cpu::regs::Regs;
use crate::x86::vendor::gprs;
use core::arch::asm;

/// How [`switch`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// By a VM exit (or an entry failure that loads host state, SDM 3C 27.8).
    Exit,
    /// VMfailInvalid: there is no current VMCS.
    FailInvalid,
    /// VMfailValid: the VM-instruction error field says why.
    FailValid,
}

/// Enters the guest of the current VMCS with the general registers of `regs` (RSP, RIP and RFLAGS are in the
/// VMCS), and stores them after the exit.
///
/// `host_rsp` caches HOST_RSP: it and HOST_RIP are written only when the stack depth differs from last time.
/// The cache starts as 0, which no stack pointer equals. HOST_RIP needs no cache of its own as long as there is one
/// copy of the code: the only caller is `VmxVcpu::enter`, which is not inlined and calls it once.
///
/// # Safety
///
/// The current VMCS is a complete one whose launch state `launched` tells, its controls confine the guest, its host
/// state (but RSP and RIP) is what this CPU's kernel needs, and every register that the switch does not
/// cover (MSRs, FPU, debug registers) is the guest's or harmless.
#[inline(always)]
pub(super) unsafe fn switch(
    _: Current<'_>,
    regs: &mut Regs,
    host_rsp: &mut u64,
    launched: bool,
) -> Outcome {
    let outcome: u64;
    // SAFETY: The caller answers for the VMCS. All registers are declared as changed or, RBX and RBP, pushed.
    // The stack is balanced on both ways out: HOST_RSP is RSP after the three pushes. RFLAGS after an exit
    // has DF clear (SDM 3C 28.5.3). VMfail leaves CF or ZF set, so the JBE after the two instructions is always
    // taken when reached from them; label 5, HOST_RIP, is the only way to the code after it. ENDBR there
    // is for the tools that want a landing pad at every address taken.
    //
    // Between exit and return no register still holds a guest value: the stores come first, then zeroes, so
    // that the host cannot be steered by them under speculation.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "push rdi",
            "cmp rsp, [rsi]",
            "je 2f",
            "mov [rsi], rsp",
            "mov eax, {host_rsp}",
            "vmwrite rax, rsp",
            "mov eax, {host_rip}",
            "lea rcx, [rip + 5f]",
            "vmwrite rax, rcx",
            "2:",
            "test edx, edx",
            "mov rax, [rdi]",
            gprs::load!(),
            "mov rdi, [rdi + 56]",
            "jnz 3f",
            "vmlaunch",
            "jmp 4f",
            "3: vmresume",
            "4: jbe 6f",
            "5: endbr64",
            "push rdi",
            "mov rdi, [rsp + 8]",
            "mov [rdi], rax",
            gprs::store!(),
            "pop qword ptr [rdi + 56]",
            "xor eax, eax",
            "jmp 7f",
            "6: mov eax, 1",
            "jc 7f",
            "mov eax, 2",
            "7:",
            gprs::clear!(),
            "xor esi, esi",
            "pop rdi",
            "pop rbx",
            "pop rbp",
            host_rsp = const vmcs::HOST_RSP.encoding(),
            host_rip = const vmcs::HOST_RIP.encoding(),
            inout("rdi") core::ptr::from_mut(regs) => _,
            inout("rsi") core::ptr::from_mut(host_rsp) => _,
            inout("rdx") u64::from(launched) => _,
            out("rax") outcome,
            out("rcx") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("r13") _,
            out("r14") _,
            out("r15") _,
        );
    }
    match outcome {
        0 => Outcome::Exit,
        1 => Outcome::FailInvalid,
        _ => Outcome::FailValid,
    }
}

/// Hands a host NMI to the kernel's handler.
///
/// After an NMI exit NMIs are blocked (SDM 3C 28.5.5), as the handler expects; its IRET unblocks them.
///
/// # Safety
///
/// The last exit of this CPU was an NMI exit, and the kernel's IDT (not FRED) is in use.
#[inline]
pub(super) unsafe fn deliver_nmi(_: Current<'_>) {
    // SAFETY: Gate 2 is the kernel's NMI handler, which works from any context; the kernel has no red zone.
    unsafe { asm!("int 2") };
}
