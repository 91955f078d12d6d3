// SPDX-License-Identifier: GPL-2.0

//! The processor's masks of interrupts; [`irqflags`](crate::linux::irqflags) has what to use.
//!
//! They are what the kernel masks by unless it does so by priority ([`masks_by_priority`](super::el2)), which whoever
//! loads on it has to refuse.

use core::arch::asm;

/// PSTATE.I as DAIF has it (Arm ARM C5.2.3).
const MASK_I: u64 = 1 << 7;

/// Returns DAIF.
#[inline(always)]
pub fn flags() -> u64 {
    let flags: u64;
    // SAFETY: MRS only copies the register.
    unsafe { asm!("mrs {}, daif", out(reg) flags, options(nomem, nostack, preserves_flags)) };
    flags
}

/// Whether interrupts are on by what [`flags`] gave.
#[inline(always)]
pub fn are_on(flags: u64) -> bool {
    flags & MASK_I == 0
}

/// Turns them off, IRQ and FIQ as the kernel does.
#[inline(always)]
pub fn off() {
    // SAFETY: Only sets the two masks. Not `nomem`: memory accesses must not move across it.
    unsafe { asm!("msr daifset, #3", options(nostack, preserves_flags)) };
}

/// Turns them on.
///
/// # Safety
///
/// They may come on here.
#[inline(always)]
pub unsafe fn on() {
    // SAFETY: The caller promises that interrupts may come on here.
    unsafe { asm!("msr daifclr, #3", options(nostack, preserves_flags)) };
}
