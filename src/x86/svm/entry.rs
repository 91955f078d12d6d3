// SPDX-License-Identifier: GPL-2.0
//! The world switch, `switch.S`: VMRUN with the registers that it does not switch (APM 2 15.5).
//!
//! `vcpu` calls [`vmrun`] for each entry and [`vmsave`] once per stay, with interrupts off.

use crate::linux::irqflags::IrqsOff;
use crate::x86::cpu::regs::Regs;
use crate::x86::mitigate::SpecCtrl;
use core::arch::asm;

extern "C" {
    fn rvmm_svm_switch();
}

// `switch.h` addresses registers by their encoding.
const _: () = assert!(core::mem::offset_of!(Regs, gpr) == 0);

/// Runs the guest described by the VMCB at `vmcb` until the next #VMEXIT.
///
/// All general registers but RAX and RSP, which live in the VMCB, come from and go to `regs`; IA32_SPEC_CTRL those of
/// `spec_ctrl`, where the processor does not virtualise it. FS, GS, TR, LDTR and the SYSCALL and SYSENTER MSRs are
/// exchanged by VMLOAD and VMSAVE; the host's come back from `host`, where VMSAVE has put them at the start of the
/// stay. On return no value of the guest's is left in a register, what it has taught the predictors does not reach the
/// host, and NMIs that GIF held back have been delivered; interrupts are pending, since RFLAGS.IF is clear.
///
/// # Safety
///
/// EFER.SVME is set and VM_HSAVE_PA points to a save area of this CPU; `vmcb` is the physical address of a VMCB whose
/// intercepts keep the guest contained (INTR, NMI, SMI-neutral, SHUTDOWN, VMRUN, all ports, all MSRs that are not
/// switched) and whose nested page tables map only memory of this guest; `host` is a page that VMSAVE filled on this
/// CPU in this stay.
#[inline]
pub(super) unsafe fn vmrun(
    _irqs_off: IrqsOff<'_>,
    vmcb: u64,
    host: u64,
    regs: &mut Regs,
    spec_ctrl: &mut SpecCtrl,
) {
    // SAFETY: The caller promises a VMCB that contains the guest. The function takes these registers, keeps RBX, RBP
    // and RSP, and leaves GIF set and IF clear, as found; all other registers are declared as changed, so that it need
    // not save them. It reads and writes the two references only.
    unsafe {
        asm!(
            "call {}",
            sym rvmm_svm_switch,
            inout("rdi") core::ptr::from_mut(regs) => _,
            inout("rsi") core::ptr::from_mut(spec_ctrl) => _,
            inout("r8") vmcb => _,
            inout("r9") host => _,
            out("rax") _,
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
}

/// Saves the host's FS, GS, TR, LDTR and SYSCALL/SYSENTER state into the page at `host` (APM 2 15.5.2).
///
/// # Safety
///
/// EFER.SVME is set; `host` is the physical address of a page that nothing else uses.
#[inline]
pub(super) unsafe fn vmsave(host: u64) {
    // SAFETY: The caller promises SVME and the page, which is all that VMSAVE writes.
    unsafe { asm!("vmsave rax", in("rax") host, options(nostack, preserves_flags)) }
}
