// SPDX-License-Identifier: GPL-2.0
//! The slots of a VM: found by guest-physical address, and by the user addresses behind them.
//!
//! A set is never changed; a change makes another one that shares with it what it does not concern (see `index`).
#![forbid(unsafe_code)]

use core::convert::Infallible;

use crate::linux::shared::NoMemory;
use crate::mem::addr::{Gpa, GpaRange, Hva};
use crate::mem::index::{Element, Index, Key};
use crate::mem::slots::Slot;

/// A slot, and what its owner keeps with it.
#[derive(Clone, Debug, Default)]
pub struct Entry<X> {
    /// The slot.
    pub slot: Slot,
    /// Where writes to it are logged.
    pub log: X,
}

impl<X: Clone + Default> Element for Entry<X> {
    #[inline]
    fn key(&self) -> Key {
        // Slots do not overlap: no two begin together.
        (self.slot.gpa.0, 0)
    }

    #[inline]
    fn end(&self) -> u64 {
        self.slot.gpa.0.saturating_add(self.slot.len())
    }
}

/// A slot in the order of user addresses, as much of it as callbacks of the host want.
#[derive(Clone, Debug, Default)]
struct ByHva {
    hva: Hva,
    gpa: Gpa,
    /// Below 2^31 (`slots::MAX_PAGES`).
    npages: u32,
    id: u32,
}

impl ByHva {
    fn new(slot: &Slot) -> Self {
        Self {
            hva: slot.hva,
            gpa: slot.gpa,
            npages: u32::try_from(slot.npages).unwrap_or(u32::MAX),
            id: slot.id,
        }
    }

    fn gpa_range(&self, start: Hva, end: Hva) -> Option<GpaRange> {
        let slot = Slot {
            gpa: self.gpa,
            npages: self.npages.into(),
            hva: self.hva,
            flags: 0,
            id: self.id,
        };
        slot.gpa_range(start, end)
    }
}

impl Element for ByHva {
    #[inline]
    fn key(&self) -> Key {
        (self.hva.0, self.id)
    }

    #[inline]
    fn end(&self) -> u64 {
        self.hva
            .0
            .saturating_add(u64::from(self.npages).wrapping_mul(crate::mem::addr::PAGE_SIZE))
    }
}

/// Entries in a leaf (40 bytes each with a pointer, 488 in all), and the same by user address (24 bytes, 512 in all).
const LEAF: usize = 12;
const LEAF_BY_HVA: usize = 21;

/// All slots of a VM. They do not overlap in guest-physical addresses; in user addresses they may.
#[derive(Clone)]
pub struct SlotSet<X> {
    by_gpa: Index<Entry<X>, LEAF>,
    by_hva: Index<ByHva, LEAF_BY_HVA>,
}

impl<X: Clone + Default> Default for SlotSet<X> {
    fn default() -> Self {
        Self::new()
    }
}

impl<X: Clone + Default> SlotSet<X> {
    /// No slots.
    pub const fn new() -> Self {
        Self {
            by_gpa: Index::new(),
            by_hva: Index::new(),
        }
    }

    /// These slots and `slot`, which overlaps none and has a number of its own.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn with(&self, slot: &Slot, log: X) -> Result<Self, NoMemory> {
        Ok(Self {
            by_gpa: self.by_gpa.insert(&Entry { slot: *slot, log })?,
            by_hva: self.by_hva.insert(&ByHva::new(slot))?,
        })
    }

    /// These slots, the one at `slot`'s address with the flags of `slot` and with `log`.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn with_flags(&self, slot: &Slot, log: X) -> Result<Self, NoMemory> {
        Ok(Self {
            by_gpa: self.by_gpa.insert(&Entry { slot: *slot, log })?,
            by_hva: self.by_hva.clone(),
        })
    }

    /// These slots but `slot`.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn without(&self, slot: &Slot) -> Result<Self, NoMemory> {
        Ok(Self {
            by_gpa: self.by_gpa.remove((slot.gpa.0, 0))?,
            by_hva: self.by_hva.remove((slot.hva.0, slot.id))?,
        })
    }

    /// The slot that holds `gpa`.
    #[inline]
    pub fn find(&self, gpa: Gpa) -> Option<&Entry<X>> {
        self.by_gpa
            .last_from(gpa.0)
            .filter(|e| e.slot.contains(gpa))
    }

    /// Whether a slot other than number `but` overlaps `range`.
    pub fn overlaps(&self, range: &GpaRange, but: u32) -> bool {
        // Of those that begin below its end, the last one ends last.
        let below = |end: u64| self.by_gpa.last_from(end.checked_sub(1)?);
        let last = match below(range.end().0) {
            Some(e) if e.slot.id == but => below(e.slot.gpa.0),
            last => last,
        };
        last.and_then(|e| e.slot.range())
            .is_some_and(|r| r.overlaps(range))
    }

    /// Runs `f` on all slots in the order of guest-physical addresses, until it fails.
    ///
    /// # Errors
    ///
    /// What `f` failed with.
    pub fn try_each<B>(&self, mut f: impl FnMut(&Slot) -> Result<(), B>) -> Result<(), B> {
        self.by_gpa.try_meeting(0, u64::MAX, |e| f(&e.slot))
    }

    /// Runs `f` on all slots in the order of guest-physical addresses.
    pub fn each(&self, mut f: impl FnMut(&Slot)) {
        let _ = self.try_each(|s| {
            f(s);
            Ok::<(), Infallible>(())
        });
    }

    /// Runs `f` on the guest-physical ranges that user addresses `start` (included) to `end` (excluded) back, until it
    /// fails: one for each slot that meets the range, as several slots may map the same memory. Rounded outwards to
    /// whole pages.
    ///
    /// # Errors
    ///
    /// What `f` failed with.
    pub fn try_each_range<B>(
        &self,
        start: Hva,
        end: Hva,
        mut f: impl FnMut(GpaRange) -> Result<(), B>,
    ) -> Result<(), B> {
        self.by_hva.try_meeting(start.0, end.0, |e| {
            e.gpa_range(start, end).map_or(Ok(()), &mut f)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::slots::tests::slot;
    use std::vec::Vec;

    fn set() -> (Vec<Slot>, SlotSet<u8>) {
        let slots = [
            slot(3, 0x1000, 3, 0x10_0000),
            slot(0, 0x4000, 1, 0x20_0000),
            slot(7, 0x10_0000, 0x100, 0x30_0000),
            // The same memory a second time.
            slot(8, 0x4000_0000, 2, 0x10_1000),
            // One that reaches over all others.
            slot(9, 0x8000_0000, 0x400, 0x10_0000),
        ];
        let with = |set: SlotSet<u8>, s: &Slot| set.with(s, s.id as u8).unwrap();
        (slots.to_vec(), slots.iter().fold(SlotSet::new(), with))
    }

    fn ranges(set: &SlotSet<u8>, a: Hva, b: Hva) -> Vec<GpaRange> {
        let mut got = Vec::new();
        let done: Result<(), ()> = set.try_each_range(a, b, |r| {
            got.push(r);
            Ok(())
        });
        assert_eq!(done, Ok(()));
        got
    }

    #[test]
    fn look_up() {
        let (slots, set) = set();
        for page in (0..0x300u64).chain(0x3_ffff..0x4_0004) {
            let gpa = Gpa(page << 12 | 0x234);
            let want = slots
                .iter()
                .find(|s| s.contains(gpa))
                .map(|s| (*s, s.id as u8));
            assert_eq!(set.find(gpa).map(|e| (e.slot, e.log)), want);
        }
        assert!(set.find(Gpa(!0)).is_none());
        assert!(SlotSet::<()>::new().find(Gpa(0)).is_none());
        let mut all = Vec::new();
        set.each(|s| all.push(*s));
        assert_eq!(all, slots);
    }

    #[test]
    fn changes() {
        let (slots, set) = set();
        let logging = Slot {
            flags: crate::mem::slots::LOG_DIRTY_PAGES,
            ..slots[2]
        };
        let changed = set.with_flags(&logging, 70).unwrap();
        let entry = changed.find(logging.gpa).unwrap();
        assert_eq!((entry.slot, entry.log), (logging, 70));
        assert!(ranges(&changed, Hva(0), Hva(!0)) == ranges(&set, Hva(0), Hva(!0)));
        let moved = slot(7, 0x20_0000, 0x100, 0x30_0000);
        let changed = set.without(&slots[2]).unwrap().with(&moved, 71).unwrap();
        assert!(changed.find(Gpa(0x10_0000)).is_none());
        assert_eq!(changed.find(Gpa(0x2f_ffff)).unwrap().log, 71);
        assert_eq!(ranges(&changed, Hva(0x3f_f000), Hva(!0)).len(), 2);
        // The version before is as it was.
        assert_eq!(set.find(Gpa(0x10_0000)).unwrap().log, 7);
    }

    #[test]
    fn overlaps() {
        let (slots, set) = set();
        let borders = [
            0, 0xfff, 0x1000, 0x1001, 0x3fff, 0x4000, 0x5000, 0x10_0000, 0x1f_f000, 0x20_0000,
        ];
        for (a, b) in borders.iter().flat_map(|a| borders.map(|b| (*a, b))) {
            let Some(range) = GpaRange::between(Gpa(a), Gpa(b)) else {
                continue;
            };
            for but in [0, 3, 7, 99] {
                let mut others = slots.iter().filter(|s| s.id != but);
                let want = others.any(|s| s.range().unwrap().overlaps(&range));
                assert_eq!(set.overlaps(&range, but), want, "{range:x?} {but}");
            }
        }
    }

    #[test]
    fn notifier_ranges() {
        let (mut slots, set) = set();
        let check = |set: &SlotSet<u8>, slots: &[Slot]| {
            let borders = [
                0, 0x10_0000, 0x10_0001, 0x10_1000, 0x10_2fff, 0x10_3000, 0x20_0000, 0x20_1000,
                0x30_0000, 0x50_0000, !0,
            ];
            for (a, b) in borders
                .iter()
                .flat_map(|a| borders.map(|b| (Hva(*a), Hva(b))))
            {
                let got = ranges(set, a, b);
                let want = slots.iter().filter_map(|s| s.gpa_range(a, b));
                assert_eq!(got.len(), want.clone().count(), "{a:?} {b:?}");
                assert!(want.clone().all(|r| got.contains(&r)), "{a:?} {b:?}");
            }
        };
        check(&set, &slots);
        let last = slots.pop().unwrap();
        check(&set.without(&last).unwrap(), &slots);
    }
}
