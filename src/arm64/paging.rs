// SPDX-License-Identifier: GPL-2.0
//! The nested page table of a VM. Called by `mem`, by several threads at a time.

use crate::arm64::el2;
use crate::arm64::stage2::Stage2;
use crate::linux::uaccess;
use crate::mem::addr::{Gpa, Level};
use crate::mem::format::{Format, Leaf, MemType, Perm};
use crate::mem::mmu::{TablePage, TablePool};
use crate::mem::walk::{Allow, Change, Cursor, MapError, PageTable};
use core::ops::Deref;
use kernel::prelude::*;

/// Bits of a guest-physical address: the two tables at the root have room for them.
pub(crate) const ADDRESS_BITS: u32 = 40;

/// Levels of the table.
const LEVELS: u8 = 3;

/// Entries are broken before others are made, and [`forget_translations`] does what that needs.
pub(crate) const FORGETS: bool = Stage2::BREAK_FIRST;

/// Returns after every processor has forgotten what it had cached of entries that are not present any more.
pub(crate) fn forget_translations() {
    el2::forget_translations();
}

/// First guest-physical address that no VM has, and first address past a process's memory.
pub(crate) fn address_limits() -> (u64, u64) {
    (1 << ADDRESS_BITS, uaccess::end() as u64)
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

/// What a leaf is going to show is in memory, not in caches that a guest does not look into.
#[inline]
fn prepare(level: Level, leaf: &Leaf) {
    if leaf.mem_type == MemType::Ram {
        el2::make_coherent(leaf.hpa, level.size(), leaf.perm.contains(Perm::X));
    }
}

/// Stage 2; its operations are those of [`PageTable`].
pub(crate) struct NestedTable(PageTable<Stage2, TablePool>);

impl Deref for NestedTable {
    type Target = PageTable<Stage2, TablePool>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl NestedTable {
    /// An empty table. Errors: ENOMEM.
    pub(crate) fn new() -> Result<Self> {
        const { assert!(Stage2::ROOT_TABLES == 2) };
        let table = PageTable::with_root(TablePage::row(1)?, LEVELS);
        table.map(Self).map_err(|_| EINVAL)
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
        self.0.map(tables, gpa, level, leaf, allow)
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
        self.0.map_new(tables, gpa, level, leaf)
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
        self.0.map_parts(tables, gpa, leaf, allow)
    }

    /// Whether ageing takes nothing away.
    pub(crate) fn has_accessed_bits(&self) -> bool {
        Stage2::HAS_AD
    }

    /// Frees every table but the root, which goes with `self`. No processor uses them any more.
    pub(crate) fn clear(&mut self) {
        let mut pool = TablePool::new();
        let mut cursor = Cursor::new(self.all());
        while !self.clear_some(&mut pool, &mut cursor, 16 * 1024) {
            pool.release_now();
        }
        pool.release_now();
    }
}
