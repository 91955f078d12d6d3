// SPDX-License-Identifier: GPL-2.0

//! Interrupts by their vectors: that of posted interrupts, and one that the processor has handed over.

use crate::linux::bindings;
use crate::linux::irqflags::IrqGuard;
use crate::linux::smp::online;

/// The interrupt vector that notifies a processor of posted interrupts, whose handler does nothing, if the kernel has
/// one.
#[inline]
pub fn posted_vector() -> Option<u8> {
    // SAFETY: Returns a constant.
    match unsafe { bindings::rvmm_posted_vector() } {
        0 => None,
        n => u8::try_from(n).ok(),
    }
}

/// Interrupts CPU `cpu` with [`posted_vector`]. Any context. Nothing happens when the CPU is not online.
#[inline]
pub fn send_posted(cpu: u32) {
    if online(cpu) {
        // SAFETY: The CPU exists; sending to one that just went offline is harmless.
        unsafe { bindings::rvmm_send_posted(cpu) };
    }
}

/// Ends `irqs`, and has interrupt `vector` arrive there and then.
///
/// # Safety
///
/// The processor has taken this interrupt from its local APIC and not delivered it; the kernel uses its IDT (not FRED).
/// Interrupts were on when `irqs` was made.
#[inline]
pub unsafe fn host_interrupt(vector: u8, irqs: IrqGuard) {
    // SAFETY: The caller's promise: the handler finds what it would find after the processor's own delivery. Interrupts
    // are off until now by the guard, which is at its end, so that this is a place where they may be on.
    unsafe { bindings::rvmm_host_interrupt(vector) };
    drop(irqs);
}
