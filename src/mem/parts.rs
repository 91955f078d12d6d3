// SPDX-License-Identifier: GPL-2.0
//! Areas of 2 MiB that are mapped in parts because code ran there, where huge leaves are for data only
//! (CVE-2018-12207): how many there are, and when some of them become whole again.
//!
//! Any number of threads at a time. Who is the first to find a round due does it. The counts are estimates.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::mem::addr::{Gpa, Level};

const MS: u64 = 1_000_000;
/// Milliseconds in an hour, in which all areas have their turn unless user space says otherwise.
const HOUR: u64 = 3_600_000;
/// Areas that a round looks at: so many for each that it is to join, and no fewer than [`LOOKS`]. Where the host has
/// small pages most of them cannot be joined.
const LOOKS_EACH: u64 = 8;
const LOOKS: u64 = 4096;

/// The areas of one VM.
#[derive(Debug, Default)]
pub struct Parts {
    /// Those that the last round left, and those that have come since.
    count: AtomicU64,
    /// When the next round is due, in nanoseconds; 0: nobody has asked yet.
    due: AtomicU64,
    /// Where it begins.
    from: AtomicU64,
}

/// Joins areas: every `ratio`th one in each round.
#[derive(Debug)]
pub struct Round {
    from: Gpa,
    next: Gpa,
    left: u64,
    seen: u64,
    joined: u64,
    /// Areas that may still be looked at.
    looks: u64,
    /// Areas that there were when it began.
    counted: u64,
}

impl Parts {
    /// None.
    pub const fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            due: AtomicU64::new(0),
            from: AtomicU64::new(0),
        }
    }

    /// An area has been mapped in parts.
    #[inline]
    pub fn came(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there may be.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there may be any.
    #[inline]
    pub fn any(&self) -> bool {
        self.count() != 0
    }

    /// The round that is due at `now` (nanoseconds), if nobody else does it; none if `ratio` is 0. They
    /// are `period_ms` apart; 0: so that `ratio` of them take an hour, but a second at least.
    pub fn begin(&self, now: u64, ratio: u32, period_ms: u32) -> Option<Round> {
        let parts = self.count.load(Ordering::Relaxed);
        if ratio == 0 || parts == 0 {
            return None;
        }
        let period = match u64::from(period_ms) {
            0 => HOUR.checked_div(u64::from(ratio).min(HOUR / 1000))?,
            ms => ms,
        };
        let next = now.saturating_add(period.saturating_mul(MS));
        let due = self.due.load(Ordering::Relaxed);
        if due != 0 && now < due {
            return None;
        }
        let mine = self
            .due
            .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed);
        if mine.is_err() || due == 0 {
            return None;
        }
        let from = Gpa(self.from.load(Ordering::Relaxed));
        let left = parts.div_ceil(u64::from(ratio));
        Some(Round {
            from,
            next: from,
            left,
            seen: 0,
            joined: 0,
            looks: left.saturating_mul(LOOKS_EACH).max(LOOKS),
            counted: parts,
        })
    }

    /// The round is over. What has come meanwhile stays counted.
    pub fn end(&self, round: &Round) {
        self.from.store(round.next.0, Ordering::Relaxed);
        // Of what it has not looked at nothing is known.
        let known = if round.looks == 0 {
            round.counted
        } else {
            round.seen
        };
        let left = known.saturating_sub(round.joined);
        let later = |count: u64| Some(count.saturating_sub(round.counted).saturating_add(left));
        let _ = self
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }
}

impl Round {
    /// Where it begins: at the end of guest memory it goes on from address 0 to here.
    pub const fn from(&self) -> Gpa {
        self.from
    }

    /// There is an area at `gpa`, which the round comes to. Whether to look at it: where there have been enough the
    /// next round goes on.
    #[inline]
    pub fn looks(&mut self, gpa: Gpa) -> bool {
        let goes_on = self.looks != 0;
        self.looks = self.looks.saturating_sub(1);
        if goes_on && self.looks == 0 && self.left != 0 {
            self.next = gpa.wrapping_add(Level::L2.size());
        }
        goes_on
    }

    /// There is an area at `gpa`, all of which one leaf could map. Whether it is to be joined.
    pub fn meets(&mut self, gpa: Gpa) -> bool {
        self.seen = self.seen.saturating_add(1);
        if self.left == 0 {
            return false;
        }
        self.left = self.left.saturating_sub(1);
        self.joined = self.joined.saturating_add(1);
        self.next = gpa.wrapping_add(Level::L2.size());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB_2: u64 = 2 << 20;

    /// One round over `areas`; those joined.
    fn round(parts: &Parts, areas: &[u64], mut r: Round) -> std::vec::Vec<u64> {
        let (before, after): (std::vec::Vec<u64>, _) = areas.iter().partition(|a| **a < r.from().0);
        let joined = after
            .into_iter()
            .chain(before)
            .filter(|a| r.meets(Gpa(*a)))
            .collect();
        parts.end(&r);
        joined
    }

    #[test]
    fn all_have_their_turn() {
        let parts = Parts::new();
        assert!(!parts.any() && parts.begin(1, 60, 0).is_none());
        let areas: std::vec::Vec<u64> = (0..7).map(|n| n * 2 * MIB_2).collect();
        areas.iter().for_each(|_| parts.came());
        assert_eq!(parts.count(), 7);
        // The first one only sets the clock: an hour in 60 parts.
        assert!(parts.begin(5, 60, 0).is_none());
        let minute = 60_000 * MS;
        assert!(parts.begin(4 + minute, 60, 0).is_none());
        let r = parts.begin(5 + minute, 3, 0).unwrap();
        assert_eq!(round(&parts, &areas, r), [0, 2 * MIB_2, 4 * MIB_2]);
        // A third of what was left, from there on; the joined ones have been split anew meanwhile.
        assert!(parts.begin(6 + minute, 3, 0).is_none());
        let later = 5 + minute + 1_200_000 * MS;
        let r = parts.begin(later, 3, 1).unwrap();
        assert_eq!(round(&parts, &areas, r), [6 * MIB_2, 8 * MIB_2]);
        let r = parts.begin(later + MS, 3, 1).unwrap();
        assert_eq!(round(&parts, &areas, r), [10 * MIB_2, 12 * MIB_2]);
        let r = parts.begin(later + 2 * MS, 1, 1).unwrap();
        assert_eq!(round(&parts, &areas[..3], r), areas[..3]);
        assert!(!parts.any());
        // None at all.
        parts.came();
        assert!(parts.begin(u64::MAX, 0, 1).is_none());
    }

    #[test]
    fn what_comes_in_a_round_stays_counted() {
        let parts = Parts::new();
        (0..3).for_each(|_| parts.came());
        assert!(parts.begin(1, 1, 1).is_none());
        let mut r = parts.begin(1 + MS, 1, 1).unwrap();
        assert!((0..3).all(|n| r.looks(Gpa(n * MIB_2)) && r.meets(Gpa(n * MIB_2))));
        parts.came();
        parts.end(&r);
        assert!(parts.any());
        let mut r = parts.begin(1 + 2 * MS, 1, 1).unwrap();
        assert!(r.looks(Gpa(0)) && r.meets(Gpa(0)));
        parts.end(&r);
        assert!(!parts.any());
    }

    #[test]
    fn a_round_looks_at_so_many() {
        let parts = Parts::new();
        (0..2).for_each(|_| parts.came());
        assert!(parts.begin(1, 1, 1).is_none());
        let at = |n: u64| Gpa(n * MIB_2);
        let mut r = parts.begin(1 + MS, 1, 1).unwrap();
        // Most are small pages of the host's; one is joined.
        let mut looked = 0;
        for n in 0..2 * LOOKS {
            looked += u64::from(r.looks(at(n)));
            assert!(n != 7 || r.meets(at(n)));
        }
        assert_eq!(looked, LOOKS);
        parts.end(&r);
        // The other one is still to be found, beyond.
        let mut r = parts.begin(1 + 2 * MS, 1, 1).unwrap();
        assert_eq!((r.from(), r.left, r.looks(at(LOOKS))), (at(LOOKS), 1, true));
        parts.end(&r);
        assert!(!parts.any());
    }

    #[test]
    fn periods() {
        let parts = Parts::new();
        parts.came();
        assert!(parts.begin(1, u32::MAX, 0).is_none());
        assert!(parts.begin(1000 * MS, u32::MAX, 0).is_none());
        assert!(parts.begin(1000 * MS + 1, u32::MAX, 0).is_some());
        assert!(parts.begin(2000 * MS + 1, 1, u32::MAX).is_some());
        assert!(parts.begin(u64::MAX, 1, u32::MAX).is_some());
    }
}
