// SPDX-License-Identifier: GPL-2.0
//! The tables that a page table is made of, how they are read and written, and progress through a range of them.
#![forbid(unsafe_code)]

use core::marker::PhantomData;

use crate::mem::addr::{Gpa, GpaRange, Hpa, Level, TABLE_ENTRIES};
use crate::mem::format::{Format, MemType, Perm};

/// Memory that a table is made of: a zeroed page that its owner gives away.
pub trait Page {
    /// How many tables find room, one behind the other.
    #[inline]
    fn tables(&self) -> u64 {
        1
    }

    /// Physical address of the first; the memory stays allocated while `self` lives.
    fn hpa(&self) -> Hpa;

    /// Gives the memory away for its physical address. As a [`Table`] it comes back to [`Tables::free`].
    fn into_hpa(self) -> Hpa;
}

/// A page table: 512 entries in a page that was a `P`.
///
/// # Invariants
///
/// The page is allocated. Only `walk` makes tables: of a root, of what [`Tables::alloc`] gave, and of a
/// present entry of another table that is no leaf. [`Tables::free`] is given a table after the entry that pointed to it
/// has gone; handles made of that entry before live no longer than the operation that made them, and the owner waits
/// for operations that began before (see [`Tables::free`]).
pub struct Table<P>(Hpa, PhantomData<fn() -> P>);

impl<P> Table<P> {
    /// Where the table lies.
    #[inline]
    pub const fn hpa(&self) -> Hpa {
        self.0
    }

    /// The table that lies at `hpa`.
    #[inline]
    pub(super) const fn at(hpa: Hpa) -> Self {
        Self(hpa, PhantomData)
    }

    /// The table that `entry` points to, which is present and no leaf.
    #[inline]
    pub(super) fn child<F: Format>(entry: u64) -> Self {
        Self::at(F::child(entry))
    }
}

/// Access to table memory for one caller; `index` is always below 512.
pub trait Tables {
    /// What tables are made of.
    type Page: Page;

    /// Whether [`Tables::flush`] does what it says: needed for [`Format::BREAK_FIRST`].
    const FLUSHES: bool = false;

    /// Whether [`Tables::removed`] has to be told. If not, tables of 4 KiB leaves are not read when they go.
    #[inline]
    fn reports(&self) -> bool {
        false
    }

    /// Returns after every processor has forgotten what it had cached of entries that are not present any more.
    #[inline]
    fn flush(&mut self) {}

    /// Reads an entry once (an atomic load with acquire ordering: what the entry points to was written before).
    fn load(&self, table: &Table<Self::Page>, index: usize) -> u64;

    /// Writes an entry of a table that is not linked, or in a tree that nobody else uses.
    fn store(&self, table: &Table<Self::Page>, index: usize, value: u64);

    /// Replaces `old` by `new` atomically, or returns the value that is there instead. Release ordering: a table's
    /// content has to be visible before the entry that points to it.
    fn cmpxchg(
        &self,
        table: &Table<Self::Page>,
        index: usize,
        old: u64,
        new: u64,
    ) -> Result<(), u64>;

    /// Replaces an entry atomically and returns what was there.
    #[inline]
    fn swap(&self, table: &Table<Self::Page>, index: usize, new: u64) -> u64 {
        let mut old = self.load(table, index);
        loop {
            match self.cmpxchg(table, index, old, new) {
                Ok(()) => return old,
                Err(now) => old = now,
            }
        }
    }

    /// Memory for a table, or `None`. One `map` asks for at most [`MAX_ALLOC_PER_MAP`].
    fn alloc(&mut self) -> Option<Self::Page>;

    /// Gives back a table that [`Tables::alloc`] gave and that was never linked. It may have been written.
    fn unused(&mut self, table: Table<Self::Page>);

    /// Gives back a table that was linked. Processors and other operations may still walk it: the memory must not be
    /// reused before the translations have been flushed, and the operations that began before the flush are over.
    fn free(&mut self, table: Table<Self::Page>);

    /// Told about each leaf that goes away, for example to mark the host page dirty. Not called by
    /// [`super::PageTable::clear_some`].
    #[inline]
    fn removed(&mut self, _leaf: &MappedLeaf) {}
}

/// Tables that one [`super::PageTable::map`] may allocate: one for each level below the root of a 5-level tree.
pub const MAX_ALLOC_PER_MAP: usize = 4;

/// A leaf with its place, as it was taken out of the table or found there. What is taken out is dirty for the module
/// where it was mapped writable; the tests follow every page by its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedLeaf {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// First host-physical address.
    pub hpa: Hpa,
    /// Size of the page.
    pub level: Level,
    /// What is there.
    pub mem_type: MemType,
    /// Accessed since mapped or last aged.
    pub accessed: bool,
    /// Written since mapped or last cleaned.
    pub dirty: bool,
    /// Rights.
    pub perm: Perm,
}

impl MappedLeaf {
    /// The leaf `entry` of `level` that mapped `gpa`.
    #[inline]
    pub(super) fn of<F: Format>(entry: u64, level: Level, gpa: Gpa) -> Self {
        Self {
            gpa,
            hpa: F::addr(entry, level),
            level,
            mem_type: F::mem_type(entry, level),
            accessed: F::accessed(entry),
            dirty: F::dirty(entry),
            perm: F::perm(entry),
        }
    }
}

/// Progress through a range in pieces of bounded work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    start: u64,
    pub(super) pos: u64,
    pub(super) end: u64,
    /// Which pages of 4 KiB are meant, by their number in the range; all ones: all.
    pages: u64,
    /// Set when translations have to be flushed, after the last piece at the latest.
    pub flush: bool,
    /// Set when something was found: a leaf removed, accessed or changed, depending on the operation.
    pub hit: bool,
}

impl Cursor {
    /// At the start of `range`.
    #[inline]
    pub const fn new(range: GpaRange) -> Self {
        Self {
            start: range.start().0,
            pos: range.start().0,
            end: range.end().0,
            pages: u64::MAX,
            flush: false,
            hit: false,
        }
    }

    /// At the start of `range`, of no more than 64 pages of 4 KiB, of which those are meant that have a bit in `pages`:
    /// for [`PageTable::write_protect_some`](super::PageTable::write_protect_some) and
    /// [`PageTable::clean_some`](super::PageTable::clean_some).
    #[inline]
    pub const fn of_pages(range: GpaRange, pages: u64) -> Self {
        let mut cursor = Self::new(range);
        cursor.pages = pages;
        cursor
    }

    /// Whether the page of 4 KiB at `base` is meant, which lies in the range.
    #[inline]
    pub(super) const fn means(&self, base: u64) -> bool {
        let number = base.wrapping_sub(self.start) >> Level::L1.shift();
        self.pages == u64::MAX || self.pages.wrapping_shr(number as u32) & 1 != 0
    }

    /// Whether the `size` bytes from `base` lie inside the range.
    #[inline]
    pub(super) const fn covers(&self, base: u64, size: u64) -> bool {
        // `base` is aligned to `size` and below 2^57: no overflow.
        self.start <= base && base.wrapping_add(size) <= self.end
    }
}

/// `entry` of `level`, which was present, has been taken out at `gpa`: reports the leaf, or takes out the table.
pub(super) fn gone<F: Format, T: Tables>(t: &mut T, entry: u64, level: Level, gpa: Gpa) {
    if F::is_leaf(entry, level) {
        t.removed(&MappedLeaf::of::<F>(entry, level, gpa));
    } else if let Some(below) = level.down() {
        retire::<F, T>(t, Table::child::<F>(entry), below, gpa);
    }
}

/// Gives `table` of `level`, which maps what begins at `base` and to which nothing points any more, to
/// [`Tables::free`], with all below.
pub(super) fn retire<F: Format, T: Tables>(
    t: &mut T,
    table: Table<T::Page>,
    level: Level,
    base: Gpa,
) {
    if t.reports() || level != Level::L1 {
        for i in 0..TABLE_ENTRIES {
            // A processor may hold the table in its paging-structure cache and still set a dirty bit: only the
            // exchange tells the last word.
            let old = t.swap(&table, i, F::FROZEN);
            if F::present(old) {
                let at = base.0 | (i as u64).wrapping_shl(level.shift());
                gone::<F, T>(t, old, level, Gpa(at));
            }
        }
    }
    t.free(table);
}
