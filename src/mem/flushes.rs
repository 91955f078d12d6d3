// SPDX-License-Identifier: GPL-2.0
//! What was taken out of nested page tables when, where that is kept to hold entries against it.
//!
//! Removals are numbered where the entry itself is changed, those of all VMs together, whatever the walker thinks of
//! the flush that they need. An operation that has ended promises that nobody uses what it has removed: its last
//! number is settled ([`Settled`]).
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Removals of all VMs.
pub struct Removals {
    /// Number of the last one.
    last: AtomicU64,
    /// Up to which all CPUs have forgotten them.
    pub everywhere: AtomicU64,
}

impl Removals {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            last: AtomicU64::new(0),
            everywhere: AtomicU64::new(0),
        }
    }

    /// An entry has given way, or allows less than before. Returns the removal's number.
    pub fn note(&self) -> u64 {
        self.last.fetch_add(1, SeqCst).wrapping_add(1)
    }

    /// Number of the last removal: what a flush that begins now is good for.
    pub fn last(&self) -> u64 {
        self.last.load(SeqCst)
    }

    /// A flush of all CPUs that is good for `last` is over.
    pub fn forgotten_everywhere(&self, last: u64) {
        self.everywhere.fetch_max(last, SeqCst);
    }
}

impl Default for Removals {
    fn default() -> Self {
        Self::new()
    }
}

/// Removals of one VM whose operations have ended: the number of the last one.
pub struct Settled(pub AtomicU64);

impl Settled {
    /// None yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// An operation has ended whose last removal is `number`; 0: it had none.
    pub fn settle(&self, number: u64) {
        self.0.fetch_max(number, SeqCst);
    }
}

impl Default for Settled {
    fn default() -> Self {
        Self::new()
    }
}
