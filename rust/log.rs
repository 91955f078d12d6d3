// SPDX-License-Identifier: GPL-2.0

//! Rate-limited messages.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::hrtimer;

/// Lets at most [`RateLimit::BURST`] events through in each interval of [`RateLimit::INTERVAL_NS`].
pub struct RateLimit {
    begin: AtomicU64,
    count: AtomicU32,
}

impl RateLimit {
    /// Events per interval, as the kernel's default.
    pub const BURST: u32 = 10;
    /// Length of an interval, as the kernel's default.
    pub const INTERVAL_NS: u64 = 5_000_000_000;

    /// Starts with a full allowance.
    pub const fn new() -> Self {
        Self {
            begin: AtomicU64::new(0),
            count: AtomicU32::new(0),
        }
    }

    /// Whether one more event may pass. Any context. Races let a few more through at an interval's start.
    pub fn allow(&self) -> bool {
        let now = hrtimer::ktime_get_ns();
        let begin = self.begin.load(Ordering::Relaxed);
        if begin == 0 || now.wrapping_sub(begin) >= Self::INTERVAL_NS {
            self.begin.store(now.max(1), Ordering::Relaxed);
            self.count.store(0, Ordering::Relaxed);
        }
        self.count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < Self::BURST).then_some(n + 1)
            })
            .is_ok()
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// [`pr_warn!`](kernel::pr_warn) that passes at most ten messages in five seconds from each place.
#[macro_export]
macro_rules! pr_warn_ratelimited {
    ($($arg:tt)*) => {{
        static LIMIT: $crate::linux::log::RateLimit = $crate::linux::log::RateLimit::new();
        if LIMIT.allow() {
            ::kernel::pr_warn!($($arg)*);
        }
    }};
}

/// [`pr_err!`](kernel::pr_err) that passes at most ten messages in five seconds from each place.
#[macro_export]
macro_rules! pr_err_ratelimited {
    ($($arg:tt)*) => {{
        static LIMIT: $crate::linux::log::RateLimit = $crate::linux::log::RateLimit::new();
        if LIMIT.allow() {
            ::kernel::pr_err!($($arg)*);
        }
    }};
}
