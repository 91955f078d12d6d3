// SPDX-License-Identifier: GPL-2.0
//! The world switch: VMRUN with the registers that it does not switch (APM 2 15.5).
//!
//! `vcpu` calls [`vmrun`] for each entry and [`vmsave`] once per stay, with interrupts off.

use crate::linux::irqflags::IrqsOff;
use crate::x86::cpu::regs::Regs;
use crate::x86::vendor::gprs;
use core::arch::asm;

/// Runs the guest described by the VMCB at `vmcb` until the next #VMEXIT.
///
/// All general registers but RAX and RSP, which live in the VMCB, come from and go to `regs`.
/// FS, GS, TR, LDTR and the SYSCALL and SYSENTER MSRs are exchanged by VMLOAD and VMSAVE; the host's come back from
/// `host`, where VMSAVE has put them at the start of the stay. NMIs and interrupts that were held back by GIF are
/// delivered (NMI) or pending (interrupts, since RFLAGS.IF is clear) on return.
///
/// # Safety
///
/// EFER.SVME is set and VM_HSAVE_PA points to a save area of this CPU; `vmcb` is the physical address of a VMCB whose
/// intercepts keep the guest contained (INTR, NMI, SMI-neutral, SHUTDOWN, VMRUN, all ports, all MSRs that are not
/// switched) and whose nested page tables map only memory of this guest; `host` is a page that VMSAVE filled on this
/// CPU in this stay.
#[inline]
pub(super) unsafe fn vmrun(_irqs_off: IrqsOff<'_>, vmcb: u64, host: u64, regs: &mut Regs) {
    // SAFETY: The caller promises a VMCB that contains the guest. The asm block saves RBX and RBP itself, declares
    // every other register as clobbered, restores the stack pointer, and leaves GIF set and IF clear, as found.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "push rsi",
            "push rdi",
            // From here on NMIs wait too. With GIF clear, IF = 1 only means that a host interrupt causes #VMEXIT.
            "clgi",
            "sti",
            "vmload rax",
            gprs::load!(),
            "mov rdi, [rdi + 56]",
            "vmrun rax",
            "vmsave rax",
            "push rdi",
            "mov rdi, [rsp + 8]",
            gprs::store!(),
            "pop rcx",
            "mov [rdi + 56], rcx",
            "mov rax, [rsp + 8]",
            "vmload rax",
            "cli",
            gprs::clear!(),
            "pop rdi",
            "pop rsi",
            "pop rbx",
            "pop rbp",
            "stgi",
            inout("rax") vmcb => _,
            inout("rdi") core::ptr::from_mut(regs) => _,
            inout("rsi") host => _,
            out("rcx") _,
            out("rdx") _,
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
