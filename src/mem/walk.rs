// SPDX-License-Identifier: GPL-2.0
//! Nested page tables: one walker for every entry format and every architecture.
//!
//! The walker knows levels, ranges and the life of tables; a [`Format`] knows the bits of one entry; a
//! [`Tables`] reads, writes, allocates and frees tables, for one caller.
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
//!
//! # Many callers at once
//!
//! Operations take the tree by `&self`, and several run at a time. Each reads an entry, decides, and changes it by
//! `cmpxchg`; if the entry is another one by then, because of the processor (accessed and dirty bits) or of another
//! operation, it looks again. So every change of one entry follows from what was there.
//!
//! - A table comes into the tree whole: filled before the `cmpxchg` that links it. Who loses the race to link one gives
//!   its own back ([`Tables::unused`]).
//! - A table leaves the tree in two steps: the entry that points to it goes, then, in a table of tables, every entry
//!   becomes [`Format::FROZEN`], into which nobody puts anything: so nothing can be linked below it that nobody frees.
//!   Tables of leaves are not visited: a leaf that another operation puts into one that has just left is lost. That is
//!   harmless: the next access faults again; what a processor still reaches through a cached pointer to the table it
//!   forgets with the flush that the one who took the table out does before it frees it, and everybody who finds
//!   nothing mapped waits for that flush ([`crate::mem::invalidations::Unflushed`]).
//! - Operations walk into tables that others take out meanwhile. The caller sees to it that what was freed stays what
//!   it is as long as an operation that began before is under way (RCU).
#![forbid(unsafe_code)]

mod freeze;
mod split;
mod table;
mod visitors;

pub use freeze::Narrowed;
pub use table::MappedLeaf;
pub use table::{Cursor, Page, Table, Tables, MAX_ALLOC_PER_MAP};

use core::marker::PhantomData;

use crate::mem::addr::{Gpa, GpaRange, Hpa, Level, MAX_PHYS_BITS, PAGE_SIZE, TABLE_ENTRIES};
use crate::mem::format::{Format, Leaf, Perm};
use split::{fill, split, Split};
use table::{gone, retire};
use visitors::{
    Age, Clean, Clear, Entry, Join, Next, Show, SplitLeaves, TestAccessed, Unmap, Visitor,
    WriteProtect,
};

/// What [`PageTable::map`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The mapping was already there with at least the rights asked for.
    Spurious,
    /// Nothing was mapped there before.
    New,
    /// Only rights were added to the same page: stale translations fault at most once more.
    Upgraded,
    /// Another translation was there, or more rights: flush.
    Replaced,
}

impl Change {
    /// Whether translations have to be flushed.
    #[inline]
    pub const fn needs_flush(self) -> bool {
        matches!(self, Self::Replaced)
    }
}

/// What [`PageTable::map`] may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Fill an empty entry.
    New,
    /// Also add rights to a leaf of the same page, and split a leaf for it: nothing that needs a flush.
    More,
    /// Everything.
    Any,
}

/// Why [`PageTable::map`] did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Something is mapped there that would have to give way, which [`Allow`] does not allow.
    Present,
    /// Another operation is at work there: try again.
    Busy,
    /// The write right is asked for below a table that is frozen: [`PageTable::thaw_begin`].
    Frozen,
    /// `alloc` gave nothing. Tables allocated so far stay linked and serve the next attempt; a leaf that has been
    /// split stays so.
    NoMemory,
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
        let page = t.alloc().ok_or(MapError::NoMemory)?;
        Ok(Table::at(page.into_hpa()))
    }

    /// Replaces the present entry `old` by the present `new`, which has another address or size, and takes out what it
    /// led to. False: another entry is there by now.
    fn replace(
        t: &mut T,
        table: &Table<T::Page>,
        index: usize,
        level: Level,
        gpa: Gpa,
        (old, new): (u64, u64),
    ) -> Result<bool, MapError> {
        let first = if F::BREAK_FIRST { F::BROKEN } else { new };
        if t.cmpxchg(table, index, old, first).is_err() {
            return Ok(false);
        }
        gone::<F, T>(t, old, level, gpa);
        if F::BREAK_FIRST {
            t.flush();
            // Nobody changes a broken entry but who takes the table out.
            t.cmpxchg(table, index, F::BROKEN, new)
                .map_err(|_| MapError::Busy)?;
        }
        Ok(true)
    }

    /// Goes down to the table of `level` for `gpa` and adds tables where there are none; tables that are frozen end the
    /// way where `perm` has the write right. A leaf in the way is handed to `on_leaf` with its table, index and level;
    /// the table that takes its place is the way on. `None`: the entry is another one by now.
    #[inline]
    fn descend(
        &self,
        t: &mut T,
        gpa: Gpa,
        (level, perm): (Level, Perm),
        mut on_leaf: impl FnMut(
            &mut T,
            &Table<T::Page>,
            usize,
            Level,
            u64,
        ) -> Result<Option<Table<T::Page>>, MapError>,
    ) -> Result<Table<T::Page>, MapError> {
        let mut table = self.first_table(gpa.0);
        let mut at = self.top;
        while at > level {
            let index = at.index(gpa.0);
            let entry = t.load(&table, index);
            let child = if entry == F::NON_PRESENT {
                let child = Self::alloc(t)?;
                let link = F::table(child.hpa());
                if t.cmpxchg(&table, index, entry, link).is_ok() {
                    Some(child)
                } else {
                    t.unused(child);
                    None
                }
            } else if !F::present(entry) {
                return Err(MapError::Busy);
            } else if F::is_leaf(entry, at) {
                on_leaf(t, &table, index, at, entry)?
            } else if F::TABLE_RIGHTS && perm.contains(Perm::W) && !F::perm(entry).contains(Perm::W)
            {
                return Err(MapError::Frozen);
            } else {
                Some(Table::child::<F>(entry))
            };
            let Some(child) = child else { continue };
            table = child;
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
    /// A split changes no right and no address, so that what processors have cached of the leaf stays true: it needs no
    /// flush, but for the one that [`Format::BREAK_FIRST`] makes.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; no translation has changed then.
    #[inline]
    pub fn map(
        &self,
        t: &mut T,
        gpa: Gpa,
        level: Level,
        leaf: &Leaf,
        allow: Allow,
    ) -> Result<Change, MapError> {
        self.check_leaf(gpa, level, leaf)?;
        let to = (level, leaf.perm);
        let table = self.descend(t, gpa, to, |t, table, index, at, entry| {
            Self::give_way(t, table, (index, at, gpa), entry, allow)
        })?;
        let index = level.index(gpa.0);
        let new = F::leaf(level, leaf);
        loop {
            let old = t.load(&table, index);
            if old == F::NON_PRESENT {
                if t.cmpxchg(&table, index, old, new).is_ok() {
                    return Ok(Change::New);
                }
                continue;
            }
            if !F::present(old) {
                return Err(MapError::Busy);
            }
            let same = F::is_leaf(old, level)
                && F::addr(old, level) == leaf.hpa
                && F::mem_type(old, level) == F::mem_type(new, level);
            let have = F::perm(old);
            if same && have.contains(leaf.perm) {
                return Ok(Change::Spurious);
            }
            let adds = same && leaf.perm.contains(have);
            match allow {
                Allow::More if adds => {}
                Allow::Any => {}
                _ => return Err(MapError::Present),
            }
            if same {
                let new = F::set_ad(new, F::accessed(old), F::dirty(old));
                if t.cmpxchg(&table, index, old, new).is_ok() {
                    return Ok(if adds {
                        Change::Upgraded
                    } else {
                        Change::Replaced
                    });
                }
            } else if Self::replace(t, &table, index, level, gpa, (old, new))? {
                return Ok(Change::Replaced);
            }
        }
    }

    /// [`PageTable::map`] with [`Allow::New`]: nothing has to be flushed.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; no translation has changed then.
    #[inline]
    pub fn map_new(&self, t: &mut T, gpa: Gpa, level: Level, leaf: &Leaf) -> Result<(), MapError> {
        self.check_leaf(gpa, level, leaf)?;
        let table = self.descend(t, gpa, (level, leaf.perm), |_, _, _, _, _| {
            Err(MapError::Present)
        })?;
        t.cmpxchg(
            &table,
            level.index(gpa.0),
            F::NON_PRESENT,
            F::leaf(level, leaf),
        )
        .map_err(|_| MapError::Present)
    }

    /// Maps the 2 MiB at `gpa` as `leaf` says, in 512 leaves of 4 KiB: where a huge leaf must not have its rights.
    ///
    /// A leaf there gives way as `allow` says; a table is left alone.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; [`MapError::Present`] where there is a table already. No translation has changed then.
    pub fn map_parts(
        &self,
        t: &mut T,
        gpa: Gpa,
        leaf: &Leaf,
        allow: Allow,
    ) -> Result<Change, MapError> {
        self.check_leaf(gpa, Level::L2, leaf)?;
        let to = (Level::L2, leaf.perm);
        let table = self.descend(t, gpa, to, |t, table, index, at, entry| {
            Self::give_way(t, table, (index, at, gpa), entry, allow)
        })?;
        let index = Level::L2.index(gpa.0);
        let mem_type = F::mem_type(F::leaf(Level::L2, leaf), Level::L2);
        loop {
            let old = t.load(&table, index);
            let change = if old == F::NON_PRESENT {
                Change::New
            } else if !F::present(old) {
                return Err(MapError::Busy);
            } else if !F::is_leaf(old, Level::L2) {
                return Err(MapError::Present);
            } else if !F::BREAK_FIRST
                && F::addr(old, Level::L2) == leaf.hpa
                && F::mem_type(old, Level::L2) == mem_type
                && leaf.perm.contains(F::perm(old))
            {
                Change::Upgraded
            } else {
                Change::Replaced
            };
            match (change, allow) {
                (Change::New, _) | (_, Allow::Any) | (Change::Upgraded, Allow::More) => {}
                _ => return Err(MapError::Present),
            }
            let child = Self::alloc(t)?;
            fill::<F, T>(t, &child, Level::L1, leaf);
            let link = F::table(child.hpa());
            let placed = if change == Change::New {
                Ok(t.cmpxchg(&table, index, old, link).is_ok())
            } else {
                Self::replace(t, &table, index, Level::L2, gpa, (old, link))
            };
            if placed == Ok(true) {
                return Ok(change);
            }
            t.unused(child);
            placed?;
        }
    }

    /// Whether `gpa` lies in a page of size `level` that has a table of smaller ones.
    #[inline]
    pub fn has_parts(&self, t: &T, gpa: Gpa, level: Level) -> bool {
        gpa < self.limit() && self.find_table(t, gpa.0, |_, at| at == level).is_some()
    }

    /// [`split`] for a mapping of which [`Allow`] lets that happen: the table that is the way on. `None`: another entry
    /// is there by now.
    fn give_way(
        t: &mut T,
        table: &Table<T::Page>,
        (index, level, gpa): (usize, Level, Gpa),
        entry: u64,
        allow: Allow,
    ) -> Result<Option<Table<T::Page>>, MapError> {
        let may_split = match allow {
            Allow::New => false,
            Allow::More => !F::BREAK_FIRST,
            Allow::Any => true,
        };
        if !may_split {
            return Err(MapError::Present);
        }
        let place = (index, level, gpa.align_down(level));
        match split::<F, T>(t, table, place, entry, Perm::default()) {
            Split::Done(child) => Ok(Some(child)),
            Split::Changed => Ok(None),
            Split::NoMemory => Err(MapError::NoMemory),
        }
    }

    /// Removes all that is mapped in the range, and the tables that it covers; a huge leaf that is partly in it goes as
    /// a whole. From where `cur` stands, for about `budget` entries (each table freed counts 512). Returns true at the
    /// end of the range. Sets `cur.flush`, and `cur.hit` if leaves may have been removed.
    #[inline]
    pub fn unmap_some(&self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.scan(t, cur, budget, &mut Unmap::<F>(PhantomData))
    }

    /// Sets `cur.hit` if a page in the range was accessed since mapped or last aged, and makes it count as not
    /// accessed. Where the processor keeps no accessed bits the leaves are removed instead, and `cur.flush` is set;
    /// with them a flush is not needed, a stale translation only makes the page look idle. From where `cur` stands, for
    /// about `budget` entries. Returns true at the end of the range.
    #[inline]
    pub fn age_some(&self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.scan(t, cur, budget, &mut Age::<F>(PhantomData))
    }

    /// Whether a page in the range was accessed since mapped or last aged. Changes nothing; stops at the first.
    pub fn test_accessed(&self, t: &mut T, range: GpaRange) -> bool {
        let mut cur = Cursor::new(range);
        while !self.scan(t, &mut cur, u32::MAX, &mut TestAccessed::<F>(PhantomData)) {}
        cur.hit
    }

    /// Shows the leaves in the range, which stay; one that is partly in it counts. From where `cur` stands, for about
    /// `budget` entries. Returns true at the end of the range.
    pub fn show_some(
        &self,
        t: &mut T,
        cur: &mut Cursor,
        budget: u32,
        show: &mut dyn FnMut(&MappedLeaf),
    ) -> bool {
        self.scan(t, cur, budget, &mut Show::<F>(PhantomData, show))
    }

    /// Takes the write right from all leaves in the range, also from a huge leaf that is partly in it: mapping
    /// a smaller page on the next write splits it. Dirty bits stay. From where `cur` stands, for about `budget`
    /// entries. Returns true at the end of the range and sets `cur.flush` if a flush is needed.
    #[inline]
    pub fn write_protect_some(&self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.scan(t, cur, budget, &mut WriteProtect::<F>(PhantomData))
    }

    /// Takes the write right from all leaves in the range, and puts tables of 4 KiB leaves into the place of huge ones
    /// where these are writable or in the range as a whole: the next write to a page only has to add the right. Parts
    /// outside of the range keep it; accessed and dirty bits stay. From where `cur` stands, for about `budget` entries,
    /// or until `alloc` gives nothing: the caller goes on with more tables, or with
    /// [`PageTable::write_protect_some`]. Returns true at the end of the range and sets `cur.flush` if a flush is
    /// needed.
    /// With `clean` leaves of 4 KiB that are there already are treated as by [`PageTable::clean_some`].
    #[inline]
    pub fn split_some(&self, t: &mut T, cur: &mut Cursor, budget: u32, clean: bool) -> bool {
        self.scan(t, cur, budget, &mut SplitLeaves::<F>(PhantomData, clean))
    }

    /// Removes the tables of 2 MiB or 1 GiB that are in the range as a whole and of which `whole` says that one leaf
    /// could be in their place, which comes with the next access. From where `cur` stands, for about `budget` entries
    /// (each table counts 512). Returns true at the end of the range and sets `cur.flush` if a flush is needed.
    #[inline]
    pub fn join_some(
        &self,
        t: &mut T,
        cur: &mut Cursor,
        budget: u32,
        whole: &mut dyn FnMut(Gpa, Level) -> bool,
    ) -> bool {
        self.scan(t, cur, budget, &mut Join::<F>(PhantomData, whole))
    }

    /// Makes the 4 KiB leaves in the range count as not written: the processor, which tells of writes by then, sets
    /// their dirty bits anew. Larger leaves lose the write right, and so do all where the processor keeps no dirty
    /// bits. Otherwise as [`PageTable::write_protect_some`].
    #[inline]
    pub fn clean_some(&self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.scan(t, cur, budget, &mut Clean::<F>(PhantomData))
    }

    /// All that the table can map.
    #[inline]
    pub fn all(&self) -> GpaRange {
        GpaRange::new(Gpa(0), self.limit().0).unwrap_or_default()
    }

    /// Frees every table but the root, without a word to [`Tables::removed`]: tables of 4 KiB leaves are not even
    /// read. No processor and nobody else may use them any more. From where `cur` stands in [`PageTable::all`], for
    /// about `budget` entries (each table freed counts 512). Returns true when nothing is left.
    pub fn clear_some(&self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.scan(t, cur, budget, &mut Clear::<F>(PhantomData))
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
                let next = if !F::present(value) {
                    Next::On
                } else if F::is_leaf(value, level) {
                    v.leaf(t, cur, &at)
                } else if level == Level::L2 && cur.covers(base, level.size()) {
                    v.table(t, cur, &at)
                } else if level == Level::L3 && cur.covers(base, level.size()) {
                    v.upper(t, cur, &at)
                } else {
                    Next::Down
                };
                match next {
                    Next::On => {}
                    Next::Again => continue,
                    Next::Stop => return false,
                    Next::Down => {
                        let Some(down) = level.down() else {
                            return true;
                        };
                        at.table = Table::child::<F>(value);
                        at.level = down;
                        continue;
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
                } else if !F::is_leaf(value, level) {
                    left = left.saturating_sub(TABLE_COST);
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
                self.free_ended(t, cur, V::ALONE);
            }
        }
        true
    }

    /// Frees the tables that end at the position, are covered by the range, and are empty. `alone`: nobody else uses
    /// the tree.
    fn free_ended(&self, t: &mut T, cur: &mut Cursor, alone: bool) {
        let mut level = Level::L2;
        while level < self.top {
            let Some(above) = level.up() else { return };
            let Some(base) = cur.pos.checked_sub(above.size()) else {
                return;
            };
            if base & above.offset_mask() != 0 || !cur.covers(base, above.size()) {
                return;
            }
            if let Some(at) = self.find_table(t, base, |_, at| at == above) {
                let child = Table::child::<F>(at.value);
                // Another mapping may have come since the range's earlier part was done.
                if (0..TABLE_ENTRIES).any(|i| t.load(&child, i) != F::NON_PRESENT) {
                    return;
                }
                let unlinked = t.cmpxchg(&at.table, at.index, at.value, F::NON_PRESENT);
                if unlinked.is_err() {
                    return;
                }
                cur.flush = true;
                if alone {
                    t.free(child);
                } else {
                    retire::<F, T>(t, child, level, Gpa(base));
                }
            }
            level = above;
        }
    }

    /// Of the entries on the way to `gpa` that point to a table, the first that `wanted` takes, by its value and level.
    #[inline]
    fn find_table(
        &self,
        t: &T,
        gpa: u64,
        wanted: impl Fn(u64, Level) -> bool,
    ) -> Option<Entry<T::Page>> {
        let mut table = self.first_table(gpa);
        let mut level = self.top;
        loop {
            let index = level.index(gpa);
            let value = t.load(&table, index);
            if !F::present(value) || F::is_leaf(value, level) {
                return None;
            }
            if wanted(value, level) {
                return Some(Entry {
                    table,
                    index,
                    value,
                    level,
                    base: gpa & !level.offset_mask(),
                });
            }
            table = Table::child::<F>(value);
            level = level.down()?;
        }
    }
}
