// SPDX-License-Identifier: GPL-2.0
//! The nested page table in the format that the processor wants: EPT or NPT, chosen when a VM is made.
//!
//! Called by `mem` under the lock of guest memory. Each operation is that of [`PageTable`] with the same name.

use crate::linux::uaccess;
use crate::mem::addr::{Gpa, GpaRange, Hpa, Level};
use crate::mem::format::Leaf;
use crate::mem::mmu::{TablePage, TablePool};
use crate::mem::walk::{Aged, Change, Cursor, MapError, PageTable};
use crate::x86::paging::fmt_ept::{Ept, EptNoAd};
use crate::x86::paging::fmt_npt::Npt;
use crate::x86::vendor::{choose, HwCaps, NestedFormat};
use kernel::prelude::*;

/// First guest-physical address that no VM has, and first address past a process's memory.
///
/// The first goes by the processor's own width, which guests see.
pub(crate) fn address_limits() -> (u64, u64) {
    let width = choose::caps().map_or(0, |c| c.phys_bits);
    (1 << width.clamp(36, 48), uaccess::end() as u64)
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
        &mut self,
        pool: &mut TablePool,
        gpa: Gpa,
        level: Level,
        leaf: &Leaf,
    ) -> Result<Change, MapError> {
        dispatch!(self, t => t.map(pool, gpa, level, leaf))
    }

    /// [`PageTable::map_new`].
    #[inline]
    pub(crate) fn map_new(
        &mut self,
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
        &mut self,
        pool: &mut TablePool,
        gpa: Gpa,
        leaf: &Leaf,
        only_new: bool,
    ) -> Result<Change, MapError> {
        dispatch!(self, t => t.map_parts(pool, gpa, leaf, only_new))
    }

    /// [`PageTable::has_parts`].
    pub(crate) fn has_parts(&self, pool: &TablePool, gpa: Gpa) -> bool {
        dispatch!(self, t => t.has_parts(pool, gpa))
    }

    /// [`PageTable::unmap_some`].
    pub(crate) fn unmap_some(
        &mut self,
        pool: &mut TablePool,
        cursor: &mut Cursor,
        budget: u32,
    ) -> bool {
        dispatch!(self, t => t.unmap_some(pool, cursor, budget))
    }

    /// [`PageTable::write_protect_some`].
    pub(crate) fn write_protect_some(
        &mut self,
        pool: &mut TablePool,
        cursor: &mut Cursor,
        budget: u32,
    ) -> bool {
        dispatch!(self, t => t.write_protect_some(pool, cursor, budget))
    }

    /// [`PageTable::age`].
    pub(crate) fn age(&mut self, pool: &mut TablePool, range: GpaRange) -> Aged {
        dispatch!(self, t => t.age(pool, range))
    }

    /// [`PageTable::test_accessed`].
    pub(crate) fn test_accessed(&mut self, pool: &mut TablePool, range: GpaRange) -> bool {
        dispatch!(self, t => t.test_accessed(pool, range))
    }

    /// Frees every table but the root, which goes with `self`.
    pub(crate) fn clear(&mut self, pool: &mut TablePool) {
        let mut cursor = Cursor::new(dispatch!(self, t => t.all()));
        while !dispatch!(self, t => t.clear_some(pool, &mut cursor, 16 * 1024)) {
            pool.release();
        }
        pool.release();
    }
}
