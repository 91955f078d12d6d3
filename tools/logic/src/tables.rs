// SPDX-License-Identifier: GPL-2.0
//! Table memory for the tests of the walker: a processor that sets accessed and dirty bits in between, allocation
//! failures on demand, and an observer that holds every write against the rules of the format.

extern crate std;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::{vec, vec::Vec};

use crate::mem::addr::{Gpa, GpaRange, Hpa, Level};
use crate::mem::format::{Format, Perm};
use crate::mem::walk::{Cursor, MapError, MappedLeaf, Page, PageTable, Table, Tables};

/// xorshift64*: reproducible, no dependency.
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What the "processor" of [`Mem`] does each time an entry is read: nothing, or a write to a random page.
#[derive(Default)]
pub struct Hardware {
    /// State of its random numbers.
    pub rng: u64,
    /// Number of levels.
    pub top: u8,
    /// Address of the root.
    pub root: u64,
    /// Pages that the guest uses.
    pub gpas: Vec<u64>,
    /// Pages written by the guest, and not reported as dirty so far, as (gpa, hpa).
    pub written: BTreeSet<(u64, u64)>,
    /// Paging-structure cache: tables of 4 KiB leaves by the 2 MiB area they map, kept until the next flush.
    pub cached: BTreeMap<u64, u64>,
}

/// Address of the first table.
const BASE: u64 = 0x10_0000_0000;

/// Pages in a row that are not in a table yet.
pub struct Fresh {
    hpa: Hpa,
    tables: u64,
}

impl Page for Fresh {
    fn tables(&self) -> u64 {
        self.tables
    }

    fn hpa(&self) -> Hpa {
        self.hpa
    }

    fn into_hpa(self) -> Hpa {
        self.hpa
    }
}

/// A leaf as a walk finds it.
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

/// Table memory.
pub struct Mem<F> {
    /// Table `n` lies at `BASE + n * 4096`; its content is gone after free and flush.
    tables: Vec<Option<Vec<Cell<u64>>>>,
    /// Freed tables: their content must stay until the next flush.
    freed: BTreeSet<u64>,
    /// Entries that were present when translations were flushed last or have become so since, with what they were when
    /// they were broken: a processor may still have that in its TLB.
    stale: RefCell<BTreeMap<(u64, usize), u64>>,
    /// Allocations left before failure.
    pub quota: u64,
    /// Leaves reported as gone.
    pub removed: Vec<MappedLeaf>,
    /// The processor, if there is one.
    pub hw: RefCell<Option<Hardware>>,
    /// Entries read by the walker.
    pub loads: Cell<u64>,
    /// Flushes that the walker asked for by itself.
    pub breaks: u64,
    _f: core::marker::PhantomData<F>,
}

impl<F: Format> Default for Mem<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Format> Mem<F> {
    /// No tables, no limit.
    pub fn new() -> Self {
        Self {
            tables: Vec::new(),
            freed: BTreeSet::new(),
            stale: RefCell::default(),
            quota: u64::MAX,
            removed: Vec::new(),
            hw: RefCell::new(None),
            loads: Cell::new(0),
            breaks: 0,
            _f: core::marker::PhantomData,
        }
    }

    /// An empty page table.
    pub fn create(&mut self, levels: u8) -> Result<PageTable<F, Self>, MapError> {
        PageTable::with_root(self.fresh(F::ROOT_TABLES), levels)
    }

    fn fresh(&mut self, tables: u64) -> Fresh {
        let hpa = Hpa(BASE + ((self.tables.len() as u64) << 12));
        for _ in 0..tables {
            self.tables.push(Some(vec![Cell::new(0); 512]));
        }
        Fresh { hpa, tables }
    }

    fn table(&self, table: Hpa) -> &[Cell<u64>] {
        let n = ((table.0 - BASE) >> 12) as usize;
        self.tables[n]
            .as_ref()
            .expect("access to a table that does not exist")
    }

    /// Tables allocated and not yet reusable, without those of roots.
    pub fn held(&self) -> usize {
        self.tables.iter().flatten().count() - F::ROOT_TABLES as usize
    }

    /// Tables in use, without those of roots.
    pub fn live(&self) -> usize {
        self.held() - self.freed.len()
    }

    /// The owner's flush: no processor has anything cached after it.
    pub fn flush_all(&mut self) {
        if let Some(hw) = self.hw.get_mut() {
            hw.cached.clear();
        }
        self.stale.get_mut().clear();
        for t in std::mem::take(&mut self.freed) {
            self.tables[((t - BASE) >> 12) as usize] = None;
        }
    }

    /// Holds a write against "break before make": an entry that is present, or was so since the last flush, becomes
    /// another present one only if rights and marks alone differ.
    fn observe(&self, table: Hpa, index: usize, old: u64, new: u64) {
        if !F::BREAK_FIRST {
            return;
        }
        let mut stale = self.stale.borrow_mut();
        let before = if F::present(old) {
            Some(old)
        } else {
            stale.get(&(table.0, index)).copied()
        };
        let Some(before) = before else { return };
        if F::present(new) {
            let same = |e| F::set_ad(F::set_perm(e, Perm::RWX), true, true);
            assert!(
                same(before) == same(new),
                "entry {index} of {table:?} was {before:#x} and became {new:#x} without a break"
            );
        }
        stale.insert((table.0, index), before);
    }

    fn walk(&self, root: Hpa, top: Level, gpa: u64) -> Option<(Hpa, usize, u64, Level)> {
        let mut table = Hpa(root.0 + gpa / top.table_size() * 0x1000);
        let mut level = top;
        loop {
            let e = self.table(table)[level.index(gpa)].get();
            if !F::present(e) {
                return None;
            }
            if F::is_leaf(e, level) {
                return Some((table, level.index(gpa), e, level));
            }
            assert!(
                !self.freed.contains(&F::child(e).0),
                "reachable table was freed"
            );
            table = F::child(e);
            level = level.down()?;
        }
    }

    /// The leaf that maps `gpa`, if there is one.
    pub fn lookup(&self, pt: &PageTable<F, Self>, gpa: Gpa) -> Option<Mapping> {
        if gpa >= pt.limit() {
            return None;
        }
        let top = Self::top(pt);
        let (_, _, raw, level) = self.walk(pt.root(), top, gpa.0)?;
        Some(Mapping {
            hpa: Hpa(F::addr(raw, level).0 + (gpa.0 & level.offset_mask())),
            level,
            perm: F::perm(raw),
            raw,
        })
    }

    fn top(pt: &PageTable<F, Self>) -> Level {
        let levels = (1..=5).filter_map(Level::from_u8);
        let size = pt.limit().0 / F::ROOT_TABLES;
        levels
            .into_iter()
            .find(|l| l.table_size() == size)
            .unwrap_or(Level::L5)
    }

    /// Takes the write right from all of `range`; whether translations have to be flushed.
    pub fn write_protect(&mut self, pt: &PageTable<F, Self>, range: GpaRange) -> bool {
        let mut cur = Cursor::new(range);
        while !pt.write_protect_some(self, &mut cur, u32::MAX) {}
        cur.flush
    }

    /// Has all of `range` count as not written; whether translations have to be flushed.
    pub fn clean(&mut self, pt: &PageTable<F, Self>, range: GpaRange) -> bool {
        let mut cur = Cursor::new(range);
        while !pt.clean_some(self, &mut cur, u32::MAX) {}
        cur.flush
    }

    /// Removes all that is mapped in `range`; whether translations have to be flushed.
    pub fn unmap(&mut self, pt: &PageTable<F, Self>, range: GpaRange) -> bool {
        let mut cur = Cursor::new(range);
        while !pt.unmap_some(self, &mut cur, u32::MAX) {}
        cur.flush
    }

    /// Ages `range`: whether a page was accessed, and whether translations have to be flushed.
    pub fn age(&mut self, pt: &PageTable<F, Self>, range: GpaRange) -> (bool, bool) {
        let mut cur = Cursor::new(range);
        while !pt.age_some(self, &mut cur, u32::MAX) {}
        (cur.hit, cur.flush)
    }

    /// Empties the table, with or without a report of each leaf, and shows that nothing is left.
    pub fn destroy(&mut self, pt: PageTable<F, Self>, report: bool) {
        if report {
            let all = pt.all();
            self.unmap(&pt, all);
        }
        let mut cur = Cursor::new(pt.all());
        while !pt.clear_some(self, &mut cur, u32::MAX) {}
        self.flush_all();
        assert_eq!(self.held(), 0, "tables leaked");
    }

    /// Every entry is one that a processor accepts, and no table is linked twice or leaked.
    pub fn check(&self, pt: &PageTable<F, Self>, bad: &dyn Fn(u64, Level) -> bool) {
        let top = Self::top(pt);
        let tables: usize = (0..F::ROOT_TABLES)
            .map(|n| self.check_table(Hpa(pt.root().0 + n * 0x1000), top, bad))
            .sum();
        assert_eq!(tables, self.live(), "a table is lost or linked twice");
    }

    fn check_table(&self, table: Hpa, level: Level, bad: &dyn Fn(u64, Level) -> bool) -> usize {
        assert!(
            !self.freed.contains(&table.0),
            "a freed table is still linked"
        );
        let mut tables = 0;
        for c in self.table(table) {
            let e = c.get();
            assert!(!bad(e, level), "entry {e:#x} of {level:?} is malformed");
            if !F::present(e) {
                assert_eq!(e, F::NON_PRESENT);
            } else if !F::is_leaf(e, level) {
                tables += 1 + self.check_table(F::child(e), level.down().unwrap(), bad);
            }
        }
        tables
    }

    /// The guest writes a random page, if its mapping allows.
    fn hardware(&self) {
        let mut hw = self.hw.borrow_mut();
        let Some(hw) = hw.as_mut() else { return };
        let mut rng = Rng(hw.rng);
        if rng.below(4) != 0 {
            hw.rng = rng.0;
            return;
        }
        let gpa = hw.gpas[rng.below(hw.gpas.len() as u64) as usize];
        hw.rng = rng.0;
        let found = match hw.cached.get(&(gpa >> 21)) {
            Some(&t) => {
                let index = Level::L1.index(gpa);
                let e = self.table(Hpa(t))[index].get();
                F::present(e).then_some((Hpa(t), index, e, Level::L1))
            }
            None => self.walk(Hpa(hw.root), Level::from_u8(hw.top).unwrap(), gpa),
        };
        let Some((table, index, e, level)) = found else {
            return;
        };
        if level == Level::L1 {
            hw.cached.insert(gpa >> 21, table.0);
        }
        if F::perm(e).contains(Perm::W) {
            if F::HAS_AD {
                self.table(table)[index].set(F::set_ad(e, true, true));
            }
            let hpa = F::addr(e, level).0 + (gpa & level.offset_mask());
            hw.written.insert((gpa, hpa));
        }
    }
}

impl<F: Format> Tables for Mem<F> {
    type Page = Fresh;
    const FLUSHES: bool = true;

    fn reports(&self) -> bool {
        true
    }

    fn flush(&mut self) {
        self.breaks += 1;
        // The freed tables stay until the owner's own flush: it may not rely on this one.
        self.stale.get_mut().clear();
        if let Some(hw) = self.hw.get_mut() {
            hw.cached.clear();
        }
    }

    fn load(&self, table: &Table<Fresh>, index: usize) -> u64 {
        self.loads.set(self.loads.get() + 1);
        let v = self.table(table.hpa())[index].get();
        self.hardware();
        v
    }

    fn store(&self, table: &Table<Fresh>, index: usize, value: u64) {
        let cell = &self.table(table.hpa())[index];
        self.observe(table.hpa(), index, cell.get(), value);
        cell.set(value);
        self.hardware();
    }

    fn cmpxchg(&self, table: &Table<Fresh>, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let cell = &self.table(table.hpa())[index];
        if cell.get() != old {
            return Err(cell.get());
        }
        self.observe(table.hpa(), index, old, new);
        cell.set(new);
        self.hardware();
        Ok(())
    }

    fn swap(&self, table: &Table<Fresh>, index: usize, new: u64) -> u64 {
        let cell = &self.table(table.hpa())[index];
        let old = cell.get();
        self.observe(table.hpa(), index, old, new);
        cell.set(new);
        self.hardware();
        old
    }

    fn alloc(&mut self) -> Option<Fresh> {
        self.quota = self.quota.checked_sub(1)?;
        Some(self.fresh(1))
    }

    fn unused(&mut self, table: Table<Fresh>) {
        self.table(table.hpa());
        self.tables[((table.hpa().0 - BASE) >> 12) as usize] = None;
    }

    fn free(&mut self, table: Table<Fresh>) {
        self.table(table.hpa());
        assert!(self.freed.insert(table.hpa().0), "double free");
    }

    fn removed(&mut self, r: &MappedLeaf) {
        if r.dirty {
            if let Some(hw) = self.hw.borrow_mut().as_mut() {
                hw.written.retain(|&(gpa, hpa)| {
                    gpa < r.gpa.0
                        || gpa >= r.gpa.0 + r.level.size()
                        || hpa.wrapping_sub(r.hpa.0) != gpa - r.gpa.0
                });
            }
        }
        self.removed.push(*r);
    }
}

/// Whether `entry` of an extended page table is one that the processor refuses (SDM 3C 29.3.3.1): all page sizes, no
/// execute-only pages, 46 address bits.
pub fn ept_malformed(entry: u64, level: Level) -> bool {
    if entry & 7 == 0 {
        return false;
    }
    let leaf = level == Level::L1 || entry & 0x80 != 0;
    // Reads are not allowed, or the address is too wide, or a page of 512 GiB.
    if entry & 1 == 0 || entry & 0x000f_c000_0000_0000 != 0 || (leaf && level > Level::L3) {
        return true;
    }
    if leaf {
        entry & 0x000f_ffff_ffff_f000 & level.offset_mask() != 0
            || matches!(entry >> 3 & 7, 2 | 3 | 7)
    } else {
        entry & 0x78 != 0
    }
}

/// Whether `entry` of a nested table of AMD raises a fault for a reserved bit (APM 2 5.3.3, 5.4): 46 address bits.
pub fn npt_malformed(entry: u64, level: Level) -> bool {
    if entry & 1 == 0 {
        return false;
    }
    if entry & 0x000f_c000_0000_0000 != 0 {
        return true;
    }
    match level {
        Level::L1 => false,
        // Bit 12 is the PAT's.
        Level::L2 | Level::L3 => {
            entry & 0x80 != 0 && entry & level.offset_mask() & 0x000f_ffff_ffff_e000 != 0
        }
        Level::L4 | Level::L5 => entry & 0x180 != 0,
    }
}
