// SPDX-License-Identifier: GPL-2.0
//! The handshake between nested faults and reset points or forks: which point, reset or fork was the last one, and
//! whether a page has to be saved before it may be mapped writable.
//!
//! ```text
//!   fault                                     point, reset
//!     Rounds::now                               Rounds::begin          (2)
//!     save the page, or find it saved           Gate::wait             (1)
//!     Gate::enter            (1)                take the write rights, flush
//!     Rounds::now            (2)                pages may be saved from now on
//!     map, if the round is the same
//!     Section: drop
//! ```
//!
//! As with invalidations (`invalidations`) both write one word and read the other's, (1) and (2), with sequentially
//! consistent accesses. So the fault sees the new round, and maps nothing, or the point waits for it and finds what it
//! mapped. A fault that reads the new round too early to save its page maps nothing writable.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use crate::linux::atomic::AtomicU64;

/// The time between two points, resets or forks.
///
/// Bit 0: there is a point or a fork, or one is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round(u64);

impl Round {
    /// Whether pages have to be saved before they are written.
    #[inline(always)]
    pub const fn is_armed(self) -> bool {
        self.0 & 1 != 0
    }
}

/// The rounds of a VM.
pub struct Rounds(AtomicU64);

impl Default for Rounds {
    fn default() -> Self {
        Self::new()
    }
}

impl Rounds {
    /// The first one, without a point.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The present one.
    #[inline(always)]
    pub fn now(&self) -> Round {
        Round(self.0.load(Ordering::SeqCst))
    }

    /// Another one begins, in which pages have to be saved before they are written, or not. The caller excludes other
    /// callers.
    pub fn begin(&self, armed: bool) {
        let next = (self.now().0 | 1).wrapping_add(1) | u64::from(armed);
        self.0.store(next, Ordering::SeqCst);
    }
}
