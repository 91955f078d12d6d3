// SPDX-License-Identifier: GPL-2.0
//! Who reads, and waiting until those have gone who read before: what SRCU does, for a few readers at a time.
//!
//! ```text
//!   reader                                    writer
//!     count itself           (1)                publish the next version   (2)
//!     load the version       (2)                see each count at zero     (1)
//!     use it, asleep or not                     the old version is nobody's
//!     count itself out
//! ```
//!
//! Both write one word and read the other's, with sequentially consistent accesses: a reader of the old version has
//! counted itself before the writer looks. It goes from the count that it came to, whatever CPU it runs on by then, so
//! that a count that is seen at zero once has no reader left from before.
//!
//! Each CPU has two counts, so that those who come later do not keep a count from getting there: newcomers take one of
//! them, and the writer waits for the other, then has newcomers take that one and waits for the first.
//!
//! SRCU's writers wait for its worker thread, even where nobody reads; here they look.
#![forbid(unsafe_code)]

use core::ops::Deref;
use core::sync::atomic::Ordering;

use crate::linux::atomic::AtomicU32;

/// The readers that came by one CPU, in two counts. On a cache line of its own.
#[repr(align(64))]
pub struct Counts([AtomicU32; 2]);

impl Counts {
    /// Nobody.
    pub const fn new() -> Self {
        Self([AtomicU32::new(0), AtomicU32::new(0)])
    }

    /// The readers of odd or of even phases.
    #[inline(always)]
    fn of(&self, odd: bool) -> &AtomicU32 {
        let [even_count, odd_count] = &self.0;
        if odd {
            odd_count
        } else {
            even_count
        }
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

/// The readers of one thing. `S` has the counts of the CPUs with the lowest numbers, as many as there are; the others
/// share one.
pub struct Readers<S> {
    /// Bit 0: where newcomers count themselves.
    phase: AtomicU32,
    others: Counts,
    cpus: S,
}

/// A reader, until dropped.
pub struct Reading<'a>(&'a AtomicU32);

impl Drop for Reading<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl<S: Deref<Target = [Counts]>> Readers<S> {
    /// Nobody reads.
    pub fn new(cpus: S) -> Self {
        Self {
            phase: AtomicU32::new(0),
            others: Counts::new(),
            cpus,
        }
    }

    /// Begins to read. What is loaded from now on is not given up before the result is dropped. `cpu`: where the
    /// caller runs, or ran a moment ago.
    #[inline]
    pub fn enter(&self, cpu: u32) -> Reading<'_> {
        let counts = self.cpus.get(cpu as usize).unwrap_or(&self.others);
        let count = counts.of(self.phase.load(Ordering::Relaxed) & 1 != 0);
        count.fetch_add(1, Ordering::SeqCst);
        Reading(count)
    }

    /// Waits until all have gone who may have loaded what has been replaced, calling `pause` in between. The caller
    /// excludes other callers.
    pub fn wait(&self, mut pause: impl FnMut()) {
        if self.is_empty(false) && self.is_empty(true) {
            return;
        }
        let odd = self.phase.load(Ordering::Relaxed) & 1 != 0;
        self.drain(!odd, &mut pause);
        self.phase.store(u32::from(!odd), Ordering::Relaxed);
        self.drain(odd, &mut pause);
    }

    fn all(&self, odd: bool) -> impl Iterator<Item = &AtomicU32> {
        let all = self.cpus.iter().chain([&self.others]);
        all.map(move |counts| counts.of(odd))
    }

    fn is_empty(&self, odd: bool) -> bool {
        self.all(odd).all(|count| count.load(Ordering::SeqCst) == 0)
    }

    fn drain(&self, odd: bool, pause: &mut impl FnMut()) {
        for count in self.all(odd) {
            while count.load(Ordering::SeqCst) != 0 {
                pause();
            }
        }
    }
}
