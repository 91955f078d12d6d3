// SPDX-License-Identifier: GPL-2.0

//! What the current task has to attend to.
//!
//! C headers: [`include/linux/sched.h`](srctree/include/linux/sched.h),
//! [`include/linux/entry-virt.h`](srctree/include/linux/entry-virt.h)

use kernel::error::to_result;
use kernel::prelude::*;

use kernel::mm::Mm;
use kernel::sync::aref::ARef;

use super::bindings;
use super::irqflags::IrqGuard;

/// The address space of the current task, or `None` for a kernel thread.
///
/// The reference keeps the `mm_struct`, not the mappings.
pub fn current_mm() -> Option<ARef<Mm>> {
    // SAFETY: The current task's address space lives at least as long as this call.
    let mm = unsafe { bindings::rvmm_current_mm() };
    if mm.is_null() {
        return None;
    }
    // SAFETY: As above; the result takes its own reference.
    Some(unsafe { Mm::from_raw(mm) }.into())
}

/// Whether `mm` is the address space of the current task.
#[inline]
pub fn is_current_mm(mm: &Mm) -> bool {
    // SAFETY: Reads a pointer of the current task.
    core::ptr::eq(unsafe { bindings::rvmm_current_mm() }, mm.as_raw())
}

/// Whether the current task may use devices directly (CAP_SYS_RAWIO).
pub fn capable_rawio() -> bool {
    // SAFETY: Looks at the task's credentials.
    unsafe { bindings::capable(bindings::CAP_SYS_RAWIO as i32) }
}

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

/// How long the current task has waited for a CPU since it began, in nanoseconds.
#[inline]
pub fn run_delay() -> u64 {
    // SAFETY: Reads a word of the current task, which changes only when the task is switched.
    unsafe { bindings::rvmm_run_delay() }
}

/// Lets other tasks run first. Sleeps.
#[inline]
pub fn yield_cpu() {
    // SAFETY: The caller may sleep.
    unsafe { bindings::rvmm_yield() };
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
pub fn xfer_to_guest_pending(_irqs_off: &IrqGuard) -> bool {
    // SAFETY: Reads the task's flags.
    unsafe { bindings::rvmm_xfer_to_guest_pending() }
}

/// As [`xfer_to_guest_pending`] without the promise: the answer may be stale.
#[inline]
pub fn xfer_to_guest_maybe_pending() -> bool {
    // SAFETY: Reads the task's flags.
    unsafe { bindings::rvmm_xfer_to_guest_pending() }
}

/// Last preparation before [`xfer_to_guest_pending`] on CPUs without a tick (deferred RCU wake-ups).
#[inline]
pub fn xfer_to_guest_prepare(_irqs_off: &IrqGuard) {
    // SAFETY: Interrupts are off.
    unsafe { bindings::rvmm_xfer_to_guest_prepare() };
}

/// Handles rescheduling and task work. Sleeps. Errors: `EINTR` when a signal is pending.
pub fn xfer_to_guest_handle() -> Result {
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
            sig: [(mask.0 & !(SIGKILL | SIGSTOP)) as usize],
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
