// SPDX-License-Identifier: GPL-2.0

//! The exception level that the kernel runs at, and how it masks interrupts and reaches their controller.
//!
//! C header: [`arch/arm64/include/asm/virt.h`](srctree/arch/arm64/include/asm/virt.h)

use crate::linux::bindings;
use core::arch::asm;

/// The exception level that this runs at: 2 with the Virtualization Host Extensions (VHE), else 1 (CurrentEL; Arm ARM
/// C5.2.2).
pub fn current_level() -> u8 {
    let level: u64;
    // SAFETY: MRS only copies the register, which every level but 0 may read.
    unsafe { asm!("mrs {}, currentel", out(reg) level, options(nomem, nostack, preserves_flags)) };
    (level >> 2 & 3) as u8
}

/// Whether the interrupt controller has its registers in the processor (GICv3), and the kernel uses them.
pub fn has_gicv3_registers() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_has_gicv3_registers() }
}

/// Whether the kernel masks interrupts by their priority (pseudo-NMI), not by PSTATE.
pub fn masks_by_priority() -> bool {
    // SAFETY: Reads what the kernel found while it booted.
    unsafe { bindings::rvmm_masks_by_priority() }
}
