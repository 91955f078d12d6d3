// SPDX-License-Identifier: GPL-2.0
//! The world switch: VMRUN with the registers that it does not switch (APM 2 15.5).
//!
//! `vcpu` calls [`vmrun`] for each entry and [`vmsave`] once per stay, with interrupts off.

use crate::x86::cpu::regs::Regs;
use core::arch::asm;
use core::mem::offset_of;

/// Runs the guest described by the VMCB at `vmcb` until the next #VMEXIT.
///
/// All general registers but RAX and RSP, which live in the VMCB, come from and go to `regs`.
/// FS, GS, TR, LDTR and the SYSCALL and SYSENTER MSRs are exchanged by VMLOAD and VMSAVE; the host's come back from
/// `host`, where VMSAVE has put them at the start of the stay. NMIs and interrupts that were held back by GIF are
/// delivered (NMI) or pending (interrupts, since RFLAGS.IF is clear) on return.
///
/// # Safety
///
/// EFER.SVME is set and VM_HSAVE_PA points to a save area of this CPU; interrupts are off; `vmcb` is the physical
/// address of a VMCB whose intercepts keep the guest contained (INTR, NMI, SMI-neutral, SHUTDOWN, VMRUN, all ports,
/// all MSRs that are not switched) and whose nested page tables map only memory of this guest; `host` is a page that
/// VMSAVE filled on this CPU in this stay.
#[inline]
pub(super) unsafe fn vmrun(vmcb: u64, host: u64, regs: &mut Regs) {
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
            "mov rcx, [rdi + {rcx}]",
            "mov rdx, [rdi + {rdx}]",
            "mov rbx, [rdi + {rbx}]",
            "mov rbp, [rdi + {rbp}]",
            "mov rsi, [rdi + {rsi}]",
            "mov r8,  [rdi + {r8}]",
            "mov r9,  [rdi + {r9}]",
            "mov r10, [rdi + {r10}]",
            "mov r11, [rdi + {r11}]",
            "mov r12, [rdi + {r12}]",
            "mov r13, [rdi + {r13}]",
            "mov r14, [rdi + {r14}]",
            "mov r15, [rdi + {r15}]",
            "mov rdi, [rdi + {rdi}]",
            "vmrun rax",
            "vmsave rax",
            "push rdi",
            "mov rdi, [rsp + 8]",
            "mov [rdi + {rcx}], rcx",
            "mov [rdi + {rdx}], rdx",
            "mov [rdi + {rbx}], rbx",
            "mov [rdi + {rbp}], rbp",
            "mov [rdi + {rsi}], rsi",
            "mov [rdi + {r8}],  r8",
            "mov [rdi + {r9}],  r9",
            "mov [rdi + {r10}], r10",
            "mov [rdi + {r11}], r11",
            "mov [rdi + {r12}], r12",
            "mov [rdi + {r13}], r13",
            "mov [rdi + {r14}], r14",
            "mov [rdi + {r15}], r15",
            "pop rcx",
            "mov [rdi + {rdi}], rcx",
            "mov rax, [rsp + 8]",
            "vmload rax",
            "cli",
            // No guest value stays in a register that speculation could use as an address.
            "xor ecx, ecx",
            "xor edx, edx",
            "xor r8d, r8d",
            "xor r9d, r9d",
            "xor r10d, r10d",
            "xor r11d, r11d",
            "xor r12d, r12d",
            "xor r13d, r13d",
            "xor r14d, r14d",
            "xor r15d, r15d",
            "pop rdi",
            "pop rsi",
            "pop rbx",
            "pop rbp",
            "stgi",
            rcx = const offset_of!(Regs, gpr) + 8,
            rdx = const offset_of!(Regs, gpr) + 2 * 8,
            rbx = const offset_of!(Regs, gpr) + 3 * 8,
            rbp = const offset_of!(Regs, gpr) + 5 * 8,
            rsi = const offset_of!(Regs, gpr) + 6 * 8,
            rdi = const offset_of!(Regs, gpr) + 7 * 8,
            r8 = const offset_of!(Regs, gpr) + 8 * 8,
            r9 = const offset_of!(Regs, gpr) + 9 * 8,
            r10 = const offset_of!(Regs, gpr) + 10 * 8,
            r11 = const offset_of!(Regs, gpr) + 11 * 8,
            r12 = const offset_of!(Regs, gpr) + 12 * 8,
            r13 = const offset_of!(Regs, gpr) + 13 * 8,
            r14 = const offset_of!(Regs, gpr) + 14 * 8,
            r15 = const offset_of!(Regs, gpr) + 15 * 8,
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

/// Hands a machine check that the guest was stopped by to the host's handler.
///
/// # Safety
///
/// The IDT is in use (not FRED), interrupts are off, and a #MC intercept was the reason of the last #VMEXIT.
#[inline]
pub(super) unsafe fn host_machine_check() {
    // SAFETY: Vector 18 is the host's machine-check gate, reachable by INT from CPL 0; its handler reads the banks.
    unsafe { asm!("int 18") }
}
