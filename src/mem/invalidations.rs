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

/// What is known of a range under way.
#[derive(Clone, Copy)]
struct Known {
    /// Slots that had come before the look for those that meet it.
    came: u64,
    /// One met it.
    met: bool,
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
    /// Slots that have come, or are about to.
    came: AtomicU64,
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
            came: AtomicU64::new(0),
        }
    }

    /// A slot is about to come, at a place where there was none: before it is published.
    pub fn slot_comes(&self) {
        self.came.fetch_add(1, Ordering::SeqCst);
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
    known: [Known; RANGES],
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// Of an [`Invalidations::new`].
    pub const fn new() -> Self {
        Self {
            overflowed: 0,
            known: [Known {
                came: 0,
                met: false,
            }; RANGES],
        }
    }

    /// The range from `start` to `end` is under way from now on. The caller looks then which slots meet it, and says so
    /// if one does ([`Registry::met`]).
    pub fn begin(&mut self, of: &Invalidations, start: u64, end: u64) {
        // Before the look.
        let came = of.came.load(Ordering::SeqCst);
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
        if let Some(known) = self.known.get_mut(free) {
            *known = Known { came, met: false };
        }
        of.used.fetch_or(bit, Ordering::SeqCst);
    }

    /// A slot meets the range from `start` to `end`, which is under way.
    ///
    /// Of several equal ranges ends take out any. So all of them are told; and one that is taken out untold, because it
    /// began later or was looked at later, leaves a told one, which covers the range until it ends as well.
    pub fn met(&mut self, of: &Invalidations, start: u64, end: u64) {
        let used = of.used.load(Ordering::Relaxed);
        for (i, (r, known)) in of.ranges.iter().zip(&mut self.known).enumerate() {
            known.met |= used.wrapping_shr(i as u32) & 1 != 0 && r.get() == (start, end);
        }
    }

    /// Number of a range from `start` to `end` under way, if it is told apart.
    fn place(of: &Invalidations, start: u64, end: u64) -> Option<usize> {
        let used = of.used.load(Ordering::Relaxed);
        let mut ranges = of.ranges.iter().enumerate();
        ranges
            .find(|(i, r)| used.wrapping_shr(*i as u32) & 1 != 0 && r.get() == (start, end))
            .map(|(i, _)| i)
    }

    /// Takes one range from `start` to `end` out if no slot met it and none has come since it was looked at. False: it
    /// is still under way, and the caller looks again before [`Registry::end`].
    pub fn end_calm(&mut self, of: &Invalidations, start: u64, end: u64) -> bool {
        let Some(place) = Self::place(of, start, end) else {
            return false;
        };
        let came = of.came.load(Ordering::SeqCst);
        let calm = self
            .known
            .get(place)
            .is_some_and(|known| !known.met && known.came == came);
        if calm {
            let bit = 1u32.wrapping_shl(place as u32);
            of.used.fetch_and(!bit, Ordering::SeqCst);
        }
        calm
    }

    /// One range from `start` to `end` is not under way any more.
    pub fn end(&mut self, of: &Invalidations, start: u64, end: u64) {
        let bit = match Self::place(of, start, end) {
            Some(i) => 1u32.wrapping_shl(i as u32),
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

#[cfg(test)]
mod tests {
    use super::*;

    const R: (u64, u64) = (0x1000, 0x3000);

    #[test]
    fn ends_that_need_no_look() {
        let (set, gate) = (Invalidations::new(), Gate::new());
        let mut registry = Registry::new();
        let covers = |a| set.covers(&gate.enter(), a);
        registry.begin(&set, R.0, R.1);
        registry.met(&set, R.0, R.1);
        assert!(!registry.end_calm(&set, R.0, R.1) && covers(R.0));
        registry.end(&set, R.0, R.1);
        assert!(!covers(R.0));
        // The next one finds the place as new.
        registry.begin(&set, R.0, R.1);
        registry.met(&set, R.0, R.1 + 1);
        assert!(registry.end_calm(&set, R.0, R.1) && !covers(R.0));
        registry.begin(&set, R.0, R.1);
        set.slot_comes();
        assert!(!registry.end_calm(&set, R.0, R.1) && covers(R.0));
        registry.end(&set, R.0, R.1);
        registry.begin(&set, R.0, R.1);
        assert!(registry.end_calm(&set, R.0, R.1));
    }

    /// Whatever equal ranges ends take out: as long as one has to be counted the range is covered.
    #[test]
    fn equal_ranges() {
        let (set, gate) = (Invalidations::new(), Gate::new());
        let mut registry = Registry::new();
        let covers = |a| set.covers(&gate.enter(), a);
        registry.begin(&set, R.0, R.1);
        registry.begin(&set, R.0, R.1);
        registry.met(&set, R.0, R.1);
        for left in [true, false] {
            assert!(!registry.end_calm(&set, R.0, R.1));
            registry.end(&set, R.0, R.1);
            assert_eq!(covers(R.0), left);
        }
        // The first one knows of a slot; the second one, which began later, does not.
        registry.begin(&set, 0, 1);
        registry.begin(&set, R.0, R.1);
        registry.met(&set, R.0, R.1);
        assert!(registry.end_calm(&set, 0, 1));
        registry.begin(&set, R.0, R.1);
        assert!(registry.end_calm(&set, R.0, R.1) && covers(R.0));
        assert!(!registry.end_calm(&set, R.0, R.1));
        registry.end(&set, R.0, R.1);
        assert!(!covers(R.0));
    }

    #[test]
    fn the_hull_is_looked_at_again() {
        let set = Invalidations::new();
        let mut registry = Registry::new();
        let at = |n: u64| (n << 20, (n << 20) + 0x1000);
        for n in 0..20 {
            registry.begin(&set, at(n).0, at(n).1);
        }
        for n in 0..20 {
            let calm = registry.end_calm(&set, at(n).0, at(n).1);
            assert_eq!(calm, n < RANGES as u64, "{n}");
            if !calm {
                registry.end(&set, at(n).0, at(n).1);
            }
        }
        assert_eq!(set.used.load(Ordering::SeqCst), 0);
    }
}
