// SPDX-License-Identifier: GPL-2.0
//! Nested page tables: one walker for every entry format (SDM 3C 29.3, APM 2 15.25).
//!
//! The walker knows levels, ranges and the life of tables; a [`Format`] knows the bits of one entry; a
//! [`Tables`] reads, writes, allocates and frees tables. The owner serialises all calls that take
//! `&mut impl Tables`. The processor is the only other writer: it may set the accessed and dirty bits of a
//! present entry at any time, therefore present entries are only ever changed by `cmpxchg` and `swap`.
//!
//! A page table is a cache of what the owner's address space maps. Nothing is lost when more than asked is
//! removed: the next access faults and the owner maps again. `unmap` uses this for huge leaves.
#![forbid(unsafe_code)]

use core::{fmt, marker::PhantomData};

use crate::mem::addr::{Gpa, GpaRange, Hpa, Level, MAX_PHYS_BITS, TABLE_ENTRIES};

/// Access rights of a mapping.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Perm(u8);

impl Perm {
    /// No access.
    pub const NONE: Self = Self(0);
    /// Read.
    pub const R: Self = Self(1);
    /// Write.
    pub const W: Self = Self(2);
    /// Instruction fetch.
    pub const X: Self = Self(4);
    /// Read and write.
    pub const RW: Self = Self(3);
    /// Read and fetch.
    pub const RX: Self = Self(5);
    /// Read, write and fetch.
    pub const RWX: Self = Self(7);

    /// Rights from bits 0 (read), 1 (write) and 2 (fetch); other bits are ignored.
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }

    /// Bits 0 (read), 1 (write) and 2 (fetch).
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all rights of `other` are included.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Rights of either.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These rights less those of `other`.
    #[inline]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "---",
            1 => "r--",
            2 => "-w-",
            3 => "rw-",
            4 => "--x",
            5 => "r-x",
            6 => "-wx",
            _ => "rwx",
        })
    }
}

/// Memory type of a mapping, in the encoding of MTRRs, PAT and EPT (SDM 3A 13.11.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemType {
    /// Uncacheable.
    Uc = 0,
    /// Write-combining.
    Wc = 1,
    /// Write-through.
    Wt = 4,
    /// Write-protected.
    Wp = 5,
    /// Write-back.
    Wb = 6,
}

/// What a leaf entry shall say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Host-physical address, aligned to the leaf's level.
    pub hpa: Hpa,
    /// Access rights.
    pub perm: Perm,
    /// Memory type given by the nested tables.
    pub mem_type: MemType,
    /// Whether `mem_type` overrides the guest's PAT; only EPT can say so, NPT always combines.
    pub ignore_pat: bool,
    /// Initial accessed bit: set it when the guest is about to touch the page, this spares the processor a
    /// locked update.
    pub accessed: bool,
    /// Initial dirty bit: set it for a write access.
    pub dirty: bool,
}

/// Bits of one kind of nested page table. Functions on an entry are pure; `entry` is any 64-bit value.
pub trait Format {
    /// Whether the processor maintains accessed and dirty bits. Without, a leaf counts as accessed, and as
    /// dirty if writable, from the moment it is mapped.
    const HAS_AD: bool;

    /// Value of an entry that maps nothing; also the content of a fresh table, hence zero.
    const NON_PRESENT: u64 = 0;

    /// Entry that points to the next table, with all rights, so that leaves alone decide.
    fn table(child: Hpa) -> u64;

    /// Leaf entry of `level`; `level` is [`Level::L1`], `L2` or `L3` and the address is aligned to it.
    fn leaf(level: Level, leaf: &Leaf) -> u64;

    /// Whether the format has a leaf with exactly these rights.
    fn can_express(perm: Perm) -> bool;

    /// Whether `entry` maps something or points to a table.
    fn present(entry: u64) -> bool;

    /// Whether a present `entry` of `level` is a leaf.
    fn is_leaf(entry: u64, level: Level) -> bool;

    /// Table that a present non-leaf `entry` points to.
    fn child(entry: u64) -> Hpa;

    /// Address of the page that a leaf `entry` of `level` maps.
    fn addr(entry: u64, level: Level) -> Hpa;

    /// Rights given by `entry` itself.
    fn perm(entry: u64) -> Perm;

    /// `entry` with other rights, which [`Format::can_express`].
    fn set_perm(entry: u64, perm: Perm) -> u64;

    /// Memory type of a leaf and whether it overrides the guest's PAT.
    fn mem_type(entry: u64, level: Level) -> (MemType, bool);

    /// Accessed bit.
    fn accessed(entry: u64) -> bool;

    /// Dirty bit of a leaf.
    fn dirty(entry: u64) -> bool;

    /// `entry` with the accessed and dirty bits set where the argument is true, unchanged where false.
    fn set_ad(entry: u64, accessed: bool, dirty: bool) -> u64;

    /// `entry` with the accessed bit clear.
    fn clear_accessed(entry: u64) -> u64;

    /// `entry` with the dirty bit clear.
    fn clear_dirty(entry: u64) -> u64;
}

/// Access to table memory. A table is a 4 KiB page of 512 entries; `index` is always below 512 and `table` is
/// the root or was given by `alloc`.
pub trait Tables {
    /// Reads an entry once (a relaxed atomic load).
    fn load(&self, table: Hpa, index: usize) -> u64;

    /// Writes an entry that is not present or belongs to a table the processor cannot see, with release
    /// ordering: a table's content has to be visible before the entry that points to it.
    fn store(&self, table: Hpa, index: usize, value: u64);

    /// Replaces `old` by `new` atomically, or returns the value that is there instead.
    fn cmpxchg(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64>;

    /// Replaces an entry atomically and returns what was there.
    #[inline]
    fn swap(&self, table: Hpa, index: usize, new: u64) -> u64 {
        let mut old = self.load(table, index);
        loop {
            match self.cmpxchg(table, index, old, new) {
                Ok(()) => return old,
                Err(now) => old = now,
            }
        }
    }

    /// A zeroed table, or `None`. One `map` asks for at most [`MAX_ALLOC_PER_MAP`].
    fn alloc(&mut self) -> Option<Hpa>;

    /// Gives a table back. Processors may still walk it: the memory must not be reused before the
    /// translations have been flushed.
    fn free(&mut self, table: Hpa);

    /// Told about each leaf that goes away, for example to mark the host page dirty. Not called by
    /// [`PageTable::destroy`] without `report`.
    #[inline]
    fn removed(&mut self, _leaf: &Removed) {}
}

/// Tables that one [`PageTable::map`] may allocate: one for each level below the root of a 5-level tree.
pub const MAX_ALLOC_PER_MAP: usize = 4;

/// A leaf that has been taken out of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// First host-physical address.
    pub hpa: Hpa,
    /// Size of the page.
    pub level: Level,
    /// Accessed since mapped or last aged.
    pub accessed: bool,
    /// Written since mapped or last cleaned.
    pub dirty: bool,
    /// Was writable.
    pub writable: bool,
}

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

/// Result of [`PageTable::lookup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Host-physical address of the very byte asked for.
    pub hpa: Hpa,
    /// Size of the page.
    pub level: Level,
    /// Rights.
    pub perm: Perm,
    /// The leaf entry.
    pub raw: u64,
}

/// Progress through a range: lets the owner drop its lock between pieces of bounded work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    start: u64,
    pos: u64,
    end: u64,
    /// Set when translations have to be flushed; flush (and free the tables) each time before the lock is
    /// dropped, then call [`Cursor::take_flush`] to clear it.
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
            flush: false,
            hit: false,
        }
    }

    /// Whether the whole range has been done.
    #[inline]
    pub const fn is_done(&self) -> bool {
        self.pos >= self.end
    }

    /// Where the next piece starts.
    #[inline]
    pub const fn position(&self) -> Gpa {
        Gpa(self.pos)
    }

    /// Returns `flush` and clears it.
    #[inline]
    pub fn take_flush(&mut self) -> bool {
        core::mem::replace(&mut self.flush, false)
    }

    /// Whether the `size` bytes from `base` lie inside the range.
    #[inline]
    const fn covers(&self, base: u64, size: u64) -> bool {
        // `base` is aligned to `size` and below 2^57: no overflow.
        self.start <= base && base.wrapping_add(size) <= self.end
    }
}

/// A present entry seen by a scan.
#[derive(Clone, Copy)]
struct Entry {
    table: Hpa,
    index: usize,
    value: u64,
    level: Level,
    /// First address that the entry spans.
    base: u64,
}

/// What to do with the entries of a range.
trait Visitor<T: Tables> {
    /// A leaf; it may begin before the range or end after it.
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: Entry);

    /// A pointer to a table of 4 KiB leaves that the range covers; true when done with it.
    #[inline]
    fn table(&mut self, _t: &mut T, _cur: &mut Cursor, _at: Entry) -> bool {
        false
    }

    /// The position has left one table or more.
    #[inline]
    fn left_table(&mut self, _t: &mut T, _cur: &mut Cursor) {}
}

/// Budget used by a visit to a whole table.
const TABLE_COST: u32 = TABLE_ENTRIES as u32;

/// A nested page table of format `F`.
///
/// # Invariants
///
/// `root` is a table of the owner's [`Tables`]; every present non-leaf entry points to one that nothing else
/// points to.
pub struct PageTable<F: Format> {
    root: Hpa,
    top: Level,
    format: PhantomData<fn() -> F>,
}

impl<F: Format> PageTable<F> {
    /// An empty table of 4 or 5 levels.
    ///
    /// # Errors
    ///
    /// [`MapError::NoMemory`] without a root page, [`MapError::OutOfRange`] for another number of levels.
    pub fn create<T: Tables>(t: &mut T, levels: u8) -> Result<Self, MapError> {
        // The levels are looked at before anything is allocated.
        Self::with_root(Hpa(0), levels)?;
        let root = t.alloc().ok_or(MapError::NoMemory { flush: false })?;
        Self::with_root(root, levels)
    }

    /// An empty table of 4 or 5 levels whose root is the zeroed table `root`.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfRange`] for another number of levels.
    pub const fn with_root(root: Hpa, levels: u8) -> Result<Self, MapError> {
        let top = match levels {
            4 => Level::L4,
            5 => Level::L5,
            _ => return Err(MapError::OutOfRange),
        };
        Ok(Self {
            root,
            top,
            format: PhantomData,
        })
    }

    /// Address of the root table, for EPTP or nested CR3.
    #[inline]
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// Level of the root's entries: [`Level::L4`] or [`Level::L5`].
    #[inline]
    pub const fn top(&self) -> Level {
        self.top
    }

    /// First guest-physical address that the table cannot map.
    #[inline]
    pub const fn limit(&self) -> Gpa {
        Gpa(self.top.table_size())
    }

    /// The leaf that maps `gpa`, if there is one.
    #[inline]
    pub fn lookup<T: Tables>(&self, t: &T, gpa: Gpa) -> Option<Mapping> {
        if gpa >= self.limit() {
            return None;
        }
        let mut table = self.root;
        let mut level = self.top;
        loop {
            let raw = t.load(table, level.index(gpa.0));
            if !F::present(raw) {
                return None;
            }
            if F::is_leaf(raw, level) {
                let hpa = F::addr(raw, level).wrapping_add(gpa.offset_in(level));
                return Some(Mapping {
                    hpa,
                    level,
                    perm: F::perm(raw),
                    raw,
                });
            }
            table = F::child(raw);
            level = level.down()?;
        }
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
    pub fn map<T: Tables>(
        &self,
        t: &mut T,
        gpa: Gpa,
        level: Level,
        leaf: &Leaf,
    ) -> Result<Change, MapError> {
        self.check_leaf(gpa, level, leaf)?;
        let mut split = false;
        let mut table = self.root;
        let mut at = self.top;
        while at > level {
            let index = at.index(gpa.0);
            let entry = t.load(table, index);
            table = if !F::present(entry) {
                let child = t.alloc().ok_or(MapError::NoMemory { flush: split })?;
                t.store(table, index, F::table(child));
                child
            } else if F::is_leaf(entry, at) {
                let child = t.alloc().ok_or(MapError::NoMemory { flush: split })?;
                Self::split(t, table, index, at, entry, child);
                split = true;
                child
            } else {
                F::child(entry)
            };
            let Some(down) = at.down() else { break };
            at = down;
        }
        let index = level.index(gpa.0);
        let new = F::leaf(level, leaf);
        let old = t.load(table, index);
        if !F::present(old) {
            t.store(table, index, new);
            return Ok(Change::New);
        }
        if !F::is_leaf(old, level) {
            // The range covers the table exactly, so that unmapping it clears this entry as well.
            if let Some(range) = GpaRange::new(gpa, level.size()) {
                self.unmap(t, range);
            }
            t.store(table, index, new);
            return Ok(Change::Replaced);
        }
        if F::addr(old, level) == leaf.hpa && F::mem_type(old, level) == F::mem_type(new, level) {
            let have = F::perm(old);
            let more = !have.contains(leaf.perm);
            if more {
                update(t, table, index, old, |e| {
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
        let old = t.swap(table, index, new);
        t.removed(&Self::describe(old, level, gpa));
        Ok(Change::Replaced)
    }

    /// As [`PageTable::map`], but only where nothing is mapped yet, so that nothing has to be flushed.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; no translation has changed then.
    #[inline]
    pub fn map_new<T: Tables>(
        &self,
        t: &mut T,
        gpa: Gpa,
        level: Level,
        leaf: &Leaf,
    ) -> Result<(), MapError> {
        self.check_leaf(gpa, level, leaf)?;
        let mut table = self.root;
        let mut at = self.top;
        while at > level {
            let index = at.index(gpa.0);
            let entry = t.load(table, index);
            table = if !F::present(entry) {
                let child = t.alloc().ok_or(MapError::NoMemory { flush: false })?;
                t.store(table, index, F::table(child));
                child
            } else if F::is_leaf(entry, at) {
                return Err(MapError::Present);
            } else {
                F::child(entry)
            };
            let Some(down) = at.down() else { break };
            at = down;
        }
        let index = level.index(gpa.0);
        if F::present(t.load(table, index)) {
            return Err(MapError::Present);
        }
        t.store(table, index, F::leaf(level, leaf));
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
    pub fn map_parts<T: Tables>(
        &self,
        t: &mut T,
        gpa: Gpa,
        leaf: &Leaf,
        only_new: bool,
    ) -> Result<Change, MapError> {
        self.check_leaf(gpa, Level::L2, leaf)?;
        let mut table = self.root;
        let mut at = self.top;
        while at > Level::L2 {
            let index = at.index(gpa.0);
            let entry = t.load(table, index);
            table = if !F::present(entry) {
                let child = t.alloc().ok_or(MapError::NoMemory { flush: false })?;
                t.store(table, index, F::table(child));
                child
            } else if F::is_leaf(entry, at) {
                return Err(MapError::Present);
            } else {
                F::child(entry)
            };
            let Some(down) = at.down() else { break };
            at = down;
        }
        let index = Level::L2.index(gpa.0);
        let old = t.load(table, index);
        if F::present(old) && (only_new || !F::is_leaf(old, Level::L2)) {
            return Err(MapError::Present);
        }
        let child = t.alloc().ok_or(MapError::NoMemory { flush: false })?;
        let mut part = *leaf;
        for i in 0..TABLE_ENTRIES {
            t.store(child, i, F::leaf(Level::L1, &part));
            part.hpa = part.hpa.wrapping_add(Level::L1.size());
        }
        if !F::present(old) {
            t.store(table, index, F::table(child));
            return Ok(Change::New);
        }
        let old = t.swap(table, index, F::table(child));
        t.removed(&Self::describe(old, Level::L2, gpa));
        Ok(Change::Replaced)
    }

    /// Whether `gpa` lies in 2 MiB that have a table of 4 KiB leaves.
    #[inline]
    pub fn has_parts<T: Tables>(&self, t: &T, gpa: Gpa) -> bool {
        gpa < self.limit() && self.find_table(t, gpa.0, Level::L2).is_some()
    }

    /// Puts `child`, filled with the 512 parts of the huge leaf `entry`, in its place.
    fn split<T: Tables>(
        t: &mut T,
        table: Hpa,
        index: usize,
        level: Level,
        mut entry: u64,
        child: Hpa,
    ) {
        let Some(below) = level.down() else { return };
        loop {
            let (mem_type, ignore_pat) = F::mem_type(entry, level);
            let mut part = Leaf {
                hpa: F::addr(entry, level),
                perm: F::perm(entry),
                mem_type,
                ignore_pat,
                accessed: F::accessed(entry),
                dirty: F::dirty(entry),
            };
            for i in 0..TABLE_ENTRIES {
                t.store(child, i, F::leaf(below, &part));
                part.hpa = part.hpa.wrapping_add(below.size());
            }
            // The processor may have set the accessed or dirty bit meanwhile: the parts inherit it.
            match t.cmpxchg(table, index, entry, F::table(child)) {
                Ok(()) => return,
                Err(now) => entry = now,
            }
        }
    }

    /// Removes all that is mapped in `range`, and the tables that it covers. Returns whether translations have
    /// to be flushed. A huge leaf that is partly in the range goes as a whole.
    pub fn unmap<T: Tables>(&self, t: &mut T, range: GpaRange) -> bool {
        let mut cur = Cursor::new(range);
        while !self.unmap_some(t, &mut cur, u32::MAX) {}
        cur.flush
    }

    /// Like [`PageTable::unmap`] from where `cur` stands, for about `budget` entries (each table freed counts
    /// 512). Returns true at the end of the range. Sets `cur.flush`, and `cur.hit` if a leaf was removed.
    #[inline]
    pub fn unmap_some<T: Tables>(&self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.scan(
            t,
            cur,
            budget,
            &mut Unmap {
                pt: self,
                report: true,
            },
        )
    }

    /// Reports whether a page in the range was accessed since mapped or last aged, and makes it count as not
    /// accessed. Where the processor keeps no accessed bits the leaves are removed instead and the caller
    /// has to flush; with them a flush is not needed, a stale translation only makes the page look idle.
    pub fn age<T: Tables>(&self, t: &mut T, range: GpaRange) -> Aged {
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
    pub fn age_some<T: Tables>(&self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.scan(t, cur, budget, &mut Age::<F>(PhantomData))
    }

    /// Whether a page in the range was accessed since mapped or last aged. Changes nothing; stops at the first.
    pub fn test_accessed<T: Tables>(&self, t: &mut T, range: GpaRange) -> bool {
        let mut cur = Cursor::new(range);
        while !self.scan(t, &mut cur, u32::MAX, &mut TestAccessed::<F>(PhantomData)) {}
        cur.hit
    }

    /// Takes the write right from all leaves in the range, also from a huge leaf that is partly in it: mapping
    /// a smaller page on the next write splits it. Dirty bits stay. Returns whether a flush is needed.
    pub fn write_protect<T: Tables>(&self, t: &mut T, range: GpaRange) -> bool {
        let mut cur = Cursor::new(range);
        while !self.write_protect_some(t, &mut cur, u32::MAX) {}
        cur.flush
    }

    /// Like [`PageTable::write_protect`] from where `cur` stands, for about `budget` entries. Returns true at
    /// the end of the range.
    #[inline]
    pub fn write_protect_some<T: Tables>(&self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        self.scan(t, cur, budget, &mut WriteProtect::<F>(PhantomData))
    }

    /// Clears dirty bits in the range and calls `dirty(gpa, level)` for each leaf that had it set, from where
    /// `cur` stands, for about `budget` entries. Sets `cur.flush`: without a flush later writes go unnoticed.
    /// Returns true at the end of the range. Needs [`Format::HAS_AD`].
    #[inline]
    pub fn clear_dirty_some<T: Tables>(
        &self,
        t: &mut T,
        cur: &mut Cursor,
        budget: u32,
        dirty: impl FnMut(Gpa, Level),
    ) -> bool {
        self.scan(t, cur, budget, &mut ClearDirty::<F, _>(dirty, PhantomData))
    }

    /// All that the table can map.
    #[inline]
    pub fn all(&self) -> GpaRange {
        GpaRange::new(Gpa(0), self.limit().0).unwrap_or_default()
    }

    /// Frees every table, the root included. No processor may use them any more. With `report`,
    /// [`Tables::removed`] hears of each leaf; without, tables of 4 KiB leaves are not even read.
    pub fn destroy<T: Tables>(self, t: &mut T, report: bool) {
        let mut cur = Cursor::new(self.all());
        if report {
            while !self.unmap_some(t, &mut cur, u32::MAX) {}
            cur = Cursor::new(self.all());
        }
        while !self.destroy_some(t, &mut cur, u32::MAX) {}
    }

    /// Like [`PageTable::destroy`] without `report`, from where `cur` stands in [`PageTable::all`], for about
    /// `budget` entries (each table freed counts 512). Returns true when the root has been freed too: the
    /// table must not be used after that.
    pub fn destroy_some<T: Tables>(&self, t: &mut T, cur: &mut Cursor, budget: u32) -> bool {
        let done = self.scan(
            t,
            cur,
            budget,
            &mut Unmap {
                pt: self,
                report: false,
            },
        );
        if done {
            t.free(self.root);
        }
        done
    }

    /// Calls the visitor for the entries of the range until the end or until `budget` is used up. Each turn of
    /// the outer loop walks down from the root once, the inner one stays in a table as long as it can.
    #[inline]
    fn scan<T: Tables, V: Visitor<T>>(
        &self,
        t: &mut T,
        cur: &mut Cursor,
        budget: u32,
        v: &mut V,
    ) -> bool {
        cur.end = cur.end.min(self.limit().0);
        let mut left = budget;
        while cur.pos < cur.end {
            if left == 0 {
                return false;
            }
            let mut table = self.root;
            let mut level = self.top;
            loop {
                let index = level.index(cur.pos);
                let value = t.load(table, index);
                let base = cur.pos & !level.offset_mask();
                let at = Entry {
                    table,
                    index,
                    value,
                    level,
                    base,
                };
                if F::present(value) {
                    if F::is_leaf(value, level) {
                        v.leaf(t, cur, at);
                    } else {
                        let covered = level == Level::L2 && cur.covers(base, level.size());
                        if !(covered && v.table(t, cur, at)) {
                            let Some(down) = level.down() else {
                                return true;
                            };
                            table = F::child(value);
                            level = down;
                            continue;
                        }
                        left = left.saturating_sub(TABLE_COST);
                    }
                }
                left = left.saturating_sub(1);
                // A visitor that is done sets the position to the end. Below 2^57: no overflow.
                cur.pos = cur.pos.max(base.wrapping_add(level.size()));
                if level.index(cur.pos) == 0 || cur.pos >= cur.end || left == 0 {
                    break;
                }
            }
            v.left_table(t, cur);
        }
        true
    }

    /// Frees the tables that end at the position, are covered by the range, and are empty.
    fn free_ended<T: Tables>(&self, t: &mut T, cur: &mut Cursor) {
        let mut level = Level::L2;
        while level < self.top {
            let Some(above) = level.up() else { return };
            let Some(base) = cur.pos.checked_sub(above.size()) else {
                return;
            };
            if base & above.offset_mask() != 0 || !cur.covers(base, above.size()) {
                return;
            }
            if let Some((table, index, child)) = self.find_table(t, base, above) {
                // Another mapping may have come since the range's earlier part was done.
                if (0..TABLE_ENTRIES).any(|i| F::present(t.load(child, i))) {
                    return;
                }
                t.swap(table, index, F::NON_PRESENT);
                t.free(child);
                cur.flush = true;
            }
            level = above;
        }
    }

    /// The entry of `level` for `base` that points to a table: its table and index, and the table it points to.
    fn find_table<T: Tables>(&self, t: &T, base: u64, level: Level) -> Option<(Hpa, usize, Hpa)> {
        let mut table = self.root;
        let mut at = self.top;
        loop {
            let index = at.index(base);
            let entry = t.load(table, index);
            if !F::present(entry) || F::is_leaf(entry, at) {
                return None;
            }
            if at == level {
                return Some((table, index, F::child(entry)));
            }
            table = F::child(entry);
            at = at.down()?;
        }
    }

    /// What to tell about the leaf `entry` that has gone.
    #[inline]
    fn describe(entry: u64, level: Level, gpa: Gpa) -> Removed {
        Removed {
            gpa,
            hpa: F::addr(entry, level),
            level,
            accessed: F::accessed(entry),
            dirty: F::dirty(entry),
            writable: F::perm(entry).contains(Perm::W),
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

/// Changes a present entry by `f`, which is applied again if the processor set a bit meanwhile. Returns the
/// entry that was replaced.
#[inline]
fn update<T: Tables>(t: &T, table: Hpa, index: usize, mut old: u64, f: impl Fn(u64) -> u64) -> u64 {
    loop {
        match t.cmpxchg(table, index, old, f(old)) {
            Ok(()) => return old,
            Err(now) => old = now,
        }
    }
}

struct Unmap<'a, F: Format> {
    pt: &'a PageTable<F>,
    report: bool,
}

impl<F: Format, T: Tables> Visitor<T> for Unmap<'_, F> {
    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: Entry) {
        let old = t.swap(at.table, at.index, F::NON_PRESENT);
        cur.flush = true;
        cur.hit = true;
        if self.report {
            t.removed(&PageTable::<F>::describe(old, at.level, Gpa(at.base)));
        }
    }

    fn table(&mut self, t: &mut T, cur: &mut Cursor, at: Entry) -> bool {
        let child = F::child(t.swap(at.table, at.index, F::NON_PRESENT));
        cur.flush = true;
        if self.report {
            for i in 0..TABLE_ENTRIES {
                if F::present(t.load(child, i)) {
                    // A processor may hold the table in its paging-structure cache and still set a dirty bit:
                    // only the exchange tells the last word.
                    let old = t.swap(child, i, F::NON_PRESENT);
                    let gpa = Gpa(at.base | (i as u64).wrapping_shl(Level::L1.shift()));
                    cur.hit = true;
                    t.removed(&PageTable::<F>::describe(old, Level::L1, gpa));
                }
            }
        }
        t.free(child);
        true
    }

    #[inline]
    fn left_table(&mut self, t: &mut T, cur: &mut Cursor) {
        self.pt.free_ended(t, cur);
    }
}

struct Age<F>(PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for Age<F> {
    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: Entry) {
        if !F::HAS_AD {
            let old = t.swap(at.table, at.index, F::NON_PRESENT);
            cur.flush = true;
            cur.hit = true;
            t.removed(&PageTable::<F>::describe(old, at.level, Gpa(at.base)));
        } else if F::accessed(at.value) {
            update(t, at.table, at.index, at.value, F::clear_accessed);
            cur.hit = true;
        }
    }
}

struct TestAccessed<F>(PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for TestAccessed<F> {
    #[inline]
    fn leaf(&mut self, _t: &mut T, cur: &mut Cursor, at: Entry) {
        if F::accessed(at.value) {
            cur.hit = true;
            cur.pos = cur.end;
        }
    }
}

struct WriteProtect<F>(PhantomData<F>);

impl<F: Format, T: Tables> Visitor<T> for WriteProtect<F> {
    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: Entry) {
        let perm = F::perm(at.value);
        if perm.contains(Perm::W) {
            let less = perm.without(Perm::W);
            update(t, at.table, at.index, at.value, |e| F::set_perm(e, less));
            cur.flush = true;
            cur.hit = true;
        }
    }
}

struct ClearDirty<F, D>(D, PhantomData<F>);

impl<F: Format, D: FnMut(Gpa, Level), T: Tables> Visitor<T> for ClearDirty<F, D> {
    #[inline]
    fn leaf(&mut self, t: &mut T, cur: &mut Cursor, at: Entry) {
        if F::dirty(at.value) {
            update(t, at.table, at.index, at.value, F::clear_dirty);
            cur.flush = true;
            cur.hit = true;
            (self.0)(Gpa(at.base), at.level);
        }
    }
}
