// SPDX-License-Identifier: GPL-2.0

//! One task waits, anyone wakes it, from any context.
//!
//! C header: [`include/linux/rcuwait.h`](srctree/include/linux/rcuwait.h)

use core::sync::atomic::{AtomicBool, Ordering};

use kernel::prelude::*;
use kernel::types::Opaque;

use super::{bindings, sched};

/// A place where one task at a time sleeps.
///
/// The waker makes its condition true first and calls [`WaitCell::wake`] then; no wake-up is lost.
pub struct WaitCell {
    inner: Opaque<bindings::rcuwait>,
    waiting: AtomicBool,
}

// SAFETY: The structure holds a pointer that C protects by RCU.
unsafe impl Send for WaitCell {}
// SAFETY: Waking is safe from anywhere, and `waiting` lets only one task wait.
unsafe impl Sync for WaitCell {}

impl WaitCell {
    /// Makes a place where nobody waits.
    pub fn new() -> Self {
        Self {
            // `rcuwait_init` sets the one field to null.
            inner: Opaque::zeroed(),
            waiting: AtomicBool::new(false),
        }
    }

    /// Sleeps until `condition` is true. It is looked at before sleeping and after each wake-up; it must not
    /// sleep itself. Returns whether the task slept.
    ///
    /// Errors: `EINTR` when a signal is pending and the condition is not true; `EBUSY` when another task
    /// waits here.
    pub fn wait_interruptible(&self, mut condition: impl FnMut() -> bool) -> Result<bool> {
        if condition() {
            return Ok(false);
        }
        if self.waiting.swap(true, Ordering::Acquire) {
            return Err(EBUSY);
        }
        let w = self.inner.get();
        // SAFETY: The structure is valid, and only one task gets here at a time.
        unsafe { bindings::rvmm_rcuwait_prepare(w) };
        let mut slept = false;
        let result = loop {
            // SAFETY: Sets the current task's own state, with the barrier that pairs with `wake`.
            unsafe { bindings::rvmm_set_task_interruptible() };
            if condition() {
                break Ok(slept);
            }
            if sched::signal_pending() {
                break Err(EINTR);
            }
            // SAFETY: The caller may sleep.
            unsafe { bindings::schedule() };
            slept = true;
        };
        // SAFETY: Pairs with the preparation; sets the task running again.
        unsafe { bindings::finish_rcuwait(w) };
        self.waiting.store(false, Ordering::Release);
        result
    }

    /// Wakes the task that waits here, if any; returns whether it slept. Any context.
    #[inline]
    pub fn wake(&self) -> bool {
        // SAFETY: The structure is valid; C protects the task by RCU.
        unsafe { bindings::rcuwait_wake_up(self.inner.get()) != 0 }
    }
}

impl Default for WaitCell {
    fn default() -> Self {
        Self::new()
    }
}
