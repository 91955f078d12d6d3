// SPDX-License-Identifier: GPL-2.0
//! The handshake between nested faults and the host's changes of user memory: which changes are under way, which vCPUs
//! are about to map what they have found, and which translations have been taken away without a flush so far.
//!
//! ```text
//!   fault                                     invalidation
//!     Gate::enter            (1)                Invalidations::begin   (2)
//!     Invalidations::covers  (2)                Gate::wait             (1)
//!     map                                       unmap, flush
//!     Section: drop                             the host changes its page tables
//!                                               Invalidations::end
//! ```
//!
//! Both write one word and read the other's, (1) and (2), with sequentially consistent accesses, which have one order.
//! So the fault sees the range, and maps nothing, or the invalidation sees the fault, waits until it is over, and then
//! finds what it mapped. Neither takes a lock of the other's.
#![forbid(unsafe_code)]

use core::cmp;
use core::sync::atomic::Ordering;

use crate::linux::atomic::{spin_loop, AtomicU32, AtomicU64};

/// Ranges that are told apart.
const RANGES: usize = 16;
/// Bit of [`Invalidations::used`] for all others.
const HULL: u32 = 1 << RANGES;

/// A range of user addresses.
struct Range {
    start: AtomicU64,
    end: AtomicU64,
}

impl Range {
    #[allow(clippy::declare_interior_mutable_const)] // To begin with; used once for each place.
    const EMPTY: Self = Self {
        start: AtomicU64::new(0),
        end: AtomicU64::new(0),
    };

    fn set(&self, start: u64, end: u64) {
        self.start.store(start, Ordering::Release);
        self.end.store(end, Ordering::Release);
    }

    fn get(&self) -> (u64, u64) {
        (
            self.start.load(Ordering::Acquire),
            self.end.load(Ordering::Acquire),
        )
    }

    fn contains(&self, address: u64) -> bool {
        let (start, end) = self.get();
        start <= address && address < end
    }
}

/// The host's changes of user memory that are under way, as those see them who handle faults.
///
/// Begun and ended under a lock, by [`Registry`]; read without one. A reader that meets a range while it is put in or
/// taken out may see half of it. That does no harm: whoever puts a range in looks for the reader afterwards
/// ([`Gate::wait`]), and what a range that is taken out stood for has happened, and has been counted, before.
pub struct Invalidations {
    /// Which of `ranges` are under way, and [`HULL`].
    used: AtomicU32,
    ranges: [Range; RANGES],
    /// Spans all ranges for which there was no room, until none of these is left.
    hull: Range,
    /// Those that ended and concerned memory of the VM.
    ended: AtomicU64,
}

impl Default for Invalidations {
    fn default() -> Self {
        Self::new()
    }
}

impl Invalidations {
    /// None is under way.
    pub const fn new() -> Self {
        Self {
            used: AtomicU32::new(0),
            ranges: [const { Range::EMPTY }; RANGES],
            hull: Range::EMPTY,
            ended: AtomicU64::new(0),
        }
    }

    /// Whether `address` may be in a range under way. In a [`Section`], in which no range of it begins unseen and ends.
    #[inline]
    pub fn covers(&self, _section: &Section<'_>, address: u64) -> bool {
        let used = self.used.load(Ordering::SeqCst);
        used != 0 && self.any_covers(used, address)
    }

    fn any_covers(&self, used: u32, address: u64) -> bool {
        let mut ranges = self.ranges.iter().enumerate();
        ranges.any(|(i, r)| used.wrapping_shr(i as u32) & 1 != 0 && r.contains(address))
            || used & HULL != 0 && self.hull.contains(address)
    }

    /// How many have ended. A page that was looked up after the count was read may be mapped if, in a [`Section`], its
    /// address is not covered, and then the count is the same.
    #[inline]
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    /// One that concerned memory of the VM is about to be taken out.
    pub fn count_ended(&self) {
        self.ended.fetch_add(1, Ordering::Release);
    }
}

/// Who puts ranges in and takes them out; the owner keeps it under a lock.
pub struct Registry {
    /// Ranges in the hull.
    overflowed: u32,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// Of an [`Invalidations::new`].
    pub const fn new() -> Self {
        Self { overflowed: 0 }
    }

    /// The range from `start` to `end` is under way from now on.
    pub fn begin(&mut self, of: &Invalidations, start: u64, end: u64) {
        let used = of.used.load(Ordering::Relaxed);
        let free = used.trailing_ones() as usize;
        let bit = match of.ranges.get(free) {
            Some(r) => {
                r.set(start, end);
                1u32.wrapping_shl(free as u32)
            }
            None if self.overflowed == 0 => {
                self.overflowed = 1;
                of.hull.set(start, end);
                HULL
            }
            None => {
                self.overflowed = self.overflowed.saturating_add(1);
                let (s, e) = of.hull.get();
                of.hull.set(cmp::min(s, start), cmp::max(e, end));
                HULL
            }
        };
        of.used.fetch_or(bit, Ordering::SeqCst);
    }

    /// One range from `start` to `end` is not under way any more.
    pub fn end(&mut self, of: &Invalidations, start: u64, end: u64) {
        let used = of.used.load(Ordering::Relaxed);
        let mut ranges = of.ranges.iter().enumerate();
        let bit = match ranges
            .find(|(i, r)| used.wrapping_shr(*i as u32) & 1 != 0 && r.get() == (start, end))
        {
            Some((i, _)) => 1u32.wrapping_shl(i as u32),
            None => {
                self.overflowed = self.overflowed.saturating_sub(1);
                if self.overflowed != 0 {
                    return;
                }
                HULL
            }
        };
        of.used.fetch_and(!bit, Ordering::SeqCst);
    }
}

/// Says whether a vCPU is about to map a page that it has found. One thread enters at a time.
pub struct Gate(AtomicU32);

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// Outside.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Begins a section, which is short, does not sleep, and takes no lock: others spin until it is over. The caller
    /// excludes other callers, and has preemption or interrupts off.
    #[inline]
    pub fn enter(&self) -> Section<'_> {
        let inside = self.0.load(Ordering::Relaxed).wrapping_add(1);
        self.0.swap(inside, Ordering::SeqCst);
        Section {
            gate: &self.0,
            inside,
        }
    }

    /// Returns after a section that is under way has ended. True if there was one.
    #[inline]
    pub fn wait(&self) -> bool {
        let seen = self.0.load(Ordering::SeqCst);
        if seen & 1 == 0 {
            return false;
        }
        while self.0.load(Ordering::Acquire) == seen {
            spin_loop();
        }
        true
    }
}

/// Between looking at [`Invalidations`] and having mapped.
#[must_use = "the section ends when this is dropped"]
pub struct Section<'a> {
    gate: &'a AtomicU32,
    inside: u32,
}

impl Drop for Section<'_> {
    #[inline]
    fn drop(&mut self) {
        let outside = self.inside.wrapping_add(1);
        self.gate.store(outside, Ordering::Release);
    }
}

/// Operations that take translations or rights away and have not flushed them yet.
///
/// Who finds that there is nothing left to take away may rely on it only when that has been flushed. So an operation
/// counts itself in before it takes anything away, and flushes at its end if it has taken something away, or another
/// one is counted in.
pub struct Unflushed(AtomicU32);

impl Default for Unflushed {
    fn default() -> Self {
        Self::new()
    }
}

impl Unflushed {
    /// None.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// An operation begins.
    #[inline]
    pub fn begin(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether there is an operation besides the one that asks.
    #[inline]
    pub fn others(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 1
    }

    /// The operation has flushed, if it had to.
    #[inline]
    pub fn end(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
