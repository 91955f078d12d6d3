// SPDX-License-Identifier: GPL-2.0
//! A nested page table in the machine's own format, and the pages that it is made of.

use crate::linux::page::Pages;
use crate::mem::addr::{Gpa, GpaRange, Hpa, Level};
use crate::mem::memory::table_ptr;
use crate::mem::walk::{
    Aged, Change, Cursor, Leaf, MapError, PageTable, Tables, MAX_ALLOC_PER_MAP,
};
use crate::x86::paging::fmt_ept::{Ept, EptNoAd};
use crate::x86::paging::fmt_npt::Npt;
use crate::x86::vendor::HwCaps;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;

/// Spare tables kept ready: enough for one `map` of each of a few vCPUs.
const SPARE: usize = 4 * MAX_ALLOC_PER_MAP;
/// Tables that one bounded operation can unlink: it visits 32 of them and their parents (see `memory::BUDGET`).
const FREED: usize = 64;

/// Table pages: spare ones, and unlinked ones that a processor may still walk.
///
/// # Invariants
///
/// Every address came from `Pages::into_phys` of one page and is in no table.
pub(crate) struct TablePool {
    spare: [Hpa; SPARE],
    spares: usize,
    freed: [Hpa; FREED],
    freeds: usize,
}

impl TablePool {
    /// Empty.
    pub(crate) const fn new() -> Self {
        Self {
            spare: [Hpa(0); SPARE],
            spares: 0,
            freed: [Hpa(0); FREED],
            freeds: 0,
        }
    }

    /// Fewer spares than one `map` may need.
    pub(crate) fn is_low(&self) -> bool {
        self.spares < MAX_ALLOC_PER_MAP
    }

    /// Allocates one table. Sleeps.
    pub(crate) fn add(&mut self) -> Result {
        self.put_spare(Pages::new(0)?.into_phys());
        Ok(())
    }

    /// Allocates until there is enough for one `map`. Sleeps.
    pub(crate) fn top_up(&mut self) -> Result {
        while self.is_low() {
            self.add()?;
        }
        Ok(())
    }

    /// Moves spares over from `other`.
    pub(crate) fn take_from(&mut self, other: &mut Self) {
        while self.spares < SPARE {
            let Some(t) = other.alloc() else { return };
            self.put_spare(t.0);
        }
    }

    fn put_spare(&mut self, phys: u64) {
        if let Some(s) = self.spare.get_mut(self.spares) {
            *s = Hpa(phys);
            self.spares += 1;
        } else {
            // SAFETY: From `Pages::into_phys` by the invariant, and in no table.
            drop(unsafe { Pages::from_phys(phys, 0) });
        }
    }

    /// Frees the unlinked tables. Translations have been flushed, or nothing was unlinked since the last call.
    pub(crate) fn release(&mut self) {
        for t in self.freed.iter().take(self.freeds) {
            // SAFETY: From `Pages::into_phys` by the invariant; unlinked, and flushed by the caller's contract.
            drop(unsafe { Pages::from_phys(t.0, 0) });
        }
        self.freeds = 0;
    }
}

impl Drop for TablePool {
    fn drop(&mut self) {
        self.release();
        while let Some(t) = self.alloc() {
            // SAFETY: A spare; from `Pages::into_phys` by the invariant.
            drop(unsafe { Pages::from_phys(t.0, 0) });
        }
    }
}

/// The entry at `index` of `table`.
fn entry<'a>(table: Hpa, index: usize) -> &'a AtomicU64 {
    // SAFETY: `Tables`' contract: `table` is the root or came from `alloc`, so it is a page of ours that stays allocated while it is
    // linked, and it is only freed under the same lock; the index is cut to the page. Hardware and software access it by
    // atomic 64-bit accesses only.
    unsafe { AtomicU64::from_ptr(table_ptr(table).add(index & 511)) }
}

impl Tables for TablePool {
    #[inline]
    fn load(&self, table: Hpa, index: usize) -> u64 {
        entry(table, index).load(Ordering::Relaxed)
    }

    #[inline]
    fn store(&self, table: Hpa, index: usize, value: u64) {
        entry(table, index).store(value, Ordering::Release);
    }

    #[inline]
    fn cmpxchg(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64> {
        entry(table, index)
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .map(|_| ())
    }

    fn alloc(&mut self) -> Option<Hpa> {
        let n = self.spares.checked_sub(1)?;
        let t = *self.spare.get(n)?;
        self.spares = n;
        Some(t)
    }

    fn free(&mut self, table: Hpa) {
        match self.freed.get_mut(self.freeds) {
            Some(f) => {
                *f = table;
                self.freeds += 1;
            }
            // The budget rules this out; a lost page is the lesser evil against one that is reused while walked.
            None => kernel::pr_err_once!(
                "more page tables unlinked at once than accounted for; a page is lost\n"
            ),
        }
    }
}

/// EPT or NPT, as the processor wants it.
pub(crate) enum NestedTable {
    /// SDM 3C 29.3.
    Ept(PageTable<Ept>),
    /// The same without accessed and dirty flags.
    EptNoAd(PageTable<EptNoAd>),
    /// APM 2 15.25.
    Npt(PageTable<Npt>),
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
    /// An empty table of the format that `caps` asks for, whose root is the zeroed page `root`.
    pub(crate) fn with_root(root: Hpa, caps: &HwCaps) -> Result<Self> {
        let levels = caps.nested_levels;
        let t = match (caps.name, caps.nested_ad) {
            ("vmx", true) => PageTable::with_root(root, levels).map(Self::Ept),
            ("vmx", false) => PageTable::with_root(root, levels).map(Self::EptNoAd),
            _ => PageTable::with_root(root, levels).map(Self::Npt),
        };
        t.map_err(|_| EINVAL)
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
    ) -> Result<Change, MapError> {
        dispatch!(self, t => t.map(pool, gpa, level, leaf))
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
        &self,
        pool: &mut TablePool,
        cursor: &mut Cursor,
        budget: u32,
    ) -> bool {
        dispatch!(self, t => t.unmap_some(pool, cursor, budget))
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

    /// [`PageTable::age`].
    pub(crate) fn age(&self, pool: &mut TablePool, range: GpaRange) -> Aged {
        dispatch!(self, t => t.age(pool, range))
    }

    /// [`PageTable::test_accessed`].
    pub(crate) fn test_accessed(&self, pool: &mut TablePool, range: GpaRange) -> bool {
        dispatch!(self, t => t.test_accessed(pool, range))
    }

    /// Frees every table; `self` maps nothing afterwards and its root is gone.
    pub(crate) fn destroy(&self, pool: &mut TablePool) {
        let mut cursor = Cursor::new(dispatch!(self, t => t.all()));
        while !dispatch!(self, t => t.destroy_some(pool, &mut cursor, 16 * 1024)) {
            pool.release();
        }
        pool.release();
    }
}
