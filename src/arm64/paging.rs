// SPDX-License-Identifier: GPL-2.0
//! The nested page table of a VM. Called by `mem`, by several threads at a time.

use crate::arm64::el2;
use crate::arm64::leaving::Leaving;
use crate::arm64::stage2::{self, Stage2};
use crate::linux::el2 as linux_el2;
use crate::linux::uaccess;
use crate::mem::addr::{Gpa, Level};
use crate::mem::format::{Format, Leaf, MemType, Perm};
use crate::mem::mmu::{TablePage, TablePool};
use crate::mem::walk::{Allow, Change, Cursor, MapError, MappedLeaf, PageTable};
use crate::params;
use core::ops::Deref;
use kernel::prelude::*;

/// Bits of a guest-physical address where user space does not say how many.
pub(crate) const ADDRESS_BITS: u32 = 40;

/// The most that there can be: a walk of four levels takes a processor with 44 bits (Arm ARM D24.2.187, VTCR_EL2.SL0).
pub(crate) fn most_address_bits() -> u32 {
    match linux_el2::address_bits() {
        bits @ 44.. => bits.min(stage2::MOST_BITS),
        _ => ADDRESS_BITS,
    }
}

/// Entries are broken before others are made, and [`forget_translations`] does what that needs.
pub(crate) const FORGETS: bool = Stage2::BREAK_FIRST;

/// Returns after every processor has forgotten what it had cached of entries that are not present any more.
pub(crate) fn forget_translations() {
    el2::forget_translations();
}

/// An entry that was `old` and is `new` takes something away, and it is kept what was flushed when.
#[inline]
pub(crate) fn takes_away(old: u64, new: u64) -> bool {
    params::check_flushes() && stage2::narrows(old, new)
}

/// The processor's own marks of what a guest writes are not used.
pub(crate) fn processor_logs() -> bool {
    false
}

/// The largest leaves of guest memory: what is cleaned in one go, with interrupts off, is not a GiB.
pub(super) fn largest_leaf() -> Level {
    if el2::caches().clean {
        Level::L2
    } else {
        Level::L3
    }
}

/// Pages that have left, until nobody has their translations any more and caches have been seen to.
pub(crate) struct LeavingPages(Leaving);

impl LeavingPages {
    /// None.
    pub(crate) const fn new() -> Self {
        Self(Leaving::new())
    }

    /// Whether pages have to be named.
    #[inline]
    pub(crate) fn are_wanted() -> bool {
        !el2::caches().forced
    }

    /// A page has left. False: there is no room for more, before they have been seen to.
    #[inline]
    pub(crate) fn put(&mut self, leaf: &MappedLeaf) -> bool {
        !Self::are_wanted() || leaf.mem_type != MemType::Ram || self.0.put(leaf.hpa, leaf.level)
    }

    /// Nobody has their translations any more.
    #[inline]
    pub(crate) fn finish(&mut self) {
        self.0
            .take(|hpa, level| el2::make_coherent(hpa, level.size(), false));
    }
}

/// Data caches have nothing of a leaf's page any more.
pub(super) fn clean(leaf: &MappedLeaf) {
    if leaf.mem_type == MemType::Ram {
        el2::make_coherent(leaf.hpa, leaf.level.size(), false);
    }
}

/// What a leaf is going to show is in memory, not in caches that a guest does not look into.
#[inline]
fn prepare(level: Level, leaf: &Leaf) {
    if leaf.mem_type == MemType::Ram {
        el2::make_coherent(leaf.hpa, level.size(), leaf.perm.contains(Perm::X));
    }
}

/// Stage 2; its operations are those of [`PageTable`].
pub(crate) struct NestedTable {
    table: PageTable<Stage2, TablePool>,
    bits: u32,
}

impl Deref for NestedTable {
    type Target = PageTable<Stage2, TablePool>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.table
    }
}

impl NestedTable {
    /// An empty table for addresses of so many bits. Errors: ENOMEM; EINVAL: there cannot be so many, or so few.
    pub(crate) fn new(bits: u32) -> Result<Self> {
        const { assert!(Stage2::ROOT_TABLES == 2) };
        if !(stage2::LEAST_BITS..=most_address_bits()).contains(&bits) {
            return Err(EINVAL);
        }
        let table = PageTable::with_root(TablePage::row(1)?, stage2::levels(bits));
        let table = table.map_err(|_| EINVAL)?;
        Ok(Self { table, bits })
    }

    /// First guest-physical address that the VM does not have, and first address past a process's memory.
    pub(crate) fn address_limits(&self) -> (u64, u64) {
        (1 << self.bits, uaccess::end() as u64)
    }

    /// As [`PageTable::map`], of a page that caches are ready for.
    pub(crate) fn map(
        &self,
        tables: &mut TablePool,
        gpa: Gpa,
        level: Level,
        leaf: &Leaf,
        allow: Allow,
    ) -> Result<Change, MapError> {
        prepare(level, leaf);
        self.table.map(tables, gpa, level, leaf, allow)
    }

    /// As [`PageTable::map_new`], likewise.
    pub(crate) fn map_new(
        &self,
        tables: &mut TablePool,
        gpa: Gpa,
        level: Level,
        leaf: &Leaf,
    ) -> Result<(), MapError> {
        prepare(level, leaf);
        self.table.map_new(tables, gpa, level, leaf)
    }

    /// As [`PageTable::map_parts`], likewise.
    pub(crate) fn map_parts(
        &self,
        tables: &mut TablePool,
        gpa: Gpa,
        leaf: &Leaf,
        allow: Allow,
    ) -> Result<Change, MapError> {
        prepare(Level::L2, leaf);
        self.table.map_parts(tables, gpa, leaf, allow)
    }

    /// Whether ageing takes nothing away.
    pub(crate) fn has_accessed_bits(&self) -> bool {
        Stage2::HAS_AD
    }

    /// Frees every table but the root, which goes with `self`. No processor uses them any more.
    pub(crate) fn clear(&mut self) {
        let mut pool = TablePool::new();
        let mut cursor = Cursor::new(self.all());
        if LeavingPages::are_wanted() {
            while !self.show_some(&mut pool, &mut cursor, 1024, &mut clean) {}
            cursor = Cursor::new(self.all());
        }
        while !self.clear_some(&mut pool, &mut cursor, 16 * 1024) {
            pool.release_now();
        }
        pool.release_now();
    }
}
