// SPDX-License-Identifier: GPL-2.0
//! Which refused accesses of a device get a line in the log: the first of a burst. A guest that makes its device try
//! on and on gets one line; one that pauses between attempts gets one per pause.
#![forbid(unsafe_code)]

/// A burst is over when nothing came for so long, in nanoseconds.
pub const QUIET: u64 = 10_000_000_000;

/// Accesses of one device that were refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Burst {
    count: u64,
    last: u64,
}

impl Burst {
    /// One more, at `now` nanoseconds of a clock that does not run backwards. Whether a burst begins with it.
    pub fn another(&mut self, now: u64) -> bool {
        let begins = self.count == 0 || now.saturating_sub(self.last) > QUIET;
        self.count = self.count.saturating_add(1);
        self.last = now;
        begins
    }

    /// How many there were in all.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_burst() {
        let mut burst = Burst::default();
        assert!(burst.another(5));
        // However long it goes on.
        for n in 1..100 {
            assert!(!burst.another(5 + n * QUIET));
        }
        let end = 5 + 99 * QUIET;
        assert!(burst.another(end + QUIET + 1));
        assert!(!burst.another(end + QUIET + 1));
        // A clock that another CPU reads a little earlier.
        assert!(!burst.another(end));
        assert_eq!(burst.count(), 103);
    }
}
