// SPDX-License-Identifier: GPL-2.0

//! Preemption control and the number of the running CPU.
//!
//! C header: [`include/linux/preempt.h`](srctree/include/linux/preempt.h)

use core::marker::PhantomData;

use super::bindings;

/// Evidence that the current task stays on its CPU for as long as the value is borrowed.
///
/// # Safety
///
/// While a value of the type exists, the task that created it cannot migrate to another CPU, and the
/// value cannot be sent to another task.
pub unsafe trait PinsCpu {
    /// The CPU that the task is pinned to.
    #[inline(always)]
    fn cpu(&self) -> u32 {
        raw_cpu()
    }
}

/// Preemption is off while the guard lives.
///
/// # Invariants
///
/// The preemption count includes this guard.
#[must_use = "the guard allows preemption again when dropped"]
pub struct PreemptGuard {
    /// The count belongs to one task.
    _not_send: PhantomData<*mut ()>,
}

impl PreemptGuard {
    /// Turns preemption off (`preempt_disable`).
    #[inline(always)]
    pub fn new() -> Self {
        // SAFETY: Raising the count is always allowed; `drop` lowers it again.
        unsafe { bindings::rvmm_preempt_disable() };
        // INVARIANT: The shim raised the count.
        Self {
            _not_send: PhantomData,
        }
    }
}

impl Default for PreemptGuard {
    #[inline(always)]
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PreemptGuard {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: By the invariant the count includes this guard.
        unsafe { bindings::rvmm_preempt_enable() };
    }
}

// SAFETY: With preemption off the task stays on its CPU; the guard is not `Send`.
unsafe impl PinsCpu for PreemptGuard {}

/// The number of the CPU that runs this, which may be stale at once unless the task is pinned.
#[inline(always)]
pub fn raw_cpu() -> u32 {
    // SAFETY: The shim reads one per-CPU word.
    unsafe { bindings::rvmm_raw_cpu() }
}
