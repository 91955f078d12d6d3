// SPDX-License-Identifier: GPL-2.0
//! Pages that have left nested page tables, of which data caches have to be cleaned and invalidated where guests may go
//! past them (no FEAT_S2FWB): what is in a line is older than what a guest has written to memory. Only when no
//! processor has the translation any more, or it would write on.
#![forbid(unsafe_code)]

use crate::mem::addr::{Hpa, Level};

/// How many there are before a flush has to be made for them alone.
const ROOM: usize = 32;

/// Such pages.
pub struct Leaving {
    /// The address, and the level in the bits below.
    pages: [u64; ROOM],
    count: usize,
}

impl Leaving {
    /// None.
    pub const fn new() -> Self {
        Self {
            pages: [0; ROOM],
            count: 0,
        }
    }

    /// A page has left. False: there is no room, and it is not among them.
    pub fn put(&mut self, hpa: Hpa, level: Level) -> bool {
        let Some(place) = self.pages.get_mut(self.count) else {
            return false;
        };
        *place = hpa.0 & !level.offset_mask() | level as u64;
        self.count = self.count.wrapping_add(1);
        true
    }

    /// Translations have been flushed: gives each of them to `clean`, and none is left.
    #[inline]
    pub fn take(&mut self, mut clean: impl FnMut(Hpa, Level)) {
        let count = core::mem::take(&mut self.count);
        for page in self.pages.iter().take(count) {
            if let Some(level) = Level::from_u8((page & 7) as u8) {
                clean(Hpa(page & !level.offset_mask()), level);
            }
        }
    }
}

impl Default for Leaving {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_once() {
        let mut l = Leaving::new();
        let page = |n: usize| match n % 2 {
            0 => (Hpa((n as u64) << 12), Level::L1),
            _ => (Hpa((n as u64) << 21), Level::L2),
        };
        for round in 0..2 {
            for n in 0..ROOM {
                assert!(l.put(page(n).0, page(n).1), "{round}");
            }
            assert!(!l.put(Hpa(0x1000), Level::L1));
            let mut n = 0;
            l.take(|hpa, level| {
                assert_eq!((hpa, level), page(n));
                n += 1;
            });
            assert_eq!(n, ROOM);
        }
        l.take(|_, _| panic!("none is left"));
    }
}
