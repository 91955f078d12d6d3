// SPDX-License-Identifier: GPL-2.0

//! The processor's flag for maskable interrupts; [`irqflags`](crate::linux::irqflags) has what to use.

use core::arch::asm;

/// RFLAGS.IF (SDM 1 3.4.3).
const FLAG_IF: u64 = 1 << 9;

/// Returns RFLAGS.
#[inline(always)]
pub fn flags() -> u64 {
    let flags: u64;
    // SAFETY: PUSHF/POP only copies RFLAGS to a register; it uses the stack below RSP, and the kernel
    // has no red zone.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags
}

/// Whether maskable interrupts are on by what [`flags`] gave.
#[inline(always)]
pub fn are_on(flags: u64) -> bool {
    flags & FLAG_IF != 0
}

/// Turns them off.
#[inline(always)]
pub fn off() {
    // SAFETY: CLI at CPL 0 only clears IF. Not `nomem`: memory accesses must not move across it.
    unsafe { asm!("cli", options(nostack, preserves_flags)) };
}

/// Turns them on.
///
/// # Safety
///
/// They may come on here.
#[inline(always)]
pub unsafe fn on() {
    // SAFETY: The caller promises that interrupts may come on here.
    unsafe { asm!("sti", options(nostack, preserves_flags)) };
}
