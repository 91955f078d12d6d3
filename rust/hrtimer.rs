// SPDX-License-Identifier: GPL-2.0

//! One-shot timers on the monotonic clock whose callback may ask for a next expiry at any time.
//!
//! C header: [`include/linux/hrtimer.h`](srctree/include/linux/hrtimer.h)
//!
//! [`kernel::time::hrtimer`] rearms relative to the last expiry only and is owned by the handle that
//! started it; here the object owns its timer and absolute times come from anywhere.

use core::ops::Deref;
use core::pin::Pin;

use kernel::prelude::*;
use kernel::types::Opaque;

use super::bindings;

/// What happens when a [`Timer`] expires.
pub trait TimerCallback: Send + Sync + 'static {
    /// The timer expired.
    ///
    /// Runs in hard-interrupt context with interrupts off. `Some(t)` sets the timer to
    /// expire at `t` (nanoseconds of the monotonic clock).
    fn expired(&self) -> Option<u64>;
}

#[repr(C)]
#[pin_data]
struct Inner<C> {
    /// First, so that the C pointer is also the pointer to `Inner`.
    #[pin]
    timer: Opaque<bindings::hrtimer>,
    callback: C,
}

/// A timer and its callback. Dropping it cancels and waits for a running callback, so the callback itself must
/// not drop the last owner of its timer.
pub struct Timer<C: TimerCallback> {
    inner: Pin<KBox<Inner<C>>>,
}

// SAFETY: Timers belong to no task, and the callback is `Send`.
unsafe impl<C: TimerCallback> Send for Timer<C> {}
// SAFETY: The C functions lock the timer's base; the callback is `Sync`.
unsafe impl<C: TimerCallback> Sync for Timer<C> {}

impl<C: TimerCallback> Timer<C> {
    /// Makes a timer that is not running. Errors: `ENOMEM`.
    pub fn new(callback: C) -> Result<Self> {
        let inner = KBox::pin_init(
            pin_init!(Inner {
                timer <- Opaque::ffi_init(|slot: *mut bindings::hrtimer| {
                    // SAFETY: `slot` is pinned memory for the timer.
                    unsafe {
                        bindings::hrtimer_setup(
                            slot,
                            Some(run::<C>),
                            bindings::CLOCK_MONOTONIC as i32,
                            bindings::hrtimer_mode_HRTIMER_MODE_ABS_HARD,
                        )
                    }
                }),
                callback,
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        Ok(Self { inner })
    }

    /// Sets the timer to expire at `when` (nanoseconds of the monotonic clock), replacing what was set.
    /// A time in the past expires at once. Any context, also the callback.
    #[inline]
    pub fn start_abs_ns(&self, when: u64) {
        // SAFETY: The timer is set up and lives as long as `self`.
        unsafe { start(self.inner.timer.get(), when) };
    }

    /// Stops the timer and waits for a running callback; returns whether it was set. May sleep or spin,
    /// not for the callback itself.
    pub fn cancel(&self) -> bool {
        // SAFETY: The timer is set up and lives as long as `self`.
        unsafe { bindings::hrtimer_cancel(self.inner.timer.get()) == 1 }
    }

    /// As [`Timer::cancel`] without waiting: `None` while the callback runs.
    pub fn try_cancel(&self) -> Option<bool> {
        // SAFETY: The timer is set up and lives as long as `self`.
        match unsafe { bindings::hrtimer_try_to_cancel(self.inner.timer.get()) } {
            -1 => None,
            active => Some(active == 1),
        }
    }
}

impl<C: TimerCallback> Deref for Timer<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.inner.callback
    }
}

impl<C: TimerCallback> Drop for Timer<C> {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// # Safety
///
/// `timer` is set up and live.
unsafe fn start(timer: *mut bindings::hrtimer, when: u64) {
    let when = i64::try_from(when).unwrap_or(i64::MAX);
    // SAFETY: The caller promises a live timer.
    unsafe {
        bindings::hrtimer_start_range_ns(
            timer,
            when,
            0,
            bindings::hrtimer_mode_HRTIMER_MODE_ABS_HARD,
        )
    };
}

/// # Safety
///
/// Called by the kernel with the timer of a live `Inner<C>`.
unsafe extern "C" fn run<C: TimerCallback>(
    timer: *mut bindings::hrtimer,
) -> bindings::hrtimer_restart {
    // SAFETY: `Inner` starts with the timer and lives at least until the callback has returned.
    let inner = unsafe { &*timer.cast::<Inner<C>>() };
    if let Some(next) = inner.callback.expired() {
        // HRTIMER_RESTART cannot be used: it writes the expiry without the base's lock, while another CPU may
        // start the timer at the same time.
        // SAFETY: The timer is live, and starting it from its callback is allowed.
        unsafe { start(timer, next) };
    }
    bindings::hrtimer_restart::HRTIMER_NORESTART
}

/// The monotonic clock in nanoseconds. Any context.
#[inline]
pub fn ktime_get_ns() -> u64 {
    // SAFETY: Callable from any context.
    unsafe { bindings::ktime_get() as u64 }
}
