// SPDX-License-Identifier: GPL-2.0
//! Faults, invalidations, slot changes and flushes at once: the walker and the handshake of `mem::invalidations`, as
//! the module has them, between threads that come in between at every access, with a processor that caches translations
//! and pointers to tables, and a host that frees pages.
//!
//! `Broken` leaves one rule out; the same scenario has to fail then.

use std::sync::{Arc, Mutex, MutexGuard};

use rvmm_logic::interleave::{explore, fail, step, wait, Body};
use rvmm_logic::mem::addr::{Gpa, GpaRange, Hpa, Level};
use rvmm_logic::mem::format::{Format, Leaf, MemType, Perm};
use rvmm_logic::mem::invalidations::{Gate, Invalidations, Registry, Unflushed};
use rvmm_logic::mem::walk::{Allow, Cursor, MapError, Page, PageTable, Table, Tables};
use rvmm_logic::x86::paging::fmt_ept::Ept;

/// EPT with fewer levels; without `FREEZES` tables that are taken out can still be filled.
struct Small<const FREEZES: bool>;

impl<const FREEZES: bool> Format for Small<FREEZES> {
    const LEVELS: (u8, u8) = (2, 3);
    const FROZEN: u64 = if FREEZES { Ept::FROZEN } else { 0 };
    const HAS_AD: bool = true;
    const ACCESSED: u64 = Ept::ACCESSED;
    const DIRTY: u64 = Ept::DIRTY;
    const ADDR: u64 = Ept::ADDR;

    fn table(child: Hpa) -> u64 {
        Ept::table(child)
    }
    fn leaf(level: Level, leaf: &Leaf) -> u64 {
        Ept::leaf(level, leaf)
    }
    fn can_express(perm: Perm) -> bool {
        Ept::can_express(perm)
    }
    fn present(entry: u64) -> bool {
        Ept::present(entry)
    }
    fn is_leaf(entry: u64, level: Level) -> bool {
        Ept::is_leaf(entry, level)
    }
    fn perm(entry: u64) -> Perm {
        Ept::perm(entry)
    }
    fn set_perm(entry: u64, perm: Perm) -> u64 {
        Ept::set_perm(entry, perm)
    }
    fn mem_type(entry: u64, level: Level) -> MemType {
        Ept::mem_type(entry, level)
    }
}

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// Invalidations do not wait for faults.
    GateWait,
    /// Faults do not look for invalidations.
    Covers,
    /// Faults do not compare the count.
    Count,
    /// Ends do not look into the slots again.
    EndLooks,
    /// Invalidations do not note that a slot meets them.
    Met,
    /// Slots that come are not counted.
    Comes,
    /// They are counted when they are there.
    ComesFirst,
    /// Who finds nothing does not flush.
    PendingFlush,
    /// Tables are freed before the flush.
    FreeFirst,
    /// Tables are freed while others walk them.
    GracePeriod,
    /// Nobody names the slot that goes.
    Leaving,
    /// Entries are written whatever they have become.
    Compare,
}

const BASE: u64 = 0x10_0000_0000;
/// Host pages.
const P: u64 = 0x4020_0000;
const Q: u64 = 0x5000_0000;

/// Threads, vCPUs first.
const THREADS: usize = 3;

/// What a vCPU's processor has cached.
#[derive(Default)]
struct Tlb {
    in_guest: bool,
    generation: u64,
    /// Page by guest page.
    pages: Vec<(u64, u64)>,
    /// The table of 4 KiB leaves of the first 2 MiB.
    table: Option<u64>,
}

#[derive(Default)]
struct State {
    tables: Vec<Vec<u64>>,
    freed_tables: Vec<bool>,
    /// Tables to be freed, and the threads that may walk them.
    waiting: Vec<(u64, [bool; THREADS])>,
    reading: [bool; THREADS],
    freed_pages: Vec<u64>,
    /// The host's page table.
    host: [Option<u64>; 2],
    /// The slot is published; is about to go; readers of the table that has it.
    slot: bool,
    leaving: bool,
    slot_readers: usize,
    generation: u64,
    tlbs: [Tlb; 2],
    locked: bool,
}

struct World<F: Format> {
    state: Mutex<State>,
    broken: Broken,
    table: PageTable<F, Ctx<F>>,
    gates: [Gate; 2],
    invalidations: Invalidations,
    registry: Mutex<Registry>,
    unflushed: Unflushed,
}

/// A page that becomes a table.
struct Fresh(u64);

impl Page for Fresh {
    fn hpa(&self) -> Hpa {
        Hpa(self.0)
    }
    fn into_hpa(self) -> Hpa {
        Hpa(self.0)
    }
}

fn new_table(s: &mut State) -> Fresh {
    s.tables.push(vec![0; 512]);
    s.freed_tables.push(false);
    Fresh(BASE + ((s.tables.len() as u64 - 1) << 12))
}

fn number(table: u64) -> usize {
    ((table - BASE) >> 12) as usize
}

impl State {
    fn entry(&mut self, table: u64, index: usize) -> &mut u64 {
        if self.freed_tables[number(table)] {
            fail("a table is used that was freed");
        }
        &mut self.tables[number(table)][index]
    }

    fn free_table(&mut self, table: u64) {
        if std::mem::replace(&mut self.freed_tables[number(table)], true) {
            fail("a table is freed twice");
        }
    }

    fn end_reading(&mut self, thread: usize) {
        self.reading[thread] = false;
        for (_, by) in &mut self.waiting {
            by[thread] = false;
        }
        let (over, rest) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, by)| *by == [false; THREADS]);
        self.waiting = rest;
        over.into_iter()
            .for_each(|(t, _): (u64, _)| self.free_table(t));
    }
}

/// A thread and what it has unlinked.
struct Ctx<F: Format> {
    world: Option<Arc<World<F>>>,
    me: usize,
    unlinked: Vec<u64>,
}

impl<F: Format> Ctx<F> {
    fn world(&self) -> &World<F> {
        self.world.as_ref().unwrap()
    }

    /// The state, after others may have come in between.
    fn at(&self) -> MutexGuard<'_, State> {
        step();
        self.world().state.lock().unwrap()
    }

    /// An access to a table. Only entries 0 and 1 are anybody's business in these scenarios.
    fn table(&self, index: usize) -> MutexGuard<'_, State> {
        if index < 2 {
            step();
        }
        self.world().state.lock().unwrap()
    }

    fn read_lock(&self) {
        self.at().reading[self.me] = true;
    }

    fn read_unlock(&self) {
        self.at().end_reading(self.me);
    }

    fn release(&mut self) {
        let mut s = self.world.as_ref().unwrap().state.lock().unwrap();
        for table in std::mem::take(&mut self.unlinked) {
            if self.world().broken == Broken::GracePeriod || s.reading == [false; THREADS] {
                s.free_table(table);
            } else {
                let by = s.reading;
                s.waiting.push((table, by));
            }
        }
    }

    fn flush_all(&self) {
        self.at().generation += 1;
        for n in 0..2 {
            while self.at().tlbs[n].in_guest {
                wait();
            }
        }
    }

    /// Takes what is mapped away.
    fn remove(&mut self, range: GpaRange, sleeps: bool) {
        self.removing(range, sleeps, |table, c, cursor| {
            table.unmap_some(c, cursor, 1024)
        });
    }

    /// A log begins: huge leaves are split, writes fault.
    fn split(&mut self, range: GpaRange) {
        self.removing(range, true, |table, c, cursor| {
            table.split_some(c, cursor, 1024, false)
        });
    }

    /// A log ends: tables make room for huge leaves.
    fn join(&mut self, range: GpaRange) {
        self.removing(range, true, |table, c, cursor| {
            table.join_some(c, cursor, 1024, &mut |_, level| level == Level::L2)
        });
    }

    /// As `Removing`: walks, flushes once, then frees.
    fn removing(
        &mut self,
        range: GpaRange,
        sleeps: bool,
        step: impl Fn(&PageTable<F, Self>, &mut Self, &mut Cursor) -> bool,
    ) {
        let w = self.world.clone().unwrap();
        w.unflushed.begin();
        let mut cursor = Cursor::new(range);
        loop {
            self.read_lock();
            let done = step(&w.table, self, &mut cursor);
            self.read_unlock();
            if done {
                break;
            }
            assert!(sleeps);
        }
        if w.broken == Broken::FreeFirst {
            self.release();
        }
        let pending = w.broken != Broken::PendingFlush && w.unflushed.others();
        if cursor.flush || pending {
            self.flush_all();
        }
        w.unflushed.end();
        self.release();
    }

    fn lock(&self) {
        loop {
            let mut s = self.at();
            if !std::mem::replace(&mut s.locked, true) {
                return;
            }
            drop(s);
            wait();
        }
    }

    /// Whether the slot, or the one that goes, meets the range.
    fn meets(&self) -> bool {
        let found = self.at().slot;
        found || self.world().broken != Broken::Leaving && self.at().leaving
    }

    fn begin(&mut self, pages: std::ops::Range<u64>) {
        let w = self.world.clone().unwrap();
        let (start, end) = (pages.start << 12, pages.end << 12);
        self.lock();
        w.registry
            .lock()
            .unwrap()
            .begin(&w.invalidations, start, end);
        self.at().locked = false;
        if self.meets() {
            if w.broken != Broken::GateWait {
                w.gates.iter().for_each(|g| {
                    g.wait();
                });
            }
            self.remove(GpaRange::new(Gpa(start), end - start).unwrap(), false);
            if w.broken != Broken::Met {
                self.lock();
                w.registry.lock().unwrap().met(&w.invalidations, start, end);
                self.at().locked = false;
            }
        }
    }

    fn end(&self, pages: std::ops::Range<u64>) {
        let w = self.world();
        let (start, end) = (pages.start << 12, pages.end << 12);
        self.lock();
        let calm = w
            .registry
            .lock()
            .unwrap()
            .end_calm(&w.invalidations, start, end);
        self.at().locked = false;
        if calm {
            return;
        }
        if w.broken != Broken::EndLooks && self.meets() {
            w.invalidations.count_ended();
        }
        self.lock();
        w.registry.lock().unwrap().end(&w.invalidations, start, end);
        self.at().locked = false;
    }

    /// The host takes pages away, or puts others there, and frees what was there.
    fn host_changes(&mut self, pages: std::ops::Range<u64>, to: Option<u64>) {
        self.begin(pages.clone());
        let mut old = Vec::new();
        for page in pages.clone() {
            let mut s = self.at();
            let to = to.map(|t| t + (page << 12));
            old.extend(std::mem::replace(&mut s.host[page as usize], to));
        }
        // Who has a page by then holds it by what `begin` has to prevent.
        self.at().freed_pages.extend(old);
        self.end(pages);
    }

    /// What the processor finds for guest page `page`, and uses twice.
    fn guest(&self, page: u64) -> bool {
        let me = self.me;
        self.at().tlbs[me].in_guest = true;
        {
            let mut s = self.at();
            if s.tlbs[me].generation != s.generation {
                s.tlbs[me] = Tlb {
                    in_guest: true,
                    generation: s.generation,
                    ..Tlb::default()
                };
            }
        }
        let found = self.translate(page);
        if let Some(hpa) = found {
            for _ in 0..2 {
                if self.at().freed_pages.contains(&hpa) {
                    fail("the guest uses a page that was freed");
                }
            }
        }
        self.at().tlbs[me].in_guest = false;
        found.is_some()
    }

    fn translate(&self, page: u64) -> Option<u64> {
        let cached = |t: &Tlb| t.pages.iter().find(|p| p.0 == page).map(|p| p.1);
        if let Some(hpa) = cached(&self.at().tlbs[self.me]) {
            return Some(hpa);
        }
        let known = self.at().tlbs[self.me].table;
        let w = self.world();
        let mut table = known.unwrap_or(w.table.root().0);
        let mut level = match (known, w.table.limit().0 >> 30) {
            (Some(_), _) => Level::L1,
            (None, 1) => Level::L2,
            _ => Level::L3,
        };
        loop {
            let mut s = self.at();
            let e = *s.entry(table, level.index(page << 12));
            if !F::present(e) {
                return None;
            }
            if F::is_leaf(e, level) {
                let hpa = F::addr(e, level).0 + ((page << 12) & level.offset_mask());
                s.tlbs[self.me].pages.push((page, hpa));
                return Some(hpa);
            }
            table = F::child(e).0;
            level = level.down().unwrap();
            if level == Level::L1 {
                s.tlbs[self.me].table = Some(table);
            }
        }
    }

    /// A vCPU: accesses the page until it is there, or is not to be had.
    fn vcpu(&mut self, page: u64, how: Fault) {
        for _ in 0..3 {
            if self.guest(page) || !self.fault(page, how) {
                return;
            }
        }
    }

    /// False: there is no memory.
    fn fault(&mut self, page: u64, how: Fault) -> bool {
        let w = self.world.clone().unwrap();
        {
            let mut s = self.at();
            if !s.slot {
                return false;
            }
            s.slot_readers += 1;
        }
        let seen = w.invalidations.ended();
        let before = self.at().host[page as usize];
        self.read_lock();
        let section = w.gates[self.me].enter();
        let covered = w.broken != Broken::Covers && w.invalidations.covers(&section, page << 12);
        let late = w.broken != Broken::Count && w.invalidations.ended() != seen;
        let found = match how {
            Fault::Resident | Fault::Logged if covered => None,
            Fault::Resident | Fault::Logged => self.at().host[page as usize],
            _ if covered || late => None,
            _ => before,
        };
        let mut flush = false;
        if let Some(hpa) = found {
            let leaf = |hpa, perm| Leaf {
                hpa: Hpa(hpa),
                perm,
                mem_type: MemType::Ram,
                accessed: true,
                dirty: true,
            };
            let gpa = Gpa(page << 12);
            match how {
                Fault::Resident => {
                    let _ = w.table.map_new(self, gpa, Level::L1, &leaf(hpa, Perm::RWX));
                }
                Fault::Logged => {
                    let all = leaf(hpa, Perm::RWX);
                    let _ = w.table.map(self, gpa, Level::L1, &all, Allow::More);
                }
                Fault::Slow => {
                    let got = w
                        .table
                        .map(self, gpa, Level::L1, &leaf(hpa, Perm::RWX), Allow::More);
                    assert!(matches!(got, Ok(_) | Err(MapError::Busy)), "{got:?}");
                }
                Fault::Huge => {
                    w.unflushed.begin();
                    let whole = leaf(hpa & !0x1f_ffff, Perm::RWX);
                    let got = w.table.map(self, Gpa(0), Level::L2, &whole, Allow::Any);
                    flush = got.is_ok_and(|c| c.needs_flush());
                }
            }
        }
        drop(section);
        self.read_unlock();
        if how == Fault::Huge && found.is_some() {
            if flush || w.unflushed.others() {
                self.flush_all();
            }
            w.unflushed.end();
            self.release();
        }
        self.at().slot_readers -= 1;
        found.is_some() || !matches!(how, Fault::Resident | Fault::Logged) || covered
    }

    /// KVM_SET_USER_MEMORY_REGION that creates.
    fn create_slot(&mut self) {
        let w = self.world.clone().unwrap();
        if !matches!(w.broken, Broken::Comes | Broken::ComesFirst) {
            w.invalidations.slot_comes();
        }
        self.at().slot = true;
        if w.broken == Broken::ComesFirst {
            w.invalidations.slot_comes();
        }
    }

    /// KVM_SET_USER_MEMORY_REGION that deletes.
    fn delete_slot(&mut self) {
        self.at().leaving = true;
        self.at().slot = false;
        while self.at().slot_readers != 0 {
            wait();
        }
        self.remove(GpaRange::new(Gpa(0), 0x2000).unwrap(), true);
        self.at().leaving = false;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The page is looked up in the section, into an empty entry.
    Resident,
    /// As `Resident`, where writes are logged: a page of its own, also out of a huge leaf.
    Logged,
    /// The page is looked up before.
    Slow,
    /// As `Slow`, by a huge leaf in place of whatever is there.
    Huge,
}

impl<F: Format> Tables for Ctx<F> {
    type Page = Fresh;

    fn load(&self, table: &Table<Fresh>, index: usize) -> u64 {
        *self.table(index).entry(table.hpa().0, index)
    }

    fn store(&self, table: &Table<Fresh>, index: usize, value: u64) {
        // Nobody else sees the table.
        let w = self.world();
        *w.state.lock().unwrap().entry(table.hpa().0, index) = value;
    }

    fn cmpxchg(&self, table: &Table<Fresh>, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let mut s = self.table(index);
        let e = s.entry(table.hpa().0, index);
        if *e != old && self.world().broken != Broken::Compare {
            return Err(*e);
        }
        *e = new;
        Ok(())
    }

    fn swap(&self, table: &Table<Fresh>, index: usize, new: u64) -> u64 {
        let mut s = self.table(index);
        std::mem::replace(s.entry(table.hpa().0, index), new)
    }

    fn alloc(&mut self) -> Option<Fresh> {
        Some(new_table(&mut self.world().state.lock().unwrap()))
    }

    fn unused(&mut self, table: Table<Fresh>) {
        let mut s = self.world().state.lock().unwrap();
        s.free_table(table.hpa().0);
    }

    fn free(&mut self, table: Table<Fresh>) {
        self.unlinked.push(table.hpa().0);
    }
}

type Act<F> = fn(&mut Ctx<F>);

/// Two pages `P` of the host's, mapped or not, in a slot.
fn world<F: Format + 'static>(
    broken: Broken,
    levels: u8,
    prepare: impl Fn(&mut Ctx<F>),
) -> Arc<World<F>> {
    let mut s = State {
        host: [Some(P), Some(P + 0x1000)],
        slot: true,
        ..State::default()
    };
    let root = new_table(&mut s);
    let world = Arc::new(World {
        state: Mutex::new(s),
        broken,
        table: PageTable::with_root(root, levels).unwrap(),
        gates: [Gate::new(), Gate::new()],
        invalidations: Invalidations::new(),
        registry: Mutex::new(Registry::new()),
        unflushed: Unflushed::new(),
    });
    prepare(&mut ctx(&world, 0));
    world
}

fn ctx<F: Format>(world: &Arc<World<F>>, me: usize) -> Ctx<F> {
    Ctx {
        world: Some(world.clone()),
        me,
        unlinked: Vec::new(),
    }
}

/// Every table is in the tree or has been freed, nothing is under way, and nothing freed is mapped.
fn settled<F: Format>(w: &World<F>) -> Result<(), String> {
    let mut s = w.state.lock().unwrap();
    let mut seen = 0;
    let mut level = vec![w.table.root().0];
    let top = if w.table.limit().0 >> 30 == 1 { 2 } else { 3 };
    for n in (1..=top).rev() {
        seen += level.len();
        let mut below = Vec::new();
        for t in level {
            if s.freed_tables[number(t)] {
                return Err("a freed table is linked".into());
            }
            for i in 0..512 {
                let (e, at) = (s.tables[number(t)][i], Level::from_u8(n).unwrap());
                if F::present(e) && !F::is_leaf(e, at) {
                    below.push(F::child(e).0);
                } else if F::present(e) && s.freed_pages.contains(&F::addr(e, at).0) {
                    return Err("a freed page is mapped".into());
                } else if !F::present(e) && e != F::NON_PRESENT {
                    return Err("an entry is left frozen".into());
                }
            }
        }
        level = below;
    }
    s.end_reading(0);
    let kept = s.freed_tables.iter().filter(|f| !**f).count();
    if kept != seen {
        return Err(format!("{kept} tables are kept, {seen} are linked"));
    }
    Ok(())
}

fn try_all<F: Format + Send + Sync + 'static>(
    broken: Broken,
    levels: u8,
    prepare: Act<F>,
    acts: &[Act<F>],
    preemptions: u32,
) -> Result<u32, String> {
    explore(
        preemptions,
        || {
            let w = world::<F>(broken, levels, prepare);
            let body = |(me, act): (usize, &Act<F>)| -> Body {
                let (mut c, act) = (ctx(&w, me), *act);
                Box::new(move || act(&mut c))
            };
            let bodies = acts.iter().enumerate().map(body).collect();
            (w, bodies)
        },
        |w| settled(&w),
    )
}

type S = Small<true>;

/// The scenario holds, and does not without the rule.
fn holds(levels: u8, prepare: Act<S>, acts: &[Act<S>], preemptions: u32, rules: &[Broken]) {
    let runs = try_all(Broken::Nothing, levels, prepare, acts, preemptions).unwrap();
    println!("{runs} runs");
    for rule in rules {
        let why = try_all(*rule, levels, prepare, acts, preemptions);
        println!("without {rule:?}: {why:?}");
        assert!(why.is_err(), "nothing is missed without {rule:?}");
    }
}

fn nothing(_: &mut Ctx<S>) {}

/// Page 0 is mapped, and vCPU 0 has it in its TLB.
fn mapped(c: &mut Ctx<S>) {
    c.vcpu(0, Fault::Slow);
    assert!(c.guest(0));
}

/// The short fault, which looks at the host's page table between the look for invalidations and the mapping.
#[test]
fn resident_fault_against_invalidation() {
    let rules = [Broken::GateWait, Broken::Covers];
    let acts: [Act<S>; 2] = [|c| c.vcpu(0, Fault::Resident), |_| {}];
    let host: Act<S> = |c| c.host_changes(0..1, None);
    holds(2, nothing, &[acts[0], acts[1], host], 2, &rules);
}

/// The page is looked up long before it is mapped; the host puts another one there.
#[test]
fn slow_fault_against_invalidation() {
    let rules = [Broken::GateWait, Broken::Covers, Broken::Count, Broken::Met];
    let host: Act<S> = |c| c.host_changes(0..1, Some(Q));
    holds(
        2,
        nothing,
        &[|c| c.vcpu(0, Fault::Slow), |_| {}, host],
        2,
        &rules,
    );
}

/// A table goes while a vCPU walks it, in software and in hardware.
#[test]
fn table_goes() {
    let host: Act<S> = |c| {
        c.remove(GpaRange::new(Gpa(0), 0x20_0000).unwrap(), true);
    };
    let acts: [Act<S>; 3] = [|c| c.vcpu(1, Fault::Slow), |_| {}, host];
    let rules = [Broken::GracePeriod, Broken::FreeFirst];
    holds(2, mapped, &acts, 2, &rules);
}

/// Two changes of the host at once: the one that finds nothing left frees the page first.
#[test]
fn flush_of_another() {
    let acts: [Act<S>; 3] = [
        |c| {
            c.guest(0);
        },
        |c| c.remove(GpaRange::new(Gpa(0), 0x2000).unwrap(), true),
        |c| c.host_changes(0..1, None),
    ];
    holds(2, mapped, &acts, 2, &[Broken::PendingFlush]);
}

/// A huge leaf is split for one vCPU while the host takes another page of it away.
#[test]
fn split_against_invalidation() {
    let prepare: Act<S> = |c| {
        let w = c.world.clone().unwrap();
        let whole = Leaf {
            hpa: Hpa(P),
            perm: Perm::RX,
            mem_type: MemType::Ram,
            accessed: true,
            dirty: false,
        };
        w.table.map_new(c, Gpa(0), Level::L2, &whole).unwrap();
    };
    let acts: [Act<S>; 3] = [
        |c| {
            c.fault(0, Fault::Slow);
            c.guest(1);
        },
        |_| {},
        |c| c.host_changes(1..2, None),
    ];
    holds(2, prepare, &acts, 2, &[]);
}

/// The first 2 MiB by one leaf, which vCPU 0 has in its TLB.
fn mapped_huge(c: &mut Ctx<S>) {
    let w = c.world.clone().unwrap();
    let whole = Leaf {
        hpa: Hpa(P),
        perm: Perm::RWX,
        mem_type: MemType::Ram,
        accessed: true,
        dirty: true,
    };
    w.table.map_new(c, Gpa(0), Level::L2, &whole).unwrap();
    assert!(c.guest(0));
}

/// A log begins and splits a huge leaf, which a write splits as well, while the host takes the pages away.
#[test]
fn log_begins() {
    let acts: [Act<S>; 3] = [
        |c| {
            c.fault(0, Fault::Logged);
            c.guest(1);
        },
        |c| c.split(GpaRange::new(Gpa(0), 0x20_0000).unwrap()),
        |c| c.host_changes(0..2, None),
    ];
    let rules = [Broken::GateWait, Broken::Compare];
    holds(2, mapped_huge, &acts, 2, &rules);
}

/// A log ends and tables go, into which a vCPU maps and which its processor has cached, while the host takes a page
/// away.
#[test]
fn log_ends() {
    let acts: [Act<S>; 3] = [
        |c| c.vcpu(1, Fault::Resident),
        |c| c.join(GpaRange::new(Gpa(0), 0x20_0000).unwrap()),
        |c| c.host_changes(1..2, None),
    ];
    let rules = [Broken::GateWait, Broken::GracePeriod, Broken::FreeFirst];
    holds(2, mapped, &acts, 2, &rules);
}

/// A slot is deleted, by a thread that nobody else waits for, while the host takes its page away.
#[test]
fn slot_goes() {
    let acts: [Act<S>; 3] = [
        |c| c.vcpu(0, Fault::Resident),
        |c| c.delete_slot(),
        |c| c.host_changes(0..1, None),
    ];
    holds(2, mapped, &acts, 2, &[Broken::Leaving]);
}

/// A slot comes while the host changes the page behind it, which concerned nobody when it began.
#[test]
fn slot_comes() {
    let prepare: Act<S> = |c| c.world().state.lock().unwrap().slot = false;
    let acts: [Act<S>; 3] = [
        |c| c.host_changes(0..1, Some(Q)),
        |c| c.vcpu(0, Fault::Slow),
        |c| c.create_slot(),
    ];
    let rules = [Broken::Covers, Broken::EndLooks, Broken::Comes];
    holds(2, prepare, &acts, 2, &rules);
    let late = try_all(Broken::ComesFirst, 2, prepare, &acts, 3);
    println!("counted late: {late:?}");
    assert!(late.is_err());
}

/// One vCPU puts a huge leaf in the place of a table into which another one maps, and which its processor has cached.
#[test]
fn table_gives_way_to_leaf() {
    let acts: [Act<S>; 3] = [
        |c| c.vcpu(1, Fault::Resident),
        |c| {
            c.fault(0, Fault::Huge);
        },
        // The host changes huge mappings as a whole.
        |c| c.host_changes(0..2, None),
    ];
    holds(2, mapped, &acts, 2, &[Broken::GateWait]);
}

/// An upper table is found empty and goes while a vCPU links another one into it: none is lost.
#[test]
fn upper_table_goes() {
    fn go<F: Format + Send + Sync + 'static>() -> Result<u32, String> {
        let acts: [Act<F>; 3] = [
            |c| c.vcpu(0, Fault::Slow),
            |_| {},
            |c| c.remove(GpaRange::new(Gpa(0), 1 << 30).unwrap(), true),
        ];
        let prepare: Act<F> = |c| {
            c.vcpu(0, Fault::Slow);
            c.remove(GpaRange::new(Gpa(0), 0x20_0000).unwrap(), true);
        };
        try_all(Broken::Nothing, 3, prepare, &acts, 2)
    }
    println!("{} runs", go::<Small<true>>().unwrap());
    assert!(go::<Small<false>>().is_err());
}

/// More ranges than are told apart; equal ones; ends in another order.
#[test]
fn ranges() {
    let (set, gate) = (Invalidations::new(), Gate::new());
    let mut registry = Registry::new();
    let covers = |a| set.covers(&gate.enter(), a);
    let at = |n: u64| (n * 0x10_0000, n * 0x10_0000 + 0x1000);
    for round in 0..3 {
        for n in 1..=20 {
            let (start, end) = at(n);
            assert!(!covers(start));
            registry.begin(&set, start, end);
            assert!(covers(start) && covers(end - 1) && (n > 17 || !covers(start - 1)));
        }
        // Those that are told apart are exact; the others have what lies between them as well.
        assert!(!covers(at(16).1) && covers(at(18).1) && !covers(at(20).1));
        registry.begin(&set, at(3).0, at(3).1);
        for n in (1..=20).map(|n| (n * 7 + round) % 20 + 1) {
            registry.end(&set, at(n).0, at(n).1);
        }
        assert!(covers(at(3).0), "one of two equal ranges is left");
        registry.end(&set, at(3).0, at(3).1);
        for n in 1..=20 {
            assert!(!covers(at(n).0));
        }
    }
}
