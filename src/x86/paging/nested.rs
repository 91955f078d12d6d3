// SPDX-License-Identifier: GPL-2.0
//! The nested page table in the format that the processor wants: EPT or NPT, chosen when a VM is made.
//!
//! Called by `mem`, by several threads at a time. Each operation is that of [`PageTable`] with the same name.

use crate::linux::uaccess;
use crate::mem::addr::{Gpa, GpaRange, Hpa, Level};
use crate::mem::format::Leaf;
use crate::mem::mmu::{TablePage, TablePool};
use crate::mem::walk::{Allow, Change, Cursor, MapError, MappedLeaf, Narrowed, PageTable};
use crate::x86::paging::fmt_ept::{Ept, EptNoAd};
use crate::x86::paging::fmt_npt::Npt;
use crate::x86::vendor::{choose, HwCaps, NestedFormat};
use kernel::prelude::*;

/// Whether the processor can log the pages whose dirty bits it sets ([`HwCaps::write_log`]).
pub(crate) fn processor_logs() -> bool {
    choose::caps().is_some_and(|c| c.write_log)
}

/// Entries are never broken before others are made.
pub(crate) const FORGETS: bool = false;

/// Nothing to do for that.
#[inline(always)]
pub(crate) fn forget_translations() {}

/// Caches are coherent: nothing is to be done for a page that has left.
pub(crate) struct LeavingPages;

impl LeavingPages {
    /// None.
    pub(crate) const fn new() -> Self {
        Self
    }

    /// Whether pages have to be named.
    #[inline(always)]
    pub(crate) fn are_wanted() -> bool {
        false
    }

    /// A page has left.
    #[inline(always)]
    pub(crate) fn put(&mut self, _leaf: &MappedLeaf) -> bool {
        true
    }

    /// Nobody has their translations any more.
    #[inline(always)]
    pub(crate) fn finish(&mut self) {}
}

/// What was flushed when is not kept.
#[inline(always)]
pub(crate) fn takes_away(_old: u64, _new: u64) -> bool {
    false
}

/// EPT or NPT, as the processor wants it.
pub(crate) enum NestedTable {
    /// EPT with accessed and dirty flags (SDM 3C 29.3).
    Ept(PageTable<Ept, TablePool>),
    /// EPT without accessed and dirty flags.
    EptNoAd(PageTable<EptNoAd, TablePool>),
    /// APM 2 15.25.
    Npt(PageTable<Npt, TablePool>),
}

macro_rules! dispatch {
    ($self:expr, $t:ident => $e:expr) => {
        match $self {
            Self::Ept($t) => $e,
            Self::EptNoAd($t) => $e,
            Self::Npt($t) => $e,
        }
    };
}

impl NestedTable {
    /// First guest-physical address that no VM has, and first address past a process's memory.
    ///
    /// The first goes by the processor's own width, which guests see.
    pub(crate) fn address_limits(&self) -> (u64, u64) {
        let width = choose::caps().map_or(0, |c| c.phys_bits);
        (1 << width.clamp(36, 48), uaccess::end() as u64)
    }

    /// An empty table of the format that `caps` asks for.
    pub(crate) fn new(caps: &HwCaps) -> Result<Self> {
        let (root, levels) = (TablePage::new()?, caps.nested_levels);
        let table = match (caps.nested_format, caps.nested_ad) {
            (NestedFormat::Ept, true) => PageTable::with_root(root, levels).map(Self::Ept),
            (NestedFormat::Ept, false) => PageTable::with_root(root, levels).map(Self::EptNoAd),
            (NestedFormat::Npt, _) => PageTable::with_root(root, levels).map(Self::Npt),
        };
        table.map_err(|_| EINVAL)
    }

    /// Physical address of the root table.
    pub(crate) fn root(&self) -> Hpa {
        dispatch!(self, t => t.root())
    }

    /// [`PageTable::map`].
    #[inline]
    pub(crate) fn map(
        &self,
        pool: &mut TablePool,
        gpa: Gpa,
        level: Level,
        leaf: &Leaf,
        allow: Allow,
    ) -> Result<Change, MapError> {
        dispatch!(self, t => t.map(pool, gpa, level, leaf, allow))
    }

    /// [`PageTable::map_new`].
    #[inline]
    pub(crate) fn map_new(
        &self,
        pool: &mut TablePool,
        gpa: Gpa,
        level: Level,
        leaf: &Leaf,
    ) -> Result<(), MapError> {
        dispatch!(self, t => t.map_new(pool, gpa, level, leaf))
    }

    /// [`PageTable::map_parts`].
    #[inline(never)]
    pub(crate) fn map_parts(
        &self,
        pool: &mut TablePool,
        gpa: Gpa,
        leaf: &Leaf,
        allow: Allow,
    ) -> Result<Change, MapError> {
        dispatch!(self, t => t.map_parts(pool, gpa, leaf, allow))
    }

    /// [`PageTable::has_parts`].
    pub(crate) fn has_parts(&self, pool: &TablePool, gpa: Gpa, level: Level) -> bool {
        dispatch!(self, t => t.has_parts(pool, gpa, level))
    }

    /// [`PageTable::unmap_some`].
    pub(crate) fn unmap_some(
        &self,
        pool: &mut TablePool,
        cursor: &mut Cursor,
        budget: u32,
    ) -> bool {
        dispatch!(self, t => t.unmap_some(pool, cursor, budget))
    }

    /// [`PageTable::freeze`].
    pub(crate) fn freeze(&self, pool: &mut TablePool) -> bool {
        dispatch!(self, t => t.freeze(pool))
    }

    /// [`PageTable::is_frozen`].
    pub(crate) fn is_frozen(&self, pool: &TablePool, gpa: Gpa) -> bool {
        dispatch!(self, t => t.is_frozen(pool, gpa))
    }

    /// [`PageTable::thaw_begin`].
    pub(crate) fn thaw_begin(&self, pool: &mut TablePool, gpa: Gpa) -> Option<Narrowed> {
        dispatch!(self, t => t.thaw_begin(pool, gpa))
    }

    /// [`PageTable::thaw_end`].
    pub(crate) fn thaw_end(&self, pool: &mut TablePool, gpa: Gpa, level: Level) {
        dispatch!(self, t => t.thaw_end(pool, gpa, level))
    }

    /// [`PageTable::write_protect_some`].
    pub(crate) fn write_protect_some(
        &self,
        pool: &mut TablePool,
        cursor: &mut Cursor,
        budget: u32,
    ) -> bool {
        dispatch!(self, t => t.write_protect_some(pool, cursor, budget))
    }

    /// [`PageTable::clean_some`].
    pub(crate) fn clean_some(
        &self,
        pool: &mut TablePool,
        cursor: &mut Cursor,
        budget: u32,
    ) -> bool {
        dispatch!(self, t => t.clean_some(pool, cursor, budget))
    }

    /// [`PageTable::split_some`].
    pub(crate) fn split_some(
        &self,
        pool: &mut TablePool,
        cursor: &mut Cursor,
        budget: u32,
        clean: bool,
    ) -> bool {
        dispatch!(self, t => t.split_some(pool, cursor, budget, clean))
    }

    /// [`PageTable::join_some`].
    pub(crate) fn join_some(
        &self,
        pool: &mut TablePool,
        cursor: &mut Cursor,
        budget: u32,
        whole: &mut dyn FnMut(Gpa, Level) -> bool,
    ) -> bool {
        dispatch!(self, t => t.join_some(pool, cursor, budget, whole))
    }

    /// Whether ageing takes nothing away.
    pub(crate) fn has_accessed_bits(&self) -> bool {
        !matches!(self, Self::EptNoAd(_))
    }

    /// [`PageTable::age_some`].
    pub(crate) fn age_some(&self, pool: &mut TablePool, cursor: &mut Cursor, budget: u32) -> bool {
        dispatch!(self, t => t.age_some(pool, cursor, budget))
    }

    /// [`PageTable::test_accessed`].
    pub(crate) fn test_accessed(&self, pool: &mut TablePool, range: GpaRange) -> bool {
        dispatch!(self, t => t.test_accessed(pool, range))
    }

    /// All that the table can map.
    pub(crate) fn all(&self) -> GpaRange {
        dispatch!(self, t => t.all())
    }

    /// [`PageTable::show_some`].
    pub(crate) fn show_some(
        &self,
        pool: &mut TablePool,
        cursor: &mut Cursor,
        budget: u32,
        show: &mut dyn FnMut(&MappedLeaf),
    ) -> bool {
        dispatch!(self, t => t.show_some(pool, cursor, budget, show))
    }

    /// Frees every table but the root, which goes with `self`. No processor uses them any more.
    pub(crate) fn clear(&mut self) {
        let mut pool = TablePool::new();
        let mut cursor = Cursor::new(self.all());
        while !dispatch!(self, t => t.clear_some(&mut pool, &mut cursor, 16 * 1024)) {
            pool.release_now();
        }
        pool.release_now();
    }
}
