// SPDX-License-Identifier: GPL-2.0

//! What the current task has to attend to.
//!
//! C headers: [`include/linux/sched.h`](srctree/include/linux/sched.h),
//! [`include/linux/entry-virt.h`](srctree/include/linux/entry-virt.h)

use kernel::error::to_result;
use kernel::prelude::*;

use super::bindings;
use super::irqflags::IrqGuard;

/// Whether another task should run on this CPU.
#[inline]
pub fn need_resched() -> bool {
    // SAFETY: Reads the task's flags.
    unsafe { bindings::rvmm_need_resched() }
}

/// Whether a signal waits for the current task.
#[inline]
pub fn signal_pending() -> bool {
    // SAFETY: Reads the task's flags.
    unsafe { bindings::rvmm_signal_pending() }
}

/// Whether the current task is being killed.
#[inline]
pub fn fatal_signal_pending() -> bool {
    // SAFETY: Reads the task's flags and pending set.
    unsafe { bindings::rvmm_fatal_signal_pending() }
}

/// Lets another task run if one should. Sleeps.
#[inline]
pub fn cond_resched() {
    // SAFETY: The caller may sleep.
    unsafe { bindings::rvmm_cond_resched() };
}

/// Whether signals, rescheduling or task work wait, which have to be handled before a long stay away from
/// the kernel. The last look is with interrupts off: what comes later raises an interrupt.
#[inline]
pub fn guest_work_pending(_irqs_off: &IrqGuard) -> bool {
    // SAFETY: Reads the task's flags.
    unsafe { bindings::rvmm_xfer_to_guest_pending() }
}

/// As [`guest_work_pending`] without the promise: the answer may be stale.
#[inline]
pub fn guest_work_maybe_pending() -> bool {
    // SAFETY: Reads the task's flags.
    unsafe { bindings::rvmm_xfer_to_guest_pending() }
}

/// Last preparation before [`guest_work_pending`] on CPUs without a tick (deferred RCU wake-ups).
#[inline]
pub fn guest_work_prepare(_irqs_off: &IrqGuard) {
    // SAFETY: Interrupts are off.
    unsafe { bindings::rvmm_xfer_to_guest_prepare() };
}

/// Handles rescheduling and task work. Sleeps. Errors: `EINTR` when a signal is pending.
pub fn guest_work_handle() -> Result {
    // SAFETY: Called with interrupts on from a task that may sleep.
    to_result(unsafe { bindings::xfer_to_guest_mode_handle_work() })
}

/// A signal mask in the kernel's layout: bit `n` blocks signal `n + 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalMask(pub u64);

/// The current task's signal mask is another one while the guard lives.
pub struct SignalMaskGuard {
    old: bindings::sigset_t,
}

impl SignalMaskGuard {
    /// Sets the current task's mask to `mask`; SIGKILL and SIGSTOP stay deliverable.
    pub fn new(mask: SignalMask) -> Self {
        const SIGKILL: u64 = 1 << 8;
        const SIGSTOP: u64 = 1 << 18;
        let set = bindings::sigset_t {
            sig: [(mask.0 & !(SIGKILL | SIGSTOP)) as _],
        };
        let mut old = bindings::sigset_t { sig: [0] };
        // SAFETY: Both sets are valid for the call.
        unsafe { bindings::rvmm_sigmask_set(&set, &mut old) };
        Self { old }
    }
}

impl Drop for SignalMaskGuard {
    fn drop(&mut self) {
        let mut ignored = bindings::sigset_t { sig: [0] };
        // SAFETY: Both sets are valid for the call.
        unsafe { bindings::rvmm_sigmask_set(&self.old, &mut ignored) };
    }
}
