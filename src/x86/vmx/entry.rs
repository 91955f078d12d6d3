// SPDX-License-Identifier: GPL-2.0
//! The world switch, `switch.S`: VMLAUNCH or VMRESUME, and back (SDM 3C 27.1, 28.1).
//!
//! `VmxVcpu::enter` alone calls it, in a stay: interrupts are off, and the vCPU's mutex is held.

use super::insn::Current;
use crate::x86::cpu::regs::Regs;
use crate::x86::mitigate::SpecCtrl;
use core::arch::asm;

extern "C" {
    fn rvmm_vmx_switch();
    /// Where VM exits come back, in the middle of `rvmm_vmx_switch`.
    fn rvmm_vmx_exit();
}

// `switch.h` addresses registers by their encoding.
const _: () = assert!(core::mem::offset_of!(Regs, gpr) == 0);

/// HOST_RIP, the same for every VMCS.
pub(super) fn host_rip() -> u64 {
    rvmm_vmx_exit as usize as u64
}

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
/// VMCS), and stores them after the exit; so with IA32_SPEC_CTRL. No value of the guest's is left in a register, and
/// what the guest has taught the predictors does not reach the host.
///
/// `host_rsp` caches HOST_RSP, which is written only when the stack depth differs from last time. The cache starts as
/// 0, which no stack pointer equals.
///
/// # Safety
///
/// The current VMCS is a complete one whose launch state `launched` tells, its controls confine the guest, its host
/// state (but RSP) is what this CPU's kernel needs, with [`host_rip`], and every register that the switch does not
/// cover (MSRs, FPU, debug registers) is the guest's or harmless.
#[inline(always)]
pub(super) unsafe fn switch(
    _: Current<'_>,
    regs: &mut Regs,
    spec_ctrl: &mut SpecCtrl,
    host_rsp: &mut u64,
    launched: bool,
) -> Outcome {
    let outcome: u32;
    // SAFETY: The caller answers for the VMCS. The function takes these registers and keeps RBX, RBP and RSP; all
    // others are declared as changed, so that it need not save them. It reads and writes the three references only.
    unsafe {
        asm!(
            "call {}",
            sym rvmm_vmx_switch,
            inout("rdi") core::ptr::from_mut(regs) => _,
            inout("rsi") core::ptr::from_mut(spec_ctrl) => _,
            inout("r8") core::ptr::from_mut(host_rsp) => _,
            inout("r9d") u32::from(launched) => _,
            out("eax") outcome,
            out("rcx") _,
            out("rdx") _,
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
