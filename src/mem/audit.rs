// SPDX-License-Identifier: GPL-2.0
//! What has to hold of a nested page table as long as nothing is under way: the oracle of `oracle=1`.
//!
//! The walker, faults, invalidations and logs each keep their part of it (`memory`); here the outcome alone is looked
//! at, leaf by leaf.
#![forbid(unsafe_code)]

use crate::mem::addr::{Gpa, Level, PAGE_SIZE};
use crate::mem::format::Perm;
use crate::mem::slots::Slot;
use crate::mem::walk::MappedLeaf;

/// First address of each page of 4 KiB.
fn pages(seen: &MappedLeaf) -> impl Iterator<Item = Gpa> {
    let (start, size) = (seen.gpa.0, seen.level.size());
    (0..size / PAGE_SIZE).map(move |n| Gpa(start.wrapping_add(n.wrapping_mul(PAGE_SIZE))))
}

/// How the table is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The processor logs writes by dirty bits: what is writable counts as written when it has its dirty bit.
    pub processor_logs: bool,
    /// Huge leaves are for data alone.
    pub nx_huge: bool,
    /// The largest leaves that there may be.
    pub largest: Option<Level>,
}

/// What does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// Something is mapped, in whole or in part, where there is no slot.
    NoSlot,
    /// What the guest must not write is writable.
    ReadOnly,
    /// A page is writable, its writes are logged, and the log does not have it.
    NotLogged,
    /// A leaf is larger than its slot lets it be, or the processor.
    TooLarge,
    /// Code can run from a huge leaf.
    Executable,
    /// What the host is about to change is still mapped.
    Invalidated,
}

impl Breach {
    /// As a sentence's end.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoSlot => "is mapped outside of slots",
            Self::ReadOnly => "is writable in a read-only slot",
            Self::NotLogged => "is writable, and not in the log of its slot",
            Self::TooLarge => "is mapped by too large a leaf",
            Self::Executable => "is executable in a huge leaf",
            Self::Invalidated => "is mapped while the host changes its page",
        }
    }
}

/// Whether `seen` may be there. `slot` is the one at its first address; `logged` says whether the slot's log has the
/// page at an address, and is asked only where writes are logged.
pub fn leaf(
    seen: &MappedLeaf,
    slot: Option<&Slot>,
    rules: &Rules,
    logged: impl Fn(Gpa) -> bool,
) -> Result<(), Breach> {
    let slot = slot.ok_or(Breach::NoSlot)?;
    if !slot.contains(seen.gpa) || !pages(seen).last().is_some_and(|p| slot.contains(p)) {
        return Err(Breach::NoSlot);
    }
    let writable = seen.perm.contains(Perm::W);
    if writable && slot.is_readonly() {
        return Err(Breach::ReadOnly);
    }
    // As large as without a log: leaves that were there before it lose rights, and need not be split.
    let unlogged = Slot { flags: 0, ..*slot };
    if seen.level > unlogged.max_level(seen.gpa) || rules.largest.is_some_and(|l| seen.level > l) {
        return Err(Breach::TooLarge);
    }
    if rules.nx_huge && seen.level != Level::L1 && seen.perm.contains(Perm::X) {
        return Err(Breach::Executable);
    }
    let noticed = rules.processor_logs && seen.level == Level::L1 && !seen.dirty;
    if slot.is_logging() && writable && !noticed && !pages(seen).all(logged) {
        return Err(Breach::NotLogged);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::addr::{Hpa, Hva};
    use crate::mem::format::MemType;
    use crate::mem::slots::{LOG_DIRTY_PAGES, READONLY};

    const SLOT: Slot = Slot {
        gpa: Gpa(0x20_0000),
        npages: 0x400,
        hva: Hva(0x7f00_0020_0000),
        flags: 0,
        id: 0,
    };

    const RULES: Rules = Rules {
        processor_logs: false,
        nx_huge: false,
        largest: Some(Level::L2),
    };

    fn seen(gpa: u64, level: Level, perm: Perm) -> MappedLeaf {
        MappedLeaf {
            gpa: Gpa(gpa),
            hpa: Hpa(gpa),
            level,
            mem_type: MemType::Ram,
            accessed: true,
            dirty: true,
            perm,
        }
    }

    fn check(seen: &MappedLeaf, flags: u32, rules: &Rules) -> Result<(), Breach> {
        let slot = Slot { flags, ..SLOT };
        leaf(seen, Some(&slot), rules, |gpa| gpa.0 & 0x1000 == 0)
    }

    #[test]
    fn leaves_lie_in_slots() {
        let page = |gpa| check(&seen(gpa, Level::L1, Perm::RWX), 0, &RULES);
        assert_eq!(page(0x20_0000), Ok(()));
        assert_eq!(page(0x5f_f000), Ok(()));
        assert_eq!(page(0x60_0000), Err(Breach::NoSlot));
        assert_eq!(page(0x1f_f000), Err(Breach::NoSlot));
        let huge = |gpa| check(&seen(gpa, Level::L2, Perm::RWX), 0, &RULES);
        assert_eq!(huge(0x40_0000), Ok(()));
        let leaf_of_none = leaf(&seen(0, Level::L1, Perm::RX), None, &RULES, |_| true);
        assert_eq!(leaf_of_none, Err(Breach::NoSlot));
        // It begins in the slot and ends behind it.
        let short = Slot {
            npages: 0x300,
            ..SLOT
        };
        let over = leaf(
            &seen(0x40_0000, Level::L2, Perm::RX),
            Some(&short),
            &RULES,
            |_| true,
        );
        assert_eq!(over, Err(Breach::NoSlot));
    }

    #[test]
    fn size() {
        let huge = seen(0x40_0000, Level::L2, Perm::RWX);
        let small_only = Rules {
            largest: Some(Level::L1),
            ..RULES
        };
        assert_eq!(check(&huge, 0, &small_only), Err(Breach::TooLarge));
        let crooked = Slot {
            hva: Hva(0x7f00_0020_1000),
            ..SLOT
        };
        let found = leaf(&huge, Some(&crooked), &RULES, |_| true);
        assert_eq!(found, Err(Breach::TooLarge));
        let data = Rules {
            nx_huge: true,
            ..RULES
        };
        assert_eq!(check(&huge, 0, &data), Err(Breach::Executable));
        assert_eq!(
            check(&seen(0x40_0000, Level::L2, Perm::RW), 0, &data),
            Ok(())
        );
        assert_eq!(
            check(&seen(0x40_0000, Level::L1, Perm::RWX), 0, &data),
            Ok(())
        );
    }

    #[test]
    fn rights() {
        let write = seen(0x20_1000, Level::L1, Perm::RWX);
        let read = seen(0x20_1000, Level::L1, Perm::RX);
        assert_eq!(check(&write, READONLY, &RULES), Err(Breach::ReadOnly));
        assert_eq!(check(&read, READONLY, &RULES), Ok(()));
        // The log of these tests has every other page.
        let log = LOG_DIRTY_PAGES;
        assert_eq!(check(&write, log, &RULES), Err(Breach::NotLogged));
        assert_eq!(check(&read, log, &RULES), Ok(()));
        assert_eq!(
            check(&seen(0x20_2000, Level::L1, Perm::RWX), log, &RULES),
            Ok(())
        );
        let huge = |perm| check(&seen(0x40_0000, Level::L2, perm), log, &RULES);
        assert_eq!(huge(Perm::RWX), Err(Breach::NotLogged));
        assert_eq!(huge(Perm::RX), Ok(()));
        let pml = Rules {
            processor_logs: true,
            ..RULES
        };
        assert_eq!(check(&write, log, &pml), Err(Breach::NotLogged));
        let clean = MappedLeaf {
            dirty: false,
            ..write
        };
        assert_eq!(check(&clean, log, &pml), Ok(()));
    }
}
