// SPDX-License-Identifier: GPL-2.0
//! Frozen page tables: against a model, one operation after the other; and writers that thaw the same tables at once,
//! in all interleavings, with a look at every step whether a page can be written that nobody has mapped writable since.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use rvmm_logic::interleave::{explore, fail, step, Body};
use rvmm_logic::mem::addr::{Gpa, GpaRange, Hpa, Level};
use rvmm_logic::mem::format::{Format, Leaf, MemType, Perm};
use rvmm_logic::mem::walk::{Allow, MapError, Page, PageTable, Table, Tables};
use rvmm_logic::null::Stage2;
use rvmm_logic::tables::{Mem, Rng};
use rvmm_logic::x86::paging::fmt_ept::{Ept, EptNoAd};
use rvmm_logic::x86::paging::fmt_npt::Npt;

const MIB_2: u64 = 2 << 20;

fn leaf(hpa: u64, perm: Perm) -> Leaf {
    Leaf {
        hpa: Hpa(hpa),
        perm,
        mem_type: MemType::Ram,
        accessed: true,
        dirty: false,
    }
}

/// Whether a write to `gpa` passes.
fn writable<F: Format>(m: &Mem<F>, pt: &PageTable<F, Mem<F>>, gpa: u64) -> bool {
    let found = m.lookup(pt, Gpa(gpa));
    found.is_some_and(|l| l.perm.contains(Perm::W)) && !pt.is_frozen(m, Gpa(gpa))
}

/// As a fault on a write does.
fn write<F: Format>(m: &mut Mem<F>, pt: &PageTable<F, Mem<F>>, gpa: u64, level: Level) {
    while let Some(narrowed) = pt.thaw_begin(m, Gpa(gpa)) {
        pt.thaw_end(m, Gpa(gpa), narrowed.level);
    }
    let base = gpa & !level.offset_mask();
    pt.map(m, Gpa(base), level, &leaf(base, Perm::RWX), Allow::Any)
        .unwrap();
}

/// Random maps, freezes, writes and removals.
fn model<F: Format>(seed: u64) {
    let mut rng = Rng(seed);
    let mut m = Mem::<F>::new();
    let pt: PageTable<F, _> = m.create(4).unwrap();
    // Addresses in several tables of each level.
    let pages: Vec<u64> = (0..48)
        .map(|n| (n % 3) << 12 | (n / 3 % 2) * MIB_2 | (n / 6 % 2) << 30 | (n / 12 % 4) << 39)
        .filter(|g| *g < pt.limit().0)
        .collect();
    // What may be written.
    let mut open = BTreeSet::new();
    for _ in 0..3000 {
        let gpa = pages[rng.below(pages.len() as u64) as usize];
        match rng.below(12) {
            0 => {
                pt.freeze(&mut m);
                open.clear();
            }
            1 => {
                let range = GpaRange::new(Gpa(gpa & !(MIB_2 - 1)), MIB_2).unwrap();
                m.unmap(&pt, range);
                open.retain(|g| g & !(MIB_2 - 1) != gpa & !(MIB_2 - 1));
            }
            2 | 3 => {
                // A huge leaf opens all that it maps.
                let base = gpa & !(MIB_2 - 1);
                write(&mut m, &pt, gpa, Level::L2);
                open.extend(pages.iter().filter(|g| **g & !(MIB_2 - 1) == base));
            }
            4 => {
                let range = GpaRange::new(Gpa(gpa), 4096).unwrap();
                if m.lookup(&pt, Gpa(gpa))
                    .is_some_and(|l| l.level == Level::L1)
                {
                    m.write_protect(&pt, range);
                    open.remove(&gpa);
                }
            }
            5 | 6 => {
                // For reads, which leaves frozen tables alone.
                let got = pt.map(
                    &mut m,
                    Gpa(gpa),
                    Level::L1,
                    &leaf(gpa, Perm::RX),
                    Allow::More,
                );
                assert!(matches!(got, Ok(_) | Err(MapError::Present)), "{got:?}");
            }
            7 => {
                let frozen = pt.is_frozen(&m, Gpa(gpa));
                let got = pt.map(
                    &mut m,
                    Gpa(gpa),
                    Level::L1,
                    &leaf(gpa, Perm::RWX),
                    Allow::Any,
                );
                assert_eq!(got == Err(MapError::Frozen), frozen, "{got:?}");
                if !frozen {
                    open.insert(gpa);
                }
            }
            _ => {
                write(&mut m, &pt, gpa, Level::L1);
                assert!(writable(&m, &pt, gpa));
                open.insert(gpa);
            }
        }
        for g in &pages {
            // A write that thaws takes more than it needs from others.
            assert!(
                !writable(&m, &pt, *g) || open.contains(g),
                "{g:x}, seed {seed}"
            );
        }
    }
}

#[test]
fn against_a_model() {
    for seed in 1..6 {
        model::<Ept>(seed);
        model::<EptNoAd>(seed);
        model::<Npt>(seed);
    }
}

/// What is mapped does not matter to what a freeze costs, and neighbours need no second thaw.
#[test]
fn costs() {
    let mut m = Mem::<Npt>::new();
    let pt: PageTable<Npt, _> = m.create(4).unwrap();
    assert!(!pt.freeze(&mut m));
    for n in 0..8 {
        write(&mut m, &pt, n << 12, Level::L1);
    }
    assert!(pt.freeze(&mut m));
    assert!(!pt.freeze(&mut m));
    let mut levels = BTreeMap::new();
    for n in [0u64, 1, 512] {
        let mut count = 0;
        while let Some(narrowed) = pt.thaw_begin(&mut m, Gpa(n << 12)) {
            pt.thaw_end(&mut m, Gpa(n << 12), narrowed.level);
            count += 1;
        }
        levels.insert(n, count);
    }
    // 512 GiB, 1 GiB, 2 MiB; then nothing is mapped there.
    assert_eq!(levels, BTreeMap::from([(0, 3), (1, 0), (512, 0)]));
}

/// Where tables have no rights of their own, leaves lose theirs.
#[test]
fn without_rights_in_tables() {
    let mut m = Mem::<Stage2>::new();
    let pt: PageTable<Stage2, _> = m.create(3).unwrap();
    for n in 0..3 {
        write(&mut m, &pt, n << 12, Level::L1);
    }
    assert!(pt.freeze(&mut m));
    assert!((0..3).all(|n| !writable(&m, &pt, n << 12)));
    write(&mut m, &pt, 0, Level::L1);
    assert!(writable(&m, &pt, 0) && !writable(&m, &pt, 1 << 12));
}

// --- at once ---

const BASE: u64 = 1 << 32;
/// Pages: two in one table, one in the next, one below another table of 1 GiB. The second is never written.
const PAGES: [u64; 4] = [0, 1 << 12, MIB_2, 1 << 30];

struct World<F: Format> {
    tables: Mutex<Vec<Vec<u64>>>,
    root: u64,
    table: Option<PageTable<F, Ctx<F>>>,
}

struct Fresh(u64);

impl Page for Fresh {
    fn hpa(&self) -> Hpa {
        Hpa(self.0)
    }
    fn into_hpa(self) -> Hpa {
        Hpa(self.0)
    }
}

struct Ctx<F: Format>(Option<Arc<World<F>>>, PhantomData<F>);

fn number(table: u64) -> usize {
    ((table - BASE) >> 12) as usize
}

/// Whether a write to `gpa` passes all entries on its way.
fn passes<F: Format>(tables: &[Vec<u64>], root: u64, gpa: u64) -> bool {
    let (mut table, mut level) = (root, Level::L4);
    loop {
        let entry = tables[number(table)][level.index(gpa)];
        if !F::present(entry) || !F::perm(entry).contains(Perm::W) {
            return false;
        }
        if F::is_leaf(entry, level) {
            return true;
        }
        (table, level) = (F::child(entry).0, level.down().unwrap());
    }
}

impl<F: Format> Tables for Ctx<F> {
    type Page = Fresh;

    fn load(&self, table: &Table<Fresh>, index: usize) -> u64 {
        if index < 2 {
            step();
        }
        let w = self.0.as_ref().unwrap();
        let value = w.tables.lock().unwrap()[number(table.hpa().0)][index];
        value
    }

    fn store(&self, table: &Table<Fresh>, index: usize, value: u64) {
        let w = self.0.as_ref().unwrap();
        w.tables.lock().unwrap()[number(table.hpa().0)][index] = value;
    }

    fn cmpxchg(&self, table: &Table<Fresh>, index: usize, old: u64, new: u64) -> Result<(), u64> {
        step();
        let w = self.0.as_ref().unwrap();
        let mut tables = w.tables.lock().unwrap();
        let entry = &mut tables[number(table.hpa().0)][index];
        if *entry != old {
            return Err(*entry);
        }
        *entry = new;
        if passes::<F>(&tables, w.root, PAGES[1]) {
            drop(tables);
            fail("a page can be written that nobody has mapped so");
        }
        Ok(())
    }

    fn alloc(&mut self) -> Option<Fresh> {
        let w = self.0.as_ref().unwrap();
        let mut tables = w.tables.lock().unwrap();
        tables.push(vec![0; 512]);
        Some(Fresh(BASE + ((tables.len() as u64 - 1) << 12)))
    }

    fn unused(&mut self, _: Table<Fresh>) {}
    fn free(&mut self, _: Table<Fresh>) {}
}

/// All pages are mapped, then everything is frozen. `huge`: the first two in one leaf.
fn frozen<F: Format + 'static>(huge: bool) -> Arc<World<F>> {
    // The tables are filled by a processor that nobody looks at.
    let mut m = Mem::<F>::new();
    let pt: PageTable<F, _> = m.create(4).unwrap();
    let mut world = World {
        tables: Mutex::new(vec![vec![0; 512]]),
        root: BASE,
        table: None,
    };
    for (n, gpa) in PAGES.iter().enumerate() {
        let level = if huge && n < 2 { Level::L2 } else { Level::L1 };
        write(&mut m, &pt, *gpa, level);
        let (mut table, mut at) = (BASE, Level::L4);
        while at > level {
            let mut tables = world.tables.lock().unwrap();
            let next = BASE + ((tables.len() as u64) << 12);
            let entry = &mut tables[number(table)][at.index(*gpa)];
            if *entry == 0 {
                *entry = F::table(Hpa(next));
                tables.push(vec![0; 512]);
            }
            table = F::child(tables[number(table)][at.index(*gpa)]).0;
            at = at.down().unwrap();
        }
        let base = gpa & !level.offset_mask();
        world.tables.lock().unwrap()[number(table)][level.index(*gpa)] =
            F::leaf(level, &leaf(base, Perm::RWX));
    }
    {
        let mut tables = world.tables.lock().unwrap();
        let entry = &mut tables[0][0];
        *entry = F::set_perm(*entry, Perm::RX);
    }
    world.table = Some(PageTable::with_root(Fresh(BASE), 4).unwrap());
    Arc::new(world)
}

/// A fault on a write; each try is one entry of the guest.
fn fault<F: Format>(world: &Arc<World<F>>, gpa: u64) {
    let mut c = Ctx(Some(world.clone()), PhantomData);
    let table = world.table.as_ref().unwrap();
    for _ in 0..3 {
        while let Some(narrowed) = table.thaw_begin(&mut c, Gpa(gpa)) {
            table.thaw_end(&mut c, Gpa(gpa), narrowed.level);
        }
        let page = leaf(gpa, Perm::RWX);
        match table.map(&mut c, Gpa(gpa), Level::L1, &page, Allow::Any) {
            Ok(_) => return,
            Err(MapError::Frozen | MapError::Busy) => {}
            Err(e) => fail(&format!("{e:?}")),
        }
    }
}

fn all<F: Format + Send + Sync + 'static>(huge: bool, pages: &[u64], preemptions: u32) -> u32 {
    explore(
        preemptions,
        || {
            let w = frozen::<F>(huge);
            let body = |gpa: &u64| -> Body {
                let (w, gpa) = (w.clone(), *gpa);
                Box::new(move || fault(&w, gpa))
            };
            let bodies = pages.iter().map(body).collect();
            (w, bodies)
        },
        |w| {
            // The next write of each passes in the end.
            for gpa in pages {
                fault(&w, *gpa);
                let tables = w.tables.lock().unwrap();
                if !passes::<F>(&tables, BASE, *gpa) {
                    return Err(format!("{gpa:x} cannot be written"));
                }
            }
            Ok(())
        },
    )
    .unwrap()
}

#[test]
fn writers_at_once() {
    let mut runs = 0;
    for huge in [false, true] {
        for other in [0, MIB_2, 1 << 30] {
            runs += all::<Npt>(huge, &[PAGES[0], other], 2);
        }
    }
    runs += all::<Ept>(false, &[PAGES[0], MIB_2], 2);
    println!("{runs} runs");
}
