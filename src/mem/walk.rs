// SPDX-License-Identifier: GPL-2.0
//! Nested page tables: one walker for every entry format and every architecture.
//!
//! The walker knows levels, ranges and the life of tables; a [`Format`] knows the bits of one entry; a
//! [`Tables`] reads, writes, allocates and frees tables. What changes a tree takes it by `&mut`, so that one
//! caller at a time does; its owner keeps it under a lock. The processor is the only other writer: it may set
//! the accessed and dirty bits of a present entry at any time, therefore present entries are only ever changed
//! by `cmpxchg` and `swap`.
//!
//! ```text
//!   address      | index | index | index | offset |      one index of 9 bits for each level
//!                    |       |       |
//!   root ---------> [.] --> [.] --> [.] --> 4 KiB page    an entry points to a table or, as a leaf, to memory;
//!   (1 or more         \       \                           leaves of 2 MiB and 1 GiB end the walk early
//!    tables in a row)   1 GiB   2 MiB
//! ```
//!
//! A page table is a cache of what the owner's address space maps. Nothing is lost when more than asked is
//! removed: the next access faults and the owner maps again. `unmap` uses this for huge leaves.
#![forbid(unsafe_code)]

mod table;
mod visitors;

pub use table::{Cursor, Page, Removed, Table, Tables, MAX_ALLOC_PER_MAP};

use core::marker::PhantomData;

use crate::mem::addr::{Gpa, GpaRange, Hpa, Level, MAX_PHYS_BITS, PAGE_SIZE, TABLE_ENTRIES};
use crate::mem::format::{Format, Leaf};
use table::update;
use visitors::{Age, Entry, TestAccessed, Unmap, Visitor, WriteProtect};

/// What [`PageTable::map`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The mapping was already there with at least the rights asked for.
    Spurious,
    /// Nothing was mapped there before.
    New,
    /// Only rights were added to the same page: stale translations fault at most once more.
    Upgraded,
    /// Another translation was there: flush before the lock is released.
    Replaced,
}

impl Change {
    /// Whether translations have to be flushed.
    #[inline]
    pub const fn needs_flush(self) -> bool {
        matches!(self, Self::Replaced)
    }
}

/// Why [`PageTable::map`] did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// [`PageTable::map_new`]: something is mapped there.
    Present,
    /// `alloc` gave nothing. Tables allocated so far stay linked and serve the next attempt. `flush` is set if
    /// a huge leaf has been split already.
    NoMemory {
        /// Whether translations have to be flushed.
        flush: bool,
    },
    /// An address is not aligned to the level, or the level has no leaves.
    Misaligned,
    /// An address is wider than the tables or than a physical address.
    OutOfRange,
    /// The format has no such combination of rights.
    Perm,
}

/// Budget used by a visit to a whole table.
const TABLE_COST: u32 = TABLE_ENTRIES as u32;

/// A nested page table of format `F`, made of the tables of `T`.
///
/// # Invariants
///
/// `root` is the address of `page`, which holds [`Format::ROOT_TABLES`] tables; every present non-leaf entry
/// points to a table that nothing else points to.
pub struct PageTable<F: Format, T: Tables> {
    root: Hpa,
    top: Level,
    /// Goes with the value, when no processor uses the tables any more.
    _page: T::Page,
    format: PhantomData<fn() -> F>,
}

impl<F: Format, T: Tables> PageTable<F, T> {
    /// An empty table whose root is `page`.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfRange`] for a number of levels that the format does not have, or too small a root.
    pub fn with_root(page: T::Page, levels: u8) -> Result<Self, MapError> {
        const { assert!(T::FLUSHES || !F::BREAK_FIRST) };
        let fits = F::LEVELS.0 <= levels && levels <= F::LEVELS.1;
        match Level::from_u8(levels) {
            Some(top) if fits && page.tables() >= F::ROOT_TABLES => Ok(Self {
                root: page.hpa(),
                top,
                _page: page,
                format: PhantomData,
            }),
            _ => Err(MapError::OutOfRange),
        }
    }

    /// Address of the root table, for EPTP or nested CR3.
    #[inline]
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// First guest-physical address that the table cannot map.
    #[inline]
    pub const fn limit(&self) -> Gpa {
        Gpa(self.top.table_size().wrapping_mul(F::ROOT_TABLES))
    }

    /// The table of the root's level that maps `address`, which is below the limit.
    #[inline]
    fn first_table(&self, address: u64) -> Table<T::Page> {
        let nth = if F::ROOT_TABLES > 1 {
            address / self.top.table_size()
        } else {
            0
        };
        let at = self.root.0.wrapping_add(nth.wrapping_mul(PAGE_SIZE));
        Table::at(Hpa(at))
    }

    /// A new table.
    #[inline]
    fn alloc(t: &mut T) -> Result<Table<T::Page>, MapError> {
        let page = t.alloc().ok_or(MapError::NoMemory { flush: false })?;
        Ok(Table::at(page.into_hpa()))
    }

    /// Replaces the present entry by the present `new`, which has another address or size. Returns what was there.
    #[inline]
    fn replace(t: &mut T, table: &Table<T::Page>, index: usize, new: u64) -> u64 {
        if !F::BREAK_FIRST {
            return t.swap(table, index, new);
        }
        let old = t.swap(table, index, F::NON_PRESENT);
        t.flush();
        t.store(table, index, new);
        old
    }

    /// Goes down to the table of `level` for `gpa` and adds tables where there are none. A leaf in the way is
    /// handed to `on_leaf` with its table, index and level; the table that takes its place is the way on.
    #[inline]
    fn descend(
        &self,
        t: &mut T,
        gpa: Gpa,
        level: Level,
        mut on_leaf: impl FnMut(
            &mut T,
            &Table<T::Page>,
            usize,
            Level,
            u64,
        ) -> Result<Table<T::Page>, MapError>,
    ) -> Result<Table<T::Page>, MapError> {
        let mut table = self.first_table(gpa.0);
        let mut at = self.top;
        while at > level {
            let index = at.index(gpa.0);
            let entry = t.load(&table, index);
            table = if !F::present(entry) {
                let child = Self::alloc(t)?;
                t.store(&table, index, F::table(child.hpa()));
                child
            } else if F::is_leaf(entry, at) {
                on_leaf(t, &table, index, at, entry)?
            } else {
                Table::child::<F>(entry)
            };
            let Some(down) = at.down() else { break };
            at = down;
        }
        Ok(table)
    }

    /// Whether the format can hold `leaf` of size `level` at `gpa`.
    #[inline]
    fn check_leaf(&self, gpa: Gpa, level: Level, leaf: &Leaf) -> Result<(), MapError> {
        if level > Level::L3 || !gpa.is_aligned(level) || !leaf.hpa.is_aligned(level) {
            return Err(MapError::Misaligned);
        }
        if gpa >= self.limit() || leaf.hpa.0 >> MAX_PHYS_BITS != 0 {
            return Err(MapError::OutOfRange);
        }
        if !F::can_express(leaf.perm) {
            return Err(MapError::Perm);
        }
        Ok(())
    }

    /// Maps the page of size `level` at `gpa`, so that at least the rights asked for are granted.
    ///
    /// A larger leaf in the way is split, smaller ones are removed with their tables. The same page with at
    /// least these rights is left alone; with fewer, its rights become those of `leaf` and its accessed and
    /// dirty bits stay. Replacing a table by a 1 GiB leaf visits all tables below it: unmap in pieces before,
    /// where that is too long.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; no translation has changed then.
    #[inline]
    pub fn map(
        &mut self,
        t: &mut T,
        gpa: Gpa,
        level: Level,
        leaf: &Leaf,
    ) -> Result<Change, MapError> {
        self.check_leaf(gpa, level, leaf)?;
        let mut split = false;
        let table = self.descend(t, gpa, level, |t, table, index, at, entry| {
            let child = Self::alloc(t)?;
            Self::split(t, table, index, at, entry, &child);
            split = true;
            Ok(child)
        });
        let table = table.map_err(|e| match e {
            MapError::NoMemory { .. } => MapError::NoMemory { flush: split },
            e => e,
        })?;
        let index = level.index(gpa.0);
        let new = F::leaf(level, leaf);
        let old = t.load(&table, index);
        if !F::present(old) {
            t.store(&table, index, new);
            return Ok(Change::New);
        }
        if !F::is_leaf(old, level) {
            // The range covers the table exactly, so that unmapping it clears this entry as well.
            if let Some(range) = GpaRange::new(gpa, level.size()) {
                self.unmap(t, range);
            }
            if F::BREAK_FIRST {
                t.flush();
            }
            t.store(&table, index, new);
            return Ok(Change::Replaced);
        }
        if F::addr(old, level) == leaf.hpa && F::mem_type(old, level) == F::mem_type(new, level) {
            let have = F::perm(old);
            let more = !have.contains(leaf.perm);
            if more {
                update(t, &table, index, old, |e| {
                    F::set_ad(new, F::accessed(e), F::dirty(e))
                });
            }
            return Ok(match (split, more) {
                (true, _) => Change::Replaced,
                (false, false) => Change::Spurious,
                (false, true) if leaf.perm.contains(have) => Change::Upgraded,
                (false, true) => Change::Replaced,
            });
        }
        let old = Self::replace(t, &table, index, new);
        t.removed(&Removed::of::<F>(old, level, gpa));
        Ok(Change::Replaced)
    }

    /// As [`PageTable::map`], but only where nothing is mapped yet, so that nothing has to be flushed.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; no translation has changed then.
    #[inline]
    pub fn map_new(
        &mut self,
        t: &mut T,
        gpa: Gpa,
        level: Level,
        leaf: &Leaf,
    ) -> Result<(), MapError> {
        self.check_leaf(gpa, level, leaf)?;
        let table = self.descend(t, gpa, level, |_, _, _, _, _| Err(MapError::Present))?;
        let index = level.index(gpa.0);
        if F::present(t.load(&table, index)) {
            return Err(MapError::Present);
        }
        t.store(&table, index, F::leaf(level, leaf));
        Ok(())
    }

    /// Maps the 2 MiB at `gpa` as `leaf` says, in 512 leaves of 4 KiB: where a huge leaf must not have its rights. With
    /// `only_new` only where nothing is mapped yet, so that nothing has to be flushed.
    ///
    /// A leaf of 2 MiB there is replaced; a table is left alone.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; [`MapError::Present`] where there is a table already. No translation has changed then.
    pub fn map_parts(
        &mut self,
        t: &mut T,
        gpa: Gpa,
        leaf: &Leaf,
        only_new: bool,
    ) -> Result<Change, MapError> {
        self.check_leaf(gpa, Level::L2, leaf)?;
        let table = self.descend(t, gpa, Level::L2, |_, _, _, _, _| Err(MapError::Present))?;
        let index = Level::L2.index(gpa.0);
        let old = t.load(&table, index);
        if F::present(old) && (only_new || !F::is_leaf(old, Level::L2)) {
            return Err(MapError::Present);
        }
        let child = Self::alloc(t)?;
        Self::fill(t, &child, Level::L1, *leaf);
        if !F::present(old) {
            t.store(&table, index, F::table(child.hpa()));
            return Ok(Change::New);
        }
        let old = Self::replace(t, &table, index, F::table(child.hpa()));
        t.removed(&Removed::of::<F>(old, Level::L2, gpa));
        Ok(Change::Replaced)
    }

    /// Fills `child` with leaves of `level` that follow each other in memory, the first of them `leaf`.
    #[inline]
    fn fill(t: &T, child: &Table<T::Page>, level: Level, mut leaf: Leaf) {
        for i in 0..TABLE_ENTRIES {
            t.store(child, i, F::leaf(level, &leaf));
            leaf.hpa = Hpa(leaf.hpa.0.wrapping_add(level.size()));
        }
    }

    /// Whether `gpa` lies in 2 MiB that have a table of 4 KiB leaves.
    #[inline]
    pub fn has_parts(&self, t: &T, gpa: Gpa) -> bool {
        gpa < self.limit() && self.find_table(t, gpa.0, Level::L2).is_some()
    }

    /// Puts `child`, filled with the 512 parts of the huge leaf `entry`, in its place.
    fn split(
        t: &mut T,
        table: &Table<T::Page>,
        index: usize,
        level: Level,
        mut entry: u64,
        child: &Table<T::Page>,
    ) {
        let Some(below) = level.down() else { return };
        let mut there = entry;
        if F::BREAK_FIRST {
            entry = t.swap(table, index, F::NON_PRESENT);
            t.flush();
            there = F::NON_PRESENT;
        }
        loop {
            let part = Leaf {
                hpa: F::addr(entry, level),
                perm: F::perm(entry),
                mem_type: F::mem_type(entry, level),
                accessed: F::accessed(entry),
                dirty: F::dirty(entry),
            };
            Self::fill(t, child, below, part);
            // The processor may have set the accessed or dirty bit meanwhile: the parts inherit it.
            match t.cmpxchg(table, index, there, F::table(child.hpa())) {
                Ok(()) => return,
                Err(now) => (entry, there) = (now, now),
            }
        }
    }

    /// Removes all that is mapped in `range`, and the tables that it covers. Returns whether translations have
    /// to be flushed. A huge leaf that is partly in the range goes as a whole.
    pub fn unmap(&mut self, t: &mut T, range: GpaRange) -> bool {
        let mut cur = Cursor::new(range);
        while !self.unmap_some(t, &mut cur, u32::MAX) {}
        cur.flush
    }

    /// Like [`PageTable::unmap`] from where `cur` stands, for about `budget` entries (each table freed counts
    /// 512). Returns true at the end of the range. Sets `cur.flush`, and `cur.hit` if a leaf was removed.
    #[inline]
    pub fn unmap_some(&mut self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.remove_some(t, cur, budget, true)
    }

    /// Reports whether a page in the range was accessed since mapped or last aged, and makes it count as not
    /// accessed. Where the processor keeps no accessed bits the leaves are removed instead and the caller
    /// has to flush; with them a flush is not needed, a stale translation only makes the page look idle.
    pub fn age(&mut self, t: &mut T, range: GpaRange) -> Aged {
        let mut cur = Cursor::new(range);
        while !self.age_some(t, &mut cur, u32::MAX) {}
        Aged {
            accessed: cur.hit,
            flush: cur.flush,
        }
    }

    /// Like [`PageTable::age`] from where `cur` stands, for about `budget` entries; `cur.hit` accumulates
    /// "accessed". Returns true at the end of the range.
    #[inline]
    pub fn age_some(&mut self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.scan(t, cur, budget, &mut Age::<F>(PhantomData))
    }

    /// Whether a page in the range was accessed since mapped or last aged. Changes nothing; stops at the first.
    pub fn test_accessed(&self, t: &mut T, range: GpaRange) -> bool {
        let mut cur = Cursor::new(range);
        while !self.scan(t, &mut cur, u32::MAX, &mut TestAccessed::<F>(PhantomData)) {}
        cur.hit
    }

    /// Takes the write right from all leaves in the range, also from a huge leaf that is partly in it: mapping
    /// a smaller page on the next write splits it. Dirty bits stay. From where `cur` stands, for about `budget`
    /// entries. Returns true at the end of the range and sets `cur.flush` if a flush is needed.
    #[inline]
    pub fn write_protect_some(&mut self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.scan(t, cur, budget, &mut WriteProtect::<F>(PhantomData))
    }

    /// All that the table can map.
    #[inline]
    pub fn all(&self) -> GpaRange {
        GpaRange::new(Gpa(0), self.limit().0).unwrap_or_default()
    }

    /// Frees every table but the root, without a word to [`Tables::removed`]: tables of 4 KiB leaves are not even
    /// read. No processor may use them any more. From where `cur` stands in [`PageTable::all`], for about
    /// `budget` entries (each table freed counts 512). Returns true when nothing is left.
    pub fn clear_some(&mut self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.remove_some(t, cur, budget, false)
    }

    #[inline]
    fn remove_some(&self, t: &mut T, cur: &mut Cursor, budget: u32, report: bool) -> bool {
        self.scan(
            t,
            cur,
            budget,
            &mut Unmap::<F> {
                report,
                format: PhantomData,
            },
        )
    }

    /// Calls the visitor for the entries of the range until the end or until `budget` is used up. Each turn of
    /// the outer loop walks down from the root once, the inner one stays in a table as long as it can.
    #[inline]
    fn scan<V: Visitor<T>>(&self, t: &mut T, cur: &mut Cursor, budget: u32, v: &mut V) -> bool {
        cur.end = cur.end.min(self.limit().0);
        let mut left = budget;
        while cur.pos < cur.end {
            if left == 0 {
                return false;
            }
            let mut at = Entry {
                table: self.first_table(cur.pos),
                index: 0,
                value: 0,
                level: self.top,
                base: 0,
            };
            loop {
                let level = at.level;
                at.index = level.index(cur.pos);
                at.value = t.load(&at.table, at.index);
                at.base = cur.pos & !level.offset_mask();
                let (value, base) = (at.value, at.base);
                if F::present(value) {
                    if F::is_leaf(value, level) {
                        v.leaf(t, cur, &at);
                    } else {
                        let covered = level == Level::L2 && cur.covers(base, level.size());
                        if !(covered && v.table(t, cur, &at)) {
                            let Some(down) = level.down() else {
                                return true;
                            };
                            at.table = Table::child::<F>(value);
                            at.level = down;
                            continue;
                        }
                        left = left.saturating_sub(TABLE_COST);
                    }
                }
                let mut done = 1;
                if !F::present(value) {
                    // Empty entries mostly follow each other.
                    let ahead = cur.end.wrapping_sub(base).wrapping_sub(1) >> level.shift();
                    let most = left.min((TABLE_ENTRIES - at.index) as u32);
                    let most = u64::from(most).min(ahead.wrapping_add(1)) as usize;
                    while done < most && !F::present(t.load(&at.table, at.index + done)) {
                        done += 1;
                    }
                }
                left = left.saturating_sub(done as u32);
                // A visitor that is done sets the position to the end. Below 2^57: no overflow.
                let next = base.wrapping_add((done as u64) << level.shift());
                cur.pos = cur.pos.max(next);
                if level.index(cur.pos) == 0 || cur.pos >= cur.end || left == 0 {
                    break;
                }
            }
            if V::UNLINKS {
                self.free_ended(t, cur);
            }
        }
        true
    }

    /// Frees the tables that end at the position, are covered by the range, and are empty.
    fn free_ended(&self, t: &mut T, cur: &mut Cursor) {
        let mut level = Level::L2;
        while level < self.top {
            let Some(above) = level.up() else { return };
            let Some(base) = cur.pos.checked_sub(above.size()) else {
                return;
            };
            if base & above.offset_mask() != 0 || !cur.covers(base, above.size()) {
                return;
            }
            if let Some(at) = self.find_table(t, base, above) {
                let child = Table::child::<F>(at.value);
                // Another mapping may have come since the range's earlier part was done.
                if (0..TABLE_ENTRIES).any(|i| F::present(t.load(&child, i))) {
                    return;
                }
                t.swap(&at.table, at.index, F::NON_PRESENT);
                t.free(child);
                cur.flush = true;
            }
            level = above;
        }
    }

    /// The entry of `level` for `base` that points to a table.
    fn find_table(&self, t: &T, base: u64, level: Level) -> Option<Entry<T::Page>> {
        let mut table = self.first_table(base);
        let mut at = self.top;
        loop {
            let index = at.index(base);
            let value = t.load(&table, index);
            if !F::present(value) || F::is_leaf(value, at) {
                return None;
            }
            if at == level {
                return Some(Entry {
                    table,
                    index,
                    value,
                    level,
                    base,
                });
            }
            table = Table::child::<F>(value);
            at = at.down()?;
        }
    }
}

/// Result of [`PageTable::age`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aged {
    /// A page was accessed.
    pub accessed: bool,
    /// Leaves were removed: translations have to be flushed.
    pub flush: bool,
}
